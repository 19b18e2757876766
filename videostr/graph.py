"""Scene graphs: the JSON contract (version 1) and the geometry of nodes and edges.

In: JSON text of a trace or of a dataset row. Out: `SceneGraph`, or `InvalidGraph` with the reason. The way back is
`to_json`. Positions are [N, D] with D = 2 or 3, in the unit and frame of reference of the graph.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from videostr.errors import DataError
from videostr.types import Edge, GraphAbsence, GraphFrame, Node, SceneGraph

UNITS = ("m", "px", "grid")
FRAMES_OF_REFERENCE = ("camera0", "floor", "image")
MAX_BYTES = 64 * 1024
MAX_FRAMES = 16
MAX_NODES = 64
MAX_EDGES = 512
MAX_DEPTH = 6
MAX_ABS = 1e6

# Possessive quantifiers and the optional closing quote keep this linear on text full of unclosed strings.
_BRACKET_OR_STRING = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[\[\]{}]', re.DOTALL)


class InvalidGraph(DataError):
    """A graph breaks the contract."""

    def __init__(self, reason: GraphAbsence, detail: str) -> None:
        super().__init__(f"{reason.value}: {detail}")
        self.args = (reason, detail)  # what it is pickled by
        self.reason = reason
        self.detail = detail


def from_json(text: str, *, frame: str = "", truth: bool = False) -> SceneGraph:
    """Read a graph written by a policy or stored in a dataset.

    Args:
        text: JSON as in method, section 2.
        frame: frame of reference, which the contract leaves to the record; "" for a graph found in a trace.
        truth: read the nodes' `size` and the frames' `view`, which only true graphs have, beyond the contract.

    Raises:
        InvalidGraph: with the reason and the first offence found.
    """
    if size_in_bytes(text) > MAX_BYTES:
        raise InvalidGraph(
            GraphAbsence.TOO_LARGE, f"{size_in_bytes(text)} bytes of JSON, at most {MAX_BYTES}"
        )
    graph = None if truth or frame else _read_plain(text)
    return graph or _read_fully(text, frame, truth)


def _read_fully(text: str, frame: str, truth: bool) -> SceneGraph:
    try:
        # Integers are read as floats: int() of thousands of digits raises, and takes quadratic time.
        graph = from_value(json.loads(text, parse_int=float), frame=frame, truth=truth)
    except (ValueError, RecursionError, InvalidGraph) as error:
        _check_depth(text)
        if isinstance(error, InvalidGraph):
            raise
        raise InvalidGraph(GraphAbsence.BAD_JSON, str(error)) from None
    if text.count("[") + text.count("{") != _brackets(graph):  # there is more in it than the contract names
        _check_depth(text)
    return graph


def from_value(value: object, *, frame: str = "", truth: bool = False) -> SceneGraph:
    """Do as `from_json`, for JSON that is already decoded into dicts, lists, strings and numbers."""
    if not isinstance(value, dict):
        raise _bad(f"the graph is {_brief(value)}, must be an object with unit and frames")
    if frame and frame not in FRAMES_OF_REFERENCE:
        raise _bad(f"frame of reference {frame!r} must be one of {', '.join(FRAMES_OF_REFERENCE)}")
    unit = value.get("unit")
    if unit not in UNITS:
        raise _bad(f"unit is {_brief(unit)}, must be one of {', '.join(UNITS)}")
    frames = [_frame(item, truth) for item in _frame_values(value)]
    dimensions = {len(node.pos) for item in frames for node in item.nodes}
    if len(dimensions) > 1:
        raise _bad("some positions have 2 coordinates and others 3")
    if frame == "camera0" and 2 in dimensions:
        raise _bad("positions have 2 coordinates, camera0 needs x, y and z")
    return SceneGraph(unit=unit, frame=frame, frames=tuple(sorted(frames, key=_time)))


def to_json(graph: SceneGraph, *, truth: bool = False, decimals: int | None = None) -> str:
    """Return compact JSON of a graph: same graph, same text.

    Args:
        graph: what to write; edges are written where the graph has them, the frame of reference never is.
        truth: also write the nodes' `size` and the frames' `view`, for datasets; reference traces leave them out.
        decimals: digits kept after the point; None keeps every one, so that `from_json` gives the same graph.
    """

    def number(x: float) -> float | int:
        kept = x if decimals is None else round(x, decimals)
        return int(kept) if kept == int(kept) else kept

    def node_value(node: Node) -> dict[str, Any]:
        value: dict[str, Any] = {"id": node.id, "pos": [number(x) for x in node.pos]}
        if truth and node.size is not None:
            value["size"] = [number(x) for x in node.size]
        return value

    def edge_value(edge: Edge) -> dict[str, Any]:
        numbers = {"dist": edge.dist, "angle": edge.angle}
        return {"a": edge.a, "b": edge.b} | {k: number(x) for k, x in numbers.items() if x is not None}

    def frame_value(item: GraphFrame) -> dict[str, Any]:
        value: dict[str, Any] = {"t": number(item.t), "nodes": [node_value(node) for node in item.nodes]}
        if item.edges:
            value["edges"] = [edge_value(edge) for edge in item.edges]
        if truth and item.view is not None:
            value["view"] = list(item.view)
        return value

    value = {"unit": graph.unit, "frames": [frame_value(item) for item in graph.frames]}
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


# ------------------------------------------------------------------------------------------------ geometry


def view_of(projection: NDArray[np.float64]) -> tuple[float, ...] | None:
    """Return `GraphFrame.view` of a [3, 4] projection; None where a graph may not have one of the numbers."""
    if not (np.abs(projection) <= MAX_ABS).all():  # also of NaN
        return None
    return tuple(float(f"{x:.7g}") for x in projection.ravel())


def ground_axes(frame: str) -> tuple[int, int]:
    """Return indices of the right and the forward coordinate: (x, z) in camera0, (x, y) otherwise."""
    return (0, 2) if frame == "camera0" else (0, 1)


def ground(positions: NDArray[np.float64], frame: str) -> NDArray[np.float64]:
    """Return ground-plane coordinates (right, forward) of positions [..., D], as [..., 2]."""
    return positions[..., list(ground_axes(frame))]


def distance(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the euclidean distance over all coordinates of positions [..., D], as [...]."""
    difference = b - a
    length: NDArray[np.float64] = np.sqrt(np.einsum("...d,...d->...", difference, difference))
    return length


def bearing(a: NDArray[np.float64], b: NDArray[np.float64], frame: str) -> NDArray[np.float64]:
    """Return the bearing a -> b: atan2(forward difference, right difference), degrees in (-180, 180]; 0 where both coincide."""
    right, forward = ground_axes(frame)
    return wrap(np.degrees(np.arctan2(b[..., forward] - a[..., forward], b[..., right] - a[..., right])))


_Degrees = TypeVar("_Degrees", float, NDArray[np.float64])


def wrap(degrees: _Degrees) -> _Degrees:
    """Return the same direction in (-180, 180]."""
    return 180.0 - (180.0 - degrees) % 360.0


def circular_mean(degrees: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the direction [...] of the mean unit vector of angles [..., K], degrees; 0 below a length of 1e-9; NaN left out."""
    radians = np.radians(degrees)
    known = ~np.isnan(radians)
    sine, cosine = (np.sum(part(radians), axis=-1, where=known) for part in (np.sin, np.cos))
    length = np.hypot(sine, cosine) / np.maximum(known.sum(axis=-1), 1)
    return np.where(length >= 1e-9, np.degrees(np.arctan2(sine, cosine)), 0.0)


# ------------------------------------------------------------------------------------------------- frames


def frame_at(graph: SceneGraph | None, t: float, tolerance: float) -> GraphFrame | None:
    """Return the stated frame nearest to `t` seconds, None when none is within `tolerance` seconds."""
    if graph is None or not graph.frames:
        return None
    nearest = min(graph.frames, key=lambda frame: abs(frame.t - t))
    return nearest if abs(nearest.t - t) <= tolerance + 1e-9 else None


def half_spacing(times: Sequence[float]) -> float:
    """Return half the smallest gap between selected times, seconds; without a gap any stated time will do."""
    gaps = np.diff(np.asarray(times, dtype=float))
    return float(gaps.min()) / 2 if gaps.size else float("inf")


# -------------------------------------------------------------------------------- contract, the usual case

_Coordinate = Annotated[float, msgspec.Meta(ge=-MAX_ABS, le=MAX_ABS)]


class _PlainNode(msgspec.Struct, gc=False):
    id: str
    pos: Annotated[tuple[_Coordinate, ...], msgspec.Meta(min_length=2, max_length=3)]


class _PlainEdge(msgspec.Struct, gc=False):
    a: str
    b: str
    dist: Annotated[float, msgspec.Meta(ge=0, le=MAX_ABS)] | None = None
    angle: _Coordinate | None = None


class _PlainFrame(msgspec.Struct):
    t: _Coordinate
    nodes: Annotated[list[_PlainNode], msgspec.Meta(max_length=MAX_NODES)]
    edges: Annotated[list[_PlainEdge], msgspec.Meta(max_length=MAX_EDGES)] | None = None


class _PlainGraph(msgspec.Struct):
    unit: Literal["m", "px", "grid"]
    frames: Annotated[list[_PlainFrame], msgspec.Meta(min_length=1, max_length=MAX_FRAMES)]


_PLAIN = msgspec.json.Decoder(_PlainGraph)


def _read_plain(text: str) -> SceneGraph | None:
    """Return the graph of a trace that keeps the contract word for word, read by msgspec; None leaves it to the full reader.

    What this takes the full reader takes too, with the same result (tests/videostr/test_trace.py); only that one says what is
    wrong with the rest.
    """
    try:
        plain = _PLAIN.decode(text)
    except (ValueError, RecursionError):
        return None
    labels: dict[str, str] = {}
    frames = []
    dimensions = set()
    for item in plain.frames:
        nodes = []
        for node in item.nodes:
            name, pos = node.id, node.pos
            if (label := labels.get(name)) is None:
                label = labels[name] = _label(name)
            nodes.append(Node(id=name, label=label, pos=pos))
            dimensions.add(len(pos))
        ids = {node.id for node in nodes}
        edges = _plain_edges(item.edges, ids) if item.edges else ()
        if edges is None or len(ids) < len(nodes):
            return None
        frames.append(GraphFrame(t=item.t, nodes=tuple(nodes), edges=edges))
    graph = SceneGraph(unit=plain.unit, frame="", frames=tuple(sorted(frames, key=_time)))
    is_whole = text.count("[") + text.count("{") == _brackets(graph)
    return graph if is_whole and len(dimensions) <= 1 and all(labels.values()) else None


def _plain_edges(edges: list[_PlainEdge], ids: set[str]) -> tuple[Edge, ...] | None:
    """None where they do not keep the contract."""
    found = [
        Edge(a=edge.a, b=edge.b, dist=edge.dist, angle=None if edge.angle is None else wrap(edge.angle))
        for edge in edges
    ]
    pairs = {frozenset((edge.a, edge.b)) for edge in edges}
    known = len(pairs) == len(edges) and all(len(pair) == 2 and pair <= ids for pair in pairs)
    return tuple(found) if known else None


# ------------------------------------------------------------------------------------------------ contract


def size_in_bytes(text: str) -> int:
    """Return the length of the text in UTF-8; lone surrogates, which a tokenizer may produce, count three bytes."""
    return len(text.encode("utf-8", "surrogatepass"))


def _bad(detail: str) -> InvalidGraph:
    return InvalidGraph(GraphAbsence.BAD_SCHEMA, detail)


def _brief(value: object) -> str:
    """Return a value for a message: containers by type, so that a large one costs nothing."""
    if value is None:
        return "missing"
    return f"{value!r:.40}" if isinstance(value, (str, int, float)) else f"of type {type(value).__name__}"


def _time(item: GraphFrame) -> float:
    return item.t


def _brackets(graph: SceneGraph) -> int:
    """Return how many objects and lists the contract needs for a graph: no more, and nothing is nested deeper than it allows."""
    return 2 + sum(2 + 2 * len(item.nodes) + bool(item.edges) + len(item.edges) for item in graph.frames)


def _check_depth(text: str) -> None:
    depth = 0
    for token in _BRACKET_OR_STRING.findall(text):
        if token in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise InvalidGraph(GraphAbsence.TOO_LARGE, f"JSON nested deeper than {MAX_DEPTH}")
        elif token in "]}":
            depth -= 1


def _items(value: object, name: str, limit: int) -> list[Any]:
    if not isinstance(value, list):
        raise _bad(f"{name} is {_brief(value)}, must be a list")
    if len(value) > limit:
        raise InvalidGraph(GraphAbsence.TOO_LARGE, f"{len(value)} {name}, at most {limit}")
    return value


def _frame_values(value: dict[str, Any]) -> list[Any]:
    """Return the frames, or the one frame whose nodes and edges stand at top level; its `t` is then optional."""
    if "frames" not in value:
        return [{"t": 0.0} | value]
    frames = _items(value["frames"], "frames", MAX_FRAMES)
    if not frames:
        raise _bad("frames is empty")
    return frames


def _frame(value: object, truth: bool) -> GraphFrame:
    if not isinstance(value, dict):
        raise _bad(f"a frame is {_brief(value)}, must be an object with t and nodes")
    t = _number(value.get("t"), "t of a frame")
    nodes = tuple(_node(item, truth) for item in _items(value.get("nodes"), "nodes", MAX_NODES))
    ids = {node.id for node in nodes}
    if len(ids) < len(nodes):
        twice = next(node.id for i, node in enumerate(nodes) if node.id in {other.id for other in nodes[:i]})
        raise InvalidGraph(
            GraphAbsence.DUPLICATE_ID, f"{_brief(twice)} stands twice in the frame at t = {t:g}"
        )
    view = _view(value["view"]) if truth and value.get("view") is not None else None
    edges = value.get("edges")
    if not edges and (edges is None or isinstance(edges, list)):
        return GraphFrame(t=t, nodes=nodes, view=view)
    return GraphFrame(t=t, nodes=nodes, edges=_edges(edges, ids), view=view)


def _view(value: object) -> tuple[float, ...]:
    if not isinstance(value, list) or len(value) != 12:
        raise _bad(f"a frame's view is {_brief(value)}, must be a list of 12 numbers")
    return tuple([_number(x, "view") for x in value])


def _node(value: object, truth: bool) -> Node:
    if not isinstance(value, dict):
        raise _bad(f"a node is {_brief(value)}, must be an object with id and pos")
    name = value.get("id")
    if not isinstance(name, str) or not (label := _label(name)):
        raise _bad(f"a node's id is {_brief(name)}, must be label.number such as car.1")
    size = _vector(value["size"], "size") if truth and value.get("size") is not None else None
    return Node(id=name, label=label, pos=_vector(value.get("pos"), "pos"), size=size)


def _label(name: str) -> str:
    """Return the label of a node's id, "" where it has none."""
    label, _, number = name.rpartition(".")
    return label if number.isdigit() and number.isascii() and name.isprintable() else ""


def _vector(value: object, name: str) -> tuple[float, ...]:
    if not isinstance(value, list) or len(value) not in (2, 3):
        raise _bad(f"a node's {name} is {_brief(value)}, must be a list of 2 or 3 numbers")
    for x in value:  # the usual case without a call: these are most of what is read
        if type(x) is not float or not -MAX_ABS <= x <= MAX_ABS:
            return tuple([_number(x, name) for x in value])
    return tuple(value)


def _edges(value: object, ids: set[str]) -> tuple[Edge, ...]:
    edges = tuple(_edge(item, ids) for item in _items(value, "edges", MAX_EDGES))
    if len({frozenset((edge.a, edge.b)) for edge in edges}) < len(edges):
        raise _bad("two edges of one frame join the same two nodes")
    return edges


def _edge(value: object, ids: set[str]) -> Edge:
    if not isinstance(value, dict):
        raise _bad(f"an edge is {_brief(value)}, must be an object with a, b, dist and angle")
    a, b = value.get("a"), value.get("b")
    if not isinstance(a, str) or not isinstance(b, str):
        raise _bad(f"an edge joins {_brief(a)} and {_brief(b)}, must be two node ids")
    for name in (a, b):
        if name not in ids:
            raise InvalidGraph(GraphAbsence.UNKNOWN_ID, f"an edge names {_brief(name)}")
    if a == b:
        raise _bad(f"an edge joins {_brief(a)} with itself")
    dist, angle = value.get("dist"), value.get("angle")
    return Edge(
        a=a,
        b=b,
        dist=None if dist is None else _distance(dist),
        angle=None if angle is None else wrap(_number(angle, "angle of an edge")),
    )


def _distance(value: object) -> float:
    number = _number(value, "dist of an edge")
    if number < 0:
        raise _bad(f"dist of an edge is {number:g}, must be 0 or more")
    return number


def _number(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _bad(f"{name} is {_brief(value)}, must be a number")
    if not -MAX_ABS <= value <= MAX_ABS:  # also False for NaN
        raise InvalidGraph(GraphAbsence.NON_FINITE, f"{name} is {float(value):g}")
    return float(value)
