"""What the families of Qwen's video models share: prompts, tower, packed rows, sizes. A family is a subclass of `QwenVL`.

All of them put video tokens into a causal language model with M-RoPE and gated MLPs. They differ in how a video stands in the
prompt, in the tower, and in the widths of heads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from videostr.errors import ModelError
from videostr.grpo.attention import RowAttention
from videostr.grpo.batch import PromptInputs, Row, RowCost, Vision
from videostr.models import tiny
from videostr.models.attention import ROW, use_row_attention
from videostr.models.base import EngineInputs, Shapes, Stack
from videostr.models.layers import MakeLayer
from videostr.models.mrope import mrope_positions
from videostr.types import Prompt
from videostr.video import ClipFrames

FRAME_PATCHES = 1024
"""Patches that a patch attends to where a tower attends within whole frames; assumed: 512 x 512 pixels, 16 a side."""


class Layout(NamedTuple):
    """How the vision tokens of a prompt are laid out: one entry for each run of them between tokens of text."""

    grids: Sequence[Sequence[int]]
    """Patches in time, height, width."""
    scales: Sequence[float]
    """Temporal positions per temporal patch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tower:
    """Sizes of a vision tower."""

    layers: int
    hidden_size: int
    intermediate_size: int
    """Width of the MLP."""
    gated: bool
    """Whether the MLP has a gate: three matrices, not two."""
    attended: int
    """Patches that a patch attends to."""
    merged: int
    """Patches that are merged into one token."""
    output_size: int
    """Width of a token."""
    mergers: int = 1
    """Sets of features of a token, each with matrices of its own."""

    @property
    def products(self) -> int:
        """Multiplications of a patch, forward; see `QwenVL.row_cost`."""
        v = self.hidden_size
        block = 4 * v**2 + (3 if self.gated else 2) * v * self.intermediate_size + 2 * v * self.attended
        return self.layers * block + self.mergers * (self.merged * v**2 + self.output_size * v)

    @property
    def stack(self) -> Stack:
        """What plans need to know of the layers; see `QwenVL.shapes`."""
        return Stack(
            layers=self.layers,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            activations=14 * self.hidden_size + (4 if self.gated else 2) * self.intermediate_size,
        )


def text_sizes(
    hidden: int, mlp: int, layers: int, heads: int, key_heads: int, vocabulary: int, **more: int
) -> dict[str, int]:
    """Return `text_config` of a published model, as far as sizes need it."""
    return {
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "vocab_size": vocabulary,
        **more,
    }


class QwenVL(ABC):
    """Implements `videostr.models.base.ModelFamily`; subclasses fill in what differs."""

    name: str
    placeholders: tuple[str, ...] = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    stacked_parameters: Mapping[str, tuple[str, tuple[int, ...]]] = {
        "q_proj": ("qkv_proj", (0,)),
        "k_proj": ("qkv_proj", (1,)),
        "v_proj": ("qkv_proj", (2,)),
        "gate_proj": ("gate_up_proj", (0,)),
        "up_proj": ("gate_up_proj", (1,)),
    }
    published: Mapping[str, Mapping[str, Any]]
    config_class: Any
    model_class: Any
    fast_layers: Mapping[type[nn.Module], MakeLayer]
    """Layers of transformers that are replaced, and by what."""
    norms_heads: bool = False
    """Whether queries and keys pass a norm of their own."""

    # -------------------------------------------------------------------------------- what subclasses say

    @abstractmethod
    def layout(self, inputs: Mapping[str, Any], index: int, config: Any) -> Layout:
        """Return how the vision tokens of prompt `index` are laid out; `inputs` is what the processor returned for several."""

    @abstractmethod
    def tower_sizes(self, config: Any) -> Tower:
        """Return the sizes of the vision tower."""

    @abstractmethod
    def tiny_processor(self, tokenizer: PreTrainedTokenizerFast) -> Any:
        """Return the processor of a tiny policy."""

    @abstractmethod
    def tiny_config(self, tokenizer: PreTrainedTokenizerFast) -> Any:
        """Return the configuration of a tiny policy."""

    # ------------------------------------------------------------------------------------------ checkpoint

    def config_of(self, raw: Mapping[str, Any], path: str | Path) -> Any:
        """Return the configuration that a config.json describes."""
        if "vision_config" not in raw:
            raise ModelError(
                f"model.path = {path}: config.json has no vision_config, so it takes no video here",
                remedy=f"use a {self.name}",
            )
        try:
            return self.config_class.from_dict(dict(raw))
        except Exception as error:  # what transformers raises for values of the wrong type is of many kinds
            reason = " ".join(str(error).split())[:200]
            raise ModelError(
                f"model.path = {path}: config.json does not describe a {self.name} ({reason})",
                remedy="copy it from the base model",
            ) from error

    def check(self, config: Any, path: str | Path, *, cpu: bool) -> None:
        """Refuse attention that cannot be packed, and tied embeddings on CPU."""
        if "sliding_attention" in (getattr(config.text_config, "layer_types", None) or ()):
            raise ModelError(
                f"model.path = {path}: use_sliding_window is true, but packed rows attend without a window",
                remedy="if it was trained without one, as those of Qwen are, set it to false in config.json",
            )
        if cpu and config.tie_word_embeddings:
            raise ModelError(
                f"model.path = {path}: tie_word_embeddings is true, but vLLM's CPU engine keeps its packed copy of a tied "
                "output layer through a weight update and would sample from a mixture of old and new weights",
                remedy=f"untie it with `python -m videostr.models untie {path} DIR` and set model.path=DIR",
            )

    def check_sequence_parallel(self, config: Any, ranks: int) -> None:
        """Refuse ranks among which the heads of attention cannot be dealt evenly."""
        heads = config.text_config.num_attention_heads
        if heads % ranks:
            divisors = [n for n in range(2, heads + 1) if heads % n == 0]
            raise ModelError(
                f"learner.sequence_parallel = {ranks}: the model has {heads} heads of attention, which cannot be dealt evenly",
                remedy=f"set it to one of {', '.join(map(str, divisors))}, or to 1",
            )

    def load(self, path: str | Path, dtype: torch.dtype | str) -> Any:
        """Return the policy with its weights, on CPU, attention through SDPA."""
        return self.model_class.from_pretrained(path, dtype=dtype, attn_implementation="sdpa")

    @property
    def tiny_words(self) -> Any:
        """How texts are cut for a tiny policy, before its tokens are sought."""
        return tiny.WORDS

    def make_tiny(self, folder: str | Path, seed: int, texts: Iterable[str]) -> None:
        """Write a checkpoint of one or two million random weights."""
        tokenizer = tiny.make_tokenizer(texts, self.tiny_words)
        processor = self.tiny_processor(tokenizer)
        tiny.save_tiny(folder, seed, self.model_class, self.tiny_config(tokenizer), processor)

    # --------------------------------------------------------------------------------------------- prompts

    def video_size(
        self, height: int, width: int, num_frames: int, max_pixels: int, processor: Any
    ) -> tuple[int, int]:
        """Return height and width in whole merged patches, at most `max_pixels` together."""
        del num_frames  # processors before Qwen3-VL's look at one frame
        video = processor.video_processor
        factor = video.patch_size * video.merge_size
        size: tuple[int, int] = smart_resize(
            height, width, factor=factor, min_pixels=min(max_pixels, 4 * factor**2), max_pixels=max_pixels
        )
        return size

    def engine_text(self, text: str) -> str:
        """Return a chat text as engine and learner tokenise it."""
        return text

    def engine_inputs(self, prompt: Prompt, frames: ClipFrames) -> EngineInputs:
        """Return text and frames as they are: both sides take times from the metadata."""
        return EngineInputs(
            text=self.engine_text(prompt.text),
            pixels=frames.pixels,
            metadata=frames.metadata,
            processor_options={},
        )

    def engine_positions(self, model: Any, token_ids: Sequence[int], videos: Sequence[Any]) -> np.ndarray:
        """Return the M-RoPE positions [3, T] that vLLM gives a prompt."""
        positions, _ = model.get_mrope_input_positions(list(token_ids), list(videos))
        return np.asarray(positions, dtype=np.int64)

    def engine_dtypes(self, *, cpu: bool) -> tuple[str, ...]:  # noqa: ARG002  # the same everywhere
        """Return all: vLLM computes attention in any."""
        return ("float32", "bfloat16")

    def engine_arguments(self, *, cpu: bool) -> Mapping[str, Any]:  # noqa: ARG002  # the same everywhere
        """Return none: vLLM serves it as any other."""
        return {}

    def encode(
        self, prompts: Sequence[Prompt], clips: Sequence[ClipFrames], processor: Any, config: Any
    ) -> list[PromptInputs]:
        """Return the tensors of prompts; several at once are cheaper, because equal video shapes are processed together."""
        metadata = [{k: v for k, v in clip.metadata.items() if k != "do_sample_frames"} for clip in clips]
        inputs = processor(
            text=[self.engine_text(prompt.text) for prompt in prompts],
            videos=[np.array(clip.pixels) for clip in clips],  # a copy: torch warns of read-only memory
            videos_kwargs={"video_metadata": metadata, "do_sample_frames": False},
        )
        grids = torch.as_tensor(inputs["video_grid_thw"])
        pixels = torch.as_tensor(inputs["pixel_values_videos"]).split(grids.prod(-1).tolist())
        return [
            PromptInputs(
                input_ids=torch.tensor(inputs["input_ids"][i]),
                positions=mrope_positions(
                    inputs["mm_token_type_ids"][i],
                    *self.layout(inputs, i, config),
                    config.vision_config.spatial_merge_size,
                ),
                vision={"pixel_values_videos": pixels[i], "video_grid_thw": grids[i : i + 1]},
                temporal_patches=int(grids[i, 0]),
            )
            for i in range(len(prompts))
        ]

    def is_vision(self, token_ids: Tensor, config: Any) -> Tensor:
        """Return which tokens stand for features."""
        found: Tensor = token_ids == config.video_token_id
        return found

    def num_patches(self, token_ids: np.ndarray, config: Any) -> int:
        """Return the number of vision patches of a prompt."""
        placeholders = token_ids == config.video_token_id
        return int(placeholders.sum()) * int(config.vision_config.spatial_merge_size) ** 2

    def temporal_part(self, vision: Vision, part: slice) -> dict[str, Tensor]:
        """Return the vision inputs of some temporal patches of one video: its pixels are in the order of time."""
        ((patches, height, width),) = vision["video_grid_thw"].tolist()
        pixels = vision["pixel_values_videos"].unflatten(0, (patches, -1))[part]
        return {
            "pixel_values_videos": pixels.flatten(0, 1),
            "video_grid_thw": torch.tensor([[len(pixels), height, width]]),
        }

    # ---------------------------------------------------------------------------------------- vision tower

    def tower(self, policy: Any) -> nn.Module:
        """Return the vision tower of a policy."""
        tower: nn.Module = policy.model.visual
        return tower

    def set_tower(self, policy: Any, tower: nn.Module | None) -> None:
        """Put a tower into a policy, or take it out."""
        policy.model.visual = tower

    def features(self, tower: nn.Module, vision: Vision) -> dict[str, Tensor]:
        """Return the tower's features [merged patches, D]; positions are known, so that the row needs no grid."""
        weight = next(tower.parameters())
        pixels = vision["pixel_values_videos"].to(weight.device, weight.dtype)
        return self.features_of(tower(pixels, grid_thw=vision["video_grid_thw"].to(weight.device)))

    def features_of(self, encoded: Any) -> dict[str, Tensor]:
        """Return by name what a row needs of the tower's output."""
        return {"features": encoded.pooler_output}

    def encoded(self, features: Vision) -> Any:
        """Return the tower's output again, as the model takes it: one tensor a video, whatever the annotation says."""
        return BaseModelOutputWithPooling(pooler_output=(features["features"],))  # type: ignore[arg-type]

    # ------------------------------------------------------------------------------------------------ rows

    def prepare(self, policy: nn.Module) -> None:
        """Let attention take packed rows, and replace layers by faster ones."""
        use_row_attention(policy.config)
        self.use_fast_layers(policy)

    def use_fast_layers(self, policy: nn.Module) -> None:
        """Replace the layers that `fast_layers` names."""
        for module in list(policy.modules()):
            for name, child in list(module.named_children()):
                for kind, make in self.fast_layers.items():
                    if isinstance(child, kind):
                        setattr(module, name, make(child))

    def hidden_states(self, policy: Any, row: Row, attention: RowAttention) -> Tensor:
        """Return the last hidden states [T, D] of a row."""
        vision: dict[str, Any] = dict(row.vision)
        if "features" in vision:
            vision = {"mm_encoder_outputs": {"video": self.encoded(vision)}}
        hidden: Tensor = policy.model(
            input_ids=row.input_ids[None],
            position_ids=row.positions[:, None],
            use_cache=False,
            **self.row_arguments(policy, row, attention),
            **vision,
        ).last_hidden_state[0]
        return hidden

    def row_arguments(self, policy: Any, row: Row, attention: RowAttention) -> dict[str, Any]:  # noqa: ARG002
        """Return what the layers need to know of a row, by the names under which the model hands it on to them."""
        return {ROW: attention}

    # ------------------------------------------------------------------------------------------- estimates

    def row_cost(self, config: Any, *, freeze_vision: bool) -> RowCost:
        """Return the floating-point operations of a row.

        A weight costs 2 operations a token forward and 4 backward; attention 4 w a pair forward and 8 w backward, in each of L
        layers of width h with heads of w together. With m the width of the MLP, k that of keys, V the vocabulary:
          token = 6 L (2 h w + 2 h k + 3 h m),  pair = 12 L w,  target = 8 h V (its logits are computed twice).
        The tower, with L, h, m of its own, an MLP of n matrices, patches that attend to a others, and s patches merged into one
        token of width o by each of d mergers:
          patch = f (L (4 h^2 + n h m + 2 h a) + d (s h^2 + o h)),  f = 6, or 2 when frozen.
        """
        text = config.text_config
        h, layers = text.hidden_size, text.num_hidden_layers
        heads, keys = widths(text)
        return RowCost(
            token=6.0 * layers * (2 * h * heads + 2 * h * keys + 3 * h * text.intermediate_size),
            pair=12.0 * layers * heads,
            target=8.0 * h * text.vocab_size,
            patch=(2.0 if freeze_vision else 6.0) * self.tower_sizes(config).products,
        )

    def shapes(self, config: Any, *, name: str = "") -> Shapes:
        """Return the sizes of a model; its weights are counted on transformers' model without memory.

        A layer of width h, heads w, keys k, MLP m holds 8 h + 3 w + 3 k + 4 m elements a token for its backward pass, 3 w + 3 k
        more where heads have norms, counted from Hugging Face's layer with fused attention (as Korthikanti et al. 2022, arXiv
        2205.05198, section 4 for GPT): inputs of norms and their float32 copies, q k v before and after rotation, attention's
        output, two residuals, gate, its activation, up, product. One of the tower holds 14 h + 4 m a patch, 14 h + 2 m without
        a gate.
        """
        with torch.device("meta"):
            policy: Any = self.model_class(config)
        policy.tie_weights()
        text, tower = config.text_config, self.tower_sizes(config)
        heads, keys = widths(text)
        layers = _count(policy.model.language_model.layers)
        norms = 3 * (heads + keys) if self.norms_heads else 0
        return Shapes(
            name=name or self.name,
            parameters=_count(policy),
            vision_parameters=_count(policy.model.visual),
            decode_parameters=layers + policy.lm_head.weight.numel(),
            vocab_size=text.vocab_size,
            num_attention_heads=text.num_attention_heads,
            num_key_value_heads=text.num_key_value_heads,
            kv_elements=2 * text.num_hidden_layers * keys,
            state_elements=0,
            patches_per_token=tower.merged,
            text=Stack(
                layers=text.num_hidden_layers,
                hidden_size=text.hidden_size,
                intermediate_size=text.intermediate_size,
                activations=8 * text.hidden_size + 3 * heads + 3 * keys + norms + 4 * text.intermediate_size,
            ),
            vision=tower.stack,
            frozen_cost=self.row_cost(config, freeze_vision=True),
            linear_ends=_linear_ends(policy.model.language_model),
        )


def _linear_ends(model: nn.Module) -> dict[str, int]:
    """Return inputs plus outputs of linear layers, summed over those of one last name."""
    found: Counter[str] = Counter()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            found[name.rpartition(".")[2]] += module.in_features + module.out_features
    return dict(found)


def widths(text: Any) -> tuple[int, int]:
    """Return the widths of all queries and of all keys of a token in one layer."""
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return head * text.num_attention_heads, head * text.num_key_value_heads


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
