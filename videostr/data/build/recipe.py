"""Recipes: YAML files that say what a dataset takes of which sources.

In: a file such as `configs/data/stv.yaml`. Out: `Settings` of every source. `include`, a list of recipes next to the file, puts
their sources before its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from msgspec import structs
from omegaconf import OmegaConf

from videostr.data.build.settings import Settings
from videostr.errors import ConfigError
from videostr.schema_rules import field_problem


def read_recipe(path: Path, roots: dict[str, str]) -> list[Settings]:
    """Return the sources of a recipe; `roots` by name of the source take the place of those in the file.

    Raises:
        ConfigError: the file is not a recipe, or `roots` has a name that none of its sources has.
    """
    recipe = _sources(path, ())
    if strangers := sorted(roots.keys() - {each.source for each in recipe}):
        raise ConfigError(
            f"--root {strangers[0]}={roots[strangers[0]]}: {path} has no source {strangers[0]!r}",
            remedy=f"it has {', '.join(sorted({each.source for each in recipe}))}",
        )
    return [structs.replace(each, root=roots.get(each.source, each.root)) for each in recipe]


def _sources(path: Path, including: tuple[Path, ...]) -> list[Settings]:
    """Return the sources of a recipe; `including` are the recipes by which it was reached."""
    if path.resolve() in including:
        raise ConfigError(f"{path}: includes itself", remedy="take it out of `include`")
    try:
        rows: Any = OmegaConf.to_container(OmegaConf.load(path))
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror or error})",
            remedy="name a recipe such as configs/data/stv.yaml",
        ) from None
    except Exception as error:  # PyYAML, OmegaConf and the decoding of text share no base class
        raise ConfigError(f"{path}: not readable as YAML: {error}", remedy="correct the file") from error
    if not isinstance(rows, dict) or not isinstance(rows.get("sources"), list):
        raise ConfigError(f"{path}: must have a list `sources`", remedy="write source and root of each")
    included = rows.get("include", [])
    if not isinstance(included, list) or not all(isinstance(name, str) for name in included):
        raise ConfigError(
            f"{path}: include = {included!r}: must be a list of recipes", remedy="write include: [stv.yaml]"
        )
    if strangers := sorted(map(str, rows.keys() - {"sources", "include"})):
        raise ConfigError(
            f"{path}: {strangers[0]}: is no key of a recipe", remedy="it has sources and include"
        )
    before = [
        each for name in included for each in _sources(path.parent / name, (*including, path.resolve()))
    ]
    try:
        recipe = msgspec.convert(rows["sources"], list[Settings])
    except msgspec.ValidationError as error:
        raise ConfigError(
            f"{path}: sources{field_problem(error, list[Settings])}", remedy="correct the recipe"
        ) from None
    except ConfigError as error:
        raise ConfigError(f"{path}: sources: {error}", remedy=error.remedy) from None
    return before + recipe
