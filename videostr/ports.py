"""What the loop speaks to: four ports, implemented by Ray actors in `actors/` and by in-process objects in tests."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from videostr.checkpoint import Files
from videostr.groups import LearnerBatch, SampledGroup
from videostr.types import Failure, Prompt, Record, Score, Update


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRequest:
    """Sample one group."""

    prompt: Prompt
    n: int
    """G, completions to sample."""
    temperature: float
    """0 is greedy."""
    max_tokens: int
    seed: int
    """Same seed, prompt and weights: same tokens, whatever else is in the engine's batch."""
    references: tuple[str, ...] = ()
    """Supervised fine-tuning: the n completions, which are given and not sampled."""


class RolloutPool(Protocol):
    """Samples groups on whichever engine has room."""

    failures: Counter[str]
    """Engines lost so far, by cause."""

    async def sample(self, request: SampleRequest) -> SampledGroup | Failure:
        """Sample one group; wait for a free place. Bad input is a `Failure`; raises `RolloutError` when no engine is left."""
        ...


class RewardPool(Protocol):
    """Parses and scores whole groups on CPU."""

    failures: Counter[str]
    """Workers lost so far, by cause."""

    async def score(self, record: Record, sampled: SampledGroup) -> tuple[Score, ...] | Failure:
        """Return scores in the order of the completions; a group that fails three times is a `Failure`.

        Raises:
            SampleLost: the machine that held the group was lost; it must be sampled again.
        """
        ...


class Learner(Protocol):
    """All ranks as one."""

    version: int
    """Version of the weights."""

    async def update(self, batch: LearnerBatch) -> Update:
        """Learn from the batch, by one or more optimizer steps; returns the new weight version."""
        ...

    async def predictions(
        self, batch: LearnerBatch
    ) -> tuple[dict[tuple[str, int], tuple[np.ndarray, np.ndarray]], tuple[Failure, ...]]:
        """Return what the policy makes of given completions, and the groups that cannot be encoded.

        By record id and completion: log-probabilities [T] float32, nats, and the most likely token at each place [T] int64,
        both given the completion's own tokens before it.
        """
        ...

    async def snapshot(self) -> None:
        """Copy what a checkpoint holds to host memory, for `write`; the weights change only after that."""
        ...

    async def write(self, folder: Path) -> Files:
        """Write the copy into `folder`: `policy/` (Hugging Face format), `learner/` (state of the optimizer, version).

        Updates and weight syncs may go on meanwhile.

        Returns:
            What of it was forced to disk and hashed.
        """
        ...

    async def load(self, folder: Path) -> int:
        """Restore what `write` wrote; returns the weight version."""
        ...

    async def restart(self) -> None:
        """End all ranks and start new ones, with the initial weights."""
        ...


class WeightSync(Protocol):
    """Moves the learner's weights into every engine."""

    failures: Counter[str]
    """Weight syncs that broke so far, by cause."""

    async def sync(self, version: int) -> dict[str, float]:
        """Return metrics (`sync/bytes`, `sync/seconds`, ...) once every engine serves `version`; raise `TransferError`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """Everything outside the loop."""

    rollouts: RolloutPool
    rewards: RewardPool
    learner: Learner
    sync: WeightSync
