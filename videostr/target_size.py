"""`scale.json` of a run folder: the number of rollout workers that a user requested during the run.

Written by `python -m videostr.scale`; the driver reads it every few seconds, and after a restart.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from videostr.config.sections import Count
from videostr.errors import ConfigError
from videostr.files import write_json

FILE = "scale.json"


class _TargetSize(msgspec.Struct):
    rollout_workers: Count


def write_target_size(run_folder: Path, rollout_workers: int) -> None:
    """Request a number of rollout workers.

    Raises:
        ConfigError: the run does not exist.
    """
    if not (run_folder / "config.yaml").is_file():
        raise ConfigError(
            f"{run_folder}: no run folder (it has no config.yaml)", remedy="give one such as runs/NAME"
        )
    write_json(run_folder / FILE, {"rollout_workers": rollout_workers})


def read_target_size(run_folder: Path) -> int | None:
    """Return the number of rollout workers that was requested; None where it is left to the config.

    Raises:
        ConfigError: the file is damaged.
    """
    path = run_folder / FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=_TargetSize).rollout_workers
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path}: not readable ({error})", remedy="write it again with python -m videostr.scale"
        ) from None
