"""Figures for people: Markdown that also reads well in a terminal.

In: `Evaluated` runs, kept as JSON, and `Comparison`s. Out: a page of one run (`one`), or of several side by side (`compare`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from videostr.bootstrap import Interval
from videostr.evaluate.result import DIGITS, Evaluated
from videostr.evaluate.statistics import Comparison

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
"""Key of `Evaluated.counts` -> what is said of one question, and of several, that scored 0 by it."""

NONE = "–"
"""Where there is no figure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """What a run scores more than a control, which is kept from something."""

    what: str
    """From what: "the video"."""
    whole: str
    """Name of the run."""
    control: str
    """Name of the control."""
    figures: Mapping[str, Comparison]
    """Figure -> comparison, the control being a."""


# ---------------------------------------------------------------------------------------------------- pages


def one(evaluated: Evaluated) -> str:
    """Return the page of one run: its figures with their intervals, what guessing scores next to them."""
    names = list(evaluated.baselines)

    def cells(figure: str) -> list[str]:
        guesses = (evaluated.baselines[name].get(figure, math.nan) for name in names)
        return [_figure(evaluated.intervals[figure]), *map(_number, guesses)]

    notes = ["[...]: 95 % interval, by bootstrap over videos.", *_without(evaluated.intervals.values())]
    if names:
        notes.append(f"{' and '.join(names)}: what an answer scores without the video.")
    return _page(
        [evaluated],
        lines=(_what(evaluated), *_losses(evaluated)),
        columns=(evaluated.mode, *names),
        cells={figure: cells(figure) for figure in evaluated.intervals},
        notes=notes,
    )


def compare(runs: Sequence[Evaluated], comparisons: Sequence[Mapping[str, Comparison]]) -> str:
    """Return the page of runs side by side, and of how each differs from the first.

    Args:
        runs: of the same questions (`require_same_questions`); the first is the base.
        comparisons: one for every run but the first, b being that run: figure -> comparison.
    """
    base, *others = runs
    columns = [run.name for run in runs]
    tested = [any(c.test for c in found.values()) for found in comparisons]
    for other, has_p in zip(others, tested, strict=True):
        columns += [f"{other.name} - {base.name}"] + ["p"] * has_p

    def cells(figure: str) -> list[str]:
        row = [_figure(run.intervals[figure]) if figure in run.intervals else NONE for run in runs]
        for found, has_p in zip(comparisons, tested, strict=True):
            comparison = found.get(figure)
            row.append(_difference(comparison.difference) if comparison else NONE)
            if has_p:
                row.append(_p_value(comparison))
        return row

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


def gains(found: Sequence[Gain]) -> str:
    """Return the end of a page: what the video and its order add, with the interval of the paired difference; "" for none."""
    if not found:
        return ""
    heads = [_plain(f"{gain.what}: {gain.whole} - {gain.control}") for gain in found]
    rows = [
        (
            _plain(name),
            *(_difference(g.figures[name].difference) if name in g.figures else NONE for g in found),
        )
        for name in dict.fromkeys(name for gain in found for name in gain.figures)
    ]
    return f"\n## what the video adds\n\n{_table(('figure', *heads), rows, align='rjust')}\n"


def _page(
    runs: Sequence[Evaluated],
    *,
    lines: Sequence[str],
    columns: Sequence[str],
    cells: Mapping[str, Sequence[str]],
    notes: Sequence[str],
) -> str:
    """Return a page whose tables are padded, so that it reads as well in a terminal.

    Args:
        runs: what is shown.
        lines: sentences: what was run, what failed, how runs differ.
        columns: heads of the table.
        cells: figure -> its cells, in Markdown, one a column; figures stand in groups by the prefix of their names.
        notes: how to read the table.
    """
    names = [_plain(run.name) for run in runs]
    blocks = [
        f"# {_plain(runs[0].benchmark)}: {', '.join(names)}",
        "\n".join(f"- {_plain(line)}" for line in lines),
    ]
    groups: dict[str, list[Sequence[str]]] = {}
    for figure, row in cells.items():
        prefix, slash, rest = figure.partition("/")
        group, label = (prefix, rest) if slash else ("overall", figure)
        groups.setdefault(group, []).append((_plain(label), *row))
    for group, rows in groups.items():
        blocks += [f"## {_plain(group)}", _table(("figure", *map(_plain, columns)), rows, align="rjust")]
    settings = [(_plain(name), *map(_plain, values)) for name, values in _settings(runs).items()]
    blocks += ["## settings", _table(("setting", *names), settings, align="ljust")]
    return "\n\n".join([*blocks, *map(_plain, notes)]) + "\n"


# ------------------------------------------------------------------------------------------------ sentences


def _what(run: Evaluated) -> str:
    model = f" of {run.model}" if run.model else ""
    return (
        f"{run.benchmark}, mode {run.mode}{model}; question files {run.digest[:DIGITS]}; "
        f"{run.counts['answered']:,} of {run.counts['questions']:,} questions have a text."
    )


def _losses(run: Evaluated) -> list[str]:
    """Return a sentence for every reason by which questions scored 0."""
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


def _settings(runs: Sequence[Evaluated]) -> dict[str, list[str]]:
    """Return name -> value of each run, settings that differ first."""
    each: list[Mapping[str, str]] = [{"model": run.model, "mode": run.mode, **run.settings} for run in runs]
    found = {name: [one.get(name, NONE) for one in each] for one in each for name in one}
    return dict(sorted(found.items(), key=lambda setting: len(set(setting[1])) == 1))


def _how_they_differ(runs: Sequence[Evaluated]) -> str:
    differing = [name for name, values in _settings(runs).items() if len(set(values)) > 1]
    return f"The runs differ in {', '.join(differing)}." if differing else "The runs have the same settings."


# -------------------------------------------------------------------------------------------------- figures


def _without(found: Iterable[Interval]) -> list[str]:
    """Return a note where a figure has no interval."""
    is_there = any(math.isnan(one.low) and not math.isnan(one.value) for one in found)
    return ["No interval: of one video alone, which says nothing about others."] if is_there else []


def _number(value: float, sign: str = "") -> str:
    """Round to one decimal; adding 0.0 makes a rounded -0.0 a 0.0."""
    return NONE if math.isnan(value) else f"{round(value, 1) + 0.0:{sign}.1f}"


def _figure(found: Interval, sign: str = "") -> str:
    """Return a figure with its interval, where it has one."""
    if math.isnan(found.low):
        return _number(found.value, sign)
    return f"{_number(found.value, sign)} [{_number(found.low, sign)}, {_number(found.high, sign)}]"


def _difference(found: Interval) -> str:
    """Return a difference; bold and starred where its interval excludes 0."""
    text = _figure(found, "+")
    return rf"**{text}** \*" if found.excludes_zero else text


def _p_value(comparison: Comparison | None) -> str:
    if comparison is None or comparison.test is None:
        return NONE
    p = comparison.test.p_value
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], *, align: str) -> str:
    """Return a table whose columns but the first are aligned by a method of str."""
    widths = [max(3, *map(len, column)) for column in zip(head, *rows, strict=True)]
    rule = ["-" * width for width in widths]
    if align == "rjust":
        rule = [rule[0], *(f"{line[1:]}:" for line in rule[1:])]
    lines = [
        [
            first.ljust(widths[0]),
            *(getattr(text, align)(width) for text, width in zip(rest, widths[1:], strict=True)),
        ]
        for first, *rest in (head, rule, *rows)
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plain(text: str) -> str:
    """So that Markdown shows it as it is."""
    return re.sub(r"([\\|*`<])", r"\\\1", text).replace("\n", " ")
