"""Packed learning against other batches of the same group, at the shapes of published models. One JSON object a line.

    python -m tests.benchmarks.gpu_learner Qwen2.5-VL-7B:8192:256 Qwen3-VL-8B:2048:256 Qwen3.5-9B:2048:256 --kernels compiled

Random weights, one GPU, bfloat16, gradient checkpointing unless switched off; forward and backward of one group, without the
optimizer. Bases: `padding_free`, one batch without padding in which every completion has the prompt and its video again, with the
same kernels; `none`, one completion after another. Prompts are seven eighths video; of all families but Qwen2.5-VL they are text.
A shape `tiny:P:C` runs on CPU, only to see that the script works.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, get_args

import torch
from transformers import AutoModelForImageTextToText

from videostr.config.sections import LossConfig
from videostr.grpo.batch import Group, PromptInputs, Row, build_row, plan_rows
from videostr.grpo.logprobs import PolicyLogprobs
from videostr.grpo.loss import count, policy_loss
from videostr.kernel_check import PEAK_FLOPS
from videostr.models.base import families
from videostr.models.layers import compile_layers
from videostr.models.mrope import mrope_positions
from videostr.models.qwen2_5_vl import FAMILY
from videostr.models.qwen_vl import text_sizes

Packing = Literal["group", "padding_free", "none"]
MERGE = 2
TINY = {
    "video_token_id": 999,
    "image_token_id": 998,
    "text_config": text_sizes(128, 384, 3, 4, 2, 1000)
    | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]}},
    "vision_config": {
        "depth": 2,
        "hidden_size": 64,
        "intermediate_size": 192,
        "out_hidden_size": 128,
        "num_heads": 4,
    },
}


def make_policy(name: str, device: torch.device, options: argparse.Namespace) -> PolicyLogprobs:
    """Random weights in bfloat16, made on the device."""
    family = next((each for each in families() if name in each.published), FAMILY)
    config = family.config_of(family.published.get(name, TINY), name)
    config._attn_implementation = "sdpa"
    torch.set_default_dtype(torch.bfloat16)
    with device:
        policy: Any = AutoModelForImageTextToText.from_config(config)
    torch.set_default_dtype(torch.float32)
    policy.train()
    if not options.no_checkpointing:
        policy.gradient_checkpointing_enable({"use_reentrant": False})
        policy.enable_input_require_grads()
    if options.kernels == "compiled":
        compile_layers(policy)
    return PolicyLogprobs(policy, family, attention="flex" if device.type == "cuda" else "sdpa")


def make_group(policy: PolicyLogprobs, prompt: int, completion: int, group_size: int) -> Group:
    """A prompt, of Qwen2.5-VL seven eighths video, and equally long completions."""
    config = policy.policy.config
    draw, words = torch.Generator().manual_seed(0), min(100_000, config.text_config.vocab_size - 10)
    ids = torch.randint(10, words, (prompt,), generator=draw)
    positions, vision, frames = torch.arange(prompt).expand(3, -1), {}, 0
    if policy.family is FAMILY:
        frames, side = max(1, prompt * 7 // 8 // 144), 24  # 12 x 12 tokens of a pair of frames
        ids[4 : 4 + frames * (side // MERGE) ** 2] = config.video_token_id
        is_video = (ids == config.video_token_id).long().tolist()
        positions = mrope_positions(is_video, [(frames, side, side)], [2.0], MERGE)
        values = config.vision_config.in_channels * config.vision_config.temporal_patch_size
        values *= config.vision_config.patch_size**2
        vision = {
            "pixel_values_videos": torch.randn(frames * side * side, values, generator=draw),
            "video_grid_thw": torch.tensor([[frames, side, side]]),
        }
    return Group(
        prompt=PromptInputs(input_ids=ids, positions=positions, vision=vision, temporal_patches=frames),
        completions=tuple(torch.randint(10, words, (completion,), generator=draw) for _ in range(group_size)),
        behaviour_logprobs=tuple(torch.full((completion,), -12.0) for _ in range(group_size)),
        advantages=torch.linspace(-1, 1, group_size),
    )


def make_rows(group: Group, packing: Packing, device: torch.device) -> list[Row]:
    """All rows of the group on the device."""
    size = len(group.completions)
    groups = {0: group}
    if packing == "padding_free":
        groups = {
            i: Group(
                prompt=group.prompt,
                completions=(group.completions[i],),
                behaviour_logprobs=(group.behaviour_logprobs[i],),
                advantages=group.advantages[i : i + 1],
            )
            for i in range(size)
        }
    plan = plan_rows(
        [len(each.prompt.input_ids) for each in groups.values()],
        [[len(c) for c in each.completions] for each in groups.values()],
        max_row_tokens=10**6,
        packing="none" if packing == "none" else "group",
    )
    return [build_row(row, groups).to(device) for row in plan]


def step(policy: PolicyLogprobs, group: Group, rows: list[Row]) -> None:
    """Forward and backward of the group."""
    policy.zero_grad()
    counts = count([[len(c) for c in group.completions]])
    for row in rows:
        logprobs, entropy = policy(row, 1.0)
        loss, _ = policy_loss(row, logprobs, entropy, LossConfig(), counts)
        loss.backward()


def difference(policy: PolicyLogprobs, rows: Mapping[Packing, Sequence[Row]]) -> float:
    """Largest difference of a log-probability between two packings."""
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
    return max(float((each - found[0]).abs().max()) for each in found)


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
        forward += 2 * layers * len(row.input_ids) + 2 * tower * len(
            row.vision.get("pixel_values_videos", ())
        )
        forward += 4 * text.hidden_size * text.num_hidden_layers * visible_pairs(row)
        forward += 2 * model.lm_head.weight.numel() * len(row.targets)
    return 3.0 * forward


def run(shape: str, options: argparse.Namespace) -> None:
    """Measure one shape and print a line for each packing."""
    size, prompt, completion = shape.split(":")
    device = torch.device("cpu" if size == "tiny" else "cuda")
    name = "cpu" if device.type == "cpu" else torch.cuda.get_device_name()
    policy = make_policy(size, device, options)
    group = make_group(policy, int(prompt), int(completion), options.group_size)
    rows = {packing: make_rows(group, packing, device) for packing in get_args(Packing)}
    apart = difference(policy, rows)
    found = {}
    for packing in rows:
        work = partial(step, policy, group, rows[packing])
        found[packing] = measure(work, device, options.repeats)
        if options.profile and packing == "group":
            print(f"{shape} {packing}", *kernels(work), sep="\n", flush=True)  # noqa: T201
    peak = next((value for key, value in PEAK_FLOPS.items() if key in name), None)
    for packing, (seconds, memory) in found.items():
        median = statistics.median(seconds)
        mfu = peak and model_flops(policy, rows[packing]) / median / peak
        line = {
            "name": f"learner/gpu_step/{packing}",
            "value": round(median, 4),
            "unit": "s/group",
            "ratio": round(median / statistics.median(found["group"][0]), 3),
            "against": "the packed group",
            "shape": f"{size}, P {prompt}, C {completion}, G {options.group_size}",
            "kernels": options.kernels,
            "gradient_checkpointing": not options.no_checkpointing,
            "peak_gib": round(memory, 2),
            "mfu": mfu and round(mfu, 3),
            "mfu_with_recomputation": mfu and round(mfu * (1 if options.no_checkpointing else 4 / 3), 3),
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
        "shapes", nargs="+", help="MODEL:P:C, a published name, tokens of the prompt and of a completion"
    )
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-checkpointing", action="store_true", help="keep all activations")
    parser.add_argument("--kernels", choices=["plain", "compiled"], default="plain", help="learner.kernels")
    parser.add_argument("--profile", action="store_true", help="name the kernels that take the most time")
    options = parser.parse_args()
    for shape in options.shapes:
        run(shape, options)


if __name__ == "__main__":
    main()
