"""A frozen vision tower: a clip's pixels in, the features that stand for them out, computed once.

The policy and the reference model share the tower, as it never changes, and so do all rows that show the clip.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn

from videostr.grpo.batch import Vision

Compute = Callable[[nn.Module, Vision], dict[str, Tensor]]
"""A tower and the vision inputs of a prompt to what takes their place in a row."""


class VisionFeatures:
    """Features by clip, in host memory, in the tower's dtype.

    All that an update asks for stays until its end, whatever the limit: `trim` then drops the least recently used.

    Attributes:
        hits: features that were there when asked for, since the start.
        misses: features that the tower had to compute.
    """

    def __init__(self, tower: nn.Module, compute: Compute, max_bytes: int) -> None:
        """Start with an empty cache.

        Args:
            tower: whole on this rank: ranks that have a clip's features do not take part in gathering it.
            compute: `features` of the model's family.
            max_bytes: what `trim` leaves.
        """
        self.tower = tower
        self.max_bytes = max_bytes
        self.hits = 0
        self.misses = 0
        self._compute = compute
        self._features: OrderedDict[str, dict[str, Tensor]] = OrderedDict()

    @torch.no_grad()
    def of(self, digest: str, vision: Vision) -> dict[str, Tensor]:
        """Return the features of a prompt's video, on the host.

        Args:
            digest: name of the clip, `Clip.digest`.
            vision: of the prompt, with the pixels.
        """
        if digest in self._features:
            self.hits += 1
            self._features.move_to_end(digest)
        else:
            self.misses += 1
            found = self._compute(self.tower, vision)
            self._features[digest] = {name: tensor.cpu() for name, tensor in found.items()}
        return self._features[digest]

    def trim(self) -> None:
        """Keep the most recently used, `max_bytes` at most; to be called at the end of an update."""
        used = sum(_bytes(features) for features in self._features.values())
        while used > self.max_bytes:
            _, oldest = self._features.popitem(last=False)
            used -= _bytes(oldest)


def _bytes(features: Vision) -> int:
    return sum(tensor.nbytes for tensor in features.values())
