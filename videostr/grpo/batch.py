"""Group packing: encoded prompts and their completions in, rows for the learner out.

    [prompt][c1]...[cG]   one row; every completion attends to the prompt and to its own past only

The prompt and its video are computed once for the G completions of a group. Several short groups share a row, a group
longer than a row is split by completions and its prompt repeated. Planning needs lengths only, so that every rank
plans alike and encodes no prompt but its own. The last token of a completion is a target, never an input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from videostr.prompt import PromptInputs


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Completions of one group that share one copy of its prompt."""

    group: int
    """Index of the group in the batch."""
    completions: tuple[int, ...]
    """Indices of the completions within the group."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowPlan:
    """What one row will hold."""

    pieces: tuple[Piece, ...]
    tokens: int
    """T, input tokens of the row."""
    idle: bool = False
    """Fills up a rank that has fewer rows than another: computed, but without weight in loss and metrics."""


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
class RopeGrid:
    """What M-RoPE positions need of the vision configuration."""

    merge_size: int
    """Patches merged along each side into one token."""
    tokens_per_second: float
    """Temporal positions per second of video."""

    @classmethod
    def of(cls, config: Any) -> RopeGrid:
        """From the configuration of a Qwen2.5-VL."""
        vision = config.vision_config
        return cls(merge_size=vision.spatial_merge_size, tokens_per_second=vision.tokens_per_second)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One packed row: T input tokens that predict N completion tokens of C sequences."""

    input_ids: Tensor
    """[T] int64."""
    position_ids: Tensor
    """[3, T] int64, M-RoPE: time, height, width."""
    prompt_ids: Tensor
    """[T] int64, which prompt of the row a token belongs to."""
    completion_ids: Tensor
    """[T] int64, 0 for a prompt token, else the 1-based completion within the row."""
    pixel_values_videos: Tensor
    """[patches, values] of all the row's videos, in order."""
    video_grid_thw: Tensor
    """[videos, 3] int64."""
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
    idle: bool
    """Without weight; see `RowPlan`."""

    def model_inputs(self) -> dict[str, Tensor]:
        """Arguments of `PolicyLogprobs.forward`, temperature aside."""
        return {
            "input_ids": self.input_ids,
            "position_ids": self.position_ids,
            "prompt_ids": self.prompt_ids,
            "completion_ids": self.completion_ids,
            "pixel_values_videos": self.pixel_values_videos,
            "video_grid_thw": self.video_grid_thw,
            "predictors": self.predictors,
            "targets": self.targets,
        }

    def to(self, device: torch.device) -> Row:
        """The same row on another device."""
        values: dict[str, Any] = {name: getattr(self, name) for name in self.__dataclass_fields__}
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
) -> tuple[RowPlan, ...]:
    """Rows, longest first, for P groups of given lengths in tokens; a completion of length 0 is left out.

    A prompt with a single completion may exceed `max_row_tokens`: it cannot be split further.
    """
    pieces = [
        piece
        for group, (prompt, lengths) in enumerate(zip(prompt_lengths, completion_lengths, strict=True))
        for piece in _split(group, prompt, lengths, max_row_tokens if packing == "group" else 0)
    ]
    pieces.sort(key=lambda row: -row.tokens)
    return tuple(pieces if packing == "none" else _share_rows(pieces, max_row_tokens))


def _split(group: int, prompt: int, lengths: Sequence[int], limit: int) -> list[RowPlan]:
    """Cut a group, in order, into rows of one piece with at most `limit` tokens or one completion."""
    rows: list[RowPlan] = []
    taken: tuple[int, ...] = ()
    tokens = prompt
    for completion, length in enumerate(lengths):
        if length == 0:
            continue
        if taken and tokens + length - 1 > limit:
            rows.append(RowPlan(pieces=(Piece(group=group, completions=taken),), tokens=tokens))
            taken, tokens = (), prompt
        taken += (completion,)
        tokens += length - 1
    if taken:
        rows.append(RowPlan(pieces=(Piece(group=group, completions=taken),), tokens=tokens))
    return rows


def _share_rows(pieces: Sequence[RowPlan], limit: int) -> list[RowPlan]:
    """First fit, longest first."""
    rows: list[RowPlan] = []
    for piece in pieces:
        for index, row in enumerate(rows):
            if row.tokens + piece.tokens <= limit:
                rows[index] = RowPlan(pieces=row.pieces + piece.pieces, tokens=row.tokens + piece.tokens)
                break
        else:
            rows.append(piece)
    return sorted(rows, key=lambda row: -row.tokens)


def deal(rows: Sequence[RowPlan], num_ranks: int) -> tuple[tuple[RowPlan, ...], ...]:
    """Rows of each rank: the same number everywhere, rows of similar length at the same place.

    Under ZeRO-3 the ranks run the same collectives in lockstep; a rank without a row would hang the others, so it
    repeats the shortest row idly. Every row holds a video, so the vision tower runs on every rank.
    """
    missing = -len(rows) % num_ranks
    padded = [*rows, *[replace(rows[-1], idle=True)] * missing]
    return tuple(tuple(padded[rank::num_ranks]) for rank in range(num_ranks))


# ---------------------------------------------------------------------------------------------------- building


def prompt_positions(prompt: PromptInputs, grid: RopeGrid) -> Tensor:
    """M-RoPE positions [3, T] int64 of a prompt of text and videos.

    Text after a video continues from the largest position so far, over all three axes. So Qwen2.5-VL was trained and
    so vLLM samples; transformers 5.19's `get_rope_index` continues from the spatial extent alone, which differs as soon
    as a video has more temporal than spatial positions.
    """
    kinds = prompt.mm_token_type_ids.tolist()
    cuts = [0, *[i for i in range(1, len(kinds)) if kinds[i] != kinds[i - 1]], len(kinds)]
    videos = zip(prompt.video_grid_thw.tolist(), prompt.second_per_grid_ts.tolist(), strict=True)
    runs: list[Tensor] = []
    start = 0
    for first, end in pairwise(cuts):
        if kinds[first] == 0:
            run = torch.arange(end - first).expand(3, -1)
        else:
            (frames, height, width), seconds = next(videos)
            times = (torch.arange(frames, dtype=torch.float64) * (seconds * grid.tokens_per_second)).long()
            rows, columns = torch.arange(height // grid.merge_size), torch.arange(width // grid.merge_size)
            run = torch.stack(torch.meshgrid(times, rows, columns, indexing="ij")).reshape(3, -1)
        runs.append(run + start)
        start = int(runs[-1].max()) + 1
    return torch.cat(runs, dim=1)


def build_row(plan: RowPlan, groups: Mapping[int, Group], grid: RopeGrid) -> Row:
    """Tensors of one planned row; `groups` holds at least the groups that the plan names."""
    inputs: list[Tensor] = []
    positions: list[Tensor] = []
    prompt_ids: list[Tensor] = []
    completion_ids: list[Tensor] = []
    predictors: list[Tensor] = []
    origins: list[tuple[int, int]] = []
    length = 0
    for index, piece in enumerate(plan.pieces):
        prompt = groups[piece.group].prompt
        inputs.append(prompt.input_ids)
        positions.append(prompt_positions(prompt, grid))
        completion_ids.append(torch.zeros_like(prompt.input_ids))
        after = positions[-1][:, -1:] + 1
        length += len(prompt.input_ids)
        last_of_prompt = length - 1
        piece_start = length - len(prompt.input_ids)
        for completion in piece.completions:
            context = groups[piece.group].completions[completion][:-1]
            origins.append((piece.group, completion))
            inputs.append(context)
            positions.append(after + torch.arange(len(context)))
            completion_ids.append(torch.full_like(context, len(origins)))
            predictors.append(torch.tensor([last_of_prompt, *range(length, length + len(context))]))
            length += len(context)
        prompt_ids.append(torch.full((length - piece_start,), index))
    chosen = [groups[piece.group] for piece in plan.pieces]
    targets = [groups[group].completions[completion] for group, completion in origins]
    return Row(
        input_ids=torch.cat(inputs),
        position_ids=torch.cat(positions, dim=1),
        prompt_ids=torch.cat(prompt_ids),
        completion_ids=torch.cat(completion_ids),
        pixel_values_videos=torch.cat([group.prompt.pixel_values_videos for group in chosen]),
        video_grid_thw=torch.cat([group.prompt.video_grid_thw for group in chosen]),
        predictors=torch.cat(predictors),
        targets=torch.cat(targets),
        sequence_ids=torch.repeat_interleave(torch.tensor([len(target) for target in targets])),
        behaviour_logprobs=torch.cat([groups[g].behaviour_logprobs[c] for g, c in origins]),
        advantages=torch.stack([groups[g].advantages[c] for g, c in origins]),
        origins=tuple(origins),
        idle=plan.idle,
    )


def attention_mask(prompt_ids: Tensor, completion_ids: Tensor) -> Tensor:
    """Dense mask [T, T] bool of a row, True where token q (row) sees token k (column).

    k is not after q, belongs to the same prompt, and is a prompt token or of q's own completion.
    """
    index = torch.arange(len(prompt_ids), device=prompt_ids.device)
    causal = index[:, None] >= index[None, :]
    same_prompt = prompt_ids[:, None] == prompt_ids[None, :]
    visible = (completion_ids[None, :] == 0) | (completion_ids[:, None] == completion_ids[None, :])
    return causal & same_prompt & visible
