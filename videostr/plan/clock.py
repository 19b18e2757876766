"""An event loop in virtual time: where nothing is ready to run, its clock jumps to the next timer or end of work.

In: a coroutine. Out: its result, as soon as its computations allow. It must not wait for files, sockets, threads or processes.
Work shares the cores of one machine: when more are wanted than there are, all of it slows down alike.
"""

from __future__ import annotations

import asyncio
import heapq
import math
import selectors
from collections.abc import Coroutine
from itertools import count
from typing import Any, TypeVar

T = TypeVar("T")
EPSILON_S = 1e-9
"""Work so near its end has ended."""


class Work:
    """Work of one process, from now on; infinite work on no core is a pause."""

    def __init__(self, seconds: float, cores: float = 1.0) -> None:
        """Begin when `done` is awaited; `seconds` are those at full speed."""
        self._seconds, self._cores = seconds, cores
        self._ended = asyncio.get_running_loop().create_future()

    async def done(self) -> float:
        """Return the seconds left when the work ends or is stopped."""
        loop = asyncio.get_running_loop()
        assert isinstance(loop, _VirtualLoop)
        clock, end = loop.clock, loop.clock.worked + self._seconds
        heapq.heappush(clock.ends, (end, next(clock.numbers), self._ended))
        clock.wanted += self._cores
        try:
            await self._ended
        finally:
            clock.wanted -= self._cores
        return end - clock.worked if end > clock.worked + EPSILON_S else 0.0

    def stop(self) -> None:
        """End it now."""
        if not self._ended.done():
            self._ended.set_result(None)


class _Clock(selectors.DefaultSelector):
    """Where an event loop would wait for input, until the next timer at most, time passes instead."""

    def __init__(self, cores: float) -> None:
        super().__init__()
        self.now = 0.0
        self.worked = 0.0
        """Seconds that work would have done which ran all the time: all of it slows down alike."""
        self.ends: list[tuple[float, int, asyncio.Future[None]]] = []
        """Heap of what is worked on, by the value of `worked` at its end."""
        self.numbers = count()
        self.wanted = 0.0
        """Cores."""
        self._cores = cores

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is not None and timeout <= 0:
            return []
        while self.ends and self.ends[0][2].done():
            heapq.heappop(self.ends)
        speed = min(1.0, self._cores / self.wanted) if self.wanted > 0 else 1.0
        first = self.ends[0][0] if self.ends else math.inf
        passed = min((first - self.worked) / speed, math.inf if timeout is None else timeout)
        if passed == math.inf:
            raise RuntimeError("virtual time: every task waits, and none for a timer or for work")
        self.now += passed
        self.worked += passed * speed
        while self.ends and self.ends[0][0] <= self.worked + EPSILON_S:
            _, _, ended = heapq.heappop(self.ends)
            if not ended.done():
                ended.set_result(None)
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
