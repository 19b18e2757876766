"""A Ray cluster of two nodes, a run on it, and what can be done to them. Everything here is a process that this module started.

`Stage` starts head and second node as `ray start` does, and launches `python -m videostr.launch` as a user does. Only
descendants of these processes are ever signalled.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]
LIMIT_S = 900.0
"""Longest wait for anything."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Stage:
    """Two nodes on loopback and one run on them."""

    def __init__(self, folder: Path, arguments: Sequence[str]) -> None:
        """Nothing is started yet.

        Args:
            folder: for logs.
            arguments: of the launch; they name the run folder through `run.dir` and `run.name`.
        """
        self.folder = folder
        self.arguments = arguments
        values = dict(a.split("=", 1) for a in arguments if "=" in a)
        self.run_folder = Path(values["run.dir"]) / values["run.name"]
        self.environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(16),
            "OMP_WAIT_POLICY": "passive",
        }
        self.gcs = free_port()
        self.temporary = Path(f"/tmp/ray-chaos-{os.getpid()}")  # socket paths are limited to 107 bytes
        self.head: subprocess.Popen[bytes] | None = None
        self.second: subprocess.Popen[bytes] | None = None
        self.driver: subprocess.Popen[bytes] | None = None
        self.starts = 0

    # ------------------------------------------------------------------------------------------------- nodes

    def start_head(self) -> None:
        self.head = self._ray(
            "head", "--head", f"--port={self.gcs}", "--include-dashboard=false", "--num-cpus=2",
            f"--temp-dir={self.temporary}",
        )  # fmt: skip

        def listens() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", self.gcs)) == 0

        self.wait(listens, "the head to listen")
        self.environment["RAY_ADDRESS"] = f"127.0.0.1:{self.gcs}"

    def start_second(self) -> None:
        self.second = self._ray("second", f"--address=127.0.0.1:{self.gcs}", "--num-cpus=2")

    def kill_second(self) -> None:
        """kill -9 of the node's raylet and all that runs on it, at once."""
        assert self.second is not None
        for process in descendants(self.second):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.second.kill()
        self.second.wait()

    def _ray(self, name: str, *arguments: str) -> subprocess.Popen[bytes]:
        command = [
            "ray",
            "start",
            "--block",
            "--node-ip-address=127.0.0.1",
            "--object-store-memory=200000000",
        ]
        return self._start([*command, *arguments], self.folder / f"{name}.log")

    # --------------------------------------------------------------------------------------------------- run

    def launch(self) -> None:
        """Start or continue the run: it is the same command."""
        self.starts += 1
        self.driver = self._start(
            [sys.executable, "-m", "videostr.launch", *self.arguments], self.folder / f"run_{self.starts}.log"
        )

    def log(self) -> str:
        """Return the log of the run so far."""
        return "".join(
            (self.folder / f"run_{n}.log").read_text(errors="replace") for n in range(1, self.starts + 1)
        )

    def rows(self) -> list[dict[str, Any]]:
        """Metrics of the steps done."""
        path = self.run_folder / "metrics.jsonl"
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]

    def step(self) -> int:
        """The last step done."""
        rows = self.rows()
        return rows[-1]["step"] if rows else 0

    def checkpoints(self) -> list[Path]:
        return [path.parent for path in sorted(self.run_folder.glob("checkpoints/step_*/state.json"))]

    def is_over(self) -> bool:
        assert self.driver is not None
        return self.driver.poll() is not None

    def find(self, name: str) -> list[psutil.Process]:
        """Processes of the cluster whose command line starts with a name."""
        found = []
        for root in (self.head, self.second):
            for process in descendants(root) if root is not None and root.poll() is None else ():
                with suppress(psutil.Error):
                    if " ".join(process.cmdline()).startswith(name):
                        found.append(process)
        return found

    def wait(self, holds: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + LIMIT_S
        while not holds():
            if time.monotonic() > deadline:
                raise AssertionError(f"waited {LIMIT_S:g} s for {what}; the run said:\n{self.log()[-6000:]}")
            time.sleep(0.1)

    def _start(self, command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
        with log.open("ab") as output:
            return subprocess.Popen(
                command, cwd=ROOT, env=self.environment, stdout=output, stderr=subprocess.STDOUT
            )

    def close(self) -> list[psutil.Process]:
        """End everything; returns what did not end by itself within ten seconds."""
        processes = [p for p in (self.driver, self.second, self.head) if p is not None]
        below = [child for process in processes for child in descendants(process)]
        for process in processes:
            process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(30)
        _, alive = psutil.wait_procs(below, timeout=10)
        for process in alive:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        for popen in processes:
            if popen.poll() is None:
                popen.kill()
        shutil.rmtree(self.temporary, ignore_errors=True)
        return alive


def descendants(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


@contextmanager
def small_disk(folder: Path, mebibytes: int) -> Iterator[Path | None]:
    """A file system of its own that can be filled; None where it cannot be mounted."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "videostr-chaos", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
