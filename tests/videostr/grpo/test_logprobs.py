from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from math import log
from typing import Literal

import pytest
import torch
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration

from videostr.config import LossConfig
from videostr.grpo.batch import Group, RopeGrid, build_row, plan_rows
from videostr.grpo.logprobs import LogprobHead, PolicyLogprobs
from videostr.grpo.loss import count, policy_loss

MakeGroup = Callable[..., Group]
GRID = RopeGrid(merge_size=2, tokens_per_second=2)


def test_head_by_hand() -> None:
    head = LogprobHead(1, 2, bias=False)
    head.weight = torch.nn.Parameter(torch.tensor([[log(3.0)], [0.0]]))
    hidden = torch.tensor([[1.0], [0.0]])
    # logits (log 3, 0): p = 3/4, 1/4; logits (0, 0): 1/2
    logprobs, entropy = head(hidden, torch.tensor([0, 1]), 1.0)
    assert logprobs.tolist() == pytest.approx([log(0.75), log(0.5)])
    assert entropy.tolist() == pytest.approx([-(0.75 * log(0.75) + 0.25 * log(0.25)), log(2)])
    # at temperature 1/2 the logits double: p = 9/10
    assert head(hidden, torch.tensor([0, 1]), 0.5)[0].tolist() == pytest.approx([log(0.9), log(0.5)])


def test_head_gradients_equal_those_of_whole_logits() -> None:
    torch.manual_seed(0)
    head = LogprobHead(6, 11, bias=False)
    head.chunk = 3
    hidden, targets, weights = torch.randn(8, 6), torch.randint(11, (8,)), torch.randn(8)
    ours = hidden.clone().requires_grad_()
    (head(ours, targets, 0.7)[0] * weights).sum().backward()
    plain, matrix = hidden.clone().requires_grad_(), head.weight.detach().clone().requires_grad_()
    logprobs = torch.log_softmax(plain @ matrix.T / 0.7, -1).gather(1, targets[:, None])[:, 0]
    (logprobs * weights).sum().backward()
    torch.testing.assert_close(ours.grad, plain.grad, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(head.weight.grad, matrix.grad, rtol=1e-5, atol=1e-6)


def test_row_equals_the_plain_forward_of_prompt_and_completion(
    policy: Qwen2_5_VLForConditionalGeneration, make_group: MakeGroup
) -> None:
    group = make_group(seed=1, lengths=(7, 4))
    temperature = 0.8
    expected = []
    for completion in group.completions:
        ids = torch.cat([group.prompt.input_ids, completion])
        kinds = torch.cat([group.prompt.mm_token_type_ids, torch.zeros_like(completion)])
        with torch.no_grad():
            logits = policy(
                input_ids=ids[None],
                mm_token_type_ids=kinds[None],
                pixel_values_videos=group.prompt.pixel_values_videos,
                video_grid_thw=group.prompt.video_grid_thw,
                second_per_grid_ts=group.prompt.second_per_grid_ts,
            ).logits[0]
        # the logits at token t - 1 predict token t
        log_p = torch.log_softmax(logits[len(group.prompt.input_ids) - 1 : -1] / temperature, -1)
        expected.append(log_p.gather(1, completion[:, None])[:, 0])
    (plan,) = plan_rows([len(group.prompt.input_ids)], [[7, 4]], max_row_tokens=500)
    row = build_row(plan, {0: group}, GRID)
    with torch.no_grad():
        ours, _ = PolicyLogprobs(deepcopy(policy))(**row.model_inputs(), temperature=temperature)
    torch.testing.assert_close(ours, torch.cat(expected), atol=1e-5, rtol=0)


def learn(
    policy: Qwen2_5_VLForConditionalGeneration,
    groups: Sequence[Group],
    max_row_tokens: int,
    packing: Literal["group", "none"],
) -> tuple[float, dict[tuple[int, int], Tensor], dict[str, Tensor], int]:
    """Global loss, log-probabilities by sequence, gradients by parameter, number of rows."""
    model = PolicyLogprobs(deepcopy(policy))
    lengths = [[len(c) for c in group.completions] for group in groups]
    prompts = [len(group.prompt.input_ids) for group in groups]
    rows = plan_rows(prompts, lengths, max_row_tokens=max_row_tokens, packing=packing)
    logprobs, total = {}, 0.0
    for plan in rows:
        row = build_row(plan, dict(enumerate(groups)), GRID)
        found, entropy = model(**row.model_inputs(), temperature=1.0)
        loss, sums = policy_loss(row, found, entropy, LossConfig(aggregation="sequence"), count(lengths))
        loss.backward()
        total += sums.loss
        parts = found.detach().split(row.sequence_ids.bincount().tolist())
        logprobs.update(zip(row.origins, parts, strict=True))
    gradients = {name: p.grad for name, p in model.policy.named_parameters() if p.grad is not None}
    return total, logprobs, gradients, len(rows)


@pytest.mark.parametrize(
    ("shapes", "max_row_tokens", "rows"),
    [
        ([((9, 1, 17, 5), 4, 4.0)], 500, 1),
        ([((9, 1, 17, 5), 4, 4.0)], 60, 2),  # split: the prompt is repeated
        ([((6, 8), 4, 4.0), ((3, 3, 12), 8, 1.0), ((20, 2), 2, 0.25)], 1000, 1),  # shared row, three videos
        ([((6, 8), 4, 4.0), ((3, 30, 12), 8, 1.0), ((20, 2, 1), 2, 0.25)], 110, 2),  # two share, one alone
    ],
)
def test_packed_equals_per_sample(
    policy: Qwen2_5_VLForConditionalGeneration,
    make_group: MakeGroup,
    shapes: list[tuple[tuple[int, ...], int, float]],
    max_row_tokens: int,
    rows: int,
) -> None:
    groups = [
        make_group(seed, lengths, question="where? " * (seed + 1), num_frames=frames, fps=fps)
        for seed, (lengths, frames, fps) in enumerate(shapes)
    ]
    loss, logprobs, gradients, num_rows = learn(policy, groups, max_row_tokens, "group")
    expected_loss, expected_logprobs, expected_gradients, samples = learn(policy, groups, 1, "none")
    assert num_rows == rows
    assert samples == sum(len(group.completions) for group in groups)
    assert loss == pytest.approx(expected_loss, abs=1e-5)
    for origin, expected in expected_logprobs.items():
        torch.testing.assert_close(logprobs[origin], expected, atol=1e-5, rtol=0)
    assert gradients.keys() == expected_gradients.keys()
    assert any("visual" in name for name in gradients)
    for name, expected in expected_gradients.items():
        error = float((gradients[name] - expected).norm() / expected.norm().clamp_min(1e-6))
        assert error < 1e-4, f"{name}: {error}"
