"""What an engine makes of prompts: token ids, positions and pixels, by vLLM's own code, without an engine.

In: prompts with the frames of their clips. Out: an `EngineView` of each. `engine_views` runs in a process of its own: vLLM's
import takes 20 s, and reads the environment.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from actors.rollout import VIDEO_INPUT, offline_environment
from videostr.console import send_output_to
from videostr.models.base import family_of
from videostr.types import Prompt
from videostr.video import ClipFrames


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineView:
    """A prompt as the engine's model gets it."""

    token_ids: np.ndarray
    """[T] int64."""
    positions: np.ndarray
    """[3, T] or [T] int64."""
    vision: dict[str, np.ndarray]
    """Vision inputs by the names of the processor; pixels are normalised."""


def engine_views(
    path: str, dtype: str, prompts: Sequence[Prompt], clips: Sequence[ClipFrames], log_file: str
) -> list[EngineView]:
    """Return what the engine makes of each prompt with the frames of its clip.

    Args:
        path: of the model.
        dtype: float32 or bfloat16.
        prompts: with one video each.
        clips: their frames.
        log_file: gets what vLLM writes to the terminal.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_views, path, dtype, list(prompts), list(clips), log_file).result()


def _views(
    path: str, dtype: str, prompts: list[Prompt], clips: list[ClipFrames], log_file: str
) -> list[EngineView]:
    send_output_to(log_file)
    os.environ.update(offline_environment(path))
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    from vllm import EngineArgs
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.multimodal import MULTIMODAL_REGISTRY

    model = EngineArgs(
        model=path,
        dtype=dtype,  # type: ignore[arg-type]  # one of its literals
        **VIDEO_INPUT,  # type: ignore[arg-type]  # each of its own type
    ).create_model_config()
    processor = MULTIMODAL_REGISTRY.create_processor(model)
    with set_current_vllm_config(VllmConfig()):  # its layers ask for one when they are made
        return [_view(model, processor, prompt, clip) for prompt, clip in zip(prompts, clips, strict=True)]


def _view(model: Any, processor: Any, prompt: Prompt, clip: ClipFrames) -> EngineView:
    from vllm.multimodal.inputs import MultiModalFeatureSpec

    family = family_of(model.hf_config)
    inputs = family.engine_inputs(prompt, clip)
    items = processor.info.parse_mm_data({"video": [(inputs.pixels, dict(inputs.metadata))]})
    found = processor(inputs.text, items, hf_processor_mm_kwargs=dict(inputs.processor_options))
    (vision,), (place,) = found["mm_kwargs"]["video"], found["mm_placeholders"]["video"]
    feature = MultiModalFeatureSpec(
        data=vision, modality="video", identifier=prompt.clip.digest, mm_position=place
    )
    positions = family.engine_positions(_model_without_weights(model), found["prompt_token_ids"], [feature])
    return EngineView(
        token_ids=np.asarray(found["prompt_token_ids"], dtype=np.int64),
        positions=positions,
        vision={
            name: _normalised(model, field.data).numpy()
            for name, field in vision.items()
            if hasattr(field.data, "numpy")  # times of frames are lists
        },
    )


def _model_without_weights(model: Any) -> Any:
    """Return an object of the engine's model class that knows its configuration: enough for positions."""
    from torch import nn
    from vllm.multimodal import MULTIMODAL_REGISTRY

    kind = MULTIMODAL_REGISTRY._get_model_cls(model)  # vLLM has no public name for it
    found: Any = object.__new__(kind)  # type: ignore[arg-type]  # a class, whatever the annotation
    nn.Module.__init__(found)
    found.config, found.model_config = model.hf_config, model
    return found


def _normalised(model: Any, values: Any) -> Any:
    """Return pixels as the tower gets them: vLLM normalises bytes on the device, with figures of the image processor."""
    import torch
    from vllm.model_executor.layers.fusion.mm_input_norm import build_mm_input_norm

    if values.dtype is not torch.uint8:
        return values
    return build_mm_input_norm(model)(values, torch.float32)
