"""Lengths of completions: a distribution, or those of a run's trace dumps. Out: the G lengths of a group."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import NormalDist
from typing import Protocol

import numpy as np

from videostr.errors import ConfigError
from videostr.traces import TraceRow


class Lengths(Protocol):
    """Where the lengths of completions come from."""

    @property
    def mean(self) -> float:
        """Mean length, tokens."""

    def group(self, rng: np.random.Generator, size: int) -> list[int]:
        """Return [G] lengths of the completions of one group, tokens, each at least 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lognormal:
    """log length = log median + sigma (sqrt(correlation) z_group + sqrt(1 - correlation) z_completion), z standard normal.

    Cut off at `cap`, as sampling is at `sampling.max_tokens`. sigma = 0 makes all lengths equal.
    """

    median: float
    """Tokens."""
    sigma: float
    """Standard deviation of the logarithm."""
    cap: int
    """Longest completion, tokens."""
    correlation: float = 0.0
    """Share of the variance of the logarithm that the completions of a group have in common, in [0, 1]."""

    def __post_init__(self) -> None:
        """Raises ConfigError for a median without a meaning."""
        if self.median <= 0:
            raise ConfigError(f"completion lengths: median = {self.median:g} tokens: must be above 0")

    @property
    def mean(self) -> float:
        """E[min(X, cap)] of a lognormal X: median e^(s^2/2) Phi(d - s) + cap (1 - Phi(d)), d = ln(cap / median) / s."""
        if self.sigma == 0:
            return min(self.median, self.cap)
        below, d = NormalDist().cdf, math.log(self.cap / self.median) / self.sigma
        return self.median * math.exp(self.sigma**2 / 2) * below(d - self.sigma) + self.cap * (1 - below(d))

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
        return float(np.mean([length for group in self.groups for length in group]))

    def group(self, rng: np.random.Generator, size: int) -> list[int]:
        """See `Lengths`; of a group of another size, completions are drawn with replacement."""
        group = self.groups[int(rng.integers(len(self.groups)))]
        return list(group) if len(group) == size else [int(n) for n in rng.choice(group, size)]


def dumped_groups(rows: Sequence[TraceRow]) -> list[tuple[int, ...]]:
    """Return the lengths of every group of one trace dump."""
    # A record may be drawn twice in a step: a group ends where the index of its rollouts falls
    numbers, number, last = [], 0, -1
    for row in rows:
        number += row["rollout"] <= last
        last = row["rollout"]
        numbers.append(number)
    pairs = zip(numbers, rows, strict=True)
    groups = groupby(pairs, key=lambda pair: pair[0])
    return [tuple(max(row["tokens"], 1) for _, row in members) for _, members in groups]
