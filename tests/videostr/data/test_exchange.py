"""Rows of other trainers: what they hold, what comes back, what is refused."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from videostr import graph as graphs
from videostr.data.__main__ import main
from videostr.data.exchange import (
    export_easyr1,
    export_trl,
    export_video_r1,
    import_easyr1,
    import_video_r1,
)
from videostr.data.records import write_records
from videostr.errors import DataError
from videostr.prompt import instruction
from videostr.types import (
    Answer,
    AnswerKind,
    ClipSpec,
    Failure,
    FailureKind,
    GraphFrame,
    Node,
    Record,
    SceneGraph,
)

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


# ---------------------------------------------------------------------------------------------------- Video-R1


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


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (
            foreign(problem_type="free-form"),
            "problem_type = 'free-form': must be one of multiple choice, num",
        ),
        (foreign(problem_type="OCR"), "problem_type = 'OCR'"),
        (foreign(data_type="image"), "data_type = 'image': must be 'video'"),
        (foreign(solution="A"), "solution = 'A': must hold <answer>"),
        (foreign(solution="<answer>C</answer>"), "'C' of kind choice: must be the letter"),
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
            "inf .* must be a finite number",
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


# ------------------------------------------------------------------------------------------------------ EasyR1


def test_easyr1_rows(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "rows.parquet"
    assert export_easyr1([CHOICE, RECORDS[2], BOX], out, tmp_path) == 3
    rows = pq.read_table(out).to_pylist()
    assert [row["problem"] for row in rows] == [
        f"<video>{instruction(each)}" for each in (CHOICE, RECORDS[2], BOX)
    ]
    assert [row["answer"] for row in rows] == ["B", "1234567.125", "[0,1,2.5,4]"]
    assert all(row["videos"] == [str(tmp_path / "videos/0001.mp4")] for row in rows)
    assert all(set(row) == {"problem", "answer", "videos"} for row in rows)


def test_easyr1_there_and_back(tmp_path: Path) -> None:
    out = tmp_path / "rows.parquet"
    export_easyr1([*RECORDS, BOX], out, tmp_path)
    *back, box = import_easyr1(out, num_frames=8)
    assert isinstance(box, Failure)
    assert f"{out}:6: answer '[0,1,2.5,4]': must be a number" in box.detail
    for place, (old, new) in enumerate(zip(RECORDS, good(back), strict=True)):
        assert (new.question, new.options, new.answer) == (old.question, old.options, old.answer)
        assert new.clip == ClipSpec(video=str(tmp_path / "videos/0001.mp4"), num_frames=8)
        assert (new.id, new.source, new.family) == (f"easyr1/0001/{place}", "easyr1", "unknown")


def easyr1(path: Path, *rows: tuple[str, str, list[str] | None]) -> Path:
    columns = ("problem", "answer", "videos")
    pq.write_table(pa.Table.from_pylist([dict(zip(columns, row, strict=True)) for row in rows]), path)
    return path


def test_easyr1_foreign_rows(tmp_path: Path) -> None:
    path = easyr1(
        tmp_path / "rows.parquet",
        ("<video>How tall is it? Think inside <think></think>.", "1.5", ["a.mp4"]),
        ("Where?\nA. left\nB. right\n<video>", "B", ["b.mp4"]),
        ("Which?\nB) second\nC) third", "3", ["c.mp4"]),
    )
    height, choice, odd = good(import_easyr1(path, unit="m", source="mine"))
    assert height.question == "How tall is it? Think inside <think></think>."
    assert (height.answer, height.id) == (Answer(kind=AnswerKind.NUMBER, value=1.5, unit="m"), "mine/a/0")
    assert (choice.question, choice.options) == ("Where?", ("left", "right"))
    assert choice.answer == Answer(kind=AnswerKind.CHOICE, value="B")
    assert (odd.question, odd.options) == ("Which?\nB) second\nC) third", ())  # no options from A on


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (("How many?", "two", ["a.mp4"]), "answer 'two'"),
        (("Where?\nA. left\nB. right", "C", ["a.mp4"]), "must be the letter"),
        (("How many?", "2", []), "videos has 0 entries, must have one"),
        (("How many?", "2", ["a.mp4", "b.mp4"]), "videos has 2 entries"),
        (("How many?", "2", None), "videos"),
        (("<video>", "2", ["a.mp4"]), "question = '"),
    ],
)
def test_easyr1_bad_row(tmp_path: Path, row: tuple[str, str, list[str] | None], words: str) -> None:
    path = easyr1(tmp_path / "rows.parquet", ("How many?", "2", ["a.mp4"]), row)
    first, bad = import_easyr1(path)
    assert isinstance(first, Record)
    assert isinstance(bad, Failure)
    assert bad.record_id == f"{path}:1"
    assert bad.detail.startswith(f"{path}:1: ")
    assert words in bad.detail.removeprefix(f"{path}:1: ")


def test_easyr1_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.parquet: not readable as Parquet"):
        list(import_easyr1(tmp_path / "none.parquet"))
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match=r"broken\.parquet: not readable as Parquet after 0 rows"):
        list(import_easyr1(broken))
    write_records(RECORDS, tmp_path / "ours.parquet")
    with pytest.raises(DataError, match=r"lacks the columns \['problem', 'videos'\]"):
        list(import_easyr1(tmp_path / "ours.parquet"))


# --------------------------------------------------------------------------------------------------------- TRL


def test_trl_rows(tmp_path: Path) -> None:
    out = tmp_path / "rows.parquet"
    assert (
        export_trl(
            [CHOICE, replace(RECORDS[1], clip=ClipSpec(video="/v.mp4", num_frames=2)), BOX], out, tmp_path
        )
        == 3
    )
    choice, count, box = pq.read_table(out).to_pylist()
    (message,) = choice["prompt"]
    assert message["role"] == "user"
    assert message["content"] == [
        {"type": "video", "text": None},
        {"type": "text", "text": instruction(CHOICE)},
    ]
    assert json.loads(choice["answer"]) == {"kind": "choice", "value": "B", "unit": ""}
    assert json.loads(box["answer"]) == {"kind": "box2d", "value": [0, 1, 2.5, 4], "unit": ""}
    assert choice["options"] == list(CHOICE.options)
    assert choice["labels"] == ["cup", "pen"]
    assert graphs.from_json(choice["graph"], frame=choice["graph_frame"], truth=True) == GRAPH
    clip = [choice[name] for name in ("video", "num_frames", "start_s", "end_s")]
    assert clip == [str(tmp_path / "videos/0001.mp4"), 4, 1.0, 3.5]
    assert (count["graph"], count["graph_frame"], count["video"], count["end_s"]) == (
        None,
        None,
        "/v.mp4",
        None,
    )


def test_many_rows(tmp_path: Path) -> None:
    """More than are written at once."""
    rows = (number(str(i), float(i)) for i in range(1500))
    assert export_easyr1(rows, tmp_path / "rows.parquet", tmp_path) == 1500
    assert [each.answer.value for each in good(import_easyr1(tmp_path / "rows.parquet"))] == list(range(1500))


def test_datasets_reads_our_parquet(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    write_records(RECORDS, tmp_path / "records-00000.parquet")
    rows = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "*.parquet"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert rows["id"][:] == [each.id for each in RECORDS]
    assert rows[0]["answer"] == {"kind": "choice", "value": '"B"', "unit": ""}
