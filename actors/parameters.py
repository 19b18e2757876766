"""Parameters of a policy as tensors: whole where ZeRO-3 has cut them up, and their digests."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from videostr.digests import digest


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
