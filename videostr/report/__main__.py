"""`python -m videostr.report RUN_DIR` (re)writes RUN_DIR/report.html, also during the run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from videostr.command import command, run_main
from videostr.report.page import write_report
from videostr.report.viewer import FRAMES_MIB
from videostr.run_data import MAX_TRACES


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m videostr.report", description="(Re)write a run's HTML report."
    )
    parser.add_argument("run_dir", help="folder of the run, e.g. runs/demo")
    parser.add_argument(
        "--max-traces",
        type=int,
        default=MAX_TRACES,
        help="most dumped rollouts in the page; dumps beyond it are left out evenly over the run (default %(default)s)",
    )
    parser.add_argument(
        "--frames-mib",
        type=float,
        default=FRAMES_MIB,
        help="most MiB of video frames in the page (default %(default)s)",
    )
    options = parser.parse_args(arguments)
    path = write_report(options.run_dir, max_traces=options.max_traces, frames_mib=options.frames_mib)
    sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    run_main(main)
