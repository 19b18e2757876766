"""A small Ray of this machine's own, for tests of pools."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator

import pytest
import ray

from actors.placement import start_ray


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    # A separate number of CPUs: actors must be placed although the machine has only two.
    # Not pytest's folder: the paths of Ray's sockets may have 107 characters at most.
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        start_ray(num_cpus=4, _temp_dir=folder)
        yield
        ray.shutdown()
