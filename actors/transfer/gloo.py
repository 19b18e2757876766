"""Backend `gloo` of vLLM's weight transfer: over CPU what its `nccl` does on GPUs. Both ends are here."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, ClassVar, TypeVar

import torch
import torch.distributed as dist
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
    WeightTransferUpdateInfo,
)

from videostr.errors import TransferError

T = TypeVar("T")
GRACE_S = 5.0
"""How long a failed broadcast waits for an engine's own account of what went wrong."""


@functools.cache
def register_gloo() -> None:
    """Make the backend known to vLLM in this process; only the first call does anything."""
    WeightTransferEngineFactory.register_engine("gloo", GlooEngine)
    WeightTransferTrainerFactory.register_engine("gloo", GlooTrainer)


@dataclass
class GlooInitInfo(WeightTransferInitInfo):
    """What an engine needs to join the transfer group."""

    master_address: str
    master_port: int
    rank_offset: int
    world_size: int
    timeout_s: float
    piece_bytes: int
    """Size of the buffers, about; both ends cut alike."""


@dataclass
class GlooTrainerInitInfo(TrainerInitInfo):
    """What the sender needs to form the transfer group."""

    backend: ClassVar[str] = "gloo"

    master_address: str
    master_port: int
    world_size: int
    timeout_s: float
    piece_bytes: int
    """Size of the buffers, about; both ends cut alike."""


@dataclass
class GlooUpdateInfo(WeightTransferUpdateInfo):
    """The parameters of one pass, in order."""

    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]

    @property
    def metadata(self) -> list[ParamMeta]:
        """The parameters as the sender declared them."""
        parameters = zip(self.names, self.dtype_names, self.shapes, strict=True)
        return [ParamMeta(name, getattr(torch, dtype), tuple(shape)) for name, dtype, shape in parameters]


class GlooEngine(WeightTransferEngine[GlooInitInfo, GlooUpdateInfo]):
    """Receiving end: loads a buffer while the next one comes."""

    init_info_cls = GlooInitInfo
    update_info_cls = GlooUpdateInfo
    group: Any = None
    piece_bytes: int

    def init_transfer_engine(self, init_info: GlooInitInfo) -> None:
        """Join, leaving a group joined before."""
        self.shutdown()
        rank = init_info.rank_offset + self.parallel_config.rank
        self.group = _gloo_group(init_info, rank)
        self.piece_bytes = init_info.piece_bytes

    def start_weight_update(self) -> None:
        """Make the layers ready to load in checkpoint format."""
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: GlooUpdateInfo) -> None:
        """Receive and load one pass."""
        if self.group is None:
            raise TransferError("`update` came before `init`: the engine is in no transfer group")
        model: Any = self.model
        coming = map(self._receive, pieces(update_info.metadata, self.piece_bytes))
        following = next(coming, None)
        while following is not None:
            metas, buffer, work = following
            work.wait()
            following = next(coming, None)
            tensors = buffer.split([_numel(meta) for meta in metas])
            model.load_weights((m.name, t.view(m.shape)) for m, t in zip(metas, tensors, strict=True))

    def _receive(self, metas: list[ParamMeta]) -> tuple[list[ParamMeta], torch.Tensor, Any]:
        # A new buffer each time: vLLM keeps views of it until a layer is complete.
        buffer = torch.empty(sum(_numel(meta) for meta in metas), dtype=metas[0].dtype)
        return metas, buffer, self.group.broadcast(buffer, 0)

    def finish_weight_update(self) -> None:
        """Process the layers and put them in place."""
        from vllm.model_executor.model_loader.reload import finalize_layerwise_processing

        finalize_layerwise_processing(self.model, self.model_config)

    def shutdown(self) -> None:
        """Leave the group."""
        self.group = None


class GlooTrainer(TrainerWeightTransferEngine[GlooTrainerInitInfo]):
    """Sending end: gathers a buffer while the one before is on its way."""

    init_info_cls = GlooTrainerInitInfo
    group: Any = None
    piece_bytes: int

    @classmethod
    def trainer_init(
        cls, init_info: GlooTrainerInitInfo, *, client: Any, source: WeightSource | None = None
    ) -> GlooTrainer:
        """Form the group together with all engines."""
        trainer = cls(client=client, source=source, is_sender=init_info.is_sender)
        trainer.piece_bytes = init_info.piece_bytes
        payload = asdict(
            GlooInitInfo(
                master_address=init_info.master_address,
                master_port=init_info.master_port,
                rank_offset=1,
                world_size=init_info.world_size,
                timeout_s=init_info.timeout_s,
                piece_bytes=init_info.piece_bytes,
            )
        )
        trainer.group = _meet(
            lambda: client.init_weight_transfer_engine(payload), lambda: _gloo_group(init_info, 0)
        )
        return trainer

    def send_weights(self) -> None:
        """Send one pass of the source to all engines."""
        source = self.source
        if source is None:
            raise TransferError(
                "the sender was given no weights", remedy="pass a WeightSource to trainer_init"
            )
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
        stream, sending = iter(source), None
        for metas in pieces(metadata, self.piece_bytes):
            buffer = torch.cat([next(stream)[1].reshape(-1) for _ in metas]).cpu()
            if sending is not None:
                sending.wait()
            sending = self.group.broadcast(buffer, 0)
        if sending is not None:
            sending.wait()
        for _ in stream:
            pass

    def shutdown(self) -> None:
        """Leave the group."""
        self.group = None


def _gloo_group(info: GlooInitInfo | GlooTrainerInitInfo, rank: int) -> Any:
    """Return a separate process group, next to the default one of the learner or the engine."""
    timeout = timedelta(seconds=info.timeout_s)
    store = dist.TCPStore(
        info.master_address, info.master_port, info.world_size, rank == 0, timeout, wait_for_workers=False
    )
    return dist.ProcessGroupGloo(store, rank, info.world_size, timeout)


def pieces(metadata: Sequence[ParamMeta], nbytes: int) -> Iterator[list[ParamMeta]]:
    """Yield the buffers of a pass, each of one dtype and about `nbytes`."""
    piece: list[ParamMeta] = []
    size = 0
    for meta in metadata:
        if piece and (size >= nbytes or meta.dtype != piece[0].dtype):
            yield piece
            piece, size = [], 0
        piece.append(meta)
        size += _numel(meta) * meta.dtype.itemsize
    if piece:
        yield piece


def _numel(meta: ParamMeta) -> int:
    return torch.Size(meta.shape).numel()


def _meet(remote: Callable[[], None], local: Callable[[], T]) -> T:
    """Run the engines' half of a collective in a thread while the sender's runs here.

    When the sender's fails, the engines may hang in theirs: their call gets `GRACE_S` to say why, and is then left to its own
    deadline; joining it could take forever.
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
