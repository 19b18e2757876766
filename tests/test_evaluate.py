"""`python -m videostr.evaluate` as a user runs it: a real engine, the tabletop's videos, all modes; killed and run again."""

from __future__ import annotations

import contextlib
import json
import re
import sqlite3
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest

from videostr.evaluate import __main__ as command

ROOT = Path(__file__).parents[1]
QUESTIONS = 8
LIMIT_S = 900
PROMPTS = ("direct", "think", "graph")
MODES = (*PROMPTS, "blind", "single_frame", "shuffled")


def arguments(tabletop: Path, results: Path, *more: str) -> list[str]:
    return [
        "--config",
        str(ROOT / "configs" / "eval_tabletop.yaml"),
        f"benchmark.root={tabletop / 'heldout'}",
        f"run.dir={results}",
        "run.name=shipped",
        f"benchmark.limit={QUESTIONS}",
        "evaluate.bootstrap=200",
        "rollout.max_num_seqs=2",  # few at once, so that a kill finds some answered and some not
        *more,
    ]


def start(given: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "videostr.evaluate", *given],
            cwd=ROOT,
            stdout=out,
            stderr=subprocess.STDOUT,
        )


def answered(results: Path) -> int:
    path = results / "answers.sqlite"
    try:
        with sqlite3.connect(f"file:{path}?mode=rw", uri=True) as db:
            return int(db.execute("select count(*) from answers").fetchone()[0])
    except sqlite3.OperationalError:  # there is no file, or no table in it yet
        return 0


def table(results: Path, mode: str) -> dict[str, dict[str, Any]]:
    rows = pq.read_table(results / "shipped" / mode / "questions.parquet").to_pylist()
    return {row["id"]: row for row in rows}


@pytest.fixture(scope="module")
def results(tabletop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Killed like by a power cut when half the questions are answered, then run again to the end."""
    folder = tmp_path_factory.mktemp("evaluations")
    process = start(arguments(tabletop, folder), folder / "first.log")
    try:
        deadline = time.monotonic() + LIMIT_S
        while answered(folder) < QUESTIONS * len(MODES) // 2:
            assert process.poll() is None, (folder / "first.log").read_text()
            assert time.monotonic() < deadline, (folder / "first.log").read_text()
            time.sleep(0.05)
    finally:
        family = []
        with contextlib.suppress(psutil.NoSuchProcess):
            driver = psutil.Process(process.pid)
            family = [driver, *driver.children(recursive=True)]
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        process.wait()
        psutil.wait_procs(family, timeout=30)
    (folder / "kept.txt").write_text(str(answered(folder)))
    again = start(arguments(tabletop, folder), folder / "second.log")
    assert again.wait(timeout=LIMIT_S) == 0, (folder / "second.log").read_text()
    return folder


def test_a_run_that_was_killed_asks_only_what_is_missing(results: Path) -> None:
    kept = int((results / "kept.txt").read_text())
    assert QUESTIONS * len(MODES) // 2 <= kept < QUESTIONS * len(MODES)
    found = re.search(r"(\d+) answers are there, (\d+) to ask", (results / "second.log").read_text())
    assert found is not None
    assert (int(found[1]), int(found[2])) == (kept, QUESTIONS * len(MODES) - kept)
    assert answered(results) == QUESTIONS * len(MODES)


def test_two_engines_that_nobody_stopped_give_the_same_result(
    results: Path, tabletop: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    process = start(arguments(tabletop, tmp_path, "rollout.num_workers=2"), log)
    assert process.wait(timeout=LIMIT_S) == 0, log.read_text()
    assert "starting 2 engines" in log.read_text()
    for mode in MODES:
        assert table(tmp_path, mode) == table(results, mode)
        for name in ("figures.json", "figures.md"):
            there, here = (folder / "shipped" / mode / name for folder in (tmp_path, results))
            assert there.read_text() == here.read_text()


def test_every_question_has_a_row_with_what_determined_it(results: Path) -> None:
    for mode in MODES:
        rows = table(results, mode)
        assert len(rows) == QUESTIONS
        for row in rows.values():
            assert row["mode"] == mode
            assert row["answered"]
            assert row["completion_tokens"] > 0
            assert row["prompt_tokens"] > len(row["times"])
            assert ("<graph>" in row["prompt"]) == (mode not in {"direct", "think"})
            assert ("<|video_pad|>" in row["prompt"]) == (mode != "blind")
    whole, blind, single, shuffled = (table(results, mode) for mode in ("graph", *MODES[len(PROMPTS) :]))
    for name, row in whole.items():
        # each pair of frames takes as many tokens; a blind prompt has none of them, and not the two around them
        assert shuffled[name]["prompt_tokens"] == row["prompt_tokens"]
        bare = blind[name]["prompt_tokens"] + 2
        per_pair, rest = divmod(row["prompt_tokens"] - bare, len(row["times"]) // 2)
        assert (rest, single[name]["prompt_tokens"] - bare) == (0, per_pair)
        assert per_pair > 0
        assert shuffled[name]["times"] == row["times"] != single[name]["times"]
    for other in (blind, single, shuffled):
        assert any(row["text"] != whole[name]["text"] for name, row in other.items())
    graph = whole.values()
    assert sum(row["score/format"] for row in graph) > QUESTIONS / 2
    assert sum(row["score/graph"] for row in graph) > 0


def test_the_same_again_starts_no_engine_and_gives_the_same_tables(results: Path, tabletop: Path) -> None:
    before = {path.name: path.read_bytes() for path in (results / "shipped" / "graph").iterdir()}
    assert command.main(arguments(tabletop, results)) == 0
    assert {path.name: path.read_bytes() for path in (results / "shipped" / "graph").iterdir()} == before


def test_modes_stand_side_by_side(results: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text = (results / "shipped" / "figures.md").read_text()
    assert all(f"pretrained {mode}" in text for mode in MODES)
    adds = text.partition("## what the video adds")[2]
    for what, mode in (
        ("the video", "blind"),
        ("more than one frame", "single_frame"),
        ("the order of frames", "shuffled"),
    ):
        assert f"{what}: tabletop-pretrained graph - tabletop-pretrained {mode}" in adds
    folders = [str(results / "shipped" / mode) for mode in ("direct", "graph")]
    assert command.main(["--compare", *folders, "--out", str(tmp_path / "table")]) == 0
    assert "The runs differ in" in capsys.readouterr().out
    # Only one of them has a graph; what both have is compared, whichever is the base.
    assert command.main(["--compare", *reversed(folders), "--out", str(tmp_path / "other")]) == 0
    assert "part/graph" not in capsys.readouterr().out
    for folder in ("other", "table"):
        assert "| graph_node " in (tmp_path / folder / "figures.md").read_text()


def test_texts_of_a_run_score_the_same_as_predictions(
    results: Path, tabletop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "predictions.jsonl"
    rows = table(results, "graph")
    path.write_text(
        "".join(json.dumps({"id": i, "prediction": row["text"]}) + "\n" for i, row in rows.items())
    )
    root = str(tabletop / "heldout")
    given = ["--predictions", str(path), "--benchmark", "records", "--root", root, "--mode", "graph"]
    assert command.main(given) == 0
    scored = json.loads(capsys.readouterr().out)
    assert scored["counts"]["answered"] == QUESTIONS
    total = scored["counts"]["questions"]
    right = sum(row["score/answer"] for row in rows.values())
    assert scored["figures"]["overall"]["value"] == pytest.approx(100 * right / total)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--predictions", "x.jsonl"], "the following arguments are required: --benchmark, --root"),
        (["--compare", "a"], "--compare a: must name at least two folders"),
        (["--compare", "a", "b"], "not a result of an evaluation"),
        (
            ["--config", "configs/eval_tabletop.yaml", "benchmark.modes=[]"],
            "benchmark.modes = []: must name at least one",
        ),
        (
            ["--config", "configs/eval_tabletop.yaml", 'model.path=""'],
            'model.path = "": must name the policy',
        ),
        (
            ["--config", "configs/eval_tabletop.yaml", "benchmark.name=mmlu"],
            "benchmark.name = mmlu: must be one of",
        ),
        (["--config", "configs/eval_tabletop.yaml", "benchmark.root=/none"], "/none"),
    ],
)
def test_bad_input_ends_with_status_2_and_says_why(
    given: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    assert command.main([*given, f"run.dir={tmp_path}"] if given[0] == "--config" else given) == 2
    seen = capsys.readouterr()
    assert message in seen.out + seen.err
