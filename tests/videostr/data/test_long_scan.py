"""A room of 25 objects in ScanNet's true format, seen on a camera path of two minutes: many questions, from all its length."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.videostr.data.sources import test_scannet as scannet
from videostr.data.__main__ import main
from videostr.data.build import Settings, build
from videostr.data.records import read_records
from videostr.types import AnswerKind, Record

SECONDS, EVERY = 120, 15
"""Length of the path; poses were exported of every 15th frame of 30 in a second."""
LABELS = (
    *("chair", "chair", "chair", "chair", "table", "table", "desk", "sofa", "lamp", "lamp", "cabinet", "cabinet"),
    *("door", "bookshelf", "picture", "picture", "pillow", "pillow", "pillow", "bed", "dresser", "sink", "bathtub"),
    *("television", "curtain"),
)  # fmt: skip
ROOM_M = (9.0, 7.0)


def crust(low: np.ndarray, high: np.ndarray, step: float = 0.04) -> np.ndarray:
    """[N, 3] lattice on the six sides of a box."""
    sides = []
    for axis in range(3):
        for value in (low[axis], high[axis]):
            start, end = low.copy(), high.copy()
            start[axis] = end[axis] = value
            sides.append(scannet.block(start, end, step))
    return np.unique(np.concatenate(sides).round(4), axis=0)


def write_room(root: Path, seed: int = 0, name: str = scannet.NAME) -> None:
    """Write the scan: objects along the walls and in the middle, a floor, and the path around the middle."""
    rng = np.random.default_rng(seed)
    parts = [("floor", scannet.sheet((0.0, 0.0, 0.0), (*ROOM_M, 0.0), 0.06))]
    places: list[np.ndarray] = []
    while len(places) < len(LABELS):
        spot = rng.uniform((0.5, 0.5), (ROOM_M[0] - 0.5, ROOM_M[1] - 0.5))
        if all(np.linalg.norm(spot - other) > 1.1 for other in places):
            places.append(spot)
    for label, spot in zip(LABELS, places, strict=True):
        half, height, lift = rng.uniform(0.15, 0.4, 2), rng.uniform(0.3, 1.0), rng.choice([0.0, 0.0, 0.6])
        low = np.array([*(spot - half), lift])
        parts.append((label, crust(low, np.array([*(spot + half), lift + height]))))
    poses = {}
    for number in range(0, SECONDS * 30, EVERY):
        t = number / (SECONDS * 30)
        walk, look = 2 * np.pi * t, 2 * np.pi * 3 * t + 0.5 * np.sin(20 * t)
        tilt = 0.35
        forward = np.array([np.cos(look) * np.cos(tilt), np.sin(look) * np.cos(tilt), -np.sin(tilt)])
        right = np.array([np.sin(look), -np.cos(look), 0.0])
        pose = np.eye(4)
        pose[:3, :3] = np.stack([right, np.cross(forward, right), forward], axis=1)
        pose[:3, 3] = (
            ROOM_M[0] / 2 + ROOM_M[0] / 3.5 * np.cos(walk), ROOM_M[1] / 2 + ROOM_M[1] / 3.5 * np.sin(walk), 1.6
        )  # fmt: skip
        poses[number] = pose
    scannet.write_scan(root, parts, poses, name=name)
    rows = [
        f"{i}\t{label}\t{label}\t{i}\t{label}" for i, label in enumerate(dict.fromkeys((*LABELS, "floor")))
    ]
    table = "\n".join(["id\traw_category\tcategory\tnyu40id\tnyu40class", *rows])
    scannet.write(root, "scannetv2-labels.combined.tsv", table + "\n")
    scannet.write(root, "scannetv2_val.txt", "scene0999_00\n")


def test_a_long_scan_gives_many_questions_from_all_its_length(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_room(tmp_path / "root")
    settings = Settings(source="scannet", root=str(tmp_path / "root"), clips=24, questions=8, marked=40)
    build(tmp_path / "set", [settings], workers=1)
    records = [row for row in read_records(tmp_path / "set") if isinstance(row, Record)]
    families = Counter(record.family for record in records)
    kinds = Counter(record.answer.kind for record in records)
    assert len(records) >= 150
    assert len(families) >= 9, families
    assert kinds[AnswerKind.CHOICE] >= 0.4 * len(records), kinds
    starts = [record.clip.start_s for record in records]
    by_part = np.bincount(np.array(starts, dtype=int) * 4 // SECONDS, minlength=4)
    assert by_part.min() >= 0.05 * len(records), by_part  # whole clips begin at 0
    assert main(["check", str(tmp_path / "set"), "--videos", "0"]) == 0
    capsys.readouterr()
