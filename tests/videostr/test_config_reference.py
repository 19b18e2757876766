"""docs/config.md is what the schema says now, and says something of every key."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import pytest
from msgspec import Meta
from omegaconf import OmegaConf

from tests.videostr.config_reference import Key, keys, reference, row, sections
from videostr.config.load import RESOLVED, load
from videostr.config.schema import AblationConfig, Config, EvaluationConfig, PlanConfig, SftConfig
from videostr.config.values import flat, shown

DOCUMENT = Path(__file__).parents[2] / "docs" / "config.md"


def test_the_document_is_of_this_schema() -> None:
    assert DOCUMENT.read_text() == reference(), (
        "run python -m tests.videostr.config_reference > docs/config.md"
    )


@pytest.mark.parametrize("kind", [PlanConfig, SftConfig, EvaluationConfig, AblationConfig])
def test_every_key_is_described(kind: type) -> None:
    without = [
        f"{section.__name__}.{key.name}"
        for _, section in sections(kind)
        for key in keys(section)
        if not key.meaning
    ]
    assert without == []


def test_every_key_of_a_run_stands_in_it_with_a_default_that_a_file_may_hold(tmp_path: Path) -> None:
    told = {f"{prefix}.{key.name}": key for prefix, section in sections(Config) for key in keys(section)}
    assert told.keys() == {key for key, _ in flat(asdict(Config()))}
    values = {name: shown(key.default) for name, key in told.items()}
    values |= {"model.path": "m", "data.train": "d"}
    whole, sparse = tmp_path / "defaults.yaml", tmp_path / "sparse.yaml"
    tree = OmegaConf.from_dotlist([f"{name}={value}" for name, value in values.items()])
    whole.write_text(
        RESOLVED + OmegaConf.to_yaml(tree)
    )  # as in a run folder; keys without effect are refused else
    sparse.write_text("model: {path: m}\ndata: {train: d}\n")
    assert load(whole) == load(sparse)


@dataclass
class Inner:
    """Of the example."""

    depth: tuple[int, int] = (1, 2)
    """How | deep,
    in metres."""


@dataclass
class Outer:
    """An example."""

    name: str | None = None
    """What it is called."""
    mode: Literal["a", "b"] = "a"
    share: Annotated[float, Meta(gt=0, le=1)] = 0.5
    inner: Inner = field(default_factory=Inner)
    modes: list[Literal["x", "y"]] = field(default_factory=lambda: ["x"])
    """Several."""


def test_what_is_read_of_a_section() -> None:
    assert dict(sections(Outer)) == {"": Outer, "inner": Inner}
    assert keys(Outer) == [
        Key(name="name", rule="text, or null", default=None, meaning="What it is called."),
        Key(name="mode", rule="one of a, b", default="a", meaning=""),
        Key(name="share", rule="a finite number, above 0 and at most 1", default=0.5, meaning=""),
        Key(name="modes", rule="a list, each one of x, y", default=["x"], meaning="Several."),
    ]
    assert row("inner", keys(Inner)[0]) == (
        "| `inner.depth` | a list of two whole numbers | `[1, 2]` | How \\| deep, in metres. |"
    )
    assert [shown(value) for value in (None, True, "", "x", 1e-6)] == ["null", "true", '""', "x", "1e-06"]
