"""What a preflight reports: findings, each with what would not work and what to do.

In: whatever was looked at. Out: text, and the exit status of `--check`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from videostr.errors import VideoStrError
from videostr.models.base import Shapes


class Severity(Enum):
    """What a finding means for the run."""

    OK = "ok"
    WARN = "warn"
    """It may run, but badly, or it could not be seen from here."""
    FAIL = "FAIL"
    """It would not run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    name: str
    severity: Severity
    found: str
    """What was seen; where that is not ok, what would not work."""
    remedy: str = ""


@dataclass(slots=True)
class Context:
    """What one check found out for another."""

    shapes: Shapes | None = None
    """Of the policy."""
    model_config: Any = None
    """The policy's own configuration."""
    processor: Any = None
    """Of the policy."""
    frame_bytes: float = 0.0
    """Estimate for all clips of all datasets."""


def ok(name: str, found: str) -> Finding:
    """Return a finding that is as it should be."""
    return Finding(name=name, severity=Severity.OK, found=found)


def warn(name: str, found: str, remedy: str) -> Finding:
    """Return a finding that may be bad."""
    return Finding(name=name, severity=Severity.WARN, found=" ".join(found.split()), remedy=remedy)


def fail(name: str, found: str, remedy: str) -> Finding:
    """Return a finding that would end the run."""
    return Finding(name=name, severity=Severity.FAIL, found=" ".join(found.split()), remedy=remedy)


def from_error(name: str, error: VideoStrError) -> Finding:
    """Return an error as a finding that would end the run."""
    return fail(name, error.message, " ".join(error.remedy.split()))


def as_text(findings: Sequence[Finding]) -> str:
    """Return one line for each finding, and one with the remedy below each that is not ok."""
    width = max((len(finding.name) for finding in findings), default=0)
    lines = []
    for finding in findings:
        lines.append(f"{finding.severity.value:4}  {finding.name:{width}}  {finding.found}")
        if finding.remedy:
            lines.append(f"{'':4}  {'':{width}}  -> {finding.remedy}")
    counts = {one: sum(finding.severity is one for finding in findings) for one in Severity}
    lines.append(
        f"{counts[Severity.OK]} ok, {counts[Severity.WARN]} to look at, {counts[Severity.FAIL]} that would not work"
    )
    return "\n".join(lines)


def exit_status(findings: Sequence[Finding]) -> int:
    """Return 2 when something would not work, as for any bad input; else 0."""
    return 2 if any(finding.severity is Severity.FAIL for finding in findings) else 0
