"""What a family of models must provide, and which families there are.

A family is one module here with an object `FAMILY`, and one line of `FAMILIES`. It owns how a prompt becomes tensors and how a
packed row is computed. Everything else asks `family_of` for the family of a checkpoint, and never for its name.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from transformers import PretrainedConfig

from videostr.errors import ModelError
from videostr.grpo.batch import PromptInputs, RowCost, Vision
from videostr.grpo.logprobs import RowModel
from videostr.models.processor import check_json
from videostr.types import Prompt
from videostr.video import ClipFrames

FAMILIES = {
    "qwen2_5_vl": "videostr.models.qwen2_5_vl",
    "qwen3_vl": "videostr.models.qwen3_vl",
    "qwen2_vl": "videostr.models.qwen2_vl",
    "qwen3_5": "videostr.models.qwen3_5",
}
"""`model_type` of config.json: module of the family."""
WANTED = "give the folder of a Hugging Face checkpoint, or a hub id that can be reached"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """Equal layers: those of the language model, or those of the vision tower."""

    layers: int
    hidden_size: int
    intermediate_size: int
    """Width of the MLP."""
    activations: int
    """Elements that one layer holds for its backward pass, per token or patch."""

    def held(self, *, checkpointing: bool) -> int:
        """Return the elements held for the backward pass of all layers, per token or patch.

        With gradient checkpointing the input of each layer, and one layer whole, twice for its backward.
        """
        if checkpointing:
            return self.layers * self.hidden_size + 2 * self.activations
        return self.layers * self.activations


@dataclass(frozen=True, slots=True, kw_only=True)
class Shapes:
    """Sizes of a model, from which time and memory are estimated."""

    name: str
    parameters: int
    """All of them, shared ones counted once."""
    vision_parameters: int
    """Those of the vision tower."""
    decode_parameters: int
    """Weights that one decode step reads: layers and output layer."""
    vocab_size: int
    num_attention_heads: int
    num_key_value_heads: int
    kv_elements: int
    """Keys and values of one token in all layers."""
    state_elements: int
    """Float32 state of one sequence in all recurrent layers, whatever its length."""
    patches_per_token: int
    """Vision patches that are merged into one token."""
    text: Stack
    vision: Stack
    frozen_cost: RowCost
    """Operations of a row, forward and backward, without the backward pass of the tower."""
    linear_ends: Mapping[str, int]
    """Inputs and outputs of the language model's linear layers, summed over those of one last name, such as q_proj."""

    def adapter_parameters(self, rank: int, targets: Iterable[str]) -> int:
        """Return the weights of adapters of this rank; names that the model does not have add nothing."""
        return rank * sum(self.linear_ends.get(target, 0) for target in targets)

    @property
    def output_parameters(self) -> int:
        """Weights of the output layer."""
        return self.vocab_size * self.text.hidden_size

    @property
    def forward(self) -> RowCost:
        """Floating-point operations of a forward pass: a third of a forward and backward pass, whose backward costs twice that.

        The logits of a target count four times in a `RowCost`, since they are computed twice.
        """
        cost = self.frozen_cost
        return RowCost(token=cost.token / 3, pair=cost.pair / 3, target=cost.target / 4, patch=cost.patch)

    def engine_elements(self, tokens: int, patches: int, parts: int) -> float:
        """Return the elements that the widest layers of an engine hold for `tokens` and an encoder's pass over `patches`."""
        layer = 4 * self.text.hidden_size + 3 * self.text.intermediate_size / parts
        return tokens * layer + patches * 10 * self.vision.hidden_size


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInputs:
    """What vLLM is given for a prompt, so that engine and learner see the same tokens."""

    text: str
    """Chat text with one placeholder of a video."""
    pixels: np.ndarray
    """[F, H, W, 3] uint8."""
    metadata: Mapping[str, Any]
    processor_options: Mapping[str, Any]
    """`mm_processor_kwargs`; empty for none."""


class ModelFamily(RowModel, Protocol):
    """Everything that depends on the family of a model; objects have no state.

    `config` is always the checkpoint's configuration as `config_of` or a loaded policy has it, `policy` the Hugging Face model.
    """

    name: str
    """For messages."""
    placeholders: tuple[str, ...]
    """Tokens that stand for vision inputs, which no completion may hold."""
    stacked_parameters: Mapping[str, tuple[str, tuple[int, ...]]]
    """Layer of a checkpoint: layer of vLLM's model that stacks it with others, and its places in it."""
    published: Mapping[str, Mapping[str, Any]]
    """config.json of the published models, as far as sizes need it, by the name that hub ids contain."""

    # checkpoint

    def config_of(self, raw: Mapping[str, Any], path: str | Path) -> Any:
        """Return the configuration that the config.json at `path` describes.

        Raises:
            ModelError: it is not a configuration of this family.
        """
        ...

    def check(self, config: Any, path: str | Path, *, cpu: bool) -> None:
        """Refuse what can be loaded, but not trained or served; `cpu` where the engines run on CPU.

        Raises:
            ModelError: says why, and the remedy.
        """
        ...

    def check_sequence_parallel(self, config: Any, ranks: int) -> None:
        """Refuse to share rows among so many ranks.

        Raises:
            ModelError: says why, and the remedy.
        """
        ...

    def load(self, path: str | Path, dtype: torch.dtype | str) -> Any:
        """Return the policy with its weights, on CPU."""
        ...

    def make_tiny(self, folder: str | Path, seed: int, texts: Iterable[str]) -> None:
        """Write a checkpoint of under a few million random weights, whose tokenizer is trained on `texts`."""
        ...

    # prompts

    def video_size(
        self, height: int, width: int, num_frames: int, max_pixels: int, processor: Any
    ) -> tuple[int, int]:
        """Return height and width, as near as may be, that the processor leaves as they are; at most `max_pixels` a frame."""
        ...

    def engine_inputs(self, prompt: Prompt, frames: ClipFrames) -> EngineInputs:
        """Return what vLLM is given for a prompt and the frames of its clip."""
        ...

    def engine_positions(self, model: Any, token_ids: Sequence[int], videos: Sequence[Any]) -> np.ndarray:
        """Return the positions [3, T] or [T] int64 that vLLM gives a prompt.

        Args:
            model: of vLLM's class for this family, with its configuration; needs no weights.
            token_ids: [T], expanded.
            videos: vLLM's `MultiModalFeatureSpec` of each video.
        """
        ...

    def engine_dtypes(self, *, cpu: bool) -> tuple[str, ...]:
        """Return the dtypes, as `model.dtype` names them, in which vLLM computes this family; `cpu` where it runs on CPU."""
        ...

    def engine_arguments(self, *, cpu: bool) -> Mapping[str, Any]:
        """Return arguments that vLLM needs for this family, added to those of a run."""
        ...

    def encode(
        self, prompts: Sequence[Prompt], clips: Sequence[ClipFrames], processor: Any, config: Any
    ) -> list[PromptInputs]:
        """Return the tensors of prompts, on CPU, with the token ids that the engine sees.

        Raises:
            ValueError: vision tokens and videos of a prompt do not match. What the processor raises is passed on.
        """
        ...

    def temporal_part(self, vision: Vision, part: slice) -> dict[str, torch.Tensor]:
        """Return the vision inputs of some temporal patches of a prompt's video; those of the tower attend to no others."""
        ...

    def num_patches(self, token_ids: np.ndarray, config: Any) -> int:
        """Return the number of vision patches of a prompt with these expanded token ids."""
        ...

    # vision tower

    def set_tower(self, policy: Any, tower: nn.Module | None) -> None:
        """Put a tower into a policy, or take it out."""
        ...

    # estimates

    def row_cost(self, config: Any, *, freeze_vision: bool) -> RowCost:
        """Return the floating-point operations of a packed row, forward and backward."""
        ...

    def shapes(self, config: Any, *, name: str = "") -> Shapes:
        """Return the sizes of a model."""
        ...


def family_of(model: str | Path | Mapping[str, Any] | Any, path: str | Path = "") -> ModelFamily:
    """Return the family of a model.

    Args:
        model: a Hugging Face folder or hub id, the contents of a config.json, or a configuration.
        path: of the model, where it is not the first argument; for messages.

    Raises:
        ModelError: the model does not exist, or no family takes it.
    """
    if isinstance(model, str | Path):
        path, model = model, read_config(model)
    kind = model.get("model_type") if isinstance(model, Mapping) else model.model_type
    if kind in FAMILIES:
        return _family(kind)
    known = " or ".join(f"a {_family(taken).name} (model_type {taken!r})" for taken in FAMILIES)
    raise ModelError(
        f"model.path = {path}: config.json has model_type {kind!r}, so it takes no video here",
        remedy=f"use {known}",
    )


def families() -> list[ModelFamily]:
    """Return all families, each once."""
    return [importlib.import_module(module).FAMILY for module in dict.fromkeys(FAMILIES.values())]


def _family(kind: str) -> ModelFamily:
    family: ModelFamily = importlib.import_module(FAMILIES[kind]).FAMILY
    return family


def read_config(path: str | Path) -> dict[str, Any]:
    """Return the contents of a checkpoint's config.json.

    Raises:
        ModelError: there is none, or it cannot be read.
    """
    if Path(path).is_file():
        raise ModelError(f"model.path = {path}: is a file, must be a folder", remedy=WANTED)
    check_json(path)
    try:
        raw, _ = PretrainedConfig.get_config_dict(path)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"model.path = {path}: config.json cannot be read ({error})", remedy=WANTED
        ) from None
    if not raw:
        raise ModelError(f"model.path = {path}: there is no config.json", remedy=WANTED)
    return dict(raw)


def shapes_of(path: str) -> Shapes:
    """Return the sizes of the model at `model.path`: of a folder with a config.json, or of a published model by its name.

    Raises:
        ModelError: it is neither.
    """
    if (Path(path) / "config.json").is_file():
        raw = read_config(path)
        family = family_of(raw, path)
        return family.shapes(family.config_of(raw, path), name=Path(path).resolve().name)
    known = {name: family for family in families() for name in family.published}
    for name, family in known.items():
        if f"{name.lower()}-" in f"{Path(path).name.lower()}-":
            return family.shapes(family.config_of(family.published[name], name), name=name)
    raise ModelError(
        f"model.path = {path}: no config.json is there, and its name contains none of {', '.join(known)}",
        remedy="give the folder of a checkpoint, or a hub id with one of these names",
    )
