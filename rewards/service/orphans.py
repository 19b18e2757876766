"""Ending a worker together with all that its rewards started, also what left its process group."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

MARK = "VIDEOSTR_REWARD_WORKER"
"""Environment variable that a worker and its descendants carry; each worker has a value of its own."""


def end_group(group: int) -> None:
    """Kill a process group; one that has ended is left alone."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def end_marked(value: str) -> None:
    """Kill all other processes that carry `MARK` with this value (Linux only).

    A process that started a session of its own is in no group of the worker, and a forked one has its environment.
    """
    entry = f"{MARK}={value}".encode()
    ended: set[int] = {os.getpid()}
    while found := _marked(entry) - ended:  # until no process forks faster than it is found
        ended |= found
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _marked(entry: bytes) -> set[int]:
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # another user's, or one that has just ended
            if entry in (folder / "environ").read_bytes().split(b"\0"):
                found.add(int(folder.name))
    return found
