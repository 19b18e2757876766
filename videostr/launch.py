"""Composition root: reads the config, starts the actors, evaluates, trains, evaluates again, reports.

`python -m videostr.launch --config configs/X.yaml [key=value ...]`, also through `ray job submit --`. Resumes when the run
folder has a checkpoint; `--check` says what would not work, and starts nothing. Exit status: 0 done, 1 the run failed, 2 bad
input, 130 stopped by Ctrl-C or SIGTERM after a checkpoint.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

import ray

from actors.check import check
from actors.learner import RayLearner
from actors.placement import Placement, plan, start_ray
from actors.pools import RayRolloutPool
from actors.prometheus import RayMetrics, worker_states
from actors.remote_reward import RemoteRewardPool
from actors.reward import RayRewardPool
from actors.scaling import Scaling
from actors.sync import SupervisedSync
from rewards import Rubric
from videostr import config as configs
from videostr.check import as_text, exit_status
from videostr.checkpoint import RESUMED, Ledger, RunState
from videostr.config import Config
from videostr.console import log_to_console, log_to_file, run_command, run_main
from videostr.data.source import Drawn, RecordSource
from videostr.errors import ConfigError, LearnerError, RunFolderError
from videostr.evaluate.heldout import Evaluation, evaluate, means, summary, table
from videostr.files import write_json
from videostr.grpo.losses import check_custom, staleness_warning
from videostr.lock import FolderLock
from videostr.loggers import require
from videostr.loop import train
from videostr.metrics import duration
from videostr.models.base import shapes_of
from videostr.models.checkpoint import open_checkpoint
from videostr.plan.memory import estimate
from videostr.ports import Ports, RewardPool
from videostr.report.page import write_report
from videostr.runfolder import RunFolder, run_folder
from videostr.supervision import pause_before
from videostr.tabletop.build import Split, build
from videostr.tabletop.world import Difficulty
from videostr.tasks import together, unless
from videostr.types import Failure, FailureKind

T = TypeVar("T")
log = logging.getLogger("videostr.launch")
METRICS_S = 5.0
"""Longest wait for figures to be shown, which are no more than set."""


class Stopped(Exception):
    """The user asked to stop outside training, where there is nothing to checkpoint."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status as in the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m videostr.launch", description=__doc__)
    parser.add_argument("--config", required=True, help="a file such as configs/tabletop_cpu.yaml")
    parser.add_argument("--check", action="store_true", help="say what would not work, and start nothing")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. train.steps=10")
    options = parser.parse_args(arguments)
    log_to_console()
    return run_command(lambda: _main(options), log.error)


def _main(options: argparse.Namespace) -> int:
    config = configs.load(options.config, options.overrides)
    require(config.logging)
    if options.check:
        findings = check(config, memory=_memory)
        log.info("\n%s", as_text(findings))
        return exit_status(findings)
    with FolderLock(run_folder(config), "run.name") as lock:
        try:
            check_custom(config.loss)
            processor = open_checkpoint(config.model.path, cpu=config.rollout.num_gpus == 0)
            build_tabletop(config)
            return asyncio.run(run(config, lock, processor))
        except (Stopped, KeyboardInterrupt):
            log.info("stopped; the same command goes on from here")
            return 130
        except asyncio.CancelledError:
            if not lock.is_lost:
                raise
            return 2


async def run(config: Config, lock: FolderLock, processor: Any) -> int:
    """One run, from the config to the report; it is cancelled when another process takes the lock of its folder."""
    began = time.monotonic()
    _cancel_when_lost(lock)
    if warning := staleness_warning(config):
        log.warning("%s", warning)
    folder = RunFolder(config)
    log_to_file(folder.path / "logs" / "driver.log")
    log.info("run folder %s", folder.path)
    stop = asyncio.Event()
    _stop_on_signal(stop)
    with contextlib.closing(folder):
        source, heldout = await _until_stopped(stop, folder.thread(_sources, config, folder, processor))
        async with cluster(config, folder, stop) as ports:
            state = await _until_stopped(stop, resume(config, source, ports, folder))
            seconds = {"startup": time.monotonic() - began, "train": 0.0, "evaluate": 0.0}
            log.info("ready after %s", duration(seconds["startup"]))

            started = time.monotonic()
            start = RunState(step=0, version=0, ledger=state.ledger)
            before = await _evaluation(config, heldout, ports, folder, start, stop, state.step)
            seconds["evaluate"] += time.monotonic() - started

            started = time.monotonic()
            evaluator = _evaluator(config, heldout, ports, folder)
            state = await train_on(config, source, ports, folder, state, stop, evaluator)
            seconds["train"] = time.monotonic() - started
            if stop.is_set():
                log.info(
                    "stopped after step %d with a checkpoint; the same command goes on from here", state.step
                )
                await folder.thread(write_report, folder.path)
                return 130

            started = time.monotonic()
            after = await _evaluation(config, heldout, ports, folder, state, stop, state.step)
            seconds["evaluate"] += time.monotonic() - started
        await folder.thread(folder.close, done=True)
    if before is not None and after is not None:
        values = summary(config, before, after, {name: round(value, 1) for name, value in seconds.items()})
        await folder.thread(write_json, folder.path / "summary.json", values)
        log.info("\n%s", table(values))
    await folder.thread(write_report, folder.path)
    log.info("report: %s", folder.path / "report.html")
    log.info("policy: %s", await folder.thread(folder.checkpoints.latest))
    return 0


def _memory(config: Config, gpu_gib: float | None) -> tuple[str, Sequence[str]]:
    """What learner and engine take, in words, and what does not fit."""
    memory = estimate(config, shapes_of(config.model.path), gpu_gib)
    said = f"a rank takes {memory.learner.total:.1f} GiB, the cache of an engine has {memory.engine.kv_cache:.1f} GiB"
    return said, memory.problems


def build_tabletop(config: Config) -> None:
    """Build the embedded datasets that the config asks for and that do not exist yet."""
    tabletop = config.data.tabletop
    for path, scenes, split in (
        (config.data.train, tabletop.train_scenes, Split.TRAIN),
        (config.data.heldout, tabletop.heldout_scenes, Split.HELDOUT),
    ):
        if not path or scenes == 0 or _is_dataset(path):
            continue
        with FolderLock(Path(path), "data.train and data.heldout", wait=True):
            if _is_dataset(path):  # another run has built it meanwhile
                continue
            log.info("building %s: %d scenes", path, scenes)
            build(
                Path(path),
                scenes=scenes,
                seed=tabletop.seed,
                split=split,
                difficulty=Difficulty(tabletop.difficulty),
                questions=1,
                workers=os.cpu_count() or 1,
            )


def _is_dataset(folder: str) -> bool:
    return any(Path(folder).glob("records-*.parquet"))


@contextlib.asynccontextmanager
async def cluster(config: Config, folder: RunFolder, stop: asyncio.Event) -> AsyncIterator[Ports]:
    """Ray and all actors, started together; ended together, whatever happens.

    Raises:
        PlacementError: the plan does not fit.
        Stopped: `stop` was set meanwhile.
    """
    start_ray()
    _stop_on_signal(stop)  # again: Ray's own handler would print a stack trace first
    async with contextlib.AsyncExitStack() as cleanup:
        cleanup.callback(ray.shutdown)
        placement = Placement(config)
        cleanup.callback(placement.close)
        await _until_stopped(stop, placement.reserve())
        config = _absolute(config)
        rubric = Rubric.from_config(config.reward, config.sampling.max_tokens)
        remote = None
        if config.reward.endpoint:
            remote = await RemoteRewardPool.connect(config.reward, rubric)
            cleanup.push_async_callback(remote.close)
        rollouts = RayRolloutPool(
            config, folder.frame_store, folder.path / "logs", placement, timeline=folder.timeline
        )
        cleanup.callback(rollouts.close)
        log.info("starting %s workers", ", ".join(f"{role.count} {role.name}" for role in plan(config)))
        learner = RayLearner(
            config, folder.frame_store, placement.options("learner"), timeline=folder.timeline
        )
        cleanup.callback(learner.close)
        await _until_stopped(stop, together([rollouts.start(), learner.restart()]))
        rewards = remote or _local_rewards(config, folder, rubric, placement, cleanup)
        sync = SupervisedSync(config, learner, rollouts, folder.timeline)
        sync.start()
        cleanup.callback(sync.close)
        if config.logging.prometheus:
            _show_metrics(config, folder, rollouts, learner, rewards, cleanup)
        scaling = Scaling(config, folder.path, rollouts, placement)
        scaling.start()
        cleanup.callback(scaling.close)
        yield Ports(rollouts=rollouts, rewards=rewards, learner=learner, sync=sync)


def _local_rewards(
    config: Config,
    folder: RunFolder,
    rubric: Rubric,
    placement: Placement,
    cleanup: contextlib.AsyncExitStack,
) -> RayRewardPool:
    rewards = RayRewardPool(config.reward, rubric, placement.anywhere("reward"), timeline=folder.timeline)
    cleanup.callback(rewards.close)
    return rewards


def _show_metrics(
    config: Config,
    folder: RunFolder,
    rollouts: RayRolloutPool,
    learner: RayLearner,
    rewards: RewardPool,
    cleanup: contextlib.AsyncExitStack,
) -> None:
    """On the metrics page of Ray's node, until Ray ends."""
    metrics = RayMetrics(config.run.name, lambda: worker_states(rollouts, learner, rewards))
    metrics.start()
    cleanup.callback(metrics.stop)
    logger = folder.loggers.add("prometheus", lambda _: metrics)
    cleanup.callback(logger.join, METRICS_S)
    cleanup.callback(logger.close, done=True)


async def _until_stopped(stop: asyncio.Event, work: Awaitable[T]) -> T:
    """The result of `work`; raises `Stopped` when `stop` is set first."""
    task = asyncio.ensure_future(work)
    await unless(stop, task)
    if task.cancelled():
        raise Stopped
    return task.result()


async def resume(config: Config, source: RecordSource, ports: Ports, folder: RunFolder) -> RunState:
    """The state of the latest checkpoint, loaded everywhere; a fresh one where there is none."""
    files = folder.checkpoints.thread
    checkpoint = await files(_checkpoint, config, folder)
    if checkpoint is None:
        await files(folder.rewind, 0)
        return RunState(step=0, version=0, ledger=Ledger(seed=config.run.seed, records=len(source.records)))
    state = await files(folder.checkpoints.state, checkpoint)
    if state.ledger.records != len(source.records):
        raise RunFolderError(
            f"{folder.path}: was trained on {state.ledger.records} records, {config.data.train} now has "
            f"{len(source.records)}; restore the dataset, or choose another run.name"
        )
    await ports.learner.load(checkpoint)
    await ports.sync.publish(state.version)
    await files(folder.rewind, state.step, config.run.resume)
    log.info("resumed after step %d from %s", state.step, checkpoint)
    return state


async def train_on(
    config: Config,
    source: RecordSource,
    ports: Ports,
    folder: RunFolder,
    state: RunState,
    stop: asyncio.Event,
    evaluator: Callable[[RunState], Coroutine[Any, Any, None]] | None,
) -> RunState:
    """`train`; when a learner rank is lost, all start again from the last checkpoint, and the run goes back to it.

    A start that fails counts like a loss: for some seconds Ray may place a rank on a node that is no more.

    Raises:
        Stopped: `stop` was set while ranks were lost; the last checkpoint stands.
        LearnerError: they were lost more than `learner.max_restarts` times.
    """
    losses = 0
    folder.timeline.drain(state.step)  # the start belongs to no step
    while True:
        try:
            if losses:
                state = await _until_stopped(stop, _begin_again(config, source, ports, folder))
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
        await _until_stopped(stop, asyncio.sleep(pause_s))


async def _begin_again(config: Config, source: RecordSource, ports: Ports, folder: RunFolder) -> RunState:
    await ports.learner.restart()
    state = await resume(config, source, ports, folder)
    if state.step == 0:  # without a checkpoint, engines may hold later weights than the learner
        await ports.sync.publish(0)
    return state


def _checkpoint(config: Config, folder: RunFolder) -> Path | None:
    """The checkpoint that `run.resume` names: the newest intact one, or the one at a path.

    A run goes back to a path once: when it was killed after that, the same command goes on from its newest.
    """
    if config.run.resume in {"auto", "never"}:
        return folder.checkpoints.latest_intact()
    reached = folder.checkpoints.resumed_from(config.run.resume)
    newest = None if reached is None else folder.checkpoints.latest_intact()
    if reached is not None and newest is not None and folder.checkpoints.state(newest).step >= reached:
        log.info(
            "this run went back to %s before, and goes on from its newest checkpoint; to go back once more, delete %s",
            config.run.resume,
            folder.checkpoints.folder / RESUMED,
        )
        return newest
    checkpoint = Path(config.run.resume)
    if not checkpoint.is_dir():
        raise ConfigError(
            f"run.resume = {config.run.resume}: must be auto, never, or the folder of a checkpoint such as "
            "runs/NAME/checkpoints/step_000010"
        )
    folder.checkpoints.verify(checkpoint)
    return checkpoint


def _sources(config: Config, folder: RunFolder, processor: Any) -> tuple[RecordSource, RecordSource | None]:
    source = RecordSource(config.data.train, processor, config.run.seed)
    folder.quarantine.records = len(source.records) + sum(failure.records for failure in source.failures)
    for failure in source.failures:
        folder.quarantine.add(failure)
    evaluating = config.data.heldout and config.evaluate.prompts
    return source, RecordSource(config.data.heldout, processor, config.run.seed) if evaluating else None


async def _evaluation(
    config: Config,
    heldout: RecordSource | None,
    ports: Ports,
    folder: RunFolder,
    state: RunState,
    stop: asyncio.Event,
    reached: int,
) -> Evaluation | None:
    """The evaluation after a step: read when it was done before, else done now, if that is the step `reached`."""
    if heldout is None:
        return None
    path = folder.path / "eval" / f"step_{state.step:06d}.json"
    if (known := await folder.thread(_read_evaluation, path)) is not None:
        return known
    if state.step != reached:
        log.warning(
            "the policy before training was not evaluated, and is no more here: the run will tell no gain"
        )
        return None
    prompts = await folder.thread(heldout.first, config.evaluate.prompts)
    log.info("evaluating %d held-out prompts after step %d", len(prompts), state.step)
    found = await _until_stopped(stop, evaluate(config, prompts, ports, state.version))
    await folder.thread(found.write, path)
    return found


def _read_evaluation(path: Path) -> Evaluation | None:
    return Evaluation.read(path) if path.exists() else None


def _evaluator(
    config: Config, heldout: RecordSource | None, ports: Ports, folder: RunFolder
) -> Callable[[RunState], Coroutine[Any, Any, None]] | None:
    """What evaluates greedily beside training; None where that is not asked for."""
    if heldout is None or config.evaluate.every == 0:
        return None
    folder.timeline.note("evaluation", None)
    files, checkpoints = folder.checkpoints.thread, folder.checkpoints
    prompts: list[Drawn | Failure] = []

    async def run(state: RunState) -> None:
        path = folder.path / "eval" / f"greedy_{state.step:06d}.json"
        known = await folder.thread(_read_evaluation, path)
        if known is not None:  # killed before it was noted, or after
            if (reward := means(known.greedy).get("total")) is not None:
                await files(checkpoints.note_held_out, state.step, reward)
            return
        if not prompts:
            prompts.extend(await folder.thread(heldout.first, config.evaluate.prompts))
        with folder.timeline.during("evaluation", "evaluate"):
            found = await evaluate(config, prompts, ports, state.version, greedy_only=True)
        if not found.greedy or FailureKind.OTHER_WEIGHTS.name.lower() in found.failures:
            log.warning(
                "no held-out evaluation after step %d, prompts failed: %s", state.step, found.failures
            )
            return
        await folder.thread(found.write, path)
        reward = means(found.greedy)["total"]
        best = await files(checkpoints.note_held_out, state.step, reward)
        folder.scalar("heldout/greedy_total", reward, state.step)
        log.info("held-out after step %d: greedy total %.3f, best %.3f", state.step, reward, best)

    return run


def _absolute(config: Config) -> Config:
    """Actors run in other folders: local paths are made absolute for them."""
    path = Path(config.model.path)
    model = dataclasses.replace(
        config.model, path=str(path.resolve()) if path.exists() else config.model.path
    )
    return dataclasses.replace(config, model=model)


def _cancel_when_lost(lock: FolderLock) -> None:
    loop, this = asyncio.get_running_loop(), asyncio.current_task()

    def cancel() -> None:
        if this is not None:
            loop.call_soon_threadsafe(this.cancel)

    lock.when_lost = cancel


def _stop_on_signal(stop: asyncio.Event) -> None:
    """Let Ctrl-C or SIGTERM set the event; a second Ctrl-C ends the process at once."""
    loop = asyncio.get_running_loop()

    def handle() -> None:
        if not stop.is_set():
            log.info("stopping after a checkpoint; again to stop at once")
        stop.set()
        loop.remove_signal_handler(signal.SIGINT)

    loop.add_signal_handler(signal.SIGINT, handle)
    loop.add_signal_handler(signal.SIGTERM, handle)


if __name__ == "__main__":
    run_main(main)
