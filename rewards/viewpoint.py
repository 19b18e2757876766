"""Matching for the edge term: which predicted node stands for which true one, from whatever viewpoint the scene is stated.

In: a `Target` and a `Prediction` with labels that occur several times. Out: candidate matches, of which the one with the highest
edge term counts. The prediction is laid onto the truth: an anchor (two true nodes) and two predicted nodes of the same labels
give a rotation about the vertical and a translation; nodes are matched under each of some such motions, and the closest fits
are kept.

No choice depends on the order in which nodes are written or on the pose of the prediction, not even where several are equally
good (grids, symmetric scenes): choices are made on quantities that neither changes, and ties among those are broken by
generic functions of the truth and of the prediction as it lies on the truth (`_lifted`, `_signature`).

Shapes: N true nodes and M predicted ones of all selected frames, D coordinates, C candidates, E stated edges.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rewards.match import COINCIDE, Floats, Ints, Prediction, Target, assign, pairwise_distance, stacked
from videostr import graph as geometry

_MAX_MOTIONS = 24  # bounds the work on graphs that repeat labels; five nodes of one label have 20 per anchor
_MAX_MATCHES = 6
_CHUNK = 128  # motions laid at once where more than `_MAX_MOTIONS` fit equally well; bounds memory
_SAME = 2.0**-20
"""Misfits that differ by less, in sizes of the scene, are equal: above rounding, below what matters."""
_LIFT = 0.01
"""Size of the coordinate that breaks ties. It changes distances by a few thousandths, and leaves 0 at 0."""
_MARK_ROUNDS = 3  # how far along stated edges nodes at one place are told apart
_GENERIC = np.sqrt([[2.0, 13.0, 5.0], [7.0, 3.0, 17.0], [19.0, 11.0, 23.0]])
"""Numbers without a rational relation: sines of them tell the points of a grid apart."""


def viewpoint_invariant_matches(
    prediction: Prediction, pos: Floats, target: Target, *, relative: bool
) -> Ints:
    """Return candidate matches [C, N] that do not depend on where the prediction is seen from.

    Args:
        prediction: what the trace states; has ambiguous labels.
        pos: [M, D] its positions.
        target: the truth.
        relative: bring the prediction to the size of the truth first.
    """
    size = _spread(target.pos)
    zoom = size / max(_spread(pos), 1e-6) if relative and size > COINCIDE else 1.0
    view = _View(
        prediction=prediction, pos=pos * zoom, target=target, zoom=zoom, scale=_scale(target, pos * zoom)
    )
    aligned = _align(view)
    unique = np.array(prediction.unique_match, dtype=np.intp)
    if aligned is None:  # no two true nodes have two counterparts: there is no pair to match
        return unique[None]
    twins = _twins(prediction)
    marks = 0.0 if twins is not None else _edge_marks(aligned.laid, view)
    true = _lifted(aligned.true, target.repeat, view.scale)
    laid = _lifted(aligned.laid, marks, view.scale)
    known = np.flatnonzero(unique >= 0)
    misfit = geometry.distance(laid[:, unique[known]], true[..., known, :]).sum(axis=1)
    match = np.tile(unique, (len(misfit), 1))
    for _, nodes, named in stacked(prediction):
        # By least distance, not by most credit: credits of far nodes are all 0.
        cost = pairwise_distance(true[..., nodes, :], laid[:, named])
        columns = assign(cost)
        chosen = np.maximum(columns, 0)
        gap = np.take_along_axis(cost, chosen[..., None], axis=-1)[..., 0]
        misfit += np.where(columns >= 0, gap, 0.0).sum(axis=(1, 2))
        found = np.take_along_axis(np.broadcast_to(named, (len(misfit), *named.shape)), chosen, axis=-1)
        match[:, nodes] = np.where(columns >= 0, found, -1)
    return match[_closest_matches(match if twins is None else twins[match], misfit, aligned, view)]


def _closest_matches(match: Ints, misfit: Floats, aligned: _Aligned, view: _View) -> list[int]:
    """Return which of the matches [C, N] to keep: different ones of least misfit [C]."""
    keys = [row.tobytes() for row in match]
    misfit = np.rint(misfit / (_SAME * view.scale))

    def first_of_each(order: Ints) -> list[int]:
        different: dict[bytes, int] = {}
        for c in order.tolist():
            different.setdefault(keys[c], c)
        return [*different.values()]

    kept = first_of_each(misfit.argsort(kind="stable"))
    if len(kept) > _MAX_MATCHES and misfit[kept[_MAX_MATCHES - 1]] == misfit[kept[_MAX_MATCHES]]:
        kept = first_of_each(np.lexsort((_signature(aligned.laid, view), misfit)))
    return kept[:_MAX_MATCHES]


def _twins(prediction: Prediction) -> Ints | None:
    """Return for every predicted node [M] (and -1 for none) the first with its frame, label and position.

    None where nodes at one place have stated edges, so that they are not alike.
    """
    twins = [*range(len(prediction.pos)), -1]
    related = {node for edge in prediction.edges for node in edge[:2]}
    for _, _, named in prediction.ambiguous:
        first: dict[tuple[float, ...], int] = {}
        for node in named:
            twin = twins[node] = first.setdefault(prediction.pos[node], node)
            if twin != node and (twin in related or node in related):
                return None
    return np.array(twins, dtype=np.intp)


# ----------------------------------------------------------------------------------------------- alignment


@dataclass(frozen=True, slots=True, kw_only=True)
class _View:
    """A prediction and the truth on one scale."""

    prediction: Prediction
    pos: Floats
    """[M, D] predicted positions times `zoom`."""
    target: Target
    zoom: float
    scale: float
    """Size of the scene."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Aligned:
    """A prediction laid onto the truth in C ways."""

    true: Floats
    """[N, D] about the centroid, or [C, N, 2] where nodes are described by their distances from the anchor."""
    laid: Floats
    """[C, M, D] or [C, M, 2], likewise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Corners:
    """Predicted pairs that stand for true ones."""

    true: Ints
    """[C, 2]."""
    found: Ints
    """[C, 2]."""
    rank: Ints
    """[C] of the true pair among the anchors."""
    misfit: Floats
    """[C] difference of the lengths, in steps of `_SAME`."""

    def __getitem__(self, chosen: Ints | slice) -> _Corners:
        parts = {name: getattr(self, name)[chosen] for name in ("true", "found", "rank", "misfit")}
        return _Corners(**parts)

    def __len__(self) -> int:
        return len(self.rank)


def _spread(pos: Floats) -> float:
    return float(np.linalg.norm(pos - pos.mean(axis=0)))


def _scale(target: Target, pos: Floats) -> float:
    """Return the size of the scene; that of the prediction where all true nodes of each frame are at one place."""
    return float(target.size.max()) if target.dist.max() > COINCIDE else max(_spread(pos), 1e-6)


def _align(view: _View) -> _Aligned | None:
    """Return the prediction laid onto the anchors that fit best; None without any.

    Anchors with the fewest counterparts come first, of these the longest; of the counterparts those of nearest lengths. Where no
    anchor has a direction on both sides (nodes of a frame at one place, or one above the other), nodes are described by
    their distances from the anchor's ends, which no rotation changes.
    """
    target, named = view.target, _counterparts(view.prediction, view.target)
    lay: Callable[[_Corners, _View], _Aligned] = _turned_about_vertical
    on_ground = geometry.ground(view.pos, target.frame)
    corners = _corners(named, on_ground, target.ground_length, COINCIDE, view)
    if not len(corners):
        lay, corners = _by_distances, _corners(named, view.pos, target.dist, -1.0, view)
    if not len(corners):
        return None
    order = np.lexsort((corners.misfit, corners.rank))
    if len(order) > _MAX_MOTIONS:
        last = corners[order[_MAX_MOTIONS - 1 : _MAX_MOTIONS]]
        fits = (corners.rank < last.rank) | ((corners.rank == last.rank) & (corners.misfit <= last.misfit))
        order = np.flatnonzero(fits)
    corners = corners[order]
    if len(corners) > _MAX_MOTIONS:  # more fit equally well than are tried: choose by how the prediction lies
        chunks = (corners[k : k + _CHUNK] for k in range(0, len(corners), _CHUNK))
        signature = np.concatenate([_signature(lay(chunk, view).laid, view) for chunk in chunks])
        corners = corners[np.lexsort((signature, corners.misfit, corners.rank))[:_MAX_MOTIONS]]
    return lay(corners, view)


def _counterparts(prediction: Prediction, target: Target) -> list[list[int]]:
    """Return the predicted nodes with the label and in the frame of every true node [N]."""
    found: list[list[int]] = [[]] * len(target.pos)
    for true, named in zip(target.members, prediction.members, strict=True):
        for label, nodes in true.items():
            for node in nodes:
                found[node] = named.get(label, [])
    return found


def _corners(
    named: list[list[int]], pos: Floats, true_length: Floats, shortest: float, view: _View
) -> _Corners:
    """Return the predicted pairs longer than `shortest` for the first anchors, of which `_MAX_MOTIONS` suffice."""
    pairs = view.target.pairs.members
    anchors = _anchors(named, true_length, shortest, view.target)
    rows: list[tuple[int, int, int, int]] = []
    for rank, (row, (i, k)) in enumerate(zip(anchors, pairs[anchors].tolist(), strict=True)):
        if len(rows) >= _MAX_MOTIONS:
            break
        rows += [(rank, row, a, b) for a in named[i] for b in named[k] if a != b]
    table = np.array(rows, dtype=np.intp).reshape(-1, 4)
    length = geometry.distance(pos[table[:, 2]], pos[table[:, 3]])
    table, length = table[length > shortest], length[length > shortest]
    return _Corners(
        true=pairs[table[:, 1]],
        found=table[:, 2:],
        rank=table[:, 0],
        misfit=np.rint(np.abs(length - true_length[table[:, 1]]) / (_SAME * view.scale)),
    )


def _anchors(named: list[list[int]], true_length: Floats, shortest: float, target: Target) -> list[int]:
    """Return the rows of true pairs that have counterparts and are longer than `shortest`; at most `_MAX_MOTIONS`."""
    choices = np.array([len(others) for others in named], dtype=np.intp)
    first, second = target.pairs.members.T
    counts = choices[first] * (choices[second] - target.one_label)
    order = np.lexsort((-true_length, counts))
    usable: list[int] = order[(counts[order] > 0) & (true_length[order] > shortest)].tolist()
    return usable[:_MAX_MOTIONS]


def _turned_about_vertical(corners: _Corners, view: _View) -> _Aligned:
    """Lay predicted pairs onto true ones, middle onto middle and direction onto direction."""
    target = view.target
    true, found = target.pos[corners.true], view.pos[corners.found]
    x, y = geometry.ground_axes(target.frame)
    (right, forward), (found_right, found_forward) = (
        (pairs[:, 1, [x, y]] - pairs[:, 0, [x, y]]).T for pairs in (true, found)
    )
    cosine = right * found_right + forward * found_forward
    sine = forward * found_right - right * found_forward
    length = np.hypot(sine, cosine)
    cosine, sine = (cosine / length)[:, None], (sine / length)[:, None]
    centre = target.pos.mean(axis=0)
    laid: Floats = view.pos - 0.5 * (found[:, :1] + found[:, 1:])
    away_right, away_forward = laid[..., x].copy(), laid[..., y].copy()
    laid[..., x] = cosine * away_right - sine * away_forward
    laid[..., y] = sine * away_right + cosine * away_forward
    laid += 0.5 * (true[:, :1] + true[:, 1:]) - centre
    return _Aligned(true=target.pos - centre, laid=laid)


def _by_distances(corners: _Corners, view: _View) -> _Aligned:
    """Describe nodes by their distances from both ends of the anchor."""
    true = view.target.pos
    return _Aligned(
        true=pairwise_distance(true, true[corners.true]),
        laid=pairwise_distance(view.pos, view.pos[corners.found]),
    )


# ---------------------------------------------------------------------------------------------------- ties


def _phase(coordinates: Floats, row: int, scale: float) -> Floats:
    """Return a generic linear function [...] of coordinates [..., D] in sizes of the scene."""
    phase: Floats = coordinates @ (_GENERIC[row, : coordinates.shape[-1]] / scale)
    return phase


def _lifted(coordinates: Floats, marks: Floats | float, scale: float) -> Floats:
    """Return coordinates [..., D + 1]: one more, so that no two assignments cost the same without being equivalent."""
    lift = np.sin(_phase(coordinates, 0, scale) + 1.0) + marks
    return np.concatenate([coordinates, (_LIFT * scale * lift)[..., None]], axis=-1)


def _signature(laid: Floats, view: _View) -> Floats:
    """Return a number for each way [C] that depends on how the prediction lies on the truth, not on the order of its nodes."""
    labels = [(k, label) for k, true in enumerate(view.target.members) for label in true]
    named = [view.prediction.members[k].get(label, []) for k, label in labels]
    nodes = np.array([node for of_label in named for node in of_label], dtype=np.intp)
    slots = np.repeat(np.arange(len(named)), [len(of_label) for of_label in named])
    phase = _phase(laid, 1, view.scale) + _edge_marks(laid, view)
    signature: Floats = np.sin(phase[:, nodes] + slots).sum(axis=-1)
    return signature


def _edge_marks(laid: Floats, view: _View) -> Floats:
    """Return a number for each predicted node [C, M] that depends on its stated edges, not on their order; 0 without any."""
    marks = np.zeros(laid.shape[:2])
    if not view.prediction.edges:
        return marks
    edges = np.array(view.prediction.edges, dtype=np.float64)  # None becomes NaN
    a, b = edges[:, 0].astype(np.intp), edges[:, 1].astype(np.intp)
    frame, pos = view.target.frame, view.pos
    off = np.radians(edges[:, 3] - geometry.bearing(pos[a], pos[b], frame))
    off[geometry.distance(geometry.ground(pos[a], frame), geometry.ground(pos[b], frame)) <= COINCIDE] = 0.0
    dist = np.nan_to_num(edges[:, 2], nan=-1.0) * view.zoom / view.scale
    said = _GENERIC[2, 0] * dist + np.nan_to_num(np.sin(off) + _GENERIC[2, 1] * np.cos(off))
    place = _phase(laid, 2, view.scale)
    for _ in range(_MARK_ROUNDS):
        before, marks = marks, np.zeros_like(marks)
        for one, other in ((a, b), (b, a)):
            np.add.at(marks.T, one, np.sin(said + place[:, other] + before[:, other]).T)
    return marks
