"""Which splits of a cluster are worth it: a config, its model and a cluster in, the best `Plan` of each staleness out.

About `SPLITS` numbers of learner GPUs for each tensor parallelism, those that fit into memory, ordered by a closed-form
estimate of the step; the first `SIMULATED` are simulated. Of a cluster that falls into equal parts, one part is simulated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from videostr.config.schema import Config
from videostr.errors import ConfigError
from videostr.models.base import Shapes
from videostr.plan.costs import Costs, Hardware
from videostr.plan.lengths import Lengths
from videostr.plan.memory import Memory, estimate
from videostr.plan.simulate import Outcome, simulate
from videostr.plan.workers import Machine

SPLITS = 16
SIMULATED = 5
"""Splits that are simulated, for each staleness."""
MIN_STEPS, STEPS = 6, 20
COMPLETIONS = 5_000
"""About as many are simulated at most; large steps are simulated fewer times."""
STEPS_WITH_FAILURES = 100
"""Enough that some engines die."""
WHOLE = 500
"""Completions a step from which on a part of the cluster is simulated; a part has at least so many."""
CLOSE = 0.02
"""Gain below which less staleness is preferred."""
ENGINE_GPUS = (1, 2, 4, 8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """What there is."""

    gpus: int
    gpus_per_node: int
    hardware: Hardware

    def __post_init__(self) -> None:
        """Raises ConfigError for clusters that nothing runs on."""
        if self.gpus < 2:
            raise ConfigError(
                f"gpus = {self.gpus}: must be at least 2, one for an engine and one for the learner"
            )
        if self.gpus_per_node < 1:
            raise ConfigError(f"gpus_per_node = {self.gpus_per_node}: must be at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """What is common to all splits."""

    shapes: Shapes
    lengths: Lengths
    prompt_tokens: float
    costs: Callable[[Config, bool], Costs]
    """(config, whether all GPUs are in one node) -> costs."""
    machine: Machine
    """Cores and failures; each split has a cache of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One split, simulated."""

    gpus: int
    """Accelerators; 0 on a CPU."""
    engines: int
    tensor_parallel: int
    ranks: int
    staleness: int
    prompts: int
    """Groups of an update."""
    outcome: Outcome
    memory: Memory

    @property
    def samples_per_s_per_gpu(self) -> float:
        """Completions a second and accelerator; of the whole machine on a CPU."""
        return self.outcome.samples_per_s / max(self.gpus, 1)


def search(config: Config, scenario: Scenario, cluster: Cluster, staleness: Sequence[int]) -> list[Plan]:
    """Return the fastest split of a cluster for each staleness, in the order given.

    Raises:
        ConfigError: nothing fits; names what the widest learner or engine lacks.
    """
    found = [
        (split, estimate(split, scenario.shapes, cluster.hardware.memory_gib))
        for split in splits(config, scenario.shapes, cluster)
    ]
    fitting = [(split, memory) for split, memory in found if not memory.problems]
    if not fitting:
        problems = [problem for _, memory in found for problem in memory.problems]
        raise ConfigError(
            f"no split of {cluster.gpus} x {cluster.hardware.name} fits {scenario.shapes.name}: "
            f"{problems[-1] if problems else 'no tensor parallelism divides it'}"
        )
    one_node = cluster.gpus <= cluster.gpus_per_node
    best = []
    for s in staleness:
        variants = [(with_staleness(split, s), memory) for split, memory in fitting]
        variants.sort(key=lambda variant: estimated_step_s(variant[0], variant[1], scenario, one_node))
        plans = [plan_of(*variant, scenario, cluster.gpus, one_node) for variant in variants[:SIMULATED]]
        best.append(max(plans, key=lambda plan: plan.outcome.samples_per_s))
    return best


def splits(config: Config, shapes: Shapes, cluster: Cluster) -> Iterator[Config]:
    """Yield configs that use the whole cluster, by tensor parallelism and learner ranks; the config's own among them."""
    own = config.rollout.tensor_parallel_size
    for parallel in sorted({own, *ENGINE_GPUS}):
        widths = (shapes.num_attention_heads, shapes.text.intermediate_size, shapes.vision.intermediate_size)
        of_heads = max(parallel, shapes.num_key_value_heads) % min(parallel, shapes.num_key_value_heads) == 0
        if parallel > cluster.gpus_per_node or any(width % parallel for width in widths) or not of_heads:
            continue
        unit = parallel * math.ceil(cluster.gpus / parallel / SPLITS)
        ranks = {cluster.gpus - engines for engines in range(unit, cluster.gpus, unit)}
        if parallel == own:
            ranks.add(config.learner.num_ranks)
        for count in sorted(ranks):
            engines, rest = divmod(cluster.gpus - count, parallel)
            if engines >= 1 and not rest:
                yield with_split(config, engines, parallel, count)


def with_split(config: Config, engines: int, parallel: int, ranks: int) -> Config:
    """Return the same run on other numbers of GPUs."""
    rollout = replace(
        config.rollout, num_workers=engines, tensor_parallel_size=parallel, num_gpus=parallel, max_workers=0
    )
    return replace(config, rollout=rollout, learner=replace(config.learner, num_ranks=ranks))


def with_staleness(config: Config, staleness: int) -> Config:
    """Return the same run with another bound on staleness."""
    return replace(config, train=replace(config.train, max_staleness=staleness))


def with_cache(machine: Machine, config: Config, memory: Memory, prompt_tokens: float) -> Machine:
    """Return the machine with what fits into an engine's cache, in which a group's completions share their prompt."""
    sequence = prompt_tokens / config.sampling.group_size + config.sampling.max_tokens
    return replace(machine, kv_seqs=int(memory.engine.kv_tokens / sequence))


def plan_of(config: Config, memory: Memory, scenario: Scenario, gpus: int, one_node: bool = True) -> Plan:
    """Simulate a config."""
    machine = with_cache(scenario.machine, config, memory, scenario.prompt_tokens)
    costs = scenario.costs(config, one_node)
    is_simple = machine.mtbf_s == math.inf and machine.cores == math.inf
    parts = _parts(config) if is_simple else 1
    part, reward_s = _part_of(config, parts)
    samples = part.train.prompts_per_step * part.sampling.group_size
    steps = min(max(COMPLETIONS // samples, MIN_STEPS), STEPS)
    steps -= steps % (
        config.train.max_staleness + 1
    )  # whole rounds: batches that are sampled side by side end together
    if machine.mtbf_s < math.inf:
        steps = STEPS_WITH_FAILURES
    costs = replace(costs, reward_s=costs.reward_s * reward_s)
    outcome = simulate(part, costs, scenario.lengths, machine, steps=steps)
    return Plan(
        gpus=gpus,
        engines=config.rollout.num_workers,
        tensor_parallel=config.rollout.tensor_parallel_size,
        ranks=config.learner.num_ranks,
        staleness=config.train.max_staleness,
        prompts=config.train.prompts_per_step,
        outcome=replace(outcome, samples_per_s=outcome.samples_per_s * parts),
        memory=memory,
    )


def _parts(config: Config) -> int:
    """Into how many equal parts a large cluster falls: its engines do not see each other."""
    prompts = config.train.prompts_per_step
    common = math.gcd(prompts, config.rollout.num_workers, config.learner.num_ranks)
    most = prompts * config.sampling.group_size // WHOLE
    return max(d for d in range(1, common + 1) if common % d == 0 and (d == 1 or d <= most))


def _part_of(config: Config, parts: int) -> tuple[Config, float]:
    """Return one part, and by how much its reward workers are slower for being too many or too few."""
    workers = max(1, config.reward.num_workers // parts)
    part = replace(
        config,
        train=replace(config.train, prompts_per_step=config.train.prompts_per_step // parts),
        rollout=replace(config.rollout, num_workers=config.rollout.num_workers // parts),
        learner=replace(config.learner, num_ranks=config.learner.num_ranks // parts),
        reward=replace(config.reward, num_workers=workers),
    )
    return part, workers * parts / config.reward.num_workers


def estimated_step_s(config: Config, memory: Memory, scenario: Scenario, one_node: bool) -> float:
    """Return about what a step takes: full engines all the time, equal ranks; the longer side, or with S = 0 both."""
    machine = with_cache(scenario.machine, config, memory, scenario.prompt_tokens)
    costs = scenario.costs(config, one_node)
    mean, size, prompts = scenario.lengths.mean, config.sampling.group_size, config.train.prompts_per_step
    groups = math.ceil(prompts / config.rollout.num_workers)
    together = max(1, min(groups * size, config.rollout.max_num_seqs, machine.kv_seqs))
    rounds = math.ceil(groups * size / together)
    rollout = groups * costs.prefill_s + rounds * mean * (costs.step_s + costs.sequence_s * together)
    group_s = costs.row.segment(costs.prompt_tokens, [round(mean)] * size, costs.prompt_patches)
    rows_s = prompts * (1 - costs.zero_variance) * group_s / config.learner.num_ranks
    learn = costs.learn_fixed_s + rows_s + costs.sync_s
    return rollout + learn if config.train.max_staleness == 0 else max(rollout, learn)


def best_of(plans: Sequence[Plan]) -> Plan:
    """Return the fastest, or one with less staleness that is hardly slower."""
    fastest = max(plan.outcome.samples_per_s for plan in plans)
    close = [plan for plan in plans if plan.outcome.samples_per_s >= fastest * (1 - CLOSE)]
    return min(close, key=lambda plan: (plan.staleness, plan.engines))


def reason(best: Plan, plans: Sequence[Plan]) -> str:
    """Say why the best one is best, in one sentence."""
    outcome = best.outcome
    idle = f"engines idle {outcome.idle_rollout:.0%}, learner idle {outcome.idle_learner:.0%}"
    rates = [plan.outcome.samples_per_s for plan in plans if plan.staleness == 0 and plan is not best]
    gain = (
        f", {outcome.samples_per_s / max(rates):.2f} times the rate of the best with S = 0" if rates else ""
    )
    how = "overlap" if best.staleness else "take turns"
    return f"sampling and learning {how} ({idle}){gain}"
