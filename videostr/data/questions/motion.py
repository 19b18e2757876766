"""How far and how fast an object moves; 3-D."""

from __future__ import annotations

import numpy as np

from videostr.data.clip_view import ClipView
from videostr.data.naming import Name, is_nameable, name_of, name_without_box, query_about
from videostr.data.questions.question import PreparedQuestion, Rng, number, numeric_choice
from videostr.query import DECIMALS, path
from videostr.types import Query

MOVES_M = 1.5
"""An object whose centre moves less may as well be parked: annotated boxes jitter."""
MOVES_SHARE = 0.05
"""And as a share of the camera's own path: poses drift (KITTI's from visual odometry by 3 %), and parked cars with them."""
LEAST_SPEED = 0.5
"""Metres a second; slower things are not asked about."""


def displacement(view: ClipView, rng: Rng) -> PreparedQuestion | None:
    moving = _moving(view, rng)
    if moving is None:
        return None
    n, first, last = moving
    moved = path(view.places(n, (first, last)))
    if (name := name_without_box(view, n, first, with_time=True)) and rng.integers(2):
        key = (view.labels[n], str(round(np.log2(view.times[last] - view.times[first]))))
        query = _query(view, "displacement", moving, name)
        return numeric_choice(rng, DISPLACEMENT, query, moved, "m", MOVES_M, key)
    query = _query(view, "displacement", moving, name_of(view, n, first))
    return number(rng, DISPLACEMENT, query, round(moved, DECIMALS), "m")


DISPLACEMENT = (
    "How far, in metres and in a straight line over the ground, does {a} move from {start:g} s to {end:g} s?",
    "What is the displacement of {a} between {start:g} s and {end:g} s, in metres?",
    "How many metres are the places of {a} at {start:g} s and at {end:g} s apart?",
)


def path_length(view: ClipView, rng: Rng) -> PreparedQuestion | None:
    moving = _moving(view, rng)
    if moving is None:
        return None
    n, first, _ = moving
    query = _query(view, "path_length", moving, name_of(view, n, first))
    return number(rng, PATH, query, round(_path(view, *moving), DECIMALS), "m")


PATH = (
    "How long is the path of {a} from {start:g} s to {end:g} s, in metres?",
    "How many metres does {a} travel between {start:g} s and {end:g} s, along its path?",
)


def speed(view: ClipView, rng: Rng) -> PreparedQuestion | None:
    moving = _moving(view, rng)
    if moving is None:
        return None
    n, first, last = moving
    speed = _path(view, n, first, last) / (view.times[last] - view.times[first])
    if not speed >= LEAST_SPEED:
        return None
    if (name := name_without_box(view, n, first, with_time=True)) and rng.integers(2):
        query = _query(view, "speed", moving, name)
        return numeric_choice(rng, SPEED, query, speed, "m/s", LEAST_SPEED, (view.labels[n],))
    query = _query(view, "speed", moving, name_of(view, n, first))
    return number(rng, SPEED, query, round(speed, DECIMALS), "m/s")


SPEED = (
    "What is the mean speed of {a} from {start:g} s to {end:g} s, in m/s?",
    "How fast does {a} move on average between {start:g} s and {end:g} s, in m/s?",
)


def _moving(view: ClipView, rng: Rng) -> tuple[int, int, int] | None:
    """Return a track that moves, with the first and the last selected frame that show it without a break between."""
    if not view.is_3d:
        return None
    found = []
    for n, clear in enumerate(view.clear):
        at = np.flatnonzero(clear)
        if len(at) < 2 or at[-1] - at[0] != len(at) - 1:
            continue
        first, last = int(at[0]), int(at[-1])
        moved = path(view.places(n, (first, last)))
        if moved >= max(MOVES_M, MOVES_SHARE * view.camera_path(first, last)) and is_nameable(view, n, first):
            found.append((n, first, last))
    return found[int(rng.integers(len(found)))] if found else None


def _path(view: ClipView, n: int, first: int, last: int) -> float:
    """Through the selected frames: between them jitter of the boxes would add up."""
    return path(view.places(n, range(first, last + 1)))


def _query(view: ClipView, family: str, moving: tuple[int, int, int], name: Name) -> Query:
    n, first, last = moving
    return query_about(view, family, {n: name}, times=(view.times[first], view.times[last]))
