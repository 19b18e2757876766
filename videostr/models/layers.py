"""Layers that compute the same as those of transformers in fewer or faster kernels; parameters and their names stay.

transformers writes an RMS norm as six operations over float32 copies: here it is one kernel. Matrices whose width no tensor
core instruction fits are padded to a multiple of 8 for the product, as GPUs multiply them several times faster then, and the
padding's outputs, zeros, meet the padding of the next.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

ALIGNMENT = 8
"""Elements; 16 bytes in bfloat16."""
MakeLayer = Callable[[Any], nn.Module]
"""Makes of a layer of transformers one that computes the same faster, or for packed rows; it keeps the parameters."""


def checkpointing_layers(model: nn.Module) -> list[GradientCheckpointingLayer]:
    """Return the layers of language model and tower: those that gradient checkpointing can be switched on for."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def compile_layers(model: nn.Module) -> None:
    """Compile every layer of a policy, of the language model as of the tower, for rows of any length.

    Between products of matrices and attention, rotary embedding, gated activation, norm and residual become a kernel each,
    forward and backward; under ZeRO-3, whose hooks interrupt a layer at each product, the residual is added by one more.
    """
    for layer in checkpointing_layers(model):
        layer.compile(dynamic=True)


class FusedRMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) times a weight, computed in float32 and rounded once."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight = norm.weight
        self.eps = norm.variance_epsilon

    def forward(self, hidden: Tensor) -> Tensor:
        """Map [..., D] to [..., D]."""
        return F.rms_norm(hidden, self.weight.shape, self.weight, self.eps)


class CenteredRMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) times 1 plus a weight, computed in float32, in which the sum is not rounded, and rounded once."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight = norm.weight
        self.eps = norm.eps

    def forward(self, hidden: Tensor) -> Tensor:
        """Map [..., D] to [..., D]."""
        wide = torch.promote_types(hidden.dtype, torch.float32)
        scale = 1.0 + self.weight.to(wide)
        return F.rms_norm(hidden.to(wide), scale.shape, scale, self.eps).to(hidden.dtype)


class PaddedLinear(nn.Module):
    """A linear layer with a bias whose inputs or outputs, [..., I] or [..., O], end in zeros up to a multiple of `ALIGNMENT`."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = linear.weight
        self.bias = linear.bias
        self.outputs = -linear.out_features % ALIGNMENT
        self.inputs = -linear.in_features % ALIGNMENT

    def forward(self, hidden: Tensor) -> Tensor:
        """Map [..., I + padding] to [..., O + padding]."""
        weight = F.pad(self.weight, (0, self.inputs, 0, self.outputs))
        return F.linear(hidden, weight, F.pad(self.bias, (0, self.outputs)))
