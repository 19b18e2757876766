from __future__ import annotations

from dataclasses import replace
from math import exp, log, sqrt
from typing import Any

import pytest
import torch

from videostr.config import Config, LossConfig, RolloutConfig, TrainConfig
from videostr.grpo.batch import Row
from videostr.grpo.loss import Counts, LossSums, completion_lengths, correction_of, count, policy_loss

COUNTS = Counts(tokens=3, sequences=2)
NOTHING = torch.zeros(0, dtype=torch.long)
# Sequence 0: two tokens with ratios 1.5 and 0.5, advantage 1. Sequence 1: one token, ratio 1.5, advantage -2.
RATIOS = torch.tensor([1.5, 0.5, 1.5])
LOGPROBS = torch.tensor([-1.0, -2.0, -3.0])
ENTROPY = torch.tensor([0.5, 1.0, 1.5])
ROW = Row(
    input_ids=NOTHING,
    position_ids=NOTHING,
    prompt_ids=NOTHING,
    completion_ids=NOTHING,
    pixel_values_videos=NOTHING,
    video_grid_thw=NOTHING,
    predictors=NOTHING,
    targets=torch.tensor([7, 8, 9]),
    sequence_ids=torch.tensor([0, 0, 1]),
    behaviour_logprobs=LOGPROBS - RATIOS.log(),
    advantages=torch.tensor([1.0, -2.0]),
    origins=((0, 0), (0, 1)),
    idle=False,
)


def run(
    config: LossConfig, reference: torch.Tensor | None = None, **options: Any
) -> tuple[float, list[float], LossSums]:
    row = options.pop("row", ROW)
    logprobs = LOGPROBS.clone().requires_grad_()
    loss, sums = policy_loss(row, logprobs, ENTROPY, config, COUNTS, reference, **options)
    loss.backward()
    assert logprobs.grad is not None
    return float(loss.detach()), logprobs.grad.tolist(), sums


def test_ppo_clip() -> None:
    loss, grad, sums = run(LossConfig())
    # -min(1.5, 1.28) = -1.28; -min(0.5, 0.8) = -0.5; -min(-3, -2.56) = 3: sum 1.22, 3 tokens
    assert loss == pytest.approx(1.22 / 3)
    # d(-r A)/d log pi = -r A where not clipped: 0, -0.5, 3
    assert grad == pytest.approx([0.0, -0.5 / 3, 3.0 / 3])
    assert sums.metrics() == pytest.approx(
        {
            "loss": 1.22 / 3,
            "kl": 0.0,
            "clip_fraction": 1 / 3,  # only the first; the last has A < 0 and r above 1
            "entropy": 1.0,
            # r - log r - 1, twice 1.5 and once 0.5
            "mismatch_kl": (2 * (0.5 - log(1.5)) + (-0.5 - log(0.5))) / 3,
            "ratio_max": 1.5,
        }
    )


def test_gspo_has_one_ratio_per_sequence() -> None:
    loss, grad, sums = run(LossConfig(name="gspo", eps_low=0.1))
    # sequence 0: sqrt(1.5 * 0.5) = 0.8660, below 0.9 but A > 0, so unclipped; sequence 1: 1.5 with A < 0, unclipped
    s = sqrt(0.75)
    assert loss == pytest.approx((-2 * s + 3.0) / 3)
    # each token of sequence 0 moves the mean by 1/2 and the mean stands in 2 token losses
    assert grad == pytest.approx([-s / 3, -s / 3, 3.0 / 3])
    assert sums.clipped == 0


def test_cispo_weights_the_policy_gradient_by_the_clipped_ratio() -> None:
    loss, grad, sums = run(LossConfig(name="cispo"))
    # weights 1.28, 0.8, 1.28, times A = 1, 1, -2, times log pi = -1, -2, -3
    assert loss == pytest.approx((1.28 + 1.6 - 7.68) / 3)
    assert grad == pytest.approx([-1.28 / 3, -0.8 / 3, 2.56 / 3])
    assert sums.clipped == 3


def test_truncated_importance_sampling_weighs_tokens_of_older_weights() -> None:
    # Weights own / mu 1.5, 0.5 and 4, cut to 2. The loss has r = 1: -w A = -1.5, -0.5, 4; its gradient is the same.
    row = replace(ROW, behaviour_logprobs=LOGPROBS - torch.tensor([1.5, 0.5, 4.0]).log())
    loss, grad, sums = run(LossConfig(), correction="truncated", row=row)
    assert loss == pytest.approx((-1.5 - 0.5 + 4.0) / 3)
    assert grad == pytest.approx([-1.5 / 3, -0.5 / 3, 4.0 / 3])
    assert (sums.clipped, sums.ratio_max) == (1, pytest.approx(4.0))


@pytest.mark.parametrize("name", ["ppo_clip", "gspo", "cispo"])
def test_without_correction_the_engines_logprobs_play_no_part(name: str) -> None:
    config = LossConfig(name=name)  # type: ignore[arg-type]
    before = run(config, correction="none")
    other = replace(ROW, behaviour_logprobs=ROW.behaviour_logprobs * 1.1)
    after = run(config, correction="none", row=other)
    assert before[1] == after[1] == pytest.approx([-1 / 3, -1 / 3, 2 / 3])
    assert before[2].ratio_max == pytest.approx(1.5)  # still reported
    assert after[2].mismatch_kl != before[2].mismatch_kl


@pytest.mark.parametrize(
    ("staleness", "gpus", "chosen", "expected"),
    [
        (0, 0.0, "auto", "none"), (0, 1.0, "auto", "ratio"), (1, 0.0, "auto", "truncated"), (2, 1.0, "auto", "truncated"),
        (1, 0.0, "ratio", "ratio"),
    ],
)  # fmt: skip
def test_which_correction_a_run_has(staleness: int, gpus: float, chosen: str, expected: str) -> None:
    config = Config(
        train=TrainConfig(max_staleness=staleness),
        rollout=RolloutConfig(num_gpus=gpus),
        loss=LossConfig(correction=chosen),  # type: ignore[arg-type]
    )
    assert correction_of(config) == expected


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [
        ("token", 1.22 / 3),
        ("sequence", ((-1.28 - 0.5) / 2 + 3.0) / 2),
        ("constant", 1.22 / (2 * 10)),
    ],
)
def test_aggregation(aggregation: str, expected: float) -> None:
    config = LossConfig(aggregation=aggregation, constant_length=10)  # type: ignore[arg-type]
    assert run(config)[0] == pytest.approx(expected)


def test_kl_to_the_reference_is_k3() -> None:
    # log ref - log pi = 1, 0, 0: k3 = e - 2
    loss, grad, sums = run(LossConfig(kl_coef=0.5), reference=LOGPROBS + torch.tensor([1.0, 0.0, 0.0]))
    assert loss == pytest.approx((1.22 + 0.5 * (exp(1) - 2)) / 3)
    # d k3 / d log pi = 1 - exp(d)
    assert grad[0] == pytest.approx(0.5 * (1 - exp(1)) / 3)
    assert sums.kl == pytest.approx(exp(1) - 2)


def test_idle_row_has_no_weight_but_stays_in_the_graph() -> None:
    logprobs = LOGPROBS.clone().requires_grad_()
    loss, sums = policy_loss(replace(ROW, idle=True), logprobs, ENTROPY, LossConfig(), COUNTS)
    loss.backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [0.0, 0.0, 0.0]
    assert sums == LossSums()


def test_counts_leave_out_masked_and_empty_completions() -> None:
    lengths, truncated = [[3, 0, 5]], [[False, False, True]]
    assert count(completion_lengths(lengths, truncated, LossConfig())) == Counts(tokens=8, sequences=2)
    masked = completion_lengths(lengths, truncated, LossConfig(mask_truncated=True))
    assert count(masked) == Counts(tokens=3, sequences=1)


def test_sums_add_and_the_ratio_is_the_largest() -> None:
    both = LossSums(loss=1, kl=2, clipped=3, entropy=4, mismatch_kl=5, ratio_max=6, tokens=2).plus(
        LossSums(loss=1, kl=2, clipped=1, entropy=2, mismatch_kl=3, ratio_max=1, tokens=2)
    )
    assert both.metrics() == {
        "loss": 2, "kl": 1, "clip_fraction": 1, "entropy": 1.5, "mismatch_kl": 2, "ratio_max": 6,
    }  # fmt: skip
