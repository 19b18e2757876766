"""Values of keys against the annotations of their fields: conversion, and the sentence that an annotation is.

In: a tree as YAML has it, and a dataclass of sections.py. Out: the dataclass, and a problem for each key that is unknown or whose
value has another type or range.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import msgspec
from msgspec import inspect

from videostr.errors import ConfigError
from videostr.schema_rules import rule_of

T = TypeVar("T")
LEAVES = frozenset({"rollout.engine_args"})
"""Keys whose value is a mapping of the user's, not a section."""
SEE = "keys and types are listed in docs/config.md"


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A key that cannot stay as it is."""

    key: str
    """Dotted."""
    value: Any
    rule: str
    """What the value must be or why it cannot be used, with the other keys that matter."""
    remedy: str

    def error(self, place: str = "") -> ConfigError:
        """Return it as an error; `place` is the file that holds the key."""
        message = f"{self.key} = {shown(self.value)}: {self.rule}"
        return ConfigError(f"{place}: {message}" if place else message, remedy=self.remedy)


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted key and value of every leaf of nested sections; tuples as lists, as a file has them."""
    for key, value in values.items():
        if isinstance(value, Mapping) and f"{prefix}{key}" not in LEAVES:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", list(value) if isinstance(value, tuple) else value


def convert(schema: type[T], tree: Mapping[Any, Any], problems: list[Problem], prefix: str = "") -> T:
    """Return a section filled from a tree; a key that cannot be used keeps its default and is added to `problems`."""
    types = get_type_hints(schema, include_extras=True)
    values = {}
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if name not in types:
            close = difflib.get_close_matches(str(name), types, 1)
            meant = f"did you mean {prefix}{close[0]}? " if close else ""
            problems.append(Problem(key=key, value=value, rule="is not a key", remedy=f"{meant}{SEE}"))
        elif dataclasses.is_dataclass(types[name]):
            values[name] = _section(types[name], value, problems, key)
        elif (part := part_of(types[name])) is not None:
            if isinstance(value, Mapping):
                values[name] = {
                    str(of): _section(part, {} if each is None else each, problems, f"{key}.{of}")
                    for of, each in value.items()
                }
            else:
                rule = "must be a section of names, each with keys of its own"
                problems.append(Problem(key=key, value=value, rule=rule, remedy=SEE))
        else:
            try:
                values[name] = value_of(value, types[name])
            except msgspec.ValidationError as error:
                remedy = "put it in quotes" if "YAML" in str(error) else SEE
                problems.append(Problem(key=key, value=value, rule=f"must be {error}", remedy=remedy))
    return schema(**values)


def _section(schema: type, value: Any, problems: list[Problem], key: str) -> Any:
    if isinstance(value, Mapping):
        return convert(schema, value, problems, f"{key}.")
    rule = f"must be a section with keys, such as {key}.{next(iter(get_type_hints(schema)))}"
    problems.append(Problem(key=key, value=value, rule=rule, remedy=SEE))
    return schema()


def part_of(annotation: Any) -> type | None:
    """Return the section of a mapping of names to sections."""
    arguments = get_args(annotation)
    return arguments[1] if get_origin(annotation) is dict and dataclasses.is_dataclass(arguments[1]) else None  # type: ignore[return-value]


def value_of(value: Any, annotation: Any) -> Any:
    """Return a value in the type of its field.

    Raises:
        msgspec.ValidationError: it is not a value of the type; the text says what it must be.
    """
    kind = inspect.type_info(annotation)
    if isinstance(kind, inspect.StrType):
        if isinstance(value, bool | int | float):
            raise msgspec.ValidationError(f"text, but YAML reads it as {value!r}")
        if isinstance(value, str) and "${" in value:
            raise msgspec.ValidationError("written out: interpolation is not supported")
    try:
        converted = msgspec.convert(value, annotation, strict=False)
    except msgspec.ValidationError:
        raise msgspec.ValidationError(rule_of(kind)) from None
    # NaN passes every comparison of msgspec.
    if isinstance(converted, float) and not math.isfinite(converted):
        raise msgspec.ValidationError(rule_of(kind))
    return converted


def shown(value: Any) -> str:
    """Return a value as a config file has it; text that could be mistaken is quoted and escaped."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {shown(item)}' for key, item in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(shown(item) for item in value)}]"
    if isinstance(value, str):
        plain = value and value.isascii() and value.isprintable() and value.strip() == value
        return value if plain else ascii(value) if value else '""'
    return str(value)
