"""What a graph entails: golden answers by hand, all records of the tabletop, invariance under rotation, translation, mirror."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from msgspec.structs import replace

from videostr.query import QUARTERS, STANCES, direction_at, entailed, is_answerable, path
from videostr.tabletop.build import Split, scene_seed
from videostr.tabletop.questions import FAMILIES, make_records
from videostr.tabletop.world import Difficulty, make_scene
from videostr.types import Answer, AnswerKind, GraphFrame, Node, Query, SceneGraph

Place = tuple[float, ...]


def graph(
    *frames: tuple[float, dict[str, Place]], frame: str = "camera0", unit: str = "m", **more: Any
) -> SceneGraph:
    return SceneGraph(
        unit=unit,
        frame=frame,
        frames=tuple(
            GraphFrame(
                t=t,
                nodes=tuple(
                    Node(id=name, label=name.rpartition(".")[0], pos=pos, **more)
                    for name, pos in places.items()
                ),
            )
            for t, places in frames
        ),
    )


# x right, y down, z forward: the van stands 10 m ahead, the car 4 m to its right, the dog 3 m behind the van on its left.
STREET = graph(
    (0.0, {"van.1": (0.0, 1.0, 10.0), "car.1": (4.0, 1.0, 10.0)}),
    (1.0, {"van.1": (0.0, 1.0, 10.0), "car.1": (4.0, 1.0, 13.0), "dog.1": (-2.0, 1.0, 13.0)}),
    (
        2.0,
        {
            "van.1": (0.0, 1.0, 10.0),
            "car.1": (8.0, 1.0, 13.0),
            "dog.1": (-2.0, 1.0, 13.0),
            "car.2": (5.0, 1.0, 40.0),
        },
    ),
)


def ask(family: str, *objects: str, **values: Any) -> Query:
    return Query(family=family, objects=objects, **values)


def choice(letter: str) -> Answer:
    return Answer(kind=AnswerKind.CHOICE, value=letter)


def number(value: float, unit: str = "") -> Answer:
    return Answer(kind=AnswerKind.NUMBER, value=value, unit=unit)


THREE = ("van.1", "car.1", "dog.1")
WAYS = ("left", "right", "towards", "away")


# Standing at the van and facing the dog (-2, 3), the car at (4, 3) is 4 x 3 + 3 x 2 = 18 to the right of that line, and
# -2 x 4 + 3 x 3 = 1 in front.
@pytest.mark.parametrize(
    ("query", "answer"),
    [
        (ask("counting", label="car", times=(2.0,)), number(2)),
        (ask("counting", label="car", times=(2.0,), within_m=30.0), number(1)),
        (ask("counting", times=(1.0,)), number(3)),
        (ask("counting", label="car"), number(2)),
        (ask("counting", label="cat", times=(1.0,)), number(0)),
        (ask("direction_camera", "van.1", "car.1", times=(0.0,), axis="right", options=("right", "left")), choice("B")),
        (ask("direction_camera", "dog.1", "van.1", times=(1.0,), axis="depth", options=("nearer", "farther")), choice("B")),
        (ask("direction_object", "van.1", "dog.1", "car.1", times=(1.0,), options=QUARTERS), choice("A")),
        (ask("direction_object", "van.1", "car.1", "dog.1", times=(1.0,), options=QUARTERS), choice("D")),
        (ask("direction_object", "van.1", "dog.1", "car.1", times=(1.0,), options=("left", "right")), choice("B")),
        (ask("direction_object", "van.1", "car.1", "dog.1", times=(1.0,), options=("left", "right", "back")), choice("A")),
        # The car drives 3 m ahead, then 4 m to the right.
        (ask("motion_direction", "car.1", times=(0.0, 1.0), axis="camera", options=("towards", "away")), choice("B")),
        (ask("motion_direction", "car.1", times=(1.0, 2.0), axis="camera", options=WAYS), choice("B")),
        # A camera that looks to the right sees what drives ahead drive to the left.
        (
            ask("motion_direction", "car.1", times=(0.0, 1.0), axis="camera", options=WAYS,
                camera=(0.0, 0.0, -1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0)),
            choice("A"),
        ),
        (ask("motion_direction", "car.1", times=(0.0, 1.0, 2.0), axis="turn", options=("left", "right")), choice("B")),
        # x / z is 4 / 10, then 4 / 13, then 8 / 13; 0 for a camera that has moved 8 m to the right.
        (ask("motion_direction", "car.1", times=(0.0, 1.0), axis="image", options=WAYS), choice("A")),
        (ask("motion_direction", "car.1", times=(1.0, 2.0), axis="image", options=WAYS), choice("B")),
        (
            ask("motion_direction", "car.1", times=(1.0, 2.0), axis="image", options=WAYS,
                camera_end=(1.0, 0.0, 0.0, -8.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0)),
            choice("A"),
        ),
        # To the right, while the dog is 6 m to the left; at right angles to the van before.
        (ask("motion_direction", "car.1", "dog.1", times=(1.0, 2.0), axis="object", options=("towards", "away")), choice("B")),
        (ask("motion_direction", "car.1", "van.1", times=(0.0, 1.0), axis="object", options=("towards", "away")), None),
        (ask("ahead", "car.1", "dog.1", times=(1.0, 2.0), options=("ahead", "behind")), choice("B")),
        # 4 m, then 5 m
        (ask("approach", "van.1", "car.1", times=(0.0, 1.0), options=("closer", "apart")), choice("B")),
        # 3 m/s, then 4 m/s
        (ask("speed_change", "car.1", times=(0.0, 1.0, 2.0), options=("faster", "slower")), choice("A")),
        (ask("speed_change", "van.1", times=(0.0, 1.0, 2.0), options=("faster", "slower")), None),
        (ask("distance_relative", *THREE, times=(1.0,), axis="nearest", options=THREE[1:]), choice("B")),
        (ask("distance_relative", *THREE, times=(1.0,), axis="farthest", options=THREE[1:]), choice("A")),
        (ask("distance_absolute", "van.1", "car.1", times=(1.0,)), number(5.0, "m")),
        (ask("distance_absolute", "van.1", "car.1", times=(1.0,), options=(3.0, 3.9, 5.07, 6.6)), choice("C")),
        (ask("displacement", "car.1", times=(0.0, 2.0)), number(5.0, "m")),
        (ask("path_length", "car.1", times=(0.0, 2.0)), number(7.0, "m")),
        (ask("path_length", "car.1", times=(0.0, 1.0)), number(3.0, "m")),
        (ask("speed", "car.1", times=(0.0, 2.0)), number(3.5, "m/s")),
        (ask("order", "car.1", "dog.1", options=("dog.1", "car.1")), choice("B")),
        (ask("order", "dog.1", "van.1", options=(("van.1", "dog.1"), ("dog.1", "van.1"))), choice("A")),
        (ask("presence", "dog.1", times=(0.0, 1.0, 2.0)), Answer(kind=AnswerKind.SPAN, value=(1.0, 2.0), unit="s")),
        # Nothing follows: a tie, no such object then, no such time, no such option.
        (ask("order", "car.1", "van.1", options=("car.1", "van.1")), None),
        (ask("direction_camera", "van.1", "car.1", times=(0.0,), axis="depth", options=("nearer", "farther")), None),
        (ask("distance_absolute", "van.1", "dog.1", times=(0.0,)), None),
        (ask("distance_absolute", "van.1", "car.1", times=(0.5,)), None),
        (ask("distance_absolute", "van.1", "cat.1", times=(0.0,)), None),
        (ask("direction_camera", "van.1", "car.1", times=(0.0,), axis="right", options=("up", "down")), None),
        (ask("presence", "cat.1"), None),
        (ask("size", "van.1", times=(0.0,), axis="long"), None),
        (ask("localisation_2d", "van.1", times=(0.0,)), None),
    ],
)  # fmt: skip
def test_golden(query: Query, answer: Answer | None) -> None:
    assert entailed(query, STREET) == answer


def test_the_camera_of_the_time_decides_what_is_left_and_near() -> None:
    # It has gone 20 m ahead and looks back: x and z change their signs, z also its zero.
    back = (-1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, -1.0, 20.0)
    options: dict[str, tuple[str, ...]] = {"right": ("left", "right"), "depth": ("nearer", "farther")}
    for axis, first, second in (("right", "B", "A"), ("depth", "A", "B")):
        query = ask("direction_camera", "car.1", "dog.1", times=(1.0,), axis=axis, options=options[axis])
        moved = replace(
            STREET,
            frames=(
                STREET.frames[0],
                graph((1.0, {"car.1": (4.0, 1.0, 12.0), "dog.1": (-2.0, 1.0, 13.0)})).frames[0],
            ),
        )
        assert entailed(query, moved) == choice(first)
        assert entailed(replace(query, camera=back), moved) == choice(second)
    # From there van, car and dog are 10, 8.1 and 7.3 m away.
    near = ask("counting", times=(1.0,), within_m=9.0, camera=back)
    assert entailed(near, STREET) == number(2)


def test_across_the_image_is_by_the_ray_and_in_metres_by_the_side() -> None:
    # 5 m to the right at 50 m lies left of 2 m to the right at 5 m in the image, and right of it in metres.
    scene = graph((0.0, {"van.1": (5.0, 0.0, 50.0), "car.1": (2.0, 0.0, 5.0), "dog.1": (0.0, 0.0, -5.0)}))
    query = ask("direction_camera", "van.1", "car.1", times=(0.0,), axis="image", options=("left", "right"))
    assert entailed(query, scene) == choice("A")
    assert entailed(replace(query, axis="right"), scene) == choice("B")
    assert entailed(replace(query, objects=("van.1", "dog.1")), scene) is None  # behind the camera


def test_what_a_tilted_camera_calls_level_is_in_the_query() -> None:
    # The camera looks straight down, the top of its image to the north: east is x, north is -y, up is -z.
    scene = graph((0.0, {"a.1": (0.0, 0.0, 5.0), "b.1": (0.0, -2.0, 4.0), "c.1": (3.0, -1.0, 2.0)}))
    query = ask("direction_object", "a.1", "b.1", "c.1", times=(0.0,), options=QUARTERS, up=(0.0, 0.0, -1.0))
    assert entailed(query, scene) == choice("A")  # facing north, it is north-east


def test_boxes_follow_from_extents_in_the_image() -> None:
    scene = graph(
        (0.0, {"a.1": (150.5, 40.0)}),
        (1.0, {"a.1": (160.5, 40.0)}),
        frame="image",
        unit="px",
        size=(21.0, 8.0),
    )
    box = entailed(ask("localisation_2d", "a.1", times=(0.0,)), scene)
    assert box == Answer(kind=AnswerKind.BOX2D, value=(140.0, 36.0, 161.0, 44.0), unit="px")
    track = entailed(ask("tracking", "a.1", times=(0.0, 1.0)), scene)
    assert track == Answer(
        kind=AnswerKind.TRACK, value=((140.0, 36.0, 161.0, 44.0), (150.0, 36.0, 171.0, 44.0)), unit="px"
    )
    assert (
        entailed(
            ask("tracking", "a.1", times=(0.0,)), graph((0.0, {"a.1": (1.0, 2.0)}), frame="image", unit="px")
        )
        is None
    )
    assert not is_answerable(ask("displacement", "a.1", times=(0.0, 1.0)), scene)  # px are not metres
    assert not is_answerable(ask("direction_camera", "a.1", "b.1", axis="depth"), scene)


def test_an_object_of_another_number_is_known_by_its_label_alone() -> None:
    stated = graph((0.0, {"van.7": (0.0, 1.0, 10.0), "car.3": (4.0, 1.0, 10.0)}))
    query = ask("distance_absolute", "van.1", "car.1", times=(0.04,))
    assert entailed(query, stated) == number(4.0, "m")
    two = graph((0.0, {"van.7": (0.0, 1.0, 10.0), "car.3": (4.0, 1.0, 10.0), "car.4": (5.0, 1.0, 10.0)}))
    assert entailed(query, two) is None
    assert entailed(replace(query, times=(0.4,)), stated) is None
    assert entailed(replace(query, times=(0.4,)), stated, tolerance_s=0.5) == number(4.0, "m")


def test_a_stated_graph_of_two_coordinates_has_no_place_before_a_camera() -> None:
    flat = graph((0.0, {"van.1": (0.0, 1.0), "car.1": (4.0, 1.0)}), frame="floor")
    query = ask("direction", "van.1", "car.1", times=(0.0,), axis="right", options=("left", "right"))
    assert entailed(query, flat) == choice("A")
    assert entailed(replace(query, camera=(1.0,) * 12), flat) is None


@pytest.mark.parametrize("difficulty", list(Difficulty))
def test_the_true_graph_entails_the_answer_of_every_tabletop_record(difficulty: Difficulty) -> None:
    answered, families = 0, set()
    for index in range(150):
        for record in make_records(
            make_scene(scene_seed(5, Split.TRAIN, index), difficulty), "v", str(index), len(FAMILIES)
        ):
            assert record.query is not None
            assert record.graph is not None
            if is_answerable(record.query, record.graph):
                assert entailed(record.query, record.graph) == record.answer, record
                answered += 1
                families.add(record.family)
    assert families == set(FAMILIES) - {"localisation"}
    assert answered > 400


# ------------------------------------------------------------------------------------------------- invariance

COORDINATE = st.integers(-3000, 3000).map(lambda n: n / 100)
GRAPHS = st.lists(
    st.tuples(*(st.tuples(COORDINATE, COORDINATE, COORDINATE),) * 4), min_size=2, max_size=4
).map(
    lambda frames: graph(
        *((float(t), dict(zip(NAMES, places, strict=True))) for t, places in enumerate(frames))
    )
)
NAMES = ("a.1", "b.1", "c.1", "d.1")
QUERIES = (
    ask("counting", label="a", times=(0.0,)),
    ask("direction_object", "a.1", "b.1", "c.1", times=(0.0,), options=QUARTERS),
    ask("distance_relative", "a.1", "b.1", "c.1", "d.1", times=(1.0,), axis="nearest", options=NAMES[1:]),
    ask("distance_relative", "a.1", "b.1", "c.1", "d.1", times=(1.0,), axis="farthest", options=NAMES[1:]),
    ask("distance_absolute", "a.1", "b.1", times=(0.0,), options=(1.0, 2.0, 4.0, 8.0, 16.0, 32.0)),
    ask("displacement", "a.1", times=(0.0, 1.0), options=(1.0, 2.0, 4.0, 8.0, 16.0, 32.0)),
    ask("path_length", "a.1", times=(0.0, 1.0), options=(1.0, 2.0, 4.0, 8.0, 16.0, 32.0)),
    ask("speed", "a.1", times=(0.0, 1.0), options=(1.0, 2.0, 4.0, 8.0, 16.0, 32.0)),
)


def changed(found: SceneGraph, change: Callable[[Place], Place]) -> SceneGraph:
    return replace(
        found,
        frames=tuple(
            replace(frame, nodes=tuple(replace(node, pos=change(node.pos)) for node in frame.nodes))
            for frame in found.frames
        ),
    )


def is_clear(found: SceneGraph) -> bool:
    """Whether no answer hangs on the last bits: no two lengths alike, or at a border between two options; no right angles."""
    (a, b, c, _), (a1, b1, c1, d1) = ([node.pos for node in frame.nodes] for frame in found.frames[:2])
    lengths = [math.dist(a1, other) for other in (b1, c1, d1)]
    moved = [math.dist(a, b), math.dist(a, a1), path([a, a1])]
    apart = min(abs(x - y) for i, x in enumerate(lengths) for y in lengths[:i])
    border = min((abs(math.log2(x) % 1 - 0.5) for x in moved if x > 0.1), default=0.0)
    facing, target = (b[0] - a[0], b[2] - a[2]), (c[0] - a[0], c[2] - a[2])
    sine, cosine = (
        facing[0] * target[1] - facing[1] * target[0],
        facing[0] * target[0] + facing[1] * target[1],
    )
    return min(apart, border) > 1e-6 and min(abs(sine), abs(cosine)) > 1e-6 and min(moved) > 0.1


@given(GRAPHS, st.floats(-180, 180), COORDINATE, COORDINATE)
def test_turning_and_shifting_over_the_ground_changes_no_relation(
    found: SceneGraph, degrees: float, right: float, forward: float
) -> None:
    assume(is_clear(found))
    sine, cosine = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))

    def turned(pos: Place) -> Place:
        x, y, z = pos
        return cosine * x - sine * z + right, y, sine * x + cosine * z + forward

    for query in QUERIES:
        answer = entailed(query, found)
        assert answer is not None
        assert entailed(query, changed(found, turned)) == answer


@given(GRAPHS)
def test_a_mirror_swaps_left_and_right(found: SceneGraph) -> None:
    assume(is_clear(found))
    mirrored = changed(found, lambda pos: (-pos[0], *pos[1:]))
    swap = str.maketrans(
        {"A": "D", "D": "A", "B": "C", "C": "B"}
    )  # front-right, back-right, back-left, front-left
    for query in QUERIES:
        answer, other = entailed(query, found), entailed(query, mirrored)
        assert answer is not None
        assert other is not None
        if query.family == "direction_object":
            assert other.value == str(answer.value).translate(swap)
        else:
            assert other == answer
    for axis in ("right", "image"):
        query = ask("direction_camera", "a.1", "b.1", times=(0.0,), axis=axis, options=("left", "right"))
        answer, other = entailed(query, found), entailed(query, mirrored)
        if answer is not None:
            assert other is not None
            assert {answer.value, other.value} == {"A", "B"}
    depth = ask("direction_camera", "a.1", "b.1", times=(0.0,), axis="depth", options=("nearer", "farther"))
    assert entailed(depth, mirrored) == entailed(depth, found)


@given(GRAPHS, st.permutations(range(4)), st.integers(2, 9))
def test_order_and_numbers_of_nodes_do_not_matter(found: SceneGraph, order: list[int], new: int) -> None:
    assume(is_clear(found))
    shuffled = replace(
        found,
        frames=tuple(
            replace(
                frame, nodes=tuple(replace(frame.nodes[i], id=f"{frame.nodes[i].label}.{new}") for i in order)
            )
            for frame in found.frames
        ),
    )
    for query in QUERIES:
        assert entailed(query, shuffled) == entailed(query, found)


@pytest.mark.parametrize(
    ("angle", "easy", "medium", "hard"),
    [
        (10, "right", "right", "front-right"),
        (134, "right", "right", "back-right"),
        (136, "right", "back", "back-right"),
        (-136, "left", "back", "back-left"),
        (224, "left", "back", "back-left"),
        (-134, "left", "left", "back-left"),
        (-10, "left", "left", "front-left"),
        (-1e-15, "left", "left", "front-left"),
    ],
)
def test_directions_clockwise_from_straight_ahead(angle: float, easy: str, medium: str, hard: str) -> None:
    assert [direction_at(angle, each) for each in STANCES] == [easy, medium, hard]
