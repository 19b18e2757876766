"""How sure the figures of a benchmark are, and whether two runs differ: bootstrap by video, McNemar's test.

In: questions and their scores by column. Out: figures with 95 % intervals, and comparisons of two runs over the questions
that both have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

from videostr.bootstrap import Interval, bootstrap_weights
from videostr.errors import DataError
from videostr.evaluate.benchmark import Benchmark, Question

ROWS = 128
"""Weightings that a benchmark's figures are asked for at once: what it computes in float64 stays at 8 * ROWS * N bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """The questions of one run, and what its answers scored."""

    questions: Sequence[Question]
    """N, ids unique."""
    scores: Mapping[str, np.ndarray]
    """Column -> [N] float64, NaN where a question does not have the column."""

    def only(self, ids: Sequence[str]) -> Scored:
        """Return the questions with these ids, in this order."""
        place = {question.id: i for i, question in enumerate(self.questions)}
        where = [place[one] for one in ids]
        return Scored(
            questions=[self.questions[i] for i in where],
            scores={column: values[where] for column, values in self.scores.items()},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class McNemar:
    """On how many questions exactly one of two runs is right."""

    only_a: int
    """Questions that only a has right."""
    only_b: int
    p_value: float
    """Two-sided: how probable at least so unequal counts are where neither run is better."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One figure of two runs, over the questions that both have."""

    a: float
    b: float
    difference: Interval
    """b - a."""
    test: McNemar | None = None
    """Where the figure is the mean of a column of zeros and ones."""


def figure_values(
    benchmark: Benchmark, questions: Sequence[Question], scores: Mapping[str, np.ndarray]
) -> dict[str, float]:
    """Return the benchmark's figures, each question counting once."""
    found = benchmark.figures(questions, scores, np.ones((1, len(questions))))
    return {name: float(values[0]) for name, values in found.items()}


def intervals(
    benchmark: Benchmark,
    questions: Sequence[Question],
    scores: Mapping[str, np.ndarray],
    resamples: int,
    seed: int,
) -> dict[str, Interval]:
    """Return every figure with its 95 % interval.

    Args:
        benchmark: whose figures.
        questions: N of them.
        scores: column -> [N].
        resamples: draws of the bootstrap; 2,000 place the ends of an interval well within a tenth of its width.
        seed: of the bootstrap.

    Returns:
        By the figure's name, in the benchmark's order.
    """
    weights = bootstrap_weights([question.video for question in questions], resamples, seed)
    draws = _draws(benchmark, questions, scores, weights)
    values = figure_values(benchmark, questions, scores)
    return {name: Interval.of(value, draws[name], weights) for name, value in values.items()}


def common(a: Scored, b: Scored) -> tuple[Scored, Scored]:
    """Return both runs, cut to the questions that both have, in a's order.

    Raises:
        DataError: there are none.
    """
    other = {question.id for question in b.questions}
    ids = [question.id for question in a.questions if question.id in other]
    if not ids:
        raise DataError(
            f"the runs have no question in common (of {len(a.questions)} and {len(b.questions)}), so there is nothing to "
            "compare",
            remedy="compare runs over the same question files",
        )
    return a.only(ids), b.only(ids)


def comparisons(
    benchmark: Benchmark, a: Scored, b: Scored, resamples: int, seed: int, *, binary: str = ""
) -> dict[str, Comparison]:
    """Return every figure of two runs over the questions that both have, and their difference with its 95 % interval.

    Both are weighted by the same draws, so what makes a video hard for both does not widen the interval.

    Args:
        benchmark: whose figures.
        a: the base.
        b: what is compared with it.
        resamples: draws of the bootstrap.
        seed: of the bootstrap.
        binary: column of zeros and ones for McNemar's test; "" for none. The test goes to "overall" and "task/..." where
            they are the plain percentage of that column, which a mean over tasks is not.

    Returns:
        By the figure's name, in the benchmark's order; those that both runs have.

    Raises:
        DataError: the runs have no question in common.
    """
    a, b = common(a, b)
    weights = bootstrap_weights([question.video for question in a.questions], resamples, seed)
    values_a, values_b = (figure_values(benchmark, one.questions, one.scores) for one in (a, b))
    draws_a, draws_b = (_draws(benchmark, one.questions, one.scores, weights) for one in (a, b))
    tests = mcnemar_by_task(a, b, binary) if binary else {}
    plain_a, plain_b = (_percentages(one, binary) if binary else {} for one in (a, b))
    found = {}
    for name, value in values_a.items():
        if name not in values_b:  # runs of other modes have other columns
            continue
        is_plain = name in tests and np.allclose([value, values_b[name]], [plain_a[name], plain_b[name]])
        found[name] = Comparison(
            a=value,
            b=values_b[name],
            difference=Interval.of(values_b[name] - value, draws_b[name] - draws_a[name], weights),
            test=tests[name] if is_plain else None,
        )
    return found


def mcnemar(a: np.ndarray, b: np.ndarray) -> McNemar:
    """Return whether two runs differ on the same questions: the exact form of McNemar's test.

    Of the questions that exactly one run has right, each run would have half where neither is better: a two-sided binomial
    test. Q. McNemar, "Note on the sampling error of the difference between correlated proportions or percentages",
    Psychometrika 12 (1947) 153-157. It takes questions as independent; where videos have many, the interval of
    `comparisons` is the safer judge.

    Args:
        a: [N] zeros and ones.
        b: [N], the same questions in the same order.

    Raises:
        ValueError: another value than 0 or 1.
    """
    if not (np.isin(a, (0, 1)).all() and np.isin(b, (0, 1)).all()):
        raise ValueError("McNemar's test wants columns of zeros and ones")
    only_a, only_b = int(np.sum(a > b)), int(np.sum(b > a))
    # binomtest refuses 0 trials
    p_value = float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0
    return McNemar(only_a=only_a, only_b=only_b, p_value=p_value)


def mcnemar_by_task(a: Scored, b: Scored, column: str) -> dict[str, McNemar]:
    """Return the test on a column of zeros and ones over the questions that both have: "overall", and "task/..." of every task.

    Empty where no question has the column.

    Raises:
        DataError: the runs have no question in common.
        ValueError: the column has other values.
    """
    a, b = common(a, b)
    return {
        name: mcnemar(a.scores[column][where], b.scores[column][where])
        for name, where in _groups(a, column).items()
    }


def _groups(run: Scored, column: str) -> dict[str, np.ndarray]:
    """Return places of the questions that have a column: "overall", and "task/..." of every task."""
    if column not in run.scores:
        return {}
    has = np.flatnonzero(~np.isnan(run.scores[column]))
    tasks: dict[str, list[int]] = {}
    for place in has:
        tasks.setdefault(f"task/{run.questions[place].task}", []).append(place)
    return {"overall": has} | {name: np.array(places) for name, places in tasks.items()} if has.size else {}


def _percentages(run: Scored, column: str) -> dict[str, float]:
    return {
        name: 100 * float(run.scores[column][where].mean()) for name, where in _groups(run, column).items()
    }


def _draws(
    benchmark: Benchmark,
    questions: Sequence[Question],
    scores: Mapping[str, np.ndarray],
    weights: np.ndarray,
) -> dict[str, np.ndarray]:
    """Return [B] values by figure, computed by `ROWS` weightings at a time."""
    parts = [
        benchmark.figures(questions, scores, weights[start : start + ROWS])
        for start in range(0, len(weights), ROWS)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
