"""Graph reward: are the stated nodes and relations where the true ones are?

In: the true graph of a record, prepared once as `Target`, and the graphs of a group of traces. Out: a `GraphScore` for each.
All formulas are those of method, section 3; rewards/match.py and rewards/viewpoint.py find which predicted node stands for which
true one. The graphs of a group are scored together, in arrays: R matches (one or more a graph), N true nodes, K pairs of true
nodes of one frame, F selected frames, D coordinates. What is not stated is NaN, and scores 0.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from msgspec.structs import replace

from rewards.match import (
    COINCIDE,
    Floats,
    Ints,
    Prediction,
    Subsets,
    Target,
    match_by_position,
    number_nodes,
    select,
    subsets,
)
from rewards.stated_edges import StatedEdges
from rewards.viewpoint import viewpoint_invariant_matches
from videostr import graph as geometry
from videostr.types import GraphAbsence, GraphFrame, SceneGraph

_MAX_ELEMENTS = 1 << 20  # of one array; bounds memory on graphs of thousands of pairs


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphRule:
    """Tolerances and options of the graph reward."""

    node_tolerance: float = 1.0
    """Distance at which a node's credit reaches 0, in sizes of the true scene."""
    distance_tolerance: float = 0.5
    """Relative error at which an edge's distance credit reaches 0."""
    angle_tolerance: float = 60.0
    """Error at which the credit of a bearing reaches 0, degrees."""
    node_weight: float = 0.5
    """lambda: share of the node term where there is an edge term."""
    edges: Literal["stated_or_derived", "derived", "stated"] = "stated_or_derived"
    """Stated values where stated and derived ones elsewhere; derived ones only; stated ones only."""
    scale: Literal["absolute", "relative"] = "absolute"
    """relative: distances of both sides are divided by their mean over all related pairs of the clip."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphScore:
    """What a graph scored."""

    graph: float
    """Mean over the selected frames of lambda R_n + (1 - lambda) R_e."""
    node: float
    """Mean of R_n over the selected frames."""
    edge: float | None
    """Mean of R_e over the selected frames with two true nodes or more; None where there is none."""
    notes: tuple[str, ...]
    frames: tuple[GraphFrame | None, ...] = field(default=(), compare=False)
    """What is stated at each selected time; () where the graph cannot be scored."""


def prepare(truth: SceneGraph, rule: GraphRule) -> Target:
    """Return everything about the truth that does not depend on the prediction."""
    frames = [
        replace(item, nodes=tuple(sorted(item.nodes, key=lambda node: (node.label, node.pos))))
        for item in truth.frames
    ]
    items = [node for item in frames for node in item.nodes]
    counts = tuple(len(item.nodes) for item in frames)
    pos = np.array([node.pos for node in items], dtype=np.float64)
    pos = pos.reshape(-1, len(items[0].pos) if items else (3 if truth.frame == "camera0" else 2))
    nodes, pairs = subsets(counts, 1), subsets(counts, 2)
    dist, bearing, ground_length = _between(pos[pairs.members[:, 0]], pos[pairs.members[:, 1]], truth.frame)
    size = _scene_sizes(frames, pos, nodes)
    labels = [node.label for node in items]
    objects = {frozenset(node.id for node in item.nodes) for item in frames if len(item.nodes) > 1}
    return Target(
        unit=truth.unit,
        frame=truth.frame,
        times=tuple(item.t for item in frames),
        pos=pos,
        repeat=_repeats(frames),
        members=number_nodes(frames),
        size=size,
        reach=rule.node_tolerance * size,
        nodes=nodes,
        pairs=pairs,
        one_label=np.array([labels[i] == labels[j] for i, j in pairs.members.tolist()], dtype=bool),
        has_one_object_pair=len(objects) == 1 and len(*objects) == 2,
        dist=dist,
        bearing=bearing,
        ground_length=ground_length,
    )


def _repeats(frames: Sequence[GraphFrame]) -> Floats:
    """Return how many nodes with the same label and position come before each of the ordered nodes of a frame [N]."""
    repeats: list[int] = []
    for item in frames:
        for k, node in enumerate(item.nodes):
            before = item.nodes[k - 1] if k else None
            is_repeat = before is not None and (before.label, before.pos) == (node.label, node.pos)
            repeats.append(repeats[-1] + 1 if is_repeat else 0)
    return np.array(repeats, dtype=np.float64)


def _scene_sizes(frames: Sequence[GraphFrame], pos: Floats, nodes: Subsets) -> Floats:
    """Return [F] max(rms distance of the nodes to their centroid, mean extent of nodes of known size, 1e-6)."""
    count = np.maximum(nodes.count, 1)
    centroid = nodes.sum_per_frame(pos.T) / count
    squared = ((pos - centroid.T[nodes.frame]) ** 2).sum(axis=1)
    spread = np.sqrt(nodes.sum_per_frame(squared) / count)
    extents = [[x for node in item.nodes for x in node.size or ()] for item in frames]
    extent = [sum(of_frame) / len(of_frame) if of_frame else 0.0 for of_frame in extents]
    sizes: Floats = np.maximum(np.maximum(spread, extent), 1e-6)
    return sizes


def _between(a: Floats, b: Floats, frame: str) -> tuple[Floats, Floats, Floats]:
    """Return the distance, bearing (degrees) and distance in the ground plane from positions [..., D] to others, each [...]."""
    x, y = geometry.ground_axes(frame)
    difference = b - a
    right, forward = difference[..., x], difference[..., y]
    return (
        np.sqrt(np.square(difference).sum(axis=-1)),
        np.degrees(np.arctan2(forward, right)),
        np.sqrt(right * right + forward * forward),
    )


# --------------------------------------------------------------------------------------------------- reward


def reward(graph: SceneGraph | GraphAbsence, target: Target, rule: GraphRule) -> GraphScore:
    """Return node, edge and graph term of one predicted graph."""
    return reward_group([graph], target, rule)[0]


def reward_group(
    graphs: Sequence[SceneGraph | GraphAbsence], target: Target, rule: GraphRule
) -> list[GraphScore]:
    """Return node, edge and graph terms of the graphs of a group; a trace without a usable graph scores 0."""
    notes = [_refusal(graph, target) for graph in graphs]
    usable = [
        graph
        for graph, note in zip(graphs, notes, strict=True)
        if note is None and isinstance(graph, SceneGraph)
    ]
    scores = iter(_score([select(graph, target) for graph in usable], target, rule))
    nothing = 0.0 if len(target.pairs) else None
    return [
        next(scores)
        if note is None
        else GraphScore(graph=0.0, node=0.0, edge=nothing, notes=(note,) if note else ())
        for note in notes
    ]


def _refusal(graph: SceneGraph | GraphAbsence, target: Target) -> str | None:
    """Return why a graph scores 0; None if it can be scored, "" where the trace's problems say it."""
    if isinstance(graph, GraphAbsence):
        return f"graph: {graph.value}" if graph is GraphAbsence.ABSENT else ""
    if graph.unit != target.unit:
        return f"graph: stated in {graph.unit}, the question asks for {target.unit}"
    coordinates = next((len(node.pos) for item in graph.frames for node in item.nodes), None)
    if coordinates is not None and target.pos.size and coordinates != target.pos.shape[1]:
        return f"graph: positions have {coordinates} coordinates, not {target.pos.shape[1]}"
    return None


def _score(group: Sequence[Prediction], target: Target, rule: GraphRule) -> Iterator[GraphScore]:
    if not group:
        return
    nodes = _Nodes.of(group, target)
    node = _node_term(nodes, target)
    edge = _edge_term(nodes, target, rule)
    has_edge = target.pairs.count > 0
    graph = np.where(has_edge, rule.node_weight * node + (1 - rule.node_weight) * edge, node)
    edges = edge[:, has_edge].mean(axis=1).tolist() if has_edge.any() else [None] * len(group)
    terms = zip(group, graph.mean(axis=1).tolist(), node.mean(axis=1).tolist(), edges, strict=True)
    for prediction, mean, node_mean, edge_mean in terms:
        notes = tuple(_notes(prediction, target))
        yield GraphScore(graph=mean, node=node_mean, edge=edge_mean, notes=notes, frames=prediction.frames)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Nodes:
    """The nodes that the graphs of a group state, numbered through the group."""

    group: Sequence[Prediction]
    first: list[int]
    """[G] number of every graph's first node."""
    pos: Floats
    """[M + 1, D]; the last is NaN and stands for a node that is not stated."""
    count: Ints
    """[G, F] nodes stated in each frame."""
    is_stated: Floats
    """[G, F] 1 where the frame is stated."""

    @classmethod
    def of(cls, group: Sequence[Prediction], target: Target) -> _Nodes:
        dimension = target.pos.shape[1]
        pos = [place for prediction in group for place in prediction.pos]
        if not len(target.pos):  # without true nodes the dimension is not known, and positions do not matter
            pos = [(0.0,) * dimension] * len(pos)
        return cls(
            group=group,
            first=[*itertools.accumulate((len(prediction.pos) for prediction in group), initial=0)],
            pos=np.array([*pos, (np.nan,) * dimension]),
            count=np.array(
                [[len(item.nodes) if item else 0 for item in prediction.frames] for prediction in group]
            ),
            is_stated=np.array(
                [[item is not None for item in prediction.frames] for prediction in group], dtype=np.float64
            ),
        )

    @property
    def none(self) -> int:
        """The number that stands for a node that is not stated."""
        return len(self.pos) - 1

    def of_graph(self, g: int) -> Floats:
        """Return [M_g, D] positions of one graph."""
        return self.pos[self.first[g] : self.first[g + 1]]

    def numbers(self, g: int, match: Ints) -> Ints:
        """Return matches [..., N] of one graph's nodes in the numbers of the group."""
        return np.where(match >= 0, match + self.first[g], self.none)

    def unique_match(self) -> Ints:
        """Return [G, N] the matches that names alone settle."""
        match = np.array([prediction.unique_match for prediction in self.group], dtype=np.intp).reshape(
            len(self.group), -1
        )
        return np.where(match >= 0, match + np.array(self.first[:-1])[:, None], self.none)


def _credit(error: Floats) -> Floats:
    """Return 1 without error, 0 from an error of 1 on, and 0 for what is not stated (NaN)."""
    return np.where(error < 1.0, 1.0 - error, 0.0)


# --------------------------------------------------------------------------------------------------- nodes


def _node_term(nodes: _Nodes, target: Target) -> Floats:
    """Return R_n per graph and selected frame [G, F]; 0 where the trace does not state the frame."""
    match = nodes.unique_match()
    for g, prediction in enumerate(nodes.group):
        if prediction.ambiguous:
            match[g] = nodes.numbers(g, match_by_position(prediction, nodes.of_graph(g), target))
    away = geometry.distance(target.pos, nodes.pos[match]) / target.reach[target.nodes.frame]
    credit = target.nodes.sum_per_frame(_credit(away))
    total = np.array([_label_totals(prediction, target) for prediction in nodes.group])
    term: Floats = np.where(total > 0, credit / np.maximum(total, 1), 1.0) * nodes.is_stated
    return term


def _label_totals(prediction: Prediction, target: Target) -> list[int]:
    """Return [F] sum over the labels of either side of the larger number of nodes."""
    if prediction.is_exact:
        return [len(true) for true in target.members]
    return [
        sum(map(len, true.values()))
        + sum(max(0, len(nodes) - len(true.get(label, ()))) for label, nodes in named.items())
        for true, named in zip(target.members, prediction.members, strict=True)
    ]


# --------------------------------------------------------------------------------------------------- edges


def _edge_term(nodes: _Nodes, target: Target, rule: GraphRule) -> Floats:
    """Return R_e per graph and selected frame [G, F]; 0 where there is no pair or the trace does not state the frame."""
    best = np.zeros((len(nodes.group), len(target.times)))
    if not len(target.pairs) or nodes.none == 0:
        return best
    rows, owners = _rows(nodes, target, rule)
    stated = None if rule.edges == "derived" else StatedEdges.of(nodes.group, nodes.first, len(nodes.pos))
    step = max(1, _MAX_ELEMENTS // len(target.pairs))
    terms = np.concatenate(
        [
            _edge_credit(rows[k : k + step], owners[k : k + step], nodes, stated, target, rule)
            for k in range(0, len(rows), step)
        ]
    )
    for owner, term in zip(owners.tolist(), terms, strict=True):
        if term.sum() > best[owner].sum():
            best[owner] = term
    return best


def _rows(nodes: _Nodes, target: Target, rule: GraphRule) -> tuple[Ints, Ints]:
    """Return all matches to try [R, N], and which graph each belongs to [R]."""
    unique_match = nodes.unique_match()
    rows: list[Ints] = []
    owners: list[int] = []
    for g, prediction in enumerate(nodes.group):
        found = unique_match[g][None]
        if prediction.ambiguous:
            match = viewpoint_invariant_matches(
                prediction, nodes.of_graph(g), target, relative=rule.scale == "relative"
            )
            found = nodes.numbers(g, match)
        rows.append(found)
        owners += [g] * len(found)
    return np.concatenate(rows), np.array(owners, dtype=np.intp)


def _edge_credit(
    rows: Ints, owners: Ints, nodes: _Nodes, stated: StatedEdges | None, target: Target, rule: GraphRule
) -> Floats:
    """Return R_e per match and selected frame [R, F]."""
    a, b = rows[:, target.pairs.members[:, 0]], rows[:, target.pairs.members[:, 1]]
    dist, bearing = _relations(a, b, nodes, stated, target, rule)
    distance_credit = _distance_credit(dist, target, rule)
    pairs = np.maximum(target.pairs.count, _stated_pairs(nodes, rule)[owners])
    matched = (a != nodes.none) & (b != nodes.none)
    comparable = target.ground_length > COINCIDE
    delta = geometry.wrap(bearing - target.bearing)
    turn = _common_turn(np.where(comparable, delta, np.nan))
    angle_credit = _credit(np.abs(geometry.wrap(delta - turn)) / rule.angle_tolerance)
    # One pair alone agrees with its own rotation: its angle says nothing.
    counts = comparable & (matched.sum(axis=1) > 1)[:, None] & (not target.has_one_object_pair)
    credit = np.where(counts, 0.5 * distance_credit + 0.5 * angle_credit, distance_credit)
    term: Floats = target.pairs.sum_per_frame(credit) / np.maximum(pairs, 1)
    return term


def _common_turn(delta: Floats) -> Floats:
    """Return the circular mean [R, 1] of known deltas [R, K]; where they cancel, the first of them.

    Any fixed value in its place would make the edge term depend on how the prediction is turned.
    """
    known = ~np.isnan(delta)
    first = np.take_along_axis(delta, known.argmax(axis=1)[:, None], axis=1)
    turn: Floats = first + geometry.circular_mean(delta - first)[:, None]
    return turn


def _relations(
    a: Ints, b: Ints, nodes: _Nodes, stated: StatedEdges | None, target: Target, rule: GraphRule
) -> tuple[Floats, Floats]:
    """Return the distance and bearing of pairs of stated nodes [R, K]; NaN where there is none."""
    if rule.edges == "stated":
        dist, bearing = np.full(a.shape, np.nan), np.full(a.shape, np.nan)
    else:
        dist, bearing, ground_length = _between(nodes.pos[a], nodes.pos[b], target.frame)
        bearing = np.where(ground_length > COINCIDE, bearing, np.nan)
    if stated is None:
        return dist, bearing
    stated_dist, stated_bearing = stated.between(a, b)
    return (
        np.where(np.isnan(stated_dist), dist, stated_dist),
        np.where(np.isnan(stated_bearing), bearing, stated_bearing),
    )


def _distance_credit(dist: Floats, target: Target, rule: GraphRule) -> Floats:
    """Return e_d of distances [R, K]."""
    true = np.broadcast_to(target.dist, dist.shape)
    if rule.scale == "relative":
        known = ~np.isnan(dist)
        dist, true = _relative(dist, known), _relative(true, known)
    return _credit(np.abs(dist - true) / (rule.distance_tolerance * np.maximum(true, 1e-6)))


def _relative(dist: Floats, known: np.ndarray) -> Floats:
    """Return distances [R, K] divided by the mean of those that are known."""
    mean = np.where(known, dist, 0.0).sum(axis=1) / np.maximum(known.sum(axis=1), 1)
    relative: Floats = dist / np.maximum(mean, 1e-6)[:, None]
    return relative


def _stated_pairs(nodes: _Nodes, rule: GraphRule) -> Ints:
    """Return [G, F] pairs that each graph relates: its edges where only stated ones count, else all pairs of its nodes."""
    if rule.edges == "stated":
        return np.array(
            [[len(item.edges) if item else 0 for item in prediction.frames] for prediction in nodes.group]
        )
    return nodes.count * (nodes.count - 1) // 2


# --------------------------------------------------------------------------------------------------- notes


def _notes(prediction: Prediction, target: Target) -> Iterator[str]:
    """Yield what is missing from the prediction and what is too much."""
    if prediction.is_exact:
        return
    unstated = [f"{t:g}" for t, item in zip(target.times, prediction.frames, strict=True) if item is None]
    if unstated:
        yield f"graph: nothing stated for t = {', '.join(unstated)}"
    missing: Counter[str] = Counter()
    extra: Counter[str] = Counter()
    for item, true, named in zip(prediction.frames, target.members, prediction.members, strict=True):
        for label in true.keys() | named.keys() if item is not None else ():
            surplus = len(named.get(label, ())) - len(true.get(label, ()))
            if surplus:
                (extra if surplus > 0 else missing)[label] += abs(surplus)
    for counts, what in ((missing, "missing"), (extra, "not in the scene")):
        if counts:
            yield f"graph: {what}: {', '.join(f'{label} ({n})' for label, n in sorted(counts.items()))}"
