"""A tiny policy of every family, and prompts with real video inputs for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoProcessor

from videostr.grpo.batch import Group, PromptInputs
from videostr.models.base import FAMILIES, ModelFamily, family_of
from videostr.models.checkpoint import load_policy
from videostr.types import Clip, ClipSpec, Prompt
from videostr.video import ClipFrames

MakePrompt = Callable[[str, int, float], tuple[Prompt, ClipFrames]]
MakeInputs = Callable[[str, int, float], PromptInputs]
MakeGroup = Callable[..., Group]


@pytest.fixture(scope="session", params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> ModelFamily:
    return family_of({"model_type": request.param})


@pytest.fixture(scope="session")
def policy_folder(family: ModelFamily, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy")
    family.make_tiny(folder, 0, ["where is the red_ball?", "<think>left</think><answer>A</answer>"])
    return folder


@pytest.fixture(scope="session")
def policy(policy_folder: Path) -> Any:
    return load_policy(policy_folder, torch.float32)


@pytest.fixture(scope="session")
def processor(policy_folder: Path) -> Any:
    return AutoProcessor.from_pretrained(policy_folder)


@pytest.fixture(scope="session")
def make_prompt(processor: Any) -> MakePrompt:
    def make(question: str, num_frames: int, fps: float) -> tuple[Prompt, ClipFrames]:
        """A prompt whose video shows noise at `fps` frames per second."""
        pixels = np.random.default_rng(num_frames).integers(0, 256, (num_frames, 32, 48, 3), dtype=np.uint8)
        frames = ClipFrames(
            pixels=pixels,
            times=tuple(i / fps for i in range(num_frames)),
            indices=tuple(range(num_frames)),
            fps=fps,
            total_frames=num_frames,
        )
        content = [{"type": "video"}, {"type": "text", "text": question}]
        text = processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        clip = Clip(digest="0", spec=ClipSpec(video="noise.mp4", num_frames=num_frames))
        return Prompt(record_id="r", text=text, clip=clip), frames

    return make


@pytest.fixture(scope="session")
def make_inputs(family: ModelFamily, policy: Any, processor: Any, make_prompt: MakePrompt) -> MakeInputs:
    def make(question: str, num_frames: int, fps: float) -> PromptInputs:
        prompt, frames = make_prompt(question, num_frames, fps)
        (inputs,) = family.encode([prompt], [frames], processor, policy.config)
        return inputs

    return make


@pytest.fixture(scope="session")
def make_group(make_inputs: MakeInputs) -> MakeGroup:
    def make(
        seed: int, lengths: tuple[int, ...], question: str = "where?", num_frames: int = 4, fps: float = 4.0
    ) -> Group:
        """Completions of random tokens, behaviour log-probabilities near those of a fresh policy."""
        draw = torch.Generator().manual_seed(seed)
        return Group(
            prompt=make_inputs(question, num_frames, fps),
            completions=tuple(torch.randint(8, 200, (n,), generator=draw) for n in lengths),
            behaviour_logprobs=tuple(-5.6 + 0.3 * torch.randn(n, generator=draw) for n in lengths),
            advantages=torch.randn(len(lengths), generator=draw),
        )

    return make
