"""Features of a frozen tower: equal to those of the plain path, computed once, bounded in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from videostr.grpo.batch import Group, PromptInputs, build_row, plan_rows
from videostr.grpo.logprobs import PolicyLogprobs
from videostr.grpo.vision import VisionFeatures
from videostr.models.base import ModelFamily

MakeInputs = Callable[[str, int, float], PromptInputs]


def nbytes(vision: Mapping[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in vision.values())


def test_features_in_place_of_pixels_change_nothing(
    family: ModelFamily, policy: Any, make_group: Callable[..., Group]
) -> None:
    frozen = deepcopy(policy)
    family.tower(frozen).requires_grad_(False)
    groups = {0: make_group(0, (7, 4)), 1: make_group(1, (5, 9, 1), num_frames=8)}
    lengths = [[len(c) for c in group.completions] for group in groups.values()]
    prompts = [len(group.prompt.input_ids) for group in groups.values()]
    (plan,) = plan_rows(prompts, lengths, max_row_tokens=1000)
    features = VisionFeatures(family.tower(frozen), family.features, 0)
    encoded = {
        index: replace(
            group,
            prompt=replace(group.prompt, vision=features.of(str(index), group.prompt.vision)),
        )
        for index, group in groups.items()
    }
    with_pixels, with_features = PolicyLogprobs(frozen, family), PolicyLogprobs(deepcopy(frozen), family)
    family.set_tower(with_features.policy, None)
    row = build_row(plan, groups)
    expected, _ = with_pixels(row, 1.0)
    row = build_row(plan, encoded)
    found, _ = with_features(row, 1.0)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    expected.square().sum().backward()
    found.square().sum().backward()
    gradients = {name: p.grad for name, p in with_pixels.named_parameters() if p.grad is not None}
    assert gradients.keys() == {name for name, _ in with_features.named_parameters()}
    for name, parameter in with_features.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-5, rtol=1e-5)


def test_clips_are_computed_once_and_the_least_recently_used_go(
    family: ModelFamily, policy: Any, make_inputs: MakeInputs
) -> None:
    vision = make_inputs("where?", 4, 4.0).vision
    size = nbytes(family.features(family.tower(policy), vision))
    features = VisionFeatures(family.tower(policy), family.features, 2 * size)
    first = features.of("a", vision)
    assert not any(tensor.requires_grad for tensor in first.values())
    assert features.of("a", vision) is first
    for digest in ("b", "c", "a"):
        features.of(digest, vision)  # "a" is there still: nothing goes before the update is over
    assert (features.hits, features.misses) == (2, 3)
    features.trim()  # "b" goes
    features.of("a", vision)
    features.of("c", vision)
    assert (features.hits, features.misses) == (4, 3)
    features.of("b", vision)
    assert (features.hits, features.misses) == (4, 4)


def test_without_a_limit_nothing_outlives_the_update(
    family: ModelFamily, policy: Any, make_inputs: MakeInputs
) -> None:
    features, vision = (
        VisionFeatures(family.tower(policy), family.features, 0),
        make_inputs("where?", 4, 4.0).vision,
    )
    for _ in range(2):
        features.of("a", vision)
        features.of("a", vision)
        features.trim()
    assert (features.hits, features.misses) == (2, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_features_have_the_towers_dtype(
    family: ModelFamily, policy: Any, make_inputs: MakeInputs, dtype: torch.dtype
) -> None:
    features = VisionFeatures(deepcopy(family.tower(policy)).to(dtype), family.features, 0)
    found = features.of("a", make_inputs("where?", 4, 4.0).vision)
    assert {tensor.dtype for tensor in found.values() if tensor.is_floating_point()} == {dtype}
