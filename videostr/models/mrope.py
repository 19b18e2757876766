"""Positions of the tokens of a prompt with a video (M-RoPE): the lengths of its runs of text and vision in, three axes out."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor


def mrope_positions(
    kinds: Sequence[int], grids: Sequence[Sequence[int]], scales: Sequence[float], merge_size: int
) -> Tensor:
    """Return the M-RoPE positions [3, T] int64 of a prompt of text and video: time, height, width.

    Text after a run of vision tokens continues from the largest position so far, over all three axes. So the models were
    trained and so vLLM samples; transformers 5.19's `get_rope_index` continues from the spatial extent alone, which differs as
    soon as a run has more temporal than spatial positions.

    Args:
        kinds: [T], 0 for a token of text.
        grids: of each run of vision tokens, patches in time, height, width.
        scales: of each run, temporal positions per temporal patch.
        merge_size: patches merged along each side into one token.
    """
    cuts = [0, *[i for i in range(1, len(kinds)) if kinds[i] != kinds[i - 1]], len(kinds)]
    waiting = iter(list(zip(grids, scales, strict=True)))
    seen = sum(kinds[first] != 0 for first, end in pairwise(cuts) if end > first)
    if seen != len(grids):
        raise ValueError(
            f"the prompt has {seen} runs of vision tokens, its video makes {len(grids)}; must be as many"
        )
    runs: list[Tensor] = []
    start = 0
    for first, end in pairwise(cuts):
        if kinds[first] == 0:
            run = torch.arange(end - first).expand(3, -1)
        else:
            (frames, height, width), scale = next(waiting)
            times = (torch.arange(frames, dtype=torch.float64) * scale).long()
            rows, columns = torch.arange(height // merge_size), torch.arange(width // merge_size)
            run = torch.stack(torch.meshgrid(times, rows, columns, indexing="ij")).reshape(3, -1)
            if run.shape[1] != end - first:
                raise ValueError(
                    f"the prompt has {end - first} tokens for a video of {run.shape[1]} merged patches, must have as many"
                )
        runs.append(run + start)
        start = int(runs[-1].max()) + 1
    return torch.cat(runs, dim=1)
