"""Files that are the old one or the new one, whatever happens meanwhile: a full disk, a kill, a power cut."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A scratch file to write; it takes the name `path` once it is on the disk, and is dropped upon an error."""
    scratch = path.with_name(f".{path.name}.writing")
    try:
        yield scratch
        sync_to_disk(scratch)
        scratch.replace(path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


def sync_to_disk(path: Path) -> None:
    """Force a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file."""
    with replacing(path) as scratch:
        scratch.write_text(json.dumps(value, indent=2) + "\n")


def keep_lines(path: Path, keep: Callable[[Any], bool]) -> list[Any]:
    """Drop lines of a JSON Lines file that are not to be kept, and such as were cut by a kill or a full disk.

    Returns:
        The values of the lines that are left; none where there is no file.
    """
    if not path.exists():
        return []
    text = path.read_text()
    kept = []
    for line in text.splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if keep(value):
            kept.append((line, value))
    left = "".join(line + "\n" for line, _ in kept)
    if left != text:  # or a whole last line lacks its end, and what is appended would join it
        with replacing(path) as scratch:
            scratch.write_text(left)
    return [value for _, value in kept]
