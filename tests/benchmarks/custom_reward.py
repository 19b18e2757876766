"""A reward that differs from completion to completion, so that every group carries a gradient."""

from __future__ import annotations

from zlib import crc32

from videostr.types import Record, Trace


def reward(trace: Trace, record: Record) -> float:
    """A number in [0, 1) that depends on what stands in the trace."""
    return crc32(repr(trace).encode()) / 2**32
