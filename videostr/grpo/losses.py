"""The policy losses, one table: log-probabilities and advantages of completion tokens in, a loss per token out.

With r = exp(log pi - log mu), or pi over the learner's own log-probabilities at the start of the batch (`loss.correction`),
A the advantage of the token's sequence, lo = 1 - eps_low, hi = 1 + eps_high:
  ppo_clip  -min(r A, clip(r, lo, hi) A)                                    (arXiv 1707.06347, 2503.14476)
  gspo      the same with one r per sequence, exp of the mean of its log r  (arXiv 2507.18071)
  cispo     -stop_gradient(clip(r, lo, hi)) A log pi                        (arXiv 2506.13585)
  reinforce -A log pi, without a ratio; with A = 1 the loss of supervised fine-tuning
A user's own, `loss.custom`, gets the same `LossInputs` and returns the loss per token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from videostr.config.schema import Config
from videostr.config.sections import LossConfig
from videostr.custom import load_function
from videostr.errors import ConfigError, error_text


@dataclass(frozen=True, slots=True, kw_only=True)
class LossInputs:
    """N completion tokens of C sequences, those of one packed row; how many differs from row to row."""

    logprobs: Tensor
    """[N] float32, nats: log pi, the learner's, with gradient."""
    log_ratio: Tensor
    """[N] float32: log pi minus the log-probabilities that the ratio is taken against, with gradient."""
    behaviour_logprobs: Tensor
    """[N] float32, nats: log mu, the rollout engine's."""
    entropy: Tensor
    """[N] float32, nats: of the learner's distribution at each token, without gradient."""
    advantages: Tensor
    """[N] float32: of the token's sequence."""
    sequence_ids: Tensor
    """[N] int64 in [0, C): which sequence a token belongs to."""
    eps_low: float
    """`loss.eps_low`: ratios are clipped below at 1 - eps_low."""
    eps_high: float
    """`loss.eps_high`: ratios are clipped above at 1 + eps_high."""

    def sequence_mean(self, values: Tensor) -> Tensor:
        """Return for each token the mean of `values` [N] over its sequence, [N]."""
        lengths = self.sequence_ids.bincount()
        sums = values.new_zeros(len(lengths)).index_add(0, self.sequence_ids, values)
        return (sums / lengths)[self.sequence_ids]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLoss:
    """What a loss says of N tokens."""

    loss: Tensor
    """[N], with gradient; before importance weights, KL term and aggregation."""
    ratio: Tensor
    """[N], the ratio that is clipped."""
    clipped: Tensor
    """[N] bool, whether the clip cuts the token's gradient or weight."""


def ppo_clip(inputs: LossInputs) -> TokenLoss:
    """Return PPO's clipped surrogate, with its own bound on each side (DAPO)."""
    return _clipped(inputs, inputs.log_ratio.exp())


def gspo(inputs: LossInputs) -> TokenLoss:
    """Return the clipped surrogate with one length-normalised ratio per sequence."""
    return _clipped(inputs, inputs.sequence_mean(inputs.log_ratio).exp())


def cispo(inputs: LossInputs) -> TokenLoss:
    """Return the policy gradient weighted by the clipped ratio: no token loses its gradient."""
    ratio = inputs.log_ratio.exp()
    clamped = ratio.clamp(1.0 - inputs.eps_low, 1.0 + inputs.eps_high)
    loss = -clamped.detach() * inputs.advantages * inputs.logprobs
    return TokenLoss(loss=loss, ratio=ratio, clipped=clamped != ratio)


def reinforce(inputs: LossInputs) -> TokenLoss:
    """Return the plain policy gradient."""
    ratio = torch.ones_like(inputs.logprobs).detach()
    loss = -inputs.advantages * inputs.logprobs
    return TokenLoss(loss=loss, ratio=ratio, clipped=torch.zeros_like(ratio, dtype=torch.bool))


def _clipped(inputs: LossInputs, ratio: Tensor) -> TokenLoss:
    low, high = 1.0 - inputs.eps_low, 1.0 + inputs.eps_high
    advantage = inputs.advantages
    loss = -torch.minimum(ratio * advantage, ratio.clamp(low, high) * advantage)
    clipped = ((advantage > 0) & (ratio > high)) | ((advantage < 0) & (ratio < low))
    return TokenLoss(loss=loss, ratio=ratio, clipped=clipped)


LOSSES: dict[str, Callable[[LossInputs], TokenLoss]] = {
    "ppo_clip": ppo_clip,
    "gspo": gspo,
    "cispo": cispo,
    "reinforce": reinforce,
}
"""By `loss.name`."""


def token_loss(config: LossConfig, inputs: LossInputs) -> TokenLoss:
    """Return what the configured loss says of the tokens.

    Raises:
        ConfigError: `loss.custom` cannot be imported, raised, or returned something else than N finite numbers that depend
            on `logprobs`.
    """
    if not config.custom:
        return LOSSES[config.name](inputs)
    ratio = inputs.log_ratio.detach().exp()
    loss = _call_custom(config.custom, inputs)
    return TokenLoss(loss=loss, ratio=ratio, clipped=torch.zeros_like(ratio, dtype=torch.bool))


def check_custom(config: LossConfig) -> None:
    """Try `loss.custom`, where there is one, on five tokens of two sequences.

    Raises:
        ConfigError: as `token_loss` does, and where the gradient is zero, NaN or infinite.
    """
    if not config.custom:
        return
    logprobs = torch.tensor([-1.0, -0.5, -2.0, -0.1, -3.0], requires_grad=True)
    behaviour = torch.tensor([-1.1, -0.5, -1.5, -0.2, -2.9])
    found = token_loss(
        config,
        LossInputs(
            logprobs=logprobs,
            log_ratio=logprobs - behaviour,
            behaviour_logprobs=behaviour,
            entropy=torch.full((5,), 0.5),
            advantages=torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0]),
            sequence_ids=torch.tensor([0, 0, 0, 1, 1]),
            eps_low=config.eps_low,
            eps_high=config.eps_high,
        ),
    )
    (gradient,) = torch.autograd.grad(found.loss.sum(), logprobs, materialize_grads=True)
    if not gradient.any():
        raise ConfigError(
            f"loss.custom = {config.custom}: its gradient is zero for every token, nothing would be learned",
            remedy="compute the loss from `logprobs` or `log_ratio`",
        )
    if not bool(gradient.isfinite().all()):
        raise ConfigError(
            f"loss.custom = {config.custom}: its gradient has NaN or infinity, must be finite",
            remedy="note that torch.where does not keep the gradient of the branch that it leaves out from being NaN",
        )


def staleness_warning(config: Config) -> ConfigError | None:
    """Return what is questionable in how the loss treats tokens of older weights; None where nothing is."""
    if config.loss.correction != "none" or config.train.max_staleness == 0:
        return None
    return ConfigError(
        f"loss.correction = none with train.max_staleness = {config.train.max_staleness}: tokens of older weights are learned "
        "from as if the learner had sampled them",
        remedy="set loss.correction=ratio",
    )


def _call_custom(name: str, inputs: LossInputs) -> Tensor:
    function = load_function("loss.custom", name, "my_losses:reinforce")
    own = {key: getattr(inputs, key).clone() for key in ("behaviour_logprobs", "entropy", "sequence_ids")}
    try:
        # It may change them, and the metrics are of the row's.
        loss: object = function(replace(inputs, **own))
    except Exception as error:  # the user's code runs here
        raise ConfigError(
            f"loss.custom = {name}: it raised {error_text(error)}",
            remedy="correct the function, or use a loss.name",
        ) from error
    shape = inputs.logprobs.shape
    if not isinstance(loss, Tensor) or loss.shape != shape or not loss.is_floating_point():
        found = f"{loss.dtype} {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise ConfigError(
            f"loss.custom = {name}: it returned {found}, must return one float for each of the {shape[0]} tokens",
            remedy="leave the mean to loss.aggregation",
        )
    if not loss.requires_grad:
        raise ConfigError(
            f"loss.custom = {name}: its result has no gradient, nothing would be learned",
            remedy="compute it from `logprobs` or `log_ratio`, without detach()",
        )
    if not bool(loss.detach().isfinite().all()):
        raise ConfigError(
            f"loss.custom = {name}: it returned NaN or infinity, must return finite numbers",
            remedy="bound the ratio or its exponent",
        )
    return loss
