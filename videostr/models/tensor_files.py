"""Safetensors files: written with their digest, and read one tensor at a time.

The library's own writer returns no digest, so that every file would be read again, and makes files that nobody but their owner
may read; its reader maps files, whose pages then count as memory of the process. Format:
https://huggingface.co/docs/safetensors (a header in JSON, then the tensors end to end).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from videostr.files import storage

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
}
"""What the format calls them."""
TYPES = {name: dtype for dtype, name in DTYPES.items()}
BLOCK_BYTES = 8 * 2**20
"""Hashed and written at a time."""


def write_tensors(
    path: Path, tensors: dict[str, Tensor], metadata: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Write a safetensors file and force it to disk.

    Args:
        path: of the file; one that exists is overwritten.
        tensors: in host memory, by name; emptied, so that each is freed once it is written.
        metadata: for the header.

    Returns:
        Its size in bytes and its SHA-256.

    Raises:
        StorageError: it cannot be written.
    """
    digest, size = hashlib.sha256(), 0
    with storage(path), path.open("wb") as file:
        for block in _blocks(tensors, metadata or {}):
            digest.update(block)
            size += file.write(block)
        file.flush()
        os.fsync(file.fileno())
    return size, digest.hexdigest()


def _blocks(tensors: dict[str, Tensor], metadata: Mapping[str, str]) -> Iterator[bytes | memoryview]:
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # so that all are aligned
    yield _header({name: tensors[name] for name in names}, metadata)
    for name in names:
        content = tensors.pop(name).contiguous().view(-1).view(torch.uint8).numpy().data
        for start in range(0, len(content), BLOCK_BYTES):
            yield content[start : start + BLOCK_BYTES]


def _header(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt", **metadata}}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        entries[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text = text.ljust(8 * math.ceil(len(text) / 8))
    return len(text).to_bytes(8, "little") + text


class TensorFile:
    """A safetensors file.

    Attributes:
        names: of its tensors.
    """

    def __init__(self, path: Path) -> None:
        """Read the header.

        Raises:
            ValueError: the file is not one.
        """
        self._path = path
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            entries: dict[str, Any] = json.loads(file.read(length))
        self._begin = 8 + length
        self._entries = {name: entry for name, entry in entries.items() if name != "__metadata__"}
        self.names = tuple(self._entries)

    def read(self, name: str, room: Tensor | None = None) -> Tensor:
        """Return a tensor, on CPU; it lies in `room`, [bytes] uint8, where that is given and large enough."""
        entry = self._entries[name]
        start, end = entry["data_offsets"]
        if room is None or len(room) < end - start:
            room = torch.empty(end - start, dtype=torch.uint8)
        content = room[: end - start]
        with self._path.open("rb") as file:
            file.seek(self._begin + start)
            if file.readinto(content.numpy().data) != end - start:
                raise ValueError(f"{self._path}: {name} is cut off")
        return content.view(TYPES[entry["dtype"]]).view(entry["shape"])
