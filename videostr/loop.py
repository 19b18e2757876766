"""THE training step, top to bottom; the same code for synchronous and asynchronous training.

Consumes records of a `RecordSource` in seeded order. Produces updates, metrics, traces, checkpoints. Waits for the oldest batch
of the `Window`, then for the learner and the weight sync; is unblocked by their answers, or by `stop`: then unfinished batches
are cancelled (their positions are drawn again on resume), an update that has begun is finished, and a checkpoint is written.
With `train.max_staleness` = S up to S batches are sampled and scored while a step learns.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np

from videostr.checkpoint import DataCursor, RunState
from videostr.config.schema import Config
from videostr.data.prompts import PromptItem, RecordSource
from videostr.errors import SampleLost
from videostr.groups import LearnerBatch, RolloutGroup, SampledGroup
from videostr.grpo.advantage import advantages, has_zero_variance
from videostr.grpo.loss import completion_lengths
from videostr.metrics import Progress, Signal, sampling_metrics, step_metrics
from videostr.ports import Ports, SampleRequest
from videostr.run_folder import RunFolder
from videostr.saver import Saver, is_due
from videostr.tasks import cancel_and_wait, gather_or_cancel, race
from videostr.traces import trace_rows, write_traces
from videostr.types import Failure, FinishReason, Record, Update
from videostr.window import Window

log = logging.getLogger(__name__)


class Evaluator(Protocol):
    """Evaluates the policy of a run while it trains."""

    by_learner: bool
    """Whether the learner evaluates it; else the engines do."""

    async def evaluate_greedily(self, state: RunState) -> None:
        """Evaluate after a step."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """The groups of one step, in order of position."""

    groups: tuple[RolloutGroup, ...]
    records: dict[str, Record]
    """By id."""
    positions: tuple[int, ...]
    """All that were drawn for it."""
    replaced: int
    """Zero-variance groups that were replaced."""
    rollout_s: float
    """Seconds until the last group was sampled."""
    reward_s: float
    """Seconds after that until the last group was scored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """What came of the groups of one step."""

    update: Update
    synced: Mapping[str, float]
    """Metrics of the weight sync; empty where there was no update."""
    learn_s: float
    sync_s: float
    """Seconds from the update until all engines have the new weights."""


async def train(
    config: Config,
    source: RecordSource,
    ports: Ports,
    folder: RunFolder,
    state: RunState,
    stop: asyncio.Event,
    evaluator: Evaluator | None = None,
) -> RunState:
    """Train from `state` to `train.steps`, or until `stop`; return the state reached, which has a checkpoint.

    `evaluator` runs after every `evaluate.every` steps, while the next step samples and learns; only the next weight sync,
    or the next update where the learner evaluates, waits for it, so that it sees one version. What a killed run did not
    finish of it is done first.

    Raises:
        StorageError: a file of the run cannot be written; says where the run continues, after a last try for a checkpoint.
        RunFolderError: the last checkpoint could not be written.
        LearnerError: a rank was lost; the state after the last checkpoint is lost with it.
        ZeroVarianceError: no group's rewards differ any more.
    """
    progress, signal = Progress(config.train.steps, state.step), Signal(config.train.max_zero_variance_steps)
    saver = Saver(config, folder, ports, state)
    evaluation = SideEvaluation(config, evaluator, state)
    cursor = DataCursor(state.ledger)
    now = asyncio.get_running_loop().time  # a plan runs this loop in virtual time
    window = Window(
        lambda _: collect(config, source, ports, folder, cursor),
        max_staleness=config.train.max_staleness,
        first=state.step,
        last=config.train.steps,
    )
    async with saver, window, evaluation:
        while state.step < config.train.steps and not stop.is_set():
            started = now()
            window.advance(state.step)
            collected = await race(stop, window.next())
            if collected is None:
                break
            gains = [group_advantages(config, group) for group in collected.groups]
            batch = learner_batch(config, collected.groups, gains)
            wait_s = now() - started
            saver.is_updating = True
            learned = await learn(ports, folder, batch, state.version, evaluation, stop)
            state = next_state(state, cursor, collected, learned)
            saver.reached(state)
            metrics = step_row(state, collected, learned, failures(ports, folder), wait_s, now() - started)
            await folder.thread(folder.metrics, metrics)
            progress.step(metrics)
            await write_due_traces(config, folder, state, collected, gains)
            if evaluation.is_due(state) or saver.is_due(state):
                await race(stop, evaluation.done())  # a step without update did not wait for it
                await saver.begin()
            await saver.check()
            evaluation.begin(state)
            await folder.thread(folder.times, folder.timeline.drain(state.step))
            signal.step(metrics, any(gain.any() for gain in batch.advantages))
        await race(stop, evaluation.done())
    await saver.finish()
    return state


async def learn(
    ports: Ports,
    folder: RunFolder,
    batch: LearnerBatch,
    version: int,
    evaluation: SideEvaluation,
    stop: asyncio.Event,
) -> Learned:
    """Update the weights by a batch, if it has groups, and sync them once the evaluation of `version` is done."""
    now = asyncio.get_running_loop().time
    started = now()
    if evaluation.by_learner:
        await race(stop, evaluation.done())
    update = await ports.learner.update(batch) if batch.groups else Update(version=version)
    for failure in update.failures:
        folder.quarantine.add(failure)
    updated = now()
    synced: Mapping[str, float] = {}
    if update.version != version:
        await race(stop, evaluation.done())
        synced = await ports.sync.sync(update.version)
    return Learned(update=update, synced=synced, learn_s=updated - started, sync_s=now() - updated)


def next_state(state: RunState, cursor: DataCursor, collected: Collected, learned: Learned) -> RunState:
    """Return the state after a step, whose positions are committed."""
    used = usable_groups(collected, learned) + collected.replaced
    ledger = cursor.commit(state.ledger, collected.positions, used)
    return RunState(step=state.step + 1, version=learned.update.version, ledger=ledger)


def usable_groups(collected: Collected, learned: Learned) -> int:
    """Return the number of groups that the learner did not refuse."""
    return len(collected.groups) - len(learned.update.failures)


def failures(ports: Ports, folder: RunFolder) -> Counter[str]:
    """Return the failures since the process started, by kind."""
    return (
        folder.quarantine.counts
        + ports.rewards.failures
        + ports.rollouts.failures
        + ports.sync.failures
        + folder.loggers.failures()
    )


def step_row(
    state: RunState,
    collected: Collected,
    learned: Learned,
    failures: Counter[str],
    wait_s: float,
    step_s: float,
) -> dict[str, float]:
    """Return all metrics of a step."""
    return {
        **step_metrics(state, collected.groups, learned.update, failures),
        **sampling_metrics(collected.groups, learned.update, collected.rollout_s),
        **learned.synced,
        "time/rollout": collected.rollout_s,
        "time/reward": collected.reward_s,
        "time/wait": wait_s,
        "time/learn": learned.learn_s,
        "time/sync": learned.sync_s,
        "time/step": step_s,
        "replaced_groups": collected.replaced,
        "dropped_fraction": 1 - usable_groups(collected, learned) / len(collected.positions),
    }


async def write_due_traces(
    config: Config, folder: RunFolder, state: RunState, collected: Collected, gains: Sequence[np.ndarray]
) -> None:
    """Write the traces of every `train.traces_every` steps, and of the last one."""
    every = config.train.traces_every
    if every > 0 and (state.step == config.train.steps or is_due(state.step, every)):
        rows = []
        for group, gain in zip(collected.groups, gains, strict=True):
            record = collected.records[group.prompt.record_id]
            with contextlib.suppress(SampleLost):  # with its machine, after it was learned from
                sampled = await group.sampled.whole()
                rows += await folder.thread(trace_rows, state.step, group, sampled, gain, record)
        await folder.thread(write_traces, folder.path / "traces" / f"step_{state.step:06d}.parquet", rows)


class SideEvaluation:
    """The evaluation that runs during training: one at a time, cancelled when training ends by an error."""

    def __init__(self, config: Config, evaluator: Evaluator | None, start: RunState) -> None:
        self.by_learner = evaluator is not None and evaluator.by_learner
        """Whether it needs the learner's weights as they are, not the engines'."""
        self._start = start
        self._every = config.evaluate.every if evaluator is not None else 0
        self._last = config.train.steps
        self._evaluator = evaluator
        self._task: asyncio.Task[None] | None = None

    def is_due(self, state: RunState) -> bool:
        """Return whether the state is to be evaluated, and so to have a checkpoint."""
        return state.step > 0 and is_due(state.step, self._every)

    def begin(self, state: RunState) -> None:
        """Evaluate, if that is due; the last state is evaluated after training."""
        if self._evaluator is not None and self.is_due(state) and state.step < self._last:
            self._task = asyncio.create_task(self._evaluator.evaluate_greedily(state))

    async def done(self) -> None:
        """Wait for the evaluation under way; raise what it raised."""
        task, self._task = self._task, None
        if task is not None:
            await gather_or_cancel([task])

    async def __aenter__(self) -> Self:
        """Make up for the evaluation that a killed run did not finish."""
        self.begin(self._start)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Cancel it."""
        if self._task is not None:
            await cancel_and_wait([self._task])


async def collect(
    config: Config, source: RecordSource, ports: Ports, folder: RunFolder, cursor: DataCursor
) -> Collected:
    """Sample and score `train.prompts_per_step` groups, in rounds.

    Each group that fails is quarantined and replaced by the next record; with `sampling.dynamic_sampling` each zero-variance
    group is replaced too, until `sampling.dynamic_sampling_limit` times as many groups were sampled as the step needs.
    """
    now = asyncio.get_running_loop().time
    started = sampled_at = now()

    async def one(item: PromptItem) -> RolloutGroup | Failure:
        nonlocal sampled_at
        while True:
            sampled = await ports.rollouts.sample(_request(config, item))
            sampled_at = now()
            if isinstance(sampled, Failure):
                return sampled
            with contextlib.suppress(SampleLost):  # with its machine: the same seed gives the same tokens
                return await score(ports, item, sampled)

    wanted = config.train.prompts_per_step
    kept: list[tuple[Record, RolloutGroup]] = []
    zero_variance: list[tuple[Record, RolloutGroup]] = []
    positions: list[int] = []
    while (missing := wanted - len(kept)) > 0:
        replacing = (
            config.sampling.dynamic_sampling
            and len(kept) + len(zero_variance) < wanted * config.sampling.dynamic_sampling_limit
        )
        if not replacing:
            kept, zero_variance = kept + zero_variance[:missing], zero_variance[missing:]
            if (missing := wanted - len(kept)) == 0:
                break
        taken = cursor.take(missing)
        positions += taken
        items = await folder.thread(_draw, source, folder, taken)  # looks at the files of the videos
        for item, result in zip(items, await gather_or_cancel(one(item) for item in items), strict=True):
            if isinstance(result, Failure):
                await folder.thread(folder.quarantine.add, result)
            elif replacing and has_zero_variance(result.totals):
                zero_variance.append((item.record, result))
            else:
                kept.append((item.record, result))
    return Collected(
        groups=tuple(group for _, group in kept),
        records={record.id: record for record, _ in kept},
        positions=tuple(positions),
        replaced=len(zero_variance),
        rollout_s=sampled_at - started,
        reward_s=now() - sampled_at,
    )


async def score(ports: Ports, item: PromptItem, sampled: SampledGroup) -> RolloutGroup | Failure:
    """Score a sampled group."""
    scores = await ports.rewards.score(item.record, sampled)
    if isinstance(scores, Failure):
        return scores
    return RolloutGroup(prompt=item.prompt, sampled=sampled, scores=scores)


def group_advantages(config: Config, group: RolloutGroup) -> np.ndarray:
    """Return the advantages of a group, [G] float32; zeros for a group of zero variance."""
    return advantages(group.totals, config.loss.advantage)


def learner_batch(
    config: Config, groups: Sequence[RolloutGroup], gains: Sequence[np.ndarray]
) -> LearnerBatch:
    """Return groups with their advantages, without those that have no gradient.

    These are zero-variance groups, unless there is a KL term, and groups that `loss.mask_truncated` leaves nothing of.
    """
    kept = [
        i
        for i, (group, gain) in enumerate(zip(groups, gains, strict=True))
        if (config.loss.kl_coef > 0 or gain.any()) and _has_tokens(config, group)
    ]
    return LearnerBatch(
        groups=tuple(groups[i] for i in kept),
        advantages=tuple(gains[i] for i in kept),
        temperature=config.sampling.temperature,
    )


def _has_tokens(config: Config, group: RolloutGroup) -> bool:
    """Return whether a completion of the group takes part in the loss."""
    lengths = [completion.num_tokens for completion in group.sampled.completions]
    cut = [completion.finish_reason is FinishReason.LENGTH for completion in group.sampled.completions]
    return any(completion_lengths([lengths], [cut], config.loss)[0])


def _draw(source: RecordSource, folder: RunFolder, positions: Sequence[int]) -> list[PromptItem]:
    found = [source.draw(position) for position in positions]
    for failure in found:
        if isinstance(failure, Failure):
            folder.quarantine.add(failure)
    return [
        item for item in found if isinstance(item, PromptItem) and item.record.id not in folder.quarantine
    ]


def _request(config: Config, item: PromptItem) -> SampleRequest:
    seed = np.random.SeedSequence([config.run.seed, item.position]).generate_state(1)[0]
    return SampleRequest(
        prompt=item.prompt,
        n=config.sampling.group_size,
        temperature=config.sampling.temperature,
        max_tokens=config.sampling.max_tokens,
        seed=int(seed),
        references=item.references,
    )
