"""Work of asyncio that ends as a whole: where it fails, is cancelled or is stopped, no part of it continues unnoticed."""

from __future__ import annotations

import asyncio
import functools
import queue
import threading
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import Future
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def cancel_and_wait(tasks: Iterable[asyncio.Future[Any]]) -> None:
    """Cancel tasks and wait until they have ended; what they raise is dropped."""
    ending = list(tasks)
    for task in ending:
        task.cancel()
    await asyncio.gather(*ending, return_exceptions=True)


async def gather_or_cancel(work: Iterable[Awaitable[T]]) -> list[T]:
    """Return all results, in order. When one raises, or this is cancelled, the others are cancelled and have ended."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        await cancel_and_wait(tasks)


async def race(stop: asyncio.Event, work: Awaitable[T]) -> T | None:
    """Return the result of `work`, or None when `stop` is set first; `work` is then cancelled and has ended."""
    task = asyncio.ensure_future(work)
    stopped = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
        return await task if task.done() else None
    finally:
        stopped.cancel()
        if not task.done():
            await cancel_and_wait([task])


class FileThread:
    """A thread that does file work in order, so that an event loop never waits for a disk.

    What was begun is finished even if the caller was cancelled; later work waits for it. The thread ends with the process at
    once: whatever it does must leave valid files when it is cut.
    """

    def __init__(self, name: str) -> None:
        self._waiting: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"files-{name}", daemon=True)

    async def __call__(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return the result of a call that is made in the thread."""
        if self._thread.ident is None:
            self._thread.start()
        future: Future[T] = Future()
        self._waiting.put((future, functools.partial(work, *args, **kwargs)))
        return await asyncio.wrap_future(future)

    def _run(self) -> None:
        while True:
            future, work = self._waiting.get()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = work()
            except BaseException as error:  # noqa: BLE001  # it is raised where the result is awaited
                future.set_exception(error)
            else:
                future.set_result(result)
