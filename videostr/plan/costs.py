"""What things take on given hardware: a config and a model's shapes in, `Costs` out.

Every figure of `HARDWARE` and every share below is an assumption until `videostr.plan.calibrate` scales the result by
what a run measured. Times follow from counts: operations and bytes of `Shapes`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from videostr.config.schema import Config
from videostr.errors import ConfigError
from videostr.grpo.batch import RowCost
from videostr.models.base import Shapes

ELEMENT_BYTES = {"float32": 4, "bfloat16": 2}
VIDEO_SHARE = 0.9
"""Share of a prompt's tokens that stand for video; assumed."""
TRACES_PER_S = 1230.0
"""Traces that a reward worker scores a second: about half of docs/performance.md, for a slower core."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """One accelerator of a cluster, or one thread of a CPU."""

    name: str
    memory_gib: float
    """0 for a thread."""
    flops: float
    """Peak of dense products in bfloat16 (CPU: achieved in float32), operations a second."""
    bandwidth: float
    """Peak of its memory, bytes a second."""
    node_link: float
    """To others of its node, bytes a second and direction."""
    network_link: float
    """To other nodes, bytes a second and direction."""
    learn_share: float
    """Share of `flops` that the learner achieves (MFU)."""
    prefill_share: float
    """Share of `flops` that prefill and the sums of a decode step achieve."""
    bandwidth_share: float
    """Share of `bandwidth` that a decode step achieves."""
    step_s: float
    """Part of a decode step that neither bytes nor operations explain, seconds: scheduler, launches."""
    sequence_s: float
    """The same for each sequence: sampling, tokens and log-probabilities handed out, seconds."""
    sync_s: float
    """Control calls and loading of a weight sync, seconds."""


HARDWARE = {
    "H100": Hardware(
        name="H100", memory_gib=79.6, flops=989e12, bandwidth=3.35e12, node_link=450e9, network_link=50e9,
        learn_share=0.40, prefill_share=0.50, bandwidth_share=0.70, step_s=4e-3, sequence_s=1e-5, sync_s=0.5,
    ),
    "A100": Hardware(
        name="A100", memory_gib=79.3, flops=312e12, bandwidth=2.04e12, node_link=300e9, network_link=25e9,
        learn_share=0.45, prefill_share=0.55, bandwidth_share=0.70, step_s=4e-3, sequence_s=1e-5, sync_s=0.5,
    ),
    "cpu": Hardware(
        name="cpu", memory_gib=0, flops=20e9, bandwidth=10e9, node_link=1e9, network_link=1e9,
        learn_share=1.0, prefill_share=1.0, bandwidth_share=1.0, step_s=5e-3, sequence_s=2.2e-4, sync_s=0.085,
    ),
}  # fmt: skip
"""Peaks: data sheets of H100 SXM and A100 SXM 80 GB; one 400 (200) Gbit/s port a GPU. Shares and seconds: assumed; of
the CPU such that the tabletop demo takes what docs/performance.md measured (16 prompts x 8 x 80 tokens: rollout 3.1 s,
learn 1.9 s)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What is sampled and learned."""

    prompt_tokens: float
    """Mean length of a prompt, video included."""
    completion_tokens: float
    """Mean length of a completion."""
    zero_variance: float = 0.0
    """Share of groups whose completions all score the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Seconds that things take alone on what they run on."""

    step_s: float
    """a: part of a decode step that does not grow with the sequences, at most one core of a CPU."""
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
    prompt_tokens: int
    """Length of a prompt."""
    prompt_patches: int
    """Vision patches of a prompt."""
    zero_variance: float = 0.0
    """Share of groups whose completions all score the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Factors:
    """By how much what a run measured differs from what is assumed; 1 is as assumed."""

    engine: float = 1.0
    reward: float = 1.0
    learn: float = 1.0
    sync: float = 1.0

    def of(self, costs: Costs) -> Costs:
        """Return costs as measured."""
        return replace(
            costs,
            step_s=costs.step_s * self.engine,
            sequence_s=costs.sequence_s * self.engine,
            prefill_s=costs.prefill_s * self.engine,
            reward_s=costs.reward_s * self.reward,
            learn_fixed_s=costs.learn_fixed_s * self.learn,
            row=RowCost(**{what: seconds * self.learn for what, seconds in asdict(costs.row).items()}),
            learn_row_s=costs.learn_row_s * self.learn,
            sync_s=costs.sync_s * self.sync,
        )


def hardware_of(name: str) -> Hardware:
    """Return an entry of `HARDWARE`.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in HARDWARE:
        raise ConfigError(
            f"gpu = {name}: must be one of {', '.join(HARDWARE)}",
            remedy="take the nearest and calibrate it with --calibrate RUN_DIR",
        )
    return HARDWARE[name]


def assumed(
    config: Config, shapes: Shapes, hardware: Hardware, workload: Workload, *, one_node: bool = True
) -> Costs:
    """Return costs before any measurement, seconds.

    With p prompt tokens, c completion tokens, N decode weights of e bytes, k bytes of keys and values a token, t
    accelerators an engine (threads on a CPU), F and B achieved operations and bytes a second:
      decode step   a = overhead + N e / (t B) + 30 us per layer when t > 1 (two all-reduces)
                    b = overhead + k (p + c / 2) / (t B) + (2 N + attention to p + c / 2 tokens) / (t F)
      prefill       operations of a forward pass / (t F)
      learning      three times that for trained weights (backward costs twice the forward), a third of it more with
                    gradient checkpointing or a reference model each, and for what old log-probabilities are computed
                    of (all mini-batches but the first); logits are computed twice: 4 forward passes
      a row         ZeRO-3: two gathers and one reduction of all trained weights
      an update     optimizer: 28 bytes a weight; ZeRO 0 to 2: an all-reduce of all trained weights
      weight sync   overhead + trained bytes, gathered and broadcast
    A decode step reads and computes one after the other here; in truth they overlap partly.
    """
    on_cpu = hardware.memory_gib == 0
    engine, rank = (
        (config.rollout.threads, config.learner.threads)
        if on_cpu
        else (config.rollout.tensor_parallel_size, 1)
    )
    element = ELEMENT_BYTES[config.model.dtype]
    p, c = workload.prompt_tokens, workload.completion_tokens
    seen = p + c / 2
    patches = round(VIDEO_SHARE * p * shapes.patches_per_token)
    forward = shapes.forward
    bytes_s = engine * hardware.bandwidth * hardware.bandwidth_share
    flops_s = engine * hardware.flops * hardware.prefill_share
    all_reduces = 30e-6 * shapes.text.layers if not on_cpu and engine > 1 else 0.0
    passes = 3.0 + config.model.gradient_checkpointing + (config.loss.kl_coef > 0)
    if config.loss.correction != "ratio":
        passes += 1 - 1 / config.train.updates_per_batch
    vision_passes = 1.0 if config.model.freeze_vision else passes
    learn_s = rank * hardware.flops * hardware.learn_share
    trained = shapes.parameters - (shapes.vision_parameters if config.model.freeze_vision else 0)
    link = 0.7 * (hardware.node_link if one_node else hardware.network_link)
    ranks, stage = config.learner.num_ranks, config.learner.zero_stage
    exchanged = 2 * trained * element / link * (1 - 1 / ranks)
    optimizer = 28 * trained / hardware.bandwidth / (ranks if stage else 1)
    return Costs(
        step_s=hardware.step_s + shapes.decode_parameters * element / bytes_s + all_reduces,
        sequence_s=hardware.sequence_s
        + shapes.kv_elements * element * seen / bytes_s
        + (2 * shapes.decode_parameters + forward.pair * seen) / flops_s,
        prefill_s=(p * forward.token + p * p / 2 * forward.pair + patches * forward.patch) / flops_s,
        reward_s=config.sampling.group_size / TRACES_PER_S,
        learn_fixed_s=optimizer + (0.0 if stage == 3 else exchanged),
        row=RowCost(
            token=passes * forward.token / learn_s,
            pair=passes * forward.pair / learn_s,
            target=4 * forward.target / learn_s,
            patch=vision_passes * forward.patch / learn_s,
        ),
        learn_row_s=1.5 * exchanged if stage == 3 else 0.0,
        sync_s=hardware.sync_s + 2 * trained * element / link,
        prompt_tokens=round(p),
        prompt_patches=patches,
        zero_variance=workload.zero_variance,
    )
