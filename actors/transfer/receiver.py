"""In a rollout actor: the control calls of a weight transfer, passed on to the engine's `AsyncLLM`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vllm.distributed.weight_transfer.base import WeightTransferInitRequest, WeightTransferUpdateRequest

from videostr.errors import TransferError

TRIM_EVERY = 20
"""Transfers between two releases of free memory, each of which takes some milliseconds."""


class WeightReceiver:
    """One engine's end of a transfer; each phase is a method."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self._finished = 0

    async def init(self, init_info: dict[str, Any]) -> None:
        """Join a transfer group, leaving the one before: vLLM's NCCL engine would keep its communicator."""
        await self.engine.shutdown_weight_transfer_engine()
        await self.engine.init_weight_transfer_engine(WeightTransferInitRequest(init_info=init_info))

    async def pause(self) -> None:
        """Freeze requests in flight; may be called again.

        `AsyncLLM.pause_generation` would sleep for 20 ms on top, for callers who count outputs before and after it.
        """
        await self.engine.engine_core.pause_scheduler_async(mode="keep", clear_cache=False)

    async def start(self) -> None:
        """Freeze requests in flight and make the model ready to load."""
        await self.pause()
        await self.engine.start_weight_update()

    async def update(self, update_info: dict[str, Any]) -> None:
        """Receive one pass of weights."""
        await self.engine.update_weights(WeightTransferUpdateRequest(update_info=update_info))

    async def finish(self, version: str, reset_encoder_cache: bool) -> None:
        """Serve the new weights under `version`.

        vLLM clears neither cache itself on an update (vllm issue 44910). Keys and values are always stale; the
        embeddings of videos only when the vision tower was trained.
        """
        await self.engine.finish_weight_update(weight_version=version)
        if not await self.engine.reset_prefix_cache(reset_running_requests=True):
            raise TransferError(
                "the prefix cache could not be reset: blocks are still in use", remedy="restart the engine"
            )
        if reset_encoder_cache:
            await self.engine.reset_encoder_cache()
        await self.engine.resume_generation()
        self._finished += 1
        if self._finished % TRIM_EVERY == 0:
            await self.engine.collective_rpc("give_memory_back")

    async def digests(self, names: Sequence[str]) -> dict[str, str]:
        """Return `weight_digest` of the weights that the engine computes with, by Hugging Face name."""
        found: list[dict[str, str]] = await self.engine.collective_rpc("weight_digests", args=(list(names),))
        return found[0]
