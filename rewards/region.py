"""Region reward: intersection over union of boxes in the image.

In: the text of the answer block and a record whose answer is a box2d. Out: (value in [0, 1], note).
"""

from __future__ import annotations

import math
import re

from videostr.types import Record

_NUMBER = re.compile(r"(?<![\w.])[-+−]?(?:\d+(?:\.\d*)?|\.\d+)(?:e[-+]?\d+)?", re.IGNORECASE | re.ASCII)

Box = tuple[float, float, float, float]


def reward(answer: str, record: Record) -> tuple[float, str]:
    """IoU of the stated box with the true one; with why it is low."""
    box = stated_box(answer)
    if box is None:
        return 0.0, f"answer: {answer!r:.60} is not a box [x1, y1, x2, y2] with x1 < x2 and y1 < y2"
    truth: Box = record.answer.value  # type: ignore[assignment]  # AnswerKind.BOX2D promises four floats
    value = box_iou(box, truth)
    return value, "" if value == 1.0 else f"answer: the box overlaps the true one by {value:.2f} (IoU)"


def stated_box(answer: str) -> Box | None:
    """The four numbers of an answer, in any brackets and with any separators; None if they are no box."""
    numbers = [float(text.replace("−", "-")) for text in _NUMBER.findall(answer)]
    if len(numbers) != 4 or not all(map(math.isfinite, numbers)):
        return None
    x1, y1, x2, y2 = numbers
    return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None


def box_iou(a: Box, b: Box) -> float:
    """Area of the intersection over area of the union; 0 for boxes without area.

    Boxes are (x1, y1, x2, y2) with x1 <= x2 and y1 <= y2.
    """
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    intersection = width * height
    return intersection / (_area(a) + _area(b) - intersection)


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])
