"""Columns of every type and values of every kind in record datasets: a `Failure` that names them, never a traceback."""

from __future__ import annotations

import datetime
import decimal
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from videostr.data.__main__ import main
from videostr.data.prompts import RecordSource
from videostr.data.records import SCHEMA, read_records, record_from_row
from videostr.data.row_rules import AnswerRow, ClipRow
from videostr.errors import DataError, RecordError
from videostr.types import Failure, FailureKind, Record

NULLABLE = pa.schema([field.with_nullable(True) for field in SCHEMA], metadata=SCHEMA.metadata)


def row(name: str = "a", **changes: Any) -> dict[str, Any]:
    return {
        "id": name,
        "source": "test",
        "family": "counting",
        "question": "Which?",
        "options": ["left", "right"],
        "answer": {"kind": "choice", "value": '"B"', "unit": None},
        "clip": {
            "video": "v.mp4",
            "num_frames": 4,
            "start_s": 1.0,
            "end_s": None,
            "height": None,
            "width": 64,
        },
        "labels": ["cup"],
        "graph": None,
        "graph_frame": None,
    } | changes


def write(folder: Path, table: pa.Table, shard: str = "records-00000.parquet") -> Path:
    pq.write_table(table.replace_schema_metadata(SCHEMA.metadata), folder / shard)
    return folder / shard


def table(*rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist(list(rows or (row("a"), row("b"), row("c"))), schema=NULLABLE)


def with_column(name: str, column: pa.Array) -> pa.Table:
    good = table()
    return good.set_column(good.column_names.index(name), name, column)


def with_field(column: str, field: str, values: pa.Array | None, name: str = "") -> pa.Table:
    """A struct with another field in place of one, without it, or with both under one name."""
    struct = table().column(column).combine_chunks()
    names = [struct.type.field(i).name for i in range(struct.type.num_fields)]
    arrays = {other: struct.field(other) for other in names if other != field}
    if values is not None:
        arrays[name or field] = values
    return with_column(column, pa.StructArray.from_arrays(list(arrays.values()), names=list(arrays)))


THREE = [1, 2, 3]
BYTES = pa.array([b"a", b"b", b"c"])
INTEGERS = pa.array(THREE)
LEFT = ["left", "right"]


# --------------------------------------------------------------------------------------------- types of columns

WRONG_TYPES: list[tuple[str, pa.Table, list[str]]] = [
    ("id", with_column("id", INTEGERS), ["id has the Arrow type int64", "string"]),
    ("id", with_column("id", pa.nulls(3)), ["id has the Arrow type null"]),
    ("id", with_column("id", pa.array([[1]] * 3)), ["id has the Arrow type list<"]),
    ("id", with_column("id", pa.array(["a", "b", "c"]).cast(pa.binary())), ["id has the Arrow type binary"]),
    ("source", with_column("source", pa.array([True] * 3)), ["source has the Arrow type bool"]),
    ("question", with_column("question", BYTES), ["question has the Arrow type binary"]),
    ("family", with_column("family", BYTES.cast(pa.large_binary())), ["family has the Arrow type large_b"]),
    ("options", with_column("options", pa.array(["a"] * 3)), ["options has the Arrow type string", "list"]),
    ("options", with_column("options", pa.array([[1, 2]] * 3)), ["options[] has the Arrow type int64"]),
    ("options", with_column("options", pa.array([[b"x"]] * 3)), ["options[] has the Arrow type binary"]),
    ("options", with_column("options", pa.array([[LEFT]] * 3)), ["options[] has the Arrow type list<"]),
    (
        "options",
        with_column("options", pa.array([[("a", "b")]] * 3, pa.map_(pa.string(), pa.string()))),
        ["options has the Arrow type map<"],
    ),
    ("labels", with_column("labels", pa.nulls(3)), ["labels has the Arrow type null"]),
    ("answer", with_column("answer", pa.array(["A", "B", "C"])), ["answer has the Arrow type string"]),
    ("answer", with_column("answer", pa.array([[1.0]] * 3)), ["answer has the Arrow type list<"]),
    ("answer", with_field("answer", "unit", None), ["answer.unit is missing"]),
    ("answer", with_field("answer", "value", INTEGERS), ["answer.value has the Arrow type int64"]),
    ("answer", with_field("answer", "kind", BYTES), ["answer.kind has the Arrow type binary"]),
    ("answer", with_field("answer", "kind", pa.nulls(3)), ["answer.kind has the Arrow type null"]),
    ("clip", with_column("clip", pa.array(["{}"] * 3)), ["clip has the Arrow type string"]),
    ("clip", with_field("clip", "start_s", None), ["clip.start_s is missing"]),
    ("clip", with_field("clip", "video", INTEGERS), ["clip.video has the Arrow type int64"]),
    (
        "clip",
        with_field("clip", "num_frames", pa.array(["4"] * 3)),
        ["clip.num_frames has the Arrow type str"],
    ),
    (
        "clip",
        with_field("clip", "num_frames", pa.array([True] * 3)),
        ["clip.num_frames has the Arrow type bo"],
    ),
    ("clip", with_field("clip", "height", BYTES), ["clip.height has the Arrow type binary"]),
    (
        "clip",
        with_field("clip", "start_s", pa.array([decimal.Decimal("1.5")] * 3)),
        ["clip.start_s has the Arrow type decimal128"],
    ),
    (
        "clip",
        with_field("clip", "end_s", pa.array([datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)] * 3)),
        ["clip.end_s has the Arrow type timestamp"],
    ),
    (
        "clip",
        with_field("clip", "end_s", pa.array([datetime.timedelta(seconds=1)] * 3)),
        ["clip.end_s has the Arrow type duration"],
    ),
    ("graph", with_column("graph", pa.array([{"unit": "m"}] * 3)), ["graph has the Arrow type struct<"]),
    ("graph", with_column("graph", BYTES), ["graph has the Arrow type binary"]),
    ("graph_frame", with_column("graph_frame", INTEGERS), ["graph_frame has the Arrow type int64"]),
    ("clip twice", table().append_column("clip", table()["clip"]), ["clip stands there twice"]),
]


@pytest.mark.parametrize(
    ("wrong", "words"), [case[1:] for case in WRONG_TYPES], ids=[case[0] for case in WRONG_TYPES]
)
def test_a_column_of_another_type_is_one_failure_for_all_rows_of_its_file(
    wrong: pa.Table, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, wrong)
    (failure,) = list(read_records(tmp_path))
    assert isinstance(failure, Failure)
    assert (failure.kind, failure.records) == (FailureKind.BAD_ROW, 3)
    assert failure.detail.startswith(f"{path}:0-2: ")
    for word in words:
        assert word in failure.detail
    with pytest.raises(DataError, match="no usable record"):
        RecordSource(str(tmp_path), processor=None, seed=0)
    assert main(["check", str(tmp_path)]) == 1
    assert "3 rows, 3 bad" in capsys.readouterr().out


def test_other_files_of_the_dataset_are_read(tmp_path: Path) -> None:
    write(tmp_path, with_column("id", INTEGERS))
    write(tmp_path, table(row("d")), "records-00001.parquet")
    failure, record = read_records(tmp_path)
    assert isinstance(failure, Failure)
    assert isinstance(record, Record)
    assert (failure.records, record.id) == (3, "d")


def test_several_wrong_columns_are_one_message(tmp_path: Path) -> None:
    wrong = with_column("id", INTEGERS)
    write(tmp_path, wrong.set_column(3, "question", INTEGERS))
    (failure,) = read_records(tmp_path)
    assert isinstance(failure, Failure)
    assert "id has the Arrow type int64" in failure.detail
    assert "question has the Arrow type int64" in failure.detail


def options_as(kind: pa.DataType) -> pa.Table:
    return with_column("options", pa.array([LEFT] * 3, pa.list_(pa.string())).cast(kind))


SAME_IN_OTHER_TYPES = {
    "large_string": with_column("id", pa.array(["a", "b", "c"], pa.large_string())),
    "string_view": with_column("question", pa.array(["Which?"] * 3, pa.string_view())),
    "dictionary": with_column("family", pa.array(["counting"] * 3).dictionary_encode()),
    "large_list": options_as(pa.large_list(pa.large_string())),
    "fixed_size_list": options_as(pa.list_(pa.string(), 2)),
    "dictionary in a list": with_column(
        "options", pa.array([LEFT] * 3, pa.list_(pa.dictionary(pa.int32(), pa.string())))
    ),
    "null": with_column("graph", pa.nulls(3)),
    "null in a struct": with_field("answer", "unit", pa.nulls(3)),
    "list of null": with_column("labels", pa.array([[]] * 3)),
    "int64": with_field("clip", "num_frames", pa.array([4] * 3, pa.int64())),
    "uint8": with_field("clip", "num_frames", pa.array([4] * 3, pa.uint8())),
    "whole doubles": with_field("clip", "num_frames", pa.array([4.0] * 3)),
    "whole seconds": with_field("clip", "start_s", pa.array([1] * 3)),
    "float32": with_field("clip", "start_s", pa.array([1.0] * 3, pa.float32())),
    "an extra column": table().append_column("mine", pa.array([b"\xff"] * 3)),
    "an extra field": with_field("clip", "", pa.array(THREE), "mine"),
}


@pytest.mark.parametrize("same", SAME_IN_OTHER_TYPES.values(), ids=SAME_IN_OTHER_TYPES.keys())
def test_the_same_values_in_another_encoding_are_read(same: pa.Table, tmp_path: Path) -> None:
    write(tmp_path, same)
    records = list(read_records(tmp_path))
    assert all(isinstance(record, Record) for record in records), records
    first = records[0]
    assert isinstance(first, Record)
    assert (first.id, first.options, first.answer.unit, first.family) == (
        "a",
        ("left", "right"),
        "",
        "counting",
    )
    clip = first.clip
    values: tuple[Any, ...] = (clip.num_frames, clip.start_s, clip.end_s, clip.height, clip.width)
    assert values == (4, 1.0, None, None, 64)
    assert [type(value) for value in values] == [int, float, type(None), type(None), int]


# ----------------------------------------------------------------------------------------------- values of rows

CLIP, ANSWER = row()["clip"], row()["answer"]


def clip(**changes: Any) -> dict[str, Any]:
    return {"clip": CLIP | changes}


def number(value: str = "2", unit: str | None = "m") -> dict[str, Any]:
    return {"options": [], "answer": {"kind": "number", "value": value, "unit": unit}}


BROKEN: list[tuple[dict[str, Any], list[str]]] = [
    ({"id": None}, ["id = None"]),
    ({"id": "\n "}, ["id = "]),
    ({"source": None}, ["source = None"]),
    ({"question": b"which?"}, ["question = b'which?'"]),
    ({"question": b"\xff"}, ["question = b'\\xff'"]),
    ({"question": 7}, ["question = 7"]),
    ({"question": "\ud800"}, ["'\\ud800': must be UTF-8 text"]),
    ({"options": None}, ["options = None"]),
    ({"options": "ab"}, ["options = 'ab'"]),
    ({"options": ["x", None]}, ["options[1] = None"]),
    ({"options": ["x", 3]}, ["options[1] = 3"]),
    ({"options": [3.5, "x"]}, ["options[0] = 3.5"]),
    ({"options": ["x", ["y"]]}, ["options[1] = ['y']"]),
    ({"options": ["x", b"y"]}, ["options[1] = b'y'"]),
    ({"options": ["x", ""]}, ["options[1] = "]),
    ({"options": ["x", "  "]}, ["options[1] = "]),
    ({"options": ["x", "y", "x "]}, ["options[2] = 'x '", "twice"]),
    ({"options": [f"{n}" for n in range(27)]}, ["options = ['0'"]),
    ({"labels": None}, ["labels = None"]),
    ({"labels": ["cup", None]}, ["labels[1] = None"]),
    ({"labels": ["cup", ""]}, ["labels[1] = "]),
    ({"labels": ["cup", "cup"]}, ["labels[1] = 'cup'", "twice"]),
    ({"labels": [1]}, ["labels[0] = 1"]),
    ({"answer": None}, ["answer = None"]),
    ({"answer": "B"}, ["answer = 'B'"]),
    ({"answer": ANSWER | {"kind": None}}, ["answer.kind = None"]),
    ({"answer": ANSWER | {"kind": ["choice"]}}, ["answer.kind = ['choice']"]),
    ({"answer": ANSWER | {"value": None}}, ["answer.value = None"]),
    ({"answer": ANSWER | {"value": 3}}, ["answer.value = 3"]),
    ({"answer": ANSWER | {"value": '"\\ud800"'}}, ["answer.value = ", "ud800", "letter"]),
    ({"answer": ANSWER | {"value": '"b"'}}, ["""answer.value = '"b"'""", "letter"]),
    ({"answer": ANSWER | {"value": "1"}}, ["answer.value = '1'", "letter"]),
    ({"answer": ANSWER | {"unit": 1}}, ["answer.unit = 1"]),
    (number("true"), ["answer.value = 'true'", "a finite number"]),
    (number("null"), ["answer.value = 'null'", "a finite number"]),
    (number('"2"'), ["""answer.value = '"2"'""", "a finite number"]),
    (number("Infinity"), ["answer.value = 'Infinity'", "a finite number"]),
    (number(unit="m\nm"), ["answer.unit = 'm\\nm'"]),
    (number(unit="7"), ["answer.unit = '7'"]),
    (number(unit="-m"), ["answer.unit = '-m'"]),
    (number(unit="m" * 41), ["answer.unit = 'mmm"]),
    ({"clip": None}, ["clip = None"]),
    ({"clip": "{}"}, ["clip = '{}'"]),
    (clip(video=None), ["clip.video = None"]),
    (clip(video="  "), ["clip.video = "]),
    (clip(video="a\0.mp4"), ["clip.video = 'a\\x00.mp4'"]),
    (clip(video=b"v.mp4"), ["clip.video = b'v.mp4'"]),
    (clip(num_frames=None), ["clip.num_frames = None"]),
    (clip(num_frames=0), ["clip.num_frames = 0"]),
    (clip(num_frames=-4), ["clip.num_frames = -4"]),
    (clip(num_frames=4.5), ["clip.num_frames = 4.5"]),
    (clip(num_frames=10**9), ["clip.num_frames = 1000000000"]),
    (clip(num_frames=True), ["clip.num_frames = True"]),
    (clip(num_frames="4"), ["clip.num_frames = '4'"]),
    (clip(num_frames=math.nan), ["clip.num_frames = nan"]),
    (clip(start_s=-3.0), ["clip.start_s = -3.0"]),
    (clip(start_s=math.nan), ["clip.start_s = nan"]),
    (clip(start_s=1e300), ["clip.start_s = 1e+300"]),
    (clip(start_s="0"), ["clip.start_s = '0'"]),
    (clip(end_s=-1.0), ["clip.end_s = -1.0"]),
    (clip(end_s=math.inf), ["clip.end_s = inf"]),
    (clip(end_s=0.5), ["clip.end_s = 0.5 lies before clip.start_s = 1.0"]),
    (clip(height=-5), ["clip.height = -5"]),
    (clip(height=0), ["clip.height = 0"]),
    (clip(height=100_000), ["clip.height = 100000"]),
    (clip(width=1.5), ["clip.width = 1.5"]),
    (clip(width=math.inf), ["clip.width = inf"]),
    ({"graph": 3}, ["graph = 3"]),
    ({"graph": "null", "graph_frame": "floor"}, ["graph: "]),
    ({"graph": '{"unit":"m"}', "graph_frame": "moon"}, ["moon"]),
    ({"graph": "{}", "graph_frame": 2}, ["graph_frame = 2"]),
]


@pytest.mark.parametrize(("changes", "words"), BROKEN)
def test_a_value_that_breaks_a_rule_is_named(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(RecordError) as caught:
        record_from_row(row(**changes), "records-00000.parquet:7")
    assert str(caught.value).startswith("records-00000.parquet:7: ")
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("column", "values", "words"),
    [
        ("options", pa.array([["x", None], LEFT, LEFT]), "options[1] = None"),
        ("graph_frame", pa.array([None, None, "x"]), ""),
    ],
)
def test_other_rows_are_kept(column: str, values: pa.Array, words: str, tmp_path: Path) -> None:
    path = write(tmp_path, with_column(column, values))
    rows = list(read_records(tmp_path))
    failures = [row for row in rows if isinstance(row, Failure)]
    assert len(rows) == 3
    assert [failure.detail for failure in failures if words not in failure.detail] == []
    assert all(failure.detail.startswith(f"{path}:0: ") and failure.records == 1 for failure in failures)
    assert len(failures) == bool(words)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (with_field("clip", "num_frames", pa.array([4, 4.5, 4])), "clip.num_frames = 4.5"),
        (with_field("clip", "num_frames", pa.array([4, 10**18, 4])), "clip.num_frames = 1000000000000000000"),
        (with_field("clip", "height", pa.array([None, math.nan, 5.0])), "clip.height = nan"),
        # Arrow does not look at the bytes of a text.
        (with_column("question", pa.array([b"a", b"\xff", b"c"]).view(pa.string())), "question = b'\\xff'"),
        (
            with_field("clip", "video", pa.array([b"a", b"\xfe", b"c"]).view(pa.string())),
            "clip.video = b'\\xfe'",
        ),
        (
            with_column(
                "labels",
                pa.ListArray.from_arrays([0, 1, 2, 3], pa.array([b"a", b"\xfe", b"c"]).view(pa.string())),
            ),
            "labels[0] = b'\\xfe'",
        ),
    ],
)
def test_the_row_is_named_and_the_others_kept(bad: pa.Table, words: str, tmp_path: Path) -> None:
    path = write(tmp_path, bad)
    one, failure, three = read_records(tmp_path)
    assert [type(row) for row in (one, three)] == [Record, Record]
    assert isinstance(failure, Failure)
    assert failure.kind is FailureKind.BAD_ROW
    assert failure.detail.startswith(f"{path}:1: ")
    assert words in failure.detail


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
_places = [(name,) for name in SCHEMA.names]
_places += [
    (name, field)
    for name, kind in (("answer", AnswerRow), ("clip", ClipRow))
    for field in kind.__struct_fields__
]


@given(st.sampled_from(_places), _values)
def test_any_value_anywhere_gives_a_record_or_a_record_error(place: tuple[str, ...], value: object) -> None:
    values = row()
    if len(place) == 1:
        values[place[0]] = value
    else:
        values[place[0]] = values[place[0]] | {place[1]: value}
    try:
        found = record_from_row(values, "x:0").origin
    except RecordError as error:
        found = str(error)
    assert found.startswith("x:0")
    found.encode()  # no lone surrogate, so that it can be printed


@given(place=st.sampled_from(_places), values=st.lists(_values, min_size=2, max_size=2))
def test_any_column_that_parquet_can_hold_is_read_or_refused(
    place: tuple[str, ...], values: list[object], tmp_path_factory: pytest.TempPathFactory
) -> None:
    good = table(row("a"), row("b"))
    try:
        column = pa.array(values)
        if len(place) == 2:
            struct = good.column(place[0]).combine_chunks()
            names = [struct.type.field(i).name for i in range(struct.type.num_fields)]
            column = pa.StructArray.from_arrays(
                [column if name == place[1] else struct.field(name) for name in names], names=names
            )
        folder = tmp_path_factory.mktemp("any")
        write(folder, good.set_column(good.column_names.index(place[0]), place[0], column))
    except (pa.ArrowException, UnicodeEncodeError, OverflowError):
        return  # no such column can be written
    assert sum(1 if isinstance(found, Record) else found.records for found in read_records(folder)) == 2


def test_commands_name_what_they_leave_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, table(row("a"), row("b", **clip(height=-5)), row("c")))
    out = tmp_path / "rows.jsonl"
    assert main(["export", str(tmp_path), "--format", "video-r1", "--out", str(out)]) == 0
    assert len(out.read_text().splitlines()) == 2
    assert "1 rows cannot be used" in caplog.text
    assert f"{tmp_path / 'records-00000.parquet'}:1: clip.height = -5" in caplog.text
    caplog.clear()
    assert main(["show", str(tmp_path), "--out", str(tmp_path / "sheet.html")]) == 0
    assert caplog.text.count("1 rows cannot be used") == 1
    assert main(["stats", str(tmp_path)]) == 0
