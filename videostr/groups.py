"""Groups on their way from an engine to the learner: what the driver sees of them, and what it hands on.

In: what an engine sampled (`Sampled`). Out: `RolloutGroup`, `LearnerBatch`. Tokens, log-probabilities and texts pass
from process to process by reference (`SampledRef`); the driver has their numbers, versions and scores.
"""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass

import numpy as np

from videostr.errors import SampleLost, first_line
from videostr.types import Completion, FinishReason, Prompt, Score, VersionSpan


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """A sampled group, not yet scored."""

    prompt_token_ids: np.ndarray
    """[T] int32, the expanded prompt as the engine saw it: the canonical one."""
    completions: tuple[Completion, ...]
    """G of them."""

    @property
    def num_prompt_tokens(self) -> int:
        """T of the prompt."""
        return len(self.prompt_token_ids)

    @property
    def content(self) -> Sampled:
        """Itself."""
        return self

    async def whole(self) -> Sampled:
        """Return itself."""
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionFacts:
    """What is known of a completion without its tokens; fields as of `Completion`."""

    num_tokens: int
    finish_reason: FinishReason
    weight_versions: tuple[VersionSpan, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledRef:
    """A sampled group whose tokens and texts stay in an object store: what the driver sees of it. Its size is that of G."""

    num_prompt_tokens: int
    completions: tuple[CompletionFacts, ...]
    content: Awaitable[Sampled] | None
    """Reference: whoever awaits it, or is called with it, gets the group; None until it has left its engine."""

    @classmethod
    def of(cls, sampled: Sampled) -> SampledRef:
        """Return what is known of a group, without a reference."""
        facts = tuple(
            CompletionFacts(
                num_tokens=each.num_tokens,
                finish_reason=each.finish_reason,
                weight_versions=each.weight_versions,
            )
            for each in sampled.completions
        )
        return cls(num_prompt_tokens=sampled.num_prompt_tokens, completions=facts, content=None)

    async def whole(self) -> Sampled:
        """Fetch the group.

        Raises:
            SampleLost: with its machine.
        """
        assert self.content is not None
        try:
            return await self.content
        except Exception as error:  # what a store raises
            raise SampleLost(first_line(error)) from error


SampledGroup = Sampled | SampledRef


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutGroup:
    """The G completions of one prompt with their scores, kept together until packing."""

    prompt: Prompt
    """What was asked."""
    sampled: SampledGroup
    """What was answered."""
    scores: tuple[Score, ...]
    """G, in the order of the completions; empty where nothing is scored, and in a learner rank."""

    @property
    def tokens(self) -> Sampled:
        """What was answered, where its tokens are at hand."""
        assert isinstance(self.sampled, Sampled)
        return self.sampled

    @property
    def totals(self) -> list[float]:
        """Total scores [G]."""
        return [score.total for score in self.scores]


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerBatch:
    """The groups of one step with their advantages; what the driver hands to every learner rank."""

    groups: tuple[RolloutGroup, ...]
    """The P groups that carry a gradient."""
    advantages: tuple[np.ndarray, ...]
    """Per group [G] float32."""
    temperature: float
    """Sampling temperature, at which log-probabilities are taken."""
