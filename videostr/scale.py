"""Add rollout workers to a run that goes on, or take some out: `python -m videostr.scale RUN_DIR --rollout-workers N`.

Leaves the wish in the run folder, where the driver finds it within seconds (`actors/scaling.py`), also when the run is
started again. Workers beyond `rollout.num_workers` wait until the cluster has room for them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from videostr.console import run_command, run_main
from videostr.errors import ConfigError
from videostr.files import write_json

WISH = "scale.json"


def write_wish(run_folder: Path, rollout_workers: int) -> None:
    """Ask for a number of rollout workers.

    Raises:
        ConfigError: there is no such run, or the number is below 1.
    """
    if not (run_folder / "config.yaml").is_file():
        raise ConfigError(f"{run_folder}: no run folder (it has no config.yaml); give one such as runs/NAME")
    if rollout_workers < 1:
        raise ConfigError(f"--rollout-workers = {rollout_workers}: must be at least 1")
    write_json(run_folder / WISH, {"rollout_workers": rollout_workers})


def read_wish(run_folder: Path) -> int | None:
    """The number of rollout workers that was asked for; None where it is left to the config.

    Raises:
        ConfigError: the file is damaged.
    """
    path = run_folder / WISH
    if not path.exists():
        return None
    try:
        wish = json.loads(path.read_text(encoding="utf-8"))["rollout_workers"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path}: not readable ({error!r}); write it anew with python -m videostr.scale"
        ) from None
    if not isinstance(wish, int) or wish < 1:
        raise ConfigError(f"{path}: rollout_workers = {wish!r}, must be a number from 1 on")
    return wish


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m videostr.scale", description=__doc__)
    parser.add_argument("run_folder", type=Path, help="such as runs/NAME")
    parser.add_argument("--rollout-workers", type=int, required=True, metavar="N")
    options = parser.parse_args(arguments)

    def work() -> int:
        write_wish(options.run_folder, options.rollout_workers)
        return 0

    return run_command(work)


if __name__ == "__main__":
    run_main(main)
