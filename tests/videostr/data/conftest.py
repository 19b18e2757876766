"""A small street in KITTI's format: a car that drives past parked ones, seen from a car that drives, too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

FOCAL, CENTRE = 700.0, (621.0, 187.5)
FRAMES = 60


@pytest.fixture(scope="session")
def street(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with five sequences of 60 frames; the camera drives 0.3 m a frame."""
    root = tmp_path_factory.mktemp("street")
    for folder in ("label_02", "calib", "poses"):
        (root / "training" / folder).mkdir(parents=True)
    for sequence in range(5):
        rng = np.random.default_rng(sequence)
        objects = [
            (
                kind,
                rng.uniform(-9, 9),
                rng.uniform(12, 40),
                rng.choice([0.0, 0.4, 0.7]) if kind != "Car" else 0.0,
            )
            for kind in ("Car", "Car", "Van", "Cyclist", "Pedestrian", "Truck")
        ]
        lines = []
        for frame in range(FRAMES):
            for track, (kind, x, z, speed) in enumerate(objects):
                depth = z + speed * frame - 0.3 * frame
                if depth > 4:
                    lines.append(_line(frame, track, kind, x, depth))
        name = f"{sequence:04d}.txt"
        (root / "training/label_02" / name).write_text("\n".join(lines) + "\n")
        (root / "training/calib" / name).write_text(
            f"P2: {FOCAL} 0 {CENTRE[0]} 0 0 {FOCAL} {CENTRE[1]} 0 0 0 1 0\n"
        )
        poses = [f"1 0 0 0 0 1 0 0 0 0 1 {0.3 * frame}" for frame in range(FRAMES)]
        (root / "training/poses" / name).write_text("\n".join(poses) + "\n")
    return root


SIZES = {
    "Car": (1.5, 1.7, 4.2),
    "Van": (2.1, 1.9, 5.0),
    "Truck": (3.2, 2.5, 9.0),
    "Cyclist": (1.7, 0.6, 1.8),
    "Pedestrian": (1.7, 0.6, 0.8),
}
"""Height, width, length."""


def _line(frame: int, track: int, kind: str, x: float, z: float) -> str:
    height, width, length = SIZES[kind]
    left, right = (FOCAL * (x + side * width / 2) / z + CENTRE[0] for side in (-1, 1))
    top, bottom = (FOCAL * y / z + CENTRE[1] for y in (1.6 - height, 1.6))
    occluded = 0 if left > 0 and right < 1242 else 2
    box = [max(0.0, left), max(0.0, top), min(1242.0, right), min(375.0, bottom)]
    if box[2] - box[0] < 1:
        box, occluded = [0.0, 100.0, 2.0, 200.0], 2
    numbers = [*box, height, width, length, x, 1.6, z, -np.pi / 2]
    return f"{frame} {track} {kind} 0 {occluded} 0 " + " ".join(f"{v:.4f}" for v in numbers)
