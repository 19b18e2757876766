"""Gated DeltaNet layers (arXiv 2412.06464) of packed rows; parameters and their names are those of transformers' layer.

Projections, convolution, norm and output run once over the whole row, and only the delta rule runs once over its prompts and
once over its completions (`videostr.grpo.recurrence`): so every row calls the same modules equally often, whatever it holds,
as ZeRO-3's collectives need it.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.qwen3_5.modeling_qwen3_5 import torch_chunk_gated_delta_rule

from videostr.grpo.recurrence import RowForks

FORKS = "videostr_row_forks"
"""Name under which a row's `RowForks` is given to a model, which hands it on to every layer."""
_reference: Any = inspect.unwrap(torch_chunk_gated_delta_rule)
"""transformers' PyTorch code; its wrapper takes a package of kernels for GPUs wherever one is installed."""


class RowDeltaNet(nn.Module):
    """A Gated DeltaNet layer that computes a packed row.

    Args:
        layer: transformers' layer, whose parameters and modules it takes over.
    """

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.dt_bias, self.A_log = layer.dt_bias, layer.A_log
        for name, module in layer.named_children():
            self.add_module(name, module)
        self.key_heads, self.value_heads = layer.num_k_heads, layer.num_v_heads
        self.key_width, self.value_width = layer.key_dim, layer.value_dim

    def forward(self, hidden_states: Tensor, videostr_row_forks: RowForks, **_: Any) -> Tensor:
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
        found = forks.scan(delta_rule, query, key, value.unflatten(1, (self.value_heads, -1)), g, beta)
        output: Tensor = self.out_proj(
            self.norm(found.flatten(0, 1), gate.flatten(0, 1)).view(len(hidden), -1)
        )
        return output[None]


def delta_rule(
    query: Tensor, key: Tensor, value: Tensor, g: Tensor, beta: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Compute the delta rule by chunks; see `videostr.grpo.recurrence.Recurrence`."""
    found: tuple[Tensor, Tensor] = _reference(
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
