"""Scoring texts that exist and comparing results, for every benchmark, as a user does; tests/test_evaluate.py asks engines."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from videostr.evaluate import __main__ as command
from videostr.evaluate.v_star import FILE


def vsi(root: Path) -> dict[str, str]:
    """True answers by id."""
    kinds = (
        "object_counting",
        "object_rel_distance",
        "object_rel_direction_easy",
        "object_rel_direction_hard",
    )
    rows = [
        {
            "id": place,
            "dataset": "arkitscenes",
            "scene_name": f"room{place // 4}",
            "question_type": kinds[place % 4],
            "question": "?",
            "ground_truth": "B" if place % 4 else "3",
            "options": ["A. one", "B. two"] if place % 4 else None,
        }
        for place in range(12)
    ]
    (root / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {str(row["id"]): str(row["ground_truth"]) for row in rows}


def v_star(root: Path) -> dict[str, str]:
    """True answers by id."""
    item = {
        "domain": "Sports", "fps": 25, "width": 640, "height": 360, "frame_count": 1000, "question": "Who?",
        "answer": "dog", "temporal_question": "When?", "timestamps": [2, 6], "spatial_question": "Where?",
        "spatial_question_2": "Where?",
        "bboxes": [{"timestamp": 3, "xmin": 1, "ymin": 1, "xmax": 9, "ymax": 9}],
    }  # fmt: skip
    (root / FILE).write_text(json.dumps([{"vid": f"v{i}", **item} for i in range(3)]))
    box = '{"3": [1, 1, 9, 9]}'
    true = {"what": "dog", "when": "2 to 6", "when_2": "2 to 6", "where": box, "where_2": box}
    return {f"{i}/{part}": text for i in range(3) for part, text in true.items()}


def sti(root: Path) -> dict[str, str]:
    """True answers by id."""
    rows = [
        {
            "Video": f"scene{place // 3:04d}_00.mp4", "ID": place, "time_start": 0.0, "time_end": 5.5, "Question": "?",
            "Candidates": {"A": "1 m", "B": "2 m"}, "Answer": "B", "Task": "Ego-Centric Orientation",
            "Source": "ScanNet", "Scene": "indoor",
        }
        for place in range(6)
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), root / "qa.parquet")
    return {str(place): "(B)" for place in range(6)}


def score(name: str, root: Path, texts: Mapping[str, str], out: Path, capsys: Any) -> dict[str, Any]:
    path = out.with_suffix(".jsonl")
    path.write_text("".join(json.dumps({"id": i, "prediction": text}) + "\n" for i, text in texts.items()))
    given = ["--predictions", str(path), "--benchmark", name, "--root", str(root), "--out", str(out)]
    assert command.main([*given, "--bootstrap", "50"]) == 0
    printed: dict[str, Any] = json.loads(capsys.readouterr().out)
    return printed


@pytest.mark.parametrize(("name", "make"), [("vsi_bench", vsi), ("v_star", v_star), ("sti_bench", sti)])
def test_scored_texts_are_compared_question_by_question(
    name: str, make: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    true = make(root)
    half = {i: text if place % 2 else "(A)" for place, (i, text) in enumerate(true.items())}
    lower = score(name, root, half, tmp_path / "half", capsys)["figures"]
    upper = score(name, root, true, tmp_path / "true", capsys)["figures"]
    rows = pq.read_table(tmp_path / "half" / "questions.parquet").to_pylist()
    assert {row["id"]: row["text"] for row in rows} == half
    assert (
        command.main(["--compare", str(tmp_path / "half"), str(tmp_path / "true"), "--bootstrap", "50"]) == 0
    )
    told = capsys.readouterr().out
    assert "The runs differ in predictions" in told
    figure = "overall" if "overall" in upper else "m_am"
    assert upper[figure]["value"] == 100
    assert 0 < lower[figure]["value"] < 100
    assert f"{100 - lower[figure]['value']:+.1f}" in told
    # Other questions: other digest, not comparable.
    if name == "sti_bench":
        more = pa.concat_tables([pq.read_table(root / "qa.parquet")] * 2)
        ids = pa.array(range(len(more)))
        pq.write_table(more.set_column(more.column_names.index("ID"), "ID", ids), root / "qa.parquet")
        score(name, root, true, tmp_path / "changed", capsys)
        assert command.main(["--compare", str(tmp_path / "true"), str(tmp_path / "changed")]) == 2
        assert "have different question files of sti_bench" in capsys.readouterr().out


def test_missing_unknown_and_repeated_ids_are_counted_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    true = sti(tmp_path)
    path = tmp_path / "p.jsonl"
    lines = [{"id": i, "prediction": text} for i, text in true.items() if i != "4"]
    lines += [lines[0], {"id": "nosuch", "prediction": "A"}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    given = [
        "--predictions",
        str(path),
        "--benchmark",
        "sti_bench",
        "--root",
        str(tmp_path),
        "--bootstrap",
        "50",
    ]
    assert command.main([*given, "--out", str(tmp_path / "out")]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["counts"] == {
        "questions": 6, "answered": 5, "missing": 1, "unknown_ids": 1, "repeated_ids": 1, "no_answer_read": 0,
    }  # fmt: skip
    assert [problem.partition(": ")[2] for problem in printed["problems"]] == ["1 (4)", "1 (nosuch)", "1 (0)"]
    assert printed["figures"]["overall"]["value"] == pytest.approx(500 / 6)
    page = (tmp_path / "out" / "figures.md").read_text()
    assert "1 of 6 questions has no prediction; it counts as wrong." in page
    assert "Counted once, though there again with the same text: 1 of the ids." in page
