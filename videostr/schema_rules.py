"""What the values of a msgspec schema must be, in words; the same for config keys, rows of datasets and annotation files.

In: a type with its annotations, or an error of msgspec. Out: a rule such as "a whole number, at least 1". A pattern says what it
means in the `description` of its `Meta`.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec
from msgspec import inspect

NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four"}


def field_problem(error: msgspec.ValidationError, schema: Any) -> str:
    """Return the field that broke a rule of `schema`, and the rule: "frames[0].time: must be a finite number, at least 0"."""
    text, _, path = str(error).partition(" - at `$")
    path = path.strip("`").lstrip(".")
    name = re.search(r"field `([^`]+)`", text)
    kind = _type_at(inspect.type_info(schema), path)
    if name and "missing" in text:
        path, rule = f"{path}.{name[1]}".lstrip("."), "is missing"
    elif name and "unknown" in text:
        rule = f"{name[1]} is not a field" + (f" (the fields are {_fields(kind)})" if _fields(kind) else "")
    else:
        rule = f"must be {rule_of(kind)}" if kind is not None else text
    return f"{path}: {rule}" if path else rule


def _fields(kind: inspect.Type | None) -> str:
    return ", ".join(field.encode_name for field in getattr(kind, "fields", ()))


def _type_at(kind: inspect.Type, path: str) -> inspect.Type | None:
    """Return the type at a path such as "frames[0].time"; None where the path does not tell."""
    for step in re.findall(r"\[[^\]]*\]|[^.\[\]]+", path):
        found = next(filter(None, (_step(each, step) for each in _alternatives(kind))), None)
        if found is None:
            return None
        kind = found
    return kind


def _alternatives(kind: inspect.Type) -> tuple[inspect.Type, ...]:
    if isinstance(kind, inspect.Metadata):
        return _alternatives(kind.type)
    return kind.types if isinstance(kind, inspect.UnionType) else (kind,)


def _step(kind: inspect.Type, step: str) -> inspect.Type | None:
    match kind:
        case inspect.StructType() | inspect.DataclassType():
            return next((field.type for field in kind.fields if field.encode_name == step), None)
        case inspect.TupleType() if step[1:-1].isdigit() and int(step[1:-1]) < len(kind.item_types):
            return kind.item_types[int(step[1:-1])]
        case inspect.DictType() if step == "[...]":
            return kind.value_type
    return getattr(kind, "item_type", None) if step.startswith("[") else None


def rule_of(kind: inspect.Type) -> str:
    """Return what a value of a type must be."""
    match kind:
        case inspect.Metadata():
            return (kind.extra_json_schema or {}).get("description") or rule_of(kind.type)
        case inspect.UnionType():
            return ", or ".join(rule_of(one) for one in kind.types)
        case inspect.StructType():
            return f"an object with {_fields(kind)}"
        case inspect.TupleType():
            return _rule_of_tuple(kind)
        case inspect.ListType() | inspect.VarTupleType() | inspect.SetType() | inspect.FrozenSetType():
            return f"a list, each {rule_of(kind.item_type)}{_lengths(kind, 'entries')}"
    return _rule_of_scalar(kind)


def _rule_of_scalar(kind: inspect.Type) -> str:
    match kind:
        case inspect.IntType():
            return f"a whole number{bounds_of(kind)}"
        case inspect.FloatType():
            return f"a finite number{bounds_of(kind)}"
        case inspect.BoolType():
            return "true or false"
        case inspect.LiteralType():
            return f"one of {', '.join(map(str, kind.values))}"
        case inspect.EnumType():
            return f"one of {', '.join(str(member.value) for member in kind.cls)}"
        case inspect.NoneType():
            return "null"
        case inspect.DictType():
            return "a mapping"
    return f"text{_lengths(kind, 'characters')}"


def _rule_of_tuple(kind: inspect.TupleType) -> str:
    first = kind.item_types[0]
    count = NUMBERS.get(len(kind.item_types), str(len(kind.item_types)))
    if isinstance(first, inspect.IntType | inspect.FloatType):
        one = "whole numbers" if isinstance(first, inspect.IntType) else "numbers"
        return f"a list of {count} {one}{bounds_of(first)}"
    return f"a list of {count}, each {rule_of(first)}"


def _lengths(kind: inspect.Type, of: str) -> str:
    least, most = getattr(kind, "min_length", None), getattr(kind, "max_length", None)
    if least == 1 and most is None:
        return ", not empty"
    words = ([f"at least {least}"] if least else []) + ([f"at most {most}"] if most else [])
    return f", {' and '.join(words)} {of}" if words else ""


def _number(limit: float) -> str:
    return str(limit) if isinstance(limit, int) else f"{limit:g}"


def bounds_of(kind: inspect.Type) -> str:
    """Return the range of a number, as in ", from 0 to 1"; "" where it has none."""
    words = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
    if getattr(kind, "ge", None) is not None and getattr(kind, "le", None) is not None:
        return f", from {_number(kind.ge)} to {_number(kind.le)}"  # type: ignore[attr-defined]
    limits = [(word, getattr(kind, name, None)) for name, word in words.items()]
    found = [f"{word} {_number(limit)}" for word, limit in limits if limit is not None]
    return f", {' and '.join(found)}" if found else ""
