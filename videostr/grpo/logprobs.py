"""A packed row in, log-probabilities of its completion tokens out; Qwen2.5-VL.

The base model runs over the row; the output layer runs only at positions that predict a completion token, in chunks
that are computed anew in the backward pass, so that logits [T, V] are never held.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Qwen2_5_VLForConditionalGeneration

from videostr.grpo.batch import attention_mask

CHUNK_TOKENS = 512
"""Tokens whose logits [., V] float32 are held at once: 0.3 GiB for a vocabulary of 152,000."""


class _ChunkedLogprobs(torch.autograd.Function):
    """log softmax(h W^T / temperature)[target] and the entropy, without ever holding more than a chunk of logits."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, chunk: int
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(hidden, weight, targets)
        ctx.temperature, ctx.chunk = temperature, chunk
        logprobs, entropies = [], []
        for h, target in zip(torch.split(hidden, chunk), torch.split(targets, chunk), strict=True):
            log_p = _log_softmax(h, weight, temperature)
            logprobs.append(log_p.gather(1, target[:, None])[:, 0])
            entropies.append(-(log_p.exp() * log_p).sum(dim=1))
        entropy = torch.cat(entropies)
        ctx.mark_non_differentiable(entropy)
        return torch.cat(logprobs), entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight, dtype=torch.float32)
        for start in range(0, len(hidden), ctx.chunk):
            part = slice(start, start + ctx.chunk)
            # d log p[target] / d logits = onehot(target) - p
            grad_logits = -_log_softmax(hidden[part], weight, ctx.temperature).exp()
            grad_logits[torch.arange(len(grad_logits)), targets[part]] += 1
            grad_logits *= grads[0][part, None] / ctx.temperature
            grad_hidden[part] = grad_logits.to(weight.dtype) @ weight
            grad_weight += grad_logits.to(weight.dtype).T @ hidden[part]
        return grad_hidden, grad_weight.to(weight.dtype), None, None, None


def _log_softmax(hidden: Tensor, weight: Tensor, temperature: float) -> Tensor:
    return torch.log_softmax((hidden @ weight.T).float() / temperature, dim=-1)


class LogprobHead(nn.Linear):
    """The policy's output layer with log-probabilities as its result.

    It takes the place of `lm_head` and holds the same parameter under the same name. Being the module that owns the
    weight, it has it gathered by ZeRO-3's hooks both ways, and hands it one gradient per backward pass, which ZeRO-2
    insists on.
    """

    chunk = CHUNK_TOKENS

    def forward(  # type: ignore[override]  # a head with targets
        self, hidden: Tensor, targets: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities [N] and entropies [N] float32, nats, of hidden states [N, D] and targets [N]."""
        logprobs, entropy = _ChunkedLogprobs.apply(hidden, self.weight, targets, temperature, self.chunk)  # type: ignore[no-untyped-call]
        return logprobs, entropy


class PolicyLogprobs(nn.Module):
    """The module that a DeepSpeed engine wraps: the policy, asked for log-probabilities of a row.

    `policy` is the Hugging Face model; its `lm_head` is replaced by a `LogprobHead`, so that it can be trained and
    saved, but not sampled from.
    """

    def __init__(self, policy: Qwen2_5_VLForConditionalGeneration) -> None:
        super().__init__()
        head = LogprobHead(policy.lm_head.in_features, policy.lm_head.out_features, bias=False, device="meta")
        head.weight = policy.lm_head.weight
        policy.lm_head = head
        self.policy = policy

    def forward(
        self,
        *,
        input_ids: Tensor,
        position_ids: Tensor,
        prompt_ids: Tensor,
        completion_ids: Tensor,
        pixel_values_videos: Tensor,
        video_grid_thw: Tensor,
        predictors: Tensor,
        targets: Tensor,
        temperature: float,
    ) -> tuple[Tensor, Tensor]:
        """Log-probabilities [N] and entropies [N], float32, nats; the arguments are those of `batch.Row`."""
        hidden = self.policy.model(
            input_ids=input_ids[None],
            position_ids=position_ids[:, None],
            attention_mask=attention_mask(prompt_ids, completion_ids)[None, None],
            pixel_values_videos=pixel_values_videos,
            video_grid_thw=video_grid_thw,
            use_cache=False,
        ).last_hidden_state[0]
        logprobs, entropy = self.policy.lm_head(hidden[predictors], targets, temperature)
        return logprobs, entropy
