"""Graph reward: are the stated nodes and relations where the true ones are?

In: the true graph of a record, prepared once as `Target`, and the graphs of a group of traces. Out: a `GraphScore` for each.
All formulas are those of method, section 3; which stated node stands for which true one is settled in rewards/match.py.
The graphs of a group are scored together, in arrays: R matches (one or more a graph), N true nodes, K pairs and L triples of
true nodes of one frame, F selected frames, D coordinates. What is not stated is NaN, and earns nothing.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rewards.match import (
    COINCIDE,
    Floats,
    Ints,
    Stated,
    Subsets,
    Target,
    match_by_position,
    matches_without_viewpoint,
    number_nodes,
    select,
    subsets,
)
from videostr import graph as geometry
from videostr.types import GraphAbsence, SceneGraph

_MAX_ELEMENTS = 1 << 20  # of one array; bounds memory on graphs of thousands of pairs


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphRule:
    """Tolerances and options of the graph reward."""

    node_tolerance: float = 1.0
    """Distance at which a node's credit reaches 0, in sizes of the true scene."""
    distance_tolerance: float = 0.5
    """Relative error at which an edge's distance credit reaches 0."""
    angle_tolerance: float = 60.0
    """Error at which the credit of a bearing or an interior angle reaches 0, degrees."""
    node_weight: float = 0.5
    """lambda: share of the node term where there is an edge term."""
    edges: Literal["stated_or_derived", "derived", "stated"] = "stated_or_derived"
    """Stated values where stated and derived ones elsewhere; derived ones only; stated ones only."""
    angle: Literal["bearing", "interior"] = "bearing"
    """Bearings of edges up to one rotation of the clip about the vertical, or interior angles of triples (any rotation)."""
    scale: Literal["absolute", "relative"] = "absolute"
    """relative: distances of both sides are divided by their mean over all related pairs of the clip."""


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


def prepare(truth: SceneGraph, rule: GraphRule) -> Target:
    """Everything about the truth that does not depend on the prediction."""
    items = [node for item in truth.frames for node in item.nodes]
    counts = tuple(len(item.nodes) for item in truth.frames)
    pos = np.array([node.pos for node in items], dtype=np.float64)
    pos = pos.reshape(-1, len(items[0].pos) if items else (3 if truth.frame == "camera0" else 2))
    nodes, pairs = subsets(counts, 1), subsets(counts, 2)
    dist, bearing, ground_length = _between(pos[pairs.members[:, 0]], pos[pairs.members[:, 1]], truth.frame)
    labels = [node.label for node in items]
    return Target(
        unit=truth.unit,
        frame=truth.frame,
        times=tuple(item.t for item in truth.frames),
        pos=pos,
        members=number_nodes(truth.frames),
        size=_scene_sizes(truth, pos, nodes),
        nodes=nodes,
        pairs=pairs,
        triples=subsets(counts if rule.angle == "interior" else (0,) * len(counts), 3),
        one_label=np.array([labels[i] == labels[j] for i, j in pairs.members.tolist()], dtype=bool),
        dist=dist,
        bearing=bearing,
        ground_length=ground_length,
    )


def _scene_sizes(truth: SceneGraph, pos: Floats, nodes: Subsets) -> Floats:
    """[F] max(rms distance of the nodes to their centroid, mean extent of nodes of known size, 1e-6)."""
    count = np.maximum(nodes.count, 1)
    centroid = nodes.sum_per_frame(pos.T) / count
    squared = ((pos - centroid.T[nodes.frame]) ** 2).sum(axis=1)
    spread = np.sqrt(nodes.sum_per_frame(squared) / count)
    extents = [[x for node in item.nodes for x in node.size or ()] for item in truth.frames]
    extent = [sum(of_frame) / len(of_frame) if of_frame else 0.0 for of_frame in extents]
    sizes: Floats = np.maximum(np.maximum(spread, extent), 1e-6)
    return sizes


def _between(a: Floats, b: Floats, frame: str) -> tuple[Floats, Floats, Floats]:
    """Distance, bearing (degrees) and distance in the ground plane from positions [..., D] to others, each [...]."""
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
    """Node, edge and graph term of one predicted graph."""
    return reward_group([graph], target, rule)[0]


def reward_group(
    graphs: Sequence[SceneGraph | GraphAbsence], target: Target, rule: GraphRule
) -> list[GraphScore]:
    """Node, edge and graph terms of the graphs of a group; a trace without a usable graph earns nothing."""
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
    """Why a graph earns nothing; None if it can be scored, "" where the trace's problems say it."""
    if isinstance(graph, GraphAbsence):
        return f"graph: {graph.value}" if graph is GraphAbsence.ABSENT else ""
    if graph.unit != target.unit:
        return f"graph: stated in {graph.unit}, the question asks for {target.unit}"
    coordinates = next((len(node.pos) for item in graph.frames for node in item.nodes), None)
    if coordinates is not None and target.pos.size and coordinates != target.pos.shape[1]:
        return f"graph: positions have {coordinates} coordinates, not {target.pos.shape[1]}"
    return None


def _score(group: Sequence[Stated], target: Target, rule: GraphRule) -> Iterator[GraphScore]:
    if not group:
        return
    nodes = _Nodes.of(group, target)
    node = _node_term(nodes, target, rule)
    edge = _edge_term(nodes, target, rule)
    has_edge = target.pairs.count > 0
    graph = np.where(has_edge, rule.node_weight * node + (1 - rule.node_weight) * edge, node)
    edges = edge[:, has_edge].mean(axis=1).tolist() if has_edge.any() else [None] * len(group)
    terms = zip(group, graph.mean(axis=1).tolist(), node.mean(axis=1).tolist(), edges, strict=True)
    for stated, mean, node_mean, edge_mean in terms:
        yield GraphScore(graph=mean, node=node_mean, edge=edge_mean, notes=tuple(_notes(stated, target)))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Nodes:
    """The nodes that the graphs of a group state, numbered through the group."""

    group: Sequence[Stated]
    first: list[int]
    """[G] number of every graph's first node."""
    pos: Floats
    """[M + 1, D]; the last is NaN and stands for a node that is not stated."""
    count: Ints
    """[G, F] nodes stated in each frame."""
    is_stated: Floats
    """[G, F] 1 where the frame is stated."""

    @classmethod
    def of(cls, group: Sequence[Stated], target: Target) -> _Nodes:
        dimension = target.pos.shape[1]
        pos = [place for stated in group for place in stated.pos]
        if not len(target.pos):  # without true nodes the dimension is not known, and positions do not matter
            pos = [(0.0,) * dimension] * len(pos)
        return cls(
            group=group,
            first=[*itertools.accumulate((len(stated.pos) for stated in group), initial=0)],
            pos=np.array([*pos, (np.nan,) * dimension]),
            count=np.array([[len(item.nodes) if item else 0 for item in stated.frames] for stated in group]),
            is_stated=np.array(
                [[item is not None for item in stated.frames] for stated in group], dtype=np.float64
            ),
        )

    @property
    def none(self) -> int:
        """The number that stands for a node that is not stated."""
        return len(self.pos) - 1

    def of_graph(self, g: int) -> Floats:
        """[M_g, D] positions of one graph."""
        return self.pos[self.first[g] : self.first[g + 1]]

    def numbers(self, g: int, match: Ints) -> Ints:
        """Matches [..., N] of one graph's nodes in the numbers of the group."""
        return np.where(match >= 0, match + self.first[g], self.none)

    def settled(self) -> Ints:
        """[G, N] the matches that names alone settle."""
        match = np.array([stated.settled for stated in self.group], dtype=np.intp).reshape(
            len(self.group), -1
        )
        return np.where(match >= 0, match + np.array(self.first[:-1])[:, None], self.none)


def _credit(error: Floats) -> Floats:
    """1 without error, 0 from an error of 1 on, and 0 for what is not stated (NaN)."""
    return np.where(error < 1.0, 1.0 - error, 0.0)


# --------------------------------------------------------------------------------------------------- nodes


def _node_term(nodes: _Nodes, target: Target, rule: GraphRule) -> Floats:
    """R_n per graph and selected frame [G, F]; 0 where the trace does not state the frame."""
    reach = rule.node_tolerance * target.size
    match = nodes.settled()
    for g, stated in enumerate(nodes.group):
        if stated.contested:
            match[g] = nodes.numbers(g, match_by_position(stated, nodes.of_graph(g), reach, target))
    away = geometry.distance(target.pos, nodes.pos[match]) / reach[target.nodes.frame]
    earned = target.nodes.sum_per_frame(_credit(away))
    total = np.array([_label_totals(stated, target) for stated in nodes.group])
    term: Floats = np.where(total > 0, earned / np.maximum(total, 1), 1.0) * nodes.is_stated
    return term


def _label_totals(stated: Stated, target: Target) -> list[int]:
    """[F] sum over the labels of either side of the larger number of nodes."""
    if stated.is_exact:
        return [len(true) for true in target.members]
    return [
        sum(map(len, true.values()))
        + sum(max(0, len(nodes) - len(true.get(label, ()))) for label, nodes in named.items())
        for true, named in zip(target.members, stated.members, strict=True)
    ]


# --------------------------------------------------------------------------------------------------- edges


def _edge_term(nodes: _Nodes, target: Target, rule: GraphRule) -> Floats:
    """R_e per graph and selected frame [G, F]; 0 where there is no pair or the trace does not state the frame."""
    best = np.zeros((len(nodes.group), len(target.times)))
    if not len(target.pairs) or nodes.none == 0:
        return best
    rows, owners = _rows(nodes, target, rule)
    said = _said_edges(nodes) if rule.edges != "derived" else None
    step = max(1, _MAX_ELEMENTS // max(len(target.pairs), 9 * len(target.triples)))
    terms = np.concatenate(
        [
            _edge_credit(rows[k : k + step], owners[k : k + step], nodes, said, target, rule)
            for k in range(0, len(rows), step)
        ]
    )
    for owner, term in zip(owners.tolist(), terms, strict=True):
        if term.sum() > best[owner].sum():
            best[owner] = term
    return best


def _rows(nodes: _Nodes, target: Target, rule: GraphRule) -> tuple[Ints, Ints]:
    """All matches to be tried [R, N], and which graph each belongs to [R]."""
    settled = nodes.settled()
    in_space = rule.angle == "interior" and target.pos.shape[1] == 3
    rows: list[Ints] = []
    owners: list[int] = []
    for g, stated in enumerate(nodes.group):
        found = settled[g][None]
        if stated.contested:
            match = matches_without_viewpoint(
                stated, nodes.of_graph(g), target, relative=rule.scale == "relative", in_space=in_space
            )
            found = nodes.numbers(g, match)
        rows.append(found)
        owners += [g] * len(found)
    return np.concatenate(rows), np.array(owners, dtype=np.intp)


def _edge_credit(
    rows: Ints, owners: Ints, nodes: _Nodes, said: _Said | None, target: Target, rule: GraphRule
) -> Floats:
    """R_e per match and selected frame [R, F]."""
    a, b = rows[:, target.pairs.members[:, 0]], rows[:, target.pairs.members[:, 1]]
    dist, bearing = _relations(a, b, nodes, said, target, rule)
    distance_credit = _distance_credit(dist, target, rule)
    pairs = np.maximum(target.pairs.count, _stated_pairs(nodes, rule)[owners])
    if rule.angle == "interior":
        earned = target.pairs.sum_per_frame(distance_credit) / np.maximum(pairs, 1)
        return _with_interior_angles(earned, rows, owners, nodes, said, target, rule)
    matched = (a != nodes.none) & (b != nodes.none)
    comparable = target.ground_length > COINCIDE
    delta = geometry.wrap(bearing - target.bearing)
    turn = geometry.circular_mean(np.where(comparable, delta, np.nan))
    angle_credit = _credit(np.abs(geometry.wrap(delta - turn[:, None])) / rule.angle_tolerance)
    # One pair in the whole clip agrees with its own rotation: its angle says nothing.
    counts = comparable & (matched.sum(axis=1) > 1)[:, None]
    credit = np.where(counts, 0.5 * distance_credit + 0.5 * angle_credit, distance_credit)
    term: Floats = target.pairs.sum_per_frame(credit) / np.maximum(pairs, 1)
    return term


def _relations(
    a: Ints, b: Ints, nodes: _Nodes, said: _Said | None, target: Target, rule: GraphRule
) -> tuple[Floats, Floats]:
    """Distance and bearing of pairs of stated nodes [R, K]; NaN where there is none."""
    if rule.edges == "stated":
        dist, bearing = np.full(a.shape, np.nan), np.full(a.shape, np.nan)
    else:
        dist, bearing, ground_length = _between(nodes.pos[a], nodes.pos[b], target.frame)
        bearing = np.where(ground_length > COINCIDE, bearing, np.nan)
    if said is None:
        return dist, bearing
    said_dist, said_bearing = said.between(a, b)
    return (
        np.where(np.isnan(said_dist), dist, said_dist),
        np.where(np.isnan(said_bearing), bearing, said_bearing),
    )


def _distance_credit(dist: Floats, target: Target, rule: GraphRule) -> Floats:
    """e_d of distances [R, K]."""
    true = np.broadcast_to(target.dist, dist.shape)
    if rule.scale == "relative":
        known = ~np.isnan(dist)
        dist, true = _relative(dist, known), _relative(true, known)
    return _credit(np.abs(dist - true) / (rule.distance_tolerance * np.maximum(true, 1e-6)))


def _relative(dist: Floats, known: np.ndarray) -> Floats:
    """Distances [R, K] divided by the mean of those that are known."""
    mean = np.where(known, dist, 0.0).sum(axis=1) / np.maximum(known.sum(axis=1), 1)
    relative: Floats = dist / np.maximum(mean, 1e-6)[:, None]
    return relative


def _stated_pairs(nodes: _Nodes, rule: GraphRule) -> Ints:
    """[G, F] pairs that each graph relates: its edges where only stated ones count, else all pairs of its nodes."""
    if rule.edges == "stated":
        return np.array(
            [[len(item.edges) if item else 0 for item in stated.frames] for stated in nodes.group]
        )
    return nodes.count * (nodes.count - 1) // 2


@dataclass(frozen=True, slots=True, kw_only=True)
class _Said:
    """The edges that the graphs of a group state, in both directions."""

    ends: int
    """Node numbers lie below."""
    keys: Ints
    """[2 E] ascending: number of the first node times `ends`, plus that of the second."""
    dist: Floats
    """[2 E] NaN where not stated."""
    bearing: Floats
    """[2 E] degrees, NaN where not stated."""

    def between(self, a: Ints, b: Ints) -> tuple[Floats, Floats]:
        """Distance and bearing that are said of pairs of nodes; NaN where nothing is."""
        wanted = a * self.ends + b
        place = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
        hit = self.keys[place] == wanted
        return np.where(hit, self.dist[place], np.nan), np.where(hit, self.bearing[place], np.nan)


def _said_edges(nodes: _Nodes) -> _Said | None:
    said: list[tuple[int, int, float | None, float | None]] = []
    number = 0
    for item in (item for stated in nodes.group for item in stated.frames if item is not None):
        if item.edges:
            index = {node.id: place for place, node in enumerate(item.nodes, number)}
            said += [(index[edge.a], index[edge.b], edge.dist, edge.angle) for edge in item.edges]
        number += len(item.nodes)
    if not said:
        return None
    table = np.array(said, dtype=np.float64)  # None becomes NaN
    ends = len(nodes.pos)
    a, b = table[:, 0].astype(np.intp), table[:, 1].astype(np.intp)
    keys = np.concatenate([a * ends + b, b * ends + a])
    order = np.argsort(keys)
    return _Said(
        ends=ends,
        keys=keys[order],
        dist=np.tile(table[:, 2], 2)[order],
        bearing=np.concatenate([table[:, 3], table[:, 3] + 180.0])[order],
    )


# ------------------------------------------------------------------------------------------ interior angles


def _with_interior_angles(
    earned: Floats,
    rows: Ints,
    owners: Ints,
    nodes: _Nodes,
    said: _Said | None,
    target: Target,
    rule: GraphRule,
) -> Floats:
    """R_e [R, F] from the distances' share [R, F] and the interior angles of all triples; frames of two nodes have none."""
    true = _interior_angles(target.pos[target.triples.members])
    members = rows[:, target.triples.members]
    found = _stated_angles(members, nodes, said, rule)
    credit = _credit(np.abs(found - true) / rule.angle_tolerance)
    unknown = np.isnan(true)
    if unknown.any():  # where true nodes coincide there is no angle to be right about
        known = ~np.isnan(found).all(axis=-1)
        known |= unknown.all(axis=-1) & _are_related(members, nodes, said, rule)
        credit = np.where(unknown, known[..., None], credit)
    credit = credit.mean(axis=-1)
    n = nodes.count[owners]
    in_truth = target.triples.count
    triples = np.maximum(in_truth, n * (n - 1) * (n - 2) // 6)
    angles = target.triples.sum_per_frame(credit) / np.maximum(triples, 1)
    return np.where(in_truth > 0, 0.5 * earned + 0.5 * angles, earned)


def _are_related(triples: Ints, nodes: _Nodes, said: _Said | None, rule: GraphRule) -> np.ndarray:
    """[R, L] whether all sides of stated nodes [R, L, 3] have a length, be it 0."""
    known = np.where(triples != nodes.none, 0.0, np.nan)
    if rule.edges == "stated":
        if said is None:
            return np.zeros(triples.shape[:-1], dtype=bool)
        known, _ = said.between(triples, np.roll(triples, -1, axis=-1))
    related: np.ndarray = ~np.isnan(known).any(axis=-1)
    return related


def _interior_angles(corners: Floats) -> Floats:
    """[..., 3] angles of triangles [..., 3, D], degrees; NaN at corners that coincide with another."""
    if corners.shape[-1] == 2:
        corners = np.concatenate([corners, np.zeros((*corners.shape[:-1], 1))], axis=-1)
    u, v = (np.roll(corners, turns, axis=-2) - corners for turns in (-1, 1))
    angle = np.degrees(np.arctan2(np.linalg.norm(np.cross(u, v), axis=-1), np.einsum("...d,...d->...", u, v)))
    apart = (np.linalg.norm(u, axis=-1) > COINCIDE) & (np.linalg.norm(v, axis=-1) > COINCIDE)
    return np.where(apart, angle, np.nan)


def _stated_angles(triples: Ints, nodes: _Nodes, said: _Said | None, rule: GraphRule) -> Floats:
    """[R, L, 3] interior angles of stated nodes [R, L, 3]: of stated sides where one is stated, else of positions."""
    corners = nodes.pos[triples]
    angles = _interior_angles(corners) if rule.edges != "stated" else np.full(triples.shape, np.nan)
    if said is None:
        return angles
    following = np.roll(triples, -1, axis=-1)
    stated, _ = said.between(triples, following)
    sides = np.where(np.isnan(stated), geometry.distance(corners, np.roll(corners, -1, axis=-2)), stated)
    if rule.edges == "stated":
        sides = stated
    before, opposite = np.roll(sides, 1, axis=-1), np.roll(sides, -1, axis=-1)
    around = 2 * sides * before
    cosine = np.divide(
        sides**2 + before**2 - opposite**2,
        around,
        out=np.full_like(sides, np.nan),
        where=around > COINCIDE**2,
    )
    by_sides = np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0)))
    return np.where(np.isnan(stated).all(axis=-1, keepdims=True), angles, by_sides)


# --------------------------------------------------------------------------------------------------- notes


def _notes(stated: Stated, target: Target) -> Iterator[str]:
    """What is missing from the prediction and what is too much."""
    if stated.is_exact:
        return
    unstated = [f"{t:g}" for t, item in zip(target.times, stated.frames, strict=True) if item is None]
    if unstated:
        yield f"graph: nothing stated for t = {', '.join(unstated)}"
    missing: Counter[str] = Counter()
    extra: Counter[str] = Counter()
    for item, true, named in zip(stated.frames, target.members, stated.members, strict=True):
        for label in true.keys() | named.keys() if item is not None else ():
            surplus = len(named.get(label, ())) - len(true.get(label, ()))
            if surplus:
                (extra if surplus > 0 else missing)[label] += abs(surplus)
    for counts, what in ((missing, "missing"), (extra, "not in the scene")):
        if counts:
            yield f"graph: {what}: {', '.join(f'{label} ({n})' for label, n in sorted(counts.items()))}"
