"""`scale.json` of a run folder: the number of rollout workers that a user requested during the run.

Written by `python -m videostr.scale`; the driver reads it every few seconds, and after a restart.
"""

from __future__ import annotations

import json
from pathlib import Path

from videostr.errors import ConfigError
from videostr.files import write_json

FILE = "scale.json"


def write_target_size(run_folder: Path, rollout_workers: int) -> None:
    """Request a number of rollout workers.

    Raises:
        ConfigError: the run does not exist, or the number is below 1.
    """
    if not (run_folder / "config.yaml").is_file():
        raise ConfigError(
            f"{run_folder}: no run folder (it has no config.yaml)", remedy="give one such as runs/NAME"
        )
    if rollout_workers < 1:
        raise ConfigError(
            f"--rollout-workers = {rollout_workers}: must be at least 1", remedy="give a larger number"
        )
    write_json(run_folder / FILE, {"rollout_workers": rollout_workers})


def read_target_size(run_folder: Path) -> int | None:
    """Return the number of rollout workers that was requested; None where it is left to the config.

    Raises:
        ConfigError: the file is damaged.
    """
    path = run_folder / FILE
    if not path.exists():
        return None
    try:
        size = json.loads(path.read_text(encoding="utf-8"))["rollout_workers"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path}: not readable ({error!r})", remedy="write it again with python -m videostr.scale"
        ) from None
    if not isinstance(size, int) or size < 1:
        raise ConfigError(
            f"{path}: rollout_workers = {size!r}: must be a whole number, at least 1",
            remedy="write it again with python -m videostr.scale",
        )
    return size
