"""The reference of all config keys, from the schema: `python -m videostr.config_reference > docs/config.md`.

In: `videostr/config.py`, its dataclasses and the docstrings below their fields. Out: Markdown.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from videostr import config as schema

HEAD = """# Config reference

Every key, its type, its default and what it means, written from [videostr/config.py](../videostr/config.py) by
`python -m videostr.config_reference > docs/config.md`. A config is one YAML file that holds what differs from the defaults;
`key=value` on the command line overrides it. Unknown keys, wrong types, contradictions and keys
without effect are refused with the remedy.
"""
KINDS = (
    (schema.Config, "A run", "tabletop_cpu.yaml"),
    (schema.ColdStartConfig, "A cold start", "tabletop_coldstart.yaml"),
    (schema.EvaluationConfig, "An evaluation", "eval_tabletop.yaml"),
)
"""Schema, heading, and an example in configs/."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One key of a section."""

    name: str
    type: str
    default: Any
    meaning: str


def reference() -> str:
    """The whole document."""
    parts, told = [HEAD], set()
    for kind, heading, example in KINDS:
        parts.append(
            f"## {heading}\n\n{inspect.getdoc(kind)} Example: [configs/{example}](../configs/{example}).\n"
        )
        known = [prefix for prefix, section in sections(kind) if section in told and "." not in prefix]
        if known:
            parts.append(f"Sections {', '.join(f'`{prefix}`' for prefix in known)}: as above.\n")
        for prefix, section in sections(kind):
            if section in told:
                continue
            told.add(section)
            if prefix:
                parts.append(f"### `{prefix}`\n\n{inspect.getdoc(section)}\n")
            if rows := [row(prefix, key) for key in keys(section)]:
                parts.append(
                    "\n".join(["| key | type | default | meaning |", "| --- | --- | --- | --- |", *rows, ""])
                )
    return "\n".join(parts)


def sections(kind: type, prefix: str = "") -> Iterator[tuple[str, type]]:
    """Dotted name and dataclass of a schema and of all sections in it."""
    yield prefix, kind
    for field in dataclasses.fields(kind):
        if is_section(field):
            yield from sections(field.default_factory, f"{prefix}.{field.name}".lstrip("."))  # type: ignore[arg-type]


def keys(section: type) -> list[Key]:
    """The keys of a section itself, in order."""
    (body,) = ast.parse(inspect.getsource(section)).body
    assert isinstance(body, ast.ClassDef)
    types, meanings = {}, {}
    for statement, after in zip(body.body, [*body.body[1:], None], strict=True):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            types[statement.target.id] = ast.unparse(statement.annotation)
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                meanings[statement.target.id] = str(after.value.value)
    return [
        Key(
            name=field.name,
            type=types[field.name],
            default=default_of(field),
            meaning=" ".join(meanings.get(field.name, "").split()),
        )
        for field in dataclasses.fields(section)
        if not is_section(field)
    ]


def is_section(field: dataclasses.Field[Any]) -> bool:
    """Whether a field holds keys of its own."""
    return dataclasses.is_dataclass(field.default_factory)


def default_of(field: dataclasses.Field[Any]) -> Any:
    """As YAML has it: lists in place of tuples."""
    value = field.default
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    return list(value) if isinstance(value, tuple) else value


def row(prefix: str, key: Key) -> str:
    """A line of a table."""
    return f"| `{f'{prefix}.{key.name}'.lstrip('.')}` | {as_type(key.type)} | `{as_yaml(key.default)}` | {escaped(key.meaning)} |"


def as_type(annotation: str) -> str:
    """A type as users know it; choices as `a`, `b`."""
    node = ast.parse(annotation, mode="eval").body
    if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "Literal":
        return ", ".join(f"`{value}`" for value in ast.literal_eval(node.slice))
    if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "list":
        return f"list of {as_type(ast.unparse(node.slice))}"
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Tuple):
        return f"{len(node.slice.elts)} x {ast.unparse(node.slice.elts[0])}"
    return annotation.replace(" | None", " or null")


def as_yaml(value: Any) -> str:
    """A value as a config file has it."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, list):
        return f"[{', '.join(as_yaml(item) for item in value)}]"
    return value if isinstance(value, str) and value else '""' if isinstance(value, str) else f"{value}"


def escaped(text: str) -> str:
    """Text that may stand in a cell of a table."""
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(reference())
