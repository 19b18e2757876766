"""How many objects of a label there are: a label all of whose instances are annotated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from videostr.data.clip_view import ClipView
from videostr.data.naming import AMBIGUITY_MARGIN, is_countable, plain
from videostr.data.questions.question import Balance, PreparedQuestion, Rng, number
from videostr.types import Query

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
        # Of a part of a scan all that it shows are counted; "in this room" are those of the whole.
        count = int(clear.any(1).sum())
        if count == 0 or shown.any(1).sum() > count:
            return None
        return _count(
            rng, Query(family="counting", label=label), count, COUNT_ROOM if view.is_whole else COUNT_SHOWN
        )
    f = int(rng.integers(len(view.frames)))
    near: dict[str, Any] = {}
    counted = shown[:, f]
    if view.is_3d:
        distance = view.all_distances[of_label, f]
        if (np.abs(distance - COUNT_WITHIN_M) < AMBIGUITY_MARGIN * COUNT_WITHIN_M).any():
            return None
        counted = distance < COUNT_WITHIN_M  # NaN where not annotated
        near = {"within_m": COUNT_WITHIN_M, "camera": view.cameras[f]}
    count = int(counted.sum())
    if count == 0 or not clear[counted, f].all():
        return None
    return _count(rng, Query(family="counting", label=label, times=(view.times[f],), **near), count, COUNT_AT)


def _count(rng: Rng, query: Query, count: int, texts: Sequence[str]) -> PreparedQuestion:
    """Make 1 half of the answers, else "1" would nearly always be right."""
    where = "" if query.within_m is None else f" within {query.within_m:g} m of the camera"
    question = number(rng, texts, query, float(count), "", label=plain(query.label), where=where)
    return replace(question, balance=Balance("counting", "one" if count == 1 else "more", ("one", "more")))


COUNT_SHOWN = (
    "How many objects of the kind {label} does the video show?",
    "What is the number of objects of the kind {label} in the video?",
)
COUNT_ROOM = (*COUNT_SHOWN, "Count the objects of the kind {label} in this room.")
COUNT_AT = (
    "At {t:g} s, how many objects of the kind {label} can be seen{where}?",
    "Count the objects of the kind {label} that can be seen{where} at {t:g} s.",
    "What is the number of objects of the kind {label} in view{where} at {t:g} s?",
)
