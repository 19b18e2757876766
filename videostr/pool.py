"""All rollout engines as one port, supervised; without Ray, so that a plan simulates with the same code.

`EnginePool` sends each request to the engine with the fewest completions in flight. An engine whose process ends, that answers
no health check, or that was left half-updated is killed; its in-flight groups are resubmitted to another engine, and a new
process takes its place after a growing pause. That one is STALE until it gets the current weights (`videostr/sync.py`), then
serves. A subclass says how processes are started, called and killed: `actors/pools.py` on Ray, `videostr/plan/workers.py` in
virtual time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from videostr.config import Config
from videostr.errors import LearnerError, RolloutError, VideoStrError
from videostr.ports import Sampled, SampleRequest
from videostr.supervision import Health, Standing
from videostr.tasks import together
from videostr.timeline import Timeline
from videostr.types import Failure, FailureKind

log = logging.getLogger("videostr.rollouts")
CLOSE_S = 30.0
"""Longest time for a worker to end its engine."""
AHEAD = 2
"""Completions that an engine is given, in `max_num_seqs`. A group keeps its places until its last completion ends, so with less
some of the engine's sequences stand empty; with more, a lost engine costs more groups a second try."""
TRIES = 3
"""Times that a request may be late or lose its engine before it is given up as the likely cause."""

LIMITS = {
    "start": "rollout.start_timeout_s",
    "sample": "rollout.request_timeout_s",
    "pause": "sync.timeout_s",
}
"""Keys of the deadlines of an engine's methods."""


class WorkerDied(Exception):
    """The process of an engine is gone."""


class CallLost(RolloutError):
    """The engine died under a call, or did not answer it in time; another one may."""


@dataclass
class _Engine:
    """One process of an engine; the next one is another object."""

    index: int
    handle: Any
    log_file: Path
    sequences: int = 0
    """Completions in flight."""
    is_lost: bool = False
    is_paused: bool = False
    """For a publication: it samples nothing until it has got weights."""
    check: asyncio.Task[None] | None = None
    """The health check under way."""


class EnginePool(ABC):
    """All engines as one; implements `videostr.ports.RolloutPool`.

    `sample` takes a place on the engine with the fewest completions in flight and gives it back when the group is there. It
    waits while every engine has `AHEAD` times `max_num_seqs` completions, or while none is healthy and one may be again; it
    is unblocked by places given back and by engines that come to serve.
    """

    def __init__(self, config: Config, log_folder: str | Path, timeline: Timeline | None = None) -> None:
        """Name the engines; `start` starts them.

        Args:
            config: the run's config.
            log_folder: gets one `engine_N.log` per engine.
            timeline: is told what every engine does: `sample`, `pause`, or the state of one that does not serve.
        """
        self.config = config
        self.log_folder = Path(log_folder)
        self._timeline = timeline or Timeline()
        self.failures: Counter[str] = Counter()
        """`engine_died`, `engine_hung`, `engine_half_updated`, `engine_did_not_start`: processes lost so far, by cause; and
        `request_late`, groups that were given up and asked of an engine again; `tokens_sampled_again`, the tokens of all such
        groups: at most so many were thrown away."""
        self._engines: list[_Engine] = []
        self._leaving: list[_Engine] = []
        """Taken out, not ended yet; another may have the index already."""
        self._standings: list[Standing] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._refusal: LearnerError | None = None
        self._changed = asyncio.Condition()

    @abstractmethod
    def _launch(self, index: int, log_file: Path) -> Any:
        """Begin to start the process of an engine; returns its handle, which can be called at once."""

    @abstractmethod
    async def _ask(self, handle: Any, method: str, *arguments: Any, limit_s: float) -> Any:
        """What a method of an engine returns: `start`, `sample`, `pause`, `ping` or `close`.

        Raises:
            TimeoutError: nothing after `limit_s`.
            WorkerDied: the process is gone.
            VideoStrError: the method raised.
        """

    @abstractmethod
    def _kill(self, handle: Any) -> None:
        """End a process; one that has ended is no fault."""

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
        self._standings = [Standing(budget=rollout.max_restarts) for _ in range(rollout.num_workers)]
        for index in range(rollout.num_workers):
            self._add(index)
        try:
            await together(
                self._call(engine, "start", limit=rollout.start_timeout_s) for engine in self._engines
            )
        except BaseException:
            self.close()
            raise
        for standing in self._standings:
            standing.started()
            standing.served()
        self._note()
        self._in_background(self._check_health())

    def health(self) -> list[Health]:
        """Of every engine, by index."""
        return [standing.health for standing in self._standings]

    def handles(self) -> list[Any]:
        """Actor handles of the engines that weights can be sent to."""
        return [engine.handle for engine in self._engines if self._standings[engine.index].is_up]

    async def sample(self, request: SampleRequest) -> Sampled | Failure:
        """One group; waits for a free place. One that is late, or under which its engine is lost, three times is a `Failure`.

        Raises:
            RolloutError: no engine is left.
            LearnerError: the learner was lost, so that engines started meanwhile wait for weights in vain.
        """
        problem = ""
        for attempt in range(TRIES):
            engine = await self._take(request.n)
            try:
                sampled: Sampled | Failure = await self._call(
                    engine, "sample", request, limit=self.config.rollout.request_timeout_s
                )
                if attempt and isinstance(sampled, Sampled):
                    tokens = sum(len(completion.token_ids) for completion in sampled.completions)
                    self.failures["tokens_sampled_again"] += attempt * tokens
                return sampled
            except CallLost as error:
                problem = str(error)
                await self._check(engine)
            finally:
                engine.sequences -= request.n
                await self._tell()
        return Failure(
            kind=FailureKind.ENGINE,
            record_id=request.prompt.record_id,
            detail=f"{problem}; the last of {TRIES} tries",
        )

    async def stale(self) -> None:
        """Returns when an engine waits for weights."""
        async with self._changed:
            await self._changed.wait_for(self.has_stale)

    def has_stale(self) -> bool:
        """Whether an engine waits for weights."""
        return Health.STALE in self.health()

    async def pause(self) -> list[Any]:
        """Handles to send weights to, once there is one; these engines sample nothing until they have got weights.

        One that does not pause is replaced: found here, it costs no other engine its weights.

        Raises:
            RolloutError: no engine is left.
        """
        paused: list[Any] = []
        while not paused:
            async with self._changed:
                await self._changed.wait_for(lambda: self.handles() or self._none_is_left())
            if not self.handles():
                raise self._nobody()
            up = [engine for engine in self._engines if self._standings[engine.index].is_up]
            for engine in up:
                engine.is_paused = True
            self._note()
            await asyncio.gather(*(self._pause(engine) for engine in up))
            paused = [engine.handle for engine in up if not engine.is_lost]
        return paused

    def size(self) -> int:
        """Engines in use, those that are being started included."""
        return sum(health is not Health.RETIRED for health in self.health())

    async def resize(self, count: int) -> None:
        """Add engines or take some out until `count` are in use; returns at once.

        New ones are STALE until weights are published to them. One that is taken out gets no new groups, and ends when it
        has sampled those it has. The last ones added are the first to go.
        """
        planned = range(self.config.rollout.num_workers)
        while self.size() < count:
            free = [index for index in planned if self._standings[index].health is Health.RETIRED]
            index = free[0] if free else len(self._standings)
            self._standings[index : index + 1] = [Standing(budget=self.config.rollout.max_restarts)]
            self._in_background(self._bring_up(self._add(index)))
        for engine in reversed(self._engines):
            if self.size() > count and self._standings[engine.index].health is not Health.RETIRED:
                self._standings[engine.index].retired()
                self._leaving.append(engine)
                self._in_background(self._end(engine))
        await self._tell()

    async def served(self, handles: Sequence[Any]) -> None:
        """These engines have the present weights."""
        self._refusal = None
        for engine in (*self._engines, *self._leaving):
            if engine.handle in handles and not engine.is_lost:
                engine.is_paused = False
                if engine in self._engines:
                    self._standings[engine.index].served()
        await self._tell()

    async def refuse(self, cause: LearnerError) -> None:
        """Nobody can bring weights to engines: let `sample` raise this until engines have been served again."""
        self._refusal = cause
        await self._tell()

    async def condemn(self, handles: Sequence[Any], cause: str) -> None:
        """These engines have no usable weights: kill them and start others."""
        for engine in (*self._engines, *self._leaving):
            if engine.handle in handles:
                self._lose(engine, "half_updated", cause)
        await self._tell()

    def close(self) -> None:
        """End all engines."""
        for task in self._tasks:
            task.cancel()
        engines = [*self._engines, *(engine for engine in self._leaving if engine not in self._engines)]
        self._engines, self._leaving = [], []
        self._close_all([engine.handle for engine in engines if not engine.is_lost])
        for engine in engines:
            self._kill(engine.handle)

    # ------------------------------------------------------------------------------------------ supervision

    def _add(self, index: int) -> _Engine:
        log_file = self.log_folder / f"engine_{index}.log"
        handle = self._launch(index, log_file)
        engine = _Engine(index=index, handle=handle, log_file=log_file)
        self._engines[index : index + 1] = [engine]
        return engine

    def _lose(self, engine: _Engine, cause: str, detail: str) -> None:
        """Kill an engine's process and have another started, if it is not lost already."""
        if engine.is_lost:
            return
        engine.is_lost = True
        self.failures[f"engine_{cause}"] += 1
        self._kill(engine.handle)
        if engine not in self._engines:  # it was taken out, and its place is in use again
            return
        pause_s = self._standings[engine.index].died()
        self._note_one(engine.index)
        after = "it is not started again" if pause_s is None else f"a new one starts in {pause_s:g} s"
        log.warning("engine %d lost (%s): %s; %s", engine.index, cause, detail, after)
        if pause_s is not None:
            self._in_background(self._replace(engine.index, pause_s))

    async def _replace(self, index: int, pause_s: float) -> None:
        await asyncio.sleep(pause_s)
        if self._standings[index].restarting():
            self._note_one(index)
            await self._bring_up(self._add(index))

    async def _bring_up(self, engine: _Engine) -> None:
        try:
            await self._call(engine, "start", limit=self.config.rollout.start_timeout_s)
        except CallLost:
            pass  # `_call` has seen to it
        except VideoStrError as error:
            self._lose(engine, "did_not_start", str(error))
        else:
            self._standings[engine.index].started()
            log.info("engine %d is up and waits for weights", engine.index)
        await self._tell()

    async def _end(self, engine: _Engine) -> None:
        """End an engine that was taken out, when it has nothing to sample, and no weights to get, any more."""
        async with self._changed:
            await self._changed.wait_for(
                lambda: (engine.sequences == 0 and not engine.is_paused) or engine.is_lost
            )
        if not engine.is_lost:
            engine.is_lost = True
            with contextlib.suppress(WorkerDied, VideoStrError, TimeoutError):
                await self._ask(engine.handle, "close", limit_s=CLOSE_S)
            self._kill(engine.handle)
        self._leaving.remove(engine)
        self._release(engine.index)
        log.info("engine %d was taken out", engine.index)

    async def _pause(self, engine: _Engine) -> None:
        try:
            await self._call(engine, "pause", limit=self.config.sync.timeout_s)
        except RolloutError as error:
            self._lose(engine, "hung", str(error))

    async def _check_health(self) -> None:
        """Ask every engine that is up, for ever, whether it is well."""
        while True:
            await asyncio.sleep(self.config.rollout.health_check_s)
            up = [engine for engine in self._engines if self._standings[engine.index].is_up]
            await asyncio.gather(*(self._check(engine) for engine in up))
            await self._tell()

    async def _check(self, engine: _Engine) -> None:
        """Ask an engine whether it is well; those who want to know at once share the answer."""
        if engine.check is None or engine.check.done():
            engine.check = self._in_background(self._ask_health(engine))
        await asyncio.shield(engine.check)

    async def _ask_health(self, engine: _Engine) -> None:
        """An engine that does not answer for the third time in a row is lost."""
        standing = self._standings[engine.index]
        try:
            await self._ask(engine.handle, "ping", limit_s=self.config.rollout.health_check_s)
        except TimeoutError:
            if not engine.is_lost and standing.missed():
                self._lose(engine, "hung", f"missed {standing.misses} health checks in a row")
        except (WorkerDied, VideoStrError) as error:
            self._lose(engine, "died", str(error))
        else:
            if not engine.is_lost:
                standing.answered()

    def _in_background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _note(self) -> None:
        for index in range(len(self._engines)):
            self._note_one(index)

    def _note_one(self, index: int) -> None:
        """Tell the timeline what an engine does now."""
        if index >= len(self._engines):  # the pool was closed under a call
            return
        engine, health = self._engines[index], self._standings[index].health
        doing: str | None
        if health not in {Health.HEALTHY, Health.SUSPECT, Health.RETIRED}:
            doing = health.name.lower()
        elif engine.is_paused:
            doing = "pause"
        else:
            doing = "sample" if engine.sequences else None
        self._timeline.note(f"rollout-engine-{index}", doing)

    async def _tell(self) -> None:
        """Something changed: for the timeline, and for those who wait for an engine."""
        self._note()
        async with self._changed:
            self._changed.notify_all()

    # ------------------------------------------------------------------------------------------------ calls

    async def _take(self, n: int) -> _Engine:
        """Reserve n completions on the least loaded healthy engine that has room."""
        async with self._changed:
            while True:
                if self._refusal is not None:
                    raise self._refusal
                if self._none_is_left():
                    raise self._nobody()
                healthy = [e for e in self._engines if self._standings[e.index].health is Health.HEALTHY]
                engine = min(healthy, key=lambda e: e.sequences, default=None)
                if engine is not None and engine.sequences < AHEAD * self.config.rollout.max_num_seqs:
                    engine.sequences += n
                    self._note_one(engine.index)
                    return engine
                await self._changed.wait()

    def _none_is_left(self) -> bool:
        return all(health in {Health.GONE, Health.RETIRED} for health in self.health())

    def _nobody(self) -> RolloutError:
        return RolloutError(
            f"no rollout engine is left: each was started again {self.config.rollout.max_restarts} times "
            f"(rollout.max_restarts); see {self.log_folder}/engine_*.log, then run the same command again"
        )

    async def _call(self, engine: _Engine, method: str, *arguments: Any, limit: float) -> Any:
        """What a method of an engine returns.

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
