"""Memory of a learner rank and of an engine: config and shapes in, GiB by part and what does not fit out."""

from __future__ import annotations

from dataclasses import dataclass

from videostr.config import Config
from videostr.plan.costs import ELEMENT_BYTES
from videostr.plan.shapes import Shapes

GIB = 2**30
CHUNK_TOKENS = 512
"""As in videostr/grpo/logprobs.py, whose import takes seconds."""
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
        return (
            self.parameters + self.gradients + self.optimizer + self.activations + self.logits + self.buffers
        )


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
    engine: EngineMemory
    problems: tuple[str, ...]
    """What does not fit, each with the keys to change; empty when all fits."""

    @property
    def fits(self) -> bool:
        """Whether nothing is known to be too large."""
        return not self.problems


def estimate(config: Config, shapes: Shapes, gpu_gib: float | None) -> Memory:
    """Memory that a run needs.

    Learner, e bytes an element, N trained weights on L ranks (ZeRO: Rajbhandari et al. 2020, arXiv 1910.02054):
      parameters   N e, from stage 3 on N e / L and up to 1e9 gathered ones; a frozen tower whole on every rank
      gradients    N e, from stage 2 on N e / L; stage 0 in bfloat16 keeps 4 N more (DeepSpeed's BF16_Optimizer)
      optimizer    AdamW's two moments 8 N, in bfloat16 with a master copy 12 N; from stage 1 on / L
      a reference model (loss.kl_coef) is whole on every rank and counted as parameters
    Activations of a row of T tokens (learner.max_row_tokens), h width, m MLP, g = key-value heads / heads, counted from
    Hugging Face's layer with fused attention (as Korthikanti et al. 2022, arXiv 2205.05198, section 4 for GPT):
      layer        T e (11 h + 3 g h + 4 m): inputs of norms and their float32 copies, q k v before and after rotation,
                   attention's output, two residuals, gate, its activation, up, product
      all          layers times that; with gradient checkpointing T e h a layer and one layer whole, twice for its
                   backward
    and of a trained tower the same per patch (g = 1), for rows that are all video.
    Logits: two float32 chunks of 512 tokens and the output layer's float32 gradient (videostr/grpo/logprobs.py).
    Buffers: DeepSpeed's reduction bucket, and on GPUs 2 GiB assumed for CUDA, NCCL and weight transfers.

    Engine on t GPUs: weights / t; working: max_num_batched_tokens e (4 h + 3 m / t), what the widest layers hold, and
    the encoder's 10 v e a patch of the longest prompt; key-value cache: gpu_memory_utilization of the GPU less both; a
    token takes 2 layers kv_width e / t. On a CPU the cache is `rollout.kv_cache_gib`.

    Args:
        config: the run's.
        shapes: of its model.
        gpu_gib: memory of one GPU, GiB; None on a CPU, where nothing is refused.
    """
    learner, engine = _learner(config, shapes, gpu_gib is not None), _engine(config, shapes, gpu_gib)
    problems = []
    if gpu_gib is not None and learner.total > gpu_gib * (1 - FRAGMENTED):
        problems.append(
            f"a learner rank needs about {learner.total:.1f} GiB, a GPU has {gpu_gib:g} with {FRAGMENTED:.0%} lost to "
            "fragments; raise learner.num_ranks or learner.zero_stage, lower learner.max_row_tokens, or set "
            "model.gradient_checkpointing=true"
        )
    if engine.sequences < 1:
        problems.append(
            f"an engine has {engine.kv_cache:.1f} GiB a GPU left for its cache, less than one sequence of "
            f"rollout.max_model_len = {config.rollout.max_model_len}; raise rollout.tensor_parallel_size or "
            "rollout.gpu_memory_utilization"
        )
    return Memory(learner=learner, engine=engine, problems=tuple(problems))


def _learner(config: Config, shapes: Shapes, on_gpu: bool) -> LearnerMemory:
    learner, element = config.learner, ELEMENT_BYTES[config.model.dtype]
    mixed = config.model.dtype == "bfloat16"
    frozen = shapes.vision.parameters if config.model.freeze_vision else 0
    trained = shapes.parameters - frozen
    shards = [1 if learner.zero_stage < stage else learner.num_ranks for stage in (1, 2, 3)]
    gathered = min(trained, LIVE_ELEMENTS) if shards[2] > 1 else 0.0
    reference = (shapes.parameters - frozen) if config.loss.kl_coef > 0 else 0
    exact_gradients = 4 if mixed and learner.zero_stage == 0 else 0
    bucket = min(BUCKET_ELEMENTS, trained) * element if learner.zero_stage else 0.0
    return LearnerMemory(
        parameters=((trained / shards[2] + gathered + frozen + reference) * element) / GIB,
        gradients=(trained / shards[1] * element + trained * exact_gradients) / GIB,
        optimizer=trained / shards[0] * (12 if mixed else 8) / GIB,
        activations=_activations(config, shapes) * element / GIB,
        logits=(2 * CHUNK_TOKENS * shapes.vocab_size + shapes.embedding_parameters) * 4 / GIB,
        buffers=bucket / GIB + (BUFFERS_GIB if on_gpu else 0.0),
    )


def _activations(config: Config, shapes: Shapes) -> float:
    """Elements that are held for the backward pass of the longest row."""
    tokens, vision = (
        config.rollout.max_model_len,
        shapes.vision,
    )  # one completion alone may exceed max_row_tokens
    if config.learner.packing != "none":
        tokens = max(tokens, config.learner.max_row_tokens)
    share = shapes.num_key_value_heads / shapes.num_attention_heads
    layer = (11 + 3 * share) * shapes.hidden_size + 4 * shapes.intermediate_size
    block = 14 * vision.hidden_size + 4 * vision.intermediate_size
    patches = 0 if config.model.freeze_vision else tokens * vision.spatial_merge_size**2
    if config.model.gradient_checkpointing:
        text = shapes.num_hidden_layers * shapes.hidden_size + 2 * layer
        tower = vision.depth * vision.hidden_size + 2 * block
    else:
        text, tower = shapes.num_hidden_layers * layer, vision.depth * block
    return tokens * text + patches * tower


def _engine(config: Config, shapes: Shapes, gpu_gib: float | None) -> EngineMemory:
    rollout, element = config.rollout, ELEMENT_BYTES[config.model.dtype]
    parts = rollout.tensor_parallel_size
    weights = shapes.parameters * element / parts
    widest = 4 * shapes.hidden_size + 3 * shapes.intermediate_size / parts
    patches = rollout.max_model_len * shapes.vision.spatial_merge_size**2
    working = (rollout.max_num_batched_tokens * widest + patches * 10 * shapes.vision.hidden_size) * element
    token = shapes.kv_bytes(element) / min(
        parts, shapes.num_key_value_heads
    )  # vLLM gives each part one at least
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
