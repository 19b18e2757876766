"""Group packing: encoded prompts and their completions in, rows for the learner out.

    [prompt][c1]...[cG]   one row; every completion attends to the prompt and to its own past only

The prompt and its video are computed once for the G completions of a group. Several short groups share a row, a group
longer than a row is split by completions and its prompt repeated. Planning needs lengths only, so that every rank
plans alike and encodes no prompt but its own. The last token of a completion is a target, never an input.

A prompt of text p0 p1 p2 with the completions a b c and d e:

    input_ids       p0   p1   p2   a    b    d
    positions       0    1    2    3    4    3
    completion_ids  0    0    0    1    1    2
    predicts                  a d  b    c    e
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

Vision = Mapping[str, Tensor]
"""Vision inputs of a prompt or of a row, by names that only the model's family reads; those of a row are concatenated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptInputs:
    """A prompt as the model takes it; T prompt tokens."""

    input_ids: Tensor
    """[T] int64, the video placeholder expanded."""
    positions: Tensor
    """[3, T] int64, M-RoPE: time, height, width; [T] in a model without axes of space."""
    vision: Vision
    """Pixels of its video and their layout, or the features that a frozen tower has made of them."""
    temporal_patches: int
    """Of its video: frames that the tower takes together count as one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Completions of one group that share one copy of its prompt."""

    group: int
    """Index of the group in the batch."""
    completions: tuple[int, ...]
    """Indices of the completions within the group."""
    tokens: int
    """T, input tokens."""
    cost: float
    """Estimated work, in the unit of `RowCost`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowPlan:
    """What one row will hold."""

    segments: tuple[Segment, ...]
    padding: bool = False
    """Fills up a rank that has fewer rows than another: computed, but without weight in loss and metrics."""

    @property
    def tokens(self) -> int:
        """T, input tokens of the row."""
        return sum(segment.tokens for segment in self.segments)

    @property
    def cost(self) -> float:
        """Estimated work, in the unit of `RowCost`."""
        return sum(segment.cost for segment in self.segments)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowCost:
    """Estimated work of a row, forward and backward, as a sum over what it holds; by default its number of tokens."""

    token: float = 1.0
    """Per input token: matrices of the language model."""
    pair: float = 0.0
    """Per pair of tokens of which one attends to the other."""
    target: float = 0.0
    """Per completion token: the output layer."""
    patch: float = 0.0
    """Per vision patch: the tower."""

    def segment(self, prompt: int, completions: Sequence[int], patches: int) -> float:
        """Return the work of completions of these lengths [tokens] after a prompt of `prompt` tokens with `patches` patches."""
        contexts = [length - 1 for length in completions]
        pairs = prompt * (prompt + 1) / 2 + sum(c * prompt + c * (c + 1) / 2 for c in contexts)
        return (
            self.token * (prompt + sum(contexts))
            + self.pair * pairs
            + self.target * sum(completions)
            + self.patch * patches
        )


TOKENS_ONLY = RowCost()


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """One group, ready to be packed; G completions."""

    prompt: PromptInputs
    completions: tuple[Tensor, ...]
    """G of [T] int64, token ids."""
    behaviour_logprobs: tuple[Tensor, ...]
    """G of [T] float32, log mu of each token."""
    advantages: Tensor
    """[G] float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One packed row: T input tokens that predict N completion tokens of C sequences."""

    input_ids: Tensor
    """[T] int64."""
    positions: Tensor
    """[3, T] or [T] int64, as of its prompts."""
    prompt_ids: Tensor
    """[T] int64, which prompt of the row a token belongs to."""
    completion_ids: Tensor
    """[T] int64, 0 for a prompt token, else the 1-based completion within the row."""
    vision: Vision
    """Of all its prompts, in order."""
    temporal_patches: tuple[int, ...]
    """Of the video of each prompt."""
    predictors: Tensor
    """[N] int64, index of the input token whose hidden state predicts each target."""
    targets: Tensor
    """[N] int64, completion tokens."""
    sequence_ids: Tensor
    """[N] int64 in [0, C), which sequence a target belongs to."""
    behaviour_logprobs: Tensor
    """[N] float32, log mu."""
    advantages: Tensor
    """[C] float32."""
    origins: tuple[tuple[int, int], ...]
    """C pairs (group, completion)."""
    padding: bool
    """Without weight; see `RowPlan`."""

    def to(self, device: torch.device) -> Row:
        """Return the same row on another device."""
        values: dict[str, Any] = {name: getattr(self, name) for name in self.__dataclass_fields__}
        values["vision"] = {name: tensor.to(device) for name, tensor in self.vision.items()}
        for name, value in values.items():
            if isinstance(value, Tensor):
                values[name] = value.to(device)
        return Row(**values)


# ---------------------------------------------------------------------------------------------------- planning


def plan_rows(
    prompt_lengths: Sequence[int],
    completion_lengths: Sequence[Sequence[int]],
    *,
    max_row_tokens: int,
    packing: Literal["group", "none"] = "group",
    patches: Sequence[int] | None = None,
    cost: RowCost = TOKENS_ONLY,
) -> tuple[RowPlan, ...]:
    """Return rows, most expensive first, for P groups; a completion of length 0 is left out.

    A prompt with a single completion may exceed `max_row_tokens`: it cannot be split further.

    Args:
        prompt_lengths: [P] tokens.
        completion_lengths: [P][G] tokens.
        max_row_tokens: limit of a row.
        packing: group, or none for one row per completion.
        patches: [P] vision patches of each prompt; none when left out.
        cost: what work is estimated by.
    """
    counts = [0] * len(prompt_lengths) if patches is None else patches
    limit = max_row_tokens if packing == "group" else 0
    segments = [
        Segment(
            group=group,
            completions=part,
            tokens=prompt + sum(lengths[c] - 1 for c in part),
            cost=cost.segment(prompt, [lengths[c] for c in part], count),
        )
        for group, (prompt, lengths, count) in enumerate(
            zip(prompt_lengths, completion_lengths, counts, strict=True)
        )
        for part in _split(prompt, lengths, limit)
    ]
    rows = (
        [(segment,) for segment in segments] if packing == "none" else _share_rows(segments, max_row_tokens)
    )
    return _most_expensive_first(RowPlan(segments=row) for row in rows)


def _split(prompt: int, lengths: Sequence[int], limit: int) -> list[tuple[int, ...]]:
    """Cut a group's completions, in order, into parts of at most `limit` tokens with the prompt, or one completion."""
    parts: list[tuple[int, ...]] = []
    taken: tuple[int, ...] = ()
    tokens = prompt
    for completion, length in enumerate(lengths):
        if length == 0:
            continue
        if taken and tokens + length - 1 > limit:
            parts.append(taken)
            taken, tokens = (), prompt
        taken += (completion,)
        tokens += length - 1
    return [*parts, taken] if taken else parts


def _share_rows(segments: Sequence[Segment], limit: int) -> list[tuple[Segment, ...]]:
    """Put segments into rows: first fit, longest first."""
    rows: list[tuple[Segment, ...]] = []
    used: list[int] = []
    for segment in sorted(segments, key=lambda segment: -segment.tokens):
        index = next((i for i, tokens in enumerate(used) if tokens + segment.tokens <= limit), len(rows))
        if index == len(rows):
            rows.append(())
            used.append(0)
        rows[index] += (segment,)
        used[index] += segment.tokens
    return rows


def _most_expensive_first(rows: Iterable[RowPlan]) -> tuple[RowPlan, ...]:
    return tuple(sorted(rows, key=lambda row: -row.cost))


def assign_rows(rows: Sequence[RowPlan], num_ranks: int) -> tuple[tuple[RowPlan, ...], ...]:
    """Return the rows of each rank: the same number everywhere, rows of similar cost at the same place, similar sums of costs.

    Rows are assigned in rounds of one row a rank, most expensive first, and within a round the most expensive row to the rank
    with the least work so far (longest processing time first, with equal counts). No two ranks then differ by more than the
    widest round: the difference between its most and its least expensive row. Rounds of similar rows matter as much as sums,
    because under ZeRO-3 the ranks run the same collectives in lockstep. A rank without a row would hang the others, so rows
    that groups share are split, and where that is not enough, the cheapest row is repeated as padding.
    """
    filled = _fill_up(rows, num_ranks)
    assigned: list[list[RowPlan]] = [[] for _ in range(num_ranks)]
    work = [0.0] * num_ranks
    for start in range(0, len(filled), num_ranks):
        ranks = sorted(range(num_ranks), key=lambda rank: work[rank])
        for rank, row in zip(ranks, filled[start : start + num_ranks], strict=True):
            assigned[rank].append(row)
            work[rank] += row.cost
    return tuple(tuple(part) for part in assigned)


def _fill_up(rows: Sequence[RowPlan], num_ranks: int) -> tuple[RowPlan, ...]:
    """Return as many rows as make equal counts, most expensive first."""
    filled = list(rows)
    while len(filled) % num_ranks:
        shared = [row for row in filled if len(row.segments) > 1]
        if not shared:
            cheapest = min(filled, key=lambda row: row.cost)
            return _most_expensive_first(filled) + (replace(cheapest, padding=True),) * (
                -len(filled) % num_ranks
            )
        largest = max(shared, key=lambda row: row.cost)
        filled.remove(largest)
        filled += [RowPlan(segments=largest.segments[::2]), RowPlan(segments=largest.segments[1::2])]
    return _most_expensive_first(filled)


# ---------------------------------------------------------------------------------------------------- building


def build_row(plan: RowPlan, groups: Mapping[int, Group]) -> Row:
    """Return the tensors of one planned row; `groups` holds at least the groups that the plan names."""
    inputs: list[Tensor] = []
    positions: list[Tensor] = []
    prompt_ids: list[Tensor] = []
    completion_ids: list[Tensor] = []
    predictors: list[Tensor] = []
    origins: list[tuple[int, int]] = []
    length = 0
    for index, segment in enumerate(plan.segments):
        prompt = groups[segment.group].prompt
        inputs.append(prompt.input_ids)
        positions.append(prompt.positions)
        completion_ids.append(torch.zeros_like(prompt.input_ids))
        after = prompt.positions[..., -1:] + 1
        length += len(prompt.input_ids)
        last_of_prompt = length - 1
        segment_start = length - len(prompt.input_ids)
        for completion in segment.completions:
            context = groups[segment.group].completions[completion][:-1]
            origins.append((segment.group, completion))
            inputs.append(context)
            positions.append(after + torch.arange(len(context)))
            completion_ids.append(torch.full_like(context, len(origins)))
            predictors.append(torch.tensor([last_of_prompt, *range(length, length + len(context))]))
            length += len(context)
        prompt_ids.append(torch.full((length - segment_start,), index))
    shown = [groups[segment.group].prompt for segment in plan.segments]
    targets = [groups[group].completions[completion] for group, completion in origins]
    return Row(
        input_ids=torch.cat(inputs),
        positions=torch.cat(positions, dim=-1),
        prompt_ids=torch.cat(prompt_ids),
        completion_ids=torch.cat(completion_ids),
        vision={name: torch.cat([prompt.vision[name] for prompt in shown]) for name in shown[0].vision},
        temporal_patches=tuple(prompt.temporal_patches for prompt in shown),
        predictors=torch.cat(predictors),
        targets=torch.cat(targets),
        sequence_ids=torch.repeat_interleave(torch.tensor([len(target) for target in targets])),
        behaviour_logprobs=torch.cat([groups[g].behaviour_logprobs[c] for g, c in origins]),
        advantages=torch.stack([groups[g].advantages[c] for g, c in origins]),
        origins=tuple(origins),
        padding=plan.padding,
    )
