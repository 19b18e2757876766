"""The reasoning of reference traces: every number is one of the graph or follows from some, and what is concluded is true."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import pytest
from msgspec.structs import replace as with_values

from rewards import score
from videostr.graph import to_json
from videostr.prompt import reference_trace
from videostr.query import entailed, is_answerable
from videostr.reasoning import STEPS, reasoning
from videostr.tabletop.build import Split, scene_seed
from videostr.tabletop.questions import make_records
from videostr.tabletop.world import Difficulty, make_scene
from videostr.trace import parse
from videostr.types import Answer, AnswerKind, ClipSpec, GraphFrame, Mark, Node, Query, Record, SceneGraph

NUMBER = r"-?\d+(?:\.\d+)?(?:e-?\d+)?"


def node(name: str, *pos: float, size: tuple[float, ...] | None = None) -> Node:
    return Node(id=name, label=name.rpartition(".")[0], pos=pos, size=size)


# x right, y down, z forward: the van 10 m ahead, the car 4 m to its right, then 3 m farther; the dog behind the van on its left.
STREET = SceneGraph(
    unit="m",
    frame="camera0",
    frames=(
        GraphFrame(t=0.0, nodes=(node("van.1", 0.0, 1.0, 10.0), node("car.1", 4.0, 1.0, 10.0))),
        GraphFrame(
            t=1.0,
            nodes=(
                node("van.1", 0.0, 1.0, 10.0),
                node("car.1", 4.0, 1.0, 13.0),
                node("dog.1", -2.0, 1.0, 13.0),
            ),
        ),
        GraphFrame(t=2.0, nodes=(node("van.1", 0.0, 1.0, 10.0), node("car.1", 8.0, 1.0, 13.0))),
    ),
)
IMAGE = SceneGraph(
    unit="px",
    frame="image",
    frames=(GraphFrame(t=1.0, nodes=(node("cup.1", 300.0, 400.0, size=(100.0, 80.0)),)),),
)


def record_of(query: Query, options: tuple[str, ...] = (), graph: SceneGraph = STREET) -> Record:
    answer = entailed(query, graph)
    assert answer is not None
    return Record(
        id="1", source="test", family=query.family, question="?", options=options, answer=answer,
        clip=ClipSpec(video="1.mp4", num_frames=3), labels=("van", "car", "dog"), graph=graph, query=query,
    )  # fmt: skip


def ask(family: str, *objects: str, **values: Any) -> Query:
    return Query(family=family, objects=objects, names=objects, **values)


@pytest.mark.parametrize(
    ("query", "options", "text"),
    [
        (ask("counting", label="car", times=(1.0,)), (), "t 1: car.1. So 1."),
        (ask("counting", label="dog", times=(0.0,)), (), "t 0: none. So 0."),
        (ask("counting"), (), "all times: van.1, car.1, dog.1. So 3."),
        # The roots of 1 + 100 and of 16 + 1 + 100
        (
            ask("counting", times=(0.0,), within_m=10.5), (),
            "t 0: van.1 10.05 < 10.5, car.1 10.82 > 10.5. So 1.",
        ),
        (
            ask("direction_camera", "van.1", "car.1", times=(0.0,), axis="image", options=("left", "right")), ("left", "right"),
            "t 0: van.1 [0,1,10], car.1 [4,1,10]. To the right in the image: 0 < 0.4. So left.",
        ),
        (
            ask("direction_camera", "dog.1", "van.1", times=(1.0,), axis="depth", options=("nearer", "farther")),
            ("nearer to the camera", "farther from the camera"),
            "t 1: dog.1 [-2,1,13], van.1 [0,1,10]. Away from the camera: 13 > 10. So farther from the camera.",
        ),
        # Facing (-2, 3) over sqrt(13): the car at (4, 3) is (4 x 3 + 3 x 2) / 3.606 to the right and (-8 + 9) / 3.606 ahead.
        (
            ask("direction_object", "van.1", "dog.1", "car.1", times=(1.0,),
                options=("front-left", "front-right", "back-left", "back-right")),
            ("front-left", "front-right", "back-left", "back-right"),
            "t 1: van.1 [0,1,10], dog.1 [-2,1,13], car.1 [4,1,13]. From van.1 towards dog.1, car.1 is 0.28 ahead and 4.99 to the "
            "right. So front-right.",
        ),
        (
            ask("motion_direction", "car.1", times=(0.0, 1.0), axis="camera", options=("towards", "away")), ("to it", "away"),
            "t 0: car.1 [4,1,10], t 1: car.1 [4,1,13]. Moved: [0,0,3], 0 to the right of the camera and 3 away from it. So away.",
        ),
        (
            ask("motion_direction", "car.1", times=(0.0, 1.0, 2.0), axis="turn", options=("left", "right", "straight")),
            ("turns left", "turns right", "goes on"),
            "t 0: car.1 [4,1,10], t 1: car.1 [4,1,13], t 2: car.1 [8,1,13]. Moved: [0,0,3], [4,0,0]. Turned by 90 degrees to the "
            "right. So turns right.",
        ),
        (
            ask("motion_direction", "car.1", times=(1.0, 2.0), axis="image", options=("left", "right"),
                camera_end=(1.0, 0.0, 0.0, -8.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0)), ("left", "right"),
            "t 1: car.1 [4,1,13], t 2: car.1 [8,1,13]. To the right in the image: 0.31 > 0. So left.",
        ),
        (
            ask("motion_direction", "car.1", "dog.1", times=(1.0, 2.0), axis="object", options=("towards", "away")),
            ("to it", "off"),
            "t 1: car.1 [4,1,13], t 2: car.1 [8,1,13]. t 1: dog.1 [-2,1,13]. Along its way, the other is -6 ahead. So off.",
        ),
        (
            ask("ahead", "car.1", "van.1", times=(1.0, 2.0), options=("ahead", "behind")), ("in front", "behind"),
            "t 1: car.1 [4,1,13], t 2: car.1 [8,1,13]. t 2: van.1 [0,1,10]. Along its way, the other is -8 ahead. So behind.",
        ),
        (
            ask("approach", "van.1", "car.1", times=(0.0, 1.0), options=("closer", "apart")), ("closer", "apart"),
            "t 0: van.1 [0,1,10], car.1 [4,1,10]. t 1: van.1 [0,1,10], car.1 [4,1,13]. Apart: 4 < 5. So apart.",
        ),
        (
            ask("speed_change", "car.1", times=(0.0, 1.0, 2.0), options=("faster", "slower")), ("faster", "slower"),
            "t 0: car.1 [4,1,10], t 1: car.1 [4,1,13], t 2: car.1 [8,1,13]. Speeds: 3 < 4. So faster.",
        ),
        (
            ask("distance_relative", "van.1", "car.1", "dog.1", times=(1.0,), axis="nearest", options=("car.1", "dog.1")),
            ("the car", "the dog"),
            "t 1: van.1 [0,1,10], car.1 [4,1,13], dog.1 [-2,1,13]. From van.1: "
            "car.1 sqrt((0 - 4)^2 + (1 - 1)^2 + (10 - 13)^2) = sqrt(4^2 + 0^2 + 3^2) = 5, "
            "dog.1 sqrt((0 - -2)^2 + (1 - 1)^2 + (10 - 13)^2) = sqrt(2^2 + 0^2 + 3^2) = 3.61. So the dog.",
        ),
        (
            ask("distance_absolute", "van.1", "car.1", times=(1.0,)), (),
            "t 1: van.1 [0,1,10], car.1 [4,1,13]. Apart: sqrt((0 - 4)^2 + (1 - 1)^2 + (10 - 13)^2) = "
            "sqrt(4^2 + 0^2 + 3^2) = 5. So 5 m.",
        ),
        (
            ask("distance_absolute", "van.1", "car.1", times=(1.0,), options=(3.8, 4.9, 6.4, 8.3)),
            ("3.8 m", "4.9 m", "6.4 m", "8.3 m"),
            "t 1: van.1 [0,1,10], car.1 [4,1,13]. Apart: sqrt((0 - 4)^2 + (1 - 1)^2 + (10 - 13)^2) = "
            "sqrt(4^2 + 0^2 + 3^2) = 5. So 4.9 m.",
        ),
        (
            ask("displacement", "car.1", times=(0.0, 2.0)), (),
            "t 0: car.1 [4,1,10], t 2: car.1 [8,1,13]. Moved: sqrt((4 - 8)^2 + (1 - 1)^2 + (10 - 13)^2) = "
            "sqrt(4^2 + 0^2 + 3^2) = 5. So 5 m.",
        ),
        (
            ask("path_length", "car.1", times=(0.0, 2.0)), (),
            "t 0 car.1 [4,1,10], t 1 car.1 [4,1,13], t 2 car.1 [8,1,13]. Way: 3 + 4 = 7. So 7 m.",
        ),
        (
            ask("speed", "car.1", times=(0.0, 2.0)), (),
            "t 0 car.1 [4,1,10], t 1 car.1 [4,1,13], t 2 car.1 [8,1,13]. Way: 3 + 4 = 7. Time: 2. So 3.5 m/s.",
        ),
        (
            ask("order", "van.1", "dog.1", options=("dog.1", "van.1")), ("dog", "van"),
            "First seen: van.1 at 0, dog.1 at 1. So van.",
        ),
    ],
)  # fmt: skip
def test_golden(query: Query, options: tuple[str, ...], text: str) -> None:
    record = record_of(query, options)
    assert reasoning(record, STREET) == text
    trace = reference_trace(record, reasoned=True)
    assert f"</graph>{text}</think>" in trace
    assert parse(trace).well_formed
    assert score(trace, record).parts["answer"] == 1.0


def test_boxes_quote_centre_and_extents() -> None:
    record = record_of(ask("localisation_2d", "cup.1", times=(1.0,)), graph=IMAGE)
    assert record.answer.value == (250.0, 360.0, 350.0, 440.0)
    assert reasoning(record, IMAGE) == "t 1: cup.1 [300,400] of 100 x 80. So it is as stated."


@pytest.mark.parametrize("difficulty", list(Difficulty))
def test_every_tabletop_record_that_a_graph_answers_is_reasoned_and_true(difficulty: Difficulty) -> None:
    families: set[str] = set()
    for index in range(60):
        scene = make_scene(scene_seed(5, Split.SFT, index), difficulty)
        for record in make_records(scene, "v.mp4", str(index), 6):
            graph, query = record.graph, record.query
            assert graph is not None
            assert query is not None
            text = reasoning(record, graph)
            assert bool(text)
            if is_answerable(query, graph):
                families.add(record.family)
                check(record, graph, text)
            else:  # a box: where its object is
                (node,) = re.findall(r"^t (\d+): (\w+\.\d+) (\[[^\]]*\])\.$", text)
                frame = next(f for f in graph.frames if f.t == query.times[0] == float(node[0]))
                assert f'"id":"{node[1]}","pos":{node[2]}' in to_json(with_values(graph, frames=(frame,)))
                assert node[1] == query.objects[0]
    assert families == {"counting", "direction", "displacement", "distance", "order"}


def check(record: Record, graph: SceneGraph, text: str) -> None:
    """Every quoted node is in the graph, every comparison and every sum holds, the conclusion is the true answer."""
    written = to_json(graph)
    for name, pos in re.findall(r"(\w+\.\d+) (\[[^\]]*\])", text):
        assert f'"id":"{name}","pos":{pos}' in written
    for a, sign, b in re.findall(rf"({NUMBER}) ([<>]) ({NUMBER})", text):
        assert float(a) < float(b) if sign == "<" else float(a) > float(b)
    for stated, terms in re.findall(r"sqrt\((\(.*?\)\^2)\) = sqrt\(([^)]*)\)", text):
        for (a, b), step in zip(
            re.findall(rf"\(({NUMBER}) - ({NUMBER})\)", stated), terms.split(" + "), strict=True
        ):
            assert abs(float(a) - float(b)) == pytest.approx(float(step.removesuffix("^2")), abs=0.006)
    for terms, length in re.findall(rf"sqrt\(([^()]*)\) = ({NUMBER})", text):
        squares = [float(term.removesuffix("^2")) ** 2 for term in terms.split(" + ")]
        assert math.sqrt(sum(squares)) == pytest.approx(float(length), abs=0.02)
    conclusion = text.rpartition(" So ")[2].removesuffix(".")
    if record.answer.kind is AnswerKind.CHOICE:
        assert conclusion == record.options["AB".index(str(record.answer.value))]
    else:
        assert float(conclusion.split()[0]) == record.answer.value


def test_nothing_is_said_where_the_graph_does_not_tell() -> None:
    query = ask("displacement", "car.1", times=(0.0, 2.0))
    record = record_of(query)
    partial = with_values(STREET, frames=STREET.frames[:2])
    assert reasoning(record, partial) == ""
    wrong = Record(**{name: getattr(record, name) for name in record.__dataclass_fields__} | {
        "answer": Answer(kind=AnswerKind.NUMBER, value=9.0, unit="m")
    })  # fmt: skip
    assert reasoning(wrong, STREET) == ""  # what does not follow is not made to
    old = Record(**{name: getattr(record, name) for name in record.__dataclass_fields__} | {"query": None})
    assert reasoning(old, STREET) == ""
    assert reference_trace(old, reasoned=True) == reference_trace(old)


def test_marks_are_tied_to_the_nodes_that_they_stand_for() -> None:
    query = ask("approach", "van.1", "car.1", times=(0.0, 1.0), options=("closer", "apart"))
    box = ((0.0, 1.0, 2.0, 3.0, 4.0),)
    marks = tuple(
        Mark(object=name, text=text, boxes=box)
        for name, text in (("car.1", "B"), ("dog.1", "A"), ("van.1", "C"))
    )
    record = record_of(query, ("closer", "apart"))
    marked = replace(record, clip=replace(record.clip, marks=marks))
    assert reasoning(marked, STREET) == f"(object B is car.1, object C is van.1) {reasoning(record, STREET)}"


def test_every_family_that_a_graph_answers_has_steps() -> None:
    from videostr.query import RULES

    assert STEPS.keys() == RULES.keys()
