"""JSON that a user hands in: one check of encoding and form for every reader.

In: a file of JSON lines, of one JSON array, or of one JSON value. Out: its rows with their places, or its content as UTF-8
without a byte order mark. What is wrong with the whole file is one error; a bad row is left to the reader of rows.
"""

from __future__ import annotations

import codecs
import json
import mmap
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import msgspec

from videostr.errors import DataError

_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
}
_HEAD = 6
"""Bytes that tell the encoding."""
_ARRAY = re.compile(rb"\s*\[\s*(?:\{|\]|$)")
"""How an array of objects begins; a line that is another array is a bad row."""


class WrongEncoding(ValueError):
    """A file is not UTF-8 text; says what it is and what to do."""


class Line(NamedTuple):
    """A line that is not blank."""

    number: int
    """From 1."""
    offset: int
    """Where it starts in the file, bytes."""
    content: bytes


def json_content(content: bytes | mmap.mmap) -> memoryview:
    """Return the content of a file without its byte order mark.

    Raises:
        WrongEncoding: it is compressed, or UTF-16 or UTF-32.
    """
    return memoryview(content)[_length_of_mark(content[:_HEAD]) :]


def _length_of_mark(head: bytes) -> int:
    for mark, name in _COMPRESSED.items():
        if head.startswith(mark):
            raise WrongEncoding(f"is compressed ({name}); unpack it first")
    if head.startswith(b"PAR1"):
        raise WrongEncoding("is a Parquet file; JSON is wanted")
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in head:
        raise WrongEncoding("is UTF-16, UTF-32 or binary; save it as UTF-8")
    return len(codecs.BOM_UTF8) if head.startswith(codecs.BOM_UTF8) else 0


def json_rows(path: Path, what: str) -> Iterator[tuple[str, bytes]]:
    """Yield place and JSON of every row of a file of JSON lines, or of one JSON array of rows.

    Args:
        path: the file; a line is named `PATH:LINE` from 1, an item of an array `PATH[INDEX]` from 0.
        what: what a row is, for messages, e.g. "a question".

    Raises:
        DataError: the file cannot be read, or is in another form.
    """
    lines = _lines(path, what)
    first = next(lines, None)
    if first is not None and _ARRAY.match(first.content):
        yield from _items(path, what)
    elif first is not None:
        for line in _checked(path, what, first, lines):
            yield f"{path}:{line.number}", line.content


def json_lines(path: Path, what: str) -> Iterator[Line]:
    """Read JSON lines as `json_rows` does; they can be read again from their offsets; a JSON array is refused."""
    lines = _lines(path, what)
    first = next(lines, None)
    if first is not None and _ARRAY.match(first.content):
        raise DataError(
            f"{path}: holds a JSON array",
            remedy=f"write {what} a line, each a JSON object (jq -c '.[]' FILE does it)",
        )
    return iter(()) if first is None else _checked(path, what, first, lines)


def _lines(path: Path, what: str) -> Iterator[Line]:
    try:
        with path.open("rb") as file:
            offset = _length_of_mark(file.read(_HEAD))
            file.seek(offset)
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield Line(number, offset, line)
                offset += len(line)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror or error})",
            remedy=f"name a file of JSON lines, {what} a line",
        ) from None
    except WrongEncoding as error:
        raise DataError(f"{path}: cannot be read: it {error}") from None


def _checked(path: Path, what: str, first: Line, rest: Iterator[Line]) -> Iterator[Line]:
    """Yield the lines, where at least one of several is an object: else the file is in another form, not its rows broken."""
    tried = [first]
    while not _is_object(tried[-1].content):
        line = next(rest, None)
        if line is None:
            break
        tried.append(line)
    else:
        return chain(tried, rest)
    if len(tried) == 1:
        return iter(tried)
    raise DataError(
        f"{path}: none of its {len(tried)} lines is a JSON object in UTF-8 (line {first.number} is {first.content[:60]!r})",
        remedy=f"write {what} a line, or one JSON array of all (jq -c . FILE makes one line of each object)",
    )


def _is_object(line: bytes) -> bool:
    try:
        msgspec.json.decode(line, type=dict[str, msgspec.Raw])
        line.decode()
    except (ValueError, RecursionError):
        try:
            return isinstance(json.loads(line), dict)  # NaN and lone surrogates are the rows' to refuse
        except (ValueError, RecursionError):
            return False
    return True


def _items(path: Path, what: str) -> Iterator[tuple[str, bytes]]:
    content = bytes(json_content(path.read_bytes()))
    try:
        content.decode()
        items = [bytes(item) for item in msgspec.json.decode(content, type=list[msgspec.Raw])]
    except (ValueError, RecursionError):
        items = _items_with_line(path, content, what)
    for index, item in enumerate(items):
        yield f"{path}[{index}]", item


def _items_with_line(path: Path, content: bytes, what: str) -> list[bytes]:
    """As the other decoder, which is faster but says no line and lets no row be NaN."""
    try:
        return [json.dumps(item).encode() for item in json.loads(content)]
    except json.JSONDecodeError as error:
        place = f":{error.lineno}: no valid JSON from column {error.colno} on"
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        place = f":{line}: {content[error.start : error.start + 1]!r} is not UTF-8"
    except (ValueError, RecursionError):
        place = ": no JSON that can be read, too deep or with a number of too many digits"
    raise DataError(
        f"{path}{place}", remedy=f"the file must be one JSON array, each item {what}, or JSON lines"
    )
