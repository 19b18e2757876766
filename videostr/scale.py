"""Add rollout workers to a running run, or take some out: `python -m videostr.scale RUN_DIR --rollout-workers N`.

Stores the target size in the run folder, where the driver finds it within seconds (`actors/scaling.py`), also after a
restart. Workers beyond `rollout.num_workers` wait until the cluster has room for them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from videostr.console import run_command, run_main
from videostr.errors import ConfigError
from videostr.files import write_json

TARGET = "scale.json"


def write_target_size(run_folder: Path, rollout_workers: int) -> None:
    """Request a number of rollout workers.

    Raises:
        ConfigError: there is no such run, or the number is below 1.
    """
    if not (run_folder / "config.yaml").is_file():
        raise ConfigError(f"{run_folder}: no run folder (it has no config.yaml); give one such as runs/NAME")
    if rollout_workers < 1:
        raise ConfigError(f"--rollout-workers = {rollout_workers}: must be at least 1")
    write_json(run_folder / TARGET, {"rollout_workers": rollout_workers})


def read_target_size(run_folder: Path) -> int | None:
    """Return the number of rollout workers that was requested; None where the config decides.

    Raises:
        ConfigError: the file is damaged.
    """
    path = run_folder / TARGET
    if not path.exists():
        return None
    try:
        size = json.loads(path.read_text(encoding="utf-8"))["rollout_workers"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path}: not readable ({error!r}); write it again with python -m videostr.scale"
        ) from None
    if not isinstance(size, int) or size < 1:
        raise ConfigError(f"{path}: rollout_workers = {size!r}, must be a number from 1 on")
    return size


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return exit status 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m videostr.scale", description=__doc__)
    parser.add_argument("run_folder", type=Path, help="such as runs/NAME")
    parser.add_argument("--rollout-workers", type=int, required=True, metavar="N")
    options = parser.parse_args(arguments)

    def work() -> int:
        write_target_size(options.run_folder, options.rollout_workers)
        return 0

    return run_command(work)


if __name__ == "__main__":
    run_main(main)
