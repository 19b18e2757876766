"""Clip -> questions: the question families, each asked only where the clip supports it and the answer is beyond doubt.

In: a `ClipView` and a random generator. Out: `Asked`: text, options, answer, and a key under which answers are balanced
(`videostr/data/balance.py`), so that the question alone tells nothing of the answer. Ambiguous cases are left out by the
thresholds below: near ties, hidden objects, several objects that the words would fit.

    family                answer          needs
    counting              number          a label all of whose instances are annotated
    direction_camera      choice of 2     one frame; left/right in the image, nearer/farther in 3-D
    direction_object      choice of 4     3-D, three objects: standing at A, facing B, where is C
    distance_relative     choice of 3     3-D, four objects
    distance_absolute     number, choice  3-D, two objects
    order                 choice          objects that come into view one after the other
    size                  number          3-D
    displacement          number, choice  3-D, an object that moves
    path_length           number          3-D, an object that moves
    speed                 number, choice  3-D, an object that moves
    tracking              track           2-D boxes
    localisation_2d       box2d           2-D boxes
    localisation_3d       box3d           3-D, camera level
    presence              span            an object that comes or goes
    room_size             number          a source that tells it
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import permutations
from typing import Any

import numpy as np

from videostr.data.asked import Asked, Balance, Rng, choice, ladder, number, worded
from videostr.data.clips import ClipView
from videostr.data.naming import (
    UNSURE,
    UNSURE_M,
    is_countable,
    is_nameable,
    is_unique,
    is_unique_at,
    labels_of,
    name_of,
    name_without_box,
    ordered_labels,
    pick,
    pick_named,
    plain,
)
from videostr.data.scene import Array, ground_axes
from videostr.types import Answer, AnswerKind

COUNT_WITHIN_M = 30.0
"""Objects of a street are counted within this distance of the camera."""
UNSURE_PX = 60.0
"""What two things must differ by in the image to be told apart, px of 0..1000."""
UNSURE_DEG = 20.0
"""Angles closer to the border between two directions are not asked."""
MOVES_M = 1.5
"""An object whose centre moves less may as well be parked: annotated boxes jitter."""
MOVES_SHARE = 0.05
"""And as a share of the camera's own path: poses drift (KITTI's from visual odometry by 3 %), and parked cars with them."""
LEVEL_DEG = 5.0
"""Largest tilt of the camera at which a box that turns about the vertical is one that turns about the camera's y axis."""
LEAST_SPEED = 0.5
"""Metres a second; slower things are not asked about."""
LEAST_DISTANCE_M = 1.0
"""Between the centres of two objects that are asked about."""

Family = Callable[[ClipView, Rng], Asked | None]


def ask(view: ClipView, rng: Rng, limit: int, families: Sequence[str] = ()) -> list[Asked]:
    """Up to `limit` different questions about a clip, of these families (() is all) in turn."""
    found: dict[tuple[str, str], Asked] = {}
    barren = 0
    while len(found) < limit and barren < TRIES:
        before = len(found)
        for name in rng.permutation(families or list(FAMILIES)):
            asked = FAMILIES[str(name)](view, rng)
            if asked is not None and len(found) < limit:
                found.setdefault((asked.family, asked.text), asked)
        barren = barren + 1 if len(found) == before else 0
    return list(found.values())


TRIES = 3
"""Rounds over all families without a new question, after which a clip has no more."""

# ---------------------------------------------------------------------------------------------------- counting


def _counting(view: ClipView, rng: Rng) -> Asked | None:
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
        if (np.abs(distance - COUNT_WITHIN_M) < UNSURE * COUNT_WITHIN_M).any():
            return None
        counted = distance < COUNT_WITHIN_M  # NaN where not annotated
        where = f" within {COUNT_WITHIN_M:g} m of the camera"
    count = int(counted.sum())
    if count == 0 or not clear[counted, f].all():
        return None
    return _count(rng, COUNT_AT, count, label, t=view.times[f], where=where)


def _count(rng: Rng, texts: Sequence[str], count: int, label: str, **values: object) -> Asked:
    """Half of the answers are 1, else "1" would nearly always be right."""
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


# --------------------------------------------------------------------------------------------------- direction


def _direction_camera(view: ClipView, rng: Rng) -> Asked | None:
    f = int(rng.integers(len(view.frames)))
    names = pick_named(view, rng, 2, f)
    if names is None:
        return None
    a, b = pair = list(names)
    in_depth = view.is_3d and bool(rng.integers(2))
    if in_depth:
        # By depth as by distance: of two things, the one farther to the side may be nearer in one and farther in the other.
        far = np.array([view.in_camera(f)[pair, 2], view.distances[pair, f]])
        gaps, least = far[:, 0] - far[:, 1], np.maximum(UNSURE_M, UNSURE * np.abs(far.max(1)))
        words, texts = ("nearer to the camera", "farther from the camera"), DEPTH
    else:
        centres = (view.boxes[pair, f, 0] + view.boxes[pair, f, 2]) / 2
        gaps, least = centres[:1] - centres[1:], np.array([UNSURE_PX])
        words, texts = ("left", "right"), SIDE
    if not ((gaps >= least).all() or (-gaps >= least).all()):
        return None
    truth = words[int(gaps[0] > 0)]
    text = worded(rng, texts, a=names[a], b=names[b], t=view.times[f])
    return choice("direction_camera", rng, text, truth, words, labels_of(view, pair), tuple(names.values()))


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


def _direction_object(view: ClipView, rng: Rng) -> Asked | None:
    if not view.is_3d:
        return None
    f = int(rng.integers(len(view.frames)))
    names = pick_named(view, rng, 3, f)
    if names is None:
        return None
    a, b, c = (_level(view, n, f) for n in names)
    facing, target = b - a, c - a
    if min(np.linalg.norm(facing), np.linalg.norm(target)) < 1.0:
        return None
    right, forward = _coordinates(facing, target)
    angle = float(np.degrees(np.arctan2(right, forward)))
    quarter = int(angle % 360 // 90)
    border = min(abs((angle - 90 * k + 180) % 360 - 180) for k in range(4))
    if border < UNSURE_DEG:
        return None
    text = worded(rng, STANCE, **dict(zip("abc", names.values(), strict=True)), t=view.times[f])
    labels = labels_of(view, list(names))
    return choice("direction_object", rng, text, QUARTERS[quarter], QUARTERS, labels, tuple(names.values()))


QUARTERS = ("front-right", "back-right", "back-left", "front-left")
STANCE = (
    "At {t:g} s, someone stands at {a} and faces {b}. Where is {c} from there?",
    "If I stand at the place of {a} at {t:g} s and look towards {b}, in which direction is {c}?",
    "Seen from {a} with {b} straight ahead, where is {c} at {t:g} s?",
)


def _coordinates(facing: Array, target: Array) -> tuple[float, float]:
    """(right, forward) parts of a target, [2] level vectors with x to the right of y."""
    along = facing / np.linalg.norm(facing)
    return float(target[0] * along[1] - target[1] * along[0]), float(target @ along)


# ---------------------------------------------------------------------------------------------------- distance


def _distance_relative(view: ClipView, rng: Rng) -> Asked | None:
    """Among three objects of different labels."""
    if not view.is_3d:
        return None
    f = int(rng.integers(len(view.frames)))
    names = pick_named(view, rng, 4, f)
    if names is None:
        return None
    target, *others = names
    distances = np.linalg.norm(_places(view, others, f) - _places(view, [target], f), axis=1)
    nearest = bool(rng.integers(2))
    order = np.argsort(distances if nearest else -distances)
    best, second = distances[order[:2]]
    if abs(best - second) < max(UNSURE_M, UNSURE * max(best, second)):
        return None
    options = tuple(sorted(names[n] for n in others))
    text = worded(rng, NEAREST if nearest else FARTHEST, a=names[target], t=view.times[f])
    key = (str(nearest), names[target], *options)
    truth = names[others[int(order[0])]]
    return choice("distance_relative", rng, text, truth, options, labels_of(view, list(names)), key)


NEAREST = (
    "At {t:g} s, which of these is closest to {a}?",
    "Which of these has the shortest distance to {a} at {t:g} s?",
    "What is nearest to {a} at {t:g} s?",
)
FARTHEST = (
    "At {t:g} s, which of these is farthest from {a}?",
    "Which of these has the longest distance to {a} at {t:g} s?",
    "What is at the greatest distance from {a} at {t:g} s?",
)


def _distance_absolute(view: ClipView, rng: Rng) -> Asked | None:
    if not view.is_3d:
        return None
    f = int(rng.integers(len(view.frames)))
    pair = pick(view, rng, 2, f)
    if pair is None:
        return None
    a, b = _places(view, pair, f)
    distance = float(np.linalg.norm(a - b))
    values: dict[str, Any] = {"t": view.times[f], "labels": labels_of(view, pair)}
    names = [name_without_box(view, n, f) for n in pair]
    if all(names) and rng.integers(2):
        key = sorted(ordered_labels(view, pair))
        return ladder(
            "distance_absolute",
            rng,
            DISTANCE,
            distance,
            "m",
            LEAST_DISTANCE_M,
            key,
            a=names[0],
            b=names[1],
            **values,
        )
    if not distance >= LEAST_DISTANCE_M:
        return None
    names = [name_of(view, n, f) for n in pair]
    return number(
        "distance_absolute", rng, DISTANCE, round(distance, 1), "m", a=names[0], b=names[1], **values
    )


DISTANCE = (
    "At {t:g} s, how far apart are the centres of {a} and {b}, in metres?",
    "What is the distance in metres from the centre of {a} to that of {b} at {t:g} s?",
    "How many metres lie between the centres of {a} and {b} at {t:g} s?",
)

# ------------------------------------------------------------------------------------------------ order, presence


def _order(view: ClipView, rng: Rng) -> Asked | None:
    firsts = _first_seen(view)
    unique = [n for n in range(len(view.tracks)) if is_unique(view, n) and n in firsts]
    chosen: list[int] = []
    for n in rng.permutation(unique):
        if all(abs(firsts[int(n)] - firsts[m]) >= 2 for m in chosen):
            chosen.append(int(n))
    if len(chosen) < 2:
        return None
    chosen = sorted(chosen[:3], key=lambda n: firsts[n])
    labels = [plain(view.labels[n]) for n in chosen]
    options = tuple(sorted(", ".join(order) for order in permutations(labels)))
    text = worded(rng, ORDER, names=", ".join(sorted(f"the {label}" for label in labels)))
    key = tuple(sorted(labels))
    return choice("order", rng, text, ", ".join(labels), options, labels_of(view, chosen), key)


ORDER = (
    "In which order do these come into view for the first time: {names}?",
    "Which is the order of first appearance of {names}?",
    "Of {names}, which comes into view first, and what follows?",
)


def _first_seen(view: ClipView) -> dict[int, int]:
    """Selected frame that shows a track first, where that frame or the next shows it clearly."""
    firsts = {}
    for n, (shown, clear) in enumerate(zip(view.visibility > 0, view.clear, strict=True)):
        first = int(shown.argmax())
        if clear[first : first + 2].any():
            firsts[n] = first
    return firsts


def _presence(view: ClipView, rng: Rng) -> Asked | None:
    """The time from the first to the last selected frame that shows an object, which is in view without a break."""
    last = len(view.frames) - 1
    found = []
    for n, visible in enumerate(view.visibility):
        at = np.flatnonzero(visible > 0)
        whole = at[0] == 0 and at[-1] == last
        if (
            is_unique(view, n)
            and not whole
            and len(at) >= 2
            and (view.clear[n, at]).all()
            and at[-1] - at[0] == len(at) - 1
        ):
            found.append((n, view.times[at[0]], view.times[at[-1]]))
    if not found:
        return None
    n, start, end = found[int(rng.integers(len(found)))]
    text = worded(
        rng, PRESENCE, a=f"the {plain(view.labels[n])}", times=", ".join(f"{t:g}" for t in view.times)
    )
    answer = Answer(kind=AnswerKind.SPAN, value=(start, end), unit="s")
    return Asked(family="presence", text=text, answer=answer, labels=labels_of(view, [n]))


PRESENCE = (
    "The frames are from {times} s. From when to when is {a} in view? Give the times of the first and the last frame with it.",
    "Of the frames at {times} s, which are the first and the last to show {a}?",
)

# ----------------------------------------------------------------------------------------------- size and motion


def _size(view: ClipView, rng: Rng) -> Asked | None:
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


def _displacement(view: ClipView, rng: Rng) -> Asked | None:
    moving = _moving(view, rng)
    if moving is None:
        return None
    n, first, last = moving
    moved = float(np.linalg.norm(view.positions[n, last] - view.positions[n, first]))
    if (name := name_without_box(view, n, first, with_time=True)) and rng.integers(2):
        lasting = str(round(np.log2(view.times[last] - view.times[first])))
        key, motion = (view.labels[n], lasting), _motion(view, *moving) | {"a": name}
        return ladder("displacement", rng, DISPLACEMENT, moved, "m", MOVES_M, key, **motion)
    return number("displacement", rng, DISPLACEMENT, round(moved, 1), "m", **_motion(view, *moving))


DISPLACEMENT = (
    "How far, in metres and in a straight line over the ground, does {a} move from {start:g} s to {end:g} s?",
    "What is the displacement of {a} between {start:g} s and {end:g} s, in metres?",
    "How many metres are the places of {a} at {start:g} s and at {end:g} s apart?",
)


def _path_length(view: ClipView, rng: Rng) -> Asked | None:
    moving = _moving(view, rng)
    if moving is None:
        return None
    length = _path(view, *moving)
    return number("path_length", rng, PATH, round(length, 1), "m", **_motion(view, *moving))


PATH = (
    "How long is the path of {a} from {start:g} s to {end:g} s, in metres?",
    "How many metres does {a} travel between {start:g} s and {end:g} s, along its path?",
)


def _speed(view: ClipView, rng: Rng) -> Asked | None:
    moving = _moving(view, rng)
    if moving is None:
        return None
    n, first, last = moving
    speed = _path(view, n, first, last) / (view.times[last] - view.times[first])
    if not speed >= LEAST_SPEED:
        return None
    if (name := name_without_box(view, n, first, with_time=True)) and rng.integers(2):
        motion = _motion(view, *moving) | {"a": name}
        return ladder("speed", rng, SPEED, speed, "m/s", LEAST_SPEED, (view.labels[n],), **motion)
    return number("speed", rng, SPEED, round(speed, 1), "m/s", **_motion(view, *moving))


SPEED = (
    "What is the mean speed of {a} from {start:g} s to {end:g} s, in m/s?",
    "How fast does {a} move on average between {start:g} s and {end:g} s, in m/s?",
)


def _moving(view: ClipView, rng: Rng) -> tuple[int, int, int] | None:
    """A track that moves, with the first and the last selected frame that show it without a break between."""
    if not view.is_3d:
        return None
    found = []
    for n, clear in enumerate(view.clear):
        at = np.flatnonzero(clear)
        if len(at) < 2 or at[-1] - at[0] != len(at) - 1:
            continue
        first, last = int(at[0]), int(at[-1])
        moved = np.linalg.norm(view.positions[n, last] - view.positions[n, first])
        if moved >= max(MOVES_M, MOVES_SHARE * view.camera_path(first, last)) and is_nameable(view, n, first):
            found.append((n, first, last))
    return found[int(rng.integers(len(found)))] if found else None


def _path(view: ClipView, n: int, first: int, last: int) -> float:
    """Through the selected frames: between them jitter of the boxes would add up."""
    return float(np.linalg.norm(np.diff(view.positions[n, first : last + 1], axis=0), axis=1).sum())


def _motion(view: ClipView, n: int, first: int, last: int) -> dict[str, Any]:
    return {"a": name_of(view, n, first), "start": view.times[first], "end": view.times[last],
            "labels": labels_of(view, [n])}  # fmt: skip


# ------------------------------------------------------------------------------------------------------- places


def _tracking(view: ClipView, rng: Rng) -> Asked | None:
    found = [
        n
        for n in range(len(view.tracks))
        if (view.clear[n] & view.large[n]).all() and is_nameable(view, n, 0)
    ]
    if not found:
        return None
    n = found[int(rng.integers(len(found)))]
    asked = np.unique(np.linspace(1, len(view.frames) - 1, 3).round().astype(int))
    boxes = tuple(tuple(float(v) for v in view.boxes[n, f].round()) for f in asked)
    text = worded(
        rng,
        TRACKING,
        a=name_of(view, n, 0, by_box=True),
        times=", ".join(f"{view.times[f]:g} s" for f in asked),
    )
    answer = Answer(kind=AnswerKind.TRACK, value=boxes, unit="px")
    return Asked(family="tracking", text=text, answer=answer, labels=labels_of(view, [n]))


TRACKING = (
    "Follow {a}: where in the image is it at {times}? Give one box per time.",
    "Track {a}. Give its box in the image at each of these times: {times}.",
)


def _localisation_2d(view: ClipView, rng: Rng) -> Asked | None:
    found = np.argwhere(view.clear & view.large)
    found = np.array([(n, f) for n, f in found if is_unique_at(view, n, f)])
    if not len(found):
        return None
    n, f = (int(v) for v in found[int(rng.integers(len(found)))])
    text = worded(rng, WHERE_2D, a=f"the {plain(view.labels[n])}", t=view.times[f])
    box = tuple(float(v) for v in view.boxes[n, f].round())
    answer = Answer(kind=AnswerKind.BOX2D, value=box, unit="px")
    return Asked(family="localisation_2d", text=text, answer=answer, labels=labels_of(view, [n]))


WHERE_2D = (
    "Where in the image is {a} at {t:g} s?",
    "Give the box of {a} in the image at {t:g} s.",
    "At {t:g} s, where does the image show {a}?",
)


def _localisation_3d(view: ClipView, rng: Rng) -> Asked | None:
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
    place = tuple(float(v) for v in view.positions[n, f].round(2))
    sides = tuple(round(float(v), 2) for v in (length, height, width))
    answer = Answer(kind=AnswerKind.BOX3D, value=(*place, *sides, round(yaw, 2)), unit="m")
    text = worded(rng, WHERE_3D, a=name_of(view, n, f), t=view.times[f])
    return Asked(family="localisation_3d", text=text, answer=answer, labels=labels_of(view, one))


WHERE_3D = (
    "Where is {a} at {t:g} s, in the axes of the camera at the first time? dx is its length, dy its height, dz its width; yaw "
    "is 0 when its length points along x, and turns x towards -z.",
)


def _room_size(view: ClipView, rng: Rng) -> Asked | None:
    if view.scene.room_size is None:
        return None
    return number("room_size", rng, ROOM, round(view.scene.room_size, 1), "m2", labels=set())


ROOM = (
    "How large is the floor of this room, in square metres?",
    "Estimate the floor area of the room in square metres.",
)

FAMILIES: dict[str, Family] = {
    "counting": _counting,
    "direction_camera": _direction_camera,
    "direction_object": _direction_object,
    "distance_relative": _distance_relative,
    "distance_absolute": _distance_absolute,
    "order": _order,
    "size": _size,
    "displacement": _displacement,
    "path_length": _path_length,
    "speed": _speed,
    "tracking": _tracking,
    "localisation_2d": _localisation_2d,
    "localisation_3d": _localisation_3d,
    "presence": _presence,
    "room_size": _room_size,
}


def _places(view: ClipView, tracks: Sequence[int], f: int) -> Array:
    """[N, 3] positions in `camera0` at a selected frame."""
    places: Array = view.positions[list(tracks), f]
    return places


def _level(view: ClipView, n: int, f: int) -> Array:
    """[2] position over the ground, along axes of which the first lies to the right of the second, seen from above."""
    place: Array = np.array(ground_axes(tuple(view.up0))) @ view.positions[n, f]
    return place
