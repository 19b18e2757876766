"""A long run that nothing disturbs: does any of its processes grow?

    python -m pytest tests/chaos/test_soak.py --soak-minutes 30 -s

Skipped without minutes. The run samples ahead of learning, evaluates and writes checkpoints all along, and is then stopped as a
user stops it. Prints memory (medians over quarters of the time after the warm-up) and slope of every process, and the objects in
Ray's store, as a table; docs/failures.md has the extremes of it.
"""

from __future__ import annotations

import json
import re
import signal
import statistics
import subprocess
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.chaos.stage import ROOT, Stage, descendants

LOOK_S = 10.0
WARM_UP = 1 / 3
"""Part of the time in which allocators and caches may still fill."""
GROWTH = 0.05
"""Largest growth of a process from the warm-up to the end, of its memory at the end; the slope times that time."""
SLACK_MIB = 8.0
"""Growth that a small process is forgiven: an allocator's pages."""
NAMES = {"ray::RolloutWorker": "rollout worker", "VLLM::EngineCore": "engine", "ray::LearnerWorker": "learner rank",
         "ray::RewardWorker": "reward worker", "raylet": "raylet", "gcs_server": "GCS"}  # fmt: skip


class Watch:
    """What was seen of a run's processes."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.began = time.monotonic()
        self.memory: dict[tuple[str, int], list[tuple[float, float]]] = defaultdict(list)
        """(seconds, MiB) by name and process id."""
        self.zombies: dict[int, int] = defaultdict(int)
        """Looks at which a process was a zombie, by id."""
        self.objects: list[tuple[float, int, float]] = []
        """(seconds, number, MiB) in Ray's store."""

    def look(self) -> None:
        seconds = time.monotonic() - self.began
        assert self.stage.driver is not None
        assert self.stage.head is not None
        driver = psutil.Process(self.stage.driver.pid)
        below = descendants(self.stage.head) + descendants(self.stage.driver)
        for process in (driver, *below):
            with suppress(psutil.Error):
                if process.status() == psutil.STATUS_ZOMBIE:
                    self.zombies[process.pid] += 1
                elif (name := "driver" if process == driver else self._name(process)) is not None:
                    # Shared pages, e.g. of Ray's store, are not a process's own.
                    self.memory[name, process.pid].append((seconds, process.memory_full_info().uss / 2**20))

    def look_at_objects(self) -> None:
        command = ["ray", "memory", "--stats-only"]
        said = subprocess.run(
            command,
            cwd=ROOT,
            env=self.stage.environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        ).stdout
        found = re.search(r"Plasma memory usage ([\d.]+) MiB, (\d+) objects", said)
        assert found is not None, said
        self.objects.append((time.monotonic() - self.began, int(found[2]), float(found[1])))

    @staticmethod
    def _name(process: psutil.Process) -> str | None:
        line = " ".join(process.cmdline())
        line = line.removeprefix(str(Path(line.split(" ")[0]).parent) + "/")
        return next((name for start, name in NAMES.items() if line.startswith(start)), None)


def settled(points: list[tuple[float, Any]]) -> list[tuple[float, Any]]:
    """Those after the warm-up."""
    return [point for point in points if point[0] > WARM_UP * points[-1][0]]


def slope(points: list[tuple[float, float]]) -> float:
    """MiB per hour, least squares."""
    seconds, values = zip(*points, strict=True)
    return 3600 * statistics.linear_regression(seconds, values).slope


def test_soak(request: pytest.FixtureRequest, tabletop: Path, small_run: Any, tmp_path: Path) -> None:
    minutes = request.config.getoption("--soak-minutes")
    if minutes <= 0:
        pytest.skip("needs --soak-minutes")
    stage = Stage(tmp_path, [
        *small_run(tabletop, tmp_path, "soak"), "train.steps=1000000", "train.max_staleness=1", "train.checkpoint_every=20",
        "train.max_zero_variance_steps=0", "evaluate.every=20", "rollout.num_cpus=1", "rollout.threads=1", "learner.threads=1",
        "learner.num_cpus=0.75", f"data.frame_store={tmp_path / 'frames'}", "learner.schedule=constant",
        "loss.correction=ratio",
    ])  # fmt: skip
    # Ray's GCS keeps the last 100,000 tasks, about 1 KiB each: 100 MiB, reached in hours. A smaller limit shows the end of it.
    stage.environment["RAY_task_events_max_num_task_in_gcs"] = "2000"
    try:
        stage.start_head()
        stage.launch()
        stage.wait(lambda: stage.is_over() or stage.step() >= 1, "the first step")
        watch = Watch(stage)
        while (passed := time.monotonic() - watch.began) < 60 * minutes and not stage.is_over():
            watch.look()
            if not watch.objects or passed - watch.objects[-1][0] >= 60:
                watch.look_at_objects()
            time.sleep(LOOK_S)
        assert not stage.is_over(), stage.log()[-6000:]
        assert stage.driver is not None
        steps = stage.step()
        stage.driver.send_signal(signal.SIGTERM)
        assert stage.driver.wait(120) == 130, stage.log()[-6000:]
    finally:
        left = stage.close()
    print(f"\n{steps} steps\n{_table(watch)}")
    (tmp_path / "memory.json").write_text(
        json.dumps({str(key): value for key, value in watch.memory.items()})
    )
    assert not left, f"did not end by themselves: {left}"
    lasting = {pid: count for pid, count in watch.zombies.items() if count > 1}
    assert not lasting, f"zombies at more than one look: {lasting}"
    assert {name for name, _ in watch.memory} == {"driver", *NAMES.values()}
    for (name, pid), points in watch.memory.items():
        assert points[-1][0] > 60 * minutes - 3 * LOOK_S, f"{name} {pid} did not live to the end"
        used = settled(points)
        grown = slope(used) * (used[-1][0] - used[0][0]) / 3600
        assert grown < max(SLACK_MIB, GROWTH * used[-1][1]), f"{name} {pid} grew by {grown:.1f} MiB"
    early, late = (statistics.median(point[2] for point in part) for part in _halves(watch.objects))
    assert late < early + 1.0, f"objects in Ray's store grew from {early} to {late} MiB"


def _halves(points: list[Any]) -> tuple[list[Any], list[Any]]:
    return points[: len(points) // 2], points[len(points) // 2 :]


def _table(watch: Watch) -> str:
    lines = [
        "| process | first quarter, MiB | second | third | last | slope, MiB an hour |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for (name, _), points in sorted(watch.memory.items()):
        used = settled(points)
        if len(used) >= 4:
            quarters = (used[len(used) * k // 4 : len(used) * (k + 1) // 4] for k in range(4))
            medians = " | ".join(f"{statistics.median(mib for _, mib in part):.1f}" for part in quarters)
            lines.append(f"| {name} | {medians} | {slope(used):+.1f} |")
    objects = settled([(seconds, (number, mib)) for seconds, number, mib in watch.objects])
    numbers, sizes = [point[1][0] for point in objects], [point[1][1] for point in objects]
    lines.append(
        f"\nobjects in Ray's store: {min(numbers)} to {max(numbers)}, {min(sizes):.1f} to {max(sizes):.1f} MiB"
    )
    lines.append(
        f"zombies at a look: {len(watch.zombies)}, at two: {sum(n > 1 for n in watch.zombies.values())}"
    )
    return "\n".join(lines)
