"""Which splits of a cluster are worth it: a config, its model and a cluster in, the best `Plan` of each staleness out.

Coarse first: about `SPLITS` numbers of learner GPUs for each tensor parallelism, those that fit into memory, ordered
by what a step cannot be faster than. Of the two most promising tensor parallelisms the most promising split is
simulated, then its neighbours, as long as one of them is better.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from videostr.config import Config
from videostr.errors import ConfigError
from videostr.plan.costs import Hardware
from videostr.plan.layout import layout_of
from videostr.plan.lengths import Lengths
from videostr.plan.memory import Memory, estimate
from videostr.plan.shapes import Shapes
from videostr.plan.simulate import Costs, Failures, Layout, Outcome, learn_seconds, simulate

SPLITS = 16
CLIMBED = 2
"""Tensor parallelisms whose splits are simulated, for each staleness."""
STEPS = 20
STEPS_WITH_FAILURES = 100
"""Enough that some engines die."""
COMPLETIONS = 10_000
"""About as many are simulated at most; large steps are simulated fewer times."""
WHOLE = 500
"""Completions a step from which on a part of the cluster is simulated; a part has at least so many."""
MIN_STEPS = 3
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
    failures: Failures | None = None


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
    """The fastest split of a cluster for each staleness, in the order given.

    Raises:
        ConfigError: nothing fits; names what the widest learner or engine lacks.
    """
    gib = cluster.hardware.memory_gib
    fitting: list[tuple[Config, Memory]] = []
    problems: list[str] = []
    for split in splits(config, scenario.shapes, cluster):
        memory = estimate(split, scenario.shapes, gib)
        if memory.fits:
            fitting.append((split, memory))
        problems += memory.problems
    if not fitting:
        raise ConfigError(
            f"no split of {cluster.gpus} x {cluster.hardware.name} fits {scenario.shapes.name}: "
            f"{problems[-1] if problems else 'no tensor parallelism divides it'}"
        )
    return [_fastest(fitting, scenario, cluster, s) for s in staleness]


def _fastest(
    fitting: Sequence[tuple[Config, Memory]], scenario: Scenario, cluster: Cluster, staleness: int
) -> Plan:
    """Climbs, for the most promising tensor parallelisms, from the most promising number of ranks to its neighbours."""
    one_node = cluster.gpus <= cluster.gpus_per_node
    rows: dict[int, list[tuple[float, Config, Memory]]] = {}
    for split, memory in fitting:
        variant = with_staleness(split, staleness)
        least = least_step_seconds(*_simulated(variant, memory, scenario, one_node), scenario)
        rows.setdefault(split.rollout.tensor_parallel_size, []).append((least, variant, memory))
    promising = sorted(rows.values(), key=lambda row: min(least for least, _, _ in row))[:CLIMBED]
    return max((_climb(row, scenario, cluster.gpus, one_node) for row in promising), key=_rate)


def _climb(
    row: Sequence[tuple[float, Config, Memory]], scenario: Scenario, gpus: int, one_node: bool
) -> Plan:
    """The best of neighbouring numbers of ranks; `row` is ordered by them."""
    plans: dict[int, Plan] = {}
    at = min(range(len(row)), key=lambda i: row[i][0])
    while True:
        near = [i for i in (at, at - 1, at + 1) if 0 <= i < len(row)]
        for i in near:
            if i not in plans:
                plans[i] = plan_of(row[i][1], row[i][2], scenario, gpus, one_node)
        best = max(near, key=lambda i: _rate(plans[i]))
        if best == at:
            return plans[at]
        at = best


def _rate(plan: Plan) -> float:
    return plan.outcome.samples_per_s


def splits(config: Config, shapes: Shapes, cluster: Cluster) -> Iterator[Config]:
    """Configs that use the whole cluster, by tensor parallelism and learner ranks; the config's own among them."""
    own = config.rollout.tensor_parallel_size
    for parallel in sorted({own, *ENGINE_GPUS}):
        widths = (shapes.num_attention_heads, shapes.intermediate_size, shapes.vision.intermediate_size)
        of_heads = max(parallel, shapes.num_key_value_heads) % min(parallel, shapes.num_key_value_heads) == 0
        if parallel > cluster.gpus_per_node or any(width % parallel for width in widths) or not of_heads:
            continue
        unit = parallel * math.ceil(cluster.gpus / parallel / SPLITS)
        ranks = {cluster.gpus - engines for engines in range(unit, cluster.gpus, unit)}
        if parallel == own:
            ranks.add(config.learner.num_ranks)
        for count in sorted(ranks):
            engine_gpus = cluster.gpus - count
            if count >= 1 and engine_gpus >= parallel and engine_gpus % parallel == 0:
                yield with_split(config, engine_gpus // parallel, parallel, count)


def with_split(config: Config, engines: int, parallel: int, ranks: int) -> Config:
    """The same run on other numbers of GPUs."""
    rollout = replace(
        config.rollout, num_workers=engines, tensor_parallel_size=parallel, num_gpus=parallel, max_workers=0
    )
    return replace(config, rollout=rollout, learner=replace(config.learner, num_ranks=ranks))


def with_staleness(config: Config, staleness: int) -> Config:
    """The same run with another bound on staleness."""
    return replace(config, train=replace(config.train, max_staleness=staleness))


def plan_of(
    config: Config, memory: Memory, scenario: Scenario, gpus: int, one_node: bool = True, cores: float = 0.0
) -> Plan:
    """A config, simulated."""
    layout, costs = _simulated(config, memory, scenario, one_node, cores)
    part = _divisor(layout) if scenario.failures is None and not cores else 1
    workers = max(1, layout.reward_workers // part)
    small = replace(
        layout,
        prompts=layout.prompts // part,
        engines=layout.engines // part,
        ranks=layout.ranks // part,
        reward_workers=workers,
    )
    scored = replace(costs, reward_s=costs.reward_s * workers * part / layout.reward_workers)
    steps = min(max(COMPLETIONS // (small.prompts * small.group_size), MIN_STEPS), STEPS)
    if scenario.failures is not None:
        steps = STEPS_WITH_FAILURES
    outcome = simulate(small, scored, scenario.lengths, steps=steps, failures=scenario.failures)
    outcome = replace(
        outcome, samples_per_s=outcome.samples_per_s * part, tokens_per_s=outcome.tokens_per_s * part
    )
    return Plan(
        gpus=gpus,
        engines=layout.engines,
        tensor_parallel=config.rollout.tensor_parallel_size,
        ranks=layout.ranks,
        staleness=layout.staleness,
        prompts=layout.prompts,
        outcome=outcome,
        memory=memory,
    )


def _divisor(layout: Layout) -> int:
    """Into how many equal parts a large cluster falls, one of which is simulated: its engines do not see each other."""
    common = math.gcd(layout.prompts, layout.engines, layout.ranks)
    most = layout.prompts * layout.group_size // WHOLE
    return max(d for d in range(1, common + 1) if common % d == 0 and (d == 1 or d <= most))


def _simulated(
    config: Config, memory: Memory, scenario: Scenario, one_node: bool, cores: float = 0.0
) -> tuple[Layout, Costs]:
    layout = layout_of(config, memory, scenario.prompt_tokens, cores)
    return layout, scenario.costs(config, one_node)


def least_step_seconds(layout: Layout, costs: Costs, scenario: Scenario) -> float:
    """About what a step cannot be faster than: full engines all the time; the longer side, or with S = 0 both."""
    mean = scenario.lengths.mean
    groups = math.ceil(layout.prompts / layout.engines)
    sequences = groups * layout.group_size
    together = min(sequences, layout.seats)
    decode = math.ceil(sequences / together) * mean * (costs.step_s + costs.sequence_s * together)
    rollout = groups * costs.prefill_s + decode
    learned = max(1, round(layout.prompts * (1 - costs.flat_fraction)))
    learn = learn_seconds([[round(mean)] * layout.group_size] * learned, layout, costs) + costs.sync_s
    return rollout + learn if layout.staleness == 0 else max(rollout, learn)


def best_of(plans: Sequence[Plan]) -> Plan:
    """The fastest, or one with less staleness that is hardly slower."""
    fastest = max(plan.outcome.samples_per_s for plan in plans)
    close = [plan for plan in plans if plan.outcome.samples_per_s >= fastest * (1 - CLOSE)]
    return min(close, key=lambda plan: (plan.staleness, plan.engines))


def reason(best: Plan, plans: Sequence[Plan]) -> str:
    """Why the best one is best, in one sentence."""
    outcome = best.outcome
    idle = f"engines idle {outcome.idle_rollout:.0%}, learner idle {outcome.idle_learner:.0%}"
    others = [plan for plan in plans if plan.staleness != best.staleness]
    if best.staleness == 0:
        gain = max((plan.outcome.samples_per_s / outcome.samples_per_s - 1 for plan in others), default=0.0)
        more = f"; sampling ahead would gain {max(gain, 0.0):.0%}" if others else ""
        return f"sampling and learning take turns ({idle}), and their sum is least{more}."
    synchronous = [plan for plan in others if plan.staleness == 0]
    gain = max((outcome.samples_per_s / plan.outcome.samples_per_s for plan in synchronous), default=0.0)
    against = f", {gain:.2f} times the rate of the best with S = 0" if gain else ""
    bound = "sampling" if outcome.idle_rollout < outcome.idle_learner else "learning"
    return f"sampling and learning overlap ({idle}), so that a step costs hardly more than {bound}{against}."
