"""`ray job submit` on a cluster of several nodes of this machine with token authentication, as README says."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.stage import free_port

ROOT = Path(__file__).parents[1]
LIMIT_S = 600


@dataclass
class OwnCluster:
    """Ray nodes of this machine, started as README says."""

    dashboard: str
    gcs: str
    environment: dict[str, str]
    log: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, *arguments: str) -> None:
        """A node; it runs until `stop`."""
        always = ("--node-ip-address=127.0.0.1", "--object-store-memory=200000000", "--block")
        command = ["ray", "start", *arguments, *always]
        with self.log.open("ab") as log:
            process = subprocess.Popen(command, env=self.environment, stdout=log, stderr=subprocess.STDOUT)
        self.processes.append(process)

    def add(self, resource: str) -> None:
        """A node that offers two CPUs and one of a resource."""
        self.start(f"--address={self.gcs}", "--num-cpus=2", f"--resources={json.dumps({resource: 1})}")

    def stop(self) -> None:
        """The head last."""
        for process in reversed(self.processes):
            process.terminate()
        for process in self.processes:
            process.wait(60)

    def ask(self, *command: str) -> list[dict[str, Any]]:
        """What Ray's state API answers."""
        listing = ["ray", "list", *command, "--address", self.dashboard, "--detail", "--format", "json"]
        found: list[dict[str, Any]] = json.loads(_submit(listing, self.environment).stdout)
        return found


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[OwnCluster]:
    """A head that has room for nobody but the driver, and a node for the engine and one for the learner."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {
        "PATH": f"{sys.prefix}/bin:{environment['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(16),
    }
    dashboard, gcs = free_port(), free_port()
    temporary = Path(f"/tmp/ray-test-{os.getpid()}")  # socket paths are limited to 107 bytes
    found = OwnCluster(
        f"http://127.0.0.1:{dashboard}", f"127.0.0.1:{gcs}", environment, tmp_path / "nodes.log"
    )
    try:
        found.start(
            "--head", f"--port={gcs}", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", "--num-cpus=0",
            f"--temp-dir={temporary}",
        )  # fmt: skip
        _until(lambda: len(found.ask("nodes")) == 1)
        for count, resource in enumerate(("rollout", "learner"), 2):
            found.add(resource)
            _until(lambda count=count: len(found.ask("nodes")) == count)  # type: ignore[misc]
        yield found
    finally:
        found.stop()
        subprocess.run(["rm", "-rf", str(temporary)], check=True)


def test_submitted_job_trains_on_the_nodes_meant_for_its_roles(
    cluster: OwnCluster, small_run, tabletop: Path, tmp_path: Path
) -> None:
    arguments = [
        *small_run(tabletop, tmp_path / "runs", "job", evaluated=False), "train.steps=1",
        "placement.rollout=rollout", "placement.learner=learner", "placement.reward=reward",
    ]  # fmt: skip
    submit = ["ray", "job", "submit", "--address", cluster.dashboard, "--working-dir", ".", "--"]
    run = [*submit, "python", "-m", "videostr.launch", *arguments]
    early = _submit(run, cluster.environment)
    assert early.returncode != 0
    assert "needs 1 reward (reward 1 x 1), the cluster has 0" in early.stdout, early.stdout + early.stderr

    with ThreadPoolExecutor(1) as aside:  # the node for rewards comes when the run waits for it
        waiting = aside.submit(_submit, [*run, "placement.wait_s=300"], cluster.environment)
        _until(lambda: any(a["state"] == "PENDING" for a in cluster.ask("placement-groups")))
        cluster.add("reward")
        done = waiting.result(LIMIT_S)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "step 1/1" in done.stdout
    row = json.loads((tmp_path / "runs" / "job" / "metrics.jsonl").read_text())
    assert row["version"] == 1
    assert (
        tmp_path / "runs" / "job" / "checkpoints" / "step_000001" / "policy" / "model.safetensors"
    ).exists()

    of_node = {
        node["node_id"]: resource
        for node in cluster.ask("nodes")
        for resource in ("rollout", "learner", "reward")
        if resource in node["resources_total"]
    }
    actors = [a for a in cluster.ask("actors") if not a["name"].startswith("_ray_internal_")]
    assert {(a["name"], a["repr_name"], of_node[a["node_id"]]) for a in actors} == {
        ("rollout-engine-0", "rollout-engine-0", "rollout"),
        ("learner-rank-0", "learner-rank-0", "learner"),
        ("reward-worker-0", "reward-worker-0", "reward"),
    }

    stranger = cluster.environment | {"RAY_AUTH_TOKEN": secrets.token_hex(16)}
    assert _submit([*submit, "true"], stranger, once=True).returncode != 0


def _until(holds: Callable[[], bool]) -> None:
    """Wait; Ray's answers may fail while a node starts."""
    deadline = time.monotonic() + 300
    while True:
        try:
            if holds():
                return
        except (ValueError, KeyError):
            pass
        assert time.monotonic() < deadline
        time.sleep(1)


def _submit(
    command: list[str], environment: dict[str, str], once: bool = False
) -> subprocess.CompletedProcess[str]:
    """Submit and follow a job; the head and the agents of its nodes may still be starting."""
    starting = ("Failed to connect", "No available agent")
    for attempt in range(30):
        time.sleep(min(attempt, 2))
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
        if once or not any(words in done.stdout + done.stderr for words in starting):
            break
    return done
