"""Curves as SVG text: lines over steps, shares stacked to 1, and intervals.

Colours are the classes c0, c1, ... of the page's style sheet; numbers for the pointer's tooltip travel in
`data-points`. Everything that comes from a file is escaped.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH, HEIGHT = 420, 190
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 24
MAX_POINTS = 240
SMOOTH_FROM = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One curve."""

    name: str
    values: Sequence[float | None]
    """One per step; None is a gap."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A titled picture with its legend."""

    title: str
    unit: str
    names: tuple[str, ...]
    """Legend, in the order of the colour classes; empty for a single curve."""
    latest: str
    """Last value, for a single curve."""
    svg: Markup


def line_chart(title: str, unit: str, steps: Sequence[int], series: Sequence[Series]) -> Chart | None:
    """Return curves over steps, long noisy ones with their smoothed course on top; None when no series has a value."""
    steps, series = _thin(steps, [one for one in series if any(v is not None for v in one.values)])
    values = [v for one in series for v in one.values if v is not None]
    if not values:
        return None
    ticks = nice_ticks(min(values), max(values))
    scale = _Scale(steps[0], steps[-1], ticks[0], ticks[-1])
    body = [_axes(scale, ticks)]
    for index, one in enumerate(series):
        smooth = len(steps) >= SMOOTH_FROM
        body.append(_path(scale, steps, one.values, f"line c{index}" + (" raw" if smooth else "")))
        if smooth:
            body.append(_path(scale, steps, smoothed(one.values), f"line c{index}"))
    return _chart(title, unit, steps, series, body)


def share_chart(title: str, unit: str, steps: Sequence[int], series: Sequence[Series]) -> Chart | None:
    """Series stacked and divided by their sum, step by step; None when there is nothing to divide."""
    steps, series = _thin(steps, [one for one in series if any(one.values)])
    if not series:
        return None
    totals = [sum(max(one.values[i] or 0.0, 0.0) for one in series) for i in range(len(steps))]
    shares = [
        Series(
            name=one.name,
            values=[
                max(v or 0.0, 0.0) / total if total else 0.0
                for v, total in zip(one.values, totals, strict=True)
            ],
        )
        for one in series
    ]
    scale = _Scale(steps[0], steps[-1], 0.0, 1.0)
    body, floor = [], [0.0] * len(steps)
    for index, one in enumerate(shares):
        top = [low + (v or 0.0) for low, v in zip(floor, one.values, strict=True)]
        body.append(_area(scale, steps, floor, top, f"area c{index}"))
        floor = top
    return _chart(title, unit, steps, shares, [*body, _axes(scale, [0.0, 0.25, 0.5, 0.75, 1.0])])


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """One curve with what lies around it."""

    name: str
    steps: Sequence[int]
    middle: Sequence[float]
    """One per step, as `low` and `high`."""
    low: Sequence[float]
    high: Sequence[float]


def band_chart(title: str, unit: str, bands: Sequence[Band]) -> Chart | None:
    """Return curves with their bands, all smoothed; steps need not be the same. None without a curve."""
    if not bands:
        return None
    steps = sorted({step for band in bands for step in band.steps})
    soft = [
        [[v for v in smoothed(values) if v is not None] for values in (band.low, band.middle, band.high)]
        for band in bands
    ]
    ticks = nice_ticks(min(min(low) for low, _, _ in soft), max(max(high) for _, _, high in soft))
    scale = _Scale(steps[0], steps[-1], ticks[0], ticks[-1])
    body = [_axes(scale, ticks)]
    for index, (band, (low, _, high)) in enumerate(zip(bands, soft, strict=True)):
        body.append(_area(scale, band.steps, low, high, f"area soft c{index}"))
    for index, (band, (_, middle, _)) in enumerate(zip(bands, soft, strict=True)):
        body.append(_path(scale, band.steps, middle, f"line c{index}"))
    series = [
        Series(
            name=band.name, values=[dict(zip(band.steps, middle, strict=True)).get(step) for step in steps]
        )
        for band, (_, middle, _) in zip(bands, soft, strict=True)
    ]
    return _chart(title, unit, steps, series, body)


def interval(mean: float, low: float, high: float, reach: float) -> Markup:
    """Return a mean with its confidence interval about a zero line; `reach` is the value at the right border."""

    def x(value: float) -> float:
        return round(70 + 64 * max(-1.0, min(1.0, value / (reach or 1.0))), 1)

    sign = "up" if low > 0 else "down" if high < 0 else "level"
    return Markup(
        f'<svg class="interval {sign}" viewBox="0 0 140 20" role="img" aria-label="confidence interval">'
        f'<line class="zero" x1="70" x2="70" y1="1" y2="19"/>'
        f'<line class="bar" x1="{x(low)}" x2="{x(high)}" y1="10" y2="10"/>'
        f'<circle cx="{x(mean)}" cy="10" r="4.5"/></svg>'
    )


def nice_ticks(low: float, high: float) -> list[float]:
    """Return 3 to 6 round numbers that enclose [low, high]."""
    if high - low <= 1e-4 * max(abs(low), abs(high)):  # finer differences are rounding
        pad = abs(high) / 2 or 0.5
        low, high = low - pad, high + pad
    raw = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def smoothed(values: Sequence[float | None]) -> list[float | None]:
    """Return the mean over the neighbours within a twentieth of the curve on either side; gaps stay gaps."""
    reach = max(1, len(values) // 20)
    return [
        None if value is None else _mean(values[max(0, i - reach) : i + reach + 1])
        for i, value in enumerate(values)
    ]


def short(value: float | None) -> str:
    """Return a number for people: three significant digits, thousands as k."""
    if value is None:
        return "–"
    if value and not 1e-4 <= abs(value) < 1e7:
        return f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e")
    if abs(value) >= 1e6:
        return f"{value / 1e6:.3g}M"
    if abs(value) >= 1e4:
        return f"{value / 1000:.3g}k"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


# ------------------------------------------------------------------------------------------------ drawing


@dataclass(frozen=True, slots=True)
class _Scale:
    x0: float
    x1: float
    y0: float
    y1: float

    def x(self, step: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * (step - self.x0) / ((self.x1 - self.x0) or 1), 1)

    def y(self, value: float) -> float:
        return round(
            HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - self.y0) / ((self.y1 - self.y0) or 1), 1
        )


def _thin(steps: Sequence[int], series: Sequence[Series]) -> tuple[Sequence[int], list[Series]]:
    """Return at most MAX_POINTS points: means over equal runs of steps."""
    size = math.ceil(len(steps) / MAX_POINTS)
    if size <= 1:
        return steps, list(series)
    starts = range(0, len(steps), size)
    thinned = [
        Series(name=one.name, values=[_mean(one.values[i : i + size]) for i in starts]) for one in series
    ]
    return [steps[min(i + size, len(steps)) - 1] for i in starts], thinned


def _mean(values: Sequence[float | None]) -> float | None:
    present = [v for v in values if v is not None]
    return sum(present) / len(present) if present else None


def _axes(scale: _Scale, ticks: Sequence[float]) -> str:
    parts = []
    for tick in ticks:
        y = scale.y(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(
            f'<text class="tick" x="{LEFT - 6}" y="{y + 3.5}" text-anchor="end">{_tick(tick, ticks[1] - ticks[0])}</text>'
        )
    y = HEIGHT - 6
    parts.append(f'<text class="tick" x="{LEFT}" y="{y}">step {scale.x0:.0f}</text>')
    if scale.x1 > scale.x0:
        parts.append(
            f'<text class="tick" x="{WIDTH - RIGHT}" y="{y}" text-anchor="end">{scale.x1:.0f}</text>'
        )
    return "".join(parts)


def _tick(value: float, spacing: float) -> str:
    """Short, but with as many digits as the spacing of the ticks has."""
    if not 1e-4 <= abs(value) < 1e4 or spacing < 1e-6:
        return short(value)
    digits = max(0, math.ceil(-math.log10(spacing)) + 1)  # one more for steps of 2.5
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _path(scale: _Scale, steps: Sequence[int], values: Sequence[float | None], classes: str) -> str:
    commands, pen_down = [], False
    for step, value in zip(steps, values, strict=True):
        if value is not None:
            commands.append(f"{'L' if pen_down else 'M'}{scale.x(step)} {scale.y(value)}")
            if not pen_down:
                commands.append("h0")  # with a round cap a lone point shows as a dot
        pen_down = value is not None
    return f'<path class="{classes}" d="{"".join(commands)}"/>'


def _area(
    scale: _Scale, steps: Sequence[int], low: Sequence[float], high: Sequence[float], classes: str
) -> str:
    if len(steps) == 1:
        box = f'x="{LEFT}" width="{WIDTH - LEFT - RIGHT}" y="{scale.y(high[0])}"'
        return f'<rect class="{classes}" {box} height="{round(scale.y(low[0]) - scale.y(high[0]), 1)}"/>'
    forth = [f"{scale.x(step)} {scale.y(v)}" for step, v in zip(steps, high, strict=True)]
    back = [f"{scale.x(step)} {scale.y(v)}" for step, v in zip(steps, low, strict=True)][::-1]
    return f'<path class="{classes}" d="M{"L".join(forth + back)}Z"/>'


def _chart(
    title: str, unit: str, steps: Sequence[int], series: Sequence[Series], body: Sequence[str]
) -> Chart:
    points = {"x": list(steps), "s": [[one.name, [short(v) for v in one.values]] for one in series]}
    frame = {"left": LEFT, "right": WIDTH - RIGHT, "width": WIDTH}
    svg = Markup(
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}" '
        f'data-points="{escape(json.dumps(points | frame))}">{"".join(body)}'
        f'<line class="cursor" y1="{TOP}" y2="{HEIGHT - BOTTOM}" visibility="hidden"/></svg>'
    )
    names = tuple(one.name for one in series)
    alone = len(series) == 1
    latest = next((v for v in reversed(series[0].values) if v is not None), None)
    return Chart(
        title=title, unit=unit, names=() if alone else names, latest=short(latest) if alone else "", svg=svg
    )
