"""Rubric: totals and parts by hand, presets, and what shortcuts earn in total."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards import Rubric, judge_group, score, score_group
from videostr.config import RewardConfig
from videostr.errors import RewardError
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
)

TRUTH = SceneGraph(
    unit="m",
    frame="floor",
    frames=(
        GraphFrame(
            t=0.0,
            nodes=(Node(id="a.1", label="a", pos=(0.0, 0.0)), Node(id="b.1", label="b", pos=(4.0, 0.0))),
        ),
    ),
)


def record(graph: SceneGraph | None = TRUTH, kind: AnswerKind = AnswerKind.CHOICE) -> Record:
    return Record(
        id="r1",
        source="test",
        family="test",
        question="?",
        options=("left", "right"),
        answer=Answer(kind=kind, value="B"),
        clip=ClipSpec(video="v.mp4", num_frames=1),
        labels=("a", "b"),
        graph=graph,
        origin="part-0.parquet:1",
    )


def completion(text: str, tokens: int = 10) -> Completion:
    return Completion(
        text=text,
        token_ids=np.zeros(tokens, dtype=np.int32),
        logprobs=np.zeros(tokens, dtype=np.float32),
        finish_reason=FinishReason.STOP,
        weight_versions=(),
    )


STATED = f"<graph>{to_json(TRUTH)}</graph>"
RIGHT = f"<think>{STATED}</think><answer>B</answer>"


def total(text: str, rubric: Rubric | None = None) -> float:
    return score(completion(text), record(), rubric or Rubric()).total


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", 0.0),  # empty text
        ("<think></think><answer></answer>", 0.2),  # format only
        ("<think>B B B B</think><answer>B</answer>", 1.2),  # the letter as thinking: no graph is paid
        (f"<think>{STATED}</think><answer>A</answer>", 1.2),  # truth, wrong answer
        (RIGHT, 2.2),
        (RIGHT + " so there", 0.0),  # the gate: nothing without the format
        # b one to the left: tau = 2, so credits 1 and 0.5; the only edge 3 for 4, 1 - 0.25/0.5: graph 0.5 * (0.75 + 0.5)
        (RIGHT.replace("[4,0]", "[3,0]"), 0.2 + 1 + 0.625),
        (RIGHT.replace("[4,0]", "[NaN,0]"), 1.2),
    ],
)
def test_totals_of_the_default_rubric(text: str, expected: float) -> None:
    assert total(text) == pytest.approx(expected)


def test_answer_only_reports_the_graph_and_does_not_pay_it() -> None:
    rubric = Rubric.from_config(RewardConfig(rubric="answer_only"), max_tokens=100)
    earned = score(completion(RIGHT), record(), rubric)
    assert earned.total == pytest.approx(1.2)
    assert earned.parts["graph"] == 1.0


def test_without_a_gate_parts_are_paid_whatever_the_format() -> None:
    assert total(RIGHT + " so there", Rubric(gate="none")) == pytest.approx(2.0)


def test_the_config_sets_tolerances_and_the_length_penalty() -> None:
    config = RewardConfig(node_tolerance=2.0, node_weight=1.0, overlong_buffer=20)
    rubric = Rubric.from_config(config, max_tokens=100)
    # tau = 4: node term (1 + 0.75) / 2 and nothing else; 85 tokens: -0.25
    earned = score(completion(RIGHT.replace("[4,0]", "[3,0]"), tokens=85), record(), rubric)
    assert earned.parts == pytest.approx(
        {
            "format": 1.0,
            "answer": 1.0,
            "graph": 0.875,
            "graph_node": 0.875,
            "graph_edge": 0.5,
            "length": -0.25,
        }
    )
    assert earned.total == pytest.approx(0.2 + 1 + 0.875 - 0.25)
    assert "length: close to the token limit, or cut off by it" in earned.notes


def test_parts_that_the_record_does_not_have_are_left_out() -> None:
    lone = SceneGraph(unit="m", frame="floor", frames=(GraphFrame(t=0.0, nodes=TRUTH.frames[0].nodes[:1]),))
    assert score(completion(RIGHT), record(None), Rubric()).parts.keys() == {"format", "answer"}
    parts = score(completion(RIGHT), record(lone), Rubric()).parts
    assert parts.keys() == {"format", "answer", "graph", "graph_node"}
    assert score(completion(""), record(lone), Rubric()).parts.keys() == parts.keys()


def test_notes_say_why_parts_are_low() -> None:
    notes = score(completion("<think>hm</think><answer>A</answer>"), record(), Rubric()).notes
    assert notes == ("answer: A, the truth is B", "graph: no <graph> block inside <think>")
    assert "no <think> block" in score(completion("B"), record(), Rubric()).notes


def test_a_group_keeps_its_order_and_gives_the_traces() -> None:
    texts = [RIGHT, "", RIGHT.replace(">B<", ">A<")]
    group = [completion(text) for text in texts]
    judged = judge_group(group, record(), Rubric())
    assert [trace.answer for trace, _ in judged] == ["B", "", "A"]
    assert [earned for _, earned in judged] == score_group(group, record(), Rubric())
    assert [earned.total for _, earned in judged] == pytest.approx([2.2, 0.0, 1.2])


def test_a_record_of_a_kind_without_a_reward_is_refused() -> None:
    with pytest.raises(
        RewardError, match=r"record r1 part-0.parquet:1: no reward judges answers of kind 'box3d'"
    ):
        score_group([completion(RIGHT)], record(kind=AnswerKind.BOX3D), Rubric())


def test_an_endless_answer_is_not_read() -> None:
    earned = score(completion(f"<think></think><answer>{'1,111' * 5000}</answer>"), record(), Rubric())
    assert earned.parts["answer"] == 0.0
    assert earned.notes[0].startswith("answer: 25000 characters long")


@given(st.text(), st.sampled_from([AnswerKind.CHOICE, AnswerKind.NUMBER, AnswerKind.BOX2D]))
def test_no_answer_raises(text: str, kind: AnswerKind) -> None:
    value = {AnswerKind.CHOICE: "B", AnswerKind.NUMBER: 2.0, AnswerKind.BOX2D: (0.0, 0.0, 5.0, 5.0)}[kind]
    asked = Record(
        id="r",
        source="",
        family="",
        question="",
        options=("left", "right"),
        answer=Answer(kind=kind, value=value, unit="m"),
        clip=ClipSpec(video="", num_frames=1),
        labels=(),
        graph=None,
    )
    earned = score(completion(f"<think></think><answer>{text}</answer>"), asked, Rubric())
    assert 0 <= earned.parts["answer"] <= 1
