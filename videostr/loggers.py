"""Where a step's figures go in addition to `metrics.jsonl`: TensorBoard, Weights & Biases, MLflow, Prometheus through Ray.

In: rows of numbers. Out: whatever the logger writes to. Each has a thread of its own, so that a run never waits for a server, and
fails alone: what it could not log is counted and logged once. Their libraries are imported there, and only when asked for.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import queue
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

from videostr.config.schema import RunConfig
from videostr.config.sections import LoggingConfig, MlflowConfig, WandbConfig
from videostr.config.values import flat
from videostr.errors import ConfigError
from videostr.files import write_text

log = logging.getLogger(__name__)
WAITING = 10_000
"""Rows that may wait for a slow logger; further ones are left out, and counted."""
MLFLOW_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""Neither usage statistics nor lines of its own on the terminal, unless the user's environment says so."""
CLOSE_S = 60.0
"""Longest time that the end of a run waits for its loggers."""
DATABASE = ("sqlalchemy", "alembic")
"""What MLflow needs to write to a database itself, without a server."""


class Logger(Protocol):
    """Takes figures; may block and raise. All calls come from one thread."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Figures of a step. A step may come again after a run went back to a checkpoint."""
        ...

    def close(self, done: bool) -> None:
        """End the logger with the run; `done` when the run is complete."""
        ...


Open = Callable[[int], Logger]
"""Makes a logger; takes the step after which it continues."""


class Background:
    """A logger in a thread of its own, which starts with the first call."""

    def __init__(self, name: str, make: Open, *, reopens: bool = False) -> None:
        """Name it.

        Args:
            name: as it stands in the config.
            make: opens the logger; called in the thread, again after a failure.
            reopens: whether the logger is opened again when the run goes back to a checkpoint.
        """
        self.name = name
        self.failed = 0
        """Rows that were not logged."""
        self._make = make
        self._reopens = reopens
        self._logger: Logger | None = None
        self._step = 0
        self._waiting: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name=f"logger-{name}", daemon=True)

    def rewind(self, step: int) -> None:
        """Take the next figures as those of the step after `step`."""
        self._put(lambda: self._rewind(step))

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log figures when those before them are logged; returns at once."""
        if self._waiting.qsize() >= WAITING:
            self._fail(f"{WAITING} rows wait for it already")
            return
        kept = dict(values)
        self._put(lambda: self._log(kept, step))

    def close(self, done: bool) -> None:
        """End it when all is logged; returns at once."""
        self._put(lambda: self._close(done))
        self._put(None)
        self._is_closing = True

    def join(self, timeout_s: float) -> None:
        """Wait until `close` has come to its end."""
        if self._thread.ident is None:
            return
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            self._fail("it has not ended in time, and what it has not sent is given up")

    def _put(self, work: Callable[[], None] | None) -> None:
        if self._is_closing:
            return
        self._waiting.put(work)
        if self._thread.ident is None:
            self._thread.start()

    def _run(self) -> None:
        while (work := self._waiting.get()) is not None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001  # whatever a logger raises, the run continues
                self._fail(f"{type(error).__name__}: {error}")

    def _rewind(self, step: int) -> None:
        self._step = step
        if self._reopens:
            self._close(done=False)

    def _log(self, values: Mapping[str, float], step: int) -> None:
        if self._logger is None:
            self._logger = self._make(self._step)
        self._logger.log(values, step)

    def _close(self, done: bool) -> None:
        logger, self._logger = self._logger, None
        if logger is not None:
            logger.close(done)

    def _fail(self, problem: str) -> None:
        self.failed += 1
        log.log(
            logging.WARNING if self.failed == 1 else logging.DEBUG,
            "logger %s failed: %s; the run continues, and failures/logger_%s counts what is not logged",
            self.name,
            " ".join(problem.split()),
            self.name,
        )


class Loggers:
    """All loggers of a run."""

    def __init__(self, config: RunConfig, folder: Path) -> None:
        """Open the loggers that the config asks for."""
        chosen = config.logging
        self._all: list[Background] = []
        if chosen.tensorboard:
            self.add("tensorboard", lambda step: TensorBoard(folder / "tensorboard", step), reopens=True)
        if chosen.wandb.enabled:
            self.add("wandb", lambda _: Wandb(chosen.wandb, folder, config))
        if chosen.mlflow.enabled:
            self.add("mlflow", lambda _: Mlflow(chosen.mlflow, folder, config))

    def add(self, name: str, make: Open, *, reopens: bool = False) -> Background:
        """Add one more, as for `Background`; it may be closed before the others."""
        self._all.append(Background(name, make, reopens=reopens))
        return self._all[-1]

    def rewind(self, step: int) -> None:
        """Continue the run after `step`."""
        for logger in self._all:
            logger.rewind(step)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Figures of a step; returns at once."""
        for logger in self._all:
            logger.log(values, step)

    def failures(self) -> Counter[str]:
        """Return `logger_NAME`: rows that were not logged."""
        return Counter({f"logger_{logger.name}": logger.failed for logger in self._all if logger.failed})

    def close(self, done: bool) -> None:
        """End all of them, and wait for it `CLOSE_S` seconds at most."""
        deadline = time.monotonic() + CLOSE_S
        for logger in self._all:
            logger.close(done)
        for logger in self._all:
            logger.join(max(0.0, deadline - time.monotonic()))


class TensorBoard:
    """Event files."""

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=step + 1)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """One scalar each."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self, done: bool) -> None:  # noqa: ARG002  # as `Logger` has it
        """Flush."""
        self._writer.close()


class Wandb:
    """A run of Weights & Biases; the same one after a resume (`wandb_run_id`).

    Its own step counter only grows, so curves are drawn over the figure `step`.
    """

    def __init__(self, config: WandbConfig, folder: Path, whole: RunConfig) -> None:
        import wandb

        if config.mode == "online" and not wandb.login(prompt=False):  # `init` would ask at the terminal
            raise ConfigError(
                "logging.wandb.mode = online: no key",
                remedy="run `wandb login`, set WANDB_API_KEY, or set logging.wandb.mode=offline",
            )
        self._run = wandb.init(
            project=config.project,
            entity=config.entity or None,
            group=config.group or None,
            name=whole.run.name,
            id=kept_id(folder / "wandb_run_id", lambda: secrets.token_hex(4)),
            resume="allow",
            mode=config.mode,
            dir=str(folder),
            config=asdict(whole),
            allow_val_change=True,
            settings=wandb.Settings(console="off", silent=True),
        )
        self._run.define_metric("*", step_metric="step")
        online = config.mode == "online"
        log.info(
            "Weights & Biases: %s", self._run.url if online else f"wandb sync {Path(self._run.dir).parent}"
        )

    def log(self, values: Mapping[str, float], step: int) -> None:
        """One row."""
        self._run.log({**values, "step": step})

    def close(self, done: bool) -> None:
        """Send what is left."""
        self._run.finish(exit_code=0 if done else 1)


class Mlflow:
    """A run of MLflow; the same one after a resume (`mlflow_run_id`). It keeps every value of a step that came twice."""

    def __init__(self, config: MlflowConfig, folder: Path, whole: RunConfig) -> None:
        for name, value in MLFLOW_QUIET.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        own = f"sqlite:///{folder / 'mlflow.db'}"
        uri = config.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or own
        self._client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        path = folder / "mlflow_run_id"
        try:
            self._id = self._client.get_run(kept_id(path, lambda: self._create(config, whole))).info.run_id
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            path.unlink()  # of another tracking server
            self._id = kept_id(path, lambda: self._create(config, whole))
        self._client.update_run(self._id, status="RUNNING")
        log.info("MLflow: run %s at %s", self._id, uri)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """One request."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(name, float(value), now, step) for name, value in values.items()]
        self._client.log_batch(self._id, metrics=metrics, synchronous=True)

    def close(self, done: bool) -> None:
        """State how it ended."""
        self._client.set_terminated(self._id, "FINISHED" if done else "KILLED")

    def _create(self, config: MlflowConfig, whole: RunConfig) -> str:
        from mlflow.entities import Param

        client = self._client
        experiment = client.get_experiment_by_name(config.experiment)
        experiment_id = (
            experiment.experiment_id if experiment else client.create_experiment(config.experiment)
        )
        run_id: str = client.create_run(experiment_id, run_name=whole.run.name).info.run_id
        parameters = [Param(key, str(value)) for key, value in flat(asdict(whole))]
        for start in range(0, len(parameters), 100):  # the most that a request may have
            client.log_batch(run_id, params=parameters[start : start + 100], synchronous=True)
        return run_id


def require(config: LoggingConfig) -> None:
    """Refuse loggers that are not installed here.

    Raises:
        ConfigError: names the key and what to install.
    """
    needed = []
    if config.wandb.enabled:
        needed.append(("wandb", "wandb", ("wandb",)))
    if config.mlflow.enabled:
        own = not config.mlflow.tracking_uri and "MLFLOW_TRACKING_URI" not in os.environ
        database = own or config.mlflow.tracking_uri.startswith("sqlite")
        needed.append(("mlflow", "mlflow-skinny", ("mlflow", *(DATABASE if database else ()))))
    for key, package, modules in needed:
        missing = [name for name in modules if importlib.util.find_spec(name) is None]
        if missing:
            packages = " ".join(package if name == key else name for name in missing)
            raise ConfigError(
                f"logging.{key}.enabled = true: {', '.join(missing)} cannot be imported",
                remedy=f"pip install {packages} (extra `{key}` of pyproject.toml has the versions), "
                f"or set logging.{key}.enabled=false",
            )


def kept_id(path: Path, make: Callable[[], str]) -> str:
    """Return the id in a file, made and written where there is none."""
    if not path.exists():
        write_text(path, make() + "\n")
    return path.read_text(encoding="utf-8").strip()
