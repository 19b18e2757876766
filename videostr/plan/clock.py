"""An event loop in virtual time: where nothing is ready to run, its clock jumps to the next timer.

In: a coroutine. Out: its result, as soon as its computations allow. It must not wait for files, sockets, threads or processes.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _Clock(selectors.DefaultSelector):
    """Where an event loop would wait for input, with a timer's time as the longest, time passes instead."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("virtual time: every task waits, and none for a timer")
        self.now += max(timeout, 0.0)
        return []


class _VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._virtual = _Clock()
        super().__init__(self._virtual)

    def time(self) -> float:
        return self._virtual.now


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """Return what `main` returns; `asyncio.get_running_loop().time()` starts at 0 s."""
    with asyncio.Runner(loop_factory=_VirtualLoop) as runner:
        return runner.run(main)
