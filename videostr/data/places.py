"""What the places of marks tell of an answer, to one who knows where the marks are and sees nothing else.

In: a query about marked objects, and the marks. Out: traits, coarse statements about the boxes of the marks in the order of
the question: who is to the left, lower, larger, marked earlier; where three objects would stand if all were of one size
on level ground. Choices are balanced among those whose traits are the same (`balance_of`), and the guesser of
`videostr/data/baseline.py` learns from traits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np

from videostr.data.questions.question import Balance
from videostr.data.scene import Array
from videostr.query import STANCES, direction_at
from videostr.types import Answer, Mark, Query

SIDE_PX = (-120.0, 0.0, 120.0)
"""Borders of how far to the right one mark is of another, px of 0..1000."""
SIZE = (-0.35, 0.0, 0.35)
"""Borders of the logarithm of the ratio of heights."""
COLUMNS_PX = (250.0, 400.0, 500.0, 600.0, 750.0)
"""Borders of the place of a mark from left to right."""
HEIGHTS_PX = (90.0, 180.0)
"""Borders of the height of a mark's box."""
FINE_PX = (-300.0, -150.0, -60.0, -20.0, 0.0, 20.0, 60.0, 150.0, 300.0)
FINE_SIZE = (-1.0, -0.5, -0.2, 0.0, 0.2, 0.5, 1.0)
FINE_S = (-3.0, -1.0, -1e-6, 1e-6, 1.0, 3.0)
"""Borders of differences in place, size and time, further features of the guesser."""
LEAST_HEIGHT_PX = 1.0
OF_ONE_WAY = {"ahead", "motion_direction"}
"""Families in which the way of the first object decides."""


def option_role(query: Query, option: object) -> str:
    """Return an option by the places of its objects in the question, so that it does not depend on how they are called."""
    if isinstance(option, tuple):
        return ",".join(str(query.objects.index(each)) for each in option)
    return str(query.objects.index(str(option))) if option in query.objects else str(option)


def balance_of(query: Query, answer: Answer, marks: Sequence[Mark]) -> Balance:
    """Return how a choice about marked objects is balanced: among questions whose places tell the same."""
    options = [option_role(query, option) for option in query.options]
    key = "|".join((query.family, query.axis, ",".join(sorted(options)), *traits(query, marks)))
    truth = options[ord(str(answer.value)) - ord("A")]
    return Balance(key, truth, tuple(sorted(options)))


def traits(query: Query, marks: Sequence[Mark]) -> list[str]:
    """Return what the places of the marks say of the objects of a query, in the order of the question."""
    by_object = {mark.object: mark.boxes[0] for mark in marks}
    boxes = np.array([by_object[name] for name in query.objects])
    times = boxes[:, 0]
    middle, height = (boxes[:, 1] + boxes[:, 3]) / 2, np.maximum(boxes[:, 4] - boxes[:, 2], LEAST_HEIGHT_PX)
    if len(boxes) == 1:
        return [f"column {_bin(middle[0], COLUMNS_PX)}", f"height {_bin(height[0], HEIGHTS_PX)}"]
    if len(boxes) == 2:
        found = [
            f"side {_bin(middle[0] - middle[1], SIDE_PX)}",
            f"size {_bin(math.log(height[0] / height[1]), SIZE)}",
            f"time {np.sign(times[0] - times[1]):g}",
        ]
        # One side of a road moves away from the camera, the other one towards it.
        return [*found, f"half {_bin(middle[0], (500.0,))}"] if query.family in OF_ONE_WAY else found
    ground = np.stack([(middle - 500) / height, 1 / height], axis=1)
    if query.family == "direction_object":
        return [f"from {_stance(ground, len(query.options))}"]
    if query.family == "distance_relative":
        apart = np.linalg.norm(ground[1:] - ground[0], axis=1)
        image = np.abs(middle[1:] - middle[0])
        return [f"ground {_best(apart, query.axis)}", f"image {_best(image, query.axis)}"]
    if len({*map(type, query.options)} - {str}) == 0:  # which is the first
        return [f"earliest {int(times.argmin())}", f"largest {int(height.argmax())}"]
    return [f"times {_ranks(times)}", f"sizes {_ranks(height)}"]


def statements(query: Query, marks: Sequence[Mark]) -> list[str]:
    """Return the guesser's features of the places: the traits, alone and together, and finer ones of objects and pairs."""
    found = traits(query, marks)
    found.append(" ".join(found))
    by_object = {mark.object: mark.boxes[0] for mark in marks}
    boxes = [by_object[name] for name in query.objects]
    for i, (t, x1, y1, x2, y2) in enumerate(boxes):
        found.append(f"{i} column {_bin((x1 + x2) / 2, COLUMNS_PX)}")
        found.append(f"{i} foot {y2 // 80:g}")
        found.append(f"{i} height {round(2 * math.log(max(y2 - y1, LEAST_HEIGHT_PX)))}")
        found += [f"{i} before {_bin(asked - t, FINE_S)}" for asked in query.times[:1]]
    for (i, a), (j, b) in combinations(enumerate(boxes), 2):
        heights = [max(box[4] - box[2], LEAST_HEIGHT_PX) for box in (a, b)]
        found.append(f"{i} {j} side {_bin((a[1] + a[3] - b[1] - b[3]) / 2, FINE_PX)}")
        found.append(f"{i} {j} foot {_bin(a[4] - b[4], FINE_PX)}")
        found.append(f"{i} {j} size {_bin(math.log(heights[0] / heights[1]), FINE_SIZE)}")
        found.append(f"{i} {j} time {_bin(a[0] - b[0], FINE_S)}")
    return found


def _bin(value: float, borders: Sequence[float]) -> int:
    return int(np.searchsorted(borders, value))


def _best(values: Array, axis: str) -> int:
    """Return which object of the question is nearest or farthest by these values, from 1."""
    return 1 + int(values.argmin() if axis == "nearest" else values.argmax())


def _ranks(values: Array) -> str:
    return "".join(str(int(a > b) - int(a < b)) for a, b in combinations(values.tolist(), 2))


def _stance(ground: Array, count: int) -> str:
    """Return where the third object would be for someone who stands at the first and faces the second."""
    facing, target = ground[1] - ground[0], ground[2] - ground[0]
    right = float(target[0] * facing[1] - target[1] * facing[0])
    directions = next(each for each in STANCES if len(each) == count)
    return direction_at(math.degrees(math.atan2(right, float(target @ facing))), directions)
