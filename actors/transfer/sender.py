"""In a learner rank: brings the engines to the learner's weights. Rank 0 sends, the others help to gather."""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any

import ray
import torch
from ray.exceptions import RayError, RayTaskError
from torch import nn
from vllm.distributed.weight_transfer import TrainerWeightTransferEngine, WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.base import TrainerInitInfo, WeightTransferUpdatePayload

from actors.transfer import source
from actors.transfer.gloo import GlooTrainerInitInfo, register_gloo
from actors.transfer.request import TransferRequest
from actors.transfer.source import LearnerWeights, Stacked
from videostr.errors import TransferError

NCCL_BUFFER_BYTES = 256 * 2**20
"""vLLM packs into two such buffers on a GPU: one is filled while the other is sent."""


class WeightSender:
    """A learner rank's end of the transfer group.

    The group outlives a transfer, and is formed again when the engines changed or a transfer failed.
    """

    def __init__(self, policy: nn.Module, rank: int, stacked: Stacked | None = None) -> None:
        """Join no group yet.

        Args:
            policy: the Hugging Face model that the rank trains.
            rank: of the learner.
            stacked: `ModelFamily.stacked_parameters`, needed where some layers are trained and others not.
        """
        self._policy = policy
        self._stacked = stacked or {}
        self._rank = rank
        self._trainer: TrainerWeightTransferEngine[Any] | None = None
        self._members: tuple[Any, ...] = ()

    def send(self, request: TransferRequest) -> dict[str, float]:
        """Bring every engine to the learner's weights; call it on every learner rank.

        Returns:
            `sync/bytes`, `sync/broadcast_seconds` on rank 0; nothing on the others.

        Raises:
            TransferError: names engine and phase. No engine of the call has usable weights then; the learner is unharmed.
        """
        weights = LearnerWeights(
            self._policy, with_digests=request.verify and self._rank == 0, stacked=self._stacked
        )
        if self._rank > 0:
            weights.finish_pass()
            return {}
        try:
            return self._send(weights, request)
        except (TransferError, RuntimeError, ValueError) as error:
            self.close()
            weights.finish_pass()
            if isinstance(error, TransferError):
                raise
            raise TransferError(
                f"weights of version {request.version} did not reach the engines: {error}",
                remedy="restart the engines, their weights are not usable",
            ) from error

    def close(self) -> None:
        """Leave the transfer group."""
        trainer, self._trainer, self._members = self._trainer, None, ()
        if trainer is not None:
            trainer.shutdown()

    def _send(self, weights: LearnerWeights, request: TransferRequest) -> dict[str, float]:
        client = EngineClient(request)
        trainer = self._join(client, weights, request)
        trainer.client, trainer.source = client, weights
        if torch.cuda.is_available():
            # Weights are read on other streams, and the optimizer step may not be done yet
            torch.cuda.current_stream().synchronize()
        start = time.monotonic()
        trainer.send_weights()
        seconds = time.monotonic() - start
        if request.verify:
            client.compare(weights.digests)
        size = sum(torch.Size(m.shape).numel() * m.dtype.itemsize for m in weights.metadata())
        return {"sync/bytes": float(size), "sync/broadcast_seconds": seconds}

    def _join(
        self, client: EngineClient, weights: LearnerWeights, request: TransferRequest
    ) -> TrainerWeightTransferEngine[Any]:
        if self._trainer is None or request.members != self._members:
            self.close()
            register_gloo()
            info = _trainer_init_info(request)
            self._trainer = WeightTransferTrainerFactory.trainer_init(info, client=client, source=weights)
            self._members = request.members
        return self._trainer


def _trainer_init_info(request: TransferRequest) -> TrainerInitInfo:
    address = {"master_address": ray.util.get_node_ip_address(), "master_port": _free_port(), "rank": 0}
    world_size = 1 + len(request.engines) * request.ranks_per_engine
    if request.backend == "gloo":
        return GlooTrainerInitInfo(
            **address,
            world_size=world_size,
            timeout_s=request.timeout_s,
            piece_bytes=source.GATHER_BYTES,
        )
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo  # needs CUDA libraries

    return NCCLTrainerInitInfo(**address, world_size=world_size, packed_buffer_size_bytes=NCCL_BUFFER_BYTES)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("", 0))
        port: int = free.getsockname()[1]
        return port


class EngineClient:
    """Control calls to all engines at once (vLLM's `VLLMWeightSyncClient`), each with a deadline."""

    def __init__(self, request: TransferRequest) -> None:
        self._request = request

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Join the transfer group, each engine at its own ranks."""
        offsets = [1 + i * self._request.ranks_per_engine for i in range(len(self._request.engines))]
        self._call("init", [({**init_info, "rank_offset": offset},) for offset in offsets])

    def start_weight_update(self) -> None:
        """Pause generation and make the model ready to load."""
        self._call_all("start")

    def update_weights(self, update_info: WeightTransferUpdatePayload) -> None:
        """Receive; returns when the broadcast is over."""
        self._call_all("update", update_info)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Name the new version, reset stale caches, resume."""
        self._call_all(
            "finish", weight_version or str(self._request.version), self._request.reset_encoder_cache
        )

    def compare(self, sent: Mapping[str, str]) -> None:
        """Compare what was sent with what every engine computes with.

        Raises:
            TransferError: names the engine and the first parameter that differs.
        """
        for engine, running in enumerate(self._call_all("digests", list(sent))):
            wrong = [name for name in sent if running[name] != sent[name]]
            if wrong:
                raise TransferError(
                    f"engine {engine}: {wrong[0]} differs from the learner's after the transfer of version "
                    f"{self._request.version} ({len(wrong)} of {len(sent)} parameters do)",
                    remedy="restart the engine and report the model: vLLM does not update this parameter",
                )

    def _call_all(self, phase: str, *arguments: Any) -> list[Any]:
        return self._call(phase, [arguments] * len(self._request.engines))

    def _call(self, phase: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Return results by engine; raise as soon as one engine fails or the deadline passes."""
        deadline = time.monotonic() + self._request.timeout_s
        engines = self._request.engines
        refs = [e.transfer.remote(phase, *a) for e, a in zip(engines, arguments, strict=True)]
        pending = refs
        while pending:
            left = max(0.0, deadline - time.monotonic())
            done, pending = ray.wait(pending, num_returns=1, timeout=left)
            if not done:
                late = refs.index(pending[0])
                raise TransferError(
                    f"engine {late}: `{phase}` did not end within sync.timeout_s = {self._request.timeout_s:g} s",
                    remedy="restart the engines, or raise the limit if the model is simply large",
                )
            number = refs.index(done[0])
            try:
                ray.get(done[0])
            except RayError as error:
                cause = error.cause if isinstance(error, RayTaskError) else error
                raise TransferError(
                    f"engine {number}: `{phase}` failed: {cause}",
                    remedy="restart the engines, their weights are not usable",
                ) from error
        return ray.get(refs)
