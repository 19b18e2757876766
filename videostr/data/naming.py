"""How questions name the objects of a clip.

An object is named by its label where it is the only one of it in the clip, else by its label and its 2-D box at a time. Boxes
tell what is left of what, and nearly what is nearer, so that choices name no box: an object is the only one of its label
there, or the one nearest to the camera.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from videostr.data.clip_view import RANGE_M, ClipView
from videostr.data.questions.question import Rng
from videostr.types import Query

AMBIGUITY_MARGIN = 0.15
"""Share of a threshold or a distance that two things must differ by to be told apart."""
AMBIGUITY_MARGIN_M = 0.5
"""And the least difference in metres."""


@dataclass(frozen=True, slots=True)
class Name:
    """What to call a track."""

    text: str
    box: tuple[float, float, float, float, float] | None = None
    """(t, x1, y1, x2, y2) where the text names it by a box."""


def query_about(view: ClipView, family: str, named: Mapping[int, Name], **values: Any) -> Query:
    """Return the query about tracks, in the order of the question."""
    return Query(
        family=family,
        objects=tuple(view.ids[n] for n in named),
        names=tuple(name.text for name in named.values()),
        boxes=tuple(name.box for name in named.values() if name.box is not None),
        **values,
    )


def name_of(view: ClipView, n: int, f: int, *, by_box: bool = False) -> Name:
    """Return what to call a track: by its label, with its box at a selected frame where the label alone fits others, too."""
    label = plain(view.labels[n])
    if is_unique(view, n) and not by_box:
        return Name(f"the {label}")
    t, (x1, y1, x2, y2) = view.times[f], view.boxes[n, f].tolist()
    return Name(f"the {label} (box [{x1:.0f},{y1:.0f},{x2:.0f},{y2:.0f}] px at {t:g} s)", (t, x1, y1, x2, y2))


def name_without_box(view: ClipView, n: int, f: int, *, with_time: bool = False) -> Name | None:
    """Return what to call a track that is the only one of its label, or clearly the nearest, at a selected frame; else None.

    Args:
        view: the clip.
        n: the track.
        f: selected frame.
        with_time: say at what time it is the nearest, because the question is about several.
    """
    label = plain(view.labels[n])
    margin = view.depth_margin[n, f]
    if not is_countable(view, view.labels[n]) or np.isnan(margin):
        return None
    if is_unique(view, n) or (np.isinf(margin) and margin > 0 and not with_time):
        return Name(f"the {label}")
    if not view.is_3d:
        return None
    least = max(AMBIGUITY_MARGIN_M, AMBIGUITY_MARGIN * (view.distances[n, f] + min(margin, RANGE_M)))
    if not margin >= least:
        return None
    return Name(f"the {label} nearest to the camera" + (f" at {view.times[f]:g} s" if with_time else ""))


def plain(label: str) -> str:
    """Return the label as words."""
    return label.replace("_", " ")


def is_countable(view: ClipView, label: str) -> bool:
    """Return whether the source annotates every instance of the label."""
    return view.scene.countable is None or label in view.scene.countable


def is_unique(view: ClipView, n: int) -> bool:
    """Return whether the scene has no second one of the label in any annotated frame of the clip, and none could be missing."""
    return is_countable(view, view.labels[n]) and view.in_clip[view.labels[n]] == 1


def is_unique_at(view: ClipView, n: int, f: int) -> bool:
    """Return whether no second one of the label is annotated at a selected frame, and none could be missing."""
    return is_countable(view, view.labels[n]) and bool(view.depth_margin[n, f] == np.inf)


def is_nameable(view: ClipView, n: int, f: int) -> bool:
    """Return whether it is the only one of its label, or large enough at a selected frame for its box to tell it."""
    return is_unique(view, n) or bool(view.large[n, f])


def pick(view: ClipView, rng: Rng, count: int, f: int) -> list[int] | None:
    """So many tracks that are clearly seen at a selected frame and can be named."""
    able = [n for n in rng.permutation(np.flatnonzero(view.clear[:, f])) if is_nameable(view, int(n), f)]
    return [int(n) for n in able[:count]] if len(able) >= count else None


def pick_named(view: ClipView, rng: Rng, count: int, f: int) -> dict[int, Name] | None:
    """So many tracks of different labels that are clearly seen at a selected frame, with names that need no box."""
    names = {
        int(n): name_without_box(view, int(n), f) for n in rng.permutation(np.flatnonzero(view.clear[:, f]))
    }
    able = [(n, name) for n, name in names.items() if name]
    return dict(able[:count]) if len(able) >= count else None
