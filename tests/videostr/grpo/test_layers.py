"""Fast layers against those of transformers."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn
from transformers import Qwen2_5_VLConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

from videostr.grpo.layers import FusedRMSNorm, PaddedLinear, use_fast_layers

WIDTH = 45
"""Of the MLP: no multiple of 8, as 3420 is none."""


def make_tower() -> nn.Module:
    torch.manual_seed(0)
    config = Qwen2_5_VLConfig(
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": WIDTH,
            "num_heads": 2,
            "patch_size": 8,
            "window_size": 32,
            "out_hidden_size": 16,
            "fullatt_block_indexes": [1],
        }
    )
    tower = Qwen2_5_VisionTransformerPretrainedModel(config.vision_config)
    for name, parameter in tower.named_parameters():
        if name.endswith("bias") or "norm" in name or "ln_q" in name:  # made as zeros and ones
            nn.init.normal_(parameter, mean=1.0)
    return tower


def outputs_and_gradients(tower: nn.Module) -> dict[str, Tensor]:
    pixels = torch.randn(2 * 4 * 4, 3 * 2 * 8 * 8, generator=torch.Generator().manual_seed(1))
    output = tower(pixels, grid_thw=torch.tensor([[2, 4, 4]])).pooler_output
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(2))
    (output * weights).sum().backward()
    return {"output": output.detach(), **{n: p.grad for n, p in tower.named_parameters()}}


def test_a_tower_with_fast_layers_computes_the_same() -> None:
    tower = make_tower()
    fast = deepcopy(tower)
    use_fast_layers(fast)
    kinds = [type(module) for module in fast.modules()]
    assert kinds.count(PaddedLinear) == 2 * 3
    assert kinds.count(FusedRMSNorm) == 2 * 2 + 1
    assert fast.blocks[0].mlp.gate_proj(torch.ones(3, 32)).shape == (3, 48)
    found, expected = outputs_and_gradients(fast), outputs_and_gradients(tower)
    assert found.keys() == expected.keys()
    for name, wanted in expected.items():
        torch.testing.assert_close(found[name], wanted, atol=1e-5, rtol=1e-4, msg=name)


@torch.no_grad()
def test_bfloat16_norms_round_once() -> None:
    tower = make_tower().bfloat16()
    norm = tower.blocks[0].norm1
    hidden = torch.randn(100, 32, generator=torch.Generator().manual_seed(3)).bfloat16()
    exact = hidden.double() * (hidden.double().pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt() * norm.weight
    fused = FusedRMSNorm(norm)(hidden)
    assert fused.dtype == torch.bfloat16
    errors = [float((found.double() - exact).abs().mean()) for found in (fused, norm(hidden))]
    assert errors[0] < errors[1]
