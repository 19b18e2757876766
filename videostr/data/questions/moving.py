"""Which way objects move, and relations between objects of which one moves at least; 3-D.

In: tracks with their names and the selected frames that are asked about. Out: choices whose words need no label, so that any
object that is marked can be asked about.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from videostr.data.clip_view import ClipView
from videostr.data.naming import AMBIGUITY_MARGIN, AMBIGUITY_MARGIN_M, Name, query_about
from videostr.data.questions.direction import AMBIGUITY_MARGIN_PX, AMBIGUITY_MARGIN_SLOPE
from videostr.data.questions.motion import LEAST_SPEED, MOVES_M, MOVES_SHARE
from videostr.data.questions.question import PreparedQuestion, Rng, choice, worded
from videostr.data.scene import Array
from videostr.query import STRAIGHT_DEG, turned
from videostr.types import Query

CLEARLY = 1.5
"""A direction is asked for where the larger part of a motion is so many times the smaller one."""
TURN_MARGIN_DEG = 8.0
"""Ways that turn by an angle closer to `STRAIGHT_DEG` are not asked about."""
SIDE = 0.35
"""Cosine of the angle from which on something is not at the side of a way: 70 degrees."""
LEAST_RATIO = 1.3
"""Of two speeds that can be told apart: annotated boxes jitter."""
LEAST_CHANGE = 1.0
"""And the least difference, m/s."""


def motion_over_ground(
    view: ClipView, rng: Rng, names: Mapping[int, Name], frames: Sequence[int]
) -> PreparedQuestion | None:
    """Return which way a track moves over the ground between two selected frames, in the axes of the first one's camera."""
    (n,) = names
    steps = _steps(view, n, frames)
    if steps is None:
        return None
    camera = view.cameras[frames[0]]
    right, _, forward = np.reshape(np.array(camera), (3, 4))[:, :3] @ steps[0]
    small, large = sorted((abs(right), abs(forward)))
    if large < CLEARLY * small:
        return None
    if abs(right) == large:
        way, axis = ("to the left", "to the right")[int(right > 0)], WAYS[:2]
    else:
        way, axis = ("towards the camera", "away from the camera")[int(forward > 0)], WAYS[2:]
    query = _motion_query(view, names, frames, axis="camera", camera=camera)
    options = WAYS if rng.integers(2) else axis
    return _choice(rng, WAY, query, way, dict(options))


WAYS = (
    ("to the left", "left"),
    ("to the right", "right"),
    ("towards the camera", "towards"),
    ("away from the camera", "away"),
)
WAY = (
    "Over the ground, which way does {a} move from {start:g} s to {end:g} s, as the camera stands at {start:g} s?",
    "Seen from where the camera is at {start:g} s, in which direction does {a} move until {end:g} s?",
)


def turn(
    view: ClipView, rng: Rng, names: Mapping[int, Name], frames: Sequence[int]
) -> PreparedQuestion | None:
    """Return to which side a track turns at the second of three selected frames, or that it goes straight on."""
    (n,) = names
    steps = _steps(view, n, frames)
    if steps is None:
        return None
    angle = turned(view.up0, steps[0], steps[1])
    if abs(abs(angle) - STRAIGHT_DEG) < TURN_MARGIN_DEG:
        return None
    way = "goes straight on" if abs(angle) < STRAIGHT_DEG else "turns right" if angle > 0 else "turns left"
    query = _motion_query(view, names, frames, axis="turn", up=view.up)
    return _choice(rng, TURN, query, way, TURNS)


TURNS = {"turns left": "left", "goes straight on": "straight", "turns right": "right"}
TURN = (
    "From {start:g} s over {middle:g} s to {end:g} s, does {a} turn, and to which of its sides?",
    "How does the way of {a} go on after {middle:g} s until {end:g} s, compared with that from {start:g} s to {middle:g} s?",
)


def motion_towards(
    view: ClipView, rng: Rng, names: Mapping[int, Name], frames: Sequence[int]
) -> PreparedQuestion | None:
    """Return whether the first of two tracks moves towards the place of the second or away from it."""
    n, other = names
    steps = _steps(view, n, frames)
    along = None if steps is None else _along(view, n, other, frames[0], steps[0])
    if along is None:
        return None
    query = _motion_query(view, names, frames, axis="object")
    return _choice(rng, TOWARDS, query, "towards it" if along > 0 else "away from it", TO_OBJECT)


TO_OBJECT = {"towards it": "towards", "away from it": "away"}
TOWARDS = (
    "From {start:g} s to {end:g} s, does {a} move towards the place where {b} is at {start:g} s, or away from it?",
    "Think of the place of {b} at {start:g} s. In which direction does {a} move from {start:g} s to {end:g} s?",
)


def motion_in_image(
    view: ClipView, rng: Rng, names: Mapping[int, Name], frames: Sequence[int]
) -> PreparedQuestion | None:
    """Return whether a track moves to the left or to the right in the image, between two selected frames."""
    (n,) = names
    first, last = frames
    shifts = [(view.boxes[n, f, 0] + view.boxes[n, f, 2]) / 2 for f in frames]
    gaps, least = [shifts[1] - shifts[0]], [AMBIGUITY_MARGIN_PX]
    if view.is_3d:
        before, after = (view.in_camera[f, n] for f in frames)
        if min(before[2], after[2]) <= 0:
            return None
        gaps.append(after[0] / after[2] - before[0] / before[2])
        least.append(2 * AMBIGUITY_MARGIN_SLOPE)
    if not (all(np.array(gaps) >= least) or all(-np.array(gaps) >= least)):  # also of NaN
        return None
    query = _motion_query(
        view, names, frames, axis="image", camera=view.cameras[first], camera_end=view.cameras[last]
    )
    return _choice(rng, IN_IMAGE, query, "to the right" if gaps[0] > 0 else "to the left", dict(WAYS[:2]))


IN_IMAGE = (
    "In the image, does {a} move to the left or to the right from {start:g} s to {end:g} s?",
    "From {start:g} s to {end:g} s, which way does the image of {a} move?",
)


def ahead(
    view: ClipView, rng: Rng, names: Mapping[int, Name], frames: Sequence[int]
) -> PreparedQuestion | None:
    """Return whether the second track is in front of the first or behind it, as the first one moves."""
    n, other = names
    steps = _steps(view, n, frames)
    if steps is None:
        return None
    along = _along(view, n, other, frames[-1], steps[0])
    if along is None:
        return None
    times = tuple(view.times[f] for f in frames)
    query = query_about(view, "ahead", names, times=times)
    return _choice(rng, AHEAD, query, "in front of it" if along > 0 else "behind it", IN_FRONT)


IN_FRONT = {"in front of it": "ahead", "behind it": "behind"}
AHEAD = (
    "{a} moves from {start:g} s to {end:g} s. In the direction of its motion, where is {b} at {end:g} s?",
    "As {a} moves from {start:g} s to {end:g} s, is {b} in front of it or behind it at {end:g} s?",
)


def approach(
    view: ClipView, rng: Rng, names: Mapping[int, Name], frames: Sequence[int]
) -> PreparedQuestion | None:
    """Return whether two tracks, of which one moves at least, come closer to each other or move apart."""
    a, b = names
    if _steps(view, a, frames) is None and _steps(view, b, frames) is None:
        return None
    before, after = (view.distance_between(a, b, f) for f in frames)
    if abs(after - before) < max(2 * AMBIGUITY_MARGIN_M, AMBIGUITY_MARGIN * max(before, after)):
        return None
    query = query_about(view, "approach", names, times=tuple(view.times[f] for f in frames))
    return _choice(rng, APPROACH, query, "they come closer" if after < before else "they move apart", CLOSER)


CLOSER = {"they come closer": "closer", "they move apart": "apart"}
APPROACH = (
    "From {start:g} s to {end:g} s, how does the distance between {a} and {b} change?",
    "Do {a} and {b} come closer to each other or move apart between {start:g} s and {end:g} s?",
)


def speed_change(
    view: ClipView, rng: Rng, names: Mapping[int, Name], frames: Sequence[int]
) -> PreparedQuestion | None:
    """Return whether a track is faster or slower from the second of three selected frames on than before."""
    (n,) = names
    steps, times = _steps(view, n, frames), [view.times[f] for f in frames]
    if steps is None:
        return None
    before, after = (float(np.linalg.norm(s)) / d for s, d in zip(steps, np.diff(times), strict=True))
    if min(before, after) < LEAST_SPEED or abs(after - before) < max(
        LEAST_CHANGE, (LEAST_RATIO - 1) * min(before, after)
    ):
        return None
    query = query_about(view, "speed_change", names, times=tuple(times))
    return _choice(rng, CHANGE, query, "faster" if after > before else "slower", FASTER)


FASTER = {"faster": "faster", "slower": "slower"}
CHANGE = (
    "Is {a} faster or slower from {middle:g} s to {end:g} s than from {start:g} s to {middle:g} s?",
    "Compared with its speed from {start:g} s to {middle:g} s, how does {a} move from {middle:g} s to {end:g} s?",
)


def _motion_query(view: ClipView, names: Mapping[int, Name], frames: Sequence[int], **values: Any) -> Query:
    return query_about(view, "motion_direction", names, times=tuple(view.times[f] for f in frames), **values)


def _choice(
    rng: Rng, texts: Sequence[str], query: Query, truth: str, options: Mapping[str, str]
) -> PreparedQuestion:
    text = worded(rng, texts, query, middle=query.times[len(query.times) // 2])
    return choice(rng, text, query, truth, options, (query.axis, *query.names))


def _along(view: ClipView, n: int, other: int, frame: int, step: Array) -> float | None:
    """Return metres from a track to another one along a step of the first; None where the other is at its side or close."""
    between = view.positions[other, frame] - view.positions[n, frame]
    along = float(between @ step / np.linalg.norm(step))
    return along if abs(along) >= max(2.0, SIDE * float(np.linalg.norm(between))) else None


def _steps(view: ClipView, n: int, frames: Sequence[int]) -> list[Array] | None:
    """Return [3] metres that a track moves from each selected frame to the next; None where one may be jitter."""
    steps = [view.positions[n, b] - view.positions[n, a] for a, b in pairwise(frames)]
    least = max(MOVES_M, MOVES_SHARE * view.camera_path(frames[0], frames[-1]))
    return steps if all(np.linalg.norm(step) >= least for step in steps) else None
