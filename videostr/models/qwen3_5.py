"""Qwen3.5 (dense): Gated DeltaNet layers with a recurrent state between layers of full attention; videos as Qwen3-VL has them.

A packed row runs the prompt once, also through the recurrent layers: see `videostr.models.delta_net`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn
from transformers import (
    PreTrainedTokenizerFast,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5Tokenizer,
)
from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5GatedDeltaNet, Qwen3_5RMSNorm

from videostr.errors import ModelError
from videostr.grpo.attention import RowAttention
from videostr.grpo.batch import Row, RowCost
from videostr.grpo.recurrence import RowForks
from videostr.models import tiny
from videostr.models.base import ModelFamily, Shapes
from videostr.models.delta_net import FORKS, RULE, RowDeltaNet, delta_rule_of
from videostr.models.layers import CenteredRMSNorm, MakeLayer
from videostr.models.qwen3_vl import Qwen3VL
from videostr.models.qwen_vl import QwenVL, text_sizes, widths

CHUNK = 64
"""Tokens that the delta rule takes at once."""
CPU_HEAD = 128
"""Width of the recurrent heads that vLLM's CPU engine takes."""
GATES = ("silu", "swish")
"""Two names of one function."""
LINEAR, FULL = "linear_attention", "full_attention"
"""Kinds of layers, as `text_config.layer_types` names them."""


_TOWER = {
    "depth": 27,
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_position_embeddings": 2304,
    "patch_size": 16,
    "spatial_merge_size": 2,
}


def _published(value_heads: int, *text: int) -> dict[str, Any]:
    """Return config.json of a published model, as far as sizes need it; every fourth layer is of full attention."""
    heads = {"linear_num_key_heads": 16, "linear_num_value_heads": value_heads}
    return {
        "text_config": text_sizes(*text, head_dim=256, **heads),
        "vision_config": {**_TOWER, "out_hidden_size": text[0]},
        "tie_word_embeddings": False,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixers:
    """What mixes the tokens of a sequence: layers of full attention, and recurrent ones."""

    full: int
    """Layers."""
    recurrent: int
    """Layers."""
    queries: int
    """Width of all queries of a token; their gates are as wide."""
    keys: int
    """Width of all keys of a token."""
    recurrent_keys: int
    """Width of all keys of a token, and of all queries, before they are repeated for several heads of values."""
    values: int
    """Width of all values of a token, and of their gates, in a recurrent layer."""
    value_heads: int
    key_head: int
    """Width of a key of a recurrent layer."""
    kernel_size: int
    """Inputs of an output of the convolution."""

    @classmethod
    def of(cls, text: Any) -> Mixers:
        """Return those of a `text_config`."""
        queries, keys = widths(text)
        return cls(
            full=text.layer_types.count(FULL),
            recurrent=text.layer_types.count(LINEAR),
            queries=queries,
            keys=keys,
            recurrent_keys=text.linear_num_key_heads * text.linear_key_head_dim,
            values=text.linear_num_value_heads * text.linear_value_head_dim,
            value_heads=text.linear_num_value_heads,
            key_head=text.linear_key_head_dim,
            kernel_size=text.linear_conv_kernel_dim,
        )

    @property
    def convolved(self) -> int:
        """Width of what a recurrent layer's convolution runs over: queries, keys, values."""
        return 2 * self.recurrent_keys + self.values

    def products(self, hidden: int) -> int:
        """Return the multiplications of a token in all layers, forward, without pairs of tokens; see `Qwen35.row_cost`."""
        full = hidden * (3 * self.queries + 2 * self.keys)
        matrices = hidden * (self.convolved + 2 * self.values + 2 * self.value_heads)
        repeated = self.value_heads * self.key_head
        rule = CHUNK * (5 * repeated + 3 * self.values) // 2 + 3 * self.key_head * self.values
        return self.full * full + self.recurrent * (matrices + self.kernel_size * self.convolved + rule)

    @property
    def state(self) -> int:
        """Elements of a sequence's state in all recurrent layers: matrices and the last inputs of convolutions."""
        return self.recurrent * (self.key_head * self.values + (self.kernel_size - 1) * self.convolved)


class Qwen35(Qwen3VL):
    """The family; see `videostr.models.base.ModelFamily`."""

    name = "Qwen3.5"
    published: Mapping[str, Mapping[str, Any]] = {
        "Qwen3.5-9B": _published(32, 4096, 12288, 32, 16, 4, 248_320),
        "Qwen3.5-27B": _published(48, 5120, 17408, 64, 24, 4, 248_320),
    }
    stacked_parameters: Mapping[str, tuple[str, tuple[int, ...]]] = {
        **QwenVL.stacked_parameters,
        "in_proj_qkv": ("in_proj_qkvz", (0, 1, 2)),
        "in_proj_z": ("in_proj_qkvz", (3,)),
        "in_proj_b": ("in_proj_ba", (0,)),
        "in_proj_a": ("in_proj_ba", (1,)),
    }
    config_class = Qwen3_5Config
    model_class = Qwen3_5ForConditionalGeneration
    fast_layers: Mapping[type[nn.Module], MakeLayer] = {
        Qwen3_5RMSNorm: CenteredRMSNorm,
        Qwen3_5GatedDeltaNet: RowDeltaNet,
    }

    def check(self, config: Any, path: str | Path, *, cpu: bool) -> None:
        """Refuse what Qwen3-VL refuses, and recurrent layers that engine and learner would not compute alike, or at all."""
        super().check(config, path, cpu=cpu)
        text = config.text_config
        gate = getattr(text, "output_gate_type", "silu")
        if gate not in GATES:
            raise ModelError(
                f"model.path = {path}: output_gate_type of text_config is {gate!r}: engines apply it to the outputs of recurrent "
                f"layers, learners always apply silu",
                remedy="use a checkpoint whose output_gate_type is silu, as those of Qwen are",
            )
        heads = {
            "linear_key_head_dim": text.linear_key_head_dim,
            "linear_value_head_dim": text.linear_value_head_dim,
        }
        if cpu and set(heads.values()) != {CPU_HEAD}:
            raise ModelError(
                f"model.path = {path}: {heads} in text_config; vLLM's CPU engine has recurrent heads of {CPU_HEAD} only",
                remedy=f"use a checkpoint with heads of {CPU_HEAD}, as those of Qwen, or give engines GPUs (rollout.num_gpus)",
            )

    def check_sequence_parallel(self, config: Any, ranks: int) -> None:
        """Refuse: recurrent layers would have to pass their states along the ranks."""
        del config
        raise ModelError(
            f"learner.sequence_parallel = {ranks}: rows of a {self.name} cannot be shared, its recurrent layers pass on a state",
            remedy="set it to 1, and model.gradient_checkpointing=true or a smaller learner.max_row_tokens where rows do not fit",
        )

    def engine_dtypes(self, *, cpu: bool) -> tuple[str, ...]:
        """Return bfloat16 alone on CPU, where vLLM's recurrent layers have no other."""
        return ("bfloat16",) if cpu else super().engine_dtypes(cpu=cpu)

    def engine_arguments(self, *, cpu: bool) -> Mapping[str, Any]:
        """Return states in float32 and, on CPU, no prefix cache: vLLM 0.32 keeps states in it with chunked prefill only.

        Prefill is not chunked on CPU, where a chunk would kill an engine at a seeded request. Each completion of a group then
        computes the prompt again.
        """
        states = {"mamba_ssm_cache_dtype": "float32"}
        return {**states, "enable_prefix_caching": False} if cpu else states

    def row_arguments(self, policy: Any, row: Row, attention: RowAttention) -> dict[str, Any]:
        """Return attention and, for the recurrent layers, which tokens follow which."""
        size = policy.config.text_config.linear_conv_kernel_dim
        forks = RowForks.of(row.prompt_ids, row.completion_ids, size)
        rule = delta_rule_of(row.input_ids.device, policy.dtype)
        return {**super().row_arguments(policy, row, attention), FORKS: forks, RULE: rule}

    def row_cost(self, config: Any, *, freeze_vision: bool) -> RowCost:
        """Return the floating-point operations of a row.

        As `QwenVL.row_cost`, with matrices for the gates of queries, and pairs in layers of full attention alone. A recurrent
        layer with keys k, values v in H heads of e, keys repeated to H heads of d together, and a convolution of n inputs has
          token = 6 (h (2 k + v) + 2 h v + 2 h H + n (2 k + v) + delta rule),
          delta rule = H (64 (5 d + 3 e) / 2 + 3 d e): in chunks of 64 tokens two products of keys, queries and keys, the
        solution of a triangular system for values and keys, and, with values, one of the chunk and three with the state.
        """
        cost, text = super().row_cost(config, freeze_vision=freeze_vision), config.text_config
        mixers = Mixers.of(text)
        mlp = 3 * text.hidden_size * text.intermediate_size
        return replace(
            cost,
            token=6.0 * (mixers.products(text.hidden_size) + text.num_hidden_layers * mlp),
            pair=12.0 * mixers.full * mixers.queries,
        )

    def shapes(self, config: Any, *, name: str = "") -> Shapes:
        """Return the sizes of a model.

        As `QwenVL.shapes`. A layer of full attention with queries w and keys k holds 10 h + 11 w + 4 k + 4 m elements a token for
        its backward pass, a recurrent one with keys k and values v in H heads 10 h + 4 k + 14 v + 64 H + 4 m; counted with
        `saved_tensors_hooks` on bfloat16 layers whose delta rule holds its inputs and one matrix of 64 a token and head. What
        is stated is the mean of the layers.
        """
        shapes, mixers, text = (
            super().shapes(config, name=name),
            Mixers.of(config.text_config),
            config.text_config,
        )
        full = 11 * mixers.queries + 4 * mixers.keys
        recurrent = 4 * mixers.recurrent_keys + 14 * mixers.values + CHUNK * mixers.value_heads
        mixing = (mixers.full * full + mixers.recurrent * recurrent) // text.num_hidden_layers
        activations = 10 * text.hidden_size + 4 * text.intermediate_size + mixing
        return replace(
            shapes,
            kv_elements=2 * mixers.full * mixers.keys,
            state_elements=mixers.state,
            text=replace(shapes.text, activations=activations),
        )

    @property
    def tiny_words(self) -> Any:
        """How transformers cuts texts for this family, whatever the files of a tokenizer say."""
        return Qwen3_5Tokenizer().backend_tokenizer.pre_tokenizer

    def tiny_config(self, tokenizer: PreTrainedTokenizerFast) -> Any:
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
            **tiny.shared(tokenizer),
        )


FAMILY: ModelFamily = Qwen35()
