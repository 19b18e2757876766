"""Parameters of a policy as tensors: whole where ZeRO-3 has cut them up, with their adapters merged, and their digests."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from videostr.digests import digest
from videostr.grpo.lora import LoraLinear, adapted_layers


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A parameter as engines and checkpoints have it."""

    name: str
    """Hugging Face's."""
    parameters: tuple[nn.Parameter, ...]
    """What its value is made of: itself, and the matrices of its adapter."""
    layer: LoraLinear | None
    """The layer whose adapter is merged into it."""

    @property
    def is_trained(self) -> bool:
        """Whether the optimizer changes it."""
        return any(parameter.requires_grad for parameter in self.parameters)

    @property
    def shape(self) -> torch.Size:
        """Its whole shape."""
        return whole_shape(self.parameters[0])

    @property
    def nbytes(self) -> int:
        """Bytes of its value."""
        return self.shape.numel() * self.parameters[0].element_size()

    def value(self) -> Tensor:
        """Return its value; its parameters have been `gathered`, and the tensor is valid until they are let go."""
        return self.parameters[0].detach() if self.layer is None else self.layer.merged_weight()


def published(policy: nn.Module) -> list[Published]:
    """Return the parameters of a policy as engines and checkpoints have them, in order; adapters are merged."""
    layers = adapted_layers(policy)
    found = []
    for name, parameter in policy.named_parameters():
        owner, _, leaf = name.rpartition(".")
        layer = layers.get(owner)
        if layer is None or leaf == "bias":
            found.append(Published(name=name, parameters=(parameter,), layer=None))
        elif leaf == "weight":
            parts = (parameter, layer.lora_A, layer.lora_B)
            found.append(Published(name=name, parameters=parts, layer=layer))
    return found


def whole_shape(parameter: nn.Parameter) -> torch.Size:
    """Return the shape of a parameter that ZeRO-3 may have emptied."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))


def gathered(parameters: Sequence[nn.Parameter]) -> contextlib.AbstractContextManager[Any]:
    """Return a context in which the parameters are whole on every rank; entering it is a collective under ZeRO-3."""
    if not any(hasattr(parameter, "ds_id") for parameter in parameters):
        return contextlib.nullcontext()
    import deepspeed  # a learner rank has it already, an engine process must not pay for it

    context: contextlib.AbstractContextManager[Any] = deepspeed.zero.GatheredParameters(parameters)
    return context


def tensor_digest(tensor: Tensor) -> str:
    """Return the SHA-256 of a tensor's bytes."""
    flat = tensor.contiguous().cpu().reshape(-1).view(torch.uint8)
    return digest(flat.numpy().data)
