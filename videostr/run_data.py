"""A run folder, read back. Any piece may be missing or half written: the run may still be running."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from videostr.config.load import load_run
from videostr.config.schema import Config
from videostr.config.supervised import as_training
from videostr.environment import FILE as ENVIRONMENT_FILE
from videostr.errors import ConfigError, DataError, RunFolderError
from videostr.traces import TraceRow, read_traces, trace_count

MAX_TRACES = 20_000
"""Dumped rollouts that are read; of longer runs whole dumps are left out, evenly over the run."""
COSTS = ("tokens_sampled_again", "learner_lost_seconds")
"""Counters of `failures/` that are no failures, but what they cost."""


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
    """None during the run."""
    quarantine: tuple[dict[str, Any], ...]
    dumps: tuple[tuple[int, list[TraceRow]], ...]
    """(step, rows) of trace dumps, ascending."""
    dumps_left_out: int
    """Dumps that were not read because there are more than `max_traces` rollouts in all."""
    evaluations: tuple[tuple[int, dict[str, Any]], ...]
    """(step, values) of `eval/step_*.json`, ascending."""
    environment: dict[str, str] | None
    """What the run folder says of the machine and the versions that it ran on; None where it says nothing."""
    updated: datetime | None
    """Last change of the metrics, UTC."""
    problems: tuple[str, ...]
    """What could not be read."""

    @property
    def frame_store(self) -> Path:
        """Folder of decoded frames."""
        stated = self.config.data.frame_store if self.config else ""
        return Path(stated) if stated else self.folder / "frames"

    @property
    def is_asynchronous(self) -> bool:
        """Sampling overlaps with learning."""
        return self.config is not None and self.config.train.max_staleness > 0

    def series(self, key: str) -> list[float | None]:
        """Return a metric per step; None where it is absent or not finite."""
        return [_finite(row.get(key)) for row in self.metrics]

    def not_finite(self) -> dict[str, int]:
        """Return steps in which a metric is NaN or infinite, by its key; metrics that always are finite left out."""
        return dict(
            Counter(
                key
                for row in self.metrics
                for key, value in row.items()
                if isinstance(value, float) and not math.isfinite(value)
            )
        )

    def failures(self) -> list[tuple[str, int]]:
        """Return failures of the whole run by kind, most frequent first."""
        counts = Counter({kind: int(sum(new)) for kind, new in self.failures_by_step().items()})
        return [(kind, count) for kind, count in counts.most_common() if count]

    def failures_by_step(self) -> dict[str, list[float]]:
        """Return new failures of every step by kind.

        The metrics count them since the process started: a count below the one before it is that of a new process.
        """
        kinds = sorted({key for row in self.metrics for key in row if key.startswith("failures/")})
        found = {}
        for key in kinds:
            counts = [value or 0.0 for value in self.series(key)]
            pairs = zip([0.0, *counts], counts, strict=False)
            found[key.removeprefix("failures/")] = [
                now - before if now >= before else now for before, now in pairs
            ]
        return found


def read_run(folder: str | Path, *, max_traces: int = MAX_TRACES) -> RunData:
    """Read what there is.

    Args:
        folder: of the run.
        max_traces: most dumped rollouts to read; one dump is read whatever its size.

    Raises:
        RunFolderError: no such folder, or nothing of a run in it.
    """
    folder = Path(folder)
    if not any((folder / name).exists() for name in ("config.yaml", "metrics.jsonl", "summary.json")):
        raise RunFolderError(
            f"{folder}: neither config.yaml nor metrics.jsonl nor summary.json is there",
            remedy="name a run folder",
        )
    problems: list[str] = []
    metrics_file = folder / "metrics.jsonl"
    by_step = {row["step"]: _flat(row) for row in _json_lines(metrics_file, problems) if "step" in row}
    config_file = folder / "config.yaml"
    dumps, left_out = _dumps(folder / "traces", max_traces, problems)
    environment = _object(folder / ENVIRONMENT_FILE, problems)
    return RunData(
        folder=folder,
        name=folder.resolve().name,
        config=_config(config_file, problems),
        config_text=config_file.read_text(encoding="utf-8", errors="replace") if config_file.exists() else "",
        metrics=tuple(by_step[step] for step in sorted(by_step)),
        summary=_object(folder / "summary.json", problems),
        quarantine=tuple(_json_lines(folder / "quarantine.jsonl", problems)),
        dumps=tuple(dumps),
        dumps_left_out=left_out,
        evaluations=tuple(_evaluations(folder / "eval", problems)),
        environment=environment and {key: str(value) for key, value in environment.items()},
        updated=datetime.fromtimestamp(metrics_file.stat().st_mtime, UTC) if metrics_file.exists() else None,
        problems=tuple(problems),
    )


def _config(path: Path, problems: list[str]) -> Config | None:
    try:
        return as_training(load_run(path))
    except ConfigError as error:
        problems.append(str(error))
        return None


def _object(path: Path, problems: list[str]) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8", errors="replace"))
    except ValueError as error:
        problems.append(f"{path}: not readable as JSON ({error})")
        return None
    if isinstance(value, dict):
        return value
    problems.append(f"{path}: must be a JSON object")
    return None


def _json_lines(path: Path, problems: list[str]) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        try:
            value = json.loads(line)
        except ValueError:
            value = None
        if isinstance(value, dict):
            rows.append(value)
        elif number < len(lines):  # the last line may be half written
            problems.append(f"{path}:{number}: not readable as a JSON object")
    return rows


def _evaluations(folder: Path, problems: list[str]) -> list[tuple[int, dict[str, Any]]]:
    found = []
    for path in sorted(folder.glob("step_*.json")):
        step = path.stem.removeprefix("step_")
        if step.isdecimal() and (values := _object(path, problems)):
            found.append((int(step), values))
    return found


def _dumps(
    folder: Path, max_traces: int, problems: list[str]
) -> tuple[list[tuple[int, list[TraceRow]]], int]:
    """Dumps that hold at most `max_traces` rollouts, evenly over the run, and how many were left out."""
    counts: dict[Path, int] = {}
    for path in sorted(folder.glob("step_*.parquet")):
        try:
            counts[path] = trace_count(path)
        except DataError as error:
            problems.append(str(error))
    paths = list(counts)
    kept = paths
    while len(kept) > 1 and sum(counts[path] for path in kept) > max_traces:
        spaced = len(kept) - 1  # the last is always among them, the first while there are two
        kept = [paths[len(paths) - 1 - i * (len(paths) - 1) // max(spaced - 1, 1)] for i in range(spaced)][
            ::-1
        ]
    dumps = []
    for path in kept:
        try:
            rows = read_traces(path)
        except DataError as error:
            problems.append(str(error))
            continue
        if rows:
            dumps.append((rows[0]["step"], rows))
    return dumps, len(paths) - len(kept)


def _flat(row: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in row.items():
        flat |= _flat(value, f"{prefix}{key}/") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _finite(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
