"""The optimizer's state on disk, whole: any number of ranks and any ZeRO stage can continue from it.

learner/state.json                weight version, optimizer steps done, names of the shards; written last
learner/shard_00001.safetensors   `master/NAME`, `exp_avg/NAME`, `exp_avg_sq/NAME`, float32; NAME is Hugging Face's

Trained parameters only. AdamW steps on tensors of DeepSpeed's making: `Part` says where in them a parameter is. The state
is read and set there, not through DeepSpeed's `safe_get_full_*` and `safe_set_full_*`: these want moments that exist only
after a first step, and under ZeRO-3 setting fails for a parameter that the ranks do not divide evenly.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from actors.parameters import whole_shape
from videostr.errors import LearnerError
from videostr.files import write_json

STATE = "state.json"
MASTER = "master"
MOMENTS = ("exp_avg", "exp_avg_sq")
KINDS = (MASTER, *MOMENTS)
SHARD_BYTES = 2 * 2**30
"""A shard is written when so much has been gathered: bounds the memory of rank 0, up to one tensor."""


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

    `save` and `load` are collectives.
    """

    def __init__(self, engine: Any, policy: nn.Module) -> None:
        self.engine = engine
        self.stage: int = engine.zero_optimization_stage()
        self.adam: torch.optim.AdamW = engine.basic_optimizer
        self.parameters: dict[str, Any] = {n: p for n, p in policy.named_parameters() if p.requires_grad}
        self.parts: dict[str, Part] = dict(zip(self.parameters, self._parts(), strict=True))

    def save(self, folder: Path, version: int) -> None:
        """Gather one tensor after another; rank 0 writes.

        Raises:
            OSError, SafetensorError: on rank 0, when it could not write; the gathering was gone through.
        """
        step = max(int(state["step"]) for state in self._states())
        gathered = self._gathered()
        try:
            if dist.get_rank() == 0:
                folder.mkdir(parents=True, exist_ok=True)
                names = []
                for number, shard in enumerate(_shards(gathered), start=1):
                    names.append(f"shard_{number:05d}.safetensors")
                    save_file(shard, folder / names[-1])
                write_json(folder / STATE, {"version": version, "step": step, "shards": names})
        finally:
            for _ in gathered:  # a collective left out would pair another rank's with the next one here
                pass

    def load(self, folder: Path) -> tuple[int, int]:
        """Set master weights, moments, step, and the weights that the model runs with; every rank reads its own parts.

        Returns the weight version and the number of optimizer steps done.

        Raises:
            LearnerError: there is no checkpoint, or it is of other parameters; nothing was changed.
        """
        if not (folder / STATE).is_file():
            raise LearnerError(
                f"{folder}: no learner checkpoint", remedy="give a folder that `save` has written"
            )
        values = json.loads((folder / STATE).read_text(encoding="utf-8"))
        with ExitStack() as stack:
            files = [stack.enter_context(safe_open(folder / n, framework="pt")) for n in values["shards"]]
            places = {key: file for file in files for key in file.keys()}  # noqa: SIM118 - no mapping
            self._check(folder, places)
            for state in self._states():
                state["step"].fill_(values["step"])
            for name, part in self.parts.items():
                for kind in KINDS:
                    key = f"{kind}/{name}"
                    whole = places[key].get_tensor(key).view(-1)  # mapped: only what is copied is read
                    self._view(part, kind).copy_(whole[part.start : part.start + part.count])
        self._set_working_weights()
        return values["version"], values["step"]

    # ------------------------------------------------------------------------------------- where things are

    def _stepped(self) -> list[Tensor]:
        """Return the tensors that AdamW steps on."""
        if self.stage == 3:
            return list(self.engine.optimizer.fp32_partitioned_groups_flat)  # shown to AdamW one by one
        return [tensor for group in self.adam.param_groups for tensor in group["params"]]

    def _states(self) -> Iterator[dict[str, Tensor]]:
        """Yield AdamW's state of each of them; before the first step the one it would start with."""
        for tensor in self._stepped():
            state: dict[str, Tensor] = self.adam.state[tensor]
            if not state:
                state["step"] = torch.tensor(0.0)
                state.update({moment: torch.zeros_like(tensor) for moment in MOMENTS})
            yield state

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

    # ------------------------------------------------------------------------------------- read and set

    def _gathered(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every tensor, whole on rank 0; all ranks must take all of them."""
        for name, part in self.parts.items():
            shape = whole_shape(self.parameters[name])
            for kind in KINDS:
                yield f"{kind}/{name}", self._whole(part, kind, shape.numel()).view(shape)

    def _whole(self, part: Part, kind: str, numel: int) -> Tensor:
        mine = self._view(part, kind)
        if self.stage == 0:
            return mine
        # as integers: a sum of floats would make 0.0 of -0.0
        bits = torch.zeros(numel, dtype=torch.int32, device=mine.device)
        bits[part.start : part.start + part.count] = mine.view(torch.int32)
        dist.reduce(bits, dst=0)
        return bits.view(torch.float32)

    def _check(self, folder: Path, places: Mapping[str, Any]) -> None:
        ours = {f"{kind}/{n}": list(whole_shape(p)) for n, p in self.parameters.items() for kind in KINDS}
        theirs = {key: file.get_slice(key).get_shape() for key, file in places.items()}
        for key in {**ours, **theirs}:
            here, there = ours.get(key, "not trained"), theirs.get(key, "absent")
            if here != there:
                raise LearnerError(
                    f"{folder}: {key.partition('/')[2]} is {there} in the checkpoint and {here} in this model",
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


def _shards(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    for key, tensor in tensors:
        shard[key] = tensor.cpu()
        if sum(held.nbytes for held in shard.values()) >= SHARD_BYTES:
            yield shard
            shard = {}
    if shard:
        yield shard
