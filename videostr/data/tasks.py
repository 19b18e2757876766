"""Work on scenes and clips in other processes: functions and what they are given in, results in the order of asking out.

Those of this machine are `processes`; those of a cluster `actors.data_tasks.ray_tasks`.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context, parent_process
from typing import Any, Protocol, TypeVar

A = TypeVar("A")
R = TypeVar("R")
AHEAD = 4
"""Tasks that are started before the first result is taken, for each that runs at once: memory stays flat, none waits for work."""


class Submit(Protocol):
    """Starts a task."""

    def __call__(self, work: Callable[[A], R], given: A) -> Callable[[], R]:
        """Start `work(given)`, a function of a module; what is returned waits for its result."""
        ...


Pool = Callable[[int | None], contextlib.AbstractContextManager[tuple[int, Submit]]]
"""Starts so many processes, as many as there are cores for None, and ends them; their number and what runs a task."""


@contextlib.contextmanager
def processes(workers: int | None) -> Iterator[tuple[int, Submit]]:
    """Start so many processes, or one for each core; yield their number and what runs a task."""
    workers = workers or os.cpu_count() or 1
    with (
        _environment("OPENBLAS_NUM_THREADS", "1"),
        ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_end_with_parent) as pool,
    ):
        yield workers, lambda work, given: pool.submit(work, given).result


def in_order(started: Iterable[tuple[A, Callable[[], R]]], workers: int) -> Iterator[tuple[A, R]]:
    """Yield what belongs to each task with its result; tasks are drawn from `started` some way ahead of the results."""
    waiting: deque[tuple[A, Callable[[], R]]] = deque()
    for task in started:
        waiting.append(task)
        if len(waiting) >= AHEAD * workers:
            what, result = waiting.popleft()
            yield what, result()
    for what, result in waiting:
        yield what, result()


def once(submit: Submit) -> Callable[[str, Callable[[A], R], A], Callable[[], R]]:
    """Return what starts a task for each key once, whose result all that ask for the key are given."""
    begun: dict[str, Callable[[], Any]] = {}

    def start(key: str, work: Callable[[A], R], given: A) -> Callable[[], R]:
        if key not in begun:
            begun[key] = cache(submit(work, given))
        return begun[key]

    return start


def _end_with_parent() -> None:
    """End this process when its parent is gone: workers of a build that was killed would wait forever."""

    def wait() -> None:
        parent = parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """Of processes started meanwhile; there, threads of the linear algebra would compete with the other workers."""
    before = os.environ.get(name)
    os.environ[name] = before or value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
