"""Sequence parallelism: one packed row over N ranks, each of which computes a part of its tokens.

As DeepSpeed-Ulysses (arXiv 2309.14509). Rank r holds the r-th part of the tokens. Every layer but attention works on tokens
one by one; attention trades its part of the tokens with all heads for all tokens with its part of the heads, and back:

    [1, H, T / N, D] -> [1, H / N, T, D] -> attention of the whole row -> [1, H / N, T, D] -> [1, H, T / N, D]

The vision tower works on a part of every clip's temporal patches, which do not attend to each other, and sends features to
those who hold their tokens. Hidden states that predict a token are dealt evenly before the output layer, wherever in the row
they are. Every rank gets all log-probabilities, so that a loss may mix those of a sequence, and with them the gradient of its
own alone: over the ranks gradients add up to that of the row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import gcd

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed._functional_collectives import all_to_all_single_autograd

from videostr.grpo.attention import RowAttention
from videostr.grpo.batch import Row, Vision


@dataclass(frozen=True, slots=True)
class SequenceGroup:
    """The N neighbouring ranks that share rows; N items are dealt to them in order, as evenly as can be."""

    rank: int
    """Of this process among the N."""
    size: int
    """N."""
    group: dist.ProcessGroup

    @classmethod
    def connect(cls, size: int) -> SequenceGroup:
        """Form the groups of `size` ranks, which divides the number of all; a collective of all ranks."""
        firsts = range(0, dist.get_world_size(), size)
        groups = [dist.new_group(range(first, first + size)) for first in firsts]
        return cls(dist.get_rank() % size, size, groups[dist.get_rank() // size])

    def own(self, count: int) -> slice:
        """Return the part of `count` items that is this rank's."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def sizes(self, count: int) -> list[int]:
        """Return how many of `count` items each rank has."""
        return [count * (rank + 1) // self.size - count * rank // self.size for rank in range(self.size)]

    def owners(self, count: int, device: torch.device) -> Tensor:
        """Return the rank [count] int64 of each of `count` items."""
        sizes = torch.tensor(self.sizes(count), device=device)
        return torch.arange(self.size, device=device).repeat_interleave(sizes, output_size=count)

    def computed(self, temporal_patches: int) -> slice:
        """Return the temporal patches of a clip that this rank's tower runs over: its own, and one where it has none.

        So every rank runs the tower equally often, as ZeRO-3's collectives need it.
        """
        own = self.own(temporal_patches)
        first = min(own.start, temporal_patches - 1)
        return slice(first, max(own.stop, first + 1))

    def exchange(self, held: Tensor, owners: Tensor, takers: Tensor) -> Tensor:
        """Return the items that this rank takes, in order; a differentiable collective.

        Args:
            held: [n, ...], the items of which this rank is the owner, in order.
            owners: [V] int64, the rank that holds each item; the same on every rank.
            takers: [V] int64, the rank that takes it; the same on every rank.
        """
        given, wanted = takers[owners == self.rank], owners[takers == self.rank]
        sent, received = (ranks.bincount(minlength=self.size).tolist() for ranks in (given, wanted))
        items = self._all_to_all(held.index_select(0, given.argsort(stable=True)), received, sent)
        return items.index_select(0, wanted.argsort(stable=True).argsort())

    def gather(self, values: Tensor, count: int) -> Tensor:
        """Return all `count` values, of which this rank's [n] come from `values` and alone have a gradient."""
        whole = values.new_empty(count)
        dist.all_to_all_single(
            whole,
            values.detach().repeat(self.size),
            self.sizes(count),
            [len(values)] * self.size,
            group=self.group,
        )
        own = self.own(count)
        return torch.cat([whole[: own.start], values, whole[own.stop :]])

    def _all_to_all(self, items: Tensor, received: Sequence[int], sent: Sequence[int]) -> Tensor:
        found: Tensor = all_to_all_single_autograd(items, list(received), list(sent), self.group)
        return found

    # ------------------------------------------------------------------------------------------- attention

    def to_heads(self, states: Tensor, tokens: int) -> Tensor:
        """Return all tokens of this rank's heads, [h, T, D], of its tokens [N, h, t, D] of each rank's heads."""
        _, heads, own, width = states.shape
        counts = [heads * length for length in self.sizes(tokens)]
        found = self._all_to_all(states.reshape(-1, width), counts, [heads * own] * self.size)
        parts = found.split(counts)
        return torch.cat([part.view(heads, -1, width) for part in parts], dim=1)

    def to_tokens(self, states: Tensor) -> Tensor:
        """Return this rank's tokens of all heads, [N h, t, D], of all tokens [h, T, D] of its heads."""
        heads, tokens, width = states.shape
        lengths = self.sizes(tokens)
        own = lengths[self.rank]
        parts = torch.cat([part.reshape(-1, width) for part in states.split(lengths, dim=1)])
        found = self._all_to_all(parts, [heads * own] * self.size, [heads * length for length in lengths])
        return found.view(self.size * heads, own, width)


@dataclass(frozen=True, slots=True)
class UlyssesAttention:
    """Attention of a row over the ranks; implements `videostr.grpo.attention.RowAttention` for this rank's tokens."""

    whole: RowAttention
    """Of the row."""
    sequence: SequenceGroup
    tokens: int
    """T, of the row."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Attend as `RowAttention.attend`, [1, H, t, D] each; N must divide the H heads of queries."""
        ranks = self.sequence.size
        # Keys that are fewer than ranks, or unevenly many, are held by several ranks
        copies = ranks // gcd(ranks, key.shape[1])
        key, value = (states.repeat_interleave(copies, dim=1) for states in (key, value))
        heads = [states.shape[1] // ranks for states in (query, key, value)]
        parts = torch.cat([states[0].unflatten(0, (ranks, -1)) for states in (query, key, value)], dim=1)
        query, key, value = self.sequence.to_heads(parts, self.tokens)[None].split(heads, dim=1)
        return self.sequence.to_tokens(self.whole.attend(query, key, value, scale)[0])[None]


@dataclass(frozen=True, slots=True)
class RowPart:
    """What this rank computes of a row."""

    row: Row
    sequence: SequenceGroup

    @property
    def owners(self) -> Tensor:
        """The rank [T] that holds each token."""
        return self.sequence.owners(len(self.row.input_ids), self.row.input_ids.device)

    def attention(self, whole: RowAttention) -> RowAttention:
        """Return the attention of this rank's tokens, given that of the row."""
        return UlyssesAttention(whole, self.sequence, len(self.row.input_ids))

    def tokens(self, features: Vision, is_vision: Tensor) -> Row:
        """Return the row of this rank's tokens; what it says of targets stays that of the whole.

        Args:
            features: of the temporal patches that this rank's tower has run over, of all prompts.
            is_vision: [T] bool, which tokens of the whole row stand for features.
        """
        row, own = self.row, self.sequence.own(len(self.row.input_ids))
        kept, owners = self._features(is_vision)
        takers = self.owners[is_vision]
        return replace(
            row,
            input_ids=row.input_ids[own],
            positions=row.positions[..., own],
            prompt_ids=row.prompt_ids[own],
            completion_ids=row.completion_ids[own],
            vision={n: self.sequence.exchange(f[kept], owners, takers) for n, f in features.items()},
        )

    def predictors(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return the states [n, D] that this rank runs the output layer on, given [t, D] of its tokens, and their targets."""
        row, count = self.row, len(self.row.targets)
        owners = self.owners[row.predictors]
        own = self.sequence.own(len(row.input_ids))
        held = hidden.index_select(0, row.predictors[owners == self.sequence.rank] - own.start)
        takers = self.sequence.owners(count, hidden.device)
        return self.sequence.exchange(held, owners, takers), row.targets[self.sequence.own(count)]

    def whole(self, values: Tensor) -> Tensor:
        """Return the values [N] of all targets, given those [n] of `predictors`."""
        return self.sequence.gather(values, len(self.row.targets))

    def _features(self, is_vision: Tensor) -> tuple[Tensor, Tensor]:
        """Return which features of this rank are its own, [n] bool, and the rank [V] that owns each of the row's."""
        row, device = self.row, is_vision.device
        counts = row.prompt_ids[is_vision].bincount(minlength=len(row.temporal_patches)).tolist()
        kept, owners = [], []
        for tokens, patches in zip(counts, row.temporal_patches, strict=True):
            own, computed = self.sequence.own(patches), self.sequence.computed(patches)
            each = tokens // patches
            places = torch.arange(computed.start, computed.stop, device=device)
            kept.append(((places >= own.start) & (places < own.stop)).repeat_interleave(each))
            owners.append(self.sequence.owners(patches, device).repeat_interleave(each))
        return torch.cat(kept), torch.cat(owners)
