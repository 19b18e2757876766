"""Processes of this machine that read the scenes of a build.

In: jobs. Out: for each a function that waits for its part.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, parent_process

from videostr.data.build.worker import Job, Part, make

Submit = Callable[[Job], Callable[[], Part]]
"""Starts a job; what it returns waits for the part."""


@contextlib.contextmanager
def processes(workers: int | None) -> Iterator[tuple[int, Submit]]:
    """Start so many processes, or one for each core; yield their number and what runs a job."""
    workers = workers or os.cpu_count() or 1
    with (
        _environment("OPENBLAS_NUM_THREADS", "1"),
        ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_end_with_parent) as pool,
    ):
        yield workers, lambda job: pool.submit(make, job).result


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
