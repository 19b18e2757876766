"""A run on two Ray nodes while its processes are killed, stopped and starved at random.

    python -m pytest tests/chaos --chaos-minutes 10 -s

Skipped without minutes: `make test` has three kills and an interruption in tests/test_launch.py. The run has ten steps a
minute asked for, and must end by itself with every position consumed once and with the weights, to the last bit, of a run
that was left alone. Prints what each kind of trouble cost, as a table for docs/failures.md.
"""

from __future__ import annotations

import json
import random
import signal
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from tests.chaos.stage import LIMIT_S, Stage, small_disk
from videostr.checkpoint import WRITING

EVERY = 3
"""Steps that a recovery must bring before the next trouble."""


@dataclass(frozen=True)
class Cost:
    """Of one recovery."""

    seconds: float
    """Beyond the usual time of the steps until the run was `EVERY` steps further."""
    tokens: int
    """Sampled and thrown away: of steps done again, and of groups asked of another engine (at most)."""


class Monkey:
    """Makes trouble of every kind."""

    def __init__(self, stage: Stage, disk: Path | None, seed: int) -> None:
        self.stage = stage
        self.disk = disk
        self.random = random.Random(seed)
        self.troubles: dict[str, Callable[[], None]] = {
            "reward worker killed": lambda: self.kill("ray::RewardWorker"),
            "rollout worker killed": lambda: self.kill("ray::RolloutWorker"),
            "engine process killed": lambda: self.kill("VLLM::EngineCore"),
            "learner rank killed": lambda: self.kill("ray::LearnerWorker"),
            "rollout worker hangs": lambda: self.stop("ray::RolloutWorker"),
            "engine hangs, a transfer breaks": lambda: self.stop("VLLM::EngineCore"),
            "learner rank killed while a checkpoint is written": lambda: self.kill_writing(
                "ray::LearnerWorker"
            ),
            "driver killed while a checkpoint is written": self.kill_driver_writing,
            "second node lost": self.lose_node,
            "driver killed": self.kill_driver,
            "newest checkpoint damaged, driver killed": self.damage_checkpoint,
        }
        if disk is not None:
            self.troubles["disk full during a checkpoint"] = self.fill_disk
        self.costs: dict[str, list[Cost]] = defaultdict(list)

    def plan(self) -> list[str]:
        """Every kind once, in random order."""
        return self.random.sample(list(self.troubles), len(self.troubles))

    def trouble(self, name: str, usual_s: float) -> None:
        """Make trouble of one kind and wait until the run is `EVERY` steps beyond where it was."""
        rows = self.stage.rows()
        started, step, again = time.monotonic(), rows[-1]["step"], _sampled_again(rows)
        kept = max((int(path.name[5:]) for path in self.stage.checkpoints()), default=0)
        said = len(self.stage.log())
        time.sleep(self.random.uniform(0, usual_s))  # anywhere in a step
        self.troubles[name]()
        self.stage.wait(
            lambda: self.stage.is_over() or self.stage.step() >= step + EVERY, f"{EVERY} steps after: {name}"
        )
        now = self.stage.rows()
        rewound = "resumed after step" in self.stage.log()[said:]
        lost = sum(row["tokens/completion"] for row in rows if row["step"] > kept) if rewound else 0
        steps = now[-1]["step"] - step
        seconds = time.monotonic() - started - steps * usual_s
        more = max(0, _sampled_again(now) - (0 if rewound else again))
        self.costs[name].append(Cost(seconds=max(0.0, seconds), tokens=lost + more))

    # ------------------------------------------------------------------------------------------------ troubles

    def victim(self, name: str) -> psutil.Process:
        self.stage.wait(lambda: self.stage.find(name) != [], f"a process {name}")
        return self.random.choice(self.stage.find(name))

    def kill(self, name: str) -> None:
        self.victim(name).kill()

    def stop(self, name: str) -> None:
        """It hangs until somebody kills it."""
        self.victim(name).send_signal(signal.SIGSTOP)

    def lose_node(self) -> None:
        """Its place is taken by another after some seconds."""
        self.stage.kill_second()
        time.sleep(3)
        self.stage.start_second()

    def kill_driver(self) -> None:
        assert self.stage.driver is not None
        self.stage.driver.kill()
        self.stage.driver.wait()
        self.stage.launch()

    def wait_for_writing(self) -> None:
        """Return in the middle of the next write of a checkpoint, which is in the background."""
        written = {path.name for path in self.writing()}
        deadline = time.monotonic() + LIMIT_S
        while not {path.name for path in self.writing()} - written:
            assert time.monotonic() < deadline, "no checkpoint is written"
            written &= {path.name for path in self.writing()}
            time.sleep(0.002)

    def writing(self) -> list[Path]:
        return list((self.stage.run_folder / "checkpoints").glob(f"{WRITING}*"))

    def kill_writing(self, name: str) -> None:
        victim = self.victim(name)
        self.wait_for_writing()
        victim.kill()

    def kill_driver_writing(self) -> None:
        self.wait_for_writing()
        self.kill_driver()

    def damage_checkpoint(self) -> None:
        """One byte of its largest file is turned over."""
        self.stage.wait(lambda: len(self.stage.checkpoints()) > 1, "two checkpoints")
        assert self.stage.driver is not None
        self.stage.driver.kill()
        self.stage.driver.wait()
        newest = self.stage.checkpoints()[-1]
        largest = max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
        with largest.open("r+b") as file:
            file.seek(largest.stat().st_size // 2)
            (byte,) = file.read(1)
            file.seek(-1, 1)
            file.write(bytes([byte ^ 1]))
        self.stage.launch()
        self.stage.wait(lambda: "skipping a damaged checkpoint" in self.stage.log(), "the damage to be found")

    def fill_disk(self) -> None:
        """But for some megabytes: enough for logs, too little for a checkpoint."""
        assert self.disk is not None
        said = self.stage.log().count("no checkpoint after step")
        filler = self.disk / "filler"

        def is_reported() -> bool:
            with filler.open("ab") as file:  # again and again: a checkpoint may have been dropped meanwhile
                file.write(bytes(max(0, psutil.disk_usage(str(self.disk)).free - 4 * 2**20)))
            return self.stage.log().count("no checkpoint after step") > said

        self.stage.wait(is_reported, "a checkpoint that fails")
        filler.unlink()


def _sampled_again(rows: list[dict[str, Any]]) -> int:
    return int(rows[-1].get("failures/tokens_sampled_again", 0)) if rows else 0


def test_chaos(
    request: pytest.FixtureRequest, tabletop: Path, small_run: Any, start_launch: Any, tmp_path: Path
) -> None:
    minutes = request.config.getoption("--chaos-minutes")
    if minutes <= 0:
        pytest.skip("needs --chaos-minutes")
    shared = [
        f"train.steps={10 * minutes}", "train.checkpoint_every=2", "rollout.num_workers=2", "rollout.num_cpus=1.1",
        "rollout.threads=1", "learner.threads=1", "learner.num_cpus=0.75", "rollout.health_check_s=5", "sync.timeout_s=20",
        "rollout.max_restarts=1000", "learner.max_restarts=1000", f"data.frame_store={tmp_path / 'frames'}",
        "placement.wait_s=60", "train.max_zero_variance_steps=0", "run.seed=3", "loss.correction=none",
    ]  # fmt: skip
    alone = [*small_run(tabletop, tmp_path, "alone"), *shared, "rollout.num_workers=1", "rollout.num_cpus=1"]
    process = start_launch(alone, tmp_path / "alone.log")
    assert process.wait(3600) == 0, (tmp_path / "alone.log").read_text()

    with small_disk(tmp_path / "disk", 150) as disk:
        stage = Stage(tmp_path, [*small_run(tabletop, disk or tmp_path, "chaos"), *shared])
        monkey = Monkey(stage, disk, seed=int(time.time()))
        try:
            kinds = _run(stage, monkey, minutes)
            weights = load_file(stage.checkpoints()[-1] / "policy" / "model.safetensors")
        finally:
            left = stage.close()
        rows = stage.rows()
        ledger = json.loads((stage.run_folder / "ledger.json").read_text())
        log = stage.log()
    print(_table(monkey))
    (tmp_path / "log").write_text(log)
    assert not left, f"did not end by themselves: {left}"
    assert kinds >= min(20, 2 * minutes)
    assert [row["step"] for row in rows] == list(range(1, 10 * minutes + 1))
    expected = json.loads((tmp_path / "alone" / "ledger.json").read_text())
    assert ledger == expected
    assert ledger["learned"] + ledger["failed"] == ledger["next_position"]
    (last,) = (tmp_path / "alone" / "checkpoints").glob(f"step_{10 * minutes:06d}")
    undisturbed = load_file(last / "policy" / "model.safetensors")
    assert all(torch.equal(undisturbed[name], weights[name]) for name in undisturbed)


def _run(stage: Stage, monkey: Monkey, minutes: int) -> int:
    """The whole run; returns how often there was trouble."""
    stage.start_head()
    stage.start_second()
    stage.launch()
    stage.wait(lambda: stage.is_over() or len(stage.rows()) >= EVERY, "the first steps")
    assert not stage.is_over(), stage.log()
    usual_s = statistics.median(row["time/step"] for row in stage.rows())
    todo: list[str] = []
    count = 0
    while not stage.is_over() and stage.step() + 2 * EVERY <= 10 * minutes:
        todo = todo or monkey.plan()
        name = todo.pop()
        print(f"after step {stage.step()}: {name}", flush=True)
        monkey.trouble(name, usual_s)
        print(f"  {monkey.costs[name][-1]}", flush=True)
        count += 1
    stage.wait(stage.is_over, "the run to end")
    assert stage.driver is not None
    assert stage.driver.returncode == 0, stage.log()[-6000:]
    return count


def _table(monkey: Monkey) -> str:
    lines = [
        "| trouble | times | seconds lost, median (most) | tokens thrown away, median (most) |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name in monkey.troubles:
        costs = monkey.costs.get(name)
        if costs:
            seconds, tokens = [c.seconds for c in costs], [c.tokens for c in costs]
            lines.append(
                f"| {name} | {len(costs)} | {statistics.median(seconds):.0f} ({max(seconds):.0f}) | "
                f"{statistics.median(tokens):.0f} ({max(tokens)}) |"
            )
    return "\n".join(lines)
