"""Gated DeltaNet layers (arXiv 2412.06464) of packed rows; parameters and their names are those of transformers' layer.

Projections, convolution, norm and output run once over the whole row, and only the delta rule runs once over its prompts and
once over its completions (`videostr.grpo.recurrence`): so every row calls the same modules equally often, whatever it holds,
as ZeRO-3's collectives need it.
"""

from __future__ import annotations

import importlib
import inspect
import logging
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.qwen3_5.modeling_qwen3_5 import torch_chunk_gated_delta_rule

from videostr.grpo.recurrence import RowForks

log = logging.getLogger(__name__)
FORKS = "videostr_row_forks"
"""Name under which a row's `RowForks` is given to a model, which hands it on to every layer."""
RULE = "videostr_delta_rule"
"""Name under which the code of the delta rule is."""
TOLERANCE = 0.02
"""Of kernels that compute in bfloat16, see `disagreement`."""


class RowDeltaNet(nn.Module):
    """A Gated DeltaNet layer that computes a packed row.

    Args:
        layer: transformers' layer, whose parameters and modules it takes over.
    """

    in_proj_qkv: nn.Module
    in_proj_z: nn.Module
    in_proj_b: nn.Module
    in_proj_a: nn.Module
    conv1d: nn.Module
    norm: nn.Module
    out_proj: nn.Module

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.dt_bias, self.A_log = layer.dt_bias, layer.A_log
        for name, module in layer.named_children():
            self.add_module(name, module)
        self.key_heads, self.value_heads = layer.num_k_heads, layer.num_v_heads
        self.key_width, self.value_width = layer.key_dim, layer.value_dim

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # branches differ from row to row
    def forward(
        self, hidden_states: Tensor, videostr_row_forks: RowForks, videostr_delta_rule: DeltaRule, **_: Any
    ) -> Tensor:
        """Map the states [1, T, D] of a row to [1, T, D]."""
        hidden, forks = hidden_states[0], videostr_row_forks
        mixed = F.silu(forks.convolve(self.conv1d, self.in_proj_qkv(hidden)))
        query, key, value = mixed.split([self.key_width, self.key_width, self.value_width], dim=1)
        copies = self.value_heads // self.key_heads
        query, key = (
            states.unflatten(1, (self.key_heads, -1)).repeat_interleave(copies, dim=1)
            for states in (query, key)
        )
        gate = self.in_proj_z(hidden).unflatten(1, (self.value_heads, -1))
        beta = self.in_proj_b(hidden).sigmoid()
        g = -self.A_log.float().exp() * F.softplus(self.in_proj_a(hidden).float() + self.dt_bias)
        found = forks.scan(
            videostr_delta_rule, query, key, value.unflatten(1, (self.value_heads, -1)), g, beta
        )
        output: Tensor = self.out_proj(
            self.norm(found.flatten(0, 1), gate.flatten(0, 1)).view(len(hidden), -1)
        )
        return output[None]


@dataclass(frozen=True, slots=True)
class DeltaRule:
    """The gated delta rule by chunks; see `videostr.grpo.recurrence.Recurrence`."""

    compute: Any
    """A function with the arguments of transformers' code, which are those of flash-linear-attention's."""

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, g: Tensor, beta: Tensor, state: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return outputs and last states."""
        found: tuple[Tensor, Tensor] = self.compute(
            query,
            key,
            value,
            g=g,
            beta=beta,
            initial_state=state,
            output_final_state=True,
            use_qk_l2norm_in_kernel=True,
        )
        return found


REFERENCE = DeltaRule(inspect.unwrap(torch_chunk_gated_delta_rule))
"""transformers' PyTorch code; its wrapper takes a package of kernels for GPUs wherever one is installed."""


def delta_rule_of(device: torch.device, dtype: torch.dtype) -> DeltaRule:
    """Return the fastest code: flash-linear-attention's where it is installed, on GPUs in bfloat16."""
    return _kernels(device) if device.type == "cuda" and dtype is torch.bfloat16 else REFERENCE


@cache
def _kernels(device: torch.device) -> DeltaRule:
    """Return flash-linear-attention's code if it agrees with the reference on this device, else the reference."""
    try:
        kernels = DeltaRule(importlib.import_module("fla.ops.gated_delta_rule").chunk_gated_delta_rule)
    except (ImportError, AttributeError) as error:
        problem = f"flash-linear-attention cannot be imported ({error})"
    else:
        worst = disagreement(kernels, device)
        if worst <= TOLERANCE:
            return kernels
        problem = f"flash-linear-attention differs from transformers' code by {worst:.3g} (limit {TOLERANCE})"
    log.warning(
        "%s: recurrent layers use PyTorch code, which is slower and holds more memory; pip install fla-core==0.6.0",
        problem,
    )
    return REFERENCE


def disagreement(rule: DeltaRule, device: torch.device) -> float:
    """Return how far a rule is from the reference: outputs, last states and all gradients, in parts of the norm of each.

    The case is that of a row: two prompts, the states of which are forked to three sequences, which remember most of them.
    """
    draw = torch.Generator().manual_seed(0)
    shapes = [(5, 70, 2, 128)] * 3 + [(5, 70, 2)] * 2
    drawn = [torch.randn(shape, generator=draw) for shape in shapes]
    weights = [torch.randn(3, 70, 2, 128, generator=draw), torch.randn(3, 2, 128, 128, generator=draw)]
    found = []
    for each in (rule, REFERENCE):
        query, key, value = (x.to(device, torch.bfloat16).requires_grad_() for x in drawn[:3])
        g, beta = (drawn[3] + 5).sigmoid().log().to(device), drawn[4].sigmoid().to(device, torch.bfloat16)
        inputs = [query, key, value, g.requires_grad_(), beta.requires_grad_()]
        with torch.enable_grad():
            q, k, v, decay, rate = (x[:2] for x in inputs)
            _, states = each(q, k, v, decay, rate, None)
            q, k, v, decay, rate = (x[2:] for x in inputs)
            outputs = each(q, k, v, decay, rate, states[[0, 0, 1]])
            total = sum((x.float() * w.to(device)).sum() for x, w in zip(outputs, weights, strict=True))
            gradients = torch.autograd.grad(total, inputs)  # type: ignore[arg-type]  # sum of tensors
        found.append([x.detach().float() for x in (*outputs, *gradients)])
    return max(float((a - b).norm() / b.norm()) for a, b in zip(*found, strict=True))
