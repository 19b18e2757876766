"""The reasoning of a reference trace: why its answer follows from its graph, in a line or two of text.

In: a structured question and the graph as it is written. Out: the nodes that matter, quoted, then the comparison or the
arithmetic, then the conclusion in the words of the option; "" where the graph does not tell. Every position is one of the graph;
what is computed from them is rounded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from videostr.graph import frame_at, ground_axes
from videostr.marks import name_of_mark
from videostr.options import text_of
from videostr.query import BOXES, TOLERANCE_S, UP, entailed, find_node, is_answerable, path, turned
from videostr.types import Answer, AnswerKind, Node, Query, Record, SceneGraph

DECIMALS = 2
"""Of computed numbers."""


def reasoning(record: Record, graph: SceneGraph) -> str:
    """Return why the true answer follows from `graph`; "" where it does not, and for questions without a structure.

    For a box that a graph without extents cannot tell, the places of its object are quoted.

    Args:
        record: what is asked, with its query and true answer.
        graph: as the trace states it; an incomplete one may not tell.
    """
    query = record.query
    if query is None or query.family not in STEPS:
        return ""
    if query.family in BOXES and not is_answerable(query, graph):
        return _places(_Told(query, graph))
    found = entailed(query, graph)
    if found is None or found.value != record.answer.value:
        return ""
    facts = STEPS[query.family](_Told(query, graph))
    return f"{_marked(record)}{facts} So {_conclusion(record, found)}."


def _marked(record: Record) -> str:
    """Return which nodes the marks stand for that the question names: "(object 1 is car.2, object 2 is car.5) "; "" for none."""
    asked = record.query.objects if record.query else ()
    found = [f"{name_of_mark(mark.text)} is {mark.object}" for mark in record.marks if mark.object in asked]
    return f"({', '.join(found)}) " if found else ""


class _Told:
    """The part of a graph that a question is about, as text."""

    def __init__(self, query: Query, graph: SceneGraph) -> None:
        self.query = query
        self.graph = graph

    def node(self, name: str, t: float) -> Node:
        """Return a node that the graph is known to have."""
        frame = frame_at(self.graph, t, TOLERANCE_S)
        nodes = () if frame is None else frame.nodes
        label = name.rpartition(".")[0]
        by_id = [node for node in nodes if node.id == name]
        return (by_id or [node for node in nodes if node.label == label])[0]

    def quoted(self, name: str, t: float) -> str:
        """Return a node as its graph has it: "red_ball.1 [4,7]"."""
        node = self.node(name, t)
        return f"{node.id} [{','.join(_number(x) for x in node.pos)}]"

    def at(self, t: float, names: Sequence[str]) -> str:
        """Return nodes of one time: "t 3: red_ball.1 [4,7], blue_ball.1 [2,5]."."""
        return f"t {_number(t)}: {', '.join(self.quoted(name, t) for name in names)}."

    def seen(self, name: str, t: float) -> tuple[float, float]:
        """Return a position to the right of and in front of the camera that the question is about."""
        pos = self.node(name, t).pos
        if self.query.camera is None:
            right, forward = ground_axes(self.graph.frame)
            return pos[right], pos[forward]
        right_, _, forward_ = np.reshape(self.query.camera, (3, 4)) @ (*pos, 1.0)
        return float(right_), float(forward_)


def _number(value: float) -> str:
    """Return a number as the graph writes it."""
    return str(int(value)) if value == int(value) else repr(float(value))


def _rounded(value: float) -> str:
    return _number(round(value, DECIMALS))


def _compared(a: float, b: float) -> str:
    """Return "4 > 7" or "4 < 7", with as many digits as it takes to tell them apart."""
    digits = DECIMALS
    while round(a, digits) == round(b, digits) and digits < 9:
        digits += 1
    return f"{_number(round(a, digits))} {'>' if a > b else '<'} {_number(round(b, digits))}"


# ------------------------------------------------------------------------------------------- facts, by family


def _counting(told: _Told) -> str:
    query = told.query
    t = query.times[0] if query.times else None
    frames = told.graph.frames if t is None else [frame_at(told.graph, t, TOLERANCE_S)]
    ids = {
        node.id: None
        for frame in frames
        if frame is not None
        for node in frame.nodes
        if query.label in ("", node.label)
    }
    where = "all times" if t is None else f"t {_number(t)}"
    if query.within_m is not None:
        return f"{where}: {', '.join(_within(told, query.within_m))}."
    return f"{where}: {', '.join(ids) or 'none'}."


def _within(told: _Told, limit_m: float) -> list[str]:
    """Return the nodes of the time that is asked about, each with its distance from the camera."""
    frame = frame_at(told.graph, told.query.times[0], TOLERANCE_S)
    found = []
    for node in () if frame is None else frame.nodes:
        if told.query.label in ("", node.label):
            pos = node.pos
            if told.query.camera is not None:
                pos = tuple(np.reshape(told.query.camera, (3, 4)) @ (*pos, 1.0))
            found.append(f"{node.id} {_compared(math.hypot(*pos), limit_m)}")
    return found or ["none"]


def _direction(told: _Told) -> str:
    query, (t, *_) = told.query, told.query.times
    a, b = (told.seen(name, t) for name in query.objects)
    facts = told.at(t, query.objects)
    if query.axis == "depth":
        return f"{facts} Away from the camera: {_compared(a[1], b[1])}."
    if query.axis == "image" and told.graph.frame != "image":
        return f"{facts} To the right in the image: {_compared(a[0] / a[1], b[0] / b[1])}."
    return f"{facts} To the right: {_compared(a[0], b[0])}."


def _direction_object(told: _Told) -> str:
    query, (t, *_) = told.query, told.query.times
    here, ahead, there = (np.array(told.node(name, t).pos) for name in query.objects)
    facing, target = (np.append(to - here, [0.0] * (3 - len(here))) for to in (ahead, there))
    default = (0.0, -1.0, 0.0) if told.graph.frame == "camera0" else (0.0, 0.0, 1.0)
    up = np.array(query.up or default)
    length = float(np.linalg.norm(facing - (facing @ up) * up))
    right = float(np.cross(facing, up) @ target) / length
    forward = float((facing - (facing @ up) * up) @ target) / length
    return (
        f"{told.at(t, query.objects)} From {query.objects[0]} towards {query.objects[1]}, {query.objects[2]} is "
        f"{_rounded(forward)} ahead and {_rounded(right)} to the right."
    )


def _distance_relative(told: _Told) -> str:
    query, (t, *_) = told.query, told.query.times
    target, *others = query.objects
    place = told.node(target, t).pos
    distances = [f"{name} {_apart(place, told.node(name, t).pos)}" for name in others]
    return f"{told.at(t, query.objects)} From {target}: {', '.join(distances)}."


def _distance_absolute(told: _Told) -> str:
    query, (t, *_) = told.query, told.query.times
    a, b = (told.node(name, t).pos for name in query.objects)
    return f"{told.at(t, query.objects)} Apart: {_apart(a, b)}."


def _apart(a: Sequence[float], b: Sequence[float]) -> str:
    """Return the distance of two positions, step by step: "sqrt((4 - 7)^2 + (5 - 1)^2) = sqrt(3^2 + 4^2) = 5"."""
    pairs = list(zip(a, b, strict=True))
    stated = " + ".join(f"({_number(p)} - {_number(q)})^2" for p, q in pairs)
    steps = " + ".join(f"{_rounded(abs(p - q))}^2" for p, q in pairs)
    return f"sqrt({stated}) = sqrt({steps}) = {_rounded(math.dist(a, b))}"


def _displacement(told: _Told) -> str:
    name, (start, end) = told.query.objects[0], told.query.times
    a, b = told.node(name, start).pos, told.node(name, end).pos
    return f"t {_number(start)}: {told.quoted(name, start)}, t {_number(end)}: {told.quoted(name, end)}. Moved: {_apart(a, b)}."


def _way(told: _Told) -> str:
    """Return the way between two times, place by place."""
    name, (start, end) = told.query.objects[0], told.query.times
    times = [
        frame.t
        for frame in told.graph.frames
        if start <= frame.t <= end and find_node(told.graph, name, frame) is not None
    ]
    places = [told.node(name, t).pos for t in times]
    quoted = ", ".join(f"t {_number(t)} {told.quoted(name, t)}" for t in times)
    steps = " + ".join(_rounded(math.dist(a, b)) for a, b in pairwise(places))
    return f"{quoted}. Way: {steps} = {_rounded(path(places))}."


def _speed(told: _Told) -> str:
    start, end = told.query.times
    return f"{_way(told)} Time: {_rounded(end - start)}."


def _order(told: _Told) -> str:
    firsts = {
        name: next(frame.t for frame in told.graph.frames if find_node(told.graph, name, frame) is not None)
        for name in told.query.objects
    }
    return f"First seen: {', '.join(f'{name} at {_number(t)}' for name, t in firsts.items())}."


def _moved(told: _Told) -> tuple[str, list[np.ndarray]]:
    """Return the places of the first object at the times that are asked about, quoted, and what it moves between them, [3]."""
    name, times = told.query.objects[0], told.query.times
    places = [np.array(told.node(name, t).pos) for t in times]
    quoted = ", ".join(f"t {_number(t)}: {told.quoted(name, t)}" for t in times)
    return f"{quoted}.", [np.append(b - a, [0.0] * (3 - len(a))) for a, b in pairwise(places)]


def _motion_direction(told: _Told) -> str:
    query = told.query
    facts, steps = _moved(told)
    if query.axis == "image":
        before, after = (
            _across(told, t, camera)
            for t, camera in ((query.times[0], query.camera), (query.times[-1], query.camera_end))
        )
        return f"{facts} To the right in the image: {_compared(before, after)}."
    shown = ", ".join(f"[{','.join(_rounded(float(x)) for x in step)}]" for step in steps)
    if query.axis == "turn":
        up = np.array(query.up or UP.get(told.graph.frame, (0.0, 0.0, 1.0)))
        return f"{facts} Moved: {shown}. Turned by {_rounded(turned(up, *steps))} degrees to the right."
    if query.axis == "object":
        a, b = (np.array(told.node(name, query.times[0]).pos) for name in query.objects)
        along = float((b - a) @ steps[0][: len(a)] / np.linalg.norm(steps[0]))
        other = told.at(query.times[0], query.objects[1:])
        return f"{facts} {other} Along its way, the other is {_rounded(along)} ahead."
    camera = np.eye(3, 4) if query.camera is None else np.reshape(query.camera, (3, 4))
    seen = steps[0] if query.camera is None else camera[:, :3] @ steps[0]
    right, forward = (float(seen[axis]) for axis in ground_axes(told.graph.frame))
    return f"{facts} Moved: {shown}, {_rounded(right)} to the right of the camera and {_rounded(forward)} away from it."


def _across(told: _Told, t: float, camera: tuple[float, ...] | None) -> float:
    """Return how far to the right the first object is in the image of a camera."""
    pos = told.node(told.query.objects[0], t).pos
    if camera is None:
        return pos[0] if told.graph.frame == "image" else pos[0] / pos[2]
    right, _, forward = np.reshape(camera, (3, 4)) @ (*pos, 1.0)
    return float(right / forward)


def _ahead(told: _Told) -> str:
    facts, (step,) = _moved(told)
    a, b = (np.array(told.node(name, told.query.times[-1]).pos) for name in told.query.objects)
    along = float((b - a) @ step[: len(a)] / np.linalg.norm(step))
    other = told.at(told.query.times[-1], told.query.objects[1:])
    return f"{facts} {other} Along its way, the other is {_rounded(along)} ahead."


def _approach(told: _Told) -> str:
    query = told.query
    facts = " ".join(told.at(t, query.objects) for t in query.times)
    before, after = (math.dist(*(told.node(name, t).pos for name in query.objects)) for t in query.times)
    return f"{facts} Apart: {_compared(before, after)}."


def _speed_change(told: _Told) -> str:
    facts, steps = _moved(told)
    spans = [b - a for a, b in pairwise(told.query.times)]
    before, after = (float(np.linalg.norm(step)) / span for step, span in zip(steps, spans, strict=True))
    return f"{facts} Speeds: {_compared(before, after)}."


def _presence(told: _Told) -> str:
    name = told.query.objects[0]
    times = [frame.t for frame in told.graph.frames if find_node(told.graph, name, frame) is not None]
    return f"{name} at {', '.join(_number(t) for t in times)}."


def _places(told: _Told) -> str:
    """Return where an object is at the times that are asked about; "" where the graph lacks one."""
    name, frames = told.query.objects[0], [frame_at(told.graph, t, TOLERANCE_S) for t in told.query.times]
    if not all(frame is not None and find_node(told.graph, name, frame) is not None for frame in frames):
        return ""
    return f"{', '.join(f't {_number(t)}: {told.quoted(name, t)}' for t in told.query.times)}."


def _boxes(told: _Told) -> str:
    name = told.query.objects[0]
    shown = []
    for t in told.query.times:
        node = told.node(name, t)
        size = "" if node.size is None else f" of {' x '.join(_number(x) for x in node.size)}"
        shown.append(f"t {_number(t)}: {told.quoted(name, t)}{size}")
    return f"{', '.join(shown)}."


STEPS: dict[str, Callable[[_Told], str]] = {
    "counting": _counting,
    "direction": _direction,
    "direction_camera": _direction,
    "direction_object": _direction_object,
    "distance": _distance_relative,
    "distance_relative": _distance_relative,
    "distance_absolute": _distance_absolute,
    "displacement": _displacement,
    "path_length": _way,
    "speed": _speed,
    "order": _order,
    "presence": _presence,
    "motion_direction": _motion_direction,
    "ahead": _ahead,
    "approach": _approach,
    "speed_change": _speed_change,
    "localisation": _boxes,
    "localisation_2d": _boxes,
    "tracking": _boxes,
}
"""By question family: the facts and what is computed from them."""


def _conclusion(record: Record, answer: Answer) -> str:
    """Return the answer in words: that of an option for a choice."""
    if answer.kind is AnswerKind.CHOICE:
        return text_of(record.options, str(answer.value))
    if isinstance(answer.value, float):
        return f"{_number(answer.value)} {answer.unit}".strip()
    return "it is as stated"
