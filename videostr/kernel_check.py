"""The learner's computation on one device: attention kernels against a dense mask, and the speed of a packed row.

In: a device. Out: a `Finding` for each thing that was compared.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForImageTextToText

from videostr.grpo.attention import Kernel, row_attention
from videostr.grpo.batch import Group, PromptInputs, Row, build_row, plan_rows
from videostr.grpo.logprobs import PolicyLogprobs
from videostr.models.base import family_of, read_config
from videostr.models.layers import compile_layers
from videostr.preflight.findings import Finding, fail, ok, warn

PEAK_FLOPS = {
    "A100": 312e12,
    "H100": 989e12,
    "H200": 989e12,
    "H800": 989e12,
    "L40S": 362e12,
    "B200": 2250e12,
}
"""Dense bfloat16 of a GPU whose name contains this, floating-point operations a second, as data sheets say."""
EXPECTED_MFU = 0.2
"""Three passes counted, of a few layers of a 7B model; whole models reach 0.23 to 0.35 on an H200 (docs/performance.md)."""
ATTENTION_LIMIT = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
"""Relative difference of outputs and of gradients from a dense mask that passes."""
COMPILED_LIMITS = {torch.float32: 1e-5, torch.bfloat16: 0.25}
"""Difference of log-probabilities, nats, that compiled layers may make; rounding to bfloat16 makes 0.1 to 0.2 in a 7B."""
SPEED_LAYERS = 4
COMPLETIONS = 8


def kernel_of(device: torch.device) -> Kernel:
    """Return the kernel of learner ranks there."""
    return "flex" if device.type == "cuda" else "sdpa"


# ---------------------------------------------------------------------------------------------------- attention


def check_attention(device: torch.device) -> Iterator[Finding]:
    """Compare the kernel of learner ranks with a dense mask, forward and backward."""
    rows = {"two groups": [(700, [90, 10, 300]), (400, [128, 800])], "short": [(100, [28])]}
    heads = {"four queries a key": (16, 4), "seven queries a key": (14, 2)}
    for dtype in (torch.float32, torch.bfloat16) if device.type == "cuda" else (torch.float32,):
        worst = max(
            _attention_difference(row, *shape, kernel_of(device), device, dtype)
            for row in rows.values()
            for shape in heads.values()
        )
        name, limit = f"attention, {str(dtype).removeprefix('torch.')}", ATTENTION_LIMIT[dtype]
        found = (
            f"{kernel_of(device)} against a dense mask: relative difference {worst:.1e}, {limit:.0e} allowed"
        )
        if worst <= limit:
            yield ok(name, found)
        else:
            yield fail(name, found, "set learner.attention=sdpa, and report it")


def _attention_difference(
    row: Sequence[tuple[int, Sequence[int]]],
    heads: int,
    key_heads: int,
    kernel: Kernel,
    device: torch.device,
    dtype: torch.dtype,
    size: int = 64,
) -> float:
    """Return the largest relative difference of output and gradients from a dense mask computed in float32."""
    prompt_ids, completion_ids = _ids(row, device)
    draw = torch.Generator().manual_seed(0)
    shapes = [(1, count, len(prompt_ids), size) for count in (heads, key_heads, key_heads)]
    inputs = [torch.randn(shape, generator=draw).to(device, dtype).requires_grad_() for shape in shapes]
    exact = [tensor.detach().float().requires_grad_() for tensor in inputs]
    shared = (completion_ids == 0) | (completion_ids[:, None] == completion_ids)
    mask = ((prompt_ids[:, None] == prompt_ids) & shared).tril()
    repeats = heads // key_heads

    def dense(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        key, value = (x.repeat_interleave(repeats, dim=1) for x in (key, value))
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)

    query, key, value = inputs
    ours = row_attention(prompt_ids, completion_ids, kernel).attend(query, key, value, size**-0.5)
    wanted = dense(*exact)
    weights = torch.randn(wanted.shape, generator=draw).to(device)
    found = [ours, *torch.autograd.grad((ours.float() * weights).sum(), inputs)]
    expected = [wanted, *torch.autograd.grad((wanted * weights).sum(), exact)]
    return max(
        float((a.detach().float() - b.detach()).norm() / b.detach().norm().clamp_min(1e-6))
        for a, b in zip(found, expected, strict=True)
    )


def _ids(row: Sequence[tuple[int, Sequence[int]]], device: torch.device) -> tuple[Tensor, Tensor]:
    prompts, completions = [], []
    for number, (prompt, lengths) in enumerate(row):
        for completion, length in enumerate((prompt, *lengths)):
            prompts += [number] * length
            completions += [completion] * length
    return torch.tensor(prompts, device=device), torch.tensor(completions, device=device)


# --------------------------------------------------------------------------------------------------------- speed


def check_speed(device: torch.device, policy: str) -> Iterator[Finding]:
    """Measure forward and backward of a packed row through a few layers of a 7B model; on CPU of `policy`, a checkpoint."""
    on_gpu, family = device.type == "cuda", family_of(policy)
    config = speed_config(policy, on_gpu=on_gpu)
    prompt, length = (8192, 512) if on_gpu else (256, 32)
    torch.set_default_dtype(torch.bfloat16 if on_gpu else torch.float32)
    try:
        with device:
            model = AutoModelForImageTextToText.from_config(config)
    finally:
        torch.set_default_dtype(torch.float32)
    row = _text_row(config.get_text_config().vocab_size, prompt, length).to(device)
    learner = PolicyLogprobs(model, family, attention=kernel_of(device))
    seconds = _passes(learner, row, on_gpu=on_gpu)
    work = family.row_cost(config, freeze_vision=True).segment(prompt, [length] * COMPLETIONS, 0)
    found = f"a row of {len(row.input_ids)} tokens in {seconds:.3g} s, {work / seconds / 1e12:.3g} TFLOP/s"
    gpu = torch.cuda.get_device_name() if on_gpu else ""
    peak = next((flops for name, flops in PEAK_FLOPS.items() if name in gpu), None)
    if peak is None:
        yield ok("speed", f"{found}; nothing is known of {gpu or 'this CPU'} to compare with")
    elif work / seconds / peak >= EXPECTED_MFU:
        yield ok("speed", f"{found}, MFU {work / seconds / peak:.2f}, {EXPECTED_MFU} expected at least")
    else:
        yield warn(
            "speed",
            f"{found}, MFU {work / seconds / peak:.2f}, {EXPECTED_MFU} expected at least",
            "look at nvidia-smi for other processes, clocks and power limits",
        )
    yield from _compiled(learner, row, seconds, on_gpu=on_gpu)


def _compiled(learner: PolicyLogprobs, row: Row, plain_s: float, *, on_gpu: bool) -> Iterator[Finding]:
    """Compile the layers and measure again; log-probabilities must stay what rounding makes of them."""
    with torch.no_grad():
        plain, _ = learner(row, 1.0)
        compile_layers(learner)
        compiled, _ = learner(row, 1.0)
    worst = float((plain - compiled).abs().max())
    seconds = _passes(learner, row, on_gpu=on_gpu)
    limit = COMPILED_LIMITS[next(learner.parameters()).dtype]
    found = (
        f"the same row in {seconds:.3g} s, {plain_s / seconds:.2f} times as fast; log-probabilities differ by {worst:.1e} nats "
        f"at most, {limit:.0e} allowed"
    )
    if worst > limit:
        yield fail("compiled layers", found, "keep learner.kernels=plain, and report it")
    elif seconds < plain_s:
        yield ok("compiled layers", f"{found}: learner.kernels=compiled pays here")
    else:
        yield ok("compiled layers", f"{found}: keep learner.kernels=plain")


def speed_config(policy: str, *, on_gpu: bool) -> Any:
    """Return the configuration whose speed is measured; raises `ModelError` where there is no such checkpoint."""
    family = family_of(policy)
    if not on_gpu:
        return family.config_of(read_config(policy), policy)
    name = next(name for name in family.published if name.endswith("-7B"))
    config = family.config_of(family.published[name], name)
    config.text_config.num_hidden_layers = config.vision_config.depth = SPEED_LAYERS
    config._attn_implementation = "sdpa"
    return config


def _text_row(vocabulary: int, prompt: int, length: int) -> Row:
    """Return a packed row of one prompt of text and its completions, all of random tokens."""
    draw = torch.Generator().manual_seed(0)
    completions = tuple(torch.randint(10, vocabulary, (length,), generator=draw) for _ in range(COMPLETIONS))
    group = Group(
        prompt=PromptInputs(
            input_ids=torch.randint(10, vocabulary, (prompt,), generator=draw),
            positions=torch.arange(prompt).expand(3, -1),
            vision={},
            temporal_patches=0,
        ),
        completions=completions,
        behaviour_logprobs=tuple(torch.full((length,), -12.0) for _ in completions),
        advantages=torch.linspace(-1, 1, len(completions)),
    )
    (plan,) = plan_rows([prompt], [[length] * len(completions)], max_row_tokens=10**6)
    return build_row(plan, {0: group})


def _passes(policy: PolicyLogprobs, row: Row, *, on_gpu: bool) -> float:
    """Return the median seconds of a forward and a backward pass; the first two, which compile kernels, are left out."""
    seconds = []
    for turn in range(5):
        if on_gpu:
            torch.cuda.synchronize()
        started = time.perf_counter()
        policy.zero_grad()
        logprobs, _ = policy(row, 1.0)
        logprobs.mean().backward()
        if on_gpu:
            torch.cuda.synchronize()
        if turn > 1:
            seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)
