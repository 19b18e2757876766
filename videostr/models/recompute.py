"""Which layers compute their activations again in the backward pass of a row: as few as memory asks for.

Gradient checkpointing keeps the input of each layer alone and runs it a second time: a third more work. Within a budget
(`learner.activation_gib`) layers keep their activations: all of a short row, some of a longer one.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from videostr.models.base import Shapes, Stack
from videostr.models.layers import checkpointing_layers


def kept_layers(stacks: Sequence[tuple[Stack, int]], max_elements: float) -> list[int]:
    """Return how many layers of each stack keep their activations of a row; the first stack is served first.

    Args:
        stacks: each with the tokens or patches of the row that pass through it.
        max_elements: that may be held for the backward pass; none keeps them where recomputing all of them holds more.
    """
    room = max_elements - sum(tokens * stack.held(checkpointing=True) for stack, tokens in stacks)
    kept = []
    for stack, tokens in stacks:
        more = tokens * (stack.activations - stack.hidden_size)
        kept.append(min(stack.layers, max(0, int(room // more))) if more else stack.layers)
        room -= kept[-1] * more
    return kept


class Recomputation:
    """Switches gradient checkpointing on and off, layer by layer, for each row."""

    def __init__(
        self, shapes: Shapes, language: nn.Module, tower: nn.Module | None, max_elements: float
    ) -> None:
        """Find the layers; checkpointing has been enabled for them.

        Args:
            shapes: of the model.
            language: the policy without its tower.
            tower: None where it is frozen.
            max_elements: as of `kept_layers`.
        """
        self._shapes, self._max_elements = shapes, max_elements
        self._tower = [] if tower is None else checkpointing_layers(tower)
        others = set(self._tower)
        self._language = [each for each in checkpointing_layers(language) if each not in others]

    def fitting(self, tokens: int, patches: int) -> list[int]:
        """Return how many layers of language model and tower can keep the activations of a row of so many tokens and patches."""
        patches = patches if self._tower else 0
        stacks = [(self._shapes.text, tokens), (self._shapes.vision, patches)]
        return kept_layers(stacks, self._max_elements)

    def keep(self, kept: Sequence[int]) -> None:
        """Let so many layers of each keep their activations.

        Those are the last ones: their activations are gone by the time that an earlier layer is computed again.
        """
        for layers, count in zip((self._language, self._tower), kept, strict=True):
            for number, layer in enumerate(layers):
                layer.gradient_checkpointing = number < len(layers) - count
