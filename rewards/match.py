"""Which stated node stands for which true one.

In: a `Target` (the truth) and `Stated` (what a trace states at the selected times). Out: for every true node the index of a
stated one, or -1. A label with one instance on both sides is settled by name alone. For the node term, other labels
are matched by position. For the edge term that must not be: an edge does not depend on the viewpoint, so its match may
not either. There the prediction is first laid onto the truth: an anchor (two true nodes, three where all of SO(3) is
allowed) and stated nodes of the same labels give a rotation and a translation; nodes are matched under each of
some such motions, the closest fits are kept, and the one that earns most counts.

Shapes: N true nodes and M stated ones of all selected frames, D coordinates, C candidates.
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
_MAX_MOTIONS = 24  # bounds the work on graphs that repeat labels; five nodes of one label have 20 per anchor
_MAX_MATCHES = 6
_MAX_ENUMERATED = (
    3  # up to 3 x 3, trying all permutations of many matrices at once beats one Hungarian call each
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subsets:
    """All subsets of one size of the nodes of each frame: nodes, pairs, triples."""

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
        """[..., F] sums of values [..., S].

        Not a matrix product: BLAS adds in another order for another number of rows, and then a score would depend, in its
        last bit, on what else is in the group.
        """
        total = np.zeros((*values.shape[:-1], len(self.count)))
        if len(self):
            total[..., self.filled] = np.add.reduceat(values, self.starts, axis=-1)
        return total


@functools.lru_cache(maxsize=16)  # scenes of equal numbers of nodes share them
def subsets(nodes_per_frame: tuple[int, ...], size: int) -> Subsets:
    """Subsets of nodes that are numbered through the frames."""
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
    """A true graph, prepared for scoring."""

    unit: str
    frame: str
    times: tuple[float, ...]
    """[F] seconds, ascending."""
    pos: Floats
    """[N, D]."""
    members: tuple[Members, ...]
    """Per selected frame."""
    size: Floats
    """[F] size of the scene: the largest of node spread, mean node extent and 1e-6."""
    nodes: Subsets
    """N of them."""
    pairs: Subsets
    """K of them."""
    triples: Subsets
    """L of them; none unless interior angles are compared."""
    one_label: NDArray[np.bool_]
    """[K] whether both nodes of the pair bear one label."""
    dist: Floats
    """[K]."""
    bearing: Floats
    """[K] degrees."""
    ground_length: Floats
    """[K] distance in the ground plane; where it is 0 (one above the other) there is no bearing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stated:
    """The frames of a predicted graph that belong to selected times; nodes are numbered through them."""

    frames: tuple[GraphFrame | None, ...]
    """Per selected frame; None where the trace states none."""
    pos: tuple[tuple[float, ...], ...]
    """[M] positions."""
    members: tuple[Members, ...]
    """Per selected frame."""
    settled: tuple[int, ...]
    """[N] stated node of every true one whose label has one instance on both sides; -1 for the others."""
    contested: tuple[tuple[int, list[int], list[int]], ...]
    """(selected frame, true nodes, stated nodes) of every label on both sides that has more."""

    @property
    def is_exact(self) -> bool:
        """Whether names alone settle everything: no node is missing, none is too much."""
        return -1 not in self.settled and len(self.pos) == len(self.settled)


def select(graph: SceneGraph, target: Target) -> Stated:
    """Number the nodes that a graph states at the selected times, and settle what names alone settle."""
    frames = frames_at(graph, target.times)
    members: list[Members] = []
    pos: list[tuple[float, ...]] = []
    settled = [-1] * len(target.pos)
    contested = []
    for k, (chosen, true) in enumerate(zip(frames, target.members, strict=True)):
        members.append(named := _members(chosen, len(pos)))
        pos += [node.pos for node in chosen.nodes] if chosen else ()
        for label, nodes in true.items():
            others = named.get(label, ())
            if len(nodes) == len(others) == 1:
                settled[nodes[0]] = others[0]
            elif others:
                contested.append((k, nodes, list(others)))
    return Stated(
        frames=tuple(frames),
        pos=tuple(pos),
        members=tuple(members),
        settled=tuple(settled),
        contested=tuple(contested),
    )


def frames_at(graph: SceneGraph, times: tuple[float, ...]) -> list[GraphFrame | None]:
    """[F] the stated frame nearest to each selected time; a frame serves one time, at most half their spacing away."""
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


def match_by_position(stated: Stated, pos: Floats, credit_reach: Floats, target: Target) -> Ints:
    """[N] the match that earns the most node credit, `max(0, 1 - distance / reach)`, per frame and label.

    Args:
        stated: what the trace states.
        pos: [M, D] its positions.
        credit_reach: [F] distance at which credit reaches 0.
        target: the truth.
    """
    match = np.array(stated.settled, dtype=np.intp)
    for k, true, named in _stacked(stated):
        apart = _apart(target.pos[true], pos[named]) / credit_reach[k, None, None]
        columns = assign(-np.maximum(0.0, 1.0 - apart))
        match[true] = np.where(columns >= 0, np.take_along_axis(named, columns, axis=1), -1)
    return match


def matches_without_viewpoint(
    stated: Stated, pos: Floats, target: Target, *, relative: bool, in_space: bool
) -> Ints:
    """[C, N] candidate matches that do not depend on where the prediction is seen from, best fit first.

    Args:
        stated: what the trace states; has contested labels.
        pos: [M, D] its positions.
        target: the truth.
        relative: bring the prediction to the size of the truth first.
        in_space: lay by all of SO(3), else by rotations about the vertical.
    """
    if relative:
        pos = pos * (_spread(target.pos) / max(_spread(pos), 1e-6))
    moved = _laid_onto_truth(stated, pos, target, in_space=in_space)
    match = np.tile(np.array(stated.settled, dtype=np.intp), (len(moved), 1))
    true = np.flatnonzero(match[0] >= 0)
    misfit = geometry.distance(moved[:, match[0, true]], target.pos[true]).sum(axis=1)
    for _, nodes, named in _stacked(stated):
        # By least distance, not by most credit: credits of far nodes are all 0, and their match would depend on order.
        apart = _apart(target.pos[nodes], moved[:, named])
        columns = assign(apart)
        chosen = np.maximum(columns, 0)
        gap = np.take_along_axis(apart, chosen[..., None], axis=-1)[..., 0]
        misfit += np.where(columns >= 0, gap, 0.0).sum(axis=(1, 2))
        found = np.take_along_axis(np.broadcast_to(named, (len(moved), *named.shape)), chosen, axis=-1)
        match[:, nodes] = np.where(columns >= 0, found, -1)
    different: dict[bytes, int] = {}
    for c in np.argsort(misfit, kind="stable").tolist():
        different.setdefault(match[c].tobytes(), c)
    return match[list(different.values())[:_MAX_MATCHES]]


def _stacked(stated: Stated) -> Iterator[tuple[Ints, Ints, Ints]]:
    """Contested labels of equal numbers of instances together: selected frames [B], true nodes [B, n], stated ones [B, m]."""
    alike: dict[tuple[int, int], list[tuple[int, list[int], list[int]]]] = defaultdict(list)
    for item in stated.contested:
        alike[len(item[1]), len(item[2])].append(item)
    for items in alike.values():
        yield (
            np.array([k for k, _, _ in items]),
            np.array([true for _, true, _ in items]),
            np.array([named for _, _, named in items]),
        )


def _apart(a: Floats, b: Floats) -> Floats:
    """Distances [..., A, B] of positions [..., A, D] and [..., B, D]."""
    return geometry.distance(a[..., :, None, :], b[..., None, :, :])


def assign(cost: Floats) -> Ints:
    """[..., n] the column given to every row of cost matrices [..., n, m] at least total cost, -1 for rows left over."""
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
    """[W, n] all ways of giving rows different columns, as many as there are; -1 for a row without one."""
    if n <= m:
        return np.array(list(itertools.permutations(range(m), n)), dtype=np.intp)
    found = itertools.permutations([*range(m), *[-1] * (n - m)], n)
    return np.array(sorted(set(found)), dtype=np.intp)


# ------------------------------------------------------------------------------------------------- motions


def _spread(pos: Floats) -> float:
    return float(np.linalg.norm(pos - pos.mean(axis=0)))


def _laid_onto_truth(stated: Stated, pos: Floats, target: Target, *, in_space: bool) -> Floats:
    """Positions [C, M, D] under motions that lay stated nodes onto an anchor of the same labels.

    Anchors with the fewest counterparts come first, of these the longest; of the counterparts those of nearest lengths. All
    choices depend on distances and labels alone. Where no anchor has a counterpart, the positions as they are.
    """
    named = _counterparts(stated, target)
    choices = np.array([len(others) for others in named], dtype=np.intp)
    anchors = _anchors(choices, target)
    corners: list[tuple[tuple[int, ...], tuple[int, ...], int]] = []
    for rank, row in enumerate(anchors):
        if len(corners) >= _MAX_MOTIONS:
            break
        third = _third(row, choices, target) if in_space else None
        true = (*target.pairs.members[row].tolist(), *(() if third is None else (third,)))
        found = itertools.product(*(named[node] for node in true))
        corners += [(true, others, rank) for others in found if len(set(others)) == len(others)]
    triangles = [corner for corner in corners if len(corner[0]) == 3]
    moved = (
        _turned_in_space(triangles, pos, target)
        if triangles
        else _turned_about_vertical(corners, pos, target)
        if corners
        else pos[:0]
    )
    return moved if len(moved) else pos[None]


def _counterparts(stated: Stated, target: Target) -> list[list[int]]:
    """[N] stated nodes with the label and in the frame of every true node."""
    found: list[list[int]] = [[]] * len(target.pos)
    for true, named in zip(target.members, stated.members, strict=True):
        for label, nodes in true.items():
            for node in nodes:
                found[node] = named.get(label, [])
    return found


def _anchors(choices: Ints, target: Target) -> list[int]:
    """Rows of true pairs that have counterparts and a direction; at most as many as there may be motions."""
    first, second = target.pairs.members.T
    counts = choices[first] * (choices[second] - target.one_label)
    order = np.lexsort((-target.ground_length, counts))
    usable: list[int] = order[(counts[order] > 0) & (target.ground_length[order] > COINCIDE)].tolist()
    return usable[:_MAX_MOTIONS]


def _third(row: int, choices: Ints, target: Target) -> int | None:
    """The true node with the fewest counterparts, of these the one farthest from the anchor's line; None if all lie on it."""
    i, j = target.pairs.members[row]
    away = np.linalg.norm(np.cross(target.pos - target.pos[i], target.pos[j] - target.pos[i]), axis=1)
    usable = np.flatnonzero((choices > 0) & (away > 1e-6 * target.dist[row] ** 2))
    return int(min(usable, key=lambda n: (choices[n], -away[n]))) if usable.size else None


_Corners = Sequence[tuple[tuple[int, ...], tuple[int, ...], int]]
"""(true nodes, stated nodes, rank of the anchor)."""


def _closest(corners: _Corners, misfit: Floats) -> Ints:
    """The corners to try: by rank, then by misfit; infinite ones are none."""
    order = np.lexsort((misfit, np.array([rank for _, _, rank in corners])))
    finite: Ints = order[np.isfinite(misfit[order])]
    return finite[:_MAX_MOTIONS]


def _turned_about_vertical(corners: _Corners, pos: Floats, target: Target) -> Floats:
    """[C, M, D] with stated pairs laid onto true ones: middle onto middle, direction onto direction."""
    true = target.pos[[nodes for nodes, _, _ in corners]]
    found = pos[[others for _, others, _ in corners]]
    length, true_length = (
        geometry.distance(*(geometry.ground(pair[:, end], target.frame) for end in (0, 1)))
        for pair in (found, true)
    )
    chosen = _closest(corners, np.where(length > COINCIDE, np.abs(length - true_length), np.inf))
    true, found = true[chosen], found[chosen]
    angle = np.radians(
        geometry.bearing(true[:, 0], true[:, 1], target.frame)
        - geometry.bearing(found[:, 0], found[:, 1], target.frame)
    )
    sine, cosine = np.sin(angle)[:, None], np.cos(angle)[:, None]
    away = pos - found.mean(axis=1, keepdims=True)
    x, y = geometry.ground_axes(target.frame)
    moved: Floats = away + true.mean(axis=1, keepdims=True)
    moved[..., x] += (cosine - 1) * away[..., x] - sine * away[..., y]
    moved[..., y] += sine * away[..., x] + (cosine - 1) * away[..., y]
    return moved


def _turned_in_space(corners: _Corners, pos: Floats, target: Target) -> Floats:
    """[C, M, 3] with stated triangles laid onto true ones: centroid onto centroid, axes onto axes."""
    true = target.pos[[nodes for nodes, _, _ in corners]]
    found = pos[[others for _, others, _ in corners]]
    axes, true_axes = _axes(found), _axes(true)
    misfit = np.abs(_sides(found) - _sides(true)).sum(axis=-1)
    chosen = _closest(corners, np.where(np.isfinite(axes).all(axis=(1, 2)), misfit, np.inf))
    away = pos - found[chosen].mean(axis=1, keepdims=True)
    turned = away @ axes[chosen].transpose(0, 2, 1) @ true_axes[chosen]
    moved: Floats = turned + true[chosen].mean(axis=1, keepdims=True)
    return moved


def _sides(corners: Floats) -> Floats:
    """[..., 3] lengths of the sides of triangles [..., 3, D]."""
    return geometry.distance(corners, np.roll(corners, 1, axis=-2))


def _axes(corners: Floats) -> Floats:
    """[C, 3, 3] an orthonormal right-handed basis (rows) fixed to each triangle [C, 3, 3]; NaN for one without area."""
    along = corners[:, 1] - corners[:, 0]
    normal = np.cross(along, corners[:, 2] - corners[:, 0])
    basis = np.stack([along, np.cross(normal, along), normal], axis=1)
    length = np.linalg.norm(basis, axis=-1, keepdims=True)
    axes: Floats = np.divide(basis, length, out=np.full_like(basis, np.nan), where=length > 1e-12)
    return axes
