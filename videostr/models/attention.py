"""Attention functions that families register with transformers: for the language model's packed rows, and for the tower.

In the vision tower, whose patches attend within windows or frames, all windows of one size are one call instead of a call each.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from videostr.grpo.attention import RowAttention

ROW = "videostr_row_attention"
"""Name under which a row's `RowAttention` is given to a model, which hands it on to every attention function.

It cannot stand where a mask does: some text models make a mask of whatever is given, and lose it.
"""
INTERFACE = "videostr_row"
"""Name of `attend` among transformers' attention functions."""
TOWER_INTERFACE = "videostr_flash_windows"
"""Name of `attend_windows`; only a name with "flash" in it is given the bounds of all windows at once."""


def use_row_attention(config: Any) -> None:
    """Let the model of a configuration attend by `attend` in the language model and by `attend_windows` in its tower."""
    AttentionInterface.register(INTERFACE, attend)
    AttentionInterface.register(TOWER_INTERFACE, attend_windows)
    config.text_config._attn_implementation = INTERFACE
    config.vision_config._attn_implementation = TOWER_INTERFACE


@torch.compiler.disable  # type: ignore[untyped-decorator]  # compiled layers end here and go on after: masks differ from row to row
def attend(
    _module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,  # noqa: ARG001  # the interface's; a row needs none
    scaling: float,
    videostr_row_attention: RowAttention,
    **_: Any,
) -> tuple[Tensor, None]:
    """Return the outputs [1, T, H, D], and no weights, of a layer of the language model.

    The signature is that of transformers' attention interface. There is no dropout.
    """
    return videostr_row_attention.attend(query, key, value, scaling).transpose(1, 2), None


@torch.compiler.disable  # type: ignore[untyped-decorator]
def attend_windows(
    _module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,  # noqa: ARG001  # the interface's; windows need none
    scaling: float,
    cu_seq_lens_q: Tensor,
    **_: Any,
) -> tuple[Tensor, None]:
    """Return the outputs [1, U, H, D] of the tower's states [1, H, U, D], by transformers' attention interface.

    Patch u attends to the window [cu_seq_lens_q[w], cu_seq_lens_q[w + 1]) that holds it. The windows of an
    image are all of one size but at its edges, and a tower has hundreds a layer.
    """
    windows, places = _windows(cu_seq_lens_q)
    states = torch.stack([query[0], key[0], value[0]]).transpose(1, 2)  # [3, U, H, D]
    if len(windows) > 1:
        states = states.index_select(1, torch.cat([patches for _, patches in windows]))
    counts = [len(patches) for _, patches in windows]
    outputs = []
    for (size, _patches), part in zip(windows, states.split(counts, dim=1), strict=True):
        q, k, v = part.unflatten(1, (-1, size)).transpose(2, 3)  # each [W, H, size, D]
        found = F.scaled_dot_product_attention(q, k, v, scale=scaling)
        outputs.append(found.transpose(1, 2).flatten(0, 1))
    output = torch.cat(outputs)
    return (output.index_select(0, places) if len(windows) > 1 else output)[None], None


@lru_cache(maxsize=2)  # a tower has two kinds of layers, and hands all of a kind the same tensor
def _windows(bounds: Tensor) -> tuple[tuple[tuple[int, Tensor], ...], Tensor]:
    """Return of each size the patches [U'] of all windows, and the place of each patch [U] in the sizes' patches laid end to end.

    Kept by the tensor's identity, as sizes are read off a GPU, which stops it.
    """
    starts, sizes = bounds[:-1], bounds.diff()
    windows = tuple(
        (size, (starts[sizes == size, None] + torch.arange(size, device=starts.device)).flatten())
        for size in sizes.unique().tolist()
    )
    return windows, torch.cat([patches for _, patches in windows]).argsort()
