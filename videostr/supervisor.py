"""The processes of rollout engines: started, watched, and replaced when they are lost. Without Ray.

An engine whose process ends, that answers no health check, or that was left half-updated is killed, and a new process takes its
place after a growing pause. That one is STALE until it gets the current weights (`videostr/sync.py`), then serves. A subclass
says how processes are started, called and killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from videostr.config.schema import Config
from videostr.errors import RolloutError, VideoStrError
from videostr.tasks import gather_or_cancel
from videostr.timeline import Timeline
from videostr.worker_state import Health, WorkerState

log = logging.getLogger("videostr.rollouts")
CLOSE_S = 30.0
"""Longest time for a worker to end its engine."""

LIMITS = {
    "start": "rollout.start_timeout_s",
    "sample": "rollout.request_timeout_s",
    "pause": "sync.timeout_s",
}
"""Keys of the deadlines of an engine's methods."""


class WorkerDied(Exception):
    """The process of an engine has ended."""


class CallLost(RolloutError):
    """The engine died under a call, or did not answer it in time; another one may."""


@dataclass(eq=False)
class Engine:
    """One process of an engine; the next one is another object with the same state."""

    index: int
    handle: Any
    log_file: Path
    state: WorkerState
    """Shared by all processes that take each other's place."""
    sequences: int = 0
    """Completions in flight."""
    clips: Counter[str] = field(default_factory=Counter)
    """The same by the digest of the clip that they are about."""
    is_lost: bool = False
    is_paused: bool = False
    """For a weight sync: it samples nothing until it has received weights."""
    check: asyncio.Task[None] | None = None
    """The health check under way."""

    @property
    def activity(self) -> str | None:
        """What the timeline shows."""
        if self.state.health not in {Health.HEALTHY, Health.SUSPECT, Health.DRAINING}:
            return self.state.health.name.lower()
        if self.is_paused:
            return "pause"
        return "sample" if self.sequences else None


class EngineSupervisor(ABC):
    """Keeps the processes of all engines running."""

    def __init__(self, config: Config, log_folder: str | Path, timeline: Timeline | None = None) -> None:
        """Start nothing yet.

        Args:
            config: the run's config.
            log_folder: gets one `engine_N.log` per engine.
            timeline: records what every engine does: `sample`, `pause`, or the state of one that does not serve.
        """
        self.config = config
        self.log_folder = Path(log_folder)
        self._timeline = timeline or Timeline()
        self.failures: Counter[str] = Counter()
        """`engine_died`, `engine_hung`, `engine_half_updated`, `engine_did_not_start`: processes lost so far, by cause; and
        `request_late`, groups that were given up and resubmitted to an engine; `tokens_sampled_again`, the tokens of all such
        groups: at most so many were thrown away."""
        self._engines: list[Engine] = []
        """The newest process of every index."""
        self._draining: list[Engine] = []
        """Taken out, not ended yet; a newer process may have the index already."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Condition()

    @abstractmethod
    def _launch(self, index: int, log_file: Path) -> Any:
        """Begin to start the process of an engine; return its handle, which can be called at once."""

    @abstractmethod
    async def _ask(self, handle: Any, method: str, *arguments: Any, limit_s: float) -> Any:
        """Return what a method of an engine returns: `start`, `sample`, `pause`, `ping` or `close`.

        Raises:
            TimeoutError: nothing after `limit_s`.
            WorkerDied: the process has ended.
            VideoStrError: the method raised.
        """

    @abstractmethod
    def _kill(self, handle: Any) -> None:
        """End a process, unless it has ended."""

    @abstractmethod
    def _close_all(self, handles: Sequence[Any]) -> None:
        """Let processes end by themselves, if they do in `CLOSE_S`; they are killed afterwards."""

    @abstractmethod
    def _release(self, index: int) -> None:
        """Give up the place of an engine that was taken out."""

    async def start(self) -> None:
        """Start all engines at once and wait for all of them; they then serve weight version 0.

        Raises:
            RolloutError: an engine failed or is not ready within `rollout.start_timeout_s`; names it and its log file.
            ModelError: the checkpoint cannot be served.
        """
        rollout = self.config.rollout
        for index in range(rollout.num_workers):
            self._add(index)
        try:
            await gather_or_cancel(
                self._call(engine, "start", limit=rollout.start_timeout_s) for engine in self._engines
            )
        except BaseException:
            self.close()
            raise
        for engine in self._engines:
            engine.state.mark_started()
            engine.state.mark_current()
        self._note_all()
        self._in_background(self._check_health())

    def health(self) -> list[Health]:
        """Return the health of every engine, by index."""
        return [engine.state.health for engine in self._engines]

    def handles(self) -> list[Any]:
        """Return actor handles of the engines that weights can be sent to."""
        return [engine.handle for engine in self._up()]

    async def discard(self, handles: Sequence[Any], cause: str) -> None:
        """Kill these engines, which have no usable weights, and start others."""
        for engine in self._with(handles):
            self._lose(engine, "half_updated", cause)
        await self._notify()

    def close(self) -> None:
        """End all engines."""
        for task in self._tasks:
            task.cancel()
        engines = self._all()
        self._engines, self._draining = [], []
        self._close_all([engine.handle for engine in engines if not engine.is_lost])
        for engine in engines:
            self._kill(engine.handle)

    # ------------------------------------------------------------------------------------------ supervision

    def _all(self) -> list[Engine]:
        """Return every process that has not ended on purpose."""
        return [*self._engines, *(engine for engine in self._draining if engine not in self._engines)]

    def _with(self, handles: Sequence[Any]) -> list[Engine]:
        return [engine for engine in self._all() if engine.handle in handles]

    def _up(self) -> list[Engine]:
        return [engine for engine in self._engines if engine.state.is_up]

    def _add(self, index: int, state: WorkerState | None = None) -> Engine:
        """Start the next process of an index; without a state it is a new engine."""
        log_file = self.log_folder / f"engine_{index}.log"
        handle = self._launch(index, log_file)
        state = state or WorkerState(budget=self.config.rollout.max_restarts)
        engine = Engine(index=index, handle=handle, log_file=log_file, state=state)
        self._engines[index : index + 1] = [engine]
        return engine

    def _lose(self, engine: Engine, cause: str, detail: str) -> None:
        """Kill an engine's process and have another started, if it is not lost already."""
        if engine.is_lost:
            return
        engine.is_lost = True
        self.failures[f"engine_{cause}"] += 1
        self._kill(engine.handle)
        if engine not in self._engines:  # it was taken out, and its index is in use again
            return
        pause_s = engine.state.mark_dead()
        self._note(engine)
        after = "it is not started again" if pause_s is None else f"a new one starts in {pause_s:g} s"
        log.warning("engine %d lost (%s): %s; %s", engine.index, cause, detail, after)
        if pause_s is not None:
            self._in_background(self._replace(engine, pause_s))

    async def _replace(self, engine: Engine, pause_s: float) -> None:
        await asyncio.sleep(pause_s)
        if engine.state.restart():
            self._note(engine)
            await self._bring_up(self._add(engine.index, engine.state))

    async def _bring_up(self, engine: Engine) -> None:
        try:
            await self._call(engine, "start", limit=self.config.rollout.start_timeout_s)
        except CallLost:
            pass  # `_call` has replaced it
        except VideoStrError as error:
            self._lose(engine, "did_not_start", str(error))
        else:
            engine.state.mark_started()
            log.info("engine %d is up and waits for weights", engine.index)
        await self._notify()

    async def _end(self, engine: Engine) -> None:
        """End an engine that was taken out, when it has nothing left to sample and no weights to receive."""
        async with self._changed:
            await self._changed.wait_for(
                lambda: (engine.sequences == 0 and not engine.is_paused) or engine.is_lost
            )
        if not engine.is_lost:
            engine.is_lost = True
            with contextlib.suppress(WorkerDied, VideoStrError, TimeoutError):
                await self._ask(engine.handle, "close", limit_s=CLOSE_S)
            self._kill(engine.handle)
        self._draining.remove(engine)
        self._release(engine.index)
        log.info("engine %d was taken out", engine.index)

    async def _check_health(self) -> None:
        """Check every engine that is up, forever."""
        while True:
            await asyncio.sleep(self.config.rollout.health_check_s)
            await asyncio.gather(*(self._check(engine) for engine in self._up()))
            await self._notify()

    async def _check(self, engine: Engine) -> None:
        """Check an engine's health; callers at the same time share one check."""
        if engine.check is None or engine.check.done():
            engine.check = self._in_background(self._ask_health(engine))
        await asyncio.shield(engine.check)

    async def _ask_health(self, engine: Engine) -> None:
        """Lose an engine that does not answer for the third time in a row."""
        try:
            await self._ask(engine.handle, "ping", limit_s=self.config.rollout.health_check_s)
        except TimeoutError:
            if not engine.is_lost and engine.state.mark_missed():
                self._lose(engine, "hung", f"missed {engine.state.misses} health checks in a row")
        except (WorkerDied, VideoStrError) as error:
            self._lose(engine, "died", str(error))
        else:
            if not engine.is_lost:
                engine.state.mark_answered()

    def _in_background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _note(self, engine: Engine) -> None:
        """Record on the timeline what an engine does now."""
        self._timeline.note(f"rollout-engine-{engine.index}", engine.activity)

    def _note_all(self) -> None:
        for engine in self._engines:
            self._note(engine)

    async def _notify(self, engine: Engine | None = None) -> None:
        """Record what one engine does now, or all, and wake whoever waits for an engine."""
        if engine is None:
            self._note_all()
        elif engine in self._engines:
            self._note(engine)
        async with self._changed:
            self._changed.notify_all()

    async def _call(self, engine: Engine, method: str, *arguments: Any, limit: float) -> Any:
        """Return what a method of an engine returns.

        Raises:
            CallLost: it died, or did not answer in time; it is being replaced.
            RolloutError: the method raised.
        """
        try:
            return await self._ask(engine.handle, method, *arguments, limit_s=limit)
        except TimeoutError:
            detail = (
                f"engine {engine.index} did not finish `{method}` within {limit:g} s; see {engine.log_file}, or raise "
                f"{LIMITS[method]}"
            )
            if method == "start":
                self._lose(engine, "did_not_start", detail)
            elif method == "sample":
                self.failures["request_late"] += 1
            raise CallLost(detail) from None
        except WorkerDied as error:
            detail = f"engine {engine.index} died in `{method}`; see {engine.log_file}"
            self._lose(engine, "died", f"{detail}: {error}")
            raise CallLost(detail) from error
        except VideoStrError as error:
            raise type(error)(
                f"engine {engine.index} failed in `{method}`: {error}; see {engine.log_file}"
            ) from error
