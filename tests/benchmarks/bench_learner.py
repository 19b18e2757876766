"""Group packing against one forward per completion, for every family, and the packed step against bare PyTorch; tiny policies.

In: random completions of prompts with random pixels. Out: one JSON object a line.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

from tests.benchmarks.measure import processor_seconds, ratio, report, spread
from videostr.config.sections import LossConfig
from videostr.grpo.batch import Group, PromptInputs, Row, build_row, plan_rows
from videostr.grpo.logprobs import LogprobHead, PolicyLogprobs
from videostr.grpo.loss import count, policy_loss
from videostr.models.base import FAMILIES, family_of
from videostr.models.checkpoint import load_policy
from videostr.models.processor import load_processor
from videostr.types import Clip, ClipSpec, Prompt
from videostr.video import ClipFrames

REPEATS = 5
G = 8
LOSS = LossConfig()
FPS = 2.0


@dataclass(frozen=True)
class Shape:
    """Lengths in tokens; the video has `frames` square frames of `pixels` a side."""

    prompt: int
    completion: int
    frames: int
    pixels: int

    def __str__(self) -> str:
        return f"P {self.prompt}, video {self.frames} x {self.pixels} x {self.pixels}, C {self.completion}, G {G}"


SHORT = Shape(112, 80, 4, 64)
LONG = Shape(1024, 128, 28, 128)
SHAPES = pytest.mark.parametrize("shape", [SHORT, LONG], ids=["short", "long"])


@pytest.fixture(scope="module", params=list(FAMILIES)[:1])
def model_type(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=[1])
def wider(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(scope="module")
def folder(model_type: str, wider: int, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy of random weights; where layers are recurrent, there are four, the last with full attention."""
    found = tmp_path_factory.mktemp(model_type)
    family = family_of({"model_type": model_type})
    family.make_tiny(found, 0, ["where is the red_ball?"])
    if wider > 1:
        config = AutoConfig.from_pretrained(found)
        text, vision = config.text_config, config.vision_config
        text.intermediate_size *= wider
        text.hidden_size *= wider
        if getattr(text, "head_dim", None) is None:  # heads are as wide together as the layer
            text.num_attention_heads *= wider
            text.num_key_value_heads *= wider
        setattr(
            vision,
            "out_hidden_size" if hasattr(vision, "out_hidden_size") else "hidden_size",
            text.hidden_size,
        )
        if "linear_attention" in (getattr(text, "layer_types", None) or ()):
            text.layer_types = [*["linear_attention"] * 3, "full_attention"]
            text.num_hidden_layers = len(text.layer_types)
        torch.manual_seed(0)
        AutoModelForImageTextToText.from_config(config).save_pretrained(found)
    return found


@pytest.fixture(scope="module")
def policy(model_type: str, folder: Path) -> PolicyLogprobs:
    return PolicyLogprobs(load_policy(folder, torch.float32), family_of({"model_type": model_type}))


@pytest.fixture(scope="module")
def plain(folder: Path) -> PreTrainedModel:
    """The same weights in a model as transformers makes it."""
    return load_policy(folder, torch.float32)


def make_group(policy: PolicyLogprobs, folder: Path, shape: Shape) -> Group:
    """One group of equally long completions, so that the batched side has no padding to compute."""
    draw = torch.Generator().manual_seed(0)
    without = len(prompt_inputs(policy, folder, shape, "").input_ids)
    return Group(
        prompt=prompt_inputs(policy, folder, shape, "7" * (shape.prompt - without)),
        completions=tuple(torch.randint(8, 200, (shape.completion,), generator=draw) for _ in range(G)),
        behaviour_logprobs=tuple(torch.full((shape.completion,), -6.0) for _ in range(G)),
        advantages=torch.linspace(-1, 1, G),
    )


def prompt_inputs(policy: PolicyLogprobs, folder: Path, shape: Shape, question: str) -> PromptInputs:
    """A video of noise and a question; digits are tokens of their own."""
    processor = load_processor(folder)
    frames = ClipFrames(
        pixels=np.random.default_rng(0).integers(
            0, 256, (shape.frames, shape.pixels, shape.pixels, 3), dtype=np.uint8
        ),
        times=tuple(i / FPS for i in range(shape.frames)),
        indices=tuple(range(shape.frames)),
        fps=FPS,
        total_frames=shape.frames,
    )
    content = [{"type": "video"}, {"type": "text", "text": question}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    clip = Clip(digest="0", spec=ClipSpec(video="noise.mp4", num_frames=shape.frames))
    prompt = Prompt(record_id="r", text=text, clip=clip)
    (found,) = policy.family.encode([prompt], [frames], processor, policy.policy.config)
    return found


def rows(
    policy: PolicyLogprobs, group: Group, packing: Literal["group", "none"], max_row_tokens: int = 4096
) -> list[Row]:
    plan = plan_rows(
        [len(group.prompt.input_ids)],
        [[len(c) for c in group.completions]],
        max_row_tokens=max_row_tokens,
        packing=packing,
    )
    return [build_row(row, {0: group}) for row in plan]


def step(policy: PolicyLogprobs, group: Group, packing: Literal["group", "none"]) -> Tensor:
    """Forward and backward of a group, as a learner rank does it; log-probabilities [G * C] by completion."""
    policy.zero_grad()
    found = {}
    for row in rows(policy, group, packing):
        logprobs, entropy = policy(row, 1.0)
        loss, _ = policy_loss(row, logprobs, entropy, LOSS, count([[len(c) for c in group.completions]]))
        loss.backward()
        found |= dict(zip(row.origins, logprobs.detach().split(len(group.completions[0])), strict=True))
    return torch.cat([found[0, i] for i in range(G)])


def batched_step(plain: PreTrainedModel, group: Group) -> Tensor:
    """Forward and backward of a group as one batch [G, P + C - 1] of plain causal sequences, the video G times."""
    plain.zero_grad()
    prompt = group.prompt
    context = torch.stack([completion[:-1] for completion in group.completions])
    positions = prompt.positions
    after = positions[:, -1:] + 1 + torch.arange(context.shape[1])
    hidden = plain.model(
        input_ids=torch.cat([prompt.input_ids.expand(G, -1), context], dim=1),
        position_ids=torch.cat([positions, after], dim=1)[:, None].expand(-1, G, -1),
        **{name: tensor.repeat(G, 1) for name, tensor in prompt.vision.items()},
        use_cache=False,
    ).last_hidden_state[:, len(prompt.input_ids) - 1 :]
    logits = plain.lm_head(hidden).flatten(0, 1)
    targets = torch.cat(group.completions)
    logprobs = -F.cross_entropy(logits, targets, reduction="none")
    policy_loss_of_batch(logprobs, group).backward()
    return logprobs.detach()


def policy_loss_of_batch(logprobs: Tensor, group: Group) -> Tensor:
    """The clipped loss over all completion tokens."""
    advantages = group.advantages.repeat_interleave(len(group.completions[0]))
    r = (logprobs - torch.cat(group.behaviour_logprobs)).exp()
    clipped = r.clamp(1 - LOSS.eps_low, 1 + LOSS.eps_high)
    return -torch.minimum(r * advantages, clipped * advantages).mean()


def gradients(policy: nn.Module) -> dict[str, Tensor]:
    """By Hugging Face name."""
    return {
        name.removeprefix("policy."): p.grad.clone()
        for name, p in policy.named_parameters()
        if p.grad is not None
    }


def largest_difference(ours: dict[str, Tensor], others: dict[str, Tensor]) -> float:
    """Of any parameter: norm of the difference over norm of the gradient."""
    assert ours.keys() == others.keys()
    return max(float((ours[name] - g).norm() / g.norm()) for name, g in others.items())


@pytest.mark.parametrize(
    ("model_type", "wider", "shape"),
    [
        *((next(iter(FAMILIES)), 1, shape) for shape in (SHORT, LONG)),
        *((family, 3, LONG) for family in FAMILIES),
    ],
    indirect=["model_type", "wider"],
)
def test_packed_speedup(
    model_type: str,
    wider: int,
    policy: PolicyLogprobs,
    plain: PreTrainedModel,
    folder: Path,
    shape: Shape,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Wider policies for every family: attention is a smaller part of their work, as in real models.

    At P 1024 it is 55 % of the multiplications of a layer of the tiny Qwen3-VL, 15 % of one three times as wide, and 5 % in
    Qwen3-VL-4B. Packing saves less of attention than of all else, as a completion sees its whole prompt either way.
    """
    group = make_group(policy, folder, shape)
    sides: dict[str, Callable[[], Tensor]] = {
        "packed": lambda: step(policy, group, "group"),
        "packing: none (8 rows, one after another)": lambda: step(policy, group, "none"),
        "plain causal batch [8, P + C - 1], no padding": lambda: batched_step(plain, group),
    }
    logprobs = {name: side() for name, side in sides.items()}
    step(policy, group, "group")
    grads = {"packed": gradients(policy), list(sides)[2]: gradients(plain)}
    step(policy, group, "none")
    grads[list(sides)[1]] = gradients(policy)
    seconds = processor_seconds(sides, REPEATS)
    for name in list(sides)[1:]:
        report(
            capsys,
            name="learner/packed_speedup",
            value=round(1 / statistics.median(seconds["packed"]), 2),
            unit="groups/s",
            ratio=ratio(seconds[name], seconds["packed"]),
            against=name,
            model_type=model_type,
            width=wider,
            shape=str(shape),
            max_logprob_difference=float(f"{(logprobs['packed'] - logprobs[name]).abs().max():.2g}"),
            max_gradient_difference=float(f"{largest_difference(grads['packed'], grads[name]):.2g}"),
            cores=1,
            repeats=REPEATS,
            spread=spread(seconds["packed"]),
        )


# -------------------------------------------------------------------------------------------------- efficiency


def bare_step(plain: PreTrainedModel, row: Row) -> None:
    """The same tokens and video through the same model: plain causal attention, plain cross entropy."""
    plain.zero_grad()
    hidden = plain.model(
        input_ids=row.input_ids[None],
        position_ids=row.positions[:, None],
        **row.vision,
        use_cache=False,
    ).last_hidden_state[0]
    F.cross_entropy(plain.lm_head(hidden[row.predictors]), row.targets).backward()


@SHAPES
def test_efficiency(
    policy: PolicyLogprobs,
    plain: PreTrainedModel,
    folder: Path,
    shape: Shape,
    capsys: pytest.CaptureFixture[str],
) -> None:
    group = make_group(policy, folder, shape)
    (row,) = rows(policy, group, "group")
    sides = {"packed": lambda: step(policy, group, "group"), "bare": lambda: bare_step(plain, row)}
    seconds = processor_seconds(sides, REPEATS)
    report(
        capsys,
        name="learner/efficiency",
        value=round(len(row.input_ids) / statistics.median(seconds["packed"])),
        unit="packed tokens/s",
        ratio=ratio(seconds["bare"], seconds["packed"]),
        against="bare forward and backward of the same tokens and video: causal SDPA, cross entropy",
        shape=f"{shape}, row of {len(row.input_ids)} tokens, row building and loss included",
        cores=1,
        repeats=REPEATS,
        spread=spread(seconds["packed"]),
    )


# ------------------------------------------------------------------------------------------------------ memory


@contextmanager
def peak_bytes(found: list[int]) -> Iterator[None]:
    """Appends the most bytes that PyTorch's CPU allocator held at once beyond what it held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        yield
    held = peak = 0
    results = profiler.profiler.kineto_results
    for event in sorted(results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    found.append(peak)


def peak(work: Callable[[], object]) -> int:
    work()  # gradients are there already
    found: list[int] = []
    with peak_bytes(found):
        work()
    return found[0]


@SHAPES
def test_peak_memory(
    policy: PolicyLogprobs,
    plain: PreTrainedModel,
    folder: Path,
    shape: Shape,
    capsys: pytest.CaptureFixture[str],
) -> None:
    group = make_group(policy, folder, shape)
    packed = peak(lambda: step(policy, group, "group"))
    for against, work in (
        ("plain causal batch [8, P + C - 1], no padding", lambda: batched_step(plain, group)),
        ("packing: none (8 rows, one after another)", lambda: step(policy, group, "none")),
    ):
        other = peak(work)
        report_memory(capsys, packed, other, against, f"{shape}, whole step")


def test_peak_memory_of_logits(capsys: pytest.CaptureFixture[str]) -> None:
    tokens, width, vocabulary = 1024, 128, 151_936
    draw = torch.Generator().manual_seed(0)
    head = LogprobHead(width, vocabulary, bias=False)
    hidden = torch.randn(tokens, width, generator=draw, requires_grad=True)
    targets = torch.randint(vocabulary, (tokens,), generator=draw)

    def whole() -> None:
        F.cross_entropy(F.linear(hidden, head.weight), targets).backward()

    chunked = peak(lambda: head(hidden, targets, 1.0)[0].mean().backward())
    shape = f"output layer alone: {tokens} completion tokens, vocabulary {vocabulary}, chunks of {head.chunk}"
    report_memory(capsys, chunked, peak(whole), "cross entropy of logits [T, V]", shape)


def report_memory(
    capsys: pytest.CaptureFixture[str], ours: int, other: int, against: str, shape: str
) -> None:
    report(
        capsys,
        name="learner/peak_memory_ratio",
        value=round(ours / 2**20, 1),
        unit="MiB",
        ratio=round(other / ours, 2),
        against=against,
        shape=shape,
        cores=1,
        repeats=1,
        spread=0,
    )
