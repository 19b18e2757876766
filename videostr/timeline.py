"""When every worker was busy, as the driver sees it: one line of `timeline.jsonl` a step.

In: notes of the pools, on the driver's event loop: a call reaches its worker later than it is noted and ends earlier, by what Ray
takes. Out: `StepTimes`, read again by the report. Costs a few dict operations a note; what is held does not grow with the length
of a step.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import chain, pairwise
from pathlib import Path
from typing import Annotated, Self

import msgspec
from msgspec import Meta

FILE = "timeline.jsonl"
SPANS = 64
"""Most spans of one activity of one worker in a step; with more, those that lie closest together are joined."""
JOINED_S = 0.001
ROUNDING_S = 0.002
Seconds = Annotated[float, Meta(ge=0)]
Span = tuple[Seconds, Seconds]


@dataclass(frozen=True, slots=True, kw_only=True)
class Activity:
    """How often and how long a worker did one thing in a step."""

    busy: Seconds
    """In all; of joined spans without the gaps between them."""
    spans: tuple[Span, ...]
    """(from, to), ascending, seconds since the start of the step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTimes:
    """What all workers did in one step; as JSON, a line of `timeline.jsonl`."""

    step: int
    start: Seconds
    """Since 1970-01-01 UTC; where no restart lies between, the end of the step before."""
    seconds: Seconds
    """Length of the step with all that belongs to it, such as its checkpoint."""
    workers: Mapping[str, Mapping[str, Activity]]
    """Worker -> activity -> when. A worker does one thing at a time, an idle one nothing."""

    def line(self) -> str:
        """As JSON, rounded to milliseconds."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def of(cls, line: str) -> Self:
        """Read what `line` wrote.

        Raises:
            ValueError: it is not such a line.
        """
        times = msgspec.json.decode(line, type=cls)
        for activities in times.workers.values():
            for activity in activities.values():
                latest = max(activity.busy, *chain.from_iterable(activity.spans), 0.0)
                if latest > times.seconds + ROUNDING_S:
                    raise ValueError(f"{latest:g} s lie after the end of a step of {times.seconds:g} s")
        return times


class Timeline:
    """Takes notes, and gives them out once a step. For one thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """The first step begins now.

        Args:
            clock: seconds that never go back.
        """
        self._clock = clock
        self._began = clock()
        self._epoch = time.time() - self._began
        self._current: dict[str, tuple[str | None, float]] = {}
        """Worker -> what it does, since when."""
        self._over: dict[tuple[str, str], _Spans] = {}

    def note(self, worker: str, doing: str | None) -> None:
        """From now on the worker does this, and nothing else; None: it is idle."""
        before, since = self._current.get(worker, (None, 0.0))
        if before == doing and worker in self._current:
            return
        now = self._clock()
        if before is not None:
            self._add(worker, before, since, now)
        self._current[worker] = (doing, now)

    @contextmanager
    def during(self, worker: str, doing: str) -> Iterator[None]:
        """The worker does this until the block is left, and is idle then."""
        self.note(worker, doing)
        try:
            yield
        finally:
            self.note(worker, None)

    def drain(self, step: int) -> StepTimes:
        """Return what was done since the last call; what is still in progress is cut here, and is continued in the next step."""
        now = self._clock()
        for worker, (doing, since) in self._current.items():
            if doing is not None:
                self._add(worker, doing, since, now)
                self._current[worker] = (doing, now)
        workers: dict[str, dict[str, Activity]] = {worker: {} for worker in self._current}
        for (worker, doing), spans in self._over.items():
            workers[worker][doing] = spans.since(self._began)
        times = StepTimes(
            step=step,
            start=round(self._epoch + self._began, 3),
            seconds=round(now - self._began, 3),
            workers=workers,
        )
        self._over.clear()
        self._began = now
        return times

    def _add(self, worker: str, doing: str, start: float, end: float) -> None:
        self._over.setdefault((worker, doing), _Spans()).add(start, end)


@dataclass(slots=True)
class _Spans:
    busy: float = 0.0
    spans: list[Span] = field(default_factory=list)

    def add(self, start: float, end: float) -> None:
        self.busy += end - start
        if self.spans and start - self.spans[-1][1] < JOINED_S:
            self.spans[-1] = (self.spans[-1][0], end)
        else:
            self.spans.append((start, end))
        if len(self.spans) > SPANS:
            self._halve()

    def _halve(self) -> None:
        """Close the smaller half of the gaps."""
        gaps = [after[0] - before[1] for before, after in pairwise(self.spans)]
        small = set(sorted(range(len(gaps)), key=gaps.__getitem__)[: len(gaps) // 2])
        joined = self.spans[:1]
        for number, span in enumerate(self.spans[1:]):
            if number in small:
                joined[-1] = (joined[-1][0], span[1])
            else:
                joined.append(span)
        self.spans = joined

    def since(self, began: float) -> Activity:
        spans = tuple((round(start - began, 3), round(end - began, 3)) for start, end in self.spans)
        return Activity(busy=round(self.busy, 3), spans=spans)


def read_timeline(path: Path) -> tuple[list[StepTimes], int]:
    """Return steps in ascending order, and how many lines are not readable; nothing where the file does not exist.

    The last line may be half written.
    """
    if not path.exists():
        return [], 0
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    found, unread = {}, 0
    for number, line in enumerate(lines, 1):
        try:
            times = StepTimes.of(line)
            found[times.step] = times
        except ValueError:
            unread += number < len(lines)
    return [found[step] for step in sorted(found)], unread
