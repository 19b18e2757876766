"""The learner on real DeepSpeed ranks in Ray actors: gradients, resume, checkpoint, refusals."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import numpy as np
import pytest
import ray
import torch
from safetensors import safe_open
from safetensors.torch import load_file as load_safetensors
from transformers import AutoProcessor

from actors.learner.ray_learner import RayLearner
from actors.learner.state import KINDS, LearnerState
from actors.learner.update import MAX_NONFINITE_STEPS
from actors.learner.worker import LearnerWorker
from actors.parameters import tensor_digest
from tests.actors.learner_stage import (
    Bench,
    Stage,
    assert_close,
    assert_gradients,
    plain_gradients,
    save,
    started,
)
from videostr.checkpoint import Files
from videostr.config.schema import Config
from videostr.config.sections import Lora, LossConfig, TrainConfig
from videostr.digests import file_digest
from videostr.errors import CheckpointError, ConfigError, GradientError, LearnerError
from videostr.groups import RolloutGroup
from videostr.grpo.attention import Kernel
from videostr.grpo.losses import LossInputs
from videostr.models.base import FAMILIES
from videostr.models.checkpoint import load_policy
from videostr.types import FailureKind

T = TypeVar("T")


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    return Stage(tmp_path_factory.mktemp("learner"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Awaitable[T]], T]]:
    """Run a coroutine while a local Ray is up."""
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield asyncio.run  # type: ignore[misc]
    ray.shutdown()


@pytest.fixture(scope="module")
def learners(stage: Stage, run: Callable[[Awaitable[Any]], Any]) -> Iterator[dict[int, RayLearner]]:
    """One rank alone, and two together."""
    learners = {
        ranks: run(started(stage.config(num_ranks=ranks), stage.frames, worker_class=Bench))
        for ranks in (1, 2)
    }
    yield learners
    for learner in learners.values():
        learner.close()


@pytest.mark.parametrize(
    ("ranks", "zero_stage", "max_row_tokens", "checkpointing"),
    [
        (1, 0, 1000, False),
        (1, 2, 40, False),
        (1, 3, 90, False),
        (2, 0, 90, True),
        (2, 1, 90, False),
        (2, 2, 60, False),
        (2, 3, 90, False),
        (2, 3, 1000, True),
    ],
)
def test_loss_and_gradients_do_not_depend_on_ranks_stage_and_cut(
    stage: Stage,
    run: Callable[[Awaitable[Any]], Any],
    learners: dict[int, RayLearner],
    ranks: int,
    zero_stage: int,
    max_row_tokens: int,
    checkpointing: bool,
) -> None:
    expected_loss, expected, _ = plain_gradients(stage)
    config = stage.config(num_ranks=ranks, zero_stage=zero_stage, max_row_tokens=max_row_tokens)
    config.model.gradient_checkpointing = checkpointing
    assert_gradients(learners[ranks], run, config, stage.batch, expected_loss, expected)


@pytest.mark.parametrize(
    ("zero_stage", "max_row_tokens", "checkpointing", "freeze_vision"),
    [
        (0, 1000, False, False),
        (2, 60, False, True),
        (2, 90, True, False),
        (3, 90, True, False),
        (3, 1000, False, True),
    ],
)
@pytest.mark.parametrize("model_type", list(FAMILIES)[1:])
def test_loss_and_gradients_of_every_family(
    stage: Stage,
    run: Callable[[Awaitable[Any]], Any],
    learners: dict[int, RayLearner],
    model_type: str,
    zero_stage: int,
    max_row_tokens: int,
    checkpointing: bool,
    freeze_vision: bool,
) -> None:
    """Of those that the tests above and below do not have, on two ranks."""
    others = stage.of(model_type)
    expected_loss, expected, _ = others.plain
    config = others.config(num_ranks=2, zero_stage=zero_stage, max_row_tokens=max_row_tokens)
    config.model.gradient_checkpointing, config.model.freeze_vision = checkpointing, freeze_vision
    trained = {name: g for name, g in expected.items() if not (freeze_vision and "visual" in name)}
    assert_gradients(learners[2], run, config, others.batch, expected_loss, trained)


@pytest.mark.parametrize(
    ("ranks", "zero_stage", "activation_gib", "all_recompute"),
    [(1, 0, 3e-3, False), (2, 3, 0.0, True), (2, 3, 3e-3, False)],
)
def test_compiled_layers_and_kept_activations_change_no_gradient(
    ranks: int,
    zero_stage: int,
    activation_gib: float,
    all_recompute: bool,
    stage: Stage,
    run: Callable[[Awaitable[Any]], Any],
    learners: dict[int, RayLearner],
) -> None:
    expected_loss, expected, _ = plain_gradients(stage)
    config = stage.config(
        num_ranks=ranks,
        zero_stage=zero_stage,
        max_row_tokens=90,
        kernels="compiled",
        activation_gib=activation_gib,
    )
    config.model.gradient_checkpointing = True
    assert_gradients(learners[ranks], run, config, stage.batch, expected_loss, expected)
    checkpointed = run(learners[ranks].call("checkpointed"))
    assert all((here == total) is all_recompute and here > 0 for here, total in checkpointed), checkpointed


def test_under_zero_3_a_rank_holds_half_of_policy_and_reference(
    stage: Stage, run: Callable[[Awaitable[Any]], Any], learners: dict[int, RayLearner]
) -> None:
    policy = load_policy(stage.policy, torch.float32)
    sizes = [parameter.numel() for parameter in policy.parameters()]
    run(learners[2].call("rebuild", stage.config(num_ranks=2, zero_stage=3)))
    initial = {name: tensor_digest(parameter.detach()) for name, parameter in policy.named_parameters()}
    assert run(learners[2].checksums()) == initial
    expected = sum((size + 1) // 2 for size in sizes)
    assert run(learners[2].call("held")) == [(expected, expected)] * 2


@pytest.mark.parametrize(("zero_stage", "offload"), [(0, "none"), (2, "optimizer"), (3, "none"), (3, "all")])
def test_resume_is_bit_identical_and_the_policy_loads(
    stage: Stage,
    run: Callable[[Awaitable[Any]], Any],
    learners: dict[int, RayLearner],
    zero_stage: int,
    offload: str,
    tmp_path: Path,
) -> None:
    learner = learners[2]
    config = stage.config(
        num_ranks=2, zero_stage=zero_stage, offload=offload, warmup_steps=3, schedule="cosine"
    )
    run(learner.call("rebuild", config))
    first = run(learner.update(stage.batch))
    assert first.version == 1
    assert first.metrics["lr"] == pytest.approx(1e-3 / 3)
    run(save(learner, tmp_path))
    saved = run(learner.checksums())
    second = run(learner.update(stage.batch))
    run(learner.update(stage.batch))
    gone_on = run(learner.checksums())
    assert gone_on != saved

    run(learner.call("rebuild", config))
    assert run(learner.load(tmp_path)) == 1
    assert run(learner.checksums()) == saved
    assert run(learner.update(stage.batch)) == second
    run(learner.update(stage.batch))
    assert run(learner.checksums()) == gone_on

    loaded = load_policy(tmp_path / "policy", torch.float32)
    assert {name: tensor_digest(p.detach()) for name, p in loaded.named_parameters()} == saved
    assert AutoProcessor.from_pretrained(tmp_path / "policy").chat_template == stage.processor.chat_template


def test_adapters_learn_the_same_on_any_ranks_and_are_saved(
    stage: Stage, run: Callable[[Awaitable[Any]], Any], learners: dict[int, RayLearner], tmp_path: Path
) -> None:
    """With a KL term against the policy without them: rows, ranks, ZeRO and checkpoints of both kinds change nothing."""
    found = []
    for ranks, zero_stage, row, checkpointing in ((1, 0, 1000, False), (2, 2, 60, True), (2, 3, 90, True)):
        config = stage.config(num_ranks=ranks, zero_stage=zero_stage, max_row_tokens=row, lr=1e-2)
        config.model.freeze_vision, config.model.gradient_checkpointing = True, checkpointing
        config.model.lora = Lora(rank=4, targets=["q_proj", "up_proj"])
        run(learners[ranks].call("rebuild", config))
        # AdamW's first step is the sign of the gradient, which is noise where B = 0: compared is what the second one sees.
        updates = [run(learners[ranks].update(stage.batch)) for _ in range(3)]
        metrics = [{name: v for name, v in u.metrics.items() if "vision" not in name} for u in updates]
        found.append((metrics, run(learners[ranks].call("parameters"))[0]))
    for metrics, weights in found[1:]:
        for one, two in zip(found[0][0], metrics, strict=True):
            assert one == pytest.approx(two, rel=1e-3, abs=1e-5)
        for name, values in found[0][1].items():
            np.testing.assert_allclose(values, weights[name], rtol=0, atol=1e-3, err_msg=name)
    assert found[0][0][0]["kl"] == 0.0  # the reference is the policy without adapters
    assert found[0][0][2]["kl"] > 1e-4
    initial = {name: p.detach() for name, p in load_policy(stage.policy, torch.float32).named_parameters()}
    changed = {name for name, values in found[0][1].items() if not np.array_equal(values, initial[name])}
    layers = stage.model_config.text_config.num_hidden_layers
    assert len(changed) == 2 * layers
    assert all(
        name.endswith(("q_proj.weight", "up_proj.weight")) and ".visual." not in name for name in changed
    )

    learner = learners[2]  # of ZeRO-3
    run(save(learner, tmp_path))
    saved = run(learner.checksums())
    again = run(learner.update(stage.batch))
    adapter = load_safetensors(tmp_path / "adapter" / "adapter_model.safetensors")
    policy = load_policy(tmp_path / "policy", torch.float32)
    assert {name: tensor_digest(p.detach()) for name, p in policy.named_parameters()} == saved
    for name in changed:
        part = f"base_model.model.{name.removesuffix('.weight')}"
        a, b = adapter[f"{part}.lora_A.weight"], adapter[f"{part}.lora_B.weight"]
        assert torch.allclose(policy.get_parameter(name), initial[name] + 32.0 / 4 * b @ a, atol=1e-6)
    run(learner.call("rebuild", config))
    assert run(learner.load(tmp_path)) == 3
    assert run(learner.checksums()) == saved
    assert run(learner.update(stage.batch)) == again


@pytest.mark.parametrize(("ranks", "zero_stage"), [(1, 0), (2, 3)])
def test_two_updates_on_a_batch_are_those_on_its_halves(
    stage: Stage,
    run: Callable[[Awaitable[Any]], Any],
    learners: dict[int, RayLearner],
    ranks: int,
    zero_stage: int,
    tmp_path: Path,
) -> None:
    """The ratio is taken against the engine, so no update knows of the others; whole groups in order, the larger half first."""
    learner = learners[ranks]
    config = stage.config(num_ranks=ranks, zero_stage=zero_stage, schedule="linear", warmup_steps=3)
    halves = [
        replace(stage.batch, groups=stage.batch.groups[part], advantages=stage.batch.advantages[part])
        for part in (slice(2), slice(2, None))
    ]
    one_each = replace(config, train=TrainConfig(steps=20))
    run(learner.call("rebuild", one_each))
    single = [run(learner.update(half)) for half in halves]
    run(learner.update(halves[0]))
    expected = run(learner.checksums())

    two_each = replace(config, train=TrainConfig(steps=10, updates_per_batch=2))
    run(learner.call("rebuild", two_each))
    update = run(learner.update(stage.batch))
    assert (update.version, update.metrics["updates"]) == (1, 2)
    first, second = (one.metrics for one in single)
    tokens = [
        9 + 4 + 3 + 8,
        6 + 6 + 1 + 7,
    ]  # the twelfth token of the first group is masked out with its completion
    for name in ("kl", "clip_fraction", "entropy"):
        mean = (tokens[0] * first[name] + tokens[1] * second[name]) / sum(tokens)
        assert update.metrics[name] == pytest.approx(mean, rel=1e-6), name
    assert update.metrics["ratio_max"] == max(first["ratio_max"], second["ratio_max"])
    assert update.metrics["loss"] == pytest.approx((first["loss"] + second["loss"]) / 2)
    assert update.metrics["grad_norm"] == pytest.approx((first["grad_norm"] + second["grad_norm"]) / 2)
    assert update.metrics["mismatch_kl"] == first["mismatch_kl"]
    assert update.metrics["lr"] == second["lr"] == pytest.approx(1e-3 * 2 / 3)

    # a checkpoint knows how far the schedule is, and a batch of one group has one update
    run(save(learner, tmp_path))
    run(learner.call("rebuild", two_each))
    assert run(learner.load(tmp_path)) == 1
    lone = replace(stage.batch, groups=stage.batch.groups[:1], advantages=stage.batch.advantages[:1])
    alone = run(learner.update(lone))
    assert (alone.version, alone.metrics["updates"], alone.metrics["lr"]) == (2, 1, pytest.approx(1e-3))

    run(learner.call("rebuild", one_each))
    run(learner.load(tmp_path))
    run(learner.update(halves[0]))
    assert run(learner.checksums()) == expected


@pytest.mark.parametrize("correction", ["truncated", "none"])
def test_against_old_logprobs_the_ratio_moves_from_the_second_update_on(
    stage: Stage, run: Callable[[Awaitable[Any]], Any], learners: dict[int, RayLearner], correction: str
) -> None:
    """And neither ranks nor rows change the result; a learning rate this high moves ratios beyond the clip."""
    found = []
    for ranks, zero_stage, row in ((1, 0, 1000), (2, 3, 60)):
        config = stage.config(num_ranks=ranks, zero_stage=zero_stage, max_row_tokens=row, lr=0.02)
        loss = LossConfig(correction=correction)  # type: ignore[arg-type]
        for updates in (1, 3):
            train = TrainConfig(steps=10, updates_per_batch=updates)
            run(learners[ranks].call("rebuild", replace(config, loss=loss, train=train)))
            metrics = run(learners[ranks].update(stage.batch)).metrics
            assert ("clip_fraction" in metrics, "ratio_max" in metrics) == (updates > 1, updates > 1)
            assert ("importance_weight_mean" in metrics) == (correction == "truncated")
        assert metrics["ratio_max"] > 1.28
        assert 0 < metrics["clip_fraction"] < 1
        found.append((metrics, run(learners[ranks].call("parameters"))[0]))
    (alone, weights), (together, others) = found
    assert alone == pytest.approx(together, rel=1e-3, abs=1e-5)
    for name, values in weights.items():
        np.testing.assert_allclose(values, others[name], rtol=0, atol=1e-3, err_msg=name)


def test_a_loss_of_the_users_own_learns_and_its_failure_is_bad_input(
    stage: Stage, run: Callable[[Awaitable[Any]], Any], learners: dict[int, RayLearner]
) -> None:
    """Not a lost rank: starting all of them again would only fail again."""
    learner, config = learners[1], stage.config()
    metrics, weights = {}, {}
    for name, custom in (("cispo", ""), ("ppo_clip", f"{__name__}:reinforce")):
        loss = LossConfig(name=name, custom=custom, correction="none")  # type: ignore[arg-type]
        run(learner.call("rebuild", replace(config, loss=loss)))
        metrics[name] = run(learner.update(stage.batch)).metrics
        weights[name] = run(learner.checksums())
    assert weights["cispo"] == weights["ppo_clip"]  # with r = 1 both are -A log pi
    assert metrics["cispo"] == metrics["ppo_clip"]
    run(learner.call("rebuild", replace(config, loss=LossConfig(custom=f"{__name__}:diverges"))))
    with pytest.raises(
        ConfigError, match=r"rank 0 failed in `update`.*diverges: it returned NaN or infinity"
    ):
        run(learner.update(stage.batch))


def reinforce(inputs: LossInputs) -> torch.Tensor:
    return -inputs.advantages * inputs.logprobs


def diverges(inputs: LossInputs) -> torch.Tensor:
    return inputs.logprobs / 0.0


@pytest.mark.parametrize(
    ("ranks", "zero_stage", "dtype"),
    [(1, 0, "float32"), (2, 0, "bfloat16"), (2, 2, "float32"), (2, 3, "float32"), (2, 1, "bfloat16")],
)
def test_a_step_whose_gradient_is_nan_is_skipped_and_counted_and_five_in_a_row_end_the_run(
    stage: Stage,
    run: Callable[[Awaitable[Any]], Any],
    learners: dict[int, RayLearner],
    ranks: int,
    zero_stage: int,
    dtype: str,
) -> None:
    learner, config = learners[ranks], stage.config(num_ranks=ranks, zero_stage=zero_stage, warmup_steps=3)
    config = replace(config, model=replace(config.model, dtype=dtype))
    spoiled = replace(
        stage.batch, advantages=tuple(np.full_like(values, np.nan) for values in stage.batch.advantages)
    )
    run(learner.call("rebuild", config))
    expected, weights = run(learner.update(stage.batch)), run(learner.checksums())

    run(learner.call("rebuild", config))
    before = run(learner.checksums())
    skipped = run(learner.update(spoiled))
    assert (skipped.version, skipped.metrics["nonfinite_steps"]) == (1, 1)
    assert not {"loss", "grad_norm"} & skipped.metrics.keys()
    assert np.isfinite(list(skipped.metrics.values())).all()
    assert run(learner.checksums()) == before
    update = run(learner.update(stage.batch))
    assert replace(update, version=1) == expected  # the learning rate of a first step included
    assert run(learner.checksums()) == weights

    for _ in range(MAX_NONFINITE_STEPS - 1):
        run(learner.update(spoiled))
    with pytest.raises(GradientError, match=r"rank \d .*NaN or infinite in 5 optimizer steps in a row"):
        run(learner.update(spoiled))
    assert run(learner.checksums()) == weights


@pytest.mark.parametrize("zero_stage", [0, 3])
def test_ranks_go_on_after_a_checkpoint_that_could_not_be_written(
    stage: Stage,
    run: Callable[[Awaitable[Any]], Any],
    learners: dict[int, RayLearner],
    zero_stage: int,
    tmp_path: Path,
) -> None:
    learner = learners[2]
    results = []
    for full in (False, True):
        run(learner.call("rebuild", stage.config(num_ranks=2, zero_stage=zero_stage)))
        if full:
            names = ("policy/model-00001-of-00002.safetensors", "learner/rank_00001_00001.safetensors")
            for name in names:
                (tmp_path / name / "in the way").mkdir(parents=True)
            told = "; ".join(
                f"{tmp_path / name}: Is a directory; a folder has the name of a file.*" for name in names
            )
            with pytest.raises(CheckpointError, match=told):
                run(save(learner, tmp_path))
        results.append((run(learner.update(stage.batch)), run(learner.checksums())))
    assert results[0] == results[1]


def test_checkpoint_does_not_depend_on_ranks_and_stage(
    stage: Stage, run: Callable[[Awaitable[Any]], Any], learners: dict[int, RayLearner], tmp_path: Path
) -> None:
    def config(ranks: int, zero_stage: int) -> Config:
        return stage.config(num_ranks=ranks, zero_stage=zero_stage)

    first, again = tmp_path / "first", tmp_path / "again"
    run(learners[2].call("rebuild", config(2, 3)))
    run(learners[2].call("limit_shards", 2**20))
    run(learners[2].update(stage.batch))
    files = run(save(learners[2], first))
    saved, state = run(learners[2].checksums()), read_state(first)
    run(learners[2].update(stage.batch))
    gone_on = run(learners[2].call("parameters"))[0]
    assert state.keys() == {f"{kind}/{name}" for kind in KINDS for name in saved}
    shards = sorted((first / "learner").glob("rank_0000?_*.safetensors"))
    largest = max(tensor.nbytes for tensor in state.values())
    assert {shard.name[:10] for shard in shards} == {"rank_00000", "rank_00001"}
    assert len(shards) > 5
    assert sorted(first.rglob("*.safetensors")) == sorted(
        first / name for name in files if "safetensors" in name
    )
    for name, (size, checksum) in files.items():
        assert (first / name).stat().st_size == size
        assert file_digest(first / name) == checksum
    assert all(shard.stat().st_size < 2**20 + largest + 2**14 for shard in shards)
    assert {path.suffix for path in (first / "learner").iterdir()} == {".safetensors", ".json"}

    four = run(started(config(4, 2), stage.frames, worker_class=Bench))
    try:
        run(learners[1].call("rebuild", config(1, 0)))
        for learner in (learners[1], four):
            assert run(learner.load(first)) == 1
            assert run(learner.checksums()) == saved
            run(save(learner, again))
            assert_same(read_state(again), state)
            run(learner.update(stage.batch))
            for name, values in run(learner.call("parameters"))[0].items():
                np.testing.assert_allclose(values, gone_on[name], rtol=0, atol=1e-6, err_msg=name)
    finally:
        four.close()
    assert run(learners[2].load(again)) == 1
    assert run(learners[2].checksums()) == saved
    run(learners[2].update(stage.batch))
    assert_same(run(learners[2].call("parameters"))[0], gone_on)


def test_bfloat16_checkpoint_does_not_depend_on_ranks_and_stage(
    stage: Stage, run: Callable[[Awaitable[Any]], Any], learners: dict[int, RayLearner], tmp_path: Path
) -> None:
    def rebuild(ranks: int, zero_stage: int) -> RayLearner:
        config = stage.config(num_ranks=ranks, zero_stage=zero_stage)
        run(learners[ranks].call("rebuild", replace(config, model=replace(config.model, dtype="bfloat16"))))
        return learners[ranks]

    learner = rebuild(1, 0)
    run(learner.update(stage.batch))
    run(save(learner, tmp_path))
    saved, state = run(learner.checksums()), read_state(tmp_path)
    assert json.loads((tmp_path / "learner" / "state.json").read_text())["step"] == 1
    for name, checksum in saved.items():
        master = torch.from_numpy(state[f"master/{name}"])
        assert tensor_digest(master.bfloat16()) == checksum
        assert not torch.equal(master.bfloat16().float(), master), name
    for ranks, zero_stage in ((2, 1), (2, 3), (1, 0)):
        learner = rebuild(ranks, zero_stage)
        run(learner.load(tmp_path))
        assert run(learner.checksums()) == saved
        run(save(learner, tmp_path))
        assert_same(read_state(tmp_path), state)


def read_state(folder: Path) -> dict[str, np.ndarray]:
    """What the shards of a checkpoint hold: every tensor whole and flat."""
    parts: dict[str, dict[int, np.ndarray]] = {}
    for shard in json.loads((folder / "learner" / "state.json").read_text())["shards"]:
        with safe_open(folder / "learner" / shard, framework="numpy") as file:
            for key, start in json.loads(file.metadata()["starts"]).items():
                parts.setdefault(key, {})[start] = file.get_tensor(key)
    return {key: np.concatenate([found[start] for start in sorted(found)]) for key, found in parts.items()}


def assert_same(values: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> None:
    """To the last bit."""
    assert values.keys() == expected.keys()
    for name, value in values.items():
        assert value.tobytes() == expected[name].tobytes(), name


@pytest.mark.parametrize(
    ("numel", "length", "counts"), [(8, 2, [2, 2, 2, 2]), (7, 2, [2, 2, 2, 1]), (5, 2, [2, 2, 1, 0])]
)
def test_parts_of_an_uneven_cut_make_up_the_parameter(
    numel: int, length: int, counts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ZeRO-3 pads a rank's piece with is not part of the parameter."""
    layer = torch.nn.Linear(numel, 1, bias=False)
    layer.weight.ds_numel = numel
    optimizer = SimpleNamespace(
        fp32_partitioned_groups_flat=[torch.zeros(3 + length)],
        grad_position={0: [0, 3, length]},
        get_param_id=lambda parameter: 0,
    )
    engine = SimpleNamespace(zero_optimization_stage=lambda: 3, basic_optimizer=None, optimizer=optimizer)
    end = 0
    for rank, expected in enumerate(counts):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        part = LearnerState(engine, layer).parts["weight"]
        assert (part.offset, part.count) == (3, expected)
        assert part.start == end or expected == 0
        end += expected
    assert end == numel


@pytest.mark.parametrize("zero_stage", [0, 3])
def test_a_checkpoint_is_of_its_snapshot_whatever_is_learned_while_it_is_written(
    stage: Stage,
    run: Callable[[Awaitable[Any]], Any],
    learners: dict[int, RayLearner],
    zero_stage: int,
    tmp_path: Path,
) -> None:
    learner = learners[2]
    run(learner.call("rebuild", stage.config(num_ranks=2, zero_stage=zero_stage)))
    run(learner.update(stage.batch))
    saved = run(learner.checksums())

    async def both() -> Files:
        await learner.snapshot()
        writing = asyncio.create_task(learner.write(tmp_path))
        for _ in range(3):
            await learner.update(stage.batch)
        return await writing

    files = run(both())
    assert {Path(name).parts[0] for name in files} == {"policy", "learner"}
    gone_on = run(learner.checksums())
    assert gone_on != saved
    assert run(learner.load(tmp_path)) == 1
    assert run(learner.checksums()) == saved
    for _ in range(3):
        run(learner.update(stage.batch))
    assert run(learner.checksums()) == gone_on


def test_a_checkpoint_that_lacks_a_shard_is_refused(
    stage: Stage, run: Callable[[Awaitable[Any]], Any], learners: dict[int, RayLearner], tmp_path: Path
) -> None:
    run(learners[2].call("rebuild", stage.config(num_ranks=2, zero_stage=2)))
    run(save(learners[2], tmp_path))
    run(learners[2].update(stage.batch))
    before = run(learners[2].checksums())
    path = tmp_path / "learner" / "state.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "shards": values["shards"][:1]}))
    with pytest.raises(
        LearnerError, match=r"has \d+ elements, the shards lack those from \d+ on; restore the"
    ):
        run(learners[2].load(tmp_path))
    assert run(learners[2].checksums()) == before


def test_checkpoint_of_other_parameters_is_refused(
    stage: Stage, run: Callable[[Awaitable[Any]], Any], learners: dict[int, RayLearner], tmp_path: Path
) -> None:
    whole = stage.config()
    frozen = replace(whole, model=replace(whole.model, freeze_vision=True))
    for config, folder in ((frozen, "frozen"), (whole, "whole")):
        run(learners[1].call("rebuild", config))
        run(save(learners[1], tmp_path / folder))
    before = run(learners[1].checksums())
    assert not [key for key in read_state(tmp_path / "frozen") if "visual" in key]
    with pytest.raises(
        LearnerError, match=r"model\.visual\.\S+ is absent in the checkpoint and \[.+\] in this"
    ):
        run(learners[1].load(tmp_path / "frozen"))
    assert run(learners[1].checksums()) == before
    run(learners[1].call("rebuild", frozen))
    with pytest.raises(
        LearnerError, match=r"model\.visual\.\S+ is \[.+\] in the checkpoint and not trained in this"
    ):
        run(learners[1].load(tmp_path / "whole"))


def test_metrics_and_learning(
    stage: Stage, run: Callable[[Awaitable[Any]], Any], learners: dict[int, RayLearner]
) -> None:
    run(learners[2].call("rebuild", stage.config(num_ranks=2, zero_stage=3)))
    expected_loss, gradients, logprobs = plain_gradients(stage)
    ours = run(learners[2].logprobs(stage.batch))
    for (group, completion), expected in logprobs.items():
        np.testing.assert_allclose(ours[group][completion], expected, atol=1e-5)
    updates = [run(learners[2].update(stage.batch)) for _ in range(3)]
    assert [update.version for update in updates] == [1, 2, 3]
    metrics = updates[0].metrics
    assert metrics["loss"] == pytest.approx(expected_loss, abs=1e-5)
    assert metrics["kl"] == pytest.approx(0, abs=1e-6)
    assert metrics["grad_norm"] == pytest.approx(
        np.sqrt(sum((g**2).sum() for g in gradients.values())), rel=1e-4
    )
    assert 0 < metrics["entropy"] < np.log(640)
    assert updates[2].metrics["kl"] > 0
    assert updates[2].metrics["loss"] < metrics["loss"]


@pytest.mark.parametrize("zero_stage", [0, 3])
def test_frozen_vision_gradient_checkpointing_and_bfloat16(
    stage: Stage,
    run: Callable[[Awaitable[Any]], Any],
    learners: dict[int, RayLearner],
    zero_stage: int,
    tmp_path: Path,
) -> None:
    # no two completions fit a row of 1 token: 2, 2 and 4 rows show the three clips
    config = stage.config(num_ranks=2, zero_stage=zero_stage, max_row_tokens=1, vision_cache_gib=0.001)
    model = replace(config.model, freeze_vision=True, gradient_checkpointing=True)
    run(learners[2].call("rebuild", replace(config, model=model)))
    before = run(learners[2].checksums())
    _, expected, _ = plain_gradients(stage)
    _, gradients = run(learners[2].call("gradients", stage.batch))[0]
    assert gradients.keys() == {name for name in expected if "visual" not in name}
    for name, gradient in gradients.items():
        assert_close(gradient, expected[name], name)
    after = run(learners[2].checksums())
    assert {name for name in after if after[name] != before[name]} == gradients.keys()

    run(save(learners[2], tmp_path))
    run(learners[2].call("forget", 1))
    first, second = (run(learners[2].update(stage.batch)).metrics for _ in range(2))
    # rank 1 runs the tower once for each of its clips, while rank 0 has them all and does not wait
    assert 1 <= first["vision/misses"] <= 3
    assert (second["vision/hits"], second["vision/misses"]) == (8, 0)
    assert first["vision/hits"] + first["vision/misses"] == 8
    gone_on = run(learners[2].checksums())
    assert {n: d for n, d in gone_on.items() if "visual" in n} == {
        n: d for n, d in before.items() if "visual" in n
    }
    assert run(learners[2].load(tmp_path)) == 0
    assert run(learners[2].checksums()) == after
    for _ in range(2):
        run(learners[2].update(stage.batch))
    assert run(learners[2].checksums()) == gone_on

    run(learners[2].call("rebuild", replace(config, model=replace(config.model, dtype="bfloat16"))))
    update = run(learners[2].update(stage.batch))
    assert update.metrics["grad_norm"] == pytest.approx(
        np.sqrt(sum((g**2).sum() for g in expected.values())), rel=0.05
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(
    ("attention", "zero_stage", "freeze_vision"),
    [("flex", 0, False), ("sdpa", 2, False), ("flex", 3, False), ("flex", 2, True)],
)
def test_a_rank_on_a_gpu_learns_as_one_on_a_cpu(
    stage: Stage,
    run: Callable[[Awaitable[Any]], Any],
    attention: Kernel,
    zero_stage: int,
    freeze_vision: bool,
    tmp_path: Path,
) -> None:
    config = stage.config(num_gpus=1, zero_stage=zero_stage, attention=attention)
    config.model.freeze_vision = freeze_vision
    config.model.gradient_checkpointing = True
    learner = run(started(config, stage.frames, worker_class=Bench))
    try:
        expected_loss, expected, _ = plain_gradients(stage)
        expected = {n: g for n, g in expected.items() if not (freeze_vision and "visual" in n)}
        loss, gradients = run(learner.call("gradients", stage.batch))[0]
        assert loss == pytest.approx(expected_loss, abs=1e-4)
        assert gradients.keys() == expected.keys()
        for name, gradient in gradients.items():
            error = np.linalg.norm(gradient - expected[name])
            # the convolution over pixels is computed in TF32
            assert error <= max(2e-3 * np.linalg.norm(expected[name]), 1e-5), f"{name}: {error}"

        run(save(learner, tmp_path))
        saved = run(learner.checksums())
        run(learner.update(stage.batch))
        assert run(learner.checksums()) != saved
        run(learner.load(tmp_path))
        assert run(learner.checksums()) == saved

        run(learner.call("rebuild", replace(config, model=replace(config.model, dtype="bfloat16"))))
        norm = np.sqrt(sum((g**2).sum() for g in expected.values()))
        assert run(learner.update(stage.batch)).metrics["grad_norm"] == pytest.approx(norm, rel=0.05)
    finally:
        learner.close()


def other_ids(group: RolloutGroup) -> RolloutGroup:
    ids = group.tokens.prompt_token_ids.copy()
    ids[5] += 1
    return replace(group, sampled=replace(group.tokens, prompt_token_ids=ids))


def with_text(text: str) -> Callable[[RolloutGroup], RolloutGroup]:
    """Text after the video, as no record can put it there, with ids as the tokenizer gives them."""

    def change(group: RolloutGroup) -> RolloutGroup:
        prompt = replace(group.prompt, text=group.prompt.text.replace("where", f"{text} where"))
        return replace(group, prompt=prompt)

    return change


def without_video(group: RolloutGroup) -> RolloutGroup:
    """A clip that is not in the frame store and cannot be decoded again."""
    clip = group.prompt.clip
    gone = replace(clip, digest="0" * len(clip.digest), spec=replace(clip.spec, video="/nowhere/gone.mp4"))
    return replace(group, prompt=replace(group.prompt, clip=gone))


@pytest.mark.parametrize(
    ("ranks", "zero_stage", "freeze_vision"), [(1, 0, False), (2, 0, False), (2, 3, False), (2, 2, True)]
)
def test_groups_that_cannot_be_encoded_are_named_and_left_out_on_all_ranks(
    stage: Stage,
    run: Callable[[Awaitable[Any]], Any],
    learners: dict[int, RayLearner],
    ranks: int,
    zero_stage: int,
    freeze_vision: bool,
) -> None:
    learner, config = learners[ranks], stage.config(num_ranks=ranks, zero_stage=zero_stage)
    config.model.freeze_vision = freeze_vision
    first = stage.batch.groups[0]
    faults: dict[str, tuple[Callable[[RolloutGroup], RolloutGroup], str]] = {
        "ids": (other_ids, "first difference at token 5"),
        "image": (with_text("<|image_pad|>"), ""),
        "video": (with_text("<|video_pad|>"), ""),
        "gone": (without_video, "gone.mp4"),
    }
    spoiled = {
        name: change(replace(first, prompt=replace(first.prompt, record_id=name)))
        for name, (change, _) in faults.items()
    }
    zeros = np.zeros(len(first.sampled.completions), np.float32)
    mixed = replace(
        stage.batch,
        groups=(spoiled["ids"], *stage.batch.groups, *(spoiled[n] for n in ("image", "video", "gone"))),
        advantages=(zeros, *stage.batch.advantages, zeros, zeros, zeros),
    )
    run(learner.call("rebuild", config))
    clean = run(learner.update(stage.batch))
    expected = run(learner.checksums())

    run(learner.call("rebuild", config))
    updates = run(learner.call("update", mixed))
    assert all(update == updates[0] for update in updates)
    update = updates[0]
    assert {f.record_id: f.kind for f in update.failures} == dict.fromkeys(
        faults, FailureKind.LEARNER_ENCODING
    )
    for failure in update.failures:
        assert faults[failure.record_id][1] in failure.detail
    assert replace(update, failures=()) == clean
    assert run(learner.checksums()) == expected

    only = replace(stage.batch, groups=tuple(spoiled.values()), advantages=(zeros,) * len(spoiled))
    nothing = run(learner.update(only))
    assert (nothing.version, len(nothing.failures), nothing.metrics) == (1, 4, {})
    assert run(learner.checksums()) == expected
    assert run(learner.update(stage.batch)).version == 2  # and the ranks continue


def test_batch_without_completions_is_refused(
    stage: Stage, run: Callable[[Awaitable[Any]], Any], learners: dict[int, RayLearner]
) -> None:
    with pytest.raises(LearnerError, match="no completion to learn from"):
        run(learners[1].update(replace(stage.batch, groups=(), advantages=())))


def test_checkpoint_that_is_not_there_is_refused(
    run: Callable[[Awaitable[Any]], Any], learners: dict[int, RayLearner], tmp_path: Path
) -> None:
    with pytest.raises(LearnerError, match="no learner checkpoint"):
        run(learners[1].load(tmp_path))


def test_late_and_dead_ranks_are_named(
    stage: Stage, run: Callable[[Awaitable[Any]], Any], learners: dict[int, RayLearner]
) -> None:
    """Last: it ends the lone rank."""
    learners[1].timeout_s = 0.01
    with pytest.raises(
        LearnerError, match=r"ranks \[0\] did not finish `update` within learner\.timeout_s = 0\.01 s"
    ):
        run(learners[1].update(stage.batch))
    learners[1].timeout_s = 300.0
    ray.kill(learners[1].workers[0])
    with pytest.raises(LearnerError, match="learner rank 0 died in `checksums`"):
        run(learners[1].checksums())


def test_without_ranks_a_call_is_an_error() -> None:
    """As between a start that failed and the next: weights for an engine may be asked for then."""
    learner = RayLearner(Config(), "", (), LearnerWorker)
    with pytest.raises(LearnerError, match="no learner rank runs to do `send_weights`"):
        asyncio.run(learner.call("send_weights", {}))
