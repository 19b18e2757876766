"""Weight sync on Ray, as the driver asks for it.

In: a weight version. Out: metrics, when every engine that is up serves that version. The work is done between learner ranks
and rollout actors (`actors/transfer/`); the driver only starts it and waits, and so never imports vLLM. `transfer_weights` is one
transfer; `SupervisedSync` does what `videostr/sync.py` says with it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from actors.learner.ray_learner import RayLearner
from actors.pools import RayRolloutPool
from actors.transfer.request import transfer_request
from videostr.config.schema import Config
from videostr.sync import EngineSync
from videostr.timeline import Timeline

CONTROL_CALLS = 6
"""Calls of a transfer that each may take `sync.timeout_s`: init, start, update, finish, digests; one to spare."""


async def transfer_weights(
    config: Config, learner: RayLearner, engines: Sequence[Any], version: int
) -> dict[str, float]:
    """Move the learner's weights into these rollout actors; the learner sends them as `version`.

    After a `TransferError` the engines have no usable weights and must be restarted; the learner continues.

    Returns:
        `sync/bytes`, `sync/broadcast_seconds`, `sync/seconds`, when every engine serves `version`.

    Raises:
        TransferError: names engine and phase, or the parameter that did not arrive (`sync.verify`).
        LearnerError: a rank died, or is stuck: each call of an engine has its own deadline.
    """
    start = time.monotonic()
    ranks = await learner.call(
        "send_weights",
        transfer_request(config, tuple(engines), version),
        timeout_s=CONTROL_CALLS * config.sync.timeout_s,
        limit=f"{CONTROL_CALLS} x sync.timeout_s",
    )
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
        return await transfer_weights(self._config, self._ranks, engines, version)
