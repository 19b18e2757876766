"""Loggers: what the real libraries wrote is read back, a resumed run continues in the same one, and none can stop a run."""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import re
import struct
import threading
import time
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from videostr import loggers
from videostr.config.schema import Config
from videostr.config.sections import LoggingConfig, MlflowConfig, Run, WandbConfig
from videostr.errors import ConfigError
from videostr.loggers import Background, Loggers, require
from videostr.run_folder import RunFolder

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"
NAME = """a#b%20&c=1,d:'e' "ü" [x]* $HOME 実験 🚀"""
"""A valid `run.name`, which all loggers must take."""
FIRST = [{"step": 1, "reward/total": 0.25, "lr": 1e-6}, {"step": 2, "reward/total": 0.5, "lr": 2e-6}]
AGAIN = [{"step": 2, "reward/total": 0.75, "lr": 3e-6}]


def config_of(folder: Path, **logging_: Any) -> Config:
    config = Config(run=Run(name=NAME, dir=str(folder)), logging=LoggingConfig(**logging_))
    config.model.path, config.data.train = "m", "d"
    return config


def play(config: Config, step: int, rows: list[dict[str, float]], done: bool) -> RunFolder:
    """One start of a run that continues after `step`."""
    folder = RunFolder(config)
    folder.rewind(step)
    for row in rows:
        folder.metrics(row)
    folder.scalar("heldout/greedy_total", 0.125, rows[-1]["step"])
    folder.close(done)
    assert not folder.loggers.failures()
    return folder


def test_tensorboard_drops_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    play(config, 0, FIRST, done=False)
    folder = play(config, 1, AGAIN, done=True)
    events = EventAccumulator(str(folder.path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("reward/total")] == [(1, 0.25), (2, 0.75)]
    assert events.Scalars("heldout/greedy_total")[-1].value == 0.125


def test_without_tensorboard_there_is_none(tmp_path: Path) -> None:
    folder = play(config_of(tmp_path, tensorboard=False), 0, FIRST, done=True)
    assert list((folder.path / "tensorboard").iterdir()) == []
    assert len((folder.path / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_run_that_goes_back_while_it_lasts_drops_what_came_after(tmp_path: Path) -> None:
    folder = RunFolder(config_of(tmp_path))
    folder.rewind(0)
    for row in FIRST:
        folder.metrics(row)
    folder.rewind(1)
    folder.metrics(AGAIN[0])
    folder.close()
    events = EventAccumulator(str(folder.path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("reward/total")] == [(1, 0.25), (2, 0.75)]


# ------------------------------------------------------------------------------------------ the real libraries


def wandb_records(file: Path) -> Iterator[Any]:
    """Records of a file of W&B: blocks of 32 KiB of chunks, as LevelDB's logs, after a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    data, at, parts = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last chunk
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
def test_wandb_offline_holds_the_figures_and_a_resumed_run_has_the_same_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    wandb = WandbConfig(enabled=True, project="p", entity="team", group="seeds", mode="offline")
    config = config_of(tmp_path, wandb=wandb)
    with caplog.at_level(logging.INFO, "videostr"):
        play(config, 0, FIRST, done=False)
        folder = play(config, 1, AGAIN, done=True)
    importlib.import_module(
        "wandb"
    ).teardown()  # as at the end of the process: the file is written after `finish`

    files = sorted(
        (folder.path / "wandb").glob("offline-run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime
    )
    assert len(files) == 2
    assert f"wandb sync {files[0].parent}" in caplog.text
    rows, runs, ends = [], [], []
    for file in files:
        records = list(wandb_records(file))
        runs += [record.run for record in records if record.WhichOneof("record_type") == "run"]
        ends += [record.exit.exit_code for record in records if record.WhichOneof("record_type") == "exit"]
        for record in records:
            if record.WhichOneof("record_type") == "history":
                items = {
                    item.key or item.nested_key[0]: json.loads(item.value_json)
                    for item in record.history.item
                }
                rows.append({key: value for key, value in items.items() if key[0] != "_"})
    held = {"step": 2, "heldout/greedy_total": 0.125}
    assert rows == [*FIRST, held, *AGAIN, held]
    kept = (folder.path / "wandb_run_id").read_text().strip()
    assert {(run.run_id, run.display_name, run.project, run.entity, run.run_group) for run in runs} == {
        (kept, NAME, "p", "team", "seeds")
    }
    sections = {update.key: json.loads(update.value_json) for update in runs[0].config.update}
    assert sections["model"]["path"] == "m"
    assert ends == [1, 0]


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
def test_wandb_without_a_key_is_told_the_remedy_and_does_not_ask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    folder = RunFolder(config_of(tmp_path, wandb=WandbConfig(enabled=True)))
    for row in FIRST:
        folder.metrics(row)
    folder.close()
    assert folder.loggers.failures() == {"logger_wandb": 2}
    assert "no key; run `wandb login`, set WANDB_API_KEY, or set logging.wandb.mode=offline" in caplog.text


needs_mlflow = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("mlflow", *loggers.DATABASE)),
    reason="mlflow-skinny, sqlalchemy or alembic is not installed",
)


@needs_mlflow
def test_mlflow_holds_the_figures_and_a_resumed_run_goes_on_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    config = config_of(tmp_path, mlflow=MlflowConfig(enabled=True, experiment="first"))
    folder = play(config, 0, FIRST, done=False)
    uri = f"sqlite:///{folder.path / 'mlflow.db'}"
    client = MlflowClient(uri, registry_uri=uri)
    run_id = (folder.path / "mlflow_run_id").read_text().strip()
    assert client.get_run(run_id).info.status == "KILLED"
    play(config, 1, AGAIN, done=True)

    experiment = client.get_experiment_by_name("first")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_id, run.info.run_name, run.info.status) == (run_id, NAME, "FINISHED")
    assert run.data.params["learner.betas"] == "[0.9, 0.999]"
    assert len(run.data.params) > 100
    history = client.get_metric_history(run_id, "reward/total")
    assert sorted((m.step, m.value) for m in history) == [(1, 0.25), (2, 0.5), (2, 0.75)]
    assert run.data.metrics["reward/total"] == 0.75
    assert run.data.metrics["heldout/greedy_total"] == 0.125

    other = f"sqlite:///{tmp_path / 'other.db'}"  # where the run's id is not known
    play(config_of(tmp_path, mlflow=MlflowConfig(enabled=True, tracking_uri=other)), 2, AGAIN, done=True)
    another_id = (folder.path / "mlflow_run_id").read_text().strip()
    assert another_id != run_id
    assert MlflowClient(other, registry_uri=other).get_run(another_id).data.metrics["reward/total"] == 0.75


# -------------------------------------------------------------------------------------------------- what goes wrong


class Broken:
    """Takes the first row, raises from then on."""

    def __init__(self, error: BaseException) -> None:
        self.rows: list[Mapping[str, float]] = []
        self.error = error
        self.closed: list[bool] = []

    def log(self, values: Mapping[str, float], step: int) -> None:
        if self.rows:
            raise self.error
        self.rows.append(values)

    def close(self, done: bool) -> None:
        self.closed.append(done)


@pytest.mark.parametrize("error", [ConnectionError("no\n  server"), SystemExit(3)])
def test_a_logger_that_fails_is_told_once_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    all_of_them, broken, whole = (
        Loggers(config_of(tmp_path, tensorboard=False), tmp_path),
        Broken(error),
        Broken(error),
    )
    all_of_them.add("broken", lambda _: broken)
    all_of_them.add("whole", lambda _: whole)
    all_of_them.log({"a": 1.0}, 1)
    for step in (2, 3, 4):
        all_of_them._all[0].log({"a": 1.0}, step)
    all_of_them.close(done=True)
    assert all_of_them.failures() == {"logger_broken": 3}
    assert (broken.closed, whole.closed, whole.rows) == ([True], [True], [{"a": 1.0}])
    (told,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert told.startswith(
        f"logger broken failed: {type(error).__name__}: {' '.join(str(error).split())}; the run continues"
    )
    assert "failures/logger_broken" in told


def test_a_logger_that_cannot_be_opened_is_tried_again_with_the_next_row(tmp_path: Path) -> None:
    tries: list[int] = []
    opened = Broken(ValueError())

    def make(step: int) -> Broken:
        tries.append(step)
        if len(tries) < 3:
            raise OSError("not yet")
        return opened

    logger = Background("late", make)
    logger.rewind(7)
    for step in (8, 9, 10):
        logger.log({"a": step}, step)
    logger.close(done=False)
    logger.join(10)
    assert tries == [7, 7, 7]
    assert logger.failed == 2
    assert opened.rows == [{"a": 10}]


def test_a_run_does_not_wait_for_a_slow_logger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(loggers, "WAITING", 5)
    monkeypatch.setattr(loggers, "CLOSE_S", 0.2)
    go, seen = threading.Event(), []

    class Slow:
        def log(self, values: Mapping[str, float], step: int) -> None:
            go.wait(30)
            seen.append(step)

        def close(self, done: bool) -> None:
            pass

    all_of_them = Loggers(config_of(tmp_path, tensorboard=False), tmp_path)
    all_of_them.add("slow", lambda _: Slow())
    began = time.monotonic()
    all_of_them.log({"a": 0}, 0)
    while all_of_them._all[0]._waiting.qsize():
        time.sleep(0.01)
    for step in range(1, 10):
        all_of_them.log({"a": step}, step)
    assert all_of_them.failures() == {"logger_slow": 4}
    all_of_them.close(done=True)
    assert time.monotonic() - began < 5
    assert all_of_them.failures() == {"logger_slow": 5}
    go.set()
    all_of_them._all[0].join(10)
    assert seen == [0, 1, 2, 3, 4, 5]


EXTRAS = tomllib.loads(PYPROJECT.read_text())["project"]["optional-dependencies"]


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        (
            LoggingConfig(wandb=WandbConfig(enabled=True)),
            ["logging.wandb.enabled = true: wandb cannot", "pip install wandb "],
        ),
        (
            LoggingConfig(mlflow=MlflowConfig(enabled=True)),
            [
                "logging.mlflow.enabled = true: mlflow, sqlalchemy, alembic",
                "pip install mlflow-skinny sqlalchemy alembic ",
            ],
        ),
        (
            LoggingConfig(mlflow=MlflowConfig(enabled=True, tracking_uri="http://127.0.0.1:5000")),
            ["logging.mlflow.enabled = true: mlflow cannot", "pip install mlflow-skinny "],
        ),
    ],
)
def test_a_logger_that_is_not_installed_is_refused_with_the_remedy(
    chosen: LoggingConfig, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError) as caught:
        require(chosen)
    for word in words:
        assert word in str(caught.value)
    (named,) = re.findall(r"extra `(\w+)`", str(caught.value))
    packages = set(re.split(r" \(", str(caught.value).split("pip install ")[1])[0].split())
    assert packages <= {re.split(r"[<>=]", requirement)[0] for requirement in EXTRAS[named]}


def test_what_is_not_asked_for_need_not_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    require(LoggingConfig())
