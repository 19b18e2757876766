"""A prompt and a completion as transformers' own model takes them: what packed rows and engines are compared with."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from videostr.models.base import ModelFamily
from videostr.types import Prompt
from videostr.video import ClipFrames


def plain_inputs(
    family: ModelFamily, prompt: Prompt, frames: ClipFrames, processor: Any, completion: Tensor
) -> dict[str, Tensor]:
    """Return the arguments of a Hugging Face model, which makes positions of its own; a batch of one."""
    metadata = {key: value for key, value in frames.metadata.items() if key != "do_sample_frames"}
    inputs = processor(
        text=[family.engine_inputs(prompt, frames).text],
        videos=[np.array(frames.pixels)],
        videos_kwargs={"video_metadata": [metadata], "do_sample_frames": False},
        return_tensors="pt",
    )
    after = {
        "input_ids": completion,
        "attention_mask": torch.ones_like(completion),
        "mm_token_type_ids": torch.zeros_like(completion),
    }
    return {
        name: torch.cat([values, after[name][None]], dim=1) if name in after else torch.as_tensor(values)
        for name, values in inputs.items()
    }
