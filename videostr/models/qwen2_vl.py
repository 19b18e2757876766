"""Qwen2-VL: a temporal position a temporal patch, whatever time it stands for; a tower of whole frames with plain MLPs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLProcessor,
)
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLRMSNorm

from videostr.models import tiny
from videostr.models.base import ModelFamily
from videostr.models.layers import FusedRMSNorm, MakeLayer
from videostr.models.qwen_vl import FRAME_PATCHES, Layout, QwenVL, Tower, text_sizes


def _published(text: tuple[int, ...], *, tied: bool = False) -> dict[str, Any]:
    vision = {"depth": 32, "embed_dim": 1280, "mlp_ratio": 4, "patch_size": 14, "spatial_merge_size": 2}
    return {
        "text_config": text_sizes(*text),
        "vision_config": {**vision, "hidden_size": text[0]},
        "tie_word_embeddings": tied,
    }


class Qwen2VL(QwenVL):
    """The family; see `videostr.models.base.ModelFamily`."""

    name = "Qwen2-VL"
    published: Mapping[str, Mapping[str, Any]] = {
        "Qwen2-VL-2B": _published((1536, 8960, 28, 12, 2, 151_936), tied=True),
        "Qwen2-VL-7B": _published((3584, 18944, 28, 28, 4, 152_064)),
        "Qwen2-VL-72B": _published((8192, 29568, 80, 64, 8, 152_064)),
    }
    config_class = Qwen2VLConfig
    model_class = Qwen2VLForConditionalGeneration
    fast_layers: Mapping[type[nn.Module], MakeLayer] = {Qwen2VLRMSNorm: FusedRMSNorm}

    def layout(self, inputs: Mapping[str, Any], index: int, config: Any) -> Layout:  # noqa: ARG002
        """Return one run of tokens, whose temporal positions count temporal patches."""
        return Layout([torch.as_tensor(inputs["video_grid_thw"])[index].tolist()], [1.0])

    def tower_sizes(self, config: Any) -> Tower:
        """Return the sizes of the tower; `hidden_size` of its configuration is the width of what it returns."""
        vision = config.vision_config
        return Tower(
            layers=vision.depth,
            hidden_size=vision.embed_dim,
            intermediate_size=int(vision.embed_dim * vision.mlp_ratio),
            gated=False,
            attended=FRAME_PATCHES,
            merged=vision.spatial_merge_size**2,
            output_size=vision.hidden_size,
        )

    def tiny_processor(self, tokenizer: PreTrainedTokenizerFast) -> Any:
        """Return the processor of a tiny policy."""
        return tiny.frame_processor(Qwen2VLProcessor, tokenizer)

    def tiny_config(self, tokenizer: PreTrainedTokenizerFast) -> Qwen2VLConfig:
        """Return the configuration of a tiny policy."""
        rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]}
        return Qwen2VLConfig(
            text_config=tiny.text_config(tokenizer, rope_parameters=rope),
            vision_config={**tiny.VISION, "embed_dim": 64, "mlp_ratio": 3, "hidden_size": tiny.WIDTH},
            **tiny.shared(tokenizer),
        )


FAMILY: ModelFamily = Qwen2VL()
