"""A frozen vision tower: a clip's pixels in, the features that stand for them out, computed once.

The policy and the reference model share the tower, as it never changes, and so do all rows that show the clip.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from videostr.prompt import PromptInputs


class VisionFeatures:
    """Features by clip, in host memory, in the tower's dtype.

    All that an update asks for stays until its end, whatever the limit: `trim` then drops the least recently used.

    Attributes:
        hits: features that were there when asked for, since the start.
        misses: features that the tower had to compute.
    """

    def __init__(self, tower: nn.Module, max_bytes: int) -> None:
        """The tower must be whole on this rank: ranks whose clips are there do not take part in gathering it."""
        self.tower = tower
        self.max_bytes = max_bytes
        self.hits = 0
        self.misses = 0
        self._features: OrderedDict[str, Tensor] = OrderedDict()

    def of(self, digest: str, prompt: PromptInputs) -> Tensor:
        """Features [merged patches, D] of a prompt's video, on the host.

        Args:
            digest: name of the clip, `Clip.digest`.
            prompt: holds the pixels.
        """
        if digest in self._features:
            self.hits += 1
            self._features.move_to_end(digest)
        else:
            self.misses += 1
            self._features[digest] = self._compute(prompt)
        return self._features[digest]

    @torch.no_grad()
    def _compute(self, prompt: PromptInputs) -> Tensor:
        weight = next(self.tower.parameters())
        pixels = prompt.pixel_values_videos.to(weight.device, weight.dtype)
        encoded = self.tower(pixels, grid_thw=prompt.video_grid_thw.to(weight.device))
        features: Tensor = encoded.pooler_output.cpu()
        return features

    def trim(self) -> None:
        """Keep the most recently used, `max_bytes` at most; to be called at the end of an update."""
        used = sum(features.nbytes for features in self._features.values())
        while used > self.max_bytes:
            _, oldest = self._features.popitem(last=False)
            used -= oldest.nbytes
