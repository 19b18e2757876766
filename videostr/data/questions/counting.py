"""How many objects of a label there are: a label all of whose instances are annotated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from videostr.data.clips import ClipView
from videostr.data.naming import AMBIGUITY_MARGIN, is_countable, plain
from videostr.data.questions.question import Balance, PreparedQuestion, Rng, number

COUNT_WITHIN_M = 30.0
"""Objects of a street are counted within this distance of the camera."""


def counting(view: ClipView, rng: Rng) -> PreparedQuestion | None:
    labels = [label for label in sorted(set(view.labels)) if is_countable(view, label)]
    if not labels:
        return None
    label = str(rng.choice(labels))
    # Of all in the scene: one that is too hidden everywhere to be among the view's tracks makes the count doubtful, too.
    of_label = np.array([other == label for other in view.all_labels])
    shown, clear = view.all_visibility[of_label] > 0, view.all_clear[of_label]
    if all(track.is_static for track in view.tracks):
        count = int(clear.any(1).sum())
        if count == 0 or shown.any(1).sum() > count:
            return None
        return _count(rng, COUNT_ROOM, count, label)
    f = int(rng.integers(len(view.frames)))
    counted, where = shown[:, f], ""
    if view.is_3d:
        distance = view.all_distances[of_label, f]
        if (np.abs(distance - COUNT_WITHIN_M) < AMBIGUITY_MARGIN * COUNT_WITHIN_M).any():
            return None
        counted = distance < COUNT_WITHIN_M  # NaN where not annotated
        where = f" within {COUNT_WITHIN_M:g} m of the camera"
    count = int(counted.sum())
    if count == 0 or not clear[counted, f].all():
        return None
    return _count(rng, COUNT_AT, count, label, t=view.times[f], where=where)


def _count(rng: Rng, texts: Sequence[str], count: int, label: str, **values: object) -> PreparedQuestion:
    """Make 1 half of the answers, else "1" would nearly always be right."""
    asked = number("counting", rng, texts, float(count), "", label=plain(label), labels={label}, **values)
    return replace(asked, balance=Balance("counting", "one" if count == 1 else "more", ("one", "more")))


COUNT_ROOM = (
    "How many objects of the kind {label} does the video show?",
    "Count the objects of the kind {label} in this room.",
    "What is the number of objects of the kind {label} in the video?",
)
COUNT_AT = (
    "At {t:g} s, how many objects of the kind {label} can be seen{where}?",
    "Count the objects of the kind {label} that can be seen{where} at {t:g} s.",
    "What is the number of objects of the kind {label} in view{where} at {t:g} s?",
)
