"""What a run samples and learns: lengths of prompts and completions, assumed or of a run's trace dumps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from videostr.traces import TraceRow

MEDIAN_SHARE, SIGMA, CORRELATION = 0.4, 0.5, 0.5
"""Assumed completions: lognormal, median as a share of sampling.max_tokens; half of the variance between groups."""
GROUPS = 2048
"""Groups of which the assumed lengths are drawn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What groups are like; they are drawn whole, so that what the completions of a group have in common is kept."""

    prompt_tokens: int
    """Length of a prompt, video included."""
    groups: tuple[tuple[int, ...], ...]
    """Lengths of the completions of each group, tokens."""
    zero_variance: float = 0.0
    """Share of groups whose completions all score the same."""

    @property
    def completion_tokens(self) -> float:
        """Mean length of a completion."""
        return float(np.mean([length for group in self.groups for length in group]))

    def draw(self, rng: np.random.Generator, size: int) -> list[int]:
        """Return [G] lengths of one group; from a group of another size, completions are drawn with replacement."""
        group = self.groups[int(rng.integers(len(self.groups)))]
        return list(group) if len(group) == size else [int(n) for n in rng.choice(group, size)]


def lognormal(median: float, cap: int, size: int) -> tuple[tuple[int, ...], ...]:
    """Return groups [`GROUPS`][size] of lengths with normal logarithms, cut off at `cap` as sampling is, at least 1."""
    rng = np.random.default_rng(0)
    shared = math.sqrt(CORRELATION) * rng.standard_normal((GROUPS, 1))
    own = math.sqrt(1 - CORRELATION) * rng.standard_normal((GROUPS, size))
    lengths = np.clip(np.rint(median * np.exp(SIGMA * (shared + own))), 1, cap)
    return tuple(tuple(group) for group in lengths.astype(int).tolist())


def dumped_groups(rows: Sequence[TraceRow]) -> Iterator[tuple[int, ...]]:
    """Yield the lengths of every group of one trace dump."""
    # A record may be drawn twice in a step: a group ends where the index of its rollouts falls
    group: list[int] = []
    for row, after in zip(rows, [*rows[1:], None], strict=True):
        group.append(max(row["tokens"], 1))
        if after is None or after["rollout"] <= row["rollout"]:
            yield tuple(group)
            group = []
