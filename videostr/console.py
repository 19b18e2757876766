"""Lines of all commands on the terminal and in log files.

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
from pathlib import Path
from typing import TextIO

from videostr.files import make_folder, storage

log = logging.getLogger(__name__)
LAST_LINES_S = 5.0
"""Longest wait for a log file at the end of a process."""


def send_output_to(log_file: str) -> None:
    """Let this process and all it starts write to a file what they would write to the terminal.

    Raises:
        StorageError: it cannot be written.
    """
    make_folder(Path(log_file).parent)
    with storage(log_file):
        file = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(file, stream.fileno())
    os.close(file)


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
        StorageError: it cannot be written now; if that happens later, it is reported once, and the run continues.
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
    """Log what ended a thread, such as TensorBoard's writer on a full disk: who waits for the thread gets the error as well."""
    name = args.thread.name if args.thread is not None else "?"
    logging.getLogger("threads").error("thread %s ended", name, exc_info=args.exc_value)


def _end(listener: logging.handlers.QueueListener) -> None:
    """Write what is left, unless the disk hangs."""
    listener.enqueue_sentinel()
    if listener._thread is not None:
        listener._thread.join(LAST_LINES_S)


class _Console(logging.StreamHandler[TextIO]):
    """Continues on standard error where standard output is a file on a full disk, or was closed."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # its name in logging
        """Leave a stream that cannot be written; a mistake in a record is reported as usual."""
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
    """Let a stream discard its output: what is left in its buffer would fail its end, and that of the process."""
    if stream is None:
        return
    with contextlib.suppress(OSError, ValueError), Path(os.devnull).open("wb") as nothing:
        os.dup2(nothing.fileno(), stream.fileno())  # fails for one that has no descriptor
