"""What a graph entails: the answer to a structured question that follows from the positions of a graph alone.

In: the `Query` of a record; its true graph, or one that a policy stated. Out: an `Answer`, None where nothing follows. The true
graph entails the true answer (`python -m videostr.data check` says where it does not). A stated graph that entails it would
have given the right answer; a stated answer that its own graph entails is consistent with it.

    family                            entailed by
    counting                          nodes at a time, or different ids of a whole clip; within a distance of the camera
    direction, direction_camera       coordinates in the axes of the camera: to the right, across its image, in depth
    direction_object                  an angle over the ground: stand at A, face B, where is C
    distance, distance_relative       the shortest or the longest of several distances
    distance_absolute                 a distance
    displacement, path_length, speed  distances between places of one object at different times
    motion_direction, ahead,          steps of an object between times: their axes, turn, length; another object along them;
    approach, speed_change            distances before and after
    order, presence                   the times whose frames have a node
    localisation, localisation_2d,    centre and extents, in a graph of the image whose nodes have a size
    tracking

A size, the area of a room and a box that turns are not in a graph, nor is a box of the image in a graph of metres.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from msgspec.structs import replace

from videostr.graph import frame_at, ground_axes
from videostr.options import letter_of
from videostr.types import Answer, AnswerKind, GraphFrame, Node, Query, SceneGraph

TOLERANCE_S = 0.05
"""Between a time that is asked about and that of the frame that stands for it, unless a caller knows the spacing of the times."""
DECIMALS = 1
"""To which lengths and speeds are asked for."""
LENGTH_UNITS = {"m": "m", "grid": "cells"}
"""Unit of a graph -> unit of its lengths."""
QUARTERS = ("front-right", "back-right", "back-left", "front-left")
"""Directions, clockwise from straight ahead."""
STANCES = (("right", "left"), ("right", "back", "left"), QUARTERS)
"""Sets of directions from where someone stands, clockwise from straight ahead: easy, medium, hard."""
BACK_DEG = 135.0
"""What is so far from straight ahead is at the back, where that is a direction of its own."""
STRAIGHT_DEG = 15.0
"""A way that turns by less goes straight on."""
UP = {"camera0": (0.0, -1.0, 0.0)}
"""Away from the ground by frame of reference; elsewhere it is a third axis."""


class _Unstated(Exception):
    """The graph lacks what the answer would follow from."""


def is_answerable(query: Query, graph: SceneGraph) -> bool:
    """Return whether a whole graph of this unit and frame of reference tells the answer, to questions of this family."""
    if query.family in BOXES:
        return graph.frame == "image"
    if query.family in LENGTHS and graph.unit not in LENGTH_UNITS:
        return False
    return query.family in RULES and not (graph.frame == "image" and query.axis == "depth")


def entailed(query: Query, graph: SceneGraph, *, tolerance_s: float = TOLERANCE_S) -> Answer | None:
    """Return the answer that follows from a graph; None where none does.

    An object of the query is the node of its id, or else the only one of its label, if no frame has two of them: instance
    numbers of a stated graph are only names, so give matched nodes the ids of the truth where a label has several.

    Args:
        query: what is asked.
        graph: with its frame of reference, which graphs in traces lack.
        tolerance_s: most seconds between a time of the query and that of the frame taken for it; half the spacing of the
            selected times for graphs that round them.
    """
    if not is_answerable(query, graph):
        return None
    try:
        return RULES[query.family](query, _Scene(graph, tolerance_s))
    except _Unstated:
        return None


class _Scene:
    """A graph, asked for places at times."""

    def __init__(self, graph: SceneGraph, tolerance_s: float) -> None:
        self.graph = graph
        self._tolerance_s = tolerance_s

    def frame(self, t: float) -> GraphFrame:
        found = frame_at(self.graph, t, self._tolerance_s)
        if found is None:
            raise _Unstated
        return found

    def node(self, name: str, t: float) -> Node:
        found = find_node(self.graph, name, self.frame(t))
        if found is None:
            raise _Unstated
        return found

    def place(self, name: str, t: float) -> tuple[float, ...]:
        return self.node(name, t).pos

    def times_of(self, name: str) -> list[float]:
        """Return the times whose frames have an object, ascending; at least one."""
        times = [frame.t for frame in self.graph.frames if find_node(self.graph, name, frame) is not None]
        if not times:
            raise _Unstated
        return times

    def vertical(self, up: tuple[float, float, float] | None) -> np.ndarray:
        """Return [3] the direction away from the ground."""
        return np.array(up or UP.get(self.graph.frame, (0.0, 0.0, 1.0)))


def find_node(graph: SceneGraph, name: str, frame: GraphFrame) -> Node | None:
    """Return the node of an id in a frame of a graph; where the label never has two nodes at a time, the one of the label."""
    label = name.rpartition(".")[0]
    same = [node for node in frame.nodes if node.label == label]
    by_id = next((node for node in same if node.id == name), None)
    if by_id is not None or len(same) != 1:
        return by_id
    at_once = (sum(node.label == label for node in each.nodes) for each in graph.frames)
    return same[0] if max(at_once) == 1 else None


def _choice(query: Query, value: str | tuple[str, ...]) -> Answer:
    if value not in query.options:
        raise _Unstated
    return Answer(kind=AnswerKind.CHOICE, value=letter_of(query.options.index(value)))


# ----------------------------------------------------------------------------------------------- presence, counts


def _counting(query: Query, scene: _Scene) -> Answer:
    if query.times:
        frames: Sequence[GraphFrame] = [scene.frame(query.times[0])]
    else:
        frames = scene.graph.frames
    nodes = [node for frame in frames for node in frame.nodes if query.label in ("", node.label)]
    if query.within_m is not None:
        nodes = [node for node in nodes if math.hypot(*_seen(query, scene, node.pos)) < query.within_m]
    return Answer(kind=AnswerKind.NUMBER, value=float(len({node.id for node in nodes})))


def _order(query: Query, scene: _Scene) -> Answer:
    """By first appearance: the order of all objects, or the first of them, as the options say."""
    firsts = {name: scene.times_of(name)[0] for name in query.objects}
    if len(set(firsts.values())) < len(firsts):
        raise _Unstated
    ranked = tuple(sorted(firsts, key=firsts.__getitem__))
    return _choice(query, ranked if isinstance(query.options[0], tuple) else ranked[0])


def _presence(query: Query, scene: _Scene) -> Answer:
    times = scene.times_of(query.objects[0])
    return Answer(kind=AnswerKind.SPAN, value=(times[0], times[-1]), unit="s")


# ----------------------------------------------------------------------------------------------------- directions


def _seen(query: Query, scene: _Scene, pos: tuple[float, ...]) -> tuple[float, float, float]:
    """Return a position to the right of, below and in front of the camera; below is 0 in two dimensions."""
    if query.camera is None:
        right, forward = ground_axes(scene.graph.frame)
        return pos[right], pos[1] if forward == 2 else 0.0, pos[forward]
    if len(pos) != 3:
        raise _Unstated
    right, down, forward = (np.reshape(query.camera, (3, 4)) @ (*pos, 1.0)).tolist()
    return right, down, forward


def _direction_camera(query: Query, scene: _Scene) -> Answer:
    a, b = (_seen(query, scene, scene.place(name, query.times[0])) for name in query.objects)
    if query.axis == "depth":
        gap, words = a[2] - b[2], ("nearer", "farther")
    elif query.axis == "image" and scene.graph.frame != "image":
        if min(a[2], b[2]) <= 0:  # behind the camera
            raise _Unstated
        gap, words = a[0] / a[2] - b[0] / b[2], ("left", "right")
    else:
        gap, words = a[0] - b[0], ("left", "right")
    if gap == 0:
        raise _Unstated
    return _choice(query, words[int(gap > 0)])


def _direction_object(query: Query, scene: _Scene) -> Answer:
    here, ahead, there = (np.array(scene.place(name, query.times[0])) for name in query.objects)
    facing, target = (np.append(to - here, [0.0] * (3 - len(here))) for to in (ahead, there))
    up = scene.vertical(query.up)
    right = float(np.cross(facing, up) @ target)
    forward = float((facing - (facing @ up) * up) @ target)
    if not (right or forward):
        raise _Unstated
    directions = next((each for each in STANCES if set(each) == {*query.options}), QUARTERS)
    return _choice(query, direction_at(math.degrees(math.atan2(right, forward)), directions))


def direction_at(angle: float, directions: Sequence[str]) -> str:
    """Return which of `STANCES[i]` an angle belongs to, degrees clockwise from straight ahead."""
    if len(directions) == 3 and abs((angle + 180) % 360 - 180) >= BACK_DEG:
        return directions[1]
    if len(directions) < 4:
        return directions[0] if 0 <= angle % 360 < 180 else directions[-1]
    return directions[min(3, int(angle % 360 // 90))]  # -1e-15 % 360 is 360


# ------------------------------------------------------------------------------------------------------ distances


def path(places: Sequence[Sequence[float]]) -> float:
    """Return the length of the way through positions, each [D], in their order."""
    return sum(math.dist(a, b) for a, b in pairwise(places))


def _measured(query: Query, scene: _Scene, value: float, per: str = "") -> Answer:
    """Return a length or a speed: the option that comes nearest by ratio, or the number."""
    if query.options:
        if value <= 0:
            raise _Unstated
        nearest = min(query.options, key=lambda option: abs(math.log(float(option) / value)))  # type: ignore[arg-type]
        return Answer(kind=AnswerKind.CHOICE, value=letter_of(query.options.index(nearest)))
    unit = LENGTH_UNITS[scene.graph.unit] + per
    return Answer(kind=AnswerKind.NUMBER, value=round(value, DECIMALS), unit=unit)


def _distance_relative(query: Query, scene: _Scene) -> Answer:
    target, *others = (scene.place(name, query.times[0]) for name in query.objects)
    distances = [math.dist(target, place) for place in others]
    best = (min if query.axis == "nearest" else max)(distances)
    if distances.count(best) > 1:
        raise _Unstated
    return _choice(query, query.objects[1 + distances.index(best)])


def _distance_absolute(query: Query, scene: _Scene) -> Answer:
    a, b = (scene.place(name, query.times[0]) for name in query.objects)
    return _measured(query, scene, math.dist(a, b))


def _displacement(query: Query, scene: _Scene) -> Answer:
    a, b = (scene.place(query.objects[0], t) for t in query.times)
    return _measured(query, scene, math.dist(a, b))


def _way(query: Query, scene: _Scene) -> float:
    """Return the length of the way through all frames from the start to the end."""
    start, end = query.times
    name = query.objects[0]
    between = [t for t in scene.times_of(name) if start < t < end]
    return path([scene.place(name, t) for t in (start, *between, end)])


def _path_length(query: Query, scene: _Scene) -> Answer:
    return _measured(query, scene, _way(query, scene))


def _speed(query: Query, scene: _Scene) -> Answer:
    return _measured(query, scene, _way(query, scene) / (query.times[1] - query.times[0]), "/s")


# --------------------------------------------------------------------------------------------------------- motion


def turned(up: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
    """Return the angle from one vector to another, degrees clockwise seen from above, (-180, 180]; all [3]."""
    level = a - (a @ up) * up
    return math.degrees(math.atan2(float(np.cross(level, up) @ b), float(level @ b)))


def _steps(query: Query, scene: _Scene, name: str) -> list[np.ndarray]:
    """Return what an object moves between the times that are asked about, each [3]."""
    places = [np.array(scene.place(name, t)) for t in query.times]
    return [np.append(b - a, [0.0] * (3 - len(a))) for a, b in pairwise(places)]


def _motion_direction(query: Query, scene: _Scene) -> Answer:
    """By `Query.axis`: across the image, towards another object, against its own way before, or in the camera's axes."""
    name, start = query.objects[0], query.times[0]
    if query.axis == "image":
        before, after = scene.place(name, start), scene.place(name, query.times[-1])
        shift = _across(query, scene, after, query.camera_end) - _across(query, scene, before, query.camera)
        if shift == 0:
            raise _Unstated
        return _choice(query, ("left", "right")[int(shift > 0)])
    steps = _steps(query, scene, name)
    if query.axis == "turn":
        angle = turned(scene.vertical(query.up), steps[0], steps[1])
        return _choice(query, "straight" if abs(angle) < STRAIGHT_DEG else "right" if angle > 0 else "left")
    here = np.array(scene.place(name, start))
    if query.axis == "object":
        along = float((np.array(scene.place(query.objects[1], start)) - here) @ steps[0][: len(here)])
        if along == 0:
            raise _Unstated
        return _choice(query, ("away", "towards")[int(along > 0)])
    before, after = (_seen(query, scene, tuple(place)) for place in (here, here + steps[0][: len(here)]))
    right, forward = after[0] - before[0], after[2] - before[2]
    if abs(right) == abs(forward):
        raise _Unstated
    if abs(right) > abs(forward):
        return _choice(query, ("left", "right")[int(right > 0)])
    return _choice(query, ("towards", "away")[int(forward > 0)])


def _across(query: Query, scene: _Scene, pos: tuple[float, ...], camera: tuple[float, ...] | None) -> float:
    """Return how far to the right a position is in the image of a camera."""
    right, _, forward = _seen(replace(query, camera=camera), scene, pos)
    if scene.graph.frame == "image":
        return right
    if forward <= 0:  # behind the camera
        raise _Unstated
    return right / forward


def _ahead(query: Query, scene: _Scene) -> Answer:
    """Whether the second object is in front of the first or behind it, along the way that the first one moves."""
    (way,) = _steps(query, scene, query.objects[0])
    a, b = (np.array(scene.place(name, query.times[-1])) for name in query.objects)
    along = float((b - a) @ way[: len(a)])
    if along == 0:
        raise _Unstated
    return _choice(query, "ahead" if along > 0 else "behind")


def _approach(query: Query, scene: _Scene) -> Answer:
    before, after = (math.dist(*(scene.place(name, t) for name in query.objects)) for t in query.times)
    if before == after:
        raise _Unstated
    return _choice(query, "closer" if after < before else "apart")


def _speed_change(query: Query, scene: _Scene) -> Answer:
    steps, times = _steps(query, scene, query.objects[0]), query.times
    before, after = (
        float(np.linalg.norm(s)) / (b - a) for s, (a, b) in zip(steps, pairwise(times), strict=True)
    )
    if before == after:
        raise _Unstated
    return _choice(query, "faster" if after > before else "slower")


# ---------------------------------------------------------------------------------------------------------- boxes


def _box(node: Node) -> tuple[float, ...]:
    if node.size is None:
        raise _Unstated
    low = (centre - side / 2 for centre, side in zip(node.pos, node.size, strict=True))
    high = (centre + side / 2 for centre, side in zip(node.pos, node.size, strict=True))
    return (*low, *high)


def _localisation(query: Query, scene: _Scene) -> Answer:
    box = _box(scene.node(query.objects[0], query.times[0]))
    return Answer(kind=AnswerKind.BOX2D, value=box, unit="px")


def _tracking(query: Query, scene: _Scene) -> Answer:
    boxes = tuple(_box(scene.node(query.objects[0], t)) for t in query.times)
    return Answer(kind=AnswerKind.TRACK, value=boxes, unit="px")


Rule = Callable[[Query, _Scene], Answer]
LENGTHS: dict[str, Rule] = {
    "distance_absolute": _distance_absolute,
    "displacement": _displacement,
    "path_length": _path_length,
    "speed": _speed,
}
BOXES: dict[str, Rule] = {
    "localisation": _localisation,
    "localisation_2d": _localisation,
    "tracking": _tracking,
}
RULES: dict[str, Rule] = {
    "counting": _counting,
    "direction": _direction_camera,
    "direction_camera": _direction_camera,
    "direction_object": _direction_object,
    "distance": _distance_relative,
    "distance_relative": _distance_relative,
    "order": _order,
    "presence": _presence,
    "motion_direction": _motion_direction,
    "ahead": _ahead,
    "approach": _approach,
    "speed_change": _speed_change,
    **LENGTHS,
    **BOXES,
}
"""By question family."""
