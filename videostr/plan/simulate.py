"""A training run in virtual time: a config, its costs and a workload in, an `Outcome` out.

What runs is `videostr.loop.train` with its window, and the pool and weight sync of videostr/pool.py and videostr/sync.py: they
admit, sample dynamically, resubmit, pause and restart as in a run. Only what they call is simulated (videostr/plan/workers.py).
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, Self

from scipy.stats import trim_mean

from videostr.checkpoint import Ledger, RunState
from videostr.config.schema import Config
from videostr.data.prompts import PromptItem
from videostr.errors import ConfigError
from videostr.loop import train
from videostr.plan.clock import run_virtual
from videostr.plan.workers import (
    EnginesLost,
    SimulatedLearner,
    SimulatedPool,
    SimulatedRewards,
    SimulatedSync,
    World,
)
from videostr.ports import Ports
from videostr.timeline import StepTimes, Timeline
from videostr.types import Answer, AnswerKind, Clip, ClipSpec, Prompt, Record

ENDLESS = 10**9
"""Steps of a simulated run, which is cut off when enough were measured."""
RECORD = Record(
    id="", source="", family="", question="", options=(), answer=Answer(kind=AnswerKind.CHOICE, value="A"),
    clip=ClipSpec(video="", num_frames=1), labels=(), graph=None,
)  # fmt: skip
PROMPT = Prompt(record_id="", text="", clip=Clip(digest="", spec=RECORD.clip))


@dataclass(frozen=True, slots=True, kw_only=True)
class Seconds:
    """What the steps of a run took, real or simulated."""

    step: float
    """Mean of `time/step`."""
    rollout: float
    """Median of `time/rollout`; so are the next three, the last two of steps with an update."""
    reward: float
    learn: float
    sync: float

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, float]], *, trimmed: float = 0.0) -> Self:
        """Return those of rows of `metrics.jsonl`; the mean leaves out a share `trimmed` of the steps at either end."""
        updates = [row for row in rows if row.get("sync/bytes")] or rows
        return cls(
            step=float(trim_mean([row["time/step"] for row in rows], trimmed)),
            rollout=median(row["time/rollout"] for row in rows),
            reward=median(row["time/reward"] for row in rows),
            learn=median(row["time/learn"] for row in updates),
            sync=median(row.get("sync/seconds", row["time/sync"]) for row in updates),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of the measured steps; the S + 1 before them, which fill the window, are left out."""

    seconds: Seconds
    engines_busy: float
    """Share of the engines' time in which they sample or take weights."""
    learner_busy: float
    """Share of the learner's time in which it updates or sends weights."""
    staleness_max: int
    """Most updates between the oldest weights that sampled a group and the update that learned from it."""
    tokens_again: float
    """Tokens a step of groups that were sampled again."""
    samples_per_s: float
    """Completions a second that were learned from, or had zero variance."""


def simulate(world: World, *, steps: int = 20) -> Outcome:
    """Run the loop for `steps` steps, after S + 1 that fill the window.

    Raises:
        ConfigError: an engine has no memory for one sequence, or all die more often than `rollout.max_restarts`.
    """
    if world.seats < 1:
        raise ConfigError(
            "an engine has no memory for one sequence", remedy="raise rollout.tensor_parallel_size"
        )
    settings, first = world.config.train, world.config.train.max_staleness + 1
    settings = replace(settings, steps=ENDLESS, max_zero_variance_steps=0, traces_every=0, checkpoint_every=0)
    world.config = replace(world.config, train=settings)
    logger = logging.getLogger("videostr")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)  # engines that die here are simulated
    try:
        return _outcome(world.config, run_virtual(_train(world, first + steps), cores=world.cores), first)
    except EnginesLost:
        raise ConfigError(
            f"the simulated engines die so often that the run ends, with rollout.max_restarts = "
            f"{world.config.rollout.max_restarts}",
            remedy="raise it",
        ) from None
    finally:
        logger.setLevel(level)


async def _train(world: World, steps: int) -> _Folder:
    world.timeline = Timeline(asyncio.get_running_loop().time)
    pool, learner, folder = SimulatedPool(world), SimulatedLearner(world), _Folder(world.timeline, steps)
    sync = SimulatedSync(world, learner, pool)
    await pool.start()
    sync.start()
    failing = asyncio.create_task(pool.fail())
    # These offer what the loop asks for in a run that loads no records and writes nothing
    source: Any = _Source()
    trainer: Any = learner
    output: Any = folder
    ports = Ports(rollouts=pool, rewards=SimulatedRewards(world), learner=trainer, sync=sync)
    state = RunState(step=0, version=0, ledger=Ledger(seed=0, records=ENDLESS))
    try:
        await train(world.config, source, ports, output, state, asyncio.Event())
    except _MeasuredAll:
        return folder
    finally:
        failing.cancel()
        sync.close()
        pool.close()
    raise AssertionError("unreachable")


def _outcome(config: Config, folder: _Folder, first: int) -> Outcome:
    rows, times = folder.rows[first:], folder.step_times[first:]
    passed_s = sum(step.seconds for step in times)
    again = [row.get("failures/tokens_sampled_again", 0) for row in (folder.rows[first - 1], rows[-1])]
    engines = _busy(times, "rollout-engine-", {"sample", "pause"}) / config.rollout.num_workers
    return Outcome(
        seconds=Seconds.of(rows),
        engines_busy=min(engines / passed_s, 1.0),
        learner_busy=min(_busy(times, "", {"update", "sync"}) / passed_s, 1.0),
        staleness_max=int(max(row["staleness/max"] for row in rows)),
        tokens_again=(again[1] - again[0]) / len(rows),
        samples_per_s=len(rows) * config.train.prompts_per_step * config.sampling.group_size / passed_s,
    )


def _busy(times: Sequence[StepTimes], workers: str, doings: set[str]) -> float:
    activities = [
        named for step in times for worker, named in step.workers.items() if worker.startswith(workers)
    ]
    return math.fsum(
        activity.busy for named in activities for doing, activity in named.items() if doing in doings
    )


class _MeasuredAll(Exception):
    """Enough steps were simulated."""


class _Source:
    """Endless records that say nothing, in place of a `RecordSource`."""

    def draw(self, position: int) -> PromptItem:
        return PromptItem(position=position, record=RECORD, prompt=PROMPT)


class _Folder:
    """Keeps metrics and times, in place of a `RunFolder`, its quarantine and its loggers."""

    def __init__(self, timeline: Timeline, steps: int) -> None:
        self.quarantine = self.loggers = self
        self.timeline = timeline
        self.rows: list[Mapping[str, float]] = []
        self.step_times: list[StepTimes] = []
        self.counts: Counter[str] = Counter()
        self._steps = steps

    def metrics(self, row: Mapping[str, float]) -> None:
        self.rows.append(row)

    def times(self, times: StepTimes) -> None:
        self.step_times.append(times)
        if len(self.rows) == self._steps:
            raise _MeasuredAll

    def add(self, failure: object) -> None:
        """Do nothing: a group lost its engine three times, and the loop replaces it."""

    def __contains__(self, record_id: str) -> bool:
        return False

    def failures(self) -> Counter[str]:
        return Counter()

    async def thread(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return work(*arguments)
