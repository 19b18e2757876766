"""The rubric: weighs the rewards into one scalar with named parts.

In: completions of one record. Out: `Score` (and the `Trace` it was computed from) per completion, by
`total = gate(format) * (w_answer R_answer + w_graph R_graph + w_custom R_custom) + w_format R_format + length`
(docs/rewards.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from typing import TYPE_CHECKING, Literal

import numpy as np

from rewards import choice, graph, length, number, region
from rewards import format as format_reward
from rewards.graph import GraphRule, GraphScore
from rewards.map_score import map_score
from videostr import trace as traces
from videostr.custom import load_function
from videostr.errors import ConfigError, RewardError, error_text, printable
from videostr.types import AnswerKind, Completion, FinishReason, Record, SceneGraph, Score, Trace

if TYPE_CHECKING:
    from videostr.config import RewardConfig  # needs OmegaConf, which other trainers' environments lack

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
    gate: Literal["format", "none"] = "format"
    """format: answer and graph are paid only where the format is right."""
    graph: Literal["relation", "map"] = "relation"
    """relation: node and edge terms; map: SpaceR's map score, which a right answer earns or loses all by."""
    length: Literal["overlong", "band", "none"] = "overlong"
    max_tokens: int = 1024
    """Token limit that the overlong penalty leads up to."""
    overlong_buffer: int = 0
    """Tokens over which it falls from 0 to -1; 0 switches it off."""
    band: tuple[int, int] = (320, 512)
    """Fewest and most tokens that earn the band's bonus."""
    custom: str = ""
    """`package.module:function` of a user's reward."""
    w_custom: float = 1.0
    graph_rule: GraphRule = field(default_factory=GraphRule)

    @classmethod
    def preset(cls, name: str) -> Rubric:
        """One of `PRESETS`.

        Raises:
            ConfigError: there is none of this name.
        """
        if name not in PRESETS:
            raise ConfigError(f"rubric {name!r}: must be one of {', '.join(PRESETS)}")
        return PRESETS[name]

    @classmethod
    def from_config(cls, config: RewardConfig, max_tokens: int) -> Rubric:
        """The preset that the config names, with the config's weights, tolerances and length term.

        Args:
            config: section `reward`.
            max_tokens: `sampling.max_tokens`.

        Raises:
            ConfigError: `reward.custom` cannot be imported.
        """
        preset = cls.preset(config.rubric)
        weights = {name: getattr(config, name) for name in ("w_format", "w_answer", "w_graph")}
        rubric = replace(
            preset,
            **{name: value for name, value in weights.items() if value is not None},
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
    """Score of one completion; raises as `score_group_with_traces` does."""
    return score_group([completion], record, rubric)[0]


def score_group(
    completions: Sequence[Completion | str], record: Record, rubric: Rubric | str = "default"
) -> list[Score]:
    """Scores of the completions of one record, in their order; raises as `score_group_with_traces` does."""
    return [earned for _, earned in score_group_with_traces(completions, record, rubric)]


def score_group_with_traces(
    completions: Sequence[Completion | str], record: Record, rubric: Rubric | str = "default"
) -> list[tuple[Trace, Score]]:
    """Traces and scores of the completions of one record, in their order.

    Args:
        completions: [G]; a text alone has no length term, since its tokens are not known.
        record: what was asked.
        rubric: what is paid, or the name of a preset.

    Parts: `format`, `answer`, `length` (where the rubric has one), `graph` and `graph_node` (if the record has a graph),
    `graph_edge` (if that has two nodes in some frame), `map` and `custom` (if the rubric asks for them). Whatever the
    completions say, nothing is raised.

    Raises:
        RewardError: the custom reward raised or returned something else than a number in [0, 1].
        ConfigError: there is no preset of this name.
    """
    if isinstance(rubric, str):
        rubric = Rubric.preset(rubric)
    whole = [_as_completion(completion) for completion in completions]
    parsed = [traces.parse(completion.text) for completion in whole]
    sheets = [_PartialScore.of(trace, record) for trace in parsed]
    _note_graphs(sheets, parsed, record, rubric)
    _note_custom(sheets, parsed, record, rubric)
    _note_lengths(sheets, whole, rubric)
    return [(trace, sheet.score(record, rubric)) for trace, sheet in zip(parsed, sheets, strict=True)]


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
    """What is found about one completion, while it is being judged."""

    parts: dict[str, float]
    notes: list[str]

    @classmethod
    def of(cls, trace: Trace, record: Record) -> _PartialScore:
        """With format and answer."""
        answer, note = _answer(trace, record)
        return cls({"format": format_reward.reward(trace), "answer": answer}, [*trace.problems, note])

    def score(self, record: Record, rubric: Rubric) -> Score:
        total = _total(self.parts, record, rubric)
        return Score(total=total, parts=self.parts, notes=tuple(filter(None, self.notes)))


def _answer(trace: Trace, record: Record) -> tuple[float, str]:
    if not trace.answer:
        return 0.0, "answer: there is none"
    if len(trace.answer) > _MAX_ANSWER:
        return 0.0, f"answer: {len(trace.answer)} characters long, at most {_MAX_ANSWER} are read"
    return _ANSWER_REWARDS[record.answer.kind](trace.answer, record)


def _note_graphs(
    sheets: Sequence[_PartialScore], parsed: Sequence[Trace], record: Record, rubric: Rubric
) -> None:
    if record.graph is None:
        return
    rule = rubric.graph_rule
    earned = graph.reward_group([trace.graph for trace in parsed], graph.prepare(record.graph, rule), rule)
    for sheet, trace, graph_score in zip(sheets, parsed, earned, strict=True):
        sheet.parts.update(_graph_parts(graph_score))
        sheet.notes.extend(graph_score.notes)
        if rubric.graph == "map" and isinstance(trace.graph, SceneGraph):
            sheet.parts["map"] = map_score(trace.graph, record.graph)


def _graph_parts(earned: GraphScore) -> dict[str, float]:
    parts = {"graph": earned.graph, "graph_node": earned.node}
    return parts if earned.edge is None else parts | {"graph_edge": earned.edge}


def _note_custom(
    sheets: Sequence[_PartialScore], parsed: Sequence[Trace], record: Record, rubric: Rubric
) -> None:
    if not rubric.custom:
        return
    reward = load_custom(rubric.custom)
    where = f"record {printable(record.id)} {record.origin}: reward.custom = {rubric.custom}"
    for sheet, trace in zip(sheets, parsed, strict=True):
        try:
            value: object = reward(trace, record)
            share = float(value) if isinstance(value, Real) else math.nan
            shown = "" if 0 <= share <= 1 else repr(value)
        except KeyboardInterrupt:
            raise
        except (
            BaseException
        ) as error:  # the user's code, SystemExit included: the group fails, with the reason
            raise RewardError(f"{where} raised {error_text(error)}") from error
        if shown:
            raise RewardError(f"{where} returned {printable(shown, 80)}, must be a number in [0, 1]")
        sheet.parts["custom"] = share


def _note_lengths(sheets: Sequence[_PartialScore], completions: Sequence[Completion], rubric: Rubric) -> None:
    if rubric.length == "none" or (rubric.length == "overlong" and rubric.overlong_buffer == 0):
        return
    tokens = [len(completion.token_ids) for completion in completions]
    bonus = length.band([sheet.parts["answer"] for sheet in sheets], tokens, rubric.band)
    for sheet, completion, earned in zip(sheets, completions, bonus, strict=True):
        if completion.token_ids is _UNKNOWN_TOKENS:
            sheet.notes.append("length: not judged, the completion came without its tokens")
        elif rubric.length == "band":
            sheet.parts["length"] = earned
        else:
            sheet.parts["length"] = length.overlong(completion, rubric.max_tokens, rubric.overlong_buffer)
            sheet.notes.append(
                "length: close to the token limit, or cut off by it" if sheet.parts["length"] < 0 else ""
            )


def _total(parts: dict[str, float], record: Record, rubric: Rubric) -> float:
    gate = parts["format"] if rubric.gate == "format" else 1.0
    paid = _paid_by_map(parts, record, rubric) if rubric.graph == "map" else _paid(parts, rubric)
    paid += rubric.w_custom * parts.get("custom", 0.0)
    total = gate * paid + rubric.w_format * parts["format"] + parts.get("length", 0.0)
    if not math.isfinite(total):
        raise RewardError(
            f"record {record.id} {record.origin}: the total of {parts} is {total}, must be finite; check the rubric's weights"
        )
    return total


def _paid(parts: dict[str, float], rubric: Rubric) -> float:
    return rubric.w_answer * parts["answer"] + rubric.w_graph * parts.get("graph", 0.0)


def _paid_by_map(parts: dict[str, float], record: Record, rubric: Rubric) -> float:
    """SpaceR: a right answer earns the map score on top; if that is 0, it loses everything; without a map it keeps its own."""
    answer = rubric.w_answer * parts["answer"]
    right = parts["answer"] == 1.0 if record.answer.kind is AnswerKind.CHOICE else parts["answer"] > 0.5
    if not right or "map" not in parts:
        return answer
    return answer + rubric.w_graph * parts["map"] if parts["map"] > 0 else 0.0
