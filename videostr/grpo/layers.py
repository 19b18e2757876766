"""Layers of Qwen2.5-VL that compute the same in fewer or faster kernels; parameters and their names stay.

transformers writes an RMS norm as six operations over float32 copies: here it is one kernel. The tower's MLP is 3420 wide,
which no tensor core instruction fits: its matrices are padded to a multiple of 8 for the product, as GPUs multiply them
several times faster then, and the padding's outputs, zeros, meet the padding of the next.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLMLP, Qwen2_5_VLRMSNorm

ALIGNMENT = 8
"""Elements; 16 bytes in bfloat16."""


class FusedRMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) times a weight, computed in float32 and rounded once."""

    def __init__(self, norm: Qwen2_5_VLRMSNorm) -> None:
        super().__init__()
        self.weight = norm.weight
        self.eps = norm.variance_epsilon

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., D] of [..., D]."""
        return F.rms_norm(hidden, self.weight.shape, self.weight, self.eps)


class PaddedLinear(nn.Module):
    """A linear layer with a bias whose inputs or outputs, [..., I] or [..., O], end in zeros up to a multiple of `ALIGNMENT`."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = linear.weight
        self.bias = linear.bias
        self.outputs = -linear.out_features % ALIGNMENT
        self.inputs = -linear.in_features % ALIGNMENT

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., O + padding] of [..., I + padding]."""
        weight = F.pad(self.weight, (0, self.inputs, 0, self.outputs))
        return F.linear(hidden, weight, F.pad(self.bias, (0, self.outputs)))


def use_fast_layers(policy: nn.Module) -> None:
    """Replace the norms and the unaligned MLPs of a policy."""
    for module in list(policy.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Qwen2_5_VLRMSNorm):
                setattr(module, name, FusedRMSNorm(child))
            elif isinstance(child, Qwen2_5_VLMLP) and child.intermediate_size % ALIGNMENT:
                for part in ("gate_proj", "up_proj", "down_proj"):
                    setattr(child, part, PaddedLinear(getattr(child, part)))
