"""What all commands share: lines on the terminal and in log files, and the exit status of an error.

Lines are written under every locale: a character that the terminal cannot show is escaped.
"""

from __future__ import annotations

import atexit
import contextlib
import io
import logging
import logging.handlers
import os
import queue
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TextIO

from videostr.errors import VideoStrError, exit_status_of
from videostr.files import storage, storage_error

log = logging.getLogger(__name__)
LAST_LINES_S = 5.0
"""Longest wait for a log file at the end of a process."""


def run_main(main: Callable[[], int]) -> NoReturn:
    """End this process with the exit status of a command, which runs in UTF-8 under every locale.

    Names of files and arguments have the encoding that Python was started with, so where that is another one it is started again.
    """
    if sys.getfilesystemencoding() != "utf-8" and not sys.flags.utf8_mode:
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
    sys.exit(main())


def run_command(work: Callable[[], int], say: Callable[[str], None] | None = None) -> int:
    """Return the exit status of a command; what its user can act on becomes one line.

    Args:
        work: the command; returns its exit status.
        say: takes the line; standard error unless given.
    """
    for stream in (sys.stdout, sys.stderr):
        show_any_character(stream)
    say = say or _to_standard_error
    try:
        return work()
    except VideoStrError as error:
        say(f"error: {error}")
        return exit_status_of(error)
    except OSError as error:
        if (problem := storage_error(error, error.filename or Path.cwd())) is None:
            raise
        say(f"error: {problem}")
        return exit_status_of(problem)
    except KeyboardInterrupt:
        say("stopped")
        return 130


def show_any_character(stream: TextIO) -> None:
    """Let a stream escape what its encoding lacks, instead of raising."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")


def log_to_console(stream: TextIO | None = None) -> None:
    """Show the project's own lines on standard output (or `stream`), everything else in the run's log files."""
    logging.captureWarnings(True)
    console = _Console(stream or sys.stdout)
    show_any_character(console.stream)
    console.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    ours = logging.getLogger("videostr")
    ours.setLevel(logging.INFO)
    ours.handlers = [console]


def log_to_file(path: Path) -> None:
    """Write all log lines of this process to a file, too, and there what threads of libraries end with.

    A thread of its own writes them, so that nothing waits for a disk.

    Raises:
        StorageError: it cannot be written now; if that happens later, it is told once, and the run goes on.
    """
    with storage(path):
        file = _LogFile(path, encoding="utf-8", errors="backslashreplace")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    lines: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    listener = logging.handlers.QueueListener(lines, file)
    listener.start()
    atexit.register(_end, listener)
    logging.getLogger().addHandler(logging.handlers.QueueHandler(lines))
    threading.excepthook = _log_thread


def _log_thread(args: threading.ExceptHookArgs) -> None:
    """Log what ended a thread, such as TensorBoard's writer on a full disk: who waits for the thread is told as well."""
    name = args.thread.name if args.thread is not None else "?"
    logging.getLogger("threads").error("thread %s ended", name, exc_info=args.exc_value)


def _end(listener: logging.handlers.QueueListener) -> None:
    """Write what is left, unless the disk hangs."""
    listener.enqueue_sentinel()
    if listener._thread is not None:
        listener._thread.join(LAST_LINES_S)


def _to_standard_error(line: str) -> None:
    sys.stderr.write(f"{line}\n")


class _Console(logging.StreamHandler[TextIO]):
    """Goes on on standard error where standard output is a file on a full disk, or was closed."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # its name in logging
        """Leave a stream that cannot be written; a mistake in a record is told as usual."""
        if not (isinstance(sys.exc_info()[1], OSError) or self.stream.closed):
            super().handleError(record)
            return
        broken, self.stream = self.stream, sys.stderr
        _give_up(broken)
        if broken is not sys.stderr:
            self.emit(record)


class _LogFile(logging.FileHandler):
    """Tells once that lines are lost, instead of a traceback for each."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Give the line up."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        else:
            _give_up(self.stream)
            log.warning("%s lacks all lines from here: %s", self.baseFilename, error.strerror)


def _give_up(stream: TextIO | None) -> None:
    """Let a stream write to nowhere: what is left in its buffer would fail its end, and that of the process."""
    if stream is None:
        return
    with contextlib.suppress(OSError, ValueError), Path(os.devnull).open("wb") as nothing:
        os.dup2(nothing.fileno(), stream.fileno())  # fails for one that has no descriptor
