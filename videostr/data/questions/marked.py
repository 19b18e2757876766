"""Questions about marked objects: any object that is seen well can be asked about, whatever its label.

In: a clip. Out: up to `limit` drafts of each family, in rounds, about the same marks: each of up to `MOST_MARKED` objects has
one, in a frame of its own, at random. Texts of marks are dealt at random, too, so a question's words tell nothing. What the
places of the marks tell is balanced (`videostr/data/places.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from videostr.data.clip_view import ClipView
from videostr.data.naming import Name
from videostr.data.places import balance_of
from videostr.data.questions import direction, distance, moving, order
from videostr.data.questions.question import PreparedQuestion, Rng
from videostr.marks import STYLES, name_of_mark
from videostr.query import STANCES, entailed
from videostr.types import Mark

MOST_MARKED = 7
LATE = {"order"}
"""Families whose marks are in frames by which all marked objects have come into view: else the earliest would tell."""
LAYOUTS = 5
"""Sets of marks of a clip for these."""
MISSES = 12
"""Tries in a row without a new question, after which a family has no more of a clip."""
INTRODUCTIONS = {
    "numbers": "Numbers mark objects, each in one of the frames. ",
    "letters": "Letters mark objects, each in one of the frames. ",
    "outlines": "Coloured outlines mark objects, each in one of the frames. ",
}


@dataclass(frozen=True, slots=True)
class Marked:
    """The marks of a clip."""

    view: ClipView
    marks: tuple[Mark, ...]
    names: Mapping[int, Name]
    """Of the marked tracks."""
    clear: list[list[bool]]
    """[N][F] `ClipView.clear`."""

    def pick(self, rng: Rng, count: int, *frames: int) -> dict[int, Name] | None:
        """Return so many marked tracks in random order, all clearly seen at the selected frames; None where they are fewer."""
        able = [n for n in self.names if all(self.clear[n][f] for f in frames)]
        if len(able) < count:
            return None
        return {n: self.names[n] for n in rng.permutation(able)[:count].tolist()}


def mark_objects(view: ClipView, rng: Rng, style: str, since: int = 0) -> Marked:
    """Return marks of a clip, each in one frame, on objects that are clearly seen, with their centres, in two selected frames.

    Args:
        view: the clip.
        rng: of objects, texts and frames.
        style: one of `STYLES`.
        since: selected frame by which all marked objects have come into view, and before which no mark is drawn; 0 for none.
    """
    able = view.clear & view.large & view.centred
    able[able.sum(1) < 2] = False
    if since:
        able[~(view.visibility[:, : since + 1] > 0).any(1)] = False
        able[:, :since] = False
    chosen = rng.permutation(np.flatnonzero(able.any(1)))[:MOST_MARKED]
    texts = rng.permutation(STYLES[style][: len(chosen)])
    marks = []
    for n, text in zip(chosen.tolist(), texts.tolist(), strict=True):
        f = int(rng.choice(np.flatnonzero(able[n])))
        x1, y1, x2, y2 = view.boxes[n, f].tolist()
        marks.append(Mark(object=view.ids[n], text=text, boxes=((view.times[f], x1, y1, x2, y2),)))
    names = {n: Name(name_of_mark(mark.text)) for n, mark in zip(chosen.tolist(), marks, strict=True)}
    return Marked(view, tuple(marks), names, view.clear.tolist())


Draft = Callable[[Marked, Rng], PreparedQuestion | None]


def _direction_camera(marked: Marked, rng: Rng) -> PreparedQuestion | None:
    (f,) = _frames(marked.view, rng, 1)
    names = marked.pick(rng, 2, f)
    return direction.from_camera(marked.view, rng, names, f) if names else None


def _direction_object(marked: Marked, rng: Rng) -> PreparedQuestion | None:
    (f,) = _frames(marked.view, rng, 1)
    names = marked.pick(rng, 3, f)
    directions = STANCES[int(rng.integers(len(STANCES)))]
    return direction.from_object(marked.view, rng, names, f, directions) if names else None


def _distance_relative(marked: Marked, rng: Rng) -> PreparedQuestion | None:
    (f,) = _frames(marked.view, rng, 1)
    names = marked.pick(rng, 5, f) or marked.pick(rng, 4, f)
    return distance.nearest_or_farthest(marked.view, rng, names, f) if names else None


def _order(marked: Marked, rng: Rng) -> PreparedQuestion | None:
    most, first_only = ((2, False), (2, False), (3, False), (3, True), (4, True))[int(rng.integers(5))]
    found = order.of_appearance(marked.view, rng, marked.names, most=most, first_only=first_only)
    # Two cars that are never seen together may be one to a reader of the graph.
    if found is None or entailed(found.query, marked.view.graph(found.labels)) != found.answer:
        return None
    return found


def _motion_direction(marked: Marked, rng: Rng) -> PreparedQuestion | None:
    """Ask for one of its kinds at random; one that the clip does not support is a miss."""
    of_kind = MOTIONS[int(rng.integers(len(MOTIONS)))] if marked.view.is_3d else moving.motion_in_image
    frames = _frames(marked.view, rng, 3 if of_kind is moving.turn else 2)
    names = marked.pick(rng, 2 if of_kind is moving.motion_towards else 1, *frames)
    return of_kind(marked.view, rng, names, frames) if names else None


MOTIONS = (
    *(moving.motion_in_image, moving.motion_in_image, moving.motion_towards, moving.motion_towards),
    *(moving.motion_over_ground, moving.turn),
)
"""Kinds of motion directions, by how often they are tried: a turn is rare."""


def _speed_change(marked: Marked, rng: Rng) -> PreparedQuestion | None:
    frames = _frames(marked.view, rng, 3)
    names = marked.pick(rng, 1, *frames)
    return moving.speed_change(marked.view, rng, names, frames) if names else None


def _ahead(marked: Marked, rng: Rng) -> PreparedQuestion | None:
    frames = _frames(marked.view, rng, 2)
    names = marked.pick(rng, 2, *frames)
    return moving.ahead(marked.view, rng, names, frames) if names else None


def _approach(marked: Marked, rng: Rng) -> PreparedQuestion | None:
    frames = _frames(marked.view, rng, 2)
    names = marked.pick(rng, 2, *frames)
    return moving.approach(marked.view, rng, names, frames) if names else None


def _frames(view: ClipView, rng: Rng, count: int) -> list[int]:
    """Return so many different selected frames, ascending."""
    chosen: list[int] = np.sort(rng.permutation(len(view.frames))[:count]).tolist()
    return chosen


IN_IMAGE: dict[str, Draft] = {
    "direction_camera": _direction_camera,
    "motion_direction": _motion_direction,
    "order": _order,
}
"""Families that need no metres."""
MARKED: dict[str, Draft] = {
    **IN_IMAGE,
    "direction_object": _direction_object,
    "distance_relative": _distance_relative,
    "speed_change": _speed_change,
    "ahead": _ahead,
    "approach": _approach,
}


def ask_marked(
    view: ClipView, rng: Rng, style: str, limit: int, families: Sequence[str] = ()
) -> Iterator[tuple[PreparedQuestion, tuple[Mark, ...]]]:
    """Yield different questions about marked objects of a clip, with the marks; all have a graph.

    Args:
        view: the clip.
        rng: of marks and questions.
        style: one of `STYLES`.
        limit: tries of each family.
        families: those that are asked; () is all.
    """
    early = mark_objects(view, rng, style)
    late = [
        mark_objects(view, rng, style, since=int(rng.integers(1, len(view.frames)))) for _ in range(LAYOUTS)
    ]
    wanted = [name for name in (MARKED if view.is_3d else IN_IMAGE) if not families or name in families]
    seen: set[tuple[str, tuple[str, ...]]] = set()
    misses = dict.fromkeys(wanted, 0)
    fits: dict[frozenset[str], bool] = {}
    for number, name in enumerate(wanted * limit):
        if misses[name] == MISSES:
            continue
        marked = late[number // len(wanted) % LAYOUTS] if name in LATE else early
        found = MARKED[name](marked, rng) if len(marked.marks) > 1 else None
        if found is None or (key := (found.text, tuple(sorted(found.options)))) in seen:
            misses[name] += 1
            continue
        misses[name] = 0
        seen.add(key)
        if found.labels not in fits:
            fits[found.labels] = view.graph_labels(found.labels, rng) is not None
        if not fits[found.labels]:
            continue
        balance = balance_of(found.query, found.answer, marked.marks)
        yield replace(found, text=INTRODUCTIONS[style] + found.text, balance=balance), marked.marks
