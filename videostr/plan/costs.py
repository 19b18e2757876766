"""What things take on given hardware: a config, a model's shapes and a workload in, seconds out.

Times follow from operations and bytes, which the model's family counts (`Shapes`, `RowCost`). Speeds in `HARDWARE` are assumed
until `videostr.plan.calibrate` corrects the seconds by what a run measured.
"""

from __future__ import annotations

from dataclasses import dataclass

from videostr.config.schema import Config
from videostr.grpo.batch import RowCost
from videostr.models.base import Shapes
from videostr.models.memory import ELEMENT_BYTES, STATE_BYTES, activation_elements
from videostr.models.recompute import kept_layers
from videostr.plan.workload import Workload

VIDEO_SHARE = 0.9
"""Share of a prompt's tokens that stand for video; assumed."""
TRACES_PER_S = 1230.0
"""Traces that a reward worker scores a second: about half of docs/performance.md, for a slower core."""
ALL_REDUCES_S = 30e-6
"""Two all-reduces of a layer in a decode step of a tensor-parallel engine; assumed."""
LINK_SHARE = 0.7
"""Share of a link's speed that collectives reach; assumed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """One accelerator of a cluster, or one thread of a CPU, with the speeds that it reaches."""

    name: str
    memory_gib: float
    """0 for a thread."""
    learn_flops: float
    """Of the learner, operations a second."""
    engine_flops: float
    """Of prefill, and of the sums of a decode step, operations a second."""
    bandwidth: float
    """Of its memory, bytes a second."""
    node_link: float
    """To others of its node, bytes a second and direction."""
    network_link: float
    """To other nodes, bytes a second and direction."""
    step_s: float
    """Part of a decode step that neither bytes nor operations explain, seconds: scheduler, launches."""
    sequence_s: float
    """The same for each sequence: sampling, tokens and log-probabilities handed out, seconds."""
    sync_s: float
    """Control calls and loading of a weight sync, seconds."""
    engine: float = 1.0
    """Seconds that a run measured, in those that follow from the speeds above; so are the next three."""
    reward: float = 1.0
    learn: float = 1.0
    sync: float = 1.0


HARDWARE = {
    "H100": Hardware(
        name="H100", memory_gib=79.6, learn_flops=0.40 * 989e12, engine_flops=0.50 * 989e12, bandwidth=0.70 * 3.35e12,
        node_link=450e9, network_link=50e9, step_s=4e-3, sequence_s=1e-5, sync_s=0.5,
    ),
    "A100": Hardware(
        name="A100", memory_gib=79.3, learn_flops=0.45 * 312e12, engine_flops=0.55 * 312e12, bandwidth=0.70 * 2.04e12,
        node_link=300e9, network_link=25e9, step_s=4e-3, sequence_s=1e-5, sync_s=0.5,
    ),
    "cpu": Hardware(
        name="cpu", memory_gib=0, learn_flops=20e9, engine_flops=20e9, bandwidth=10e9,
        node_link=1e9, network_link=1e9, step_s=5e-3, sequence_s=2.2e-4, sync_s=0.085,
    ),
}  # fmt: skip
"""Assumed shares of peaks in data sheets: H100 SXM and A100 SXM 80 GB, bfloat16, one 400 (200) Gbit/s port a GPU. Of the CPU such
that the tabletop demo takes what docs/performance.md measured (16 prompts x 8 x 80 tokens: rollout 3.1 s, learn 1.9 s)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Seconds that things take alone on what they run on."""

    step_s: float
    """a: part of a decode step that does not grow with the sequences."""
    sequence_s: float
    """b: what each sequence adds to a decode step. n sequences make n / (a + b n) tokens a second."""
    prefill_s: float
    """One prompt, vision included, in an engine."""
    reward_s: float
    """One group, in a reward worker."""
    learn_fixed_s: float
    """An update without its rows."""
    row: RowCost
    """Seconds of a row, forward and backward, by what it holds."""
    learn_row_s: float
    """Least time of a row: the collectives that its computation hides."""
    sync_s: float
    """One weight sync."""
    prompt_patches: int
    """Vision patches of a prompt."""


def _recomputed(config: Config, shapes: Shapes) -> float:
    """Return the share of the layers that compute a row of learner.max_row_tokens again in its backward pass."""
    if not config.model.gradient_checkpointing:
        return 0.0
    (kept,) = kept_layers([(shapes.text, config.learner.max_row_tokens)], activation_elements(config))
    return 1.0 - kept / shapes.text.layers


def costs_of(
    config: Config, shapes: Shapes, hardware: Hardware, work: Workload, gpus_per_node: int = 8
) -> Costs:
    """Return what things take, seconds; before corrections by a run:

    With p prompt tokens, c completion tokens, N decode weights of e bytes, k bytes of keys and values a token, t
    accelerators an engine (threads on a CPU), F and B reached operations and bytes a second:
      decode step   a = overhead + N e / (t B) + 30 us per layer when t > 1
                    b = overhead + k (p + c / 2) / (t B) + (2 N + attention to p + c / 2 tokens) / (t F)
                    and a recurrent state, read and written: 8 bytes an element / (t B)
      prefill       operations of a forward pass / (t F)
      learning      three forward passes for trained weights, one more with gradient checkpointing (of the layers that
                    learner.activation_gib leaves to it) or a reference model each, and for what old log-probabilities are
                    computed of (all mini-batches but the first); logits are computed twice: 4 forward passes
      a row         ZeRO-3: two gathers and one reduction of all trained weights; n ranks that share it
                    (learner.sequence_parallel) take an n-th of its operations each, and exchange (1 - 1 / n) / n of all
                    queries, keys, values and outputs of attention a pass
      an update     optimizer: 28 bytes a weight; ZeRO 0 to 2: an all-reduce of all trained weights
      weight sync   overhead + trained bytes, gathered and broadcast
    With adapters (model.lora) matrices have no gradients of their own: a pass less, and reductions and optimizer are of the
    adapters; gathers and weight sync stay those of the model.
    A decode step reads and computes one after the other here; in truth they overlap partly.
    """
    learner, on_cpu, shared = config.learner, hardware.memory_gib == 0, config.learner.sequence_parallel
    parts = _accelerators(config, hardware)
    step_s, sequence_s = _decode_step(config, shapes, hardware, work)
    element, forward = ELEMENT_BYTES[config.model.dtype], shapes.forward
    patches = round(VIDEO_SHARE * work.prompt_tokens * shapes.patches_per_token)
    prefill_flops = forward.segment(work.prompt_tokens, (), patches)
    passes = 3.0 + _recomputed(config, shapes) + (config.loss.kl_coef > 0)
    if config.loss.correction != "ratio":
        passes += 1 - 1 / config.train.updates_per_batch
    vision_passes = 1.0 if config.model.freeze_vision else passes
    pass_s = hardware.learn / (hardware.learn_flops * (learner.threads if on_cpu else 1)) / shared
    lora = config.model.lora
    changed = shapes.parameters - (shapes.vision_parameters if config.model.freeze_vision else 0)
    trained = shapes.adapter_parameters(lora.rank, lora.targets) if lora.rank else changed
    one_node = gpus_of(config) <= gpus_per_node
    link = LINK_SHARE * (hardware.node_link if one_node else hardware.network_link)
    exchange_s = element / link * (1 - 1 / learner.num_ranks)  # of one weight, once
    mixed_s = hardware.learn * _mixed(shapes) * element / link * (1 - 1 / shared) / shared
    optimizer_s = 28 * trained / hardware.bandwidth / (learner.num_ranks if learner.zero_stage else 1)
    return Costs(
        step_s=hardware.engine * step_s,
        sequence_s=hardware.engine * sequence_s,
        prefill_s=hardware.engine * prefill_flops / (parts * hardware.engine_flops),
        reward_s=hardware.reward * config.sampling.group_size / TRACES_PER_S,
        learn_fixed_s=hardware.learn
        * (optimizer_s + (2 * trained * exchange_s if learner.zero_stage < 3 else 0.0)),
        row=RowCost(
            token=(passes - (lora.rank > 0)) * forward.token * pass_s + passes * mixed_s,
            pair=passes * forward.pair * pass_s,
            target=(4 - (lora.rank > 0)) * forward.target * pass_s,
            patch=vision_passes * forward.patch * pass_s,
        ),
        learn_row_s=hardware.learn
        * ((2 * changed + trained) * exchange_s if learner.zero_stage == 3 else 0.0),
        sync_s=hardware.sync * (hardware.sync_s + 2 * changed * element / link),
        prompt_patches=patches,
    )


def _decode_step(config: Config, shapes: Shapes, hardware: Hardware, work: Workload) -> tuple[float, float]:
    """Return a and b of `costs_of`, seconds."""
    parts, element = _accelerators(config, hardware), ELEMENT_BYTES[config.model.dtype]
    seen = work.prompt_tokens + work.completion_tokens / 2
    bytes_s, flops_s = parts * hardware.bandwidth, parts * hardware.engine_flops
    step_s = hardware.step_s + shapes.decode_parameters * element / bytes_s
    if config.rollout.tensor_parallel_size > 1:
        step_s += ALL_REDUCES_S * shapes.text.layers
    moved = shapes.kv_elements * element * seen + 2 * STATE_BYTES * shapes.state_elements
    sequence_s = hardware.sequence_s + moved / bytes_s
    sequence_s += (2 * shapes.decode_parameters + shapes.forward.pair * seen) / flops_s
    return step_s, sequence_s


def _mixed(shapes: Shapes) -> float:
    """Return the elements of a token's queries, keys, values and outputs of attention, in all layers."""
    return shapes.kv_elements * (1 + shapes.num_attention_heads / shapes.num_key_value_heads)


def _accelerators(config: Config, hardware: Hardware) -> int:
    """Return t: GPUs of an engine, or threads on a CPU."""
    return config.rollout.tensor_parallel_size if hardware.memory_gib else config.rollout.threads


def gpus_of(config: Config) -> int:
    """Return the GPUs that a run asks for; 0 on CPU."""
    if config.rollout.num_gpus == 0:
        return 0
    return config.rollout.num_workers * config.rollout.tensor_parallel_size + config.learner.num_ranks
