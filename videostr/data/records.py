"""Record datasets: a folder of Parquet shards `records-*.parquet` next to the videos that they name.

In: records from a builder. Out: records in file order, each broken row as a `Failure` that names file, row and rule, and
a seeded order over them that any process can compute for any position (so that a resumed run continues where it was).
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from videostr import graph as graphs
from videostr.data.row_rules import ANSWER_TYPES, AnswerRow, Row, checked_row, type_problems
from videostr.errors import DataError, RecordError
from videostr.files import make_folder, replacing
from videostr.marks import COLORS, TEXTS
from videostr.options import letter_of
from videostr.schema_rules import field_problem, rule_of
from videostr.types import Answer, AnswerKind, ClipSpec, Failure, FailureKind, Mark, Query, Record, SceneGraph

SCHEMA_VERSION = "2"
READABLE_VERSIONS = {"1", SCHEMA_VERSION}
"""Version 1 has no column `query`."""
SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("family", pa.string(), nullable=False),
        pa.field("question", pa.string(), nullable=False),
        pa.field("options", pa.list_(pa.string()), nullable=False),
        pa.field("answer", pa.struct([("kind", pa.string()), ("value", pa.string()), ("unit", pa.string())])),
        pa.field(
            "clip",
            pa.struct(
                [
                    ("video", pa.string()),
                    ("num_frames", pa.int32()),
                    ("start_s", pa.float64()),
                    ("end_s", pa.float64()),
                    ("height", pa.int32()),
                    ("width", pa.int32()),
                ]
            ),
        ),
        pa.field("labels", pa.list_(pa.string()), nullable=False),
        pa.field("graph", pa.string()),
        pa.field("graph_frame", pa.string()),
        pa.field("query", pa.string()),
        pa.field("image_size", pa.list_(pa.int32())),
        pa.field("marks", pa.string()),
    ],
    metadata={"videostr.schema": SCHEMA_VERSION},
)
"""`answer.value`, `graph`, `query` and `marks` are JSON. `graph` follows the graph contract, its nodes with a `size`; its frame
of reference stands in `graph_frame`. `query` has the fields of `Query`, each of `marks` those of `Mark`."""
CLIP_FIELDS = tuple(field.name for field in SCHEMA.field("clip").type)
NEWER = {"image_size", "query", "marks"}
"""Columns that a shard may lack."""

log = logging.getLogger(__name__)

GROUP_ROWS = 1024
"""Rows of a row group; so many are in memory at a time."""


def write_records(records: Iterable[Record], path: Path) -> int:
    """Write one shard; returns the number of rows."""
    return write_rows(map(record_to_row, records), path)


def write_rows(rows: Iterable[dict[str, Any]], path: Path) -> int:
    """Write one shard of rows as `record_to_row` makes them, a row group at a time; returns the number of rows."""
    make_folder(path.parent)
    count, rest = 0, iter(rows)
    with (
        replacing(path) as scratch,
        pq.ParquetWriter(scratch, SCHEMA, compression="zstd", write_page_checksum=True) as writer,
    ):
        while group := list(islice(rest, GROUP_ROWS)):
            writer.write_table(pa.Table.from_pylist(group, schema=SCHEMA))
            count += len(group)
    return count


def read_records(folder: str | Path) -> Iterator[Record | Failure]:
    """Yield rows of all shards in order of name; a row that breaks the schema is a `Failure`, an unreadable shard is one too.

    An unreadable shard stands for the rows that its footer promises and that were not read; where the footer itself is lost,
    for as many as the other shards hold on average.

    Raises:
        DataError: the folder has no shard, its shards have no row, or a shard follows another schema.
    """
    shards = sorted(Path(folder).glob("records-*.parquet"))
    if not shards:
        raise DataError(
            f"{folder}: no records-*.parquet in this folder",
            remedy=f"build a dataset with python -m videostr.data build --source tabletop --out {folder}",
        )
    promised = {shard: rows for shard in shards if (rows := _promised_rows(shard)) is not None}
    if len(promised) == len(shards) and not any(promised.values()):
        raise DataError(f"{folder}: its records-*.parquet have no rows", remedy="build the dataset again")
    typical = round(np.mean(list(promised.values()))) if promised else 1
    seen: set[str] = set()
    for shard in shards:
        count = promised.get(shard, typical)
        for number, row in enumerate(_rows(shard)):
            if isinstance(row, RecordError):  # the types of its columns
                yield Failure(
                    kind=FailureKind.BAD_ROW, record_id=shard.name, detail=str(row), records=max(1, count)
                )
                break
            if isinstance(row, Exception):
                yield Failure(
                    kind=FailureKind.BAD_SHARD,
                    record_id=shard.name,
                    detail=f"{shard}: not readable as Parquet ({row}); build or copy the shard again",
                    records=max(1, count - number),
                )
                break
            origin = f"{shard}:{number}"
            try:
                record = record_from_row(row, origin)
                if record.id in seen:
                    raise RecordError(
                        f"{origin}: id = {record.id!r:.80} stands in an earlier row",
                        remedy="ids must be unique",
                    )
            except RecordError as error:
                yield Failure(
                    kind=FailureKind.BAD_ROW, record_id=_name(row.get("id"), origin), detail=str(error)
                )
                continue
            seen.add(record.id)
            yield record


def usable_records(folder: str | Path) -> Iterator[Record]:
    """Yield the records of `read_records`; at the end log how many rows could not be used, and why the first could not."""
    lost, first = 0, ""
    for row in read_records(folder):
        if isinstance(row, Record):
            yield row
        else:
            lost, first = lost + row.records, first or row.detail
    if lost:
        log.warning(
            "%s: %d rows cannot be used and are left out, the first: %s; python -m videostr.data check %s names all",
            folder, lost, first, folder,
        )  # fmt: skip


def _name(value: Any, origin: str) -> str:
    return value if isinstance(value, str) and value.strip() else origin


def index_at(position: int, count: int, seed: int) -> int:
    """Return the index of the record at a position of the seeded order; every epoch of `count` positions is a new permutation."""
    epoch, offset = divmod(position, count)
    return int(_permutation(epoch, count, seed)[offset])


@functools.lru_cache(maxsize=2)
def _permutation(epoch: int, count: int, seed: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(count)


def _promised_rows(shard: Path) -> int | None:
    """Return the number of rows by the footer; None where it cannot be read."""
    try:
        return int(pq.read_metadata(shard).num_rows)
    except (pa.ArrowException, OSError):
        return None


def _rows(shard: Path) -> Iterator[dict[str, Any] | Exception]:
    """Yield the rows; where reading them fails, the error in place of the rest, a `RecordError` for columns of wrong types."""
    try:
        with pq.ParquetFile(shard, page_checksum_verification=True) as file:
            schema = file.schema_arrow
            version = (schema.metadata or {}).get(b"videostr.schema", b"none").decode()
            wanted = pa.schema(
                [each for each in SCHEMA if each.name in {*schema.names} or each.name not in NEWER]
            )
            missing = set(wanted.names) - set(schema.names)
            if version not in READABLE_VERSIONS or missing:
                raise DataError(
                    f"{shard}: record schema {version}, columns missing: {sorted(missing) or 'none'}",
                    remedy=f"this version reads schema {' and '.join(sorted(READABLE_VERSIONS))}: build the dataset again",
                )
            count = file.metadata.num_rows
            if count and (wrong := type_problems(schema, wanted)):
                yield RecordError(
                    f"{shard}:0-{count - 1}: {'; '.join(wrong)}",
                    remedy=f"write the columns as docs/data.md lists them (all {count} rows of the file are lost)",
                )
                return
            for batch in file.iter_batches(GROUP_ROWS, columns=wanted.names):
                yield from plain_rows(batch)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        yield error


def plain_rows(batch: pa.RecordBatch | pa.Table) -> list[dict[str, Any]]:
    """Return rows as plain values; text that is not UTF-8, which Arrow does not look for, stays bytes."""
    try:
        return list(batch.to_pylist())
    except UnicodeDecodeError:
        names = batch.schema.names
        return [
            {name: _plain(batch.column(place)[number]) for place, name in enumerate(names)}
            for number in range(batch.num_rows)
        ]


def _plain(value: pa.Scalar) -> Any:
    try:
        return value.as_py()
    except UnicodeDecodeError:
        if isinstance(value, pa.StructScalar):
            return {name: _plain(field) for name, field in value.items()}
        if isinstance(value, pa.ListScalar):
            return [_plain(item) for item in value.values]
        return (value.value if isinstance(value, pa.DictionaryScalar) else value).as_buffer().to_pybytes()


def record_to_row(record: Record) -> dict[str, Any]:
    """Return a record as a row of `SCHEMA`, in values that JSON has too."""
    return {
        "id": record.id,
        "source": record.source,
        "family": record.family,
        "question": record.question,
        "options": list(record.options),
        "answer": {
            "kind": record.answer.kind.value,
            "value": json.dumps(record.answer.value),
            "unit": record.answer.unit,
        },
        "clip": {name: getattr(record.clip, name) for name in CLIP_FIELDS},
        "labels": list(record.labels),
        "graph": None if record.graph is None else _graph_text(record.graph),
        "graph_frame": None if record.graph is None else record.graph.frame,
        "query": None if record.query is None else msgspec.json.encode(record.query).decode(),
        "image_size": None if record.image_size is None else list(record.image_size),
        "marks": msgspec.json.encode(record.marks).decode() if record.marks else None,
    }


@functools.lru_cache(maxsize=64)
def _graph_text(graph: SceneGraph) -> str:
    """Return the JSON of a true graph; records of a clip share theirs."""
    return graphs.to_json(graph, truth=True)


def record_from_row(row: dict[str, Any], origin: str) -> Record:
    """Return the record of a row, as `record_to_row` wrote it.

    Raises:
        RecordError: the row breaks the schema; names `origin`, column and rule.
    """
    found = checked_row(row, origin)
    clip = found.clip
    start = clip.start_s or 0.0
    if clip.end_s is not None and clip.end_s < start:
        raise RecordError(f"{origin}: clip.end_s = {clip.end_s} lies before clip.start_s = {start}")
    options = tuple(found.options)
    return Record(
        id=found.id,
        source=found.source,
        family=found.family,
        question=found.question,
        options=options,
        answer=_answer(found.answer, options, origin),
        clip=ClipSpec(
            video=clip.video,
            num_frames=clip.num_frames,
            start_s=start,
            end_s=clip.end_s,
            height=clip.height,
            width=clip.width,
            marks=_marks(found, origin),
        ),
        labels=tuple(found.labels),
        graph=_graph(found, origin),
        query=_query(found, origin),
        image_size=found.image_size,
        origin=origin,
    )


def _answer(row: AnswerRow, options: tuple[str, ...], origin: str) -> Answer:
    kind = ANSWER_TYPES[row.kind]
    letters = [letter_of(i) for i in range(len(options))] if len(options) > 1 else []
    try:
        value = msgspec.json.decode(row.value, type=kind)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        value = None
    if value is None or (row.kind is AnswerKind.CHOICE and value not in letters):
        rule = rule_of(msgspec.inspect.type_info(kind))
        raise RecordError(
            f"{origin}: answer.value = {row.value!r:.80} of kind {row.kind}: must be {rule}, as JSON"
        )
    return Answer(kind=row.kind, value=value, unit=(row.unit or "").strip())


def _graph(row: Row, origin: str) -> SceneGraph | None:
    if row.graph is None:
        return None
    if not row.graph_frame:
        raise RecordError(f"{origin}: graph_frame is missing", remedy="a graph needs its frame of reference")
    try:
        graph = graphs.from_json(row.graph, frame=row.graph_frame, truth=True)
    except graphs.InvalidGraph as error:
        raise RecordError(f"{origin}: graph: {error}") from None
    unknown = {node.label for frame in graph.frames for node in frame.nodes} - set(row.labels)
    if unknown:
        raise RecordError(
            f"{origin}: graph uses labels {sorted(unknown)} that the column labels lacks",
            remedy="add them there",
        )
    return graph


def _marks(row: Row, origin: str) -> tuple[Mark, ...]:
    if row.marks is None:
        return ()
    try:
        marks = msgspec.json.decode(row.marks, type=tuple[Mark, ...])
    except msgspec.ValidationError as error:
        raise RecordError(f"{origin}: marks: {field_problem(error, tuple[Mark, ...])}") from None
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise RecordError(f"{origin}: marks = {row.marks!r:.80}: must be JSON ({error})") from None
    texts = [mark.text for mark in marks]
    for place, mark in enumerate(marks):
        name = f"{origin}: marks[{place}]"
        if mark.text not in TEXTS:
            raise RecordError(
                f"{name}.text = {mark.text!r:.80}: must be a digit 1 to 9, a letter A to I or one of {', '.join(COLORS)}"
            )
        if mark.text in texts[:place]:
            raise RecordError(
                f"{name}.text = {mark.text!r}: stands there twice; the texts of marks must differ"
            )
        if not mark.boxes:
            raise RecordError(f"{name}.boxes is empty: must name at least one time and box")
        for t, x1, y1, x2, y2 in mark.boxes:
            if not (t >= 0 and 0 <= x1 <= x2 <= 1000 and 0 <= y1 <= y2 <= 1000):  # also of NaN
                raise RecordError(
                    f"{name}.boxes has {[t, x1, y1, x2, y2]}: must be seconds and x1, y1, x2, y2 in px of 0 to 1000 of the "
                    "frame, x1 <= x2 and y1 <= y2"
                )
    return marks


def _query(row: Row, origin: str) -> Query | None:
    if row.query is None:
        return None
    try:
        query = msgspec.json.decode(row.query, type=Query)
    except msgspec.ValidationError as error:
        raise RecordError(f"{origin}: query: {field_problem(error, Query)}") from None
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise RecordError(f"{origin}: query = {row.query!r:.80}: must be JSON ({error})") from None
    if query.family != row.family:
        raise RecordError(
            f"{origin}: query.family = {query.family!r:.80}: must be the record's, {row.family!r:.80}"
        )
    if query.options and len(query.options) != len(row.options):
        raise RecordError(
            f"{origin}: query.options has {len(query.options)} entries, the record has {len(row.options)} options"
        )
    return query
