"""A checkpoint's share of one rank: copied to host memory at once, written to disk while training continues.

policy/     Hugging Face format, in as many shards as ranks or more; every tensor whole, written by one rank
adapter/    with LoRA, in peft's format; written by rank 0
learner/    see actors/learner/state.py; every rank writes its own parts
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers.core_model_loading import revert_weight_conversion
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from actors.learner import state
from actors.learner.policy import TrainedPolicy
from actors.learner.state import STATE, LearnerState
from actors.parameters import gathered, published
from videostr.errors import StorageError
from videostr.files import make_folder, storage_error, write_json
from videostr.grpo.lora import adapted_layers, save_adapter
from videostr.models.tensor_files import write_tensors

POLICY, ADAPTER, LEARNER = "policy", "adapter", "learner"
"""Folders of a checkpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What came of writing one rank's share."""

    files: Mapping[str, tuple[int, str]]
    """Size in bytes and SHA-256, by path below the checkpoint."""
    problems: tuple[str, ...]
    """Of what could not be written, with path and remedy; empty where all was."""


@dataclass(slots=True, kw_only=True)
class Snapshot:
    """What a rank writes; holds no memory of a GPU, and nothing that training changes."""

    tensors: dict[str, tuple[dict[str, Tensor], dict[str, str]]] = field(default_factory=dict)
    """Path below the checkpoint -> tensors of a safetensors file and metadata of its header."""
    others: list[Callable[[Path], object]] = field(default_factory=list)
    """Each writes small files into the checkpoint of this path."""

    def write(self, folder: Path) -> Written:
        """Write everything that can be written, once; memory is freed as it goes."""
        files: dict[str, tuple[int, str]] = {}
        problems: list[str] = []
        works: list[Callable[[], object]] = [
            partial(self._write_tensors, folder, name, files) for name in self.tensors
        ]
        works += [partial(other, folder) for other in self.others]
        for work in works:
            try:
                work()
            except (OSError, SafetensorError, StorageError) as error:
                problems.append(str(storage_error(error, folder) or error))
        return Written(files=files, problems=tuple(problems))

    def _write_tensors(self, folder: Path, name: str, files: dict[str, tuple[int, str]]) -> None:
        tensors, metadata = self.tensors[name]
        make_folder((folder / name).parent)
        files[name] = write_tensors(folder / name, tensors, metadata)


class SnapshotTaker:
    """Copies a rank's share of policy, adapters and optimizer; one per engine."""

    def __init__(self, trained: TrainedPolicy, base: str) -> None:
        """Copy nothing yet.

        Args:
            trained: policy and engine.
            base: path or hub id of the model that adapters belong to.
        """
        self._trained = trained
        self._base = base
        self._rank = dist.get_rank()
        self._names: dict[str, str] = {}
        # Another thread writes it while this one's encodes prompts
        self._processor = copy.deepcopy(trained.processor) if self._rank == 0 else None

    def take(self, version: int) -> Snapshot:
        """Return a copy of the state of now; a collective."""
        snapshot = Snapshot()
        self._add_policy(snapshot)
        self._add_adapter(snapshot)
        optimizer = LearnerState(self._trained.engine, self._trained.policy)
        shards = optimizer.shards()
        for name, shard in shards.items():
            snapshot.tensors[f"{LEARNER}/{name}"] = shard
        found: list[list[str]] = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(found, list(shards))
        if self._rank == 0:
            values = optimizer.description(version, [name for names in found for name in names])
            snapshot.others.append(lambda folder: _write_state(folder / LEARNER, values))
        return snapshot

    def _add_policy(self, snapshot: Snapshot) -> None:
        """Gather the weights, and copy those of this rank's shards."""
        with self._trained.whole_policy() as policy:
            parameters = published(policy)
            self._names = names = self._names or saved_names(policy)
            sizes = {each.name: each.nbytes for each in parameters}
            shards = policy_shards(sizes, dist.get_world_size())
            file_of = {name: shard.file for shard in shards for name in shard.names}
            mine = {name for shard in shards if shard.rank == self._rank for name in shard.names}
            if self._rank == 0:
                index = {names[name]: file_of[name] for name in sizes}
                snapshot.others.append(_policy_files(policy, index, sum(sizes.values())))
                snapshot.others.append(self._write_processor)
        for each in parameters:
            with gathered(each.parameters):
                if each.name in mine:
                    path = f"{POLICY}/{file_of[each.name]}"
                    tensors, _ = snapshot.tensors.setdefault(path, ({}, {}))
                    tensors[names[each.name]] = each.value().to("cpu", copy=True)

    def _write_processor(self, folder: Path) -> None:
        assert self._processor is not None
        try:
            self._processor.save_pretrained(folder / POLICY)
        except Exception as error:  # tokenizers knows no other type, also where the disk is full
            raise OSError(f"{folder / POLICY}: {error}") from error

    def _add_adapter(self, snapshot: Snapshot) -> None:
        """Gather the adapters; without LoRA, do nothing."""
        weights = {}
        for name, layer in adapted_layers(self._trained.policy).items():
            with gathered([layer.lora_A, layer.lora_B]):
                if self._rank == 0:
                    a, b = (part.detach().to("cpu", copy=True) for part in (layer.lora_A, layer.lora_B))
                    weights[name] = (a, b)
        if weights:
            lora = self._trained.lora
            snapshot.others.append(lambda folder: save_adapter(folder / ADAPTER, lora, self._base, weights))


def _write_state(folder: Path, values: Mapping[str, Any]) -> None:
    make_folder(folder)
    write_json(folder / STATE, values)


# ------------------------------------------------------------------------------------------------- policy in shards


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyShard:
    """One weight file of the policy."""

    file: str
    rank: int
    """That writes it."""
    names: tuple[str, ...]
    """Of parameters."""


def policy_shards(sizes: Mapping[str, int], ranks: int) -> list[PolicyShard]:
    """Return the weight files of a policy: parameters in order, about as many bytes for each rank, cut at `state.SHARD_BYTES`.

    Args:
        sizes: bytes of every parameter, by name.
        ranks: number of ranks.
    """
    total, end = sum(sizes.values()), 0
    cut: list[tuple[int, list[str]]] = []
    filled = 0
    for name, size in sizes.items():
        rank = min(ranks - 1, (2 * end + size) * ranks // (2 * total))  # where its middle lies
        end += size
        if not cut or cut[-1][0] != rank or filled + size > state.SHARD_BYTES:
            cut.append((rank, []))
            filled = 0
        cut[-1][1].append(name)
        filled += size
    files = [f"model-{number:05d}-of-{len(cut):05d}.safetensors" for number in range(1, len(cut) + 1)]
    if len(cut) == 1:
        files = [SAFE_WEIGHTS_NAME]
    return [
        PolicyShard(file=file, rank=rank, names=tuple(names))
        for file, (rank, names) in zip(files, cut, strict=True)
    ]


def saved_names(policy: Any) -> dict[str, str]:
    """Return what transformers calls each parameter in a checkpoint, by its name in the model.

    Raises:
        ValueError: it saves other tensors than the model has, which could not be written by parts.
    """
    empty = {name: torch.empty(0, device="meta") for name, _ in _named(policy)}
    saved = revert_weight_conversion(policy, dict(empty))
    names = {id(tensor): name for name, tensor in saved.items()}
    if len(saved) != len(empty) or any(id(tensor) not in names for tensor in empty.values()):
        raise ValueError(f"{type(policy).__name__}: its checkpoints do not hold its parameters one by one")
    return {name: names[id(tensor)] for name, tensor in empty.items()}


def _named(policy: nn.Module) -> Iterable[tuple[str, Tensor]]:
    return ((each.name, each.parameters[0]) for each in published(policy))


def _policy_files(policy: Any, index: Mapping[str, str], total: int) -> Callable[[Path], None]:
    """Return what writes the configuration of a policy, and the index of its shards where there are several."""
    config, generation = copy.deepcopy(policy.config), copy.deepcopy(policy.generation_config)
    config.dtype = str(policy.dtype).removeprefix("torch.")
    config.architectures = [type(policy).__name__]

    def write(folder: Path) -> None:
        make_folder(folder / POLICY)
        config.save_pretrained(folder / POLICY)
        generation.save_pretrained(folder / POLICY)
        if set(index.values()) != {SAFE_WEIGHTS_NAME}:
            values = {"metadata": {"total_size": total}, "weight_map": dict(sorted(index.items()))}
            write_json(folder / POLICY / SAFE_WEIGHTS_INDEX_NAME, values)

    return write
