"""Warnings: each shows for the run it is meant for, and not for one that is well."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from videostr.report.diagnostics import Figures, change_of, diagnose, failure_total
from videostr.report.stats import DumpStats

STEPS = 40


def ramp(first: float, last: float, noise: float = 0.0) -> list[float | None]:
    """A straight course with alternating noise."""
    return [first + (last - first) * i / (STEPS - 1) + noise * (-1) ** i for i in range(STEPS)]


def dumps(nodes: Sequence[float], true: float | None = 3.0) -> list[DumpStats]:
    return [
        DumpStats(
            step=1 + 10 * i, rollouts=128, right=0.5, answer_by_family={}, nodes=count, true_nodes=true, frames=4.0,
            tokens_mean=100.0, tokens_p95=150.0, tokens_max=160, absent=0.0,
        )
        for i, count in enumerate(nodes)
    ]  # fmt: skip


def found(curves: dict[str, list[float | None]], **more: Any) -> dict[str, str]:
    """Texts of the warnings by name; curves that are not given are those of a run that is well."""
    well = {
        "reward/format": ramp(0.9, 1.0),
        "reward/answer": ramp(0.3, 0.6, 0.02),
        "reward/graph": ramp(0.4, 0.7),
        "truncated_fraction": ramp(0.01, 0.01),
        "mismatch_kl": ramp(0.001, 0.002),
        "zero_variance_groups": ramp(2, 4),
        "entropy": ramp(0.8, 0.5),
    }
    series = well | curves
    figures = Figures(
        series=lambda key: series.get(key, [None] * STEPS), steps=STEPS, prompts_per_step=16, **more
    )
    return {found.name: found.text for found in diagnose(figures)}


def test_a_run_that_is_well_has_no_warning() -> None:
    assert found({}, dumps=dumps([2.0, 2.5, 3.0])) == {}


def test_format_up_and_answer_flat() -> None:
    text = found({"reward/format": ramp(0.5, 1.0), "reward/answer": ramp(0.30, 0.31, 0.03)})[
        "format-up-answer-flat"
    ]
    # First quarter of 0.5 -> 1.0 over 40 steps: mean of steps 0..9, 0.5 + 0.5 * 4.5 / 39 = 0.558; last quarter 0.942.
    assert "from 0.56 to 0.94" in text
    assert "stayed at 0.31 (from 0.30)" in text


@pytest.mark.parametrize(
    "curves",
    [
        {"reward/format": ramp(0.5, 1.0)},  # the answer rises too
        {"reward/format": ramp(0.5, 1.0), "reward/answer": ramp(0.97, 0.97)},  # nothing left to learn
        {"reward/format": ramp(0.97, 1.0), "reward/answer": ramp(0.3, 0.3)},  # the format hardly rose
        {"reward/format": ramp(0.5, 0.56, 0.2), "reward/answer": ramp(0.3, 0.3)},  # within noise
        {"reward/format": ramp(0.5, 1.0)[:6], "reward/answer": ramp(0.3, 0.3)[:6]},  # too few steps
    ],
)
def test_no_alarm_over_the_format(curves: dict[str, list[float | None]]) -> None:
    assert "format-up-answer-flat" not in found(curves)


def test_graph_reward_up_while_nodes_grow() -> None:
    text = found({}, dumps=dumps([3.0, 5.0, 9.0]))["graph-up-nodes-grow"]
    assert "from 3.0 (step 1) to 9.0 (step 21), 3.0 times what the true graphs have (3.0)" in text
    assert "graph-up-nodes-grow" in found({}, dumps=dumps([3.0, 9.0], true=None))


@pytest.mark.parametrize(
    ("graph", "nodes"),
    [
        (ramp(0.4, 0.4), [3.0, 9.0]),  # the reward does not rise
        (ramp(0.4, 0.7), [1.0, 3.2]),  # it learned to name what is there
        (ramp(0.4, 0.7), [4.0, 4.4]),  # hardly grew
        (ramp(0.4, 0.7), [9.0]),  # one dump shows no growth
    ],
)
def test_no_alarm_over_nodes(graph: list[float | None], nodes: list[float]) -> None:
    assert "graph-up-nodes-grow" not in found({"reward/graph": graph}, dumps=dumps(nodes))


@pytest.mark.parametrize(
    ("name", "key", "below", "above", "words"),
    [
        ("truncation", "truncated_fraction", 0.09, 0.31, "31% of the completions"),
        ("mismatch", "mismatch_kl", 0.04, 0.08, "0.08 nats a token"),
        ("zero-variance-groups", "zero_variance_groups", 7.0, 12.0, "75% of the groups"),
    ],
)
def test_limits_at_the_end_of_the_run(name: str, key: str, below: float, above: float, words: str) -> None:
    assert name not in found({key: ramp(below, below)})
    assert words in found({key: ramp(above, above)})[name]
    # What was so at the start and has passed is not shown.
    passed: list[float | None] = [above] * 20 + [0.0] * 20
    assert name not in found({key: passed})


def test_dead_groups_name_their_cause() -> None:
    dead = ramp(15, 15)
    assert (
        "take harder records"
        in found({"zero_variance_groups": dead, "reward/answer": ramp(0.98, 0.98)})["zero-variance-groups"]
    )
    assert (
        "take easier records"
        in found({"zero_variance_groups": dead, "reward/answer": ramp(0.01, 0.01)})["zero-variance-groups"]
    )


def test_failures_from_one_percent_of_the_groups() -> None:
    assert "failures" not in found({}, failures={"engine_died": 6})  # of 640 groups
    text = found({}, failures={"engine_died": 6, "reward_timeout": 1, "tokens_sampled_again": 5000})[
        "failures"
    ]
    assert "7 in all, 1.1% of the 640 groups" in text
    assert "failures" in found({}, failures={"learner_lost": 1})
    assert failure_total({"engine_died": 2, "tokens_sampled_again": 5000}) == 2


def test_collapse_and_figures_that_are_not_numbers() -> None:
    assert "from 0.709 to 0.101" in found({"entropy": ramp(0.8, 0.01)})["entropy-collapse"]
    assert "loss in 3" in found({}, not_finite={"loss": 3})["not-finite"]


def test_a_change_is_told_from_noise() -> None:
    rising, noisy = change_of(ramp(0.0, 1.0)), change_of(ramp(0.0, 0.05, 0.5))
    assert rising is not None
    assert (rising.rose, rising.flat) == (True, False)
    assert noisy is not None
    assert (noisy.rose, noisy.flat) == (False, True)
    assert change_of([None] * 30 + ramp(0, 1)[:7]) is None
