"""What a run measured, as corrections of what is assumed: run folders in, `Calibration` and predictions out.

From the run folder: prompt and completion lengths, share of groups without variance, seconds of rollout, reward, learning and
weight sync, as medians without the first steps. How these divide, e.g. a decode step into a part for all and a part for each
sequence, stays assumed (videostr/plan/costs.py): one factor a side, such that a simulation of the run takes what the run took.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from scipy.stats import trim_mean

from videostr.config.schema import Config
from videostr.errors import RunFolderError
from videostr.models.base import Shapes, shapes_of
from videostr.plan.costs import Costs, Factors, Hardware, Workload, assumed
from videostr.plan.lengths import Traced, dumped_groups
from videostr.plan.memory import estimate
from videostr.plan.search import with_cache
from videostr.plan.simulate import Outcome, simulate
from videostr.plan.workers import Machine
from videostr.run_data import read_run

SKIPPED = 2
"""First steps of a run that are left out: they start engines' caches, compile and form the transfer group."""
STEPS = 40
"""Of a simulated run."""
ROUNDS = 4
"""Simulations in which the factors settle."""
TRIMMED = 0.1
"""Share of the steps at either end that the measured mean leaves out: they wait for evaluation or for new engines."""
SIDES = ("rollout", "reward", "learn", "sync")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One run, by its folder."""

    folder: Path
    config: Config
    steps: int
    """Steps that were used."""
    step_s: float
    """Mean of `time/step`, the tenth of the steps at either end left out, seconds."""
    medians: Mapping[str, float]
    """Seconds of `SIDES`; learn and sync of steps with an update."""
    workload: Workload
    lengths: Traced


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What to correct assumptions by."""

    measured: Measured
    hardware: Hardware
    cores: float
    """That everything shares; infinite on GPUs."""
    factors: Factors
    notes: tuple[str, ...]
    """What comes from the run and what stays assumed."""

    def costs(self, config: Config, shapes: Shapes, *, one_node: bool = True) -> Costs:
        """Return the costs of any layout of the same model on the same hardware."""
        return self.factors.of(
            assumed(config, shapes, self.hardware, self.measured.workload, one_node=one_node)
        )

    def predict(self, config: Config) -> Outcome:
        """Simulate a run of the same model."""
        shapes = shapes_of(config.model.path)
        memory = estimate(config, shapes, self.hardware.memory_gib or None)
        prompt_tokens = self.measured.workload.prompt_tokens
        machine = with_cache(Machine(cores=self.cores), config, memory, prompt_tokens)
        return simulate(config, self.costs(config, shapes), self.measured.lengths, machine, steps=STEPS)


def read_measured(folder: str | Path) -> Measured:
    """Return a run's timings and lengths.

    Raises:
        RunFolderError: its config cannot be read, it has too few steps, or no trace dump.
    """
    run = read_run(folder)
    if run.config is None:
        raise RunFolderError(
            f"{folder}: config.yaml cannot be read ({'; '.join(run.problems) or 'it is missing'})",
            remedy="name a run of this version",
        )
    used = [row for row in run.metrics if _is_whole(row)][SKIPPED:]
    if len(used) < 3:
        raise RunFolderError(
            f"{folder}: {len(used)} whole steps after the first {SKIPPED} in metrics.jsonl: must be at least 3",
            remedy="let it run longer",
        )
    steps = {int(row["step"]) for row in used}
    groups = [group for step, rows in run.dumps if step in steps for group in dumped_groups(rows)]
    if not groups:
        raise RunFolderError(
            f"{folder}: no trace dump of a step after the first {SKIPPED}", remedy="set train.traces_every"
        )
    updates = [row for row in used if row.get("sync/bytes")] or used
    lengths = Traced(groups=tuple(groups))
    return Measured(
        folder=Path(folder),
        config=run.config,
        steps=len(used),
        step_s=float(trim_mean([row["time/step"] for row in used], TRIMMED)),
        medians={
            "rollout": median(row["time/rollout"] for row in used),
            "reward": median(row["time/reward"] for row in used),
            "learn": median(row["time/learn"] for row in updates),
            "sync": median(row.get("sync/seconds", row["time/sync"]) for row in updates),
        },
        workload=Workload(
            prompt_tokens=median(row["tokens/prompt"] for row in used) / run.config.train.prompts_per_step,
            completion_tokens=lengths.mean,
            zero_variance=_zero_variance(used, run.config),
        ),
        lengths=lengths,
    )


def _is_whole(row: Mapping[str, Any]) -> bool:
    keys = ("time/rollout", "time/reward", "time/learn", "time/sync", "time/step", "tokens/prompt")
    return all(isinstance(row.get(key), int | float) for key in keys)


def _zero_variance(rows: Sequence[Mapping[str, Any]], config: Config) -> float:
    """Return the share of the sampled groups that are not learned from: none when there is a KL term."""
    if config.loss.kl_coef > 0:
        return 0.0
    replaced = sum(row.get("replaced_groups", 0) for row in rows)
    kept = sum(row.get("zero_variance_groups", 0) for row in rows)
    return float(min((kept + replaced) / (config.train.prompts_per_step * len(rows) + replaced), 0.99))


def calibrate(folder: str | Path, hardware: Hardware, cores: float) -> Calibration:
    """Return the factors by which a run of this hardware differs from what is assumed; `cores` are shared, or infinite.

    Raises:
        RunFolderError: the run cannot be used; says why.
    """
    measured = read_measured(folder)
    calibration = Calibration(measured=measured, hardware=hardware, cores=cores, factors=Factors(), notes=())
    costs = calibration.costs(measured.config, shapes_of(measured.config.model.path))
    factors = Factors(sync=measured.medians["sync"] / costs.sync_s)
    for _ in range(ROUNDS):
        seen = replace(calibration, factors=factors).predict(measured.config)
        factors = replace(
            factors,
            engine=factors.engine * measured.medians["rollout"] / max(seen.rollout_s, 1e-9),
            reward=factors.reward * math.sqrt(measured.medians["reward"] / max(seen.reward_s, 1e-9)),
            learn=factors.learn * measured.medians["learn"] / max(seen.learn_s, 1e-9),
        )
    return replace(calibration, factors=factors, notes=_notes(measured, factors, cores))


def _notes(measured: Measured, factors: Factors, cores: float) -> tuple[str, ...]:
    workload = measured.workload
    seconds = ", ".join(f"{side} {measured.medians[side]:.3g} s" for side in SIDES)
    shared = f"; {cores:g} cores shared by engines, learner and rewards (--cores)" if cores < math.inf else ""
    return (
        f"from {measured.folder}, {measured.steps} steps after the first {SKIPPED}: prompts of "
        f"{workload.prompt_tokens:.0f} tokens, completions of {workload.completion_tokens:.0f} (lengths of "
        f"{len(measured.lengths.groups)} groups), {workload.zero_variance:.0%} of the groups without variance, "
        f"{seconds} (medians)",
        f"measured against assumed: engine {factors.engine:.2f}, reward {factors.reward:.2f}, learn "
        f"{factors.learn:.2f}, sync {factors.sync:.2f}{shared}",
    )
