"""Where actors go: three placement groups (rollout, learner, reward), each sized from the config.

In: a config and a running Ray. Out: Ray actor options for every actor, or `PlacementError` that says what is missing.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from videostr.config.schema import Config
from videostr.errors import PlacementError, first_line
from videostr.metrics import duration

log = logging.getLogger("videostr.placement")
ROLES = ("rollout", "learner", "reward")
READY_S = 30.0
"""A plan that fits the totals but not the nodes is refused after this."""
REACH_S = 5.0
"""Longest wait for the head of a cluster."""
JOIN_REMEDY = (
    "start one with `ray start --head`, set RAY_AUTH_MODE=token and the RAY_AUTH_TOKEN of its nodes, or unset RAY_ADDRESS to "
    "use this machine"
)
WAIT_POLICY, PASSIVE = "OMP_WAIT_POLICY", "passive"
POLL_S = 1
"""Whole seconds: Ray cuts the rest off."""


@dataclass(frozen=True, slots=True)
class Role:
    """One kind of actor in the plan."""

    name: str
    count: int
    bundle: Mapping[str, float]
    """Resources of one actor."""
    strategy: str
    """Ray placement strategy."""


def plan(config: Config) -> list[Role]:
    """Return the actors that a config needs; no reward workers where a service scores."""
    rollout, learner, reward = config.rollout, config.learner, config.reward
    custom = config.placement
    engine = _bundle(rollout.num_cpus, rollout.num_gpus, custom.rollout)
    rank = _bundle(learner.num_cpus, learner.num_gpus, custom.learner)
    roles = [
        Role("rollout", rollout.num_workers, engine, "PACK"),
        Role("learner", learner.num_ranks, rank, "PACK"),
    ]
    if not reward.endpoint:
        worker = _bundle(reward.num_cpus, 0, custom.reward)
        roles.append(Role("reward", reward.num_workers, worker, "SPREAD"))
    return roles


def stop_ray() -> None:
    """Leave the cluster, or end Ray on this machine."""
    ray.shutdown()


def start_ray(**options: Any) -> None:
    """Join the cluster of RAY_ADDRESS (a submitted job has it), else start Ray on this machine.

    Sets OMP_WAIT_POLICY of this process where it is unset and Ray starts here.

    Args:
        options: further arguments of `ray.init`, for this machine.

    Raises:
        PlacementError: there is no such cluster, it does not let this process in, Ray does not start, or it runs in this process
            already.
    """
    if ray.is_initialized():
        raise PlacementError("Ray runs in this process already: end it by ray.shutdown() first")
    if address := os.environ.get("RAY_ADDRESS"):
        try:
            join_cluster(address)
        except Exception as error:  # Ray raises bare ones, too
            raise PlacementError(
                f"RAY_ADDRESS = {address}: no cluster can be joined ({first_line(error)})", remedy=JOIN_REMEDY
            ) from error
        return
    os.environ.setdefault(WAIT_POLICY, PASSIVE)  # all its workers have it then, as by `openmp_options`
    for tries in (1, 2):
        try:
            # "local": without an address Ray joins whatever `ray start` began last on this machine.
            ray.init(
                "local", log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False, **options
            )
            return
        except Exception as error:
            ray.shutdown()
            if tries == 2:
                raise PlacementError(
                    f"Ray did not start on this machine ({first_line(error)})",
                    remedy="see /tmp/ray/session_latest/logs, look for another Ray (`ray stop`), "
                    "for free memory and for room in /tmp, then run the same command again",
                ) from error
            # It waits 30 s, which cannot be changed: few, where its files were never read before.
            log.warning("Ray did not start (%s); trying once more", first_line(error))


def join_cluster(address: str) -> None:
    """Join a cluster.

    Raises:
        OSError: nobody listens there.
        Exception: whatever Ray raises when it is refused, in several classes.
    """
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "/" not in host:  # Ray itself tries for ten minutes and more
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_S).close()
    ray.init(log_to_driver=False, logging_level=logging.ERROR)


class Placement:
    """The placement groups of a run; `reserve` makes them."""

    def __init__(self, config: Config, only: Collection[str] = ROLES) -> None:
        """Reserve nothing yet; of the plan `only` some roles."""
        self.roles = [role for role in plan(config) if role.name in only]
        self._wait_s = config.placement.wait_s
        self._extra: list[PlacementGroup] = []
        self._groups: dict[str, PlacementGroup] = {}

    async def reserve(self) -> None:
        """Wait for the places, and hold them.

        Raises:
            PlacementError: the plan does not fit, now or within `placement.wait_s`.
        """
        roles, wait_s = self.roles, self._wait_s or READY_S
        if missing := lacking(roles, ray.cluster_resources()):
            if self._wait_s == 0:
                raise PlacementError(f"the plan does not fit the cluster: {missing}", remedy=REMEDY)
            log.info("waiting %s for room: %s", duration(wait_s), missing)
        deadline = time.monotonic() + wait_s
        # One after the other, engines first: a small group must not take what a large one needs when nodes come late.
        for role in roles:
            group = self._groups[role.name] = placement_group(
                [dict(role.bundle)] * role.count, strategy=role.strategy
            )
            while not group.wait(POLL_S):  # blocks, but no longer than a stop may be late
                await asyncio.sleep(0.01)
                if time.monotonic() < deadline:
                    continue
                self.close()
                missing = lacking(roles, ray.cluster_resources()) or (
                    "the totals suffice, but no node has room for one of its actors, or another job holds it"
                )
                raise PlacementError(f"no place for {role.name} after {wait_s:g} s: {missing}", remedy=REMEDY)

    def options(self, role: str) -> list[dict[str, Any]]:
        """Return Ray actor options of every actor of a role ("rollout", "learner", "reward")."""
        group = self._groups[role]
        return [_within(group, index) for index in range(group.bundle_count)]

    def anywhere(self, role: str) -> dict[str, Any]:
        """Return Ray actor options for any place of a role, for actors that come and go."""
        return _within(self._groups[role])

    def more(self, role: str) -> dict[str, Any]:
        """Return Ray actor options of one more actor of a role; it waits until the cluster has room for it."""
        group = placement_group([dict(self._bundle(role))])
        self._extra.append(group)
        return _within(group, 0)

    def has_room_for(self, role: str) -> bool:
        """Return whether the cluster has free what one more actor of a role needs."""
        free = ray.available_resources()
        return all(free.get(name, 0) + 1e-6 >= amount for name, amount in self._bundle(role).items())

    def release(self, options: Mapping[str, Any]) -> None:
        """Give the place of an actor of `more` back."""
        group = options["scheduling_strategy"].placement_group
        self._extra = [other for other in self._extra if other.id != group.id]
        remove_placement_group(group)

    def _bundle(self, role: str) -> Mapping[str, float]:
        return next(other.bundle for other in self.roles if other.name == role)

    def close(self) -> None:
        """Give the places back."""
        for group in (*self._groups.values(), *self._extra):
            remove_placement_group(group)


def _within(group: PlacementGroup, index: int = -1) -> dict[str, Any]:
    """Return Ray actor options for a place of a group; -1 is any."""
    strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=index)
    return {"scheduling_strategy": strategy}


REMEDY = (
    "lower num_workers, num_ranks, num_cpus or num_gpus of the sections rollout, learner and reward, add nodes (with the "
    "resources that placement.rollout, learner and reward name), or let an autoscaler bring them by placement.wait_s"
)


def lacking(roles: list[Role], cluster: Mapping[str, float]) -> str:
    """Return what the cluster's totals lack for a plan, "" when they suffice."""
    needed: Counter[str] = Counter()
    for role in roles:
        for name, amount in role.bundle.items():
            needed[name] += role.count * amount  # type: ignore[assignment]  # fractions of a CPU
    short = []
    for name, amount in sorted(needed.items()):
        if amount > cluster.get(name, 0) + 1e-6:
            uses = ", ".join(f"{r.name} {r.count} x {r.bundle[name]:g}" for r in roles if r.bundle.get(name))
            short.append(f"needs {amount:g} {name} ({uses}), the cluster has {cluster.get(name, 0):g}")
    return "; ".join(short)


def openmp_options(num_gpus: float) -> dict[str, Any]:
    """Return Ray actor options of an engine or a learner rank that computes on a CPU: its threads wait passively.

    OpenMP's threads wait for work by spinning, and take the time of other processes on their cores. A step of the demo took 10 to
    15 s on two cores with nothing else to do, and 8 to 11 s when they wait passively; beside other work three times as long;
    at `train.max_staleness=1` 12 s against 5 s. A policy of the user's stands.
    """
    if num_gpus > 0 or WAIT_POLICY in os.environ:
        return {}
    return {"runtime_env": {"env_vars": {WAIT_POLICY: PASSIVE}}}


def _bundle(cpus: float, gpus: float, custom_resource: str) -> dict[str, float]:
    amounts = {"CPU": cpus, "GPU": gpus, **({custom_resource: 1.0} if custom_resource else {})}
    return {name: amount for name, amount in amounts.items() if amount > 0}
