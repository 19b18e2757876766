"""Attention of packed rows: which tokens belong together in, attention over them out.

In the language model a token sees its own past, as far as it is of the same prompt and not of another completion
(tests/videostr/grpo/test_attention.py has this rule as a dense matrix). Two ways to the same numbers:

  sdpa  the row is cut into its prompts and completions, and every part attends to what it may see: no score
        outside the rule is computed, and no [T, T] mask is built
  flex  FlexAttention with a `BlockMask`, one compiled kernel for the whole row; for GPUs

Both are built once per row, for all layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

BLOCK = 128
"""Side of FlexAttention's blocks, tokens."""
MASK_ROWS = 8 * BLOCK
"""Rows of a mask that are looked at together."""
RECOMPILES = 256
"""Shapes that may be compiled: 8 a doubling of the row's length, with and without gradients."""

Kernel = Literal["sdpa", "flex"]
MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""FlexAttention's `mask_mod`: whether the query of (batch, head, query, key) sees the key."""


class RowAttention(Protocol):
    """Attention of one row."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Return the outputs [1, H, T, D] of queries [1, H, T, D] over keys and values [1, H_kv, T, D]."""
        ...


def row_attention(prompt_ids: Tensor, completion_ids: Tensor, kernel: Kernel) -> RowAttention:
    """Return the attention of the row whose tokens belong to these prompts [T] and completions [T], see `batch.Row`."""
    if kernel == "flex":
        return FlexAttention.of(prompt_ids, completion_ids)
    return SplitAttention.of(prompt_ids, completion_ids)


# -------------------------------------------------------------------------------------------------------- sdpa


@dataclass(frozen=True, slots=True)
class Part:
    """Neighbouring tokens of one prompt or one completion."""

    length: int
    """Tokens."""
    prompt: int
    """Tokens of the prompt of a completion; 0 for a prompt."""


@dataclass(frozen=True, slots=True)
class SplitAttention:
    """Part by part, over 1 + C calls of `scaled_dot_product_attention` for a prompt with C completions.

    The scores of a group cost P^2 / 2 + sum of c (P + c) instead of (P + sum of c)^2: for a prompt of 80 tokens and 8
    completions of 80, four groups a row, a tenth; no part ever waits on another.
    """

    parts: tuple[Part, ...]
    masks: dict[int, Tensor] = field(default_factory=dict)
    """By prompt length, that of the longest completion after such a prompt, [c, prompt + c]; others are cut out of it.

    In the dtype of queries, as SDPA makes it of one of booleans: it would keep one for each call until the backward pass.
    """

    @classmethod
    def of(cls, prompt_ids: Tensor, completion_ids: Tensor) -> SplitAttention:
        """Cut a row with these ids [T], on any device."""
        kinds = completion_ids.max() + 1
        runs, lengths = torch.unique_consecutive(prompt_ids * kinds + completion_ids, return_counts=True)
        parts, prompt = [], 0
        for completion, length in zip((runs % kinds).tolist(), lengths.tolist(), strict=True):
            if completion == 0:
                prompt = length
            parts.append(Part(length, prompt if completion else 0))
        return cls(tuple(parts))

    def mask(self, part: Part, query: Tensor) -> Tensor:
        """Return what a completion sees of its prompt and itself, [length, prompt + length]: 0, or -inf where it does not."""
        if part.prompt not in self.masks:
            longest = max(each.length for each in self.parts if each.prompt == part.prompt)
            shape = (longest, part.prompt + longest)
            unseen = torch.full(shape, -torch.inf, dtype=query.dtype, device=query.device)
            self.masks[part.prompt] = unseen.triu(part.prompt + 1)
        return self.masks[part.prompt][: part.length, : part.prompt + part.length]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Attend as `RowAttention.attend`."""
        # On a GPU a masked call with shared heads would hold all scores.
        repeats = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
        lengths = [part.length for part in self.parts]
        # `split` and not slices: the backward pass of a slice writes zeros for the whole row
        queries, keys, values = (states.split(lengths, dim=2) for states in (query, key, value))
        prompt_key, prompt_value = keys[0], values[0]
        outputs = []
        for part, q, k, v in zip(self.parts, queries, keys, values, strict=True):
            if not part.prompt:
                prompt_key, prompt_value = k, v
                outputs.append(F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale))
            else:
                k, v = torch.cat([prompt_key, k], dim=2), torch.cat([prompt_value, v], dim=2)
                mask = self.mask(part, query)
                outputs.append(F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale))
        return torch.cat(outputs, dim=2)


# -------------------------------------------------------------------------------------------------------- flex


@dataclass(frozen=True, slots=True)
class FlexAttention:
    """One kernel over the whole row, which skips the blocks of 128 x 128 scores that the rule leaves empty.

    Rows are padded to a few lengths (`bucket`), here and not in the row, so that all other layers do without: a kernel
    is compiled for static shapes once per length, as a new one takes seconds and rows have any length. Padding sees
    padding only, and is cut off.
    """

    tokens: int
    """T, without padding."""
    blocks: BlockMask

    @classmethod
    def of(cls, prompt_ids: Tensor, completion_ids: Tensor) -> FlexAttention:
        """Make the mask of a row with these ids [T], on the device of its tokens."""
        tokens = len(prompt_ids)
        padding = (0, bucket(tokens) - tokens)
        prompts, completions = F.pad(prompt_ids, padding, value=-1), F.pad(completion_ids, padding)

        def visible(_batch: Tensor, _head: Tensor, q: Tensor, k: Tensor) -> Tensor:
            shared = (completions[k] == 0) | (completions[q] == completions[k])
            return (q >= k) & (prompts[q] == prompts[k]) & shared

        return cls(tokens, block_mask(visible, len(prompts), prompts.device))

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Attend as `RowAttention.attend`."""
        repeats = query.shape[1] // key.shape[1]
        if repeats & (repeats - 1):  # kernels share heads by powers of two; the 7B model has 7 queries a key
            key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
        padding = (0, 0, 0, self.blocks.seq_lengths[0] - self.tokens)
        query, key, value = (F.pad(states, padding) for states in (query, key, value))
        kernel = _compiled() if query.is_cuda else flex_attention
        output: Tensor = kernel(query, key, value, block_mask=self.blocks, scale=scale, enable_gqa=True)
        return output[:, :, : self.tokens]


def block_mask(visible: MaskMod, tokens: int, device: torch.device) -> BlockMask:
    """Return what torch's `create_block_mask` makes of a rule, without its [T, T] tensors (256 MiB each at 16,384 tokens).

    Args:
        visible: the rule, which must broadcast.
        tokens: T, a multiple of 128.
        device: of the tensors that the rule reads.
    """
    places = torch.arange(tokens, device=device)
    none = places[:1]
    counts = [
        visible(none, none, queries[:, None], places)
        .unflatten(0, (-1, BLOCK))
        .unflatten(2, (-1, BLOCK))
        .sum((1, 3))
        for queries in places.split(MASK_ROWS)
    ]
    seen = torch.cat(counts)
    full = seen == BLOCK**2
    partial = (seen > 0) & ~full
    return BlockMask.from_kv_blocks(
        *_listed(partial), *_listed(full), BLOCK_SIZE=BLOCK, mask_mod=visible, seq_lengths=(tokens, tokens)
    )


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Return the number [1, 1, Q] of true blocks in each row of [Q, K], and their places [1, 1, Q, K], ahead of all others."""
    order = blocks.int().argsort(dim=1, descending=True, stable=True)
    return blocks.sum(dim=1, dtype=torch.int32)[None, None], order.int()[None, None]


def bucket(tokens: int) -> int:
    """Return the padded length of a row: a multiple of 128, one of eight per doubling; at most 1/8 more above 1024 tokens."""
    step = max(BLOCK, 1 << max(0, (tokens - 1).bit_length() - 4))
    return -(-tokens // step) * step


@cache
def _compiled() -> Any:
    # Beyond its limit of 8 shapes torch falls back to the eager kernel without a word, which holds all T^2 scores.
    torch._dynamo.config.recompile_limit = RECOMPILES
    torch._dynamo.config.accumulated_recompile_limit = RECOMPILES
    return torch.compile(flex_attention, dynamic=False)
