"""In a learner rank: its trained parameters as the stream that a weight transfer sends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor, nn
from vllm.distributed.weight_transfer import ParamMeta, WeightSource

from actors.parameters import Published, gathered, published, tensor_digest

GATHER_BYTES = 32 * 2**20
"""Parameters are gathered in pieces of about this size, so that one is gathered while others are sent and loaded."""
Stacked = Mapping[str, tuple[str, tuple[int, ...]]]
"""`ModelFamily.stacked_parameters`."""


class LearnerWeights(WeightSource):
    """The learner's trained parameters as vLLM wants them: declared first, then streamed in the same order.

    Parameters without gradient are left out: a frozen vision tower is in the engines already. But vLLM rebuilds a stacked
    layer (q, k and v in one) from what it gets, so where adapters change a part of one, all of it is sent. Under ZeRO-3 the
    stream is a collective (`deepspeed.zero.GatheredParameters` over groups of parameters): all ranks must take all of it.
    """

    def __init__(self, module: nn.Module, *, with_digests: bool, stacked: Stacked | None = None) -> None:
        whole = published(module)
        changed = {_stack(each.name, stacked or {}) for each in whole if each.is_trained}
        self.parameters = [each for each in whole if _stack(each.name, stacked or {}) in changed]
        self.with_digests = with_digests
        self.digests: dict[str, str] = {}
        """`weight_digest` of every parameter of the last pass, when asked for."""
        self._pass: Iterator[tuple[str, Tensor]] | None = None

    def metadata(self) -> list[ParamMeta]:
        """Return the name, dtype and whole shape of every parameter, without gathering."""
        return [ParamMeta(each.name, each.parameters[0].dtype, tuple(each.shape)) for each in self.parameters]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        self._pass = self._stream()
        return self._pass

    def finish_pass(self) -> None:
        """Take what a failed transfer left of the stream, or all of it, so that the other ranks' gathers end."""
        for _ in self._pass or self:
            pass

    def _stream(self) -> Iterator[tuple[str, Tensor]]:
        for group in self._groups():
            with gathered([parameter for each in group for parameter in each.parameters]):
                for each in group:
                    value = each.value()
                    # Packing holds tensors until a buffer is full, and ZeRO-3 frees them when the group is left.
                    whole = (
                        value.clone()
                        if hasattr(each.parameters[0], "ds_id") and each.layer is None
                        else value
                    )
                    if self.with_digests:
                        self.digests[each.name] = weight_digest(whole)
                    yield each.name, whole

    def _groups(self) -> Iterator[list[Published]]:
        group: list[Published] = []
        size = 0
        for each in self.parameters:
            group.append(each)
            size += each.nbytes
            if size >= GATHER_BYTES:
                yield group
                group, size = [], 0
        if group:
            yield group


def _stack(name: str, stacked: Stacked) -> str:
    """Return the name of a parameter in the engine's model: that of the layer that stacks its layer with others."""
    layer, _, attribute = name.rpartition(".")
    parent, _, leaf = layer.rpartition(".")
    return f"{parent}.{stacked.get(leaf, (leaf, ()))[0]}.{attribute}"


def weight_digest(weight: Tensor) -> str:
    """Return the SHA-256 of the elements; -0.0 counts as 0.0: a weight read back through a product loses its sign."""
    return tensor_digest(weight + 0.0)
