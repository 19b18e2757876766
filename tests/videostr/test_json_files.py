"""JSON of users in every form and encoding: read, or refused by one message that names the file; and every reader does so."""

from __future__ import annotations

import codecs
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from videostr.data import exchange
from videostr.data.__main__ import main
from videostr.data.sources.jsonl import Jsonl
from videostr.errors import DataError, VideoError
from videostr.evaluate.benchmark import Question
from videostr.evaluate.predictions import read_predictions
from videostr.evaluate.vsi_bench import VsiBench
from videostr.json_files import WrongEncoding, json_content, json_lines, json_rows
from videostr.types import ClipSpec, Failure, Record
from videostr.video import decode

ROWS: list[dict[str, Any]] = [{"id": n, "text": f"é {n}"} for n in range(3)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
ARRAY = json.dumps(ROWS, ensure_ascii=False)
MARK = codecs.BOM_UTF8


def read(path: Path) -> list[Any]:
    return [json.loads(row) for _, row in json_rows(path, "a row")]


@pytest.mark.parametrize(
    "content",
    [
        LINES.encode(),
        LINES.rstrip().encode(),
        MARK + LINES.encode(),
        LINES.replace("\n", "\r\n").encode(),
        MARK + LINES.replace("\n", "\r\n").encode(),
        ("\n  \n" + LINES.replace("\n", "\n\n\t\n")).encode(),
        ARRAY.encode(),
        MARK + ARRAY.encode(),
        json.dumps(ROWS, indent=2).encode(),
        MARK + b"\n\n" + json.dumps(ROWS, indent="\t").encode() + b"\n",
        json.dumps(ROWS, indent=4).replace("\n", "\r\n").encode(),
    ],
)
def test_lines_and_arrays_with_and_without_a_mark_are_read(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes(content)
    assert read(path) == ROWS


def test_places_of_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_bytes(MARK + b"\n" + LINES.encode())
    assert [place for place, _ in json_rows(path, "a row")] == [f"{path}:{n}" for n in (2, 3, 4)]
    with path.open("rb") as file:
        for line in json_lines(path, "a row"):
            file.seek(line.offset)
            assert file.readline() == line.content
    path.write_text(json.dumps(ROWS, indent=1))
    assert [place for place, _ in json_rows(path, "a row")] == [f"{path}[{n}]" for n in range(3)]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (codecs.BOM_UTF16_LE + LINES.encode("utf-16-le"), "UTF-16"),
        (codecs.BOM_UTF16_BE + ARRAY.encode("utf-16-be"), "UTF-16"),
        (codecs.BOM_UTF32_LE + LINES.encode("utf-32-le"), "UTF-16, UTF-32"),
        (codecs.BOM_UTF32_BE + LINES.encode("utf-32-be"), "UTF-16, UTF-32"),
        (LINES.encode("utf-16-le"), "UTF-16"),  # without a mark
        (LINES.encode("utf-16-be"), "UTF-16"),
        (gzip.compress(LINES.encode(), mtime=0), "compressed (gzip); unpack it"),
        (b"BZh91AY&SY", "compressed (bzip2)"),
        (b"\xfd7zXZ\x00", "compressed (xz)"),
        (b"\x28\xb5\x2f\xfd\x04", "compressed (zstd)"),
        (b"PK\x03\x04\x14\x00", "compressed (zip)"),
        (b"PAR1\x15\x04", "Parquet"),
        (LINES.encode("latin-1"), "none of its 3 lines is a JSON object in UTF-8"),
        (ARRAY.encode("latin-1"), ":1: b'\\xe9' is not UTF-8"),
        (json.dumps(ROWS, indent=1)[:-3].encode(), "no valid JSON from column"),
        (b'[\n {"id": 1},\n]\n', ":"),
        (b'[\n {"id": 1}\n {"id": 2}\n]\n', ":3: no valid JSON from column 2 on"),
        (b'[{"id": 1}] x\n', ":1: no valid JSON"),
        (b'[{"a": ' + b"9" * 5000 + b"}, {]", "no"),
        (b'[{"a":' * 100_000, "no JSON that can be read"),
        (json.dumps(ROWS[0], indent=2).encode(), "none of its 4 lines is a JSON object"),
        ((json.dumps(ROWS[0], indent=2) * 2).encode(), "none of its"),
        (json.dumps({"data": ROWS}, indent=2).encode(), "none of its"),
        (LINES.replace("\n", ",\n").encode(), "none of its 3 lines"),
        (b"id,text\n1,a\n", "none of its 2 lines"),
        (b"<html>\n<body>\n", "line 1 is b'<html>"),
    ],
)
def test_another_form_is_one_message_for_the_file(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}:")
    assert words in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_bad_rows_among_good_ones_are_left_to_the_reader_of_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"id"\n{"a": NaN}\n{"a": "\xe9"}\n{"a": "\\ud800"}\n{"a": 1}\n')
    assert len(list(json_rows(path, "a row"))) == 5
    path.write_text('[{"a": NaN}, {"b": 1}, 7, {"c": "\\ud800"}]')
    assert len(list(json_rows(path, "a row"))) == 4


def test_empty_missing_and_unreadable_files(tmp_path: Path) -> None:
    for content in (b"", b"\n \n", MARK, b"[]"):
        (tmp_path / "empty").write_bytes(content)
        assert read(tmp_path / "empty") == []
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(DataError, match=f"{path}: cannot be read"):
            read(path)


def test_content_of_a_whole_file() -> None:
    assert json_content(MARK + b"{}") == b"{}"
    assert json_content(b"{}") == b"{}"
    assert json_content(b"") == b""
    for content in ("{}".encode("utf-16"), gzip.compress(b"{}", mtime=0)):
        with pytest.raises(WrongEncoding):
            json_content(content)


# --------------------------------------------------------------------------------------------- the readers

VIDEO_R1 = {
    "problem_id": 0,
    "problem": "How many?",
    "data_type": "video",
    "problem_type": "regression",
    "options": None,
    "solution": "<answer>4</answer>",
    "path": "a.mp4",
}


@pytest.mark.parametrize("mark", [b"", MARK])
@pytest.mark.parametrize("indent", [None, 2])
def test_an_array_of_video_r1_is_imported(
    mark: bytes, indent: int | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes(
        mark + json.dumps([VIDEO_R1 | {"problem_id": n} for n in range(3)], indent=indent).encode()
    )
    assert main(["import", str(path), "--format", "video-r1", "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{tmp_path / 'out'}: 3 records of 3 rows"]


def test_a_mark_costs_no_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(
        MARK + b"".join(json.dumps(VIDEO_R1 | {"problem_id": n}).encode() + b"\n" for n in range(2))
    )
    assert [type(row) for row in exchange.import_video_r1(path)] == [Record, Record]


def test_bad_items_of_an_array_are_failures_with_their_places(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([VIDEO_R1, 7, VIDEO_R1 | {"problem_id": 1, "solution": float("nan")}]))
    one, two, three = exchange.import_video_r1(path)
    assert isinstance(one, Record)
    assert isinstance(two, Failure)
    assert isinstance(three, Failure)
    assert two.detail.startswith(f"{path}[1]: ")
    assert three.detail.startswith(f"{path}[2]: ")


def test_another_form_ends_import_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"data": [VIDEO_R1] * 100}, indent=2))
    assert main(["import", str(path), "--format", "video-r1", "--out", str(tmp_path / "out")]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert len(told.err.splitlines()) == 1


def test_predictions_as_an_array(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    question = Question(id="q0", video="v", task="t", text="?", truth="A")
    path.write_bytes(MARK + json.dumps([{"id": "q0", "prediction": "A"}], indent=1).encode())
    assert read_predictions(path, [question]).by_id["q0"].text == "A"
    path.write_text(json.dumps([{"id": "q0", "prediction": "A"}, {"id": "q0", "prediction": "B"}]))
    with pytest.raises(DataError, match=r"\[1\]: id 'q0' is there twice, in item \[0\]"):
        read_predictions(path, [question])


def test_questions_of_vsi_bench_as_an_array(tmp_path: Path) -> None:
    benchmark = VsiBench()
    row = {
        "id": 0,
        "dataset": "d",
        "scene_name": "s",
        "question_type": "object_counting",
        "question": "?",
        "ground_truth": "4",
        "options": None,
    }
    path = tmp_path / "test.jsonl"
    for content in (MARK + json.dumps(row).encode(), MARK + json.dumps([row], indent=2).encode()):
        path.write_bytes(content)
        assert [question.id for question in benchmark.read(tmp_path).questions] == ["0"]


SCENE = {
    "name": "one",
    "video": "v.mp4",
    "fps": 10,
    "image_size": [64, 48],
    "frames": [{"time": 0.0}],
    "tracks": [{"id": "1", "label": "cat", "frames": [{"frame": 0, "box2d": [1, 1, 9, 9]}]}],
}


def test_annotations_with_a_mark_and_as_an_array(tmp_path: Path) -> None:
    path = tmp_path / "annotations.jsonl"
    scenes = [SCENE, SCENE | {"name": "two"}]
    path.write_bytes(MARK + b"\r\n".join(json.dumps(scene).encode() for scene in scenes))
    source = Jsonl(tmp_path, "train")
    assert (source.names, source.skips) == (("one", "two"), [])
    for name in source.names:
        assert getattr(source.read(name), "name", "") == name
    for content in (json.dumps(scenes), json.dumps(SCENE, indent=2), json.dumps(scenes, indent=2)):
        path.write_text(content)
        with pytest.raises(DataError, match=r"annotations\.jsonl: "):
            Jsonl(tmp_path, "train")


def test_a_list_of_images_with_a_mark(tmp_path: Path) -> None:
    path = tmp_path / "v.frames.json"
    listed = json.dumps({"root": ".", "fps": 1, "frames": [[0.0, "a.png"]]}).encode()
    path.write_bytes(MARK + listed)
    with pytest.raises(VideoError, match=r"a\.png: image cannot be read"):
        decode(ClipSpec(video=str(path), num_frames=1))
    path.write_bytes(gzip.compress(listed, mtime=0))
    with pytest.raises(VideoError, match=r"v\.frames\.json: is not a list of images \(is compressed"):
        decode(ClipSpec(video=str(path), num_frames=1))
