"""Change the number of rollout workers of a run while it runs: `python -m videostr.scale RUN_DIR --rollout-workers N`.

The request is stored in the run folder, where the driver finds it within seconds (`actors/scaling.py`), also after a
restart. Workers beyond `rollout.num_workers` wait until the cluster has room for them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from videostr.command import command, run_main, typed
from videostr.config.sections import Count
from videostr.target_size import write_target_size


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m videostr.scale", description=__doc__)
    parser.add_argument("run_folder", type=Path, help="such as runs/NAME")
    parser.add_argument("--rollout-workers", type=typed(Count), required=True, metavar="N")
    options = parser.parse_args(arguments)
    write_target_size(options.run_folder, options.rollout_workers)
    return 0


if __name__ == "__main__":
    run_main(main)
