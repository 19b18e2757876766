"""Scenes of a dataset build as Ray tasks, on all machines of a cluster.

In: jobs of `videostr/data/build`. Out: a `Submit` that runs them, to be given to `build` in place of local processes. The
parent takes results in the order of the scenes, so the bytes are the same. Every machine reads the sources below the same
paths (a shared file system) and can import this project (`ray job submit` with its working directory, or an image that has it).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import ray

from actors.placement import start_ray, stop_ray
from videostr.data.build.pool import Submit
from videostr.data.build.worker import Job, Part, make

TRIES = 3
"""Times that a scene is started again after its machine was lost."""


def cluster_cpus() -> int:
    """Return how many scenes the cluster reads at once."""
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


@contextlib.contextmanager
def ray_tasks(workers: int | None) -> Iterator[tuple[int, Submit]]:
    """Join the cluster of RAY_ADDRESS, or start Ray on this machine, and leave it at the end.

    Args:
        workers: scenes that are read at once, at most; None for one on each CPU of the cluster.

    Yields:
        That number, and what runs a job.

    Raises:
        PlacementError: there is no such cluster, or it does not let this process in.
    """
    start_ray()
    try:
        # The algebra of several tasks must not compete for one machine's cores.
        environment = {"env_vars": {"OPENBLAS_NUM_THREADS": "1"}}
        task = ray.remote(num_cpus=1, max_retries=TRIES, runtime_env=environment)(make)

        def submit(job: Job) -> Callable[[], Part]:
            reference = task.remote(job)
            return lambda: ray.get(reference)

        yield workers or cluster_cpus(), submit
    finally:
        stop_ray()
