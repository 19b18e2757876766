"""Tasks of dataset builds and exports on all machines of a cluster, by Ray.

In: the tasks of `videostr/data/tasks.py`. Out: a `Pool` that runs them, in place of local processes. The parent takes results in
order, so the bytes are the same. Every machine reads sources and writes files below the same paths (a shared file system) and can
import this project (`ray job submit` with its working directory, or an image that has it).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import ray
from ray.exceptions import RayTaskError

from actors.placement import start_ray, stop_ray
from videostr.data.tasks import A, R, Submit

TRIES = 3
"""Times that a task is started again after its machine was lost."""


def _cluster_cpus() -> int:
    """Return how many tasks the cluster runs at once."""
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


@contextlib.contextmanager
def ray_tasks(workers: int | None) -> Iterator[tuple[int, Submit]]:
    """Join the cluster of RAY_ADDRESS, or start Ray on this machine, and leave it at the end.

    Args:
        workers: tasks that run at once, at most; None for one on each CPU of the cluster.

    Yields:
        That number, and what runs a task.

    Raises:
        PlacementError: Ray cannot be joined or started, see `start_ray`.
    """
    start_ray()
    try:
        # The algebra of several tasks must not compete for one machine's cores.
        environment = {"env_vars": {"OPENBLAS_NUM_THREADS": "1"}}
        remote = cache(ray.remote(num_cpus=1, max_retries=TRIES, runtime_env=environment))

        def submit(work: Callable[[A], R], given: A) -> Callable[[], R]:
            return partial(_result, remote(work).remote(given))

        yield workers or _cluster_cpus(), submit
    finally:
        stop_ray()


def _result(task: Any) -> Any:
    """Return what a task found, or raise what it raised, without Ray's frame around it."""
    try:
        return ray.get(task)
    except RayTaskError as error:
        raise error.cause from error
