"""What a rank trains: the policy from disk with DeepSpeed's engine around it, a frozen tower, the reference model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from actors.learner.loading import import_deepspeed, load_parts
from actors.parameters import gathered, published
from videostr.config.schema import Config
from videostr.config.sections import Lora
from videostr.grpo.attention import Kernel
from videostr.grpo.batch import Row
from videostr.grpo.logprobs import PolicyLogprobs
from videostr.grpo.lora import add_lora, without_adapters
from videostr.grpo.sequence_parallel import SequenceGroup
from videostr.grpo.vision import VisionFeatures
from videostr.models.base import family_of
from videostr.models.checkpoint import check_model, load_policy
from videostr.models.layers import compile_layers
from videostr.models.memory import activation_elements
from videostr.models.processor import load_processor
from videostr.models.recompute import Recomputation

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class TrainedPolicy:
    """One rank's share of what is trained.

    A frozen vision tower is not part of the engine: every rank holds it whole and runs it when it meets a new clip.

    Attributes:
        family: how the policy is computed.
        policy: the Hugging Face model, with parameters under Hugging Face names; without its tower when that is frozen.
        processor: belongs to the policy.
        sequence: the ranks that share rows with this one; None where it has rows of its own.
        features: the frozen tower and what it computed; None where the tower is trained.
        reference: the frozen initial policy for the KL term, cut up as the policy is; None without such a term, and with LoRA.
        engine: the DeepSpeed engine; `engine.module.policy` is `policy`.
        optimizer: DeepSpeed's, around AdamW.
    """

    def __init__(self, config: Config, device: torch.device) -> None:
        """Load the policy and build the engine; a collective. The process group has been formed.

        Raises:
            ModelError: the checkpoint cannot be trained.
        """
        self._config = config
        self._device = device
        ranks = config.learner.sequence_parallel
        self.sequence = SequenceGroup.connect(ranks) if ranks > 1 else None
        model = config.model
        check_model(model.path, cpu=device.type == "cpu", sequence_parallel=ranks)
        self.family = family_of(model.path)
        self.processor = load_processor(model.path)
        self.policy = self._load(self.family.tower if model.freeze_vision else None)
        self._recomputation: Recomputation | None = None
        self.features = self._prepare_training()
        self.reference = self._load_reference()
        self.engine, self.optimizer = self._build_engine()

    @property
    def lora(self) -> Lora:
        """Rank, scale and layers of the adapters; a rank of 0 is none."""
        return self._config.model.lora

    @property
    def is_first_of_row(self) -> bool:
        """Whether what this rank finds of a row counts: each of those that share it finds the same."""
        return self.sequence is None or self.sequence.rank == 0

    @property
    def attention(self) -> Kernel:
        """Kernel of the language model."""
        chosen = self._config.learner.attention
        if chosen == "auto":
            return "flex" if self._device.type == "cuda" else "sdpa"
        return chosen

    def trained_parameters(self) -> Iterator[torch.nn.Parameter]:
        """Yield the parameters that the optimizer changes."""
        return (parameter for parameter in self.policy.parameters() if parameter.requires_grad)

    def full_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every parameter whole, by Hugging Face name, in the same order on all ranks; gathered one at a time.

        A tensor is valid until the next is asked for. All ranks must take all of them.
        """
        with self.whole_policy() as policy:
            parameters = published(policy)
        for each in parameters:
            with gathered(each.parameters):
                yield each.name, each.value()

    @contextmanager
    def whole_policy(self) -> Iterator[Any]:
        """Give the policy with its frozen tower, which is put back for the time of the context."""
        if self.features is None:
            yield self.policy
            return
        self.family.set_tower(self.policy, self.features.tower)
        try:
            yield self.policy
        finally:
            self.family.set_tower(self.policy, None)

    def _load(self, whole: Callable[[Any], torch.nn.Module] | None) -> Any:
        """Return the policy from disk, under ZeRO-3 this rank's parts of it, and `whole` as it is."""
        model = self._config.model
        dtype = DTYPES[model.dtype]
        if self._config.learner.zero_stage < 3:
            policy = load_policy(model.path, dtype)
        else:
            policy = load_parts(model.path, dtype, self._device, self._deepspeed_config(), whole=whole)
        if self._config.learner.kernels == "compiled":
            compile_layers(policy)
        return policy

    def _prepare_training(self) -> VisionFeatures | None:
        """Return the tower and its features where it is frozen."""
        self.policy.train()
        features = None
        tower = self.family.tower(self.policy)
        tower.requires_grad_(not self._config.model.freeze_vision)
        if self._config.model.lora.rank:
            add_lora(self.policy, self._config.model.lora, self._config.run.seed, leave_out=tower)
        if self._config.model.freeze_vision:
            limit = int(self._config.learner.vision_cache_gib * 2**30)
            features = VisionFeatures(tower.eval().to(self._device), self.family.features, limit)
            # DeepSpeed would cut it up, and gather it on all ranks for each run
            self.family.set_tower(self.policy, None)
        if self._config.model.gradient_checkpointing:
            # ZeRO-3 frees a layer's weights after use, which only the reentrant kind of checkpoint survives.
            reentrant = self._config.learner.zero_stage == 3
            self.policy.gradient_checkpointing_enable({"use_reentrant": reentrant})
            if reentrant and self._config.model.lora.rank:
                # Such a checkpoint has a gradient only if its input has one, and the embeddings are frozen
                self.policy.enable_input_require_grads()
            if self._config.learner.activation_gib:
                shapes = self.family.shapes(self.policy.config)
                self._recomputation = Recomputation(
                    shapes, self.policy, self.family.tower(self.policy), activation_elements(self._config)
                )
        return features

    def keep_activations(self, row: Row) -> None:
        """Choose which layers keep their activations of a row until its backward pass; to be called before its forward pass.

        Under ZeRO-3 a collective: a layer's weights are gathered by all ranks, once more where it is computed again, so all
        ranks must compute the same layers again.
        """
        if self._recomputation is None:
            return
        # The largest of a video's tensors has a row a patch; each rank has its part of it.
        patches = max((len(tensor) for tensor in row.vision.values()), default=0)
        shared = self._config.learner.sequence_parallel
        kept = self._recomputation.fitting(len(row.input_ids), patches * shared)
        if self._config.learner.zero_stage == 3:
            least = torch.tensor(kept, device=self._device)
            dist.all_reduce(least, op=dist.ReduceOp.MIN)
            kept = least.tolist()
        self._recomputation.keep(kept)

    def reference_logprobs(self, row: Row, temperature: float) -> Tensor | None:
        """Return the initial policy's log-probabilities [N] of a row, without gradient; None without a KL term.

        With LoRA it is the policy itself without its adapters, which needs no second copy.
        """
        if self._config.loss.kl_coef == 0:
            return None
        with torch.no_grad():
            if self.reference is not None:
                logprobs, _ = self.reference(row, temperature)
            else:
                with without_adapters(self.policy):
                    logprobs, _ = self.engine(row, temperature)
        return logprobs

    def _load_reference(self) -> Any:
        """Return what computes the reference's log-probabilities, under ZeRO-3 an engine that gathers its layers one by one."""
        if self._config.loss.kl_coef == 0 or self._config.model.lora.rank:
            return None
        frozen = self.features is not None
        reference = self._load(self.family.tower if frozen else None)
        if frozen:
            self.family.set_tower(reference, None)  # the policy's own is the same
        wrapped = PolicyLogprobs(reference, self.family, self.attention, self.sequence)
        wrapped.requires_grad_(False).eval()
        if self._config.learner.zero_stage < 3:
            return wrapped.to(self._device)
        engine, *_ = import_deepspeed().initialize(
            model=wrapped, config=self._deepspeed_config(), dist_init_required=False
        )
        engine.eval()  # returns nothing
        return engine

    def _build_engine(self) -> tuple[Any, Any]:
        """Return DeepSpeed's engine and optimizer."""
        deepspeed = import_deepspeed()
        wrapped = PolicyLogprobs(self.policy, self.family, self.attention, self.sequence)
        learner = self._config.learner
        adam = torch.optim.AdamW(
            list(self.trained_parameters()),
            lr=learner.lr,
            betas=learner.betas,
            weight_decay=learner.weight_decay,
        )
        engine, optimizer, _, _ = deepspeed.initialize(
            model=wrapped, optimizer=adam, config=self._deepspeed_config(), dist_init_required=False
        )
        if learner.zero_stage == 0 and self._config.model.dtype == "bfloat16":
            # DeepSpeed has made AdamW step on gradients of zero: that decayed the master weights and counts
            optimizer.refresh_fp32_params()
            optimizer.state.clear()
        return engine, optimizer

    def _deepspeed_config(self) -> dict[str, Any]:
        learner = self._config.learner
        zero: dict[str, Any] = {"stage": learner.zero_stage}
        host = {"device": "cpu", "pin_memory": self._device.type == "cuda"}
        if learner.offload != "none":
            zero["offload_optimizer"] = host
        if learner.offload == "all":
            zero["offload_param"] = host
        return {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,  # rows differ from update to update: the boundary is set by hand
            "gradient_clipping": self._config.learner.max_grad_norm,
            "bf16": {"enabled": self._config.model.dtype == "bfloat16"},
            "zero_optimization": zero,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,  # its AdamW would be compiled, and round differently
            "steps_per_print": 2**31,
        }
