"""`ray job submit` on a local cluster with token authentication, as README says."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.stage import free_port

ROOT = Path(__file__).parents[1]
LIMIT_S = 600


@pytest.fixture
def head(tmp_path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """A head node on loopback: its dashboard address, and an environment that may speak to it."""
    bin_folder = str(ROOT / ".venv" / "bin")
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {
        "PATH": f"{bin_folder}:{environment['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(16),
    }
    dashboard, gcs = free_port(), free_port()
    temporary = Path(f"/tmp/ray-test-{os.getpid()}")  # socket paths are limited to 107 bytes
    command = [
        "ray", "start", "--head", "--node-ip-address=127.0.0.1", f"--port={gcs}", "--dashboard-host=127.0.0.1",
        f"--dashboard-port={dashboard}", "--num-cpus=2", f"--temp-dir={temporary}", "--block",
    ]  # fmt: skip
    with (tmp_path / "head.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield f"http://127.0.0.1:{dashboard}", environment
    finally:
        process.terminate()
        process.wait(60)
        subprocess.run(["rm", "-rf", str(temporary)], check=True)


def test_submitted_job_trains(
    head: tuple[str, dict[str, str]], small_run, tabletop: Path, tmp_path: Path
) -> None:
    address, environment = head
    arguments = [*small_run(tabletop, tmp_path / "runs", "job"), "train.steps=1", "evaluate.prompts=0"]
    submit = ["ray", "job", "submit", "--address", address, "--working-dir", ".", "--"]
    done = _submit([*submit, "python", "-m", "videostr.launch", *arguments], environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "step 1/1" in done.stdout
    row = json.loads((tmp_path / "runs" / "job" / "metrics.jsonl").read_text())
    assert row["version"] == 1
    assert (
        tmp_path / "runs" / "job" / "checkpoints" / "step_000001" / "policy" / "model.safetensors"
    ).exists()

    listing = ["ray", "list", "actors", "--address", address, "--detail", "--format", "json"]
    actors = json.loads(_submit(listing, environment).stdout)
    called = {a["name"]: a["repr_name"] for a in actors if not a["name"].startswith("_ray_internal_")}
    assert called == {name: name for name in ("rollout-engine-0", "learner-rank-0", "reward-worker-0")}

    refused = _submit([*submit, "true"], environment | {"RAY_AUTH_TOKEN": secrets.token_hex(16)}, once=True)
    assert refused.returncode != 0


def _submit(
    command: list[str], environment: dict[str, str], once: bool = False
) -> subprocess.CompletedProcess[str]:
    """Submit and follow a job; the head may still be starting."""
    for _ in range(30):
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
        if once or "Failed to connect" not in done.stdout + done.stderr:
            break
    return done
