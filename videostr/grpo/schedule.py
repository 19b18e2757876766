"""Learning rate of each update."""

from __future__ import annotations

import math

from videostr.config import LearnerConfig


def learning_rate(config: LearnerConfig, update: int, updates: int) -> float:
    """Learning rate of update number `update` (from 0) of a run of `updates`.

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
