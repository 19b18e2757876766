"""Prompts about videos of many shapes, and whether engine and learner agree on them."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

from actors.rollout import BAN
from videostr.chat import chat_text
from videostr.groups import Sampled
from videostr.grpo.attention import row_attention
from videostr.grpo.batch import Group, build_row, plan_rows
from videostr.models.base import family_of
from videostr.models.checkpoint import load_policy
from videostr.types import ClipSpec, Prompt
from videostr.video import ClipFrames, name_clip

TEMPERATURE = 0.8
AGREEMENT = 1e-4
"""Largest difference between log-probabilities of engine and learner, float32, nats."""
VIDEOS = {
    "square.mp4": (64, 64, Fraction(10)),
    "wide.mp4": (48, 80, Fraction(30000, 1001)),
    "odd.mp4": (70, 100, Fraction(4)),
}
"""Height, width and frame rate; 100 x 70 is no multiple of a merged patch."""
CLIPS = (
    ClipSpec(video="square.mp4", num_frames=6),
    ClipSpec(video="wide.mp4", num_frames=5),
    ClipSpec(video="wide.mp4", num_frames=4, start_s=1.3, end_s=2.9),
    ClipSpec(video="odd.mp4", num_frames=2, start_s=2.5),
)


def write_videos(folder: Path) -> None:
    """Write four seconds of noise that fades from frame to frame, in every shape."""
    for seed, (name, (height, width, rate)) in enumerate(VIDEOS.items()):
        first, last = np.random.default_rng(seed).integers(0, 256, (2, height, width, 3))
        count = round(4 * rate)
        with av.open(str(folder / name), "w") as container:
            stream = container.add_stream("libx264", rate=rate)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            for number in range(count):
                image = (first + (last - first) * number // count).astype(np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image)))
            container.mux(stream.encode())


def prompts_of(folder: Path, processor: Any) -> tuple[Prompt, ...]:
    """A prompt about each of `CLIPS`, whose videos are in the folder."""
    texts = [chat_text("where is it? " * (i + 1), processor) for i in range(len(CLIPS))]
    return tuple(
        Prompt(record_id=str(i), text=text, clip=name_clip(spec, folder))
        for i, (text, spec) in enumerate(zip(texts, CLIPS, strict=True))
    )


def sharpen(folder: Path) -> None:
    """Scale random weights so that tokens have different probabilities, and depend on the video."""
    policy = load_policy(folder, torch.float32)
    with torch.no_grad():
        policy.lm_head.weight *= 8
        for name, parameter in policy.named_parameters():
            if (
                "merger" in name
                and parameter.ndim == 2
                and len(parameter) == policy.config.text_config.hidden_size
            ):
                parameter *= 20
            if "language_model" in name and name.endswith(
                ("o_proj.weight", "v_proj.weight", "out_proj.weight")
            ):
                parameter *= 5
            if name.endswith("A_log"):  # recurrent layers forget slowly
                parameter -= 3
    policy.save_pretrained(folder)


def row_policy(folder: str | Path) -> Any:
    """A policy that computes rows."""
    policy = load_policy(folder, torch.float32).eval()
    family_of(policy.config).prepare(policy)
    return policy


def logprobs_of(sampled: Sampled) -> np.ndarray:
    """Of all completions [N]."""
    return np.concatenate([completion.logprobs for completion in sampled.completions])


def difference(policy: Any, processor: Any, prompt: Prompt, frames: ClipFrames, sampled: Sampled) -> float:
    """Largest difference to log-probabilities as the learner computes them."""
    return float(differences(policy, processor, prompt, frames, sampled).max())


def differences(
    policy: Any, processor: Any, prompt: Prompt, frames: ClipFrames, sampled: Sampled
) -> np.ndarray:
    """Differences [N] to log-probabilities as the learner computes them, in one packed row, placeholders banned."""
    family = family_of(policy.config)
    (inputs,) = family.encode([prompt], [frames], processor, policy.config)
    assert sampled.prompt_token_ids.tolist() == inputs.input_ids.tolist()
    completions = tuple(torch.from_numpy(c.token_ids.astype(np.int64)) for c in sampled.completions)
    group = Group(
        prompt=inputs,
        completions=completions,
        behaviour_logprobs=tuple(torch.zeros(len(tokens)) for tokens in completions),
        advantages=torch.zeros(len(completions)),
    )
    (plan,) = plan_rows([len(inputs.input_ids)], [[len(c) for c in completions]], max_row_tokens=4096)
    row = build_row(plan, {0: group})
    vocabulary = processor.tokenizer.get_vocab()
    with torch.no_grad():
        attention = row_attention(row.prompt_ids, row.completion_ids, "sdpa")
        logits = policy.lm_head(family.hidden_states(policy, row, attention)[row.predictors])
        logits[:, [vocabulary[token] for token in family.placeholders]] += BAN
        logprobs = torch.log_softmax(logits / TEMPERATURE, -1).gather(1, row.targets[:, None])[:, 0]
    found: np.ndarray = np.abs(logprobs_of(sampled) - logprobs.numpy())
    return found
