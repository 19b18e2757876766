"""Rollout workers that are added and taken out while a run continues.

In: a target size in the run folder (`python -m videostr.scale RUN_DIR --rollout-workers N`), or free room in the cluster
(`rollout.max_workers`). Out: calls of `RayRolloutPool.resize`. It waits for neither, but looks every few seconds.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from actors.placement import Placement
from actors.pools import RayRolloutPool
from videostr.config.schema import Config
from videostr.errors import ConfigError
from videostr.target_size import read_target_size
from videostr.tasks import FileThread
from videostr.worker_state import Health

log = logging.getLogger("videostr.scaling")
LOOK_S = 2.0


class Scaling:
    """Resizes a pool to the target size, or as there is room."""

    def __init__(self, config: Config, run_folder: Path, pool: RayRolloutPool, placement: Placement) -> None:
        self._most = config.rollout.max_workers
        self._run_folder = run_folder
        self._thread = FileThread("scaling")
        self._pool = pool
        self._placement = placement
        self._target: int | None = None
        self._watching: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look."""
        self._watching = asyncio.create_task(self._watch())

    def close(self) -> None:
        """Stop looking."""
        if self._watching is not None:
            self._watching.cancel()

    async def _watch(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(LOOK_S)

    async def look(self) -> None:
        """Resize the pool if there is a reason to."""
        wanted = await self._wanted()
        if wanted != (size := self._pool.size()):
            log.info("rollout workers: %d -> %d", size, wanted)
            await self._pool.resize(wanted)

    async def _wanted(self) -> int:
        size = self._pool.size()
        try:
            target = await self._thread(read_target_size, self._run_folder)
        except ConfigError as error:
            log.warning("%s", error)
            return size
        if target != self._target:
            self._target = target
            return size if target is None else target
        # One at a time: the next when this one is up, and has taken its share of the room.
        is_settled = not {Health.RESTARTING, Health.DEAD} & set(self._pool.health())
        grows = (
            size < self._most and target is None and is_settled and self._placement.has_room_for("rollout")
        )
        return size + 1 if grows else size
