"""Which layouts are worth it: a run and a number of GPUs in, the best `Plan` of each staleness out.

Layouts that fit into memory are ordered by a closed-form estimate of the step; the first `SIMULATED` are simulated.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from videostr.config.schema import Config, Estimate
from videostr.errors import ConfigError
from videostr.models.base import Shapes
from videostr.models.memory import Memory, estimate
from videostr.plan.costs import Costs, Hardware, costs_of, gpus_of
from videostr.plan.simulate import Outcome, simulate
from videostr.plan.workers import World, random_deaths
from videostr.plan.workload import Workload

SPLITS = 16
"""About so many numbers of learner GPUs are tried for each tensor parallelism."""
SIMULATED = 5
"""Layouts that are simulated, for each staleness."""
ENGINE_GPUS, CPU_ENGINES = (1, 2, 4, 8), (1, 2, 3, 4)
COMPLETIONS, MIN_STEPS, MAX_STEPS = 5_000, 4, 20
"""About as many completions are simulated, in as many steps."""
STEPS_WITH_FAILURES = 100
"""Enough that some engines die."""
CLOSE = 0.02
"""Gain below which less staleness is preferred."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """What all layouts of a run have in common."""

    shapes: Shapes
    hardware: Hardware
    work: Workload
    settings: Estimate

    @property
    def cores(self) -> float:
        """CPU cores that everything shares; infinite on GPUs."""
        return math.inf if self.hardware.memory_gib else self.settings.cores or float(os.cpu_count() or 1)

    def costs(self, config: Config) -> Costs:
        """Return what things take."""
        return costs_of(config, self.shapes, self.hardware, self.work, self.settings.gpus_per_node)

    def memory(self, config: Config) -> Memory:
        """Return the memory of a rank and of an engine."""
        return estimate(config, self.shapes, self.hardware.memory_gib or None)

    def seats(self, config: Config) -> int:
        """Return the sequences that an engine's cache has room for; those of a group share their prompt."""
        sequence = self.work.prompt_tokens / config.sampling.group_size + config.sampling.max_tokens
        return int(self.memory(config).engine.kv_tokens / sequence)

    def run(self, config: Config, *, steps: int = 0) -> Outcome:
        """Simulate a layout for so many steps; 0 for as many as need be."""
        samples = config.train.prompts_per_step * config.sampling.group_size
        enough = min(max(COMPLETIONS // samples, MIN_STEPS), MAX_STEPS)
        together = config.train.max_staleness + 1
        enough = max(enough - enough % together, together)  # batches that are sampled together end together
        world = World(
            config=config,
            costs=self.costs(config),
            work=self.work,
            seats=self.seats(config),
            cores=self.cores,
            restart_s=self.settings.restart_s,
        )
        if self.settings.mtbf_hours:
            mtbf_s = self.settings.mtbf_hours * 3600
            world.deaths, enough = random_deaths(mtbf_s, config.rollout.num_workers), STEPS_WITH_FAILURES
        return simulate(world, steps=steps or enough)

    def estimated_step_s(self, config: Config) -> float:
        """Return about what a step takes: full engines all the time, equal ranks; the longer side, or with S = 0 both."""
        costs, sampling, prompts = self.costs(config), config.sampling, config.train.prompts_per_step
        groups = math.ceil(prompts / config.rollout.num_workers)
        together = max(1, min(groups * sampling.group_size, config.rollout.max_num_seqs, self.seats(config)))
        rounds = math.ceil(groups * sampling.group_size / together)
        decode_s = self.work.completion_tokens * (costs.step_s + costs.sequence_s * together)
        rollout_s = groups * costs.prefill_s + rounds * decode_s
        lengths = [round(self.work.completion_tokens)] * sampling.group_size
        group_s = costs.row.segment(self.work.prompt_tokens, lengths, costs.prompt_patches)
        shared = config.learner.sequence_parallel
        rows_s = prompts * (1 - self.work.zero_variance) * group_s * shared / config.learner.num_ranks
        learn_s = costs.learn_fixed_s + rows_s + costs.sync_s
        return rollout_s + learn_s if config.train.max_staleness == 0 else max(rollout_s, learn_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One layout, simulated."""

    config: Config
    memory: Memory
    outcome: Outcome


def search(config: Config, scenario: Scenario, gpus: int) -> list[Plan]:
    """Return the fastest layout for each value of `plan.staleness`, in that order; `gpus` is 0 on CPU.

    Raises:
        ConfigError: nothing fits; names what the last engine or learner lacks.
    """
    found = [(layout, scenario.memory(layout)) for layout in layouts(config, scenario, gpus)]
    fitting = [(layout, memory) for layout, memory in found if not memory.problems]
    if not fitting:
        where = f"{gpus} x {scenario.hardware.name}" if gpus else "this machine"
        problems = [problem for _, memory in found for problem in memory.problems]
        problem = problems[-1] if problems else "no tensor parallelism divides it"
        raise ConfigError(
            f"no layout on {where} fits {scenario.shapes.name}: {problem}",
            remedy="or plan with more of plan.gpus" if gpus else "",
        )
    best = []
    for staleness in scenario.settings.staleness:
        variants = [
            (replace(c, train=replace(c.train, max_staleness=staleness)), memory) for c, memory in fitting
        ]
        variants.sort(key=lambda variant: scenario.estimated_step_s(variant[0]))
        plans = [Plan(config=c, memory=m, outcome=scenario.run(c)) for c, m in variants[:SIMULATED]]
        best.append(max(plans, key=lambda plan: plan.outcome.samples_per_s))
    return best


def layouts(config: Config, scenario: Scenario, gpus: int) -> Iterator[Config]:
    """Yield the run on all these GPUs, by tensor parallelism and learner ranks, or on CPU by engines; its own among them."""
    own, shapes = config.rollout.tensor_parallel_size, scenario.shapes
    if not gpus:
        for engines in sorted({*CPU_ENGINES, config.rollout.num_workers}):
            yield with_layout(config, engines, own, config.learner.num_ranks)
        return
    widths = (shapes.num_attention_heads, shapes.text.intermediate_size, shapes.vision.intermediate_size)
    heads = shapes.num_key_value_heads
    for parallel in sorted({own, *ENGINE_GPUS}):
        is_divided = not any(width % parallel for width in widths) and (
            not heads % parallel or not parallel % heads
        )
        if parallel > scenario.settings.gpus_per_node or not is_divided:
            continue
        unit = parallel * math.ceil(gpus / parallel / SPLITS)
        ranks = {gpus - used for used in range(unit, gpus, unit)}
        if parallel == own:
            ranks.add(config.learner.num_ranks)
        for count in sorted(ranks):
            is_whole = not (gpus - count) % parallel and not count % config.learner.sequence_parallel
            if count < gpus and is_whole:
                yield with_layout(config, (gpus - count) // parallel, parallel, count)


def with_layout(config: Config, engines: int, parallel: int, ranks: int) -> Config:
    """Return the same run with other numbers of engines and ranks."""
    gpus = parallel if config.rollout.num_gpus else 0
    rollout = replace(
        config.rollout, num_workers=engines, tensor_parallel_size=parallel, num_gpus=gpus, max_workers=0
    )
    return replace(config, rollout=rollout, learner=replace(config.learner, num_ranks=ranks))


def best_of(plans: Sequence[Plan]) -> Plan:
    """Return the fastest, or one with less staleness that is hardly slower."""
    fastest = max(plan.outcome.samples_per_s for plan in plans)
    close = [plan for plan in plans if plan.outcome.samples_per_s >= fastest * (1 - CLOSE)]
    return min(close, key=lambda plan: (plan.config.train.max_staleness, gpus_of(plan.config)))
