"""Bounded staleness between sampling and learning, in plain asyncio.

In: a coroutine function that collects the batch of a step. Out: collected batches, in order of their steps.

Consumes nothing of its own. Produces batches. `next` waits for the oldest batch and is unblocked when that is collected or
fails; batches behind it continue meanwhile, up to `max_staleness` of them.

The bound: `advance(done)` says that `done` steps are over, each with at most one update of the weight version (by one optimizer
step or more, `train.updates_per_batch`), the last one's weights synced.
It starts the batches of steps up to `done + S`. So the batch of step b (from 0) starts when at least b - S steps are over,
and all its tokens are sampled from weights that contain at least the updates of these. It is learned from after exactly
b steps. So at most b - (b - S) = S updates happened since the oldest weights that sampled any of its tokens. No batch is
ever thrown away for its age: those that would become too old are not started. With S = 0 a batch starts when the weights of
the step before are synced: exactly the synchronous algorithm.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Generic, Self, TypeVar

from videostr.tasks import cancel_and_wait

T = TypeVar("T")


class Window(Generic[T]):
    """The batches in progress: at most `max_staleness + 1`."""

    def __init__(
        self, collect: Callable[[int], Coroutine[Any, Any, T]], *, max_staleness: int, first: int, last: int
    ) -> None:
        """Begin nothing yet.

        Args:
            collect: collects the batch of a step.
            max_staleness: S.
            first: step of the first batch, counted from 0.
            last: step after the last batch.
        """
        self._collect = collect
        self._max_staleness = max_staleness
        self._next_step = first
        self._last = last
        self._batches: deque[asyncio.Task[T]] = deque()

    def advance(self, done: int) -> None:
        """Begin the batches that may begin when `done` steps are over."""
        while self._next_step <= min(done + self._max_staleness, self._last - 1):
            self._batches.append(asyncio.create_task(self._collect(self._next_step)))
            self._next_step += 1

    async def next(self) -> T:
        """Return the oldest batch; raises what collecting it raised."""
        batch = await asyncio.shield(self._batches[0])
        self._batches.popleft()
        return batch

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Give up the batches in progress."""
        await cancel_and_wait(self._batches)
        self._batches.clear()
