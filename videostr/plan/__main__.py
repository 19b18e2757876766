"""`python -m videostr.plan --config FILE [key=value ...]`: seconds per step, rollout : learner ratio and memory of a run.

The run's keys are those of videostr.launch; `plan.*` says what is compared and assumed (docs/config.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, astuple

from videostr.command import command, config_parser, run_main
from videostr.config.load import load_plan
from videostr.config.schema import PlanConfig
from videostr.models.memory import Memory
from videostr.plan.calibrate import scenario_of
from videostr.plan.costs import gpus_of
from videostr.plan.search import Plan, Scenario, best_of, search

HEADER = ("", "GPUs", "engines x TP : ranks", "S", "step s", "rollout s", "reward s", "learn s", "sync s",
          "engines busy", "learner busy", "samples/s", "rank GiB", "KV seqs")  # fmt: skip


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit status."""
    options = config_parser("python -m videostr.plan", __doc__).parse_args(arguments)
    config = load_plan(options.config, options.overrides)
    scenario = scenario_of(config)
    memory, rows, advice = scenario.memory(config), [], []
    if not memory.problems:
        rows.append(_row("config", Plan(config=config, memory=memory, outcome=scenario.run(config))))
    for gpus in config.plan.gpus or [gpus_of(config)]:
        plans = search(config, scenario, gpus)
        best = best_of(plans)
        rows += [_row("best" if plan is best else "", plan) for plan in plans]
        advice.append(f"best{f' of {gpus} GPUs' if gpus else ''}: {_keys(best)}")
        if again := best.outcome.tokens_again:
            advice.append(f"  {again:.0f} tokens a step are sampled again after failures of engines")
    notes = [*_notes(config, scenario), *_memory(memory, scenario.hardware.memory_gib)]
    print("\n".join([*notes, "", *_aligned([HEADER, *rows]), "", *advice]))
    return 0


def _notes(config: PlanConfig, scenario: Scenario) -> list[str]:
    """Return what the simulated run is, and where that comes from."""
    work, hardware = scenario.work, scenario.hardware
    speeds = "assumed, not measured; plan.calibrate=RUN_DIR takes those of a run"
    if config.plan.calibrate:
        speeds = (
            f"from {config.plan.calibrate}; its seconds in assumed ones: engine {hardware.engine:.2f}, reward "
            f"{hardware.reward:.2f}, learner {hardware.learn:.2f}, sync {hardware.sync:.2f}"
        )
    shared = "" if scenario.cores == math.inf else f", {scenario.cores:g} cores shared by all"
    return [
        f"{scenario.shapes.name} on {hardware.name}{shared}; speeds: {speeds}",
        f"prompts of {work.prompt_tokens} tokens, completions of {work.completion_tokens:.0f} on average (at most "
        f"{config.sampling.max_tokens}), {work.zero_variance:.0%} of the groups of zero variance",
    ]


def _memory(memory: Memory, gpu_gib: float) -> list[str]:
    """Return a line for a learner rank and one for an engine of the config, and the verdict."""
    learner, host, engine = memory.learner, memory.host, memory.engine
    parts = ", ".join(f"{name} {gib:.1f}" for name, gib in asdict(learner).items())
    verdict = [f"does not fit: {problem}" for problem in memory.problems] or [
        f"both fit into {gpu_gib:g} GiB"
    ]
    return [
        f"memory of a learner rank: {learner.total:.1f} GiB ({parts})",
        f"host memory of a learner rank: {host.total:.1f} GiB (offloaded {host.offloaded:.1f}, copy of a checkpoint "
        f"{host.checkpoint:.1f})",
        f"memory of an engine, each GPU: weights {engine.weights:.1f} GiB, working {engine.working:.1f}, cache "
        f"{engine.kv_cache:.1f}; it has room for {engine.sequences} sequences of rollout.max_model_len",
        *(verdict if gpu_gib or memory.problems else ()),
    ]


def _keys(plan: Plan) -> str:
    """Return the overrides that make a run of a plan."""
    rollout, keys = plan.config.rollout, [f"rollout.num_workers={plan.config.rollout.num_workers}"]
    if parallel := rollout.num_gpus and rollout.tensor_parallel_size:
        keys += [f"rollout.tensor_parallel_size={parallel}", f"rollout.num_gpus={parallel}"]
    keys.append(f"learner.num_ranks={plan.config.learner.num_ranks}")
    return " ".join([*keys, f"train.max_staleness={plan.config.train.max_staleness}"])


def _row(name: str, plan: Plan) -> tuple[str, ...]:
    config, outcome = plan.config, plan.outcome
    return (
        name,
        str(gpus_of(config) or "CPU"),
        f"{config.rollout.num_workers} x {config.rollout.tensor_parallel_size} : {config.learner.num_ranks}",
        str(config.train.max_staleness),
        *(f"{seconds:.3g}" for seconds in astuple(outcome.seconds)),
        f"{outcome.engines_busy:.0%}",
        f"{outcome.learner_busy:.0%}",
        f"{outcome.samples_per_s:.3g}",
        f"{plan.memory.learner.total:.1f}",
        str(plan.memory.engine.sequences),
    )


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


if __name__ == "__main__":
    run_main(main)
