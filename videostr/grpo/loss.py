"""Log-probabilities of a row in, its share of the global loss and of the metrics out.

Losses are normalised by counts of the whole batch, so the sum over rows and ranks is the same however it is cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from videostr.config import Config, LossConfig
from videostr.grpo.batch import Row

Correction = Literal["ratio", "truncated", "none"]
MAX_WEIGHT = 2.0
"""Largest weight of a token under truncated importance sampling."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Size of the global batch, over all rows and ranks; masked and empty completions do not count."""

    tokens: int
    sequences: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LossSums:
    """Sums over completion tokens, of one row or of many; `loss` is already normalised."""

    loss: float = 0.0
    kl: float = 0.0
    clipped: float = 0.0
    entropy: float = 0.0
    mismatch_kl: float = 0.0
    ratio_max: float = 0.0
    tokens: float = 0.0

    def plus(self, other: LossSums) -> LossSums:
        """Sums over both; the larger of the ratios."""
        return LossSums(
            loss=self.loss + other.loss,
            kl=self.kl + other.kl,
            clipped=self.clipped + other.clipped,
            entropy=self.entropy + other.entropy,
            mismatch_kl=self.mismatch_kl + other.mismatch_kl,
            ratio_max=max(self.ratio_max, other.ratio_max),
            tokens=self.tokens + other.tokens,
        )

    def metrics(self) -> dict[str, float]:
        """loss, and kl, clip_fraction, entropy, mismatch_kl averaged over completion tokens, and ratio_max."""
        tokens = max(self.tokens, 1.0)
        return {
            "loss": self.loss,
            "kl": self.kl / tokens,
            "clip_fraction": self.clipped / tokens,
            "entropy": self.entropy / tokens,
            "mismatch_kl": self.mismatch_kl / tokens,
            "ratio_max": self.ratio_max,
        }


def completion_lengths(
    lengths: Sequence[Sequence[int]], truncated: Sequence[Sequence[bool]], config: LossConfig
) -> list[list[int]]:
    """Lengths [P][G] that take part in the loss: 0 for a truncated completion under `loss.mask_truncated`."""
    return [
        [0 if config.mask_truncated and cut else length for length, cut in zip(group, cuts, strict=True)]
        for group, cuts in zip(lengths, truncated, strict=True)
    ]


def count(lengths: Sequence[Sequence[int]]) -> Counts:
    """Counts of a batch with completions of these lengths [P][G]."""
    flat = [length for group in lengths for length in group if length > 0]
    return Counts(tokens=sum(flat), sequences=len(flat))


def correction_of(config: Config) -> Correction:
    """How the loss of a run accounts for the engine's log-probabilities: `loss.correction`, with `auto` decided."""
    chosen = config.loss.correction
    if chosen != "auto":
        return chosen
    if config.train.max_staleness > 0:
        return "truncated"
    return "ratio" if config.rollout.num_gpus > 0 else "none"


def policy_loss(
    row: Row,
    logprobs: Tensor,
    entropy: Tensor,
    config: LossConfig,
    counts: Counts,
    reference_logprobs: Tensor | None = None,
    correction: Correction = "ratio",
) -> tuple[Tensor, LossSums]:
    """The row's share of the global loss (a scalar to be differentiated) and its sums.

    With r = exp(log pi - log mu) [N], A the advantage of the token's sequence, lo = 1 - eps_low, hi = 1 + eps_high:
      ppo_clip  -min(r A, clip(r, lo, hi) A)                                    (arXiv 1707.06347, 2503.14476)
      gspo      the same with r = exp(mean over the sequence of log pi - log mu) (arXiv 2507.18071)
      cispo     -stop_gradient(clip(r, lo, hi)) A log pi                         (arXiv 2506.13585)
    With correction `truncated` or `none` r is taken against the learner's own log-probabilities at the start of the update,
    `old`, instead of mu. A batch has one update, so r is 1 and the gradient that of A log pi; `truncated` weighs each token
    by stop_gradient(min(exp(log old - log mu), 2)), truncated importance sampling (docs/method.md).
    Added is `kl_coef` times the k3 estimate of KL(pi || reference): exp(d) - d - 1 with d = log ref - log pi.
    An idle row returns zero, still connected to the graph: its backward pass runs the same collectives.

    Args:
        row: the packed row.
        logprobs: [N] float32, log pi, with gradient.
        entropy: [N] float32, nats.
        config: loss section of the run's config.
        counts: size of the global batch.
        reference_logprobs: [N] float32; needed when `kl_coef` > 0.
        correction: see above; what `correction_of` says for a run.
    """
    if row.idle:
        return logprobs.sum() * 0.0, LossSums()
    mismatch = logprobs - row.behaviour_logprobs
    log_ratio = mismatch if correction == "ratio" else logprobs - logprobs.detach()
    advantage = row.advantages[row.sequence_ids]
    token_loss, ratio, clipped = _surrogate(config, row, logprobs, log_ratio, advantage)
    if correction != "ratio":
        weight = mismatch.detach().exp()
        ratio, clipped = weight, weight > MAX_WEIGHT
        if correction == "truncated":
            token_loss = token_loss * weight.clamp(max=MAX_WEIGHT)
    kl = torch.zeros_like(logprobs)
    if reference_logprobs is not None:
        kl = _k3(reference_logprobs - logprobs)
        token_loss = token_loss + config.kl_coef * kl
    loss = (token_loss * _token_weights(row, config, counts)).sum()
    sums = LossSums(
        loss=float(loss.detach()),
        kl=float(kl.detach().sum()),
        clipped=float(clipped.sum()),
        entropy=float(entropy.sum()),
        mismatch_kl=float(_k3(mismatch.detach()).sum()),
        ratio_max=float(ratio.detach().max()),
        tokens=float(len(row.targets)),
    )
    return loss, sums


def _surrogate(
    config: LossConfig, row: Row, logprobs: Tensor, log_ratio: Tensor, advantage: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss per token [N], ratio [N], and whether the clip cuts the token's gradient or weight [N]."""
    low, high = 1.0 - config.eps_low, 1.0 + config.eps_high
    ratio = (_sequence_mean(log_ratio, row) if config.name == "gspo" else log_ratio).exp()
    clamped = ratio.clamp(low, high)
    if config.name == "cispo":
        return -clamped.detach() * advantage * logprobs, ratio, clamped != ratio
    clipped = ((advantage > 0) & (ratio > high)) | ((advantage < 0) & (ratio < low))
    return -torch.minimum(ratio * advantage, clamped * advantage), ratio, clipped


def _sequence_mean(values: Tensor, row: Row) -> Tensor:
    """Mean [N] over the sequence that each token belongs to."""
    sums = torch.zeros_like(row.advantages).index_add(0, row.sequence_ids, values)
    return (sums / row.sequence_ids.bincount(minlength=len(sums)))[row.sequence_ids]


def _token_weights(row: Row, config: LossConfig, counts: Counts) -> Tensor:
    """Weight [N] of each token in the global loss."""
    aggregation: Literal["token", "sequence", "constant"] = config.aggregation
    if aggregation == "token":
        return torch.full_like(row.behaviour_logprobs, 1.0 / counts.tokens)
    if aggregation == "constant":
        return torch.full_like(row.behaviour_logprobs, 1.0 / (counts.sequences * config.constant_length))
    lengths = row.sequence_ids.bincount(minlength=len(row.advantages))
    return (1.0 / (counts.sequences * lengths))[row.sequence_ids]


def _k3(log_ratio: Tensor) -> Tensor:
    """exp(d) - d - 1: unbiased and never negative where d = log q - log p and tokens come from p."""
    return log_ratio.exp() - log_ratio - 1.0
