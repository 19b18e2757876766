from __future__ import annotations

import numpy as np
import pytest

from videostr.errors import LearnerError
from videostr.grpo.advantage import advantages, has_zero_variance


def test_grpo_divides_by_the_sample_standard_deviation() -> None:
    # r = 0, 1, 2, 5: mean 2, squares 4 + 1 + 0 + 9 = 14, std = sqrt(14 / 3) = 2.1602469, plus 0.0001
    std = 2.1603469
    assert advantages([0.0, 1.0, 2.0, 5.0]) == pytest.approx([-2 / std, -1 / std, 0, 3 / std], abs=1e-6)


def test_dr_grpo_only_centres() -> None:
    result = advantages([0.0, 1.0, 2.0, 5.0], "dr_grpo")
    assert result == pytest.approx([-2.0, -1.0, 0.0, 3.0])
    assert result.dtype == np.float32


@pytest.mark.parametrize("kind", ["grpo", "dr_grpo"])
def test_flat_group_has_zero_advantage_despite_rounding(kind: str) -> None:
    rewards = [0.1 + 0.2, 0.3, 0.3]  # 0.30000000000000004 differs from 0.3
    assert has_zero_variance(rewards)
    assert advantages(rewards, kind).tolist() == [0.0, 0.0, 0.0]  # type: ignore[arg-type]
    assert not has_zero_variance([0.3, 0.301])


def test_group_of_one_is_refused() -> None:
    with pytest.raises(LearnerError, match=r"group of 1 .*sampling\.group_size"):
        advantages([1.0])
