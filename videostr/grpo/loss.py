"""Log-probabilities of a row in, its share of the global loss and of the metrics out.

Losses are normalised by counts of the whole batch of an update, so the sum over rows and ranks is the same however it is cut.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import torch
from torch import Tensor

from videostr.config.effects import ratio_moves
from videostr.config.schema import Config
from videostr.config.sections import LossConfig
from videostr.grpo.batch import Row
from videostr.grpo.losses import LossInputs, TokenLoss, token_loss

MAX_WEIGHT = 2.0
"""Largest weight of a token under truncated importance sampling."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """Size of the global batch of an update, over all rows and ranks; masked and empty completions do not count."""

    tokens: int
    sequences: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LossSums:
    """Sums over completion tokens, of one row or of many; `loss` is already normalised.

    A name that ends in `_max` is the largest value.
    """

    loss: float = 0.0
    kl: float = 0.0
    clipped: float = 0.0
    entropy: float = 0.0
    mismatch_kl: float = 0.0
    ratio_max: float = 0.0
    weight: float = 0.0
    weight_max: float = 0.0
    capped: float = 0.0
    tokens: float = 0.0

    def plus(self, other: LossSums) -> LossSums:
        """Return the sums over both, and the larger of the largest values."""
        here, there = asdict(self), asdict(other)
        return LossSums(
            **{k: max(v, there[k]) if k.endswith("_max") else v + there[k] for k, v in here.items()}
        )

    def metrics(self, config: Config) -> dict[str, float]:
        """Return the metrics that the run's loss has, averaged over completion tokens.

        Absent are `mismatch_kl` of reference traces, which no engine sampled, `kl` without a KL term, `ratio_max` and
        `clip_fraction` where the ratio is 1, `clip_fraction` of a loss of the user's, and `importance_weight_*` where tokens
        have no weight.
        """
        tokens = max(self.tokens, 1.0)
        found = {"loss": self.loss, "entropy": self.entropy / tokens}
        if not (math.isnan(self.mismatch_kl) and config.loss.advantage == "none"):
            found["mismatch_kl"] = self.mismatch_kl / tokens
        if config.loss.kl_coef > 0:
            found["kl"] = self.kl / tokens
        if ratio_moves(config):
            found["ratio_max"] = self.ratio_max
            if not config.loss.custom:
                found["clip_fraction"] = self.clipped / tokens
        if config.loss.correction == "truncated":
            found["importance_weight_mean"] = self.weight / tokens
            found["importance_weight_max"] = self.weight_max
            found["importance_weight_capped_fraction"] = self.capped / tokens
        return found


def completion_lengths(
    lengths: Sequence[Sequence[int]], truncated: Sequence[Sequence[bool]], config: LossConfig
) -> list[list[int]]:
    """Lengths [P][G] that take part in the loss: 0 for a truncated completion under `loss.mask_truncated`."""
    return [
        [0 if config.mask_truncated and cut else length for length, cut in zip(group, cuts, strict=True)]
        for group, cuts in zip(lengths, truncated, strict=True)
    ]


def count(lengths: Sequence[Sequence[int]]) -> Counts:
    """Return counts of a batch with completions of these lengths [P][G]."""
    flat = [length for group in lengths for length in group if length > 0]
    return Counts(tokens=sum(flat), sequences=len(flat))


def policy_loss(
    row: Row,
    logprobs: Tensor,
    entropy: Tensor,
    config: LossConfig,
    counts: Counts,
    reference_logprobs: Tensor | None = None,
    old_logprobs: Tensor | None = None,
) -> tuple[Tensor, LossSums]:
    """Return the row's share of the global loss (a scalar to be differentiated) and its sums.

    The token loss is that of `videostr.grpo.losses`, by `loss.name` or `loss.custom`. Its ratio r is, by `loss.correction`,
      ratio      pi / mu
      truncated  pi / old, and each token is weighted by stop_gradient(min(old / mu, 2)), truncated importance sampling
      none       pi / old
    with `old` the learner's own probabilities before the first update on the batch. In that first update r = pi / old is 1
    and its gradient that of log pi: nothing is clipped. Added is `kl_coef` times the k3 estimate of KL(pi || reference):
    exp(d) - d - 1 with d = log ref - log pi. A padding row returns zero, still connected to the graph: its backward pass runs
    the same collectives.

    Args:
        row: the packed row.
        logprobs: [N] float32, log pi, with gradient.
        entropy: [N] float32, nats.
        config: loss section of the run's config.
        counts: size of the global batch of this update.
        reference_logprobs: [N] float32; needed when `kl_coef` > 0.
        old_logprobs: [N] float32, log old; None in the first update, where it is log pi. Correction `ratio` has no use for it.

    Raises:
        ConfigError: `loss.custom` failed.
    """
    if row.padding:
        return logprobs.sum() * 0.0, LossSums()
    old = logprobs.detach() if old_logprobs is None else old_logprobs
    behaviour = row.behaviour_logprobs
    found = token_loss(
        config,
        LossInputs(
            logprobs=logprobs,
            log_ratio=logprobs - (behaviour if config.correction == "ratio" else old),
            behaviour_logprobs=behaviour,
            entropy=entropy,
            advantages=row.advantages[row.sequence_ids],
            sequence_ids=row.sequence_ids,
            eps_low=config.eps_low,
            eps_high=config.eps_high,
        ),
    )
    loss, weight = found.loss, torch.ones_like(old)
    if config.correction == "truncated":
        weight = (old - behaviour).exp()
        loss = loss * weight.clamp(max=MAX_WEIGHT)
    kl = torch.zeros_like(logprobs)
    if reference_logprobs is not None:
        kl = _k3(reference_logprobs - logprobs)
        loss = loss + config.kl_coef * kl
    total = (loss * _token_weights(row, config, counts)).sum()
    return total, _sums(row, total, kl, entropy, found, weight, logprobs)


def _sums(
    row: Row, total: Tensor, kl: Tensor, entropy: Tensor, found: TokenLoss, weight: Tensor, logprobs: Tensor
) -> LossSums:
    """Of a row; all values come from the device at once."""
    values = {
        "loss": total,
        "kl": kl.sum(),
        "clipped": found.clipped.sum(),
        "entropy": entropy.sum(),
        "mismatch_kl": _k3(logprobs - row.behaviour_logprobs).sum(),
        "ratio_max": found.ratio.max(),
        "weight": weight.clamp(max=MAX_WEIGHT).sum(),
        "weight_max": weight.max(),
        "capped": (weight > MAX_WEIGHT).sum(),
    }
    numbers = torch.stack([value.detach().float() for value in values.values()]).tolist()
    return LossSums(**dict(zip(values, numbers, strict=True)), tokens=float(len(row.targets)))


def _token_weights(row: Row, config: LossConfig, counts: Counts) -> Tensor:
    """Return the weight [N] of each token in the global loss."""
    aggregation: Literal["token", "sequence", "constant"] = config.aggregation
    if aggregation == "token":
        return torch.full_like(row.behaviour_logprobs, 1.0 / counts.tokens)
    if aggregation == "constant":
        return torch.full_like(row.behaviour_logprobs, 1.0 / (counts.sequences * config.constant_length))
    lengths = row.sequence_ids.bincount(minlength=len(row.advantages))
    return (1.0 / (counts.sequences * lengths))[row.sequence_ids]


def _k3(log_ratio: Tensor) -> Tensor:
    """Return exp(d) - d - 1: unbiased and never negative where d = log q - log p and tokens come from p."""
    return log_ratio.exp() - log_ratio - 1.0
