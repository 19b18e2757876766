"""Rubric: totals and parts by hand, presets, and what shortcuts score in total."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards import Rubric, score, score_group, score_group_with_traces
from videostr.config.sections import RewardConfig
from videostr.errors import ConfigError, RewardError
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
        ("<think>B B B B</think><answer>B</answer>", 1.2),  # the letter as thinking: no graph scores
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


def test_a_text_and_the_name_of_a_preset_do() -> None:
    assert score(RIGHT, record()) == score(completion(RIGHT), record(), Rubric())
    assert score_group([RIGHT, ""], record(), "answer_only")[0].total == pytest.approx(1.2)
    with pytest.raises(
        ConfigError, match="rubric 'papre': must be one of default, paper, spacer, answer_only"
    ):
        score(RIGHT, record(), "papre")


# b one to the left: graph 0.625 (as above). On the map of the truth's box, [0, 4] is [0, 10], so b is off by 2.5:
# credits 1 and 1 - 2.5 / (10 sqrt 2), weighted alike.
MOVED = RIGHT.replace("[4,0]", "[3,0]")
MAP_MOVED = (1 + 1 - 2.5 / (10 * 2**0.5)) / 2


@pytest.mark.parametrize(
    ("rubric", "text", "expected"),
    [
        ("paper", RIGHT, 3.0),
        ("paper", MOVED, 2.625),
        ("paper", RIGHT + " so there", 2.0),  # no gate
        ("spacer", RIGHT, 3.0),
        ("spacer", MOVED, 2.0 + MAP_MOVED),
        ("spacer", MOVED.replace(">B<", ">A<"), 1.0),  # wrong: the map does not count
        ("spacer", "<think></think><answer>B</answer>", 2.0),  # no map: the plain answer reward
        (
            "spacer",
            RIGHT.replace("a.1", "c.1").replace("b.1", "d.1"),
            1.0,
        ),  # a map worth 0 takes the answer's reward
    ],
)
def test_totals_of_the_other_presets(rubric: str, text: str, expected: float) -> None:
    assert score(text, record(), rubric).total == pytest.approx(expected)


def test_a_half_right_number_earns_no_map() -> None:
    asked = replace(record(), answer=Answer(kind=AnswerKind.NUMBER, value=10.0), options=())
    # Off by 25 %: six of ten thresholds; by 30 %: five, which is not above 0.5.
    assert score(RIGHT.replace(">B<", ">7.5<"), asked, "spacer").total == pytest.approx(1 + 0.6 + 1)
    assert score(RIGHT.replace(">B<", ">7<"), asked, "spacer").total == pytest.approx(1 + 0.5)


def test_the_band_pays_right_answers_of_a_wanted_length_if_there_are_two() -> None:
    wrong = RIGHT.replace(">B<", ">A<")
    group = [completion(RIGHT, 320), completion(RIGHT, 512), completion(RIGHT, 319), completion(wrong, 400)]
    parts = [scored.parts["length"] for scored in score_group(group, record(), "paper")]
    assert parts == [0.2, 0.2, 0.0, 0.0]
    alone = score_group([group[0], group[3]], record(), "paper")
    assert [scored.parts["length"] for scored in alone] == [0.0, 0.0]
    assert [scored.total for scored in score_group(group, record(), "paper")] == pytest.approx(
        [3.2, 3.2, 3.0, 2.0]
    )


def test_a_text_without_tokens_has_no_length_term() -> None:
    scored = score(RIGHT, record(), "paper")
    assert "length" not in scored.parts
    assert scored.notes == ("length: not judged, the completion came without its tokens",)


def test_the_config_sets_weights_angle_and_length() -> None:
    config = RewardConfig(rubric="paper", w_graph=0.5, w_format=0.0, length="none", scale="relative")
    rubric = Rubric.from_config(config, max_tokens=100)
    assert (rubric.w_format, rubric.w_answer, rubric.w_graph, rubric.length) == (0.0, 1.0, 0.5, "none")
    assert rubric.graph_rule.scale == "relative"
    assert score(completion(RIGHT, 400), record(), rubric).total == pytest.approx(1.5)


CUSTOM = """
def says_wall(trace, record): return float("wall" in trace.think)
def raises(trace, record): return 1 / 0
def too_much(trace, record): return 1.5
def nothing(trace, record): return None
not_callable = 3
"""


@pytest.fixture
def custom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of a module with rewards of a user."""
    (tmp_path / "their_rewards.py").write_text(CUSTOM)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "their_rewards", raising=False)
    return "their_rewards"


def test_a_custom_reward_is_paid_behind_the_gate(custom: str) -> None:
    rubric = Rubric.from_config(RewardConfig(custom=f"{custom}:says_wall", w_custom=0.5), max_tokens=100)
    wall = RIGHT.replace("<think>", "<think>by the wall ")
    scored = score_group([wall, RIGHT, wall + " so there"], record(), rubric)
    assert [one.parts["custom"] for one in scored] == [1.0, 0.0, 1.0]
    assert [one.total for one in scored] == pytest.approx([2.7, 2.2, 0.0])


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("raises", "their_rewards:raises raised ZeroDivisionError: division by zero"),
        ("too_much", "their_rewards:too_much returned 1.5, must be a number in"),
        ("nothing", "their_rewards:nothing returned None, must be a number in"),
    ],
)
def test_a_custom_reward_that_fails_is_no_silent_zero(custom: str, function: str, message: str) -> None:
    rubric = Rubric.from_config(RewardConfig(custom=f"{custom}:{function}"), max_tokens=100)
    with pytest.raises(RewardError, match=rf"record r1 part-0.parquet:1: reward.custom = {message}"):
        score(RIGHT, record(), rubric)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("their_rewards", "must be package.module:function"),
        ("their_rewards:none", "their_rewards has no function none"),
        ("their_rewards:not_callable", "their_rewards has no function not_callable"),
        ("no_such_module:f", "importing no_such_module raised ModuleNotFoundError"),
    ],
)
def test_a_custom_reward_that_does_not_import_is_refused_at_start(
    custom: str, name: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Rubric.from_config(RewardConfig(custom=name), max_tokens=100)


def test_answer_only_reports_the_graph_and_does_not_pay_it() -> None:
    rubric = Rubric.from_config(RewardConfig(rubric="answer_only"), max_tokens=100)
    scored = score(completion(RIGHT), record(), rubric)
    assert scored.total == pytest.approx(1.2)
    assert scored.parts["graph"] == 1.0


def test_without_a_gate_parts_are_paid_whatever_the_format() -> None:
    assert total(RIGHT + " so there", Rubric(gate="none")) == pytest.approx(2.0)


def test_the_config_sets_tolerances_and_the_length_penalty() -> None:
    config = RewardConfig(node_tolerance=2.0, node_weight=1.0, overlong_buffer=20)
    rubric = Rubric.from_config(config, max_tokens=100)
    # tau = 4: node term (1 + 0.75) / 2 and nothing else; 85 tokens: -0.25
    scored = score(completion(RIGHT.replace("[4,0]", "[3,0]"), tokens=85), record(), rubric)
    assert scored.parts == pytest.approx(
        {
            "format": 1.0,
            "answer": 1.0,
            "graph": 0.875,
            "graph_node": 0.875,
            "graph_edge": 0.5,
            "length": -0.25,
        }
    )
    assert scored.total == pytest.approx(0.2 + 1 + 0.875 - 0.25)
    assert "length: close to the token limit, or cut off by it" in scored.notes


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
    judged = score_group_with_traces(group, record(), Rubric())
    assert [trace.answer for trace, _ in judged] == ["B", "", "A"]
    assert [scored for _, scored in judged] == score_group(group, record(), Rubric())
    assert [scored.total for _, scored in judged] == pytest.approx([2.2, 0.0, 1.2])


@pytest.mark.parametrize(
    ("kind", "value", "right"),
    [
        (AnswerKind.CHOICE, "B", "B"),
        (AnswerKind.NUMBER, 4.0, "4"),
        (AnswerKind.BOX2D, (0.0, 0.0, 2.0, 2.0), "[0, 0, 2, 2]"),
        (AnswerKind.BOX3D, (0.0, 0.0, 9.0, 2.0, 2.0, 4.0, 0.5), "[0, 0, 9, 2, 2, 4, 0.5]"),
        (AnswerKind.SPAN, (1.0, 2.5), "[1, 2.5]"),
        (AnswerKind.TRACK, ((0.0, 0.0, 2.0, 2.0), (1.0, 1.0, 3.0, 3.0)), "[[0, 0, 2, 2], [1, 1, 3, 3]]"),
    ],
)
def test_every_kind_of_answer_is_judged(kind: AnswerKind, value: Any, right: str) -> None:
    asked = replace(record(), answer=Answer(kind=kind, value=value))
    right_one, wrong_one = (f"<think></think><answer>{text}</answer>" for text in (right, "no"))
    parts = [scored.parts["answer"] for scored in score_group([right_one, wrong_one], asked)]
    assert parts == pytest.approx([1.0, 0.0])


def test_an_endless_answer_is_not_read() -> None:
    scored = score(completion(f"<think></think><answer>{'1,111' * 5000}</answer>"), record(), Rubric())
    assert scored.parts["answer"] == 0.0
    assert scored.notes[0].startswith("answer: 25000 characters long")


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
    scored = score(completion(f"<think></think><answer>{text}</answer>"), asked, Rubric())
    assert 0 <= scored.parts["answer"] <= 1
