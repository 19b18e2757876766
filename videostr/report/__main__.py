"""`python -m videostr.report RUN_DIR` (re)writes RUN_DIR/report.html, also while the run goes on."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from videostr.errors import VideoStrError
from videostr.report.page import write_report


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 1 when the folder is not a run's."""
    parser = argparse.ArgumentParser(
        prog="python -m videostr.report", description="(Re)write a run's HTML report."
    )
    parser.add_argument("run_dir", help="folder of the run, e.g. runs/demo")
    try:
        path = write_report(parser.parse_args(arguments).run_dir)
    except VideoStrError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
