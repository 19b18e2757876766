"""Record datasets: round trip, every rule of a row, seeded order."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from msgspec import structs

from videostr.data.__main__ import main
from videostr.data.prompts import RecordSource
from videostr.data.records import SCHEMA, index_at, read_records, write_records
from videostr.errors import DataError, TooManyBadRecords
from videostr.run_folder import Quarantine
from videostr.types import (
    Answer,
    AnswerKind,
    ClipSpec,
    Failure,
    FailureKind,
    GraphFrame,
    Node,
    Query,
    Record,
    SceneGraph,
)


def record(name: str = "a", **changes: Any) -> Record:
    node = Node(id="cup.1", label="cup", pos=(1.0, 2.5), size=(0.5, 0.5))
    values: dict[str, Any] = {
        "id": name,
        "source": "test",
        "family": "counting",
        "question": "How many?",
        "options": (),
        "answer": Answer(kind=AnswerKind.NUMBER, value=2.0, unit="m"),
        "clip": ClipSpec(video="v.mp4", num_frames=4, start_s=1.0, end_s=None),
        "labels": ("cup", "pen"),
        "graph": SceneGraph(unit="m", frame="floor", frames=(GraphFrame(t=0.0, nodes=(node,)),)),
    }
    return Record(**values | changes)


ALL_KINDS = [
    record("number"),
    record("choice", options=("left", "right"), answer=Answer(kind=AnswerKind.CHOICE, value="B")),
    record("box", answer=Answer(kind=AnswerKind.BOX2D, value=(0.0, 1.0, 2.0, 3.5), unit="px")),
    record("span", answer=Answer(kind=AnswerKind.SPAN, value=(0.5, 2.0), unit="s")),
    record("track", answer=Answer(kind=AnswerKind.TRACK, value=((0.0, 0.0, 1.0, 1.0), (1.0, 1.0, 2.0, 2.0)))),
    record("bare", graph=None),
    record(
        "query",
        options=("left", "right"),
        answer=Answer(kind=AnswerKind.CHOICE, value="B"),
        query=Query(
            family="counting",
            objects=("cup.1", "pen.2"),
            names=("the cup", "the pen (box [1,2,3,4] px at 0.5 s)"),
            boxes=((0.5, 1.0, 2.0, 3.0, 4.0),),
            times=(0.0, 0.5),
            axis="right",
            label="cup",
            within_m=30.0,
            camera=tuple(map(float, range(12))),
            up=(0.0, -1.0, 0.0),
            options=(2.5, ("cup.1", "pen.2")),
        ),
    ),
]


def test_round_trip(tmp_path: Path) -> None:
    assert write_records(ALL_KINDS, tmp_path / "records-00000.parquet") == len(ALL_KINDS)
    back = list(read_records(tmp_path))
    assert [r.origin.rsplit(":", 1)[1] for r in back if isinstance(r, Record)] == list("0123456")
    for one, two in zip(ALL_KINDS, back, strict=True):
        assert isinstance(two, Record)
        for name in Record.__slots__:
            if name != "origin":
                assert getattr(one, name) == getattr(two, name), name


def spoil(folder: Path, **columns: Any) -> list[Record | Failure]:
    """A dataset of two rows whose first row has other values."""
    path = folder / "records-00000.parquet"
    write_records([record("a"), record("b")], path)
    rows = pq.read_table(path).to_pylist()
    for name, value in columns.items():
        rows[0][name] = rows[0][name] | value if isinstance(value, dict) else value
    schema = pa.schema([field.with_nullable(True) for field in SCHEMA], metadata=SCHEMA.metadata)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)
    return list(read_records(folder))


def graph(nodes: list[dict[str, Any]]) -> str:
    return json.dumps({"unit": "m", "frames": [{"t": 0, "nodes": nodes}]})


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"question": None}, "question = None: must be text that is not empty"),
        ({"id": " "}, "id = ' ': must be text that is not empty"),
        ({"answer": {"kind": "essay"}}, "answer.kind = 'essay': must be one of choice, number"),
        (
            {"answer": {"value": "two"}},
            "answer.value = 'two' of kind number: must be a finite number, as JSON",
        ),
        ({"answer": {"value": '"2"'}}, "must be a finite number"),
        ({"answer": {"value": "NaN"}}, "must be a finite number"),
        ({"answer": {"value": "9" * 400}}, "must be a finite number"),
        ({"answer": {"value": "[" * 100_000}}, "must be a finite number, as JSON"),
        (
            {"answer": {"kind": "choice", "value": '"C"'}, "options": ["x", "y"]},
            "the letter of one of at least two",
        ),
        ({"answer": {"kind": "box2d", "value": "[1, 2, 3]"}}, "a list of four numbers"),
        (
            {"answer": {"kind": "track", "value": "[]"}},
            "must be a list, each a list of four numbers, not empty",
        ),
        ({"clip": {"video": ""}}, "clip.video = '': must be a path"),
        ({"clip": {"num_frames": 0}}, "clip.num_frames = 0"),
        ({"clip": {"end_s": 0.5}}, "clip.end_s = 0.5 lies before clip.start_s = 1.0"),
        ({"clip": {"start_s": math.nan}}, "clip.start_s = nan: must be a finite number"),
        ({"clip": {"end_s": math.nan}}, "clip.end_s = nan: must be a finite number"),
        ({"clip": {"end_s": math.inf}}, "clip.end_s = inf: must be a finite number"),
        ({"graph": "{"}, "the <graph> block is not JSON"),
        ({"graph": graph([{"id": "cup.1", "pos": [1, 2]}] * 2)}, "two nodes of one frame share an id"),
        ({"graph": graph([{"id": "hat.1", "pos": [1, 2]}])}, "labels ['hat'] that the column labels lacks"),
        ({"graph_frame": None}, "graph_frame is missing"),
        ({"query": "{"}, "query = '{': must be JSON"),
        ({"query": '{"times": [0]}'}, "query: family: is missing"),
        ({"query": '{"family": "counting", "times": ["now"]}'}, "query: times[0]: must be a finite number"),
        ({"query": '{"family": "order"}'}, "query.family = 'order': must be the record's, 'counting'"),
        (
            {"query": '{"family": "counting", "options": ["a"]}'},
            "query.options has 1 entries, the record has 0 options",
        ),
        ({"id": "b"}, ""),
    ],
)
def test_broken_rows_are_named_and_the_others_kept(
    columns: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    rows = spoil(tmp_path, **columns)
    failures = [row for row in rows if isinstance(row, Failure)]
    assert len(failures) == 1
    assert failures[0].kind is FailureKind.BAD_ROW
    if columns == {"id": "b"}:
        assert "records-00000.parquet:1: id = 'b' stands in an earlier row" in failures[0].detail
    else:
        assert "records-00000.parquet:0: " in failures[0].detail
        assert reason in failures[0].detail


def test_unreadable_shards_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no records-"):
        list(read_records(tmp_path))
    path = tmp_path / "records-00000.parquet"
    path.write_bytes(b"PAR1 but not really")
    with pytest.raises(
        DataError, match=r"no usable record: .*records-00000.parquet: not readable as Parquet"
    ):
        RecordSource(str(tmp_path), processor=None, seed=0)
    pq.write_table(pa.table({"id": ["a"]}), path)
    with pytest.raises(DataError, match="record schema none, columns missing"):
        list(read_records(tmp_path))


@pytest.mark.parametrize(
    ("damage", "lost"),
    [
        # The footer lies at the end: without it the shard counts as the mean of the others, (2 + 4) / 2.
        (lambda content: content[: len(content) // 2], 3),
        # A flipped bit among the pages fails their checksum; the footer still says how many rows there were.
        (lambda content: content[:40] + bytes([content[40] ^ 1]) + content[41:], 6),
    ],
)
def test_an_unreadable_shard_is_one_failure_of_many_records(damage: Any, lost: int, tmp_path: Path) -> None:
    for place, count in enumerate((2, 6, 4)):
        rows = [record(f"{place}.{number}") for number in range(count)]
        write_records(rows, tmp_path / f"records-{place:05}.parquet")
    path = tmp_path / "records-00001.parquet"
    path.write_bytes(damage(path.read_bytes()))
    source = RecordSource(str(tmp_path), processor=None, seed=0)
    assert [r.id for r in source.records] == ["0.0", "0.1", "2.0", "2.1", "2.2", "2.3"]
    (failure,) = source.failures
    assert (failure.kind, failure.record_id, failure.records) == (FailureKind.BAD_SHARD, path.name, lost)
    assert f"{path}: not readable as Parquet (" in failure.detail
    quarantine = Quarantine(tmp_path / "quarantine.jsonl", max_bad_fraction=(lost - 1) / 12)
    quarantine.records = 12
    with pytest.raises(TooManyBadRecords, match=f"{lost} of 12 records are quarantined"):
        quarantine.add(failure)
    again = Quarantine(tmp_path / "quarantine.jsonl", max_bad_fraction=lost / 12)
    again.records = 12
    again.add(failure)
    assert json.loads((tmp_path / "quarantine.jsonl").read_text())["records"] == lost


def test_version_1_which_has_no_queries_is_still_read(tmp_path: Path) -> None:
    path = tmp_path / "records-00000.parquet"
    write_records([record("a"), record("b", query=Query(family="counting"))], path)
    assert pq.read_schema(path).metadata[b"videostr.schema"] == b"2"
    table = pq.read_table(path).drop_columns(["query"])
    for version, readable in (("1", True), ("2", True), ("3", False)):
        pq.write_table(table.replace_schema_metadata({"videostr.schema": version}), path)
        if readable:
            rows = [row for row in read_records(tmp_path) if isinstance(row, Record)]
            assert [(row.id, row.query) for row in rows] == [("a", None), ("b", None)]
        else:
            with pytest.raises(DataError, match=r"record schema 3.*; this version reads schema 1 and 2"):
                list(read_records(tmp_path))


def test_check_finds_an_answer_that_the_graph_does_not_entail(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    query = Query(family="counting", label="cup", times=(0.0,))
    right = record("a", query=query, answer=Answer(kind=AnswerKind.NUMBER, value=1.0))
    wrong = replace(right, id="b", question="How many?!", answer=Answer(kind=AnswerKind.NUMBER, value=2.0))
    absent = replace(wrong, id="c", question="How many??", query=structs.replace(query, times=(9.0,)))
    size = replace(right, id="d", question="How large?", family="size", query=Query(family="size"))
    write_records([right, wrong, absent, size, record("e", question="!")], tmp_path / "records-00000.parquet")
    assert main(["check", str(tmp_path), "--videos", "0"]) == 1
    *lines, summary, last = capsys.readouterr().out.splitlines()
    assert [line.partition(".parquet:")[2] for line in lines] == [
        "1: its graph entails 1, its answer is 2; correct the graph, the query or the answer",
        "2: its graph entails no answer, its answer is 2; correct the graph, the query or the answer",
    ]
    assert summary == (
        "answers that the graph entails: 1 of 3; not told by a graph: size (1); without query or graph: 1"
    )
    assert last.endswith("5 rows, 2 bad")


def test_every_epoch_is_another_permutation() -> None:
    epochs = [[index_at(epoch * 9 + place, 9, seed=4) for place in range(9)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(9)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[0] != [index_at(place, 9, seed=5) for place in range(9)]


def test_commands_describe_and_check(
    tabletop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["stats", str(tabletop / "heldout")]) == 0
    counts = json.loads(capsys.readouterr().out)
    assert counts["records"] == sum(counts["families"].values()) == 8
    assert main(["check", str(tabletop / "heldout")]) == 0
    assert "8 rows, 0 bad" in capsys.readouterr().out
    write_records([record()], tmp_path / "records-00000.parquet")
    assert main(["check", str(tmp_path)]) == 1
    assert "v.mp4: video cannot be read" in capsys.readouterr().out
    assert main(["stats", str(tmp_path / "none")]) == 2
    assert "build a dataset with" in capsys.readouterr().err
    write_records([], tmp_path / "empty/records-00000.parquet")
    for command in ("stats", "check", "show"):
        assert main([command, str(tmp_path / "empty")]) == 2
        assert f"{tmp_path / 'empty'}: its records-*.parquet have no rows" in capsys.readouterr().err
