"""Preflight of a run (`python -m videostr.launch --config X --check`): everything that can be found out without an engine.

In: a config, and the cluster of RAY_ADDRESS or this machine. Out: `Finding`s, worst news included; nothing is raised for
what is found, and nothing is left behind.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.calls import first_line
from actors.placement import JOIN_REMEDY, REMEDY, Role, join_cluster, lacking, plan
from actors.remote_reward import RemoteRewardPool
from rewards import Rubric
from videostr.check import (
    Finding,
    Machine,
    Seen,
    check_data,
    check_disk,
    check_machine,
    check_policy,
    check_run,
    existing,
    fail,
    look,
    ok,
    told,
    warn,
)
from videostr.config import Config
from videostr.errors import ConfigError, RewardError
from videostr.grpo.losses import check_custom, staleness_warning

LOOK_S = 120.0
"""Longest time for all nodes to be looked at; a first Python process with torch takes some seconds on each."""
SERVICE_S = 5.0
"""Longest wait for a reward service."""
MemoryCheck = Callable[[Config, float | None], tuple[str, Sequence[str]]]
"""Config and GiB of the smallest GPU (None on CPU) to an estimate in words, and what does not fit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Where the run would be placed."""

    nodes: tuple[Mapping[str, float], ...]
    """Ray resources of each node."""
    machines: tuple[Machine, ...]
    """As `look` saw the nodes that would compute."""
    is_ray: bool
    """Whether it is that of RAY_ADDRESS, which may grow; else this machine."""


def check(
    config: Config, *, memory: MemoryCheck | None = None, cluster: Cluster | None = None
) -> list[Finding]:
    """What would not work, and what would.

    Call it outside an event loop. Joins the Ray cluster of RAY_ADDRESS for as long as it takes.

    Args:
        config: validated by `videostr.config.load`.
        memory: estimates what learner and engine need; left out, memory is not judged.
        cluster: in place of the one that is found.
    """
    seen = Seen()
    findings = [*check_policy(config, seen), *check_data(config, seen), check_run(config)]
    findings += [*check_disk(config, seen), *check_loss(config), *check_rewards(config)]
    try:
        cluster = cluster or find_cluster(config)
    except (RayError, OSError, RuntimeError) as error:
        address = os.environ.get("RAY_ADDRESS", "")
        findings.append(
            fail(
                "ray",
                f"RAY_ADDRESS = {address}: no cluster can be joined ({first_line(error)})",
                JOIN_REMEDY,
            )
        )
        return findings
    findings.append(check_placement(config, cluster))
    if not cluster.machines:
        findings.append(
            warn(
                "nodes",
                "no node is up that could be looked at: nothing is known of GPUs, NCCL, codecs and shared paths",
                "start a development cluster of the same image with one node of each kind, and check there",
            )
        )
    for machine in cluster.machines:
        findings += check_machine(config, machine, len(cluster.machines))
    if memory is not None and seen.shapes is not None:
        findings += check_memory(config, cluster, memory)
    return findings


# ------------------------------------------------------------------------------------------------- cluster


def find_cluster(config: Config) -> Cluster:
    """The cluster of RAY_ADDRESS, every node looked at, or this machine.

    Raises:
        RayError, OSError, RuntimeError: there is no such cluster, or a node does not answer.
    """
    if not os.environ.get("RAY_ADDRESS") and not ray.is_initialized():
        machine = look(_paths(config))
        resources = {"CPU": float(machine.cpus), "GPU": float(len(machine.gpus))}
        return Cluster(nodes=(resources,), machines=(machine,), is_ray=False)
    joined = not ray.is_initialized()
    if joined:
        join_cluster(os.environ["RAY_ADDRESS"])
    try:
        return _look_at_nodes(config)
    finally:
        if joined:
            ray.shutdown()


def _look_at_nodes(config: Config) -> Cluster:
    nodes = [node for node in ray.nodes() if node["Alive"]]
    # A file that is written here and seen there says that the run folder is shared.
    with tempfile.NamedTemporaryFile(dir=_writable(config), prefix=".videostr-check-") as probe:
        paths = [*_paths(config), probe.name]
        # A head with no CPU runs the driver only.
        computing = [node for node in nodes if node["Resources"].get("CPU") or node["Resources"].get("GPU")]
        looks = [
            ray.remote(_look)
            .options(
                num_cpus=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
            )
            .remote(paths)
            for node in computing
        ]
        machines = [
            replace(machine, serves_gpus=bool(node["Resources"].get("GPU")))
            for machine, node in zip(ray.get(looks, timeout=LOOK_S), computing, strict=True)
        ]
    return Cluster(nodes=tuple(node["Resources"] for node in nodes), machines=tuple(machines), is_ray=True)


def _look(paths: Sequence[str]) -> Machine:
    # Ray hides the GPUs from a task that reserves none.
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        del os.environ["CUDA_VISIBLE_DEVICES"]
    return look(paths)


def _paths(config: Config) -> list[str]:
    """What every node must see, of what is there already."""
    named = (config.data.train, config.data.heldout, config.data.frame_store, config.model.path)
    return [str(Path(path).resolve()) for path in named if path and Path(path).exists()]


def _writable(config: Config) -> str | None:
    folder = existing(Path(config.run.dir))
    return str(folder) if os.access(folder, os.W_OK) else None


# ------------------------------------------------------------------------------------------------- findings


def check_placement(config: Config, cluster: Cluster) -> Finding:
    """Whether the plan fits the cluster's totals and its nodes."""
    roles = plan(config)
    words = ", ".join(f"{role.count} {role.name} x {_amounts(role.bundle)}" for role in roles)
    totals: dict[str, float] = {}
    for node in cluster.nodes:
        for name, amount in node.items():
            totals[name] = totals.get(name, 0) + amount
    problem = lacking(roles, totals)
    if not problem and (homeless := first_without_room(roles, cluster.nodes)):
        problem = f"the totals suffice, but no node has room for all of {homeless}"
    if not problem:
        return ok("plan", f"{words}; fits {len(cluster.nodes)} node{'s' * (len(cluster.nodes) > 1)}")
    if cluster.is_ray and config.placement.wait_s > 0:
        return warn(
            "plan",
            f"{words}; {problem} now",
            f"an autoscaler has placement.wait_s = {config.placement.wait_s:g} s to bring it; see that its limits allow it",
        )
    return fail("plan", f"{words}; {problem}", REMEDY)


def first_without_room(roles: Sequence[Role], nodes: Sequence[Mapping[str, float]]) -> str:
    """Name of a role whose actors do not fit node by node, large ones placed first; "" when all do."""
    free = [dict(node) for node in nodes]
    bundles = [(role.name, role.bundle) for role in roles for _ in range(role.count)]
    for name, bundle in sorted(bundles, key=lambda b: (-b[1].get("GPU", 0), -b[1].get("CPU", 0))):
        for node in free:
            if all(node.get(resource, 0) + 1e-6 >= amount for resource, amount in bundle.items()):
                for resource, amount in bundle.items():
                    node[resource] -= amount
                break
        else:
            return name
    return ""


def check_loss(config: Config) -> Iterator[Finding]:
    """Whether a loss of the user's works on five tokens, and the correction suits the staleness."""
    if warning := staleness_warning(config):
        found, _, remedy = warning.partition("; ")
        yield warn("loss", found, remedy)
    if not config.loss.custom:
        return
    try:
        check_custom(config.loss)
    except ConfigError as error:
        yield told("loss", error)
        return
    yield ok("loss", f"{config.loss.custom}: five tokens tried")


def check_rewards(config: Config) -> Iterator[Finding]:
    """Whether the reward can be imported, and its service answers and pays as this run does."""
    try:
        rubric = Rubric.from_config(config.reward, config.sampling.max_tokens)
    except ConfigError as error:
        yield told("reward", error)
        return
    yield ok("reward", f"rubric {config.reward.rubric}" + (f" and {rubric.custom}" if rubric.custom else ""))
    if not config.reward.endpoint:
        return
    try:
        asyncio.run(_ask_service(config, rubric))
    except (ConfigError, RewardError) as error:
        yield fail(
            "reward service",
            f"{error}",
            "start it (python -m rewards.service), or clear reward.endpoint to score by workers of the run",
        )
    else:
        yield ok("reward service", f"{config.reward.endpoint} answers and pays the same")


async def _ask_service(config: Config, rubric: Rubric) -> None:
    pool = await RemoteRewardPool.connect(config.reward, rubric, timeout_s=SERVICE_S)
    await pool.close()


def check_memory(config: Config, cluster: Cluster, memory: MemoryCheck) -> Iterable[Finding]:
    """Whether a learner rank and an engine fit the smallest GPU."""
    sizes = [gpu.total_gib for machine in cluster.machines for gpu in machine.gpus]
    on_gpu = config.rollout.num_gpus > 0
    if on_gpu and not sizes:
        return []
    words, problems = memory(config, min(sizes) if on_gpu else None)
    return [fail("memory", problem, words) for problem in problems] or [ok("memory", words)]


def _amounts(bundle: Mapping[str, float]) -> str:
    return " + ".join(f"{amount:g} {name}" for name, amount in bundle.items())
