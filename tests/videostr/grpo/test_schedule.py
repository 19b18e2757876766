from __future__ import annotations

import pytest

from videostr.config.sections import LearnerConfig
from videostr.grpo.schedule import learning_rate, mini_batches


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


def test_warm_up_and_schedule_count_updates_not_steps() -> None:
    # 3 steps of 2 updates are 6 updates: the second step begins at the rate of the third update
    config = LearnerConfig(lr=2.0, warmup_steps=2, schedule="linear")
    assert [learning_rate(config, update, 3 * 2) for update in range(6)] == [1, 2, 2, 1.5, 1, 0.5]


@pytest.mark.parametrize(
    ("groups", "updates", "sizes"),
    [(8, 4, [2, 2, 2, 2]), (7, 3, [3, 2, 2]), (5, 1, [5]), (2, 4, [1, 1]), (0, 4, [0]), (5, 5, [1] * 5)],
)
def test_mini_batches_are_whole_groups_in_order(groups: int, updates: int, sizes: list[int]) -> None:
    parts = mini_batches(tuple(range(groups)), updates)
    assert [len(part) for part in parts] == sizes
    assert [group for part in parts for group in part] == list(range(groups))
