"""The run folder and the disks: whether the run may start there, and what it writes fits. In: a config. Out: findings."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from videostr.checkpoint import Checkpoints
from videostr.config.schema import Config
from videostr.errors import RunFolderError, StorageError
from videostr.lock import find_holder
from videostr.preflight.findings import Context, Finding, fail, from_error, ok, warn
from videostr.run_folder import check_run_folder, run_folder

SPARE = 1.5
"""Free disk below this many times the need is a warning."""


def check_run(config: Config) -> Finding:
    """Return whether the run may start or continue in its folder: no other process uses it, and it belongs to this config."""
    name, folder = "run folder", run_folder(config)
    checkpoints = Checkpoints(folder / "checkpoints", config.train.keep_checkpoints)
    try:
        if (holder := find_holder(folder)) is not None:
            return fail(
                name, f"{folder}: in use by {holder}", "wait until that ends, or choose another run.name"
            )
        check_run_folder(config, checkpoints)
        newest = checkpoints.latest()
    except (RunFolderError, StorageError) as error:
        return from_error(name, error)
    return ok(
        name, f"{folder}: " + (f"continues from {newest.name}" if newest else "starts from the beginning")
    )


def check_disk(config: Config, context: Context) -> Iterator[Finding]:
    """Check whether checkpoints and decoded frames fit where they are written, together where that is one file system."""
    runs = existing(run_folder(config))
    frames = existing(Path(config.data.frame_store)) if config.data.frame_store else runs
    together = runs.stat().st_dev == frames.stat().st_dev
    need, parts = context.frame_bytes if together else 0.0, []
    if context.shapes:
        size = checkpoint_bytes(config, context.shapes.parameters, context.shapes.vision_parameters)
        need += kept(config) * size
        parts.append(f"{kept(config)} checkpoints of {_bytes(size)}")
    else:
        parts.append("checkpoints not counted, for the model is not known")
    if together and context.frame_bytes:
        parts.append(f"frames {_bytes(context.frame_bytes)}")
    yield _room("disk", "run.dir", runs, need, ", ".join(parts))
    if not together:
        yield _room(
            "disk for frames", "data.frame_store", frames, context.frame_bytes, "decoded frames of all clips"
        )


def checkpoint_bytes(config: Config, parameters: int, vision_parameters: int) -> float:
    """Return one checkpoint: weights in the config's type; for what is trained, master weights and two moments in float32."""
    trained = parameters - (vision_parameters if config.model.freeze_vision else 0)
    return parameters * (2 if config.model.dtype == "bfloat16" else 4) + trained * 3 * 4


def kept(config: Config) -> int:
    """Checkpoints on disk at a time: those kept, the one being written, the best."""
    return config.train.keep_checkpoints + 1 + (config.evaluate.every > 0)


def existing(path: Path) -> Path:
    """Return the path, or the nearest folder above it that is there."""
    path = path.resolve()
    while not path.is_dir():
        path = path.parent
    return path


def _room(name: str, key: str, folder: Path, need: float, explained: str) -> Finding:
    if not os.access(folder, os.W_OK):
        return fail(
            name,
            f"{folder} ({key}) cannot be written by user {os.getuid()}",
            f"change its owner, or set {key}; on Kubernetes set the pod's fsGroup",
        )
    free = shutil.disk_usage(folder).free
    found = f"{folder}: {_bytes(free)} free, the run takes {_bytes(need)} ({explained})"
    remedy = f"free space, set {key} to a larger file system, or lower train.keep_checkpoints"
    if free < need:
        return fail(name, found, remedy)
    return warn(name, found, remedy) if free < SPARE * need else ok(name, found)


def _bytes(number: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"
