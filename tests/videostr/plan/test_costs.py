"""Shapes, costs, memory and lengths against numbers worked out by hand or published."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from videostr.config.schema import Config
from videostr.errors import ConfigError, ModelError
from videostr.grpo.batch import RowCost
from videostr.models.base import Shapes, Stack, shapes_of
from videostr.plan.costs import HARDWARE, Factors, Workload, assumed, hardware_of
from videostr.plan.lengths import Lognormal, Traced
from videostr.plan.memory import BUFFERS_GIB, GIB, estimate

TINY = Shapes(
    name="tiny", parameters=320, vision_parameters=76, decode_parameters=200, vocab_size=10, num_attention_heads=2,
    num_key_value_heads=1, kv_elements=4, patches_per_token=1,
    text=Stack(layers=1, hidden_size=4, intermediate_size=8, activations=82),
    vision=Stack(layers=1, hidden_size=2, intermediate_size=3, activations=40),
    frozen_cost=RowCost(token=3 * 288, pair=3 * 16, target=4 * 80, patch=100),
)  # fmt: skip
"""As tests/videostr/models/test_qwen2_5_vl.py counts them."""


def config_of(**values: object) -> Config:
    config = Config()
    for key, value in values.items():
        section, name = key.split("__")
        setattr(getattr(config, section), name, value)
    return config


# ---------------------------------------------------------------------------------------------------------- shapes


def test_shapes_come_from_a_folder_or_a_name(tmp_path: Path) -> None:
    # The demo's policy; a publication of it has sync/bytes = 3947264
    assert shapes_of("videostr/tabletop/pretrained").parameters * 4 == 3_947_264
    assert shapes_of("Qwen/Qwen2.5-VL-7B-Instruct").parameters == 8_292_166_656
    with pytest.raises(ModelError, match=r"its name contains none of Qwen2\.5-VL-3B, "):
        shapes_of("someone/model")
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 4}))
    with pytest.raises(ModelError, match="so it takes no video here"):
        shapes_of(str(tmp_path))


def test_older_config_files_have_the_language_model_at_the_top(tmp_path: Path) -> None:
    raw = json.loads(Path("videostr/tabletop/pretrained/config.json").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps(raw | raw.pop("text_config") | {"model_type": raw["model_type"]})
    )
    assert shapes_of(str(tmp_path)) == dataclasses.replace(
        shapes_of("videostr/tabletop/pretrained"), name=tmp_path.name
    )


# ----------------------------------------------------------------------------------------------------------- costs


def test_costs_of_a_tiny_model_by_hand() -> None:
    config = config_of(model__dtype="bfloat16", learner__num_ranks=2, learner__zero_stage=3)
    hardware = dataclasses.replace(
        HARDWARE["H100"], flops=1e3, bandwidth=1e3, node_link=1e3, network_link=1e2, learn_share=0.5, prefill_share=0.5,
        bandwidth_share=0.5, step_s=1.0, sequence_s=0.5, sync_s=2.0,
    )  # fmt: skip
    costs = assumed(config, TINY, hardware, Workload(prompt_tokens=10, completion_tokens=4))
    # Decode weights 160 + 40 = 200 of 2 bytes at 500 bytes/s
    assert costs.step_s == pytest.approx(1 + 400 / 500)
    # 12 tokens seen: keys and values 2 x 1 x 2 x 2 = 8 bytes each; 400 + 16 x 12 operations at 500 a second
    assert costs.sequence_s == pytest.approx(0.5 + 96 / 500 + (400 + 192) / 500)
    # 10 tokens of 288; 50 pairs of 16; 9 patches of 100
    assert costs.prefill_s == pytest.approx((2880 + 800 + 900) / 500)
    # Three passes of language model and tower, four of the output layer
    row = costs.row
    assert (row.token, row.pair, row.patch) == pytest.approx((3 * 288 / 500, 3 * 16 / 500, 3 * 100 / 500))
    assert row.target == pytest.approx(4 * 80 / 500)
    # ZeRO-3: three times 640 bytes at 700 a second, of which half is the rank's own
    assert costs.learn_row_s == pytest.approx(3 * 640 / 700 / 2)
    assert costs.learn_fixed_s == pytest.approx(28 * 320 / 1e3 / 2)
    assert costs.sync_s == pytest.approx(2 + 2 * 640 / 700)
    # Old log-probabilities of all mini-batches but the first of four: three quarters of one more pass
    config.loss.correction, config.train.updates_per_batch = "truncated", 4
    more = assumed(config, TINY, hardware, Workload(prompt_tokens=10, completion_tokens=4))
    assert more.row.token == pytest.approx(3.75 * 288 / 500)
    config.loss.correction = "ratio"
    same = assumed(config, TINY, hardware, Workload(prompt_tokens=10, completion_tokens=4))
    assert same.row == costs.row
    other_node = assumed(
        config, TINY, hardware, Workload(prompt_tokens=10, completion_tokens=4), one_node=False
    )
    assert other_node.sync_s == pytest.approx(2 + 2 * 640 / 70)


def test_checkpointing_and_a_reference_cost_a_pass_each_and_a_frozen_tower_two_less() -> None:
    plain = config_of()
    work = Workload(prompt_tokens=10, completion_tokens=4)
    hardware = HARDWARE["H100"]
    base = assumed(plain, TINY, hardware, work)
    heavy = assumed(config_of(model__gradient_checkpointing=True, loss__kl_coef=0.1), TINY, hardware, work)
    frozen = assumed(config_of(model__freeze_vision=True), TINY, hardware, work)
    assert (heavy.row.token, heavy.row.patch) == pytest.approx(
        (base.row.token * 5 / 3, base.row.patch * 5 / 3)
    )
    assert (frozen.row.token, frozen.row.patch) == pytest.approx((base.row.token, base.row.patch / 3))


def test_factors_scale_their_side() -> None:
    base = assumed(config_of(), TINY, HARDWARE["cpu"], Workload(prompt_tokens=10, completion_tokens=4))
    scaled = Factors(engine=2, reward=5, learn=6, sync=7).of(base)
    ratios = {
        f.name: getattr(scaled, f.name) / getattr(base, f.name)
        for f in dataclasses.fields(base)
        if f.name != "row" and getattr(base, f.name)
    }
    assert ratios == pytest.approx({
        "step_s": 2, "sequence_s": 2, "prefill_s": 2, "reward_s": 5, "learn_fixed_s": 6, "sync_s": 7,
        "prompt_tokens": 1, "prompt_patches": 1,
    })  # fmt: skip
    for what, seconds in dataclasses.asdict(base.row).items():
        assert getattr(scaled.row, what) == pytest.approx(6 * seconds)


def test_unknown_hardware_is_refused() -> None:
    with pytest.raises(ConfigError, match="gpu = B300: must be one of H100, A100"):
        hardware_of("B300")


# ---------------------------------------------------------------------------------------------------------- memory


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


@pytest.mark.parametrize(
    ("stage", "parameters", "gradients", "optimizer"),
    [(0, 640, 640 + 4 * 320, 3840), (1, 640, 640, 1920), (2, 640, 320, 1920), (3, 320 + 640, 320, 1920)],
)
def test_what_each_stage_shards(stage: int, parameters: float, gradients: float, optimizer: float) -> None:
    learner = estimate(config_of(learner__num_ranks=2, learner__zero_stage=stage), TINY, 10.0).learner
    found = (learner.parameters * GIB, learner.gradients * GIB, learner.optimizer * GIB)
    assert found == pytest.approx((parameters, gradients, optimizer))


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


def test_every_part_of_an_engine_has_a_key_value_head() -> None:
    whole, halved = (
        estimate(config_of(rollout__tensor_parallel_size=parts), TINY, None).engine for parts in (1, 2)
    )
    assert whole.kv_tokens == halved.kv_tokens  # the one head is there twice


def test_a_reference_is_whole_everywhere() -> None:
    config = config_of(loss__kl_coef=0.1, learner__num_ranks=2, learner__zero_stage=3)
    assert estimate(config, TINY, None).learner.parameters * GIB == pytest.approx((160 + 320 + 320) * 2)


def test_what_does_not_fit_is_named_with_what_to_change() -> None:
    config = config_of(learner__max_row_tokens=16384, rollout__max_model_len=8192)
    problems = " ".join(estimate(config, shapes_of("Qwen2.5-VL-72B"), 80.0).problems)
    assert "learner.zero_stage" in problems
    assert "rollout.tensor_parallel_size" in problems


def test_a_cpu_is_never_refused_and_has_the_stated_cache() -> None:
    memory = estimate(config_of(rollout__kv_cache_gib=3), shapes_of("Qwen2.5-VL-72B"), None)
    assert not memory.problems
    assert memory.engine.kv_cache == 3


# --------------------------------------------------------------------------------------------------------- lengths


def test_the_mean_of_cut_off_lengths() -> None:
    lengths = Lognormal(median=64, sigma=0.5, cap=90, correlation=0.5)
    rng = np.random.default_rng(0)
    drawn = [n for _ in range(4000) for n in lengths.group(rng, 8)]
    assert lengths.mean == pytest.approx(np.mean(drawn), rel=0.01)
    assert max(drawn) == 90
    assert Lognormal(median=64, sigma=0, cap=90).group(rng, 3) == [64, 64, 64]


def test_completions_of_a_group_have_something_in_common() -> None:
    rng = np.random.default_rng(0)
    lengths = Lognormal(median=1000, sigma=0.3, cap=10**6, correlation=0.8)
    pairs = np.log([lengths.group(rng, 2) for _ in range(4000)])
    assert np.corrcoef(pairs.T)[0, 1] == pytest.approx(0.8, abs=0.03)


def test_lengths_without_a_meaning_are_refused() -> None:
    with pytest.raises(ConfigError, match="median = 0"):
        Lognormal(median=0, sigma=0.5, cap=20)


def test_groups_of_a_run_are_drawn_whole() -> None:
    traced = Traced(groups=((1, 2), (30, 40)))
    rng = np.random.default_rng(0)
    assert {tuple(traced.group(rng, 2)) for _ in range(50)} == {(1, 2), (30, 40)}
    assert set(traced.group(rng, 20)) in ({1, 2}, {30, 40})
    assert traced.mean == 73 / 4
