"""What a run measured, as corrections of what is assumed: a run folder in, a `Scenario` with its workload and speeds out.

From the run folder: prompt and completion lengths, share of zero-variance groups, seconds of rollout, reward, learning and weight
sync, as medians without the first steps. How these divide, e.g. a decode step into a part for all and a part for each sequence,
stays assumed (videostr/plan/costs.py): one factor a side, such that a simulation of the run takes what the run took.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from videostr.config.schema import Config, PlanConfig
from videostr.errors import ConfigError, RunFolderError
from videostr.models.base import shapes_of
from videostr.plan.costs import HARDWARE
from videostr.plan.search import Scenario
from videostr.plan.simulate import Seconds
from videostr.plan.workload import MEDIAN_SHARE, Workload, dumped_groups, lognormal
from videostr.run_data import read_run

SKIPPED = 2
"""First steps of a run that are left out: they start engines' caches, compile and form the transfer group."""
STEPS = 20
"""Of a simulated run."""
ROUNDS = 4
"""Simulations in which the factors settle."""
TRIMMED = 0.1
"""Share of the steps at either end that the measured mean leaves out: they wait for evaluation or for new engines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One run, by its folder."""

    config: Config
    steps: int
    """Steps that were used."""
    seconds: Seconds
    work: Workload


def scenario_of(config: PlanConfig) -> Scenario:
    """Return what a plan simulates: as assumed, or as `plan.calibrate` measured, with the lengths that `plan` states.

    Raises:
        ModelError: the sizes of the model are not known.
        RunFolderError: the calibrating run cannot be used.
        ConfigError: it is a run of another model, or on other hardware.
    """
    settings, cap = config.plan, config.sampling.max_tokens
    work = Workload(
        prompt_tokens=settings.prompt_tokens or (config.rollout.max_model_len - cap) // 2,
        groups=lognormal(settings.completion_tokens or MEDIAN_SHARE * cap, cap, config.sampling.group_size),
    )
    shapes = shapes_of(config.model.path)
    hardware = HARDWARE[settings.gpu if config.rollout.num_gpus else "cpu"]
    scenario = Scenario(shapes=shapes, hardware=hardware, work=work, settings=settings)
    if not settings.calibrate:
        return scenario
    calibrated = calibrate(read_measured(settings.calibrate), scenario)
    seen = calibrated.work
    prompt_tokens = settings.prompt_tokens or seen.prompt_tokens
    groups = work.groups if settings.completion_tokens else seen.groups
    return replace(calibrated, work=replace(seen, prompt_tokens=prompt_tokens, groups=groups))


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
    prompt_tokens = median(row["tokens/prompt"] for row in used) / run.config.train.prompts_per_step
    zero_variance = _zero_variance(used, run.config)
    return Measured(
        config=run.config,
        steps=len(used),
        seconds=Seconds.of(used, trimmed=TRIMMED),
        work=Workload(prompt_tokens=round(prompt_tokens), groups=tuple(groups), zero_variance=zero_variance),
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


def calibrate(measured: Measured, scenario: Scenario) -> Scenario:
    """Return the scenario with the workload of a run of the same model, and with the speeds that it had.

    Raises:
        ConfigError: it is a run of another model, or on other hardware.
    """
    trained, on_gpus = shapes_of(measured.config.model.path), measured.config.rollout.num_gpus > 0
    if (
        on_gpus != (scenario.hardware.memory_gib > 0)
        or replace(trained, name=scenario.shapes.name) != scenario.shapes
    ):
        raise ConfigError(
            f"plan.calibrate = {scenario.settings.calibrate}: is a run of {trained.name} on {'GPUs' if on_gpus else 'CPU'}, "
            f"must be one of a model with the shapes of {scenario.shapes.name} on hardware like {scenario.hardware.name}",
            remedy="name a run of this model, or leave the key out",
        )
    alone = replace(scenario.settings, mtbf_hours=0.0)
    trial = replace(scenario, work=measured.work, settings=alone)
    for _ in range(ROUNDS):
        seen, hardware = trial.run(measured.config, steps=STEPS).seconds, trial.hardware
        hardware = replace(
            hardware,
            engine=hardware.engine * measured.seconds.rollout / max(seen.rollout, 1e-9),
            reward=hardware.reward * math.sqrt(measured.seconds.reward / max(seen.reward, 1e-9)),
            learn=hardware.learn * measured.seconds.learn / max(seen.learn, 1e-9),
            sync=hardware.sync * measured.seconds.sync / max(seen.sync, 1e-9),
        )
        trial = replace(trial, hardware=hardware)
    return replace(trial, settings=scenario.settings)
