"""Whatever a policy writes, `rewards.score` gives a score: no exception, parts in range, bounded time and memory."""

from __future__ import annotations

import json
import math
import time
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards import Rubric, score
from videostr.graph import to_json
from videostr.types import (
    Answer,
    AnswerKind,
    ClipSpec,
    Completion,
    FinishReason,
    GraphFrame,
    Node,
    Record,
    SceneGraph,
    Score,
)

# One trace takes well under 0.5 s here; the bound is for a machine many times slower, and far below anything quadratic.
MAX_SECONDS = 20.0
MAX_BYTES = 64 * 2**20


def scene(frames: int = 4, labels: int = 4, instances: int = 2, unit: str = "m") -> SceneGraph:
    rng = np.random.default_rng(0)
    names = [f"{chr(ord('a') + label)}.{i}" for label in range(labels) for i in range(1, instances + 1)]
    return SceneGraph(
        unit=unit,
        frame="floor",
        frames=tuple(
            GraphFrame(
                t=float(t),
                nodes=tuple(
                    Node(id=name, label=name[0], pos=tuple(rng.uniform(0, 9, 2).round(2).tolist()))
                    for name in names
                ),
            )
            for t in range(frames)
        ),
    )


SCENE = scene()
TRUTH: dict[AnswerKind, str | float | tuple[float, ...] | tuple[tuple[float, ...], ...]] = {
    AnswerKind.CHOICE: "B",
    AnswerKind.NUMBER: 3.5,
    AnswerKind.BOX2D: (1.0, 2.0, 3.0, 4.0),
    AnswerKind.BOX3D: (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 0.5),
    AnswerKind.SPAN: (1.0, 2.0),
    AnswerKind.TRACK: ((1.0, 2.0, 3.0, 4.0),) * 4,
}
RUBRICS = {
    "default": Rubric(max_tokens=100, overlong_buffer=20),
    "paper": Rubric.preset("paper"),
    "spacer": Rubric.preset("spacer"),
    "answer_only": Rubric.preset("answer_only"),
}


def record(kind: AnswerKind = AnswerKind.CHOICE, graph: SceneGraph | None = SCENE) -> Record:
    return Record(
        id="r",
        source="test",
        family="test",
        question="?",
        options=("left", "right"),
        answer=Answer(kind=kind, value=TRUTH[kind], unit="m" if kind is AnswerKind.NUMBER else ""),
        clip=ClipSpec(video="v.mp4", num_frames=4),
        labels=("a", "b", "c", "d"),
        graph=graph,
    )


def completion(text: str) -> Completion:
    return Completion(
        text=text,
        token_ids=np.zeros(90, dtype=np.int32),
        logprobs=np.zeros(90, dtype=np.float32),
        finish_reason=FinishReason.STOP,
        weight_versions=(),
    )


def trace(graph: str, answer: str = "B") -> str:
    return f"<think>so <graph>{graph}</graph> then</think><answer>{answer}</answer>"


def judged(text: str, asked: Record | None = None, rubric: Rubric | None = None) -> Score:
    """The score, checked for everything that holds of every score."""
    scored = score(completion(text), asked or record(), rubric or RUBRICS["default"])
    for name, value in scored.parts.items():
        low = -1.0 if name == "length" else 0.0
        assert low <= value <= 1.0, f"{name} = {value}"
    assert math.isfinite(scored.total)
    assert all(isinstance(note, str) and note.isprintable() and len(note) < 1000 for note in scored.notes)
    return scored


GRAPH = to_json(SCENE)
TRUE_TRACE = trace(GRAPH)


def test_the_true_trace_earns_everything() -> None:
    assert judged(TRUE_TRACE).parts == pytest.approx(
        {"format": 1, "answer": 1, "graph": 1, "graph_node": 1, "graph_edge": 1, "length": -0.5}
    )


# ------------------------------------------------------------------------------------------- random texts

_tags = ["<think>", "</think>", "<graph>", "</graph>", "<answer>", "</answer>"]
_pieces = [
    *_tags,
    GRAPH,
    GRAPH[:200],
    '{"unit":"m"',
    '"frames":[',
    "[",
    "]",
    "{",
    "}",
    "NaN",
    "1e999",
    "B",
    "\ud800",
    "\0",
]
_texts = (
    st.binary(max_size=300).map(lambda raw: raw.decode("utf-8", "replace"))
    | st.binary(max_size=300).map(lambda raw: raw.decode("utf-8", "surrogateescape"))
    | st.text(max_size=300)
    | st.lists(st.sampled_from(_pieces) | st.text(max_size=8), max_size=12).map("".join)
)


@settings(max_examples=300)
@given(_texts, st.sampled_from(list(TRUTH)), st.sampled_from(list(RUBRICS)), st.booleans())
def test_any_text_gets_a_score(text: str, kind: AnswerKind, rubric: str, has_graph: bool) -> None:
    asked = record(kind, SCENE if has_graph else None)
    judged(text, asked, RUBRICS[rubric])
    judged(trace(text), asked, RUBRICS[rubric])
    judged(trace(GRAPH, answer=text), asked, RUBRICS[rubric])


_json = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
        ["unit", "frames", "t", "nodes", "edges", "id", "pos", "a", "b", "dist", "angle", "x"]
    ), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip
_places = [("unit",), ("frames",), *(("frames", 0, key) for key in ("t", "nodes", "edges"))]
_places += [("frames", 1, "nodes", 0, key) for key in ("id", "pos")]


@settings(max_examples=300)
@given(st.sampled_from(_places), _json)
def test_any_value_anywhere_in_a_graph_gets_a_score(place: tuple[str | int, ...], value: object) -> None:
    graph = json.loads(GRAPH)
    inner = graph
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    judged(trace(json.dumps(graph)))
    judged(trace(json.dumps(value)))


@settings(max_examples=100)
@given(
    st.lists(
        st.tuples(*[st.floats(-1e6, 1e6) | st.sampled_from([0.0, 1e-300, 5e-324, 1e6])] * 2),
        min_size=8,
        max_size=8,
    )
)
def test_any_positions_get_a_score(positions: list[tuple[float, float]]) -> None:
    nodes = zip(SCENE.frames[0].nodes, positions, strict=True)
    frame = GraphFrame(t=0.0, nodes=tuple(Node(id=node.id, label=node.label, pos=pos) for node, pos in nodes))
    odd = SceneGraph(unit="m", frame="floor", frames=(frame,))
    judged(trace(to_json(odd)))
    judged(TRUE_TRACE, record(graph=odd))
    assert judged(trace(to_json(odd)), record(graph=odd)).parts["graph_node"] == pytest.approx(1.0)


def test_a_true_trace_cut_anywhere_gets_a_score_and_never_the_whole_reward() -> None:
    whole = judged(TRUE_TRACE).total
    for stop in range(0, len(TRUE_TRACE), 3):
        assert judged(TRUE_TRACE[:stop]).total < whole


def test_a_graph_cut_anywhere_is_not_paid() -> None:
    for stop in range(0, len(GRAPH), 3):
        assert judged(trace(GRAPH[:stop])).parts["graph"] == 0.0


# ------------------------------------------------------------------------------------- large and odd texts


def many_nodes(count: int) -> str:
    nodes = [{"id": f"a.{i}", "pos": [i % 97, i % 89]} for i in range(count)]
    return json.dumps({"unit": "m", "frames": [{"t": 0, "nodes": nodes}]}, separators=(",", ":"))


def many_edges(count: int) -> str:
    nodes = [{"id": f"a.{i}", "pos": [i, i]} for i in range(64)]
    pairs = [(i, j) for i in range(64) for j in range(i)][:count]
    edges = [{"a": f"a.{i}", "b": f"a.{j}", "dist": 1, "angle": 1} for i, j in pairs]
    return json.dumps(
        {"unit": "m", "frames": [{"t": 0, "nodes": nodes, "edges": edges}]}, separators=(",", ":")
    )


def frames_of(number: str) -> str:
    return f'{{"unit":"m","nodes":[{{"id":"a.1","pos":[{number},0]}}]}}'


HOSTILE: dict[str, Callable[[], str]] = {
    "10 MB of letters": lambda: "x" * 10_000_000,
    "10 MB of emoji": lambda: "\U0001f600" * 2_500_000,
    "10 MB inside the graph": lambda: trace("[" * 10_000_000),
    "10 MB of answer": lambda: trace("", answer="1," * 5_000_000),
    "100,000 brackets": lambda: trace("[" * 100_000 + "]" * 100_000),
    "30,000 brackets": lambda: trace("[" * 30_000 + "]" * 30_000),
    "10,000 objects in one another": lambda: trace('{"a":' * 10_000 + "1" + "}" * 10_000),
    "60,000 quotes": lambda: trace('"' * 60_000),
    "60,000 backslashes": lambda: trace('"' + "\\" * 60_000),
    "10,000 unclosed strings": lambda: trace('"a\\' * 15_000),
    "60,000 blanks": lambda: trace(" " * 60_000),
    "10,000 think tags": lambda: "<think>" * 9_000,
    "6,000 graph blocks": lambda: "<think>" + "<graph>{}</graph>" * 3_500 + "</think><answer>B</answer>",
    "3,000 answers": lambda: "<think></think>" + "<answer>B</answer>" * 3_000,
    "60,000 opening brackets of tags": lambda: "<" * 60_000,
    "10,000 broken tags": lambda: "<think" * 10_000,
    "an integer of 60,000 digits": lambda: trace(frames_of("9" * 60_000)),
    "an integer of 100,000 digits": lambda: trace(frames_of("9" * 100_000)),
    "a fraction of 60,000 digits": lambda: trace(frames_of("0." + "9" * 60_000)),
    "an exponent of 10,000 digits": lambda: trace(frames_of("1e" + "9" * 10_000)),
    "an answer of 100,000 digits": lambda: trace(GRAPH, answer="9" * 100_000),
    "an answer of 1,000 digits": lambda: trace(GRAPH, answer="9" * 1_000),
    "2,000 nodes": lambda: trace(many_nodes(2_000)),
    "5,000 nodes": lambda: trace(many_nodes(5_000)),
    "2,000 edges": lambda: trace(many_edges(2_000)),
    "lone surrogates": lambda: "\ud800" * 20_000,
    "a surrogate as label": lambda: trace('{"unit":"m","nodes":[{"id":"\ud800.1","pos":[0,0]}]}'),
    "an escaped surrogate as label": lambda: trace('{"unit":"m","nodes":[{"id":"\\ud800.1","pos":[0,0]}]}'),
    "control characters": lambda: trace("".join(map(chr, range(32)))),
    "a byte order mark": lambda: trace("\ufeff" + GRAPH),
    "wide digits": lambda: trace(frames_of("１２"), answer="１２"),
}


@pytest.mark.parametrize("text", [pytest.param(make, id=name) for name, make in HOSTILE.items()])
def test_hostile_text_costs_little_and_earns_less_than_the_truth(text: Callable[[], str]) -> None:
    hostile, whole = text(), judged(TRUE_TRACE).total
    for kind in TRUTH:
        scored, seconds, peak = measured(hostile, record(kind))
        assert scored.total < whole
        assert seconds < MAX_SECONDS
        assert peak < MAX_BYTES


def test_blanks_around_a_trace_cost_nothing() -> None:
    assert judged(" " * 60_000 + TRUE_TRACE + "\n" * 2_000) == judged(TRUE_TRACE)


@pytest.mark.parametrize(
    "number", ["NaN", "-NaN", "Infinity", "-Infinity", "1e999", "1e7", "-1e400", "null", "true", "0x1"]
)
def test_numbers_that_are_none_pay_no_graph(number: str) -> None:
    assert judged(trace(frames_of(number))).parts["graph"] == 0.0


def test_the_largest_graphs_within_the_contract_cost_little() -> None:
    # 16 frames of 64 nodes of one label: the matching is at its worst. The text stays below 64 KiB.
    worst = scene(frames=16, labels=1, instances=64)
    text = trace(to_json(worst, decimals=1))
    scored, seconds, peak = measured(text, record(graph=worst))
    assert scored.parts["graph_node"] > 0.9
    assert seconds < 6 * MAX_SECONDS
    assert peak < 4 * MAX_BYTES
    scored, seconds, peak = measured(text, record(graph=worst), RUBRICS["spacer"])
    assert scored.parts["map"] > 0.9
    assert seconds < 6 * MAX_SECONDS
    assert peak < 4 * MAX_BYTES


def measured(text: str, asked: Record, rubric: Rubric | None = None) -> tuple[Score, float, int]:
    """Score, seconds of processor time and the most bytes held at once while scoring."""
    tracemalloc.start()
    try:
        start = time.process_time()
        scored = judged(text, asked, rubric)
        return scored, time.process_time() - start, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_time_grows_no_faster_than_the_text() -> None:
    def seconds(size: int) -> float:
        texts = [
            trace('{"a":"' + "x" * size + '"}'),
            trace("[" * size),
            "<think>" * (size // 7),
            trace("1 " * (size // 2)),
        ]
        start = time.process_time()
        for _ in range(5):
            for text in texts:
                judged(text)
        return time.process_time() - start

    seconds(1_000)
    # 16 times the text: 16 times the time if linear, 256 times if quadratic. Constant costs count too: 10 ms.
    assert seconds(60_000) < 64 * (seconds(3_750) + 0.01)
