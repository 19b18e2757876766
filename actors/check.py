"""The cluster of a preflight: which machines there are, and whether the actors of a run fit on them.

In: a config, and the cluster of RAY_ADDRESS or this machine. Out: `Cluster`, a `Finding`; nothing is left behind.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.placement import REMEDY, Role, join_cluster, lacking, plan
from videostr.config.schema import Config
from videostr.errors import PlacementError, first_line
from videostr.preflight.disk import existing
from videostr.preflight.findings import Finding, fail, ok, warn
from videostr.preflight.machine import Machine, inspect_machine

INSPECT_S = 120.0
"""Longest time for all nodes to be inspected; a first Python process with torch takes some seconds on each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Where the run would be placed."""

    nodes: tuple[Mapping[str, float], ...]
    """Ray resources of each node."""
    machines: tuple[Machine, ...]
    """As `inspect_machine` saw the nodes that would compute."""
    is_ray: bool
    """Whether it is that of RAY_ADDRESS, which may grow; else this machine."""


def find_cluster(config: Config) -> Cluster:
    """Return the cluster of RAY_ADDRESS, every node inspected, or this machine.

    Raises:
        PlacementError: the cluster cannot be joined, or a node does not answer.
    """
    if not os.environ.get("RAY_ADDRESS") and not ray.is_initialized():
        machine = inspect_machine(_paths(config))
        resources = {"CPU": float(machine.cpus), "GPU": float(len(machine.gpus))}
        return Cluster(nodes=(resources,), machines=(machine,), is_ray=False)
    joined = not ray.is_initialized()
    try:
        if joined:
            join_cluster(os.environ["RAY_ADDRESS"])
        return _inspect_nodes(config)
    except (RayError, OSError, RuntimeError) as error:
        address = os.environ.get("RAY_ADDRESS", "")
        raise PlacementError(
            f"RAY_ADDRESS = {address}: no cluster can be joined ({first_line(error)})"
        ) from error
    finally:
        if joined:
            ray.shutdown()


def _inspect_nodes(config: Config) -> Cluster:
    nodes = [node for node in ray.nodes() if node["Alive"]]
    # A file that is written here and seen there says that the run folder is shared.
    with tempfile.NamedTemporaryFile(dir=_writable(config), prefix=".videostr-check-") as probe:
        paths = [*_paths(config), probe.name]
        # A head with no CPU runs the driver only.
        computing = [node for node in nodes if node["Resources"].get("CPU") or node["Resources"].get("GPU")]
        inspections = [
            ray.remote(_inspect)
            .options(
                num_cpus=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
            )
            .remote(paths)
            for node in computing
        ]
        machines = [
            replace(machine, serves_gpus=bool(node["Resources"].get("GPU")))
            for machine, node in zip(ray.get(inspections, timeout=INSPECT_S), computing, strict=True)
        ]
    return Cluster(nodes=tuple(node["Resources"] for node in nodes), machines=tuple(machines), is_ray=True)


def _inspect(paths: Sequence[str]) -> Machine:
    # Ray hides the GPUs from a task that reserves none.
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        del os.environ["CUDA_VISIBLE_DEVICES"]
    return inspect_machine(paths)


def _paths(config: Config) -> list[str]:
    """Return the existing paths that every node must see."""
    named = (config.data.train, config.data.heldout, config.data.frame_store, config.model.path)
    return [str(Path(path).resolve()) for path in named if path and Path(path).exists()]


def _writable(config: Config) -> str | None:
    folder = existing(Path(config.run.dir))
    return str(folder) if os.access(folder, os.W_OK) else None


def check_placement(config: Config, cluster: Cluster) -> Finding:
    """Check whether the plan fits the cluster's totals and its nodes."""
    roles = plan(config)
    words = ", ".join(f"{role.count} {role.name} x {_amounts(role.bundle)}" for role in roles)
    totals: dict[str, float] = {}
    for node in cluster.nodes:
        for name, amount in node.items():
            totals[name] = totals.get(name, 0) + amount
    problem = lacking(roles, totals)
    if not problem and (unplaced := first_without_room(roles, cluster.nodes)):
        problem = f"the totals suffice, but no node has room for all of {unplaced}"
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
    """Return the name of a role whose actors do not fit node by node, large ones placed first; "" when all do."""
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


def _amounts(bundle: Mapping[str, float]) -> str:
    return " + ".join(f"{amount:g} {name}" for name, amount in bundle.items())
