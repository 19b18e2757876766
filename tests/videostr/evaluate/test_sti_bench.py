"""STI-Bench: rows in the true form -> questions, prompts, letters, figures; every rule of the form broken once."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from videostr.errors import DataError
from videostr.evaluate.benchmark import Question
from videostr.evaluate.sti_bench import StiBench, extract

BENCHMARK = StiBench()
OPTIONS = {"A": "0.5 m", "B": "1.5 m", "C": "2.5 m", "D": "3.5 m", "E": "4.5 m"}


def row(**changes: Any) -> dict[str, Any]:
    return {
        "Video": "scene0011_00.mp4",
        "Source": "ScanNet",
        "ID": 1,
        "time_start": 0.0,
        "time_end": 12.5,
        "Task": "Dimensional Measurement",
        "QType": "mcq",
        "Question": "How wide is the table?",
        "Candidates": dict(OPTIONS),
        "Answer": "B",
        "Answer Detail": "1.5 m",
        "Scene": "indoor",
    } | changes


def read(root: Path, *rows: dict[str, Any]) -> tuple[Question, ...]:
    pq.write_table(pa.Table.from_pylist(list(rows)), root / "qa.parquet")
    return BENCHMARK.read(root).questions


def question(**changes: Any) -> Question:
    return Question(
        **(
            {
                "id": "q",
                "video": "video/v.mp4",
                "task": "t",
                "text": "?",
                "options": tuple(OPTIONS.values()),
                "truth": "B",
            }
            | changes
        )
    )


# -------------------------------------------------------------------------------------------------- reading


def test_a_row(tmp_path: Path) -> None:
    (asked,) = read(tmp_path, row())
    assert (asked.id, asked.video, asked.task) == ("1", "video/scene0011_00.mp4", "Dimensional Measurement")
    assert (asked.scene, asked.source, asked.start_s, asked.end_s) == ("indoor", "ScanNet", 0.0, 12.5)
    assert (asked.text, asked.options, asked.truth) == (
        "How wide is the table?",
        tuple(OPTIONS.values()),
        "B",
    )
    digest = hashlib.sha256((tmp_path / "qa.parquet").read_bytes()).hexdigest()
    assert BENCHMARK.read(tmp_path).digest == digest


def test_the_prompt_has_the_times_of_the_file(tmp_path: Path) -> None:
    (asked,) = read(tmp_path, row(time_start=0, time_end=12))
    assert BENCHMARK.prompt(asked, 99.0, (1, 1)) == (
        "From 0 s to 12 s. How wide is the table?\n(A) 0.5 m\n(B) 1.5 m\n(C) 2.5 m\n(D) 3.5 m\n(E) 4.5 m\n"
        "Please output only the option letter!"
    )
    (asked,) = read(tmp_path, row())
    assert BENCHMARK.prompt(asked, 99.0, (1, 1)).startswith("From 0.0 s to 12.5 s. ")
    assert "letter" in BENCHMARK.asks(asked)


def test_a_plain_id_counts_where_it_is_unique(tmp_path: Path) -> None:
    assert [q.id for q in read(tmp_path, row(ID=1), row(ID=2))] == ["1", "2"]
    keys = [q.id for q in read(tmp_path, row(ID=1), row(ID=1, Video="000012.mp4"))]
    assert keys == ["scene0011_00.mp4|1|0.0|12.5", "000012.mp4|1|0.0|12.5"]


def test_candidates_as_json_and_with_nulls(tmp_path: Path) -> None:
    (asked,) = read(tmp_path, row(Candidates=json.dumps({"A": "left", "B": 2})))
    assert asked.options == ("left", "2")
    # A struct column has the members of all rows: the second row has no E, and the official prompt says so.
    _, asked = read(tmp_path, row(), row(ID=2, Candidates={k: OPTIONS[k] for k in "ABCD"}))
    assert asked.options == tuple(OPTIONS.values())[:4]
    assert BENCHMARK.prompt(asked, 1.0, (1, 1)).endswith("\n(E) None\nPlease output only the option letter!")
    assert BENCHMARK.chance(asked) == {"accuracy": 0.25, "strict": 0.25}


@pytest.mark.parametrize(
    ("changes", "scene"),
    [
        ({"Scene": "street", "scene": "home"}, "home"),
        ({"Scene": "street"}, "street"),
        ({"Scene": None}, "indoor"),
        ({"Scene": "", "Video": "seg_camera_1.mp4"}, "outdoor"),
        ({"Scene": None, "Video": "000012.mp4"}, "desktop"),
        ({"Scene": None, "Video": "0012.mp4"}, "unknown"),
    ],
)
def test_the_kind_of_scene(tmp_path: Path, changes: dict[str, Any], scene: str) -> None:
    assert read(tmp_path, row(**changes))[0].scene == scene


def test_videos_may_lie_in_either_folder(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    assert read(tmp_path, row())[0].video == "videos/scene0011_00.mp4"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"Candidates": "{A"}, ["Candidates '{A'", "JSON"]),
        ({"Candidates": "[" * 5000}, ["Candidates", "JSON"]),
        ({"Candidates": json.dumps({"A": "x"})}, ["['A']", "2 to 5 letters"]),
        ({"Candidates": json.dumps({"A": "x", "C": "y"})}, ["['A', 'C']"]),
        ({"Candidates": json.dumps({"A": ["x"], "B": "y"})}, ["Candidates"]),
        ({"Answer": "F"}, ["Answer 'F'", "one of"]),
        ({"Answer": None}, ["Answer"]),
        ({"Question": 7}, ["Question"]),
        ({"time_start": "0"}, ["time_start"]),
        ({"time_start": float("nan")}, ["time_start nan", "finite"]),
        ({"time_start": 13.0}, ["time_start 13.0", "in order"]),
        ({"Video": "../v.mp4"}, ["Video '../v.mp4'", "below"]),
    ],
)
def test_a_broken_row_is_named(tmp_path: Path, changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, row(**changes))
    message, _, _ = str(caught.value).partition(", in {")  # the row follows, and holds every key
    for word in ["qa.parquet: row 0", *words]:
        assert word in message


def test_broken_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"qa\.parquet: cannot be read"):
        BENCHMARK.read(tmp_path)
    (tmp_path / "qa.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match="no Parquet file"):
        BENCHMARK.read(tmp_path)
    pq.write_table(pa.Table.from_pylist([row()]).slice(0, 0), tmp_path / "qa.parquet")
    with pytest.raises(DataError, match="no rows"):
        BENCHMARK.read(tmp_path)
    with pytest.raises(DataError, match=r"row 1: Video\|ID\|time_start\|time_end is .*, as in row 0"):
        read(tmp_path, row(), row())
    pq.write_table(pa.Table.from_pylist([{"Video": "v.mp4"}]), tmp_path / "qa.parquet")
    with pytest.raises(DataError, match=r"qa\.parquet: row 0: "):
        BENCHMARK.read(tmp_path)


# -------------------------------------------------------------------------------------------------- scoring


@pytest.mark.parametrize(
    ("text", "official", "strict"),
    [
        ("B", "B", 1),
        (" B\n", "B", 1),
        ("(b)", "B", 1),
        ("B.", "B", 1),
        ("b", "", 1),  # the last character counts as it is
        ("B. 1.5 m", "", 1),  # "B." counts at the end of a line only
        ("B) 1.5 m", "", 1),
        ("1.5 m", "", 1),
        ("Answer: B", "B", 0),
        ("Option B", "B", 1),
        ("B is correct", "B", 0),
        ("Not (A) but (B)", "A", 0),  # the first
        ("Answer: definitely B", "D", 0),  # case is ignored, a word's first letter will do
        ("option available", "A", 0),
        ("It has no NAME", "E", 0),  # the last character of any text
        ("B.\nbecause it is wide", "B", 1),
        ("", "", 0),
        ("  ", "", 0),
    ],
)
def test_extraction(text: str, official: str, strict: int) -> None:
    verdict = BENCHMARK.score(question(), text, None)
    assert (verdict.extracted, extract(text)) == (official, official)
    assert verdict.scores == {"accuracy": float(official == "B"), "strict": float(strict)}
    assert bool(verdict.note) == (official == "")


@given(st.one_of(st.text(), st.binary().map(lambda data: data.decode("latin-1"))))
def test_any_text_is_scored(text: str) -> None:
    verdict = BENCHMARK.score(question(), text, (640, 480))
    assert set(verdict.scores) == set(BENCHMARK.columns)
    assert set(verdict.scores.values()) <= {0.0, 1.0}


@pytest.mark.parametrize("part", ["[", " ", "A", "A ", "A.", "Option ", "Answer:", "\n", "(", "1"])
def test_a_long_text_takes_no_time(part: str) -> None:
    start = time.monotonic()
    for length in (60_000, 1_000_000):
        BENCHMARK.score(question(), part * (length // len(part)), None)
    assert time.monotonic() - start < 5


# -------------------------------------------------------------------------------------------------- figures


def test_figures() -> None:
    questions = [
        question(id="1", task="Pose", scene="indoor", source="ScanNet"),
        question(id="2", task="Pose", scene="outdoor", source="Waymo"),
        question(id="3", task="Speed", scene="outdoor", source=""),
    ]
    scores = {"accuracy": np.array([1.0, 0.0, 1.0]), "strict": np.array([1.0, 0.0, 0.0])}
    weights = np.array([[1, 1, 1], [2, 1, 0], [0, 0, 0]])
    figures = BENCHMARK.figures(questions, scores, weights)
    # Micro: 2 of 3; drawn twice, once and not: 2 of 3; nothing drawn: no figure.
    assert figures["overall"] == pytest.approx([200 / 3, 200 / 3, np.nan], nan_ok=True)
    assert figures["task/Pose"] == pytest.approx([50, 200 / 3, np.nan], nan_ok=True)
    assert figures["task/Speed"] == pytest.approx([100, np.nan, np.nan], nan_ok=True)
    assert figures["scene/outdoor"] == pytest.approx([50, 0, np.nan], nan_ok=True)
    assert figures["strict/overall"] == pytest.approx([100 / 3, 200 / 3, np.nan], nan_ok=True)
    plain = [
        "overall",
        "task/Pose",
        "task/Speed",
        "scene/indoor",
        "scene/outdoor",
        "source/ScanNet",
        "source/Waymo",
    ]
    assert list(figures) == [*plain, *(f"strict/{name}" for name in plain)]


def test_the_constant_is_the_most_frequent_letter_of_a_task() -> None:
    truths = [("Pose", "C"), ("Pose", "B"), ("Pose", "C"), ("Speed", "D"), ("Speed", "A")]
    questions = [question(id=str(n), task=task, truth=truth) for n, (task, truth) in enumerate(truths)]
    assert list(BENCHMARK.constant(questions).values()) == ["C", "C", "C", "A", "A"]
    assert BENCHMARK.chance(questions[0]) == {"accuracy": 0.2, "strict": 0.2}
