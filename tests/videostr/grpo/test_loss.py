from __future__ import annotations

from dataclasses import replace
from math import exp, log, sqrt
from typing import Any, get_args, get_type_hints

import pytest
import torch

from videostr.config.schema import Config
from videostr.config.sections import LossConfig, TrainConfig
from videostr.grpo.batch import Row
from videostr.grpo.loss import Counts, LossSums, completion_lengths, count, policy_loss
from videostr.grpo.losses import LOSSES

COUNTS = Counts(tokens=3, sequences=2)
NOTHING = torch.zeros(0, dtype=torch.long)
# Sequence 0: two tokens with ratios 1.5 and 0.5, advantage 1. Sequence 1: one token, ratio 1.5, advantage -2.
RATIOS = torch.tensor([1.5, 0.5, 1.5])
LOGPROBS = torch.tensor([-1.0, -2.0, -3.0])
ENTROPY = torch.tensor([0.5, 1.0, 1.5])
ROW = Row(
    input_ids=NOTHING,
    positions=NOTHING,
    prompt_ids=NOTHING,
    completion_ids=NOTHING,
    vision={},
    temporal_patches=(),
    predictors=NOTHING,
    targets=torch.tensor([7, 8, 9]),
    sequence_ids=torch.tensor([0, 0, 1]),
    behaviour_logprobs=LOGPROBS - RATIOS.log(),
    advantages=torch.tensor([1.0, -2.0]),
    origins=((0, 0), (0, 1)),
    padding=False,
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
    assert sums.metrics(Config()) == pytest.approx(
        {
            "loss": 1.22 / 3,
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
    config = Config(loss=LossConfig(correction="truncated"))
    loss, grad, sums = run(config.loss, row=row)
    assert loss == pytest.approx((-1.5 - 0.5 + 4.0) / 3)
    assert grad == pytest.approx([-1.5 / 3, -0.5 / 3, 4.0 / 3])
    metrics = sums.metrics(config)
    assert metrics.keys() == {
        "loss", "entropy", "mismatch_kl", "importance_weight_mean", "importance_weight_max",
        "importance_weight_capped_fraction",
    }  # fmt: skip
    # as applied: 1.5, 0.5, 2; the greatest before the cap; one of three is cut
    assert metrics["importance_weight_mean"] == pytest.approx(4 / 3)
    assert metrics["importance_weight_max"] == pytest.approx(4.0)
    assert metrics["importance_weight_capped_fraction"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("name", ["ppo_clip", "gspo", "cispo"])
def test_without_correction_the_engines_logprobs_play_no_part(name: str) -> None:
    config = LossConfig(name=name, correction="none")  # type: ignore[arg-type]
    before = run(config)
    other = replace(ROW, behaviour_logprobs=ROW.behaviour_logprobs * 1.1)
    after = run(config, row=other)
    assert before[1] == after[1] == pytest.approx([-1 / 3, -1 / 3, 2 / 3])
    assert before[2].metrics(Config(loss=config)).keys() == {"loss", "entropy", "mismatch_kl"}
    assert after[2].mismatch_kl != before[2].mismatch_kl  # still reported


@pytest.mark.parametrize("correction", ["none", "truncated"])
@pytest.mark.parametrize("name", ["ppo_clip", "gspo", "cispo"])
def test_in_a_second_update_the_clip_acts_on_what_the_first_has_moved(name: str, correction: str) -> None:
    """Old and engine agree here, so that `truncated` weighs by 1, and the ratios are those of the tests of `ratio`."""
    second = LossConfig(name=name, correction=correction)  # type: ignore[arg-type]
    against_engine = run(LossConfig(name=name))  # type: ignore[arg-type]
    against_old = run(second, old_logprobs=ROW.behaviour_logprobs)
    assert against_old == against_engine
    assert against_old[2].clipped == {"ppo_clip": 1, "gspo": 0, "cispo": 3}[name]
    metrics = against_old[2].metrics(Config(loss=second, train=TrainConfig(updates_per_batch=2)))
    assert metrics["ratio_max"] == pytest.approx(1.5)
    assert ("importance_weight_mean" in metrics) == (correction == "truncated")


def test_two_updates_with_truncated_weights() -> None:
    """One token each, A = 1, mu = 0.1, old = 0.25: weight min(2.5, 2) = 2, of old over mu in both updates.

    First update: pi = old, r = 1, loss -2, gradient -2. Second: pi = 0.3, r = 1.2 within the clip: loss -2.4, gradient
    -2.4; with pi = 0.35 r = 1.4 above 1.28: loss -2.56, no gradient.
    """
    row = replace(
        ROW, targets=torch.tensor([7]), sequence_ids=torch.tensor([0]), behaviour_logprobs=torch.tensor([log(0.1)]),
        advantages=torch.tensor([1.0]), origins=((0, 0),),
    )  # fmt: skip
    config, old = LossConfig(correction="truncated"), torch.tensor([log(0.25)])
    for probability, before, expected in (
        (0.25, None, (-2.0, -2.0)),
        (0.3, old, (-2.4, -2.4)),
        (0.35, old, (-2.56, 0.0)),
    ):
        logprobs = torch.tensor([log(probability)], requires_grad=True)
        loss, sums = policy_loss(
            row, logprobs, torch.zeros(1), config, Counts(tokens=1, sequences=1), None, before
        )
        loss.backward()
        assert logprobs.grad is not None
        assert (float(loss.detach()), float(logprobs.grad)) == pytest.approx(expected, abs=1e-6)
        assert (sums.weight, sums.weight_max, sums.capped) == pytest.approx((2.0, 2.5, 1.0))


@pytest.mark.parametrize("correction", ["ratio", "truncated", "none"])
@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_a_second_update_is_stopped_by_the_clip(correction: str, advantage: float) -> None:
    """A token of probability sigmoid(x), x = 0 at first, sampled at 0.5; plain gradient steps of rate 2.

    First update: r = 1, d(-r A)/dx = -A p (1 - p) / 0.5 = -A / 2, so x = A. Second, A = 1: p = 0.731, r = 1.462 > 1.28;
    A = -1: p = 0.269, r = 0.538 < 0.8: the gradient is 0 and x stays. With eps of 0.5 it would not: d = -A 0.1966 / 0.5.
    """
    row = replace(
        ROW, targets=torch.tensor([7]), sequence_ids=torch.tensor([0]), behaviour_logprobs=torch.tensor([log(0.5)]),
        advantages=torch.tensor([advantage]), origins=((0, 0),),
    )  # fmt: skip
    for eps, end in ((0.2, advantage), (0.5, advantage + 2 * advantage * 0.196612 / 0.5)):
        config = LossConfig(correction=correction, eps_low=eps, eps_high=eps)  # type: ignore[arg-type]
        x, old, clipped = torch.zeros(1, requires_grad=True), None, []
        for _ in range(2):
            logprobs = torch.nn.functional.logsigmoid(x)
            counts = Counts(tokens=1, sequences=1)
            loss, sums = policy_loss(row, logprobs, torch.zeros(1), config, counts, None, old)
            (slope,) = torch.autograd.grad(loss, x)
            x, old = (x - 2 * slope).detach().requires_grad_(), row.behaviour_logprobs
            clipped.append(sums.clipped)
        assert float(x.detach()) == pytest.approx(end, abs=1e-5)
        assert clipped == [0, 1 if eps == 0.2 else 0]


def test_the_registry_has_a_loss_for_every_name() -> None:
    assert tuple(LOSSES) == get_args(get_type_hints(LossConfig)["name"])


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


def test_padding_row_has_no_weight_but_stays_in_the_graph() -> None:
    logprobs = LOGPROBS.clone().requires_grad_()
    loss, sums = policy_loss(replace(ROW, padding=True), logprobs, ENTROPY, LossConfig(), COUNTS)
    loss.backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [0.0, 0.0, 0.0]
    assert sums == LossSums()


def test_counts_leave_out_masked_and_empty_completions() -> None:
    lengths, truncated = [[3, 0, 5]], [[False, False, True]]
    assert count(completion_lengths(lengths, truncated, LossConfig())) == Counts(tokens=8, sequences=2)
    masked = completion_lengths(lengths, truncated, LossConfig(mask_truncated=True))
    assert count(masked) == Counts(tokens=3, sequences=1)


def test_kl_is_reported_where_there_is_such_a_term() -> None:
    sums = LossSums(kl=3.0, tokens=2.0)
    assert sums.metrics(Config(loss=LossConfig(kl_coef=0.1)))["kl"] == 1.5
    assert "kl" not in sums.metrics(Config())


def test_sums_add_and_of_the_largest_the_larger_is_kept() -> None:
    one = LossSums(
        loss=1,
        kl=2,
        clipped=3,
        entropy=4,
        mismatch_kl=5,
        ratio_max=6,
        weight=1,
        weight_max=1,
        capped=0,
        tokens=2,
    )
    other = LossSums(
        loss=1,
        kl=2,
        clipped=1,
        entropy=2,
        mismatch_kl=3,
        ratio_max=1,
        weight=3,
        weight_max=9,
        capped=2,
        tokens=2,
    )
    assert one.plus(other) == LossSums(
        loss=2,
        kl=4,
        clipped=4,
        entropy=6,
        mismatch_kl=8,
        ratio_max=6,
        weight=4,
        weight_max=9,
        capped=2,
        tokens=4,
    )
