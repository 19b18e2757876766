"""Packed learning against per-sample learning at the shapes of Qwen2.5-VL-3B and 7B, with random weights. One JSON object a line.

    python -m tests.benchmarks.gpu_learner 3b:2048:256 7b:8192:512

One GPU, bfloat16, gradient checkpointing unless switched off; forward and backward of one group, without the optimizer.
A shape `tiny:P:C` runs on CPU, only to see that the script works.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from videostr.config.sections import LossConfig
from videostr.grpo.batch import Group, PromptInputs, Row, build_row, plan_rows
from videostr.grpo.logprobs import PolicyLogprobs
from videostr.grpo.loss import count, policy_loss
from videostr.models.mrope import mrope_positions
from videostr.models.qwen2_5_vl import FAMILY

Packing = Literal["group", "none"]
VIDEO_TOKEN = 151_656
MERGE = 2
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "B200": 2250e12}
"""Dense bfloat16, as their data sheets say."""


@dataclass(frozen=True)
class Size:
    """Dimensions of Qwen2.5-VL."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    vision_hidden: int
    vision_intermediate: int
    vision_depth: int
    mrope: tuple[int, int, int]


SIZES = {
    "tiny": Size(128, 384, 3, 4, 2, 151_936, 64, 192, 2, (4, 6, 6)),
    "3b": Size(2048, 11008, 36, 16, 2, 151_936, 1280, 3420, 32, (16, 24, 24)),
    "7b": Size(3584, 18944, 28, 28, 4, 152_064, 1280, 3420, 32, (16, 24, 24)),
}


def make_policy(size: Size, device: torch.device, checkpointing: bool) -> PolicyLogprobs:
    """Random weights in bfloat16, made on the device."""
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": size.vocabulary,
            "hidden_size": size.hidden,
            "intermediate_size": size.intermediate,
            "num_hidden_layers": size.layers,
            "num_attention_heads": size.heads,
            "num_key_value_heads": size.kv_heads,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": list(size.mrope),
            },
            "tie_word_embeddings": False,
        },
        vision_config={
            "depth": size.vision_depth,
            "hidden_size": size.vision_hidden,
            "intermediate_size": size.vision_intermediate,
            "num_heads": 16,
            "out_hidden_size": size.hidden,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "tokens_per_second": 2,
        },
        video_token_id=VIDEO_TOKEN,
        tie_word_embeddings=False,
    )
    config._attn_implementation = "sdpa"
    torch.set_default_dtype(torch.bfloat16)
    with device:
        policy = Qwen2_5_VLForConditionalGeneration(config)
    torch.set_default_dtype(torch.float32)
    policy.train()
    if checkpointing:
        policy.gradient_checkpointing_enable({"use_reentrant": False})
        policy.enable_input_require_grads()
    return PolicyLogprobs(policy, FAMILY, attention="flex" if device.type == "cuda" else "sdpa")


def make_group(policy: PolicyLogprobs, prompt: int, completion: int, group_size: int) -> Group:
    """A prompt that is seven eighths video, and equally long completions."""
    vision = policy.policy.config.vision_config
    frames, side = max(1, prompt * 7 // 8 // 144), 24  # 12 x 12 tokens of a pair of frames
    video = frames * (side // MERGE) ** 2
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(10, 100_000, (prompt,), generator=draw)
    ids[4 : 4 + video] = VIDEO_TOKEN
    values = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    return Group(
        prompt=PromptInputs(
            input_ids=ids,
            positions=mrope_positions(
                (ids == VIDEO_TOKEN).long().tolist(), [(frames, side, side)], [2.0], MERGE
            ),
            vision={
                "pixel_values_videos": torch.randn(frames * side * side, values, generator=draw),
                "video_grid_thw": torch.tensor([[frames, side, side]]),
            },
            temporal_patches=frames,
        ),
        completions=tuple(
            torch.randint(10, 100_000, (completion,), generator=draw) for _ in range(group_size)
        ),
        behaviour_logprobs=tuple(torch.full((completion,), -12.0) for _ in range(group_size)),
        advantages=torch.linspace(-1, 1, group_size),
    )


def make_rows(policy: PolicyLogprobs, group: Group, packing: Packing, device: torch.device) -> list[Row]:
    """All rows of the group on the device."""
    plan = plan_rows(
        [len(group.prompt.input_ids)],
        [[len(c) for c in group.completions]],
        max_row_tokens=10**6,
        packing=packing,
    )
    return [build_row(row, {0: group}).to(device) for row in plan]


def step(policy: PolicyLogprobs, group: Group, rows: list[Row]) -> None:
    """Forward and backward of the group."""
    policy.zero_grad()
    counts = count([[len(c) for c in group.completions]])
    for row in rows:
        logprobs, entropy = policy(row, 1.0)
        loss, _ = policy_loss(row, logprobs, entropy, LossConfig(), counts)
        loss.backward()


def difference(policy: PolicyLogprobs, rows: dict[Packing, list[Row]]) -> float:
    """Largest difference of a log-probability between the two packings."""
    found = []
    with torch.no_grad():
        for packing in rows.values():
            parts: dict[tuple[int, int], torch.Tensor] = {}
            for row in packing:
                logprobs, _ = policy(row, 1.0)
                parts.update(
                    zip(row.origins, logprobs.split(row.sequence_ids.bincount().tolist()), strict=True)
                )
            found.append(torch.cat([parts[origin] for origin in sorted(parts)]))
    return float((found[0] - found[1]).abs().max())


def kernels(work: Callable[[], None], rows: int = 8) -> list[str]:
    """Where a GPU's time goes: share of kinds of kernels, and the kernels that take the most."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CUDA], acc_events=True
    ) as profile:
        work()
        torch.cuda.synchronize()
    found = sorted(profile.key_averages(), key=lambda kernel: -kernel.self_device_time_total)
    total = sum(kernel.self_device_time_total for kernel in found)
    kinds: Counter[str] = Counter()
    for kernel in found:
        kinds[kind_of(kernel.key)] += kernel.self_device_time_total
    return [
        *(f"{time / total:6.1%} {kind}" for kind, time in kinds.most_common()),
        *(f"{k.self_device_time_total / total:6.1%} {k.count:6d} {k.key[:110]}" for k in found[:rows]),
        f"{total / 1e6:.3f} s of {sum(kernel.count for kernel in found)} kernels",
    ]


KINDS = {
    "attention": ("flex_attention", "flash", "fmha"),
    "matrix products, unaligned": ("align1", "align2", "align4"),
    "matrix products": ("gemm", "nvjet", "cutlass", "splitK"),
    "norms": ("norm",),
    "gather and scatter": ("index", "gather", "scatter", "embedding"),
    "copies": ("copy", "Memcpy", "Memset", "fill", "CatArray"),
    "elementwise": ("elementwise", "triton_poi"),
    "reductions": ("reduce", "softmax"),
}


def kind_of(kernel: str) -> str:
    """The first kind that has a word in a kernel's name."""
    return next((kind for kind, words in KINDS.items() if any(word in kernel for word in words)), "others")


def measure(work: Callable[[], None], device: torch.device, repeats: int) -> tuple[list[float], float]:
    """Seconds of every repeat, and the most GiB that were allocated (0 on CPU)."""
    on_gpu = device.type == "cuda"
    seconds = []
    for turn in range(repeats + 1):
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
            torch.cuda.synchronize()
        started = time.perf_counter()
        work()
        if on_gpu:
            torch.cuda.synchronize()
        if turn > 0:
            seconds.append(time.perf_counter() - started)
    return seconds, torch.cuda.max_memory_allocated() / 2**30 if on_gpu else 0.0


def visible_pairs(row: Row) -> int:
    """Pairs of a token and one that it attends to."""
    pairs = 0
    for prompt in row.prompt_ids.unique():
        parts = row.completion_ids[row.prompt_ids == prompt].bincount().tolist()
        shared = parts[0]
        pairs += sum(n * (n + 1) // 2 for n in parts) + shared * sum(parts[1:])
    return pairs


def model_flops(policy: PolicyLogprobs, rows: list[Row]) -> float:
    """Of forward and backward: three times the forward pass, recomputation and the tower's attention not counted."""
    model = policy.policy
    text = model.config.text_config
    layers, tower = (
        sum(p.numel() for p in part.parameters())
        for part in (model.model.language_model.layers, model.model.visual)
    )
    forward = 0
    for row in rows:
        forward += 2 * layers * len(row.input_ids) + 2 * tower * len(row.vision["pixel_values_videos"])
        forward += 4 * text.hidden_size * text.num_hidden_layers * visible_pairs(row)
        forward += 2 * model.lm_head.weight.numel() * len(row.targets)
    return 3.0 * forward


def run(shape: str, options: argparse.Namespace) -> None:
    """Measure one shape and print a line for each packing."""
    size, prompt, completion = shape.split(":")
    device = torch.device("cpu" if size == "tiny" else "cuda")
    name = "cpu" if device.type == "cpu" else torch.cuda.get_device_name()
    checkpointing = not options.no_checkpointing
    policy = make_policy(SIZES[size], device, checkpointing)
    group = make_group(policy, int(prompt), int(completion), options.group_size)
    packings: tuple[Packing, ...] = ("group", "none")
    rows = {packing: make_rows(policy, group, packing, device) for packing in packings}
    apart = difference(policy, rows)
    found = {}
    for packing in packings:
        work = partial(step, policy, group, rows[packing])
        found[packing] = measure(work, device, options.repeats)
        if options.profile and packing == "group":
            print(f"{shape} {packing}", *kernels(work), sep="\n", flush=True)  # noqa: T201
    peak = next((value for key, value in PEAK_FLOPS.items() if key in name), None)
    for packing in packings:
        seconds, memory = found[packing]
        median = statistics.median(seconds)
        line = {
            "name": f"learner/gpu_step/{packing}",
            "value": round(median, 4),
            "unit": "s/group",
            "ratio": round(statistics.median(found["none"][0]) / median, 3),
            "against": "packing: none",
            "shape": f"Qwen2.5-VL {size}, P {prompt}, C {completion}, G {options.group_size}",
            "gradient_checkpointing": checkpointing,
            "peak_gib": round(memory, 2),
            "mfu": peak and round(model_flops(policy, rows[packing]) / median / peak, 3),
            "largest_logprob_difference": round(apart, 4),
            "gpu": name,
            "repeats": options.repeats,
            "spread": round((max(seconds) - min(seconds)) / median, 3),
        }
        print(json.dumps(line), flush=True)  # noqa: T201


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "shapes", nargs="+", help="SIZE:P:C, tokens of the prompt (seven eighths video) and of a completion"
    )
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-checkpointing", action="store_true", help="keep all activations")
    parser.add_argument("--profile", action="store_true", help="name the kernels that take the most time")
    options = parser.parse_args()
    for shape in options.shapes:
        run(shape, options)


if __name__ == "__main__":
    main()
