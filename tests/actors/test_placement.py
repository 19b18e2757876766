"""Plans that do not fit are refused with what is missing."""

from __future__ import annotations

import tempfile
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray

from actors.placement import lacking, openmp_options, plan, start_ray
from videostr.config.schema import Config
from videostr.config.sections import LearnerConfig, PlacementConfig, RewardConfig, RolloutConfig
from videostr.errors import PlacementError

CONFIG = Config(
    rollout=RolloutConfig(num_workers=3, num_cpus=2, num_gpus=2, tensor_parallel_size=2),
    learner=LearnerConfig(num_ranks=4, num_cpus=1, num_gpus=1),
    reward=RewardConfig(num_workers=2, num_cpus=0.5),
)


def test_a_plan_counts_every_actor() -> None:
    assert [(role.name, role.count, dict(role.bundle)) for role in plan(CONFIG)] == [
        ("rollout", 3, {"CPU": 2, "GPU": 2}),
        ("learner", 4, {"CPU": 1, "GPU": 1}),
        ("reward", 2, {"CPU": 0.5}),
    ]


def test_what_is_missing_is_named_with_its_uses() -> None:
    # CPU: 3 x 2 + 4 x 1 + 2 x 0.5 = 11; GPU: 3 x 2 + 4 x 1 = 10.
    assert lacking(plan(CONFIG), {"CPU": 11, "GPU": 10}) == ""
    assert lacking(plan(CONFIG), {"CPU": 10.5, "GPU": 8}) == (
        "needs 11 CPU (rollout 3 x 2, learner 4 x 1, reward 2 x 0.5), the cluster has 10.5; "
        "needs 10 GPU (rollout 3 x 2, learner 4 x 1), the cluster has 8"
    )


def test_where_a_service_scores_no_reward_worker_is_planned() -> None:
    config = replace(CONFIG, reward=replace(CONFIG.reward, endpoint="127.0.0.1:50051"))
    assert [role.name for role in plan(config)] == ["rollout", "learner"]


def test_threads_wait_passively_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert openmp_options(num_gpus=0) == {"runtime_env": {"env_vars": {"OMP_WAIT_POLICY": "passive"}}}
    assert openmp_options(num_gpus=1) == {}
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    assert openmp_options(num_gpus=0) == {}


def test_a_role_takes_one_of_the_resource_of_its_nodes() -> None:
    config = replace(CONFIG, placement=PlacementConfig(rollout="sampling", reward="judging"))
    assert [dict(role.bundle) for role in plan(config)] == [
        {"CPU": 2, "GPU": 2, "sampling": 1},
        {"CPU": 1, "GPU": 1},
        {"CPU": 0.5, "judging": 1},
    ]
    assert "needs 3 sampling (rollout 3 x 1), the cluster has 2" in lacking(
        plan(config), {"CPU": 99, "GPU": 99, "sampling": 2, "judging": 2}
    )


def test_a_cluster_that_is_not_there_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    with pytest.raises(
        PlacementError,
        match=r"RAY_ADDRESS = 127\.0\.0\.1:9: no cluster can be joined \(.*refused.*unset RAY_ADDRESS",
    ):
        start_ray()


def test_a_cluster_that_somebody_started_on_this_machine_is_not_joined(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        (Path(folder) / "ray_current_cluster").write_text("127.0.0.1:9")  # as `ray start` does
        start_ray(num_cpus=3, _temp_dir=folder)
        try:
            assert ray.cluster_resources()["CPU"] == 3
        finally:
            ray.shutdown()


@pytest.mark.parametrize("failures", [1, 2])
def test_ray_is_started_twice_where_it_is_slow(monkeypatch: pytest.MonkeyPatch, failures: int) -> None:
    tries = []

    def init(address: str, **options: Any) -> None:
        assert address == "local"
        tries.append(options)
        if len(tries) <= failures:
            raise Exception("The current node timed out during startup.\nMore.")  # as Ray does

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", init)
    told = r"did not start .*\(The current node timed out during startup\.\); see"
    with pytest.raises(PlacementError, match=told) if failures == 2 else nullcontext():
        start_ray(num_cpus=3)
    assert [options["num_cpus"] for options in tries] == [3, 3]
