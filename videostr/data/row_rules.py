"""What the columns of a record dataset may be: their Arrow types, then the values of a row.

In: the schema of a shard; a row as plain Python values. Out: what breaks the rules, in words that name column, value and rule.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pyarrow as pa

from videostr.types import AnswerKind

MAX_FRAMES = 10_000
"""Frames of a clip; no model takes as many."""
MAX_SIDE = 16_384
"""Rows and columns of a frame; no codec has more."""
MAX_SECONDS = 1e7
"""Of a video: 115 days."""
MAX_OPTIONS = 26
"""Letters there are."""
MAX_UNIT = 40
"""Characters of a unit."""


class Rule(NamedTuple):
    """What a value must be; a null is checked apart."""

    must: str
    holds: Callable[[Any], bool]
    optional: bool = False
    """Whether it may be null."""


def is_text(value: Any) -> bool:
    """Whether a value is text that UTF-8 can hold: JSON can bring lone surrogates."""
    return isinstance(value, str) and (value.isascii() or _has_utf8(value))


def _has_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_number(value: Any, least: float, most: float) -> bool:
    return type(value) in (int, float) and least <= value <= most  # NaN is in no range


def _is_whole(value: Any, most: int) -> bool:
    return _is_number(value, 1, most) and value == int(value)


def _is_unit(value: Any) -> bool:
    """A number follows no digit, sign or point that is part of its unit."""
    if not is_text(value):
        return False
    unit = value.strip()
    return len(unit) <= MAX_UNIT and unit.isprintable() and not re.match(r"[\d+\-−.,]", unit)


TEXT = Rule("UTF-8 text", is_text)
OPTIONAL_TEXT = TEXT._replace(optional=True)
FILLED = Rule("UTF-8 text", lambda value: is_text(value) and bool(value.strip()))
SECONDS = Rule(
    f"a finite number of seconds from 0 to {MAX_SECONDS:g}, or null",
    lambda value: _is_number(value, 0, MAX_SECONDS),
    optional=True,
)
PIXELS = Rule(
    f"a whole number from 1 to {MAX_SIDE}, or null", lambda value: _is_whole(value, MAX_SIDE), optional=True
)
COLUMNS = {
    "id": FILLED,
    "source": TEXT,
    "family": TEXT,
    "question": FILLED,
    "options": Rule("a list of texts", lambda value: isinstance(value, list)),
    "labels": Rule("a list of texts", lambda value: isinstance(value, list)),
    "graph": OPTIONAL_TEXT,
    "graph_frame": OPTIONAL_TEXT,
    "image_size": Rule(
        f"a list of width and height, whole numbers from 1 to {MAX_SIDE}, or null",
        lambda value: (
            isinstance(value, list) and len(value) == 2 and all(_is_whole(v, MAX_SIDE) for v in value)
        ),
        optional=True,
    ),
}
STRUCTS = {
    "answer": {
        "kind": Rule(
            f"one of {', '.join(AnswerKind)}", lambda value: is_text(value) and value in list(AnswerKind)
        ),
        "value": TEXT,
        "unit": Rule(
            f"a unit such as m, s or deg (at most {MAX_UNIT} printable characters, no digit or sign in front), or null",
            _is_unit,
            optional=True,
        ),
    },
    "clip": {
        "video": Rule(
            "the path of a file without NUL", lambda value: FILLED.holds(value) and "\0" not in value
        ),
        "num_frames": Rule(
            f"a whole number from 1 to {MAX_FRAMES}", lambda value: _is_whole(value, MAX_FRAMES)
        ),
        "start_s": SECONDS,
        "end_s": SECONDS,
        "height": PIXELS,
        "width": PIXELS,
    },
}
OPTIONAL = {name for name, rule in COLUMNS.items() if rule.optional} | {
    f"{column}.{name}" for column, fields in STRUCTS.items() for name, rule in fields.items() if rule.optional
}
"""Paths of what may be null."""


# ----------------------------------------------------------------------------------------------------- values


def row_problem(row: dict[str, Any]) -> str:
    """Return the first value of a row that breaks a rule, with the rule; "" where all hold.

    Rules between columns, such as those between the answer and the options, are those of `records.record_from_row`.
    """
    for name, rule in COLUMNS.items():
        if problem := _problem(name, row.get(name), rule):
            return problem
    for name, fields in STRUCTS.items():
        values = row.get(name)
        if not isinstance(values, dict):
            return _problem(name, values, Rule(f"a struct of {', '.join(fields)}", lambda _: False))
        for field, rule in fields.items():
            if problem := _problem(f"{name}.{field}", values.get(field), rule):
                return problem
    return _options_problem(row["options"]) or _list_problem("labels", row["labels"])


def _problem(path: str, value: Any, rule: Rule) -> str:
    if value is None:
        return "" if rule.optional else f"{path} is missing; it must be {rule.must}"
    if rule.holds(value):
        return ""
    if isinstance(value, str) and not value.strip():
        return f"{path} is empty; it must hold text"
    return f"{path} = {value!r:.80}: must be {rule.must}"


def _options_problem(options: list[Any]) -> str:
    if len(options) > MAX_OPTIONS:
        return f"options has {len(options)} entries: must be at most {MAX_OPTIONS}, as there are letters"
    return _list_problem("options", options)


def _list_problem(path: str, values: list[Any]) -> str:
    """Texts of a list: each filled, no two alike."""
    for place, value in enumerate(values):
        if problem := _problem(f"{path}[{place}]", value, FILLED):
            return problem
    texts = [value.strip() for value in values]
    if len(set(texts)) < len(texts):
        place = next(i for i, text in enumerate(texts) if text in texts[:i])
        return f"{path}[{place}] = {values[place]!r:.80}: stands there twice; the texts of {path} must differ"
    return ""


# ------------------------------------------------------------------------------------------------------ types


def type_problems(found: pa.Schema, wanted: pa.Schema) -> list[str]:
    """Return every column, or field of a struct, whose Arrow type cannot hold what `wanted` asks for, with its type.

    Other widths and encodings of the same thing are good: large and view types, dictionaries, integers for fractions and the
    reverse (values are checked by `row_problem`). A column of type null is good where null is.
    """
    return list(_struct_problems("", pa.struct(found), pa.struct(wanted)))


def _struct_problems(start: str, found: pa.StructType, wanted: pa.StructType) -> Iterator[str]:
    for field in wanted:
        places = found.get_all_field_indices(field.name)
        if len(places) == 1:
            yield from _type_problems(start + field.name, found.field(places[0]).type, field.type)
        else:
            yield f"{start}{field.name} {'stands there twice' if places else 'is missing'}; it must be {_words(field.type)}"


def _type_problems(path: str, found: pa.DataType, wanted: pa.DataType) -> Iterator[str]:
    plain = _plain(found)
    if pa.types.is_struct(plain) and pa.types.is_struct(wanted):
        yield from _struct_problems(f"{path}.", plain, wanted)
    elif _is_list(plain) and _is_list(wanted):
        yield from _type_problems(f"{path}[]", plain.value_type, wanted.value_type)
    elif not (
        (pa.types.is_null(plain) and (path in OPTIONAL or path.endswith("[]")))
        or (_is_string(plain) and _is_string(wanted))
        or (_is_numeric(plain) and _is_numeric(wanted))
    ):
        yield f"{path} has the Arrow type {found}; it must be {_words(wanted)}"


def _plain(found: pa.DataType) -> pa.DataType:
    """The type of the values, whatever they are wrapped in."""
    if pa.types.is_dictionary(found):
        return _plain(found.value_type)
    return found.storage_type if isinstance(found, pa.JsonType) else found


def _is_string(found: pa.DataType) -> bool:
    types = pa.types
    return bool(types.is_string(found) or types.is_large_string(found) or types.is_string_view(found))


def _is_list(found: pa.DataType) -> bool:
    types = pa.types
    return bool(
        types.is_list(found)
        or types.is_large_list(found)
        or types.is_fixed_size_list(found)
        or types.is_list_view(found)
        or types.is_large_list_view(found)
    )


def _is_numeric(found: pa.DataType) -> bool:
    types = pa.types
    return bool(types.is_integer(found) or types.is_float32(found) or types.is_float64(found))


def _words(wanted: pa.DataType) -> str:
    if pa.types.is_struct(wanted):
        return f"a struct of {', '.join(field.name for field in wanted)}"
    if _is_list(wanted):
        return f"a list of {'strings' if _is_string(wanted.value_type) else 'numbers'}"
    return str(wanted)


def is_finite(value: Any) -> bool:
    """Whether a value is a finite number; true and false are none."""
    return type(value) in (int, float) and math.isfinite(value)
