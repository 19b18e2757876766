"""What the columns of a record dataset may be: their Arrow types, then the values of a row.

In: the schema of a shard; a row as plain Python values. Out: the row as `Row`, or what breaks the rules, in words that name
column, value and rule.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any

import msgspec
import pyarrow as pa
from msgspec import Meta

from videostr.errors import RecordError
from videostr.schema_rules import field_problem
from videostr.types import AnswerKind

Filled = Annotated[str, Meta(pattern=r"\S", description="text that is not empty")]
Seconds = Annotated[float, Meta(ge=0, le=1e7)]
"""Of a video, 115 days at most."""
Side = Annotated[int, Meta(ge=1, le=16_384)]
"""Rows or columns of a frame; no codec has more."""
Unit = Annotated[
    str,
    Meta(
        pattern=r"^\s*(?![\d+\-−.,])[^\x00-\x1f\x7f-\x9f]{0,40}\Z",
        description="a unit of at most 40 characters, not first a digit, sign or point",
    ),
]
"""A number follows no digit, sign or point that is part of its unit."""


Box = tuple[float, float, float, float]
ANSWER_TYPES: dict[AnswerKind, Any] = {
    AnswerKind.CHOICE: Annotated[str, Meta(description="the letter of one of at least two options")],
    AnswerKind.NUMBER: float,
    AnswerKind.BOX2D: Box,
    AnswerKind.BOX3D: tuple[float, float, float, float, float, float, float],
    AnswerKind.SPAN: tuple[float, float],
    AnswerKind.TRACK: Annotated[tuple[Box, ...], Meta(min_length=1)],
}
"""What `AnswerRow.value` holds, as JSON."""


class AnswerRow(msgspec.Struct):
    """Column `answer`."""

    kind: AnswerKind
    value: str
    """JSON."""
    unit: Unit | None


class ClipRow(msgspec.Struct):
    """Column `clip`."""

    video: Annotated[str, Meta(pattern=r"\A\s*[^\s\0][^\0]*\Z", description="a path")]
    num_frames: Annotated[int, Meta(ge=1, le=10_000)]
    """No model takes more."""
    start_s: Seconds | None
    end_s: Seconds | None
    height: Side | None
    width: Side | None


class Row(msgspec.Struct):
    """The columns."""

    id: Filled
    source: str
    family: str
    question: Filled
    options: Annotated[list[Filled], Meta(max_length=26)]
    """As many as there are letters."""
    answer: AnswerRow
    clip: ClipRow
    labels: list[Filled]
    graph: str | None
    graph_frame: str | None
    query: str | None = None
    """JSON of a `Query`."""
    image_size: tuple[Side, Side] | None = None
    marks: str | None = None
    """JSON of `Mark`s."""


OPTIONAL = {
    "graph", "graph_frame", "query", "image_size", "marks",
    "answer.unit", "clip.start_s", "clip.end_s", "clip.height", "clip.width",
}  # fmt: skip
"""Paths of what may be null."""


# ----------------------------------------------------------------------------------------------------- values


def checked_row(row: dict[str, Any], origin: str) -> Row:
    """Return a row whose values hold every rule; rules between columns are those of `records.record_from_row`.

    Raises:
        RecordError: names `origin`, the first field that breaks a rule, its value and the rule.
    """
    values = row
    if isinstance(row.get("clip"), dict):  # whole numbers that a table with gaps holds as fractions
        whole = {k: int(v) for k, v in row["clip"].items() if isinstance(v, float) and v.is_integer()}
        values = {**row, "clip": row["clip"] | whole}
    try:
        found = msgspec.convert(values, Row)
        msgspec.json.encode(found)
    except msgspec.ValidationError as error:
        field, _, rule = field_problem(error, Row).partition(": ")
        value = "" if rule == "is missing" else f" = {_value(row, field)!r:.80}"
        raise RecordError(f"{origin}: {field}{value}: {rule}") from None
    except UnicodeEncodeError as error:
        raise RecordError(f"{origin}: {error.object!r:.80}: must be UTF-8 text") from None
    for name in ("options", "labels"):
        texts = [text.strip() for text in getattr(found, name)]
        for place, text in enumerate(texts):
            if text in texts[:place]:
                rule = f"stands there twice; the texts of {name} must differ"
                raise RecordError(f"{origin}: {name}[{place}] = {row[name][place]!r:.80}: {rule}")
    return found


def _value(row: Any, path: str) -> Any:
    """Return what stands at a path such as "clip.num_frames" or "options[1]"."""
    for name in re.findall(r"\w+", path):
        row = row[int(name) if isinstance(row, list | tuple) else name]
    return row


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
    """Return the type of the values, whatever they are wrapped in."""
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
