"""Publication of the learner's weights to the engines, as the driver asks for it.

In: a weight version. Out: metrics, when every engine that is up serves that version. The work is done between learner ranks
and rollout actors (`actors/transfer.py`); the driver only starts it and waits, and so never imports vLLM. `RayWeightSync` is one
publication; `SupervisedSync` replaces engines that a broken one left half-updated, and brings weights to those that were
started meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from actors.learner import RayLearner
from actors.pools import RayRolloutPool
from videostr.config import Config
from videostr.errors import LearnerError, RolloutError, TransferError
from videostr.timeline import Timeline

log = logging.getLogger("videostr.sync")
CONTROL_CALLS = 6
"""Calls of a publication that each may take `sync.timeout_s`: init, start, update, finish, digests; one to spare."""
TRIES = 3
RETRY_S = 5.0


class RayWeightSync:
    """Moves the learner's weights into every engine; implements `videostr.ports.WeightSync`.

    After a `TransferError` the engines have no usable weights and must be restarted; the learner goes on.
    """

    def __init__(self, config: Config, learner: RayLearner, engines: Callable[[], Sequence[Any]]) -> None:
        self.config = config
        self.learner = learner
        self.engines = engines
        """Gives the rollout actors that live now, e.g. `RayRolloutPool.handles`."""

    async def publish(self, version: int) -> dict[str, float]:
        """Returns `sync/bytes`, `sync/broadcast_seconds`, `sync/seconds` when every engine serves `version`.

        Raises:
            TransferError: names engine and phase, or the parameter that did not arrive (`sync.verify`).
            LearnerError: a rank died, or is stuck.
        """
        start = time.monotonic()
        limit = CONTROL_CALLS * self.config.sync.timeout_s
        try:
            ranks = await asyncio.wait_for(self.learner.call("send_weights", self._init(version)), limit)
        except TimeoutError:
            # Not of the engines: each of their calls has its own limit.
            raise LearnerError(
                f"weights of version {version} did not reach the engines within {limit:g} s ({CONTROL_CALLS} times "
                "sync.timeout_s): a rank is stuck; raise the limit if the model is simply large"
            ) from None
        return {**ranks[0], "sync/seconds": time.monotonic() - start}

    def _init(self, version: int) -> dict[str, Any]:
        config = self.config
        on_gpu = config.rollout.num_gpus > 0
        automatic = "nccl" if on_gpu else "gloo"
        return {
            "engines": tuple(self.engines()),
            "ranks_per_engine": config.rollout.tensor_parallel_size,
            "backend": automatic if config.sync.backend == "auto" else config.sync.backend,
            "version": version,
            "timeout_s": config.sync.timeout_s,
            "verify": config.sync.verify,
            "reset_encoder_cache": not config.model.freeze_vision,
        }


class SupervisedSync:
    """`WeightSync` over engines that come and go.

    Publications exclude each other. `publish` waits for an engine that is up, and is unblocked by the pool's replacements.
    """

    def __init__(
        self, config: Config, learner: RayLearner, pool: RayRolloutPool, timeline: Timeline | None = None
    ) -> None:
        self.failures: Counter[str] = Counter()
        """`transfer`: publications that broke so far."""
        self._config = config
        self._learner = learner
        self._pool = pool
        self._timeline = timeline or Timeline()
        self._lock = asyncio.Lock()
        self._refreshing: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Bring weights to engines that are started later, from now on."""
        self._refreshing = asyncio.create_task(self._refresh())

    async def publish(self, version: int) -> dict[str, float]:
        """As `RayWeightSync.publish`; engines that a broken transfer left half-updated are replaced.

        Raises:
            TransferError: three times in a row.
            LearnerError: a rank died, or is stuck.
            RolloutError: no engine is left.
        """
        async with self._lock:
            return await self._publish(version)

    def close(self) -> None:
        """Bring no more weights to engines started later."""
        if self._refreshing is not None:
            self._refreshing.cancel()

    async def _publish(self, version: int) -> dict[str, float]:
        for attempt in range(1, TRIES + 1):
            engines = await self._pool.pause()
            try:
                one = RayWeightSync(self._config, self._learner, lambda: engines)  # noqa: B023
                with self._timeline.during("weight-sync", "publish"):
                    metrics = await one.publish(version)
            except TransferError as error:
                self.failures["transfer"] += 1
                await self._pool.condemn(engines, str(error))
                if attempt == TRIES:
                    raise
            except LearnerError as error:  # a rank that dies in a transfer leaves engines waiting in it
                await self._pool.condemn(engines, str(error))
                raise
            else:
                await self._pool.served(engines)
                return metrics
        raise AssertionError("unreachable")

    async def _refresh(self) -> None:
        """Publish the learner's weights again whenever an engine waits for some; never while they change or ranks start."""
        while True:
            await self._pool.stale()
            try:
                async with self._learner.updating, self._lock:
                    if self._pool.has_stale():
                        await self._publish(self._learner.version)
            except LearnerError as error:
                # Else a run that only waits for engines would never hear of it.
                await self._pool.refuse(error)
                await asyncio.sleep(RETRY_S)
            except (TransferError, RolloutError) as error:
                log.warning("no weights yet for engines that were started again: %s", error)
                await asyncio.sleep(RETRY_S)
