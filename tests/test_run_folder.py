"""What happens to a run folder from outside, on the real stack: a second start, a full disk, a read-only one."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from videostr.launch import main

LIMIT_S = 600


def steps(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def written_by_driver(folder: Path) -> dict[Path, tuple[int, int]]:
    """Files that no worker writes, with their times and sizes."""
    found = {}
    for path in folder.rglob("*"):
        parts = path.relative_to(folder).parts
        if (
            path.is_file()
            and parts[0] not in {"frames", "logs"}
            and not any(part[0] == "." for part in parts)
        ):
            found[path] = (path.stat().st_mtime_ns, path.stat().st_size)
    return found


def wait_for(process: subprocess.Popen[bytes], log: Path, said: str) -> None:
    deadline = time.monotonic() + LIMIT_S
    while said not in log.read_text():
        assert time.monotonic() < deadline
        assert process.poll() is None, log.read_text()
        time.sleep(0.2)


@contextmanager
def mounted(folder: Path, *options: str) -> Iterator[None]:
    """A file system of its own, in memory."""
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", folder], capture_output=True)
    if done.returncode:
        pytest.skip("needs root: mounts a small file system")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def fill(folder: Path) -> Path:
    """Leave no room on a file system."""
    with (folder / "fill").open("ab", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    return folder / "fill"


def test_the_same_run_started_twice(
    tabletop: Path, small_run, start_launch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second start is refused, the first one is not disturbed; killed, it does not block the third."""
    arguments = small_run(tabletop, tmp_path, "twice", evaluated=False)
    arguments += ["train.steps=8", "train.checkpoint_every=1"]
    first = start_launch(arguments, tmp_path / "first.log")
    try:
        wait_for(first, tmp_path / "first.log", "step 2/8")
        driver = psutil.Process(first.pid)
        children = driver.children(recursive=True)
        driver.suspend()  # what it would write now is the second one's work
        before = written_by_driver(tmp_path / "twice")
        assert main(arguments) == 2
        assert main([*arguments, "--check"]) == 2
        assert written_by_driver(tmp_path / "twice") == before
        driver.resume()
        said = capsys.readouterr()
        checked = said.out.partition("FAIL")[2]
        assert f"in use by process {first.pid} on {os.uname().nodename}" in said.err
        assert checked.split()[:2] == ["run", "folder"]
        wait_for(first, tmp_path / "first.log", "step 4/8")
    finally:
        first.kill()
        first.wait(60)
    again = start_launch(arguments, tmp_path / "again.log")
    assert again.wait(LIMIT_S) == 0, (tmp_path / "again.log").read_text()
    psutil.wait_procs(children, timeout=60)
    assert "resumed after step" in (tmp_path / "again.log").read_text()
    assert steps(tmp_path / "twice") == list(range(1, 9))
    assert not list((tmp_path / "twice").glob(".lock*"))


def test_a_disk_that_fills_up_between_checkpoints(
    tabletop: Path, small_run, start_launch, tmp_path: Path
) -> None:
    """One line with path and remedy; with room again, the same command continues and has every step."""
    disk, log = tmp_path / "disk", tmp_path / "log"
    with mounted(disk, "-o", "size=64m"):
        arguments = [
            *small_run(tabletop, disk, "full", evaluated=False), "train.steps=5", "train.checkpoint_every=4",
            f"data.frame_store={tmp_path / 'frames'}", "train.keep_checkpoints=1",
        ]  # fmt: skip
        process = start_launch(arguments, log)
        wait_for(process, log, "step 1/5")
        filler = fill(disk)
        assert process.wait(LIMIT_S) == 2, log.read_text()
        text = log.read_text()
        assert "Traceback" not in text
        (line,) = [line for line in text.splitlines() if "error: " in line]
        assert f"{disk}/full/" in line
        assert "No space left on device; free space there" in line
        assert "then the same command continues from" in line
        filler.unlink()  # the disk has room for two checkpoints of 12 MB and the traces
        again = start_launch(arguments, tmp_path / "again")
        assert again.wait(LIMIT_S) == 0, (tmp_path / "again").read_text()
        assert steps(disk / "full") == [1, 2, 3, 4, 5]


def test_a_read_only_run_folder_is_refused_before_anything_starts(
    tabletop: Path, small_run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    disk = tmp_path / "disk"
    with mounted(disk, "-o", "ro"):
        arguments = small_run(tabletop, disk, "ro")
        assert main(arguments) == 2
        out = capsys.readouterr().err
        assert f"error: {disk}/ro: Read-only file system; mount it for writing, or name a folder" in out
        assert "Traceback" not in out
        assert main([*arguments, "--check"]) == 2
        assert "cannot be written by user" in capsys.readouterr().out
