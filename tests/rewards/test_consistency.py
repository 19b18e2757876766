"""Consistency and entailed answers: what follows from a stated graph, and whether the stated answer does."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards import Rubric, score
from rewards.consistency import as_truth
from rewards.graph import GraphRule, prepare
from rewards.match import frames_at
from rewards.probes import moved, tabletop_records
from videostr.graph import to_json
from videostr.prompt import reference_trace
from videostr.tabletop.world import Difficulty
from videostr.types import Answer, AnswerKind, ClipSpec, GraphFrame, Node, Query, Record, SceneGraph

LEFT, RIGHT = "A", "B"


def scene(*frames: dict[str, tuple[float, float]]) -> SceneGraph:
    """Return a graph in metres on the floor, a frame a second, of places by id."""
    return SceneGraph(
        unit="m",
        frame="floor",
        frames=tuple(
            GraphFrame(
                t=float(t),
                nodes=tuple(
                    Node(id=n, label=n.rpartition(".")[0], pos=p, size=(0.5, 0.5)) for n, p in of.items()
                ),
            )
            for t, of in enumerate(frames)
        ),
    )


TRUTH = scene({"cup.1": (1, 1), "pen.1": (4, 2)}, {"cup.1": (2, 1), "pen.1": (4, 2), "cup.2": (8, 8)})


def record(
    query: Query, answer: Answer, options: tuple[str, ...] = (), graph: SceneGraph | None = TRUTH
) -> Record:
    """Return a record about the scene."""
    return Record(
        id="r", source="test", family=query.family, question="?", options=options, answer=answer,
        clip=ClipSpec(video="v.mp4", num_frames=2), labels=("cup", "pen"), graph=graph, query=query,
    )  # fmt: skip


DIRECTION = record(
    Query(
        family="direction", objects=("cup.1", "pen.1"), times=(0.0,), axis="right", options=("left", "right")
    ),
    Answer(kind=AnswerKind.CHOICE, value=LEFT),
    ("to the left", "to the right"),
)
MOVED = record(
    Query(family="displacement", objects=("cup.1",), times=(0.0, 1.0)),
    Answer(kind=AnswerKind.NUMBER, value=1.0, unit="m"),
)


def said(graph: SceneGraph | None, answer: str) -> str:
    """Return a trace."""
    block = "" if graph is None else f"<graph>{to_json(graph)}</graph>"
    return f"<think>{block}</think><answer>{answer}</answer>"


def parts(graph: SceneGraph | None, answer: str, of: Record = DIRECTION) -> tuple[float, float]:
    """Return (entailed, consistency)."""
    found = score(said(graph, answer), of).parts
    return found["entailed"], found["consistency"]


MIRRORED = moved(TRUTH, lambda _, pos: pos * (-1, 1))


@pytest.mark.parametrize(
    ("graph", "answer", "expected"),
    [
        (TRUTH, LEFT, (1, 1)),
        (TRUTH, "to the left", (1, 1)),
        (TRUTH, RIGHT, (1, 0)),
        (TRUTH, "", (1, 0)),
        (MIRRORED, RIGHT, (0, 1)),  # wrong, and what its graph says
        (MIRRORED, LEFT, (0, 0)),  # right, and the graph is decoration
        (scene({"cup.1": (1, 1)}), LEFT, (0, 0)),  # nothing follows
        (None, LEFT, (0, 0)),
        (msgspec.structs.replace(TRUTH, unit="grid"), LEFT, (0, 0)),
    ],
)
def test_a_choice(graph: SceneGraph | None, answer: str, expected: tuple[float, float]) -> None:
    assert parts(graph, answer) == expected


def test_numbers_are_compared_as_the_answer_reward_does() -> None:
    doubled = moved(TRUTH, lambda _, pos: 2 * pos)
    assert parts(doubled, "2", MOVED) == (0, 1)
    assert parts(doubled, "5 m", MOVED) == (0, 0)
    assert parts(TRUTH, "1.1", MOVED) == (1, pytest.approx(0.9))


def test_instance_numbers_are_only_names() -> None:
    names = {"cup.1": "cup.2", "cup.2": "cup.1"}
    swapped = msgspec.structs.replace(
        TRUTH,
        frames=tuple(
            msgspec.structs.replace(
                item, nodes=tuple(msgspec.structs.replace(n, id=names.get(n.id, n.id)) for n in item.nodes)
            )
            for item in TRUTH.frames
        ),
    )
    assert parts(swapped, LEFT) == (1, 1)
    target = prepare(TRUTH, GraphRule())
    assert [[n.id for n in item.nodes] for item in as_truth(frames_at(swapped, target.times), TRUTH, target).frames] == [
        ["cup.1", "pen.1"], ["cup.1", "pen.1", "cup.2"],
    ]  # fmt: skip


def test_an_invented_instance_takes_the_name_of_no_true_one() -> None:
    crowd = scene({"cup.1": (9, 9), "cup.2": (1, 1), "cup.3": (5, 5), "pen.1": (4, 2)})
    target = prepare(TRUTH, GraphRule())
    (frame,) = as_truth(frames_at(crowd, target.times), TRUTH, target).frames
    ids = [n.id for n in frame.nodes]
    assert ids[1] == "cup.1"
    assert len(set(ids)) == 4
    assert sum(name in ("cup.1", "cup.2") for name in ids) == 2


def test_rounded_times_are_those_of_the_truth() -> None:
    late = msgspec.structs.replace(
        TRUTH, frames=tuple(msgspec.structs.replace(item, t=item.t + 0.2) for item in TRUTH.frames)
    )
    assert parts(late, LEFT) == (1, 1)


def test_there_are_no_such_parts_where_a_graph_does_not_tell() -> None:
    for of in (
        replace(DIRECTION, query=None),
        replace(DIRECTION, graph=None),
        record(Query(family="room_size", axis="long"), Answer(kind=AnswerKind.NUMBER, value=12.0, unit="m2")),
    ):
        found = score(said(TRUTH, LEFT), of).parts
        assert not found.keys() & {"entailed", "consistency"}


def test_boxes_need_extents_that_no_trace_states() -> None:
    image = msgspec.structs.replace(TRUTH, unit="px", frame="image")
    of = record(
        Query(family="localisation_2d", objects=("pen.1",), times=(0.0,)),
        Answer(kind=AnswerKind.BOX2D, value=(3.75, 1.75, 4.25, 2.25), unit="px"),
        graph=image,
    )
    assert "entailed" not in score(said(image, "[3.75,1.75,4.25,2.25]"), of).parts


@pytest.mark.parametrize("difficulty", list(Difficulty))
def test_reference_traces_are_consistent(difficulty: Difficulty) -> None:
    records = tabletop_records(96, difficulty)
    found = {r.family: score(reference_trace(r, option_text=True), r).parts for r in records}
    assert {f: (p["entailed"], p["consistency"]) for f, p in found.items() if "entailed" in p} == {
        f: (1, 1) for f in found if f != "localisation"
    }


def test_the_weight_counts() -> None:
    rubric = replace(Rubric.preset("default"), w_consistency=0.5)
    for answer, gain in ((RIGHT, 0.0), (LEFT, 0.5)):
        text = said(TRUTH, answer)
        assert score(text, DIRECTION, rubric).total == pytest.approx(score(text, DIRECTION).total + gain)


@given(
    st.lists(st.tuples(st.sampled_from(("cup", "pen")), st.integers(1, 5), st.floats(-9, 9)), max_size=12),
    st.sampled_from((LEFT, RIGHT, "to the right", "x", "3")),
)
def test_any_graph_has_parts_from_0_to_1(nodes: list[tuple[str, int, float]], answer: str) -> None:
    places = {f"{label}.{k}": (x, -x) for label, k, x in nodes}
    for of in (DIRECTION, MOVED):
        assert all(0 <= value <= 1 for value in parts(scene(places, places), answer, of))
