"""The updates of a run: which groups of a sampled batch each learns from, and at which learning rate."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TypeVar

from videostr.config.sections import LearnerConfig

T = TypeVar("T")


def mini_batches(groups: tuple[T, ...], updates: int) -> list[tuple[T, ...]]:
    """Return the groups of a sampled batch, in order, cut into at most `updates` mini-batches, larger ones first.

    Their sizes differ by at most one. Fewer groups than updates make one mini-batch each, none at all make one of none.
    """
    parts = max(1, min(updates, len(groups)))
    size, longer = divmod(len(groups), parts)
    ends = [part * size + min(part, longer) for part in range(parts + 1)]
    return [groups[start:end] for start, end in pairwise(ends)]


def learning_rate(config: LearnerConfig, update: int, updates: int) -> float:
    """Return the learning rate of update number `update` (from 0) of a run of `updates`.

    It rises linearly over `warmup_steps` updates and reaches `lr` at the last of them, then stays (constant) or falls
    to 0 at the end of the run along a line (linear) or half a cosine (cosine).
    """
    if update < config.warmup_steps:
        return config.lr * (update + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.lr
    done = min(1.0, (update - config.warmup_steps) / max(1, updates - config.warmup_steps))
    if config.schedule == "linear":
        return config.lr * (1.0 - done)
    return config.lr * 0.5 * (1.0 + math.cos(math.pi * done))
