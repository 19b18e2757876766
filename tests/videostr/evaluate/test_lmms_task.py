"""A record dataset as a task of lmms-eval: what is asked and shown, what is right, and its own reader, where it is installed."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from videostr.data.records import usable_records
from videostr.evaluate import lmms_task
from videostr.prompt import instruction
from videostr.types import ClipSpec
from videostr.video import decode, name_clip

LMMS_EVAL = os.environ.get("VIDEOSTR_LMMS_EVAL", "")
READ = """
import json, sys
from lmms_eval.tasks import TaskManager, get_task_dict
task = get_task_dict(["held"], TaskManager(include_path=sys.argv[1]))["held"]
docs = list(task.test_docs())
print("FOUND", json.dumps([
    [task.doc_to_text(doc), task.doc_to_target(doc), task.doc_to_visual(doc), task.config.doc_to_messages(doc),
     task.process_results(doc, ["<think>" + doc["answer"] + "</think><answer>" + doc["answer"] + "</answer>"]),
     task.config.generation_kwargs]
    for doc in docs
]))
"""
"""What lmms-eval makes of the folder, printed behind a word, for it prints more."""


@pytest.fixture(scope="module")
def folder(tabletop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("task") / "graph"
    given = ["--root", str(tabletop / "heldout"), "--out", str(out), "--mode", "graph", "--name", "held"]
    assert lmms_task.main(given) == 0
    return out


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "questions.jsonl").read_text().splitlines()]


def test_questions_are_those_of_an_evaluation_and_frames_the_very_ones(folder: Path, tabletop: Path) -> None:
    records = list(usable_records(tabletop / "heldout"))
    assert len(rows(folder)) == len(records)
    for row, record in zip(rows(folder), records, strict=True):
        assert (row["id"], row["prompt"]) == (record.id, instruction(record))
        shown = decode(name_clip(record.clip, tabletop / "heldout").spec)
        written = decode(ClipSpec(video=str(folder / row["video"]), num_frames=record.clip.num_frames))
        assert np.array_equal(shown.pixels, written.pixels)
        assert np.allclose(np.subtract(shown.times, shown.times[0]), written.times)
        assert written.metadata | {"frames_indices": None} == shown.metadata | {"frames_indices": None}


def test_an_answer_is_right_to_the_letter_or_as_the_text_of_its_option(folder: Path, tmp_path: Path) -> None:
    results = runpy.run_path(str(folder / "utils.py"))["results"]
    choice = {"answer": "B", "option": "left of it"}
    for text, right in (
        ("<think>A</think><answer> b </answer>", 1.0),
        ("<answer>Left of it</answer>", 1.0),
        ("<answer>A</answer>", 0.0),
        ("B", 0.0),  # no block
        ("", 0.0),
    ):
        assert results(choice, [text]) == {"exact_match": right}
    assert results({"answer": "3", "option": ""}, ["<answer></answer>"]) == {"exact_match": 0.0}
    direct = tmp_path / "direct.py"
    direct.write_text(lmms_task.UTILS.format(answer=lmms_task.ANSWER[True]))
    assert runpy.run_path(str(direct))["results"](choice, ["B"]) == {"exact_match": 1.0}


def test_a_second_export_keeps_the_videos_and_bad_input_ends_with_status_2(
    folder: Path, tabletop: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--root", str(tabletop / "heldout"), "--out", str(folder), "--mode", "graph", "--name", "held"]
    video = next((folder / "videos").iterdir())
    written = video.stat().st_mtime_ns
    assert lmms_task.main([*given, "--max-tokens", "300"]) == 0
    assert video.stat().st_mtime_ns == written
    read = yaml.safe_load((folder / "held.yaml").read_text().replace("!function", ""))
    assert read["generation_kwargs"]["max_new_tokens"] == 300
    assert lmms_task.main([*given[:-1], "a/b"]) == 2
    assert "--name a/b: must be letters, digits and underscores" in capsys.readouterr().err
    assert lmms_task.main(["--root", str(folder / "videos"), "--out", str(folder)]) == 2
    assert "videos" in capsys.readouterr().err


@pytest.mark.skipif(not LMMS_EVAL, reason="VIDEOSTR_LMMS_EVAL names no python with lmms-eval")
def test_lmms_eval_reads_the_folder(folder: Path) -> None:
    command = [LMMS_EVAL, "-c", READ, str(folder)]
    offline = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf")}
    read = subprocess.run(command, capture_output=True, text=True, check=False, env=offline)
    assert read.returncode == 0, read.stderr[-2000:]
    line = next(line for line in read.stdout.splitlines() if line.startswith("FOUND "))
    for row, (text, target, visual, messages, results, generation) in zip(
        rows(folder), json.loads(line.removeprefix("FOUND ")), strict=True
    ):
        video = str(folder / row["video"])
        assert (text, str(target), visual) == (row["prompt"], row["answer"], [video])
        assert messages[0]["content"] == [
            {"type": "video", "url": video},
            {"type": "text", "text": row["prompt"]},
        ]
        assert results == {"exact_match": 1.0}
        assert (generation["max_new_tokens"], generation["temperature"]) in ((2048, 0), (300, 0))
