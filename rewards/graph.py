"""Graph reward: are the stated nodes and relations where the true ones are?

In: the true graph of a record (prepared once as `Target`) and the graph of a trace. Out: `GraphScore`. All formulas
are those of method, section 3. Nodes of all selected frames lie in flat arrays: N true nodes, M predicted ones, K pairs
of true nodes, F selected frames, D coordinates.

An edge must not depend on the viewpoint, but a match by position does as soon as a label has several instances.
So where the labels alone do not settle the match, the prediction is first laid onto the truth: a true pair (an anchor)
and a predicted pair of the same labels give a rotation about the vertical and a translation; nodes are matched under
each of some such motions, and the best edge term counts.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from videostr import graph as geometry
from videostr.types import GraphAbsence, GraphFrame, SceneGraph

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]

_MAX_MOTIONS = 24  # bounds the work on graphs that repeat labels; five nodes of one label have 20 per anchor
_COINCIDE = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphRule:
    """Tolerances and options of the graph reward."""

    node_tolerance: float = 1.0
    """Distance at which a node's credit reaches 0, in sizes of the true scene."""
    distance_tolerance: float = 0.5
    """Relative error at which an edge's distance credit reaches 0."""
    angle_tolerance: float = 60.0
    """Error at which an edge's bearing credit reaches 0, degrees."""
    node_weight: float = 0.5
    """lambda: share of the node term where there is an edge term."""
    edges: Literal["stated_or_derived", "derived", "stated"] = "stated_or_derived"
    """Stated values where stated and derived ones elsewhere; derived ones only; stated ones only."""
    scale: Literal["absolute", "relative"] = "absolute"
    """relative: distances of both sides are divided by their mean over all matched pairs of the clip."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphScore:
    """What a graph earned."""

    graph: float
    """Mean over the selected frames of lambda R_n + (1 - lambda) R_e."""
    node: float
    """Mean of R_n over the selected frames."""
    edge: float | None
    """Mean of R_e over the selected frames with two true nodes or more; None where there is none."""
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A true graph, prepared for scoring."""

    unit: str
    frame: str
    times: Floats
    """[F] seconds."""
    reach_s: float
    """Half the spacing of the selected times: how far a stated time may lie from a selected one."""
    pos: Floats
    """[N, D]."""
    frame_of_node: Ints
    """[N] index of the selected frame."""
    members: tuple[dict[str, list[int]], ...]
    """Per selected frame: label -> indices of nodes."""
    size: Floats
    """[F] size of the scene: the largest of node spread, mean node extent and 1e-6."""
    pairs: Ints
    """[K, 2] indices of nodes of one frame."""
    frame_of_pair: Ints
    """[K] index of the selected frame."""
    dist: Floats
    """[K]."""
    bearing: Floats
    """[K] degrees."""
    ground_length: Floats
    """[K] distance in the ground plane; where it is 0 (one above the other) there is no bearing."""
    pair_labels: tuple[tuple[str, str], ...]
    """[K]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stated:
    """The frames of a predicted graph that belong to selected times."""

    frames: tuple[GraphFrame | None, ...]
    """Per selected frame; None where the trace states none."""
    pos: Floats
    """[M, D]."""
    members: tuple[dict[str, list[int]], ...]
    """Per selected frame: label -> indices of nodes."""
    index: tuple[dict[str, int], ...]
    """Per selected frame: id -> index of node."""
    settled: Ints
    """[S, 2] true and predicted node of every label with one instance on both sides."""
    contested: tuple[tuple[int, list[int], list[int]], ...]
    """(frame, true nodes, predicted nodes) of every label with more."""


def prepare(truth: SceneGraph) -> Target:
    """Everything about the truth that does not depend on the prediction."""
    nodes = [node for item in truth.frames for node in item.nodes]
    dimension = len(nodes[0].pos) if nodes else 2
    pos = np.array([node.pos for node in nodes], dtype=np.float64).reshape(-1, dimension)
    members, _ = _index_nodes(truth.frames)
    slices = _slices([len(item.nodes) for item in truth.frames])
    pairs = [
        (pair, k)
        for k, (start, stop) in enumerate(slices)
        for pair in itertools.combinations(range(start, stop), 2)
    ]
    ends = np.array([pair for pair, _ in pairs], dtype=np.intp).reshape(-1, 2)
    a, b = pos[ends[:, 0]], pos[ends[:, 1]]
    times = np.array([item.t for item in truth.frames])
    return Target(
        unit=truth.unit,
        frame=truth.frame,
        times=times,
        reach_s=float(times[-1] - times[0]) / (len(times) - 1) / 2 if len(times) > 1 else np.inf,
        pos=pos,
        frame_of_node=np.repeat(np.arange(len(slices)), [stop - start for start, stop in slices]),
        members=members,
        size=np.array(
            [_scene_size(item, pos[slice(*span)]) for item, span in zip(truth.frames, slices, strict=True)]
        ),
        pairs=ends,
        frame_of_pair=np.array([k for _, k in pairs], dtype=np.intp),
        dist=geometry.distance(a, b),
        bearing=geometry.bearing(a, b, truth.frame),
        ground_length=_ground_distance(a, b, truth.frame),
        pair_labels=tuple((nodes[i].label, nodes[j].label) for i, j in ends.tolist()),
    )


def reward(graph: SceneGraph, target: Target, rule: GraphRule) -> GraphScore:
    """Node, edge and graph term of a predicted graph."""
    dimensions = {len(node.pos) for item in graph.frames for node in item.nodes}
    if graph.unit != target.unit:
        return _nothing(target, f"graph: stated in {graph.unit}, the question asks for {target.unit}")
    if target.pos.size and dimensions - {target.pos.shape[1]}:
        return _nothing(
            target, f"graph: positions have {dimensions.pop()} coordinates, not {target.pos.shape[1]}"
        )
    stated = _select(graph, target)
    node = _node_term(stated, target, rule)
    edge = _edge_term(stated, target, rule)
    has_edge = _count(target.frame_of_pair, target) > 0
    per_frame = np.where(has_edge, rule.node_weight * node + (1 - rule.node_weight) * edge, node)
    return GraphScore(
        graph=float(per_frame.mean()),
        node=float(node.mean()),
        edge=float(edge[has_edge].mean()) if has_edge.any() else None,
        notes=tuple(_notes(stated, target)),
    )


def absent(target: Target, reason: GraphAbsence) -> GraphScore:
    """What a trace without a usable graph earns: nothing. A refused graph is explained in the trace's problems."""
    return _nothing(target, f"graph: {reason.value}") if reason is GraphAbsence.ABSENT else _nothing(target)


def _nothing(target: Target, *notes: str) -> GraphScore:
    return GraphScore(graph=0.0, node=0.0, edge=0.0 if len(target.pairs) else None, notes=notes)


# --------------------------------------------------------------------------------------------- preparation


def _slices(counts: list[int]) -> list[tuple[int, int]]:
    stops = list(itertools.accumulate(counts))
    return [(stop - count, stop) for stop, count in zip(stops, counts, strict=True)]


def _index_nodes(
    frames: tuple[GraphFrame | None, ...] | tuple[GraphFrame, ...],
) -> tuple[tuple[dict[str, list[int]], ...], tuple[dict[str, int], ...]]:
    """Number the nodes of all frames through; per frame label -> numbers and id -> number."""
    members: list[dict[str, list[int]]] = []
    index: list[dict[str, int]] = []
    number = itertools.count()
    for item in frames:
        by_label: dict[str, list[int]] = {}
        by_id: dict[str, int] = {}
        for node in item.nodes if item else ():
            by_id[node.id] = next(number)
            by_label.setdefault(node.label, []).append(by_id[node.id])
        members.append(by_label)
        index.append(by_id)
    return tuple(members), tuple(index)


def _scene_size(item: GraphFrame, pos: Floats) -> float:
    """max(rms distance of the nodes to their centroid, mean extent of nodes of known size, 1e-6)."""
    if not item.nodes:
        return 1e-6
    spread = float(np.sqrt(((pos - pos.mean(axis=0)) ** 2).sum(axis=1).mean()))
    extents = [x for node in item.nodes if node.size is not None for x in node.size]
    return max(spread, sum(extents) / len(extents) if extents else 0.0, 1e-6)


def _ground_distance(a: Floats, b: Floats, frame: str) -> Floats:
    return geometry.distance(geometry.ground(a, frame), geometry.ground(b, frame))


def _select(graph: SceneGraph, target: Target) -> _Stated:
    """Give each selected time the nearest predicted frame within reach; a predicted frame serves one time only."""
    frames: list[GraphFrame | None] = [None] * len(target.times)
    nearest = np.full(len(target.times), target.reach_s + 1e-6)
    for item in graph.frames:
        away = np.abs(target.times - item.t)
        k = int(away.argmin())
        if away[k] < nearest[k]:
            frames[k], nearest[k] = item, away[k]
    dimension = target.pos.shape[1]
    members, index = _index_nodes(tuple(frames))
    pos = [node.pos for item in frames if item for node in item.nodes]
    common = [
        (k, nodes, predicted[label])
        for k, (true, predicted) in enumerate(zip(target.members, members, strict=True))
        for label, nodes in true.items()
        if label in predicted
    ]
    settled = [(true[0], named[0]) for _, true, named in common if len(true) == len(named) == 1]
    return _Stated(
        frames=tuple(frames),
        pos=np.array(pos, dtype=np.float64).reshape(
            -1, dimension if target.pos.size or not pos else len(pos[0])
        ),
        members=members,
        index=index,
        settled=np.array(settled, dtype=np.intp).reshape(-1, 2),
        contested=tuple(item for item in common if len(item[1]) > 1 or len(item[2]) > 1),
    )


# --------------------------------------------------------------------------------------------------- nodes


def _node_term(stated: _Stated, target: Target, rule: GraphRule) -> Floats:
    """R_n per selected frame [F]; 0 where the trace does not state the frame."""
    reach = rule.node_tolerance * target.size
    true, predicted = stated.settled.T
    frames = target.frame_of_node[true]
    earned_each = _credit(geometry.distance(target.pos[true], stated.pos[predicted]) / reach[frames])
    earned = np.zeros(len(target.times))
    np.add.at(earned, frames, earned_each)
    for k, instances, named in stated.contested:
        matrix = _credit(_apart(target.pos[instances], stated.pos[named]) / reach[k])
        earned[k] += matrix[linear_sum_assignment(matrix, maximize=True)].sum()
    total = np.array([_label_total(*both) for both in zip(target.members, stated.members, strict=True)])
    is_stated = np.array([item is not None for item in stated.frames])
    term: Floats = np.where(total > 0, earned / np.maximum(total, 1), 1.0) * is_stated
    return term


def _credit(error: Floats) -> Floats:
    """1 without error, 0 from an error of 1 on, and 0 for what is not stated (NaN)."""
    return np.where(error < 1.0, 1.0 - error, 0.0)


def _apart(a: Floats, b: Floats) -> Floats:
    """Distances [..., A, B] of positions [A, D] and [..., B, D]."""
    return geometry.distance(a[:, None], b[..., None, :, :])


def _label_total(true: dict[str, list[int]], predicted: dict[str, list[int]]) -> int:
    labels = true.keys() | predicted.keys()
    return sum(max(len(true.get(label, ())), len(predicted.get(label, ()))) for label in labels)


# --------------------------------------------------------------------------------------------------- edges


def _edge_term(stated: _Stated, target: Target, rule: GraphRule) -> Floats:
    """R_e per selected frame [F]; 0 where there is no pair or the trace does not state the frame."""
    if not len(target.pairs) or not len(stated.pos):
        return np.zeros(len(target.times))
    terms = [_edge_credit(match, stated, target, rule) for match in _matches(stated, target, rule)]
    return max(terms, key=lambda term: float(term.sum()))


def _matches(stated: _Stated, target: Target, rule: GraphRule) -> Ints:
    """Possible matches [C, N]: the predicted node of every true node, or -1.

    Per frame and label the assignment of least total distance, under each motion. Not of most credit: credits of far
    nodes are all 0, and their match would depend on their order.
    """
    pos = _laid_onto_truth(stated, target, rule) if stated.contested else stated.pos[None]
    match = np.full((len(pos), len(target.pos)), -1, dtype=np.intp)
    match[:, stated.settled[:, 0]] = stated.settled[:, 1]
    for _, true, named in stated.contested:
        for c, apart in enumerate(_apart(target.pos[true], pos[:, named])):
            rows, columns = linear_sum_assignment(apart)
            match[c, np.take(true, rows)] = np.take(named, columns)
    return np.unique(match, axis=0) if len(match) > 1 else match


def _edge_credit(match: Ints, stated: _Stated, target: Target, rule: GraphRule) -> Floats:
    """R_e per selected frame [F], given the match."""
    ends = match[target.pairs]
    matched = (ends >= 0).all(axis=1)
    if not matched.any():
        return np.zeros(len(target.times))
    dist, bearing = _relations(ends[matched], stated, target.frame, rule)
    true_dist, true_bearing = target.dist[matched], target.bearing[matched]
    if rule.scale == "relative":
        dist, true_dist = _relative(dist), _relative(true_dist)
    away = np.abs(dist - true_dist) / (rule.distance_tolerance * np.maximum(true_dist, 1e-6))
    distance_credit = _credit(away)
    delta = geometry.wrap(bearing - true_bearing)
    comparable = target.ground_length[matched] > _COINCIDE
    turn = geometry.circular_mean(delta[comparable & ~np.isnan(delta)])
    angle_credit = _credit(np.abs(geometry.wrap(delta - turn)) / rule.angle_tolerance)
    says_nothing = ~comparable if len(delta) > 1 else np.array([True])
    credit = np.where(says_nothing, distance_credit, 0.5 * distance_credit + 0.5 * angle_credit)
    total = np.bincount(target.frame_of_pair[matched], weights=credit, minlength=len(target.times))
    pairs: Ints = np.maximum(_count(target.frame_of_pair, target), _stated_pairs(stated, rule))
    term: Floats = total / np.maximum(pairs, 1)
    return term


def _relative(dist: Floats) -> Floats:
    """Distances [K'] divided by the mean of those that are stated."""
    known = dist[~np.isnan(dist)]
    return dist / max(float(known.mean()), 1e-6) if known.size else dist


def _relations(ends: Ints, stated: _Stated, frame: str, rule: GraphRule) -> tuple[Floats, Floats]:
    """Distance and bearing of pairs of predicted nodes [K', 2]; NaN where there is none."""
    a, b = stated.pos[ends[:, 0]], stated.pos[ends[:, 1]]
    dist = geometry.distance(a, b)
    bearing = np.where(_ground_distance(a, b, frame) > _COINCIDE, geometry.bearing(a, b, frame), np.nan)
    if rule.edges == "derived":
        return dist, bearing
    if rule.edges == "stated":
        dist, bearing = np.full(len(ends), np.nan), np.full(len(ends), np.nan)
    said = _stated_edges(stated)
    for row, (i, j) in enumerate(ends.tolist() if said else ()):
        said_dist, said_angle = said.get((i, j), (None, None))
        dist[row] = dist[row] if said_dist is None else said_dist
        bearing[row] = bearing[row] if said_angle is None else said_angle
    return dist, bearing


def _stated_edges(stated: _Stated) -> dict[tuple[int, int], tuple[float | None, float | None]]:
    """Distance and bearing of every stated edge, in both directions."""
    said: dict[tuple[int, int], tuple[float | None, float | None]] = {}
    for item, index in zip(stated.frames, stated.index, strict=True):
        for edge in item.edges if item else ():
            a, b = index[edge.a], index[edge.b]
            said[a, b] = edge.dist, edge.angle
            said[b, a] = edge.dist, None if edge.angle is None else edge.angle + 180.0
    return said


def _stated_pairs(stated: _Stated, rule: GraphRule) -> Ints:
    """[F] pairs that the prediction relates: its edges where only stated ones count, else all pairs of its nodes."""
    if rule.edges == "stated":
        return np.array([len(item.edges) if item else 0 for item in stated.frames])
    counts = np.array([len(index) for index in stated.index])
    pairs: Ints = counts * (counts - 1) // 2
    return pairs


def _count(frame_of: Ints, target: Target) -> Ints:
    return np.bincount(frame_of, minlength=len(target.times))


# ----------------------------------------------------------------------------- the match without a viewpoint


def _laid_onto_truth(stated: _Stated, target: Target, rule: GraphRule) -> Floats:
    """Predicted positions [C, M, D] under the motions that lay a predicted pair onto an anchor of the same labels.

    Rotation about the vertical, then translation. All choices depend on distances and labels alone. Where no pair has
    a counterpart, the positions as they are. With relative scale the prediction is brought to the truth's size first.
    """
    if rule.scale == "relative":
        stated = replace(stated, pos=stated.pos * (_spread(target.pos) / max(_spread(stated.pos), 1e-6)))
    motions: list[Floats] = []
    for row in _anchors(stated, target):
        motions.extend(_motions(row, stated, target))
        if len(motions) >= _MAX_MOTIONS:
            break
    return np.array(motions[:_MAX_MOTIONS] or [stated.pos])


def _spread(pos: Floats) -> float:
    return float(np.linalg.norm(pos - pos.mean(axis=0)))


def _anchors(stated: _Stated, target: Target) -> list[int]:
    """Rows of `target.pairs` with a counterpart by label: those with the fewest first, of these the longest first."""
    counts = [
        _possible(*labels, stated.members[k])
        for k, labels in zip(target.frame_of_pair.tolist(), target.pair_labels, strict=True)
    ]
    rows = [row for row, n in enumerate(counts) if n and target.ground_length[row] > _COINCIDE]
    return sorted(rows, key=lambda row: (counts[row], -target.ground_length[row]))


def _possible(first: str, second: str, named: dict[str, list[int]]) -> int:
    """Ordered pairs of predicted nodes that bear these labels."""
    a, b = len(named.get(first, ())), len(named.get(second, ()))
    return a * (a - 1) if first == second else a * b


def _motions(row: int, stated: _Stated, target: Target) -> Floats:
    """Predicted positions [C, M, D] with each counterpart of one anchor laid onto it, that of nearest length first."""
    i, j = target.pos[target.pairs[row]]
    first, second = target.pair_labels[row]
    named = stated.members[int(target.frame_of_pair[row])]
    pairs = np.array([(a, b) for a in named[first] for b in named[second] if a != b])
    length = _ground_distance(stated.pos[pairs[:, 0]], stated.pos[pairs[:, 1]], target.frame)
    order = np.argsort(np.abs(length - target.ground_length[row]), kind="stable")
    a, b = stated.pos[pairs[order[length[order] > _COINCIDE][:_MAX_MOTIONS]].T]
    pos = stated.pos - (a + b)[:, None] / 2
    turn = np.radians(geometry.bearing(i, j, target.frame) - geometry.bearing(a, b, target.frame))
    sine, cosine = np.sin(turn)[:, None], np.cos(turn)[:, None]
    x, y = geometry.ground_axes(target.frame)
    pos[..., x], pos[..., y] = (
        cosine * pos[..., x] - sine * pos[..., y],
        sine * pos[..., x] + cosine * pos[..., y],
    )
    moved: Floats = pos + (i + j) / 2
    return moved


# --------------------------------------------------------------------------------------------------- notes


def _notes(stated: _Stated, target: Target) -> Iterator[str]:
    """What is missing from the prediction and what is too much."""
    missing, extra = Counter[str](), Counter[str]()
    for item, true, predicted in zip(stated.frames, target.members, stated.members, strict=True):
        if item is not None:
            n_true = Counter({label: len(nodes) for label, nodes in true.items()})
            n_predicted = Counter({label: len(nodes) for label, nodes in predicted.items()})
            missing += n_true - n_predicted
            extra += n_predicted - n_true
    unstated = [f"{t:g}" for t, item in zip(target.times, stated.frames, strict=True) if item is None]
    if unstated:
        yield f"graph: nothing stated for t = {', '.join(unstated)}"
    for counts, what in ((missing, "missing"), (extra, "not in the scene")):
        if counts:
            yield f"graph: {what}: {', '.join(f'{label} ({n})' for label, n in sorted(counts.items()))}"
