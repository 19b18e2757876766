"""Rows of Video-R1: what they hold, what comes back, what is refused."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from videostr.data.__main__ import main
from videostr.data.exchange import export_video_r1, import_video_r1
from videostr.data.records import write_records
from videostr.errors import DataError, VideoError
from videostr.types import (
    Answer,
    AnswerKind,
    ClipSpec,
    Failure,
    FailureKind,
    GraphFrame,
    Mark,
    Node,
    Record,
    SceneGraph,
)
from videostr.video import decode

GRAPH = SceneGraph(
    unit="m",
    frame="floor",
    frames=(GraphFrame(t=0.5, nodes=(Node(id="cup.1", label="cup", pos=(1.0, 2.5), size=(0.5, 0.5)),)),),
)


def record(name: str, answer: Answer, question: str = "How many?", **changes: Any) -> Record:
    values: dict[str, Any] = {
        "id": name,
        "source": "kitti",
        "family": "speed",
        "question": question,
        "options": (),
        "answer": answer,
        "clip": ClipSpec(video="videos/0001.mp4", num_frames=4, start_s=1.0, end_s=3.5),
        "labels": ("cup", "pen"),
        "graph": GRAPH,
    }
    return Record(**values | changes)


def number(name: str, value: float, unit: str = "", **changes: Any) -> Record:
    return record(name, Answer(kind=AnswerKind.NUMBER, value=value, unit=unit), **changes)


CHOICE = record(
    "kitti/0001/0/direction/1",
    Answer(kind=AnswerKind.CHOICE, value="B"),
    question="Where is the cup?\nLook from the pen.",
    options=("on the left", "B. on the right", "neither"),
)
BOX = record("kitti/0001/0/box/1", Answer(kind=AnswerKind.BOX2D, value=(0.0, 1.0, 2.5, 4.0)))
RECORDS = [
    CHOICE,
    number("kitti/0001/0/counting/2", 7.0, graph=None),
    number("kitti/0001/0/speed/3", 1234567.125, "m/s", question="How fast is it?"),
    number("kitti/0001/0/size/4", -3.0, "m", question="How far? Answer in the frame of the room."),
    number("kitti/0001/0/size/5", 0.1 + 0.2, "", graph=None),
    number("kitti/0001/0/size/6", 3e-7, "deg"),
]


def good(rows: Any) -> list[Record]:
    found = list(rows)
    assert all(isinstance(row, Record) for row in found), found
    return found


def test_video_r1_rows(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "rows.jsonl"
    assert export_video_r1([*RECORDS[:4], BOX], out, tmp_path) == 4
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert rows[0] == {
        "problem_id": "kitti/0001/0/direction/1",
        "problem": "Where is the cup?\nLook from the pen.",
        "data_type": "video",
        "problem_type": "multiple choice",
        "options": ["A. on the left", "B. B. on the right", "C. neither"],
        "solution": "<answer>B</answer>",
        "path": str(tmp_path / "videos/0001.mp4"),
        "data_source": "kitti",
    }
    told = [(row["problem_type"], row["problem"], row["options"], row["solution"]) for row in rows[1:]]
    assert told == [
        ("numerical", "How many?", [], "<answer>7</answer>"),
        ("regression", "How fast is it? Answer in m/s.", [], "<answer>1234567.125</answer>"),
        ("regression", "How far? Answer in the frame of the room. Answer in m.", [], "<answer>-3</answer>"),
    ]


def test_video_r1_there_and_back(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    assert export_video_r1(iter(RECORDS), out, tmp_path) == len(RECORDS)
    back = good(import_video_r1(out, num_frames=8))
    for old, new in zip(RECORDS, back, strict=True):
        assert (new.id, new.source) == (old.id, old.source)
        assert (new.question, new.options, new.answer) == (old.question, old.options, old.answer)
        assert new.clip == ClipSpec(video=str(tmp_path / "videos/0001.mp4"), num_frames=8)
        assert (new.labels, new.graph) == ((), None)
    assert [new.family for new in back[:3]] == ["multiple_choice", "numerical", "regression"]
    assert back[2].origin == f"{out}:3"


def foreign(**changes: Any) -> dict[str, Any]:
    """A row as Video-R1 publishes them."""
    return {
        "problem_id": 17,
        "problem": "What does the man pick up?",
        "data_type": "video",
        "problem_type": "multiple choice",
        "options": ["A. A cup.", "B. A pen."],
        "process": "",
        "solution": "<answer>A</answer>",
        "path": "./LLaVA-Video-178K/NextQA/1234.mp4",
        "data_source": "NextQA",
    } | changes


def written(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_video_r1_foreign_rows(tmp_path: Path) -> None:
    numeric = {"problem_id": 18, "problem_type": "regression", "options": [], "data_source": None}
    path = written(
        tmp_path / "rows.jsonl",
        foreign(),
        "",
        foreign(**numeric, problem="How tall?", solution="<answer> 1,204.5 </answer>"),
        foreign(problem_id=19, options=["A cup.", "A pen."], data_source="SpaceR"),
    )
    choice, height, bare = good(import_video_r1(path, unit="m"))
    assert choice.id == "NextQA/1234/17"
    assert (choice.source, choice.options) == ("NextQA", ("A cup.", "A pen."))
    assert choice.answer == Answer(kind=AnswerKind.CHOICE, value="A")
    assert choice.clip == ClipSpec(video="./LLaVA-Video-178K/NextQA/1234.mp4", num_frames=16)
    assert height.answer == Answer(kind=AnswerKind.NUMBER, value=1204.5, unit="m")
    assert (height.id, height.source, height.origin) == ("video-r1/1234/18", "video-r1", f"{path}:3")
    assert bare.options == ("A cup.", "A pen.")


MARKS = (Mark(object="cup.1", text="3", boxes=((1.5, 400.0, 300.0, 700.0, 800.0),)),)


@pytest.fixture
def marked(tmp_path: Path) -> Record:
    """A choice about a clip of four grey images of odd height, from 1 s to 2.5 s, one of which has a mark."""
    for number in range(6):
        Image.new("RGB", (160, 121), (100 + number, 100, 100)).save(tmp_path / f"{number}.png")
    listed = {"root": ".", "fps": 2, "frames": [[number / 2, f"{number}.png"] for number in range(6)]}
    (tmp_path / "v.frames.json").write_text(json.dumps(listed))
    clip = ClipSpec(video="v.frames.json", num_frames=4, start_s=1.0, end_s=2.5, marks=MARKS)
    return replace(CHOICE, id="m", clip=clip)


def test_marked_clips_are_exported_with_their_marks(tmp_path: Path, marked: Record) -> None:
    out = tmp_path / "rows.jsonl"
    assert export_video_r1([marked, replace(marked, id="n"), RECORDS[1]], out, tmp_path) == 3
    first, second, plain = map(json.loads, out.read_text().splitlines())
    assert first["problem"].startswith(
        "The frames of the video are from 1, 1.5, 2, 2.5 s.\nWhere is the cup?"
    )
    assert first["path"] == second["path"]
    assert plain["path"] == str(tmp_path / "videos/0001.mp4")
    assert Path(first["path"]).parent == tmp_path / "rows-marked"
    back = good(import_video_r1(out, num_frames=4))[0]
    shown = decode(back.clip)
    assert shown.times == (0.0, 0.5, 1.0, 1.5)
    assert shown.pixels.shape == (4, 122, 160, 3)
    wanted = decode(replace(marked.clip, video=str(tmp_path / "v.frames.json"))).pixels
    assert np.abs(shown.pixels[:, :121].astype(float) - wanted).mean() < 3
    spread = [int(np.ptp(frame)) for frame in shown.pixels[..., 2].astype(int)]
    assert spread[1] > 60 > 3 * max(spread[0], spread[2], spread[3])  # the mark is in its frame alone


def test_marked_clips_as_images_or_not_at_all(tmp_path: Path, marked: Record) -> None:
    out = tmp_path / "rows.jsonl"
    assert export_video_r1([marked], out, tmp_path, "frames") == 1
    row = json.loads(out.read_text())
    assert [Path(name).parent for name in row["frames"]] == [Path(row["path"])] * 4
    wanted = decode(replace(marked.clip, video=str(tmp_path / "v.frames.json"))).pixels
    assert all(
        (np.asarray(Image.open(name)) == pixels).all()
        for name, pixels in zip(row["frames"], wanted, strict=True)
    )
    assert export_video_r1([marked, RECORDS[1]], out, tmp_path, None) == 1
    with pytest.raises(VideoError):
        export_video_r1([replace(marked, clip=replace(marked.clip, video="gone.mp4"))], out, tmp_path)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (
            foreign(problem_type="free-form"),
            "problem_type: must be one of multiple choice, numerical, regression",
        ),
        (foreign(problem_type="OCR"), "problem_type: must be"),
        (foreign(data_type="image"), "data_type: must be one of video"),
        (foreign(solution="A"), "solution = 'A': must hold <answer>"),
        (foreign(solution="<answer>C</answer>"), '"C"\' of kind choice: must be the letter'),
        (foreign(options=None), "must be the letter of one of at least two options"),
        (foreign(options=["B. x", "A. y"]), "options = .* in order"),
        (foreign(options=["A. x", "y"]), "options = .* in order"),
        (
            foreign(problem_type="numerical", solution="<answer>two</answer>"),
            "answer 'two': must be a number",
        ),
        (
            foreign(problem_type="numerical", solution="<answer>1,5</answer>"),
            "answer '1,5': must be a number",
        ),
        (foreign(problem_type="numerical", solution="<answer></answer>"), "answer '': must be a number"),
        (foreign(problem_type="numerical", solution="<answer>.</answer>"), r"answer '\.': must be a number"),
        (
            foreign(problem_type="numerical", solution="<answer>1e999</answer>"),
            "Infinity.* must be a finite number",
        ),
        (foreign(problem=" "), "question = '"),
        (foreign(path=""), "clip.video = ''"),
        (foreign(path=None), "path"),
        (foreign(problem_id=1.5), "problem_id"),
        ({"problem": "x"}, "problem_id"),
        ("[1]", ""),
        ('{"problem_id": 1', ""),
    ],
)
def test_video_r1_bad_row(tmp_path: Path, row: Any, words: str) -> None:
    path = written(tmp_path / "rows.jsonl", foreign(), row, foreign(problem_id=19))
    first, bad, last = import_video_r1(path)
    assert isinstance(first, Record)
    assert isinstance(last, Record)
    assert isinstance(bad, Failure)
    assert (bad.kind, bad.record_id) == (FailureKind.BAD_ROW, f"{path}:2")
    assert bad.detail.startswith(f"{path}:2: ")
    assert re.search(words, bad.detail.removeprefix(f"{path}:2: "))


def test_video_r1_id_twice(tmp_path: Path) -> None:
    _, again = import_video_r1(written(tmp_path / "rows.jsonl", foreign(), foreign(problem="Other?")))
    assert isinstance(again, Failure)
    assert "NextQA/1234/17" in again.detail
    assert "rows.jsonl:2: " in again.detail


def test_import_of_nothing_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows, out = tmp_path / "rows.jsonl", tmp_path / "out"
    rows.write_text("{}\n")
    command = ["import", str(rows), "--format", "video-r1", "--out", str(out)]
    assert main(command) == 2
    assert f"error: {rows}: none of its 1 rows can be used, nothing is written" in capsys.readouterr().err
    assert not out.exists()
    export_video_r1(RECORDS, rows, tmp_path)
    assert main(command) == 0


def test_video_r1_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl: cannot be read"):
        list(import_video_r1(tmp_path / "none.jsonl"))


def test_datasets_reads_our_parquet(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    write_records(RECORDS, tmp_path / "records-00000.parquet")
    rows = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "*.parquet"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert rows["id"][:] == [each.id for each in RECORDS]
    assert rows[0]["answer"] == {"kind": "choice", "value": '"B"', "unit": ""}
