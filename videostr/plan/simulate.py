"""The training loop as a discrete-event simulation: a layout, its costs and completion lengths in, an `Outcome` out.

It repeats, step for step, what videostr/loop.py, videostr/window.py, actors/pools.py and actors/sync.py do, with times
in place of work:

    window     the batch of step b begins when b - S steps are over
    pool       a group goes to the serving engine with the fewest completions in flight, or waits for a place
    engine     prefills a group once, then decodes up to `seats` sequences together, one token each in a + b n seconds
    rewards    W workers, one group each
    learner    one update at a time; groups whose completions all earn the same are left out
    sync       engines pause, keep what they sample, and go on with the new version
    failures   an engine's groups are sampled again elsewhere; a new one starts, waits for weights, serves

On a CPU engines, learner and reward workers share cores: when they want more than there are, all slow down alike.
"""

from __future__ import annotations

import heapq
import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import simpy

from videostr.errors import ConfigError
from videostr.grpo.schedule import mini_batches
from videostr.plan.lengths import Lengths

T = TypeVar("T")
Work = Generator[simpy.Event, Any, T]
EPSILON = 1e-6
"""Tokens; a sequence so near its end has ended."""
AHEAD = 2
"""As in actors/pools.py, which this package may not import."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What is simulated: how many of what, and how the loop is set."""

    engines: int
    """R, rollout engines."""
    ranks: int
    """Learner ranks."""
    reward_workers: int
    """W."""
    prompts: int
    """P, groups of a sampled batch."""
    group_size: int
    """G, completions of a group."""
    staleness: int
    """S, updates that may lie between sampling and learning."""
    max_num_seqs: int
    """Sequences that the scheduler of an engine decodes together."""
    kv_seqs: int
    """Sequences that the key-value cache of an engine has room for."""
    row_tokens: int
    """Longest packed row of the learner, tokens."""
    refill_limit: float = 0.0
    """Most groups sampled for a step where those without variance are replaced, in P; 0 where they are not."""
    cores: float = 0.0
    """Cores that everything shares; 0 where every engine and rank has its own."""
    engine_threads: int = 1
    """Threads of an engine, for what shares cores."""
    learner_threads: int = 1
    """Threads of a rank, for what shares cores."""
    updates_per_batch: int = 1
    """K, optimizer steps per sampled batch."""

    def __post_init__(self) -> None:
        """Raises ConfigError for counts that cannot be run."""
        for key in ("engines", "ranks", "reward_workers", "prompts", "group_size", "max_num_seqs"):
            if getattr(self, key) < 1:
                raise ConfigError(f"layout: {key} = {getattr(self, key)}: must be at least 1")
        if self.kv_seqs < 1:
            raise ConfigError(
                f"layout: kv_seqs = {self.kv_seqs}: an engine has no memory for one sequence; raise "
                "rollout.tensor_parallel_size"
            )

    @property
    def seats(self) -> int:
        """Sequences decoded together in an engine."""
        return min(self.max_num_seqs, self.kv_seqs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Seconds that things take alone on what they run on."""

    step_s: float
    """a: part of a decode step that does not grow with the sequences, at most one core of a CPU."""
    sequence_s: float
    """b: what each sequence adds to a decode step. n sequences make n / (a + b n) tokens a second."""
    prefill_s: float
    """One prompt, vision included, in an engine."""
    reward_s: float
    """One group, in a reward worker."""
    learn_fixed_s: float
    """An update without its rows."""
    learn_prompt_s: float
    """One copy of a prompt in a row, forward and backward."""
    learn_token_s: float
    """One completion token in a row, forward and backward."""
    learn_row_s: float
    """Least time of a row: the collectives that its computation hides."""
    sync_s: float
    """One weight publication."""
    prompt_tokens: float
    """Length of a prompt."""
    flat_fraction: float = 0.0
    """Share of groups whose completions all earn the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failures:
    """Engines that die."""

    restart_s: float
    """From death until the new engine waits for weights."""
    mtbf_s: float = math.inf
    """Mean time between failures of one engine; exponential."""
    at: tuple[tuple[float, int], ...] = ()
    """Deaths at fixed times: (seconds, index of the engine)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What the measured steps took; those before the window is full and after it empties are left out."""

    steps: int
    step_s: float
    """Mean of `time/step`, seconds."""
    step_p90_s: float
    rollout_s: float
    """Median of `time/rollout`, seconds."""
    reward_s: float
    """Median of `time/reward`, seconds."""
    learn_s: float
    """Median of `time/learn`, seconds; steps without an update left out."""
    sync_s: float
    """Median of `time/sync`, seconds; steps without an update left out."""
    idle_rollout: float
    """Share of the engines' time in which they neither sample nor take weights."""
    idle_learner: float
    """Share of the learner's time in which it neither updates nor sends weights."""
    idle_reward: float
    """Share of the reward workers' time in which they do not score."""
    staleness_mean: float
    """Updates between the oldest weights that sampled a group and the update that learned from it."""
    staleness_max: int
    tokens_again: float
    """Tokens a step that engines took with them when they died."""
    tokens_per_s: float
    """Completion tokens learned from, or found flat, per second."""
    samples_per_s: float
    """Completions likewise."""

    @property
    def steps_per_hour(self) -> float:
        """Steps an hour, without checkpoints and evaluation."""
        return 3600 / self.step_s


def simulate(
    layout: Layout,
    costs: Costs,
    lengths: Lengths,
    *,
    steps: int = 20,
    seed: int = 0,
    failures: Failures | None = None,
) -> Outcome:
    """Run the loop for `steps` steps, after S + 1 that fill the window and before S that empty it."""
    loop = _Loop(layout, costs, lengths, steps, seed)
    if failures is not None:
        loop.lose_engines(failures)
    return loop.run()


def learn_seconds(groups: Sequence[Sequence[int]], layout: Layout, costs: Costs) -> float:
    """Seconds of an update on groups of completion lengths, by the rank that has the most to do.

    Groups longer than a row are split as in videostr/grpo/batch.py, their prompt repeated; pieces go, dearest first,
    to the rank with the least work, as rows do in `deal`.
    """
    pieces: list[float] = []
    tokens = 0.0
    for group in groups:
        row = costs.prompt_tokens
        work = costs.learn_prompt_s
        for length in group:
            if row + length > layout.row_tokens and row > costs.prompt_tokens:
                pieces.append(work)
                tokens += row
                row, work = costs.prompt_tokens, costs.learn_prompt_s
            row += length
            work += costs.learn_token_s * length
        pieces.append(work)
        tokens += row
    ranks = [0.0] * layout.ranks
    for work in sorted(pieces, reverse=True):
        heapq.heapreplace(ranks, ranks[0] + work)
    rows = math.ceil(min(math.ceil(tokens / layout.row_tokens), len(pieces)) / layout.ranks)
    return costs.learn_fixed_s + max(max(ranks), rows * costs.learn_row_s)


# ------------------------------------------------------------------------------------------------ what takes time


class _Cores:
    """Cores that all who compute share, in proportion to what they want."""

    def __init__(self, total: float) -> None:
        self.total = total
        self.speed = 1.0
        self._wanted: dict[_Clocked, float] = {}

    def want(self, user: _Clocked, cores: float) -> None:
        """`user`, which has settled, wants so many from now on."""
        if not self.total or self._wanted.get(user, 0.0) == cores:
            return
        if cores:
            self._wanted[user] = cores
        else:
            del self._wanted[user]
        speed = min(1.0, self.total / max(sum(self._wanted.values()), 1e-9))
        if speed == self.speed:
            return
        others = [other for other in self._wanted if other is not user]
        for other in others:
            other.settle()
        self.speed = speed
        for other in others:
            other.schedule()


class _Clocked(ABC):
    """Work that goes on at the speed of the cores, until a timer that is set anew whenever the speed changes."""

    def __init__(self, env: simpy.Environment, cores: _Cores) -> None:
        self.env = env
        self.cores = cores
        self._settled_at = env.now
        self._timers = 0

    def settle(self) -> None:
        """Account for the time since the last call."""
        elapsed = self.env.now - self._settled_at
        self._settled_at = self.env.now
        if elapsed > 0:
            self.work(elapsed, elapsed * self.cores.speed)

    def schedule(self) -> None:
        """Set the timer to the end of what is being done now."""
        self._timers += 1
        if (left := self.left()) is None:
            return
        number = self._timers
        timer = self.env.timeout(max(left, 0.0) / self.cores.speed)
        assert timer.callbacks is not None
        timer.callbacks.append(lambda _: self._ring(number))

    def _ring(self, number: int) -> None:
        if number == self._timers:
            self.settle()
            self.end()

    @abstractmethod
    def work(self, elapsed: float, done: float) -> None:
        """`elapsed` seconds went by, in which `done` seconds of full speed were done."""

    @abstractmethod
    def left(self) -> float | None:
        """Seconds of full speed until something ends; None where nothing goes on."""

    @abstractmethod
    def end(self) -> None:
        """What goes on has ended."""


class _Computation(_Clocked):
    """One piece of work of given length; `done` tells of its end."""

    def __init__(self, env: simpy.Environment, cores: _Cores, seconds: float, wanted: float) -> None:
        super().__init__(env, cores)
        self.done = env.event()
        self._seconds = seconds
        cores.want(self, wanted)
        self.schedule()

    def work(self, elapsed: float, done: float) -> None:
        del elapsed
        self._seconds -= done

    def left(self) -> float:
        return self._seconds

    def end(self) -> None:
        self.cores.want(self, 0.0)
        self.done.succeed()


@dataclass(slots=True, eq=False)
class _Group:
    """G completions of one prompt, on their way."""

    lengths: list[int]
    is_flat: bool
    version: int = 0
    """Of the weights when its first token was sampled, the oldest of all its tokens."""
    is_begun: bool = False
    unfinished: int = 0
    ended: simpy.Event | None = None
    """Succeeds with True when all is sampled, with False when the engine died."""


class _Engine(_Clocked):
    """One engine: prefill first, then all its sequences at the same speed.

    `decoded` counts the tokens that a sequence would have that ran all the time, so that a sequence which begins at
    `decoded` = d ends at d + length: the one that ends next is the first of a heap, however the speed changes.
    """

    def __init__(self, env: simpy.Environment, cores: _Cores, layout: Layout, costs: Costs) -> None:
        super().__init__(env, cores)
        self.layout = layout
        self.costs = costs
        self.version = 0
        self.is_up = True
        self.is_serving = True
        self.is_paused = False
        self.places = 0
        """Completions that the pool has given it."""
        self.busy_s = 0.0
        self.prefill_s = 0.0
        self.decoded = 0.0
        self.groups: set[_Group] = set()
        self.waiting: deque[tuple[_Group, int]] = deque()
        self.running: list[tuple[float, int, _Group]] = []
        self._begun = 0

    def begin(self, group: _Group, ended: simpy.Event) -> None:
        """Sample a group from its first token on."""
        group.is_begun, group.unfinished, group.ended = False, len(group.lengths), ended
        self.groups.add(group)
        self.waiting.extend((group, length) for length in group.lengths)
        self.settle()
        self._go_on()

    def pause(self) -> None:
        """Freeze what is in flight."""
        self.settle()
        self.is_paused = True
        self._go_on()

    def resume(self, version: int) -> None:
        """Go on with other weights."""
        self.settle()
        self.is_paused, self.is_serving, self.version = False, True, version
        self._go_on()

    def die(self) -> float:
        """Lose everything; returns the tokens that were sampled of unfinished groups."""
        self.settle()
        groups, self.groups = self.groups, set()
        running = {id(group): 0.0 for group in groups}
        for ends_at, _, group in self.running:
            running[id(group)] += ends_at - self.decoded
        for group, length in self.waiting:
            running[id(group)] += length
        lost = sum(sum(group.lengths) - running[id(group)] for group in groups)
        self.waiting.clear()
        self.running.clear()
        self.prefill_s = 0.0
        self.is_up = self.is_serving = False
        self._go_on()
        for group in groups:
            assert group.ended is not None
            group.ended.succeed(False)
        return lost

    def work(self, elapsed: float, done: float) -> None:
        if self.is_paused or self._has_work():
            self.busy_s += elapsed
        if not self._has_work():
            return
        if self.prefill_s > 0:
            self.prefill_s -= done
        else:
            self.decoded += done / self._step_s()

    def left(self) -> float | None:
        if not self._has_work():
            return None
        return self.prefill_s if self.prefill_s > 0 else (self.running[0][0] - self.decoded) * self._step_s()

    def end(self) -> None:
        if self.prefill_s < EPSILON * self.costs.step_s:
            self.prefill_s = 0.0
        ended = []
        while self.running and self.running[0][0] <= self.decoded + EPSILON:
            group = heapq.heappop(self.running)[2]
            group.unfinished -= 1
            if not group.unfinished:
                ended.append(group)
        self._go_on()
        for group in ended:
            self.groups.discard(group)
            assert group.ended is not None
            group.ended.succeed(True)

    def _has_work(self) -> bool:
        return self.is_up and not self.is_paused and bool(self.running)

    def _step_s(self) -> float:
        return self.costs.step_s + self.costs.sequence_s * len(self.running)

    def _go_on(self) -> None:
        """Seat what waits, then do what is to be done now."""
        while self.waiting and len(self.running) < self.layout.seats:
            group, length = self.waiting.popleft()
            if not group.is_begun:
                group.is_begun, group.version = True, self.version
                self.prefill_s += self.costs.prefill_s
            self._begun += 1
            heapq.heappush(self.running, (self.decoded + length, self._begun, group))
        self.cores.want(self, self._cores_wanted())
        self.schedule()

    def _cores_wanted(self) -> float:
        """All threads, but one for the part of a decode step that does not grow with the sequences."""
        if not self._has_work():
            return 0.0
        threads = self.layout.engine_threads
        if self.prefill_s > 0:
            return threads
        grows = self.costs.sequence_s * len(self.running)
        return (self.costs.step_s + threads * grows) / (self.costs.step_s + grows)


# ------------------------------------------------------------------------------------------------------- the loop


@dataclass(frozen=True, slots=True, kw_only=True)
class _Batch:
    """As `Collected` in videostr/loop.py."""

    groups: list[_Group]
    rollout_s: float
    reward_s: float


@dataclass(slots=True)
class _Record:
    """One row of metrics."""

    step_s: float
    rollout_s: float
    reward_s: float
    learn_s: float
    sync_s: float
    staleness: list[int] = field(default_factory=list)
    tokens: int = 0
    samples: int = 0


class _Loop:
    """The whole run; see the module."""

    def __init__(self, layout: Layout, costs: Costs, lengths: Lengths, steps: int, seed: int) -> None:
        self.layout, self.costs, self.lengths = layout, costs, lengths
        self.env = env = simpy.Environment()
        self.cores = _Cores(layout.cores)
        self.rng = np.random.default_rng(seed)
        self.failure_rng = np.random.default_rng(seed + 1)
        self.engines = [_Engine(env, self.cores, layout, costs) for _ in range(layout.engines)]
        self.rewards = simpy.Resource(env, layout.reward_workers)
        self.updating, self.publishing = simpy.Resource(env), simpy.Resource(env)
        self.takers: deque[simpy.Event] = deque()
        self.came_up = env.event()
        self.version = 0
        self.reward_s = self.learner_s = self.tokens_again = 0.0
        self.first = layout.staleness + 1
        self.last = self.first + steps
        self.records: list[_Record] = []
        self.totals: list[tuple[float, float, float, float, float]] = []
        """Before the first and after the last measured step: now, seconds of engines, learner, rewards; tokens lost."""

    def run(self) -> Outcome:
        """Until the last step is over."""
        self.env.run(until=self.env.process(self._train()))
        layout, records = self.layout, self.records[self.first : self.last]
        before, after = self.totals
        seconds, engine_s, learner_s, reward_s, again = (b - a for a, b in zip(before, after, strict=True))
        steps = [record.step_s for record in records]
        updates = [record for record in records if record.sync_s > 0 or record.learn_s > 0] or records
        staleness = [value for record in records for value in record.staleness]
        return Outcome(
            steps=len(records),
            step_s=float(np.mean(steps)),
            step_p90_s=float(np.quantile(steps, 0.9)),
            rollout_s=float(np.median([record.rollout_s for record in records])),
            reward_s=float(np.median([record.reward_s for record in records])),
            learn_s=float(np.median([record.learn_s for record in updates])),
            sync_s=float(np.median([record.sync_s for record in updates])),
            idle_rollout=1 - engine_s / (seconds * layout.engines),
            idle_learner=1 - learner_s / seconds,
            idle_reward=1 - reward_s / (seconds * layout.reward_workers),
            staleness_mean=float(np.mean(staleness)),
            staleness_max=max(staleness),
            tokens_again=again / len(records),
            tokens_per_s=sum(record.tokens for record in records) / seconds,
            samples_per_s=sum(record.samples for record in records) / seconds,
        )

    def lose_engines(self, failures: Failures) -> None:
        """Let engines die."""
        for at, index in failures.at:
            if not 0 <= index < len(self.engines):
                raise ConfigError(f"failures: engine {index} of {len(self.engines)}: must be below that")
            self.env.process(self._die(self.engines[index], iter([at]), failures.restart_s))
        if failures.mtbf_s < math.inf:
            for engine in self.engines:
                self.env.process(self._die(engine, self._lives(failures.mtbf_s), failures.restart_s))

    def _lives(self, mtbf_s: float) -> Iterator[float]:
        while True:
            yield float(self.failure_rng.exponential(mtbf_s))

    # -------------------------------------------------------------------------------- loop.py and window.py

    def _train(self) -> Work[None]:
        window: deque[simpy.Process] = deque()
        begun, last = 0, self.last + self.layout.staleness
        for step in range(last):
            if step in (self.first, self.last):
                self._note_totals()
            started = self.env.now
            while begun <= min(step + self.layout.staleness, last - 1):
                window.append(self.env.process(self._collect()))
                begun += 1
            batch: _Batch = yield window.popleft()
            waited = self.env.now
            before = self.version
            learned = [group.lengths for group in batch.groups if not group.is_flat]
            if learned:
                yield from self._update(learned)
            learned_at = self.env.now
            if learned:
                yield from self._publish()
            ended = self.env.now
            self.records.append(
                _Record(
                    step_s=ended - started,
                    rollout_s=batch.rollout_s,
                    reward_s=batch.reward_s,
                    learn_s=learned_at - waited,
                    sync_s=ended - learned_at,
                    staleness=[before - group.version for group in batch.groups],
                    tokens=sum(sum(group.lengths) for group in batch.groups),
                    samples=sum(len(group.lengths) for group in batch.groups),
                )
            )
        if not self.layout.staleness:
            self._note_totals()

    def _collect(self) -> Work[_Batch]:
        layout, started = self.layout, self.env.now
        sampled_at = [started]
        kept: list[_Group] = []
        flat: list[_Group] = []
        while missing := layout.prompts - len(kept):
            refilling = len(kept) + len(flat) < layout.prompts * layout.refill_limit
            if flat and not refilling:
                kept, flat = kept + flat[:missing], flat[missing:]
                continue
            drawn = [self._draw() for _ in range(missing)]
            yield self.env.all_of([self.env.process(self._one(group, sampled_at)) for group in drawn])
            for group in drawn:
                (flat if refilling and group.is_flat else kept).append(group)
        return _Batch(groups=kept, rollout_s=sampled_at[0] - started, reward_s=self.env.now - sampled_at[0])

    def _draw(self) -> _Group:
        lengths = self.lengths.group(self.rng, self.layout.group_size)
        return _Group(lengths=lengths, is_flat=bool(self.rng.random() < self.costs.flat_fraction))

    def _one(self, group: _Group, sampled_at: list[float]) -> Work[None]:
        yield from self._sample(group)
        sampled_at[0] = self.env.now
        with self.rewards.request() as worker:
            yield worker
            began = self.env.now
            yield _Computation(self.env, self.cores, self.costs.reward_s, 1.0).done
            self.reward_s += self.env.now - began

    def _update(self, groups: Sequence[Sequence[int]]) -> Work[None]:
        with self.updating.request() as turn:
            yield turn
            began = self.env.now
            parts = mini_batches(tuple(groups), self.layout.updates_per_batch)
            seconds = sum(learn_seconds(part, self.layout, self.costs) for part in parts)
            threads = self.layout.ranks * self.layout.learner_threads
            yield _Computation(self.env, self.cores, seconds, threads).done
            self.learner_s += self.env.now - began
            self.version += 1

    def _note_totals(self) -> None:
        for engine in self.engines:
            engine.settle()
        engine_s = sum(engine.busy_s for engine in self.engines)
        self.totals.append((self.env.now, engine_s, self.learner_s, self.reward_s, self.tokens_again))

    # -------------------------------------------------------------------------------- pools.py and sync.py

    def _sample(self, group: _Group) -> Work[None]:
        """Until all completions are there, wherever."""
        size = self.layout.group_size
        is_sampled = False
        while not is_sampled:
            taker = self.env.event()
            self.takers.append(taker)
            self._give_places()
            engine: _Engine = yield taker
            ended = self.env.event()
            engine.begin(group, ended)
            is_sampled = yield ended
            engine.places -= size
            self._give_places()

    def _free_engine(self) -> _Engine | None:
        serving = [engine for engine in self.engines if engine.is_serving]
        engine = min(serving, key=lambda engine: engine.places, default=None)
        if engine is None or engine.places >= AHEAD * self.layout.max_num_seqs:
            return None
        return engine

    def _give_places(self) -> None:
        """Places to those who wait, in order."""
        while self.takers and (engine := self._free_engine()) is not None:
            engine.places += self.layout.group_size
            self.takers.popleft().succeed(engine)

    def _publish(self) -> Work[None]:
        with self.publishing.request() as turn:
            yield turn
            while not (up := [engine for engine in self.engines if engine.is_up]):
                yield self.came_up
            for engine in up:
                engine.pause()
            began = self.env.now
            yield self.env.timeout(self.costs.sync_s)
            self.learner_s += self.env.now - began
            for engine in up:
                engine.resume(self.version)
        self._give_places()

    def _die(self, engine: _Engine, lives: Iterator[float], restart_s: float) -> Work[None]:
        for life in lives:
            yield self.env.timeout(life)
            with self.publishing.request() as turn:  # a death in a publication is counted after it
                yield turn
                self.tokens_again += engine.die()
            yield self.env.timeout(restart_s)
            engine.is_up = True
            self.came_up.succeed()
            self.came_up = self.env.event()
            with self.updating.request() as turn:
                yield turn
                if not engine.is_serving:
                    yield from self._publish()
