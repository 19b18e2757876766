"""Qwen3.5 (dense): Gated DeltaNet layers with a recurrent state between layers of full attention; videos as Qwen3-VL has them.

A packed row runs the prompt once, also through the recurrent layers: see `videostr.models.delta_net`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerFast, Qwen3_5Config, Qwen3_5ForConditionalGeneration
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5GatedDeltaNet, Qwen3_5RMSNorm

from videostr.errors import ModelError
from videostr.grpo.attention import Kernel
from videostr.grpo.batch import Row, RowCost
from videostr.grpo.recurrence import RowForks
from videostr.models import tiny
from videostr.models.base import ModelFamily, Shapes
from videostr.models.delta_net import FORKS, RowDeltaNet
from videostr.models.layers import CenteredRMSNorm
from videostr.models.qwen3_vl import Qwen3VL
from videostr.models.qwen_vl import QwenVL, text_sizes

LINEAR, FULL = "linear_attention", "full_attention"
"""Kinds of layers, as `text_config.layer_types` names them."""


class Qwen3_5(Qwen3VL):
    """The family; see `videostr.models.base.ModelFamily`."""

    name = "Qwen3.5"
    model_types: tuple[str, ...] = ("qwen3_5",)
    published: Mapping[str, Mapping[str, Any]] = {}
    stacked_parameters = {
        **QwenVL.stacked_parameters,
        "in_proj_qkv": ("in_proj_qkvz", (0, 1, 2)),
        "in_proj_z": ("in_proj_qkvz", (3,)),
        "in_proj_b": ("in_proj_ba", (0,)),
        "in_proj_a": ("in_proj_ba", (1,)),
    }
    config_class = Qwen3_5Config
    model_class = Qwen3_5ForConditionalGeneration
    norm_class = Qwen3_5RMSNorm

    def use_fast_layers(self, policy: nn.Module) -> None:
        """Replace the norms, and the recurrent layers by those that compute packed rows."""
        for module in list(policy.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, Qwen3_5RMSNorm):
                    setattr(module, name, CenteredRMSNorm(child))
                elif isinstance(child, Qwen3_5GatedDeltaNet):
                    setattr(module, name, RowDeltaNet(child))

    def row_arguments(self, policy: Any, row: Row, kernel: Kernel) -> dict[str, Any]:
        """Return attention and, for the recurrent layers, which tokens follow which."""
        size = policy.config.text_config.linear_conv_kernel_dim
        forks = RowForks.of(row.prompt_ids, row.completion_ids, size)
        return {**super().row_arguments(policy, row, kernel), FORKS: forks}

    def tiny_config(self, tokenizer: PreTrainedTokenizerFast) -> Qwen3_5Config:
        """Return the configuration of a tiny policy; recurrent heads of 128, as vLLM's CPU engine has no others."""
        rope = {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [6, 5, 5],
            "mrope_interleaved": True,
            "partial_rotary_factor": 0.5,
        }
        return Qwen3_5Config(
            text_config=tiny.text_config(
                tokenizer,
                head_dim=64,
                rope_parameters=rope,
                layer_types=[LINEAR, FULL, LINEAR],
                linear_num_key_heads=1,
                linear_num_value_heads=2,
                linear_key_head_dim=128,
                linear_value_head_dim=128,
            ),
            vision_config={
                **tiny.VISION,
                "hidden_size": 64,
                "intermediate_size": 192,
                "out_hidden_size": tiny.WIDTH,
                "num_position_embeddings": 64,
            },
            **tiny.token_ids(tokenizer),
            tie_word_embeddings=False,
            dtype="float32",
        )


FAMILY: ModelFamily = Qwen3_5()
