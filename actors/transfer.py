"""Weights from the learner into the engines, through vLLM's weight-transfer API; only this file knows that API.

In: the learner's parameters under Hugging Face names, whatever the ZeRO stage. Out: engines that serve them under a new
weight version. Three processes import this module, each for its own half:

    learner rank     `send_from_learner`: gathers, packs, broadcasts (rank 0 alone speaks to the engines)
    rollout actor    `WeightReceiver`: hands the control calls on to `AsyncLLM`, resets the caches that went stale
    engine process   `EngineExtension`: reads the running weights back; importing it registers the backend `gloo`

Engine processes come here through vLLM's `worker_extension_cls` and `scheduler_cls` (different processes with tensor
parallelism), not through an entry point: the project is not installed where it runs from Ray's working directory. The
driver stays away: the import brings all of vLLM (20 s).

Backend `nccl` is vLLM's own; `gloo` does the same over CPU. Every engine has its own ranks in the transfer group:
engine i starts at 1 + i * ranks per engine, the sender is rank 0. (vLLM's own Ray client gives all engines the same
offset: right for the replicas of one deployment, a collision for engines of their own.)
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import multiprocessing
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, ClassVar, TypeVar
from weakref import WeakKeyDictionary

import ray
import torch
import torch.distributed as dist
from ray.exceptions import RayError, RayTaskError
from torch import Tensor, nn
from vllm.distributed import tensor_model_parallel_all_gather
from vllm.distributed.weight_transfer import (
    ParamMeta,
    TrainerWeightTransferEngine,
    WeightSource,
    WeightTransferEngine,
    WeightTransferEngineFactory,
    WeightTransferTrainerFactory,
)
from vllm.distributed.weight_transfer.base import (
    TrainerInitInfo,
    WeightTransferInitInfo,
    WeightTransferInitRequest,
    WeightTransferUpdateInfo,
    WeightTransferUpdatePayload,
    WeightTransferUpdateRequest,
)
from vllm.v1.core.sched import output

from videostr.errors import TransferError
from videostr.models.base import family_of

T = TypeVar("T")

BUFFER_BYTES = 256 * 2**20
"""Parameters are gathered, packed and broadcast in pieces of about this size."""
GRACE_S = 5.0
"""How long a failed broadcast waits for an engine's own account of what went wrong."""

# ------------------------------------------------------------------------------------------------ learner: weights


class LearnerWeights(WeightSource):
    """The learner's trained parameters as vLLM wants them: declared first, then streamed in the same order.

    Parameters without gradient are left out: a frozen vision tower is in the engines already. Under ZeRO-3 the stream
    is a collective (`deepspeed.zero.GatheredParameters` over groups of parameters): all ranks must take all of it.
    """

    def __init__(self, module: nn.Module, *, with_digests: bool) -> None:
        self.parameters = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        self.with_digests = with_digests
        self.digests: dict[str, str] = {}
        """`digest` of every parameter of the last pass, when asked for."""
        self._pass: Iterator[tuple[str, Tensor]] | None = None

    def metadata(self) -> list[ParamMeta]:
        """Name, dtype and whole shape of every parameter, without gathering."""
        return [ParamMeta(name, p.dtype, tuple(_whole_shape(p))) for name, p in self.parameters]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        self._pass = self._stream()
        return self._pass

    def finish_pass(self) -> None:
        """Take what a failed transfer left of the stream, or all of it, so that the other ranks' gathers end."""
        for _ in self._pass or self:
            pass

    def _stream(self) -> Iterator[tuple[str, Tensor]]:
        for group in self._groups():
            with _gathered([parameter for _, parameter in group]):
                for name, parameter in group:
                    # Packing holds tensors until a buffer is full, and ZeRO-3 frees them when the group is left.
                    whole = parameter.detach().clone() if hasattr(parameter, "ds_id") else parameter.detach()
                    if self.with_digests:
                        self.digests[name] = digest(whole)
                    yield name, whole

    def _groups(self) -> Iterator[list[tuple[str, nn.Parameter]]]:
        group: list[tuple[str, nn.Parameter]] = []
        size = 0
        for name, parameter in self.parameters:
            group.append((name, parameter))
            size += _whole_shape(parameter).numel() * parameter.element_size()
            if size >= BUFFER_BYTES:
                yield group
                group, size = [], 0
        if group:
            yield group


def _whole_shape(parameter: nn.Parameter) -> torch.Size:
    """Shape of a parameter that ZeRO-3 may have emptied."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))


def _gathered(parameters: Sequence[nn.Parameter]) -> contextlib.AbstractContextManager[Any]:
    if not any(hasattr(parameter, "ds_id") for parameter in parameters):
        return contextlib.nullcontext()
    import deepspeed  # a learner rank has it already, an engine process must not pay for it

    gathered: contextlib.AbstractContextManager[Any] = deepspeed.zero.GatheredParameters(parameters)
    return gathered


def digest(tensor: Tensor) -> str:
    """SHA-256 of the elements; -0.0 counts as 0.0, since a weight read back through a product loses its sign."""
    canonical = (tensor + 0.0).contiguous().cpu()
    return hashlib.sha256(canonical.reshape(-1).view(torch.uint8).numpy().data).hexdigest()


# ------------------------------------------------------------------------------------------------ learner: sending


def send_from_learner(engine: Any, policy: nn.Module, rank: int, init: Mapping[str, Any]) -> dict[str, float]:
    """Bring every engine to the learner's weights; call it on every learner rank.

    The transfer group outlives the call and is formed anew when the engines changed or a transfer failed.

    Args:
        engine: the DeepSpeed engine, whose process group says how the ranks stand.
        policy: the Hugging Face model inside it.
        rank: number of this learner rank; rank 0 sends.
        init: `engines` (actor handles), `ranks_per_engine`, `backend` ("nccl" or "gloo"), `version`, `timeout_s` (of
            each control call), `verify`, `reset_encoder_cache`.

    Returns:
        `sync/bytes`, `sync/broadcast_seconds` on rank 0; nothing on the others.

    Raises:
        TransferError: names engine and phase. No engine of the call has usable weights then; the learner is unharmed.
    """
    del engine
    sender = _senders.setdefault(policy, WeightSender())
    return sender.send(policy, rank, init)


class WeightSender:
    """A learner rank's end of the transfer group."""

    def __init__(self) -> None:
        self._trainer: TrainerWeightTransferEngine[Any] | None = None
        self._members: tuple[Any, ...] = ()

    def send(self, policy: nn.Module, rank: int, init: Mapping[str, Any]) -> dict[str, float]:
        """See `send_from_learner`."""
        weights = LearnerWeights(policy, with_digests=bool(init["verify"]) and rank == 0)
        if rank > 0:
            weights.finish_pass()
            return {}
        try:
            return self._send(weights, init)
        except (TransferError, RuntimeError, ValueError) as error:
            self.close()
            weights.finish_pass()
            if isinstance(error, TransferError):
                raise
            raise TransferError(
                f"weights of version {init['version']} did not reach the engines: {error}; "
                "restart the engines, their weights are not usable"
            ) from error

    def close(self) -> None:
        """Leave the transfer group."""
        trainer, self._trainer, self._members = self._trainer, None, ()
        if trainer is not None:
            trainer.shutdown()

    def _send(self, weights: LearnerWeights, init: Mapping[str, Any]) -> dict[str, float]:
        client = EngineClient(init)
        trainer = self._join(client, weights, init)
        trainer.client, trainer.source = client, weights
        if (
            torch.cuda.is_available()
        ):  # they are read on streams of their own, and the step may not be done yet
            torch.cuda.current_stream().synchronize()
        start = time.monotonic()
        trainer.send_weights()
        seconds = time.monotonic() - start
        if init["verify"]:
            client.compare(weights.digests)
        size = sum(torch.Size(m.shape).numel() * m.dtype.itemsize for m in weights.metadata())
        return {"sync/bytes": float(size), "sync/broadcast_seconds": seconds}

    def _join(
        self, client: EngineClient, weights: LearnerWeights, init: Mapping[str, Any]
    ) -> TrainerWeightTransferEngine[Any]:
        members = (init["backend"], init["ranks_per_engine"], *init["engines"])
        if self._trainer is None or members != self._members:
            self.close()
            info = _trainer_init_info(init)
            self._trainer = WeightTransferTrainerFactory.trainer_init(info, client=client, source=weights)
            self._members = members
        return self._trainer


_senders: WeakKeyDictionary[nn.Module, WeightSender] = WeakKeyDictionary()
"""One sender per policy of this process: its transfer group outlives a publication."""


def _trainer_init_info(init: Mapping[str, Any]) -> TrainerInitInfo:
    address = {"master_address": ray.util.get_node_ip_address(), "master_port": _free_port(), "rank": 0}
    world_size = 1 + len(init["engines"]) * init["ranks_per_engine"]
    if init["backend"] == "gloo":
        return GlooTrainerInitInfo(**address, world_size=world_size, timeout_s=init["timeout_s"])
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo  # needs CUDA libraries

    return NCCLTrainerInitInfo(**address, world_size=world_size, packed_buffer_size_bytes=BUFFER_BYTES)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("", 0))
        port: int = free.getsockname()[1]
        return port


class EngineClient:
    """Control calls to all engines at once (vLLM's `VLLMWeightSyncClient`), each with a deadline."""

    def __init__(self, init: Mapping[str, Any]) -> None:
        self.engines: Sequence[Any] = init["engines"]
        self.ranks_per_engine: int = init["ranks_per_engine"]
        self.version: int = init["version"]
        self.timeout_s: float = init["timeout_s"]
        self.reset_encoder_cache: bool = init["reset_encoder_cache"]

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Join the transfer group, each engine at its own ranks."""
        offsets = [1 + i * self.ranks_per_engine for i in range(len(self.engines))]
        self._call("init", [({**init_info, "rank_offset": offset},) for offset in offsets])

    def start_weight_update(self) -> None:
        """Pause generation and make the model ready to load."""
        self._call_all("start")

    def update_weights(self, update_info: WeightTransferUpdatePayload) -> None:
        """Receive; returns when the broadcast is over."""
        self._call_all("update", update_info)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Name the new version, reset stale caches, resume."""
        self._call_all("finish", weight_version or str(self.version), self.reset_encoder_cache)

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
                    f"{self.version} ({len(wrong)} of {len(sent)} parameters do); restart the engine and report the "
                    "model: vLLM does not update this parameter"
                )

    def _call_all(self, phase: str, *arguments: Any) -> list[Any]:
        return self._call(phase, [arguments] * len(self.engines))

    def _call(self, phase: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Results by engine; raises as soon as one engine fails, or when the deadline passes."""
        deadline = time.monotonic() + self.timeout_s
        refs = [e.transfer.remote(phase, *a) for e, a in zip(self.engines, arguments, strict=True)]
        pending = refs
        while pending:
            left = max(0.0, deadline - time.monotonic())
            done, pending = ray.wait(pending, num_returns=1, timeout=left)
            if not done:
                late = refs.index(pending[0])
                raise TransferError(
                    f"engine {late}: `{phase}` did not end within sync.timeout_s = {self.timeout_s:g} s; "
                    "restart the engines, or raise the limit if the model is simply large"
                )
            number = refs.index(done[0])
            try:
                ray.get(done[0])
            except RayError as error:
                cause = error.cause if isinstance(error, RayTaskError) else error
                raise TransferError(
                    f"engine {number}: `{phase}` failed: {cause}; restart the engines, their weights are not usable"
                ) from error
        return ray.get(refs)


# ------------------------------------------------------------------------------------------------ rollout actor


TRIM_EVERY = 20
"""Publications; it takes some milliseconds."""


class WeightReceiver:
    """The control calls of a transfer, on the side of one engine's `AsyncLLM`."""

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
                "the prefix cache could not be reset: blocks are still in use; restart the engine"
            )
        if reset_encoder_cache:
            await self.engine.reset_encoder_cache()
        await self.engine.resume_generation()
        self._finished += 1
        if self._finished % TRIM_EVERY == 0:
            await self.engine.collective_rpc("give_memory_back")

    async def digests(self, names: Sequence[str]) -> dict[str, str]:
        """`digest` of the weights that the engine computes with, by Hugging Face name."""
        found: list[dict[str, str]] = await self.engine.collective_rpc("weight_digests", args=(list(names),))
        return found[0]


# ------------------------------------------------------------------------------------------------ engine process


def _end_with_parent() -> None:
    """Let the kernel end this process with the rollout actor that started it (Linux).

    vLLM notices a dead parent by itself, but not while it hangs, and a hung engine is what actors are killed for.
    """
    if sys.platform == "linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def _keep_videos() -> None:
    """Let every request keep its pixels in the worker.

    vLLM drops them from a request whose prompt lies in the prefix cache, as that of all completions of a group but the first
    does. A publication empties the caches under requests in flight; the video is then encoded anew for the first of them that
    goes on, and without its pixels the engine dies ("Expected number of multimodal embeddings"; vLLM 0.32).
    """
    output.strip_covered_mm_data = lambda features, *_args, **_options: features


# An engine process; actors are no children of multiprocessing.
if multiprocessing.parent_process() is not None:
    _end_with_parent()
    _keep_videos()


def scheduler(**arguments: Any) -> Any:
    """vLLM's own scheduler: named as `scheduler_cls` so that the process that schedules imports this module."""
    config = arguments["vllm_config"].scheduler_config
    config.scheduler_cls = None
    return config.get_scheduler_cls()(**arguments)


class EngineExtension:
    """Mixed into vLLM's worker by `worker_extension_cls`."""

    model_config: Any
    model_runner: Any

    def weight_digests(self, names: list[str]) -> dict[str, str]:
        """`digest` of every named parameter as the model computes with it now.

        Raises:
            TransferError: the model has no such parameter.
        """
        model, dtype = self.model_runner.get_model(), self.model_config.dtype
        with torch.inference_mode():
            # The CPU engine keeps some biases in float32 whatever the model's dtype.
            stacked = family_of(self.model_config.hf_config).stacked_parameters
            return {name: digest(running_weight(model, name, stacked).to(dtype)) for name in names}

    def give_memory_back(self) -> None:
        """Give free pages back to the system.

        Batches of ever other sizes leave holes in glibc's heap: memory in use stays, resident memory of a CPU engine grew by
        200 MiB in half an hour.
        """
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def running_weight(model: Any, name: str, stacked: Mapping[str, tuple[str, tuple[int, ...]]]) -> Tensor:
    """The whole parameter of Hugging Face name `name`, read from a running vLLM model.

    Stacked layers (`ModelFamily.stacked_parameters`) are cut, tensor-parallel shards joined (every rank of the engine must
    call it for the same names).

    Raises:
        TransferError: the model has no such parameter.
    """
    path = model.hf_to_vllm_mapper.map_name(name) or name
    layer, _, attribute = path.rpartition(".")
    parent, _, leaf = layer.rpartition(".")
    layer, places = stacked.get(leaf, (leaf, ()))
    try:
        module = model.get_submodule(f"{parent}.{layer}")
        local = _local_weight(module, attribute)
    except AttributeError as error:
        raise TransferError(f"{name}: the engine's model has no such parameter ({error})") from error
    parts = [_joined(module, attribute, part, i) for i, part in enumerate(_parts(module, local))]
    return torch.cat([parts[place] for place in places] if places else parts)


def _local_weight(module: Any, attribute: str) -> Tensor:
    """A parameter of this rank.

    On CPU vLLM multiplies with a packed copy of `weight`; the parameter itself is empty, or was not updated with it. So
    the product with the identity shows what the layer computes with: exact, each element being 1 * w plus zeros.
    """
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

    weight: Tensor = getattr(module, attribute)
    looked_up = isinstance(module, VocabParallelEmbedding) and not isinstance(module, ParallelLMHead)
    if attribute != "weight" or looked_up or not hasattr(module, "cpu_linear"):
        return weight
    width = getattr(module, "input_size_per_partition", None) or module.embedding_dim
    packed: Tensor = module.cpu_linear(torch.eye(width, dtype=weight.dtype), weight, None)
    return packed.t()


def _parts(module: Any, local: Tensor) -> list[Tensor]:
    """This rank's shards of the layers that `module` stacks; one part for a layer that stacks none."""
    from vllm.model_executor.layers.linear import MergedColumnParallelLinear, QKVParallelLinear

    if not isinstance(module, MergedColumnParallelLinear | QKVParallelLinear):
        return [local]
    return list(local.split([size // module.tp_size for size in module.output_sizes]))


def _joined(module: Any, attribute: str, part: Tensor, place: int) -> Tensor:
    """A part whole: the shards of all tensor-parallel ranks together, padding and copies cut off."""
    from vllm.model_executor.layers.linear import ColumnParallelLinear, QKVParallelLinear, RowParallelLinear
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

    ranks = getattr(module, "tp_size", 1)
    if isinstance(module, VocabParallelEmbedding):
        whole = _gather(part, 0) if ranks > 1 else part
        return whole[: module.org_vocab_size]
    if ranks == 1:
        return part
    if isinstance(module, RowParallelLinear):
        return _gather(part, 1) if attribute == "weight" else part
    if not isinstance(module, ColumnParallelLinear):
        return part
    whole = _gather(part, 0)
    if isinstance(module, QKVParallelLinear) and place > 0:
        copies = module.num_kv_head_replicas
        return torch.cat(whole.chunk(ranks)[::copies])
    return whole


def _gather(part: Tensor, dim: int) -> Tensor:
    whole: Tensor = tensor_model_parallel_all_gather(part.contiguous(), dim)
    return whole


# ------------------------------------------------------------------------------------------------ backend `gloo`


@dataclass
class GlooInitInfo(WeightTransferInitInfo):
    """What an engine needs to join the transfer group."""

    master_address: str
    master_port: int
    rank_offset: int
    world_size: int
    timeout_s: float


@dataclass
class GlooTrainerInitInfo(TrainerInitInfo):
    """What the sender needs to form the transfer group."""

    backend: ClassVar[str] = "gloo"

    master_address: str
    master_port: int
    world_size: int
    timeout_s: float


@dataclass
class GlooUpdateInfo(WeightTransferUpdateInfo):
    """The parameters of one pass, in order."""

    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]

    @property
    def metadata(self) -> list[ParamMeta]:
        """As the sender declared them."""
        parameters = zip(self.names, self.dtype_names, self.shapes, strict=True)
        return [ParamMeta(name, getattr(torch, dtype), tuple(shape)) for name, dtype, shape in parameters]


class GlooEngine(WeightTransferEngine[GlooInitInfo, GlooUpdateInfo]):
    """Receiving end: loads every buffer as it comes."""

    init_info_cls = GlooInitInfo
    update_info_cls = GlooUpdateInfo
    group: Any = None

    def init_transfer_engine(self, init_info: GlooInitInfo) -> None:
        """Join, leaving a group joined before."""
        self.shutdown()
        rank = init_info.rank_offset + self.parallel_config.rank
        self.group = _gloo_group(init_info, rank)

    def start_weight_update(self) -> None:
        """Make the layers ready to load in checkpoint format."""
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: GlooUpdateInfo) -> None:
        """Receive and load one pass."""
        if self.group is None:
            raise TransferError("`update` came before `init`: the engine is in no transfer group")
        model: Any = self.model
        for metas in _chunks(update_info.metadata):
            # A new buffer each time: vLLM keeps views of it until a layer is complete.
            buffer = torch.empty(sum(_numel(meta) for meta in metas), dtype=metas[0].dtype)
            self.group.broadcast(buffer, 0).wait()
            tensors = buffer.split([_numel(meta) for meta in metas])
            model.load_weights((m.name, t.view(m.shape)) for m, t in zip(metas, tensors, strict=True))

    def finish_weight_update(self) -> None:
        """Process the layers and put them in place."""
        from vllm.model_executor.model_loader.reload import finalize_layerwise_processing

        finalize_layerwise_processing(self.model, self.model_config)

    def shutdown(self) -> None:
        """Leave the group."""
        self.group = None


class GlooTrainer(TrainerWeightTransferEngine[GlooTrainerInitInfo]):
    """Sending end."""

    init_info_cls = GlooTrainerInitInfo
    group: Any = None

    @classmethod
    def trainer_init(
        cls, init_info: GlooTrainerInitInfo, *, client: Any, source: WeightSource | None = None
    ) -> GlooTrainer:
        """Form the group together with all engines."""
        trainer = cls(client=client, source=source, is_sender=init_info.is_sender)
        payload = asdict(
            GlooInitInfo(
                master_address=init_info.master_address,
                master_port=init_info.master_port,
                rank_offset=1,
                world_size=init_info.world_size,
                timeout_s=init_info.timeout_s,
            )
        )
        trainer.group = _meet(
            lambda: client.init_weight_transfer_engine(payload), lambda: _gloo_group(init_info, 0)
        )
        return trainer

    def send_weights(self) -> None:
        """One pass of the source into all engines."""
        source = self.source
        if source is None:
            raise TransferError("the sender was given no weights; pass a WeightSource to trainer_init")
        metadata = source.metadata()
        info = GlooUpdateInfo(
            names=[m.name for m in metadata],
            dtype_names=[str(m.dtype).removeprefix("torch.") for m in metadata],
            shapes=[list(m.shape) for m in metadata],
        )
        self.client.start_weight_update()
        _meet(lambda: self.client.update_weights(asdict(info)), lambda: self._broadcast(source, metadata))
        self.client.finish_weight_update()

    def _broadcast(self, source: WeightSource, metadata: Sequence[ParamMeta]) -> None:
        stream = iter(source)
        for metas in _chunks(metadata):
            tensors = [next(stream)[1].reshape(-1) for _ in metas]
            self.group.broadcast(torch.cat(tensors).cpu(), 0).wait()
        for _ in stream:
            pass

    def shutdown(self) -> None:
        """Leave the group."""
        self.group = None


def _gloo_group(info: GlooInitInfo | GlooTrainerInitInfo, rank: int) -> Any:
    """A process group of its own, beside the default one of the learner or the engine."""
    timeout = timedelta(seconds=info.timeout_s)
    store = dist.TCPStore(
        info.master_address, info.master_port, info.world_size, rank == 0, timeout, wait_for_workers=False
    )
    return dist.ProcessGroupGloo(store, rank, info.world_size, timeout)


def _chunks(metadata: Sequence[ParamMeta]) -> Iterator[list[ParamMeta]]:
    """Cut a pass into buffers of one dtype and about `BUFFER_BYTES`; both ends cut alike."""
    chunk: list[ParamMeta] = []
    size = 0
    for meta in metadata:
        if chunk and (size >= BUFFER_BYTES or meta.dtype != chunk[0].dtype):
            yield chunk
            chunk, size = [], 0
        chunk.append(meta)
        size += _numel(meta) * meta.dtype.itemsize
    if chunk:
        yield chunk


def _numel(meta: ParamMeta) -> int:
    return torch.Size(meta.shape).numel()


def _meet(remote: Callable[[], None], local: Callable[[], T]) -> T:
    """Run the engines' half of a collective in a thread while ours runs here.

    When ours fails, the engines may hang in theirs: their call is given `GRACE_S` to say why, and then left to its own
    deadline; joining it could take for ever.
    """
    executor = ThreadPoolExecutor(max_workers=1)
    call: Future[None] = executor.submit(remote)
    try:
        result = local()
    except RuntimeError:
        wait((call,), timeout=GRACE_S)
        if call.done():
            call.result()
        raise
    finally:
        executor.shutdown(wait=False)
    call.result()
    return result


WeightTransferEngineFactory.register_engine("gloo", GlooEngine)
WeightTransferTrainerFactory.register_engine("gloo", GlooTrainer)
