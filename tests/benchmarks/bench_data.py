"""The data engine from label files alone, by its command: records a second, memory, what guessing scores. One JSON object a line.

`BENCH_DATA_SCALE=2` doubles streets and records: memory must stay what it is.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
import psutil
import pytest

from tests.benchmarks.measure import report
from videostr.data import baseline
from videostr.data.build.settings import Settings
from videostr.data.build.worker import open_source, scene_records
from videostr.data.scene import Scene

SCALE = int(os.environ.get("BENCH_DATA_SCALE", "1"))
SEQUENCES, FRAMES, OBJECTS = 420 * SCALE, 400, (4, 15)
"""Streets of about the length of KITTI's, as many as TAO's training set has videos, of 4 to 14 objects."""
RECORDS = 205_000 * SCALE
"""As many as the paper's set has."""
CLIPS, QUESTIONS = 80, 12
PLAIN = 60
"""Streets that are asked about without balancing, to show what a guesser would score there."""
SIZES = {"Car": (1.5, 1.7, 4.2), "Van": (2.1, 1.9, 5.0), "Cyclist": (1.7, 0.6, 1.8), "Pedestrian": (1.7, 0.6, 0.8),
         "Truck": (3.2, 2.5, 9.0)}  # fmt: skip
HABITS = {
    "Car": (-4.0, 0.3),
    "Van": (3.0, 0.5),
    "Cyclist": (6.0, 0.35),
    "Pedestrian": (10.0, 0.12),
    "Truck": (-8.0, 0.7),
}
"""Metres to the right where a kind mostly is, and metres a frame that it mostly drives: what a guesser could go by."""
FOCAL, CENTRE = 720.0, (610.0, 173.0)


def write_streets(root: Path, sequences: int = SEQUENCES) -> None:
    """Streets in KITTI's format, which the camera drives along."""
    for folder in ("label_02", "calib", "poses"):
        (root / "training" / folder).mkdir(parents=True)
    for sequence in range(sequences):
        rng = np.random.default_rng(sequence)
        count = int(rng.integers(*OBJECTS))
        kinds = rng.choice(list(SIZES), count)
        side, usual = np.array([HABITS[kind] for kind in kinds]).T
        x, z = rng.normal(side, 4.0), rng.uniform(5, 150, count)
        speed = np.where(rng.random(count) < 0.3, 0.0, usual * rng.lognormal(0.0, 0.3, count))
        # A third comes out from behind something: far objects come into the labels beyond the range that is asked about.
        first = np.where(rng.random(count) < 0.35, rng.integers(0, FRAMES, count), 0)
        lines = []
        for frame in range(FRAMES):
            depth = z + (speed - 0.4) * frame
            lines += [
                _line(frame, i, str(kinds[i]), x[i], depth[i])
                for i in range(count)
                if 4 < depth[i] < 80 and frame >= first[i]
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


@dataclass(slots=True)
class Sample:
    """Memory at a time: what the processes alone hold (USS), MiB."""

    records: int
    """Built so far."""
    parent: float
    workers: float


@dataclass(slots=True)
class Watched:
    """A build under way: lines that it prints and memory of its processes, watched from two threads."""

    command: list[str]
    seen: list[Sample] = field(default_factory=list)
    """While records are built."""
    most: float = 0.0
    """Parent and workers together, up to the end of the command."""
    build_s: float = 0.0
    seconds: float = 0.0
    said: list[str] = field(default_factory=list)

    def run(self) -> Self:
        """Run to the end; fails where the command does."""
        began = time.monotonic()
        with subprocess.Popen(self.command, stdout=subprocess.PIPE, text=True) as process:
            reader = threading.Thread(target=self._read, args=(process, began))
            reader.start()
            while process.poll() is None:
                self._sample(psutil.Process(process.pid))
                time.sleep(0.5)
            reader.join()
        self.seconds = time.monotonic() - began
        assert process.returncode == 0, self.said[-20:]
        return self

    def _read(self, process: subprocess.Popen[str], began: float) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self.said.append(line)
            if (found := re.match(r"scene (\d+)/(\d+) ", line)) and found[1] == found[2]:
                self.build_s = time.monotonic() - began

    def _sample(self, parent: psutil.Process) -> None:
        try:
            own = parent.memory_full_info().uss
            children = sum(child.memory_full_info().uss for child in parent.children(recursive=True))
        except psutil.Error:  # one of them has just ended
            return
        self.most = max(self.most, (own + children) / 2**20)
        told = [found for line in self.said if (found := re.match(r"scene \d+/\d+  (\d+) records", line))]
        if told and not self.build_s:
            self.seen.append(Sample(int(told[-1][1]), own / 2**20, children / 2**20))

    def memory(self) -> dict[str, object]:
        """Medians of the quarters of the build, and slopes of a line through its second half, MiB per 100,000 records."""
        quarters = [self.seen[i * len(self.seen) // 4 : (i + 1) * len(self.seen) // 4] for i in range(4)]
        half = self.seen[len(self.seen) // 2 :]
        found: dict[str, object] = {"most": round(self.most)}
        for who in ("parent", "workers"):
            found[who] = {
                "quarters": [round(float(np.median([getattr(s, who) for s in part]))) for part in quarters],
                "slope": _slope([s.records for s in half], [getattr(s, who) for s in half]),
            }
        return found


def _slope(records: Sequence[int], mib: Sequence[float]) -> float | None:
    """MiB per 100,000 records; None of a build that is over before it has told two numbers of records."""
    if len(set(records)) < 2:
        return None
    return round(float(np.polyfit(records, mib, 1)[0]) * 1e5, 1)


def test_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, out = tmp_path / "root", tmp_path / "out"
    write_streets(root)
    workers = os.cpu_count() or 1
    watched = Watched([
        sys.executable, "-m", "videostr.data", "build", "--source", "kitti", "--root", str(root), "--out", str(out),
        "--limit", str(RECORDS), "--clips", str(CLIPS), "--questions", str(QUESTIONS), "--workers", str(workers),
    ]).run()  # fmt: skip
    built = json.loads((out / "build.json").read_text())
    told = subprocess.run(
        [sys.executable, "-m", "videostr.data", "stats", str(out)], capture_output=True, text=True, check=True
    )
    guessed = [row for row in json.loads(told.stdout)["guessing"] if row["chance"] is not None]
    report(
        capsys,
        name="data/records_per_s",
        value=round(built["records"] / watched.build_s, 1),
        unit="records/s",
        ratio=round(built["records"] / watched.build_s / (RECORDS / 900 / SCALE), 2),
        against="205,000 records in 15 minutes",
        shape=f"{built['records']} records of {built['scenes']} streets of {FRAMES} frames, 4 to 14 objects, 8 frames a clip",
        seconds={"build": round(watched.build_s, 1), "with_card": round(watched.seconds, 1)},
        memory_mib=watched.memory(),
        over_chance={row["family"]: [round(row["score"] - row["chance"], 3), row["error"], row["questions"]] for row in guessed},
        over_chance_unbalanced=_unbalanced(root),
        left_out=built["unbalanced"],
        cores=workers,
        repeats=1,
        spread=0.0,
    )  # fmt: skip


RARE = "order,distance_relative,direction_object,speed"
"""Families whose sets are seldom complete; asked alone, there are more of them."""


def test_guessing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, out = tmp_path / "root", tmp_path / "out"
    write_streets(root)
    Watched([
        sys.executable, "-m", "videostr.data", "build", "--source", "kitti", "--root", str(root), "--out", str(out),
        "--clips", str(CLIPS), "--questions", str(2 * QUESTIONS), "--families", RARE,
    ]).run()  # fmt: skip
    told = subprocess.run(
        [sys.executable, "-m", "videostr.data", "stats", str(out)], capture_output=True, text=True, check=True
    )
    guessed = [row for row in json.loads(told.stdout)["guessing"] if row["chance"] is not None]
    over = {
        row["family"]: [round(row["score"] - row["chance"], 3), row["error"], row["questions"]]
        for row in guessed
    }
    report(
        capsys,
        name="data/guessing",
        value=max(entry[0] for entry in over.values()),
        unit="share over chance, of the worst family",
        ratio=round(max(entry[0] for entry in over.values()) / 0.03, 2),
        against="3 points",
        shape=f"{RARE} of {SEQUENCES} streets",
        over_chance=over,
        cores=os.cpu_count(),
        repeats=1,
        spread=0.0,
    )


def _unbalanced(root: Path) -> dict[str, list[float]]:
    """What the guesser scores over chance, and its error, where every question passes that is asked."""
    settings = Settings(source="kitti", root=str(root), clips=CLIPS, questions=QUESTIONS)
    source = open_source(settings)
    scenes = [scene for name in source.names[:PLAIN] if isinstance(scene := source.read(name), Scene)]
    records = [record for scene in scenes for record, _ in scene_records(settings, scene)]
    alone = [[record] for record in records if record.options]  # a set of one is always whole
    return {
        each.family: [round(each.score - (each.chance or 0.0), 3), round(each.error, 3)]
        for each in baseline.choices(alone)
    }
