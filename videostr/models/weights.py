"""Weight files of a checkpoint: which ones learner and engine read, and whether they are whole.

In: a Hugging Face folder. Out: the files, or a `ModelError`; no tensor is read into memory.
"""

from __future__ import annotations

import contextlib
import json
import math
import pickle
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from transformers.utils import (
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
)

from videostr.errors import ModelError

AGAIN = "copy or download the checkpoint again"
LFS_POINTER = b"version https://git-lfs"
NOT_WEIGHTS = ("training_args.bin", "optimizer.bin")
"""Files of trainers that vLLM leaves out, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """The weight files of a checkpoint."""

    files: tuple[str, ...]
    pickled: bool
    """Whether they are PyTorch's pickles (.bin)."""
    ignored: tuple[str, ...]
    """Pickles that lie next to safetensors, which neither learner nor engine reads."""


def check_weights(folder: Path, parameters: int = 0) -> Weights:
    """Return the weight files of a folder, all of them whole.

    Args:
        folder: of the checkpoint.
        parameters: numbers that the files must hold at least; 0 does not count them.

    Raises:
        ModelError: a file is missing, cut off or refused, learner and engine would read different ones, or numbers lack.
    """
    names = _chosen(folder)
    pickled = names[0].endswith(".bin")
    _check_engine_reads(folder, names, "*.bin" if pickled else "*.safetensors")
    held = sum(_numbers(folder, name, pickled=pickled) for name in names)
    if held < parameters:
        raise ModelError(
            f"model.path = {folder}: the weight files hold {held} numbers, config.json describes {parameters} parameters: the "
            f"rest would be random",
            remedy=AGAIN,
        )
    return Weights(
        files=names, pickled=pickled, ignored=() if pickled else tuple(_weight_files(folder, "*.bin"))
    )


def _chosen(folder: Path) -> tuple[str, ...]:
    """Return the names that transformers takes, in its order of preference."""
    for whole, index in (
        (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME),
        (WEIGHTS_NAME, WEIGHTS_INDEX_NAME),
    ):
        if (folder / whole).exists():
            return (whole,)
        if (folder / index).exists():
            return _shards(folder, index)
    raise ModelError(
        f"model.path = {folder}: there is neither {SAFE_WEIGHTS_NAME} nor {SAFE_WEIGHTS_INDEX_NAME} (nor {WEIGHTS_NAME})",
        remedy=AGAIN,
    )


def _shards(folder: Path, index: str) -> tuple[str, ...]:
    try:
        names = sorted(set(json.loads((folder / index).read_text(encoding="utf-8"))["weight_map"].values()))
        problem = "" if names else "it names no file"
        names = [str(name) for name in names]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        names, problem = [], f"{type(error).__name__}: {error}"
    if problem:
        raise ModelError(
            f"model.path = {folder}: {index} is not an index of shards ({problem})", remedy=AGAIN
        )
    absent = [name for name in names if not (folder / name).is_file()]
    if absent:
        raise ModelError(
            f"model.path = {folder}: {index} names {len(names)} shards, {len(absent)} of them are missing: "
            f"{', '.join(absent[:3])}{', ...' if len(absent) > 3 else ''}",
            remedy=AGAIN,
        )
    return tuple(names)


def _check_engine_reads(folder: Path, names: tuple[str, ...], pattern: str) -> None:
    """Refuse a folder of which vLLM would read other files: all that match, or those of an index of safetensors."""
    read = set(_weight_files(folder, pattern))
    if pattern == "*.safetensors" and (folder / SAFE_WEIGHTS_INDEX_NAME).exists():
        read = set(_shards(folder, SAFE_WEIGHTS_INDEX_NAME))
    if read != set(names):
        surplus, chosen = sorted(read - set(names)), ", ".join(names[:3])
        raise ModelError(
            f"model.path = {folder}: learners would read {chosen}{', ...' if len(names) > 3 else ''}, engines also or instead "
            f"{', '.join(surplus[:3])}{', ...' if len(surplus) > 3 else ''}",
            remedy="delete the weights that are not the policy's, with their index",
        )


def _weight_files(folder: Path, pattern: str) -> Iterable[str]:
    return sorted(path.name for path in folder.glob(pattern) if path.name not in NOT_WEIGHTS)


def _numbers(folder: Path, name: str, *, pickled: bool) -> int:
    """Return how many numbers a file holds, by its header alone.

    Raises:
        ModelError: the file is not whole, or not what its name says.
    """
    with contextlib.suppress(OSError), (folder / name).open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise ModelError(
                f"model.path = {folder}: {name} is a pointer of Git LFS, not the weights",
                remedy="run git lfs pull in that folder, or download the file",
            )
    try:
        return _pickled_numbers(folder / name) if pickled else _safe_numbers(folder / name)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"model.path = {folder}: {name} is refused: it holds more than tensors, and reading it could run code "
            f"({str(error).strip().partition('.')[0]})",
            remedy="use a checkpoint in safetensors from a source that you trust",
        ) from None
    except Exception as error:  # a file of random bytes raises almost anything
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ModelError(f"model.path = {folder}: {name} is not whole ({reason})", remedy=AGAIN) from error


def _safe_numbers(file: Path) -> int:
    with safe_open(file, "pt") as opened:  # compares its length with what its header promises
        return sum(math.prod(opened.get_slice(key).get_shape()) for key in opened.keys())  # noqa: SIM118


def _pickled_numbers(file: Path) -> int:
    # Files of before PyTorch 1.6 are not archives, and are read whole
    mapped = zipfile.is_zipfile(file)
    tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    if not isinstance(tensors, dict) or not all(isinstance(t, torch.Tensor) for t in tensors.values()):
        raise ValueError("it holds no table of tensors")
    return sum(tensor.numel() for tensor in tensors.values())
