"""One run around its training loop: resume, evaluation on held-out records, restarts of the learner.

In: config, record sources, ports, the run folder, and an event that asks to stop. Out: the `Outcome` of a finished run, files in
the run folder. What starts the ports, and what reports on the run, is in videostr/launch.py.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from videostr.checkpoint import RESUMED, STATE, Ledger, RunState
from videostr.config.schema import Config
from videostr.data.prompts import PromptItem, RecordSource
from videostr.errors import ConfigError, LearnerError, RunFolderError
from videostr.heldout import Evaluate, Evaluation, EvaluationRequest, evaluate
from videostr.lock import FolderLock
from videostr.loop import Evaluator, train
from videostr.metrics import duration
from videostr.ports import Ports
from videostr.run_folder import RunFolder
from videostr.tasks import race
from videostr.types import Failure, FailureKind
from videostr.worker_state import pause_before

T = TypeVar("T")


log = logging.getLogger("videostr.run")


class Stopped(Exception):
    """The user asked to stop outside training, where there is nothing to checkpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A run that reached its last step."""

    before: Evaluation | None
    """Held-out evaluation before the first step; None without held-out records, or where it can no longer be done."""
    after: Evaluation | None
    seconds: dict[str, float]
    """Of this process: "startup", "train", "evaluate"."""


async def run(
    config: Config,
    source: RecordSource,
    heldout: HeldOut | None,
    ports: Ports,
    folder: RunFolder,
    stop: asyncio.Event,
    began: float,
) -> Outcome | None:
    """Resume, evaluate, train, evaluate again. Return None when stopped in training, after a checkpoint.

    Args:
        began: `time.monotonic()` at the start of the process.

    Raises:
        Stopped: `stop` was set outside training.
    """
    state = await until_stopped(stop, resume(config, source, ports, folder))
    seconds = {"startup": time.monotonic() - began, "train": 0.0, "evaluate": 0.0}
    log.info("ready after %s", duration(seconds["startup"]))

    started = time.monotonic()
    start = RunState(step=0, version=0, ledger=state.ledger)
    before = await until_stopped(stop, heldout.evaluate(start, state.step)) if heldout else None
    seconds["evaluate"] += time.monotonic() - started

    started = time.monotonic()
    state = await train_with_restarts(config, source, ports, folder, state, stop, heldout)
    seconds["train"] = time.monotonic() - started
    if stop.is_set():
        log.info("stopped after step %d with a checkpoint; the same command continues from here", state.step)
        return None

    started = time.monotonic()
    after = await until_stopped(stop, heldout.evaluate(state, state.step)) if heldout else None
    seconds["evaluate"] += time.monotonic() - started
    return Outcome(before=before, after=after, seconds=seconds)


async def until_stopped(stop: asyncio.Event, work: Awaitable[T]) -> T:
    """Return the result of `work`; raise `Stopped` when `stop` is set first."""
    task = asyncio.ensure_future(work)
    await race(stop, task)
    if task.cancelled():
        raise Stopped
    return task.result()


def cancel_when_lost(lock: FolderLock) -> None:
    """Cancel the current task when another process takes the lock."""
    loop, this = asyncio.get_running_loop(), asyncio.current_task()

    def cancel() -> None:
        if this is not None:
            loop.call_soon_threadsafe(this.cancel)

    lock.when_lost = cancel


def open_sources(
    config: Config,
    folder: RunFolder,
    processor: Any,
    source_class: Callable[[str, Any, int], RecordSource] = RecordSource,
) -> tuple[RecordSource, RecordSource | None]:
    """Read the records of training, and the held-out ones where they are evaluated; quarantine what cannot be read."""
    source = source_class(config.data.train, processor, config.run.seed)
    folder.quarantine.begin(len(source.records), source.failures)
    evaluating = config.data.heldout and config.evaluate.prompts
    return source, source_class(config.data.heldout, processor, config.run.seed) if evaluating else None


# ------------------------------------------------------------------------------------------------- resume


async def resume(config: Config, source: RecordSource, ports: Ports, folder: RunFolder) -> RunState:
    """Return the state of the latest checkpoint, loaded everywhere; a fresh one where there is none."""
    files = folder.checkpoints.thread
    checkpoint = await files(_checkpoint, config, folder)
    if checkpoint is None:
        await files(folder.rewind, 0)
        if config.model.lora.adapter:
            await ports.sync.sync(0)  # engines start from the model without it
        return RunState(step=0, version=0, ledger=Ledger(seed=config.run.seed, records=len(source.records)))
    state = await files(folder.checkpoints.state, checkpoint)
    if state.ledger.records != len(source.records):
        raise RunFolderError(
            f"{folder.path}: was trained on {state.ledger.records} records, {config.data.train} now has "
            f"{len(source.records)}",
            remedy="restore the dataset, or choose another run.name",
        )
    await ports.learner.load(checkpoint)
    await ports.sync.sync(state.version)
    await files(folder.rewind, state.step, config.run.resume)
    log.info("resumed after step %d from %s", state.step, checkpoint)
    return state


def _checkpoint(config: Config, folder: RunFolder) -> Path | None:
    """Return the checkpoint that `run.resume` names: the newest intact one, or the one at a path.

    A run goes back to a path once: when it was killed after that, the same command continues from its newest.
    """
    if config.run.resume in {"auto", "never"}:
        return folder.checkpoints.latest_intact()
    reached = folder.checkpoints.resumed_from(config.run.resume)
    newest = None if reached is None else folder.checkpoints.latest_intact()
    if reached is not None and newest is not None and folder.checkpoints.state(newest).step >= reached:
        log.info(
            "this run went back to %s before, and continues from its newest checkpoint; to go back once more, delete %s",
            config.run.resume,
            folder.checkpoints.folder / RESUMED,
        )
        return newest
    checkpoint = Path(config.run.resume)
    if not checkpoint.is_dir():
        raise ConfigError(
            f"run.resume = {config.run.resume}: must be auto, never, or the folder of a checkpoint",
            remedy="name one such as runs/NAME/checkpoints/step_000010",
        )
    folder.checkpoints.verify(checkpoint)
    return checkpoint


# ------------------------------------------------------------------------------------------------- restarts


async def train_with_restarts(
    config: Config,
    source: RecordSource,
    ports: Ports,
    folder: RunFolder,
    state: RunState,
    stop: asyncio.Event,
    evaluator: Evaluator | None,
) -> RunState:
    """Train; when a learner rank is lost, restart all ranks from the last checkpoint, which the run goes back to.

    A start that fails counts like a loss: for some seconds Ray may place a rank on a node that has gone.

    Raises:
        Stopped: `stop` was set while ranks were lost; the last checkpoint stands.
        LearnerError: they were lost more than `learner.max_restarts` times.
    """
    losses, began = 0, time.time()
    folder.timeline.drain(state.step)  # the start belongs to no step
    while True:
        try:
            if losses:
                state = await until_stopped(stop, _begin_again(config, source, ports, folder))
                lost_s = time.time() - await folder.checkpoints.thread(_checkpoint_time, folder, began)
                folder.quarantine.counts["learner_lost_seconds"] += round(lost_s)
            return await train(config, source, ports, folder, state, stop, evaluator)
        except LearnerError as error:
            losses += 1
            if losses > config.learner.max_restarts:
                raise
            pause_s = pause_before(losses)
            log.warning(
                "learner lost: %s; all ranks start again from the last checkpoint in %g s (%d of %d times)",
                error,
                pause_s,
                losses,
                config.learner.max_restarts,
            )
            folder.quarantine.counts["learner_lost"] += 1
        await until_stopped(stop, asyncio.sleep(pause_s))


def _checkpoint_time(folder: RunFolder, began: float) -> float:
    """Return when the newest checkpoint was complete, seconds since 1970; `began` where there is none."""
    newest = folder.checkpoints.latest()
    return began if newest is None else (newest / STATE).stat().st_mtime


async def _begin_again(config: Config, source: RecordSource, ports: Ports, folder: RunFolder) -> RunState:
    await ports.learner.restart()
    state = await resume(config, source, ports, folder)
    if state.step == 0:  # without a checkpoint, engines may hold later weights than the learner
        await ports.sync.sync(0)
    return state


# ------------------------------------------------------------------------------------------------- evaluation


class HeldOut:
    """Evaluates the policy of a run on its held-out records: before and after training, and greedily while it trains."""

    def __init__(
        self,
        config: Config,
        source: RecordSource,
        ports: Ports,
        folder: RunFolder,
        how: Evaluate = evaluate,
        by_learner: bool = False,
    ) -> None:
        """Evaluate nothing yet.

        Args:
            config: the run's.
            source: held-out records.
            ports: of the run.
            folder: gets the evaluations.
            how: evaluates prompts.
            by_learner: whether `how` asks the learner; else it asks the engines.
        """
        self.by_learner = by_learner
        self._how = how
        self._config = config
        self._source = source
        self._ports = ports
        self._folder = folder
        self._prompts: list[PromptItem | Failure] = []
        if config.evaluate.every:
            folder.timeline.note("evaluation", None)

    async def evaluate(self, state: RunState, reached: int) -> Evaluation | None:
        """Return the evaluation after a step: read it if it was done before, else do it if that is the step `reached`."""
        path = self._folder.path / "eval" / f"step_{state.step:06d}.json"
        if (known := await self._folder.thread(_read, path)) is not None:
            return known
        if state.step != reached:
            log.warning(
                "the policy before training was not evaluated, and no longer exists: the run will report no gain"
            )
            return None
        prompts = await self._first_prompts()
        log.info("evaluating %d held-out prompts after step %d", len(prompts), state.step)
        found = await self._how(self._request(prompts, state))
        await self._folder.thread(found.write, path)
        return found

    async def evaluate_greedily(self, state: RunState) -> None:
        """Evaluate after a step, during training; note the best checkpoint."""
        folder, checkpoints = self._folder, self._folder.checkpoints
        path = folder.path / "eval" / f"greedy_{state.step:06d}.json"
        known = await folder.thread(_read, path)
        if known is not None:  # killed before it was noted, or after
            if (value := known.merit) is not None:
                await checkpoints.thread(checkpoints.note_held_out, state.step, value)
            return
        prompts = await self._first_prompts()
        with folder.timeline.during("evaluation", "evaluate"):
            found = await self._how(self._request(prompts, state, greedy_only=True))
        if (value := found.merit) is None or FailureKind.OTHER_WEIGHTS.name.lower() in found.failures:
            log.warning(
                "no held-out evaluation after step %d, prompts failed: %s", state.step, found.failures
            )
            return
        await folder.thread(found.write, path)
        best = await checkpoints.thread(checkpoints.note_held_out, state.step, value)
        folder.scalar(f"heldout/greedy_{found.best_by}", value, state.step)
        log.info("held-out after step %d: greedy %s %.3f, best %.3f", state.step, found.best_by, value, best)

    def _request(
        self, prompts: Sequence[PromptItem | Failure], state: RunState, *, greedy_only: bool = False
    ) -> EvaluationRequest:
        return EvaluationRequest(
            config=self._config,
            heldout=prompts,
            ports=self._ports,
            version=state.version,
            greedy_only=greedy_only,
        )

    async def _first_prompts(self) -> list[PromptItem | Failure]:
        if not self._prompts:
            self._prompts = await self._folder.thread(self._source.first, self._config.evaluate.prompts)
        return self._prompts


def _read(path: Path) -> Evaluation | None:
    return Evaluation.read(path) if path.exists() else None
