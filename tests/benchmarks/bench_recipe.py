"""What the shipped recipe gets of each source, scaled to few scenes: wanted and got of every family. One JSON object a line.

KITTI: the labels of KITTI_ROOT (sequences of the tracking benchmark), if it is set. ScanNet: made rooms of 25 objects, two
minutes each. TAO: made videos of 15 to 44 frames, one a second, with 1 to 14 tracks (5 on average), in the true format. Limits
are scaled to the scenes.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import structs

from tests.benchmarks.measure import report
from tests.videostr.data.sources import test_tao as tao
from tests.videostr.data.test_long_scan import write_room
from videostr.data.build import build
from videostr.data.build.recipe import read_recipe

RECIPE = Path(__file__).parents[2] / "configs" / "data" / "stv.yaml"
TRAINING_SCENES = {"tao": 475, "kitti": 20, "scannet": 1141}
"""95 % of 500 videos, 21 sequences, 1,201 scans."""
SCENES = {"tao": int(os.environ.get("BENCH_TAO", "16")), "scannet": int(os.environ.get("BENCH_SCANNET", "3"))}
NAMES = (
    "person",
    "cup",
    "car_(automobile)",
    "dog",
    "bottle",
    "chair",
    "bicycle",
    "ball",
    "cat",
    "bird",
    "book",
)
PERSONS = 0.45
"""Share of the tracks."""


def write_tao(root: Path, videos: int) -> None:
    rng = np.random.default_rng(0)
    weights = np.array([PERSONS, *[(1 - PERSONS) / (len(NAMES) - 1)] * (len(NAMES) - 1)])
    tree: dict[str, Any] = tao.tree() | {"videos": [], "images": [], "tracks": [], "annotations": []}
    tree["categories"] = [tao.category(i + 1, name) for i, name in enumerate(NAMES)]
    for video in range(1, videos + 1):
        name, frames = f"train/YFCC100M/v_{video}", int(rng.integers(15, 45))
        tree["videos"].append(tao.video(video, name))
        first = len(tree["images"]) + 1
        for f in range(frames):
            file = f"{name}/frame{30 * f:05d}.jpg"
            tree["images"].append(tao.image(first + f, 30 * f, video=name, video_id=video, file_name=file))
        for _ in range(int(np.clip(rng.poisson(5.0), 1, 14))):
            track, label = len(tree["tracks"]) + 1, int(rng.choice(len(NAMES), p=weights)) + 1
            tree["tracks"].append({"id": track, "category_id": label, "video_id": video})
            start = int(rng.integers(0, frames // 2)) if rng.random() < 0.5 else 0
            stop = int(rng.integers(start + 3, frames + 1)) if rng.random() < 0.5 else frames
            (x, y), sides = rng.uniform((20, 50), (560, 380)), rng.uniform(30, 150, 2)
            step = rng.normal(0, (8.0, 2.0)) if rng.random() < 0.6 else np.zeros(2)
            for f in range(start, stop):
                low = (x, y) + step * (f - start) + rng.normal(0, 2, 2)
                if (low + sides < 20).any() or (low > (620, 460)).any():
                    break
                box = [round(float(side), 1) for side in (*low, *sides)]
                entry = tao.annotation(len(tree["annotations"]) + 1, first + f, track, label, box)
                tree["annotations"].append(entry | {"video_id": video})
    (root / "annotations").mkdir(parents=True)
    (root / tao.FILE).write_text(json.dumps(tree))


def write_scans(root: Path, count: int) -> None:
    for number in range(count):
        write_room(root, seed=number, name=f"scene{number:04d}_00")


MADE: dict[str, Callable[[Path, int], None]] = {"tao": write_tao, "scannet": write_scans}


@pytest.mark.parametrize("source", list(TRAINING_SCENES))
def test_yield(source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = Path(os.environ.get("KITTI_ROOT", "")) if source == "kitti" else tmp_path / "root"
    if source == "kitti" and not os.environ.get("KITTI_ROOT"):
        pytest.skip("KITTI_ROOT is not set")
    if source != "kitti":
        MADE[source](root, SCENES[source])
    scenes = SCENES.get(source) or len(list((root / "training/label_02").glob("*.txt")))
    (settings,) = (each for each in read_recipe(RECIPE, {}) if each.source == source)
    assert settings.limit is not None
    limit = round(settings.limit * scenes / TRAINING_SCENES[source])
    began = time.monotonic()
    progress = build(tmp_path / "set", [structs.replace(settings, root=str(root), heldout=0.0, limit=limit)])
    report(
        capsys,
        name=f"data/yield_{source}",
        value=progress.records,
        unit="records",
        ratio=round(progress.records / limit, 3),
        against=f"{limit} of {scenes} scenes: the recipe's limit for {TRAINING_SCENES[source]}",
        shape=f"{scenes} scenes",
        pool=sum(each["pool"] for each in progress.shares),
        shares={f"{each['kind']} {each['family']}": [each["wanted"], each["got"], each["pool"]] for each in progress.shares},
        seconds=round(time.monotonic() - began, 1),
        repeats=1,
        spread=0.0,
    )  # fmt: skip
