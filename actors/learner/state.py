"""The optimizer's state on disk: every rank writes its own parts, any number of ranks and any ZeRO stage can continue from them.

learner/state.json                weight version, optimizer steps done, shapes of the parameters, names of the shards
learner/rank_00000_00001.safetensors
    `master/NAME`, `exp_avg/NAME`, `exp_avg_sq/NAME`: a part of a parameter, flat, float32; NAME is Hugging Face's. `starts`
    in the header's metadata says which element of the parameter is the first of each.

Trained parameters only. AdamW steps on tensors of DeepSpeed's making: `Part` says where in them a parameter is. The state
is read and set there, not through DeepSpeed's `safe_get_full_*` and `safe_set_full_*`: these want moments that exist only
after a first step, and under ZeRO-3 setting fails for a parameter that the ranks do not divide evenly.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import Tensor, nn

from actors.parameters import whole_shape
from videostr.errors import LearnerError

STATE = "state.json"
MASTER = "master"
MOMENTS = ("exp_avg", "exp_avg_sq")
KINDS = (MASTER, *MOMENTS)
SHARD_BYTES = 4 * 2**30
"""Most bytes of a shard, unless it is one tensor."""


@dataclass(frozen=True, slots=True)
class Part:
    """This rank's part of a parameter."""

    master: Tensor
    """What AdamW steps on; the moments have its layout."""
    offset: int
    """First element in `master`, flat."""
    start: int
    """First element in the parameter, flat."""
    count: int
    """Number of elements; 0 where this rank has no part."""


class LearnerState:
    """Master weights, moments and step of an engine's AdamW, by Hugging Face name; one per rank.

    `load` is a collective.
    """

    def __init__(self, engine: Any, policy: nn.Module) -> None:
        self.engine = engine
        self.stage: int = engine.zero_optimization_stage()
        self.adam: torch.optim.AdamW = engine.basic_optimizer
        self.parameters: dict[str, Any] = {n: p for n, p in policy.named_parameters() if p.requires_grad}
        self.parts: dict[str, Part] = dict(zip(self.parameters, self._parts(), strict=True))

    def shards(self) -> dict[str, tuple[dict[str, Tensor], dict[str, str]]]:
        """Return a copy of this rank's parts in host memory: by name of the file, its tensors and metadata."""
        shards: list[dict[str, Tensor]] = []
        starts: list[dict[str, int]] = []
        filled = SHARD_BYTES
        self._begin()
        for name, part in self.parts.items():
            part = self._own(part, whole_shape(self.parameters[name]).numel())
            for kind in KINDS if part.count else ():
                tensor = self._view(part, kind).to("cpu", copy=True)
                if filled + tensor.nbytes > SHARD_BYTES:
                    shards.append({})
                    starts.append({})
                    filled = 0
                shards[-1][f"{kind}/{name}"] = tensor
                starts[-1][f"{kind}/{name}"] = part.start
                filled += tensor.nbytes
        rank = dist.get_rank()
        return {
            f"rank_{rank:05d}_{number:05d}.safetensors": (shard, {"starts": json.dumps(first)})
            for number, (shard, first) in enumerate(zip(shards, starts, strict=True), start=1)
        }

    def description(self, version: int, shards: Sequence[str]) -> dict[str, Any]:
        """Return what `state.json` says of the state of now, which lies in these shards of all ranks."""
        return {
            "version": version,
            "step": max(int(state["step"]) for state in self._begin()),
            "parameters": {name: list(whole_shape(p)) for name, p in self.parameters.items()},
            "shards": list(shards),
        }

    def load(self, folder: Path) -> tuple[int, int]:
        """Set master weights, moments, step, and the weights that the model runs with; every rank reads its own parts.

        Returns the weight version and the number of optimizer steps done.

        Raises:
            LearnerError: there is no checkpoint, it is of other parameters, or lacks a part; nothing was changed.
        """
        if not (folder / STATE).is_file():
            raise LearnerError(
                f"{folder}: no learner checkpoint", remedy="give the folder `learner` of a checkpoint"
            )
        values = json.loads((folder / STATE).read_text(encoding="utf-8"))
        self._check(folder, values["parameters"])
        with ExitStack() as stack:
            pieces = Pieces(
                folder, [stack.enter_context(safe_open(folder / n, "pt")) for n in values["shards"]]
            )
            for name, shape in values["parameters"].items():
                for kind in KINDS:
                    pieces.check(f"{kind}/{name}", math.prod(shape))
            for state in self._begin():
                state["step"].fill_(values["step"])
            for name, part in self.parts.items():
                for kind in KINDS:
                    pieces.read(f"{kind}/{name}", part.start, self._view(part, kind))
        self._set_working_weights()
        return values["version"], values["step"]

    # ------------------------------------------------------------------------------------- where things are

    def _stepped(self) -> list[Tensor]:
        """Return the tensors that AdamW steps on."""
        if self.stage == 3:
            return list(self.engine.optimizer.fp32_partitioned_groups_flat)  # shown to AdamW one by one
        return [tensor for group in self.adam.param_groups for tensor in group["params"]]

    def _begin(self) -> list[dict[str, Tensor]]:
        """Return AdamW's state of each of them; before the first step make the one that it would start with."""
        states = []
        for tensor in self._stepped():
            state: dict[str, Tensor] = self.adam.state[tensor]
            if not state:
                state["step"] = torch.tensor(0.0)
                state.update({moment: torch.zeros_like(tensor) for moment in MOMENTS})
            states.append(state)
        return states

    def _parts(self) -> list[Part]:
        if self.stage == 0:  # whole; the parameters themselves, or their float32 copies
            return [Part(tensor, 0, 0, tensor.numel()) for tensor in self._stepped()]
        find = self._part_of_stage_3 if self.stage == 3 else self._part_of_stage_1_and_2
        return [find(parameter) for parameter in self.parameters.values()]

    def _part_of_stage_1_and_2(self, parameter: Any) -> Part:
        """Return a part where all parameters are laid end to end and cut into equal pieces, one per rank."""
        (piece,) = self._stepped()
        mapping = parameter._hp_mapping
        if mapping is None:
            return Part(piece, 0, 0, 0)
        inside = mapping.hp_fragment_address
        return Part(piece, inside.start, mapping.lp_fragment_address.start, inside.numel)

    def _part_of_stage_3(self, parameter: Any) -> Part:
        """Return a part where each parameter is cut into equal pieces, one per rank; the last may be short or empty."""
        optimizer = self.engine.optimizer
        group, offset, length = optimizer.grad_position[optimizer.get_param_id(parameter)]
        start = dist.get_rank() * length
        count = max(0, min(length, parameter.ds_numel - start))
        return Part(optimizer.fp32_partitioned_groups_flat[group], offset, start, count)

    def _view(self, part: Part, kind: str) -> Tensor:
        tensor = part.master if kind == MASTER else self.adam.state[part.master][kind]
        return tensor.detach().view(-1)[part.offset : part.offset + part.count]

    def _own(self, part: Part, numel: int) -> Part:
        """Return what this rank writes of a parameter: its part, or an equal share where every rank has the whole."""
        if self.stage > 0:
            return part
        rank, ranks = dist.get_rank(), dist.get_world_size()
        start, end = (numel * edge // ranks for edge in (rank, rank + 1))
        return Part(part.master, start, start, end - start)

    def _check(self, folder: Path, theirs: Mapping[str, Sequence[int]]) -> None:
        ours = {name: list(whole_shape(parameter)) for name, parameter in self.parameters.items()}
        for name in {**ours, **theirs}:
            here, there = ours.get(name, "not trained"), theirs.get(name, "absent")
            if here != there:
                raise LearnerError(
                    f"{folder}: {name} is {there} in the checkpoint and {here} in this model",
                    remedy="load it with the model.path, model.freeze_vision and model.lora that it was written with, or start a "
                    "new run from its policy/ (model.path)",
                )

    def _set_working_weights(self) -> None:
        """Master weights, rounded to the model's dtype, as after a step."""
        optimizer = self.engine.optimizer
        if self.stage in {1, 2}:
            optimizer.update_lp_params()
            return
        if self.stage == 3:
            optimizer.checkpoint_event_prologue()  # small parameters are kept gathered: let them go
        for name, part in self.parts.items():
            parameter = self.parameters[name]
            working = parameter.ds_tensor if self.stage == 3 else parameter
            working.detach().view(-1)[: part.count].copy_(self._view(part, MASTER))
        if self.stage == 3:
            optimizer.checkpoint_event_epilogue()  # and gather them again


class Pieces:
    """Parts of tensors in open safetensors files, which are read by slices."""

    def __init__(self, folder: Path, files: Sequence[Any]) -> None:
        self._folder = folder
        self._places: dict[str, list[tuple[int, Any]]] = {}
        """By key: first element and slice of every piece."""
        for file in files:
            for key, start in json.loads(file.metadata()["starts"]).items():
                self._places.setdefault(key, []).append((start, file.get_slice(key)))
        for places in self._places.values():
            places.sort(key=lambda place: place[0])

    def check(self, key: str, numel: int) -> None:
        """Check that the pieces make up a tensor of `numel` elements.

        Raises:
            LearnerError: they do not.
        """
        end = 0
        for start, piece in self._places.get(key, ()):
            if start != end:
                break
            end += piece.get_shape()[0]
        if end != numel:
            raise LearnerError(
                f"{self._folder}: {key} has {numel} elements, the shards lack those from {end} on",
                remedy="restore the checkpoint from a copy, or resume from another (run.resume)",
            )

    def read(self, key: str, start: int, target: Tensor) -> None:
        """Fill a flat tensor with the elements from `start` on."""
        end = start + target.numel()
        for first, piece in self._places[key]:
            low, high = max(start, first), min(end, first + piece.get_shape()[0])
            if low < high:
                target[low - start : high - start].copy_(piece[low - first : high - first])
