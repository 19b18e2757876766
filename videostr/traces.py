"""Trace dumps: groups with their scores as one Parquet file per dumped step.

In: rollout groups, their advantages and records. Out: `traces/step_XXXXXX.parquet`, one row per rollout, readable
with any Parquet tool; `read_traces` gives the rows back.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from videostr.errors import DataError
from videostr.files import make_folder, replacing
from videostr.graph import to_json
from videostr.groups import RolloutGroup, Sampled
from videostr.trace import parse
from videostr.types import Completion, GraphAbsence, Record, SceneGraph


class TraceRow(TypedDict):
    """One rollout."""

    step: int
    record_id: str
    question: str
    family: str
    prompt: str
    """Chat text, before tokenisation."""
    rollout: int
    """Index within the group."""
    text: str
    """The completion."""
    total: float
    parts: str
    """JSON object: score parts by name."""
    notes: str
    """JSON list of sentences."""
    advantage: float
    tokens: int
    """Completion length."""
    finish_reason: str
    """Name of a `FinishReason`."""
    true_answer: str
    true_graph: str
    """JSON of the graph contract with sizes, "" where the record has none."""
    predicted_graph: str
    """JSON of the graph contract, "" where the trace has none."""
    absence: str
    """Name of a `GraphAbsence`, "" where the trace has a graph."""
    reference: str
    """Frame of reference of both graphs: "camera0", "floor", "image" or ""."""
    clip: str
    """Digest: key in the frame store."""


_ARROW = {int: pa.int32(), float: pa.float32(), str: pa.string()}
_TYPES = {"step": int, "rollout": int, "tokens": int, "total": float, "advantage": float}
SCHEMA = pa.schema([(name, _ARROW[_TYPES.get(name, str)]) for name in TraceRow.__annotations__])


def trace_rows(
    step: int, group: RolloutGroup, sampled: Sampled, advantages: np.ndarray, record: Record
) -> list[TraceRow]:
    """Return the rows of a group.

    Args:
        step: which step the group was learned in.
        group: what was asked, and the scores.
        sampled: its completions.
        advantages: [G].
        record: of the group.
    """
    return [
        _row(step, group, index, completion, float(advantage), record)
        for index, (completion, advantage) in enumerate(zip(sampled.completions, advantages, strict=True))
    ]


def _row(
    step: int, group: RolloutGroup, index: int, completion: Completion, advantage: float, record: Record
) -> TraceRow:
    predicted, score = parse(completion.text).graph, group.scores[index]
    return TraceRow(
        step=step,
        record_id=record.id,
        question=record.question,
        family=record.family,
        prompt=group.prompt.text,
        rollout=index,
        text=completion.text,
        total=score.total,
        parts=json.dumps(dict(score.parts)),
        notes=json.dumps(list(score.notes)),
        advantage=advantage,
        tokens=completion.num_tokens,
        finish_reason=completion.finish_reason.name,
        true_answer=f"{record.answer.value} {record.answer.unit}".strip(),
        true_graph=to_json(record.graph, truth=True) if record.graph else "",
        predicted_graph=to_json(predicted) if isinstance(predicted, SceneGraph) else "",
        absence=predicted.name if isinstance(predicted, GraphAbsence) else "",
        reference=record.graph.frame if record.graph else "",
        clip=group.prompt.clip.digest,
    )


def write_traces(path: str | Path, rows: Sequence[TraceRow]) -> None:
    """Write a dump; a reader never sees half a file."""
    path = Path(path)
    make_folder(path.parent)
    with replacing(path) as scratch:
        pq.write_table(pa.Table.from_pylist(list(rows), schema=SCHEMA), scratch, compression="zstd")


def trace_count(path: str | Path) -> int:
    """Return the number of rows of a dump, without reading them.

    Raises:
        DataError: not readable.
    """
    try:
        return int(pq.read_metadata(path).num_rows)
    except (OSError, pa.ArrowInvalid) as error:
        raise _unreadable(path, error) from error


def read_traces(path: str | Path) -> list[TraceRow]:
    """Read a dump.

    Raises:
        DataError: not a trace dump, or not readable.
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise _unreadable(path, error) from error
    missing = [name for name in SCHEMA.names if name not in table.column_names]
    if missing:
        raise DataError(f"{path}: a trace dump has the columns {SCHEMA.names}, this one lacks {missing}")
    return cast("list[TraceRow]", table.select(SCHEMA.names).to_pylist())


def _unreadable(path: str | Path, error: Exception) -> DataError:
    return DataError(f"{path}: not readable as Parquet ({error})", remedy="delete it or restore it")
