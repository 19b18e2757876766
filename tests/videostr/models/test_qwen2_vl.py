"""What is special to Qwen2-VL: positions, sizes, the form of its published configuration."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import Qwen2VLConfig

from videostr.models.base import family_of, shapes_of
from videostr.models.checkpoint import load_policy
from videostr.models.mrope import mrope_positions
from videostr.models.qwen2_vl import FAMILY, Qwen2VL
from videostr.models.qwen_vl import FRAME_PATCHES

RELEASED = {
    "architectures": ["Qwen2VLForConditionalGeneration"],
    "bos_token_id": 151643, "eos_token_id": 151645, "vision_start_token_id": 151652, "vision_end_token_id": 151653,
    "image_token_id": 151655, "video_token_id": 151656, "hidden_act": "silu", "hidden_size": 3584,
    "intermediate_size": 18944, "max_position_embeddings": 32768, "max_window_layers": 28, "model_type": "qwen2_vl",
    "num_attention_heads": 28, "num_hidden_layers": 28, "num_key_value_heads": 4, "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "vision_config": {
        "depth": 32, "embed_dim": 1280, "mlp_ratio": 4, "num_heads": 16, "in_chans": 3, "hidden_size": 3584,
        "patch_size": 14, "spatial_merge_size": 2, "spatial_patch_size": 14, "temporal_patch_size": 2,
    },
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "vocab_size": 152064,
}  # fmt: skip
"""A config.json in the form of released checkpoints, without a text_config."""


def test_temporal_positions_count_temporal_patches() -> None:
    layout = Qwen2VL().layout({"video_grid_thw": [[3, 4, 4]]}, 0, None)
    found = mrope_positions([0, *[2] * 12, 0], *layout, 2)
    assert found[0].tolist() == [0] + [1] * 4 + [2] * 4 + [3] * 4 + [4]


def test_a_config_as_released_is_taken() -> None:
    config = family_of(RELEASED).config_of(RELEASED, "released")
    FAMILY.check(config, "released", cpu=True)
    published = FAMILY.config_of(FAMILY.published["Qwen2-VL-7B"], "7B")
    assert FAMILY.shapes(config) == FAMILY.shapes(published)


@pytest.mark.parametrize(
    ("size", "parameters"), [("2B", 2_208_985_600), ("7B", 8_291_375_616), ("72B", 73_405_560_320)]
)
def test_published_models_have_their_published_size(size: str, parameters: int) -> None:
    assert shapes_of(f"Qwen/Qwen2-VL-{size}-Instruct").parameters == parameters


def test_sizes_and_operations_of_a_small_model() -> None:
    """One layer of width 4 with two heads and an MLP of 8; a tower of one layer of width 2 with an MLP of 6."""
    shapes = FAMILY.shapes(
        Qwen2VLConfig(
            text_config={
                "hidden_size": 4, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
                "num_key_value_heads": 1, "vocab_size": 10,
            },
            vision_config={
                "depth": 1, "embed_dim": 2, "mlp_ratio": 3, "num_heads": 1, "hidden_size": 4, "patch_size": 1,
                "spatial_merge_size": 1, "temporal_patch_size": 1, "in_channels": 1,
            },
            tie_word_embeddings=False,
        )
    )  # fmt: skip
    # Layer as Qwen2.5-VL's: 160. Tower: patches 2; block: qkv 12 + 6, proj 4 + 2, MLP 12 + 6 + 12 + 2, norms 8 = 64;
    # merger: norm 4, 2 x 2 + 2, 2 x 4 + 4 = 22
    assert (shapes.parameters, shapes.vision_parameters) == (160 + 80 + 4 + 88, 2 + 64 + 22)
    assert (shapes.text.activations, shapes.vision.activations) == (82, 14 * 2 + 2 * 6)
    # 2 (16 + 2 x 12 + 2 x 2 x frame + 4 + 8)
    assert shapes.forward.patch == pytest.approx(2 * (16 + 24 + 4 * FRAME_PATCHES + 12))


def test_cost_of_a_model_counts_its_weights(tmp_path: Path) -> None:
    FAMILY.make_tiny(tmp_path, 0, ["where?"])
    policy = load_policy(tmp_path, torch.float32)
    trained = FAMILY.row_cost(policy.config, freeze_vision=False)
    matrices = {name: p.numel() for name, p in policy.named_parameters() if p.ndim >= 2}
    assert trained.token == 6 * sum(n for name, n in matrices.items() if "language_model.layers" in name)
    blocks = sum(n for name, n in matrices.items() if "visual.blocks" in name)
    merger = sum(n for name, n in matrices.items() if "merger" in name)
    assert trained.patch == 6 * (blocks + merger / 4 + 2 * 2 * 64 * FRAME_PATCHES)
