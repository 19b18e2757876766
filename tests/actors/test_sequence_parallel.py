"""Rows that several real DeepSpeed ranks share: loss, gradients and log-probabilities of one process, and what is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import ray

from actors.learner.ray_learner import RayLearner
from tests.actors.learner_stage import LOSS, Bench, Stage, assert_gradients, started
from videostr.errors import ModelError
from videostr.models.base import family_of
from videostr.models.checkpoint import check_model

SHARED = ["qwen2_5_vl", "qwen3_vl", "qwen2_vl"]
"""Families whose rows can be shared."""


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    return Stage(tmp_path_factory.mktemp("sequence"))


@pytest.fixture(scope="module")
def learner(stage: Stage) -> Iterator[RayLearner]:
    """Four ranks."""
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    learner = asyncio.run(
        started(stage.config(num_ranks=4, sequence_parallel=4), stage.frames, worker_class=Bench)
    )
    yield learner
    learner.close()
    ray.shutdown()


@pytest.fixture(scope="module")
def run() -> Callable[[Awaitable[Any]], Any]:
    return asyncio.run  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("shared", "zero_stage", "max_row_tokens", "checkpointing", "freeze_vision"),
    [
        (
            4,
            0,
            1000,
            False,
            False,
        ),  # as many ranks as heads, more than heads of keys, more than temporal patches
        (4, 3, 90, True, True),
        (2, 0, 90, False, True),  # two rows at a time
        (2, 2, 60, True, False),
        (2, 3, 90, False, False),
    ],
)
@pytest.mark.parametrize("model_type", SHARED)
def test_loss_and_gradients_are_those_of_one_rank(
    stage: Stage,
    run: Callable[[Awaitable[Any]], Any],
    learner: RayLearner,
    model_type: str,
    shared: int,
    zero_stage: int,
    max_row_tokens: int,
    checkpointing: bool,
    freeze_vision: bool,
) -> None:
    these = stage.of(model_type)
    expected_loss, expected, logprobs = these.plain
    config = these.config(
        num_ranks=4, sequence_parallel=shared, zero_stage=zero_stage, max_row_tokens=max_row_tokens
    )
    config.model.gradient_checkpointing, config.model.freeze_vision = checkpointing, freeze_vision
    trained = {name: g for name, g in expected.items() if not (freeze_vision and "visual" in name)}
    assert_gradients(learner, run, config, these.batch, expected_loss, trained)
    run(learner.call("rebuild", config))
    for group, found in enumerate(run(learner.logprobs(these.batch))):
        for completion, values in enumerate(found):
            np.testing.assert_allclose(values, logprobs[group, completion], rtol=0, atol=1e-5)


def test_metrics_and_weights_are_those_of_ranks_with_rows_of_their_own(
    stage: Stage, run: Callable[[Awaitable[Any]], Any], learner: RayLearner
) -> None:
    """A loss that mixes the tokens of a sequence, a reference, a frozen tower; three updates."""
    found = []
    for shared in (1, 4):
        config = stage.config(num_ranks=4, sequence_parallel=shared, zero_stage=3, max_row_tokens=1000)
        config.model.freeze_vision = True
        config.loss = replace(LOSS, name="gspo", aggregation="sequence")
        run(learner.call("rebuild", config))
        updates = [run(learner.update(stage.batch)).metrics for _ in range(3)]
        found.append((updates, run(learner.call("parameters"))[0]))
    (alone, weights), (together, others) = found
    for one, two in zip(alone, together, strict=True):
        assert one.keys() == two.keys()
        vision = [sum(each[f"vision/{name}"] for name in ("hits", "misses")) for each in (one, two)]
        assert vision == [4, 3]  # ranks of their own repeat a row to be equally many
        for name in one.keys() - {"vision/hits", "vision/misses"}:
            assert one[name] == pytest.approx(two[name], rel=1e-3, abs=1e-5), name
    for name, values in weights.items():
        np.testing.assert_allclose(values, others[name], rtol=0, atol=1e-3, err_msg=name)


def test_what_cannot_be_shared_is_refused(stage: Stage) -> None:
    with pytest.raises(ModelError, match="3: the model has 4 heads of attention") as error:
        check_model(stage.policy, cpu=True, sequence_parallel=3)
    assert error.value.remedy == "set it to one of 2, 4, or to 1"
    recurrent = stage.of("qwen3_5")
    with pytest.raises(ModelError, match="recurrent layers pass on a state"):
        family_of(recurrent.policy).check_sequence_parallel(recurrent.model_config, 2)
