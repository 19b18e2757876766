"""Intervals hold the truth as often as they say, clusters count, pairs share their draws, McNemar by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
import pytest
from scipy.stats import binom

from videostr.bootstrap import Interval, bootstrap_weights
from videostr.errors import DataError
from videostr.evaluate.benchmark import Benchmark, Question
from videostr.evaluate.statistics import (
    ROWS,
    McNemar,
    Scored,
    common,
    comparisons,
    figure_values,
    intervals,
    mcnemar,
    mcnemar_by_task,
)
from videostr.heldout import paired_gain


def question(number: int, video: str, task: str) -> Question:
    return Question(id=f"q{number}", video=video, task=task, text="?", truth="A")


class Fake:
    """Overall is the plain percentage of `right`, "mean of tasks" the mean over tasks; "task/..." of every task."""

    name = "fake"
    columns = ("right",)

    def __init__(self) -> None:
        self.most_rows = 0

    def figures(
        self, questions: Sequence[Question], scores: Mapping[str, np.ndarray], weights: np.ndarray
    ) -> dict[str, np.ndarray]:
        self.most_rows = max(self.most_rows, len(weights))
        right = scores["right"]

        def mean(where: np.ndarray) -> np.ndarray:
            counted = weights[:, where].sum(axis=1)
            scored = weights[:, where] @ right[where]
            return 100 * np.divide(scored, counted, out=np.full(len(weights), np.nan), where=counted > 0)

        tasks = np.array([one.task for one in questions])
        by_task = {f"task/{task}": mean(tasks == task) for task in dict.fromkeys(tasks.tolist())}
        of_tasks = np.mean(list(by_task.values()), axis=0)
        return {"overall": mean(np.full(len(tasks), True)), "mean of tasks": of_tasks, **by_task}


FAKE = cast("Benchmark", Fake())
"""It has what statistics ask of a benchmark."""


def scored(
    right: Sequence[float], tasks: str | Sequence[str], videos: str | Sequence[str] | None = None
) -> Scored:
    """One question a value, task and video each a letter; every question has its own video by default."""
    films = videos or [f"v{i}" for i in range(len(right))]
    return Scored(
        questions=[
            question(i, video, task) for i, (video, task) in enumerate(zip(films, tasks, strict=True))
        ],
        scores={"right": np.array(right, dtype=float)},
    )


# -------------------------------------------------------------------------------------------------- weights


def test_a_question_counts_as_often_as_its_video_was_drawn() -> None:
    videos = ["b", "a", "b", "c", "a", "b"]
    weights = bootstrap_weights(videos, 500, seed=3)
    assert weights.dtype == np.float32
    assert weights.shape == (500, 6)
    assert (weights[:, 0] == weights[:, 2]).all()
    assert (weights[:, 0] == weights[:, 5]).all()
    assert (weights[:, 1] == weights[:, 4]).all()
    assert (weights[:, [0, 1, 3]].sum(axis=1) == 3).all()
    assert weights[:, 3].mean() == pytest.approx(1, abs=0.15)


def test_the_seed_decides_the_weights() -> None:
    first, again, other = (bootstrap_weights(list("abcde"), 50, seed) for seed in (0, 0, 1))
    assert (first == again).all()
    assert (first != other).any()


def test_a_benchmark_of_full_size_fits_in_40_megabytes() -> None:
    assert bootstrap_weights([f"v{i % 300}" for i in range(5000)], 2000, 0).nbytes == 40_000_000


def test_no_questions_give_no_weights() -> None:
    assert bootstrap_weights([], 4, 0).shape == (4, 0)


# ------------------------------------------------------------------------------------------------ intervals


def test_the_interval_is_from_the_2_5th_to_the_97_5th_percentile_of_the_draws_that_are_there() -> None:
    draws = np.concatenate([np.arange(201.0), [np.nan] * 50])
    assert Interval.of(7.0, draws, np.ones((251, 3))) == Interval(value=7.0, low=5.0, high=195.0)


def test_figures_are_the_benchmarks_and_their_order_too() -> None:
    run = scored([1, 0, 1, 1, 0, 0, 1, 1], "ssssllll")
    assert figure_values(FAKE, run.questions, run.scores) == {
        "overall": 62.5,
        "mean of tasks": 62.5,
        "task/s": 75.0,
        "task/l": 50.0,
    }
    found = intervals(FAKE, run.questions, run.scores, 400, 0)
    assert list(found) == ["overall", "mean of tasks", "task/s", "task/l"]
    assert found["overall"].low < found["overall"].value == 62.5 < found["overall"].high
    assert not Interval(value=1.0, low=0.0, high=2.0).excludes_zero


def test_two_videos_drawn_give_the_interval_that_a_hand_can_compute() -> None:
    """Half of the draws have both videos, a quarter each has one of them twice: 50, 100 and 0."""
    run = scored([1, 1, 0, 0], "ssss", "aabb")
    assert intervals(FAKE, run.questions, run.scores, 400, 0)["overall"] == Interval(
        value=50.0, low=0.0, high=100.0
    )


def test_draws_without_a_figures_questions_are_ignored_and_a_figure_without_questions_has_no_interval() -> (
    None
):
    run = scored([1, 0, 1, 0, 0], "sssll")
    found = intervals(FAKE, run.questions, run.scores, 300, 0)
    assert found["task/l"] == Interval(value=0.0, low=0.0, high=0.0)
    run.scores["right"][3:] = np.nan
    nothing = intervals(FAKE, run.questions, run.scores, 300, 0)["task/l"]
    assert np.isnan([nothing.value, nothing.low, nothing.high]).all()
    assert not nothing.excludes_zero


@pytest.mark.parametrize(
    ("tasks", "videos", "unsure"),
    [
        ("ssll", "aaaa", {"overall", "mean of tasks", "task/s", "task/l"}),
        ("ssll", "abcc", {"task/l"}),
        ("ssll", "abab", set()),
        ("ssll", "aabb", {"mean of tasks", "task/s", "task/l"}),  # only a draw of both has a mean of tasks
    ],
)
def test_a_figure_of_one_video_has_no_interval_and_no_difference_that_excludes_0(
    tasks: str, videos: str, unsure: set[str]
) -> None:
    a, b = scored([0, 0.1, 0.3, 0], tasks, videos), scored([0.3, 1, 0.7, 0.7], tasks, videos)
    found = intervals(FAKE, b.questions, b.scores, 400, 0)
    assert {name for name, one in found.items() if np.isnan(one.low) and np.isnan(one.high)} == unsure
    compared = comparisons(FAKE, a, b, 400, 0)
    assert {name for name, one in compared.items() if np.isnan(one.difference.low)} == unsure
    assert {name for name, one in compared.items() if not one.difference.excludes_zero} == unsure
    assert compared["overall"].difference.value == pytest.approx(57.5)


def test_figures_are_asked_for_a_few_weightings_at_a_time() -> None:
    fake, run = Fake(), scored([1, 0, 1], "sss")
    intervals(cast("Benchmark", fake), run.questions, run.scores, 3 * ROWS + 1, 0)
    assert fake.most_rows == ROWS


def test_the_interval_holds_the_truth_95_times_in_100_by_videos_and_far_less_often_by_questions() -> None:
    """60 videos of 5 questions; a video's share of right answers is Beta(0.5, 0.5), so its questions go together."""
    rng, truth, worlds = np.random.default_rng(11), 50.0, 200
    held = {"videos": 0, "questions": 0}
    width = {"videos": 0.0, "questions": 0.0}
    videos = [f"v{i // 5}" for i in range(300)]
    for world in range(worlds):
        right = (rng.random(300) < np.repeat(rng.beta(0.5, 0.5, 60), 5)).astype(float)
        for kind, clusters in (("videos", videos), ("questions", [str(i) for i in range(300)])):
            weights = bootstrap_weights(clusters, 200, seed=world)
            found = Interval.of(100 * right.mean(), 100 * (weights @ right) / weights.sum(axis=1), weights)
            held[kind] += found.low <= truth <= found.high
            width[kind] += found.high - found.low
    assert 0.90 <= held["videos"] / worlds <= 0.98
    assert held["questions"] / worlds < 0.85
    assert width["videos"] > 1.4 * width["questions"]


def test_it_gives_the_numbers_of_held_out_evaluation() -> None:
    rng = np.random.default_rng(5)
    before, after = (
        {f"r{i:03d}": {"total": value} for i, value in enumerate(rng.random(40))} for _ in range(2)
    )
    gains = np.array([after[i]["total"] - before[i]["total"] for i in before])
    weights = bootstrap_weights(list(before), 500, seed=9)
    found = Interval.of(gains.mean(), weights @ gains / gains.size, weights)
    gain = paired_gain(before, after, "total", 500, seed=9)
    assert gain is not None
    assert [found.value, found.low, found.high] == pytest.approx([gain["mean"], *gain["ci95"]])


# -------------------------------------------------------------------------------------------------- compare


def test_only_questions_that_both_have_are_compared_each_with_itself() -> None:
    a = scored([1, 0, 0, 1], "ssll")
    b = a.only(["q3", "q1", "q0"])
    left, right = common(a, b)
    assert [one.id for one in left.questions] == [one.id for one in right.questions] == ["q0", "q1", "q3"]
    assert left.scores["right"].tolist() == right.scores["right"].tolist() == [1, 0, 1]
    found = comparisons(FAKE, a, b, 100, 0)
    assert found["overall"].a == found["overall"].b == pytest.approx(200 / 3)
    assert found["overall"].difference == Interval(value=0.0, low=0.0, high=0.0)


def test_runs_without_a_common_question_are_refused() -> None:
    a = scored([1, 0], "ss")
    with pytest.raises(DataError, match="no question in common"):
        common(a, Scored(questions=[], scores={"right": np.array([])}))


def test_the_same_draws_make_the_interval_of_a_difference_narrower_than_those_of_its_parts() -> None:
    rng = np.random.default_rng(2)
    hard = rng.random(400)
    a = scored((rng.random(400) < hard).astype(float).tolist(), "s" * 400)
    better = a.scores["right"].copy()
    better[np.flatnonzero(better == 0)[:25]] = 1
    b = Scored(questions=a.questions, scores={"right": better})
    found = comparisons(FAKE, a, b, 1000, 0)["overall"]
    alone = intervals(FAKE, b.questions, b.scores, 1000, 0)["overall"]
    assert found.difference.value == pytest.approx(6.25)
    assert found.difference.excludes_zero
    assert found.difference.high - found.difference.low < 0.6 * (alone.high - alone.low)
    back = comparisons(FAKE, b, a, 1000, 0)["overall"].difference
    assert [back.low, back.high] == pytest.approx([-found.difference.high, -found.difference.low])


def test_the_test_goes_to_figures_that_are_the_plain_percentage_and_to_no_others() -> None:
    a, b = scored([1, 0, 0, 0, 1, 1], "ssssll"), scored([1, 1, 1, 1, 0, 0], "ssssll")
    found = comparisons(FAKE, a, b, 50, 0, binary="right")
    assert found["overall"].test == McNemar(only_a=2, only_b=3, p_value=1.0)
    assert found["task/s"].test == McNemar(only_a=0, only_b=3, p_value=0.25)
    assert found["mean of tasks"].test is None
    assert all(one.test is None for one in comparisons(FAKE, a, b, 50, 0).values())

    class MeanOfTasks(Fake):
        def figures(self, *arguments: object) -> dict[str, np.ndarray]:
            figures = super().figures(*arguments)  # type: ignore[arg-type]
            return {**figures, "overall": figures["mean of tasks"]}

    assert comparisons(cast("Benchmark", MeanOfTasks()), a, b, 50, 0, binary="right")["overall"].test is None


# -------------------------------------------------------------------------------------------------- McNemar


@pytest.mark.parametrize(
    ("only_a", "only_b", "p_value"),
    [
        (0, 0, 1.0),
        (0, 1, 1.0),  # either of two equally probable outcomes
        (1, 5, 2 * (1 + 6) / 2**6),  # 0 or 1 heads of 6 throws, both ways
        (8, 2, 2 * (1 + 10 + 45) / 2**10),
        (3, 3, 1.0),
    ],
)
def test_mcnemar_is_a_binomial_test_on_the_questions_that_one_run_has_right(
    only_a: int, only_b: int, p_value: float
) -> None:
    a = np.array([1] * only_a + [0] * only_b + [1, 1, 0], dtype=float)
    b = np.array([0] * only_a + [1] * only_b + [1, 1, 0], dtype=float)
    found = mcnemar(a, b)
    assert (found.only_a, found.only_b) == (only_a, only_b)
    assert found.p_value == pytest.approx(p_value)
    assert mcnemar(b, a).p_value == found.p_value


def test_mcnemar_errs_at_most_as_often_as_it_says() -> None:
    """Where neither is better, p <= 0.05 at most 5 % of the time, whatever the number of unequal questions."""
    for n in (6, 20, 75):
        p_values = [
            mcnemar(np.repeat([1.0, 0], [k, n - k]), np.repeat([0, 1.0], [k, n - k])).p_value
            for k in range(n + 1)
        ]
        rejected = sum(binom.pmf(k, n, 0.5) for k in range(n + 1) if p_values[k] <= 0.05)
        assert 0.01 < rejected <= 0.05


def test_mcnemar_by_task_leaves_out_questions_without_the_column() -> None:
    a, b = scored([1, 1, 0, np.nan, 0], "sslls"), scored([0, 1, 1, np.nan, 1], "sslls")
    assert mcnemar_by_task(a, b, "right") == {
        "overall": McNemar(only_a=1, only_b=2, p_value=1.0),
        "task/s": McNemar(only_a=1, only_b=1, p_value=1.0),
        "task/l": McNemar(only_a=0, only_b=1, p_value=1.0),
    }
    assert mcnemar_by_task(a, b, "of another task") == {}


def test_mcnemar_refuses_scores_between_0_and_1() -> None:
    with pytest.raises(ValueError, match="zeros and ones"):
        mcnemar(np.array([0.0, 0.5]), np.array([0.0, 1.0]))
