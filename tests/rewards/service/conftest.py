"""Real servers in processes of their own, on ports that the system chooses."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from videostr.types import (
    Answer,
    AnswerKind,
    ClipSpec,
    GraphFrame,
    Node,
    Record,
    SceneGraph,
)

ROOT = Path(__file__).parents[3]

# A custom reward that does what the answer says; it weighs nothing, so that totals are those of the preset `default`.
PROBE = """
import os, sys, time

def reward(trace, record):
    word, _, value = trace.answer.partition(" ")
    if word == "sleep":
        time.sleep(float(value))
    elif word == "crash":
        os._exit(3)
    elif word == "raise":
        raise ValueError("the judge is away")
    elif word == "noise":
        os.write(1, b"x" * 1000)
        sys.stdin.read()
    elif word == "memory":
        bytearray(8 << 30)
    return 0.5
"""
CONFIG = """
model: {path: unused}
data: {train: unused}
reward: {custom: "reward_probe:reward", w_custom: 0.0}
"""


@dataclass(frozen=True)
class Service:
    """A server process."""

    process: subprocess.Popen[str]
    endpoint: str
    page: str
    """URL of its metrics."""

    def metric(self, name: str) -> float:
        """The value of one line of the metrics page; 0 when there is no such line."""
        with urllib.request.urlopen(self.page, timeout=10) as response:
            text = response.read().decode()
        found = re.search(rf"^videostr_reward_{re.escape(name)} (\S+)$", text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    def workers(self) -> list[int]:
        """Its processes that score."""
        found = []
        for file in Path(f"/proc/{self.process.pid}/task").glob("*/children"):
            with contextlib.suppress(OSError):  # a thread that has just ended
                found += [int(pid) for pid in file.read_text().split()]
        return found

    def wait_for(self, holds: Callable[[], bool], timeout_s: float = 30.0) -> None:
        """Return when `holds` does."""
        until = time.monotonic() + timeout_s
        while not holds():
            assert time.monotonic() < until, "it never came to hold"
            time.sleep(0.02)

    def stop(self) -> int:
        """SIGTERM; its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)


StartService = Callable[..., "contextlib.AbstractContextManager[Service]"]


@pytest.fixture(scope="session")
def probe_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the module `reward_probe` and a config that uses it."""
    folder = tmp_path_factory.mktemp("probe")
    (folder / "reward_probe.py").write_text(PROBE)
    (folder / "config.yaml").write_text(CONFIG)
    return folder


@pytest.fixture(scope="session")
def start_service(probe_folder: Path) -> StartService:
    """`with start_service(*options) as service`: a server with the probe, one worker unless the options say otherwise.

    With `folder=` the server has no config, and finds modules there.
    """

    @contextlib.contextmanager
    def start(*options: str, folder: Path | None = None) -> Iterator[Service]:
        rubric = [] if folder else ["--config", str(probe_folder / "config.yaml")]
        process = subprocess.Popen(
            [
                sys.executable, "-m", "rewards.service", "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0",
                *rubric, *options,
            ],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(folder or probe_folder)},
            stdout=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        assert process.stdout is not None
        try:
            serving, page = process.stdout.readline().split(), process.stdout.readline().split()
            assert serving, "the server did not start; its message stands above"
            yield Service(process, serving[2], page[2])
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            process.wait(timeout=60)
            process.stdout.close()

    return start


@pytest.fixture(scope="session")
def service(start_service: StartService) -> Iterator[Service]:
    """A server with two workers and a deadline of 2 s, shared by tests that leave it whole."""
    with start_service("--workers", "2", "--deadline", "2", "--max-groups", "40") as running:
        yield running
        assert running.stop() == 0


@pytest.fixture(scope="session")
def record() -> Record:
    """A choice with a moving scene of three objects at two times."""
    frames = tuple(
        GraphFrame(
            t=t,
            nodes=tuple(
                Node(id=f"{label}.1", label=label, pos=(x + t, x * x / 2), size=(1.0, 1.0))
                for label, x in (("car", 0.0), ("van", 3.0), ("bus", 5.0))
            ),
        )
        for t in (0.0, 2.0)
    )
    return Record(
        id="r1",
        source="test",
        family="test",
        question="Where is the van?",
        options=("left", "right"),
        answer=Answer(kind=AnswerKind.CHOICE, value="A"),
        clip=ClipSpec(video="v.mp4", num_frames=2),
        labels=("car", "van", "bus"),
        graph=SceneGraph(unit="m", frame="floor", frames=frames),
    )
