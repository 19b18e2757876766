"""Predictions files: what does not fit is counted and named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from videostr.errors import DataError
from videostr.evaluate.benchmark import Question
from videostr.evaluate.predictions import Prediction, read_predictions

QUESTIONS = [Question(id=f"q{i}", video="v.mp4", task="t", text="?", truth="A") for i in range(8)]


def write(path: Path, *lines: Any) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def test_texts_by_id_and_what_is_missing_or_unknown(tmp_path: Path) -> None:
    path = write(
        tmp_path / "p.jsonl",
        {"id": "q0", "prediction": "A"},
        "",
        {"id": "q1", "prediction": "", "width": 640, "height": 480},
        {"id": "x", "prediction": "B"},
        {"id": "q0", "prediction": "A"},
    )
    found = read_predictions(path, QUESTIONS)
    assert found.by_id == {"q0": Prediction(text="A"), "q1": Prediction(text="", size=(640, 480))}
    assert found.missing == tuple(f"q{i}" for i in range(2, 8))
    assert found.unknown == ("x",)
    assert found.repeated == ("q0",)
    assert found.problems() == [
        "questions without a prediction, which count as wrong: 6 (q2, q3, q4, q5, q6 and 1 more)",
        "ids that are of no question, which are left out: 1 (x)",
        "ids that are there again with the same text, which count once: 1 (q0)",
    ]


def test_a_text_may_hold_other_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(
        '{"id": "q0", "prediction": "A\u2028or\x85B"}\r\n{"id": "q1", "prediction": "B"}'.encode()
    )
    found = read_predictions(path, QUESTIONS)
    assert found.by_id == {"q0": Prediction(text="A\u2028or\x85B"), "q1": Prediction(text="B")}


def test_samples_that_lmms_eval_logs_are_read_by_the_place_of_the_question(tmp_path: Path) -> None:
    """`resps` has the whole text, and is left out where nothing was taken off; a request that failed left no text."""
    path = write(
        tmp_path / "p.jsonl",
        {"doc_id": 1, "resps": "<think>x</think>A", "filtered_resps": "A", "target": "A", "input": "?"},
        {"doc_id": 0, "filtered_resps": "B"},
        {"doc_id": 8, "filtered_resps": "B"},
        {"doc_id": 2, "filtered_resps": "[LMMS_EVAL_REQUEST_FAILED after 5 retries] Error code: 400"},
    )
    found = read_predictions(path, QUESTIONS)
    assert found.by_id == {"q1": Prediction(text="<think>x</think>A"), "q0": Prediction(text="B")}
    assert found.unknown == ("doc_id 8",)
    assert "q2" in found.missing


def test_a_number_may_be_an_id(tmp_path: Path) -> None:
    questions = [Question(id="17", video="v.mp4", task="t", text="?", truth="A")]
    assert (
        read_predictions(write(tmp_path / "p.jsonl", {"id": 17, "prediction": "A"}), questions).missing == ()
    )


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            [{"id": "q0", "prediction": "A"}, {"id": "q0", "prediction": "B"}],
            r":2: id 'q0' is there twice, in line 1",
        ),
        (["{"], r":1: is not JSON"),
        (["[" * 100_000], r":1: is not JSON"),
        ([["q0", "A"]], r":1: must be an object with id, prediction"),
        ([{"id": "q0"}], r":1: prediction: is missing"),
        ([{"id": None, "prediction": "A"}], r":1: id: must be a whole number, or text"),
        ([{"id": True, "prediction": "A"}], r":1: id: must be a whole number, or text"),
        ([{"id": "q0", "prediction": 3}], r":1: prediction: must be text"),
        ([{"doc_id": -1, "filtered_resps": ""}], r":1: doc_id: must be a whole number, at least 0"),
        ([{"doc_id": 0}], r":1: filtered_resps: is missing"),
        (
            [{"id": "q0", "prediction": "A", "width": 3}],
            r":1: width and height: must both be there",
        ),
        (
            [{"id": "q0", "prediction": "A", "width": 3, "height": 0}],
            r":1: height: must be a whole number, at least 1",
        ),
        ([{"id": "x", "prediction": "A"}], r"none of its 1 ids is one of the benchmark's 8 \(such as 'q0'\)"),
        ([], r"none of its 0 ids"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path: Path, lines: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_predictions(write(tmp_path / "p.jsonl", *lines), QUESTIONS)


def test_a_missing_or_binary_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_predictions(tmp_path / "none.jsonl", QUESTIONS)
    (tmp_path / "b.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot be read"):
        read_predictions(tmp_path / "b.jsonl", QUESTIONS)
