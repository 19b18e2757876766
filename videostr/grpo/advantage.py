"""Rewards of a group in, advantages of its rollouts out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from videostr.errors import LearnerError

STD_EPSILON = 1e-4
"""Added to the group's standard deviation."""
ZERO_VARIANCE_RANGE = 1e-6
"""A group whose rewards span less than this carries no gradient; above it, rounding noise would be scaled up."""


def has_zero_variance(rewards: Sequence[float] | np.ndarray) -> bool:
    """Return whether a group has zero variance, and so no gradient."""
    return float(np.ptp(np.asarray(rewards, dtype=np.float64))) < ZERO_VARIANCE_RANGE


def advantages(
    rewards: Sequence[float] | np.ndarray, kind: Literal["grpo", "dr_grpo", "none"] = "grpo"
) -> np.ndarray:
    """Return the advantages [G] float32 of a group's rewards [G].

    grpo: `A = (r - mean) / (std + 1e-4)` (arXiv 2402.03300), std the sample standard deviation (divisor G - 1).
    dr_grpo: `A = r - mean` (arXiv 2503.20783).
    A zero-variance group gets exact zeros.
    none: `A = r`, without a baseline.

    Raises:
        LearnerError: fewer than two rewards, for a group of one has no baseline.
    """
    r = np.asarray(rewards, dtype=np.float64)
    if kind == "none":
        return r.astype(np.float32)
    if r.size < 2:
        raise LearnerError(
            f"a group of {r.size} rollout has no group-relative advantage, it needs 2 or more",
            remedy="set sampling.group_size to 2 or more",
        )
    if has_zero_variance(r):
        return np.zeros(r.size, dtype=np.float32)
    centred = r - r.mean()
    scale = 1.0 if kind == "dr_grpo" else float(r.std(ddof=1)) + STD_EPSILON
    return np.asarray(centred / scale, dtype=np.float32)
