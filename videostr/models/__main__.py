"""Commands on checkpoints: `python -m videostr.models untie IN OUT`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from videostr.command import command, run_main
from videostr.models.checkpoint import untie


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m videostr.models", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    copy = commands.add_parser(
        "untie", help="copy a checkpoint with its output layer untied from the embeddings"
    )
    copy.add_argument("source", metavar="IN", help="Hugging Face folder or hub id")
    copy.add_argument("target", metavar="OUT", help="folder to write")
    options = parser.parse_args(arguments)
    untie(options.source, options.target)
    return 0


if __name__ == "__main__":
    run_main(main)
