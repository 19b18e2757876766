"""The trace parser and the graph contract: what is read, what is refused and why, and that nothing raises."""

from __future__ import annotations

import json
import math
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from videostr import graph as graphs
from videostr.trace import opened, parse, rest_of, without_thinking
from videostr.types import Edge, GraphAbsence, GraphFrame, Node, SceneGraph

GRAPH: dict[str, Any] = {
    "unit": "m",
    "frames": [
        {
            "t": 0.0,
            "nodes": [{"id": "car.1", "pos": [1.2, 0.4, 11.0]}, {"id": "van.1", "pos": [-3.0, 0.5, 18.2]}],
            "edges": [{"a": "car.1", "b": "van.1", "dist": 8.3, "angle": 120.3}],
        }
    ],
}
PARSED = SceneGraph(
    unit="m",
    frame="",
    frames=(
        GraphFrame(
            t=0.0,
            nodes=(
                Node(id="car.1", label="car", pos=(1.2, 0.4, 11.0)),
                Node(id="van.1", label="van", pos=(-3.0, 0.5, 18.2)),
            ),
            edges=(Edge(a="car.1", b="van.1", dist=8.3, angle=120.3),),
        ),
    ),
)


def text_of(graph: str, answer: str = "B") -> str:
    return f"<think>a <graph>{graph}</graph> b</think>\n<answer> {answer} </answer>\n"


def graph_with(**changes: Any) -> str:
    """GRAPH with keys of its only frame replaced."""
    return json.dumps({"unit": "m", "frames": [GRAPH["frames"][0] | changes]})


def test_a_trace_in_the_format_is_read_whole() -> None:
    trace = parse(text_of(json.dumps(GRAPH)))
    assert trace.well_formed
    assert trace.problems == ()
    assert trace.think.startswith("a <graph>")
    assert trace.think.endswith("</graph> b")
    assert trace.answer == "B"
    assert trace.graph == PARSED


def test_the_graph_may_be_left_out() -> None:
    trace = parse("<think>no scene</think><answer>3</answer>")
    assert trace.well_formed
    assert trace.graph is GraphAbsence.ABSENT


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("", ""),
        ("just B", ""),
        ("<answer>B</answer>", "B"),
        ("x <think>a</think><answer>B</answer>", "B"),
        ("<think>a</think> so <answer>B</answer>", "B"),
        ("<think>a</think><answer>B</answer> done", "B"),
        ("<answer>B</answer><think>a</think>", "B"),
        ("<think>a</think><answer>A</answer><answer>B</answer>", "B"),
        ("<think>a</think><answer>B", "B"),
        ("<think>a<answer>B</answer>", "B"),
        ("<think>a</think></think><answer>B</answer>", "B"),
        ("<think>a</think><graph>{}</graph><answer>B</answer>", "B"),
        ("<think><graph>{}</graph><graph>{}</graph></think><answer>B</answer>", "B"),
        ("<think><graph>{}</think><answer>B</answer>", "B"),
        ("<think><think>a</think></think><answer>B</answer>", "B"),
    ],
)
def test_what_is_outside_the_format_is_said_and_the_answer_still_found(text: str, answer: str) -> None:
    trace = parse(text)
    assert not trace.well_formed
    assert trace.problems
    assert trace.answer == answer


def test_a_graph_outside_think_is_absent() -> None:
    outside = f"<think>a</think><graph>{json.dumps(GRAPH)}</graph><answer>B</answer>"
    assert parse(outside).graph is GraphAbsence.ABSENT


def test_a_one_frame_graph_needs_no_frames() -> None:
    trace = parse(text_of('{"unit":"px","nodes":[{"id":"red cube.2","pos":[1,2]}]}'))
    assert trace.graph == SceneGraph(
        unit="px",
        frame="",
        frames=(GraphFrame(t=0.0, nodes=(Node(id="red cube.2", label="red cube", pos=(1.0, 2.0)),)),),
    )


NODE = {"id": "car.1", "pos": [1, 2, 3]}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", GraphAbsence.BAD_JSON),
        (json.dumps(GRAPH)[:-7], GraphAbsence.BAD_JSON),
        ("[" * 7, GraphAbsence.TOO_LARGE),
        ("[" * 30_000 + "]" * 30_000, GraphAbsence.TOO_LARGE),
        ("[]", GraphAbsence.BAD_SCHEMA),
        ('{"frames": []}', GraphAbsence.BAD_SCHEMA),
        ('{"unit": "m", "frames": []}', GraphAbsence.BAD_SCHEMA),
        ('{"unit": ["m"], "frames": []}', GraphAbsence.BAD_SCHEMA),
        ('{"unit": "m"}', GraphAbsence.BAD_SCHEMA),
        (json.dumps({"unit": "m", "frames": [{"t": 0, "nodes": []}] * 17}), GraphAbsence.TOO_LARGE),
        (
            graph_with(nodes=[{"id": f"a.{i}", "pos": [0, 0]} for i in range(65)], edges=[]),
            GraphAbsence.TOO_LARGE,
        ),
        (graph_with(edges=[{}] * 513), GraphAbsence.TOO_LARGE),
        (graph_with(t=None), GraphAbsence.BAD_SCHEMA),
        (graph_with(t=True), GraphAbsence.BAD_SCHEMA),
        (graph_with(nodes=[{"id": "car", "pos": [1, 2, 3]}]), GraphAbsence.BAD_SCHEMA),
        (graph_with(nodes=[{"id": "\ud800.1", "pos": [1, 2, 3]}]), GraphAbsence.BAD_SCHEMA),
        (graph_with(nodes=[{"id": "car.1", "pos": [1]}]), GraphAbsence.BAD_SCHEMA),
        (graph_with(nodes=[{"id": "car.1", "pos": ["1", 2]}]), GraphAbsence.BAD_SCHEMA),
        (graph_with(nodes=[NODE, {"id": "van.1", "pos": [1, 2]}]), GraphAbsence.BAD_SCHEMA),
        (graph_with(nodes=[NODE, NODE]), GraphAbsence.DUPLICATE_ID),
        (graph_with(edges=[{"a": "car.1", "b": "bus.1"}]), GraphAbsence.UNKNOWN_ID),
        (graph_with(edges=[{"a": "car.1", "b": "car.1"}]), GraphAbsence.BAD_SCHEMA),
        (
            graph_with(edges=[{"a": "car.1", "b": "van.1"}, {"a": "van.1", "b": "car.1"}]),
            GraphAbsence.BAD_SCHEMA,
        ),
        (graph_with(edges=[{"a": "car.1", "b": "van.1", "dist": -1}]), GraphAbsence.BAD_SCHEMA),
        (graph_with(edges=7), GraphAbsence.BAD_SCHEMA),
        (graph_with(nodes=[{"id": "car.1", "pos": [math.nan, 0]}]), GraphAbsence.NON_FINITE),
        (graph_with(nodes=[{"id": "car.1", "pos": [-math.inf, 0]}]), GraphAbsence.NON_FINITE),
        (graph_with(nodes=[{"id": "car.1", "pos": [1.1e6, 0]}]), GraphAbsence.NON_FINITE),
        (graph_with().replace("11.0", "9" * 5000), GraphAbsence.NON_FINITE),
    ],
)
def test_a_graph_that_breaks_the_contract_is_refused_with_the_reason(text: str, reason: GraphAbsence) -> None:
    trace = parse(text_of(text))
    assert trace.graph is reason
    assert trace.problems[0].startswith(f"graph: {reason.value}")
    assert trace.well_formed, "the format is about the blocks, not about what the graph says"


def test_a_graph_that_is_never_closed_says_so() -> None:
    trace = parse('<think><graph>{"unit": "m", "fra')
    assert trace.graph is GraphAbsence.BAD_JSON
    assert "graph: <graph> is never closed" in trace.problems


def test_unknown_and_repeated_keys_are_tolerated() -> None:
    text = json.dumps(GRAPH)[:-1] + ', "colour": [NaN], "unit": "grid", "unit": "m"}'
    assert parse(text_of(text)).graph == PARSED


def test_frames_are_put_in_the_order_of_time_and_angles_wrapped() -> None:
    edge = {"a": "car.1", "b": "van.1", "angle": 300}
    frames = [GRAPH["frames"][0] | {"t": 2}, GRAPH["frames"][0] | {"t": 1, "edges": [edge]}]
    graph = graphs.from_value({"unit": "m", "frames": frames})
    assert [frame.t for frame in graph.frames] == [1.0, 2.0]
    assert graph.frames[0].edges == (Edge(a="car.1", b="van.1", dist=None, angle=-60.0),)


@pytest.mark.parametrize(
    "text",
    [
        "x" * 10_000_000,
        "<think>" * 1_500_000,
        "é" * 40_000,  # 64 KiB are counted in bytes
    ],
)
def test_more_than_64_kib_is_refused_at_once(text: str) -> None:
    start = time.process_time()
    trace = parse(text)
    assert time.process_time() - start < 0.1
    assert trace.graph is GraphAbsence.TOO_LARGE
    assert (trace.think, trace.answer, trace.well_formed) == ("", "", False)


@pytest.mark.parametrize(
    "part", ["<graph>", "<think>", "</answer>", '"', '\\"', '"\\', "[", "{", "<answer>", "1,", "\\"]
)
def test_time_is_linear_in_the_text(part: str) -> None:
    """64 KiB of what makes a careless pattern quadratic; quadratic would be minutes."""
    body = part * (60_000 // len(part))
    start = time.process_time()
    parse(body)
    parse(f"<think><graph>{body}</graph></think><answer>{body[:1000]}</answer>")
    assert time.process_time() - start < 1.0


PIECES = st.sampled_from(
    [
        "<think>",
        "</think>",
        "<graph>",
        "</graph>",
        "<answer>",
        "</answer>",
        json.dumps(GRAPH),
        '{"unit":"m"',
        "B",
        "\n",
    ]
)


@given(st.lists(PIECES | st.text(st.characters(), max_size=8), max_size=14).map("".join))
def test_no_text_raises(text: str) -> None:
    trace = parse(text)
    assert trace.well_formed or trace.problems
    assert trace.answer == trace.answer.strip()
    assert trace.think in text


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["unit", "frames", "nodes", "edges", "t", "id", "pos", "a", "b", "dist"]),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)


@given(JSON, st.integers(0, 400))
def test_no_json_raises_whole_or_truncated(value: Any, length: int) -> None:
    text = json.dumps(value)
    for piece in (text, text[:length]):
        assert isinstance(parse(text_of(piece)).graph, (SceneGraph, GraphAbsence))


def _mutate(value: Any, path: tuple[int, ...], new: Any) -> Any:
    """A copy of JSON with one place, found by turning at each level into the path's child, replaced."""
    if not path or not isinstance(value, (dict, list)) or not value:
        return new
    if isinstance(value, dict):
        chosen = list(value)[path[0] % len(value)]
        return {key: _mutate(old, path[1:], new) if key == chosen else old for key, old in value.items()}
    place = path[0] % len(value)
    return [_mutate(old, path[1:], new) if i == place else old for i, old in enumerate(value)]


_ODD = [
    0,
    -1,
    1e6,
    1e6 + 1,
    1e400,
    math.nan,
    True,
    None,
    "",
    "car.1",
    "van.1",
    "car",
    "é.2",
    "a\x01.1",
    [],
    {},
    [1, 2],
    [1] * 4,
]
_SPLICES = [
    "",
    "0",
    "-",
    "1e999",
    "NaN",
    " ",
    '"',
    ",",
    "[",
    "}",
    "\\ud800",
    "\x01",
    "0x1",
    "1.",
    "\\u0041",
    '"t":1,',
    "\ud800",
]


@settings(max_examples=600)
@given(
    st.tuples(*[st.integers(0, 3)] * 6).flatmap(lambda path: st.sampled_from([path[:n] for n in range(7)])),
    st.sampled_from(_ODD) | JSON,
    st.sampled_from(_SPLICES),
    st.integers(0, 200),
    st.integers(0, 2),
)
def test_the_fast_reader_agrees_with_the_full_one(
    path: tuple[int, ...], new: Any, splice: str, at: int, cut: int
) -> None:
    text = json.dumps(_mutate(GRAPH, path, new), separators=(",", ":"))
    text = text[:at] + splice + text[at + cut :]
    fast = graphs._read_plain(text)
    if fast is not None:
        assert fast == graphs._read_fully(text, "", False)


def test_the_fast_reader_takes_the_usual_graph_and_leaves_the_rest() -> None:
    assert graphs._read_plain(json.dumps(GRAPH)) == PARSED
    assert graphs._read_plain(graph_with(edges=None)) is not None
    for unusual in (
        graph_with(colour=["red"]),
        graph_with(nodes=GRAPH["frames"][0]["nodes"] * 2),
        "[" * 9999,
    ):
        assert graphs._read_plain(unusual) is None


@given(st.binary(max_size=300))
def test_no_bytes_raise(data: bytes) -> None:
    assert parse(data.decode("utf-8", "surrogateescape")).well_formed is False


# ------------------------------------------------------------------------------------------ writing, geometry


def test_writing_is_compact_and_reading_gives_the_same_graph() -> None:
    truth = SceneGraph(
        unit="m",
        frame="camera0",
        frames=(
            GraphFrame(
                t=0.5,
                nodes=(
                    Node(id="a.1", label="a", pos=(1.0, 0.25, 2.0), size=(1.0, 1.5, 1.0)),
                    Node(id="b.1", label="b", pos=(0.0, 0.0, 1 / 3)),
                ),
                edges=(Edge(a="a.1", b="b.1", dist=2.0, angle=None),),
                view=(600.0, 0.0, 500.0, 0.5, 0.0, 600.0, 500.0, -1 / 3, 0.0, 0.0, 1.0, 0.0),
            ),
        ),
    )
    assert graphs.to_json(truth, decimals=2) == (
        '{"unit":"m","frames":[{"t":0.5,"nodes":[{"id":"a.1","pos":[1,0.25,2]},{"id":"b.1","pos":[0,0,0.33]}],'
        '"edges":[{"a":"a.1","b":"b.1","dist":2}]}]}'
    )
    written = graphs.to_json(truth, truth=True)
    assert graphs.from_json(written, frame="camera0", truth=True) == truth
    # What a model writes is read by the contract alone.
    read = graphs.from_json(written)
    assert (read.frames[0].view, read.frames[0].nodes[0].size) == (None, None)


@pytest.mark.parametrize("view", [[1.0] * 11, "camera", [1.0] * 11 + [float("nan")]])
def test_a_broken_view_of_a_true_graph_is_refused(view: object) -> None:
    value = {"unit": "m", "frames": [{"t": 0, "nodes": [], "view": view}]}
    with pytest.raises(graphs.InvalidGraph, match="view"):
        graphs.from_value(value, frame="camera0", truth=True)


@pytest.mark.parametrize(
    ("frame", "value"),
    [("moon", GRAPH), ("camera0", {"unit": "m", "nodes": [{"id": "a.1", "pos": [1, 2]}]})],
)
def test_a_true_graph_must_fit_its_frame_of_reference(frame: str, value: dict[str, Any]) -> None:
    with pytest.raises(graphs.InvalidGraph) as refused:
        graphs.from_value(value, frame=frame)
    assert refused.value.reason is GraphAbsence.BAD_SCHEMA


def test_bearing_is_taken_in_the_ground_plane_of_the_frame_of_reference() -> None:
    a, b = np.array([0.0, 0.0, 0.0]), np.array([1.0, -5.0, 1.0])
    assert graphs.bearing(a, b, "camera0") == pytest.approx(45.0)  # atan2(z 1, x 1)
    assert graphs.bearing(a, b, "floor") == pytest.approx(-78.690067526)  # atan2(y -5, x 1)
    assert graphs.distance(a, b) == pytest.approx(math.sqrt(27))


def test_wrap_keeps_angles_in_the_half_open_circle() -> None:
    angles = np.array([180.0, -180.0, 181.0, 540.0, -541.0, 0.0])
    assert graphs.wrap(angles).tolist() == [180.0, 180.0, -179.0, 180.0, 179.0, 0.0]


def test_circular_mean() -> None:
    assert graphs.circular_mean(np.array([170.0, -170.0])) == pytest.approx(180.0)
    assert graphs.circular_mean(np.array([10.0, 50.0])) == pytest.approx(30.0)
    assert graphs.circular_mean(np.array([0.0, 180.0])) == 0.0  # opposite: no direction
    assert graphs.circular_mean(np.array([])) == 0.0


# ------------------------------------------------------------------------------- chat templates that open the trace


ASSISTANT = "<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("prompt", "begun"),
    [
        (f"Reason inside <think></think>.{ASSISTANT}", ""),
        (f"Reason inside <think></think>.{ASSISTANT}<think>\n", "<think>\n"),
        (f"{ASSISTANT}<think>", "<think>"),
        (f"{ASSISTANT}<think>\n\n</think>\n\n", ""),  # closed: the completion is a trace of its own
        ("", ""),
    ],
)
def test_what_a_template_opened_belongs_to_the_trace(prompt: str, begun: str) -> None:
    trace = "<think><graph>{}</graph> so</think><answer>B</answer>"
    assert opened(prompt) == begun
    written = rest_of(trace, prompt)
    assert written == (trace.removeprefix("<think>") if begun else trace)
    assert parse(begun + written).well_formed
    assert parse(begun + written).answer == "B"
    assert parse(begun + "\n  " + written).well_formed


def test_a_completion_that_closes_what_it_did_not_open_is_not_well_formed() -> None:
    """The prompt says whether the block was opened, not the text."""
    assert not parse("so</think><answer>B</answer>").well_formed


def test_a_direct_answer_follows_the_thinking_that_the_template_opened() -> None:
    thinking = f"{ASSISTANT}<think>\n"
    assert without_thinking("<think>\nA or B?</think>\n\nB", thinking) == "\n\nB"
    assert without_thinking("<think>\nA or B?", thinking) == ""  # cut off before it answered
    assert without_thinking("<think>A</think>B", ASSISTANT) == "<think>A</think>B"
