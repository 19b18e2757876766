"""The runs of an ablation: every arm with every seed, each a run of its own that resumes like any other.

In: an `AblationConfig`. Out: a run folder for each arm and seed, below that of the ablation. Runs are processes
(`python -m videostr.launch`), some at a time: on one machine one after another, on a cluster side by side. A run that has its
`summary.json`, or whose scores were kept, is done, and is not started again.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from videostr.checkpoint import Checkpoints
from videostr.config.load import load, load_sft
from videostr.config.schema import AblationConfig, Config, RunConfig
from videostr.data.records import read_records
from videostr.errors import ConfigError, VideoStrError
from videostr.files import make_folder
from videostr.metrics import duration
from videostr.models.base import read_config
from videostr.tasks import race

log = logging.getLogger("videostr.ablate")
OWN = ("run.name", "run.dir", "run.seed")
"""Keys that the ablation sets itself."""
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmRun:
    """One arm with one seed."""

    arm: str
    seed: int
    parent: Path
    """Folder of the ablation."""
    base: str
    """Config of the training run."""
    overrides: tuple[str, ...]
    sft: str = ""
    """Config of the supervised fine-tuning that takes the place of the training run, which then only evaluates."""
    sft_overrides: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.arm}-{self.seed}"

    @property
    def folder(self) -> Path:
        return self.parent / self.name

    @property
    def sft_folder(self) -> Path:
        return self.parent / f"{self.name}-sft"

    @property
    def scores(self) -> Path:
        """What is kept of it when it is done (`videostr/ablate/scores.py`)."""
        return self.parent / f"{self.name}.json"

    @property
    def done(self) -> bool:
        return self.scores.exists() or (self.folder / "summary.json").exists()

    def arguments(self, name: str) -> list[str]:
        """Return the overrides that every run of the ablation has."""
        return [f"run.dir={self.parent}", f"run.name={name}", f"run.seed={self.seed}"]

    def next_command(self) -> list[str]:
        """Return the command that is to be run now, without the interpreter."""
        launch = ["videostr.launch", "--config", self.base, *self.overrides]
        if not self.sft:
            return [*launch, *self.arguments(self.name)]
        if not (self.sft_folder / "summary.json").exists():
            sft = ["videostr.sft", "--config", self.sft, *self.sft_overrides]
            return [*sft, *self.arguments(self.sft_folder.name)]
        policy = Checkpoints(self.sft_folder / "checkpoints", keep=1).latest()
        return [*launch, f"model.path={policy}/policy", "train.steps=0", *self.arguments(self.name)]


def runs_of(config: AblationConfig, path: str) -> list[ArmRun]:
    """Return the runs, all arms of a seed together, so that what is done at any time compares them.

    Args:
        config: of the ablation.
        path: its file, for messages.

    Raises:
        ConfigError: an arm's training would be refused, or its policy or records are not there; names the arm.
    """
    parent = Path(config.dir) / config.name
    found = []
    for seed in sorted({*config.seeds, *(s for arm in config.arms.values() for s in arm.seeds)}):
        found += [
            ArmRun(
                arm=name,
                seed=seed,
                parent=parent,
                base=config.base,
                overrides=(*config.overrides, *(() if arm.sft else arm.overrides)),
                sft=arm.sft,
                sft_overrides=tuple(arm.overrides) if arm.sft else (),
            )
            for name, arm in config.arms.items()
            if seed in (arm.seeds or config.seeds)
        ]
    for name in config.arms:
        _check(f"{path}: arms.{name}", next(run for run in found if run.arm == name))
    return found


def _check(where: str, run: ArmRun) -> None:
    for override in (*run.overrides, *run.sft_overrides):
        if override.partition("=")[0] in OWN:
            raise ConfigError(f"{where}: {override}: the ablation sets it itself", remedy="leave it out")
    try:
        _check_inputs(load(run.base, [*run.overrides, *run.arguments(run.name)]))
        if run.sft:
            _check_inputs(load_sft(run.sft, [*run.sft_overrides, *run.arguments(run.name)]))
    except VideoStrError as error:
        raise ConfigError(f"{where}: {error}") from None


def _check_inputs(config: RunConfig) -> None:
    if isinstance(config, Config) or not config.model.tiny:
        read_config(config.model.path)
    data = config.data
    for folder, scenes in (
        (data.train, data.tabletop.train_scenes),
        (data.heldout, data.tabletop.heldout_scenes),
    ):
        if folder and not scenes:
            next(read_records(folder))


async def run_all(
    runs: Sequence[ArmRun], at_once: int, stop: asyncio.Event, *, after: Callable[[], None]
) -> list[ArmRun]:
    """Run what is not done yet; one that fails is tried again after all others. Return those that failed twice.

    Args:
        runs: of the ablation.
        at_once: how many at a time.
        stop: set when the user asks to stop: runs end after a checkpoint.
        after: called when a run is done.
    """
    left = [run for run in runs if not run.done]
    if len(left) < len(runs):
        log.info("%d of %d runs are done", len(runs) - len(left), len(runs))
    failed = await _run_some(left, at_once, stop, after)
    return await _run_some(failed, at_once, stop, after)


async def _run_some(
    runs: Sequence[ArmRun], at_once: int, stop: asyncio.Event, after: Callable[[], None]
) -> list[ArmRun]:
    waiting, failed = list(runs), []

    async def work() -> None:
        while waiting and not stop.is_set():
            run = waiting.pop(0)
            if await _run(run, stop):
                after()
            elif not stop.is_set():
                failed.append(run)

    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(work())
    return failed


async def _run(run: ArmRun, stop: asyncio.Event) -> bool:
    """Run an arm with a seed to its end; return whether it got there."""
    while not run.done:
        command = run.next_command()
        started = time.monotonic()
        log.info("%s: %s", run.name, command[0])
        status = await _process(command, run.parent / f"{run.name}.log", stop)
        if stop.is_set():
            return False
        if status != 0:
            log.error(
                "%s: failed with status %d; %s says why", run.name, status, run.parent / f"{run.name}.log"
            )
            return False
        log.info("%s: %s done after %s", run.name, command[0], duration(time.monotonic() - started))
    return True


async def _process(command: Sequence[str], output: Path, stop: asyncio.Event) -> int:
    """Run a module in a process of its own, whose output is added to a file; asked to stop when `stop` is set."""
    make_folder(output.parent)
    with output.open("ab") as file:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", *command),
            stdout=file,
            stderr=file,
            stdin=asyncio.subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C reaches it once, from here
            preexec_fn=partial(_end_with, os.getpid()),
        )
        ended = asyncio.ensure_future(process.wait())
        await race(stop, ended)
        if stop.is_set() and process.returncode is None:
            process.send_signal(signal.SIGINT)
        return await process.wait()


def _end_with(parent: int) -> None:
    """Let Linux ask this process to stop when the one that started it has ended, however that was."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGINT)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGINT)
