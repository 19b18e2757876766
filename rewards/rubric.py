"""The rubric: weighs the rewards into one scalar with named parts.

In: completions of one record. Out: `Score` (and the `Trace` it was computed from) per completion, by
`total = gate(format) * (w_answer R_answer + w_graph R_graph + w_consistency R_consistency + w_custom R_custom)
+ w_format R_format + length`
(docs/rewards.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import TYPE_CHECKING, Literal

import numpy as np

from rewards import choice, consistency, graph, length, number, region
from rewards import format as format_reward
from rewards.graph import GraphRule
from rewards.map_score import map_score
from videostr import trace as traces
from videostr.custom import load_function
from videostr.errors import ConfigError, RewardError, error_text, printable
from videostr.types import AnswerKind, Completion, FinishReason, Record, SceneGraph, Score, Trace

if TYPE_CHECKING:
    from videostr.config.sections import (
        RewardConfig,  # needs OmegaConf, which other trainers' environments lack
    )

CustomReward = Callable[[Trace, Record], float]

_MAX_ANSWER = 1000  # characters; no answer is longer, and it bounds the work of the answer parsers

_ANSWER_REWARDS: dict[AnswerKind, Callable[[str, Record], tuple[float, str]]] = {
    AnswerKind.CHOICE: choice.reward,
    AnswerKind.NUMBER: number.reward,
    AnswerKind.BOX2D: region.box2d,
    AnswerKind.BOX3D: region.box3d,
    AnswerKind.SPAN: region.span,
    AnswerKind.TRACK: region.track,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rubric:
    """Weights, gate, tolerances and length term."""

    w_format: float = 0.2
    w_answer: float = 1.0
    w_graph: float = 1.0
    w_consistency: float = 0.0
    gate: Literal["format", "none"] = "format"
    """format: answer and graph count only where the format is right."""
    graph: Literal["relation", "map"] = "relation"
    """relation: node and edge terms; map: SpaceR's map score, which is added to a right answer, or takes everything from it."""
    length: Literal["overlong", "band", "none"] = "overlong"
    max_tokens: int = 1024
    """Token limit that the overlong penalty leads up to."""
    overlong_buffer: int = 0
    """Tokens over which it falls from 0 to -1; 0 switches it off."""
    band: tuple[int, int] = (320, 512)
    """Fewest and most tokens that get the band's bonus."""
    custom: str = ""
    """`package.module:function` of a user's reward."""
    w_custom: float = 1.0
    graph_rule: GraphRule = field(default_factory=GraphRule)

    @classmethod
    def preset(cls, name: str) -> Rubric:
        """Return one of `PRESETS`.

        Raises:
            ConfigError: there is none of this name.
        """
        if name not in PRESETS:
            raise ConfigError(f"rubric {name!r}: must be one of {', '.join(PRESETS)}")
        return PRESETS[name]

    @classmethod
    def from_config(cls, config: RewardConfig, max_tokens: int) -> Rubric:
        """Return the preset that the config names, with the config's weights, tolerances and length term.

        Args:
            config: section `reward`.
            max_tokens: `sampling.max_tokens`.

        Raises:
            ConfigError: `reward.custom` cannot be imported.
        """
        preset = cls.preset(config.rubric)
        weights = {
            name: getattr(config, name) for name in ("w_format", "w_answer", "w_graph", "w_consistency")
        }
        rubric = replace(
            preset,
            **{name: value for name, value in weights.items() if value is not None},
            gate=preset.gate if config.gate == "preset" else config.gate,
            length=preset.length if config.length == "preset" else config.length,
            max_tokens=max_tokens,
            overlong_buffer=config.overlong_buffer,
            band=config.band,
            custom=config.custom,
            w_custom=config.w_custom,
            graph_rule=GraphRule(
                node_tolerance=config.node_tolerance,
                distance_tolerance=config.distance_tolerance,
                angle_tolerance=config.angle_tolerance,
                node_weight=config.node_weight,
                edges=config.edges,
                scale=config.scale,
            ),
        )
        if rubric.custom:
            load_custom(rubric.custom)
        return rubric


PRESETS = {
    "default": Rubric(),
    "paper": Rubric(w_format=1.0, gate="none", length="band"),
    "spacer": Rubric(w_format=1.0, gate="none", length="band", graph="map"),
    "answer_only": Rubric(w_graph=0.0),
}
"""See docs/rewards.md. `paper` is closest to arXiv 2510.10976, `spacer` repeats SpaceR (arXiv 2504.01805); `answer_only` still
reports the graph's parts."""


def load_custom(name: str, key: str = "reward.custom") -> CustomReward:
    """Return a user's reward.

    Args:
        name: `package.module:function`.
        key: option that holds it, for the message.

    Raises:
        ConfigError: the name has another form, the module cannot be imported, or has no such function.
    """
    return load_function(key, name, "my_rewards:brevity")


# --------------------------------------------------------------------------------------------------- scores


def score(completion: Completion | str, record: Record, rubric: Rubric | str = "default") -> Score:
    """Return the score of one completion; raises as `score_group_with_traces` does."""
    return score_group([completion], record, rubric)[0]


def score_group(
    completions: Sequence[Completion | str], record: Record, rubric: Rubric | str = "default"
) -> list[Score]:
    """Return the scores of the completions of one record, in their order; raises as `score_group_with_traces` does."""
    return [score for _, score in score_group_with_traces(completions, record, rubric)]


def score_group_with_traces(
    completions: Sequence[Completion | str], record: Record, rubric: Rubric | str = "default"
) -> list[tuple[Trace, Score]]:
    """Return traces and scores of the completions of one record, in their order.

    Args:
        completions: [G]; a text alone has no length term, since its tokens are not known.
        record: what was asked.
        rubric: how completions are scored, or the name of a preset.

    Parts: `format`, `answer`, `length` (where the rubric has one), `graph` and `graph_node` (if the record has a graph),
    `graph_edge` (if that has two nodes in some frame), `entailed` and `consistency` (if a graph tells the answer), `map` and
    `custom` (if the rubric asks for them). Whatever the completions say, nothing is raised.

    Raises:
        RewardError: the custom reward raised or returned something other than a number in [0, 1].
        ConfigError: there is no preset of this name.
    """
    if isinstance(rubric, str):
        rubric = Rubric.preset(rubric)
    whole = [_as_completion(completion) for completion in completions]
    group = _Group(
        record=record,
        rubric=rubric,
        completions=whole,
        traces=[traces.parse(completion.text) for completion in whole],
        scores=[_PartialScore() for _ in whole],
    )
    for score_parts in _PARTS.values():
        score_parts(group)
    return [
        (trace, part.whole(record, rubric)) for trace, part in zip(group.traces, group.scores, strict=True)
    ]


_UNKNOWN_TOKENS = np.zeros(0, dtype=np.int32)


def _as_completion(completion: Completion | str) -> Completion:
    if isinstance(completion, Completion):
        return completion
    return Completion(
        text=completion,
        token_ids=_UNKNOWN_TOKENS,
        logprobs=np.zeros(0, dtype=np.float32),
        finish_reason=FinishReason.STOP,
        weight_versions=(),
    )


@dataclass(frozen=True, slots=True)
class _PartialScore:
    """What is known about one completion while it is being scored."""

    parts: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def whole(self, record: Record, rubric: Rubric) -> Score:
        """Return the score, when all parts are known."""
        total = _total(self.parts, record, rubric)
        return Score(total=total, parts=self.parts, notes=tuple(filter(None, self.notes)))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """The completions of a record, with what is known about each."""

    record: Record
    rubric: Rubric
    completions: Sequence[Completion]
    traces: Sequence[Trace]
    scores: Sequence[_PartialScore]


def _score_formats(group: _Group) -> None:
    for score, trace in zip(group.scores, group.traces, strict=True):
        score.parts["format"] = format_reward.reward(trace)
        score.notes.extend(trace.problems)


def _score_answers(group: _Group) -> None:
    for score, trace in zip(group.scores, group.traces, strict=True):
        score.parts["answer"], note = _answer(trace.answer, group.record)
        score.notes.append(note)


def _answer(answer: str, record: Record) -> tuple[float, str]:
    if not answer:
        return 0.0, "answer: there is none"
    if len(answer) > _MAX_ANSWER:
        return 0.0, f"answer: {len(answer)} characters long, at most {_MAX_ANSWER} are read"
    return _ANSWER_REWARDS[record.answer.kind](answer, record)


def _score_graphs(group: _Group) -> None:
    truth, rule = group.record.graph, group.rubric.graph_rule
    if truth is None:
        return
    target = graph.prepare(truth, rule)
    found = graph.reward_group([trace.graph for trace in group.traces], target, rule)
    for score, trace, graph_score in zip(group.scores, group.traces, found, strict=True):
        score.parts.update(graph=graph_score.graph, graph_node=graph_score.node)
        if graph_score.edge is not None:
            score.parts["graph_edge"] = graph_score.edge
        score.notes.extend(graph_score.notes)
        if group.rubric.graph == "map" and isinstance(trace.graph, SceneGraph):
            score.parts["map"] = map_score(trace.graph, truth)
    stated = [graph_score.frames for graph_score in found]
    used = consistency.reward_group(group.traces, stated, group.record, target, _answer)
    for score, (entailed, consistent) in zip(group.scores, used, strict=False):
        score.parts.update(entailed=entailed, consistency=consistent)


def _score_custom(group: _Group) -> None:
    record, name = group.record, group.rubric.custom
    if not name:
        return
    reward = load_custom(name)
    where = f"record {printable(record.id)} {record.origin}: reward.custom = {name}"
    for score, trace in zip(group.scores, group.traces, strict=True):
        try:
            value: object = reward(trace, record)
            share = float(value) if isinstance(value, Real) else math.nan
            shown = "" if 0 <= share <= 1 else repr(value)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            # The user's code, SystemExit included: the group fails, with the reason.
            raise RewardError(f"{where} raised {error_text(error)}") from error
        if shown:
            raise RewardError(f"{where} returned {printable(shown, 80)}, must be a number in [0, 1]")
        score.parts["custom"] = share


def _score_lengths(group: _Group) -> None:
    rubric = group.rubric
    if rubric.length == "none" or (rubric.length == "overlong" and rubric.overlong_buffer == 0):
        return
    tokens = [len(completion.token_ids) for completion in group.completions]
    bonus = length.band([score.parts["answer"] for score in group.scores], tokens, rubric.band)
    for score, completion, value in zip(group.scores, group.completions, bonus, strict=True):
        if completion.token_ids is _UNKNOWN_TOKENS:
            score.notes.append("length: not judged, the completion came without its tokens")
        elif rubric.length == "band":
            score.parts["length"] = value
        else:
            value = length.overlong(completion, rubric.max_tokens, rubric.overlong_buffer)
            score.parts["length"] = value
            score.notes.append("length: close to the token limit, or cut off by it" if value < 0 else "")


_PARTS: dict[tuple[str, ...], Callable[[_Group], None]] = {
    ("format",): _score_formats,
    ("answer",): _score_answers,
    ("graph", "graph_node", "graph_edge", "map", "entailed", "consistency"): _score_graphs,
    ("custom",): _score_custom,
    ("length",): _score_lengths,
}
"""All parts of a score and what computes them, in this order; `_total` weighs them."""


def _total(parts: dict[str, float], record: Record, rubric: Rubric) -> float:
    gate = parts["format"] if rubric.gate == "format" else 1.0
    gated = _with_map(parts, record, rubric) if rubric.graph == "map" else _with_relations(parts, rubric)
    gated += rubric.w_consistency * parts.get("consistency", 0.0)
    gated += rubric.w_custom * parts.get("custom", 0.0)
    total = gate * gated + rubric.w_format * parts["format"] + parts.get("length", 0.0)
    if not math.isfinite(total):
        raise RewardError(
            f"record {record.id} {record.origin}: the total of {parts} is {total}, must be finite",
            remedy="check the rubric's weights",
        )
    return total


def _with_relations(parts: dict[str, float], rubric: Rubric) -> float:
    return rubric.w_answer * parts["answer"] + rubric.w_graph * parts.get("graph", 0.0)


def _with_map(parts: dict[str, float], record: Record, rubric: Rubric) -> float:
    """Return answer and map score by SpaceR: a right answer gets the map score on top, loses everything if that is 0."""
    answer = rubric.w_answer * parts["answer"]
    right = parts["answer"] == 1.0 if record.answer.kind is AnswerKind.CHOICE else parts["answer"] > 0.5
    if not right or "map" not in parts:
        return answer
    return answer + rubric.w_graph * parts["map"] if parts["map"] > 0 else 0.0
