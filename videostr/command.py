"""What all commands share: errors of the project become a line on standard error and an exit status.

Exit status: 0 done, 1 failed on the way, 2 bad input, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import functools
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, Protocol

import msgspec

from videostr.config.values import value_of
from videostr.console import show_any_character
from videostr.errors import VideoStrError, exit_status_of
from videostr.files import storage_error

STOPPED = 130
log = logging.getLogger("command")
"""Of log files; the terminal has the line already."""
log.addHandler(logging.NullHandler())


class Main(Protocol):
    """A command."""

    def __call__(self, arguments: Sequence[str] | None = None, /) -> int:
        """Return the exit status; `arguments` are those of the process unless given."""


def command(main: Callable[[Sequence[str] | None], int]) -> Main:
    """Return a command that turns the project's errors, and those of its files, into message, remedy and exit status."""

    @functools.wraps(main)
    def run(arguments: Sequence[str] | None = None, /) -> int:
        for stream in (sys.stdout, sys.stderr):
            show_any_character(stream)
        try:
            return main(arguments)
        except SystemExit as end:  # of argparse, which has written its message
            return end.code if isinstance(end.code, int) else 1
        except VideoStrError as error:
            return _end(error)
        except BrokenPipeError:  # who reads the output, such as `head`, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is flushed at the end
            return 1
        except OSError as error:
            if (problem := storage_error(error, error.filename or Path.cwd())) is None:
                raise
            return _end(problem)
        except KeyboardInterrupt:
            sys.stderr.write("stopped\n")
            return STOPPED

    return run


def config_parser(prog: str, description: str | None) -> argparse.ArgumentParser:
    """Return the parser of a command that is described by a config: `--config FILE key=value ...`."""
    parser = argparse.ArgumentParser(prog=prog, description=description)
    parser.add_argument("--config", required=True, metavar="FILE", help="such as those in configs/")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="in place of the file's, e.g. run.name=a"
    )
    return parser


def typed(annotation: Any) -> Callable[[str], Any]:
    """Return what reads an option's value, for argparse, which says what it must be; `annotation` as in a config."""

    def read(text: str) -> Any:
        try:
            return value_of(text, annotation)
        except msgspec.ValidationError as error:
            raise argparse.ArgumentTypeError(f"{text}: must be {error}") from None

    return read


def run_main(main: Main) -> NoReturn:
    """End this process with the exit status of a command, which runs in UTF-8 under every locale.

    Names of files and arguments have the encoding that Python was started with, so where that is another one it is started again.
    """
    if sys.getfilesystemencoding() != "utf-8" and not sys.flags.utf8_mode:
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
    sys.exit(main())


def _end(error: VideoStrError) -> int:
    sys.stderr.write(f"error: {error}\n")
    log.error("%s", error)
    return exit_status_of(error)
