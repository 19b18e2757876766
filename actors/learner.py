"""The learner: a `LearnerBatch` in, one or more optimizer steps and a new weight version out.

`LearnerWorker` is one DeepSpeed rank, a plain class; `RayLearner` runs one per rank as Ray actors and speaks for all of
them. Every rank gets the whole batch, plans the same rows, and encodes and computes its own.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
import torch.distributed as dist
from ray.exceptions import RayError, RayTaskError
from safetensors import SafetensorError
from torch import Tensor

from actors.encoding import PromptEncoder
from actors.learner_state import LearnerState
from actors.names import Named, actor_name
from actors.placement import overlap_options
from videostr.config import Config
from videostr.errors import CheckpointError, LearnerError, StorageError, VideoStrError
from videostr.files import storage_error
from videostr.grpo.attention import Kernel
from videostr.grpo.batch import Group, Row, RowPlan, assign_rows, build_row, plan_rows
from videostr.grpo.logprobs import PolicyLogprobs
from videostr.grpo.loss import Counts, LossSums, completion_lengths, count, policy_loss
from videostr.grpo.schedule import learning_rate, mini_batches
from videostr.grpo.vision import VisionFeatures
from videostr.models.base import family_of
from videostr.models.checkpoint import check_model, load_policy
from videostr.models.processor import load_processor
from videostr.timeline import Timeline
from videostr.types import Failure, FinishReason, LearnerBatch, Update
from videostr.video import FrameStore

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class LearnerWorker(Named):
    """One DeepSpeed rank.

    Call `connect` and `start` on every rank, then the other methods on every rank together: each is a collective.
    The learner draws no random numbers (no family has dropout), so its state is weights, optimizer and version.
    A frozen vision tower is no part of the engine: every rank holds it whole and runs it when it meets a new clip.

    Attributes:
        rank: number of this rank.
        version: weight version, the number of batches learned from.
        updates: optimizer steps done, `train.updates_per_batch` a batch.
        policy: the Hugging Face model, with parameters under Hugging Face names; without its tower when that is frozen.
        engine: the DeepSpeed engine; `engine.module.policy` is `policy`.
    """

    def __init__(self, rank: int, config: Config, frame_store: str) -> None:
        self.rank = rank
        self.config = config
        self.frames = FrameStore(frame_store)
        self.version = self.updates = 0
        self.on_gpu = config.learner.num_gpus > 0
        self.device = torch.device("cuda", 0) if self.on_gpu else torch.device("cpu")

    # ------------------------------------------------------------------------------------------------- start

    def rendezvous(self) -> tuple[str, int]:
        """Address of this node and a free port on it, for rank 0 to listen at."""
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
        import deepspeed  # its import settles the accelerator, so it comes after `connect`

        # An all-reduce through shared memory, which would be compiled now: not worth 40 s and the need for a C++ compiler.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        model = self.config.model
        check_model(model.path, cpu=not self.on_gpu)
        self.family = family_of(model.path)
        self.processor = load_processor(model.path)
        self.policy = load_policy(model.path, DTYPES[model.dtype])
        self._prepare_training()
        self.encoder = PromptEncoder(self.frames, self.family, self.processor, self.policy.config)
        self.cost = self.family.row_cost(self.policy.config, freeze_vision=model.freeze_vision)
        self.reference = self._load_reference()
        wrapped = PolicyLogprobs(self.policy, self.family, self.attention)
        trained = [parameter for parameter in wrapped.parameters() if parameter.requires_grad]
        learner = self.config.learner
        optimizer = torch.optim.AdamW(
            trained, lr=learner.lr, betas=learner.betas, weight_decay=learner.weight_decay
        )
        self.engine, self.optimizer, _, _ = deepspeed.initialize(
            model=wrapped, optimizer=optimizer, config=self._deepspeed_config(), dist_init_required=False
        )
        if learner.zero_stage == 0 and model.dtype == "bfloat16":
            # DeepSpeed has made AdamW step on gradients of zero: that decayed the master weights and counts
            self.optimizer.refresh_fp32_params()
            self.optimizer.state.clear()

    @property
    def attention(self) -> Kernel:
        """Kernel of the language model."""
        chosen = self.config.learner.attention
        if chosen == "auto":
            return "flex" if self.on_gpu else "sdpa"
        return chosen

    def _prepare_training(self) -> None:
        self.policy.train()
        tower = self.family.tower(self.policy)
        tower.requires_grad_(not self.config.model.freeze_vision)
        self.features: VisionFeatures | None = None
        if self.config.model.freeze_vision:
            limit = int(self.config.learner.vision_cache_gib * 2**30)
            self.features = VisionFeatures(tower.eval().to(self.device), self.family.features, limit)
            # DeepSpeed would cut it up, and gather it on all ranks for each run
            self.family.set_tower(self.policy, None)
        if self.config.model.gradient_checkpointing:
            # ZeRO-3 frees a layer's weights after use, which only the reentrant kind of checkpoint survives.
            reentrant = self.config.learner.zero_stage == 3
            self.policy.gradient_checkpointing_enable({"use_reentrant": reentrant})

    @contextmanager
    def _whole_policy(self) -> Iterator[None]:
        """With its tower, frozen or not."""
        if self.features is None:
            yield
            return
        self.family.set_tower(self.policy, self.features.tower)
        try:
            yield
        finally:
            self.family.set_tower(self.policy, None)

    def _load_reference(self) -> PolicyLogprobs | None:
        """The frozen initial policy for the KL term, whole on every rank; None without such a term."""
        if self.config.loss.kl_coef == 0:
            return None
        reference = load_policy(self.config.model.path, DTYPES[self.config.model.dtype])
        if self.features is not None:
            self.family.set_tower(reference, None)  # the policy's own is the same
        wrapped = PolicyLogprobs(reference, self.family, self.attention)
        return wrapped.requires_grad_(False).eval().to(self.device)

    def _deepspeed_config(self) -> dict[str, Any]:
        return {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,  # rows differ from update to update: the boundary is set by hand
            "gradient_clipping": self.config.learner.max_grad_norm,
            "bf16": {"enabled": self.config.model.dtype == "bfloat16"},
            "zero_optimization": {"stage": self.config.learner.zero_stage},
            "zero_allow_untested_optimizer": True,
            "steps_per_print": 2**31,
        }

    # ------------------------------------------------------------------------------------------------- update

    def update(self, batch: LearnerBatch) -> Update:
        """Learn from the groups that can be encoded; the result is the same on every rank.

        Takes `train.updates_per_batch` optimizer steps, each on a mini-batch of whole groups, and as many as there are
        groups where these are fewer. Without any group there is no step, and the version stays.

        Raises:
            LearnerError: the batch has no completion to learn from.
            ConfigError: `loss.custom` failed.
        """
        batch, failures = self._without_failures(batch)
        if failures and not batch.groups:
            return Update(version=self.version, failures=failures)
        parts = [
            replace(batch, groups=groups, advantages=advantages)
            for groups, advantages in zip(
                mini_batches(batch.groups, self.config.train.updates_per_batch),
                mini_batches(batch.advantages, self.config.train.updates_per_batch),
                strict=True,
            )
        ]
        old = self._old_logprobs(parts)
        steps = [self._step(part, logprobs) for part, logprobs in zip(parts, old, strict=True)]
        self.encoder.clear()
        if self.features is not None:
            self.features.trim()
        self.version += 1
        return Update(version=self.version, metrics=self._metrics(steps), failures=failures)

    def _without_failures(self, batch: LearnerBatch) -> tuple[LearnerBatch, tuple[Failure, ...]]:
        """Return the batch without the groups that some rank cannot encode, and why; the same on every rank.

        All prompts are encoded before the first row is computed: a rank that fails between two collectives of a step
        would leave the others waiting. What is left is planned again, so that a rank may meet prompts that are new to it.
        """
        failures: list[Failure] = []
        while batch.groups:
            plan = self._plan(batch, self._learned_lengths(batch))
            mine = sorted({segment.group for row in plan for segment in row.segments})
            failed = self._of_all_ranks(
                {i: failure for i in mine if (failure := self.encoder.failure(batch.groups[i]))}
            )
            if not failed:
                break
            failures += [failed[i] for i in sorted(failed)]
            kept = [i for i in range(len(batch.groups)) if i not in failed]
            batch = replace(
                batch,
                groups=tuple(batch.groups[i] for i in kept),
                advantages=tuple(batch.advantages[i] for i in kept),
            )
        return batch, tuple(failures)

    def _of_all_ranks(self, mine: Mapping[int, Failure]) -> dict[int, Failure]:
        """Return the failures of all ranks, by group."""
        count = torch.tensor([len(mine)], device=self.device)
        dist.all_reduce(count)
        if not count.item():
            return {}
        parts: list[Mapping[int, Failure]] = [{}] * dist.get_world_size()
        dist.all_gather_object(parts, mine)
        return {group: failure for part in reversed(parts) for group, failure in part.items()}

    def _old_logprobs(self, parts: Sequence[LearnerBatch]) -> list[list[Tensor] | None]:
        """The learner's log-probabilities [N] before the first step, of every row of each part.

        None where the loss does not ask for them: in the first part, which is learned from with these weights, and in all
        where the ratio is taken against the engine.
        """
        if self.config.loss.correction == "ratio":
            return [None for _ in parts]
        return [
            None,
            *(
                [logprobs for _, logprobs in self._forward(part, self._learned_lengths(part))]
                for part in parts[1:]
            ),
        ]

    def _forward(self, batch: LearnerBatch, lengths: Sequence[Sequence[int]]) -> Iterator[tuple[Row, Tensor]]:
        """This rank's rows and their log-probabilities [N], without gradient."""
        for row in self._rows(self._plan(batch, lengths), batch):
            with torch.no_grad():
                logprobs, _ = self.engine(row, batch.temperature)
            yield row, logprobs

    def _learned_lengths(self, batch: LearnerBatch) -> list[list[int]]:
        """Lengths [P][G] that take part in the loss."""
        return completion_lengths(_lengths(batch), _truncated(batch), self.config.loss)

    def _step(self, batch: LearnerBatch, old: Sequence[Tensor] | None) -> tuple[LossSums, float, float]:
        """One optimizer step; returns sums over all ranks, gradient norm and learning rate."""
        train = self.config.train
        rate = learning_rate(self.config.learner, self.updates, train.steps * train.updates_per_batch)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        sums = self.accumulate(batch, old)
        norm = self._local_gradient_norm() if self.config.learner.zero_stage == 0 else None
        self.engine.step()
        self.updates += 1
        return sums, float(self.engine.get_global_grad_norm()) if norm is None else norm, rate

    def _metrics(self, steps: Sequence[tuple[LossSums, float, float]]) -> dict[str, float]:
        """Metrics of all steps on a batch.

        Means over tokens are of all its tokens. `mismatch_kl` is of the first mini-batch, whose weights are those that the
        batch met; the steps after it have moved them on purpose.
        """
        sums, norms, rates = zip(*steps, strict=True)
        metrics = reduce(LossSums.plus, sums).metrics(self.config)
        metrics |= {
            "loss": metrics["loss"] / len(steps),
            "mismatch_kl": sums[0].metrics(self.config)["mismatch_kl"],
            "grad_norm": sum(norms) / len(steps),
            "lr": rates[-1],
        }
        if self.config.train.updates_per_batch > 1:
            metrics["updates"] = len(steps)
        return metrics | self._vision_metrics()

    def accumulate(self, batch: LearnerBatch, old: Sequence[Tensor] | None = None) -> LossSums:
        """Forward and backward over this rank's rows; gradients are left reduced over ranks, sums are of all ranks.

        Args:
            batch: of one optimizer step.
            old: log-probabilities [N] of each of this rank's rows before the first step on the sampled batch; None in that
                step.
        """
        lengths = self._learned_lengths(batch)
        plan, counts = self._plan(batch, lengths), count(lengths)
        sums = LossSums()
        for number, row in enumerate(self._rows(plan, batch)):
            self.engine.set_gradient_accumulation_boundary(number == len(plan) - 1)
            before = None if old is None else old[number]
            loss, row_sums = self._row_loss(row, batch.temperature, counts, before)
            # DeepSpeed averages gradients over ranks, the loss is a sum over them.
            self.engine.backward(loss * dist.get_world_size())
            sums = sums.plus(row_sums)
        return self._reduce(sums)

    def _row_loss(
        self, row: Row, temperature: float, counts: Counts, old: Tensor | None
    ) -> tuple[Tensor, LossSums]:
        logprobs, entropy = self.engine(row, temperature)
        reference = None
        if self.reference is not None:
            with torch.no_grad():
                reference, _ = self.reference(row, temperature)
        return policy_loss(row, logprobs, entropy, self.config.loss, counts, reference, old)

    def _plan(self, batch: LearnerBatch, lengths: Sequence[Sequence[int]]) -> tuple[RowPlan, ...]:
        """This rank's rows."""
        rows = plan_rows(
            [len(group.prompt_token_ids) for group in batch.groups],
            lengths,
            max_row_tokens=self.config.learner.max_row_tokens,
            packing=self.config.learner.packing,
            patches=[
                self.family.num_patches(group.prompt_token_ids, self.policy.config) for group in batch.groups
            ],
            cost=self.cost,
        )
        if not rows:
            raise LearnerError(
                f"a batch of {len(batch.groups)} groups has no completion to learn from: all are flat, empty or masked "
                "out; allow longer completions (sampling.max_tokens) or set loss.mask_truncated=false"
            )
        return assign_rows(rows, dist.get_world_size())[self.rank]

    def _rows(self, plan: Sequence[RowPlan], batch: LearnerBatch) -> Iterator[Row]:
        """The planned rows, one at a time: only one row's pixels are held."""
        for row in plan:
            groups = {segment.group: self._encode(batch, segment.group) for segment in row.segments}
            yield build_row(row, groups).to(self.device)

    def _encode(self, batch: LearnerBatch, index: int) -> Group:
        group = batch.groups[index]
        inputs = self.encoder.encode(group)
        if self.features is not None:
            inputs = replace(inputs, vision=self.features.of(group.prompt.clip.digest, inputs.vision))
        completions = [rollout.completion for rollout in group.rollouts]
        return Group(
            prompt=inputs,
            completions=tuple(torch.from_numpy(c.token_ids.astype(np.int64)) for c in completions),
            behaviour_logprobs=tuple(torch.from_numpy(c.logprobs.astype(np.float32)) for c in completions),
            advantages=torch.from_numpy(batch.advantages[index].astype(np.float32)),
        )

    def _reduce(self, sums: LossSums) -> LossSums:
        """Sums over all ranks, and the largest of what ends in `_max`."""
        values = asdict(sums)
        largest = {name: values.pop(name) for name in tuple(values) if name.endswith("_max")}
        found: dict[str, float] = {}
        for part, operation in ((values, dist.ReduceOp.SUM), (largest, dist.ReduceOp.MAX)):
            numbers = torch.tensor(list(part.values()), dtype=torch.float64, device=self.device)
            dist.all_reduce(numbers, op=operation)
            found |= dict(zip(part, numbers.tolist(), strict=True))
        return LossSums(**found)

    def _vision_metrics(self) -> dict[str, float]:
        """Clips whose features were known and clips that the frozen tower ran for, of all ranks since the last call."""
        if self.features is None:
            return {}
        counts = torch.tensor([self.features.hits, self.features.misses], device=self.device)
        self.features.hits = self.features.misses = 0
        dist.all_reduce(counts)
        hits, misses = counts.tolist()
        return {"vision/hits": hits, "vision/misses": misses}

    def _local_gradient_norm(self) -> float:
        """2-norm of the reduced gradients, which without ZeRO every rank holds whole."""
        norms = [parameter.grad.float().norm() for parameter in self._trained() if parameter.grad is not None]
        return float(torch.stack(norms).norm())

    def _trained(self) -> Iterator[torch.nn.Parameter]:
        return (parameter for parameter in self.policy.parameters() if parameter.requires_grad)

    # ------------------------------------------------------------------------------------- inspection

    def logprobs(self, batch: LearnerBatch) -> list[tuple[int, int, np.ndarray]]:
        """This rank's part of the learner's log-probabilities of a batch's tokens: (group, completion, [T] float32)."""
        found = []
        for row, logprobs in self._forward(batch, _lengths(batch)):
            if not row.padding:
                parts = logprobs.cpu().split(row.sequence_ids.bincount().tolist())
                found += [(*o, part.numpy()) for o, part in zip(row.origins, parts, strict=True)]
        return found

    def full_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Every parameter whole, by Hugging Face name, in the same order on all ranks; gathered one at a time.

        A tensor is valid until the next is asked for. All ranks must take all of them.
        """
        import deepspeed

        with self._whole_policy():
            parameters = list(self.policy.named_parameters())
        for name, parameter in parameters:
            with deepspeed.zero.GatheredParameters([parameter], enabled=self.config.learner.zero_stage == 3):
                yield name, parameter.detach()

    def checksums(self) -> dict[str, str]:
        """SHA-256 of every parameter's bytes, by Hugging Face name."""
        return {name: digest(tensor) for name, tensor in self.full_parameters()}

    def send_weights(self, init: dict[str, Any]) -> dict[str, float]:
        """Take part in a weight transfer to the engines; rank 0 sends."""
        from actors.transfer import send_from_learner

        return send_from_learner(self.engine, self.policy, self.rank, init)

    # ------------------------------------------------------------------------------------- save and load

    def save(self, folder: str) -> None:
        """Write `policy/` and `learner/` into `folder`, which all ranks share.

        Raises:
            CheckpointError: rank 0 could not write it; all ranks have done the same collectives, and can go on.
        """
        problems: list[str] = []
        for part in (
            lambda: self._save_policy(Path(folder) / "policy"),
            lambda: LearnerState(self.engine, self.policy).save(Path(folder) / "learner", self.version),
        ):
            try:
                part()
            except (OSError, SafetensorError, StorageError) as error:
                problems.append(str(storage_error(error, folder) or error))
        dist.barrier()
        if problems:
            raise CheckpointError("; ".join(problems))

    def _save_policy(self, folder: Path) -> None:
        """Gather the weights; then rank 0 writes."""
        weights = {}
        for name, tensor in self.full_parameters():
            if self.rank == 0:
                weights[name] = tensor.to("cpu", copy=True)
        if self.rank == 0:
            with self._whole_policy():
                self.policy.save_pretrained(folder, state_dict=weights)
            try:
                self.processor.save_pretrained(folder)
            except Exception as error:  # tokenizers knows no other type, also where the disk is full
                raise OSError(f"{folder}: {error}") from error

    def load(self, folder: str) -> int:
        """Restore what `save` wrote, with any number of ranks and any ZeRO stage; returns the version.

        Raises:
            LearnerError: there is no such checkpoint, or it is of other parameters.
        """
        self.version, self.updates = LearnerState(self.engine, self.policy).load(Path(folder) / "learner")
        return self.version


def _lengths(batch: LearnerBatch) -> list[list[int]]:
    return [[len(rollout.completion.token_ids) for rollout in group.rollouts] for group in batch.groups]


def _truncated(batch: LearnerBatch) -> list[list[bool]]:
    return [
        [rollout.completion.finish_reason is FinishReason.LENGTH for rollout in group.rollouts]
        for group in batch.groups
    ]


def digest(tensor: Tensor) -> str:
    """SHA-256 of a tensor's bytes."""
    return hashlib.sha256(tensor.contiguous().cpu().view(torch.uint8).numpy().tobytes()).hexdigest()


class RayLearner:
    """All ranks as one; implements `videostr.ports.Learner`.

    Calls every rank at once and waits for all of them, `learner.timeout_s` at the longest. A rank that fails leaves the
    others waiting in a collective: after a `LearnerError` all of them are of no more use; `restart` starts them anew.
    """

    def __init__(
        self,
        config: Config,
        frame_store: str | Path,
        options: Sequence[Mapping[str, Any]] = (),
        worker_class: type[LearnerWorker] = LearnerWorker,
        timeline: Timeline | None = None,
    ) -> None:
        """Start nothing yet.

        Args:
            config: the run's config.
            frame_store: folder that all ranks read frames from.
            options: Ray actor options of each rank, e.g. its place in a placement group.
            worker_class: what to run as a rank.
            timeline: is told which method every rank runs.
        """
        self.config = config
        self.frame_store = str(frame_store)
        self.options = options
        self.worker_class = worker_class
        self.timeout_s = config.learner.timeout_s
        self._timeline = timeline or Timeline()
        self.workers: tuple[Any, ...] = ()
        """Actor handles, by rank."""
        self.version = 0
        """Of the weights that the ranks hold."""
        self.updating = asyncio.Lock()
        """Held while the weights change, and while ranks start."""

    @classmethod
    async def start(
        cls,
        config: Config,
        frame_store: str | Path,
        options: Sequence[Mapping[str, Any]] = (),
        worker_class: type[LearnerWorker] = LearnerWorker,
        timeline: Timeline | None = None,
    ) -> RayLearner:
        """A learner whose ranks have loaded the policy; arguments as of the class."""
        learner = cls(config, frame_store, options, worker_class, timeline)
        await learner.restart()
        return learner

    async def restart(self) -> None:
        """Start all ranks, anew where they ran, with the initial weights."""
        async with self.updating:
            self.close()
            self.workers = self._launch()
            try:
                (address, port), *_ = await self.call("rendezvous")
                await self.call("connect", address, port, len(self.workers))
                await self.call("start")
            except BaseException:
                self.close()
                raise
            self.version = 0

    def _launch(self) -> tuple[Any, ...]:
        c = self.config.learner
        remote = ray.remote(self.worker_class)
        return tuple(
            remote.options(
                name=actor_name("learner-rank", rank),
                num_cpus=c.num_cpus,
                num_gpus=c.num_gpus,
                **overlap_options(self.config, c.num_gpus),
                **(self.options[rank] if self.options else {}),
            ).remote(rank, self.config, self.frame_store)
            for rank in range(c.num_ranks)
        )

    async def update(self, batch: LearnerBatch) -> Update:
        """Learn from the batch, which is put into the object store once."""
        async with self.updating:
            updates: list[Update] = await self.call("update", ray.put(batch))
            self.version = updates[0].version
        return updates[0]

    async def logprobs(self, batch: LearnerBatch) -> list[tuple[np.ndarray, ...]]:
        """The learner's log-probabilities, per group and completion [T] float32."""
        parts = await self.call("logprobs", ray.put(batch))
        found = {(group, completion): values for part in parts for group, completion, values in part}
        empty = np.empty(0, dtype=np.float32)
        return [
            tuple(found.get((index, completion), empty) for completion in range(len(group.rollouts)))
            for index, group in enumerate(batch.groups)
        ]

    async def checksums(self) -> dict[str, str]:
        """SHA-256 of every parameter's bytes, by Hugging Face name."""
        sums: list[dict[str, str]] = await self.call("checksums")
        return sums[0]

    async def save(self, folder: Path) -> None:
        """Write `policy/` (Hugging Face format) and `learner/` (state of the optimizer, version) into `folder`.

        Raises:
            CheckpointError: it could not be written; the ranks go on.
        """
        async with self.updating:  # a publication meanwhile would only wait for it
            await self.call("save", str(folder))

    async def load(self, folder: Path) -> int:
        """Restore what `save` wrote; returns the weight version."""
        async with self.updating:
            versions: list[int] = await self.call("load", str(folder))
            self.version = versions[0]
        return versions[0]

    def close(self) -> None:
        """End all ranks."""
        workers, self.workers = self.workers, ()
        for worker in workers:
            ray.kill(worker)

    async def call(self, method: str, *arguments: Any) -> list[Any]:
        """Run a method on every rank; results by rank.

        Raises:
            LearnerError: a rank died, raised, or did not answer in time, or none runs. Errors of ours keep their type.
        """
        if not self.workers:
            raise LearnerError(f"no learner rank runs to do `{method}`: they ended, or their start failed")
        calls = [
            asyncio.ensure_future(self._ask(rank, method, arguments)) for rank in range(len(self.workers))
        ]
        try:
            return await asyncio.wait_for(asyncio.gather(*calls), self.timeout_s)
        except TimeoutError:
            late = [rank for rank, call in enumerate(calls) if call.cancelled() or not call.done()]
            raise LearnerError(
                f"learner ranks {late} did not finish `{method}` within learner.timeout_s = {self.timeout_s:g} s; "
                "see their logs, or raise the limit if the step is simply long"
            ) from None
        finally:
            for call in calls:
                call.cancel()

    async def _ask(self, rank: int, method: str, arguments: Sequence[Any]) -> Any:
        try:
            with self._timeline.during(f"learner-rank-{rank}", method):
                return await getattr(self.workers[rank], method).remote(*arguments)
        except RayTaskError as error:
            cause = error.cause
            kind = type(cause) if isinstance(cause, VideoStrError) else LearnerError
            raise kind(f"learner rank {rank} failed in `{method}`: {cause!r}") from error
        except RayError as error:
            first = str(error).strip().partition("\n")[0]
            raise LearnerError(f"learner rank {rank} died in `{method}`: {first}") from error
