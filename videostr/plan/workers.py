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
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from videostr.config.schema import Config
from videostr.errors import RolloutError, TransferError
from videostr.groups import CompletionFacts, LearnerBatch, SampledGroup, SampledRef
from videostr.grpo.batch import assign_rows, plan_rows
from videostr.grpo.schedule import mini_batches
from videostr.plan.clock import Work
from videostr.plan.costs import Costs
from videostr.plan.workload import Workload
from videostr.pool import EnginePool
from videostr.ports import SampleRequest
from videostr.supervisor import WorkerDied
from videostr.sync import EngineSync
from videostr.timeline import Timeline
from videostr.types import Failure, FinishReason, Record, Score, Update, VersionSpan

EPSILON_TOKENS = 1e-6
"""A sequence so near its end has ended."""
THREAD_SHARE = 0.4
"""Of a core that each thread but the first of an engine or a rank keeps busy. The second of two had 0.42 (engine) and 0.53 (rank)
of the first's processor time (tabletop_cpu.yaml, OMP_WAIT_POLICY=passive, 2026-11-30), and the first waits at times."""
SAME = (Score(total=0.0, parts={}),) * 2
DIFFERENT = (SAME[0], Score(total=1.0, parts={}))


@dataclass(slots=True, kw_only=True, eq=False)
class World:
    """What is simulated, once, and what all simulated workers know."""

    config: Config
    costs: Costs
    work: Workload
    seats: int
    """Sequences that the key-value cache of an engine has room for."""
    cores: float = math.inf
    """CPU cores that everything shares; infinite where every engine and rank has an accelerator."""
    restart_s: float = 300.0
    """Start of an engine that replaces a dead one, seconds."""
    deaths: Iterable[tuple[float, int]] = ()
    """(seconds since the start, index) of each engine that dies, in order."""
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    """Of lengths and of zero variance."""
    timeline: Timeline = field(init=False)


def random_deaths(mtbf_s: float, engines: int, seed: int = 1) -> Iterator[tuple[float, int]]:
    """Yield (seconds since the start, index) of engines that die, each after `mtbf_s` seconds on average, exponentially."""
    rng, now = np.random.default_rng(seed), 0.0
    while True:
        now += rng.exponential(mtbf_s / engines)
        yield now, int(rng.integers(engines))


def cores_of(threads: int) -> float:
    """Return how many cores the threads of a process keep busy."""
    return 1 + THREAD_SHARE * (threads - 1)


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
    `decoded` = d ends at d + length: the one that ends next is the first of a heap.
    """

    def __init__(self, world: World) -> None:
        self.version = 0
        self.is_dead = False
        self.is_paused = False
        self._world = world
        self._prefill_s = 0.0
        self._decoded = 0.0
        self._waiting: deque[tuple[_Group, int]] = deque()
        self._running: list[tuple[float, int, _Group]] = []
        self._numbers = count()
        self._work = Work(math.inf)
        self._task = asyncio.create_task(self._run())

    async def sample(self, request: SampleRequest) -> SampledRef:
        """Sample a group from its first token on."""
        lengths = self._world.work.draw(self._world.rng, request.n)
        group = _Group(ended=asyncio.get_running_loop().create_future(), unfinished=request.n)
        self._waiting.extend((group, length) for length in lengths)
        self.wake()
        await group.ended
        assert group.version is not None
        completions = tuple(
            CompletionFacts(
                num_tokens=n,
                finish_reason=FinishReason.STOP if n < request.max_tokens else FinishReason.LENGTH,
                weight_versions=(VersionSpan(version=group.version, start=0, end=n),),
            )
            for n in lengths
        )
        prompt = self._world.work.prompt_tokens
        return SampledRef(num_prompt_tokens=prompt, completions=completions, content=None)

    def wake(self) -> None:
        """Interrupt what it does: there is something else to do."""
        self._work.stop()

    def die(self) -> None:
        """Lose everything."""
        self.is_dead = True
        self._task.cancel()
        for group in {group for *_, group in self._running} | {group for group, _ in self._waiting}:
            if not group.ended.done():
                group.ended.set_exception(WorkerDied("killed"))

    async def _run(self) -> None:
        """Fill the seats, then prefill and decode until the next sequence ends or something changes, again and again."""
        costs, rollout = self._world.costs, self._world.config.rollout
        seats, cores = min(self._world.seats, rollout.max_num_seqs), cores_of(rollout.threads)
        while True:
            while self._waiting and len(self._running) < seats and not self.is_paused:
                self._seat(*self._waiting.popleft())
            if self.is_paused or not self._running:
                self._work = Work(math.inf, cores=0.0)
                await self._work.done()
                continue
            step_s = costs.step_s + costs.sequence_s * len(self._running)
            decode_s = (self._running[0][0] - self._decoded) * step_s
            self._work = Work(self._prefill_s + decode_s, cores)
            left_s = await self._work.done()
            self._prefill_s = max(left_s - decode_s, 0.0)
            self._decoded += (decode_s - min(left_s, decode_s)) / step_s
            while self._running and self._running[0][0] <= self._decoded + EPSILON_TOKENS:
                *_, group = heapq.heappop(self._running)
                group.unfinished -= 1
                if not group.unfinished:
                    group.ended.set_result(None)

    def _seat(self, group: _Group, length: int) -> None:
        if group.version is None:
            group.version = self.version
            self._prefill_s += self._world.costs.prefill_s
        heapq.heappush(self._running, (self._decoded + length, next(self._numbers), group))


class EnginesLost(Exception):
    """No engine is left. Not one of the errors that a run ends by after it has saved what it learned."""


class SimulatedPool(EnginePool):
    """The pool of a run; deadlines of calls do not hold."""

    def __init__(self, world: World) -> None:
        super().__init__(world.config, "the simulation", world.timeline)
        self._world = world
        self._processes: dict[int, Engine] = {}
        """The newest of each index."""

    async def sample(self, request: SampleRequest) -> SampledGroup | Failure:
        """Sample one group; raises `EnginesLost` when no engine is left."""
        try:
            return await super().sample(request)
        except RolloutError as error:
            raise EnginesLost from error

    async def fail(self) -> None:
        """Let engines die."""
        for at, index in self._world.deaths:
            await asyncio.sleep(at - asyncio.get_running_loop().time())
            self._processes[index].die()

    def _launch(self, index: int, log_file: Path) -> Engine:
        del log_file
        self._processes[index] = Engine(self._world)
        return self._processes[index]

    async def _ask(self, handle: Engine, method: str, *arguments: Any, limit_s: float) -> Any:
        del limit_s
        if handle.is_dead:
            raise WorkerDied("killed")
        if method == "sample":
            return await handle.sample(*arguments)
        if method == "pause":
            handle.is_paused = True
            handle.wake()
        elif method == "start" and asyncio.get_running_loop().time() > 0:
            await asyncio.sleep(self._world.restart_s)
        return None

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

    async def sync(self, version: int) -> dict[str, float]:
        """Send weights to every engine; raises `EnginesLost` when none is left, or they die in three transfers in a row."""
        try:
            return await super().sync(version)
        except (RolloutError, TransferError) as error:
            raise EnginesLost from error

    async def _send(self, engines: Sequence[Engine], version: int) -> dict[str, float]:
        await asyncio.sleep(self._seconds)
        if any(engine.is_dead for engine in engines):
            raise TransferError("an engine died")
        for engine in engines:
            engine.is_paused, engine.version = False, version
            engine.wake()
        return {"sync/bytes": 1.0, "sync/seconds": self._seconds}


# -------------------------------------------------------------------------------------------- rewards and learner


class SimulatedRewards:
    """Workers that score one group each."""

    def __init__(self, world: World) -> None:
        self.failures: Counter[str] = Counter()
        self._world = world
        self._workers = asyncio.Semaphore(world.config.reward.num_workers)

    async def score(self, record: Record, sampled: SampledGroup) -> tuple[Score, ...]:
        """Score a group: all the same, or all different."""
        del record
        world = self._world
        async with self._workers:
            await Work(world.costs.reward_s).done()
        scores = SAME if world.rng.random() < world.work.zero_variance else DIFFERENT
        return tuple(scores[i % 2] for i in range(len(sampled.completions)))


class SimulatedLearner:
    """All ranks."""

    def __init__(self, world: World) -> None:
        self.version = 0
        self.updating = asyncio.Lock()
        self._world = world

    async def update(self, batch: LearnerBatch) -> Update:
        """Take the time of an update."""
        world, learner = self._world, self._world.config.learner
        lengths = tuple([each.num_tokens for each in group.sampled.completions] for group in batch.groups)
        parts = mini_batches(lengths, world.config.train.updates_per_batch)
        seconds = sum(learn_seconds(world.config, world.costs, world.work.prompt_tokens, p) for p in parts)
        async with self.updating:
            with world.timeline.during("learner", "update"):
                await Work(seconds, learner.num_ranks * cores_of(learner.threads)).done()
            self.version += 1
        return Update(version=self.version, metrics={"loss": 0.0})


def learn_seconds(
    config: Config, costs: Costs, prompt_tokens: int, lengths: Sequence[Sequence[int]]
) -> float:
    """Return the seconds of an update on groups of completion lengths [tokens], packed and assigned as the learner does.

    Under ZeRO-3 ranks compute their rows in lockstep; else the busiest rank counts.
    """
    learner = config.learner
    rows = plan_rows(
        [prompt_tokens] * len(lengths),
        lengths,
        max_row_tokens=learner.max_row_tokens,
        packing=learner.packing,
        patches=[costs.prompt_patches] * len(lengths),
        cost=costs.row,
    )
    ranks = [
        [row.cost for row in rank]
        for rank in assign_rows(rows, learner.num_ranks // learner.sequence_parallel)
    ]
    if learner.zero_stage < 3:
        return costs.learn_fixed_s + max(math.fsum(rank) for rank in ranks)
    rounds = zip(*ranks, strict=True)
    return costs.learn_fixed_s + math.fsum(max(costs.learn_row_s, *together) for together in rounds)
