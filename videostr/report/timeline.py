"""Where the time of a step goes: a lane of bars per worker over the seconds of training.

In: `timeline.jsonl`. Out: the picture, and a table of what each worker takes.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from statistics import fmean, median

from markupsafe import Markup, escape

from videostr.charts import nice_ticks, short
from videostr.run_data import RunData
from videostr.timeline import FILE, StepTimes, read_timeline

WORK = {
    "rollout-engine": "sample",
    "reward-worker": "score",
    "learner-rank": "update",
    "weight-sync": "sync",
    "checkpoint": "write",
    "evaluation": "evaluate",
}
"""Kinds of workers from top to bottom, and what each is there for."""
COLORS = {
    "sample": "c0", "score": "c1", "update": "c2", "sync": "c3", "send_weights": "c3", "pause": "c3",
    "snapshot": "c4", "write": "c4", "evaluate": "c7",
}  # fmt: skip
"""By activity of a worker."""
OTHER = "c5"
WORDS = {"pause": "paused for weights", "send_weights": "sends weights", "snapshot": "copies its state"}
LEGEND = {
    "c0": "samples",
    "c1": "scores",
    "c2": "learns",
    "c3": "new weights",
    "c4": "checkpoint",
    "c7": "held-out evaluation",
    OTHER: "starts, is lost or waits for weights",
}
SHOWN_STEPS = 60
SHOWN_LANES = 8
"""Most lanes of one kind of workers: of more, the busiest."""
STEPS_IN_VIEW = 8
BREAK_S = 1.0
"""Time between two steps that is shown: the run was started again."""
LANE = 24
GAP, LEFT, TOP, BOTTOM = 10, 4, 22, 22
VIEW = 1100
LABEL = 64
"""Least distance of the labels of two steps."""
JOINED_PX = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """What a worker takes of the run."""

    lane: str
    workers: str
    """How many there are, in words."""
    seconds: float
    """Median over steps."""
    share: float
    """Its seconds over those of all steps."""
    idle: float
    """Share of the time in which it does nothing."""
    other: str = ""
    """What else it does, with shares."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """Picture and table."""

    first: int
    last: int
    """Steps in the picture."""
    svg: Markup
    width: int
    lane: int
    """Height of a lane in pixels."""
    uses: list[Use]
    """One a lane."""
    legend: list[tuple[str, str]]
    """(colour class, words)."""
    wait_share: float | None
    """Share of all step time that the learner waited for rollouts."""
    many: int
    """Lanes of one kind of workers, where one has more; else 0."""
    breaks: int
    """Times that the run was started again in the steps of the picture."""
    unread: int
    """Lines of timeline.jsonl that cannot be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bars:
    """Of one lane, step and activity."""

    lane: int
    color: str
    title: str
    spans: Sequence[tuple[float, float]]
    """Seconds on the axis of the picture, ascending."""


def timeline(run: RunData) -> Picture | None:
    """Return picture and table; None where no step has its times."""
    steps, unread = read_timeline(run.folder / FILE)
    if not steps:
        return None
    shown = steps[-SHOWN_STEPS:]
    begins = list(accumulate((step.seconds for step in shown), initial=0.0))
    lanes = list(_lanes(steps))
    bars = [
        _Bars(
            lane=number,
            color=COLORS.get(doing, OTHER),
            title=f"step {step.step}, {worker}: {doing} {short(activity.busy)} s in {len(activity.spans)}",
            spans=[(begin + start, begin + end) for start, end in activity.spans],
        )
        for number, (worker, _) in enumerate(lanes)
        for step, begin in zip(shown, begins, strict=False)
        for doing, activity in step.workers.get(worker, {}).items()
    ]
    breaks = [
        begin
        for (before, after), begin in zip(pairwise(shown), begins[1:], strict=False)
        if after.start - before.start - before.seconds > BREAK_S
    ]
    drawn = _Drawing(begins[-1], len(shown), len(lanes))
    used = {bar.color for bar in bars}
    return Picture(
        first=shown[0].step,
        last=shown[-1].step,
        svg=drawn.svg(bars, [(begin, step.step) for step, begin in zip(shown, begins, strict=False)], breaks),
        width=drawn.width,
        lane=LANE,
        uses=[use for _, use in lanes],
        legend=[(color, words) for color, words in LEGEND.items() if color in used],
        wait_share=_wait_share(run),
        many=SHOWN_LANES if any(not worker for worker, _ in lanes) else 0,
        breaks=len(breaks),
        unread=unread,
    )


def _lanes(steps: Sequence[StepTimes]) -> Iterator[tuple[str, Use]]:
    """Yield workers from top to bottom, the busiest of each kind where there are many, then the others of it as one."""
    kinds: defaultdict[str, list[str]] = defaultdict(list)
    for worker in {worker: None for step in steps for worker in step.workers}:
        kinds[_kind(worker)].append(worker)
    order = [*WORK, *sorted(kinds.keys() - WORK.keys())]
    for kind in order:
        uses = {worker: _use(steps, worker) for worker in sorted(kinds[kind], key=_number)}
        busiest = sorted(uses, key=lambda worker: -uses[worker].share)[:SHOWN_LANES]
        yield from ((worker, use) for worker, use in uses.items() if worker in busiest)
        rest = [use for worker, use in uses.items() if worker not in busiest]
        if rest:
            yield (
                "",
                Use(
                    lane=f"{len(rest)} more",
                    workers=f"{kind.replace('-', ' ')}s, their mean",
                    seconds=fmean(use.seconds for use in rest),
                    share=fmean(use.share for use in rest),
                    idle=fmean(use.idle for use in rest),
                ),
            )


def _use(steps: Sequence[StepTimes], worker: str) -> Use:
    """Of the steps that name the worker."""
    there = [step for step in steps if worker in step.workers]
    total = sum(step.seconds for step in there) or 1.0
    work = WORK.get(_kind(worker), "")
    busy: defaultdict[str, list[float]] = defaultdict(lambda: [0.0] * len(there))
    for number, step in enumerate(there):
        for doing, activity in step.workers[worker].items():
            busy[doing][number] = activity.busy
    worked = busy.pop(work, [0.0] * len(there))
    others = sorted(((sum(seconds) / total, doing) for doing, seconds in busy.items()), reverse=True)
    share = sum(worked) / total
    return Use(
        lane=worker,
        workers="",
        seconds=median(worked),
        share=share,
        idle=max(0.0, 1 - share - sum(other for other, _ in others)),
        other=", ".join(f"{WORDS.get(doing, doing)} {100 * other:.1f} %" for other, doing in others),
    )


def _kind(worker: str) -> str:
    name, _, number = worker.rpartition("-")
    return name if number.isdecimal() else worker


def _number(worker: str) -> tuple[int, str]:
    number = worker.rpartition("-")[2]
    return (int(number) if number.isdecimal() else 0, worker)


def _wait_share(run: RunData) -> float | None:
    waits, seconds = run.series("time/wait"), run.series("time/step")
    if not seconds or None in waits or None in seconds:
        return None
    return sum(filter(None, waits)) / (sum(filter(None, seconds)) or 1.0)


# ------------------------------------------------------------------------------------------------- drawing


class _Drawing:
    """Lanes of equal height over so many seconds."""

    def __init__(self, seconds: float, steps: int, lanes: int) -> None:
        self.seconds = seconds or 1.0
        self.lanes = lanes
        self.width = round(VIEW * max(1.0, steps / STEPS_IN_VIEW))
        self.height = TOP + LANE * lanes + BOTTOM

    def svg(
        self, bars: Sequence[_Bars], steps: Sequence[tuple[float, int]], breaks: Sequence[float]
    ) -> Markup:
        """Return steps by their start."""
        parts = [*self._grid(), *self._steps(steps, breaks), *map(self._bars, bars), *self._axis()]
        return Markup(
            f'<svg class="timeline" viewBox="0 0 {self.width} {self.height}" width="{self.width}" '
            f'height="{self.height}" role="img" aria-label="timeline of steps">{"".join(parts)}</svg>'
        )

    def _x(self, at: float) -> float:
        return round(LEFT + (self.width - 2 * LEFT) * at / self.seconds, 1)

    def _grid(self) -> Iterator[str]:
        for number in range(1, self.lanes + 1):
            y = TOP + LANE * number
            yield f'<line class="grid" x1="0" x2="{self.width}" y1="{y}" y2="{y}"/>'

    def _steps(self, steps: Sequence[tuple[float, int]], breaks: Sequence[float]) -> Iterator[str]:
        labelled = -math.inf
        for begin, step in steps:
            x, classes = self._x(begin), "cut" if begin in breaks else "grid"
            yield f'<line class="{classes}" x1="{x}" x2="{x}" y1="{TOP - 6}" y2="{self.height - BOTTOM}"/>'
            if x - labelled >= LABEL:
                labelled = x
                yield f'<text class="tick" x="{x + 4}" y="{TOP - 8}">step {step}</text>'

    def _bars(self, bars: _Bars) -> str:
        top, height = TOP + LANE * bars.lane + GAP // 2, LANE - GAP
        places: list[tuple[float, float]] = []
        for start, end in bars.spans:
            x0, x1 = self._x(start), max(self._x(end), self._x(start) + 0.8)
            if places and x0 - places[-1][1] < JOINED_PX:
                places[-1] = (places[-1][0], max(x1, places[-1][1]))
            else:
                places.append((x0, x1))
        path = "".join(f"M{x0:g} {top}h{x1 - x0:.1f}v{height}h{x0 - x1:.1f}z" for x0, x1 in places)
        return f'<path class="area {bars.color}" d="{path}"><title>{escape(bars.title)}</title></path>'

    def _axis(self) -> Iterator[str]:
        ticks = nice_ticks(0.0, self.seconds * VIEW / self.width)
        spacing = ticks[1] - ticks[0]
        for number in range(math.floor(self.seconds / spacing) + 1):
            at = number * spacing
            x = self._x(at)
            anchor = "start" if x < 20 else "end" if x > self.width - 40 else "middle"
            yield f'<text class="tick" x="{x}" y="{self.height - 6}" text-anchor="{anchor}">{short(at)} s</text>'
