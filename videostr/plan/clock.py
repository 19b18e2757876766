"""An event loop in virtual time: where nothing is ready to run, its clock jumps to the next timer or end of work.

In: a coroutine. Out: its result, as soon as its computations allow. It must not wait for files, sockets, threads or processes.
Work shares the cores of one machine: when more are wanted than there are, all of it slows down alike.
"""

from __future__ import annotations

import asyncio
import math
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
EPSILON_S = 1e-9
"""Work so near its end has ended."""


class Work:
    """Work of one process, from now on; infinite work on no core is a pause."""

    def __init__(self, seconds: float, cores: float = 1.0) -> None:
        self.left_s = seconds
        """At full speed."""
        self.cores = cores
        self.ended = asyncio.get_running_loop().create_future()

    async def done(self) -> float:
        """Return the seconds left when the work ends or is stopped."""
        loop = asyncio.get_running_loop()
        assert isinstance(loop, _VirtualLoop)
        loop.clock.works.add(self)
        try:
            await self.ended
        finally:
            loop.clock.works.discard(self)
        return self.left_s

    def stop(self) -> None:
        """End it now."""
        if not self.ended.done():
            self.ended.set_result(None)


class _Clock(selectors.DefaultSelector):
    """Where an event loop would wait for input, until the next timer at most, time passes instead."""

    now = 0.0

    def __init__(self, cores: float) -> None:
        super().__init__()
        self.works: set[Work] = set()
        self._cores = cores

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is not None and timeout <= 0:
            return []
        wanted = math.fsum(work.cores for work in self.works)
        speed = min(1.0, self._cores / wanted) if wanted else 1.0
        first_s = min((work.left_s for work in self.works), default=math.inf) / speed
        passed = min(first_s, math.inf if timeout is None else timeout)
        if passed == math.inf:
            raise RuntimeError("virtual time: every task waits, and none for a timer or for work")
        self.now += passed
        for work in self.works:
            work.left_s -= passed * speed
            if work.left_s < EPSILON_S:
                work.left_s = 0.0
                work.stop()
        return []


class _VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self, cores: float) -> None:
        self.clock = _Clock(cores)
        super().__init__(self.clock)

    def time(self) -> float:
        return self.clock.now


def run_virtual(main: Coroutine[Any, Any, T], *, cores: float = math.inf) -> T:
    """Return what `main` returns; `asyncio.get_running_loop().time()` starts at 0 s."""
    with asyncio.Runner(loop_factory=lambda: _VirtualLoop(cores)) as runner:
        return runner.run(main)
