"""Qwen3-VL (dense): times as text before every temporal patch, DeepStack, norms on queries and keys, heads of their own width.

A tower gives a video several sets of features: one in place of its tokens, the others (DeepStack) added to the states of the
first layers at the same places.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)
from transformers.models.qwen3_vl.modeling_qwen3_vl import (
    BaseModelOutputWithDeepstackFeatures,
    Qwen3VLTextRMSNorm,
)
from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize

from videostr.errors import ModelError
from videostr.grpo.batch import Vision
from videostr.models import tiny
from videostr.models.base import ModelFamily
from videostr.models.layers import FusedRMSNorm, MakeLayer
from videostr.models.qwen_vl import FRAME_PATCHES, Layout, QwenVL, Tower, text_sizes

LEVEL = "deepstack_{}"
"""Name of the features of a level of DeepStack."""


def _published(
    text: tuple[int, ...], vision: tuple[int, int, int], levels: tuple[int, ...], *, tied: bool = False
) -> dict[str, Any]:
    depth, hidden, mlp = vision
    return {
        "text_config": text_sizes(*text, head_dim=128),
        "vision_config": {
            "depth": depth,
            "hidden_size": hidden,
            "intermediate_size": mlp,
            "out_hidden_size": text[0],
            "deepstack_visual_indexes": levels,
            "num_position_embeddings": 2304,
            "patch_size": 16,
            "spatial_merge_size": 2,
        },
        "tie_word_embeddings": tied,
    }


_SMALL, _LARGE = ((24, 1024, 4096), (5, 11, 17)), ((27, 1152, 4304), (8, 16, 24))
"""The two towers, each with its levels of DeepStack."""


class Qwen3VL(QwenVL):
    """The family; see `videostr.models.base.ModelFamily`."""

    name = "Qwen3-VL"
    published: Mapping[str, Mapping[str, Any]] = {
        "Qwen3-VL-2B": _published((2048, 6144, 28, 16, 8, 151_936), *_SMALL, tied=True),
        "Qwen3-VL-4B": _published((2560, 9728, 36, 32, 8, 151_936), *_SMALL, tied=True),
        "Qwen3-VL-8B": _published((4096, 12288, 36, 32, 8, 151_936), *_LARGE),
        "Qwen3-VL-32B": _published((5120, 25600, 64, 64, 8, 151_936), *_LARGE),
    }
    config_class: Any = Qwen3VLConfig
    model_class: Any = Qwen3VLForConditionalGeneration
    fast_layers: Mapping[type[nn.Module], MakeLayer] = {Qwen3VLTextRMSNorm: FusedRMSNorm}
    norms_heads = True

    def check(self, config: Any, path: str | Path, *, cpu: bool) -> None:
        """Refuse what all families refuse, and rotary positions that engine and learner would not interleave alike."""
        super().check(config, path, cpu=cpu)
        rope = config.text_config.rope_parameters or {}
        if "mrope_section" not in rope or rope.get("mrope_interleaved") is not True:
            raise ModelError(
                f"model.path = {path}: the rope parameters of text_config ({dict(rope)}) lack mrope_section or "
                "mrope_interleaved = true: learners interleave the axes of positions always, engines only where it is said",
                remedy="copy config.json from the base model",
            )

    def video_size(
        self, height: int, width: int, num_frames: int, max_pixels: int, processor: Any
    ) -> tuple[int, int]:
        """Return height and width in whole merged patches; the processor's limits are of all frames together."""
        height, width = super().video_size(height, width, num_frames, max_pixels, processor)
        video = processor.video_processor
        size: tuple[int, int] = smart_resize(
            num_frames,
            height,
            width,
            temporal_factor=video.temporal_patch_size,
            factor=video.patch_size * video.merge_size,
            min_pixels=video.size["shortest_edge"],
            max_pixels=video.size["longest_edge"],
        )
        return size

    def engine_text(self, text: str) -> str:
        """Return a chat text with the bare placeholder in place of the template's markers around it.

        A processor writes for a video a time and markers of its own before and after each temporal patch, and releases of
        transformers before 5.10, with which the models were trained, wrote them in place of the template's markers. Later
        ones, and vLLM, replace the placeholder alone: the outer markers would stay, which no training has shown the models.
        """
        before, video, after = "<|vision_start|>", "<|video_pad|>", "<|vision_end|>"
        return text.replace(before + video + after, video)

    def layout(self, inputs: Mapping[str, Any], index: int, config: Any) -> Layout:  # noqa: ARG002
        """Return one run of tokens for each temporal patch: the text between them says when it is."""
        frames, height, width = torch.as_tensor(inputs["video_grid_thw"])[index].tolist()
        return Layout([(1, height, width)] * frames, [1.0] * frames)

    def features_of(self, encoded: Any) -> dict[str, Tensor]:
        """Return the features of the video's tokens, and those of each level."""
        deepstack = getattr(encoded, "deepstack_features", ())
        levels = {LEVEL.format(i): level for i, level in enumerate(deepstack)}
        return {**super().features_of(encoded), **levels}

    def encoded(self, features: Vision) -> Any:
        """Return the tower's output again, as the model takes it."""
        return BaseModelOutputWithDeepstackFeatures(
            pooler_output=(features["features"],),  # type: ignore[arg-type]  # one tensor a video
            deepstack_features=[
                (features[LEVEL.format(i)],)  # type: ignore[misc]
                for i in range(len(features) - 1)
            ],
        )

    def tower_sizes(self, config: Any) -> Tower:
        """Return the sizes of the tower, whose layers all attend to whole frames."""
        vision = config.vision_config
        return Tower(
            layers=vision.depth,
            hidden_size=vision.hidden_size,
            intermediate_size=vision.intermediate_size,
            gated=False,
            attended=FRAME_PATCHES,
            merged=vision.spatial_merge_size**2,
            output_size=vision.out_hidden_size,
            mergers=1 + len(getattr(vision, "deepstack_visual_indexes", ())),
        )

    def tiny_processor(self, tokenizer: PreTrainedTokenizerFast) -> Qwen3VLProcessor:
        """Return the processor of a tiny policy."""
        # As released; classes differ in their defaults.
        half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        clip = {"shortest_edge": 2 * 16 * 16, "longest_edge": 16 * 64 * 64}
        return Qwen3VLProcessor(
            image_processor=Qwen2VLImageProcessor(**tiny.PATCHES, **half, size=tiny.FRAME_SIZE),
            tokenizer=tokenizer,
            video_processor=Qwen3VLVideoProcessor(
                **tiny.PATCHES, **half, size=clip, cap_pixels_per_frame=False
            ),
            chat_template=tiny.CHAT_TEMPLATE,
        )

    def tiny_config(self, tokenizer: PreTrainedTokenizerFast) -> Any:
        """Return the configuration of a tiny policy, whose heads are together wider than its layers, as those of the 4B."""
        rope = {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [12, 10, 10],
            "mrope_interleaved": True,
        }
        return Qwen3VLConfig(
            text_config=tiny.text_config(tokenizer, head_dim=64, rope_parameters=rope),
            vision_config={
                **tiny.VISION,
                "hidden_size": 64,
                "intermediate_size": 192,
                "out_hidden_size": tiny.WIDTH,
                "num_position_embeddings": 64,
                "deepstack_visual_indexes": [0, 1],
            },
            **tiny.shared(tokenizer),
        )


FAMILY: ModelFamily = Qwen3VL()
