"""Weight sync over engines that come and go; without Ray, so that a plan simulates with the same code.

In: a weight version. Out: metrics, when every engine that is up serves that version. Engines that a broken transfer left
half-updated are replaced, and engines that were started meanwhile get weights. A subclass says how weights are sent.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol

from videostr.errors import LearnerError, RolloutError, TransferError
from videostr.pool import EnginePool
from videostr.timeline import Timeline

log = logging.getLogger("videostr.sync")
TRIES = 3
RETRY_S = 5.0


class Sender(Protocol):
    """The learner, as the source of weights."""

    version: int
    """Version of the weights."""
    updating: asyncio.Lock
    """Held while the weights change, and while ranks start."""


class EngineSync(ABC):
    """`WeightSync` over the engines of a pool.

    Weight syncs exclude each other. `sync` waits for an engine that is up, and is unblocked by the pool's replacements.
    """

    def __init__(self, learner: Sender, pool: EnginePool, timeline: Timeline | None = None) -> None:
        self.failures: Counter[str] = Counter()
        """`transfer`: weight syncs that broke so far."""
        self._learner = learner
        self._pool = pool
        self._timeline = timeline or Timeline()
        self._lock = asyncio.Lock()
        self._refreshing: asyncio.Task[None] | None = None

    @abstractmethod
    async def _send(self, engines: Sequence[Any], version: int) -> dict[str, float]:
        """Send weights to these engines; return metrics.

        Raises:
            TransferError: some engine has no usable weights.
            LearnerError: a rank died, or is stuck.
        """

    def start(self) -> None:
        """Begin to send weights to engines that are started later."""
        self._refreshing = asyncio.create_task(self._refresh())

    async def sync(self, version: int) -> dict[str, float]:
        """Send weights to every engine that is up; those that a broken transfer left half-updated are replaced.

        Raises:
            TransferError: three times in a row.
            LearnerError: a rank died, or is stuck.
            RolloutError: no engine is left.
        """
        async with self._lock:
            return await self._sync(version)

    def close(self) -> None:
        """Send no more weights to engines started later."""
        if self._refreshing is not None:
            self._refreshing.cancel()

    async def _sync(self, version: int) -> dict[str, float]:
        for attempt in range(1, TRIES + 1):
            engines = await self._pool.pause()
            try:
                with self._timeline.during("weight-sync", "sync"):
                    metrics = await self._send(engines, version)
            except TransferError as error:
                self.failures["transfer"] += 1
                await self._pool.discard(engines, str(error))
                if attempt == TRIES:
                    raise
            except LearnerError as error:  # a rank that dies in a transfer leaves engines waiting in it
                await self._pool.discard(engines, str(error))
                raise
            else:
                await self._pool.mark_current(engines)
                return metrics
        raise AssertionError("unreachable")

    async def _refresh(self) -> None:
        """Send the learner's weights again whenever an engine waits for some; never while they change or ranks start."""
        while True:
            await self._pool.wait_for_stale()
            try:
                async with self._learner.updating, self._lock:
                    if self._pool.has_stale():
                        await self._sync(self._learner.version)
            except LearnerError as error:
                # A run that only waits for engines would never get this error from anywhere else.
                await self._pool.fail_requests(error)
                await asyncio.sleep(RETRY_S)
            except (TransferError, RolloutError) as error:
                log.warning("no weights yet for engines that were started again: %s", error)
                await asyncio.sleep(RETRY_S)
