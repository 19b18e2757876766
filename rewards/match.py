"""Which predicted node stands for which true one, where names or positions decide.

In: a `Target` (the truth) and a `Prediction` (what a trace states at the selected times). Out: for every true node the number of
a predicted one, or -1. A label with one instance on both sides is matched by name alone. For the node term, other labels
are matched by position; for the edge term, which does not depend on the viewpoint, rewards/viewpoint.py matches them.

Shapes: N true nodes and M predicted ones of all selected frames, D coordinates.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from videostr import graph as geometry
from videostr.types import GraphFrame, SceneGraph

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]
Members = dict[str, list[int]]
"""Label -> numbers of its nodes in one frame."""

COINCIDE = 1e-9
"""Nodes that are closer have no direction from one to the other."""
_MAX_ENUMERATED = (
    3  # up to 3 x 3, trying all permutations of many matrices at once beats one Hungarian call each
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subsets:
    """All subsets of one size of the nodes of each frame: nodes, pairs."""

    members: Ints
    """[S, size] numbers of true nodes, frame by frame."""
    frame: Ints
    """[S] ascending."""
    count: Ints
    """[F] how many lie in each frame."""
    filled: Ints
    """Frames that have one, ascending."""
    starts: Ints
    """First subset of each of these."""

    def __len__(self) -> int:
        return len(self.frame)

    def sum_per_frame(self, values: Floats) -> Floats:
        """Return [..., F] sums of values [..., S].

        Not a matrix product: BLAS adds in another order for another number of rows, and then a score would depend, in its
        last bit, on what else is in the group.
        """
        total = np.zeros((*values.shape[:-1], len(self.count)))
        if len(self):
            total[..., self.filled] = np.add.reduceat(values, self.starts, axis=-1)
        return total


@functools.lru_cache(maxsize=16)  # scenes of equal numbers of nodes share them
def subsets(nodes_per_frame: tuple[int, ...], size: int) -> Subsets:
    """Return subsets of nodes that are numbered through the frames."""
    starts = itertools.accumulate(nodes_per_frame, initial=0)
    found = [
        [*itertools.combinations(range(start, start + n), size)]
        for start, n in zip(starts, nodes_per_frame, strict=False)
    ]
    count = np.array([len(of_frame) for of_frame in found], dtype=np.intp)
    flat = [subset for of_frame in found for subset in of_frame]
    return Subsets(
        members=np.array(flat, dtype=np.intp).reshape(-1, size),
        frame=np.repeat(np.arange(len(count)), count),
        count=count,
        filled=np.flatnonzero(count),
        starts=(np.cumsum(count) - count)[count > 0],
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A true graph, prepared for scoring. Nodes of a frame are ordered by label and position, not as they are written."""

    unit: str
    frame: str
    times: tuple[float, ...]
    """[F] seconds, ascending."""
    pos: Floats
    """[N, D]."""
    repeat: Floats
    """[N] how many earlier nodes of the frame have the same label and position."""
    members: tuple[Members, ...]
    """Per selected frame, labels in alphabetical order."""
    size: Floats
    """[F] size of the scene: the largest of node spread, mean node extent and 1e-6."""
    reach: Floats
    """[F] distance at which a node's credit reaches 0."""
    nodes: Subsets
    """N of them."""
    pairs: Subsets
    """K of them."""
    one_label: NDArray[np.bool_]
    """[K] whether both nodes of the pair have the same label."""
    has_one_object_pair: bool
    """Whether all pairs of the clip are of the same two objects."""
    dist: Floats
    """[K]."""
    bearing: Floats
    """[K] degrees."""
    ground_length: Floats
    """[K] distance in the ground plane; where it is 0 (one above the other) there is no bearing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """The frames of a predicted graph that belong to selected times; nodes are numbered through them."""

    frames: tuple[GraphFrame | None, ...]
    """Per selected frame; None where the trace states none."""
    pos: tuple[tuple[float, ...], ...]
    """[M] positions."""
    members: tuple[Members, ...]
    """Per selected frame."""
    unique_match: tuple[int, ...]
    """[N] predicted node of every true one whose label has one instance on both sides; -1 for the others."""
    ambiguous: tuple[tuple[int, list[int], list[int]], ...]
    """(selected frame, true nodes, predicted nodes) of every label on both sides that has more."""
    edges: tuple[tuple[int, int, float | None, float | None], ...]
    """Stated edges: two nodes, distance, bearing in degrees."""

    @property
    def is_exact(self) -> bool:
        """Whether names alone settle everything: no node is missing, none is too much."""
        return -1 not in self.unique_match and len(self.pos) == len(self.unique_match)


def select(graph: SceneGraph, target: Target) -> Prediction:
    """Number the nodes that a graph states at the selected times, and match what names alone can match."""
    frames = frames_at(graph, target.times)
    members: list[Members] = []
    pos: list[tuple[float, ...]] = []
    edges: list[tuple[int, int, float | None, float | None]] = []
    unique_match = [-1] * len(target.pos)
    ambiguous = []
    for k, (chosen, true) in enumerate(zip(frames, target.members, strict=True)):
        members.append(named := _members(chosen, len(pos)))
        if chosen and chosen.edges:
            number = {node.id: place for place, node in enumerate(chosen.nodes, len(pos))}
            edges += [(number[edge.a], number[edge.b], edge.dist, edge.angle) for edge in chosen.edges]
        pos += [node.pos for node in chosen.nodes] if chosen else ()
        for label, nodes in true.items():
            others = named.get(label, ())
            if len(nodes) == len(others) == 1:
                unique_match[nodes[0]] = others[0]
            elif others:
                ambiguous.append((k, nodes, list(others)))
    return Prediction(
        frames=tuple(frames),
        pos=tuple(pos),
        members=tuple(members),
        unique_match=tuple(unique_match),
        ambiguous=tuple(ambiguous),
        edges=tuple(edges),
    )


def frames_at(graph: SceneGraph, times: tuple[float, ...]) -> list[GraphFrame | None]:
    """Return [F] the stated frame nearest to each selected time; a frame serves one time, at most half their spacing away."""
    frames: list[GraphFrame | None] = [None] * len(times)
    reach = (times[-1] - times[0]) / (len(times) - 1) / 2 if len(times) > 1 else math.inf
    nearest = [reach + 1e-6] * len(times)
    for item in graph.frames:
        k = times.index(item.t) if item.t in times else _nearest(item.t, times)
        away = abs(times[k] - item.t)
        if away < nearest[k]:
            frames[k], nearest[k] = item, away
    return frames


def _nearest(t: float, times: tuple[float, ...]) -> int:
    return min(range(len(times)), key=lambda k: abs(times[k] - t))


def _members(item: GraphFrame | None, first: int) -> Members:
    members: Members = {}
    for number, node in enumerate(item.nodes if item else (), first):
        members.setdefault(node.label, []).append(number)
    return members


def number_nodes(frames: Sequence[GraphFrame]) -> tuple[Members, ...]:
    """Per frame its nodes by label, numbered through all frames."""
    starts = itertools.accumulate((len(item.nodes) for item in frames), initial=0)
    return tuple(_members(item, start) for item, start in zip(frames, starts, strict=False))


def match_by_position(prediction: Prediction, pos: Floats, target: Target) -> Ints:
    """Return the match [N] with the most node credit, `max(0, 1 - distance / reach)`, per frame and label.

    Of several matches with the same credit any may be returned: the node term is their credit.

    Args:
        prediction: what the trace states.
        pos: [M, D] its positions.
        target: the truth.
    """
    match = np.array(prediction.unique_match, dtype=np.intp)
    for k, true, named in stacked(prediction):
        apart = pairwise_distance(target.pos[true], pos[named]) / target.reach[k, None, None]
        columns = assign(-np.maximum(0.0, 1.0 - apart))
        match[true] = np.where(columns >= 0, np.take_along_axis(named, columns, axis=1), -1)
    return match


def stacked(prediction: Prediction) -> Iterator[tuple[Ints, Ints, Ints]]:
    """Yield the ambiguous labels of equal numbers of instances together: frames [B], true nodes [B, n], predicted ones [B, m]."""
    alike: dict[tuple[int, int], list[tuple[int, list[int], list[int]]]] = defaultdict(list)
    for item in prediction.ambiguous:
        alike[len(item[1]), len(item[2])].append(item)
    for items in alike.values():
        yield (
            np.array([k for k, _, _ in items]),
            np.array([true for _, true, _ in items]),
            np.array([named for _, _, named in items]),
        )


def pairwise_distance(a: Floats, b: Floats) -> Floats:
    """Return distances [..., A, B] of positions [..., A, D] and [..., B, D]."""
    return geometry.distance(a[..., :, None, :], b[..., None, :, :])


def assign(cost: Floats) -> Ints:
    """Return [..., n] the column given to every row of cost matrices [..., n, m] at least total cost, -1 for rows left over."""
    n, m = cost.shape[-2:]
    if max(n, m) > _MAX_ENUMERATED:
        flat = cost.reshape(-1, n, m)
        columns = np.full((len(flat), n), -1, dtype=np.intp)
        for c, matrix in enumerate(flat):
            rows, chosen = linear_sum_assignment(matrix)
            columns[c, rows] = chosen
        return columns.reshape(cost.shape[:-1])
    ways = _ways(n, m)
    padded = np.concatenate([cost, np.zeros((*cost.shape[:-1], 1))], axis=-1)  # column -1 costs nothing
    total = padded[..., np.arange(n), ways].sum(axis=-1)
    cheapest: Ints = ways[total.argmin(axis=-1)]
    return cheapest


def _ways(n: int, m: int) -> Ints:
    """Return [W, n] all ways of giving rows different columns, as many as there are; -1 for a row without one."""
    if n <= m:
        return np.array(list(itertools.permutations(range(m), n)), dtype=np.intp)
    found = itertools.permutations([*range(m), *[-1] * (n - m)], n)
    return np.array(sorted(set(found)), dtype=np.intp)
