from __future__ import annotations

import pytest

from videostr.config import LearnerConfig
from videostr.grpo.schedule import learning_rate


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        # 2 updates of warm-up, then 4 more: done = 0, 1/4, 1/2, 3/4
        ("constant", [1, 2, 2, 2, 2, 2]),
        ("linear", [1, 2, 2, 1.5, 1, 0.5]),
        # 1 + cos(0, 45, 90, 135 degrees)
        ("cosine", [1, 2, 2, 1.70710678, 1, 0.29289322]),
    ],
)
def test_schedule(schedule: str, expected: list[float]) -> None:
    config = LearnerConfig(lr=2.0, warmup_steps=2, schedule=schedule)  # type: ignore[arg-type]
    assert [learning_rate(config, update, 6) for update in range(6)] == pytest.approx(expected)
