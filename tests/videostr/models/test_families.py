"""What every family must do, whatever its models look like."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from videostr.grpo.batch import PromptInputs
from videostr.models.base import FAMILIES, ModelFamily, family_of, read_config, shapes_of
from videostr.models.checkpoint import open_checkpoint
from videostr.models.tiny import make_tiny
from videostr.types import Prompt
from videostr.video import ClipFrames

MakePrompt = Callable[[str, int, float], tuple[Prompt, ClipFrames]]
MakeInputs = Callable[[str, int, float], PromptInputs]


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_a_family_is_found_by_folder_contents_and_configuration(
    family: ModelFamily, policy_folder: Path, policy: Any
) -> None:
    assert family_of(policy_folder) is family
    assert family_of(read_config(policy_folder)) is family
    assert family_of(policy.config) is family


def test_a_tiny_policy_passes_as_a_checkpoint(policy_folder: Path) -> None:
    open_checkpoint(policy_folder, cpu=True)


def test_the_default_of_tiny_policies_is_the_first_family(tmp_path: Path) -> None:
    make_tiny(tmp_path, 0, ["where is the red_ball?"])
    assert read_config(tmp_path)["model_type"] == next(iter(FAMILIES))


def test_the_same_seed_makes_the_same_weights(family: ModelFamily, policy: Any, tmp_path: Path) -> None:
    family.make_tiny(tmp_path, 0, ["where is the red_ball?", "<think>left</think><answer>A</answer>"])
    again = dict(family.load(tmp_path, torch.float32).named_parameters())
    assert again.keys() == {name for name, _ in policy.named_parameters()}
    assert all(torch.equal(again[name], parameter) for name, parameter in policy.named_parameters())


def test_sizes_are_those_of_the_policy(family: ModelFamily, policy: Any, policy_folder: Path) -> None:
    shapes = family.shapes(policy.config)
    assert shapes == family.shapes(family.config_of(read_config(policy_folder), policy_folder))
    assert (shapes.parameters, shapes.vision_parameters) == (count(policy), count(family.tower(policy)))
    assert shapes.output_parameters == policy.lm_head.weight.numel()
    assert shapes.frozen_cost == family.row_cost(policy.config, freeze_vision=True)
    assert shapes_of(str(policy_folder)).name == policy_folder.name


def test_published_models_are_known_by_a_part_of_their_hub_id(family: ModelFamily) -> None:
    for name in family.published:
        assert shapes_of(f"someone/{name}-Instruct").name == name


def test_a_tower_can_be_taken_out_and_put_back(family: ModelFamily, policy: Any) -> None:
    tower, names = family.tower(policy), [name for name, _ in policy.named_parameters()]
    family.set_tower(policy, None)
    assert len(list(policy.parameters())) == len(names) - len(list(tower.parameters()))
    family.set_tower(policy, tower)
    assert [name for name, _ in policy.named_parameters()] == names


def test_a_prompt_has_a_position_for_every_token(policy: Any, make_inputs: MakeInputs) -> None:
    inputs = make_inputs("where is it?", 8, 0.5)
    assert inputs.positions.shape[-1] == len(inputs.input_ids)
    assert inputs.positions.dtype == torch.int64
    text = policy.config.get_text_config()
    assert int(inputs.positions.max()) < text.max_position_embeddings


def test_patches_are_counted_from_the_tokens(
    family: ModelFamily, policy: Any, make_inputs: MakeInputs
) -> None:
    # 4 frames of 32 x 48 pixels in pairs, patches of a side in pixels that the tower states
    side = policy.config.vision_config.patch_size
    ids = make_inputs("where?", 4, 4.0).input_ids.numpy()
    assert family.num_patches(ids, policy.config) == 2 * (32 // side) * (48 // side)


def test_placeholders_are_tokens(family: ModelFamily, processor: Any) -> None:
    assert set(family.placeholders) <= processor.tokenizer.get_vocab().keys()


def test_stacked_layers_are_layers_of_the_policy(family: ModelFamily, policy: Any) -> None:
    leaves = {name.rpartition(".")[2] for name, _ in policy.named_modules()}
    assert family.stacked_parameters.keys() <= leaves
    for stacked in {layer for layer, _ in family.stacked_parameters.values()}:
        places = [p for layer, found in family.stacked_parameters.values() if layer == stacked for p in found]
        assert sorted(places) == list(range(len(places)))


def test_the_engine_is_given_the_frames_as_they_are(family: ModelFamily, make_prompt: MakePrompt) -> None:
    prompt, frames = make_prompt("where?", 4, 4.0)
    inputs = family.engine_inputs(prompt, frames)
    assert inputs.pixels is frames.pixels
    assert inputs.metadata["do_sample_frames"] is False
    assert sum(inputs.text.count(token) for token in family.placeholders if "video" in token) == 1


@pytest.mark.parametrize("frames", [2, 8, 40])
@pytest.mark.parametrize("most", [1600, 64 * 64])
def test_a_video_size_is_one_that_the_processor_keeps(
    family: ModelFamily, policy: Any, processor: Any, most: int, frames: int
) -> None:
    height, width = family.video_size(300, 400, frames, most, processor)
    assert height * width <= most
    side = policy.config.vision_config.patch_size
    shown = processor.video_processor(
        [np.zeros((frames, height, width, 3), np.uint8)], do_sample_frames=False, return_tensors="pt"
    )
    assert shown["video_grid_thw"].tolist() == [[frames // 2, height // side, width // side]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_policy_that_was_saved_meanwhile_gives_the_same_positions(
    family: ModelFamily,
    policy_folder: Path,
    processor: Any,
    make_prompt: MakePrompt,
    tmp_path: Path,
    dtype: torch.dtype,
) -> None:
    """`save_pretrained` writes the name of the dtype into the configuration of the model that it saves."""
    policy = family.load(policy_folder, dtype)
    prompt, frames = make_prompt("where is the red_ball?", 4, 1.5)
    (before,) = family.encode([prompt], [frames], processor, policy.config)
    policy.save_pretrained(tmp_path)
    (after,) = family.encode([prompt], [frames], processor, policy.config)
    assert torch.equal(before.positions, after.positions)
