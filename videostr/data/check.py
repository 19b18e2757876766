"""Is a dataset sound? Every row, its truth, its graph, its video; leakage and duplicates.

In: a dataset's folder. Out: problems, each with the row it is in. What a row must be is said by `records.record_from_row`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import structs

from videostr.data import leakage
from videostr.data.records import read_records
from videostr.errors import PromptError, VideoError
from videostr.prompt import prompt_text, special_in
from videostr.types import Failure, Record
from videostr.video import FrameStore, name_clip


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong, and how many rows are lost by it."""

    detail: str
    rows: int = 1


def problems(
    folder: Path,
    *,
    judge: Callable[[Record], str],
    lists: Sequence[Path] = (),
    videos: int | None = None,
    seed: int = 0,
    processor: Any = None,
) -> Iterator[Problem | int]:
    """Problems as they are found; at the end the number of all rows.

    Args:
        folder: of the dataset.
        judge: says why the record's own truth, written as a trace, does not earn full reward; "" when it does.
        lists: files with names of scenes that must not be in it.
        videos: clips to decode, chosen by `seed`; None for all.
        seed: of that choice.
        processor: whose special tokens the texts must not hold; None for those of common tokenizers.
    """
    total = 0
    records: list[Record] = []
    for row in read_records(folder):
        total += row.records if isinstance(row, Failure) else 1
        if isinstance(row, Failure):
            yield Problem(row.detail, row.records)
            continue
        records.append(_without_nodes(row))
        if problem := _text_problem(row, processor):
            yield Problem(f"{row.origin}: {problem}")
        if problem := judge(row):
            yield Problem(f"{row.origin}: its own truth does not earn full reward: {problem}")
    by_id = {record.id: record for record in records}
    for record_id, place in leakage.find(records, lists):
        yield Problem(
            f"{place}: {record_id}: its scene is in a list of scenes that must not be trained on; drop the row"
        )
    for first, second in leakage.duplicates(records):
        yield Problem(
            f"{by_id[second].origin}: {second}: asks the same of the same video as {first}; drop one"
        )
    yield from _undecodable(folder, records, videos, seed)
    yield total


def _text_problem(record: Record, processor: Any) -> str:
    """Return which texts of a record would be read as special tokens; "" when none would."""
    if found := special_in(record, processor):
        places = ", ".join(f"{where} holds {token}" for where, token in found[:3])
        return (
            f"{places}: a special token of {'common tokenizers' if processor is None else 'the tokenizer'}; prompts part it by a "
            "blank, in a label it costs the record; rewrite the text"
        )
    try:
        if processor is not None:
            prompt_text(record, processor)
    except PromptError as error:
        return str(error)
    return ""


def _without_nodes(record: Record) -> Record:
    """With the times of the graph alone: those of a large dataset fit into memory, its nodes do not."""
    if record.graph is None:
        return record
    frames = tuple(structs.replace(frame, nodes=()) for frame in record.graph.frames)
    return replace(record, graph=structs.replace(record.graph, frames=frames))


def _undecodable(folder: Path, records: Sequence[Record], count: int | None, seed: int) -> Iterator[Problem]:
    chosen = np.random.default_rng(seed).permutation(len(records))[:count]
    with tempfile.TemporaryDirectory() as scratch:
        store = FrameStore(scratch)
        for index in sorted(chosen):
            record = records[index]
            try:
                clip = name_clip(record.clip, folder)
                times = store.frames(clip).times
            except VideoError as error:
                yield Problem(f"{record.origin}: {error}")
                continue
            for path in Path(scratch).glob(f"{clip.digest}.*"):
                path.unlink(missing_ok=True)
            if record.graph and (off := _off(record, times)):
                yield Problem(f"{record.origin}: {off}")


def _off(record: Record, times: Sequence[float]) -> str:
    """Whether the frames that are shown are those that the graph speaks of."""
    assert record.graph is not None
    stated = [frame.t for frame in record.graph.frames]
    if len(stated) != len(times):
        return f"the graph has {len(stated)} times, the clip shows {len(times)} frames"
    spacing = (times[-1] - times[0]) / max(1, len(times) - 1)
    worst = max(abs(a - b) for a, b in zip(stated, times, strict=True))
    return f"the graph is {worst:.2f} s off the frames that are shown" if worst > 0.5 * spacing + 1e-6 else ""
