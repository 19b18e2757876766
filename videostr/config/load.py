"""Read a config: a YAML file, over it `key=value` from the command line; and write it back.

A file is sparse (a key that it leaves out has its default) and complete (no interpolation, no file that inherits another).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf

from videostr.config import rules
from videostr.config.effects import Written, keys_without_effect
from videostr.config.schema import (
    AblationConfig,
    AnyConfig,
    Config,
    EvaluationConfig,
    PlanConfig,
    RunConfig,
    SftConfig,
)
from videostr.config.values import LEAVES, Problem, convert, flat
from videostr.errors import ConfigError
from videostr.shipped import find

C = TypeVar("C", bound=AnyConfig)
COMMANDS: Mapping[type, str] = {
    Config: "python -m videostr.launch",
    SftConfig: "python -m videostr.sft",
    EvaluationConfig: "python -m videostr.evaluate",
    AblationConfig: "python -m videostr.ablate",
    PlanConfig: "python -m videostr.plan",
}
RESOLVED = "# Resolved: every key, defaults included. Delete this line when you edit the file by hand.\n"
"""First line of a dump. Of such a file only keys that differ from their default count as written by the user."""


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a run's config.

    Raises:
        ConfigError: unreadable file, unknown key, wrong type or broken rule; names file, key, value, rule and remedy.
    """
    return _load(Config, path, overrides)


def load_plan(path: str | Path, overrides: Sequence[str] = ()) -> PlanConfig:
    """Read the config of a run to be estimated; raises as `load` does."""
    return _load(PlanConfig, path, overrides)


def load_sft(path: str | Path, overrides: Sequence[str] = ()) -> SftConfig:
    """Read the config of supervised fine-tuning; raises as `load` does."""
    return _load(SftConfig, path, overrides)


def load_run(path: str | Path) -> RunConfig:
    """Read the config in a run folder, of whichever command made it; raises as `load` does."""
    file, _ = _read(path)
    return load_sft(path) if "references" in file else load(path)


def load_evaluation(path: str | Path, overrides: Sequence[str] = ()) -> EvaluationConfig:
    """Read an evaluation's config; raises as `load` does."""
    return _load(EvaluationConfig, path, overrides)


def load_ablation(path: str | Path, overrides: Sequence[str] = ()) -> AblationConfig:
    """Read the config of an ablation; its arms are not looked into.

    Raises:
        ConfigError: as `load`; there are no arms, or a name cannot be that of a folder.
    """
    file, given, _ = _trees(AblationConfig, path, overrides)
    problems: list[Problem] = []
    config = convert(AblationConfig, _merged(file, given), problems)
    if not problems:
        problems = rules.broken(config)
    if problems:
        raise ConfigError.of([problem.error(str(path)) for problem in problems])
    return config


def dump(config: AnyConfig | AblationConfig) -> str:
    """Return the resolved config as YAML; `load` of it gives the same config."""
    return RESOLVED + OmegaConf.to_yaml(OmegaConf.create(asdict(config)))


def _trees(
    schema: type, path: str | Path, overrides: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Any], bool]:
    """Return the tree of a file, that of the overrides, and whether the file was written by `dump`."""
    file, is_resolved = _read(path)
    if commands := _of_other_commands(schema, file):
        raise ConfigError(
            f"{path}: is a config of {' or '.join(commands)}, not of {COMMANDS[schema]}",
            remedy="run that command, or name another file",
        )
    given: dict[str, Any] = {}
    for text in overrides:
        given = _merged(given, _override(text, schema))
    return file, given, is_resolved


def _of_other_commands(schema: type, file: Mapping[str, Any]) -> list[str]:
    """Return the commands that have all sections of a file, where this one lacks some."""
    sections = {each: {key.name for key in fields(each)} for each in COMMANDS}
    if file.keys() <= sections[schema]:
        return []
    return [COMMANDS[each] for each in COMMANDS if file.keys() <= sections[each]]


def _load(schema: type[C], path: str | Path, overrides: Sequence[str]) -> C:
    file, given, is_resolved = _trees(schema, path, overrides)
    problems: list[Problem] = []
    config = convert(schema, _merged(file, given), problems)
    written = _written(convert(schema, file, []) if is_resolved else file, given)
    if not problems:
        problems = _broken(config, written)
    if problems:
        in_file = [not _is_part(problem.key, written.overrides) for problem in problems]
        raise ConfigError.of(
            [p.error(str(path) if i else "") for p, i in zip(problems, in_file, strict=True)]
        )
    config.model.path = str(find(config.model.path)) if config.model.path else ""
    return config


def _is_part(key: str, written: Iterable[str]) -> bool:
    """Return whether a key, or one of its section, was written; of a mapping of the user's, whether any part was."""
    mapping = next((leaf for leaf in LEAVES if key.startswith(f"{leaf}.")), key)
    return any(each in {key, mapping} or each.startswith(f"{key}.") for each in written)


def _broken(config: AnyConfig, written: Written) -> list[Problem]:
    """Return the broken rules between keys and the keys without effect; a key has one problem at most."""
    found: dict[str, Problem] = {}
    for problem in (
        *rules.broken(config),
        *keys_without_effect(config, dict(flat(asdict(config))), written),
    ):
        found.setdefault(problem.key, problem)
    return list(found.values())


def _read(path: str | Path) -> tuple[dict[str, Any], bool]:
    """Return the tree of a file, and whether it was written by `dump`."""
    try:
        file = OmegaConf.load(find(path))
        with find(path).open(encoding="utf-8") as lines:
            is_resolved = lines.readline() == RESOLVED
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such config file", remedy="the shipped ones are in configs/") from None
    except Exception as error:  # PyYAML and OmegaConf share no base class
        raise ConfigError(f"{path}: not readable as YAML: {error}", remedy="correct the file") from error
    if not isinstance(file, DictConfig):
        kind = type(file).__name__
        raise ConfigError(
            f"{path}: holds a {kind}, must be a mapping of sections",
            remedy="begin it with a section such as `model:`",
        )
    return _tree(file), is_resolved


def _override(text: str, schema: type) -> dict[str, Any]:
    _, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"override {text!r}: must be key=value", remedy="write it as in train.steps=10")
    try:
        override = OmegaConf.from_dotlist([text])
        # Text stays as it was written: run.name=007 is not 7, nor are 1.10 and 1.1 one run.
        texts = {key for key, default in flat(asdict(schema())) if isinstance(default, str)}
        for key, given in flat(_tree(override)):
            if key in texts and isinstance(given, bool | int | float):
                OmegaConf.update(override, key, value.strip())
    except Exception as error:  # as of a file
        problem = " ".join(str(error).split())
        raise ConfigError(
            f"override {text!r}: not readable as YAML: {problem}",
            remedy="quote the value, e.g. run.name='\"@x\"'",
        ) from error
    return _tree(override)


def _tree(part: DictConfig) -> dict[str, Any]:
    tree: Any = OmegaConf.to_container(part, resolve=False)
    return tree  # type: ignore[no-any-return]


def _merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return two trees as one; where both have a value, that of `over`."""
    both = dict(under)
    for key, value in over.items():
        known = both.get(key)
        both[key] = (
            _merged(known, value) if isinstance(known, Mapping) and isinstance(value, Mapping) else value
        )
    return both


def _written(file: Any, given: Mapping[str, Any]) -> Written:
    """Return the keys that the user wrote.

    `file` is a tree, or the config of a resolved file: of that, keys that had no effect when it was written do not count.
    """
    overrides = frozenset(key for key, _ in flat(given))
    if isinstance(file, Mapping):
        return Written(file=frozenset(key for key, _ in flat(file)), overrides=overrides)
    changed = _changed(file)
    inert = keys_without_effect(file, dict(flat(asdict(file))), Written(file=changed))
    return Written(file=changed - {problem.key for problem in inert}, overrides=overrides)


def _changed(config: AnyConfig) -> frozenset[str]:
    """Return the dotted keys whose value differs from the default."""
    defaults = dict(flat(asdict(type(config)())))
    return frozenset(key for key, value in flat(asdict(config)) if value != defaults[key])
