"""Errors that a user can act on.

    VideoStrError
     +- ConfigError          a key, value or combination of values is not allowed
     +- DataError            a dataset, record or video cannot be used
     |   +- VideoError       a video file is missing, truncated or cannot be decoded
     |   +- RecordError      a dataset row breaks the record schema
     |   +- PromptError      the text of a record cannot be made a prompt
     |   +- TooManyBadRecords  more than data.max_bad_fraction of the records are quarantined
     +- ModelError           a checkpoint cannot be trained or served (no video support, tied embeddings, ...)
     +- PlacementError       the plan does not fit the cluster
     +- RunFolderError       the run folder belongs to another config or another process, or its state cannot be read
     +- StorageError         a file cannot be written or read: disk full or read-only, quota, no permission, device error
     +- RolloutError         a rollout engine is dead or refused a request
     +- SampleLost           a sampled group was lost with the machine that held it
     +- RewardError          a reward worker failed or ran past its deadline
     +- TransferError        weights did not reach the engines
     +- LearnerError         a learner rank failed
     +- GradientError        gradients are NaN or infinite, step after step
     +- CheckpointError      a checkpoint could not be written; the learner continues
     +- ZeroVarianceError    no group's rewards differ any more: there is nothing to learn from

A message names the value and the rule that it breaks; `remedy` says what to do. `str` of an error has both. All errors survive
pickling, so that they reach the driver from workers as they were raised.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Self

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_MAX_TEXT = 400  # characters
_MAX_PARTS = 4  # exceptions of a group


class VideoStrError(Exception):
    """Base of all errors raised on purpose."""

    message: str
    """What happened, with the value and the rule."""
    remedy: str
    """What the user can do; "" where the message says all."""

    def __init__(self, message: str = "", *, remedy: str = "") -> None:
        super().__init__(message)
        self.message, self.remedy = message, remedy

    def __str__(self) -> str:
        """Return message and remedy."""
        return f"{self.message}; {self.remedy}" if self.remedy else self.message


class ConfigError(VideoStrError):
    """A key, value or combination of values is not allowed."""

    problems: tuple[ConfigError, ...] = ()
    """The single errors of one that lists several."""

    @classmethod
    def of(cls, problems: Sequence[ConfigError]) -> Self:
        """Return one error that lists others, a line each; its message and remedy have a line for each, too."""
        listed = cls("\n".join(p.message for p in problems), remedy="\n".join(p.remedy for p in problems))
        listed.problems = tuple(problems)
        return listed

    def __str__(self) -> str:
        """Return message and remedy, of each problem on its own line."""
        return "\n".join(map(str, self.problems)) or super().__str__()


class DataError(VideoStrError):
    """A dataset, record or video cannot be used."""


class VideoError(DataError):
    """A video file is missing, truncated or cannot be decoded."""


class RecordError(DataError):
    """A dataset row breaks the record schema."""


class PromptError(DataError):
    """The text of a record cannot be made a prompt."""


class TooManyBadRecords(DataError):
    """More than `data.max_bad_fraction` of the records are quarantined."""


class ModelError(VideoStrError):
    """A checkpoint cannot be trained or served."""


class PlacementError(VideoStrError):
    """The plan does not fit the cluster."""


class RunFolderError(VideoStrError):
    """The run folder belongs to another config or another process, or its state cannot be read."""


class StorageError(VideoStrError):
    """A file cannot be written or read: disk full or read-only, quota, no permission, device error."""


class RolloutError(VideoStrError):
    """A rollout engine is dead or refused a request."""


class SampleLost(VideoStrError):
    """A sampled group was lost with the machine that held it; its seed gives it again."""


class RewardError(VideoStrError):
    """A reward worker failed or ran past its deadline."""


class TransferError(VideoStrError):
    """Weights did not reach the engines."""


class LearnerError(VideoStrError):
    """A learner rank failed."""


class GradientError(VideoStrError):
    """Gradients are NaN or infinite, step after step: a restart would not help."""


class CheckpointError(VideoStrError):
    """A checkpoint could not be written; the learner continues."""


class ZeroVarianceError(VideoStrError):
    """No group's rewards differ any more: there is nothing to learn from."""


BAD_INPUT = (ConfigError, DataError, ModelError, PlacementError, RunFolderError, StorageError)
"""What the user can correct before the same command is run again."""


def exit_status_of(error: VideoStrError) -> int:
    """Return what a command that ends by an error returns: 2 for bad input, 1 for what failed on the way."""
    return 2 if isinstance(error, BAD_INPUT) else 1


def error_text(error: BaseException) -> str:
    """Return type and text of any exception, however odd, as `printable` text; never raises.

    Of an exception group the first exceptions in it are named too.
    """
    try:
        text = f"{type(error).__name__}: {error!s}"
    except BaseException as failure:  # noqa: BLE001  # a user's class
        text = f"{type(error).__name__}: (its __str__ raised {type(failure).__name__})"
    inner = "; ".join(error_text(part) for part in _first_parts(error))
    return printable(f"{text} [{inner}]" if inner else text)


def first_line(error: object) -> str:
    """Return the first line of what an error, or its text, says; the name of its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _first_parts(error: BaseException) -> list[BaseException]:
    """Return the first exceptions of a group, those of groups in it among them; none for other exceptions."""
    parts: list[BaseException] = []
    rest: list[BaseException] = [error] if isinstance(error, BaseExceptionGroup) else []
    while rest and len(parts) < _MAX_PARTS:
        first = rest.pop(0)
        if isinstance(first, BaseExceptionGroup):
            rest[:0] = first.exceptions
        else:
            parts.append(first)
    return parts


def printable(text: str, limit: int = _MAX_TEXT) -> str:
    """Return text that any log, message or terminal takes.

    Lone surrogates and control characters become escapes such as `\\ud800`; what is longer than `limit` characters is cut, with
    a mark.
    """
    cut = f"{text[:limit]} ... [cut, {len(text)} characters]" if len(text) > limit else text
    escaped = cut.encode("utf-8", "backslashreplace").decode()
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", escaped)
