"""The edges that the graphs of a group state, to be looked up by pairs of their nodes.

In: the predictions of a group, whose nodes are numbered through the group. Out: distance and bearing of pairs, in arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from rewards.match import Floats, Ints, Prediction


@dataclass(frozen=True, slots=True, kw_only=True)
class StatedEdges:
    """Edges in both directions; E of them."""

    ends: int
    """Node numbers lie below."""
    keys: Ints
    """[2 E] ascending: number of the first node times `ends`, plus that of the second."""
    dist: Floats
    """[2 E] NaN where not stated."""
    bearing: Floats
    """[2 E] degrees, NaN where not stated."""

    @classmethod
    def of(cls, group: Sequence[Prediction], first: Sequence[int], ends: int) -> Self | None:
        """Return the edges of a group; None where it states none.

        Args:
            group: the G predictions.
            first: [G or more] number of every graph's first node in the group.
            ends: number above those of all nodes.
        """
        stated = [
            (a + offset, b + offset, dist, bearing)
            for offset, prediction in zip(first, group, strict=False)
            for a, b, dist, bearing in prediction.edges
        ]
        if not stated:
            return None
        table = np.array(stated, dtype=np.float64)  # None becomes NaN
        a, b = table[:, 0].astype(np.intp), table[:, 1].astype(np.intp)
        keys = np.concatenate([a * ends + b, b * ends + a])
        order = np.argsort(keys)
        return cls(
            ends=ends,
            keys=keys[order],
            dist=np.tile(table[:, 2], 2)[order],
            bearing=np.concatenate([table[:, 3], table[:, 3] + 180.0])[order],
        )

    def between(self, a: Ints, b: Ints) -> tuple[Floats, Floats]:
        """Return the stated distance and bearing of pairs of nodes; NaN where nothing is stated."""
        wanted = a * self.ends + b
        place = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
        hit = self.keys[place] == wanted
        return np.where(hit, self.dist[place], np.nan), np.where(hit, self.bearing[place], np.nan)
