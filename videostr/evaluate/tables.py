"""Figures for people: terminal text, Markdown, and one HTML page without outside parts.

In: `Evaluated` runs, kept as JSON, and `Comparison`s. Out: a `Page`, of one run (`one`) or of several side by side
(`compare`), which writes itself in the three forms.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
from jinja2 import Environment, PackageLoader
from markupsafe import Markup, escape

from videostr.bootstrap import Interval
from videostr.charts import interval, nice_ticks, short
from videostr.errors import DataError
from videostr.evaluate.statistics import Comparison
from videostr.files import write_json

NONE = "–"
"""Where there is no figure."""
DIGITS = 12
"""Hexadecimal digits that are shown of a digest."""
BAND = 13
"""Height of one run in a row of the chart, pixels."""
WHY = {
    "missing": ("has no prediction", "have no prediction"),
    "failed_video": (
        "was not asked: its video cannot be used",
        "were not asked: their videos cannot be used",
    ),
    "failed_engine": ("got no text from the engine", "got no text from the engine"),
    "truncated": (
        "has a text cut off at max_tokens, without an answer",
        "have texts cut off at max_tokens, without an answer",
    ),
    "no_answer_read": ("has a text with no answer to be read", "have texts with no answer to be read"),
}
"""Key of `Evaluated.counts` -> what is said of one question, and of several, that earned nothing by it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """A run of a model on a benchmark."""

    name: str
    """What the run is called in tables."""
    benchmark: str
    mode: str
    """How the model was asked."""
    model: str
    """Path or id; "" where predictions came in a file."""
    digest: str
    """SHA-256 over the question files, hex."""
    settings: Mapping[str, str]
    """What else determines the result: digest of the model, prompt, frames, pixels, sampling, judge, ..."""
    intervals: Mapping[str, Interval]
    """By the figure's name, in the benchmark's order."""
    counts: Mapping[str, int]
    """`questions`, `answered` (those with a text), and by reason those that earned nothing: the keys of `WHY`, and others.

    `unknown_ids` and `repeated_ids` are predictions, not questions."""
    baselines: Mapping[str, Mapping[str, float]]
    """Name ("chance", "constant") -> figure -> value."""

    def to_json(self, path: Path) -> None:
        """Write it; NaN becomes null."""
        write_json(path, _nulls(asdict(self)))

    @classmethod
    def from_json(cls, path: Path) -> Evaluated:
        """Read what `to_json` wrote.

        Raises:
            DataError: the file is missing, no JSON, or lacks a key or has another type there; names file and key.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            found = msgspec.convert(_nans(values), cls)
        except (OSError, ValueError) as error:  # msgspec's error is a ValueError
            raise DataError(
                f"{path}: not a result of an evaluation ({error})", remedy="evaluate again"
            ) from None
        lacking = [f"counts.{key}" for key in ("questions", "answered") if key not in found.counts]
        if lacking:
            raise DataError(f"{path}: lacks key {lacking[0]}", remedy="evaluate again")
        return found


# ---------------------------------------------------------------------------------------------------- pages


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A figure of the table."""

    main: str
    rest: str = ""
    """Its interval."""
    sign: str = ""
    """ "up" or "down" where it is a difference whose interval excludes 0."""
    picture: str = ""
    """The interval drawn, for HTML."""

    @property
    def all(self) -> str:
        """Figure and interval."""
        return f"{self.main} {self.rest}".rstrip()


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One figure: a line of the table and of the chart."""

    label: str
    """The name without its group."""
    cells: tuple[Cell, ...]
    """One a column."""
    picture: Markup
    """Dots and whiskers of the runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One of the things that determine a result."""

    name: str
    values: tuple[str, ...]
    """One a run."""

    @property
    def differs(self) -> bool:
        """Whether the runs have different ones."""
        return len(set(self.values)) > 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """What is shown of one or several runs."""

    title: str
    runs: tuple[str, ...]
    lines: tuple[str, ...]
    """Sentences: what was run, what failed, how runs differ."""
    settings: tuple[Setting, ...]
    columns: tuple[str, ...]
    groups: Mapping[str, Sequence[Row]]
    """By the prefix of the figures' names, in the benchmark's order."""
    marks: tuple[str, ...]
    """Baselines that the chart marks."""
    axis: Markup
    """The chart's scale."""
    notes: tuple[str, ...]
    """How to read the table."""

    def text(self) -> str:
        """For the terminal."""
        rows = [row for members in self.groups.values() for row in members]
        columns = [_column(title, [row.cells[i] for row in rows]) for i, title in enumerate(self.columns)]
        labels = iter(_padded(["", *(f"  {row.label}" for row in rows)]))
        body = iter("  ".join(line) for line in zip(labels, *columns, strict=True))
        table = [next(body)]
        for group, members in self.groups.items():
            table += [group, *(next(body) for _ in members)]
        names = _padded([setting.name for setting in self.settings])
        values = [_padded([s.values[i] for s in self.settings]) for i in range(len(self.runs))]
        settings = ["  ".join(line) for line in zip(names, *values, strict=True)]
        lines = [
            *self.lines,
            "",
            *table,
            "",
            *self.notes,
            "",
            "settings",
            *(f"  {line}" for line in settings),
        ]
        return "\n".join(line.rstrip() for line in lines)

    def markdown(self) -> str:
        """As a document; differences whose interval excludes 0 are bold and starred."""
        lines = [f"# {_plain(self.title)}", "", *(f"- {_plain(line)}" for line in self.lines)]
        for group, members in self.groups.items():
            lines += ["", f"## {_plain(group)}", "", _markdown_row(("figure", *map(_plain, self.columns)))]
            lines.append(_markdown_row(("---", *("---:" for _ in self.columns))))
            for row in members:
                cells = [rf"**{cell.main} {cell.rest}** \*" if cell.sign else cell.all for cell in row.cells]
                lines.append(_markdown_row((_plain(row.label), *cells)))
        lines += ["", "## settings", "", _markdown_row(("setting", *map(_plain, self.runs)))]
        lines.append(_markdown_row(("---", *("---" for _ in self.runs))))
        lines += [_markdown_row((_plain(s.name), *map(_plain, s.values))) for s in self.settings]
        lines += [line for note in self.notes for line in ("", _plain(note))]
        return "\n".join(lines) + "\n"

    def html(self) -> str:
        """The whole file."""
        environment = Environment(
            loader=PackageLoader("videostr.evaluate", "."),
            autoescape=True,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        return environment.get_template("compare.html").render(page=self)


def one(evaluated: Evaluated) -> Page:
    """One run: its figures with their intervals, what guessing earns beside them."""
    names = list(evaluated.baselines)

    def cells(figure: str) -> tuple[Cell, ...]:
        guesses = (evaluated.baselines[name].get(figure, math.nan) for name in names)
        return (_figure(evaluated.intervals[figure]), *(Cell(main=_number(guess)) for guess in guesses))

    notes = ["[...]: 95 % interval, by bootstrap over videos.", *_without(evaluated.intervals.values())]
    if names:
        notes.append(f"{' and '.join(names)}: what an answer earns without the video.")
    return _page(
        [evaluated],
        lines=(_what(evaluated), *_losses(evaluated)),
        columns=(evaluated.mode, *names),
        cells={figure: cells(figure) for figure in evaluated.intervals},
        notes=notes,
    )


def compare(runs: Sequence[Evaluated], comparisons: Sequence[Mapping[str, Comparison]]) -> Page:
    """Runs side by side, and how each differs from the first.

    Args:
        runs: the first is the base.
        comparisons: one for every run but the first, b being that run: figure -> comparison.

    Raises:
        DataError: the runs are of different benchmarks, or of different question files.
    """
    require_same_questions(runs)
    base, *others = runs
    ends = [
        abs(end)
        for found in comparisons
        for c in found.values()
        for end in (c.difference.low, c.difference.high)
    ]
    reach = max((end for end in ends if not math.isnan(end)), default=1.0)
    columns = [run.name for run in runs]
    tested = [any(c.test for c in found.values()) for found in comparisons]
    for other, has_p in zip(others, tested, strict=True):
        columns += [f"{other.name} - {base.name}"] + ["p"] * has_p

    def cells(figure: str) -> tuple[Cell, ...]:
        row = [_figure(run.intervals[figure]) if figure in run.intervals else Cell(main=NONE) for run in runs]
        for found, has_p in zip(comparisons, tested, strict=True):
            comparison = found.get(figure)
            row.append(_difference(comparison.difference, reach) if comparison else Cell(main=NONE))
            if has_p:
                row.append(_p_value(comparison))
        return tuple(row)

    lines = [" ".join((f"{run.name}: {_what(run)}", *_losses(run))) for run in runs]
    lines.append(_how_they_differ(runs))
    if len({run.counts["questions"] for run in runs}) > 1:
        lines.append(
            "The runs have different numbers of questions; differences are over those that both have."
        )
    notes = [
        "[...]: 95 % interval, by bootstrap over videos, of a difference with the same draws for both runs.",
        "*: the interval excludes 0. Of 20 figures without any difference, one is marked on average.",
        *_without(c.difference for found in comparisons for c in found.values()),
    ]
    if any(tested):
        notes.append(
            "p: exact McNemar test. It takes questions as independent, which questions of one video are not."
        )
    figures = dict.fromkeys(figure for run in runs for figure in run.intervals)
    return _page(
        runs, lines=lines, columns=columns, cells={figure: cells(figure) for figure in figures}, notes=notes
    )


def require_same_questions(runs: Sequence[Evaluated]) -> None:
    """What `compare` asks of its runs; call it before the comparisons are computed.

    Raises:
        DataError: the runs are of different benchmarks, or of different question files.
    """
    base, *others = runs
    for other in others:
        if base.benchmark != other.benchmark:
            raise DataError(
                f"{base.name} is of benchmark {base.benchmark}, {other.name} of {other.benchmark}: their figures cannot be "
                "compared",
                remedy="compare runs of one benchmark",
            )
        if base.digest != other.digest:
            raise DataError(
                f"{base.name} and {other.name} have different question files of {base.benchmark} "
                f"({base.digest[:DIGITS]} and {other.digest[:DIGITS]}): their figures cannot be compared",
                remedy="evaluate both with the same files",
            )


def _page(
    runs: Sequence[Evaluated],
    *,
    lines: Sequence[str],
    columns: Sequence[str],
    cells: Mapping[str, tuple[Cell, ...]],
    notes: Sequence[str],
) -> Page:
    chart = _Chart.of(runs)
    groups: dict[str, list[Row]] = {}
    for figure, row in cells.items():
        prefix, slash, rest = figure.partition("/")
        group, label = (prefix, rest) if slash else ("overall", figure)
        groups.setdefault(group, []).append(Row(label=label, cells=row, picture=chart.row(figure)))
    return Page(
        title=f"{runs[0].benchmark}: {', '.join(run.name for run in runs)}",
        runs=tuple(run.name for run in runs),
        lines=tuple(lines),
        settings=_settings(runs),
        columns=tuple(columns),
        groups=groups,
        marks=tuple(runs[0].baselines),
        axis=chart.axis(),
        notes=tuple(notes),
    )


# ------------------------------------------------------------------------------------------------ sentences


def _what(run: Evaluated) -> str:
    model = f" of {run.model}" if run.model else ""
    return (
        f"{run.benchmark}, mode {run.mode}{model}; question files {run.digest[:DIGITS]}; "
        f"{run.counts['answered']:,} of {run.counts['questions']:,} questions have a text."
    )


def _losses(run: Evaluated) -> list[str]:
    """A sentence for every reason by which questions earned nothing."""
    total, sentences = run.counts["questions"], []
    for key, count in run.counts.items():
        if key in ("questions", "answered") or not count:
            continue
        of, is_one = f"{count:,} of {total:,} questions", count == 1
        if key in WHY:
            sentences.append(
                f"{of} {WHY[key][not is_one]}; {'it counts' if is_one else 'they count'} as wrong."
            )
        elif key == "unknown_ids":
            sentences.append(f"Left out, as their ids are of no question: {count:,} of the predictions.")
        elif key == "repeated_ids":
            sentences.append(f"Counted once, though there again with the same text: {count:,} of the ids.")
        else:
            sentences.append(f"{of}: {key.replace('_', ' ')}.")
    return sentences


def _settings(runs: Sequence[Evaluated]) -> tuple[Setting, ...]:
    """Those that differ first."""
    each: list[Mapping[str, str]] = [{"model": run.model, "mode": run.mode, **run.settings} for run in runs]
    names = dict.fromkeys(name for one in each for name in one)
    found = [Setting(name=name, values=tuple(one.get(name, NONE) for one in each)) for name in names]
    return tuple(sorted(found, key=lambda setting: not setting.differs))


def _how_they_differ(runs: Sequence[Evaluated]) -> str:
    differing = [setting.name for setting in _settings(runs) if setting.differs]
    return f"The runs differ in {', '.join(differing)}." if differing else "The runs have the same settings."


# -------------------------------------------------------------------------------------------------- figures


def _number(value: float, sign: str = "") -> str:
    """One decimal; adding 0.0 makes a rounded -0.0 a 0.0."""
    return NONE if math.isnan(value) else f"{round(value, 1) + 0.0:{sign}.1f}"


def _range(found: Interval, sign: str = "") -> str:
    return "" if math.isnan(found.low) else f"[{_number(found.low, sign)}, {_number(found.high, sign)}]"


def _without(found: Iterable[Interval]) -> list[str]:
    """A note where a figure has no interval."""
    is_there = any(math.isnan(one.low) and not math.isnan(one.value) for one in found)
    return ["No interval: of one video alone, which says nothing about others."] if is_there else []


def _figure(found: Interval) -> Cell:
    return Cell(main=_number(found.value), rest=_range(found))


def _difference(found: Interval, reach: float) -> Cell:
    if math.isnan(found.low):
        return Cell(main=_number(found.value, "+"))
    return Cell(
        main=_number(found.value, "+"),
        rest=_range(found, "+"),
        sign="" if not found.excludes_zero else "up" if found.low > 0 else "down",
        picture=interval(found.value, found.low, found.high, reach),
    )


def _p_value(comparison: Comparison | None) -> Cell:
    if comparison is None or comparison.test is None:
        return Cell(main=NONE)
    p = comparison.test.p_value
    return Cell(main="<0.001" if p < 0.001 else f"{p:.3f}")


def _column(title: str, cells: Sequence[Cell]) -> list[str]:
    """Title and cells in one width, figures below figures and intervals below intervals."""
    width = max((len(cell.main) for cell in cells), default=0)
    texts = _padded([f"{cell.main:>{width}} {cell.rest}".rstrip() for cell in cells])
    if any(cell.sign for cell in cells):
        texts = [text + (" *" if cell.sign else "  ") for text, cell in zip(texts, cells, strict=True)]
    width = max(map(len, (title, *texts)))
    return [f"{text:>{width}}" for text in (title, *texts)]


def _padded(texts: Sequence[str]) -> list[str]:
    width = max(map(len, texts), default=0)
    return [text.ljust(width) for text in texts]


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _plain(text: str) -> str:
    """So that Markdown shows it as it is."""
    return re.sub(r"([\\|*`<])", r"\\\1", text).replace("\n", " ")


def _nulls(value: Any) -> Any:
    """NaN, which JSON does not have, as null; maps as dicts."""
    if isinstance(value, Mapping):
        return {key: _nulls(one) for key, one in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def _nans(value: Any) -> Any:
    """The inverse of `_nulls`."""
    if isinstance(value, dict):
        return {key: _nans(one) for key, one in value.items()}
    return math.nan if value is None else value


# ---------------------------------------------------------------------------------------------------- chart


@dataclass(frozen=True, slots=True)
class _Chart:
    """Dots and whiskers; x in per cent of the width, so that text and dots keep their size on any screen."""

    runs: Sequence[Evaluated]
    ticks: Sequence[float]

    @classmethod
    def of(cls, runs: Sequence[Evaluated]) -> _Chart:
        values = [v for run in runs for i in run.intervals.values() for v in (i.low, i.value, i.high)]
        values += [v for guesses in runs[0].baselines.values() for v in guesses.values()]
        values = [v for v in values if not math.isnan(v)] or [0.0]
        return cls(runs, nice_ticks(min(values), max(values)))

    def x(self, value: float) -> str:
        return f"{2 + 96 * (value - self.ticks[0]) / (self.ticks[-1] - self.ticks[0]):.2f}%"

    def row(self, figure: str) -> Markup:
        """One figure of all runs, one below the other, over the baselines of the first."""
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
        """The scale's numbers."""
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
            f'<g class="c{index % 5}"><title>{escape(name)}: {_figure(found).all}</title>{whisker}'
            f'<circle cx="{self.x(found.value)}" cy="{y}" r="4"/></g>'
        )
