"""How far apart objects are, and which is nearest or farthest; 3-D."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from videostr.data.clips import ClipView
from videostr.data.naming import (
    AMBIGUITY_MARGIN,
    AMBIGUITY_MARGIN_M,
    labels_of,
    name_of,
    name_without_box,
    ordered_labels,
    pick,
    pick_named,
)
from videostr.data.questions.question import PreparedQuestion, Rng, choice, number, numeric_choice, worded
from videostr.data.scene import Array

LEAST_DISTANCE_M = 1.0
"""Between the centres of two objects that are asked about."""


def distance_relative(view: ClipView, rng: Rng) -> PreparedQuestion | None:
    """Among three objects of different labels."""
    if not view.is_3d:
        return None
    f = int(rng.integers(len(view.frames)))
    names = pick_named(view, rng, 4, f)
    if names is None:
        return None
    target, *others = names
    distances = np.linalg.norm(_places(view, others, f) - _places(view, [target], f), axis=1)
    nearest = bool(rng.integers(2))
    order = np.argsort(distances if nearest else -distances)
    best, second = distances[order[:2]]
    if abs(best - second) < max(AMBIGUITY_MARGIN_M, AMBIGUITY_MARGIN * max(best, second)):
        return None
    options = tuple(sorted(names[n] for n in others))
    text = worded(rng, NEAREST if nearest else FARTHEST, a=names[target], t=view.times[f])
    key = (str(nearest), names[target], *options)
    truth = names[others[int(order[0])]]
    return choice("distance_relative", rng, text, truth, options, labels_of(view, list(names)), key)


NEAREST = (
    "At {t:g} s, which of these is closest to {a}?",
    "Which of these has the shortest distance to {a} at {t:g} s?",
    "What is nearest to {a} at {t:g} s?",
)
FARTHEST = (
    "At {t:g} s, which of these is farthest from {a}?",
    "Which of these has the longest distance to {a} at {t:g} s?",
    "What is at the greatest distance from {a} at {t:g} s?",
)


def distance_absolute(view: ClipView, rng: Rng) -> PreparedQuestion | None:
    if not view.is_3d:
        return None
    f = int(rng.integers(len(view.frames)))
    pair = pick(view, rng, 2, f)
    if pair is None:
        return None
    a, b = _places(view, pair, f)
    distance = float(np.linalg.norm(a - b))
    values: dict[str, Any] = {"t": view.times[f], "labels": labels_of(view, pair)}
    names = [name_without_box(view, n, f) for n in pair]
    if all(names) and rng.integers(2):
        key = sorted(ordered_labels(view, pair))
        return numeric_choice(
            "distance_absolute",
            rng,
            DISTANCE,
            distance,
            "m",
            LEAST_DISTANCE_M,
            key,
            a=names[0],
            b=names[1],
            **values,
        )
    if not distance >= LEAST_DISTANCE_M:
        return None
    names = [name_of(view, n, f) for n in pair]
    return number(
        "distance_absolute", rng, DISTANCE, round(distance, 1), "m", a=names[0], b=names[1], **values
    )


DISTANCE = (
    "At {t:g} s, how far apart are the centres of {a} and {b}, in metres?",
    "What is the distance in metres from the centre of {a} to that of {b} at {t:g} s?",
    "How many metres lie between the centres of {a} and {b} at {t:g} s?",
)


def _places(view: ClipView, tracks: Sequence[int], f: int) -> Array:
    """Return [N, 3] positions in `camera0` at a selected frame."""
    places: Array = view.positions[list(tracks), f]
    return places
