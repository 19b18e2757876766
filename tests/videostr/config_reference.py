"""The reference of all config keys, from the schema: `python -m tests.videostr.config_reference > docs/config.md`.

In: the dataclasses of videostr/config/, their annotations and the docstrings below their fields. Out: Markdown.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_type_hints

import msgspec.inspect as types

from videostr.config.schema import AblationConfig, Config, EvaluationConfig, PlanConfig, SftConfig
from videostr.config.values import part_of, shown
from videostr.schema_rules import rule_of

HEAD = """# Config reference

Every key, what its value must be, its default and what it means, written from
[videostr/config/sections.py](../videostr/config/sections.py) and [videostr/config/schema.py](../videostr/config/schema.py) by
`python -m tests.videostr.config_reference > docs/config.md`. A config is one YAML file that holds what differs from the defaults;
`key=value` on the command line overrides it. Unknown keys, wrong types, contradictions and keys without effect are errors; each
names the remedy.
"""
KINDS = (
    (Config, "A run", "tabletop_cpu.yaml"),
    (PlanConfig, "A plan", "tabletop_cpu.yaml"),
    (SftConfig, "Supervised fine-tuning", "tabletop_sft.yaml"),
    (EvaluationConfig, "An evaluation", "eval_tabletop.yaml"),
    (AblationConfig, "An ablation", "ablation_tabletop.yaml"),
)
"""Schema, heading, and an example in configs/."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One key of a section."""

    name: str
    rule: str
    default: Any
    meaning: str


def reference() -> str:
    """Return the whole document."""
    parts, known = [HEAD], set()
    for kind, heading, example in KINDS:
        parts.append(
            f"## {heading}\n\n{inspect.getdoc(kind)} Example: [configs/{example}](../configs/{example}).\n"
        )
        shared = [prefix for prefix, section in sections(kind) if section in known and "." not in prefix]
        if shared:
            parts.append(f"Sections {', '.join(f'`{prefix}`' for prefix in shared)}: as above.\n")
        for prefix, section in sections(kind):
            if section in known:
                continue
            known.add(section)
            if prefix:
                parts.append(f"### `{prefix}`\n\n{inspect.getdoc(section)}\n")
            if rows := [row(prefix, key) for key in keys(section)]:
                parts.append(
                    "\n".join(["| key | value | default | meaning |", "| --- | --- | --- | --- |", *rows, ""])
                )
    return "\n".join(parts)


def sections(kind: type, prefix: str = "") -> Iterator[tuple[str, type]]:
    """Yield dotted name and dataclass of a schema and of all sections in it."""
    yield prefix, kind
    for name, section in get_type_hints(kind).items():
        if dataclasses.is_dataclass(section):
            yield from sections(section, f"{prefix}.{name}".lstrip("."))  # type: ignore[arg-type]
        elif (part := part_of(section)) is not None:
            yield from sections(part, f"{prefix}.{name}.NAME".lstrip("."))


def keys(section: type) -> list[Key]:
    """Return the keys of a section itself, in order."""
    meanings: dict[str, str] = {}
    for kind in reversed(section.__mro__[:-1]):  # a section may extend another one
        meanings |= _meanings(kind)
    hints, defaults = get_type_hints(section, include_extras=True), section()
    return [
        Key(
            name=name,
            rule=rule_of(types.type_info(hint)),
            default=getattr(defaults, name),
            meaning=meanings.get(name, ""),
        )
        for name, hint in hints.items()
        if not dataclasses.is_dataclass(hint) and part_of(hint) is None
    ]


def _meanings(section: type) -> dict[str, str]:
    """Return what the docstrings below the fields of a class say, by field."""
    (body,) = ast.parse(inspect.getsource(section)).body
    assert isinstance(body, ast.ClassDef)
    found = {}
    for statement, after in zip(body.body, body.body[1:], strict=False):
        match statement, after:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=text)):
                found[name] = " ".join(str(text).split())
    return found


def row(prefix: str, key: Key) -> str:
    """Return a line of a table."""
    cells = (f"`{prefix}.{key.name}`".replace("`.", "`"), key.rule, f"`{shown(key.default)}`", key.meaning)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


if __name__ == "__main__":
    sys.stdout.write(reference())
