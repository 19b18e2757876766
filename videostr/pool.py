"""All rollout engines as one port, supervised; without Ray, so that a plan simulates with the same code.

`EnginePool` sends each request to the engine with the fewest completions in flight. The in-flight groups of an engine that is
lost are resubmitted to another one (`videostr/supervisor.py`). Subclasses: `actors/pools.py` on Ray, `videostr/plan/workers.py`
in virtual time.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

from videostr.config.schema import Config
from videostr.errors import LearnerError, RolloutError
from videostr.groups import SampledGroup
from videostr.ports import SampleRequest
from videostr.supervisor import CallLost, Engine, EngineSupervisor
from videostr.timeline import Timeline
from videostr.types import Failure, FailureKind
from videostr.worker_state import Health

AHEAD = 2
"""Completions that an engine is given, in `max_num_seqs`. A group keeps its places until its last completion ends, so with less
some of the engine's sequences stand empty; with more, a lost engine costs more groups a second try."""
TRIES = 3
"""Times that a request may be late or lose its engine before it is given up as the likely cause."""


class EnginePool(EngineSupervisor):
    """All engines as one; implements `videostr.ports.RolloutPool`.

    `sample` takes a place on the engine with the fewest completions in flight and gives it back when the group is there. It
    waits while every engine has `AHEAD` times `max_num_seqs` completions, or while none is healthy and one may be again; it
    is unblocked by places given back and by engines that come to serve.
    """

    def __init__(self, config: Config, log_folder: str | Path, timeline: Timeline | None = None) -> None:
        """Start nothing yet; arguments as of `EngineSupervisor`."""
        super().__init__(config, log_folder, timeline)
        self.gathers_clips = False
        """Whether requests about one clip go to the engine that has it, if that leaves no sequence of another empty."""
        self._learner_error: LearnerError | None = None
        """Why no engine can get weights."""
        self._turn = asyncio.Lock()
        """Held by the request that is to get the next place: a place given back wakes it alone, not all that wait."""

    async def sample(self, request: SampleRequest) -> SampledGroup | Failure:
        """Sample one group; waits for a free place. One that is late, or loses its engine, three times is a `Failure`.

        Raises:
            RolloutError: no engine is left.
            LearnerError: the learner was lost, so that engines started meanwhile would wait for weights forever.
        """
        problem = ""
        for attempt in range(TRIES):
            engine = await self._take(request)
            try:
                sampled: SampledGroup | Failure = await self._call(
                    engine, "sample", request, limit=self.config.rollout.request_timeout_s
                )
                if attempt and not isinstance(sampled, Failure):
                    tokens = sum(completion.num_tokens for completion in sampled.completions)
                    self.failures["tokens_sampled_again"] += attempt * tokens
                return sampled
            except CallLost as error:
                problem = str(error)
                await self._check(engine)
            finally:
                engine.sequences -= request.n
                engine.clips -= Counter({request.prompt.clip.digest: request.n})  # drops what has none left
                await self._notify(engine)
        return Failure(
            kind=FailureKind.ENGINE,
            record_id=request.prompt.record_id,
            detail=f"{problem}; the last of {TRIES} tries",
        )

    async def wait_for_stale(self) -> None:
        """Return when an engine waits for weights."""
        async with self._changed:
            await self._changed.wait_for(self.has_stale)

    def has_stale(self) -> bool:
        """Return whether an engine waits for weights."""
        return Health.STALE in self.health()

    async def pause(self) -> list[Any]:
        """Return handles to send weights to, once there is one; these engines sample nothing until they have got weights.

        An engine that does not pause is replaced: found here, it costs no other engine its weights.

        Raises:
            RolloutError: no engine is left.
        """
        paused: list[Any] = []
        while not paused:
            async with self._changed:
                await self._changed.wait_for(lambda: self._up() or self._none_is_left())
            if not (up := self._up()):
                raise self._no_engine_error()
            for engine in up:
                engine.is_paused = True
            self._note_all()
            await asyncio.gather(*(self._pause(engine) for engine in up))
            paused = [engine.handle for engine in up if not engine.is_lost]
        return paused

    def size(self) -> int:
        """Return the number of engines in use, those that are being started included."""
        return sum(health is not Health.DRAINING for health in self.health())

    async def resize(self, count: int) -> None:
        """Add engines or take some out until `count` are in use; returns at once.

        New ones are STALE until they get weights. One that is taken out gets no new groups, and ends when it has sampled
        those it has. The last ones added are the first to go.
        """
        planned = self.config.rollout.num_workers
        while self.size() < count:
            free = [e.index for e in self._engines[:planned] if e.state.health is Health.DRAINING]
            index = free[0] if free else len(self._engines)
            self._in_background(self._bring_up(self._add(index)))
        for engine in reversed(self._engines):
            if self.size() > count and engine.state.health is not Health.DRAINING:
                engine.state.drain()
                self._draining.append(engine)
                self._in_background(self._end(engine))
        await self._notify()

    async def mark_current(self, handles: Sequence[Any]) -> None:
        """Note that these engines have the current weights."""
        self._learner_error = None
        for engine in self._with(handles):
            if not engine.is_lost:
                engine.is_paused = False
                engine.state.mark_current()
        await self._notify()

    async def fail_requests(self, cause: LearnerError) -> None:
        """Let `sample` raise this until engines have got weights again: there is no learner to send any."""
        self._learner_error = cause
        await self._notify()

    async def _pause(self, engine: Engine) -> None:
        try:
            await self._call(engine, "pause", limit=self.config.sync.timeout_s)
        except RolloutError as error:
            self._lose(engine, "hung", str(error))

    async def _take(self, request: SampleRequest) -> Engine:
        """Reserve the completions of a request on the least loaded healthy engine that has room."""
        clip, seats = request.prompt.clip.digest, self.config.rollout.max_num_seqs

        def order(engine: Engine) -> tuple[bool, bool, int]:
            """Return what makes an engine the first choice, if it is least."""
            return engine.sequences >= seats, engine.clips[clip] == 0, engine.sequences

        async with self._turn, self._changed:
            while True:
                if self._learner_error is not None:
                    raise self._learner_error
                if self._none_is_left():
                    raise self._no_engine_error()
                with_room = [
                    e
                    for e in self._engines
                    if e.sequences < AHEAD * seats and e.state.health is Health.HEALTHY
                ]
                if with_room:
                    engine = min(with_room, key=order if self.gathers_clips else attrgetter("sequences"))
                    engine.sequences += request.n
                    engine.clips[clip] += request.n
                    self._note(engine)
                    return engine
                await self._changed.wait()

    def _none_is_left(self) -> bool:
        return all(engine.state.health in {Health.FAILED, Health.DRAINING} for engine in self._engines)

    def _no_engine_error(self) -> RolloutError:
        return RolloutError(
            f"no rollout engine is left: each was started again {self.config.rollout.max_restarts} times "
            f"(rollout.max_restarts)",
            remedy=f"see {self.log_folder}/engine_*.log, then run the same command again",
        )
