"""Every answer that a model ever gave here, by what determines it: nothing is asked twice, whatever was killed in between.

In: a key (digest of model, prompt, frames and sampling) and an answer. Out: the answer of a key. One SQLite file; answers are on
disk when `put` returns, which another thread may call.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from videostr.digests import json_digest
from videostr.errors import RunFolderError, StorageError
from videostr.files import make_folder

BUSY_S = 60.0
"""Longest wait for another evaluation that writes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came back for one question."""

    text: str
    """Decoded, without special tokens."""
    finish_reason: str
    """Name of a `FinishReason`: STOP, LENGTH, ABORT."""
    prompt_tokens: int
    """Vision tokens included."""
    completion_tokens: int


def key_of(**parts: Any) -> str:
    """Return the digest of everything that determines an answer, hex."""
    return json_digest(parts)


def writable(text: str) -> str:
    """Return a text as UTF-8 can hold it: each lone surrogate, which JSON may bring, becomes U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class Answers:
    """A context manager around the file; several processes may use it."""

    def __init__(self, path: Path) -> None:
        """Open or make it.

        Raises:
            RunFolderError: it is not a file of answers.
            StorageError: it cannot be opened or written.
        """
        self.path = path
        make_folder(path.parent)
        try:
            self._db = sqlite3.connect(path, timeout=BUSY_S, check_same_thread=False)
            self._db.execute(
                "create table if not exists answers (key text primary key, text text, finish_reason text, "
                "prompt_tokens integer, completion_tokens integer)"
            )
        except sqlite3.OperationalError as error:
            raise self._problem(error) from error
        except sqlite3.DatabaseError as error:
            raise RunFolderError(
                f"{path}: holds no answers ({error})", remedy="move it away to ask again"
            ) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._db.close()

    def __len__(self) -> int:
        (count,) = self._db.execute("select count(*) from answers").fetchone()
        return int(count)

    def get(self, key: str) -> Answer | None:
        """Return the answer of a key, or None."""
        row = self._db.execute(
            "select text, finish_reason, prompt_tokens, completion_tokens from answers where key = ?", (key,)
        ).fetchone()
        if row is None:
            return None
        return Answer(text=row[0], finish_reason=row[1], prompt_tokens=row[2], completion_tokens=row[3])

    def put(self, answers: Mapping[str, Answer]) -> None:
        """Keep answers by key, their texts as `writable` gives them, with one wait for the disk; the first one of a key stays.

        Raises:
            StorageError: they cannot be written; then none is.
        """
        rows = [
            (key, *astuple(replace(answer, text=writable(answer.text)))) for key, answer in answers.items()
        ]
        try:
            with self._db:
                self._db.executemany("insert or ignore into answers values (?, ?, ?, ?, ?)", rows)
        except sqlite3.OperationalError as error:
            raise self._problem(error) from error

    def _problem(self, error: sqlite3.OperationalError) -> StorageError:
        return StorageError(
            f"{self.path}: {error}",
            remedy="free space, give this user the right to write there, or name another folder (dir)",
        )
