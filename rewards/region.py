"""Region reward: intersection over union (IoU) of boxes, time spans and tracks (method, section 3).

In: the text of the answer block and a record whose answer is a box2d, box3d, span or track. Out: (value in [0, 1], note);
there is one function for each of these kinds of answer. What is inverted, without size or not finite earns 0.

Coordinates are continuous: a box from 0 to 10 is 10 wide, and boxes that touch do not overlap.

A box3d is `[x, y, z, dx, dy, dz, yaw]`: centre, full sizes along the box's own axes, and a right-handed turn in
radians about the vertical axis of the frame of reference. The frame is that of the record's graph, and camera0 where
the record has no graph.

- `camera0` (x right, y down, z forward): the ground plane is (x, z), dy is the height, and the box's dx axis points to
  (cos yaw, -sin yaw) in (x, z), as `rotation_y` of KITTI does;
- `floor`, `image`: the ground plane is (x, y), dz is the height, and the dx axis points to (cos yaw, sin yaw) in (x, y).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from videostr.graph import MAX_ABS, ground_axes
from videostr.types import Record

Box = tuple[float, float, float, float]
Box3d = tuple[float, float, float, float, float, float, float]
Span = tuple[float, float]
_Points = list[tuple[float, float]]

# A sign that follows a digit or a letter is a dash: "2-5" holds 2 and 5.
_VALUE = r"(?<![\w.])[-+−]?(?:\d++(?:\.\d*+)?|\.\d++)(?:e[-+]?\d++)?"
_NUMBER = re.compile(_VALUE, re.IGNORECASE | re.ASCII)
# Possessive quantifiers keep this linear in the text.
_TRACK_ENTRY = re.compile(
    rf"(?:(?P<t>{_VALUE})\s*+(?:s\b\s*+)?[\"']?\s*+:\s*+)?(?:\[(?P<box>[^\[\]]*+)\]|\b(?P<none>null|none)\b)",
    re.IGNORECASE | re.ASCII,
)


# ------------------------------------------------------------------------------------------- kinds of answer


def box2d(answer: str, record: Record) -> tuple[float, str]:
    """IoU of the stated box [x1, y1, x2, y2] with the true one; with why it is low."""
    box = stated_box(answer)
    if box is None:
        return 0.0, f"answer: {answer!r:.60} is not a box [x1, y1, x2, y2] with x1 < x2 and y1 < y2"
    truth: Box = record.answer.value  # type: ignore[assignment]  # AnswerKind.BOX2D promises four floats
    return _judged(box_iou(box, truth), "the box")


def box3d(answer: str, record: Record) -> tuple[float, str]:
    """IoU of the stated box [x, y, z, dx, dy, dz, yaw] with the true one; with why it is low."""
    numbers = _numbers(answer, 7)
    if numbers is None or min(numbers[3:6]) <= 0:
        return 0.0, f"answer: {answer!r:.60} is not a box [x, y, z, dx, dy, dz, yaw] with sizes above 0"
    truth: Box3d = record.answer.value  # type: ignore[assignment]  # AnswerKind.BOX3D promises seven floats
    frame = record.graph.frame if record.graph is not None else "camera0"
    return _judged(box3d_iou(numbers, truth, frame), "the box")  # type: ignore[arg-type]  # seven numbers


def span(answer: str, record: Record) -> tuple[float, str]:
    """IoU of the stated span [start, end] in seconds with the true one; with why it is low."""
    numbers = _numbers(answer, 2)
    if numbers is None or numbers[0] >= numbers[1]:
        return 0.0, f"answer: {answer!r:.60} is not a span [start, end] in seconds with start < end"
    truth: Span = record.answer.value  # type: ignore[assignment]  # AnswerKind.SPAN promises two floats
    return _judged(span_iou((numbers[0], numbers[1]), truth), "the span")


def track(answer: str, record: Record) -> tuple[float, str]:
    """Mean IoU of the stated boxes with the true ones, one per asked time; with why it is low.

    Read are `[[x1, y1, x2, y2], null, ...]`, in the order of the asked times with `null` for "not visible"; and, where
    the record's graph gives the asked times, boxes that follow a time: `{"0.5": [x1, y1, x2, y2], ...}`. A time without
    a box, or with one that is none, counts 0. More boxes than asked times lower the mean, so naming several never helps.
    """
    truth: tuple[Box, ...] = record.answer.value  # type: ignore[assignment]  # AnswerKind.TRACK promises boxes
    entries = list(_TRACK_ENTRY.finditer(answer))
    timed = [entry for entry in entries if entry["t"] is not None]
    times = _asked_times(record, len(truth))
    if not entries or len(timed) not in (0, len(entries)):
        return 0.0, f"answer: {answer!r:.60} is not a list of boxes [[x1, y1, x2, y2], ...]"
    if timed and times is None:
        return 0.0, "answer: boxes by time, but the record does not say at which times; list them in order"
    boxes = [stated_box(entry["box"] or "") for entry in entries]
    placed = _by_time(entries, times, boxes) if timed and times else boxes[: len(truth)]
    ious = [0.0 if box is None else box_iou(box, true) for box, true in zip(placed, truth, strict=False)]
    value, note = _judged(sum(ious) / max(len(truth), len(boxes), 1), "the track")
    if len(boxes) != len(truth):
        note = f"answer: {len(boxes)} boxes for {len(truth)} asked times; mean overlap {value:.2f} (IoU)"
    return value, note


# ------------------------------------------------------------------------------------------------- formulas


def box_iou(a: Box, b: Box) -> float:
    """Area of the intersection over area of the union of boxes (x1, y1, x2, y2); 0 for boxes without area."""
    intersection = _overlap(a[0], a[2], b[0], b[2]) * _overlap(a[1], a[3], b[1], b[3])
    return _ratio(intersection, (a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))


def span_iou(a: Span, b: Span) -> float:
    """Length of the intersection over length of the union of spans (start, end); 0 for spans without length."""
    return _ratio(_overlap(*a, *b), a[1] - a[0], b[1] - b[0])


def box3d_iou(a: Box3d, b: Box3d, frame: str) -> float:
    """Volume of the intersection over volume of the union of two boxes that stand upright.

    Exact: the intersection of the two turned rectangles in the ground plane, a convex polygon, times the overlap of the
    heights.

    Args:
        a: (x, y, z, dx, dy, dz, yaw) as in the module docstring; sizes above 0.
        b: the same.
        frame: frame of reference, which says what is vertical and how yaw turns.
    """
    right, forward = ground_axes(frame)
    up = 3 - right - forward
    # A right-handed turn about the down axis takes x towards -z.
    sense = -1.0 if frame == "camera0" else 1.0
    # Relative to b, so that far from the origin no digits are lost.
    centre = (a[right] - b[right], a[forward] - b[forward])
    corners = _turned(_rectangle(a[3 + right], a[3 + forward]), sense * a[6])
    moved = [(u + centre[0], v + centre[1]) for u, v in corners]
    area = _area(_clipped(_turned(moved, -sense * b[6]), b[3 + right] / 2, b[3 + forward] / 2))
    lift = a[up] - b[up]
    height = _overlap(lift - a[3 + up] / 2, lift + a[3 + up] / 2, -b[3 + up] / 2, b[3 + up] / 2)
    return _ratio(area * height, a[3] * a[4] * a[5], b[3] * b[4] * b[5])


def _overlap(a_start: float, a_end: float, b_start: float, b_end: float) -> float:
    return max(0.0, min(a_end, b_end) - max(a_start, b_start))


def _ratio(intersection: float, a: float, b: float) -> float:
    """Intersection over union; 0 where one of both is empty, too small for a float or inverted."""
    if not (a > 0 and b > 0 and intersection > 0):
        return 0.0
    return min(1.0, intersection / (a + b - intersection))


def _rectangle(width: float, depth: float) -> _Points:
    """Corners around the origin, counterclockwise."""
    u, v = width / 2, depth / 2
    return [(-u, -v), (u, -v), (u, v), (-u, v)]


def _turned(points: _Points, angle: float) -> _Points:
    sine, cosine = math.sin(angle), math.cos(angle)
    return [(u * cosine - v * sine, u * sine + v * cosine) for u, v in points]


def _clipped(points: _Points, half_width: float, half_depth: float) -> _Points:
    """The part of a convex polygon inside |u| <= half_width, |v| <= half_depth (Sutherland and Hodgman)."""
    for axis, limit in ((0, half_width), (1, half_depth)):
        for sign in (1.0, -1.0):
            points = _cut(points, axis, sign, limit)
    return points


def _cut(points: _Points, axis: int, sign: float, limit: float) -> _Points:
    """The part of a convex polygon where sign * (coordinate `axis`) <= limit."""
    kept: _Points = []
    for last, point in zip(points[-1:] + points[:-1], points, strict=True):
        before, after = limit - sign * last[axis], limit - sign * point[axis]
        if (before > 0) != (after > 0):
            share = before / (before - after)
            kept.append((last[0] + share * (point[0] - last[0]), last[1] + share * (point[1] - last[1])))
        if after > 0:
            kept.append(point)
    return kept


def _area(points: _Points) -> float:
    """Area of a polygon whose corners go round counterclockwise."""
    pairs = zip(points, points[1:] + points[:1], strict=True)
    return sum(u * next_v - next_u * v for (u, v), (next_u, next_v) in pairs) / 2


# ------------------------------------------------------------------------------------------ what answers say


def stated_box(answer: str) -> Box | None:
    """The four numbers of an answer, in any brackets and with any separators; None if they are no box."""
    numbers = _numbers(answer, 4)
    if numbers is None:
        return None
    x1, y1, x2, y2 = numbers
    return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None


def _numbers(answer: str, count: int) -> tuple[float, ...] | None:
    """All numbers of an answer; None unless there are `count` of them, each within +-1e6."""
    numbers = tuple([float(text.replace("−", "-")) for text in _NUMBER.findall(answer)])
    return numbers if len(numbers) == count and all(abs(x) <= MAX_ABS for x in numbers) else None


def _asked_times(record: Record, count: int) -> tuple[float, ...] | None:
    """The times of the true boxes: those of the graph, if it has as many frames."""
    if record.graph is None or len(record.graph.frames) != count:
        return None
    return tuple(frame.t for frame in record.graph.frames)


def _by_time(
    entries: Sequence[re.Match[str]], times: tuple[float, ...], boxes: Sequence[Box | None]
) -> list[Box | None]:
    """For each asked time the box stated nearest to it, within half the spacing of the asked times."""
    placed: list[Box | None] = [None] * len(times)
    reach = (times[-1] - times[0]) / (len(times) - 1) / 2 if len(times) > 1 else math.inf
    nearest = [reach + 1e-6] * len(times)
    for entry, box in zip(entries, boxes, strict=True):
        away = [abs(float(entry["t"].replace("−", "-")) - t) for t in times]
        k = away.index(min(away))
        if away[k] < nearest[k]:
            placed[k], nearest[k] = box, away[k]
    return placed


def _judged(value: float, what: str) -> tuple[float, str]:
    return value, "" if value > 1 - 1e-9 else f"answer: {what} overlaps the true one by {value:.2f} (IoU)"
