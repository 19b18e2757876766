"""A build and an export on a Ray cluster of two nodes give the bytes of local processes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import ray
from PIL import Image
from ray.cluster_utils import Cluster

from actors.data_tasks import ray_tasks
from tests.videostr.data.conftest import street as street
from videostr.data.build import Settings, build
from videostr.data.exchange import export_video_r1
from videostr.errors import VideoError
from videostr.types import Answer, AnswerKind, ClipSpec, Mark, Record

CHOICE = Record(
    id="r",
    source="kitti",
    family="direction_object",
    question="Where is object 1?",
    options=("on the left", "on the right"),
    answer=Answer(kind=AnswerKind.CHOICE, value="B"),
    clip=ClipSpec(video="v.frames.json", num_frames=4),
    labels=("cup",),
    graph=None,
)


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
    assert counted.records > 80
    shards = sorted(path.name for path in (tmp_path / "ray").glob("*.parquet"))
    assert shards == sorted(path.name for path in (tmp_path / "local").glob("*.parquet"))
    for name in (*shards, "build.json", "skipped.jsonl"):
        assert (tmp_path / "ray" / name).read_bytes() == (tmp_path / "local" / name).read_bytes()


def mark(left: float) -> Mark:
    return Mark(text="1", object="cup.1", boxes=((0.5, left, 200.0, left + 200, 500.0),))


def test_marked_clips_are_those_of_local_processes(two_nodes: Cluster, tmp_path: Path) -> None:
    """And what a task raises is raised as it is."""
    for number in range(4):
        Image.new("RGB", (160, 120), (100 + number, 100, 100)).save(tmp_path / f"{number}.png")
    listed = {"root": ".", "fps": 2, "frames": [[number / 2, f"{number}.png"] for number in range(4)]}
    (tmp_path / "v.frames.json").write_text(json.dumps(listed), encoding="utf-8")
    records = [
        replace(CHOICE, id=f"r{x}", clip=ClipSpec(video="v.frames.json", num_frames=4, marks=(mark(x),)))
        for x in (100.0, 300.0, 500.0, 300.0)
    ]
    assert export_video_r1(records, tmp_path / "ray.jsonl", tmp_path, pool=ray_tasks) == 4
    assert export_video_r1(records, tmp_path / "local.jsonl", tmp_path, workers=1) == 4
    made = sorted(path.name for path in (tmp_path / "ray-marked").iterdir())
    assert len(made) == 3
    for name in made:
        assert (tmp_path / "ray-marked" / name).read_bytes() == (
            tmp_path / "local-marked" / name
        ).read_bytes()
    lines = (tmp_path / "ray.jsonl").read_text(encoding="utf-8")
    assert lines.replace("ray-marked", "local-marked") == (tmp_path / "local.jsonl").read_text(
        encoding="utf-8"
    )
    (tmp_path / "2.png").write_bytes(b"no image")
    shutil.rmtree(tmp_path / "ray-marked")
    with pytest.raises(VideoError, match=r"2\.png") as error:
        export_video_r1(records, tmp_path / "ray.jsonl", tmp_path, pool=ray_tasks)
    assert "ray::" not in str(error.value)
