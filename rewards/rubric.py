"""The rubric: weighs the rewards into one scalar with named parts.

In: completions of one record. Out: `Score` (and the `Trace` it was computed from) per completion, by
`total = gate(format) * (w_answer R_answer + w_graph R_graph) + w_format R_format + length` (method, section 4).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from rewards import choice, graph, length, number, region
from rewards import format as format_reward
from rewards.graph import GraphRule, Target
from videostr import trace as traces
from videostr.config import RewardConfig
from videostr.errors import RewardError
from videostr.types import AnswerKind, Completion, Record, SceneGraph, Score, Trace

_MAX_ANSWER = 1000  # characters; no answer is longer, and it bounds the work of the answer parsers

_ANSWER_REWARDS: dict[AnswerKind, Callable[[str, Record], tuple[float, str]]] = {
    AnswerKind.CHOICE: choice.reward,
    AnswerKind.NUMBER: number.reward,
    AnswerKind.BOX2D: region.reward,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rubric:
    """Weights, gate, tolerances and length term."""

    w_format: float = 0.2
    w_answer: float = 1.0
    w_graph: float = 1.0
    gate: Literal["format", "none"] = "format"
    """format: answer and graph are paid only where the format is right."""
    length: Literal["overlong", "none"] = "overlong"
    max_tokens: int = 1024
    """Token limit that the overlong penalty leads up to."""
    overlong_buffer: int = 0
    """Tokens over which it falls from 0 to -1; 0 switches it off."""
    graph_rule: GraphRule = field(default_factory=GraphRule)

    @classmethod
    def from_config(cls, config: RewardConfig, max_tokens: int) -> Rubric:
        """The preset that the config names, with the config's tolerances.

        Args:
            config: section `reward`.
            max_tokens: `sampling.max_tokens`.
        """
        return cls(
            w_graph=_GRAPH_WEIGHT[config.rubric],
            max_tokens=max_tokens,
            overlong_buffer=config.overlong_buffer,
            graph_rule=GraphRule(
                node_tolerance=config.node_tolerance,
                distance_tolerance=config.distance_tolerance,
                angle_tolerance=config.angle_tolerance,
                node_weight=config.node_weight,
                edges=config.edges,
                scale=config.scale,
            ),
        )


# The presets differ in nothing else; `answer_only` still reports the graph's parts.
_GRAPH_WEIGHT = {"default": 1.0, "answer_only": 0.0}


def score(completion: Completion, record: Record, rubric: Rubric) -> Score:
    """Score of one completion; raises as `judge_group` does."""
    return score_group([completion], record, rubric)[0]


def score_group(completions: Sequence[Completion], record: Record, rubric: Rubric) -> list[Score]:
    """Scores of the completions of one record, in their order; raises as `judge_group` does."""
    return [earned for _, earned in judge_group(completions, record, rubric)]


def judge_group(
    completions: Sequence[Completion], record: Record, rubric: Rubric
) -> list[tuple[Trace, Score]]:
    """Traces and scores of the completions of one record, in their order.

    Parts: `format`, `answer`, `length` (unless switched off), `graph` and `graph_node` (if the record has a graph),
    `graph_edge` (if that has two nodes in some frame). Whatever the completions say, nothing is raised.

    Raises:
        RewardError: the record's answer is of a kind that no reward judges.
    """
    if record.answer.kind not in _ANSWER_REWARDS:
        known = ", ".join(_ANSWER_REWARDS)
        raise RewardError(
            f"record {record.id} {record.origin}: no reward judges answers of kind {record.answer.kind.value!r}; "
            f"leave such records out (known kinds: {known})"
        )
    target = graph.prepare(record.graph) if record.graph is not None else None
    judged = []
    for completion in completions:
        trace = traces.parse(completion.text)
        judged.append((trace, _score(trace, completion, record, target, rubric)))
    return judged


def _score(
    trace: Trace, completion: Completion, record: Record, target: Target | None, rubric: Rubric
) -> Score:
    answer, note = _answer(trace, record)
    parts = {"format": format_reward.reward(trace), "answer": answer}
    notes = [*trace.problems, note]
    if target is not None:
        earned = _graph(trace, target, rubric.graph_rule)
        parts |= {"graph": earned.graph, "graph_node": earned.node}
        parts |= {} if earned.edge is None else {"graph_edge": earned.edge}
        notes += earned.notes
    if rubric.length == "overlong" and rubric.overlong_buffer > 0:
        parts["length"] = length.overlong(completion, rubric.max_tokens, rubric.overlong_buffer)
        notes.append("length: close to the token limit, or cut off by it" if parts["length"] < 0 else "")
    return Score(total=_total(parts, rubric), parts=parts, notes=tuple(filter(None, notes)))


def _total(parts: dict[str, float], rubric: Rubric) -> float:
    gate = parts["format"] if rubric.gate == "format" else 1.0
    paid = rubric.w_answer * parts["answer"] + rubric.w_graph * parts.get("graph", 0.0)
    total = gate * paid + rubric.w_format * parts["format"] + parts.get("length", 0.0)
    if not math.isfinite(total):
        raise RewardError(
            f"the total of {parts} is {total}, must be finite; a reward returned a value that is not"
        )
    return total


def _answer(trace: Trace, record: Record) -> tuple[float, str]:
    if not trace.answer:
        return 0.0, "answer: there is none"
    if len(trace.answer) > _MAX_ANSWER:
        return 0.0, f"answer: {len(trace.answer)} characters long, at most {_MAX_ANSWER} are read"
    return _ANSWER_REWARDS[record.answer.kind](trace.answer, record)


def _graph(trace: Trace, target: Target, rule: GraphRule) -> graph.GraphScore:
    if isinstance(trace.graph, SceneGraph):
        return graph.reward(trace.graph, target, rule)
    return graph.absent(target, trace.graph)
