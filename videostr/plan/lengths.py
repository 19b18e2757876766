"""Lengths of completions: a distribution, or those of a run's trace dumps. Out: the G lengths of a group."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Protocol

import numpy as np

from videostr.errors import ConfigError
from videostr.report.traces import read_traces


class Lengths(Protocol):
    """Where the lengths of completions come from."""

    @property
    def mean(self) -> float:
        """Mean length, tokens."""

    def group(self, rng: np.random.Generator, size: int) -> list[int]:
        """[G] lengths of the completions of one group, tokens, each at least 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lognormal:
    """log length = mu + sigma (sqrt(correlation) z_group + sqrt(1 - correlation) z_completion), z standard normal.

    Cut off at `cap`, as sampling is at `sampling.max_tokens`. sigma = 0 makes all lengths equal.
    """

    median: float
    """exp(mu), tokens."""
    sigma: float
    """Standard deviation of the logarithm."""
    cap: int
    """Longest completion, tokens."""
    correlation: float = 0.0
    """Share of the variance of the logarithm that the completions of a group have in common, in [0, 1]."""

    def __post_init__(self) -> None:
        """Raises ConfigError for values without a meaning."""
        for key, value, holds, rule in (
            ("median", self.median, self.median > 0, "above 0 tokens"),
            ("sigma", self.sigma, self.sigma >= 0, "at least 0"),
            ("cap", self.cap, self.cap >= 1, "at least 1 token"),
            ("correlation", self.correlation, 0 <= self.correlation <= 1, "in [0, 1]"),
        ):
            if not holds:
                raise ConfigError(f"completion lengths: {key} = {value}: must be {rule}")

    @property
    def mean(self) -> float:
        """E[min(X, cap)] of a lognormal X: e^(mu + s^2/2) Phi(d - s) + cap (1 - Phi(d)), d = (ln cap - mu) / s."""
        if self.sigma == 0:
            return min(self.median, self.cap)
        d = math.log(self.cap / self.median) / self.sigma
        below = self.median * math.exp(self.sigma**2 / 2) * _phi(d - self.sigma)
        return below + self.cap * (1 - _phi(d))

    def group(self, rng: np.random.Generator, size: int) -> list[int]:
        """See `Lengths`."""
        shared = math.sqrt(self.correlation) * rng.standard_normal()
        own = math.sqrt(1 - self.correlation) * rng.standard_normal(size)
        lengths = np.rint(self.median * np.exp(self.sigma * (shared + own)))
        return [int(length) for length in np.clip(lengths, 1, self.cap)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Traced:
    """Whole groups of a run, drawn with replacement, so that what a group's completions have in common is kept."""

    groups: tuple[tuple[int, ...], ...]
    """Lengths of the completions of each group, tokens."""

    @property
    def mean(self) -> float:
        """Mean length, tokens."""
        lengths = [length for group in self.groups for length in group]
        return sum(lengths) / len(lengths)

    def group(self, rng: np.random.Generator, size: int) -> list[int]:
        """See `Lengths`; of a group of another size, completions are drawn with replacement."""
        group = self.groups[int(rng.integers(len(self.groups)))]
        if len(group) == size:
            return list(group)
        return [group[int(i)] for i in rng.integers(len(group), size=size)]

    def scaled(self, mean: float, cap: int) -> Traced:
        """The same groups with another mean length, tokens, cut off at `cap`."""
        factor = mean / self.mean
        scaled = (tuple(min(max(round(n * factor), 1), cap) for n in group) for group in self.groups)
        return Traced(groups=tuple(scaled))


def read_lengths(paths: Sequence[str | Path]) -> Traced:
    """Lengths in trace dumps `traces/step_*.parquet`.

    Raises:
        ConfigError: the dumps hold no completion.
        DataError: not a trace dump, or not readable.
    """
    groups = [lengths for path in paths for lengths in dumped_groups(path)]
    if not groups:
        raise ConfigError(f"{', '.join(map(str, paths))}: no completion is in it; name dumps of a run")
    return Traced(groups=tuple(groups))


def dumped_groups(path: str | Path) -> list[tuple[int, ...]]:
    """Lengths of every group of one dump; raises as `read_lengths` does."""
    rows = [row for row in read_traces(path) if row["tokens"] > 0]
    # A record may be drawn twice in a step: a group ends where the index of its rollouts falls.
    numbers, group, last = [], 0, -1
    for row in rows:
        group += row["rollout"] <= last
        last = row["rollout"]
        numbers.append(group)
    pairs = zip(numbers, rows, strict=True)
    return [
        tuple(row["tokens"] for _, row in members) for _, members in groupby(pairs, key=lambda pair: pair[0])
    ]


def _phi(x: float) -> float:
    """Distribution function of the standard normal."""
    return 0.5 * (1 + math.erf(x / math.sqrt(2)))
