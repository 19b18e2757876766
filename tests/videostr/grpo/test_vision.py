"""Features of a frozen tower: equal to those of the plain path, computed once, bounded in memory."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from videostr.grpo.batch import Group, RopeGrid, build_row, plan_rows
from videostr.grpo.logprobs import PolicyLogprobs
from videostr.grpo.vision import VisionFeatures
from videostr.prompt import PromptInputs

MakeInputs = Callable[[str, int, float], PromptInputs]
GRID = RopeGrid(merge_size=2, tokens_per_second=2)


def test_features_in_place_of_pixels_change_nothing(
    policy: Qwen2_5_VLForConditionalGeneration, make_group: Callable[..., Group]
) -> None:
    frozen = deepcopy(policy)
    frozen.model.visual.requires_grad_(False)
    groups = {0: make_group(0, (7, 4)), 1: make_group(1, (5, 9, 1), num_frames=8)}
    lengths = [[len(c) for c in group.completions] for group in groups.values()]
    prompts = [len(group.prompt.input_ids) for group in groups.values()]
    (plan,) = plan_rows(prompts, lengths, max_row_tokens=1000)
    features = VisionFeatures(frozen.model.visual, 0)
    encoded = {
        index: replace(
            group,
            prompt=replace(group.prompt, pixel_values_videos=group.prompt.pixel_values_videos[:0]),
            video_features=features.of(str(index), group.prompt),
        )
        for index, group in groups.items()
    }
    with_pixels, with_features = PolicyLogprobs(frozen), PolicyLogprobs(deepcopy(frozen))
    with_features.policy.model.visual = None
    row = build_row(plan, groups, GRID)
    expected, _ = with_pixels(**row.model_inputs(), temperature=1.0)
    row = build_row(plan, encoded, GRID)
    assert row.pixel_values_videos.numel() == 0
    found, _ = with_features(**row.model_inputs(), temperature=1.0)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    expected.square().sum().backward()
    found.square().sum().backward()
    gradients = {name: p.grad for name, p in with_pixels.named_parameters() if p.grad is not None}
    assert gradients.keys() == {name for name, _ in with_features.named_parameters()}
    for name, parameter in with_features.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-5, rtol=1e-5)


def test_clips_are_computed_once_and_the_least_recently_used_go(
    policy: Qwen2_5_VLForConditionalGeneration, make_inputs: MakeInputs
) -> None:
    # 4 frames of 32 x 48 are 2 x 2 x 3 tokens of 128 float32: 6144 bytes
    prompt, size = make_inputs("where?", 4, 4.0), 6144
    features = VisionFeatures(policy.model.visual, 2 * size)
    first = features.of("a", prompt)
    assert (first.nbytes, first.requires_grad) == (size, False)
    assert features.of("a", prompt) is first
    for digest in ("b", "c", "a"):
        features.of(digest, prompt)  # "a" is there still: nothing goes before the update is over
    assert (features.hits, features.misses) == (2, 3)
    features.trim()  # "b" goes
    features.of("a", prompt)
    features.of("c", prompt)
    assert (features.hits, features.misses) == (4, 3)
    features.of("b", prompt)
    assert (features.hits, features.misses) == (4, 4)


def test_without_a_limit_nothing_outlives_the_update(
    policy: Qwen2_5_VLForConditionalGeneration, make_inputs: MakeInputs
) -> None:
    features, prompt = VisionFeatures(policy.model.visual, 0), make_inputs("where?", 4, 4.0)
    for _ in range(2):
        features.of("a", prompt)
        features.of("a", prompt)
        features.trim()
    assert (features.hits, features.misses) == (2, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_features_have_the_towers_dtype(
    policy: Qwen2_5_VLForConditionalGeneration, make_inputs: MakeInputs, dtype: torch.dtype
) -> None:
    features = VisionFeatures(deepcopy(policy.model.visual).to(dtype), 0)
    assert features.of("a", make_inputs("where?", 4, 4.0)).dtype == dtype
