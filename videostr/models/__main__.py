"""Commands on checkpoints: `python -m videostr.models untie IN OUT`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from videostr.console import run_command, run_main
from videostr.models.checkpoint import untie


def main(arguments: Sequence[str] | None = None) -> int:
    """Return exit status 0, or 2 on bad input."""
    parser = argparse.ArgumentParser(prog="python -m videostr.models", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser(
        "untie", help="copy a checkpoint with its output layer untied from the embeddings"
    )
    command.add_argument("source", metavar="IN", help="Hugging Face folder or hub id")
    command.add_argument("target", metavar="OUT", help="folder to write")
    options = parser.parse_args(arguments)

    def work() -> int:
        untie(options.source, options.target)
        return 0

    return run_command(work)


if __name__ == "__main__":
    run_main(main)
