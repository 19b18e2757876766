"""Publication of the learner's weights to the engines, as the driver asks for it.

In: a weight version. Out: metrics, when every engine that is up serves that version. The work is done between learner ranks
and rollout actors (`actors/transfer/`); the driver only starts it and waits, and so never imports vLLM. `RayWeightSync` is one
publication; `SupervisedSync` does what `videostr/sync.py` says with it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

from actors.learner.ray_learner import RayLearner
from actors.pools import RayRolloutPool
from actors.transfer.request import transfer_request
from videostr.config import Config
from videostr.errors import LearnerError
from videostr.sync import EngineSync
from videostr.timeline import Timeline

CONTROL_CALLS = 6
"""Calls of a publication that each may take `sync.timeout_s`: init, start, update, finish, digests; one to spare."""


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
        request = transfer_request(self.config, tuple(self.engines()), version)
        try:
            ranks = await asyncio.wait_for(self.learner.call("send_weights", request), limit)
        except TimeoutError:
            # Not of the engines: each of their calls has its own limit.
            raise LearnerError(
                f"weights of version {version} did not reach the engines within {limit:g} s ({CONTROL_CALLS} times "
                "sync.timeout_s): a rank is stuck; raise the limit if the model is simply large"
            ) from None
        return {**ranks[0], "sync/seconds": time.monotonic() - start}


class SupervisedSync(EngineSync):
    """Engines and ranks that are Ray actors."""

    def __init__(
        self, config: Config, learner: RayLearner, pool: RayRolloutPool, timeline: Timeline | None = None
    ) -> None:
        super().__init__(learner, pool, timeline)
        self._config = config
        self._ranks = learner

    async def _send(self, engines: Sequence[Any], version: int) -> dict[str, float]:
        return await RayWeightSync(self._config, self._ranks, lambda: engines).publish(version)
