"""What the documents say exists: make targets, modules, configs with their overrides, linked files."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.test_configs import load_of
from videostr.config.load import load_plan
from videostr.config.schema import EvaluationConfig, PlanConfig, SftConfig
from videostr.config.values import LEAVES, flat
from videostr.trace import parse
from videostr.types import SceneGraph

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)
SHELLS = {"", "bash", "sh", "shell", "console"}
LINK = re.compile(r"\]\(([^)\s#]+)(?:#[^)]*)?\)")
PLACEHOLDER = re.compile(r"^\[|[A-Z]{2,}|\.\.\.|/X\.")


def commands(text: str) -> Iterator[list[str]]:
    """The words of every command in the shell blocks, `&&` and continuation lines taken apart."""
    for block in (match["text"] for match in BLOCK.finditer(text) if match["language"] in SHELLS):
        for line in re.split(r"\n|&&|;", block.replace("\\\n", " ")):
            words = shlex.split(line.removeprefix("$ "), comments=True)
            if words:
                yield words


def complaints(words: list[str]) -> list[str]:
    """What a command names that is not there."""
    found = []
    if words[0] == "make":
        targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        found += [
            f"make {word}: no such target" for word in words[1:] if "=" not in word and word not in targets
        ]
    modules = [module for flag, module in pairwise(words) if flag == "-m"]
    ours = [module for module in modules if module.split(".")[0] in {"videostr", "rewards", "actors"}]
    found += [f"python -m {module}: no such module" for module in ours if not is_runnable(module)]
    if ours and "--config" in words:
        read = load_plan if "videostr.plan" in ours else None
        found += config_complaints(words[words.index("--config") + 1 :], read)
    return found


def is_runnable(module: str) -> bool:
    names = [module, f"{module}.__main__"]
    try:
        specs = [importlib.util.find_spec(name) for name in names[:1]]
        is_package = specs[0] is not None and specs[0].submodule_search_locations is not None
        return specs[0] is not None and (not is_package or importlib.util.find_spec(names[1]) is not None)
    except ModuleNotFoundError:
        return False


def config_complaints(words: list[str], read: Callable[..., Any] | None = None) -> list[str]:
    name = words[0]
    overrides = [word for word in takewhile(lambda word: word[:2] != "--", words[1:]) if "=" in word]
    if PLACEHOLDER.search(name):
        return []
    if not (ROOT / name).is_file():
        return [f"--config {name}: no such file"]
    read = read or load_of(Path(name))
    read(ROOT / name, [word for word in overrides if not PLACEHOLDER.search(word)])
    return []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_exist(path: Path) -> None:
    found = [line for words in commands(path.read_text()) for line in complaints(words)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_relative_links_resolve(path: Path) -> None:
    targets = [link for link in LINK.findall(path.read_text()) if "://" not in link and link[:7] != "mailto:"]
    missing = [target for target in targets if not (path.parent / target).exists()]
    assert not missing, f"{path.name} links to files that are not there: {missing}"


def message_parts(source: str) -> Iterator[str]:
    """Every text of a program, with a NUL for each value that is put in; of errors message and remedy together."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr | ast.Constant):
            yield text_of(node)
        elif isinstance(node, ast.Call):
            named = {keyword.arg: text_of(keyword.value) for keyword in node.keywords}
            name = node.func.id if isinstance(node.func, ast.Name) else ""
            if name == "_problem" and len(node.args) == 4:
                yield f"\0 = \0: {text_of(node.args[2])}; {text_of(node.args[3])}"
            elif name == "Problem" and "rule" in named:
                yield f"\0 = \0: {named['rule']}; {named['remedy']}"
            elif "remedy" in named and node.args:
                yield f"{text_of(node.args[0])}; {named['remedy']}"


def text_of(node: ast.expr) -> str:
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) if isinstance(part, ast.Constant) else "\0" for part in node.values)
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.sub(r"%[-.0-9]*[a-z]", "\0", node.value)
    return "\0"


def is_in(quoted: str, messages: Sequence[str]) -> bool:
    """Whether the fixed parts of a quoted message stand in one message of the code, in this order."""
    pattern = re.compile(".*".join(re.escape(part.strip()) for part in quoted.split("…")), re.DOTALL)
    return any(pattern.search(message) for message in messages)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_keys_of_the_config_exist(path: Path) -> None:
    known = {key for kind in (PlanConfig, SftConfig, EvaluationConfig) for key, _ in flat(asdict(kind()))}
    sections = "|".join(sorted({key.partition(".")[0] for key in known}))
    named = set(re.findall(rf"`((?:{sections})\.[a-z_.]+)(?:=[^`]*)?`", path.read_text()))
    assert {
        key
        for key in named
        if not key.startswith(tuple(f"{leaf}." for leaf in LEAVES))
        and key not in known
        and not any(k.startswith(key + ".") for k in known)
    } == set()


def test_messages_in_the_docs_are_those_of_the_code() -> None:
    messages = [
        part
        for package in ("videostr", "actors", "rewards")
        for path in (ROOT / package).rglob("*.py")
        for part in message_parts(path.read_text())
    ]
    text = (ROOT / "docs" / "failures.md").read_text()
    quoted = re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)
    assert len(quoted) > 20
    assert [message for message in quoted if not is_in(message, messages)] == []
    assert not is_in("the plan fits … nowhere", messages)


def readme_block(language: str, begin: str) -> str:
    """Return the block of the README in this language that begins so."""
    text = (ROOT / "README.md").read_text()
    (found,) = (
        m["text"] for m in BLOCK.finditer(text) if m["language"] == language and m["text"].startswith(begin)
    )
    return found


def test_the_trace_of_the_readme_is_well_formed_and_states_its_relations_rightly() -> None:
    trace = parse(readme_block("text", "<think>"))
    assert trace.well_formed
    assert isinstance(trace.graph, SceneGraph)
    (frame,) = trace.graph.frames
    at = {node.id: np.array(node.pos) for node in frame.nodes}
    for edge in frame.edges:
        right, _, forward = at[edge.b] - at[edge.a]
        assert edge.dist == pytest.approx(np.linalg.norm(at[edge.b] - at[edge.a]), abs=0.01)
        assert edge.angle == pytest.approx(np.degrees(np.arctan2(forward, right)), abs=0.5)


def test_the_library_example_of_the_readme_runs(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    exec(compile(readme_block("python", "from rewards import"), "README.md", "exec"), names)
    parts = names["result"].parts
    assert parts["format"] == parts["answer"] == 1.0
    assert 0.5 < parts["graph"] < 1.0
    assert str(names["result"].total) in capsys.readouterr().out


def test_the_readme_shows_commands() -> None:
    assert ["make", "demo"] in list(commands((ROOT / "README.md").read_text()))


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        ("make demi", "make demi: no such target"),
        ("make demo SEED=1", None),
        ("python -m videostr.lunch --help", "python -m videostr.lunch: no such module"),
        ("python -m videostr.grpo", "python -m videostr.grpo: no such module"),
        ("python -m videostr.data build --source tabletop", None),
        (
            "python -m videostr.launch_it --config configs/none.yaml",
            "--config configs/none.yaml: no such file",
        ),
        ("python -m videostr.data --config configs/X.yaml", None),
    ],
)
def test_a_wrong_command_is_caught(command: str, complaint: str | None) -> None:
    (words,) = commands(f"```bash\n{command}  # what it does\n```\n")
    found = complaints(words)
    assert (complaint in found) if complaint else found == []
