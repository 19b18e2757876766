"""How sampled groups pass from an engine to those who need their tokens, without passing through the driver.

In: groups in an engine's process. Out: what the driver sees of them (`SampledRef`), whose reference it hands on to a reward
worker and to the learner's ranks. The driver owns the object, so that it outlives the engine, though not its machine.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import ray

from actors.names import Named
from videostr.groups import LearnerBatch, Sampled, SampledGroup, SampledRef
from videostr.ports import SampleRequest
from videostr.types import Failure


class SamplingWorker(Named, ABC):
    """The process of an engine, or of what samples in its place."""

    @abstractmethod
    async def sample(self, request: SampleRequest) -> Sampled | Failure:
        """Sample one group."""

    async def sample_apart(self, request: SampleRequest) -> tuple[SampledRef | Failure, Sampled | None]:
        """Sample one group; return what the driver sees of it and the group, for a call with two results."""
        sampled = await self.sample(request)
        return (sampled, None) if isinstance(sampled, Failure) else (SampledRef.of(sampled), sampled)


def for_ranks(batch: LearnerBatch) -> LearnerBatch:
    """Return a batch without what ranks do not need, or find in the groups that they fetch."""

    def bare(sampled: SampledGroup) -> SampledGroup:
        return replace(sampled, completions=()) if isinstance(sampled, SampledRef) else sampled

    groups = (replace(group, sampled=bare(group.sampled), scores=()) for group in batch.groups)
    return replace(batch, groups=tuple(groups))


def fetched(batch: LearnerBatch) -> LearnerBatch:
    """Return a batch with its tokens."""
    groups = list(batch.groups)
    away = [i for i, group in enumerate(groups) if isinstance(group.sampled, SampledRef)]
    references: list[Any] = [groups[i].sampled.content for i in away]
    contents: Sequence[Sampled] = ray.get(references)
    for i, sampled in zip(away, contents, strict=True):
        groups[i] = replace(groups[i], sampled=sampled)
    return replace(batch, groups=tuple(groups))
