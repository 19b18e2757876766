"""Left, right, nearer, farther: two objects as the camera sees them, or three with one of them facing another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from videostr.data.clip_view import ClipView
from videostr.data.naming import AMBIGUITY_MARGIN, AMBIGUITY_MARGIN_M, Name, pick_named, query_about
from videostr.data.questions.question import PreparedQuestion, Rng, choice, worded
from videostr.data.scene import Array
from videostr.query import QUARTERS, direction_at

AMBIGUITY_MARGIN_PX = 60.0
"""What two things must differ by in the image to be told apart, px of 0..1000."""
AMBIGUITY_MARGIN_SLOPE = 0.02
"""And, in 3-D, metres to the side for a metre of depth: the middle of a box that the border cuts is not that of the object."""
AMBIGUITY_MARGIN_DEG = 20.0
"""Angles closer to the border between two directions are not asked."""


def direction_camera(view: ClipView, rng: Rng) -> PreparedQuestion | None:
    f = int(rng.integers(len(view.frames)))
    names = pick_named(view, rng, 2, f)
    return None if names is None else from_camera(view, rng, names, f)


def from_camera(view: ClipView, rng: Rng, names: Mapping[int, Name], f: int) -> PreparedQuestion | None:
    """Return where the first of two tracks is as the camera sees them at a selected frame that shows both."""
    pair = list(names)
    in_depth = view.is_3d and bool(rng.integers(2))
    places = view.in_camera[f, pair] if view.is_3d else None
    if in_depth and places is not None:
        # By depth as by distance: of two things, the one farther to the side may be nearer in one and farther in the other.
        far = np.array([places[:, 2], view.distances[pair, f]])
        gaps = far[:, 0] - far[:, 1]
        least = np.maximum(AMBIGUITY_MARGIN_M, AMBIGUITY_MARGIN * np.abs(far.max(1)))
        axis, words, texts = "depth", NEARER_FARTHER, DEPTH
    else:
        centres = (view.boxes[pair, f, 0] + view.boxes[pair, f, 2]) / 2
        gaps, least = centres[:1] - centres[1:], np.array([AMBIGUITY_MARGIN_PX])
        axis, words, texts = "image", LEFT_RIGHT, SIDE
        if places is not None:
            if not (places[:, 2] > 0).all():
                return None
            slopes = places[:, 0] / places[:, 2]
            gaps, least = np.append(gaps, slopes[0] - slopes[1]), np.append(least, AMBIGUITY_MARGIN_SLOPE)
    if not ((gaps >= least).all() or (-gaps >= least).all()):
        return None
    truth = list(words)[int(gaps[0] > 0)]
    query = query_about(
        view, "direction_camera", names, times=(view.times[f],), axis=axis, camera=view.cameras[f]
    )
    return choice(rng, worded(rng, texts, query), query, truth, words, query.names)


LEFT_RIGHT = {"left": "left", "right": "right"}
NEARER_FARTHER = {"nearer to the camera": "nearer", "farther from the camera": "farther"}
SIDE = (
    "At {t:g} s, is {a} to the left or to the right of {b} in the image?",
    "As the camera sees it at {t:g} s, on which side of {b} is {a}?",
    "On which side of {b} does the image show {a} at {t:g} s?",
)
DEPTH = (
    "At {t:g} s, is {a} nearer to the camera than {b}, or farther from it?",
    "Compared with {b}, how far from the camera is {a} at {t:g} s?",
    "At {t:g} s, which holds for {a} in comparison with {b}?",
)


def direction_object(view: ClipView, rng: Rng) -> PreparedQuestion | None:
    if not view.is_3d:
        return None
    f = int(rng.integers(len(view.frames)))
    names = pick_named(view, rng, 3, f)
    return None if names is None else from_object(view, rng, names, f, QUARTERS)


def from_object(
    view: ClipView, rng: Rng, names: Mapping[int, Name], f: int, directions: Sequence[str]
) -> PreparedQuestion | None:
    """Return where the third of three tracks is for someone who stands at the first and faces the second.

    Args:
        view: the clip, 3-D.
        rng: of the words.
        names: of three tracks that selected frame `f` shows.
        f: selected frame.
        directions: one of `STANCES`, the options.
    """
    a, b, c = view.level[list(names), f]
    facing, target = b - a, c - a
    if min(np.linalg.norm(facing), np.linalg.norm(target)) < 1.0:
        return None
    right, forward = _coordinates(facing, target)
    angle = float(np.degrees(np.arctan2(right, forward)))
    border = min(abs((angle - each + 180) % 360 - 180) for each in BORDERS_DEG[len(directions)])
    if border < AMBIGUITY_MARGIN_DEG:
        return None
    truth = direction_at(angle, directions)
    query = query_about(view, "direction_object", names, times=(view.times[f],), up=view.up)
    text = worded(rng, STANCE, query)
    return choice(rng, text, query, truth, {each: each for each in directions}, query.names)


BORDERS_DEG = {2: (0, 180), 3: (0, 135, -135), 4: (0, 90, 180, -90)}
"""Angles at which one direction ends and the next begins, clockwise from straight ahead, by the number of directions."""


STANCE = (
    "At {t:g} s, someone stands at {a} and faces {b}. Where is {c} from there?",
    "If I stand at the place of {a} at {t:g} s and look towards {b}, in which direction is {c}?",
    "Seen from {a} with {b} straight ahead, where is {c} at {t:g} s?",
)


def _coordinates(facing: Array, target: Array) -> tuple[float, float]:
    """Return (right, forward) parts of a target, [2] level vectors with x to the right of y."""
    along = facing / np.linalg.norm(facing)
    return float(target[0] * along[1] - target[1] * along[0]), float(target @ along)
