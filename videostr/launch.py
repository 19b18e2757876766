"""Composition root: reads the config, starts the actors, runs (videostr/run.py), reports.

`python -m videostr.launch --config configs/X.yaml [key=value ...]`, also through `ray job submit --`. Resumes when the run
folder has a checkpoint; `--check` says what would not work, and starts nothing. Exit status: 0 done, 1 the run failed, 2 bad
input, 130 stopped by Ctrl-C or SIGTERM after a checkpoint.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

from actors.learner.ray_learner import RayLearner
from actors.placement import ROLES, Placement, start_ray, stop_ray
from actors.pools import RayRolloutPool
from actors.prometheus import RayMetrics, worker_states
from actors.remote_reward import RemoteRewardPool
from actors.reward import RayRewardPool
from actors.rollout import RolloutWorker
from actors.scaling import Scaling
from actors.sync import SupervisedSync
from rewards import Rubric
from videostr.check import check
from videostr.command import STOPPED, command, config_parser, run_main
from videostr.config.load import load
from videostr.config.schema import Config, RunConfig
from videostr.console import log_to_console, log_to_file
from videostr.files import write_json
from videostr.grpo.losses import check_custom, staleness_warning
from videostr.heldout import summary, table
from videostr.lock import FolderLock
from videostr.loggers import require
from videostr.models.checkpoint import open_checkpoint
from videostr.ports import Ports, RewardPool
from videostr.preflight.findings import as_text, exit_status
from videostr.report.page import write_report
from videostr.run import HeldOut, Outcome, Stopped, cancel_when_lost, open_sources, run, until_stopped
from videostr.run_folder import RunFolder, run_folder
from videostr.sync import EngineSync
from videostr.tabletop.build import build_missing
from videostr.tasks import gather_or_cancel

log = logging.getLogger("videostr.launch")
METRICS_S = 5.0
"""Longest wait for the last figures to be shown."""


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit status, as in the module's docstring."""
    parser = config_parser("python -m videostr.launch", __doc__)
    parser.add_argument("--check", action="store_true", help="say what would not work, and start nothing")
    options = parser.parse_args(arguments)
    log_to_console()
    config = load(options.config, options.overrides)
    require(config.logging)
    if options.check:
        findings = check(config, inputs=True)
        log.info("\n%s", as_text(findings))
        return exit_status(findings)

    def start(lock: FolderLock) -> Coroutine[Any, Any, int]:
        check_custom(config.loss)
        processor = open_checkpoint(
            config.model.path, cpu=config.rollout.num_gpus == 0, dtype=config.model.dtype
        )
        build_missing(config)
        return launch(config, lock, processor)

    return hold(config, start)


def hold(config: RunConfig, start: Callable[[FolderLock], Coroutine[Any, Any, int]]) -> int:
    """Run what `start` returns while no other process uses the run folder; return the exit status."""
    with FolderLock(run_folder(config), "run.name") as lock:
        try:
            return asyncio.run(start(lock))
        except (Stopped, KeyboardInterrupt):
            log.info("stopped; the same command continues from here")
            return STOPPED
        except asyncio.CancelledError:
            if not lock.is_lost:
                raise
            return 2


async def launch(config: Config, lock: FolderLock, processor: Any) -> int:
    """Run from the config to the report; cancelled when another process takes the lock of its folder."""
    began = time.monotonic()
    if warning := staleness_warning(config):
        log.warning("%s", warning)
    with open_folder(config, lock) as (folder, stop):
        source, heldout = await until_stopped(stop, folder.thread(open_sources, config, folder, processor))
        async with cluster(config, folder, stop) as ports:
            evaluation = HeldOut(config, heldout, ports, folder) if heldout is not None else None
            outcome = await run(config, source, evaluation, ports, folder, stop, began)
        return await finish(config, folder, outcome)


@contextlib.contextmanager
def open_folder(config: RunConfig, lock: FolderLock) -> Iterator[tuple[RunFolder, asyncio.Event]]:
    """Open the run folder and its log file; the event is set when the user asks to stop."""
    cancel_when_lost(lock)
    folder = RunFolder(config)
    log_to_file(folder.path / "logs" / "driver.log")
    log.info("run folder %s", folder.path)
    stop = asyncio.Event()
    _stop_on_signal(stop)
    with contextlib.closing(folder):
        yield folder, stop


async def finish(config: Config, folder: RunFolder, outcome: Outcome | None) -> int:
    """Write summary and report of a run, or the report alone of one that was stopped; return the exit status."""
    if outcome is None:
        await folder.thread(write_report, folder.path)
        return STOPPED
    await folder.thread(folder.close, done=True)
    if outcome.before is not None and outcome.after is not None:
        seconds = {name: round(value, 1) for name, value in outcome.seconds.items()}
        values = summary(config, outcome.before, outcome.after, seconds)
        await folder.thread(write_json, folder.path / "summary.json", values)
        log.info("\n%s", table(values))
    await folder.thread(write_report, folder.path)
    log.info("report: %s", folder.path / "report.html")
    if (newest := await folder.thread(folder.checkpoints.latest)) is not None:
        log.info("policy: %s", newest / "policy")
    return 0


@contextlib.asynccontextmanager
async def cluster(
    config: Config,
    folder: RunFolder,
    stop: asyncio.Event,
    *,
    worker_class: type[Any] = RolloutWorker,
    sync_class: Callable[..., EngineSync] = SupervisedSync,
    rewards: RewardPool | None = None,
) -> AsyncIterator[Ports]:
    """Start Ray and all actors together; end them together, whatever happens.

    Args:
        config: of the run.
        folder: of the run.
        stop: set when the user asks to stop.
        worker_class: what runs as a rollout worker.
        sync_class: sends weights; called as `SupervisedSync`.
        rewards: scores in place of reward workers.

    Raises:
        PlacementError: the plan does not fit.
        Stopped: `stop` was set meanwhile.
    """
    start_ray()
    _stop_on_signal(stop)  # again: Ray's own handler would print a stack trace first
    async with contextlib.AsyncExitStack() as cleanup:
        cleanup.callback(stop_ray)
        placement = Placement(config, ROLES if rewards is None else ROLES[:2])
        cleanup.callback(placement.close)
        await until_stopped(stop, placement.reserve())
        config = _absolute(config)
        rubric = Rubric.from_config(config.reward, config.sampling.max_tokens)
        if rewards is None and config.reward.endpoint:
            rewards = remote = await RemoteRewardPool.connect(config.reward, rubric)
            cleanup.push_async_callback(remote.close)
        rollouts = RayRolloutPool(
            config, folder.frame_store, folder.path / "logs", placement, worker_class, folder.timeline
        )
        cleanup.callback(rollouts.close)
        log.info("starting %s workers", ", ".join(f"{role.count} {role.name}" for role in placement.roles))
        learner = RayLearner(
            config, folder.frame_store, placement.options("learner"), timeline=folder.timeline
        )
        cleanup.callback(learner.close)
        await until_stopped(stop, gather_or_cancel([rollouts.start(), learner.restart()]))
        if rewards is None:
            rewards = local = RayRewardPool(
                config.reward, rubric, placement.anywhere("reward"), timeline=folder.timeline
            )
            cleanup.callback(local.close)
        sync = sync_class(config, learner, rollouts, folder.timeline)
        sync.start()
        cleanup.callback(sync.close)
        if config.logging.prometheus:
            _show_metrics(config, folder, rollouts, learner, rewards, cleanup)
        scaling = Scaling(config, folder.path, rollouts, placement)
        scaling.start()
        cleanup.callback(scaling.close)
        yield Ports(rollouts=rollouts, rewards=rewards, learner=learner, sync=sync)


def _show_metrics(
    config: Config,
    folder: RunFolder,
    rollouts: RayRolloutPool,
    learner: RayLearner,
    rewards: RewardPool,
    cleanup: contextlib.AsyncExitStack,
) -> None:
    """Show metrics on the page of Ray's node, until Ray ends."""
    metrics = RayMetrics(config.run.name, lambda: worker_states(rollouts, learner, rewards))
    metrics.start()
    cleanup.callback(metrics.stop)
    logger = folder.loggers.add("prometheus", lambda _: metrics)
    cleanup.callback(logger.join, METRICS_S)
    cleanup.callback(logger.close, done=True)


def _absolute(config: Config) -> Config:
    """Return the config with absolute local paths: actors run in other folders."""
    path = Path(config.model.path)
    model = dataclasses.replace(
        config.model, path=str(path.resolve()) if path.exists() else config.model.path
    )
    return dataclasses.replace(config, model=model)


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
