"""Where an object is: a box in the image, boxes over time, a box in the axes of the first camera."""

from __future__ import annotations

import numpy as np

from videostr.data.clip_view import ClipView
from videostr.data.naming import Name, is_nameable, is_unique_at, name_of, pick, plain, query_about
from videostr.data.questions.question import PreparedQuestion, Rng, worded
from videostr.types import Answer, AnswerKind

LEVEL_DEG = 5.0
"""Largest tilt of the camera at which a box that turns about the vertical is one that turns about the camera's y axis."""


def tracking(view: ClipView, rng: Rng) -> PreparedQuestion | None:
    found = [
        n
        for n in range(len(view.tracks))
        if (view.clear[n] & view.large[n]).all() and is_nameable(view, n, 0)
    ]
    if not found:
        return None
    n = found[int(rng.integers(len(found)))]
    shown = np.unique(np.linspace(1, len(view.frames) - 1, 3).round().astype(int))
    name = name_of(view, n, 0, by_box=True)
    query = query_about(view, "tracking", {n: name}, times=tuple(view.times[f] for f in shown))
    text = worded(rng, TRACKING, query, times=", ".join(f"{t:g} s" for t in query.times))
    answer = Answer(
        kind=AnswerKind.TRACK, value=tuple(tuple(view.boxes[n, f].tolist()) for f in shown), unit="px"
    )
    return PreparedQuestion(query=query, text=text, answer=answer)


TRACKING = (
    "Follow {a}: where in the image is it at {times}? Give one box per time.",
    "Track {a}. Give its box in the image at each of these times: {times}.",
)


def localisation_2d(view: ClipView, rng: Rng) -> PreparedQuestion | None:
    found = np.argwhere(view.clear & view.large)
    found = np.array([(n, f) for n, f in found if is_unique_at(view, n, f)])
    if not len(found):
        return None
    n, f = (int(v) for v in found[int(rng.integers(len(found)))])
    query = query_about(
        view, "localisation_2d", {n: Name(f"the {plain(view.labels[n])}")}, times=(view.times[f],)
    )
    answer = Answer(kind=AnswerKind.BOX2D, value=tuple(view.boxes[n, f].tolist()), unit="px")
    return PreparedQuestion(query=query, text=worded(rng, WHERE_2D, query), answer=answer)


WHERE_2D = (
    "Where in the image is {a} at {t:g} s?",
    "Give the box of {a} in the image at {t:g} s.",
    "At {t:g} s, where does the image show {a}?",
)


def localisation_3d(view: ClipView, rng: Rng) -> PreparedQuestion | None:
    if not view.is_3d or np.degrees(np.arccos(np.clip(-view.up0[1], -1, 1))) > LEVEL_DEG:
        return None
    f = int(rng.integers(len(view.frames)))
    one = pick(view, rng, 1, f)
    if one is None:
        return None
    n = one[0]
    length, width, height = view.sizes[n]
    heading = view.headings[n, f]
    yaw = float(np.arctan2(-heading[2], heading[0]))
    place = view.places(n, (f,))[0]
    sides = tuple(round(float(v), 2) for v in (length, height, width))
    answer = Answer(kind=AnswerKind.BOX3D, value=(*place, *sides, round(yaw, 2)), unit="m")
    query = query_about(view, "localisation_3d", {n: name_of(view, n, f)}, times=(view.times[f],))
    return PreparedQuestion(query=query, text=worded(rng, WHERE_3D, query), answer=answer)


WHERE_3D = (
    "Where is {a} at {t:g} s, in the axes of the camera at the first time? dx is its length, dy its height, dz its width; yaw "
    "is 0 when its length points along x, and turns x towards -z.",
)
