"""What a simulated run calls in place of Ray actors: engines, reward workers, learner, weight transfer, in virtual time.

    engine     prefills a group once, then decodes up to `seats` sequences together, one token each in a + b n seconds
    rewards    reward.num_workers workers, one group each
    learner    the rows that the learner would pack and assign; the busiest rank counts
    transfer   a fixed time, in which engines keep what they sample

On a CPU engines, learner and reward workers share cores: when they want more than there are, all slow down alike.
"""

from __future__ import annotations

import asyncio
import heapq
import math
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from videostr.config.schema import Config
from videostr.errors import TransferError
from videostr.grpo.batch import assign_rows, plan_rows
from videostr.grpo.schedule import mini_batches
from videostr.plan.costs import Costs
from videostr.plan.lengths import Lengths
from videostr.pool import EnginePool
from videostr.ports import Sampled, SampleRequest
from videostr.supervisor import WorkerDied
from videostr.sync import EngineSync
from videostr.timeline import Timeline
from videostr.types import (
    Completion,
    FinishReason,
    GraphAbsence,
    LearnerBatch,
    Record,
    Rollout,
    Score,
    Trace,
    Update,
    VersionSpan,
)

EPSILON_S, EPSILON_TOKENS = 1e-9, 1e-6
"""Work so near its end has ended."""
THREAD_SHARE = 0.66
"""Of a core that each thread but the first of an engine or a rank keeps busy; chosen to meet a run with S = 1 on two cores."""
SAME = (Score(total=0.0, parts={}),) * 2
DIFFERENT = (SAME[0], Score(total=1.0, parts={}))
NO_TRACE = Trace(think="", graph=GraphAbsence.ABSENT, answer="", well_formed=False)
TOKENS, LOGPROBS = np.zeros(1 << 20, np.int32), np.zeros(1 << 20, np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What is simulated besides the config."""

    kv_seqs: int = 0
    """Sequences that the key-value cache of an engine has room for."""
    cores: float = math.inf
    """Cores that everything shares; infinite where every engine and rank has its own accelerator."""
    restart_s: float = 300.0
    """Start of an engine that replaces a dead one, seconds."""
    mtbf_s: float = math.inf
    """Mean time between failures of one engine, exponential, seconds."""
    deaths: tuple[tuple[float, int], ...] = ()
    """Deaths at fixed times: (seconds, index of the engine)."""


@dataclass(slots=True, kw_only=True, eq=False)
class World:
    """What all simulated workers know; `speed` and `wanted` are about the cores that they share."""

    config: Config
    costs: Costs
    lengths: Lengths
    machine: Machine
    rng: np.random.Generator
    timeline: Timeline
    speed: float = 1.0
    wanted: dict[Work, float] = field(default_factory=dict)

    def want(self, work: Work, cores: float) -> None:
        """Note how many cores `work` wants from now on; all slow down alike when there are fewer than wanted."""
        if self.machine.cores == math.inf:
            return
        self.wanted.pop(work, None)
        if cores:
            self.wanted[work] = cores
        speed = min(1.0, self.machine.cores / max(math.fsum(self.wanted.values()), 1e-9))
        if speed != self.speed:
            self.speed = speed
            for other in self.wanted:
                other.ring()


def cores_of(threads: int) -> float:
    """Return how many cores the threads of a process keep busy."""
    return 1 + THREAD_SHARE * (threads - 1)


class Work:
    """Work of one process, at the speed of the cores."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._alarm: asyncio.Future[None] | None = None
        self._is_woken = False

    async def do(self, seconds: float, cores: float) -> float:
        """Work so many seconds of full speed, unless woken; returns how many are left then."""
        loop, world = asyncio.get_running_loop(), self._world
        self._is_woken = False
        world.want(self, cores)
        try:
            while seconds > EPSILON_S and not self._is_woken:
                began, speed = loop.time(), world.speed
                self._alarm = loop.create_future()
                timer = loop.call_later(seconds / speed, self.ring)
                await self._alarm
                timer.cancel()
                seconds -= (loop.time() - began) * speed
        finally:
            world.want(self, 0.0)
        return seconds if seconds > EPSILON_S else 0.0

    async def rest(self) -> None:
        """Do nothing until woken."""
        self._alarm = asyncio.get_running_loop().create_future()
        await self._alarm

    def wake(self) -> None:
        """Interrupt what it does: there is something else to do."""
        self._is_woken = True
        self.ring()

    def ring(self) -> None:
        """Look at the clock, and at the speed, which may be another one."""
        if self._alarm is not None and not self._alarm.done():
            self._alarm.set_result(None)


# ------------------------------------------------------------------------------------- rollout engines and sync


@dataclass(slots=True, eq=False)
class _Group:
    """A group in an engine."""

    ended: asyncio.Future[None]
    unfinished: int
    version: int | None = None
    """Weights of its first token; None until its first completion gets a seat."""


class Engine:
    """One process of an engine: prefill first, then all its sequences at the same speed.

    `decoded` counts the tokens that a sequence would have that ran all the time, so that a sequence which begins at
    `decoded` = d ends at d + length: the one that ends next is the first of a heap, however the speed changes.
    """

    def __init__(self, world: World) -> None:
        self.version = 0
        self.is_dead = False
        self._world = world
        self._cores = cores_of(world.config.rollout.threads)
        self._seats = min(world.config.rollout.max_num_seqs, world.machine.kv_seqs)
        self._work = Work(world)
        self._is_paused = False
        self._prefill_s = 0.0
        self._decoded = 0.0
        self._waiting: deque[tuple[_Group, int]] = deque()
        self._running: list[tuple[float, int, _Group]] = []
        self._numbers = count()
        self._task = asyncio.create_task(self._run())

    async def sample(self, request: SampleRequest) -> Sampled:
        """Sample a group from its first token on."""
        world = self._world
        lengths = world.lengths.group(world.rng, request.n)
        group = _Group(ended=asyncio.get_running_loop().create_future(), unfinished=request.n)
        self._waiting.extend((group, length) for length in lengths)
        self._work.wake()
        await group.ended
        assert group.version is not None
        completions = tuple(
            Completion(
                text="",
                token_ids=TOKENS[:n],
                logprobs=LOGPROBS[:n],
                finish_reason=FinishReason.STOP if n < request.max_tokens else FinishReason.LENGTH,
                weight_versions=(VersionSpan(version=group.version, start=0, end=n),),
            )
            for n in lengths
        )
        return Sampled(prompt_token_ids=TOKENS[: world.costs.prompt_tokens], completions=completions)

    async def pause(self) -> None:
        """Freeze what is in flight."""
        self._is_paused = True
        self._work.wake()

    def resume(self, version: int) -> None:
        """Continue with other weights."""
        self._is_paused, self.version = False, version
        self._work.wake()

    def die(self) -> None:
        """Lose everything."""
        self.is_dead = True
        self._task.cancel()
        for group in {group for *_, group in self._running} | {group for group, _ in self._waiting}:
            if not group.ended.done():
                group.ended.set_exception(WorkerDied("killed"))

    async def _run(self) -> None:
        while True:
            while self._waiting and len(self._running) < self._seats and not self._is_paused:
                self._seat(*self._waiting.popleft())
            if self._is_paused or not self._running:
                await self._work.rest()
            elif self._prefill_s > 0:
                self._prefill_s = await self._work.do(self._prefill_s, self._cores)
            else:
                await self._decode()

    def _seat(self, group: _Group, length: int) -> None:
        if group.version is None:
            group.version = self.version
            self._prefill_s += self._world.costs.prefill_s
        heapq.heappush(self._running, (self._decoded + length, next(self._numbers), group))

    async def _decode(self) -> None:
        """Decode until the next sequence ends, or something changes."""
        costs = self._world.costs
        fixed, grows = costs.step_s, costs.sequence_s * len(self._running)
        # One core for the part of a step that does not grow with the sequences
        cores = (fixed + self._cores * grows) / (fixed + grows)
        tokens = self._running[0][0] - self._decoded
        left_s = await self._work.do(tokens * (fixed + grows), cores)
        self._decoded += tokens - left_s / (fixed + grows)
        while self._running and self._running[0][0] <= self._decoded + EPSILON_TOKENS:
            *_, group = heapq.heappop(self._running)
            group.unfinished -= 1
            if not group.unfinished:
                group.ended.set_result(None)


class SimulatedPool(EnginePool):
    """The pool of a run; deadlines of calls do not hold."""

    def __init__(self, world: World) -> None:
        super().__init__(world.config, "the simulation", world.timeline)
        self._world = world
        self._processes: dict[int, Engine] = {}
        """The newest of each index."""

    async def fail(self, rng: np.random.Generator) -> None:
        """Let engines die."""
        machine, loop = self._world.machine, asyncio.get_running_loop()
        for at, index in sorted(machine.deaths):
            await asyncio.sleep(at - loop.time())
            self._processes[index].die()
        while machine.mtbf_s < math.inf:
            await asyncio.sleep(rng.exponential(machine.mtbf_s / len(self._processes)))
            self._processes[int(rng.integers(len(self._processes)))].die()

    def _launch(self, index: int, log_file: Path) -> Engine:
        del log_file
        self._processes[index] = Engine(self._world)
        return self._processes[index]

    async def _ask(self, handle: Engine, method: str, *arguments: Any, limit_s: float) -> Any:
        del limit_s
        if handle.is_dead:
            raise WorkerDied("killed")
        if method == "start" and asyncio.get_running_loop().time() > 0:
            await asyncio.sleep(self._world.machine.restart_s)
        return await getattr(handle, method)(*arguments) if method in {"sample", "pause"} else None

    def _kill(self, handle: Engine) -> None:
        handle.die()

    def _close_all(self, handles: Sequence[Engine]) -> None:
        """Do nothing: they end when they are killed."""

    def _release(self, index: int) -> None:
        """Do nothing: no place is kept for them."""


class SimulatedSync(EngineSync):
    """The weight sync of a run, with a transfer of fixed length."""

    def __init__(self, world: World, learner: SimulatedLearner, pool: SimulatedPool) -> None:
        super().__init__(learner, pool, world.timeline)
        self._seconds = world.costs.sync_s

    async def _send(self, engines: Sequence[Engine], version: int) -> dict[str, float]:
        await asyncio.sleep(self._seconds)
        if any(engine.is_dead for engine in engines):
            raise TransferError("an engine died")
        for engine in engines:
            engine.resume(version)
        return {}


# -------------------------------------------------------------------------------------------- rewards and learner


class SimulatedRewards:
    """Workers that score one group each."""

    def __init__(self, world: World) -> None:
        self.failures: Counter[str] = Counter()
        self._world = world
        self._workers = asyncio.Semaphore(world.config.reward.num_workers)

    async def score(self, record: Record, completions: Sequence[Completion]) -> tuple[Rollout, ...]:
        """Score a group: all the same, or all different."""
        del record
        world = self._world
        async with self._workers:
            await Work(world).do(world.costs.reward_s, 1.0)
        scores = SAME if world.rng.random() < world.costs.zero_variance else DIFFERENT
        return tuple(
            Rollout(completion=completion, trace=NO_TRACE, score=scores[i % 2])
            for i, completion in enumerate(completions)
        )


class SimulatedLearner:
    """All ranks."""

    def __init__(self, world: World) -> None:
        self.version = 0
        self.updating = asyncio.Lock()
        self._world = world

    async def update(self, batch: LearnerBatch) -> Update:
        """Take the time of an update."""
        world, learner = self._world, self._world.config.learner
        lengths = [
            [len(rollout.completion.token_ids) for rollout in group.rollouts] for group in batch.groups
        ]
        async with self.updating:
            with world.timeline.during("learner", "update"):
                parts = mini_batches(tuple(lengths), world.config.train.updates_per_batch)
                seconds = sum(learn_seconds(world.config, world.costs, part) for part in parts)
                await Work(world).do(seconds, learner.num_ranks * cores_of(learner.threads))
            self.version += 1
        return Update(version=self.version, metrics={"loss": 0.0})


def learn_seconds(config: Config, costs: Costs, lengths: Sequence[Sequence[int]]) -> float:
    """Return the seconds of an update on groups of completion lengths [tokens], packed and assigned as the learner does.

    Under ZeRO-3 ranks compute their rows in lockstep; else the busiest rank counts.
    """
    learner, groups = config.learner, len(lengths)
    rows = plan_rows(
        [costs.prompt_tokens] * groups,
        lengths,
        max_row_tokens=learner.max_row_tokens,
        packing=learner.packing,
        patches=[costs.prompt_patches] * groups,
        cost=costs.row,
    )
    ranks = [[row.cost for row in rank] for rank in assign_rows(rows, learner.num_ranks)]
    if learner.zero_stage < 3:
        return costs.learn_fixed_s + max(math.fsum(rank) for rank in ranks)
    rounds = zip(*ranks, strict=True)
    return costs.learn_fixed_s + math.fsum(max(costs.learn_row_s, *together) for together in rounds)
