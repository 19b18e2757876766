"""The other sides of the engine benchmarks: bare AsyncLLM, and weights sent one parameter a call.

They live in the same actors and engine processes as ours, so that nothing differs but the way.
"""

from __future__ import annotations

import asyncio
import socket
import time
import uuid
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import ray
import torch
import torch.distributed as dist

from actors.rollout import RolloutWorker, engine_seed
from actors.transfer.engine import EngineExtension
from actors.transfer.request import TransferRequest
from videostr.models.checkpoint import load_policy
from videostr.ports import SampleRequest

TIMEOUT = timedelta(seconds=120)


def gloo_pair(address: str, port: int, rank: int) -> Any:
    """A group of two processes."""
    store = dist.TCPStore(address, port, 2, rank == 0, TIMEOUT, wait_for_workers=False)
    return dist.ProcessGroupGloo(store, rank, 2, TIMEOUT)


class PerTensorExtension(EngineExtension):
    """In the engine's process: receives one parameter a call."""

    pair: Any = None
    loading: float = 0.0

    def count_loading(self) -> None:
        """Count the seconds of every `load_weights` from now on."""
        model = self.model_runner.get_model()
        load = model.load_weights

        def counted(weights: Any) -> Any:
            started = time.perf_counter()
            try:
                return load(weights)
            finally:
                self.loading += time.perf_counter() - started

        model.load_weights = counted

    def loading_seconds(self) -> float:
        """Return what was counted since the last call."""
        seconds, self.loading = self.loading, 0.0
        return seconds

    def join_pair(self, address: str, port: int) -> None:
        self.pair = gloo_pair(address, port, 1)

    def receive_one(self, name: str, dtype: str, shape: Sequence[int]) -> None:
        weight = torch.empty(tuple(shape), dtype=getattr(torch, dtype))
        self.pair.broadcast(weight, 0).wait()
        self.model_runner.get_model().load_weights([(name, weight)])


class EngineWorker(RolloutWorker):
    """A rollout worker whose engine can also be asked without it."""

    def _engine_args(self) -> dict[str, Any]:
        extension = f"{PerTensorExtension.__module__}.{PerTensorExtension.__name__}"
        return {**super()._engine_args(), "worker_extension_cls": extension}

    async def forget(self) -> None:
        """Drop what was cached of earlier prompts."""
        await self._engine.reset_prefix_cache()
        await self._engine.reset_encoder_cache()

    def processor_seconds(self) -> float:
        """Of this process, in which a CPU engine computes."""
        return time.process_time()

    def _bare_inputs(self, requests: Sequence[SampleRequest]) -> list[tuple[Any, Any]]:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        inputs = []
        for request in requests:
            frames = self.frames.frames(request.prompt.clip)
            video = (np.array(frames.pixels), frames.metadata)
            prompt = {"prompt": request.prompt.text, "multi_modal_data": {"video": [video]}}
            params = SamplingParams(
                n=request.n,
                seed=engine_seed(request.seed),
                temperature=request.temperature,
                max_tokens=request.max_tokens,
                logprobs=0,
                logit_bias=self._banned,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            inputs.append((prompt, params))
        return inputs

    async def bare(self, requests: Sequence[SampleRequest]) -> tuple[float, int]:
        """Seconds and tokens of `AsyncLLM.generate` over all requests at once, frames in memory."""

        async def one(prompt: Any, params: Any) -> int:
            final = None
            async for output in self._engine.generate(prompt, params, request_id=uuid.uuid4().hex):
                final = output
            assert final is not None
            return sum(len(part.token_ids) for part in final.outputs)

        inputs = self._bare_inputs(requests)
        started = time.perf_counter()
        tokens = sum(await asyncio.gather(*(one(*each) for each in inputs)))
        return time.perf_counter() - started, tokens

    async def join_pair(self, address: str, port: int) -> None:
        await self._engine.collective_rpc("join_pair", args=(address, port))

    async def count_loading(self) -> None:
        await self._engine.collective_rpc("count_loading")

    async def loading_seconds(self) -> float:
        (seconds,) = await self._engine.collective_rpc("loading_seconds")
        return seconds

    async def receive_one(self, name: str, dtype: str, shape: Sequence[int]) -> None:
        await self._engine.collective_rpc("receive_one", args=(name, dtype, list(shape)))


class Sender:
    """A learner rank without DeepSpeed."""

    def __init__(self, path: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self.policy = load_policy(path, torch.float32)
        self.sender: Any = None
        self.pairs: dict[str, Any] = {}

    def send_weights(self, request: TransferRequest) -> dict[str, float]:
        from actors.transfer.sender import WeightSender

        self.sender = self.sender or WeightSender(self.policy, 0)
        return self.sender.send(request)

    def meet(self, name: str, other: Any) -> None:
        """Form a pair with another actor."""
        with socket.socket() as free:
            free.bind(("", 0))
            port = free.getsockname()[1]
        address = ray.util.get_node_ip_address()
        joined = other.join_pair.remote(address, port)
        self.pairs[name] = gloo_pair(address, port, 0)
        ray.get(joined)

    def send_per_tensor(self, engine: Any, version: str) -> None:
        """One call and one broadcast a parameter, as OpenRLHF does, between the same first and last call as ours."""
        ray.get(engine.transfer.remote("start"))
        for name, parameter in self.policy.named_parameters():
            dtype = str(parameter.dtype).removeprefix("torch.")
            received = engine.receive_one.remote(name, dtype, tuple(parameter.shape))
            self.pairs["engine"].broadcast(parameter.data, 0).wait()
            ray.get(received)
        ray.get(engine.transfer.remote("finish", version, True))

    def send_raw(self, peer: Any) -> float:
        """Seconds of one broadcast of as many bytes as the policy has."""
        flat = torch.cat([p.detach().reshape(-1).view(torch.uint8) for p in self.policy.parameters()])
        received = peer.receive_raw.remote(len(flat))
        time.sleep(0.05)  # until it listens
        started = time.perf_counter()
        self.pairs["peer"].broadcast(flat, 0).wait()
        ray.get(received)
        return time.perf_counter() - started

    def gather(self) -> float:
        """Seconds of one pass over the weights, put into buffers as they are sent."""
        from actors.transfer.gloo import pieces
        from actors.transfer.source import GATHER_BYTES, LearnerWeights

        started = time.perf_counter()
        weights = LearnerWeights(self.policy, with_digests=False)
        stream = iter(weights)
        for metas in pieces(weights.metadata(), GATHER_BYTES):
            torch.cat([next(stream)[1].reshape(-1) for _ in metas])
        weights.finish_pass()
        return time.perf_counter() - started

    def size(self) -> tuple[int, int]:
        """Parameters, and their bytes."""
        parameters = list(self.policy.parameters())
        return len(parameters), sum(p.numel() * p.element_size() for p in parameters)


class Peer:
    """A process that receives bytes and nothing else."""

    def join_pair(self, address: str, port: int) -> None:
        self.pair = gloo_pair(address, port, 1)

    def receive_raw(self, size: int) -> None:
        self.pair.broadcast(torch.empty(size, dtype=torch.uint8), 0).wait()
