"""A run folder as the report needs it. Any piece may be missing or half written: the run may still go on."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from videostr.config import Config, load
from videostr.errors import ConfigError, DataError, RunFolderError
from videostr.report.traces import TraceRow, read_traces

MAX_DUMPS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class RunData:
    """Everything that was found."""

    folder: Path
    name: str
    config: Config | None
    config_text: str
    metrics: tuple[dict[str, Any], ...]
    """One flat mapping per step, ascending; nested objects are joined with "/"."""
    summary: dict[str, Any] | None
    """None while the run goes on."""
    quarantine: tuple[dict[str, Any], ...]
    dumps: tuple[tuple[int, list[TraceRow]], ...]
    """(step, rows) of the newest trace dumps, newest first."""
    updated: datetime | None
    """Last change of the metrics, UTC."""
    problems: tuple[str, ...]
    """What could not be read."""

    @property
    def frame_store(self) -> Path:
        """Folder of decoded frames."""
        stated = self.config.data.frame_store if self.config else ""
        return Path(stated) if stated else self.folder / "frames"

    def series(self, key: str) -> list[float | None]:
        """A metric per step; None where it is absent or not finite."""
        return [_finite(row.get(key)) for row in self.metrics]

    def failures(self) -> list[tuple[str, int]]:
        """Failures of the whole run by kind, most frequent first."""
        counts: Counter[str] = Counter()
        for row in self.metrics:
            for key, value in row.items():
                kind = key.removeprefix("failures/")
                if kind != key and (number := _finite(value)):
                    counts[kind] += int(number)
        return counts.most_common()


def read_run(folder: str | Path) -> RunData:
    """Read what there is.

    Raises:
        RunFolderError: no such folder, or nothing of a run in it.
    """
    folder = Path(folder)
    if not any((folder / name).exists() for name in ("config.yaml", "metrics.jsonl", "summary.json")):
        raise RunFolderError(
            f"{folder}: neither config.yaml nor metrics.jsonl nor summary.json is there; name a run folder"
        )
    problems: list[str] = []
    metrics_file = folder / "metrics.jsonl"
    by_step = {row["step"]: _flat(row) for row in _json_lines(metrics_file, problems) if "step" in row}
    config_file = folder / "config.yaml"
    return RunData(
        folder=folder,
        name=folder.resolve().name,
        config=_config(config_file, problems),
        config_text=config_file.read_text(errors="replace") if config_file.exists() else "",
        metrics=tuple(by_step[step] for step in sorted(by_step)),
        summary=_summary(folder / "summary.json", problems),
        quarantine=tuple(_json_lines(folder / "quarantine.jsonl", problems)),
        dumps=tuple(_dumps(folder / "traces", problems)),
        updated=datetime.fromtimestamp(metrics_file.stat().st_mtime, UTC) if metrics_file.exists() else None,
        problems=tuple(problems),
    )


def _config(path: Path, problems: list[str]) -> Config | None:
    try:
        return load(path)
    except ConfigError as error:
        problems.append(str(error))
        return None


def _summary(path: Path, problems: list[str]) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        summary: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        problems.append(f"{path}: not readable as JSON ({error})")
        return None
    return summary


def _json_lines(path: Path, problems: list[str]) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    lines = path.read_text(errors="replace").splitlines()
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except ValueError:
            if number < len(lines):  # the last line may be half written
                problems.append(f"{path}:{number}: not readable as JSON")
    return rows


def _dumps(folder: Path, problems: list[str]) -> list[tuple[int, list[TraceRow]]]:
    dumps = []
    for path in sorted(folder.glob("step_*.parquet"), reverse=True)[:MAX_DUMPS]:
        try:
            rows = read_traces(path)
        except DataError as error:
            problems.append(str(error))
            continue
        if rows:
            dumps.append((rows[0]["step"], rows))
    return dumps


def _flat(row: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in row.items():
        flat |= _flat(value, f"{prefix}{key}/") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _finite(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
