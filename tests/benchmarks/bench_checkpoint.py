"""What a checkpoint costs training: seconds that steps are longer while one is written, against writing it while they wait.

In: one learner rank with a wide policy of random weights and a batch of short completions. Out: one JSON object.
"""

from __future__ import annotations

import os
import shutil
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from transformers import AutoModelForImageTextToText

from actors.learner.snapshot import Written
from actors.learner.worker import LearnerWorker
from tests.actors.learner_stage import Stage
from tests.benchmarks.measure import report, spread
from videostr.config.sections import LossConfig
from videostr.models.processor import load_processor

REPEATS = 5
INTERMEDIATE = 16384
"""Of the language model: many parameters for few operations, as in a model whose checkpoints take long."""


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[tuple[LearnerWorker, Stage]]:
    """A rank alone, which has taken one step."""
    stage = Stage(tmp_path)
    config = stage.model_config
    config.text_config.intermediate_size = INTERMEDIATE
    torch.manual_seed(0)
    policy = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    processor = load_processor(stage.policy)
    stage.policy = tmp_path / "wide"
    policy.save_pretrained(stage.policy)
    processor.save_pretrained(stage.policy)
    options = replace(stage.config(max_row_tokens=1000), loss=LossConfig())
    rank = LearnerWorker(0, options, str(stage.frames))
    rank.connect("127.0.0.1", int(os.environ.get("BENCH_PORT", "29655")), 1)
    rank.start()
    rank.update(stage.batch)
    yield rank, stage
    dist.destroy_process_group()


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    found = work()
    return time.perf_counter() - started, found


def test_checkpoint_stall(
    worker: tuple[LearnerWorker, Stage], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rank, stage = worker
    folder = tmp_path / "checkpoint"
    steps, copies, background, blocking, sizes = [], [], [], [], set()

    def blocked() -> Written:
        rank.snapshot()
        return rank.write(str(folder))

    def checkpoint() -> tuple[float, int]:
        """Return the seconds of the copy, and the steps until all is written."""
        seconds, _ = timed(rank.snapshot)
        writing = threading.Thread(target=rank.write, args=[str(folder)])
        writing.start()
        count = 0
        while writing.is_alive():
            rank.update(stage.batch)
            count += 1
        return seconds, count

    for turn in range(REPEATS + 1):
        alone = statistics.median(timed(lambda: rank.update(stage.batch))[0] for _ in range(3))
        seconds, written = timed(blocked)
        shutil.rmtree(folder)
        total, (copied, count) = timed(checkpoint)
        shutil.rmtree(folder)
        if turn:
            steps.append(alone)
            blocking.append(seconds)
            copies.append(copied)
            background.append(total - count * alone)
            sizes.add(sum(size for size, _ in written.files.values()))
    (size,) = sizes
    report(
        capsys, name="checkpoint/stall", value=round(statistics.median(background), 3), unit="s",
        ratio=round(statistics.median(a / b for a, b in zip(background, blocking, strict=True)), 3),
        against=f"{statistics.median(blocking):.3f} s when training waits until it is written",
        copy_s=round(statistics.median(copies), 3), step_s=round(statistics.median(steps), 3),
        shape=f"{size / 2**20:.0f} MiB, one rank", cores=os.cpu_count(), repeats=REPEATS, spread=spread(background),
    )  # fmt: skip
