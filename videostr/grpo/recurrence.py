"""Layers with a recurrent state over packed rows: which tokens follow which in, states forked to completions out.

No attention mask can describe such a layer: its state after the prompt goes on into every completion. So the recurrence runs
twice a layer, over all prompts of the row and over all its completions, each a batch padded on the right, and the second
starts from the states that the first ends with. A causal convolution of K inputs before it needs no state: a completion's first
tokens are preceded by the last K - 1 inputs of its prompt, and one call covers the whole row. Gradients of the completions
add up in what they share.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Recurrence(Protocol):
    """The gated delta rule of B sequences of T tokens, with H heads of widths D for keys and E for values.

    The state S [D, E] of a head becomes e^g (1 - beta k k^T) S + beta k v^T at each token, whose output is S^T q / sqrt(D).
    Tokens with beta = 0 and g = 0 leave it alone.
    """

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, g: Tensor, beta: Tensor, state: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return outputs [B, T, H, E] and last states [B, H, D, E].

        Args:
            query: [B, T, H, D], of any length: it is normalised, and keys too.
            key: [B, T, H, D].
            value: [B, T, H, E].
            g: [B, T, H], log of the decay, at most 0.
            beta: [B, T, H] in [0, 1].
            state: [B, H, D, E] to start from; None for zeros.
        """
        ...


@dataclass(frozen=True, slots=True)
class Parts:
    """The prompts of a row, or its completions, as a batch."""

    places: Tensor
    """[B, L] int64, index in the row of each token; the number of the row's tokens where there is none."""

    @classmethod
    def of(cls, spans: Sequence[tuple[int, int]], tokens: int) -> Parts:
        """Lay out spans of (first token, number of tokens) of a row of `tokens`."""
        longest = max(length for _, length in spans)
        places = torch.full((len(spans), longest), tokens)
        for part, (start, length) in zip(places, spans, strict=True):
            part[:length] = torch.arange(start, start + length)
        return cls(places)

    def gather(self, states: Tensor) -> Tensor:
        """Return the states [B, L, ...] of a row's [T, ...], zeros where there is no token."""
        found = _with_zero(states).index_select(0, self.places.flatten())
        return found.view(*self.places.shape, *states.shape[1:])


@dataclass(frozen=True, slots=True)
class RowForks:
    """How the tokens of one row follow each other; made once a row, for all layers."""

    preceded: Tensor
    """[T + R (K - 1)] int64: the row, K - 1 inputs before each of its R prompts and completions; T is an input of zeros."""
    outputs: Tensor
    """[T] int64, place of each token in `preceded`."""
    prompts: Parts
    completions: Parts | None
    """None where no completion has an input token."""
    parents: Tensor
    """[C] int64, the prompt of each completion."""
    order: Tensor
    """[T] int64, place of each token among all places of the prompts, followed by all of the completions."""

    @classmethod
    def of(cls, prompt_ids: Tensor, completion_ids: Tensor, kernel_size: int) -> RowForks:
        """Lay out the row whose tokens belong to these prompts [T] and completions [T], see `batch.Row`, on any device.

        Args:
            prompt_ids: [T].
            completion_ids: [T].
            kernel_size: K, inputs of an output of the convolution.
        """
        kinds = completion_ids.max() + 1
        runs, lengths = torch.unique_consecutive(prompt_ids * kinds + completion_ids, return_counts=True)
        tokens, before = len(prompt_ids), kernel_size - 1
        spans: tuple[list[tuple[int, int]], list[tuple[int, int]]] = ([], [])
        parents, preceded, outputs = [], [], []
        start = end_of_prompt = length_of_prompt = 0
        for index, (is_completion, length) in enumerate(
            zip((runs % kinds > 0).tolist(), lengths.tolist(), strict=True)
        ):
            shown = 0
            if is_completion:
                parents.append(len(spans[0]) - 1)
                shown = min(before, length_of_prompt)
            else:
                end_of_prompt, length_of_prompt = start + length, length
            spans[is_completion].append((start, length))
            preceded += [
                torch.full((before - shown,), tokens),
                torch.arange(end_of_prompt - shown, end_of_prompt),
                torch.arange(start, start + length),
            ]
            outputs.append(torch.arange(start, start + length) + (index + 1) * before)
            start += length
        prompts = Parts.of(spans[0], tokens)
        completions = Parts.of(spans[1], tokens) if spans[1] else None
        places = [parts.places.flatten() for parts in (prompts, completions) if parts is not None]
        device = prompt_ids.device
        order = torch.cat(places).argsort(stable=True)[:tokens]  # padding is the largest
        return cls(
            preceded=torch.cat(preceded).to(device),
            outputs=torch.cat(outputs).to(device),
            prompts=Parts(prompts.places.to(device)),
            completions=None if completions is None else Parts(completions.places.to(device)),
            parents=torch.tensor(parents, dtype=torch.int64, device=device),
            order=order.to(device),
        )

    def convolve(self, convolution: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
        """Return the outputs [T, C] of a causal convolution over inputs [T, C].

        Args:
            convolution: maps [1, C, N] to [1, C, N'], whose output n is made of the inputs up to n.
            inputs: of the row's tokens.
        """
        preceded = _with_zero(inputs).index_select(0, self.preceded)
        return convolution(preceded.T[None])[0].T.index_select(0, self.outputs)

    def scan(
        self, recurrence: Recurrence, query: Tensor, key: Tensor, value: Tensor, g: Tensor, beta: Tensor
    ) -> Tensor:
        """Return the outputs [T, H, E] of a recurrence over the row; arguments as of `Recurrence`, [T, ...] each."""

        def run(parts: Parts, state: Tensor | None) -> tuple[Tensor, Tensor]:
            q, k, v, decay, rate = (parts.gather(stream) for stream in (query, key, value, g, beta))
            return recurrence(q, k, v, decay, rate, state)

        found, states = run(self.prompts, None)
        outputs = [found.flatten(0, 1)]
        if self.completions is not None:
            found, _ = run(self.completions, states.index_select(0, self.parents))
            outputs.append(found.flatten(0, 1))
        return torch.cat(outputs).index_select(0, self.order)


def _with_zero(states: Tensor) -> Tensor:
    """Return states [T + 1, ...] of [T, ...] with zeros after the last."""
    return F.pad(states, (0, 0) * (states.ndim - 1) + (0, 1))
