"""All learner ranks as one: `RayLearner`, the driver's side. It starts, calls and ends them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayError, RayTaskError

from actors.calls import get_with_timeout
from actors.learner.snapshot import Written
from actors.learner.worker import LearnerWorker
from actors.names import actor_name
from actors.placement import openmp_options
from actors.sampling import for_ranks
from videostr.checkpoint import Files
from videostr.config.schema import Config
from videostr.errors import CheckpointError, LearnerError, VideoStrError, first_line
from videostr.groups import LearnerBatch
from videostr.tasks import gather_or_cancel
from videostr.timeline import Timeline
from videostr.types import Failure, Update

log = logging.getLogger("videostr.learner")
BACKGROUND = "background"
"""Ray's concurrency group of what a rank does while it takes other calls."""


class RayLearner:
    """All ranks as one; implements `videostr.ports.Learner`.

    Calls every rank at once and waits for all of them, at most `learner.timeout_s`. A rank that fails leaves the others
    waiting in a collective: after a `LearnerError` none of them can be used; `restart` starts new ones.
    """

    def __init__(
        self,
        config: Config,
        frame_store: str | Path,
        options: Sequence[Mapping[str, Any]] = (),
        worker_class: type[LearnerWorker] = LearnerWorker,
        timeline: Timeline | None = None,
    ) -> None:
        """Start nothing yet; `restart` does.

        Args:
            config: the run's config.
            frame_store: folder that all ranks read frames from.
            options: Ray actor options of each rank, e.g. its place in a placement group.
            worker_class: what to run as a rank.
            timeline: records which method every rank runs.
        """
        self.config = config
        self.frame_store = str(frame_store)
        self.options = options
        self.worker_class = worker_class
        self.timeout_s = config.learner.timeout_s
        self._timeline = timeline or Timeline()
        self.workers: tuple[Any, ...] = ()
        """Actor handles, by rank."""
        self.version = 0
        """Version of the weights that the ranks hold."""
        self.updating = asyncio.Lock()
        """Held while the weights change, and while ranks start."""

    async def restart(self) -> None:
        """Start all ranks with the initial weights; those that ran are ended first."""
        async with self.updating:
            self.close()
            self.workers = self._launch()
            try:
                (address, port), *_ = await self.call("rendezvous")
                await self.call("connect", address, port, len(self.workers))
                await self.call("start")
            except BaseException:
                self.close()
                raise
            self.version = 0

    def _launch(self) -> tuple[Any, ...]:
        c = self.config.learner
        # All other methods share one thread, which is never the process's main one
        remote = ray.remote(concurrency_groups={BACKGROUND: 1})(self.worker_class)  # type: ignore[call-overload]  # not in Ray's annotations
        return tuple(
            remote.options(
                name=actor_name("learner-rank", rank),
                num_cpus=c.num_cpus,
                num_gpus=c.num_gpus,
                **openmp_options(c.num_gpus),
                **(self.options[rank] if self.options else {}),
            ).remote(rank, self.config, self.frame_store)
            for rank in range(c.num_ranks)
        )

    async def update(self, batch: LearnerBatch) -> Update:
        """Learn from the batch, which is put into the object store once; ranks fetch its tokens from where they are."""
        async with self.updating:
            updates: list[Update] = await self.call("update", ray.put(for_ranks(batch)))
            self.version = updates[0].version
        if skipped := updates[0].metrics.get("nonfinite_steps"):
            log.warning("%d optimizer steps skipped: their gradient was NaN or infinite", skipped)
        return updates[0]

    async def logprobs(self, batch: LearnerBatch) -> list[tuple[np.ndarray, ...]]:
        """Return the learner's log-probabilities, per group and completion [T] float32."""
        parts = await self.call("logprobs", ray.put(for_ranks(batch)))
        found = {(group, completion): values for part in parts for group, completion, values in part}
        empty = np.empty(0, dtype=np.float32)
        return [
            tuple(
                found.get((index, completion), empty) for completion in range(len(group.sampled.completions))
            )
            for index, group in enumerate(batch.groups)
        ]

    async def predictions(
        self, batch: LearnerBatch
    ) -> tuple[dict[tuple[str, int], tuple[np.ndarray, np.ndarray]], tuple[Failure, ...]]:
        """Return what the policy makes of given completions; see `videostr.ports.Learner`."""
        async with self.updating:  # ranks must meet their collectives in one order
            parts = await self.call("predictions", ray.put(for_ranks(batch)))
        found = {(record, index): (a, b) for rows, _ in parts for record, index, a, b in rows}
        return found, parts[0][1]

    async def checksums(self) -> dict[str, str]:
        """Return the SHA-256 of every parameter's bytes, by Hugging Face name."""
        sums: list[dict[str, str]] = await self.call("checksums")
        return sums[0]

    async def snapshot(self) -> None:
        """Copy what a checkpoint holds to the host memory of the ranks."""
        async with self.updating:  # a weight sync meanwhile would only wait for it
            await self.call("snapshot")

    async def write(self, folder: Path) -> Files:
        """Write the copy while the ranks continue; see `videostr.ports.Learner`.

        Raises:
            CheckpointError: it could not be written; the ranks continue.
        """
        parts: list[Written] = await self.call("write", str(folder), in_background=True)
        if problems := list(dict.fromkeys(problem for part in parts for problem in part.problems)):
            raise CheckpointError("; ".join(problems))
        return {name: file for part in parts for name, file in part.files.items()}

    async def load(self, folder: Path) -> int:
        """Restore what `write` wrote; returns the weight version."""
        async with self.updating:
            versions: list[int] = await self.call("load", str(folder))
            self.version = versions[0]
        return versions[0]

    def close(self) -> None:
        """End all ranks."""
        workers, self.workers = self.workers, ()
        for worker in workers:
            ray.kill(worker)

    async def call(
        self,
        method: str,
        *arguments: Any,
        timeout_s: float | None = None,
        limit: str = "learner.timeout_s",
        in_background: bool = False,
    ) -> list[Any]:
        """Run a method on every rank; return the results by rank.

        Args:
            method: of `LearnerWorker`.
            arguments: the same for every rank.
            timeout_s: deadline; None is `learner.timeout_s`.
            limit: what the deadline is called in the config.
            in_background: whether the ranks take other calls meanwhile.

        Raises:
            LearnerError: a rank died, raised, or did not answer in time, or none runs. A `VideoStrError` keeps its type.
        """
        if not self.workers:
            raise LearnerError(f"no learner rank runs to do `{method}`: they ended, or their start failed")
        timeout_s = self.timeout_s if timeout_s is None else timeout_s
        late: list[int] = []

        async def ask(rank: int) -> Any:
            try:
                if in_background:
                    return await self._ask(rank, method, arguments, timeout_s, BACKGROUND)
                with self._timeline.during(f"learner-rank-{rank}", method):
                    return await self._ask(rank, method, arguments, timeout_s)
            except TimeoutError:
                late.append(rank)

        results = await gather_or_cancel(ask(rank) for rank in range(len(self.workers)))
        if late:
            raise LearnerError(
                f"learner ranks {sorted(late)} did not finish `{method}` within {limit} = {timeout_s:g} s",
                remedy="see their logs, or raise the limit if the step is simply long",
            )
        return results

    async def _ask(
        self, rank: int, method: str, arguments: Sequence[Any], timeout_s: float, group: str | None = None
    ) -> Any:
        remote = getattr(self.workers[rank], method)
        if group is not None:
            remote = remote.options(concurrency_group=group)
        try:
            return await get_with_timeout(remote.remote(*arguments), timeout_s)
        except RayTaskError as error:
            failed, cause = f"learner rank {rank} failed in `{method}`", error.cause
            if isinstance(cause, VideoStrError):
                raise type(cause)(f"{failed}: {cause.message}", remedy=cause.remedy) from error
            raise LearnerError(f"{failed}: {cause!r}") from error
        except RayError as error:
            raise LearnerError(f"learner rank {rank} died in `{method}`: {first_line(error)}") from error
