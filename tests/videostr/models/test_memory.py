"""Memory of a learner rank and of an engine against numbers worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from videostr.config.load import load
from videostr.config.schema import Config
from videostr.config.sections import Lora
from videostr.grpo.batch import RowCost
from videostr.models.base import Shapes, Stack, shapes_of
from videostr.models.memory import BUFFERS_GIB, GIB, estimate

TINY = Shapes(
    name="tiny", parameters=320, vision_parameters=76, decode_parameters=200, vocab_size=10, num_attention_heads=2,
    num_key_value_heads=1, kv_elements=4, state_elements=0, patches_per_token=1,
    text=Stack(layers=1, hidden_size=4, intermediate_size=8, activations=82),
    vision=Stack(layers=1, hidden_size=2, intermediate_size=3, activations=40),
    frozen_cost=RowCost(token=3 * 288, pair=3 * 16, target=4 * 80, patch=100),
    linear_ends={"q_proj": 8, "up_proj": 12, "down_proj": 12},
)  # fmt: skip
"""As tests/videostr/models/test_qwen2_5_vl.py counts them."""


def config_of(**values: object) -> Config:
    config = Config()
    for key, value in values.items():
        section, name = key.split("__")
        setattr(getattr(config, section), name, value)
    return config


def test_ranks_that_share_a_row_hold_a_part_of_its_activations() -> None:
    alone = estimate(config_of(learner__num_ranks=4), TINY, 10.0).learner
    shared = estimate(config_of(learner__num_ranks=4, learner__sequence_parallel=4), TINY, 10.0).learner
    assert shared.activations == pytest.approx(alone.activations / 4)
    assert shared.parameters == alone.parameters


def test_memory_of_a_tiny_model_by_hand() -> None:
    config = config_of(
        model__freeze_vision=True, learner__num_ranks=2, learner__zero_stage=3, learner__max_row_tokens=16,
        rollout__max_num_batched_tokens=100, rollout__max_model_len=50, rollout__gpu_memory_utilization=0.5,
    )  # fmt: skip
    memory = estimate(config, TINY, 10.0)
    learner = memory.learner
    # Trained 244, half on each rank and all of them gathered; the tower's 76 whole; 2 bytes each
    assert learner.parameters * GIB == pytest.approx((122 + 244 + 76) * 2)
    assert learner.gradients * GIB == pytest.approx(122 * 2)
    assert learner.optimizer * GIB == pytest.approx(122 * 12)
    # A layer and token: (11 + 3 / 2) 4 + 4 x 8 = 82
    assert learner.activations * GIB == pytest.approx(
        50 * 82 * 2
    )  # a prompt with one completion, as long as may be
    assert learner.logits * GIB == pytest.approx((2 * 512 * 10 + 40) * 4)
    assert (learner.buffers - BUFFERS_GIB) * GIB == pytest.approx(244 * 2, rel=1e-3)
    engine = memory.engine
    assert engine.weights * GIB == pytest.approx(640)
    # 100 (16 + 24) + 50 patches x 10 x 2, of 2 bytes
    assert engine.working * GIB == pytest.approx(10_000)
    assert engine.kv_cache * GIB == pytest.approx(5 * GIB - 10_640)
    # 2 x 1 layer x width 2 x 2 bytes
    assert engine.kv_tokens == (5 * GIB - 10_640) // 8
    assert engine.sequences == engine.kv_tokens // 50
    assert not memory.problems


def test_adapters_alone_have_gradients_and_an_optimizer() -> None:
    config = config_of(
        model__freeze_vision=True,
        model__lora=Lora(rank=2, targets=["q_proj", "up_proj"]),
        learner__num_ranks=1,
        loss__kl_coef=0.1,
    )
    learner = estimate(config, TINY, 10.0).learner
    # 2 (8 + 12) = 40 weights; the model's 320 once, no reference; stage 0 keeps float32 gradients
    assert learner.parameters * GIB == pytest.approx((320 + 40) * 2)
    assert learner.gradients * GIB == pytest.approx(40 * (2 + 4))
    assert learner.optimizer * GIB == pytest.approx(40 * 12)
    assert learner.logits * GIB == pytest.approx(2 * 512 * 10 * 4)
    # the largest matrix, 4 x 8, is merged in float32
    assert (learner.buffers - BUFFERS_GIB) * GIB == pytest.approx(12 * 32, abs=1e-3)


def test_adapters_of_a_7b_fit_one_gpu_of_80_gb() -> None:
    config = load("configs/qwen2_5_vl_7b_2gpu_lora.yaml")
    memory = estimate(config, shapes_of(config.model.path), 79.2)
    assert not memory.problems
    assert memory.learner.total < 40


@pytest.mark.parametrize(
    ("stage", "parameters", "gradients", "optimizer"),
    [(0, 640, 640 + 4 * 320, 3840), (1, 640, 640, 1920), (2, 640, 320, 1920), (3, 320 + 640, 320, 1920)],
)
def test_what_each_stage_shards(stage: int, parameters: float, gradients: float, optimizer: float) -> None:
    learner = estimate(config_of(learner__num_ranks=2, learner__zero_stage=stage), TINY, 10.0).learner
    found = (learner.parameters * GIB, learner.gradients * GIB, learner.optimizer * GIB)
    assert found == pytest.approx((parameters, gradients, optimizer))


@pytest.mark.parametrize(
    ("offload", "parameters", "gradients", "optimizer", "host"),
    [
        # Two ranks: 160 parameters each, 12 bytes of optimizer, 4 of a gradient in float32; all 320 may be gathered
        ("none", 320 + 640, 320, 1920, 0),
        ("optimizer", 320 + 640, 0, 0, 1920 + 640),
        ("all", 640, 0, 0, 1920 + 640 + 320),
    ],
)
def test_what_is_offloaded_is_in_host_memory(
    offload: str, parameters: float, gradients: float, optimizer: float, host: float
) -> None:
    config = config_of(learner__num_ranks=2, learner__zero_stage=3, learner__offload=offload)
    memory = estimate(config, TINY, 10.0)
    learner = memory.learner
    assert learner.parameters * GIB == pytest.approx(parameters)
    assert (learner.gradients * GIB, learner.optimizer * GIB) == pytest.approx((gradients, optimizer))
    assert memory.host.offloaded * GIB == pytest.approx(host)
    # half of the weights, 640 bytes, and of 12 bytes for each that is trained
    assert memory.host.checkpoint * GIB == pytest.approx(320 + 1920)


@pytest.mark.parametrize(("stage", "parameters"), [(2, 2 * 640), (3, 2 * (320 + 640))])
def test_a_reference_is_sharded_as_the_policy_is(stage: int, parameters: float) -> None:
    config = config_of(learner__num_ranks=2, learner__zero_stage=stage, loss__kl_coef=0.1)
    assert estimate(config, TINY, 10.0).learner.parameters * GIB == pytest.approx(parameters)


def test_checkpointing_keeps_inputs_and_one_layer_twice() -> None:
    config = config_of(
        model__freeze_vision=True,
        model__gradient_checkpointing=True,
        learner__max_row_tokens=16,
        rollout__max_model_len=8,
    )
    assert estimate(config, TINY, None).learner.activations * GIB == pytest.approx(16 * (4 + 2 * 82) * 2)
    config.learner.packing = "none"  # its rows are single completions
    assert estimate(config, TINY, None).learner.activations * GIB == pytest.approx(8 * (4 + 2 * 82) * 2)


def test_activations_that_may_stay_count_up_to_all_of_them() -> None:
    settings = {"model__freeze_vision": True, "learner__max_row_tokens": 16, "rollout__max_model_len": 8}
    recomputed, kept = 16 * (4 + 2 * 82) * 2, 16 * 82 * 2
    assert kept < recomputed  # of a model of one layer
    for room in (0, 10**6):
        config = config_of(model__gradient_checkpointing=True, learner__activation_gib=room / GIB, **settings)
        assert estimate(config, TINY, None).learner.activations * GIB == pytest.approx(recomputed)
    deep = replace(TINY, text=replace(TINY.text, layers=10))
    recomputed, kept = 16 * (40 + 2 * 82) * 2, 16 * 820 * 2
    for room, wanted in ((0, recomputed), (10_000, 10_000), (10**6, kept)):
        config = config_of(model__gradient_checkpointing=True, learner__activation_gib=room / GIB, **settings)
        assert estimate(config, deep, None).learner.activations * GIB == pytest.approx(wanted)


def test_every_part_of_an_engine_has_a_key_value_head() -> None:
    whole, halved = (
        estimate(config_of(rollout__tensor_parallel_size=parts), TINY, None).engine for parts in (1, 2)
    )
    assert whole.kv_tokens == halved.kv_tokens  # the one head is there twice


def test_what_does_not_fit_is_named_with_what_to_change() -> None:
    config = config_of(learner__max_row_tokens=16384, rollout__max_model_len=8192)
    problems = " ".join(estimate(config, shapes_of("Qwen2.5-VL-72B"), 80.0).problems)
    assert "learner.zero_stage" in problems
    assert "rollout.tensor_parallel_size" in problems


def test_a_cache_on_cpu_without_room_for_a_sequence_names_its_key() -> None:
    (problem,) = estimate(
        config_of(rollout__kv_cache_gib=1, rollout__max_model_len=2**28), TINY, None
    ).problems
    assert problem.endswith("raise rollout.kv_cache_gib")  # 2^28 tokens of 4 elements and 2 bytes are 2 GiB


def test_a_cpu_is_never_refused_and_has_the_stated_cache() -> None:
    memory = estimate(config_of(rollout__kv_cache_gib=3), shapes_of("Qwen2.5-VL-72B"), None)
    assert not memory.problems
    assert memory.engine.kv_cache == 3
