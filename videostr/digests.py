"""SHA-256 of whatever needs a name or a check, in hexadecimal."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


def digest(content: bytes | memoryview | str) -> str:
    """Return the digest of bytes, or of a text's UTF-8."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def json_digest(value: Any) -> str:
    """Return the digest of a value's JSON, keys in order."""
    return digest(json.dumps(value, sort_keys=True))


def file_digest(path: Path) -> str:
    """Return the digest of a file's content, which is not held in memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_digest(folder: Path) -> str:
    """Return the digest of names and contents of a folder's files: the identity of a policy or a dataset."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return digest("\n".join(f"{path.name}:{file_digest(path)}" for path in files))
