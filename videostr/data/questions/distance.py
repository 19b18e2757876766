"""How far apart objects are, and which is nearest or farthest; 3-D."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from videostr.data.clip_view import ClipView
from videostr.data.naming import (
    AMBIGUITY_MARGIN,
    AMBIGUITY_MARGIN_M,
    Name,
    name_of,
    name_without_box,
    pick,
    pick_named,
    query_about,
)
from videostr.data.questions.question import PreparedQuestion, Rng, choice, number, numeric_choice, worded
from videostr.query import DECIMALS

LEAST_DISTANCE_M = 1.0
"""Between the centres of two objects that are asked about."""


def distance_relative(view: ClipView, rng: Rng) -> PreparedQuestion | None:
    """Among three objects of different labels."""
    if not view.is_3d:
        return None
    f = int(rng.integers(len(view.frames)))
    names = pick_named(view, rng, 4, f)
    return None if names is None else nearest_or_farthest(view, rng, names, f)


def nearest_or_farthest(
    view: ClipView, rng: Rng, names: Mapping[int, Name], f: int
) -> PreparedQuestion | None:
    """Return which of the tracks after the first is nearest to it, or farthest, at a selected frame that shows all."""
    target, *others = names
    distances = np.array([view.distance_between(n, target, f) for n in others])
    nearest = bool(rng.integers(2))
    order = np.argsort(distances if nearest else -distances)
    best, second = distances[order[:2]]
    if abs(best - second) < max(AMBIGUITY_MARGIN_M, AMBIGUITY_MARGIN * max(best, second)):
        return None
    axis = "nearest" if nearest else "farthest"
    options = {
        name.text: view.ids[n]
        for n, name in sorted(names.items(), key=lambda pair: pair[1].text)
        if n in others
    }
    query = query_about(view, "distance_relative", names, times=(view.times[f],), axis=axis)
    text = worded(rng, NEAREST if nearest else FARTHEST, query)
    truth = names[others[int(order[0])]].text
    return choice(rng, text, query, truth, options, (str(nearest), names[target].text, *options))


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
    distance = view.distance_between(pair[0], pair[1], f)
    free = {n: name for n in pair if (name := name_without_box(view, n, f))}
    if len(free) == 2 and rng.integers(2):
        query = query_about(view, "distance_absolute", free, times=(view.times[f],))
        key = sorted(view.labels[n] for n in pair)
        return numeric_choice(rng, DISTANCE, query, distance, "m", LEAST_DISTANCE_M, key)
    if not distance >= LEAST_DISTANCE_M:
        return None
    named = {n: name_of(view, n, f) for n in pair}
    query = query_about(view, "distance_absolute", named, times=(view.times[f],))
    return number(rng, DISTANCE, query, round(distance, DECIMALS), "m")


DISTANCE = (
    "At {t:g} s, how far apart are the centres of {a} and {b}, in metres?",
    "What is the distance in metres from the centre of {a} to that of {b} at {t:g} s?",
    "How many metres lie between the centres of {a} and {b} at {t:g} s?",
)
