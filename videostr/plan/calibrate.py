"""What a run measured, as corrections of what is assumed: run folders in, `Calibration` and validation rows out.

From the run folder: prompt and completion lengths, share of groups without variance, seconds of rollout, reward,
learning and publication, each as a median without the first steps. Assumed (videostr/plan/costs.py): how a decode step
divides into a part for all and a part for each sequence, prefill, how an update divides into prompts and completions.
The assumed parts are then multiplied, one factor a side, until a simulation of the run itself takes what the run took.
From a synchronous run of one engine with a trace dump for nearly every step the division of the decode step is fitted,
too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from scipy.stats import trim_mean

from videostr.config import Config
from videostr.errors import RunFolderError
from videostr.plan.costs import Factors, Hardware, Workload, assumed
from videostr.plan.layout import layout_of
from videostr.plan.lengths import Traced, dumped_groups
from videostr.plan.memory import estimate
from videostr.plan.shapes import Shapes, shapes_of
from videostr.plan.simulate import Costs, Outcome, simulate
from videostr.report.run import RunData, read_run

SKIPPED = 2
"""First steps of a run that are left out: they start engines' caches, compile and form the transfer group."""
ROUNDS = 6
"""Simulations in which the factors settle."""
MIN_FITTED_STEPS = 12
CERTAIN = 3.0
TRIMMED = 0.1
"""Share of the steps at either end that the measured mean leaves out: they wait for evaluation or for new engines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One run, by its folder."""

    folder: Path
    config: Config
    steps: int
    """Steps that were used."""
    step_s: float
    """Mean of `time/step`, the tenth of the steps at either end left out, seconds."""
    rollout_s: float
    """Median, seconds; so are the next three."""
    reward_s: float
    learn_s: float
    sync_s: float
    workload: Workload
    lengths: Traced
    decode: tuple[tuple[float, float, float], ...]
    """(rollout seconds, longest completion, all completion tokens) of every step with a trace dump."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What to correct assumptions by."""

    measured: Measured
    hardware: Hardware
    cores: float
    """That everything shares; 0 on GPUs."""
    factors: Factors
    notes: tuple[str, ...]
    """What comes from the run and what stays assumed."""

    def costs(self, config: Config, shapes: Shapes, *, one_node: bool = True) -> Costs:
        """Of any layout of the same model on the same hardware."""
        return self.factors.of(
            assumed(config, shapes, self.hardware, self.measured.workload, one_node=one_node)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """One run: predicted against measured."""

    run: str
    engines: int
    ranks: int
    staleness: int
    predicted: Outcome
    measured: Measured

    @property
    def error(self) -> float:
        """Predicted step time against the measured one, as a share."""
        return self.predicted.step_s / self.measured.step_s - 1


def read_measured(folder: str | Path) -> Measured:
    """A run's timings and lengths.

    Raises:
        RunFolderError: its config cannot be read, it has too few steps, or no trace dump.
    """
    run = read_run(folder)
    if run.config is None:
        raise RunFolderError(
            f"{folder}: config.yaml cannot be read ({'; '.join(run.problems) or 'it is missing'}); name a run of "
            "this version"
        )
    config = run.config
    used = [row for row in run.metrics if _is_whole(row)][SKIPPED:]
    if len(used) < 3:
        raise RunFolderError(
            f"{folder}: {len(used)} whole steps after the first {SKIPPED} in metrics.jsonl: must be at least 3; "
            "let it run longer"
        )
    updates = [row for row in used if row["time/sync"] > 0 and row.get("sync/bytes")] or used
    groups = config.train.prompts_per_step
    workload = Workload(
        prompt_tokens=median(row["tokens/prompt"] for row in used) / groups,
        completion_tokens=median(row["tokens/completion"] for row in used)
        / groups
        / config.sampling.group_size,
        flat_fraction=_flat_fraction(used, config),
    )
    lengths, decode = _dumped(run, used)
    return Measured(
        folder=Path(folder),
        config=config,
        steps=len(used),
        step_s=float(trim_mean([row["time/step"] for row in used], TRIMMED)),
        rollout_s=median(row["time/rollout"] for row in used),
        reward_s=median(row["time/reward"] for row in used),
        learn_s=median(row["time/learn"] for row in updates),
        sync_s=median(row.get("sync/seconds", row["time/sync"]) for row in updates),
        workload=workload,
        lengths=lengths.scaled(workload.completion_tokens, config.sampling.max_tokens),
        decode=decode,
    )


def _is_whole(row: Mapping[str, Any]) -> bool:
    keys = ("time/rollout", "time/reward", "time/learn", "time/sync", "time/step", "tokens/completion")
    return all(isinstance(row.get(key), int | float) for key in (*keys, "tokens/prompt"))


def _flat_fraction(rows: Sequence[Mapping[str, Any]], config: Config) -> float:
    """Of the groups sampled; those of zero variance are learned from when there is a KL term."""
    if config.loss.kl_coef > 0:
        return 0.0
    refilled = float(sum(row.get("refilled_groups", 0) for row in rows))
    flat = float(sum(row.get("zero_variance_groups", 0) for row in rows)) + refilled
    sampled = config.train.prompts_per_step * len(rows) + refilled
    return min(flat / sampled, 0.99)


def _dumped(
    run: RunData, used: Sequence[Mapping[str, Any]]
) -> tuple[Traced, tuple[tuple[float, float, float], ...]]:
    by_step = {int(row["step"]): row for row in used}
    groups: list[tuple[int, ...]] = []
    decode = []
    for path in sorted((run.folder / "traces").glob("step_*.parquet")):
        step = int(path.stem.removeprefix("step_"))
        found = dumped_groups(path) if step in by_step else []
        if found:
            groups += found
            longest, tokens = max(map(max, found)), sum(map(sum, found))
            decode.append((by_step[step]["time/rollout"], float(longest), float(tokens)))
    if not groups:
        raise RunFolderError(
            f"{run.folder}: no trace dump of a step after the first {SKIPPED}; completion lengths are read from them: "
            "run it with train.traces_every=1"
        )
    return Traced(groups=tuple(groups)), tuple(decode)


def calibrate(folder: str | Path, hardware: Hardware, cores: float) -> Calibration:
    """Fit to one run.

    Args:
        folder: of the run.
        hardware: what it ran on.
        cores: that all its processes shared; 0 on GPUs.

    Raises:
        RunFolderError: the run cannot be used; says why.
        ModelError: its model's shapes are not known.
    """
    measured = read_measured(folder)
    config, workload = measured.config, measured.workload
    shapes = shapes_of(config.model.path)
    first = assumed(config, shapes, hardware, workload)
    start, fitted = _decode_factors(measured, first)
    memory = estimate(config, shapes, hardware.memory_gib or None)
    layout = layout_of(config, memory, workload.prompt_tokens, cores)
    factors = replace(start, sync=measured.sync_s / first.sync_s)
    for _ in range(ROUNDS):
        seen = simulate(layout, factors.of(first), measured.lengths)
        rollout, reward, learn = (
            getattr(measured, name) / max(getattr(seen, name), 1e-9)
            for name in ("rollout_s", "reward_s", "learn_s")
        )
        factors = replace(
            factors,
            step=factors.step * rollout,
            sequence=factors.sequence * rollout,
            prefill=factors.prefill * rollout,
            reward=factors.reward * reward,
            learn=factors.learn * learn,
        )
    return Calibration(
        measured=measured,
        hardware=hardware,
        cores=cores,
        factors=factors,
        notes=_notes(measured, factors, fitted, cores),
    )


def _decode_factors(measured: Measured, costs: Costs) -> tuple[Factors, bool]:
    """Division of the rollout time where it can be told: T = P prefill + a longest + b tokens, by least squares.

    It holds for a synchronous step of one engine that decodes the whole step at once: with n(i) sequences left at
    token i, the sum over i of a + b n(i) is a times the longest completion plus b times all tokens. Taken only where a
    and b are at least `CERTAIN` standard errors above 0: longest and all tokens vary little from step to step, and
    often together.
    """
    config = measured.config
    together = config.train.prompts_per_step * config.sampling.group_size
    alone = config.rollout.num_workers == 1 and config.train.max_staleness == 0
    if not alone or together > config.rollout.max_num_seqs or len(measured.decode) < MIN_FITTED_STEPS:
        return Factors(), False
    seconds, longest, tokens = (np.array(column) for column in zip(*measured.decode, strict=True))
    terms = np.stack([longest, tokens, np.ones_like(longest)], axis=1)
    fitted, residuals, rank, _ = np.linalg.lstsq(terms, seconds)
    if rank < terms.shape[1]:
        return Factors(), False
    variance = residuals[0] / (len(seconds) - rank) * np.diag(np.linalg.inv(terms.T @ terms))
    step_s, sequence_s, prefill_s = (float(value) for value in fitted)
    if prefill_s < 0 or (fitted[:2] < CERTAIN * np.sqrt(variance[:2])).any():
        return Factors(), False
    prompts = config.train.prompts_per_step
    return Factors(
        step=step_s / costs.step_s,
        sequence=sequence_s / costs.sequence_s,
        prefill=prefill_s / prompts / costs.prefill_s,
    ), True


def _notes(measured: Measured, factors: Factors, fitted: bool, cores: float) -> tuple[str, ...]:
    workload = measured.workload
    division = (
        f"division of the decode step fitted to {len(measured.decode)} dumped steps"
        if fitted
        else "division of the decode step assumed: no synchronous run of one engine whose dumps tell it"
    )
    shared = f"; {cores:g} cores shared by engines, learner and rewards (--cores)" if cores else ""
    return (
        f"from {measured.folder}, {measured.steps} steps after the first {SKIPPED}: prompts of "
        f"{workload.prompt_tokens:.0f} tokens, completions of {workload.completion_tokens:.0f} "
        f"(lengths of {len(measured.lengths.groups)} groups), "
        f"{workload.flat_fraction:.0%} of the groups without variance, rollout {measured.rollout_s:.3g} s, reward "
        f"{measured.reward_s:.2g} s, learn {measured.learn_s:.3g} s, sync {measured.sync_s:.3g} s (medians)",
        f"measured against assumed: decode step {factors.step:.2f}, sequence {factors.sequence:.2f}, prefill "
        f"{factors.prefill:.2f}, reward {factors.reward:.2f}, learn {factors.learn:.2f}, sync {factors.sync:.2f}; "
        f"{division}{shared}",
    )


def validate(calibration: Calibration, folders: Sequence[str | Path], *, steps: int = 40) -> list[Validation]:
    """Predict the step time of other runs of the same model; their own timings and lengths are not used for it.

    Raises:
        RunFolderError: a run cannot be used; says why.
    """
    rows = []
    for folder in folders:
        measured = read_measured(folder)
        config = measured.config
        shapes = shapes_of(config.model.path)
        memory = estimate(config, shapes, calibration.hardware.memory_gib or None)
        layout = layout_of(config, memory, calibration.measured.workload.prompt_tokens, calibration.cores)
        predicted = simulate(
            layout, calibration.costs(config, shapes), calibration.measured.lengths, steps=steps
        )
        rows.append(
            Validation(
                run=str(folder),
                engines=layout.engines,
                ranks=layout.ranks,
                staleness=layout.staleness,
                predicted=predicted,
                measured=measured,
            )
        )
    return rows
