"""The shipped recipe by its command, over as many scenes as its sources have: time, memory, wanted and got of every family.

One JSON object a line. `BENCH_RECIPE_SCALE=1` is the whole recipe, a quarter of an hour on two cores; the default is a
part of its scenes and limits. KITTI: the labels of KITTI_ROOT (sequences of the tracking benchmark), under as many names as
the benchmark has sequences, or synthetic streets. ScanNet: made rooms of 25 objects, two minutes each, each room under many
names. TAO: made videos of 15 to 44 frames, one a second, with 1 to 14 tracks (5 on average). All in the true formats.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from tests.benchmarks.bench_data import Watched, write_streets
from tests.benchmarks.measure import report
from tests.videostr.data.sources import test_tao as tao
from tests.videostr.data.test_long_scan import write_room

RECIPE = Path(__file__).parents[2] / "configs" / "data" / "stv.yaml"
SCALE = float(os.environ.get("BENCH_RECIPE_SCALE", "0.02"))
SCENES = {
    name: max(2, round(SCALE * count)) for name, count in {"tao": 500, "kitti": 21, "scannet": 1201}.items()
}
"""Of the training splits: videos, sequences, scans. 5 % are held out, one at least."""
ROOMS = 40
"""Different ones among the scans."""
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
    """Scans of which every `ROOMS`-th has the same files."""
    for number in range(count):
        name, first = f"scene{number:04d}_00", f"scene{number % ROOMS:04d}_00"
        if number < ROOMS:
            write_room(root, seed=number, name=name)
            continue
        (root / "scans" / name).mkdir()
        for file in (root / "scans" / first).iterdir():
            (root / "scans" / name / file.name.replace(first, name)).symlink_to(file)


def link_sequences(root: Path, labels: Path, count: int) -> None:
    """Sequences of `labels`, each again under other names until there are `count`."""
    there = sorted(path.stem for path in (labels / "training/label_02").glob("*.txt"))
    for folder in ("label_02", "calib", "poses"):
        (root / "training" / folder).mkdir(parents=True)
        for number in range(count):
            link = root / "training" / folder / f"{number:04d}.txt"
            link.symlink_to((labels / "training" / folder / f"{there[number % len(there)]}.txt").resolve())


def test_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    roots = {name: tmp_path / name for name in SCENES}
    write_tao(roots["tao"], SCENES["tao"])
    write_scans(roots["scannet"], SCENES["scannet"])
    if labels := os.environ.get("KITTI_ROOT"):
        link_sequences(roots["kitti"], Path(labels), SCENES["kitti"])
    else:
        write_streets(roots["kitti"], SCENES["kitti"])
    recipe = OmegaConf.load(RECIPE)
    for source in recipe.sources:
        source.limit = round(source.limit * SCALE)
    OmegaConf.save(recipe, tmp_path / "recipe.yaml")
    out, workers = tmp_path / "out", os.cpu_count() or 1
    watched = Watched([
        sys.executable, "-m", "videostr.data", "build", "--recipe", str(tmp_path / "recipe.yaml"), "--out", str(out),
        "--workers", str(workers), *(f"--root={name}={root}" for name, root in roots.items()),
    ]).run()  # fmt: skip
    built = json.loads((out / "build.json").read_text())
    limit = sum(source.limit for source in recipe.sources)
    report(
        capsys,
        name="data/recipe",
        value=built["records"],
        unit="records",
        ratio=round(built["records"] / limit, 3),
        against=f"{limit}: the recipe's limits at scale {SCALE}",
        shape=f"{built['scenes']} scenes; KITTI from {'real labels' if labels else 'synthetic streets'}",
        seconds={"scenes": round(watched.build_s, 1), "with_selection_and_card": round(watched.seconds, 1)},
        projected_minutes=round(watched.seconds / SCALE / 60, 1),
        memory_mib=watched.memory(),
        shares={
            f"{each['source']} {each['kind']} {each['family']}": [each["wanted"], each["got"], each["pool"]]
            for each in built["shares"]
        },
        cores=workers,
        repeats=1,
        spread=0.0,
    )  # fmt: skip
