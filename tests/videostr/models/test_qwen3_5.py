"""What is special to Qwen3.5: recurrent layers in packed rows, sizes, what is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.qwen3_5 import modeling_qwen3_5

from tests.videostr.models.plain import plain_inputs
from videostr.grpo.batch import Group, build_row, plan_rows
from videostr.grpo.logprobs import PolicyLogprobs
from videostr.grpo.recurrence import RowForks
from videostr.models.base import ModelFamily
from videostr.types import Prompt
from videostr.video import ClipFrames

MakePrompt = Callable[[str, int, float], tuple[Prompt, ClipFrames]]
MakeGroup = Callable[..., Group]
Found = tuple[dict[tuple[int, int], Tensor], dict[str, Tensor]]
SHAPES = [((9, 1, 70), 4, 4.0), ((3, 3, 12), 8, 1.0), ((90, 2), 2, 0.25)]
"""Lengths of completions, frames and frame rate of each group; chunks of the delta rule have 64 tokens."""
alone = pytest.mark.parametrize("family", ["qwen3_5"], indirect=True)


@pytest.fixture
def doubled(policy: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The policy in float64, through and through, with recurrent layers that forget slowly; transformers computes parts in float32."""
    double = SimpleNamespace(**{**vars(torch), "float32": torch.float64, "float": torch.float64})
    monkeypatch.setattr(modeling_qwen3_5, "torch", double)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    found = deepcopy(policy).double()
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in found.named_parameters():
            if name.endswith("A_log"):
                parameter.uniform_(-4.0, -3.0)
            elif "linear_attn" in name and parameter.ndim > 1:
                parameter.mul_(4.0)
            elif parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return found


def weights_of(group: int, completion: int, tokens: int) -> Tensor:
    """Of a loss that tells every token from every other."""
    return torch.randn(tokens, generator=torch.Generator().manual_seed(97 * group + completion)).double()


def learn_plain(
    policy: Any, family: ModelFamily, groups: Sequence[Group], shown: Sequence[Any], processor: Any
) -> Found:
    """Log-probabilities and gradients of transformers' own model, one prompt and completion at a time."""
    policy, logprobs = deepcopy(policy), {}
    for g, (group, (prompt, frames)) in enumerate(zip(groups, shown, strict=True)):
        for c, completion in enumerate(group.completions):
            inputs = plain_inputs(family, prompt, frames, processor, completion)
            inputs["pixel_values_videos"] = inputs["pixel_values_videos"].double()
            logits = policy(**inputs).logits[0, len(group.prompt.input_ids) - 1 : -1]
            found = torch.log_softmax(logits, -1).gather(1, completion[:, None])[:, 0]
            (found * weights_of(g, c, len(completion))).sum().backward()
            logprobs[g, c] = found.detach()
    return logprobs, {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}


def learn_rows(policy: Any, family: ModelFamily, groups: Sequence[Group], max_row_tokens: int) -> Found:
    """The same, in packed rows."""
    model, logprobs = PolicyLogprobs(policy, family), {}
    lengths = [[len(c) for c in group.completions] for group in groups]
    prompts = [len(group.prompt.input_ids) for group in groups]
    for plan in plan_rows(prompts, lengths, max_row_tokens=max_row_tokens):
        row = build_row(plan, dict(enumerate(groups)))
        found, _ = model(row, 1.0)
        weights = torch.cat([weights_of(g, c, lengths[g][c]) for g, c in row.origins])
        (found * weights).sum().backward()
        logprobs.update(
            zip(row.origins, found.detach().split(row.sequence_ids.bincount().tolist()), strict=True)
        )
    return logprobs, {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}


def largest_errors(found: Found, wanted: Found) -> tuple[float, float]:
    """Of log-probabilities, nats, and of gradients, in parts of the largest element of each."""
    assert found[0].keys() == wanted[0].keys()
    assert found[1].keys() == wanted[1].keys()
    logprobs = max(float((found[0][k] - wanted[0][k]).abs().max()) for k in wanted[0])
    gradients = [(found[1][k] - wanted[1][k]).abs().max() / wanted[1][k].abs().max() for k in wanted[1]]
    return logprobs, float(torch.stack(gradients).max())


@pytest.fixture
def groups(make_group: MakeGroup) -> list[Group]:
    return [
        make_group(seed, lengths, question="where? " * (seed + 1), num_frames=frames, fps=fps)
        for seed, (lengths, frames, fps) in enumerate(SHAPES)
    ]


@pytest.fixture
def shown(make_prompt: MakePrompt) -> list[tuple[Prompt, ClipFrames]]:
    return [
        make_prompt("where? " * (seed + 1), frames, fps) for seed, (_, frames, fps) in enumerate(SHAPES)
    ]


@alone
@pytest.mark.parametrize("checkpointing", [None, False, True], ids=["whole", "checkpoints", "reentrant"])
@pytest.mark.parametrize("max_row_tokens", [2000, 150])
def test_packed_rows_are_exact(
    family: ModelFamily,
    doubled: Any,
    groups: list[Group],
    shown: Any,
    processor: Any,
    max_row_tokens: int,
    checkpointing: bool | None,
) -> None:
    """Several groups a row, and groups that are split, in float64 against transformers' model."""
    plain = learn_plain(doubled, family, groups, shown, processor)
    if checkpointing is not None:
        doubled.train().gradient_checkpointing_enable({"use_reentrant": checkpointing})
    packed = learn_rows(doubled, family, groups, max_row_tokens)
    logprobs, gradients = largest_errors(packed, plain)
    print(logprobs, gradients)
    assert {"A_log", "dt_bias", "weight"} <= {name.rpartition(".")[2] for name in plain[1]}
    assert any("visual" in name for name in plain[1])
    assert logprobs < 1e-10
    assert gradients < 1e-6


@alone
def test_completions_go_on_from_the_state_of_their_prompt(
    family: ModelFamily, doubled: Any, groups: list[Group], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What would be lost if they did not: the other tests would see it."""
    right = learn_rows(deepcopy(doubled), family, groups, 2000)
    scan = RowForks.scan

    def of_another(forks: RowForks, recurrence: Any, *streams: Tensor) -> Tensor:
        swapped = RowForks(**{**{n: getattr(forks, n) for n in forks.__slots__}, "parents": forks.parents.flip(0)})
        return scan(swapped, recurrence, *streams)

    monkeypatch.setattr(RowForks, "scan", of_another)
    logprobs, gradients = largest_errors(learn_rows(doubled, family, groups, 2000), right)
    print(logprobs, gradients)
    assert logprobs > 1e-3
    assert gradients > 1e-2


# ------------------------------------------------------------------------------------- checks, sizes, and layout
