"""Boxes in space, spans and tracks: golden values by hand, an independent volume, and invariances."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards import region
from videostr.iou import Box3d, box3d_iou, box_iou, span_iou
from videostr.types import Answer, AnswerKind, ClipSpec, GraphFrame, Record, SceneGraph

TURN = math.pi / 4


def record(kind: AnswerKind, value: tuple[float, ...] | tuple[tuple[float, ...], ...]) -> Record:
    return Record(
        id="r",
        source="test",
        family="test",
        question="?",
        options=(),
        answer=Answer(kind=kind, value=value),
        clip=ClipSpec(video="v.mp4", num_frames=1),
        labels=(),
        graph=None,
    )


def scene(frame: str, *times: float) -> SceneGraph:
    return SceneGraph(unit="m", frame=frame, frames=tuple(GraphFrame(t=t, nodes=()) for t in times))


# -------------------------------------------------------------------------------------------------- box3d

UNIT_CUBE: Box3d = (0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0)


@pytest.mark.parametrize(
    ("box", "frame", "value"),
    [
        (UNIT_CUBE, "floor", 1.0),
        # A square and itself turned by 45 degrees: a regular octagon of area 2 (sqrt 2 - 1) = 0.8284.
        ((0, 0, 0, 1, 1, 1, TURN), "floor", (2 * math.sqrt(2) - 2) / (4 - 2 * math.sqrt(2))),
        ((0, 0, 0, 1, 1, 1, TURN), "camera0", (2 * math.sqrt(2) - 2) / (4 - 2 * math.sqrt(2))),
        ((0, 0, 0, 1, 1, 1, math.pi / 2), "floor", 1.0),
        ((0.5, 0, 0, 1, 1, 1, 0), "floor", 1 / 3),  # 0.5 of 1.5
        ((0.5, 0.5, 0.5, 1, 1, 1, 0), "camera0", 1 / 15),  # 0.125 of 1.875
        ((1, 0, 0, 1, 1, 1, 0), "floor", 0.0),  # touch
        ((0, 0, 1, 1, 1, 1, 0), "floor", 0.0),  # one upon the other
        ((0, 0, 0, 0.5, 0.5, 0.5, 1.0), "floor", 0.125),  # inside
        # Twice as long, turned by 90 degrees: long along y in floor, along z in camera0.
        ((0, 0, 0, 2, 1, 1, math.pi / 2), "floor", 0.5),
        # The corner (0.5, 0.5) of the cube just reaches the diamond's edge x + y = 1 of a turned square of side sqrt 2.
        ((0, 0, 0, math.sqrt(2), math.sqrt(2), 1, TURN), "floor", 0.5),
    ],
)
def test_box3d_by_hand(box: Box3d, frame: str, value: float) -> None:
    assert box3d_iou(box, UNIT_CUBE, frame) == pytest.approx(value, abs=1e-12)
    assert box3d_iou(UNIT_CUBE, box, frame) == pytest.approx(value, abs=1e-12)


def test_each_frame_of_reference_has_its_vertical_and_its_sense_of_yaw() -> None:
    # A plank 4 long, turned by +45 degrees, against a cube of side 1 at each end of it.
    end = 1.2
    plank_floor: Box3d = (0, 0, 0, 4, 0.2, 1, TURN)
    assert box3d_iou(plank_floor, (end, end, 0, 1, 1, 1, 0), "floor") > 0.1  # towards +x +y
    assert box3d_iou(plank_floor, (end, -end, 0, 1, 1, 1, 0), "floor") == 0.0
    plank_camera: Box3d = (0, 0, 0, 4, 1, 0.2, TURN)
    assert box3d_iou(plank_camera, (end, 0, -end, 1, 1, 1, 0), "camera0") > 0.1  # towards +x -z
    assert box3d_iou(plank_camera, (end, 0, end, 1, 1, 1, 0), "camera0") == 0.0


def test_box3d_answers_take_the_frame_of_the_graph_and_camera0_without_one() -> None:
    truth = (0.0, 0.0, 0.0, 4.0, 0.5, 2.0, 0.0)
    asked = record(AnswerKind.BOX3D, truth)
    quarter = "[0, 0, 0, 4, 0.5, 2, 1.5707963267948966]"
    # camera0: 4 x 2 in the ground plane, overlap 2 x 2: 4 of 8 + 8 - 4
    assert region.box3d(quarter, asked)[0] == pytest.approx(1 / 3)
    # floor: 4 x 0.5 in the ground plane, overlap 0.5 x 0.5: 0.25 of 2 + 2 - 0.25
    floor = replace(asked, graph=scene("floor", 0.0))
    assert region.box3d(quarter, floor)[0] == pytest.approx(0.25 / 3.75)
    assert region.box3d("0 0 0 4 0.5 2 0", floor) == (1.0, "")


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "[0, 0, 0, 1, 1, 1]",
        "[0, 0, 0, 1, 1, 1, 0, 0]",
        "[0, 0, 0, 0, 1, 1, 0]",
        "[0, 0, 0, -1, 1, 1, 0]",
        "[0, 0, 0, 1, 1, 1, nan]",
        "[0, 0, 0, 1, 1, inf, 0]",
        "[0, 0, 0, 1e999, 1, 1, 0]",
        "[0, 0, 0, 1, 1, 1, 1e7]",
    ],
)
def test_what_is_no_box3d_earns_nothing_and_says_why(answer: str) -> None:
    value, note = region.box3d(answer, record(AnswerKind.BOX3D, UNIT_CUBE))
    assert value == 0.0
    assert note.endswith("is not a box [x, y, z, dx, dy, dz, yaw] with sizes above 0")


def volume_by_sampling(a: Box3d, b: Box3d, frame: str, points: np.ndarray) -> float:
    """IoU by counting: points drawn in a box around both, tested against each with rotation matrices."""
    reach = max(np.linalg.norm(box[3:6]) / 2 + np.abs(box[:3]).max() for box in (a, b))
    points = (2 * points - 1) * reach
    inside = [points_inside(points, box, frame) for box in (a, b)]
    return float((inside[0] & inside[1]).sum() / (inside[0] | inside[1]).sum())


def points_inside(points: np.ndarray, box: Box3d, frame: str) -> np.ndarray:
    c, s = math.cos(box[6]), math.sin(box[6])
    about_y = np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
    about_z = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    own = (points - np.array(box[:3])) @ (about_y if frame == "camera0" else about_z)
    return np.asarray((np.abs(own) <= np.array(box[3:6]) / 2).all(axis=1))


@pytest.mark.parametrize("frame", ["camera0", "floor"])
def test_box3d_agrees_with_counting_points(frame: str) -> None:
    rng = np.random.default_rng(7)
    points = rng.random((100_000, 3))
    for _ in range(40):
        a, b = ((*rng.uniform(-0.6, 0.6, 3), *rng.uniform(0.5, 2, 3), rng.uniform(-4, 4)) for _ in range(2))
        # 100,000 points, of which over 1,000 fall in the union: three standard deviations are below 0.05.
        assert box3d_iou(a, b, frame) == pytest.approx(volume_by_sampling(a, b, frame, points), abs=0.05)


_place = st.floats(-20, 20)
_extent = st.floats(0.05, 20)
_boxes = st.tuples(_place, _place, _place, _extent, _extent, _extent, st.floats(-7, 7))
_frames = st.sampled_from(["camera0", "floor"])


@settings(max_examples=300)
@given(_boxes, _boxes, _frames)
def test_box3d_is_symmetric_within_0_and_1_and_1_for_itself(a: Box3d, b: Box3d, frame: str) -> None:
    value = box3d_iou(a, b, frame)
    assert 0.0 <= value <= 1.0
    assert value == pytest.approx(box3d_iou(b, a, frame), abs=1e-9)
    assert box3d_iou(a, a, frame) == pytest.approx(1.0, abs=1e-9)


def moved(box: Box3d, angle: float, shift: tuple[float, float, float], frame: str) -> Box3d:
    c, s = math.cos(angle), math.sin(angle)
    x, y, z = box[:3]
    turned = (c * x + s * z, y, c * z - s * x) if frame == "camera0" else (c * x - s * y, s * x + c * y, z)
    x, y, z = (p + q for p, q in zip(turned, shift, strict=True))
    return (x, y, z, *box[3:6], box[6] + angle)


@settings(max_examples=300)
@given(_boxes, _boxes, st.floats(-7, 7), st.tuples(_place, _place, _place), _frames)
def test_box3d_is_unchanged_by_a_common_turn_about_the_vertical_and_a_shift(
    a: Box3d, b: Box3d, angle: float, shift: tuple[float, float, float], frame: str
) -> None:
    near = (*(p + q / 40 for p, q in zip(b[:3], a[:3], strict=True)), *a[3:])  # so that many pairs overlap
    for other in (a, near):
        both = [moved(box, angle, shift, frame) for box in (other, b)]
        assert box3d_iou(both[0], both[1], frame) == pytest.approx(box3d_iou(other, b, frame), abs=1e-7)


# --------------------------------------------------------------------------------------------------- span


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("[2, 6]", 1.0),
        ("2-6", 1.0),
        ("2.0 s to 6.0 s", 1.0),
        ("from 2s until 6s", 1.0),
        ("[4, 8]", 1 / 3),  # 2 of 6
        ("[0, 100]", 0.04),
        ("[3, 4]", 0.25),
        ("[6, 8]", 0.0),  # touch
        ("[7, 8]", 0.0),
        ("[6, 2]", 0.0),
        ("[3, 3]", 0.0),
        ("[2, 6, 6]", 0.0),
        ("[2]", 0.0),
        ("[-1e999, 1e999]", 0.0),
        ("[nan, nan]", 0.0),
        ("", 0.0),
    ],
)
def test_span(answer: str, value: float) -> None:
    scored, note = region.span(answer, record(AnswerKind.SPAN, (2.0, 6.0)))
    assert scored == pytest.approx(value)
    assert bool(note) == (value < 1)


# -------------------------------------------------------------------------------------------------- track

# Three boxes 100 x 100; the second answer below is right, half off (100 x 50 of 100 x 150) and missing.
TRUE_TRACK = ((0.0, 0.0, 100.0, 100.0), (100.0, 0.0, 200.0, 100.0), (200.0, 0.0, 300.0, 100.0))


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("[[0,0,100,100],[100,0,200,100],[200,0,300,100]]", 1.0),
        ("[[0,0,100,100],[100,50,200,150],null]", (1 + 1 / 3) / 3),
        ("[[0,0,100,100],[100,50,200,150]]", (1 + 1 / 3) / 3),
        ("[null, None, [200,0,300,100]]", 1 / 3),
        ("[0,0,100,100]", 1 / 3),
        ("[0,0,100,100] [100,0,200,100] [200,0,300,100] [200,0,300,100]", 3 / 4),  # one too many
        ("[[100,0,0,100],[100,0,200,100],[200,0,300,100]]", 2 / 3),  # inverted
        ("[[0,0,0,100],[100,0,200,100],[200,0,300,1e999]]", 1 / 3),  # without size, not finite
        ("[[0,0,100,100,0],[100,0,200],[200,0,300,100]]", 1 / 3),
        ('{"0": [0,0,100,100], "1.0": [100,0,200,100], "2": [200,0,300,100]}', 1.0),
        ("2: [200,0,300,100], 0.1 s: [0,0,100,100]", 2 / 3),  # any order, nearest time
        ("0: null, 1: [100,0,200,100]", 1 / 3),
        ("5: [0,0,100,100]", 0.0),  # no such time
        # Two boxes for one time: the nearer in time counts, and the extra one costs.
        ("0: [0,0,100,100], 0.2: [5,5,6,6], 1: [100,0,200,100], 2: [200,0,300,100]", 3 / 4),
        ("0: [0,0,100,100], [100,0,200,100]", 0.0),  # times for some only
        ("0,0,100,100", 0.0),
        ("[]", 0.0),
        ("null", 0.0),
        ("", 0.0),
    ],
)
def test_track(answer: str, value: float) -> None:
    asked = replace(record(AnswerKind.TRACK, TRUE_TRACK), graph=scene("image", 0.0, 1.0, 2.0))
    scored, note = region.track(answer, asked)
    assert scored == pytest.approx(value)
    assert bool(note) == (value < 1)


def test_boxes_by_time_need_a_record_that_knows_the_times() -> None:
    asked = record(AnswerKind.TRACK, TRUE_TRACK)
    by_time = "0: [0,0,100,100], 1: [100,0,200,100], 2: [200,0,300,100]"
    for graph in (None, scene("image", 0.0, 1.0)):
        value, note = region.track(by_time, replace(asked, graph=graph))
        assert (value, note) == (
            0.0,
            "answer: boxes by time, but the record does not say at which times; list them in order",
        )


_box = st.tuples(st.integers(0, 50), st.integers(0, 50), st.integers(51, 100), st.integers(51, 100))


@given(st.lists(_box, min_size=1, max_size=6), st.lists(_box, max_size=6), st.lists(_box, min_size=1))
def test_further_boxes_never_raise_a_track(truth: list, stated: list, extra: list) -> None:
    asked = record(AnswerKind.TRACK, tuple(truth))
    stated = (stated + truth)[: len(truth)]
    full = region.track(str([list(box) for box in stated]), asked)[0]
    assert region.track(str([list(box) for box in stated + extra]), asked)[0] < full


# ---------------------------------------------------------------------------------------------------- all

_number = st.floats(allow_nan=False) | st.sampled_from([0.0, 5e-324, 1e-200, 1e6, -1e6, 1.7e308])
_digits = st.text(st.sampled_from("0123456789.,-+−e[]() :\"'s{}nul\ud800\n"), max_size=1000)
_values = st.lists(_number, max_size=8).map(str)


@given(
    _digits | _values | st.lists(_values, max_size=6).map(", ".join),
    st.lists(_number, min_size=7, max_size=7),
)
def test_no_answer_raises_or_earns_outside_0_to_1(answer: str, truth: list[float]) -> None:
    box = tuple(truth[:4])
    for value, _ in (
        region.box2d(answer, record(AnswerKind.BOX2D, box)),
        region.box3d(answer, record(AnswerKind.BOX3D, (*truth[:3], *map(abs, truth[3:6]), truth[6]))),
        region.span(answer, record(AnswerKind.SPAN, tuple(truth[:2]))),
        region.track(answer, record(AnswerKind.TRACK, (box, tuple(truth[3:])))),
    ):
        assert 0.0 <= value <= 1.0


@pytest.mark.parametrize(
    "text", ["[", "[[", "1", "1 ", "1:", "1:[", "null", "[1,2,3,4],", "1e", "-", '"1" : ', " ", "."]
)
def test_the_longest_answers_that_are_read_take_milliseconds(text: str) -> None:
    answer = (text * 1000)[:1000]
    asked = replace(record(AnswerKind.TRACK, TRUE_TRACK), graph=scene("image", 0.0, 1.0, 2.0))
    start = time.process_time()
    for _ in range(10):
        region.track(answer, asked)
        region.box2d(answer, record(AnswerKind.BOX2D, (0.0, 0.0, 1.0, 1.0)))
    # Measured: at most 0.1 s for ten; a parser with backtracking takes minutes.
    assert time.process_time() - start < 3.0


@given(st.tuples(*[st.floats(-100, 100)] * 4), st.tuples(*[st.floats(-100, 100)] * 4))
def test_flat_ious_are_symmetric_and_within_0_and_1(
    a: tuple[float, float, float, float], b: tuple[float, float, float, float]
) -> None:
    a, b = ((*map(min, v[:2], v[2:]), *map(max, v[:2], v[2:])) for v in (a, b))
    assert box_iou(a, b) == pytest.approx(box_iou(b, a), abs=1e-12)
    assert 0.0 <= box_iou(a, b) <= 1.0
    assert span_iou(a[::2], b[::2]) == pytest.approx(span_iou(b[::2], a[::2]), abs=1e-12)
    assert 0.0 <= span_iou(a[::2], b[::2]) <= 1.0
    if (a[2] - a[0]) * (a[3] - a[1]) > 1e-9:
        assert box_iou(a, a) == pytest.approx(1.0)
