"""Memory of a learner rank and of an engine: config and shapes in, GiB by part and what does not fit out."""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass

from videostr.config.schema import Config
from videostr.grpo.logprobs import CHUNK_TOKENS
from videostr.models.base import Shapes

GIB = 2**30
ELEMENT_BYTES = {"float32": 4, "bfloat16": 2}
STATE_BYTES = 4
"""Of an element of a recurrent state, which engines keep in float32."""
BUCKET_ELEMENTS = 5e8
"""DeepSpeed's `reduce_bucket_size`."""
LIVE_ELEMENTS = 1e9
"""DeepSpeed's `stage3_max_live_parameters`."""
BUFFERS_GIB = 2.0
"""CUDA context, NCCL and packed buffers of weight transfers of a GPU process; assumed."""
FRAGMENTED = 0.05
"""Share of a rank's GPU memory that the allocator loses; assumed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerMemory:
    """One rank, GiB."""

    parameters: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    buffers: float

    @property
    def total(self) -> float:
        """All of it."""
        return math.fsum(astuple(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class HostMemory:
    """Of one rank, GiB."""

    offloaded: float
    """What `learner.offload` keeps there."""
    checkpoint: float
    """Copy of the rank's share of a checkpoint, while it is written."""

    @property
    def total(self) -> float:
        """All of it."""
        return self.offloaded + self.checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineMemory:
    """One accelerator of an engine, GiB."""

    weights: float
    working: float
    """Activations of the largest engine step, with its encoder's."""
    kv_cache: float
    """What is left for keys and values; negative when nothing is."""
    kv_tokens: int
    """Tokens that fit into the whole engine's cache."""
    sequences: int
    """Sequences of `rollout.max_model_len` that fit, none sharing a prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Estimate for one config."""

    learner: LearnerMemory
    host: HostMemory
    engine: EngineMemory
    problems: tuple[str, ...]
    """What does not fit, each with the keys to change; empty when all fits."""


def estimate(config: Config, shapes: Shapes, gpu_gib: float | None) -> Memory:
    """Return the memory that a run needs.

    Learner, e bytes an element, N trained weights on L ranks (ZeRO: Rajbhandari et al. 2020, arXiv 1910.02054):
      parameters   N e, from stage 3 on N e / L and up to 1e9 gathered ones; a reference model (loss.kl_coef) alike; a frozen
                   tower whole on every rank
      gradients    N e, from stage 2 on N e / L; stage 0 in bfloat16 keeps 4 N more (DeepSpeed's BF16_Optimizer)
      optimizer    AdamW's two moments 8 N, in bfloat16 with a master copy 12 N; from stage 1 on / L
      activations  of the longest row, all video where the tower is trained: `Stack.held`, with gradient checkpointing what
                   learner.activation_gib lets layers keep; a part for each of the ranks that share it
                   (learner.sequence_parallel)
      logits       two float32 chunks of 512 tokens and the output layer's float32 gradient (videostr/grpo/logprobs.py)
                   With adapters (model.lora) N are theirs, the model itself counts as parameters alone, the reference is the
                   model without them, the output layer has no gradient, and 12 bytes an element of the largest matrix are for
                   merging it (videostr/grpo/lora.py).
      buffers      DeepSpeed's reduction bucket, and on GPUs 2 GiB assumed for CUDA, NCCL and weight transfers
                   With learner.offload the optimizer, its gradients in float32, and with `all` the parameters but for the
                   gathered ones and the tower, are in host memory. There each rank also copies its share of a checkpoint:
                   1 / L of all weights and 12 N.
    Engine on t GPUs: weights / t; its working memory (`Shapes.engine_elements`); the rest of gpu_memory_utilization is
    key-value cache, a recurrent state in it counted as part of the tokens of a sequence of `rollout.max_model_len`. On a CPU
    the cache is `rollout.kv_cache_gib`.

    Args:
        config: the run's.
        shapes: of its model.
        gpu_gib: memory of one GPU, GiB; None on a CPU, where nothing is refused.
    """
    learner, host = _learner(config, shapes, gpu_gib is not None)
    engine = _engine(config, shapes, gpu_gib)
    problems = []
    if gpu_gib is not None and learner.total > gpu_gib * (1 - FRAGMENTED):
        problems.append(
            f"a learner rank needs about {learner.total:.1f} GiB, a GPU has {gpu_gib:g} with {FRAGMENTED:.0%} lost to "
            "fragments; raise learner.num_ranks, learner.zero_stage or learner.sequence_parallel, lower "
            "learner.max_row_tokens, or set model.gradient_checkpointing=true or learner.offload=optimizer"
        )
    if engine.sequences < 1:
        keys = (
            "rollout.tensor_parallel_size or rollout.gpu_memory_utilization"
            if gpu_gib
            else "rollout.kv_cache_gib"
        )
        problems.append(
            f"an engine has {engine.kv_cache:.1f} GiB{' a GPU left' if gpu_gib else ''} for its cache, less than one sequence "
            f"of rollout.max_model_len = {config.rollout.max_model_len}; raise {keys}"
        )
    return Memory(learner=learner, host=host, engine=engine, problems=tuple(problems))


def _learner(config: Config, shapes: Shapes, on_gpu: bool) -> tuple[LearnerMemory, HostMemory]:
    learner, element = config.learner, ELEMENT_BYTES[config.model.dtype]
    mixed = config.model.dtype == "bfloat16"
    frozen = shapes.vision_parameters if config.model.freeze_vision else 0
    base = shapes.parameters - frozen
    lora = config.model.lora
    trained = shapes.adapter_parameters(lora.rank, lora.targets) if lora.rank else base
    merging = 12 * shapes.text.hidden_size * shapes.text.intermediate_size if lora.rank else 0
    output_gradient = 0 if lora.rank else shapes.output_parameters
    shards = [1 if learner.zero_stage < stage else learner.num_ranks for stage in (1, 2, 3)]
    held = base + (trained if lora.rank else 0)
    models = [held, *([base] if config.loss.kl_coef > 0 and not lora.rank else [])]
    gathered = sum(min(model, LIVE_ELEMENTS) for model in models) if shards[2] > 1 else 0.0
    exact_gradients = 4 if mixed and learner.zero_stage == 0 else 0
    bucket = min(BUCKET_ELEMENTS, trained) * element if learner.zero_stage else 0.0
    parameters = sum(models) / shards[2] * element
    gradients = trained / shards[1] * element + trained * exact_gradients
    optimizer = trained / shards[0] * (12 if mixed else 8)
    away = 0.0
    if learner.offload != "none":
        away += optimizer + 4 * trained / shards[1]
        gradients = optimizer = 0.0
    if learner.offload == "all":
        away += parameters
        parameters = 0.0
    copied = (shapes.parameters * element + 12 * trained) / learner.num_ranks
    gpu = LearnerMemory(
        parameters=(parameters + (gathered + frozen) * element) / GIB,
        gradients=gradients / GIB,
        optimizer=optimizer / GIB,
        activations=_activations(config, shapes) / learner.sequence_parallel * element / GIB,
        logits=(2 * CHUNK_TOKENS * shapes.vocab_size + output_gradient) * 4 / GIB,
        buffers=(bucket + merging) / GIB + (BUFFERS_GIB if on_gpu else 0.0),
    )
    return gpu, HostMemory(offloaded=away / GIB, checkpoint=copied / GIB)


def _activations(config: Config, shapes: Shapes) -> float:
    """Return elements that are held for the backward pass of the longest row."""
    tokens = config.rollout.max_model_len  # one completion alone may exceed max_row_tokens
    if config.learner.packing != "none":
        tokens = max(tokens, config.learner.max_row_tokens)
    patches = 0 if config.model.freeze_vision else tokens * shapes.patches_per_token
    kept, recomputed = (
        tokens * shapes.text.held(checkpointing=each) + patches * shapes.vision.held(checkpointing=each)
        for each in (False, True)
    )
    if not config.model.gradient_checkpointing:
        return kept
    return max(recomputed, min(kept, activation_elements(config)))


def activation_elements(config: Config) -> float:
    """Return the elements that `learner.activation_gib` lets the ranks of a row hold of it together."""
    shared = config.learner.sequence_parallel
    return config.learner.activation_gib * GIB / ELEMENT_BYTES[config.model.dtype] * shared


def _engine(config: Config, shapes: Shapes, gpu_gib: float | None) -> EngineMemory:
    rollout, element = config.rollout, ELEMENT_BYTES[config.model.dtype]
    parts = rollout.tensor_parallel_size
    weights = shapes.parameters * element / parts
    patches = rollout.max_model_len * shapes.patches_per_token
    working = shapes.engine_elements(rollout.max_num_batched_tokens, patches, parts) * element
    # vLLM gives each part one head at least.
    token = shapes.kv_elements * element / min(parts, shapes.num_key_value_heads)
    token += shapes.state_elements * STATE_BYTES / parts / rollout.max_model_len
    room = (
        rollout.kv_cache_gib * GIB
        if gpu_gib is None
        else gpu_gib * GIB * rollout.gpu_memory_utilization - weights - working
    )
    tokens = max(0, int(room / token))
    return EngineMemory(
        weights=weights / GIB,
        working=working / GIB,
        kv_cache=room / GIB,
        kv_tokens=tokens,
        sequences=tokens // rollout.max_model_len,
    )
