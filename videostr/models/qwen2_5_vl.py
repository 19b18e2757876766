"""Qwen2.5-VL: M-RoPE with a temporal axis in seconds, a tower of windows, gated MLPs, one set of features a video."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLMLP, Qwen2_5_VLRMSNorm
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from videostr.errors import ModelError
from videostr.grpo.attention import Kernel, row_attention
from videostr.grpo.batch import PromptInputs, Row, RowCost, Vision
from videostr.models import tiny
from videostr.models.attention import use_row_attention
from videostr.models.base import EngineInputs, ModelFamily, Shapes, Stack
from videostr.models.layers import ALIGNMENT, FusedRMSNorm, PaddedLinear
from videostr.types import Prompt
from videostr.video import ClipFrames

TINY_PATCH = 8
TINY_MERGE = 2


def _published(text: tuple[int, ...], vision_mlp: int, *, tied: bool = False) -> dict[str, Any]:
    keys = (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size",
    )  # fmt: skip
    vision = {"depth": 32, "hidden_size": 1280, "intermediate_size": vision_mlp, "out_hidden_size": text[0]}
    return {
        "text_config": dict(zip(keys, text, strict=True)),
        "vision_config": {**vision, "patch_size": 14, "window_size": 112, "spatial_merge_size": 2},
        "tie_word_embeddings": tied,
    }


class Qwen25VL:
    """The family; see `videostr.models.base.ModelFamily`."""

    name = "Qwen2.5-VL"
    model_types: tuple[str, ...] = ("qwen2_5_vl",)
    placeholders: tuple[str, ...] = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    stacked_parameters: Mapping[str, tuple[str, tuple[int, ...]]] = {
        "q_proj": ("qkv_proj", (0,)),
        "k_proj": ("qkv_proj", (1,)),
        "v_proj": ("qkv_proj", (2,)),
        "gate_proj": ("gate_up_proj", (0,)),
        "up_proj": ("gate_up_proj", (1,)),
    }
    published: Mapping[str, Mapping[str, Any]] = {
        "Qwen2.5-VL-3B": _published((2048, 11008, 36, 16, 2, 151_936), 3420, tied=True),
        "Qwen2.5-VL-7B": _published((3584, 18944, 28, 28, 4, 152_064), 3420),
        "Qwen2.5-VL-32B": _published((5120, 27648, 64, 40, 8, 152_064), 3456),
        "Qwen2.5-VL-72B": _published((8192, 29568, 80, 64, 8, 152_064), 3456),
    }

    # ------------------------------------------------------------------------------------------------ checkpoint

    def config_of(self, raw: Mapping[str, Any], path: str | Path) -> Qwen2_5_VLConfig:
        """Return the configuration that a config.json describes."""
        if "vision_config" not in raw:
            raise ModelError(
                f"model.path = {path}: config.json has no vision_config, so it takes no video here",
                remedy=f"use a {self.name}",
            )
        try:
            return Qwen2_5_VLConfig.from_dict(dict(raw))
        except Exception as error:  # what transformers raises for values of the wrong type is of many kinds
            reason = " ".join(str(error).split())[:200]
            raise ModelError(
                f"model.path = {path}: config.json does not describe a {self.name} ({reason})",
                remedy="copy it from the base model",
            ) from error

    def check(self, config: Any, path: str | Path, *, cpu: bool) -> None:
        """Refuse attention that cannot be packed, and tied embeddings on CPU."""
        if "sliding_attention" in config.text_config.layer_types:
            raise ModelError(
                f"model.path = {path}: use_sliding_window is true, but packed rows attend without a window",
                remedy="if the checkpoint "
                "was trained without one, as those of Qwen are, set it to false in config.json",
            )
        if cpu and config.tie_word_embeddings:
            raise ModelError(
                f"model.path = {path}: tie_word_embeddings is true, but vLLM's CPU engine keeps its packed copy of a tied "
                "output layer through a weight update and would sample from a mixture of old and new weights",
                remedy=f"untie it with `python -m videostr.models untie {path} DIR` and set model.path=DIR",
            )

    def load(self, path: str | Path, dtype: torch.dtype | str) -> Any:
        """Return the policy with its weights, on CPU, attention through SDPA."""
        return Qwen2_5_VLForConditionalGeneration.from_pretrained(
            path, dtype=dtype, attn_implementation="sdpa"
        )

    def make_tiny(self, folder: str | Path, seed: int, texts: Iterable[str]) -> None:
        """Write a checkpoint of a million random weights."""
        tokenizer = tiny.make_tokenizer(texts)
        processor = _tiny_processor(tokenizer)
        tiny.save_tiny(folder, seed, Qwen2_5_VLForConditionalGeneration, _tiny_config(tokenizer), processor)

    # --------------------------------------------------------------------------------------------------- prompts

    def video_size(self, height: int, width: int, max_pixels: int, processor: Any) -> tuple[int, int]:
        """Return height and width in whole merged patches, at most `max_pixels` together."""
        video = processor.video_processor
        factor = video.patch_size * video.merge_size
        size: tuple[int, int] = smart_resize(
            height,
            width,
            factor=factor,
            min_pixels=min(max_pixels, 4 * factor**2),
            max_pixels=max_pixels,
        )
        return size

    def engine_inputs(self, prompt: Prompt, frames: ClipFrames) -> EngineInputs:
        """Return text and frames as they are: both sides take the temporal scale from the metadata."""
        return EngineInputs(
            text=prompt.text, pixels=frames.pixels, metadata=frames.metadata, processor_options={}
        )

    def engine_arguments(self, *, cpu: bool) -> Mapping[str, Any]:  # noqa: ARG002  # the same everywhere
        """Return none: vLLM serves it as any other."""
        return {}

    def encode(
        self, prompts: Sequence[Prompt], clips: Sequence[ClipFrames], processor: Any, config: Any
    ) -> list[PromptInputs]:
        """Return the tensors of prompts; several at once are cheaper, because equal video shapes are processed together."""
        metadata = [{k: v for k, v in clip.metadata.items() if k != "do_sample_frames"} for clip in clips]
        inputs = processor(
            text=[prompt.text for prompt in prompts],
            videos=[np.array(clip.pixels) for clip in clips],  # a copy: torch warns of read-only memory
            videos_kwargs={"video_metadata": metadata, "do_sample_frames": False},
        )
        grids = torch.as_tensor(inputs["video_grid_thw"])
        pixels = torch.as_tensor(inputs["pixel_values_videos"]).split(grids.prod(-1).tolist())
        seconds = torch.as_tensor(inputs["second_per_grid_ts"], dtype=torch.float32)
        dtype = config.dtype or torch.float32
        if isinstance(dtype, str):  # what save_pretrained leaves in the model's own config
            dtype = getattr(torch, dtype)
        seconds = seconds.to(dtype)  # vLLM rounds to the dtype of the model
        return [
            PromptInputs(
                input_ids=torch.tensor(inputs["input_ids"][i]),
                positions=mrope_positions(
                    inputs["mm_token_type_ids"][i],
                    [grids[i].tolist()],
                    [seconds[i].item() * config.vision_config.tokens_per_second],
                    config.vision_config.spatial_merge_size,
                ),
                vision={"pixel_values_videos": pixels[i], "video_grid_thw": grids[i : i + 1]},
            )
            for i in range(len(prompts))
        ]

    def num_patches(self, token_ids: np.ndarray, config: Any) -> int:
        """Return the number of vision patches of a prompt."""
        placeholders = token_ids == config.video_token_id
        return int(placeholders.sum()) * int(config.vision_config.spatial_merge_size) ** 2

    # ---------------------------------------------------------------------------------------------- vision tower

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
        encoded = tower(pixels, grid_thw=vision["video_grid_thw"].to(weight.device))
        return {"features": encoded.pooler_output}

    # ------------------------------------------------------------------------------------------------------ rows

    def prepare(self, policy: nn.Module) -> None:
        """Let attention take packed rows, and replace the norms and the unaligned MLPs (the tower's, 3420 wide)."""
        use_row_attention(policy.config)
        use_fast_layers(policy)

    def hidden_states(self, policy: Any, row: Row, kernel: Kernel) -> Tensor:
        """Return the last hidden states [T, D] of a row."""
        vision: dict[str, Any] = dict(row.vision)
        if "features" in vision:
            encoded: Any = (
                BaseModelOutputWithPooling()
            )  # the model takes one tensor a video, whatever the annotation
            encoded.pooler_output = (vision["features"],)
            vision = {"mm_encoder_outputs": {"video": encoded}}
        attention = row_attention(row.prompt_ids, row.completion_ids, kernel)
        hidden: Tensor = policy.model(
            input_ids=row.input_ids[None],
            position_ids=row.positions[:, None],
            attention_mask={"full_attention": attention},  # a mapping is handed to the layers as it is
            use_cache=False,
            **vision,
        ).last_hidden_state[0]
        return hidden

    # ------------------------------------------------------------------------------------------------- estimates

    def row_cost(self, config: Any, *, freeze_vision: bool) -> RowCost:
        """Return the floating-point operations of a row.

        A weight costs 2 operations a token forward and 4 backward; attention 4 w a pair forward and 8 w backward, in each of L
        layers of width h with heads of w together. With m the width of the MLP, k that of keys, V the vocabulary:
          token = 6 L (2 h w + 2 h k + 3 h m),  pair = 12 L w,  target = 8 h V (its logits are computed twice).
        The tower, with L, h, m of its own, windows of n patches and s patches merged into one token of width o:
          patch = f (L (4 h^2 + 3 h m + 2 h n) + s h^2 + o h),  f = 6, or 2 when frozen,
        which takes its few layers that attend to whole frames for windowed ones.
        """
        text, vision = config.text_config, config.vision_config
        h, layers = text.hidden_size, text.num_hidden_layers
        heads, keys = _widths(text)
        v, merged = vision.hidden_size, vision.spatial_merge_size**2
        window = (vision.window_size // vision.patch_size) ** 2
        block = 4 * v**2 + 3 * v * vision.intermediate_size + 2 * v * window
        tower = vision.depth * block + merged * v**2 + vision.out_hidden_size * v
        return RowCost(
            token=6.0 * layers * (2 * h * heads + 2 * h * keys + 3 * h * text.intermediate_size),
            pair=12.0 * layers * heads,
            target=8.0 * h * text.vocab_size,
            patch=(2.0 if freeze_vision else 6.0) * tower,
        )

    def shapes(self, config: Any, *, name: str = "") -> Shapes:
        """Return the sizes of a model; its weights are counted on transformers' model without memory.

        A layer of width h, MLP m, keys k holds 11 h + 3 k + 4 m elements a token for its backward pass, counted from Hugging
        Face's layer with fused attention (as Korthikanti et al. 2022, arXiv 2205.05198, section 4 for GPT): inputs of norms and
        their float32 copies, q k v before and after rotation, attention's output, two residuals, gate, its activation, up,
        product. One of the tower holds 14 h + 4 m a patch.
        """
        with torch.device("meta"):
            policy: Any = Qwen2_5_VLForConditionalGeneration(config)
        policy.tie_weights()
        text, vision = config.text_config, config.vision_config
        _, keys = _widths(text)
        layers = _count(policy.model.language_model.layers)
        return Shapes(
            name=name or self.name,
            parameters=_count(policy),
            vision_parameters=_count(policy.model.visual),
            decode_parameters=layers + policy.lm_head.weight.numel(),
            vocab_size=text.vocab_size,
            num_attention_heads=text.num_attention_heads,
            num_key_value_heads=text.num_key_value_heads,
            kv_elements=2 * text.num_hidden_layers * keys,
            patches_per_token=vision.spatial_merge_size**2,
            text=Stack(
                layers=text.num_hidden_layers,
                hidden_size=text.hidden_size,
                intermediate_size=text.intermediate_size,
                activations=11 * text.hidden_size + 3 * keys + 4 * text.intermediate_size,
            ),
            vision=Stack(
                layers=vision.depth,
                hidden_size=vision.hidden_size,
                intermediate_size=vision.intermediate_size,
                activations=14 * vision.hidden_size + 4 * vision.intermediate_size,
            ),
            frozen_cost=self.row_cost(config, freeze_vision=True),
        )


FAMILY: ModelFamily = Qwen25VL()


def mrope_positions(
    kinds: Sequence[int], grids: Sequence[Sequence[int]], scales: Sequence[float], merge_size: int
) -> Tensor:
    """Return the M-RoPE positions [3, T] int64 of a prompt of text and videos: time, height, width.

    Text after a video continues from the largest position so far, over all three axes. So Qwen2.5-VL was trained and
    so vLLM samples; transformers 5.19's `get_rope_index` continues from the spatial extent alone, which differs as soon
    as a video has more temporal than spatial positions.

    Args:
        kinds: [T], 0 for a token of text.
        grids: of each video, patches in time, height, width.
        scales: of each video, temporal positions per temporal patch.
        merge_size: patches merged along each side into one token.
    """
    cuts = [0, *[i for i in range(1, len(kinds)) if kinds[i] != kinds[i - 1]], len(kinds)]
    videos = iter(list(zip(grids, scales, strict=True)))
    seen = sum(kinds[first] != 0 for first, end in pairwise(cuts) if end > first)
    if seen != len(grids):
        raise ValueError(
            f"the prompt has {seen} runs of vision tokens and {len(grids)} videos, must have as many"
        )
    runs: list[Tensor] = []
    start = 0
    for first, end in pairwise(cuts):
        if kinds[first] == 0:
            run = torch.arange(end - first).expand(3, -1)
        else:
            (frames, height, width), scale = next(videos)
            times = (torch.arange(frames, dtype=torch.float64) * scale).long()
            rows, columns = torch.arange(height // merge_size), torch.arange(width // merge_size)
            run = torch.stack(torch.meshgrid(times, rows, columns, indexing="ij")).reshape(3, -1)
            if run.shape[1] != end - first:
                raise ValueError(
                    f"the prompt has {end - first} tokens for a video of {run.shape[1]} merged patches, must have as many"
                )
        runs.append(run + start)
        start = int(runs[-1].max()) + 1
    return torch.cat(runs, dim=1)


def use_fast_layers(policy: nn.Module) -> None:
    """Replace the norms and the unaligned MLPs of a policy."""
    for module in list(policy.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Qwen2_5_VLRMSNorm):
                setattr(module, name, FusedRMSNorm(child))
            elif isinstance(child, Qwen2_5_VLMLP) and child.intermediate_size % ALIGNMENT:
                for part in ("gate_proj", "up_proj", "down_proj"):
                    setattr(child, part, PaddedLinear(getattr(child, part)))


def _widths(text: Any) -> tuple[int, int]:
    """Return the widths of all queries and of all keys of a token in one layer."""
    head = text.hidden_size // text.num_attention_heads
    return head * text.num_attention_heads, head * text.num_key_value_heads


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# ---------------------------------------------------------------------------------------------------- tiny policy


def _tiny_processor(tokenizer: PreTrainedTokenizerFast) -> Qwen2_5_VLProcessor:
    size = {"shortest_edge": (TINY_PATCH * TINY_MERGE) ** 2, "longest_edge": 128 * 128}
    sizes = {"patch_size": TINY_PATCH, "merge_size": TINY_MERGE, "temporal_patch_size": 2, "size": size}
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**sizes),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(**sizes, cap_pixels_per_frame=False),
        chat_template=tiny.CHAT_TEMPLATE,
    )


def _tiny_config(tokenizer: PreTrainedTokenizerFast) -> Qwen2_5_VLConfig:
    ids = tokenizer.get_vocab()
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
            "bos_token_id": None,
            "eos_token_id": ids[tiny.END],
            "pad_token_id": ids[tiny.PAD],
            # vLLM's CPU build keeps the old packed lm_head after a weight update when embeddings are tied.
            "tie_word_embeddings": False,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 64,
            "intermediate_size": 192,
            "num_heads": 2,
            "patch_size": TINY_PATCH,
            "spatial_merge_size": TINY_MERGE,
            "temporal_patch_size": 2,
            "tokens_per_second": 2,
            "window_size": 64,
            "out_hidden_size": 128,
            "fullatt_block_indexes": [0, 1],
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=False,
        dtype="float32",
    )
