"""What is special to Qwen2.5-VL: positions, layers, windows of the tower, sizes."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoProcessor, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

from videostr.models.attention import TOWER_INTERFACE, use_row_attention
from videostr.models.base import shapes_of
from videostr.models.layers import FusedRMSNorm, PaddedLinear
from videostr.models.mrope import mrope_positions
from videostr.models.qwen2_5_vl import FAMILY, Qwen25VL
from videostr.types import Clip, ClipSpec, Prompt
from videostr.video import ClipFrames

POLICY = "videostr/tabletop/pretrained"
KINDS = [0, 0] + [2] * 12 + [0, 0]
"""Two text tokens, a video of 3 x 2 x 2 merged patches, then text."""


def positions(seconds: float) -> Tensor:
    """At two positions a second, with a temporal patch each `seconds`."""
    return mrope_positions(KINDS, [[3, 4, 4]], [seconds * 2], 2)


def test_text_after_a_video_continues_from_its_largest_position() -> None:
    # 2 s a patch at 2 positions a second: times 0, 4, 8 after the 2 text tokens; so text goes on at 2 + 8 + 1 = 11
    found = positions(2.0)
    assert found[:, :2].tolist() == [[0, 1]] * 3
    assert found[0, 2:14].tolist() == [2] * 4 + [6] * 4 + [10] * 4
    assert found[1, 2:14].tolist() == [2, 2, 3, 3] * 3
    assert found[2, 2:14].tolist() == [2, 3] * 6
    assert found[:, 14:].tolist() == [[11, 12]] * 3


def test_fractional_seconds_are_rounded_down_after_the_product() -> None:
    # 0.75 s a patch: 0, 1.5, 3 -> 0, 1, 3
    assert positions(0.75)[0, 2:14:4].tolist() == [2, 3, 5]


def test_seconds_are_rounded_to_the_dtype_of_the_model_as_the_engine_does() -> None:
    # 0.999 s a patch: 0, 1.998, 3.996; in bfloat16 it is 1 s
    processor = AutoProcessor.from_pretrained(POLICY)
    frames = ClipFrames(
        pixels=np.zeros((6, 32, 32, 3), dtype=np.uint8),
        times=(0.0,) * 6,
        indices=tuple(range(6)),
        fps=2 / 0.999,
        total_frames=6,
    )
    text = "<|vision_start|><|video_pad|><|vision_end|>"
    prompt = Prompt(record_id="r", text=text, clip=Clip(digest="0", spec=ClipSpec(video="v", num_frames=6)))
    config = Qwen2_5_VLConfig.from_pretrained(POLICY)
    for dtype, times in ((torch.float32, [1, 2, 4]), (torch.bfloat16, [1, 3, 5])):
        config.dtype = dtype
        (inputs,) = FAMILY.encode([prompt], [frames], processor, config)
        assert inputs.positions[0, 1:13:4].tolist() == times


@pytest.mark.parametrize(("kinds", "problem"), [
    ([0, 0, 0], "0 runs of vision tokens, its video makes 1"),
    ([0, *[2] * 11], "11 tokens for a video of 12 merged patches"),
])  # fmt: skip
def test_tokens_that_do_not_fit_the_video_are_named(kinds: list[int], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        mrope_positions(kinds, [[3, 4, 4]], [1.0], 2)


# ---------------------------------------------------------------------------------------------------------- layers


WIDTH = 45
"""Of the MLP: not a multiple of 8, as 3420 is not."""


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
    Qwen25VL().use_fast_layers(fast)
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


@pytest.mark.parametrize("side", [4, 6, 10])
def test_windows_of_the_tower_equal_those_of_transformers(side: int) -> None:
    """Side in patches; windows have 4 x 4, so those at the edges of 6 and 10 are smaller. One layer sees whole frames."""
    torch.manual_seed(side)
    config = Qwen2_5_VLConfig(
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "patch_size": 8,
            "window_size": 32,
            "out_hidden_size": 16,
            "fullatt_block_indexes": [1],
        }
    )
    config.vision_config._attn_implementation = "sdpa"
    tower = Qwen2_5_VisionTransformerPretrainedModel(config.vision_config)
    grid = torch.tensor([[2, side, side], [1, 4, side]])
    pixels = torch.randn(int(grid.prod(-1).sum()), 3 * 2 * 8 * 8)

    def run() -> list[Tensor]:
        output = tower(pixels, grid_thw=grid).pooler_output
        weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
        return [output.detach(), *torch.autograd.grad((output * weights).sum(), list(tower.parameters()))]

    expected = run()
    use_row_attention(config)
    assert tower.config._attn_implementation == TOWER_INTERFACE
    for found, wanted in zip(run(), expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


# ----------------------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    ("size", "parameters"),
    [("3B", 3_754_622_976), ("7B", 8_292_166_656), ("32B", 33_452_718_336), ("72B", 73_410_777_344)],
)
def test_published_models_have_their_published_size(size: str, parameters: int) -> None:
    assert shapes_of(f"Qwen/Qwen2.5-VL-{size}-Instruct").parameters == parameters


def tiny_config(**text: Any) -> Qwen2_5_VLConfig:
    """One layer of width 4 with two heads and an MLP of 8; a tower of one layer of width 2 with an MLP of 3."""
    return Qwen2_5_VLConfig(
        text_config={
            "hidden_size": 4, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
            "num_key_value_heads": 1, "vocab_size": 10,
            **text,
        },
        vision_config={
            "depth": 1, "hidden_size": 2, "intermediate_size": 3, "num_heads": 1, "out_hidden_size": 4, "patch_size": 1,
            "spatial_merge_size": 1, "window_size": 1, "temporal_patch_size": 1, "in_channels": 1,
        },
        tie_word_embeddings=False,
    )  # fmt: skip


def test_sizes_of_a_tiny_model() -> None:
    shapes = FAMILY.shapes(tiny_config())
    # Layer: q 16 + 4, k and v 2 (8 + 2), o 16, MLP 96, norms 8 = 160. Tables 2 x 40, last norm 4.
    # Tower: embedding 2; block: attention 16 + 8, MLP 18 + 6 + 2, norms 4 = 54; merger 2 + (4 + 2) + (8 + 4) = 20
    assert (shapes.parameters, shapes.vision_parameters) == (160 + 80 + 4 + 76, 76)
    assert shapes.decode_parameters == 160 + 40
    # Keys and values of one head of width 2
    assert shapes.kv_elements == 4
    # A layer and token: (11 + 3 / 2) 4 + 4 x 8 = 82; of the tower 14 x 2 + 4 x 3
    assert (shapes.text.activations, shapes.vision.activations) == (82, 40)


def test_operations_of_a_tiny_model() -> None:
    forward = FAMILY.shapes(tiny_config()).forward
    # Per token 2 (2 x 16 + 2 x 4 x 2 + 3 x 32); per pair 4 x 4; per target 2 x 4 x 10; per patch 2 (16 + 18 + 4 + 4 + 8)
    assert (forward.token, forward.pair, forward.target, forward.patch) == pytest.approx((288, 16, 80, 100))


def test_cost_of_a_model_counts_its_weights() -> None:
    """6 operations a weight of a matrix and token, 2 for a frozen tower; 4 tokens a patch in the merger's matrices."""
    policy: Any = Qwen2_5_VLForConditionalGeneration.from_pretrained(POLICY)
    trained = FAMILY.row_cost(policy.config, freeze_vision=False)
    matrices = {name: p.numel() for name, p in policy.named_parameters() if p.ndim >= 2}
    layers = sum(n for name, n in matrices.items() if "language_model.layers" in name)
    assert trained.token == 6 * layers
    assert trained.target == 8 * matrices["lm_head.weight"]
    assert trained.pair == 12 * 3 * 128
    blocks = sum(n for name, n in matrices.items() if "visual.blocks" in name)
    merger = sum(n for name, n in matrices.items() if "visual.merger" in name)
    # attention over a window of 8 x 8 patches, 64 wide, in two layers
    assert trained.patch == 6 * (blocks + merger / 4 + 2 * 2 * 64 * 64)
    assert FAMILY.row_cost(policy.config, freeze_vision=True).patch == trained.patch / 3
