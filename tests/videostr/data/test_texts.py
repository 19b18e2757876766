"""`data check` finds texts that would be read as special tokens, with a tokenizer and without one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from videostr.data.__main__ import main
from videostr.data.records import read_records, write_records
from videostr.types import Record

POLICY = "videostr/tabletop/pretrained"


@pytest.fixture
def folder(tabletop: Path, tmp_path: Path) -> Path:
    """Eight records, of which two hold special tokens: of the demo's tokenizer, and of another one."""
    records = [row for row in read_records(tabletop / "heldout") if isinstance(row, Record)]
    records[3] = replace(records[3], question=f"What does <|video_pad|> stand for? {records[3].question}")
    records[5] = replace(records[5], question=f"{records[5].question} <|eot_id|>")
    (tmp_path / "videos").symlink_to(tabletop / "heldout" / "videos")
    write_records(records, tmp_path / "records-00000.parquet")
    return tmp_path


def test_the_usual_tokens_are_found_without_a_tokenizer(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(folder), "--videos", "0"]) == 1
    *lines, entailed, last = capsys.readouterr().out.splitlines()
    assert last.endswith("8 rows, 2 bad")
    assert (
        entailed
        == "answers that the graph entails: 6 of 6; not told by a graph: localisation (2); without query or graph: 0"
    )
    assert [line.partition(": a special token")[0] for line in lines] == [
        f"{folder}/records-00000.parquet:3: question holds <|video_pad|>",
        f"{folder}/records-00000.parquet:5: question holds <|eot_id|>",
    ]
    assert all("rewrite the text" in line for line in lines)


def test_those_of_a_checkpoint_are_found_with_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(folder), "--videos", "0", "--model", POLICY]) == 1
    first, _, last = capsys.readouterr().out.splitlines()
    assert first.startswith(
        f"{folder}/records-00000.parquet:3: question holds <|video_pad|>: a special token of the"
    )
    assert last.endswith("8 rows, 1 bad")
    assert main(["check", str(folder), "--model", str(folder)]) == 2
    assert "model.path" in capsys.readouterr().err


def test_a_whole_dataset_has_none(tabletop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(tabletop / "heldout"), "--videos", "0", "--model", POLICY]) == 0
    assert capsys.readouterr().out.endswith("8 rows, 0 bad\n")
