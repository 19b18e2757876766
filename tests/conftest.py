"""Shared by all tests: small real datasets, and launching a run as a user does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from videostr.tabletop.build import Split, build
from videostr.tabletop.world import Difficulty

ROOT = Path(__file__).parents[1]
# The same examples every time, however slow the machine is: a failure of CI is one of the code, and comes again.
settings.register_profile(
    "videostr", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("videostr")
os.environ.update(
    RAY_raylet_start_wait_time_s="120",  # for a raylet to register: 10 s are few on a busy machine
    NO_PROXY="127.0.0.1,localhost",  # all servers of the tests are there
    no_proxy="127.0.0.1,localhost",
    OMP_WAIT_POLICY="passive",  # two parts of `make test` share the cores, with all the processes that each starts
)
SmallRun = Callable[..., list[str]]
StartLaunch = Callable[[Sequence[str], Path], "subprocess.Popen[bytes]"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--chaos-minutes", type=int, default=0, help="length of the run of tests/chaos (default 0: left out)"
    )
    parser.addoption(
        "--soak-minutes", type=int, default=0, help="length of tests/chaos/test_soak.py (default 0: left out)"
    )


@pytest.fixture(scope="session")
def tabletop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the datasets `train` (40 records) and `heldout` (8)."""
    folder = tmp_path_factory.mktemp("tabletop")
    for split, scenes in ((Split.TRAIN, 40), (Split.HELDOUT, 8)):
        build(
            folder / split.name.lower(),
            scenes=scenes,
            seed=0,
            split=split,
            difficulty=Difficulty.EASY,
            questions=1,
            workers=2,
        )
    return folder


@pytest.fixture(scope="session")
def small_run() -> SmallRun:
    """Arguments of a launch of a few small steps: `small_run(tabletop, runs, name)`, `evaluated=False` for training alone."""

    def arguments(tabletop: Path, runs: Path, name: str, *, evaluated: bool = True) -> list[str]:
        return [
            "--config",
            "configs/tabletop_cpu.yaml",
            f"run.dir={runs}",
            f"run.name={name}",
            f"data.train={tabletop / 'train'}",
            f"data.heldout={tabletop / 'heldout'}",
            "train.steps=3",
            "train.prompts_per_step=4",
            "sampling.group_size=4",
            *(("evaluate.prompts=8", "evaluate.samples=2") if evaluated else ("evaluate.prompts=0",)),
        ]

    return arguments


@pytest.fixture(scope="session")
def start_launch() -> StartLaunch:
    """`python -m videostr.launch` in a process of its own: `start_launch(arguments, log)`."""

    def start(arguments: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        with log.open("wb") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "videostr.launch", *arguments],
                cwd=ROOT,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
            )

    return start
