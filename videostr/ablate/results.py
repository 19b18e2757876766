"""What the runs of an ablation gave: each arm after training, and its difference from the reference.

In: runs that are done. Out: an `ArmResult` for each arm. Scores stand in arrays [S, N]: seeds and held-out prompts.
Intervals are percentiles of a bootstrap that draws seeds and prompts, each with replacement: what others of both would give.
Differences are paired by seed and prompt, over the seeds that both arms have.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from videostr.ablate.runs import ArmRun
from videostr.ablate.scores import PARTS, Columns, RunScores, scores_of
from videostr.bootstrap import Interval, bootstrap_weights
from videostr.heldout import GREEDY, SAMPLED

START = "before training"
Scores = Mapping[int, tuple[Sequence[str], Columns]]
"""Seed -> prompts and their scores."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A part of the reward on held-out prompts."""

    value: Interval
    difference: Interval | None
    """From the reference; None for that itself, and where they share no seed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmResult:
    """One way of training."""

    name: str
    seeds: tuple[int, ...]
    """Of the runs that are done."""
    figures: dict[tuple[str, str], Figure]
    """("sampled" or "greedy", part) -> figure."""
    tokens: float
    """That a run learned from, prompts counted once a group; mean over seeds."""
    seconds: float
    """Of its steps; mean over seeds."""
    curves: list[dict[str, list[tuple[int, float]]]]
    """Of each run: part -> (step, mean over the completions that were sampled for it)."""


def results(runs: Sequence[ArmRun], reference: str, resamples: int) -> list[ArmResult]:
    """Return the policy before training, then the arms in their order; those without a run that is done are left out."""
    done = [run for run in runs if run.done]
    arms = list(dict.fromkeys(run.arm for run in done))
    scores = {arm: {run.seed: scores_of(run) for run in done if run.arm == arm} for arm in arms}
    after = {
        arm: {seed: (each.prompts, each.after) for seed, each in of.items()} for arm, of in scores.items()
    }
    before = {
        seed: (each.prompts, each.before)
        for of in scores.values()
        for seed, each in of.items()
        if each.before
    }
    found = [_result(START, before, None, [], resamples)] if before else []
    for arm in arms:
        against = after.get(reference) if arm != reference else None
        found.append(_result(arm, after[arm], against, list(scores[arm].values()), resamples))
    return found


def _result(
    name: str, scores: Scores, against: Scores | None, runs: Sequence[RunScores], resamples: int
) -> ArmResult:
    return ArmResult(
        name=name,
        seeds=tuple(sorted(scores)),
        figures={
            (way, part): figure
            for way in (SAMPLED, GREEDY)
            for part in PARTS
            if (figure := _figure(scores, against, way, part, resamples)) is not None
        },
        tokens=_mean(run.tokens for run in runs),
        seconds=_mean(run.seconds for run in runs),
        curves=[run.curves for run in runs],
    )


def _figure(scores: Scores, against: Scores | None, way: str, part: str, resamples: int) -> Figure | None:
    values = _values(scores, sorted(scores), way, part)
    if values is None:
        return None
    difference = None
    if against is not None and (common := sorted(scores.keys() & against.keys())):
        ours, theirs = (_values(of, common, way, part) for of in (scores, against))
        if ours is not None and theirs is not None:
            prompts = sorted(ours.keys() & theirs.keys())
            difference = _interval({p: ours[p] - theirs[p] for p in prompts}, resamples) if prompts else None
    return Figure(value=_interval(values, resamples), difference=difference)


def _values(scores: Scores, seeds: Sequence[int], way: str, part: str) -> dict[str, np.ndarray] | None:
    """Return [S] values by prompt; prompts that lack the part for some seed are left out, None where all do."""
    rows: list[dict[str, float]] = []
    for seed in seeds:
        prompts, columns = scores[seed]
        scored = zip(prompts, columns[way][part], strict=True)
        rows.append({prompt: score for prompt, score in scored if score is not None})
    common = set.intersection(*map(set, rows))
    return {p: np.array([row[p] for row in rows]) for p in sorted(common)} or None


def _interval(values: Mapping[str, np.ndarray], resamples: int) -> Interval:
    """Return the mean with its interval; values are [S] by prompt."""
    table = np.stack([values[prompt] for prompt in sorted(values)], axis=1)
    seeds, prompts = (
        bootstrap_weights([str(i) for i in range(count)], resamples, seed)
        for seed, count in enumerate(table.shape)
    )
    draws = np.einsum("bs,sn,bn->b", seeds, table, prompts) / table.size
    low, high = np.percentile(draws, [2.5, 97.5])
    return Interval(value=float(table.mean()), low=float(low), high=float(high))


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return fmean(found) if found else 0.0
