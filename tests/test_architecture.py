"""Imports point one way: videostr (core) <- rewards <- actors <- videostr/launch.py and the commands."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("videostr", "rewards", "actors")
CLUSTER_LIBRARIES = {"ray", "vllm", "deepspeed"}
ALLOWED = {
    "core": {"videostr"},
    "rewards": {"videostr", "rewards"},
    "actors": {"videostr", "rewards", "actors"},
    "top": {"videostr", "rewards", "actors"},
}


def layer_of(path: Path) -> str:
    """Which layer a file of the project belongs to; `path` is relative to the root."""
    if path.as_posix() == "videostr/launch.py" or path.name == "__main__.py":
        return "top"
    return "core" if path.parts[0] == "videostr" else path.parts[0]


def imported_modules(source: str) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import, those inside functions included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def violations(path: Path, source: str) -> list[str]:
    """What `source`, if it stood at `path`, imports against the rules."""
    layer, found = layer_of(path), []
    may_use_cluster = layer == "actors" or path.as_posix() == "videostr/launch.py"
    for line, module in imported_modules(source):
        package = module.split(".")[0]
        if not package:
            found.append(f"{path}:{line}: relative import {module}")
        elif package in PACKAGES and package not in ALLOWED[layer]:
            found.append(f"{path}:{line}: {layer} imports {module}")
        elif f"{module}.".startswith("videostr.launch.") and layer != "top":
            found.append(f"{path}:{line}: {layer} imports {module}, the composition root")
        elif package == "tests":
            found.append(f"{path}:{line}: imports {module}")
        elif package in CLUSTER_LIBRARIES and not may_use_cluster:
            found.append(f"{path}:{line}: {package} is imported outside actors/ and videostr/launch.py")
    return found


def without_encoding(path: Path, source: str) -> list[str]:
    """Where `source` reads or writes text in the encoding of whatever locale it is run under."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        of = getattr(getattr(node.func, "value", None), "id", "")
        modes = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        text = {
            "read_text": not node.args,
            "write_text": len(node.args) == 1 and isinstance(node.func, ast.Attribute),
            "open": of not in {"av", "Image", "os"} and not any("b" in mode for mode in modes),
            "fdopen": not any("b" in mode for mode in modes),
            "FileHandler": True,
        }.get(name, False)
        if text and not any(keyword.arg in {"encoding", None} for keyword in node.keywords):
            found.append(f"{path}:{node.lineno}: {name} without encoding")
    return found


def test_text_has_the_same_encoding_under_every_locale() -> None:
    files = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    found = [
        line for path in files for line in without_encoding(path.relative_to(ROOT), path.read_text("utf-8"))
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("path.read_text()", 1),
        ('path.read_text(encoding="utf-8") + path.read_text("ascii")', 0),
        ("path.write_text(text)", 1),
        ('write_text(path, text); path.write_text(text, encoding="utf-8")', 0),
        ('path.open("a"); open(path); path.open()', 3),
        ('path.open("rb"); os.open(path, 0); Image.open(path); path.open("w", encoding="utf-8")', 0),
    ],
)
def test_text_in_the_encoding_of_the_locale_is_caught(source: str, count: int) -> None:
    assert len(without_encoding(Path("a.py"), source)) == count


def test_imports_point_one_way() -> None:
    files = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    assert len(files) > 5
    found = [line for path in files for line in violations(path.relative_to(ROOT), path.read_text())]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("path", "source", "expected"),
    [
        ("videostr/loop.py", "import rewards.format", "core imports rewards.format"),
        (
            "videostr/loop.py",
            "def f():\n    from actors import pools",
            "videostr/loop.py:2: core imports actors.pools",
        ),
        (
            "videostr/loop.py",
            "from videostr import launch",
            "core imports videostr.launch, the composition root",
        ),
        ("rewards/choice.py", "import actors", "rewards imports actors"),
        ("videostr/grpo/loss.py", "import deepspeed.zero", "deepspeed is imported outside actors/"),
        ("rewards/rubric.py", "from ray import remote", "ray is imported outside actors/"),
        ("videostr/data/__main__.py", "import vllm", "vllm is imported outside actors/"),
        ("actors/rollout.py", "from videostr.launch import main", "actors imports videostr.launch.main"),
        ("actors/rollout.py", "from tests import fixtures", "imports tests.fixtures"),
        ("videostr/video.py", "from . import types", "relative import"),
    ],
)
def test_a_wrong_arrow_is_caught(path: str, source: str, expected: str) -> None:
    (found,) = violations(Path(path), source)
    assert expected in found


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("videostr/launch.py", "import ray\nfrom actors import pools\nfrom rewards import rubric"),
        (
            "videostr/evaluate/__main__.py",
            "from actors.rollout import RolloutWorker\nfrom videostr.launch import main",
        ),
        ("actors/learner/policy.py", "import deepspeed, vllm, ray\nfrom videostr.types import Update"),
        ("rewards/graph.py", "import rayon_like\nfrom videostr.types import Trace"),
    ],
)
def test_a_right_arrow_passes(path: str, source: str) -> None:
    assert violations(Path(path), source) == []
