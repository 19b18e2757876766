"""The folder of one run: resolved config, metrics, traces, quarantine, evaluations, logs.

In: what the loop reports. Out: files that `python -m videostr.report` and people read, written during the run.
"""

from __future__ import annotations

import json
import logging
import math
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from omegaconf import OmegaConf

from videostr.checkpoint import Checkpoints
from videostr.config.load import dump
from videostr.config.schema import RunConfig
from videostr.config.values import flat
from videostr.environment import FILE as ENVIRONMENT
from videostr.environment import environment
from videostr.errors import RunFolderError, TooManyBadRecords
from videostr.files import append_line, keep_lines, make_folder, storage, write_json, write_text
from videostr.heldout import Evaluation
from videostr.loggers import Loggers
from videostr.tasks import FileThread
from videostr.timeline import FILE as TIMELINE
from videostr.timeline import StepTimes, Timeline
from videostr.types import Failure, FailureKind

log = logging.getLogger(__name__)

MUTABLE_SECTIONS = frozenset({"evaluate", "logging", "placement", "sync"})
MUTABLE_KEYS = frozenset(
    {
        "run.resume",
        "run.dir",
        "train.steps",
        "train.checkpoint_every",
        "train.keep_checkpoints",
        "train.traces_every",
        *(f"rollout.{key}" for key in (
            "num_workers", "max_workers", "num_cpus", "threads", "start_timeout_s", "request_timeout_s", "health_check_s",
            "max_restarts",
        )),
        *(f"reward.{key}" for key in (
            "num_workers", "num_cpus", "deadline_s", "memory_gib", "endpoint", "token_file", "ca_file",
        )),
        *(f"learner.{key}" for key in (
            "num_ranks", "sequence_parallel", "zero_stage", "offload", "num_cpus", "threads", "max_row_tokens", "timeout_s",
            "max_restarts",
        )),
    }
)  # fmt: skip
"""What may change between the starts of one run; everything else changes what the run computes."""
PERMANENT = frozenset(
    {
        FailureKind.BAD_SHARD,
        FailureKind.BAD_ROW,
        FailureKind.BAD_VIDEO,
        FailureKind.BAD_PROMPT,
        FailureKind.PROMPT_TOO_LONG,
        FailureKind.REWARD_ERROR,
    }
)
"""Faults of the record itself: drawing it again would fail again."""


def run_folder(config: RunConfig) -> Path:
    """Return where a run lives."""
    return (Path(config.run.dir) / config.run.name).resolve()


class Quarantine:
    """`quarantine.jsonl`: every record that could not be used, with the reason; one line per record and kind."""

    def __init__(self, path: Path, max_bad_fraction: float) -> None:
        self.path = path
        self.max_bad_fraction = max_bad_fraction
        self.records = 0
        """Rows of the training set; set by `begin`."""
        self.counts: Counter[str] = Counter()
        """Failures of this process by kind, repeated ones too."""
        self._known: dict[tuple[str, str], int] = {}
        """Records lost, by id and kind."""
        for row in keep_lines(path, lambda _: True):
            self._known[row["record_id"], row["kind"]] = row["records"]

    def begin(self, records: int, failures: Sequence[Failure]) -> None:
        """Take the number of usable records, and add those that cannot be read; raises as `add` does."""
        self.records = records + sum(failure.records for failure in failures)
        for failure in failures:
            self.add(failure)

    def add(self, failure: Failure) -> None:
        """Count a failure, and write it down once.

        Raises:
            TooManyBadRecords: more than `data.max_bad_fraction` of the records are quarantined.
            StorageError: the file cannot be written.
        """
        self.counts[failure.kind.name.lower()] += 1
        key = (failure.record_id, failure.kind.name)
        if key not in self._known:
            self._known[key] = failure.records
            row = {**asdict(failure), "kind": failure.kind.name}
            append_line(self.path, json.dumps(row))
            log.warning("quarantined %s: %s (%s)", failure.record_id, failure.detail, failure.kind.value)
        bad = sum({record_id: records for (record_id, _), records in self._known.items()}.values())
        if bad > self.max_bad_fraction * self.records or bad >= self.records:
            raise TooManyBadRecords(
                f"{bad} of {self.records} records are quarantined, more than data.max_bad_fraction = "
                f"{self.max_bad_fraction}; the reasons stand in {self.path}",
                remedy="repair the data, or raise the limit",
            )

    def __contains__(self, record_id: str) -> bool:
        """Return whether the record itself is known to be unusable."""
        return any((record_id, kind.name) in self._known for kind in PERMANENT)


class RunFolder:
    """`runs/NAME` and its files.

    On an event loop, call its methods through `thread`.
    """

    def __init__(self, config: RunConfig) -> None:
        """Make the folder, or open it again.

        Raises:
            RunFolderError: it belongs to another config, or has a checkpoint and `run.resume` is never.
            StorageError: it cannot be written.
        """
        self.path = run_folder(config)
        self.checkpoints = Checkpoints(self.path / "checkpoints", config.train.keep_checkpoints)
        check_run_folder(config, self.checkpoints)
        for name in ("tensorboard", "traces", "checkpoints", "eval", "logs"):
            make_folder(self.path / name)
        write_text(self.path / "config.yaml", dump(config))
        write_json(self.path / ENVIRONMENT, environment())
        self.quarantine = Quarantine(self.path / "quarantine.jsonl", config.data.max_bad_fraction)
        self.frame_store = config.data.frame_store or str(self.path / "frames")
        make_folder(Path(self.frame_store))
        self.loggers = Loggers(config, self.path)
        self.timeline = Timeline()
        """For the pools to note what their workers do."""
        self.thread = FileThread("run")
        """Does all file work but that of checkpoints."""
        self._unwritten: deque[tuple[str, str]] = deque()
        """File and line, in order."""

    def rewind(self, step: int, resume: str = "auto") -> None:
        """Drop metrics, times, evaluations and traces of steps after `step`, and discard their checkpoints.

        `resume` is `run.resume`.

        Raises:
            StorageError: a file cannot be written.
        """
        self._unwritten.clear()
        for path in (self.path / "metrics.jsonl", self.path / TIMELINE):
            keep_lines(path, lambda row: isinstance(row, dict) and row.get("step", math.inf) <= step)
        for path in (*self.path.glob("eval/*.json"), *self.path.glob("traces/step_*.parquet")):
            number = path.stem.rpartition("_")[2]
            if number.isdecimal() and int(number) > step:
                with storage(path):
                    path.unlink()
        self.checkpoints.rewind(step, resume)
        if self.checkpoints.best() is None:
            self._find_best()
        self.loggers.rewind(step)

    def _find_best(self) -> None:
        """Find the best of the checkpoints that are left, by the evaluations during training."""
        for path in sorted(self.path.glob("eval/greedy_*.json")):
            number = path.stem.removeprefix("greedy_")
            value = Evaluation.read(path).merit
            if value is not None and (self.checkpoints.folder / f"step_{number}").is_dir():
                self.checkpoints.note_held_out(int(number), value)

    def metrics(self, values: Mapping[str, float]) -> None:
        """Append one step.

        Raises:
            StorageError: it cannot be written; `write_rest` tries again.
        """
        self.loggers.log(values, int(values["step"]))
        self._append("metrics.jsonl", json.dumps(values))

    def times(self, times: StepTimes) -> None:
        """Append what every worker did in a step; raises as `metrics` does."""
        self._append(TIMELINE, times.line())

    def write_rest(self) -> None:
        """Append what could not be written; raises as `metrics` does."""
        while self._unwritten:
            name, line = self._unwritten[0]
            append_line(self.path / name, line)
            self._unwritten.popleft()

    def unwritten(self) -> list[str]:
        """Return the names of the files that lack lines."""
        return sorted({name for name, _ in self._unwritten})

    def _append(self, name: str, line: str) -> None:
        self._unwritten.append((name, line))
        self.write_rest()

    def scalar(self, name: str, value: float, step: int) -> None:
        """Log one figure that is not part of a step's metrics."""
        self.loggers.log({name: value}, step)

    def close(self, done: bool = False) -> None:
        """End the loggers; `done` when the run has reached its last step."""
        self.loggers.close(done)


def check_run_folder(config: RunConfig, checkpoints: Checkpoints) -> None:
    """Check that a run may continue in its folder; a folder that does not exist may be made.

    Raises:
        RunFolderError: it belongs to another config, or has a checkpoint and `run.resume` is never.
    """
    folder = run_folder(config)
    path = folder / "config.yaml"
    if not path.exists():
        return
    old = dict(flat(OmegaConf.to_container(OmegaConf.load(path))))  # type: ignore[arg-type]  # a mapping, by `dump`
    new = dict(flat(asdict(config)))
    if old.keys() != new.keys():
        unknown, missing = sorted(old.keys() - new.keys()), sorted(new.keys() - old.keys())
        policy = (checkpoints.latest() or Path("checkpoints/step_N")) / "policy"
        raise RunFolderError(
            f"{folder}: written by another version of this program: its config.yaml has keys that this one does "
            f"not know ({', '.join(unknown) or 'none'}) and lacks others ({', '.join(missing) or 'none'})",
            remedy="continue with the version that wrote it, or "
            f"start a new run from its newest policy: run.name=NEW model.path={policy}",
        )
    differing = [
        f"{key} was {old[key]!r}, is {new[key]!r}"
        for key in sorted(old)
        if old[key] != new[key] and key not in MUTABLE_KEYS and key.split(".")[0] not in MUTABLE_SECTIONS
    ]
    if differing:
        raise RunFolderError(
            f"{folder}: belongs to a run with another config: {'; '.join(differing)}",
            remedy="choose another run.name, or delete the folder",
        )
    if config.run.resume == "never" and checkpoints.latest():
        raise RunFolderError(
            f"{folder}: holds a checkpoint, but run.resume = never",
            remedy="set run.resume=auto, choose another run.name, or delete the folder",
        )
