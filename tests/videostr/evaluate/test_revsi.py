"""ReVSI: rows of a split -> questions, prompts, readings and figures that differ from VSI-Bench's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from videostr.errors import DataError
from videostr.evaluate.benchmark import QuestionSet
from videostr.evaluate.revsi import ReVsi

BENCHMARK = ReVsi()


def row(n: int, kind: str, truth: str, *options: str, **changes: Any) -> dict[str, Any]:
    return {
        "id": n, "dataset": "scannet", "scene_id": f"scene{n}_00", "question_type": kind, "question": "What?",
        "options": list(options) or None, "ground_truth": truth, "num_frames": 16,
    } | changes  # fmt: skip


def read(root: Path, *rows: dict[str, Any]) -> QuestionSet:
    pq.write_table(pa.Table.from_pylist(list(rows)), root / "test-00000-of-00001.parquet")
    return BENCHMARK.read(root)


def test_rows_and_prompts(tmp_path: Path) -> None:
    kinds = ("object_rel_direction_backward_hard", "room_size_estimation_multiple")
    questions = read(
        tmp_path, row(0, kinds[0], "B", "A. left", "B. right"), row(1, kinds[1], "21.5")
    ).questions
    choice, number = questions
    assert (choice.video, choice.task, choice.options) == (
        "scene0_00.mp4",
        "object_rel_direction",
        ("left", "right"),
    )
    assert (number.id, number.task, number.truth) == ("1", "room_size_estimation", "21.5")
    assert BENCHMARK.asks(number) == "one number in m2"
    head, tail = (
        "These are frames of a video.\nWhat?\n",
        "Answer the question using a single integer or decimal number.",
    )
    assert BENCHMARK.prompt(number, 9.0, (1, 1)) == head + tail
    assert BENCHMARK.prompt(choice, 9.0, (1, 1)).startswith(
        f"{head}Options:\nA. left\nB. right\nAnswer with the option's letter"
    )


def test_white_space_before_an_answer_is_left_out(tmp_path: Path) -> None:
    """Where VSI-Bench's program reads an empty answer."""
    (question,) = read(tmp_path, row(0, "route_planning", "A", "A. one", "B. two")).questions
    assert [
        BENCHMARK.score(question, text, None).scores["accuracy"] for text in (" A", "\na. one", "(A)")
    ] == [1, 1, 0]


def test_a_task_is_the_mean_of_its_types_and_overall_that_of_the_tasks(tmp_path: Path) -> None:
    """Counting: one object right, 1; two objects, of which the first of two answers is right, 0.5; so 0.75. Routes: 0."""
    known = read(
        tmp_path,
        row(0, "object_counting_single", "3"),
        row(1, "object_counting_multiple", "4"),
        row(2, "object_counting_multiple", "4"),
        row(3, "route_planning", "A", "A. one", "B. two"),
    )
    scores = {
        "mra": np.array([1, 1, 0, np.nan]), "accuracy": np.array([np.nan] * 3 + [0]), "strict": np.array([1, 1, 0, 0.0]),
    }  # fmt: skip
    found = BENCHMARK.figures(known.questions, scores, np.ones((1, 4)))
    assert {name: float(value[0]) for name, value in found.items() if not name.startswith("strict/")} == {
        "overall": 37.5,
        "task/object_counting": 75.0,
        "task/route_planning": 0.0,
        "level/object_counting_single": 100.0,
        "level/object_counting_multiple": 50.0,
    }


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scene_id": "a/b"}, "scene_id 'a/b'"),
        ({"scene_id": ""}, "scene_id ''"),
        (
            {"question_type": "object_counting"},
            "question_type 'object_counting': must be one of object_abs_distance",
        ),
    ],
)
def test_a_broken_row_is_named(changes: dict[str, str], words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="row 0") as caught:
        read(tmp_path, row(0, "route_planning", "A", "A. one", "B. two", **changes))
    assert words in str(caught.value)
