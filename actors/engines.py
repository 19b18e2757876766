"""Rollout engines alone, without a learner: they serve the weights of their checkpoint. For evaluation."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import ray

from actors.placement import Placement, start_ray
from actors.pools import RayRolloutPool
from videostr.config.schema import Config


@contextlib.asynccontextmanager
async def engines(config: Config, frame_store: Path, logs: Path) -> AsyncIterator[RayRolloutPool]:
    """Start Ray and `rollout.num_workers` engines; both are ended on leaving, whatever happens.

    An engine that was lost and started again serves at once: the weights on disk are the ones wanted.

    Raises:
        PlacementError: they do not fit the cluster.
        RolloutError: one does not start.
    """
    start_ray()
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(ray.shutdown)
        placement = Placement(config, only=("rollout",))
        cleanup.callback(placement.close)
        await placement.reserve()
        pool = RayRolloutPool(config, frame_store, logs, placement)
        pool.gathers_clips = True
        cleanup.callback(pool.close)
        await pool.start()
        serving = asyncio.create_task(_serve(pool))
        try:
            yield pool
        finally:
            serving.cancel()


async def _serve(pool: RayRolloutPool) -> None:
    while True:
        await pool.wait_for_stale()
        await pool.mark_current(pool.handles())
