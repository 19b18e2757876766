"""The process of one DeepSpeed rank, a plain class that `RayLearner` runs as a Ray actor."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import ray
import torch
import torch.distributed as dist

from actors.learner.policy import TrainedPolicy
from actors.learner.rows import RankRows, all_lengths
from actors.learner.snapshot import LEARNER, Snapshot, SnapshotTaker, Written
from actors.learner.state import LearnerState
from actors.learner.update import Updater
from actors.names import Named
from actors.parameters import tensor_digest
from actors.sampling import fetched
from videostr.config.schema import Config
from videostr.errors import CheckpointError
from videostr.groups import LearnerBatch
from videostr.types import Failure, Update
from videostr.video import FrameStore

if TYPE_CHECKING:
    from actors.transfer.request import TransferRequest
    from actors.transfer.sender import WeightSender


class LearnerWorker(Named):
    """One DeepSpeed rank.

    Call `connect` and `start` on every rank, then the other methods on every rank together: each is a collective.
    The learner draws no random numbers (no family has dropout), so its state is weights, optimizer and version.

    Attributes:
        rank: number of this rank.
        trained: policy and engine.
        updater: learns from batches; has the weight version.
    """

    def __init__(self, rank: int, config: Config, frame_store: str) -> None:
        self.rank = rank
        self.config = config
        self.frames = FrameStore(frame_store)
        self.on_gpu = config.learner.num_gpus > 0
        self.device = torch.device("cuda", 0) if self.on_gpu else torch.device("cpu")

    def rendezvous(self) -> tuple[str, int]:
        """Return the address of this node and a free port on it, for rank 0 to listen at."""
        with socket.socket() as free:
            free.bind(("", 0))
            return ray.util.get_node_ip_address(), free.getsockname()[1]

    def connect(self, address: str, port: int, world_size: int) -> None:
        """Form the process group; returns when all ranks have joined."""
        # DeepSpeed reads these when it is imported and when it starts; Ray shows each actor its own GPU as number 0.
        os.environ.update(RANK=str(self.rank), WORLD_SIZE=str(world_size), LOCAL_RANK="0")
        os.environ.update(MASTER_ADDR=address, MASTER_PORT=str(port))
        if not self.on_gpu:
            os.environ["DS_ACCELERATOR"] = "cpu"
            torch.set_num_threads(self.config.learner.threads)
        dist.init_process_group(
            "nccl" if self.on_gpu else "gloo",
            init_method=f"tcp://{address}:{port}",
            rank=self.rank,
            world_size=world_size,
            device_id=self.device if self.on_gpu else None,
        )

    def start(self) -> None:
        """Load the policy and build the engine.

        Raises:
            ModelError: the checkpoint cannot be trained.
        """
        self.trained = TrainedPolicy(self.config, self.device)
        rows = RankRows(self.config, self.trained, self.frames, self.device)
        self.updater = Updater(self.config, self.trained, rows, self.device)
        self.sender: WeightSender | None = None
        self._taker = SnapshotTaker(self.trained, self.config.model.path)
        self._snapshot: Snapshot | None = None

    def update(self, batch: LearnerBatch) -> Update:
        """Learn from the batch; see `Updater.update`."""
        return self.updater.update(fetched(batch))

    def logprobs(self, batch: LearnerBatch) -> list[tuple[int, int, np.ndarray]]:
        """Return this rank's part of the log-probabilities of a batch's tokens: (group, completion, [T] float32)."""
        found, batch = [], fetched(batch)
        for row, logprobs in self.updater.forward(batch, all_lengths(batch)):
            if self.trained.is_first_of_row and not row.padding:
                parts = logprobs.cpu().split(row.sequence_ids.bincount().tolist())
                found += [(*o, part.numpy()) for o, part in zip(row.origins, parts, strict=True)]
        return found

    def predictions(
        self, batch: LearnerBatch
    ) -> tuple[list[tuple[str, int, np.ndarray, np.ndarray]], tuple[Failure, ...]]:
        """Return this rank's part of what the policy makes of given completions, and the groups that cannot be encoded.

        Of each completion: (record id, completion, log-probabilities [T] float32, most likely tokens [T] int64).
        """
        batch, failures = self.updater.rows.without_failures(fetched(batch))
        found = []
        if batch.groups:
            for row, *values in self.updater.predict(batch, all_lengths(batch), most_likely=True):
                if self.trained.is_first_of_row and not row.padding:
                    lengths = row.sequence_ids.bincount().tolist()
                    parts = zip(*(value.cpu().split(lengths) for value in values), strict=True)
                    found += [
                        (batch.groups[group].prompt.record_id, completion, logprobs.numpy(), tokens.numpy())
                        for (group, completion), (logprobs, tokens) in zip(row.origins, parts, strict=True)
                    ]
        self.updater.rows.trim()
        return found, failures

    def checksums(self) -> dict[str, str]:
        """Return the SHA-256 of every parameter's bytes, by Hugging Face name."""
        return {name: tensor_digest(tensor) for name, tensor in self.trained.full_parameters()}

    def send_weights(self, request: TransferRequest) -> dict[str, float]:
        """Take part in a weight transfer to the engines; rank 0 sends."""
        if self.sender is None:
            from actors.transfer.sender import WeightSender  # brings all of vLLM, 20 s

            self.sender = WeightSender(self.trained.policy, self.rank, self.trained.family.stacked_parameters)
        return self.sender.send(request)

    def snapshot(self) -> None:
        """Copy this rank's share of a checkpoint to host memory, for `write`."""
        self._snapshot = self._taker.take(self.updater.version)

    def write(self, folder: str) -> Written:
        """Write what `snapshot` has copied into `folder`, which all ranks share; not a collective.

        Runs in a thread of its own while the others of this rank continue.
        """
        snapshot, self._snapshot = self._snapshot, None
        if snapshot is None:
            raise CheckpointError(f"{folder}: nothing was copied for it", remedy="call `snapshot` first")
        return snapshot.write(Path(folder))

    def load(self, folder: str) -> int:
        """Restore what `write` wrote, with any number of ranks and any ZeRO stage; returns the version.

        Raises:
            LearnerError: the checkpoint does not exist, or has other parameters.
        """
        updater = self.updater
        state = LearnerState(self.trained.engine, self.trained.policy)
        updater.version, updater.updates = state.load(Path(folder) / LEARNER)
        return updater.version
