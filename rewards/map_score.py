"""Map score of SpaceR (arXiv 2504.01805): how well are the nodes placed on a 10 x 10 grid?

In: the graph of a trace and the true graph of its record. Out: a number in [0, 1]; the preset `spacer` adds it to the
answer reward (docs/rewards.md). Edges play no part.

Where nodes lie on the grid depends on the graph's unit: "grid", as stated; "px", 0..1000 becomes 0..10; "m", the bounding box
of the true nodes of all frames in the ground plane is laid on the grid, its longer side 10 cells long and both directions
to the same scale. Where that box has no size (one node that stands still), a cell is a metre.
"""

from __future__ import annotations

import math

from rewards.match import frames_at
from videostr.graph import ground_axes
from videostr.types import GraphFrame, SceneGraph

GRID = 10.0
_DIAGONAL = GRID * math.sqrt(2)

_Point = tuple[float, float]


def map_score(predicted: SceneGraph, truth: SceneGraph) -> float:
    """Return the mean over the selected frames of the frame's score; a frame that the prediction does not state scores 0.

    A graph in another unit, or with another number of coordinates than the truth, scores 0.

    Args:
        predicted: the graph of a trace.
        truth: the true graph, with at least one frame.
    """
    if predicted.unit != truth.unit or not _same_space(predicted, truth):
        return 0.0
    cells = _cells_per_unit(truth)
    pairs = zip(frames_at(predicted, tuple(item.t for item in truth.frames)), truth.frames, strict=True)
    scores = [
        0.0
        if stated is None
        else frame_score(_positions(stated, truth.frame, cells), _positions(true, truth.frame, cells))
        for stated, true in pairs
    ]
    return sum(scores) / len(scores)


def frame_score(predicted: dict[str, list[_Point]], truth: dict[str, list[_Point]]) -> float:
    """Score of one map: label -> positions on the grid, on both sides.

    Per label pairs are formed greedily, nearest first; a pair scores `max(0, 1 - d / (10 sqrt 2))`, and the label their sum
    over max(n_true, n_predicted). Labels are averaged with weight n_true, so that invented labels cost nothing. Both
    maps empty: 1; only the true one empty: 0.
    """
    total = sum(map(len, truth.values()))
    if total == 0:
        return 0.0 if any(predicted.values()) else 1.0
    credit = sum(
        len(places) * _label_score(predicted.get(label, []), places) for label, places in truth.items()
    )
    return credit / total


def _label_score(predicted: list[_Point], truth: list[_Point]) -> float:
    if len(predicted) == len(truth) == 1:  # most labels
        return max(0.0, 1.0 - math.dist(predicted[0], truth[0]) / _DIAGONAL)
    # Positions break ties, so that the order in which nodes are written does not matter; distances are rounded first, or
    # the last bit, which depends on where the scene lies, would break them.
    pairs = sorted(
        (round(math.dist(p, t), 9), t, p, i, j) for i, p in enumerate(predicted) for j, t in enumerate(truth)
    )
    used_predicted: set[int] = set()
    used_true: set[int] = set()
    credit = 0.0
    for away, _, _, i, j in pairs:
        if i not in used_predicted and j not in used_true:
            used_predicted.add(i)
            used_true.add(j)
            credit += max(0.0, 1.0 - away / _DIAGONAL)
    return credit / max(len(predicted), len(truth))


def _positions(item: GraphFrame, frame: str, cells: float) -> dict[str, list[_Point]]:
    """Label -> ground-plane positions in cells. Only differences count, so the grid's origin is left out."""
    x, y = ground_axes(frame)
    places: dict[str, list[_Point]] = {}
    for node in item.nodes:
        places.setdefault(node.label, []).append((node.pos[x] * cells, node.pos[y] * cells))
    return places


def _cells_per_unit(truth: SceneGraph) -> float:
    if truth.unit == "grid":
        return 1.0
    if truth.unit == "px":
        return GRID / 1000.0
    sides = [0.0]
    for axis in ground_axes(truth.frame):
        values = [node.pos[axis] for item in truth.frames for node in item.nodes]
        sides.append(max(values) - min(values) if values else 0.0)
    return GRID / max(sides) if max(sides) > 0 else 1.0


def _same_space(predicted: SceneGraph, truth: SceneGraph) -> bool:
    """Return whether all positions have the same number of coordinates, and those of the ground plane among them."""
    nodes = [node for graph in (predicted, truth) for item in graph.frames for node in item.nodes]
    dimensions = {len(node.pos) for node in nodes}
    return len(dimensions) <= 1 and all(n > max(ground_axes(truth.frame)) for n in dimensions)
