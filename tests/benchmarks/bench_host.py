"""Work of the host on one core: frames from the store against decoding, scoring of groups. One JSON object a line."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rewards import Rubric, score_group
from videostr.config import RewardConfig
from videostr.data.records import read_records
from videostr.prompt import reference_trace
from videostr.types import Completion, FinishReason, Record
from videostr.video import FrameStore, decode, name_clip

REPEATS = 7


def seconds(work: Callable[[], object], calls: int) -> list[float]:
    """Seconds per call, of every repeat."""
    found = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        for _ in range(calls):
            work()
        found.append((time.perf_counter() - started) / calls)
    return found


def report(capsys: pytest.CaptureFixture[str], **values: object) -> None:
    with capsys.disabled():
        print(json.dumps({"cores": 1, "repeats": REPEATS, **values}), flush=True)  # noqa: T201


def spread(values: list[float]) -> float:
    """(max - min) / median."""
    return round((max(values) - min(values)) / statistics.median(values), 3)


def test_frame_store(tabletop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tabletop / "heldout"
    record = next(row for row in read_records(folder) if isinstance(row, Record))
    clip, store = name_clip(record.clip, folder), FrameStore(tmp_path)
    stored = seconds(lambda: np.array(store.frames(clip).pixels), 200)
    decoded = seconds(lambda: decode(clip.spec), 20)
    report(
        capsys,
        name="decode/frame_store",
        value=round(1 / statistics.median(stored)),
        unit="clips/s",
        ratio=round(statistics.median(decoded) / statistics.median(stored), 2),
        against="decoding at every use",
        shape="4 frames of 64 x 64, H.264",
        spread=spread(stored),
    )


def test_rewards(tabletop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = next(row for row in read_records(tabletop / "heldout") if isinstance(row, Record))
    completion = Completion(
        text=reference_trace(record), token_ids=np.zeros(90, np.int32), logprobs=np.zeros(90, np.float32),
        finish_reason=FinishReason.STOP, weight_versions=(),
    )  # fmt: skip
    rubric = Rubric.from_config(RewardConfig(), max_tokens=160)
    taken = seconds(lambda: score_group([completion] * 8, record, rubric), 20)
    report(
        capsys,
        name="reward/traces_per_s_per_core",
        value=round(8 / statistics.median(taken)),
        unit="traces/s",
        ratio=None,
        against=None,
        shape="groups of 8, 2 or 3 nodes, 4 frames",
        spread=spread(taken),
    )
