"""What an evaluation found, kept as `figures.json`.

In: figures of a run on a benchmark. Out: the file, and the run read from it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec

from videostr.bootstrap import Interval
from videostr.errors import DataError
from videostr.files import write_json

DIGITS = 12
"""Hexadecimal digits that are shown of a digest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """A run of a model on a benchmark."""

    name: str
    """What the run is called in tables."""
    benchmark: str
    mode: str
    """How the model was asked."""
    model: str
    """Path or id; "" where predictions came in a file."""
    digest: str
    """SHA-256 over the question files, hex."""
    settings: Mapping[str, str]
    """What else determines the result: digest of the model, prompt, frames, pixels, sampling, judge, ..."""
    intervals: Mapping[str, Interval]
    """By the figure's name, in the benchmark's order."""
    counts: Mapping[str, int]
    """`questions`, `answered` (those with a text), and by reason those that scored 0: the keys of `WHY`, and others.

    `unknown_ids` and `repeated_ids` are predictions, not questions."""
    baselines: Mapping[str, Mapping[str, float]]
    """Name ("chance", "constant") -> figure -> value."""

    def to_json(self, path: Path) -> None:
        """Write it; NaN becomes null."""
        write_json(path, _nulls(asdict(self)))

    @classmethod
    def from_json(cls, path: Path) -> Evaluated:
        """Read what `to_json` wrote.

        Raises:
            DataError: the file is missing, no JSON, or lacks a key or has another type there; names file and key.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            found = msgspec.convert(_nans(values), cls)
        except (OSError, ValueError) as error:  # msgspec's error is a ValueError
            raise DataError(
                f"{path}: not a result of an evaluation ({error})", remedy="evaluate again"
            ) from None
        lacking = [f"counts.{key}" for key in ("questions", "answered") if key not in found.counts]
        if lacking:
            raise DataError(f"{path}: lacks key {lacking[0]}", remedy="evaluate again")
        return found


def require_same_questions(runs: Sequence[Evaluated]) -> None:
    """What `compare` asks of its runs; call it before the comparisons are computed.

    Raises:
        DataError: the runs are of different benchmarks, or of different question files.
    """
    base, *others = runs
    for other in others:
        if base.benchmark != other.benchmark:
            raise DataError(
                f"{base.name} is of benchmark {base.benchmark}, {other.name} of {other.benchmark}: their figures cannot be "
                "compared",
                remedy="compare runs of one benchmark",
            )
        if base.digest != other.digest:
            raise DataError(
                f"{base.name} and {other.name} have different question files of {base.benchmark} "
                f"({base.digest[:DIGITS]} and {other.digest[:DIGITS]}): their figures cannot be compared",
                remedy="evaluate both with the same files",
            )


def _nulls(value: Any) -> Any:
    """NaN, which JSON does not have, as null; maps as dicts."""
    if isinstance(value, Mapping):
        return {key: _nulls(one) for key, one in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def _nans(value: Any) -> Any:
    """Return the inverse of `_nulls`."""
    if isinstance(value, dict):
        return {key: _nans(one) for key, one in value.items()}
    return math.nan if value is None else value
