"""A build on a Ray cluster of two nodes gives the bytes of one with local processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from actors.scenes import ray_tasks
from tests.videostr.data.conftest import street as street
from videostr.data.build import Settings, build


@pytest.fixture
def two_nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A head without room, and two nodes of this machine."""
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    found.add_node(num_cpus=1)
    found.add_node(num_cpus=1)
    monkeypatch.setenv("RAY_ADDRESS", found.address)
    yield found
    ray.shutdown()
    found.shutdown()


def test_bytes_are_those_of_local_processes(street: Path, two_nodes: Cluster, tmp_path: Path) -> None:
    settings = Settings(source="kitti", root=str(street), clips=6, questions=6, marked=8, num_frames=4)
    counted = build(tmp_path / "ray", [settings], pool=ray_tasks)
    assert not ray.is_initialized()
    build(tmp_path / "local", [settings], workers=1)
    assert counted.records > 100
    shards = sorted(path.name for path in (tmp_path / "ray").glob("*.parquet"))
    assert shards == sorted(path.name for path in (tmp_path / "local").glob("*.parquet"))
    for name in (*shards, "build.json", "skipped.jsonl"):
        assert (tmp_path / "ray" / name).read_bytes() == (tmp_path / "local" / name).read_bytes()
