"""A policy without weights, and its weights one tensor at a time: for who holds only a part of them.

In: a Hugging Face folder with safetensors. Out: what `load_policy` returns, but for the weights, and a reader of these by the
name of their parameter. Names in files are matched to parameters by the rules of transformers, as its own loading does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, GenerationConfig
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from videostr.errors import ModelError
from videostr.models.base import family_of, read_config
from videostr.models.tensor_files import TensorFile
from videostr.models.weights import check_weights


class StreamedPolicy:
    """A policy whose parameters are on PyTorch's meta device, and the files that have their values.

    Attributes:
        policy: the Hugging Face model, in evaluation mode; its buffers are on CPU.
    """

    def __init__(self, path: str | Path, dtype: torch.dtype) -> None:
        """Read no weight yet.

        Args:
            path: Hugging Face folder.
            dtype: of the policy.

        Raises:
            ModelError: the folder is not a checkpoint in safetensors, or lacks a tensor.
        """
        self._path = path
        raw = read_config(path)
        config = family_of(raw, path).config_of(raw, path)
        with torch.device("meta"):
            self.policy = AutoModelForImageTextToText.from_config(
                config, dtype=dtype, attn_implementation="sdpa"
            ).eval()
        _make_buffers(self.policy)
        if (Path(path) / "generation_config.json").is_file():
            self.policy.generation_config = GenerationConfig.from_pretrained(path)
        files = [TensorFile(Path(path) / name) for name in check_weights(Path(path)).files]
        self._places = self._find({key: file for file in files for key in file.names})

    def read(self, name: str, room: Tensor | None = None) -> Tensor:
        """Return the value of a parameter, whole, on CPU, in the policy's dtype.

        Args:
            name: of the parameter.
            room: [bytes] uint8, where the value may lie; None for memory of its own.
        """
        file, key = self._places[name]
        parameter = self.policy.get_parameter(name)
        value = file.read(key, room)
        if value.shape != parameter.shape:
            raise ModelError(
                f"model.path = {self._path}: {key} is {list(value.shape)}, config.json describes {list(parameter.shape)}",
                remedy="copy or download the checkpoint again",
            )
        return value.to(parameter.dtype)

    def _find(self, files: dict[str, TensorFile]) -> dict[str, tuple[TensorFile, str]]:
        """Return the file and the name in it of every parameter."""
        mapping = get_model_conversion_mapping(self.policy)
        renamings = [each for each in mapping if isinstance(each, WeightRenaming)]
        converters = [each for each in mapping if isinstance(each, WeightConverter)]
        wanted = dict(self.policy.named_parameters())
        every, prefix = self.policy.state_dict(), self.policy.base_model_prefix
        places = {}
        for key in sorted(files):
            name, converter = rename_source_key(key, renamings, converters, prefix, every)
            if name not in every and key in every:
                name, converter = rename_source_key(key, [], [], prefix, every)
            if name in wanted and converter is None:
                places[name] = (files[key], key)
        self.policy._weight_conversions = [each for each in mapping if each.was_used()]  # names for saving
        if missing := [name for name in wanted if name not in places]:
            raise ModelError(
                f"model.path = {self._path}: {len(missing)} of {len(wanted)} parameters are in no file, the first {missing[0]}",
                remedy="copy or download the checkpoint again",
            )
        return places


def can_stream(path: str | Path) -> bool:
    """Return whether a path is a folder with safetensors; hub ids and pickles are loaded whole."""
    return Path(path).is_dir() and not check_weights(Path(path)).pickled


def _make_buffers(policy: Any) -> None:
    """Give the buffers, which no checkpoint of these families holds, their initial values."""
    for module in policy.modules():
        if module._buffers:
            for name, buffer in module._buffers.items():
                module._buffers[name] = torch.empty_like(buffer, device="cpu")
            policy._init_weights(module)
