"""Every family on scenes made by hand: the answer is worked out a second time from the words of the question."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from tests.videostr.data.hand import scene, track
from videostr.data.balance import Balancer
from videostr.data.clip_view import ClipView
from videostr.data.questions import FAMILIES, ask
from videostr.data.questions.question import STEP, PreparedQuestion
from videostr.data.scene import Scene
from videostr.query import entailed, is_answerable
from videostr.types import AnswerKind

FRAMES = 5
# (x, z) of the first frame and metres a frame along z; the camera stands still at the origin.
STREET = {
    "car": (0.0, 20.0, 2.0),
    "van": (-6.0, 12.0, 0.0),
    "tram": (9.0, 33.0, -1.0),
    "cyclist": (4.0, 8.0, 1.5),
}


def street(**more: object) -> Scene:
    tracks = []
    for number, (label, (x, z, speed)) in enumerate(STREET.items()):
        boxes = np.array([_box(x, z + speed * i) for i in range(FRAMES)])
        tracks.append(
            track(str(number), label, [(x, 1.0, z + speed * i) for i in range(FRAMES)], boxes=boxes)
        )
    return replace(scene(tracks, frames=FRAMES, drive=0.0), **more)  # type: ignore[arg-type]


def _box(x: float, z: float) -> list[float]:
    return [500 + 500 * (x - 1) / z, 200.0, 500 + 500 * (x + 1) / z, 300.0]


def place(label: str, t: float) -> np.ndarray:
    """(x, z) at a time."""
    x, z, speed = STREET[label]
    return np.array([x, z + speed * t / 0.5])


def asked(
    family: str, given: Scene, seeds: int = 60, frames: tuple[int, ...] = tuple(range(FRAMES))
) -> Iterator[PreparedQuestion]:
    """Questions of a family; each has the answer that the true graph entails."""
    for seed in range(seeds):
        view = ClipView(given, 0, frames)
        found = FAMILIES[family](view, np.random.default_rng(seed))
        if found is not None:
            graph = view.graph(found.labels)
            if is_answerable(found.query, graph):
                assert entailed(found.query, graph) == found.answer, found
            else:
                assert family in UNTOLD | ({"localisation_2d", "tracking"} if view.is_3d else set())
            yield found


UNTOLD = {"size", "localisation_3d", "room_size"}
"""Families whose answer no graph tells."""


def right(found: PreparedQuestion) -> str:
    return found.options["ABCDEF".index(str(found.answer.value))]


def named(found: PreparedQuestion) -> list[str]:
    """Labels in the order of the words."""
    return re.findall("|".join(STREET), found.text)


def at(found: PreparedQuestion) -> float:
    return asked_times(found.text)[-1]


NAMED_BOX = re.compile(r"\(box \[([\d,]+)\] px at ([\d.]+) s\)")


def named_boxes(text: str) -> list[tuple[float, tuple[float, ...]]]:
    """(seconds, box) of the objects that a text names by their boxes."""
    return [(float(t), tuple(float(v) for v in box.split(","))) for box, t in NAMED_BOX.findall(text)]


def asked_times(text: str) -> list[float]:
    """Times in a text, in its order; those of named boxes left out."""
    return [float(t) for t in re.findall(r"([\d.]*\d) s\b", NAMED_BOX.sub("", text))]


def test_the_text_says_what_the_query_says() -> None:
    far = track("far", "car", [(-15.0, 1.0, 50.0)] * FRAMES, boxes=np.array([_box(-15.0, 50.0)] * FRAMES))
    given = replace(street(), tracks=(*street().tracks, far))
    families = set()
    for family in FAMILIES:
        for found in asked(family, given):
            query = found.query
            families.add(query.family)
            assert query.family == family
            assert list(query.boxes) == [(t, *box) for t, box in named_boxes(found.text)]
            for name in query.names:
                assert name in " ".join((found.text, *found.options))
            text = found.text
            if (
                family not in {"order", "size", "room_size", "presence"}
                and "nearest to the camera at" not in text
            ):
                assert asked_times(found.text) == list(query.times)
            assert len(query.options) == len(found.options)
            for option, said in zip(query.options, found.options, strict=True):
                if isinstance(option, float):
                    assert float(said.split()[0]) == option
                elif isinstance(option, tuple):
                    assert said.split(", ") == [name.rpartition(".")[0] for name in option]
                else:
                    assert option.partition(".")[0] in said
            assert {name.rpartition(".")[0] for name in query.objects} | (
                {query.label} - {""}
            ) == found.labels
    assert families == set(FAMILIES) - {"order", "presence", "room_size"}  # all is in view all the time


def names_reference_first(found: PreparedQuestion) -> bool:
    return "side of" in found.text or "Compared with" in found.text


def test_left_and_right_near_and_far() -> None:
    seen = set()
    # By the camera's depth the car is nearer than the bus, and farther in a straight line; nothing is asked of them.
    aside = [track("a", "car", [(9.0, 1.0, 10.0)] * FRAMES), track("b", "bus", [(0.0, 1.0, 12.2)] * FRAMES)]
    wide = scene([replace(each, boxes=None) for each in aside], frames=FRAMES, drive=0.0)
    assert not list(asked("direction_camera", wide))
    for found in asked("direction_camera", street()):
        a, b = named(found)[:: -1 if names_reference_first(found) else 1]
        (ax, az), (bx, bz) = (place(label, at(found)) for label in (a, b))
        if right(found) in {"left", "right"}:
            expected = "left" if ax / az < bx / bz else "right"  # in the image
        else:
            expected = "nearer to the camera" if az < bz else "farther from the camera"
            assert (az < bz) == (np.hypot(ax, az) < np.hypot(bx, bz))
        assert right(found) == expected
        seen.add(expected)
    assert len(seen) == 4


def pitched(axes: list[tuple[int, int, int]]) -> Scene:
    """The street; `axes` are those of the camera, in the world."""
    pose = np.eye(4)
    pose[:3, :3] = np.transpose(axes)
    return street(frames=tuple(replace(frame, camera_to_world=pose) for frame in street().frames))


@pytest.mark.parametrize(
    "axes",
    [
        [(1, 0, 0), (0, 1, 0), (0, 0, 1)],
        [(1, 0, 0), (0, 0, -1), (0, 1, 0)],
        [(0, 0, 1), (1, 0, 0), (0, 1, 0)],
    ],
    ids=["ahead", "straight down", "straight down, turned"],
)
def test_direction_from_where_an_object_stands(axes: list[tuple[int, int, int]]) -> None:
    seen = set()
    assert ask(ClipView(pitched(axes), 0, tuple(range(FRAMES))), np.random.default_rng(0), 100)
    for found in asked("direction_object", pitched(axes)):
        names = named(found)
        a, b, c = (place(label, at(found)) for label in names)
        # Turn the facing direction onto the second axis: then x > 0 is right, y > 0 in front.
        angle = np.arctan2(*(b - a))
        turned = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ (c - a)
        expected = ("front" if turned[1] > 0 else "back") + ("-right" if turned[0] > 0 else "-left")
        assert right(found) == expected, found.text
        seen.add(expected)
    assert len(seen) >= 3


def test_nearest_and_farthest() -> None:
    seen = set()
    for found in asked("distance_relative", street()):
        target = re.findall("|".join(STREET), found.text)[0]
        distances = {
            option: np.linalg.norm(place(option[4:], at(found)) - place(target, at(found)))
            for option in found.options
        }
        farthest = "farthest" in found.text or "longest" in found.text or "greatest" in found.text
        assert right(found) == (max if farthest else min)(distances, key=distances.__getitem__)
        seen.add(farthest)
    assert seen == {True, False}


def test_distance_displacement_path_and_speed() -> None:
    kinds = set()
    for family in ("distance_absolute", "displacement", "path_length", "speed"):
        for found in asked(family, street()):
            if family == "distance_absolute":
                a, b = named(found)
                truth = float(np.linalg.norm(place(a, at(found)) - place(b, at(found))))
            else:
                (label,), (start, end) = named(found), asked_times(found.text)
                moved = abs(STREET[label][2]) * (end - start) / 0.5
                truth = moved / (end - start) if family == "speed" else moved
                assert moved >= 1.5
            if found.answer.kind is AnswerKind.NUMBER:
                assert found.answer.value == pytest.approx(truth, abs=0.051)
            else:
                values = [float(option.split()[0]) for option in found.options]
                assert float(right(found).split()[0]) == pytest.approx(truth, abs=0.051)
                assert np.allclose(np.array(values[1:]) / values[:-1], STEP, rtol=0.06)
            kinds.add((family, found.answer.kind))
    assert len(kinds) == 7  # a path is never asked as a choice
    assert not list(
        asked("displacement", replace(street(), tracks=street().tracks[1:2]))
    )  # the van is parked


def test_what_drifting_poses_could_explain_is_no_motion() -> None:
    # It seems to move 2 m while the camera drives 4 x 15 m: less than a twentieth of 60 m.
    drifting = track("a", "car", [(0.0, 1.0, 20.0 + 0.5 * i) for i in range(FRAMES)])
    assert not list(asked("displacement", scene([drifting], frames=FRAMES, drive=15.0)))
    assert list(asked("displacement", scene([drifting], frames=FRAMES, drive=1.0)))


def test_a_number_as_a_choice_may_be_any_of_the_four() -> None:
    places = [str(f.answer.value) for f in asked("distance_absolute", street(), 400) if f.options]
    assert {place: places.count(place) / len(places) > 0.1 for place in "ABCD"} == dict.fromkeys("ABCD", True)


def test_a_set_of_choices_among_numbers_has_every_place_once() -> None:
    balancer: Balancer[str] = Balancer()
    pairs = [
        [track("a", "car", [(0.0, 1.0, 9.0)] * FRAMES), track("b", "van", [(0.0, 1.0, 9.0 + apart)] * FRAMES)]
        for apart in np.geomspace(3, 30, 40)
    ]
    scenes = [scene(pair, frames=FRAMES, drive=0.0) for pair in pairs]
    given = [f for each in scenes for f in asked("distance_absolute", each) if f.balance is not None]
    passed = [place for f in given for place in balancer.add(str(f.answer.value), f.balance)]
    assert passed
    assert {passed.count(place) for place in "ABCD"} == {len(passed) // 4}
    assert all(f.balance and f.balance.key.split("|")[3:] == sorted(named(f)) for f in given)


def test_counting_leaves_out_what_is_beyond_doubt_only() -> None:
    pair = [track(name, "dog", [(x, 1.0, 15.0)] * FRAMES) for name, x in (("a", 0.0), ("b", 5.0))]
    given = scene(pair, frames=FRAMES, drive=0.0)
    assert {(f.answer.value, f.labels) for f in asked("counting", given)} == {(2.0, frozenset({"dog"}))}
    assert "within 30 m" in next(asked("counting", given)).text
    assert {f.balance.value for f in asked("counting", given) if f.balance} == {"more"}
    border = replace(pair[1], centers=np.tile([5.0, 1.0, 29.0], (FRAMES, 1)))
    away = replace(pair[1], centers=np.tile([5.0, 1.0, 45.0], (FRAMES, 1)))
    assert not list(asked("counting", replace(given, tracks=(pair[0], border))))
    assert {f.answer.value for f in asked("counting", replace(given, tracks=(pair[0], away)))} == {1.0}
    # A federated source counts only what it has verified.
    assert not list(asked("counting", replace(given, countable=frozenset({"cat"}))))


@pytest.mark.parametrize("kind", ["street", "room", "image"])
def test_one_that_is_not_clear_forbids_to_count(kind: str) -> None:
    pair = [
        track(name, "dog", [(x, 1.0, 15.0)] * FRAMES, is_static=kind == "room")
        for name, x in (("a", 0.0), ("b", 5.0))
    ]
    given = scene(pair, frames=FRAMES, drive=0.0)
    if kind == "image":
        given = replace(given, up=None, frames=tuple(replace(f, camera_to_world=None) for f in given.frames))
    assert {f.answer.value for f in asked("counting", given)} == {2.0}
    for share in (0.4, 0.25, 0.1):  # below 0.3 it is not even among the objects of the clip
        hidden = replace(pair[1], visibility=np.full(FRAMES, share))
        assert not list(asked("counting", replace(given, tracks=(pair[0], hidden))))


def test_order_and_presence() -> None:
    first = track("a", "car", [(0.0, 1.0, 20.0)] * FRAMES)
    third = track("b", "van", [(5.0, 1.0, 20.0)] * 3, frames=[2, 3, 4])
    last = track("c", "tram", [(9.0, 1.0, 20.0)], frames=[4])
    close = track("d", "dog", [(9.0, 1.0, 20.0)] * 2, frames=[3, 4])
    given = scene([first, third, last, close], frames=FRAMES, drive=0.0)
    orders = {right(found) for found in asked("order", given)}
    rank = {"car": 0, "van": 2, "dog": 3, "tram": 4}
    for order in orders:
        ranks = [rank[label] for label in order.split(", ")]
        assert all(b - a >= 2 for a, b in pairwise(ranks))
    assert "car, van, tram" in orders
    for found in asked("order", given):
        assert len(found.options) == (6 if right(found).count(",") == 2 else 2)
    spans = {(re.findall("van|tram|dog|car", f.text)[0], f.answer.value) for f in asked("presence", given)}
    assert spans == {
        ("van", (1.0, 2.0)),
        ("dog", (1.5, 2.0)),
    }  # the car is always there, the tram in one frame only


def test_boxes_and_tracks() -> None:
    for found in asked("localisation_2d", street()):
        label, index = named(found)[0], round(at(found) / 0.5)
        x, z, speed = STREET[label]
        expected = np.array(_box(x, z + speed * index)) * [1, 2, 1, 2]  # of 1000 x 500 px
        np.testing.assert_allclose(found.answer.value, expected, atol=0.51)  # type: ignore[arg-type]
    for found in asked("tracking", street()):
        times = asked_times(found.text)
        assert times == [0.5, 1.0, 2.0]
        ((start, box),) = named_boxes(found.text)
        assert start == 0.0
        x, z, speed = STREET[named(found)[0]]
        np.testing.assert_allclose(box, np.array(_box(x, z)) * [1, 2, 1, 2], atol=0.51)
        expected = [np.array(_box(x, z + speed * t / 0.5)) * [1, 2, 1, 2] for t in times]
        np.testing.assert_allclose(found.answer.value, expected, atol=0.51)  # type: ignore[arg-type]


def test_a_3d_box_in_the_first_camera() -> None:
    turned = replace(street().tracks[0], yaws=np.full(FRAMES, np.pi / 6))
    given = replace(street(), tracks=(turned,))
    for found in asked("localisation_3d", given):
        x, z = place("car", at(found))
        # Length along the heading, height along y, width across. A heading that points half away from the camera has a
        # positive yaw about up, and so a negative one in the axes of the camera, whose y points down (videostr/iou.py).
        assert found.answer.value == pytest.approx((x, 1.0, z, 4.0, 1.5, 2.0, -0.52), abs=0.01)
    tilted = np.eye(4)
    tilted[:3, :3] = [[1, 0, 0], [0, np.cos(0.3), -np.sin(0.3)], [0, np.sin(0.3), np.cos(0.3)]]
    frames = tuple(replace(frame, camera_to_world=tilted) for frame in given.frames)
    assert not list(asked("localisation_3d", replace(given, frames=frames)))


def test_size_names_the_side() -> None:
    sides = {}
    for found in asked("size", street()):
        word = next(w for w in ("long", "wide", "tall") if w in found.text)
        sides[word] = found.answer.value
    assert sides == {"long": 4.0, "wide": 2.0, "tall": 1.5}


def test_room_size_where_the_source_tells_it() -> None:
    assert not list(asked("room_size", street()))
    assert {f.answer.value for f in asked("room_size", street(room_size=23.44))} == {23.4}


def test_several_of_a_label_are_named_by_their_boxes() -> None:
    boxes = np.tile([100.0, 100.0, 200.0, 150.0], (FRAMES, 1))
    twins = [
        track(name, "car", [(x, 1.0, 15.0)] * FRAMES, boxes=boxes + np.array([x * 40, 0, x * 40, 0]))
        for name, x in (("a", 0.0), ("b", 5.0))
    ]
    given = scene(twins, frames=FRAMES, drive=0.0)
    for found in asked("size", given):
        ((t, box),) = named_boxes(found.text)
        assert t in {0.0, 0.5, 1.0, 1.5, 2.0}
        assert box in {(100.0, 200.0, 200.0, 300.0), (300.0, 200.0, 400.0, 300.0)}  # of 1000 x 500 px
    assert not list(asked("localisation_2d", given))  # which of the two would be meant
    # A source that does not annotate every car cannot say "the car" of a single one either.
    single = replace(given, tracks=tuple(twins[:1]), countable=frozenset())
    assert all(named_boxes(found.text) for found in asked("size", single))


def test_choices_name_no_box_but_the_nearest_of_a_label() -> None:
    far = track("far", "car", [(-15.0, 1.0, 50.0)] * FRAMES, boxes=np.array([_box(-15.0, 50.0)] * FRAMES))
    given = replace(street(), tracks=(*street().tracks, far))
    texts = []
    for family in FAMILIES:
        for found in asked(family, given):
            if found.options:
                assert not named_boxes(" ".join((found.text, *found.options)))
                texts.append(found.text)
    assert any("the car nearest to the camera" in text for text in texts)
    assert any(re.search(r"the car nearest to the camera at [\d.]+ s (move )?from", text) for text in texts)
    for found in asked("direction_camera", given):
        if "the car nearest to the camera" in found.text and right(found) in {"left", "right"}:
            a, b = named(found)[:: -1 if names_reference_first(found) else 1]
            (ax, az), (bx, bz) = (place(label, at(found)) for label in (a, b))  # the street's own car
            assert right(found) == ("left" if ax / az < bx / bz else "right")
    # At nearly the same distance, neither is the nearest beyond doubt.
    twin = track("twin", "car", [(-1.0, 1.0, 20.0 + 2.0 * i) for i in range(FRAMES)])
    doubtful = replace(street(), tracks=(*street().tracks, twin))
    assert list(asked("direction_camera", doubtful))
    assert not any("car" in found.text for found in asked("direction_camera", doubtful))
    # In 2-D nothing tells which is nearer.
    flat = replace(given, up=None, frames=tuple(replace(f, camera_to_world=None) for f in given.frames))
    assert not any("car" in found.text for found in asked("direction_camera", flat))


def test_without_depth_nothing_is_asked_in_metres() -> None:
    flat = replace(
        street(), up=None, projection=None,
        tracks=tuple(replace(t, centers=None, sizes=None, yaws=None) for t in street().tracks),
        frames=tuple(replace(f, camera_to_world=None) for f in street().frames),
    )  # fmt: skip
    families = {name for name in FAMILIES if list(asked(name, flat))}
    assert families == {"counting", "direction_camera", "tracking", "localisation_2d"}
    assert {f.answer.unit for name in families for f in asked(name, flat)} <= {"", "px"}


def test_questions_of_a_clip_differ_and_depend_on_the_seed_alone() -> None:
    view = ClipView(street(), 0, tuple(range(FRAMES)))
    one, same, other = (ask(view, np.random.default_rng(seed), 20) for seed in (1, 1, 2))
    assert json.dumps([f.text for f in one]) == json.dumps([f.text for f in same])
    assert [f.text for f in one] != [f.text for f in other]
    assert len({f.text for f in one}) == len(one) == 20
    assert len({f.query.family for f in one[:10]}) >= 8  # in turn


def test_a_clip_is_asked_until_nothing_new_comes() -> None:
    view = ClipView(street(), 0, tuple(range(FRAMES)))
    assert len(ask(view, np.random.default_rng(0), 120)) == 120
    (single,) = (replace(street(), tracks=street().tracks[1:2]),)  # a parked van: few questions are possible
    found = ask(ClipView(single, 0, (0, 1)), np.random.default_rng(0), 500)
    assert 0 < len(found) < 100
