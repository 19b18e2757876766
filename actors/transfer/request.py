"""What is to be transferred: the driver's order to the learner ranks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from videostr.config.schema import Config


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferRequest:
    """One weight transfer."""

    engines: tuple[Any, ...]
    """Actor handles of the engines that receive."""
    ranks_per_engine: int
    """Ranks of each engine in the transfer group, one per tensor-parallel worker."""
    backend: str
    """`nccl` or `gloo`."""
    version: int
    """Weight version that the engines serve afterwards."""
    timeout_s: float
    """Deadline of each control call."""
    verify: bool
    """Compare what every engine computes with to what was sent."""
    reset_encoder_cache: bool
    """Drop cached embeddings of videos: the vision tower was trained."""

    @property
    def members(self) -> tuple[Any, ...]:
        """What the transfer group consists of; it is formed again when this changes."""
        return (self.backend, self.ranks_per_engine, *self.engines)


def transfer_request(config: Config, engines: tuple[Any, ...], version: int) -> TransferRequest:
    """Return the transfer of weights of a version to these engines, as the config wants it done."""
    return TransferRequest(
        engines=engines,
        ranks_per_engine=config.rollout.tensor_parallel_size,
        backend=transfer_backend(config),
        version=version,
        timeout_s=config.sync.timeout_s,
        verify=config.sync.verify,
        reset_encoder_cache=not config.model.freeze_vision,
    )


def transfer_backend(config: Config) -> str:
    """Return `sync.backend`, or what `auto` stands for: nccl for engines on GPUs, else gloo."""
    if config.sync.backend != "auto":
        return config.sync.backend
    return "nccl" if config.rollout.num_gpus > 0 else "gloo"
