"""Figures as text, and runs side by side as dots with whiskers.

In: `Evaluated` runs. Out: SVG that stretches with the page.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from videostr.bootstrap import Interval
from videostr.charts import nice_ticks, short
from videostr.evaluate.result import Evaluated

NONE = "–"
"""Where there is no figure."""
BAND = 13
"""Height of one run in a row of the chart, pixels."""


def number_text(value: float, sign: str = "") -> str:
    """Round to one decimal; adding 0.0 makes a rounded -0.0 a 0.0."""
    return NONE if math.isnan(value) else f"{round(value, 1) + 0.0:{sign}.1f}"


def range_text(found: Interval, sign: str = "") -> str:
    return (
        "" if math.isnan(found.low) else f"[{number_text(found.low, sign)}, {number_text(found.high, sign)}]"
    )


def figure_text(found: Interval) -> str:
    """Return a figure and its interval."""
    return f"{number_text(found.value)} {range_text(found)}".rstrip()


@dataclass(frozen=True, slots=True)
class Chart:
    """Dots and whiskers; x in per cent of the width, so that text and dots keep their size on any screen."""

    runs: Sequence[Evaluated]
    ticks: Sequence[float]

    @classmethod
    def of(cls, runs: Sequence[Evaluated]) -> Chart:
        values = [v for run in runs for i in run.intervals.values() for v in (i.low, i.value, i.high)]
        values += [v for guesses in runs[0].baselines.values() for v in guesses.values()]
        values = [v for v in values if not math.isnan(v)] or [0.0]
        return cls(runs, nice_ticks(min(values), max(values)))

    def x(self, value: float) -> str:
        return f"{2 + 96 * (value - self.ticks[0]) / (self.ticks[-1] - self.ticks[0]):.2f}%"

    def row(self, figure: str) -> Markup:
        """Write one figure of all runs, one below the other, over the baselines of the first."""
        height = BAND * len(self.runs) + 5
        parts = [self._upright("grid", tick, height) for tick in self.ticks]
        for index, guesses in enumerate(self.runs[0].baselines.values()):
            guess = guesses.get(figure, math.nan)
            if not math.isnan(guess):
                parts.append(self._upright(f"mark m{index}", guess, height))
        for index, run in enumerate(self.runs):
            found = run.intervals.get(figure)
            if found is not None and not math.isnan(found.value):
                parts.append(self._dot(run.name, found, index))
        return Markup(
            f'<svg class="dots" width="100%" height="{height}" role="img" aria-label="{escape(figure)}">{"".join(parts)}</svg>'
        )

    def axis(self) -> Markup:
        """Return the numbers of the scale."""
        texts = "".join(
            f'<text class="tick" x="{self.x(tick)}" y="12" text-anchor="middle">{short(tick)}</text>'
            for tick in self.ticks
        )
        return Markup(f'<svg class="dots" width="100%" height="18" aria-hidden="true">{texts}</svg>')

    def _upright(self, classes: str, value: float, height: int) -> str:
        x = self.x(value)
        return f'<line class="{classes}" x1="{x}" x2="{x}" y1="0" y2="{height}"/>'

    def _dot(self, name: str, found: Interval, index: int) -> str:
        y = BAND * index + BAND // 2 + 3
        whisker = ""
        if not math.isnan(found.low):
            whisker = f'<line class="whisker" x1="{self.x(found.low)}" x2="{self.x(found.high)}" y1="{y}" y2="{y}"/>'
        return (
            f'<g class="c{index % 5}"><title>{escape(name)}: {figure_text(found)}</title>{whisker}'
            f'<circle cx="{self.x(found.value)}" cy="{y}" r="4"/></g>'
        )
