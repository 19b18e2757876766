"""Tables of evaluated runs: what they say of failures and differences, and their JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from videostr.bootstrap import Interval
from videostr.errors import DataError
from videostr.evaluate.benchmark import Benchmark, Question
from videostr.evaluate.result import Evaluated, require_same_questions
from videostr.evaluate.statistics import Comparison, McNemar, Scored, comparisons, intervals
from videostr.evaluate.tables import Gain, compare, gains, one

QUESTIONS = [
    Question(
        id=str(i),
        video=f"v{i // 4}",
        task=("Displacement & Path Length", "Pose")[i % 2],
        scene=("indoor", "outdoor")[i // 200],
        text="?",
        truth="A",
    )
    for i in range(400)
]


class Fake:
    """Percentages of `right`: of all, by task, by scene, and a strict one."""

    columns = ("right",)

    def figures(
        self, questions: list[Question], scores: Mapping[str, np.ndarray], weights: np.ndarray
    ) -> dict[str, np.ndarray]:
        groups = {"overall": np.full(len(questions), True)}
        for kind in ("task", "scene"):
            values = np.array([getattr(one, kind) for one in questions])
            groups |= {f"{kind}/{value}": values == value for value in dict.fromkeys(values.tolist())}
        groups["strict/overall"] = groups["overall"]
        return {
            name: 100 * (weights[:, where] @ scores["right"][where]) / weights[:, where].sum(axis=1)
            for name, where in groups.items()
        }


FAKE = cast("Benchmark", Fake())


def scored(share: float, seed: int) -> Scored:
    right = np.random.default_rng(seed).random(len(QUESTIONS)) < share
    return Scored(questions=QUESTIONS, scores={"right": right.astype(float)})


def evaluated(name: str, run: Scored, **settings: str) -> Evaluated:
    found = intervals(FAKE, run.questions, run.scores, 200, 0)
    return Evaluated(
        name=name,
        benchmark="sti_bench",
        mode="direct",
        model=f"models/{name}",
        digest="0123456789abcdef" * 4,
        settings={"frames": "32", "sampling": "greedy", **settings},
        intervals=found,
        counts={"questions": 2064, "answered": 2049, "missing": 12, "failed_engine": 1, "truncated": 0},
        baselines={"chance": dict.fromkeys(found, 20.0), "constant": {"overall": 23.4}},
    )


BASE, BETTER = scored(0.3, 1), scored(0.45, 2)
COMPARED = comparisons(FAKE, BASE, BETTER, 200, 0, binary="right")
RUNS = [evaluated("base", BASE), evaluated("graph", BETTER, frames="64")]
PAGE = compare(RUNS, [COMPARED])


def line_of(text: str, start: str) -> str:
    return next(line for line in text.splitlines() if line.strip(" |").startswith(start))


def settings_of(page: str) -> list[list[str]]:
    """Return the cells of the table of settings."""
    rows = page.partition("## settings")[2].strip().split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def groups_of(page: str) -> list[str]:
    """Return the heads of the tables."""
    return [line.removeprefix("## ") for line in page.splitlines() if line.startswith("## ")]


# ------------------------------------------------------------------------------------------------- sentences


def test_one_run_says_what_was_run_and_what_earned_nothing() -> None:
    assert one(RUNS[0]).splitlines()[:5] == [
        "# sti_bench: base",
        "",
        "- sti_bench, mode direct of models/base; question files 0123456789ab; 2,049 of 2,064 questions have a text.",
        "- 12 of 2,064 questions have no prediction; they count as wrong.",
        "- 1 of 2,064 questions got no text from the engine; it counts as wrong.",
    ]


def test_a_count_that_no_sentence_is_known_for_is_told_all_the_same() -> None:
    run = replace(
        RUNS[0], counts={"questions": 9, "answered": 9, "judge_failed": 2, "unknown_ids": 1}, model=""
    )
    assert one(run).split("\n\n")[1].splitlines() == [
        "- sti_bench, mode direct; question files 0123456789ab; 9 of 9 questions have a text.",
        "- 2 of 9 questions: judge failed.",
        "- Left out, as their ids are of no question: 1 of the predictions.",
    ]


def test_a_comparison_says_which_settings_differ_those_come_first() -> None:
    assert "- The runs differ in model, frames." in PAGE.splitlines()
    assert [row[0] for row in settings_of(PAGE)] == ["model", "frames", "mode", "sampling"]
    assert settings_of(PAGE)[1] == ["frames", "32", "64"]
    same = compare([RUNS[0], RUNS[0]], [COMPARED])
    assert "- The runs have the same settings." in same.splitlines()
    lacks = compare([RUNS[0], replace(RUNS[0], settings={"frames": "32", "judge": "x"})], [COMPARED])
    assert "- The runs differ in sampling, judge." in lacks.splitlines()
    assert settings_of(lacks)[1] == ["judge", "–", "x"]


def test_a_comparison_says_for_each_run_what_earned_nothing() -> None:
    assert PAGE.split("\n\n")[1].splitlines()[1] == (
        "- graph: sti_bench, mode direct of models/graph; question files 0123456789ab; 2,049 of 2,064 questions have a text. "
        "12 of 2,064 questions have no prediction; they count as wrong. "
        "1 of 2,064 questions got no text from the engine; it counts as wrong."
    )


def test_runs_of_different_numbers_of_questions_say_what_the_differences_are_over() -> None:
    fewer = replace(RUNS[1], counts={"questions": 100, "answered": 100})
    assert "those that both have" in compare([RUNS[0], fewer], [COMPARED])
    assert "those that both have" not in PAGE


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"benchmark": "vsi_bench"}, "base is of benchmark sti_bench, graph of vsi_bench"),
        (
            {"digest": "f" * 64},
            r"different question files of sti_bench \(0123456789ab and ffffffffffff\)",
        ),
    ],
)
def test_runs_of_other_questions_are_refused(other: dict[str, str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        require_same_questions([RUNS[0], replace(RUNS[1], **other)])  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------------------- figures


def golden() -> Evaluated:
    return replace(
        RUNS[0],
        intervals={
            "overall": Interval(value=28.31, low=26.44, high=30.16),
            "task/Pose": Interval(value=8.0, low=-0.04, high=12.0),
            "task/Path": Interval(value=math.nan, low=math.nan, high=math.nan),
            "strict/task/Pose": Interval(value=7.0, low=math.nan, high=math.nan),
        },
        baselines={"chance": {"overall": 20.0}, "constant": {}},
    )


def test_figures_of_one_run_stand_in_groups_with_guessing_next_to_them() -> None:
    text = one(golden()).splitlines()
    start = text.index("## overall")
    assert text[start : start + 17] == [
        "## overall",
        "",
        "| figure  |            direct | chance | constant |",
        "| ------- | ----------------: | -----: | -------: |",
        "| overall | 28.3 [26.4, 30.2] |   20.0 |        – |",
        "",
        "## task",
        "",
        "| figure |          direct | chance | constant |",
        "| ------ | --------------: | -----: | -------: |",
        "| Pose   | 8.0 [0.0, 12.0] |      – |        – |",
        "| Path   |               – |      – |        – |",
        "",
        "## strict",
        "",
        "| figure    | direct | chance | constant |",
        "| --------- | -----: | -----: | -------: |",
    ]


def test_a_difference_has_a_sign_an_interval_a_mark_and_p() -> None:
    found = {
        "overall": Comparison(
            a=28.3,
            b=31.4,
            difference=Interval(value=3.1, low=1.02, high=5.2),
            test=McNemar(only_a=1, only_b=30, p_value=3e-8),
        ),
        "task/Pose": Comparison(
            a=8.0,
            b=6.0,
            difference=Interval(value=-2.0, low=-4.0, high=0.0),
            test=McNemar(only_a=4, only_b=2, p_value=0.6875),
        ),
        "strict/task/Pose": Comparison(a=7.0, b=6.0, difference=Interval(value=-1.0, low=-2.0, high=-0.5)),
    }
    text = compare([golden(), replace(golden(), name="b")], [found])
    assert [cell.strip() for cell in line_of(text, "figure").split("|")[2:-1]] == [
        "base",
        "b",
        "b - base",
        "p",
    ]
    assert line_of(text, "overall").endswith(r"| 28.3 [26.4, 30.2] | **+3.1 [+1.0, +5.2]** \* | <0.001 |")
    assert line_of(text, "Pose").endswith("| -2.0 [-4.0, +0.0] | 0.688 |")
    assert [cell.strip() for cell in line_of(text, "Path").split("|")[2:-1]] == ["–"] * 4
    assert line_of(text, "task/Pose").endswith(r"| **-1.0 [-2.0, -0.5]** \* |   – |")
    assert "McNemar" in text
    assert "McNemar" not in compare([golden(), golden()], [{}])


def test_what_has_no_interval_is_not_starred_and_says_why() -> None:
    right = Scored(questions=QUESTIONS[:4], scores={"right": np.ones(4)})
    wrong = Scored(questions=QUESTIONS[:4], scores={"right": np.array([1.0, 1, 0, 0])})
    page = compare(
        [evaluated("a", wrong), evaluated("b", right)],
        [comparisons(FAKE, wrong, right, 50, 0, binary="right")],
    )
    assert line_of(page, "overall").split()[1::2] == ["overall", "50.0", "100.0", "+50.0", "0.500"]
    assert "**" not in page
    note = "No interval: of one video alone, which says nothing about others."
    assert note in page
    assert note in one(evaluated("a", wrong))
    assert note not in PAGE
    assert note not in one(RUNS[0])


def test_a_figure_that_one_run_lacks_is_a_dash() -> None:
    other = replace(RUNS[1], intervals={"overall": RUNS[1].intervals["overall"]})
    page = compare([RUNS[0], other], [{"overall": COMPARED["overall"]}])
    assert [cell.strip() for cell in line_of(page, "Pose").split("|")[3:-1]] == ["–", "–", "–"]
    back = compare([other, RUNS[0]], [{}])
    assert groups_of(back) == ["overall", "task", "scene", "strict", "settings"]


def test_markdown_is_tables_with_as_many_cells_in_every_line() -> None:
    awkward = replace(RUNS[0], name="a|b *c*", settings={"prompt": "x|y"})
    for page in (PAGE, one(RUNS[0]), one(awkward), compare([awkward, *RUNS], [COMPARED, COMPARED])):
        blocks = [b.splitlines() for b in page.split("\n\n") if b.startswith("|")]
        assert len(blocks) == len(groups_of(page))
        for block in blocks:
            assert len({line.replace(r"\|", "").count("|") for line in block}) == 1
    assert r"a\|b \*c\*" in one(awkward)


def test_a_page_without_any_figure_is_written_too() -> None:
    empty = replace(RUNS[0], intervals={}, baselines={})
    for page in (one(empty), compare([empty, empty], [{}])):
        assert page.startswith("# sti_bench: base")


# ------------------------------------------------------------------------------------------------------ JSON


def test_json_gives_back_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "evaluated.json"
    RUNS[1].to_json(path)
    assert Evaluated.from_json(path) == RUNS[1]
    golden().to_json(path)
    assert "NaN" not in path.read_text()
    back = Evaluated.from_json(path)
    assert list(back.intervals) == list(golden().intervals)
    assert math.isnan(back.intervals["task/Path"].value)
    assert back.intervals["overall"] == golden().intervals["overall"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.pop("digest"), "digest"),
        (lambda v: v["intervals"]["overall"].pop("low"), r"\blow\b"),
        (lambda v: v["counts"].pop("answered"), "lacks key counts.answered"),
        (lambda v: v["settings"].update(frames=32), "settings"),
    ],
)
def test_json_without_a_key_is_refused_with_file_and_key(
    tmp_path: Path, change: object, message: str
) -> None:
    path = tmp_path / "evaluated.json"
    RUNS[0].to_json(path)
    values = json.loads(path.read_text())
    assert callable(change)
    change(values)
    path.write_text(json.dumps(values))
    with pytest.raises(DataError, match=rf"evaluated\.json: .*{message}"):
        Evaluated.from_json(path)


def test_a_file_that_is_no_json_or_not_there_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "evaluated.json"
    with pytest.raises(DataError, match=r"evaluated\.json: not a result"):
        Evaluated.from_json(path)
    path.write_text("{")
    with pytest.raises(DataError, match=r"evaluated\.json: not a result"):
        Evaluated.from_json(path)


def test_what_the_video_adds_stands_below_the_page() -> None:
    assert gains([]) == ""
    gain = Gain(what="the video", whole="m direct", control="m blind", figures=COMPARED)
    head, _, *rows = [line for line in gains([gain]).splitlines() if line.startswith("|")]
    assert "the video: m direct - m blind" in head
    cells = {row.split("|")[1].strip(): row.split("|")[2].strip() for row in rows}
    assert list(cells) == list(COMPARED)
    found = COMPARED["overall"].difference
    assert cells["overall"] == rf"**{found.value:+.1f} [{found.low:+.1f}, {found.high:+.1f}]** \*"
