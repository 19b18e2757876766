"""Whether a media file is all there: containers say how long they are.

In: a path. Out: whether the file is shorter than it says, and the error of a file that cannot be read.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import BinaryIO

from videostr.errors import VideoError


def unreadable(path: Path, reason: object) -> VideoError:
    """Return what is wrong with a file that cannot be read, and what to do."""
    if path.is_file() and path.stat().st_size == 0:
        return VideoError(f"{path}: the file is empty", remedy="restore it or drop its rows")
    if path.is_file() and is_cut_off(path):
        return VideoError(
            f"{path}: truncated: shorter than its own header says", remedy="restore the file or drop its rows"
        )
    return VideoError(f"{path}: cannot be decoded ({reason})", remedy="re-encode the file or drop its rows")


def is_cut_off(path: Path) -> bool:
    """Return whether an MP4, MOV, Matroska, WebM or AVI file is shorter than the parts that it says it has; False for others."""
    size = path.stat().st_size
    with path.open("rb") as file, contextlib.suppress(IndexError):
        head = file.read(64)
        if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
            return _mp4_length(file, size) > size
        if head[:4] == b"\x1aE\xdf\xa3":
            return _matroska_length(head) > size
        if head[:4] == b"RIFF":
            return 8 + int.from_bytes(head[4:8], "little") > size
    return False


def _mp4_length(file: BinaryIO, size: int) -> int:
    """Return where the last of the boxes ends; each begins with its length and its name."""
    place = 0
    while place < size:
        file.seek(place)
        head = file.read(16)
        length = int.from_bytes(head[:4])
        if length == 1:
            length = int.from_bytes(head[8:16])
        if length == 0:  # up to the end of the file
            return size
        place += max(length, 8)
    return place


def _matroska_length(head: bytes) -> int:
    """Return where the segment ends, 0 where it does not say; it follows the header, each with a name and a length."""
    length, place = _matroska_number(head, 4)
    place += length
    if head[place : place + 4] != b"\x18\x53\x80\x67":
        return 0
    length, start = _matroska_number(head, place + 4)
    unknown = (1 << 7 * (start - place - 4)) - 1
    return 0 if length == unknown else start + length


def _matroska_number(data: bytes, place: int) -> tuple[int, int]:
    """Return a number whose first byte has as many leading zeros as bytes follow, and the place after it."""
    count = 9 - data[place].bit_length()
    value = int.from_bytes(data[place : place + count]) & ((1 << 7 * count) - 1)
    return value, place + count
