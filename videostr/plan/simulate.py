"""A training run in virtual time: a config, its costs and completion lengths in, an `Outcome` out.

What runs is `videostr.loop.train` with its window, and the pool and weight sync of videostr/pool.py and videostr/sync.py: they
admit, sample dynamically, resubmit, pause and restart as in a run. Only what they call is simulated (videostr/plan/workers.py).
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from videostr.checkpoint import Ledger, RunState
from videostr.config.schema import Config
from videostr.data.prompts import PromptItem
from videostr.errors import ConfigError, RolloutError, TransferError
from videostr.loop import train
from videostr.plan.clock import run_virtual
from videostr.plan.costs import Costs
from videostr.plan.lengths import Lengths
from videostr.plan.workers import (
    Machine,
    SimulatedLearner,
    SimulatedPool,
    SimulatedRewards,
    SimulatedSync,
    World,
)
from videostr.ports import Ports
from videostr.timeline import StepTimes, Timeline
from videostr.types import Answer, AnswerKind, Clip, ClipSpec, Failure, Prompt, Record

ENDLESS = 10**9
"""Steps of a simulated run, which is cut off when enough were measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What the measured steps took; the S + 1 before them, which fill the window, are left out."""

    step_s: float
    """Mean of `time/step`, seconds."""
    step_p90_s: float
    rollout_s: float
    """Median of `time/rollout`, seconds; so are the next three, the last two of steps with an update."""
    reward_s: float
    learn_s: float
    sync_s: float
    idle_rollout: float
    """Share of the engines' time in which they neither sample nor take weights."""
    idle_learner: float
    """Share of the learner's time in which it neither updates nor sends weights."""
    staleness_max: int
    """Most updates between the oldest weights that sampled a group and the update that learned from it."""
    tokens_again: float
    """Tokens a step of groups that were sampled again."""
    samples_per_s: float
    """Completions a second that were learned from, or had zero variance."""


def simulate(
    config: Config, costs: Costs, lengths: Lengths, machine: Machine, *, steps: int = 20, seed: int = 0
) -> Outcome:
    """Run the loop for `steps` steps, after S + 1 that fill the window.

    Raises:
        ConfigError: an engine has no memory for one sequence, or all die more often than `rollout.max_restarts`.
    """
    if machine.kv_seqs < 1:
        raise ConfigError(
            "an engine has no memory for one sequence", remedy="raise rollout.tensor_parallel_size"
        )
    endless = replace(
        config.train, steps=ENDLESS, max_zero_variance_steps=0, traces_every=0, checkpoint_every=0
    )
    config = replace(config, train=endless)
    first = config.train.max_staleness + 1
    try:
        with _silent(logging.getLogger("videostr")):
            folder = run_virtual(_run(config, costs, lengths, machine, first + steps, seed))
    except (RolloutError, TransferError):
        raise ConfigError(
            f"the simulated engines die so often that the run ends, with rollout.max_restarts = "
            f"{config.rollout.max_restarts}",
            remedy="raise it",
        ) from None
    return _outcome(config, folder, first)


@contextmanager
def _silent(logger: logging.Logger) -> Iterator[None]:
    """Log nothing: engines that die here are simulated."""
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)


async def _run(
    config: Config, costs: Costs, lengths: Lengths, machine: Machine, steps: int, seed: int
) -> _Folder:
    timeline = Timeline(asyncio.get_running_loop().time)
    world = World(
        config=config, costs=costs, lengths=lengths, machine=machine, rng=np.random.default_rng(seed), timeline=timeline
    )  # fmt: skip
    folder = _Folder(timeline, steps)
    pool, learner = SimulatedPool(world), SimulatedLearner(world)
    sync = SimulatedSync(world, learner, pool)
    await pool.start()
    sync.start()
    failing = asyncio.create_task(pool.fail(np.random.default_rng(seed + 1)))
    # These offer what the loop asks for in a run that loads no records and writes nothing
    source: Any = _Source()
    trainer: Any = learner
    output: Any = folder
    ports = Ports(rollouts=pool, rewards=SimulatedRewards(world), learner=trainer, sync=sync)
    state = RunState(step=0, version=0, ledger=Ledger(seed=0, records=ENDLESS))
    try:
        await train(config, source, ports, output, state, asyncio.Event())
    except _MeasuredAll:
        return folder
    finally:
        failing.cancel()
        sync.close()
        pool.close()
    raise AssertionError("unreachable")


def _outcome(config: Config, folder: _Folder, first: int) -> Outcome:
    rows, times = folder.rows[first:], folder.step_times[first:]
    seconds = sum(step.seconds for step in times)
    updates = [row for row in rows if "loss" in row] or rows
    again = [row.get("failures/tokens_sampled_again", 0) for row in (folder.rows[first - 1], rows[-1])]
    step_s = [row["time/step"] for row in rows]
    engines = config.rollout.num_workers
    return Outcome(
        step_s=float(np.mean(step_s)),
        step_p90_s=float(np.quantile(step_s, 0.9)),
        rollout_s=float(np.median([row["time/rollout"] for row in rows])),
        reward_s=float(np.median([row["time/reward"] for row in rows])),
        learn_s=float(np.median([row["time/learn"] for row in updates])),
        sync_s=float(np.median([row["time/sync"] for row in updates])),
        idle_rollout=max(0.0, 1 - _busy(times, "rollout-engine-", {"sample", "pause"}) / (seconds * engines)),
        idle_learner=max(0.0, 1 - _busy(times, "", {"update", "sync"}) / seconds),
        staleness_max=int(max(row["staleness/max"] for row in rows)),
        tokens_again=(again[1] - again[0]) / len(rows),
        samples_per_s=len(rows) * config.train.prompts_per_step * config.sampling.group_size / seconds,
    )


def _busy(times: Sequence[StepTimes], workers: str, activities: set[str]) -> float:
    return sum(
        activity.busy
        for step in times
        for worker, doings in step.workers.items()
        if worker.startswith(workers)
        for doing, activity in doings.items()
        if doing in activities
    )


class _MeasuredAll(Exception):
    """Enough steps were simulated."""


class _Source:
    """Endless records that say nothing, in place of a `RecordSource`."""

    def draw(self, position: int) -> PromptItem:
        name, spec = str(position), ClipSpec(video="", num_frames=1)
        record = Record(
            id=name, source="", family="", question="", options=(), answer=Answer(kind=AnswerKind.CHOICE, value="A"),
            clip=spec, labels=(), graph=None,
        )  # fmt: skip
        prompt = Prompt(record_id=name, text="", clip=Clip(digest="", spec=spec))
        return PromptItem(position=position, record=record, prompt=prompt)


class _Folder:
    """Keeps metrics and times, in place of a `RunFolder`, its quarantine and its loggers."""

    def __init__(self, timeline: Timeline, steps: int) -> None:
        self.quarantine = self.loggers = self
        self.timeline = timeline
        self.rows: list[Mapping[str, float]] = []
        self.step_times: list[StepTimes] = []
        self.counts: Counter[str] = Counter()
        self._steps = steps

    def metrics(self, values: Mapping[str, float]) -> None:
        self.rows.append(values)
        self.step_times.append(self.timeline.drain(len(self.rows)))
        if len(self.rows) == self._steps:
            raise _MeasuredAll

    def times(self, _: object) -> None:
        """They were kept with the metrics."""

    def add(self, failure: Failure) -> None:
        self.counts[failure.kind.name.lower()] += 1

    def __contains__(self, record_id: str) -> bool:
        return False

    def failures(self) -> Counter[str]:
        return Counter()

    async def thread(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return work(*arguments)
