"""How large objects and rooms are, in metres."""

from __future__ import annotations

from videostr.data.clip_view import ClipView
from videostr.data.naming import name_of, pick, query_about
from videostr.data.questions.question import PreparedQuestion, Rng, number
from videostr.types import Query


def size(view: ClipView, rng: Rng) -> PreparedQuestion | None:
    if not view.is_3d:
        return None
    f = int(rng.integers(len(view.frames)))
    one = pick(view, rng, 1, f)
    if one is None:
        return None
    axis = int(rng.integers(3))
    sides, named = view.sizes[one[0]], {one[0]: name_of(view, one[0], f)}
    if all(track.is_static for track in view.tracks):  # boxes of a scan follow the room, not the object
        query = query_about(view, "size", named, times=(view.times[f],), axis="longest")
        return number(rng, LONGEST, query, round(float(sides.max()), 2), "m")
    dimension = ("long", "wide", "tall")[axis]
    query = query_about(view, "size", named, times=(view.times[f],), axis=dimension)
    return number(rng, SIZE, query, round(float(sides[axis]), 2), "m", dimension=dimension)


SIZE = (
    "How {dimension} is {a}, in metres?",
    "Estimate in metres how {dimension} {a} is.",
)
LONGEST = (
    "What is the length in metres of the longest side of {a}?",
    "How many metres does the longest side of {a} measure?",
)


def room_size(view: ClipView, rng: Rng) -> PreparedQuestion | None:
    if view.scene.room_size is None or not view.is_whole:
        return None
    return number(rng, ROOM, Query(family="room_size"), round(view.scene.room_size, 1), "m2")


ROOM = (
    "How large is the floor of this room, in square metres?",
    "Estimate the floor area of the room in square metres.",
)
