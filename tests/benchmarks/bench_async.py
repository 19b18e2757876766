"""Steps with sampling ahead of learning against synchronous ones, each side on a core of its own. One JSON object a line."""

from __future__ import annotations

import os
import statistics
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from tests.benchmarks.bench_step import G, started
from tests.benchmarks.measure import report, spread

PROMPTS, COMPLETION = 16, 80
STEPS = 12
"""Of a turn; the first two fill the window and are left out, and the last has nothing sampled meanwhile."""
TURNS = 3


def pin(actors: Iterable[Any], core: int) -> None:
    """Let actors and all processes below them run on one core only."""
    for actor in actors:
        pid = ray.get(actor.__ray_call__.remote(lambda _: os.getpid()))
        process = psutil.Process(pid)
        for each in (process, *process.children(recursive=True)):
            for thread in each.threads():  # a process's affinity is that of its first thread
                os.sched_setaffinity(thread.id, {core})


def processor_seconds() -> Counter[str]:
    """Seconds that each part has computed so far, with all processes below it; Ray's own are one part."""
    parts = {"ray::RolloutWorker": "engine", "ray::LearnerWorker": "learner", "ray::RewardWorker": "rewards"}
    driver = psutil.Process()
    spent = Counter({"driver": sum(driver.cpu_times()[:2])})
    for process in driver.children(recursive=True):
        titles = " ".join(" ".join(each.cmdline()) for each in (process, *process.parents()))
        part = next((part for title, part in parts.items() if title in titles), "ray")
        spent[part] += sum(process.cpu_times()[:2])
    return spent


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="needs two cores")
def test_async(tabletop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # A reference model and recomputed activations: learning then costs about as much as sampling.
    overrides = ("rollout.threads=1", "learner.threads=1", "loss.kl_coef=0.01", "model.gradient_checkpointing=true",
                 "loss.correction=truncated")  # fmt: skip
    with started(tmp_path, *overrides) as system:
        pin(system.ports.rollouts.handles(), 0)
        pin(system.ports.learner.workers, 1)
        source = system.source(tabletop / "train")
        system.steps(source, 2, PROMPTS, COMPLETION)
        rows: dict[int, list[dict[str, float]]] = {0: [], 1: [], 2: []}
        turns: dict[int, list[float]] = {0: [], 1: [], 2: []}
        computed: dict[int, Counter[str]] = {0: Counter(), 1: Counter(), 2: Counter()}
        for _ in range(TURNS):
            for staleness, of in rows.items():
                before = processor_seconds()
                new = system.steps(source, STEPS, PROMPTS, COMPLETION, staleness)[2:-1]
                of += new
                computed[staleness].update(processor_seconds() - before)
                turns[staleness].append(statistics.mean(row["time/step"] for row in new))
    alone = {
        name: statistics.median(row[f"time/{name}"] for row in rows[0])
        for name in ("rollout", "learn", "sync")
    }
    longer = max(alone["rollout"], alone["learn"] + alone["sync"])
    for staleness in (1, 2):
        taken = statistics.median(turns[staleness])
        report(
            capsys,
            name="async/speedup",
            value=round(taken, 3),
            unit="s/step",
            ratio=round(statistics.median(a / b for a, b in zip(turns[0], turns[staleness], strict=True)), 3),
            against="max_staleness 0: sampling and learning in turn",
            longer_side_ratio=round(taken / longer, 3),
            seconds={**{name: round(value, 3) for name, value in alone.items()},
                     "step_at_0": round(statistics.median(turns[0]), 3)},
            processor_seconds={name: round(s / TURNS / STEPS, 3) for name, s in computed[staleness].most_common()},
            staleness=max(row["staleness/max"] for row in rows[staleness]),
            shape=f"max_staleness {staleness}, {PROMPTS} prompts x {G} completions of {COMPLETION} tokens, engine and learner "
            "with one thread on a core each",
            cores=2,
            repeats=TURNS,
            spread=spread(turns[staleness]),
        )  # fmt: skip
