"""Layers that keep their activations: as many as the budget says, counted on what PyTorch really holds; gradients stay."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch

from tests.videostr.conftest import MakeGroup
from videostr.grpo.batch import Row, build_row, plan_rows
from videostr.grpo.logprobs import PolicyLogprobs
from videostr.models.base import ModelFamily, Stack
from videostr.models.recompute import Recomputation, kept_layers

STACK = Stack(layers=4, hidden_size=10, intermediate_size=20, activations=110)
"""Recomputing all of it holds 4 * 10 + 2 * 110 = 260 elements a token, a layer that keeps its own 100 more."""


@pytest.mark.parametrize(
    ("room", "kept"), [(0.0, 0), (260.0, 0), (359.0, 0), (360.0, 1), (560.0, 3), (660.0, 4), (1e9, 4)]
)
def test_kept_layers_by_hand(room: float, kept: int) -> None:
    assert kept_layers([(STACK, 1)], room) == [kept]
    assert kept_layers([(STACK, 7)], 7 * room) == [kept]


def test_language_model_is_served_before_the_tower() -> None:
    assert kept_layers([(STACK, 1), (STACK, 1)], 2 * 260 + 450) == [4, 0]
    assert kept_layers([(STACK, 1), (STACK, 1)], 2 * 260 + 650) == [4, 2]
    assert kept_layers([(STACK, 1), (STACK, 0)], 660) == [4, 4]  # a row without a video


def held(model: PolicyLogprobs, row: Row) -> tuple[int, dict[str, torch.Tensor]]:
    """Elements that autograd holds after a forward pass, each storage once, without parameters; and the gradients."""
    storages: dict[int, int] = {}
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = storage.nbytes() // 4
        return tensor

    model.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logprobs, _ = model(row, 1.0)
    logprobs.mean().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return sum(storages.values()), gradients


def test_rows_hold_what_the_budget_says(family: ModelFamily, policy: Any, make_group: MakeGroup) -> None:
    shapes, trained = family.shapes(policy.config), deepcopy(policy).train()
    trained.gradient_checkpointing_enable({"use_reentrant": False})
    model = PolicyLogprobs(trained, family)
    group = make_group(0, (60, 50, 70, 64), num_frames=8)
    (plan,) = plan_rows([len(group.prompt.input_ids)], [[60, 50, 70, 64]], max_row_tokens=10_000)
    row = build_row(plan, {0: group})
    patches = max(len(tensor) for tensor in row.vision.values())
    stacks = ((shapes.text, len(row.input_ids)), (shapes.vision, patches))
    least, most = (sum(n * stack.held(checkpointing=each) for stack, n in stacks) for each in (True, False))
    found = {}
    for share in (0.0, 0.5, 2.0):
        chosen = Recomputation(shapes, trained, family.tower(trained), least + share * (most - least))
        kept = chosen.fitting(len(row.input_ids), patches)
        chosen.keep(kept)
        assert kept == [0, 0] if share == 0 else sum(kept) > 0
        found[share] = held(model, row)
    assert found[0.0][0] < found[0.5][0] < found[2.0][0]
    # Recomputed layers hold their input alone here; what one holds twice comes with its backward pass.
    assert found[0.5][0] <= least + 0.5 * (most - least)
    for name, gradient in found[2.0][1].items():
        torch.testing.assert_close(found[0.0][1][name], gradient, rtol=0, atol=0)
        torch.testing.assert_close(found[0.5][1][name], gradient, rtol=0, atol=0)
    chosen.keep(chosen.fitting(10**6, patches))
    assert held(model, row)[0] == found[0.0][0]
