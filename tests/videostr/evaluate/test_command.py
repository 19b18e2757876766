"""Scoring texts that exist and comparing results, for every benchmark, as a user does; tests/test_evaluate.py asks engines."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from videostr.config.schema import EvaluationConfig
from videostr.evaluate import __main__ as command
from videostr.evaluate.answers import Answer, Answers
from videostr.evaluate.judge import EndpointJudge
from videostr.evaluate.run import PreparedQuestion
from videostr.evaluate.v_star import FILE

ROOT = Path(__file__).parents[3]
SAID = Answer(
    text="<think></think><answer>a dog</answer>", finish_reason="STOP", prompt_tokens=1, completion_tokens=1
)


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
        assert "have different question files of sti_bench" in capsys.readouterr().err


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


def test_a_text_that_utf_8_cannot_hold_earns_what_it_earned_and_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    true = sti(tmp_path)
    odd = {i: f"\ud800 {text}" for i, text in true.items()}
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps({"id": i, "prediction": text}) + "\n" for i, text in odd.items()))
    given = ["--predictions", str(path), "--benchmark", "sti_bench", "--root", str(tmp_path)]
    assert command.main([*given, "--bootstrap", "50"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert score("sti_bench", tmp_path, odd, tmp_path / "p", capsys) == plain
    rows = pq.read_table(tmp_path / "p" / "questions.parquet").to_pylist()
    assert {row["id"]: row["text"] for row in rows} == {i: f"\ufffd {text}" for i, text in true.items()}


def test_figures_of_one_video_have_no_interval(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    true = sti(tmp_path)
    rows = pq.read_table(tmp_path / "qa.parquet").to_pylist()[:3]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "qa.parquet")
    wrong = score("sti_bench", tmp_path, dict.fromkeys(true, "(A)"), tmp_path / "wrong", capsys)
    right = score("sti_bench", tmp_path, true, tmp_path / "right", capsys)
    assert wrong["figures"]["overall"] == {"value": 0.0, "ci95": [None, None]}
    assert right["figures"]["overall"] == {"value": 100.0, "ci95": [None, None]}
    assert command.main(["--compare", str(tmp_path / "wrong"), str(tmp_path / "right")]) == 0
    told = capsys.readouterr().out
    assert "+100.0" in told
    assert "+100.0 *" not in told
    assert "No interval: of one video alone" in told


CONFIG = ("--config", "configs/eval_tabletop.yaml")
TEXTS = ("--predictions", "x.jsonl", "--benchmark", "records", "--root", "r")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([*CONFIG, "--mode", "think"], "unrecognized arguments: --mode"),
        ([*CONFIG, "--root", "D", "--seed", "3", "benchmark.limit=1"], "unrecognized arguments: --root"),
        ([*TEXTS, "limit=3"], "unrecognized arguments: limit=3"),
        (["--compare", "a", "b", "--seed", "1", "limit=3"], "unrecognized arguments: limit=3"),
        (["--compare", "a", "b", "--mode", "think"], "unrecognized arguments: --mode think"),
        (["--compare", "a", "--config", "x"], "unrecognized arguments: --compare"),
        (["--predictions", "x.jsonl"], "the following arguments are required: --benchmark, --root"),
        ([*TEXTS, "--seed", "-1"], "-1: must be a whole number, from 0 to 4294967295"),
        ([*TEXTS, "--bootstrap", "0"], "0: must be a whole number, at least 1"),
        ([*CONFIG, "run.seed=-1"], "run.seed = -1: must be a whole number, from 0 to 4294967295"),
        ([*CONFIG, f"run.seed={2**32}"], "run.seed = 4294967296: must be a whole number"),
        (["--compare", "a"], "must name at least two folders"),
        (
            [*TEXTS, "--out", "pyproject.toml"],
            "--out = pyproject.toml: cannot be made a folder (File exists)",
        ),
        (
            [*TEXTS, "--out", "pyproject.toml/x"],
            "pyproject.toml/x: cannot be made a folder (Not a directory)",
        ),
        (
            ["--compare", "a", "b", "--out", "pyproject.toml"],
            "--out = pyproject.toml: cannot be made a folder",
        ),
        ([*CONFIG, "run.dir=pyproject.toml"], "cannot be made a folder (Not a directory); name another one"),
        ([], "usage: "),
    ],
)
def test_what_would_be_ignored_or_fail_late_is_refused_at_the_start(
    given: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert command.main(given) == 2
    seen = capsys.readouterr()
    assert message in seen.out + seen.err


def test_each_mode_tells_its_own_ratings_without_a_number(
    tabletop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three items; the judge rates nothing, neither answers nor what a constant answer would score."""
    v_star(tmp_path)
    for i in range(3):
        shutil.copy(next((tabletop / "heldout").rglob("*.mp4")), tmp_path / f"v{i}.mp4")

    async def answered(
        asked: Sequence[PreparedQuestion], answers: Answers, config: EvaluationConfig
    ) -> dict[str, Any]:
        for item in asked:
            answers.put({item.key: SAID})
        return {}

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(command, "_ask", answered)
    monkeypatch.setattr(EndpointJudge, "_ask", lambda self, prompt: replace(SAID, text="good"))
    given = [
        *CONFIG, "benchmark.name=v_star", f"benchmark.root={tmp_path}", f"run.dir={tmp_path / 'out'}", "run.name=x",
        "evaluate.bootstrap=20", "benchmark.modes=[direct,think]", "judge.endpoint=http://127.0.0.1:9/v1",
    ]  # fmt: skip
    assert command.main(given) == 0
    for mode in ("direct", "think"):
        result = json.loads((tmp_path / "out" / "x" / mode / "figures.json").read_text())
        assert result["settings"]["ratings without a number"] == "3"


def test_the_table_of_all_modes_ends_with_what_the_video_adds(
    tabletop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Answers are right where the video is shown, and none where it is not."""

    async def answered(
        asked: Sequence[PreparedQuestion], answers: Answers, config: EvaluationConfig
    ) -> dict[str, Any]:
        for item in asked:
            said = "" if item.request.prompt.is_blind else item.question.truth
            answers.put({item.key: replace(SAID, text=f"<think></think><answer>{said}</answer>")})
        return {}

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(command, "_ask", answered)
    given = [
        *CONFIG, f"benchmark.root={tabletop / 'heldout'}", f"run.dir={tmp_path}", "run.name=x", "evaluate.bootstrap=20",
        "benchmark.limit=4", "benchmark.modes=[think,blind,shuffled]", "benchmark.control_prompt=think",
    ]  # fmt: skip
    assert command.main(given) == 0
    page = (tmp_path / "x" / "figures.md").read_text()
    end = page.partition("## what the video adds")[2]
    head, _, overall, *_ = [line for line in end.splitlines() if line.startswith("|")]
    names = [f"tabletop-pretrained {mode}" for mode in ("think", "blind", "shuffled")]
    assert [cell.strip() for cell in head.split("|")[2:-1]] == [
        f"the video: {names[0]} - {names[1]}",
        f"the order of frames: {names[0]} - {names[2]}",
    ]
    assert [cell.strip().strip("*").partition(" ")[0] for cell in overall.split("|")[2:-1]] == [
        "+100.0",
        "+0.0",
    ]
    folders = [str(tmp_path / "x" / mode) for mode in ("shuffled", "blind", "think")]
    capsys.readouterr()
    assert command.main(["--compare", *folders, "--bootstrap", "20"]) == 0
    assert "the video: tabletop-pretrained think - tabletop-pretrained blind" in capsys.readouterr().out
    assert command.main(["--compare", *folders[:2], "--bootstrap", "20"]) == 0
    assert "what the video adds" not in capsys.readouterr().out
