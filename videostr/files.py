"""Files that are the old one or the new one, whatever happens meanwhile: a full disk, a kill, a power cut."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from videostr.errors import StorageError

ANOTHER = "or name a folder on another file system"
REMEDIES = {
    errno.ENOSPC: f"free space there (`df -h` and `df -i` show what is left), {ANOTHER}",
    errno.EDQUOT: f"free space there or raise the quota, {ANOTHER}",
    errno.EFBIG: f"raise the limit on the size of a file (`ulimit -f`), {ANOTHER}",
    errno.EROFS: f"mount it for writing, {ANOTHER}",
    errno.EACCES: "give this user the right to it (`ls -ld` shows owner and mode), or name another folder",
    errno.EPERM: "give this user the right to it (`ls -ld`, `lsattr`), or name another folder",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOTDIR: "a file has the name of a folder; rename it, or name another folder",
    errno.EEXIST: "a file has the name of a folder; rename it, or name another folder",
    errno.EISDIR: "a folder has the name of a file; rename it, or name another folder",
    errno.ELOOP: "a symbolic link leads to itself; remove it, or name another folder",
    errno.EMFILE: "raise the limit on open files (`ulimit -n`)",
    errno.ENFILE: "too many files are open on this machine; raise fs.file-max",
    **dict.fromkeys(
        (errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ENODEV, errno.ENXIO, errno.EREMOTEIO, errno.EUCLEAN),
        f"the disk or the network file system fails (`dmesg` says more); repair or remount it, {ANOTHER}",
    ),
}
"""What helps, by error number; other errors are not about storage."""
ERRNO_IN_TEXT = re.compile(r"(?:os error|errno) (\d+)", re.IGNORECASE)
SHORT_WRITE = re.compile(r"\d+ requested and \d+ written")
"""What NumPy says of a full disk."""


def storage_error(error: Exception, path: Path | str) -> StorageError | None:
    """Return the one-line form of an error of the storage, with path and remedy; None for an error of another kind.

    Args:
        error: an `OSError`, or what a library made of one: safetensors and pyarrow state its number in the text.
        path: the file or folder concerned.
    """
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (found := ERRNO_IN_TEXT.search(str(error))):
        number = int(found[1])
    if number is None and SHORT_WRITE.search(str(error)):
        number = errno.ENOSPC
    if number not in REMEDIES:
        return None
    return StorageError(f"{path}: {os.strerror(number)}", remedy=REMEDIES[number])


@contextmanager
def storage(path: Path | str) -> Iterator[None]:
    """Raise errors of the storage as `StorageError` about `path`."""
    try:
        yield
    except Exception as error:  # safetensors and tokenizers raise types of their own
        if (problem := storage_error(error, path)) is None:
            raise
        raise problem from error


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Raise errors of writing a file as `StorageError`, also that its folder is gone: who writes has made it."""
    with storage(path):
        try:
            yield
        except FileNotFoundError as error:
            if path.parent.is_dir():
                raise
            raise StorageError(
                f"{path}: its folder is gone: it was deleted or renamed, or its file system is not mounted",
                remedy="put it back, or name another folder",
            ) from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A scratch file to write; it takes the name `path` once it is on the disk, and is dropped upon an error.

    Raises:
        StorageError: it cannot be written; the old file is as it was.
    """
    scratch = path.with_name(f".{path.name}.writing")
    with _writing(path):
        try:
            yield scratch
            sync_to_disk(scratch)
            scratch.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                scratch.unlink(missing_ok=True)
            raise


def sync_to_disk(path: Path) -> None:
    """Force a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(path: Path) -> None:
    """Make a folder with those above it; one that exists is kept.

    Raises:
        StorageError: it cannot be made.
    """
    with storage(path):
        path.mkdir(parents=True, exist_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file, in UTF-8 under every locale.

    Raises:
        StorageError: it cannot be written; the old file is as it was.
    """
    with replacing(path) as scratch:
        scratch.write_bytes(text.encode(errors="replace"))  # a model may write half a surrogate pair


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file; raises as `write_text` does."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def append_line(path: Path, line: str) -> None:
    """Append a line to a text file: all of it, or nothing.

    Raises:
        StorageError: it cannot be written; the file is as it was.
    """
    with _writing(path), path.open("ab", buffering=0) as file:
        end, rest = file.tell(), memoryview(f"{line}\n".encode())
        try:
            while rest:
                rest = rest[file.write(rest) :]
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(end)
            raise


def keep_lines(path: Path, keep: Callable[[Any], bool]) -> list[Any]:
    """Drop lines of a JSON Lines file that are not to be kept, and such as were cut by a kill or a full disk.

    Returns:
        The values of the lines that are left; none where there is no file.

    Raises:
        StorageError: the file cannot be read or written.
    """
    with storage(path):
        if not path.exists():
            return []
        text = path.read_text(encoding="utf-8", errors="replace")
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
        write_text(path, left)
    return [value for _, value in kept]
