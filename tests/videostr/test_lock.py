"""One process at a time in a folder: real processes, killed, forked and raced; other machines by what they leave."""

from __future__ import annotations

import errno
import fcntl
import importlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from videostr import lock
from videostr.errors import RunFolderError, StorageError
from videostr.files import write_json
from videostr.lock import HOLDER, LOCK, FolderLock, find_holder

ROOT = Path(__file__).parents[2]
HOLD = """
import os, signal, sys, time
from pathlib import Path
from videostr.lock import FolderLock
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
with FolderLock(Path(sys.argv[1]), "run.name"):
    {then}
    print("held", flush=True)
    time.sleep(600)
"""


@contextmanager
def held(folder: Path, then: str = "") -> Iterator[subprocess.Popen[str]]:
    """Another process that holds a folder."""
    command = [sys.executable, "-c", HOLD.format(then=then), str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.iterdir() if p.name != HOLDER}


def test_a_second_process_is_refused_with_host_pid_and_remedy_and_touches_nothing(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    with held(tmp_path) as process:
        before = snapshot(tmp_path)
        with pytest.raises(RunFolderError) as found, FolderLock(tmp_path, "run.name"):
            pass
        assert snapshot(tmp_path) == before
        assert f"{tmp_path}: in use by process {process.pid} on {os.uname().nodename} (since 20" in str(
            found.value
        )
        assert f"`kill -INT {process.pid}`" in str(found.value)
        assert str(found.value).endswith("or choose another run.name")
        assert str(find_holder(tmp_path)).startswith(f"process {process.pid} on ")
        link = tmp_path.parent / f"{tmp_path.name}-link"
        link.symlink_to(tmp_path)
        with pytest.raises(RunFolderError), FolderLock(link, "run.name"):
            pass


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_holder_that_ended_in_any_way_holds_nothing(end: int, tmp_path: Path) -> None:
    with held(tmp_path) as process:
        process.send_signal(end)
        process.wait(60)
    assert find_holder(tmp_path) is None
    with FolderLock(tmp_path, "run.name"):
        assert json.loads((tmp_path / HOLDER).read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "child",
    [
        "if os.fork() == 0: time.sleep(600)",
        "import subprocess; subprocess.Popen(['sleep', '600'], close_fds=False)",
        "import multiprocessing as m; m.get_context('fork').Process(target=time.sleep, args=(600,), daemon=True).start()",
    ],
    ids=["fork", "subprocess", "multiprocessing"],
)
def test_children_of_a_dead_holder_do_not_hold_on(child: str, tmp_path: Path) -> None:
    with held(tmp_path, f"os.setpgid(0, 0)\n    {child}") as process:
        group = process.pid
        process.kill()
        process.wait(60)
        try:
            os.killpg(group, 0)  # the child lives
            with FolderLock(tmp_path, "run.name"):
                pass
        finally:
            os.killpg(group, signal.SIGKILL)


def _race(folder: str, start: Any, ended: Any, results: Any) -> None:
    start.wait()
    try:
        with FolderLock(Path(folder), "run.name"):
            results.put(True)
            ended.wait(60)
    except RunFolderError:
        results.put(False)


def test_of_many_starts_at_once_one_is_let_in(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    start, ended, results = context.Barrier(4), context.Event(), context.Queue()
    racers = [
        context.Process(target=_race, args=(str(tmp_path / "new"), start, ended, results)) for _ in range(4)
    ]
    for racer in racers:
        racer.start()
    assert sorted(results.get(timeout=120) for _ in racers) == [False, False, False, True]
    ended.set()
    for racer in racers:
        racer.join(60)


def test_one_that_waits_takes_the_folder_when_it_is_free(tmp_path: Path) -> None:
    with held(tmp_path) as process:
        os.kill(process.pid, signal.SIGSTOP)
        os.kill(process.pid, signal.SIGKILL)
        with FolderLock(tmp_path, "--out", wait=True):
            pass


@pytest.mark.parametrize(
    "command",
    [
        ["videostr.data", "build", "--source", "tabletop", "--scenes", "2", "--out"],
        ["videostr.data", "import", "none.jsonl", "--format", "video-r1", "--out"],
        ["videostr.evaluate", "--compare", "a", "b", "--out"],
    ],
    ids=lambda command: command[1],
)
def test_commands_that_write_a_folder_are_refused_while_another_does(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main = importlib.import_module(f"{command[0]}.__main__").main
    with held(tmp_path) as process:
        before = snapshot(tmp_path)
        assert main([*command[1:], str(tmp_path)]) == 2
        assert snapshot(tmp_path) == before
    said = "".join(capsys.readouterr())
    assert f"error: {tmp_path}: in use by process {process.pid} on " in said
    assert "or choose another --out" in said


def test_a_folder_in_which_nothing_was_written_goes_again(tmp_path: Path) -> None:
    with FolderLock(tmp_path / "a", "--out"):
        assert (tmp_path / "a").is_dir()
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------ other machines, no flock


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("BEAT_S", 0.05), ("SILENT_S", 1.0), ("SETTLE_S", 0.2)):
        monkeypatch.setattr(lock, name, seconds)


def left_by(folder: Path, **changed: Any) -> dict[str, Any]:
    """What a process left in a folder."""
    with FolderLock(folder, "run.name"):
        left = json.loads((folder / HOLDER).read_text())
    left |= {"token": "other", **changed}
    (folder / LOCK).touch()
    (folder / HOLDER).write_text(json.dumps(left))
    return left


def no_flock(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """As on a file system without locks."""

    def flock(handle: Any, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)


def test_a_lock_left_on_another_machine_is_taken_over_when_nobody_beats(tmp_path: Path, quick: None) -> None:
    left_by(tmp_path, machine="of another kernel", host="far")
    with FolderLock(tmp_path, "run.name"):
        pass


@pytest.mark.parametrize("clock", ["now", "2 hours ago", "2 hours"])
def test_one_that_beats_on_another_machine_is_refused(clock: str, tmp_path: Path, quick: None) -> None:
    """Whatever its clock says."""
    left_by(tmp_path, machine="of another kernel", host="far", pid=7)
    touch = f"touch -d '{clock}' {tmp_path / HOLDER}"
    subprocess.run(touch, shell=True, check=True)
    beats = subprocess.Popen(["sh", "-c", f"while sleep 0.1; do {touch}; done"])
    try:
        with (
            pytest.raises(RunFolderError, match="in use by process 7 on far"),
            FolderLock(tmp_path, "run.name"),
        ):
            pass
    finally:
        beats.kill()
        beats.wait()


def test_one_that_was_taken_for_dead_sees_it_and_ends(tmp_path: Path, quick: None) -> None:
    mine, told = FolderLock(tmp_path, "run.name"), []
    mine.when_lost = lambda: told.append(True)
    with mine:
        left_by_other = {**json.loads((tmp_path / HOLDER).read_text()), "token": "other"}
        (tmp_path / HOLDER).write_text(json.dumps(left_by_other))
        wait_for(lambda: bool(told))
    assert mine.is_lost
    assert json.loads((tmp_path / HOLDER).read_text())["token"] == "other"  # it is the other's


def test_a_beat_that_cannot_be_written_is_not_the_last(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed: list[Path] = []

    def full(path: Path, value: Any) -> None:
        if not failed:
            failed.append(path)
            raise StorageError(f"{path}: No space left on device")
        write_json(path, value)

    with FolderLock(tmp_path, "run.name"):
        monkeypatch.setattr(lock, "write_json", full)
        (tmp_path / HOLDER).unlink()  # someone tidied up on a full disk
        wait_for((tmp_path / HOLDER).exists)
    assert failed


@pytest.mark.parametrize("number", [errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS])
def test_without_locks_the_process_itself_is_looked_for(
    number: int, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FolderLock(tmp_path, "run.name"):
        live = (tmp_path / HOLDER).read_text()
    no_flock(monkeypatch, number)
    (tmp_path / HOLDER).write_text(live)  # of this very process
    with (
        pytest.raises(RunFolderError, match=f"in use by process {os.getpid()} "),
        FolderLock(tmp_path, "run.name"),
    ):
        pass
    # The same pid, but of a process that started at another time.
    (tmp_path / HOLDER).write_text(json.dumps(json.loads(live) | {"started": "1"}))
    with FolderLock(tmp_path, "run.name"):
        pass


def test_without_locks_the_last_of_two_at_once_is_let_in(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_flock(monkeypatch, errno.ENOTSUP)
    other = left_by(tmp_path, machine="of another kernel", host="far", pid=7)
    (tmp_path / HOLDER).unlink()

    def sleep(_: float) -> None:
        (tmp_path / HOLDER).write_text(json.dumps(other))

    monkeypatch.setattr(lock.time, "sleep", sleep)
    with pytest.raises(RunFolderError, match="in use by process 7 on far"), FolderLock(tmp_path, "run.name"):
        pass


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 3}', "null"])
def test_a_damaged_file_is_no_holder(content: str, tmp_path: Path) -> None:
    (tmp_path / LOCK).touch()
    (tmp_path / HOLDER).write_text(content)
    assert find_holder(tmp_path) is None
    with FolderLock(tmp_path, "run.name"):
        pass


def test_a_folder_that_cannot_be_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(StorageError, match="a file has the name of a folder"),
        FolderLock(tmp_path / "file", "x"),
    ):
        pass
    assert find_holder(tmp_path / "file") is None
    assert find_holder(tmp_path / "none") is None


def wait_for(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("name", [LOCK, HOLDER])
def test_a_folder_with_the_name_of_the_lock_is_reported(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(StorageError, match=r"Is a directory; a folder has the name of a file"):
        FolderLock(tmp_path, "run.name").__enter__()
