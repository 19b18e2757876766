"""Region reward: intersection over union (IoU) of boxes, time spans and tracks (method, section 3).

In: the text of the answer block and a record whose answer is a box2d, box3d, span or track. Out: (value in [0, 1], note);
there is one function for each of these kinds of answer. What is inverted, without size or not finite scores 0. A box3d is
in the frame of reference of the record's graph, in camera0 where the record has no graph (videostr/iou.py).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from videostr.answers import COORDINATE, stated_box, stated_numbers
from videostr.iou import Box, Box3d, Span, box3d_iou, box_iou, span_iou
from videostr.types import Record

# Possessive quantifiers keep this linear in the text.
_TRACK_ENTRY = re.compile(
    rf"(?:(?P<t>{COORDINATE})\s*+(?:s\b\s*+)?[\"']?\s*+:\s*+)?(?:\[(?P<box>[^\[\]]*+)\]|\b(?P<none>null|none)\b)",
    re.IGNORECASE | re.ASCII,
)


def box2d(answer: str, record: Record) -> tuple[float, str]:
    """Return the IoU of the stated box [x1, y1, x2, y2] with the true one; with why it is low."""
    box = stated_box(answer)
    if box is None:
        return 0.0, f"answer: {answer!r:.60} is not a box [x1, y1, x2, y2] with x1 < x2 and y1 < y2"
    truth: Box = record.answer.value  # type: ignore[assignment]  # AnswerKind.BOX2D promises four floats
    return _judged(box_iou(box, truth), "the box")


def box3d(answer: str, record: Record) -> tuple[float, str]:
    """Return the IoU of the stated box [x, y, z, dx, dy, dz, yaw] with the true one; with why it is low."""
    numbers = stated_numbers(answer, 7)
    if numbers is None or min(numbers[3:6]) <= 0:
        return 0.0, f"answer: {answer!r:.60} is not a box [x, y, z, dx, dy, dz, yaw] with sizes above 0"
    truth: Box3d = record.answer.value  # type: ignore[assignment]  # AnswerKind.BOX3D promises seven floats
    frame = record.graph.frame if record.graph is not None else "camera0"
    return _judged(box3d_iou(numbers, truth, frame), "the box")  # type: ignore[arg-type]  # seven numbers


def span(answer: str, record: Record) -> tuple[float, str]:
    """Return the IoU of the stated span [start, end] in seconds with the true one; with why it is low."""
    numbers = stated_numbers(answer, 2)
    if numbers is None or numbers[0] >= numbers[1]:
        return 0.0, f"answer: {answer!r:.60} is not a span [start, end] in seconds with start < end"
    truth: Span = record.answer.value  # type: ignore[assignment]  # AnswerKind.SPAN promises two floats
    return _judged(span_iou((numbers[0], numbers[1]), truth), "the span")


def track(answer: str, record: Record) -> tuple[float, str]:
    """Return the mean IoU of the stated boxes with the true ones, one per asked time; with why it is low.

    Read are `[[x1, y1, x2, y2], null, ...]`, in the order of the asked times with `null` for "not visible"; and, where
    the record's graph gives the asked times, boxes that follow a time: `{"0.5": [x1, y1, x2, y2], ...}`. A time without
    a box, or with anything else, counts 0. More boxes than asked times lower the mean, so naming several never helps.
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


def _asked_times(record: Record, count: int) -> tuple[float, ...] | None:
    """Return the times of the true boxes: those of the graph, if it has as many frames."""
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
