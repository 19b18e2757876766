"""Shapes, costs and workload against numbers worked out by hand or published."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.videostr.models.test_memory import TINY, config_of
from videostr.config.schema import Config
from videostr.config.sections import Lora
from videostr.errors import ModelError
from videostr.models.base import shapes_of
from videostr.plan.costs import HARDWARE, Costs, Hardware, costs_of
from videostr.plan.workload import GROUPS, Workload, dumped_groups, lognormal
from videostr.traces import TraceRow

WORK = Workload(prompt_tokens=10, groups=((4, 4),))


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


SLOW = dataclasses.replace(
    HARDWARE["H100"], learn_flops=500, engine_flops=500, bandwidth=500, node_link=1e3, network_link=1e2, step_s=1.0,
    sequence_s=0.5, sync_s=2.0,
)  # fmt: skip


def costs(config: Config, hardware: Hardware = SLOW, gpus_per_node: int = 8) -> Costs:
    return costs_of(config, TINY, hardware, WORK, gpus_per_node)


def test_costs_of_a_tiny_model_by_hand() -> None:
    config = config_of(
        model__dtype="bfloat16", learner__num_ranks=2, learner__zero_stage=3, rollout__num_gpus=1
    )
    found = costs(config)
    # Decode weights 160 + 40 = 200 of 2 bytes at 500 bytes/s
    assert found.step_s == pytest.approx(1 + 400 / 500)
    # 12 tokens seen: keys and values 2 x 1 x 2 x 2 = 8 bytes each; 400 + 16 x 12 operations at 500 a second
    assert found.sequence_s == pytest.approx(0.5 + 96 / 500 + (400 + 192) / 500)
    # 10 tokens of 288; 55 pairs of 16; 9 patches of 100
    assert found.prefill_s == pytest.approx((2880 + 880 + 900) / 500)
    # Three passes of language model and tower, four of the output layer
    row = found.row
    assert (row.token, row.pair, row.patch) == pytest.approx((3 * 288 / 500, 3 * 16 / 500, 3 * 100 / 500))
    assert row.target == pytest.approx(4 * 80 / 500)
    # ZeRO-3: three times 640 bytes at 700 a second, of which half is the rank's own
    assert found.learn_row_s == pytest.approx(3 * 640 / 700 / 2)
    assert found.learn_fixed_s == pytest.approx(28 * 320 / 500 / 2)
    assert found.sync_s == pytest.approx(2 + 2 * 640 / 700)
    # Three GPUs on nodes of two: over the network
    assert costs(config, gpus_per_node=2).sync_s == pytest.approx(2 + 2 * 640 / 70)


def test_old_log_probabilities_cost_a_pass_over_all_mini_batches_but_the_first() -> None:
    config = config_of(loss__correction="truncated", train__updates_per_batch=4)
    assert costs(config).row.token == pytest.approx(3.75 * 288 / 500)
    config.loss.correction = "ratio"
    assert costs(config).row.token == pytest.approx(3 * 288 / 500)


def test_below_zero_3_gradients_are_reduced_once_an_update() -> None:
    found = costs(config_of(model__dtype="bfloat16", learner__num_ranks=2, learner__zero_stage=0))
    assert found.learn_row_s == 0
    assert found.learn_fixed_s == pytest.approx(28 * 320 / 500 + 2 * 640 / 700 / 2)


def test_checkpointing_and_a_reference_cost_a_pass_each_and_a_frozen_tower_two_less() -> None:
    base = costs(config_of())
    heavy = costs(config_of(model__gradient_checkpointing=True, loss__kl_coef=0.1))
    frozen = costs(config_of(model__freeze_vision=True))
    assert (heavy.row.token, heavy.row.patch) == pytest.approx(
        (base.row.token * 5 / 3, base.row.patch * 5 / 3)
    )
    assert (frozen.row.token, frozen.row.patch) == pytest.approx((base.row.token, base.row.patch / 3))


def test_adapters_save_the_gradients_of_matrices_and_what_is_reduced() -> None:
    whole = config_of(model__dtype="bfloat16", model__freeze_vision=True, learner__num_ranks=2)
    adapted = replace(whole, model=replace(whole.model, lora=Lora(rank=2, targets=["q_proj", "up_proj"])))
    base, found = costs(whole), costs(adapted)
    assert (found.row.token, found.row.pair) == pytest.approx((base.row.token * 2 / 3, base.row.pair))
    assert found.row.target == pytest.approx(base.row.target * 3 / 4)
    # 2 (8 + 12) = 40 weights of 2 bytes at 700 a second, of which half is the rank's own
    assert found.learn_fixed_s == pytest.approx(28 * 40 / 500 + 2 * 40 * 2 / 700 / 2)
    assert found.sync_s == base.sync_s  # the merged matrices
    adapted.learner.zero_stage = 3
    assert costs(adapted).learn_row_s == pytest.approx((2 * 244 + 40) * 2 / 700 / 2)


def test_ranks_that_share_a_row_take_a_part_of_it_and_exchange_attention() -> None:
    config = config_of(model__dtype="bfloat16", learner__num_ranks=2, rollout__num_gpus=1)
    alone = costs(config).row
    config.learner.sequence_parallel = 2
    shared = costs(config).row
    assert (shared.pair, shared.target, shared.patch) == pytest.approx(
        (alone.pair / 2, alone.target / 2, alone.patch / 2)
    )
    # Keys and values 4 numbers, queries and outputs 8, of 2 bytes: a quarter of them is sent, at 700 bytes a second, three times
    assert shared.token == pytest.approx(alone.token / 2 + 3 * 24 / 4 / 700)


def test_what_a_run_measured_scales_its_side() -> None:
    base, scaled = (
        dataclasses.asdict(costs(config_of(learner__num_ranks=2, learner__zero_stage=3), hardware))
        for hardware in (SLOW, dataclasses.replace(SLOW, engine=2, reward=5, learn=6, sync=7))
    )
    rows = base.pop("row"), scaled.pop("row")
    assert {what: scaled[what] / base[what] for what in base} == pytest.approx({
        "step_s": 2, "sequence_s": 2, "prefill_s": 2, "reward_s": 5, "learn_fixed_s": 6, "learn_row_s": 6, "sync_s": 7,
        "prompt_patches": 1,
    })  # fmt: skip
    assert rows[1] == pytest.approx({what: 6 * seconds for what, seconds in rows[0].items()})


# -------------------------------------------------------------------------------------------------------- workload


def test_assumed_lengths_have_their_median_and_are_cut_off() -> None:
    lengths = np.array(lognormal(64, 90, 8))
    assert lengths.shape == (GROUPS, 8)
    assert np.median(lengths) == pytest.approx(64, rel=0.02)
    # Standard deviation 0.5 of the logarithm: Phi(ln(90 / 64) / 0.5) = 0.752 are below the cut
    assert np.mean(lengths == 90) == pytest.approx(0.248, abs=0.02)
    assert lengths.max() == 90
    assert np.min(lognormal(1, 90, 8)) == 1


def test_completions_of_a_group_have_something_in_common() -> None:
    logs = np.log(lognormal(1000, 10**6, 2))
    assert np.corrcoef(logs.T)[0, 1] == pytest.approx(0.5, abs=0.05)  # half of the variance is the group's


def test_groups_are_drawn_whole() -> None:
    work = Workload(prompt_tokens=10, groups=((1, 2), (30, 40)))
    rng = np.random.default_rng(0)
    assert {tuple(work.draw(rng, 2)) for _ in range(50)} == {(1, 2), (30, 40)}
    assert set(work.draw(rng, 20)) in ({1, 2}, {30, 40})
    assert work.completion_tokens == 73 / 4


def test_a_record_drawn_twice_in_a_step_is_two_groups() -> None:
    rows: list[TraceRow] = [{"rollout": i, "tokens": 10 * i} for _ in range(2) for i in range(3)]  # type: ignore[typeddict-item]
    assert list(dumped_groups(rows)) == [(1, 10, 20)] * 2
