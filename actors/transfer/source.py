"""In a learner rank: its trained parameters as the stream that a weight transfer sends."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn
from vllm.distributed.weight_transfer import ParamMeta, WeightSource

from actors.parameters import gathered, tensor_digest, whole_shape

BUFFER_BYTES = 256 * 2**20
"""Parameters are gathered, packed and broadcast in pieces of about this size."""


class LearnerWeights(WeightSource):
    """The learner's trained parameters as vLLM wants them: declared first, then streamed in the same order.

    Parameters without gradient are left out: a frozen vision tower is in the engines already. Under ZeRO-3 the stream
    is a collective (`deepspeed.zero.GatheredParameters` over groups of parameters): all ranks must take all of it.
    """

    def __init__(self, module: nn.Module, *, with_digests: bool) -> None:
        self.parameters = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        self.with_digests = with_digests
        self.digests: dict[str, str] = {}
        """`weight_digest` of every parameter of the last pass, when asked for."""
        self._pass: Iterator[tuple[str, Tensor]] | None = None

    def metadata(self) -> list[ParamMeta]:
        """Return the name, dtype and whole shape of every parameter, without gathering."""
        return [ParamMeta(name, p.dtype, tuple(whole_shape(p))) for name, p in self.parameters]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        self._pass = self._stream()
        return self._pass

    def finish_pass(self) -> None:
        """Take what a failed transfer left of the stream, or all of it, so that the other ranks' gathers end."""
        for _ in self._pass or self:
            pass

    def _stream(self) -> Iterator[tuple[str, Tensor]]:
        for group in self._groups():
            with gathered([parameter for _, parameter in group]):
                for name, parameter in group:
                    # Packing holds tensors until a buffer is full, and ZeRO-3 frees them when the group is left.
                    whole = parameter.detach().clone() if hasattr(parameter, "ds_id") else parameter.detach()
                    if self.with_digests:
                        self.digests[name] = weight_digest(whole)
                    yield name, whole

    def _groups(self) -> Iterator[list[tuple[str, nn.Parameter]]]:
        group: list[tuple[str, nn.Parameter]] = []
        size = 0
        for name, parameter in self.parameters:
            group.append((name, parameter))
            size += whole_shape(parameter).numel() * parameter.element_size()
            if size >= BUFFER_BYTES:
                yield group
                group, size = [], 0
        if group:
            yield group


def weight_digest(weight: Tensor) -> str:
    """Return the SHA-256 of the elements; -0.0 counts as 0.0: a weight read back through a product loses its sign."""
    return tensor_digest(weight + 0.0)
