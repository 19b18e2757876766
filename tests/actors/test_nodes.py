"""Roles on a Ray cluster of several nodes (raylets of this machine, each with a resource of its own)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from actors.placement import Placement
from videostr.config.schema import Config
from videostr.config.sections import LearnerConfig, PlacementConfig, RewardConfig, RolloutConfig
from videostr.errors import PlacementError
from videostr.tasks import race

CONFIG = Config(
    rollout=RolloutConfig(num_workers=2, num_cpus=1),
    learner=LearnerConfig(num_ranks=2, num_cpus=1),
    reward=RewardConfig(num_workers=2, num_cpus=0.5),
    placement=PlacementConfig(rollout="rollout", learner="learner", reward="reward"),
)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head without room for anyone, and two nodes; the one for rewards is not there yet."""
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    found.add_node(num_cpus=8, resources={"rollout": 2})
    found.add_node(num_cpus=8, resources={"learner": 2})
    ray.init(address=found.address, log_to_driver=False)
    yield found
    ray.shutdown()
    found.shutdown()


def reserved(config: Config) -> Placement:
    placement = Placement(config)
    asyncio.run(placement.reserve())
    return placement


def node_of(options: dict[str, Any]) -> str:
    @ray.remote(num_cpus=0.25)
    def where() -> str:
        return ray.get_runtime_context().get_node_id()

    return str(ray.get(where.options(**options).remote(), timeout=60))


def test_roles_land_on_their_nodes_and_a_node_added_later_is_used(cluster: Cluster) -> None:
    with pytest.raises(PlacementError, match=r"needs 2 reward \(reward 2 x 1\), the cluster has 0"):
        reserved(CONFIG)

    waiting = replace(CONFIG, placement=replace(CONFIG.placement, wait_s=60.0))
    with ThreadPoolExecutor(1) as aside:
        found = aside.submit(reserved, waiting)
        time.sleep(2.0)
        assert not found.done()
        cluster.add_node(num_cpus=2, resources={"reward": 2})
        placement = found.result(timeout=60)

    by_resource = {
        name: node["NodeID"] for node in ray.nodes() for name in ("rollout", "learner", "reward")
        if name in node["Resources"]
    }  # fmt: skip
    assert len(set(by_resource.values())) == 3
    for role, node in by_resource.items():
        assert {node_of(options) for options in placement.options(role)} == {node}
    assert node_of(placement.anywhere("reward")) == by_resource["reward"]
    placement.close()


def test_a_stop_is_heard_while_there_is_no_room(cluster: Cluster) -> None:
    config = replace(CONFIG, placement=replace(CONFIG.placement, reward="nowhere", wait_s=600.0))

    async def stopped() -> None:
        stop, placement = asyncio.Event(), Placement(config)
        asyncio.get_running_loop().call_later(1.0, stop.set)
        await race(stop, placement.reserve())
        placement.close()
        assert stop.is_set()

    asyncio.run(asyncio.wait_for(stopped(), 60.0))


def test_what_no_node_has_room_for_is_refused(cluster: Cluster) -> None:
    config = replace(CONFIG, rollout=replace(CONFIG.rollout, num_workers=3))
    config = replace(config, placement=replace(config.placement, reward=""))
    with pytest.raises(PlacementError, match=r"needs 3 rollout \(rollout 3 x 1\), the cluster has 2"):
        reserved(config)
