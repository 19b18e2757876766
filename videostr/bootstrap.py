"""How sure a figure is: the bootstrap over questions, clustered by video, and the 95 % interval of its draws.

Questions of one video are not independent (one badly seen video spoils all of its questions), so videos are drawn, not
questions: E. Miller, "Adding Error Bars to Evals", arXiv:2411.00640, section 2.2; C. Field and A. Welsh, "Bootstrapping
clustered data", J. R. Statist. Soc. B 69 (2007) 369-390.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A figure with its 95 % interval."""

    value: float
    """NaN where the figure has no questions."""
    low: float
    """NaN, like `high`, where no draw had the figure, or where it is one of a single cluster."""
    high: float

    @classmethod
    def of(cls, value: float, draws: np.ndarray, weights: np.ndarray) -> Interval:
        """Return the percentile interval: from the 2.5th to the 97.5th percentile of the draws that are not NaN.

        A figure of one cluster is the same in every draw that has it, and says nothing about other clusters: no interval.
        Draws of several clusters that are all equal (all right) give one without width: too little data, not certainty.

        Args:
            value: the figure itself.
            draws: [B] figures of the bootstrap.
            weights: [B, N] of `bootstrap_weights`, that `draws` come from.
        """
        has = ~np.isnan(draws)
        if np.isnan(value) or not has.any() or _of_one_cluster(value, draws[has], weights[has]):
            return cls(value=value, low=np.nan, high=np.nan)
        low, high = np.percentile(draws[has], [2.5, 97.5])
        return cls(value=value, low=float(low), high=float(high))

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 lies outside; False where there is no interval."""
        return self.low > 0 or self.high < 0


def bootstrap_weights(clusters: Sequence[str], resamples: int, seed: int) -> np.ndarray:
    """Return how often each question counts in each resample: its cluster's number of draws, of C clusters with replacement.

    With a cluster for each question this is the plain bootstrap.

    Args:
        clusters: cluster of each of the N questions; C different ones.
        resamples: B.
        seed: the same seed and clusters give the same weights.

    Returns:
        [B, N] float32, 4 * B * N bytes: 40 MB for 5,000 questions and 2,000 resamples. Whole numbers, which float32 adds
        exactly up to 2**24.
    """
    rng = np.random.default_rng(seed)
    names, member = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    weights = np.empty((resamples, len(clusters)), dtype=np.float32)
    for row in weights:
        drawn = rng.integers(names.size, size=names.size)
        row[:] = np.bincount(drawn, minlength=names.size)[member]
    return weights


def _of_one_cluster(value: float, draws: np.ndarray, weights: np.ndarray) -> bool:
    """Return whether all draws that have a figure drew the same cluster, and gave what the figure itself is."""
    return bool(np.allclose(draws, value) and (weights > 0).all(axis=0).any())
