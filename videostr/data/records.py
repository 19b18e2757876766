"""Record datasets: a folder of Parquet shards `records-*.parquet` beside the videos that they name.

In: records from a builder. Out: records in file order, each broken row as a `Failure` that names file, row and rule, and
a seeded order over them that any process can compute for any position (so that a resumed run continues where it was).
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from videostr import graph as graphs
from videostr.errors import DataError, RecordError
from videostr.types import Answer, AnswerKind, ClipSpec, Failure, FailureKind, Record, SceneGraph

SCHEMA_VERSION = "1"
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
    ],
    metadata={"videostr.schema": SCHEMA_VERSION},
)
"""`answer.value` and `graph` are JSON; `graph` follows the graph contract, its nodes with a `size`, its frame of reference
stands in `graph_frame`."""

GROUP_ROWS = 1024
"""Rows of a row group; so many are in memory at a time."""
NUMBERS_IN_BOX = {AnswerKind.BOX2D: 4, AnswerKind.BOX3D: 7, AnswerKind.SPAN: 2}


def write_records(records: Iterable[Record], path: Path) -> int:
    """Write one shard; returns the number of rows."""
    return write_rows(map(record_to_row, records), path)


def write_rows(rows: Iterable[dict[str, Any]], path: Path) -> int:
    """Write one shard of rows as `record_to_row` makes them, a row group at a time; returns the number of rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count, rest = 0, iter(rows)
    with pq.ParquetWriter(path, SCHEMA, compression="zstd", write_page_checksum=True) as writer:
        while group := list(islice(rest, GROUP_ROWS)):
            writer.write_table(pa.Table.from_pylist(group, schema=SCHEMA))
            count += len(group)
    return count


def read_records(folder: str | Path) -> Iterator[Record | Failure]:
    """Rows of all shards in order of name; a row that breaks the schema is a `Failure`, an unreadable shard is one too.

    An unreadable shard stands for the rows that its footer promises and that were not read; where the footer itself is lost,
    for as many as the other shards hold on average.

    Raises:
        DataError: the folder has no shard, its shards have no row, or a shard follows another schema.
    """
    shards = sorted(Path(folder).glob("records-*.parquet"))
    if not shards:
        raise DataError(
            f"{folder}: no records-*.parquet in this folder; build a dataset with "
            f"python -m videostr.data build --source tabletop --out {folder}"
        )
    promised = {shard: rows for shard in shards if (rows := _promised_rows(shard)) is not None}
    if len(promised) == len(shards) and not any(promised.values()):
        raise DataError(f"{folder}: its records-*.parquet have no rows; build the dataset again")
    typical = round(np.mean(list(promised.values()))) if promised else 1
    seen: set[str] = set()
    for shard in shards:
        for number, row in enumerate(_rows(shard)):
            if isinstance(row, Exception):
                yield Failure(
                    kind=FailureKind.BAD_SHARD,
                    record_id=shard.name,
                    detail=f"{shard}: not readable as Parquet ({row}); build or copy the shard again",
                    records=max(1, promised.get(shard, typical) - number),
                )
                break
            origin = f"{shard}:{number}"
            try:
                record = record_from_row(row, origin)
                if record.id in seen:
                    raise RecordError(
                        f"{origin}: id = {record.id!r} stands in an earlier row; ids must be unique"
                    )
            except RecordError as error:
                yield Failure(kind=FailureKind.BAD_ROW, record_id=str(row.get("id")), detail=str(error))
                continue
            seen.add(record.id)
            yield record


def index_at(position: int, count: int, seed: int) -> int:
    """Index of the record at a position of the seeded order; every epoch of `count` positions is a new permutation."""
    epoch, offset = divmod(position, count)
    return int(_permutation(epoch, count, seed)[offset])


@functools.lru_cache(maxsize=2)
def _permutation(epoch: int, count: int, seed: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(count)


def _promised_rows(shard: Path) -> int | None:
    """Rows according to the footer; None where it cannot be read."""
    try:
        return int(pq.read_metadata(shard).num_rows)
    except (pa.ArrowException, OSError):
        return None


def _rows(shard: Path) -> Iterator[dict[str, Any] | Exception]:
    """The rows; where reading them fails, the error in place of the rest."""
    try:
        with pq.ParquetFile(shard, page_checksum_verification=True) as file:
            found = (file.schema_arrow.metadata or {}).get(b"videostr.schema", b"none").decode()
            missing = set(SCHEMA.names) - set(file.schema_arrow.names)
            if found != SCHEMA_VERSION or missing:
                raise DataError(
                    f"{shard}: record schema {found}, columns missing: {sorted(missing) or 'none'}; this version reads "
                    f"schema {SCHEMA_VERSION}: build the dataset again"
                )
            for batch in file.iter_batches(GROUP_ROWS):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        yield error


def record_to_row(record: Record) -> dict[str, Any]:
    """A record as a row of `SCHEMA`, in values that JSON has too."""
    clip = record.clip
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
        "clip": {
            "video": clip.video,
            "num_frames": clip.num_frames,
            "start_s": clip.start_s,
            "end_s": clip.end_s,
            "height": clip.height,
            "width": clip.width,
        },
        "labels": list(record.labels),
        "graph": None if record.graph is None else graphs.to_json(record.graph, truth=True),
        "graph_frame": None if record.graph is None else record.graph.frame,
    }


def record_from_row(row: dict[str, Any], origin: str) -> Record:
    """The record of a row, as `record_to_row` wrote it.

    Raises:
        RecordError: the row breaks the schema; names `origin`, column and rule.
    """
    for name in SCHEMA.names:
        if not name.startswith("graph") and row[name] is None:
            raise RecordError(f"{origin}: {name} is missing; every column but the graph's must have a value")
    for name in ("id", "question"):
        if not row[name].strip():
            raise RecordError(f"{origin}: {name} is empty; it must hold text")
    options = tuple(row["options"])
    return Record(
        id=row["id"],
        source=row["source"],
        family=row["family"],
        question=row["question"],
        options=options,
        answer=_answer(row["answer"], options, origin),
        clip=_clip(row["clip"], origin),
        labels=tuple(row["labels"]),
        graph=_graph(row, origin),
        origin=origin,
    )


def _answer(row: dict[str, Any], options: tuple[str, ...], origin: str) -> Answer:
    kinds = [kind.value for kind in AnswerKind]
    if row["kind"] not in kinds:
        raise RecordError(f"{origin}: answer.kind = {row['kind']!r}: must be one of {', '.join(kinds)}")
    kind = AnswerKind(row["kind"])
    try:
        # As floats: thousands of digits are then infinite, and refused below.
        value = json.loads(row["value"], parse_int=float)
    except (TypeError, ValueError, RecursionError):
        raise RecordError(f"{origin}: answer.value = {row['value']!r:.80}: must be JSON") from None
    problem = _value_problem(kind, value, options)
    if problem:
        raise RecordError(f"{origin}: answer.value = {value!r} of kind {kind.value}: must be {problem}")
    if isinstance(value, list):
        value = tuple(tuple(v) if isinstance(v, list) else float(v) for v in value)
    return Answer(
        kind=kind, value=float(value) if kind is AnswerKind.NUMBER else value, unit=row["unit"] or ""
    )


def _value_problem(kind: AnswerKind, value: Any, options: tuple[str, ...]) -> str:
    if kind is AnswerKind.CHOICE:
        letters = [chr(ord("A") + i) for i in range(len(options))]
        good = len(options) >= 2 and value in letters
        return "" if good else "the letter of one of at least two options"
    if kind is AnswerKind.NUMBER:
        return "" if _finite([value], 1) else "a finite number"
    if kind is AnswerKind.TRACK:
        good = isinstance(value, list) and bool(value) and all(_finite(box, 4) for box in value)
        return "" if good else "a list of boxes of 4 finite numbers"
    count = NUMBERS_IN_BOX[kind]
    return "" if _finite(value, count) else f"{count} finite numbers"


def _finite(values: Any, count: int) -> bool:
    numbers = isinstance(values, list) and all(type(v) in (int, float) for v in values)
    return numbers and len(values) == count and bool(np.isfinite(values).all())


def _clip(row: dict[str, Any], origin: str) -> ClipSpec:
    if not row["video"]:
        raise RecordError(f"{origin}: clip.video is empty; it must name a file")
    if not row["num_frames"] or row["num_frames"] < 1:
        raise RecordError(f"{origin}: clip.num_frames = {row['num_frames']}: must be at least 1")
    for name in ("start_s", "end_s"):
        if row[name] is not None and not math.isfinite(row[name]):
            raise RecordError(
                f"{origin}: clip.{name} = {row[name]}: must be a finite number of seconds, or null"
            )
    start = row["start_s"] or 0.0
    if row["end_s"] is not None and row["end_s"] < start:
        raise RecordError(f"{origin}: clip.end_s = {row['end_s']} lies before clip.start_s = {start}")
    return ClipSpec(
        video=row["video"],
        num_frames=row["num_frames"],
        start_s=start,
        end_s=row["end_s"],
        height=row["height"],
        width=row["width"],
    )


def _graph(row: dict[str, Any], origin: str) -> SceneGraph | None:
    if row["graph"] is None:
        return None
    if not row["graph_frame"]:
        raise RecordError(f"{origin}: graph_frame is missing; a graph needs its frame of reference")
    try:
        graph = graphs.from_json(row["graph"], frame=row["graph_frame"], truth=True)
    except graphs.GraphRefused as error:
        raise RecordError(f"{origin}: graph: {error}") from None
    unknown = {node.label for frame in graph.frames for node in frame.nodes} - set(row["labels"])
    if unknown:
        raise RecordError(
            f"{origin}: graph uses labels {sorted(unknown)} that the column labels lacks; add them there"
        )
    return graph
