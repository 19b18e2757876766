"""In an engine's workers: reads back the weights that a running vLLM model computes with, under Hugging Face names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from vllm.distributed import tensor_model_parallel_all_gather

from videostr.errors import TransferError


def running_weight(model: Any, name: str, stacked: Mapping[str, tuple[str, tuple[int, ...]]]) -> Tensor:
    """Return the whole parameter of Hugging Face name `name`, read from a running vLLM model.

    Stacked layers (`ModelFamily.stacked_parameters`) are cut, tensor-parallel shards joined (every rank of the engine must
    call it for the same names).

    Raises:
        TransferError: the model has no such parameter.
    """
    path = model.hf_to_vllm_mapper.map_name(name) or name
    layer, _, attribute = path.rpartition(".")
    parent, _, leaf = layer.rpartition(".")
    layer, places = stacked.get(leaf, (leaf, ()))
    try:
        module = model.get_submodule(f"{parent}.{layer}")
        owner = model.get_submodule(parent)
        local = _local_weight(module, attribute)
    except AttributeError as error:
        raise TransferError(f"{name}: the engine's model has no such parameter ({error})") from error
    parts = [_joined(module, attribute, part, i) for i, part in enumerate(_parts(module, owner, local))]
    return torch.cat([parts[place] for place in places] if places else parts)


def _local_weight(module: Any, attribute: str) -> Tensor:
    """Return this rank's part of a parameter.

    On CPU vLLM multiplies with a packed copy of `weight`; the parameter itself is empty, or was not updated with it. So
    the product with the identity shows what the layer computes with: exact, each element being 1 * w plus zeros.
    """
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

    weight: Tensor = getattr(module, attribute)
    unpacked: Tensor | None = getattr(module, "_cpu_unpacked_conv_weight", None)
    if unpacked is not None:  # of a convolution; both are made of what was loaded, at the same time
        return unpacked
    looked_up = isinstance(module, VocabParallelEmbedding) and not isinstance(module, ParallelLMHead)
    if attribute != "weight" or looked_up or not hasattr(module, "cpu_linear"):
        return weight
    width = getattr(module, "input_size_per_partition", None) or module.embedding_dim
    packed: Tensor = module.cpu_linear(torch.eye(width, dtype=weight.dtype), weight, None)
    return packed.t()


def _parts(module: Any, owner: Any, local: Tensor) -> list[Tensor]:
    """Return this rank's shards of the layers that `module`, a part of `owner`, stacks; one part for a layer that stacks none."""
    from vllm.model_executor.layers.linear import (
        ColumnParallelLinear,
        MergedColumnParallelLinear,
        QKVParallelLinear,
    )
    from vllm.model_executor.layers.mamba.gdn.base import GatedDeltaNetAttention

    is_recurrent = isinstance(owner, GatedDeltaNetAttention)
    if is_recurrent and type(module) is ColumnParallelLinear:
        # The convolution over queries, keys and values, whose shards are cut from each of them
        sizes = (owner.key_dim, owner.key_dim, owner.value_dim)
        return list(local.split([size // owner.tp_size for size in sizes]))
    if not isinstance(module, MergedColumnParallelLinear | QKVParallelLinear):
        return [local]
    return list(local.split([size // module.tp_size for size in module.output_sizes]))


def _joined(module: Any, attribute: str, part: Tensor, place: int) -> Tensor:
    """Return a part whole: the shards of all tensor-parallel ranks joined, padding and copies cut off."""
    from vllm.model_executor.layers.linear import ColumnParallelLinear, QKVParallelLinear, RowParallelLinear
    from vllm.model_executor.layers.mamba.gdn.base import GatedDeltaNetAttention
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

    ranks = getattr(module, "tp_size", 1)
    if isinstance(module, VocabParallelEmbedding):
        whole = _gather(part, 0) if ranks > 1 else part
        return whole[: module.org_vocab_size]
    if ranks == 1:
        return part
    if isinstance(module, RowParallelLinear):
        return _gather(part, 1) if attribute == "weight" else part
    # GatedDeltaNetAttention's own weights have a number a head.
    if not isinstance(module, ColumnParallelLinear | GatedDeltaNetAttention):
        return part
    whole = _gather(part, 0)
    if isinstance(module, QKVParallelLinear) and place > 0:
        copies = module.num_kv_head_replicas
        return torch.cat(whole.chunk(ranks)[::copies])
    return whole


def _gather(part: Tensor, dim: int) -> Tensor:
    whole: Tensor = tensor_model_parallel_all_gather(part.contiguous(), dim)
    return whole
