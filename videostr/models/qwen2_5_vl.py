"""Qwen2.5-VL: M-RoPE with a temporal axis in seconds, a tower of windows, gated MLPs, one set of features a video."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
)
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLMLP, Qwen2_5_VLRMSNorm

from videostr.models import tiny
from videostr.models.base import ModelFamily
from videostr.models.layers import ALIGNMENT, FusedRMSNorm, MakeLayer, PaddedLinear
from videostr.models.qwen_vl import Layout, QwenVL, Tower, text_sizes


def _published(text: tuple[int, ...], vision_mlp: int, *, tied: bool = False) -> dict[str, Any]:
    vision = {"depth": 32, "hidden_size": 1280, "intermediate_size": vision_mlp, "out_hidden_size": text[0]}
    return {
        "text_config": {
            **text_sizes(*text),
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        },
        "vision_config": {**vision, "patch_size": 14, "window_size": 112, "spatial_merge_size": 2},
        "tie_word_embeddings": tied,
    }


def _aligned(mlp: Any) -> nn.Module:
    """Return an MLP with padded matrices where its width is unaligned, as that of the tower (3420) is."""
    if mlp.intermediate_size % ALIGNMENT:
        for part in ("gate_proj", "up_proj", "down_proj"):
            setattr(mlp, part, PaddedLinear(getattr(mlp, part)))
    return mlp  # type: ignore[no-any-return]


class Qwen25VL(QwenVL):
    """The family; see `videostr.models.base.ModelFamily`."""

    name = "Qwen2.5-VL"
    published: Mapping[str, Mapping[str, Any]] = {
        "Qwen2.5-VL-3B": _published((2048, 11008, 36, 16, 2, 151_936), 3420, tied=True),
        "Qwen2.5-VL-7B": _published((3584, 18944, 28, 28, 4, 152_064), 3420),
        "Qwen2.5-VL-32B": _published((5120, 27648, 64, 40, 8, 152_064), 3456),
        "Qwen2.5-VL-72B": _published((8192, 29568, 80, 64, 8, 152_064), 3456),
    }
    config_class = Qwen2_5_VLConfig
    model_class = Qwen2_5_VLForConditionalGeneration
    fast_layers: Mapping[type[nn.Module], MakeLayer] = {
        Qwen2_5_VLRMSNorm: FusedRMSNorm,
        Qwen2_5_VLMLP: _aligned,
    }

    def layout(self, inputs: Mapping[str, Any], index: int, config: Any) -> Layout:
        """Return one run of tokens, whose temporal positions count seconds."""
        dtype = config.dtype or torch.float32
        if isinstance(dtype, str):  # what save_pretrained leaves in the model's own config
            dtype = getattr(torch, dtype)
        # vLLM rounds to the dtype of the model
        seconds = torch.as_tensor(inputs["second_per_grid_ts"], dtype=torch.float32).to(dtype)[index].item()
        grid = torch.as_tensor(inputs["video_grid_thw"])[index].tolist()
        return Layout([grid], [seconds * config.vision_config.tokens_per_second])

    def tower_sizes(self, config: Any) -> Tower:
        """Return the sizes of the tower, its few layers that attend to whole frames taken for windowed ones."""
        vision = config.vision_config
        return Tower(
            layers=vision.depth,
            hidden_size=vision.hidden_size,
            intermediate_size=vision.intermediate_size,
            gated=True,
            attended=(vision.window_size // vision.patch_size) ** 2,
            merged=vision.spatial_merge_size**2,
            output_size=vision.out_hidden_size,
        )

    def tiny_processor(self, tokenizer: PreTrainedTokenizerFast) -> Any:
        """Return the processor of a tiny policy."""
        return tiny.frame_processor(Qwen2_5_VLProcessor, tokenizer)

    def tiny_config(self, tokenizer: PreTrainedTokenizerFast) -> Qwen2_5_VLConfig:
        """Return the configuration of a tiny policy."""
        rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]}
        return Qwen2_5_VLConfig(
            text_config=tiny.text_config(tokenizer, rope_parameters=rope),
            vision_config={
                **tiny.VISION,
                "hidden_size": 64,
                "intermediate_size": 192,
                "tokens_per_second": 2,
                "window_size": 64,
                "out_hidden_size": tiny.WIDTH,
                "fullatt_block_indexes": [0, 1],
            },
            **tiny.shared(tokenizer),
        )


FAMILY: ModelFamily = Qwen25VL()
