"""All rollout engines as one port, on Ray: how their processes are placed, started, called and killed.

What the pool does with them is in `videostr/pool.py` (`sample`, `pause`, `resize`) and `videostr/supervisor.py` (restarts).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from actors.calls import get_with_timeout
from actors.names import actor_name
from actors.placement import Placement, openmp_options
from actors.rollout import RolloutWorker
from actors.sampling import SamplingWorker
from videostr.config.schema import Config
from videostr.errors import RolloutError, VideoStrError, first_line
from videostr.groups import SampledRef
from videostr.pool import EnginePool
from videostr.supervisor import CLOSE_S, WorkerDied
from videostr.timeline import Timeline


class RayRolloutPool(EnginePool):
    """Engines that are Ray actors."""

    def __init__(
        self,
        config: Config,
        frame_store: str | Path,
        log_folder: str | Path,
        placement: Placement | None = None,
        worker_class: type[SamplingWorker] = RolloutWorker,
        timeline: Timeline | None = None,
    ) -> None:
        """Start nothing yet.

        Args:
            config: the run's config.
            frame_store: folder that all engines read frames from.
            log_folder: gets one `engine_N.log` per engine.
            placement: gives each engine its place; None leaves that to Ray.
            worker_class: what to run as a worker.
            timeline: records what every engine does.
        """
        super().__init__(config, log_folder, timeline)
        self.frame_store = str(frame_store)
        self.placement = placement
        self._places: dict[int, dict[str, Any]] = (
            {} if placement is None else dict(enumerate(placement.options("rollout")))
        )
        """Ray actor options that give an engine its place, by index."""
        self.worker_class = worker_class

    def _launch(self, index: int, log_file: Path) -> Any:
        rollout = self.config.rollout
        if self.placement is not None and index not in self._places:  # one more than were planned
            self._places[index] = self.placement.more("rollout")
        actor = ray.remote(self.worker_class).options(
            name=actor_name("rollout-engine", index),
            num_cpus=rollout.num_cpus,
            num_gpus=rollout.num_gpus,
            **openmp_options(rollout.num_gpus),
            **self._places.get(index, {}),
        )
        return actor.remote(index, self.config, self.frame_store, str(log_file))

    async def _ask(self, handle: Any, method: str, *arguments: Any, limit_s: float) -> Any:
        group = None
        try:
            if method == "sample":
                ref, group = handle.sample_apart.options(num_returns=2).remote(*arguments)
            else:
                ref = getattr(handle, method).remote(*arguments)
            found = await get_with_timeout(ref, limit_s)
        except RayTaskError as error:
            cause = error.cause
            raise (cause if isinstance(cause, VideoStrError) else RolloutError(str(cause))) from error
        except RayError as error:
            raise WorkerDied(first_line(error)) from error
        return replace(found, content=group) if isinstance(found, SampledRef) else found

    def _kill(self, handle: Any) -> None:
        ray.kill(handle)

    def _close_all(self, handles: Sequence[Any]) -> None:
        if handles:
            closing = [handle.close.remote() for handle in handles]
            ray.wait(closing, num_returns=len(closing), timeout=CLOSE_S)

    def _release(self, index: int) -> None:
        if self.placement is not None and index >= self.config.rollout.num_workers:
            self.placement.release(self._places.pop(index))
