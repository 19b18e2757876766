"""Imports point down: apps > actors > run > rewards > domain > base; modules are short; text has an encoding."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("videostr", "rewards", "actors")
CLUSTER_LIBRARIES = {"ray", "vllm", "deepspeed"}
MODULE_LINES, FUNCTION_LINES = 430, 60
FLOORS = {
    "apps": (
        "videostr.launch",
        "videostr.check",
        "videostr.sft",
        "videostr.parity",
        "videostr.gpu_check",
        "videostr.kernel_check",
        "videostr.scale",
        "videostr.data.check",
        "videostr.evaluate",
        "videostr.plan",
        "videostr.ablate",
        "videostr.report",
    ),
    "actors": ("actors",),
    "run": (
        "videostr.run",
        "videostr.loop",
        "videostr.window",
        "videostr.ports",
        "videostr.pool",
        "videostr.sync",
        "videostr.worker_state",
        "videostr.supervisor",
        "videostr.target_size",
        "videostr.checkpoint",
        "videostr.saver",
        "videostr.run_folder",
        "videostr.run_data",
        "videostr.environment",
        "videostr.traces",
        "videostr.timeline",
        "videostr.loggers",
        "videostr.metrics",
        "videostr.asking",
        "videostr.heldout",
        "videostr.teacher_forcing",
        "videostr.preflight",
    ),
    "rewards": ("rewards",),
    "domain": (
        "videostr",
        "videostr.models",
        "videostr.chat",
        "videostr.grpo",
        "videostr.data",
        "videostr.tabletop",
        "videostr.graph",
        "videostr.trace",
        "videostr.answers",
        "videostr.query",
        "videostr.markup",
        "videostr.options",
        "videostr.iou",
        "videostr.video",
        "videostr.marks",
        "videostr.mark_drawing",
        "videostr.media",
        "videostr.truncation",
        "videostr.images",
        "videostr.prompt",
        "videostr.reasoning",
        "videostr.draw",
        "videostr.charts",
        "videostr.page",
        "videostr.bootstrap",
    ),
    "base": (
        "videostr.types",
        "videostr.groups",
        "videostr.errors",
        "videostr.digests",
        "videostr.shipped",
        "videostr.schema_rules",
        "videostr.config",
        "videostr.command",
        "videostr.custom",
        "videostr.console",
        "videostr.files",
        "videostr.json_files",
        "videostr.lock",
        "videostr.tasks",
    ),
}
"""From the top down: floor -> its packages and modules. Every module stands on one; `__main__` of any package is an app."""
COMMANDS = (
    "videostr.launch",
    "videostr.check",
    "videostr.sft",
    "videostr.parity",
    "videostr.gpu_check",
    "videostr.scale",
)
"""Apps of one module. Commands, these and every `__main__`, may import other apps; nothing else may."""
ORDER = list(FLOORS)
FLOOR_OF = {name: floor for floor, names in FLOORS.items() for name in names}


def listed(module: str) -> str:
    """Return the entry of `FLOORS` that a module belongs to: itself or the nearest package above; "" for none."""
    parts = module.split(".")
    names = [".".join(parts[:count]) for count in range(len(parts), 0, -1)]
    return next((name for name in names if name in FLOOR_OF and (name != "videostr" or name == module)), "")


def floor_of(module: str) -> str:
    """Return the floor of a module of the project; "" where it stands on none."""
    return "apps" if "__main__" in module.split(".") else FLOOR_OF.get(listed(module), "")


def module_at(path: Path) -> str:
    """Return the dotted name of a file; `path` is relative to the root."""
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def imported_modules(source: str) -> Iterator[tuple[int, str]]:
    """Return (line, dotted name) of every import, those inside functions included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def upward(module: str, imported: str) -> str:
    """Return why a module may not import another name of the project, "" where it may."""
    here, there = floor_of(module), floor_of(imported)
    if not there:
        return f"{imported} stands on no floor"
    if ORDER.index(there) < ORDER.index(here):
        return f"{module} ({here}) imports {imported} ({there})"
    is_command = module.endswith(".__main__") or module in COMMANDS
    if there == "apps" and not is_command and listed(imported) != listed(module):
        return f"{module} imports {imported}: apps are imported by commands only"
    return ""


def violations(path: Path, source: str) -> list[str]:
    """Return what `source`, if it stood at `path`, imports against the rules."""
    module, found = module_at(path), []
    if not floor_of(module):
        return [f"{path}: stands on no floor; enter it in FLOORS"]
    for line, imported in imported_modules(source):
        package = imported.split(".")[0]
        problem = ""
        if not package:
            problem = f"relative import {imported}"
        elif package == "tests":
            problem = f"imports {imported}"
        elif package in CLUSTER_LIBRARIES and floor_of(module) != "actors":
            problem = f"{package} is imported outside actors/"
        elif package in PACKAGES:
            problem = upward(module, imported)
        if problem:
            found.append(f"{path}:{line}: {problem}")
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


def too_long(path: Path, source: str) -> list[str]:
    """Return what of `source` is longer than a module or a function may be, with its lines."""
    found = []
    if (lines := len(source.splitlines())) > MODULE_LINES:
        found.append(f"{path}: {lines} lines, at most {MODULE_LINES}")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            if lines > FUNCTION_LINES:
                found.append(f"{path}:{node.lineno}: {node.name} has {lines} lines, at most {FUNCTION_LINES}")
    return found


def modules() -> Iterator[tuple[Path, str]]:
    """Yield path, relative to the root, and source of every module of the project."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            yield path.relative_to(ROOT), path.read_text("utf-8")


def test_modules_and_functions_fit_on_a_screen_or_a_few() -> None:
    found = [line for path, source in modules() for line in too_long(path, source)]
    assert not found, "\n".join(found)


def test_a_long_module_or_function_is_caught() -> None:
    function = "def f():\n" + "    x = 1\n" * 60
    assert too_long(Path("a.py"), function) == ["a.py:1: f has 61 lines, at most 60"]
    assert too_long(Path("a.py"), function.replace("    x = 1\n", "", 1)) == []
    assert too_long(Path("a.py"), "x = 1\n" * 431) == ["a.py: 431 lines, at most 430"]


def test_text_has_the_same_encoding_under_every_locale() -> None:
    found = [line for path, source in modules() for line in without_encoding(path, source)]
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


def test_imports_point_down() -> None:
    files = list(modules())
    assert len(files) > 5
    found = [line for path, source in files for line in violations(path, source)]
    assert not found, "\n".join(found)


def test_the_floors_name_what_there_is() -> None:
    stale = [
        name
        for name in FLOOR_OF
        if not (path := ROOT / name.replace(".", "/")).is_dir() and not path.with_suffix(".py").is_file()
    ]
    assert not stale


@pytest.mark.parametrize(
    ("path", "source", "expected"),
    [
        ("videostr/loop.py", "def f():\n    from actors import pools", "loop.py:2: videostr.loop (run) imports actors.pools"),
        ("videostr/loop.py", "from videostr import launch", "videostr.loop (run) imports videostr.launch (apps)"),
        ("videostr/loop.py", "from videostr.report.page import write_report", "imports videostr.report.page"),
        ("videostr/prompt.py", "import rewards.format", "videostr.prompt (domain) imports rewards.format (rewards)"),
        ("videostr/files.py", "import videostr.graph", "videostr.files (base) imports videostr.graph (domain)"),
        ("rewards/choice.py", "import videostr.metrics", "rewards.choice (rewards) imports videostr.metrics (run)"),
        ("rewards/rubric.py", "from ray import remote", "ray is imported outside actors/"),
        ("videostr/grpo/loss.py", "import deepspeed.zero", "deepspeed is imported outside actors/"),
        ("videostr/launch.py", "import ray", "ray is imported outside actors/"),
        ("videostr/data/sheet.py", "from videostr.data import __main__", "(domain) imports videostr.data.__main__ (apps)"),
        ("videostr/data/sheet.py", "from videostr.data.__main__ import main", "imports videostr.data.__main__.main (apps)"),
        ("videostr/evaluate/run.py", "from videostr.report import page", "apps are imported by commands only"),
        ("actors/rollout.py", "from videostr.launch import main", "actors.rollout (actors) imports videostr.launch.main"),
        ("actors/rollout.py", "from tests import fixtures", "imports tests.fixtures"),
        ("actors/rollout.py", "from videostr import newcomer", "videostr.newcomer stands on no floor"),
        ("videostr/newcomer.py", "import json", "stands on no floor; enter it in FLOORS"),
        ("videostr/video.py", "from . import types", "relative import"),
    ],
)  # fmt: skip
def test_a_wrong_arrow_is_caught(path: str, source: str, expected: str) -> None:
    (found,) = violations(Path(path), source)
    assert expected in found


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("videostr/launch.py", "from actors import pools\nfrom rewards import rubric\nfrom videostr.report import page"),
        ("videostr/evaluate/__main__.py", "from actors.rollout import RolloutWorker\nfrom videostr.launch import main"),
        ("videostr/evaluate/run.py", "from videostr.evaluate import tables\nimport rewards"),
        ("videostr/loop.py", "from videostr.heldout import evaluate\nfrom videostr.config import Config"),
        ("actors/learner/policy.py", "import deepspeed, vllm, ray\nfrom videostr.types import Update"),
        ("rewards/graph.py", "import rayon_like\nfrom videostr.types import Trace"),
    ],
)  # fmt: skip
def test_a_right_arrow_passes(path: str, source: str) -> None:
    assert violations(Path(path), source) == []
