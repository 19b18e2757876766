"""Where the time of a step goes: bars of rollout, reward, learn and sync over the seconds of training.

In: the times of metrics.jsonl, which are those of a role as a whole: from its first worker's start to its last one's end.
Out: spans, a table of what each role takes, and the picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from markupsafe import Markup

from videostr.config import Config
from videostr.report.charts import nice_ticks, short
from videostr.report.run import RunData

LANES = ("rollout", "reward", "learn", "sync")
COLORS = {"rollout": "c0", "reward": "c1", "learn": "c2", "sync": "c3"}
SHOWN_STEPS = 60
STEPS_IN_VIEW = 8
LANE, BAR, LEFT, TOP, BOTTOM = 34, 22, 4, 22, 22
VIEW = 1100
LABEL = 64
"""Least distance of the labels of two steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """One bar."""

    lane: str
    step: int
    start: float
    """Seconds since the start of the first step."""
    end: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneUse:
    """What a role takes of the run."""

    lane: str
    workers: str
    """How many there are, in words."""
    seconds: float
    """Median over steps."""
    share: float
    """Its seconds over those of all steps; above 1 where several batches are sampled at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """Picture and table."""

    first: int
    last: int
    """Steps in the picture."""
    svg: Markup
    width: int
    uses: list[LaneUse]
    asynchronous: bool
    """Sampling overlaps with learning: the start of a batch is not known, its end only as a bound."""
    wait_share: float | None
    """Share of all step time that the learner waited for rollouts."""


def timeline(run: RunData) -> Timeline | None:
    """None where no step has its times."""
    rows = [
        row
        for row in run.metrics
        if all(_seconds(row, f"time/{name}") is not None for name in (*LANES, "step"))
    ]
    if not rows:
        return None
    total = sum(row["time/step"] for row in rows) or 1.0
    waits = [_seconds(row, "time/wait") for row in rows]
    shown = spans(rows)
    first = int(rows[-SHOWN_STEPS:][0]["step"])
    svg, width = _draw([span for span in shown if span.step >= first], rows[-SHOWN_STEPS:])
    return Timeline(
        first=first,
        last=int(rows[-1]["step"]),
        svg=svg,
        width=width,
        uses=[
            LaneUse(
                lane=name,
                workers=_workers(run.config, name),
                seconds=median(row[f"time/{name}"] for row in rows),
                share=sum(row[f"time/{name}"] for row in rows) / total,
            )
            for name in LANES
        ],
        asynchronous=run.config is not None and run.config.train.max_staleness > 0,
        wait_share=sum(w for w in waits if w is not None) / total if None not in waits else None,
    )


def spans(rows: Sequence[dict[str, float]]) -> list[Span]:
    """Bars of all steps, which are laid end to end.

    A step is: wait until its batch is sampled and scored, learn, sync. Its batch ends with the wait at the latest: in
    synchronous training exactly then, and with asynchronous training earlier by what is not known.
    """
    found, began = [], 0.0
    for row in rows:
        step, learned = int(row["step"]), began + row["time/step"] - row["time/learn"] - row["time/sync"]
        scored = learned if "time/wait" not in row else min(began + row["time/wait"], learned)
        sampled = scored - row["time/reward"]
        ends = {
            "rollout": (sampled - row["time/rollout"], sampled),
            "reward": (sampled, scored),
            "learn": (learned, learned + row["time/learn"]),
            "sync": (learned + row["time/learn"], began + row["time/step"]),
        }
        found += [Span(lane=lane, step=step, start=start, end=end) for lane, (start, end) in ends.items()]
        began += row["time/step"]
    return found


def _seconds(row: dict[str, float], key: str) -> float | None:
    value = row.get(key)
    return float(value) if isinstance(value, int | float) and 0 <= value < float("inf") else None


def _workers(config: Config | None, lane: str) -> str:
    if config is None:
        return ""
    return (
        {
            "rollout": f"{config.rollout.num_workers} engines",
            "reward": f"{config.reward.num_workers} workers",
            "learn": f"{config.learner.num_ranks} ranks",
            "sync": "ranks and engines",
        }[lane]
        .replace("1 engines", "1 engine")
        .replace("1 workers", "1 worker")
        .replace("1 ranks", "1 rank")
    )


def _draw(drawn: Sequence[Span], rows: Sequence[dict[str, float]]) -> tuple[Markup, int]:
    start, end = min(span.start for span in drawn), max(span.end for span in drawn)
    seconds = (end - start) or 1.0
    width = round(VIEW * max(1.0, len(rows) / STEPS_IN_VIEW))
    height = TOP + LANE * len(LANES) + BOTTOM

    def x(at: float) -> float:
        return round(LEFT + (width - 2 * LEFT) * (at - start) / seconds, 1)

    parts = [
        f'<line class="grid" x1="0" x2="{width}" y1="{TOP + LANE * (i + 1)}" y2="{TOP + LANE * (i + 1)}"/>'
        for i in range(len(LANES))
    ]
    labelled = -math.inf
    for row in rows:
        ended = next(span.end for span in drawn if span.step == row["step"] and span.lane == "sync")
        began = ended - row["time/step"]
        parts.append(
            f'<line class="grid" x1="{x(began)}" x2="{x(began)}" y1="{TOP - 6}" y2="{height - BOTTOM}"/>'
        )
        if x(began) - labelled >= LABEL:
            labelled = x(began)
            parts.append(f'<text class="tick" x="{labelled + 4}" y="{TOP - 8}">step {row["step"]:.0f}</text>')
    for span in drawn:
        top = TOP + LANE * LANES.index(span.lane) + (LANE - BAR) / 2
        length = max(x(span.end) - x(span.start), 0.8)
        parts.append(
            f'<rect class="area {COLORS[span.lane]}" x="{x(span.start)}" y="{top}" width="{length:.1f}" height="{BAR}" rx="2">'
            f"<title>step {span.step}, {span.lane}: {short(span.end - span.start)} s</title></rect>"
        )
    ticks = nice_ticks(0.0, seconds * VIEW / width)
    spacing = ticks[1] - ticks[0]
    for number in range(math.ceil(start / spacing), math.floor(end / spacing) + 1):
        at = number * spacing
        anchor = "start" if x(at) < 20 else "end" if x(at) > width - 40 else "middle"
        parts.append(
            f'<text class="tick" x="{x(at)}" y="{height - 6}" text-anchor="{anchor}">{short(at)} s</text>'
        )
    return Markup(
        f'<svg class="timeline" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="timeline of steps">{"".join(parts)}</svg>'
    ), width
