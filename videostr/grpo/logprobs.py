"""A packed row in, log-probabilities of its completion tokens out.

The model's family computes the hidden states of the row; the output layer runs only at the N positions that predict a
completion token, in chunks of `CHUNK_TOKENS` that are computed again in the backward pass, so that logits [T, V] or [N, V] are
never held. Its peak memory, in addition to the weight and its float32 gradient [V, D], is two chunks in float32: 0.6 GiB for a
vocabulary of 152,000, whatever the length of the row.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from videostr.grpo.attention import Kernel, RowAttention, row_attention
from videostr.grpo.batch import Row, Vision
from videostr.grpo.sequence_parallel import RowPart, SequenceGroup

CHUNK_TOKENS = 512
"""Tokens whose logits [., V] are held at once: 0.3 GiB in float32 for a vocabulary of 152,000."""


class _ChunkedLogprobs(torch.autograd.Function):
    """log softmax(h W^T / temperature)[target] and the entropy, without ever holding more than a chunk of logits."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, chunk: int
    ) -> tuple[Tensor, Tensor]:
        chunks = zip(torch.split(hidden, chunk), torch.split(targets, chunk), strict=True)
        parts = [_of_chunk(h, weight, target, temperature) for h, target in chunks]
        logprobs, norms, entropy = (torch.cat(part) for part in zip(*parts, strict=True))
        ctx.save_for_backward(hidden, weight, targets, norms)
        ctx.temperature, ctx.chunk = temperature, chunk
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, norms = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden)
        is_trained = ctx.needs_input_grad[1]  # float32 of a vocabulary by a width is 2 GiB for 7B
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if is_trained else None
        for start in range(0, len(hidden), ctx.chunk):
            part = slice(start, start + ctx.chunk)
            # d log p[target] / d logits = onehot(target) - p
            minus_scale = grads[0][part, None] / -ctx.temperature
            grad_logits = _logits(hidden[part], weight, ctx.temperature).sub_(norms[part, None]).exp_()
            grad_logits.mul_(minus_scale).scatter_add_(1, targets[part, None], -minus_scale)
            grad_logits = grad_logits.to(weight.dtype)
            grad_hidden[part] = grad_logits @ weight
            if grad_weight is not None:
                grad_weight += grad_logits.T @ hidden[part]
        return grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype), None, None, None


def _of_chunk(
    hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return log p[target], log of the softmax's divisor and entropy, each [chunk]; all logits are let go."""
    logits = _logits(hidden, weight, temperature)
    norm = logits.logsumexp(dim=1)
    logprobs = logits.gather(1, targets[:, None])[:, 0] - norm
    # sum of -p log p = norm - sum of p logit
    entropy = norm - torch.softmax(logits, dim=1).mul_(logits).sum(dim=1)
    return logprobs, norm, entropy


def _logits(hidden: Tensor, weight: Tensor, temperature: float) -> Tensor:
    return (hidden @ weight.T).float().div_(temperature)


class LogprobHead(nn.Linear):
    """The policy's output layer with log-probabilities as its result.

    It takes the place of `lm_head` and holds the same parameter under the same name. Being the module that owns the
    weight, it has it gathered by ZeRO-3's hooks both ways, and hands it one gradient per backward pass, which ZeRO-2
    insists on.
    """

    chunk = CHUNK_TOKENS

    def forward(  # type: ignore[override]  # a head with targets
        self, hidden: Tensor, targets: Tensor, temperature: float, most_likely: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return log-probabilities [N] and entropies [N] float32, nats, of hidden states [N, D] and targets [N].

        With `most_likely`, the tokens [N] int64 of the greatest probability take the place of the entropies.
        """
        logprobs, entropy = _ChunkedLogprobs.apply(hidden, self.weight, targets, temperature, self.chunk)  # type: ignore[no-untyped-call]
        if most_likely:
            parts = torch.split(hidden, self.chunk)
            return logprobs, torch.cat([_logits(part, self.weight, 1.0).argmax(dim=1) for part in parts])
        return logprobs, entropy


class RowModel(Protocol):
    """How a family of models computes a packed row."""

    def prepare(self, policy: Any) -> None:
        """Change the layers of a policy so that it can compute packed rows; parameters and their names stay."""
        ...

    def is_vision(self, token_ids: Tensor, config: Any) -> Tensor:
        """Return which tokens [T] stand for features of the vision tower, [T] bool."""
        ...

    def tower(self, policy: Any) -> Any:
        """Return the vision tower of a policy, None where it was taken out."""
        ...

    def features(self, tower: nn.Module, vision: Vision) -> dict[str, Tensor]:
        """Return what the tower makes of vision inputs, and what takes their place in a row: one [V, D] a name."""
        ...

    def hidden_states(self, policy: Any, row: Row, attention: RowAttention) -> Tensor:
        """Return the last hidden states [T, D] of a row, each token seeing what `attention` lets it see."""
        ...


class PolicyLogprobs(nn.Module):
    """The module that a DeepSpeed engine wraps: the policy, asked for log-probabilities of a row.

    `policy` is the Hugging Face model with other layers for its `lm_head` (`LogprobHead`) and those that its family changes
    (`RowModel.prepare`): it can be trained and saved, but not sampled from.

    Args:
        policy: the model.
        family: of the model.
        attention: kernel of the language model.
        sequence: the ranks that share each row; None where a rank computes rows alone.
    """

    def __init__(
        self,
        policy: Any,
        family: RowModel,
        attention: Kernel = "sdpa",
        sequence: SequenceGroup | None = None,
    ) -> None:
        super().__init__()
        self.family = family
        self.attention = attention
        self.sequence = sequence
        family.prepare(policy)
        head = LogprobHead(policy.lm_head.in_features, policy.lm_head.out_features, bias=False, device="meta")
        head.weight = policy.lm_head.weight
        policy.lm_head = head
        self.policy = policy

    def forward(self, row: Row, temperature: float, most_likely: bool = False) -> tuple[Tensor, Tensor]:
        """Return log-probabilities [N] and entropies [N], float32, nats, of the row's completion tokens.

        With `most_likely`, the tokens [N] that the policy would choose take the place of the entropies.
        """
        attention = row_attention(row.prompt_ids, row.completion_ids, self.attention)
        if self.sequence is not None:
            return self._of_part(RowPart(row, self.sequence), attention, temperature, most_likely)
        hidden = self.family.hidden_states(self.policy, row, attention)
        logprobs, other = self.policy.lm_head(
            hidden.index_select(0, row.predictors), row.targets, temperature, most_likely
        )
        return logprobs, other

    def _of_part(
        self, part: RowPart, attention: RowAttention, temperature: float, most_likely: bool
    ) -> tuple[Tensor, Tensor]:
        """Return as `forward`, of which this rank computes a part."""
        family, policy, vision = self.family, self.policy, part.row.vision
        tower = family.tower(policy)
        features = vision if tower is None else family.features(tower, vision)
        local = part.tokens(features, family.is_vision(part.row.input_ids, policy.config))
        hidden = family.hidden_states(policy, local, part.attention(attention))
        logprobs, other = policy.lm_head(*part.predictors(hidden), temperature, most_likely)
        return part.whole(logprobs), part.whole(other)
