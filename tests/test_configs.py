"""Every file in configs/ loads, by its kind, and names nothing that exists on one machine only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from tests.videostr.config_reference import keys
from videostr.config.load import dump, load, load_ablation, load_evaluation, load_sft
from videostr.config.schema import BenchmarkConfig
from videostr.data.build.recipe import read_recipe
from videostr.data.sources import SOURCES
from videostr.evaluate.__main__ import BENCHMARKS
from videostr.models.base import FAMILIES

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "configs").glob("*.yaml"))
RECIPES = sorted((ROOT / "configs" / "data").glob("*.yaml"))


def is_sft(path: Path) -> bool:
    return "_sft" in path.stem


def load_of(path: Path) -> Callable[[Path], Any]:
    """The function that loads this kind of config, told by the file's name."""
    if path.stem.startswith("eval_"):
        return load_evaluation
    if path.stem.startswith("ablation_"):
        return load_ablation
    return load_sft if is_sft(path) else load


def test_there_are_configs() -> None:
    assert FILES


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_loads_and_round_trips(path: Path, tmp_path: Path) -> None:
    read = load_of(path)
    config = read(path)
    dumped = tmp_path / path.name
    dumped.write_text(dump(config))
    assert read(dumped) == config


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_has_neither_interpolations_nor_absolute_paths(path: Path) -> None:
    file = OmegaConf.load(path)
    assert isinstance(file, DictConfig)
    values = _leaves(OmegaConf.to_container(file, resolve=False))
    assert [v for v in values if isinstance(v, str) and ("${" in v or v.startswith(("/", "~")))] == []


def _leaves(tree: object) -> list[object]:
    if isinstance(tree, dict):
        return [leaf for value in tree.values() for leaf in _leaves(value)]
    return [tree]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_recipes_name_known_sources(path: Path) -> None:
    recipe = read_recipe(path, {})
    assert {settings.source for settings in recipe} <= set(SOURCES)


def test_benchmarks_of_the_config_are_those_that_exist() -> None:
    (choices,) = [one.rule for one in keys(BenchmarkConfig) if one.name == "name"]
    assert choices == f"one of {', '.join(sorted(BENCHMARKS))}"


def test_tiny_policies_of_the_configs_are_of_families_that_exist() -> None:
    tiny = {load_sft(path).model.tiny for path in FILES if is_sft(path)}
    assert tiny - {""} <= set(FAMILIES)
