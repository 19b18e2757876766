"""Disks that are full, read-only or slow: real errors on small file systems; the loop on the ports of test_loop.py.

A whole run on such disks, with Ray and engines, is in tests/test_run_folder.py.
"""

from __future__ import annotations

import asyncio
import errno
import importlib
import io
import json
import logging
import os
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from tests.videostr.test_loop import Learner, Mortal, Stage
from videostr import checkpoint as checkpoint_module
from videostr.checkpoint import Files, Ledger, RunState
from videostr.command import command
from videostr.console import log_to_console, log_to_file
from videostr.errors import StorageError
from videostr.files import append_line, make_folder, replacing, storage, storage_error, write_json
from videostr.groups import LearnerBatch
from videostr.lock import FolderLock
from videostr.run import cancel_when_lost, resume, train_with_restarts
from videostr.tasks import FileThread
from videostr.traces import read_traces
from videostr.types import Update

Write = Callable[[Path], object]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], capture_output=True)
    if done.returncode:
        pytest.skip("needs root: mounts a small file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def wait_for(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def fill(folder: Path) -> Path:
    """Leave no room on a file system."""
    path = folder / "fill"
    with path.open("ab", buffering=0) as file:
        for size in (4096, 1):
            with suppress(OSError):
                while True:
                    file.write(bytes(size))
    return path


@contextmanager
def limited(size: int) -> Iterator[None]:
    """Files of this process may not grow beyond `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# --------------------------------------------------------------------------------------------------- one write


def _numpy(path: Path) -> None:
    with storage(path):
        np.save(path, np.zeros(100_000))


def _safetensors(path: Path) -> None:
    with storage(path):
        save_file({"a": torch.zeros(100_000)}, path)


WRITES: dict[str, Write] = {
    "json": lambda path: write_json(path, "x" * 400_000),
    "line": lambda path: append_line(path, "x" * 400_000),
    "numpy": _numpy,
    "safetensors": _safetensors,
    "parquet": lambda path: _parquet_of(path, 400_000),
}


def _parquet_of(path: Path, size: int) -> None:
    with replacing(path) as scratch:
        pq.write_table(pa.table({"a": [np.random.default_rng(0).bytes(size)]}), scratch)


@pytest.mark.parametrize("write", list(WRITES.values()), ids=list(WRITES))
def test_a_full_disk_is_told_with_path_and_remedy(write: Write, small_disk: Path) -> None:
    path = small_disk / "file"
    with pytest.raises(StorageError, match=rf"^{path}: No space left on device; free space there"):
        write(path)
    assert not [p for p in small_disk.iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize("write", [WRITES["json"], WRITES["line"]], ids=["json", "line"])
def test_a_limit_on_the_size_of_files_is_reported(write: Write, tmp_path: Path) -> None:
    with (
        limited(1000),
        pytest.raises(StorageError, match=r"File too large; raise the limit on the size of a file"),
    ):
        write(tmp_path / "file")


def test_a_read_only_disk_is_reported(small_disk: Path) -> None:
    write_json(small_disk / "old.json", 1)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    for work in (
        lambda: write_json(small_disk / "old.json", 2),
        lambda: append_line(small_disk / "old.json", "2"),
        lambda: make_folder(small_disk / "a" / "b"),
        lambda: log_to_file(small_disk / "log"),
    ):
        with pytest.raises(StorageError, match=r"Read-only file system; mount it for writing"):
            work()
    assert (small_disk / "old.json").read_text() == "1\n"


@pytest.mark.parametrize(
    "number",
    [errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ENAMETOOLONG],
)
def test_other_errors_of_the_storage_have_a_remedy(number: int) -> None:
    told = storage_error(OSError(number, os.strerror(number)), "/runs/a")
    assert str(told).startswith(f"/runs/a: {os.strerror(number)}; ")


@pytest.mark.parametrize(
    "error", [ConnectionRefusedError(errno.ECONNREFUSED, "no"), TimeoutError(), OSError("x")]
)
def test_other_errors_are_none_of_the_storage(error: OSError) -> None:
    assert storage_error(error, "a") is None


def test_a_line_is_appended_whole_or_not_at_all(small_disk: Path) -> None:
    path = small_disk / "metrics.jsonl"
    append_line(path, '{"step": 1}')
    filler = fill(small_disk)
    os.truncate(filler, filler.stat().st_size - 4096)  # room for a part of the line
    with pytest.raises(StorageError):
        append_line(path, "x" * 10_000)
    assert path.read_text() == '{"step": 1}\n'
    filler.unlink()
    append_line(path, '{"step": 2}')
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_a_log_file_that_is_cut_short_is_told_once(
    small_disk: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    log_to_file(small_disk / "driver.log")
    root = logging.getLogger()
    handler = root.handlers[-1]
    told = f"{small_disk / 'driver.log'} lacks all lines from here: No space left on device"
    try:
        fill(small_disk)
        for _ in range(3):
            root.warning("x" * 5000)
        wait_for(lambda: told in caplog.messages)
    finally:
        root.removeHandler(handler)
    assert caplog.messages.count(told) == 1
    assert "Traceback" not in capsys.readouterr().err


def test_a_terminal_that_was_closed_is_left_for_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    log_to_console(stream)
    ours = logging.getLogger("videostr")
    try:
        stream.close()
        ours.info("step 1")
        ours.info("step 2")
    finally:
        ours.handlers = []
    err = capsys.readouterr().err
    assert [line.partition(" ")[2] for line in err.splitlines()] == ["step 1", "step 2"]


# ---------------------------------------------------------------------------------------------- the loop, disk full


class _Full:
    """Lets appends fail as on a full disk, from a given step on, for a given file."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, name: str, step: int, number: int = errno.ENOSPC
    ) -> None:
        self.is_full = True
        original = append_line

        def append(path: Path, line: str) -> None:
            if self.is_full and path.name == name and json.loads(line).get("step", step) >= step:
                with storage(path):
                    raise OSError(number, os.strerror(number))
            original(path, line)

        monkeypatch.setattr("videostr.run_folder.append_line", append)


def rows(folder: Path, name: str = "metrics.jsonl") -> list[int]:
    return [json.loads(line)["step"] for line in (folder / name).read_text().splitlines()]


@pytest.mark.parametrize("name", ["metrics.jsonl", "timeline.jsonl"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_a_step_that_cannot_be_noted_ends_the_run_after_a_checkpoint(
    name: str, number: int, tabletop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(tabletop, tmp_path, steps=9, checkpoint_every=5)
    disk = _Full(monkeypatch, name, step=3, number=number)
    path = stage.folder.path
    with pytest.raises(StorageError) as found:
        stage.train()
    words = str(found.value)
    assert words.startswith(f"{path / name}: {os.strerror(number)}; ")
    assert words.endswith(
        f"then the same command continues from {path}/checkpoints/step_000003 ({name} lack the last step)"
    )
    assert "\n" not in words
    disk.is_full = False

    again = Stage(tabletop, tmp_path, steps=9, checkpoint_every=5)
    state = again.folder.checkpoints.state(path / "checkpoints" / "step_000003")
    again.rollouts.version = state.version
    assert again.train(state).step == 9
    learned = [record for batch in stage.learned() + again.learned() for record in batch]
    assert learned == stage.order(36)


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnhandledThreadExceptionWarning"
)  # of TensorBoard's own thread
def test_a_run_folder_that_is_deleted_meanwhile_ends_the_run_after_a_checkpoint(
    tabletop: Path, tmp_path: Path
) -> None:
    stage = Stage(tabletop, tmp_path, steps=9, checkpoint_every=5)
    path = stage.folder.path

    async def update(batch: LearnerBatch) -> Update:
        if len(stage.learner.batches) == 2:
            path.rename(tmp_path / "elsewhere")
        return await Learner.update(stage.learner, batch)

    stage.learner.update = update  # type: ignore[method-assign]
    with pytest.raises(StorageError) as found:
        stage.train()
    words = str(found.value)
    assert words.startswith(f"{path / 'metrics.jsonl'}: its folder is gone: it was deleted or renamed")
    assert words.endswith(f"then the same command continues from {path}/checkpoints/step_000003")
    assert rows(path) == [3]
    assert rows(tmp_path / "elsewhere") == [1, 2]


def test_what_lacked_room_is_noted_when_the_last_checkpoint_has_made_some(
    tabletop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(tabletop, tmp_path, steps=9, checkpoint_every=2, keep_checkpoints=1)
    disk = _Full(monkeypatch, "metrics.jsonl", step=3)

    async def write(folder: Path) -> Files:
        files = await Learner.write(stage.learner, folder)
        disk.is_full = stage.learner.copied != "version 3"
        return files

    stage.learner.write = write  # type: ignore[method-assign]
    with pytest.raises(StorageError, match=r"continues from \S+/step_000003$"):
        stage.train()
    assert rows(stage.folder.path) == [1, 2, 3]


def test_steps_that_are_lost_are_named(
    tabletop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(tabletop, tmp_path, steps=9, checkpoint_every=2)
    _Full(monkeypatch, "metrics.jsonl", step=4)

    async def write(folder: Path) -> Files:
        if stage.learner.copied != "version 2":
            raise OSError(errno.ENOSPC, "No space left on device")
        return await Learner.write(stage.learner, folder)

    stage.learner.write = write  # type: ignore[method-assign]
    with pytest.raises(
        StorageError,
        match=r"continues from \S+/step_000002, and computes steps 3 to 4 again \(metrics.jsonl lack",
    ):
        stage.train()
    assert stage.folder.quarantine.counts["checkpoint"] == 1


def test_a_quarantine_or_traces_that_cannot_be_written_end_the_run_alike(
    tabletop: Path, tmp_path: Path, small_disk: Path
) -> None:
    stage = Stage(tabletop, tmp_path, steps=4, traces_every=2, checkpoint_every=9)
    traces = stage.folder.path / "traces"
    traces.rmdir()
    traces.symlink_to(small_disk)
    fill(small_disk)
    with pytest.raises(
        StorageError, match=rf"^{traces}/step_000002.parquet: No space left .* from \S+/step_000002$"
    ):
        stage.train()
    assert rows(stage.folder.path) == [1, 2]
    (small_disk / "fill").unlink()
    again = Stage(tabletop, tmp_path, steps=4, traces_every=2, checkpoint_every=9)
    again.rollouts.version = 2
    again.train(again.folder.checkpoints.state(stage.folder.checkpoints.latest()))  # type: ignore[arg-type]
    assert len(read_traces(traces / "step_000004.parquet")) == 8


def test_no_checkpoint_is_tried_while_the_learner_is_ahead_of_the_last_step(
    tabletop: Path, tmp_path: Path
) -> None:
    stage = Stage(tabletop, tmp_path, steps=4, checkpoint_every=1)

    async def update(batch: LearnerBatch) -> Update:
        if len(stage.learner.batches) == 2:
            raise StorageError("/frames: No space left on device; free space there")  # as of a rank
        return await Learner.update(stage.learner, batch)

    stage.learner.update = update  # type: ignore[method-assign]
    with pytest.raises(StorageError, match=r"^/frames: .*continues from \S+/step_000002$"):
        stage.train()


# --------------------------------------------------------------------------------------------- slow file systems


class Slow:
    """A file system stand-in that hangs in one kind of call until it is let go."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.go = threading.Event()

    def __call__(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def slow(*arguments: Any, **options: Any) -> Any:
            assert threading.current_thread() is not threading.main_thread(), (
                "the event loop waits for a disk"
            )
            self.entered.set()
            assert self.go.wait(60)
            return original(*arguments, **options)

        return slow


async def ticks_while_slow(slow: Slow, work: Any) -> tuple[Any, bool]:
    """The result of `work`, and whether a signal and a deadline were served while the disk hung."""
    task = asyncio.ensure_future(work)
    heard = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, heard.set)
    while not slow.entered.is_set():
        assert not task.done(), task.result()
        await asyncio.sleep(0.001)
    os.kill(os.getpid(), signal.SIGUSR1)
    served = 0
    async with asyncio.timeout(30):
        await heard.wait()
        for _ in range(5):  # health checks
            await asyncio.sleep(0.001)
            served += 1
    assert not task.done()
    with pytest.raises(TimeoutError):  # a deadline
        await asyncio.wait_for(asyncio.shield(task), 0.01)
    slow.go.set()
    return await task, served == 5


@pytest.mark.parametrize("call", ["file_digest", "sync_to_disk", "shutil.rmtree", "write_json"])
def test_writing_a_checkpoint_never_blocks_the_loop(
    call: str, tabletop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(tabletop, tmp_path, steps=4, checkpoint_every=1, keep_checkpoints=1)
    fresh = RunState(step=0, version=0, ledger=Ledger(seed=0, records=len(stage.source.records)))
    target = checkpoint_module.shutil if call == "shutil.rmtree" else checkpoint_module
    name = call.rpartition(".")[2]
    slow = Slow()
    monkeypatch.setattr(target, name, slow(getattr(target, name)))
    run = train_with_restarts(stage.config, stage.source, stage.ports, stage.folder, fresh, stage.stop, None)
    state, is_served = asyncio.run(ticks_while_slow(slow, run))
    assert is_served
    assert state.step == 4
    assert [p.name for p in (tmp_path / "r" / "checkpoints").iterdir()] == ["step_000004"]


@pytest.mark.parametrize("call", ["file_digest", "shutil.rmtree"])
def test_reading_and_discarding_never_block_the_loop(
    call: str, tabletop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Stage(tabletop, tmp_path, steps=4, checkpoint_every=2).train()
    (tmp_path / "r" / "checkpoints" / ".writing_000005").mkdir()  # left by a kill
    again = Stage(tabletop, tmp_path, steps=6)
    ports = again.ports.__class__(
        rollouts=again.rollouts,
        rewards=again.ports.rewards,
        learner=Mortal(again.rollouts),
        sync=again.ports.sync,
    )
    target = checkpoint_module.shutil if call == "shutil.rmtree" else checkpoint_module
    name = call.rpartition(".")[2]
    slow = Slow()
    monkeypatch.setattr(target, name, slow(getattr(target, name)))
    state, is_served = asyncio.run(
        ticks_while_slow(slow, resume(again.config, again.source, ports, again.folder))
    )
    assert is_served
    assert state.step == 4
    assert not (tmp_path / "r" / "checkpoints" / ".writing_000005").exists()


@pytest.mark.parametrize(
    "target",
    ["videostr.run_folder.append_line", "videostr.loop.write_traces", "videostr.saver.write_json"],
)
def test_noting_a_step_never_blocks_the_loop(
    target: str, tabletop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(tabletop, tmp_path, steps=2, traces_every=1, checkpoint_every=1)
    fresh = RunState(step=0, version=0, ledger=Ledger(seed=0, records=len(stage.source.records)))
    module, _, name = target.rpartition(".")
    slow = Slow()
    monkeypatch.setattr(target, slow(getattr(importlib.import_module(module), name)))
    run = train_with_restarts(stage.config, stage.source, stage.ports, stage.folder, fresh, stage.stop, None)
    state, is_served = asyncio.run(ticks_while_slow(slow, run))
    assert is_served
    assert state.step == 2


def test_work_of_a_disk_that_was_given_up_comes_before_what_follows() -> None:
    done: list[str] = []
    begun, go = threading.Event(), threading.Event()

    def first() -> None:
        begun.set()
        assert go.wait(60)
        done.append("delete")

    async def run() -> None:
        thread = FileThread("test")
        task = asyncio.create_task(thread(first))
        waiting = asyncio.create_task(thread(done.append, "never begun"))
        while not begun.is_set():  # noqa: ASYNC110  # of a thread
            await asyncio.sleep(0.001)
        task.cancel()
        waiting.cancel()
        following = asyncio.create_task(thread(done.append, "write"))
        await asyncio.sleep(0.01)
        assert done == []
        go.set()
        await following

    asyncio.run(run())
    assert done == ["delete", "write"]


def test_a_run_killed_while_it_deletes_keeps_whole_checkpoints(
    tabletop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(tabletop, tmp_path, steps=4, checkpoint_every=1, keep_checkpoints=2)

    def cut(path: Path, ignore_errors: bool = False) -> None:
        if path.name.startswith(".deleting_") and path.exists():
            raise KeyboardInterrupt  # the last thing that this process does

    monkeypatch.setattr(checkpoint_module.shutil, "rmtree", cut)
    with pytest.raises(KeyboardInterrupt):
        stage.train()
    monkeypatch.undo()
    folder = tmp_path / "r" / "checkpoints"
    assert sorted(p.name for p in folder.iterdir()) == [".deleting_step_000001", "step_000002", "step_000003"]
    for name in ("step_000002", "step_000003"):
        stage.folder.checkpoints.verify(folder / name)
    again = Stage(tabletop, tmp_path, steps=4, checkpoint_every=1)
    again.rollouts.version = 3
    again.train(again.folder.checkpoints.state(folder / "step_000003"))
    assert sorted(p.name for p in folder.iterdir()) == ["step_000003", "step_000004"]


def test_a_run_whose_lock_was_taken_is_cancelled(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path, "run.name")

    async def run() -> None:
        cancel_when_lost(lock)
        threading.Thread(target=lock.when_lost).start()
        await asyncio.sleep(60)

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(run())


# ------------------------------------------------------------------------------------------------------ commands


def test_what_a_command_meets_on_a_disk_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    @command
    def full(arguments: Sequence[str] | None = None) -> int:
        raise OSError(errno.ENOSPC, "No space left on device", "/runs/a/x")

    assert full() == 2
    err = capsys.readouterr().err
    assert err.startswith("error: /runs/a/x: No space left on device; free space there")
    assert err.count("\n") == 1

    @command
    def other(arguments: Sequence[str] | None = None) -> int:
        raise ConnectionResetError("peer")

    with pytest.raises(ConnectionResetError):
        other()
