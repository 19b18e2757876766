"""A rank's policy from disk: whole, or under ZeRO-3 cut up tensor by tensor while it is read, so that no rank holds all of it.

One rank reads a tensor, and DeepSpeed sends it to the others before all keep their parts alone: a file is read once, whatever
the number of ranks.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from videostr.models.checkpoint import load_policy
from videostr.models.streamed import StreamedPolicy, can_stream


def load_parts(
    path: str | Path,
    dtype: torch.dtype,
    device: torch.device,
    deepspeed_config: Mapping[str, Any],
    *,
    whole: Callable[[Any], nn.Module] | None = None,
) -> Any:
    """Return a policy of which this rank holds its parts alone, each on `device`; a collective.

    Args:
        path: Hugging Face folder or hub id; a hub id and pickled weights are loaded whole, on CPU, and cut up later.
        dtype: of the policy.
        device: of the parts.
        deepspeed_config: of the engine to come, ZeRO stage 3.
        whole: returns the part of a policy that every rank keeps whole, on CPU; None keeps nothing.

    Raises:
        ModelError: the checkpoint lacks a tensor.
    """
    if not can_stream(path):
        return load_policy(path, dtype)
    streamed = StreamedPolicy(path, dtype)
    policy = streamed.policy
    kept = set(whole(policy).parameters()) if whole is not None else set()
    places = _places(policy)
    cutter = Cutter(deepspeed_config, dtype)
    cut = {name: parameter for name, parameter in policy.named_parameters() if parameter not in kept}
    # One place for all that are cut up: if each had its own, the heap would keep holes as large as all between the parts
    room = torch.empty(max(parameter.nbytes for parameter in cut.values()), dtype=torch.uint8)
    for name, parameter in policy.named_parameters():
        if name not in cut:
            value = streamed.read(name)
        elif dist.get_rank() == 0:
            value = streamed.read(name, room)
        else:
            value = room[: parameter.nbytes].view(parameter.dtype).view(parameter.shape)
        filled = nn.Parameter(value, requires_grad=parameter.requires_grad)
        for module, leaf in places[parameter]:  # several where it is tied
            module.register_parameter(leaf, filled)
        if name in cut:
            cutter.cut(filled)
    for module in policy.modules():
        for leaf, buffer in module.named_buffers(recurse=False):
            module._buffers[leaf] = buffer.to(device)
    return policy


def import_deepspeed() -> Any:
    """Return the library. Its import settles the accelerator, so it comes after the process group."""
    import deepspeed

    # An all-reduce through shared memory, which would be compiled now: not worth 40 s and the need for a C++ compiler.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    return deepspeed


class Cutter:
    """Cuts up parameters as DeepSpeed's engine does when it meets them whole."""

    def __init__(self, deepspeed_config: Mapping[str, Any], dtype: torch.dtype) -> None:
        self._config = deepspeed_config
        self._dtype = dtype
        self._first: Any = None

    def cut(self, parameter: nn.Parameter) -> None:
        """Leave a rank its part of a parameter, which is whole on rank 0; a collective."""
        if self._first is None:
            deepspeed = import_deepspeed()
            deepspeed.init_distributed(dist_init_required=False)
            holder = nn.ParameterList([parameter])
            deepspeed.zero.Init(module=holder, config_dict_or_path=dict(self._config), dtype=self._dtype)
            self._first = parameter
        else:
            self._first.convert_to_zero_parameters(param_list=[parameter])


def _places(policy: nn.Module) -> dict[nn.Parameter, list[tuple[nn.Module, str]]]:
    """Return the modules that hold each parameter, and its name in them."""
    places: dict[nn.Parameter, list[tuple[nn.Module, str]]] = {}
    for module in policy.modules():
        for leaf, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            places.setdefault(parameter, []).append((module, leaf))
    return places
