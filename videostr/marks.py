"""Marks: signs that are drawn into shown frames, so that a question can name one of many objects that look alike.

    numbers    1 to 9 on a coloured disc           "object 1"
    letters    A to I on a coloured disc           "object A"
    outlines   a coloured outline and no disc      "the object outlined in red"

Here are their texts and colours, what a question calls them, and what records must keep to. `videostr/mark_drawing.py` draws
them; the rewards read this module and not that one, which needs Pillow.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from videostr.graph import frame_at, half_spacing
from videostr.types import Node, Record

COLORS = {
    "red": (214, 40, 40),
    "blue": (38, 84, 214),
    "green": (20, 130, 60),
    "orange": (232, 106, 0),
    "purple": (140, 40, 170),
    "cyan": (0, 140, 165),
    "pink": (222, 50, 140),
    "yellow": (225, 180, 0),
    "brown": (120, 72, 30),
}
STYLES = {"numbers": tuple("123456789"), "letters": tuple("ABCDEFGHI"), "outlines": tuple(COLORS)}
"""Texts of marks by the style of a build; the place of a text is that of its colour."""
TEXTS = {text: place for texts in STYLES.values() for place, text in enumerate(texts)}
OFF_PX = 12.0
"""Px of 0..1000 by which a node may lie outside the box of its mark, plus the box's size: the border cuts boxes, not nodes."""


def name_of_mark(text: str) -> str:
    """Return what a question calls the object that a mark stands for."""
    return f"the object outlined in {text}" if text in COLORS else f"object {text}"


def mark_problem(record: Record) -> str:
    """Return what is wrong with the marks of a record, in the light of its graph and its query; "" where nothing is."""
    return next(_mark_problems(record), "")


def _mark_problems(record: Record) -> Iterator[str]:
    named = dict(zip(record.query.names, record.query.objects, strict=False)) if record.query else {}
    for mark in record.marks:
        name = f"mark {mark.text!r}"
        if named.get(name_of_mark(mark.text), mark.object) != mark.object:
            yield f"{name} is drawn on {mark.object}, the query names {named[name_of_mark(mark.text)]} by it"
        for t, *box in mark.boxes:
            if not all(0 <= side <= 1000 for side in box):
                yield f"{name}: {box} at {t:g} s lies outside the frame: must be px of 0 to 1000 of its width and height"
            if record.graph is None or mark.object.rpartition(".")[0] not in record.labels:
                continue  # a graph may leave out labels that the question does not need
            frame = frame_at(record.graph, t, half_spacing([each.t for each in record.graph.frames]))
            node = next((each for each in frame.nodes if each.id == mark.object), None) if frame else None
            if frame is None or node is None:
                yield f"{name}: the graph has no {mark.object} at {t:g} s, where it is drawn"
            elif (seen := _in_image(node, frame.view, record.graph.frame)) and not _is_near(seen, box):
                yield f"{name}: {box} at {t:g} s is not where the graph has {mark.object}, {[round(x) for x in seen]}"
    texts = {name_of_mark(mark.text) for mark in record.marks}
    for name in named:
        if name in map(name_of_mark, TEXTS) and name not in texts:
            yield f"the query names {name!r}, which no mark of the clip stands for"


def _in_image(node: Node, view: Sequence[float] | None, frame: str) -> tuple[float, ...] | None:
    """Return where a node is in the image, px of 0..1000; None where that is not known."""
    if frame == "image":
        return node.pos[:2]
    if view is None or len(node.pos) != 3:
        return None
    x, y, depth = np.reshape(view, (3, 4)) @ (*node.pos, 1.0)
    return (float(x / depth), float(y / depth)) if depth > 0 else None


def _is_near(seen: Sequence[float], box: Sequence[Any]) -> bool:
    (x, y), (x1, y1, x2, y2) = seen, box
    wide, high = x2 - x1 + OFF_PX, y2 - y1 + OFF_PX
    return bool(x1 - wide <= x <= x2 + wide and y1 - high <= y <= y2 + high)
