"""The pool of a build -> its records: choices that are guessed without the video go, then each family gets its share.

In: shards `pool-*.parquet`, whose choices stand in complete sets. Out: `records-*.parquet`, and in `Progress` what was dropped
and taken. Both work with whole sets. Of a family that has more than its share, every scene gives equally much as far as it
can, its sets in an order drawn by the seed. What a family lacks, others of the same kind of answer fill up, then those of
other kinds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from videostr.data.baseline import complete_sets
from videostr.data.build.settings import Settings
from videostr.data.build.state import Progress, pool_path, shard_path
from videostr.data.records import record_from_row, write_rows
from videostr.data.thinning import Thinned, thin
from videostr.digests import digest
from videostr.types import AnswerKind, Record

NARROW = ("id", "source", "family", "options", "answer", "clip")
"""Columns that are held for all rows of a source."""


class Row(NamedTuple):
    """What is held of a row of the pool."""

    number: int
    """In the pool."""
    id: str
    source: str
    family: str
    options: tuple[str, ...]
    kind: str
    """Of the answer."""
    video: str


Set = list[Row]


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What became of the share of a family."""

    place: int
    """Of the source in the recipe."""
    source: str
    family: str
    kind: str
    wanted: int
    pool: int
    """Records that the scenes gave, in complete sets."""
    thinned: int
    """Of these, dropped because guessing would pay."""
    got: int


def select(out: Path, progress: Progress, recipe: Sequence[Settings], shard_records: int) -> None:
    """Write the records of a finished pool; `progress` tells of them afterwards.

    Args:
        out: folder of the dataset.
        progress: of the pool.
        recipe: settings of every source.
        shard_records: rows of a shard.
    """
    shards = [pool_path(out, number) for number in range(progress.shards)]
    ends = np.cumsum([pq.read_metadata(shard).num_rows for shard in shards]).tolist()
    kept = np.zeros(progress.records, dtype=bool)
    first = 0
    for place, settings in enumerate(recipe):
        stop = first + progress.by_source.get(str(place), 0)
        within = [
            (shard, end) for shard, end in zip(shards, ends, strict=True) if first < end and _start(shard, end) < stop
        ]  # fmt: skip
        sets = list(complete_sets(_narrow(within, first, stop)))
        left, thinned = _thinned(within, sets, settings)
        progress.thinned += [msgspec.to_builtins(each) for each in thinned]
        if settings.shares:
            left, taken = take(sets, left, settings, place)
            progress.shares += [asdict(each) for each in taken]
        chosen = [row.number for found, stays in zip(sets, left, strict=True) if stays for row in found]
        kept[chosen] = True
        progress.by_source[str(place)] = len(chosen)
        first = stop
    rows = (row for _, row in _rows(list(zip(shards, ends, strict=True)), kept=kept))
    progress.shards = 0
    while part := list(islice(rows, shard_records)):
        write_rows(part, shard_path(out, progress.shards))
        progress.shards += 1
    progress.records = int(kept.sum())
    pa.default_memory_pool().release_unused()


def _start(shard: Path, end: int) -> int:
    return end - int(pq.read_metadata(shard).num_rows)


def _rows(
    shards: Sequence[tuple[Path, int]], columns: Sequence[str] | None = None, kept: np.ndarray | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield numbers and rows of shards, each given with the number of the row after its last.

    Args:
        shards: of the pool.
        columns: that are read; None for all.
        kept: [rows of the pool] which rows; None for all.
    """
    for shard, end in shards:
        number = _start(shard, end)
        with pq.ParquetFile(shard) as file:
            for batch in file.iter_batches(1024, columns=columns):
                numbers = np.arange(number, number + batch.num_rows)
                number += batch.num_rows
                if kept is not None:
                    batch, numbers = batch.filter(pa.array(kept[numbers])), numbers[kept[numbers]]
                yield from zip(numbers.tolist(), batch.to_pylist(), strict=True)


def _narrow(shards: Sequence[tuple[Path, int]], first: int, stop: int) -> Iterator[Row]:
    for number, row in _rows(shards, NARROW):
        if first <= number < stop:
            yield Row(
                number, row["id"], row["source"], row["family"], tuple(row["options"]), row["answer"]["kind"],
                row["clip"]["video"],
            )  # fmt: skip


def _thinned(
    shards: Sequence[tuple[Path, int]], sets: Sequence[Set], settings: Settings
) -> tuple[np.ndarray, list[Thinned]]:
    """Return [S] which sets of a source stay; a family at a time, with one number of options, is in memory."""
    left = np.ones(len(sets), dtype=bool)
    found: list[Thinned] = []
    by_family: dict[tuple[str, int], list[int]] = {}
    for place, each in enumerate(sets):
        if each[0].kind == AnswerKind.CHOICE and settings.max_over_chance < 1:
            by_family.setdefault((each[0].family, len(each[0].options)), []).append(place)
    for _, places in sorted(by_family.items()):
        records = _records(shards, {row.number for place in places for row in sets[place]})
        of_family = [[records[row.number] for row in sets[place]] for place in places]
        stays, thinned = thin(of_family, settings.max_over_chance, settings.seed)
        left[places] = stays
        found += thinned
    return left, found


def _records(shards: Sequence[tuple[Path, int]], numbers: set[int]) -> dict[int, Record]:
    """Return rows as records without their graphs."""
    columns = [
        name for name in pq.read_schema(shards[0][0]).names if name not in ("graph", "graph_frame", "labels")
    ]
    without: dict[str, Any] = {"graph": None, "graph_frame": None, "labels": []}
    kept = np.zeros(shards[-1][1], dtype=bool)
    kept[list(numbers)] = True
    return {
        number: record_from_row(row | without, f"row {number}")
        for number, row in _rows(shards, columns, kept)
    }


def take(
    sets: Sequence[Set], left: np.ndarray, settings: Settings, place: int = 0
) -> tuple[np.ndarray, list[Taken]]:
    """Return [S] which sets are taken so that each family has its share of the limit, and what became of the shares.

    Args:
        sets: all of a source.
        left: [S] those that thinning left.
        settings: with limit and shares.
        place: of the source in the recipe.
    """
    most = settings.most
    assert most is not None
    wanted = {
        (kind, family): share * most for kind, of in settings.shares.items() for family, share in of.items()
    }
    queues: dict[tuple[str, str], list[int]] = {key: [] for key in wanted}
    pool = dict.fromkeys(wanted, 0)
    for number, each in enumerate(sets):
        if (key := (each[0].kind, each[0].family)) in wanted:
            pool[key] += len(each)
            if left[number]:
                queues[key].append(number)
    after = {key: sum(len(sets[i]) for i in queue) for key, queue in queues.items()}
    queues = {key: _in_turn(sets, queue, settings.seed) for key, queue in queues.items()}
    chosen = np.zeros(len(sets), dtype=bool)
    got = dict.fromkeys(wanted, 0)

    def fill(keys: Sequence[tuple[str, str]], room: float, total: int) -> None:
        """Take sets of some families, each in proportion to what it has left, until `room` more records are there."""
        shares = {key: after[key] - got[key] for key in keys}
        of_all = max(1, sum(shares.values()))
        for key in keys:
            limit = min(got[key] + room * min(1.0, shares[key] / of_all), most - total + got[key])
            got_before = got[key]
            while queues[key] and got[key] + len(sets[queues[key][0]]) <= limit + 1e-6:
                number = queues[key].pop(0)
                chosen[number] = True
                got[key] += len(sets[number])
            total += got[key] - got_before

    for key in wanted:
        fill([key], wanted[key], sum(got.values()))
    for kind in settings.shares:
        keys = [key for key in wanted if key[0] == kind]
        fill(keys, sum(wanted[key] - got[key] for key in keys), sum(got.values()))
    fill(list(wanted), most - sum(got.values()), sum(got.values()))
    for key in sorted(wanted, key=lambda key: got[key] - after[key]):  # the few that no proportion gives
        fill([key], most - sum(got.values()), sum(got.values()))
    source = sets[0][0].source if sets else settings.source
    taken = [
        Taken(
            place=place, source=source, family=key[1], kind=key[0], wanted=round(wanted[key]), pool=pool[key],
            thinned=pool[key] - after[key], got=got[key],
        )
        for key in wanted
    ]  # fmt: skip
    return chosen, taken


def _in_turn(sets: Sequence[Set], numbers: Sequence[int], seed: int) -> list[int]:
    """Return sets so that their scenes take turns, in an order drawn by the seed."""
    by_video: dict[str, list[tuple[str, int]]] = {}
    for number in numbers:
        row = sets[number][0]
        by_video.setdefault(row.video, []).append((digest(f"{seed}|{row.id}"), number))
    turns = [
        (turn, drawn, number) for of in by_video.values() for turn, (drawn, number) in enumerate(sorted(of))
    ]
    return [number for _, _, number in sorted(turns)]
