"""THE training step, top to bottom; the same code for synchronous and asynchronous training.

Consumes records of a `RecordSource` in seeded order. Produces updates, metrics, traces, checkpoints. Waits for the oldest batch
of the `Window`, then for learner and weight sync; is unblocked by their answers, or by `stop`, upon which
unfinished batches are given up (their positions are drawn again on resume), an update already begun is finished, and a
checkpoint is written. With `train.max_staleness` = S up to S batches are sampled and scored while a step learns.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from videostr.checkpoint import Draws, RunState
from videostr.config import Config
from videostr.data.source import Drawn, RecordSource
from videostr.errors import CheckpointError, RunFolderError, StorageError, VideoStrError
from videostr.files import storage_error, write_json
from videostr.grpo.advantage import advantages, is_flat
from videostr.grpo.loss import completion_lengths
from videostr.metrics import Progress, Signal, completion_tokens, step_metrics
from videostr.ports import Ports, Sampled, SampleRequest
from videostr.report.traces import trace_rows, write_traces
from videostr.runfolder import RunFolder
from videostr.tasks import cancel_and_wait, gather_or_cancel, race
from videostr.types import Failure, FinishReason, LearnerBatch, Record, RolloutGroup, Update
from videostr.window import Window

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """The groups of one step, in order of position."""

    groups: tuple[RolloutGroup, ...]
    records: dict[str, Record]
    """By id."""
    positions: tuple[int, ...]
    """All that were drawn for it."""
    refilled: int
    """Groups without variance that were replaced."""
    rollout_s: float
    """Seconds until the last group was sampled."""
    reward_s: float
    """Seconds after that until the last group was scored."""


async def train(
    config: Config,
    source: RecordSource,
    ports: Ports,
    folder: RunFolder,
    state: RunState,
    stop: asyncio.Event,
    evaluator: Callable[[RunState], Coroutine[Any, Any, None]] | None = None,
) -> RunState:
    """Train from `state` to `train.steps`, or until `stop`; returns the state reached, which is checkpointed.

    `evaluator` is run after every `evaluate.every` steps, beside the sampling and learning of the next step; only the next
    weight sync waits for it, so that it sees one version. What a killed run did not finish of it is done first.

    Raises:
        StorageError: a file of the run cannot be written; says where the run goes on, after a last try for a checkpoint.
        RunFolderError: the last checkpoint could not be written.
        LearnerError: a rank was lost; the state after the last checkpoint is lost with it.
        NoSignal: no group's rewards differ any more.
    """
    progress, signal = Progress(config.train.steps, state.step), Signal(config.train.max_flat_steps)
    saver = Saver(folder, ports, state)
    evaluation = SideEvaluation(config, evaluator)
    evaluation.begin(state)
    draws = Draws(state.ledger)
    now = asyncio.get_running_loop().time  # a plan runs this loop in virtual time
    window = Window(
        lambda _: collect(config, source, ports, folder, draws),
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
            learned = now()
            saver.is_updating = True
            update = await ports.learner.update(batch) if batch.groups else Update(version=state.version)
            for failure in update.failures:
                folder.quarantine.add(failure)
            published = now()
            updated = update.version != state.version
            if updated:
                await race(stop, evaluation.done())
            synced = await ports.sync.sync(update.version) if updated else {}
            ended = now()

            usable = len(collected.groups) - len(update.failures)
            ledger = draws.settle(state.ledger, collected.positions, usable + collected.refilled)
            state = RunState(step=state.step + 1, version=update.version, ledger=ledger)
            saver.reached(state)
            times = {
                "time/rollout": collected.rollout_s,
                "time/reward": collected.reward_s,
                "time/wait": learned - started,
                "time/learn": published - learned,
                "time/sync": ended - published,
                "time/step": ended - started,
                "rollout/tokens_per_s": completion_tokens(collected.groups) / max(collected.rollout_s, 1e-9),
                "refilled_groups": collected.refilled,
                "dropped_fraction": 1 - usable / len(collected.positions),
            }
            failures = (
                folder.quarantine.counts
                + ports.rewards.failures
                + ports.rollouts.failures
                + ports.sync.failures
                + folder.loggers.failures()
            )
            metrics = step_metrics(state, collected.groups, update, failures) | synced | times
            await folder.thread(folder.metrics, metrics)
            progress.step(metrics)
            every = config.train.traces_every
            if every > 0 and _due(state.step, every, config.train.steps):
                await folder.thread(_write_traces, folder.path, state.step, collected, gains)
            if evaluation.is_due(state) or _due(
                state.step, config.train.checkpoint_every, config.train.steps
            ):
                await race(stop, evaluation.done())  # a step without update did not wait for it
                await saver.save()
            evaluation.begin(state)
            await folder.thread(folder.times, folder.timeline.drain(state.step))
            signal.step(metrics, any(gain.any() for gain in batch.advantages))
        await race(stop, evaluation.done())
    await saver.finish()
    return state


class Saver:
    """The checkpoints of a run, and what is still saved when a file cannot be written."""

    def __init__(self, folder: RunFolder, ports: Ports, state: RunState) -> None:
        self.is_updating = False
        """Whether the learner's weights are, or may be, later than those of the last whole step."""
        self._folder = folder
        self._ports = ports
        self._state = state
        self._saved = state.step

    def reached(self, state: RunState) -> None:
        """Note that a step is over."""
        self._state = state
        self.is_updating = False

    async def save(self) -> Exception | None:
        """Write a checkpoint; where that fails the run goes on, and the failure is counted, told and returned.

        Raises:
            LearnerError: a rank was lost.
            StorageError: the checkpoint is written, `ledger.json` is not.
        """
        folder, state = self._folder, self._state
        try:
            await folder.checkpoints.save(state, self._ports.learner.save)
        except (OSError, StorageError, CheckpointError) as error:
            folder.quarantine.counts["checkpoint"] += 1
            log.warning("no checkpoint after step %d: %s; the one before is kept", state.step, error)
            return error
        self._saved = state.step
        await folder.thread(
            write_json, folder.path / "ledger.json", {"step": state.step, **asdict(state.ledger)}
        )
        return None

    async def finish(self) -> None:
        """Write the last checkpoint, where that is not done.

        Raises:
            RunFolderError: it could not be written.
        """
        if self._saved != self._state.step and (problem := await self.save()):
            raise RunFolderError(
                f"the state after step {self._state.step} could not be written ({problem}); make room, and run the same "
                f"command again: it goes on from {await self._latest()}"
            )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Try once more to save all steps when a file could not be written, and say what came of it."""
        if isinstance(error, OSError):
            error = storage_error(error, error.filename or self._folder.path)
        if isinstance(error, StorageError):
            raise StorageError(f"{error}; {await self._last_try()}") from error

    async def _last_try(self) -> str:
        """What the same command goes on from; a checkpoint may free the room that the lines in front of it lacked."""
        step, folder = self._state.step, self._folder
        try:
            if not self.is_updating and self._saved != step:
                await self.save()
            await folder.thread(folder.write_rest)
        except (VideoStrError, OSError) as error:
            log.warning("%s", error)
        lacking = f" ({', '.join(names)} lack the last step)" if (names := folder.unwritten()) else ""
        lost = "" if self._saved == step else f", and computes steps {self._saved + 1} to {step} again"
        return f"then the same command goes on from {await self._latest()}{lost}{lacking}"

    async def _latest(self) -> str:
        checkpoints = self._folder.checkpoints
        return str(await checkpoints.thread(checkpoints.latest) or "the start")


class SideEvaluation:
    """The evaluation beside training: one at a time, given up when training ends otherwise."""

    def __init__(
        self, config: Config, evaluator: Callable[[RunState], Coroutine[Any, Any, None]] | None
    ) -> None:
        self._every = config.evaluate.every if evaluator is not None else 0
        self._last = config.train.steps
        self._evaluator = evaluator
        self._task: asyncio.Task[None] | None = None

    def is_due(self, state: RunState) -> bool:
        """Whether the state is to be evaluated, and so to have a checkpoint."""
        return state.step > 0 and _every(state.step, self._every)

    def begin(self, state: RunState) -> None:
        """Evaluate, if that is due; the last state is evaluated after training."""
        if self._evaluator is not None and self.is_due(state) and state.step < self._last:
            self._task = asyncio.create_task(self._evaluator(state))

    async def done(self) -> None:
        """Returns when no evaluation is under way; raises what it raised."""
        task, self._task = self._task, None
        if task is not None:
            await gather_or_cancel([task])

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Give it up."""
        if self._task is not None:
            await cancel_and_wait([self._task])


async def collect(
    config: Config, source: RecordSource, ports: Ports, folder: RunFolder, draws: Draws
) -> Collected:
    """Sample and score `train.prompts_per_step` groups, in rounds.

    Each group that fails is quarantined and replaced by the next record; with `sampling.refill` each that has no
    variance is replaced too, until `sampling.refill_limit` times as many groups were sampled as the step needs.
    """
    now = asyncio.get_running_loop().time
    started = sampled_at = now()

    async def one(drawn: Drawn) -> RolloutGroup | Failure:
        nonlocal sampled_at
        sampled = await ports.rollouts.sample(_request(config, drawn))
        sampled_at = now()
        return sampled if isinstance(sampled, Failure) else await score(ports, drawn, sampled)

    wanted = config.train.prompts_per_step
    kept: list[tuple[Record, RolloutGroup]] = []
    flat: list[tuple[Record, RolloutGroup]] = []
    positions: list[int] = []
    while (missing := wanted - len(kept)) > 0:
        refilling = config.sampling.refill and len(kept) + len(flat) < wanted * config.sampling.refill_limit
        if not refilling:
            kept, flat = kept + flat[:missing], flat[missing:]
            if (missing := wanted - len(kept)) == 0:
                break
        taken = draws.take(missing)
        positions += taken
        drawn = await folder.thread(_draw, source, folder, taken)  # looks at the files of the videos
        for d, result in zip(drawn, await gather_or_cancel(one(d) for d in drawn), strict=True):
            if isinstance(result, Failure):
                await folder.thread(folder.quarantine.add, result)
            elif refilling and is_flat([rollout.score.total for rollout in result.rollouts]):
                flat.append((d.record, result))
            else:
                kept.append((d.record, result))
    return Collected(
        groups=tuple(group for _, group in kept),
        records={record.id: record for record, _ in kept},
        positions=tuple(positions),
        refilled=len(flat),
        rollout_s=sampled_at - started,
        reward_s=now() - sampled_at,
    )


async def score(ports: Ports, drawn: Drawn, sampled: Sampled) -> RolloutGroup | Failure:
    """A sampled group, scored."""
    rollouts = await ports.rewards.score(drawn.record, sampled.completions)
    if isinstance(rollouts, Failure):
        return rollouts
    return RolloutGroup(prompt=drawn.prompt, prompt_token_ids=sampled.prompt_token_ids, rollouts=rollouts)


def group_advantages(config: Config, group: RolloutGroup) -> np.ndarray:
    """[G] float32; zeros for a group of zero variance."""
    return advantages([rollout.score.total for rollout in group.rollouts], config.loss.advantage)


def learner_batch(
    config: Config, groups: Sequence[RolloutGroup], gains: Sequence[np.ndarray]
) -> LearnerBatch:
    """Groups with their advantages; left out are those without a gradient.

    These are groups of zero variance, unless there is a KL term, and such as `loss.mask_truncated` leaves nothing of.
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
    """Whether a completion of the group takes part in the loss."""
    completions = [rollout.completion for rollout in group.rollouts]
    lengths = [len(completion.token_ids) for completion in completions]
    cut = [completion.finish_reason is FinishReason.LENGTH for completion in completions]
    return any(completion_lengths([lengths], [cut], config.loss)[0])


def _draw(source: RecordSource, folder: RunFolder, positions: Sequence[int]) -> list[Drawn]:
    found = [source.draw(position) for position in positions]
    for failure in found:
        if isinstance(failure, Failure):
            folder.quarantine.add(failure)
    return [d for d in found if isinstance(d, Drawn) and d.record.id not in folder.quarantine]


def _request(config: Config, drawn: Drawn) -> SampleRequest:
    seed = np.random.SeedSequence([config.run.seed, drawn.position]).generate_state(1)[0]
    return SampleRequest(
        prompt=drawn.prompt,
        n=config.sampling.group_size,
        temperature=config.sampling.temperature,
        max_tokens=config.sampling.max_tokens,
        seed=int(seed),
    )


def _write_traces(run_folder: Path, step: int, collected: Collected, gains: Sequence[np.ndarray]) -> None:
    rows = trace_rows(step, collected.groups, gains, collected.records)
    write_traces(run_folder / "traces" / f"step_{step:06d}.parquet", rows)


def _every(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _due(step: int, every: int, last: int) -> bool:
    return step == last or _every(step, every)
