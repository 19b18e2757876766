"""The data engine from label files alone: records a second, and memory. One JSON object a line."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Self

import numpy as np
import psutil
import pytest

from tests.benchmarks.measure import report
from videostr.data import baseline, card
from videostr.data.build import Progress, Settings, build

SEQUENCES, FRAMES, OBJECTS = 84, 400, 14
"""Four times KITTI's tracking sequences, of about their length."""
RECORDS = 205_000
"""As many as the paper's set has."""
SIZES = {"Car": (1.5, 1.7, 4.2), "Van": (2.1, 1.9, 5.0), "Cyclist": (1.7, 0.6, 1.8), "Pedestrian": (1.7, 0.6, 0.8),
         "Truck": (3.2, 2.5, 9.0)}  # fmt: skip
FOCAL, CENTRE = 720.0, (610.0, 173.0)


def write_streets(root: Path) -> None:
    """Streets in KITTI's format, which the camera drives along."""
    for folder in ("label_02", "calib", "poses"):
        (root / "training" / folder).mkdir(parents=True)
    for sequence in range(SEQUENCES):
        rng = np.random.default_rng(sequence)
        kinds = rng.choice(list(SIZES), OBJECTS)
        x, z, speed = (
            rng.uniform(-12, 12, OBJECTS),
            rng.uniform(5, 150, OBJECTS),
            rng.uniform(0, 0.8, OBJECTS),
        )
        lines = []
        for frame in range(FRAMES):
            depth = z + (speed - 0.4) * frame
            lines += [
                _line(frame, i, str(kinds[i]), x[i], depth[i]) for i in range(OBJECTS) if 4 < depth[i] < 80
            ]
        name = f"{sequence:04d}.txt"
        (root / "training/label_02" / name).write_text("\n".join(filter(None, lines)) + "\n")
        (root / "training/calib" / name).write_text(
            f"P2: {FOCAL} 0 {CENTRE[0]} 0 0 {FOCAL} {CENTRE[1]} 0 0 0 1 0\n"
        )
        poses = [f"1 0 0 0 0 1 0 0 0 0 1 {0.4 * frame}" for frame in range(FRAMES)]
        (root / "training/poses" / name).write_text("\n".join(poses) + "\n")


def _line(frame: int, track: int, kind: str, x: float, z: float) -> str:
    height, width, length = SIZES[kind]
    left, right = (FOCAL * (x + side * width / 2) / z + CENTRE[0] for side in (-1, 1))
    top, bottom = (FOCAL * y / z + CENTRE[1] for y in (1.6 - height, 1.6))
    box = np.clip([left, top, right, bottom], 0, [1242, 375, 1242, 375])
    if box[2] - box[0] < 2:
        return ""
    numbers = [*box, height, width, length, x, 1.6, z, -1.57]
    return f"{frame} {track} {kind} 0 {int(left < 0 or right > 1242)} 0 " + " ".join(
        f"{v:.3f}" for v in numbers
    )


class Memory:
    """Memory of this process and its children, MiB, watched from a thread."""

    def __init__(self) -> None:
        self.seen: list[float] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.5):
            processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
            total = 0
            for process in processes:
                try:
                    total += process.memory_full_info().uss
                except psutil.Error:
                    continue
            self.seen.append(total / 2**20)


def test_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "root"
    write_streets(root)
    settings = Settings(source="kitti", root=str(root), limit=RECORDS, clips=400, questions=12)
    workers = os.cpu_count() or 1
    before = psutil.Process().memory_full_info().uss / 2**20
    began = time.monotonic()
    with Memory() as memory:
        progress: Progress = build(tmp_path / "out", [settings], workers)
    seconds = time.monotonic() - began
    third = len(memory.seen) // 3
    halfway, end = (
        float(np.median(part)) for part in (memory.seen[third : 2 * third], memory.seen[2 * third :])
    )
    guessed = baseline.choices(card.collect(tmp_path / "out").sample)
    over = {g.family: [round(g.earned - (g.chance or 0.0), 3), g.questions] for g in guessed}
    report(
        capsys,
        name="data/records_per_s",
        value=round(progress.records / seconds, 1),
        unit="records/s",
        ratio=round(progress.records / seconds / (RECORDS / 900), 2),
        against="205,000 records in 15 minutes",
        shape=f"{progress.records} records of {progress.scenes} streets of {FRAMES} frames, {OBJECTS} objects, 8 frames a clip",
        seconds=round(seconds, 1),
        memory_mib={"most": round(max(memory.seen) - before), "halfway": round(halfway - before), "end": round(end - before)},
        guessed_over_chance=over,
        left_out=progress.unbalanced,
        cores=workers,
        repeats=1,
        spread=0.0,
    )  # fmt: skip
