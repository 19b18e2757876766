"""How large objects and rooms are, in metres."""

from __future__ import annotations

from videostr.data.clips import ClipView
from videostr.data.naming import labels_of, name_of, pick
from videostr.data.questions.question import PreparedQuestion, Rng, number


def size(view: ClipView, rng: Rng) -> PreparedQuestion | None:
    if not view.is_3d:
        return None
    f = int(rng.integers(len(view.frames)))
    one = pick(view, rng, 1, f)
    if one is None:
        return None
    axis = int(rng.integers(3))
    name = name_of(view, one[0], f)
    sides = view.sizes[one[0]]
    if all(track.is_static for track in view.tracks):  # boxes of a scan follow the room, not the object
        return number(
            "size", rng, LONGEST, round(float(sides.max()), 2), "m", a=name, labels=labels_of(view, one)
        )
    return number(
        "size", rng, SIZE, round(float(sides[axis]), 2), "m",
        a=name, dimension=("long", "wide", "tall")[axis], labels=labels_of(view, one),
    )  # fmt: skip


SIZE = (
    "How {dimension} is {a}, in metres?",
    "Estimate in metres how {dimension} {a} is.",
)
LONGEST = (
    "What is the length in metres of the longest side of {a}?",
    "How many metres does the longest side of {a} measure?",
)


def room_size(view: ClipView, rng: Rng) -> PreparedQuestion | None:
    if view.scene.room_size is None:
        return None
    return number("room_size", rng, ROOM, round(view.scene.room_size, 1), "m2", labels=set())


ROOM = (
    "How large is the floor of this room, in square metres?",
    "Estimate the floor area of the room in square metres.",
)
