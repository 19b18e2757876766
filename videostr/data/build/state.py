"""How far a build is, on disk: `build.json`, finished shards, the choices that wait, what was left out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from msgspec import structs

from videostr.data.balance import Balancer
from videostr.data.build.settings import Settings
from videostr.data.build.worker import Packed, pack, unpack
from videostr.data.records import write_rows
from videostr.data.scene import Skip, SkipReason
from videostr.errors import DataError
from videostr.files import append_line, replacing, storage, write_json


@dataclass(slots=True)
class Progress:
    """How far a build is; `build.json`.

    `shards`, `records` and `by_source` are those of the pool until the records are selected from it.
    """

    recipe: list[dict[str, Any]]
    """`Settings` of every source."""
    scenes: int = 0
    """Scenes done, from the first."""
    shards: int = 0
    records: int = 0
    by_source: dict[str, int] = field(default_factory=dict)
    """Records, by place in the recipe."""
    is_done: bool = False
    waiting: list[tuple[str, str]] = field(default_factory=list)
    """(key, value) of the rows of `waiting-N.parquet`, N being `shards`: choices whose sets are not complete."""
    unbalanced: int = 0
    """Choices and counts left out because their answer was the commoner one, or because their set was never complete."""
    drafts_left_out: int = 0
    """Drafts of questions over marked objects that found no complete set in their scene."""
    skips: dict[str, int] = field(default_factory=dict)
    """By reason."""
    thinned: list[dict[str, Any]] = field(default_factory=list)
    """`Thinned` of every kind of choices that lost some."""
    shares: list[dict[str, Any]] = field(default_factory=list)
    """`Taken` of every family of the sources whose shares are stated."""


def resume(out: Path, recipe: Sequence[Settings]) -> tuple[Progress, Balancer[Packed]]:
    wanted = json.loads(json.dumps([structs.asdict(settings) for settings in recipe]))
    path = out / "build.json"
    if not path.exists():
        if list(out.glob("records-*.parquet")):
            raise DataError(
                f"{out}: already holds a dataset", remedy="name another folder or delete this one"
            )
        (out / "skipped.jsonl").unlink(missing_ok=True)  # of a build that ended before its first state
        return Progress(recipe=wanted), Balancer()
    progress = Progress(**json.loads(path.read_text(encoding="utf-8")))
    if progress.recipe != wanted:
        raise DataError(
            f"{out}: {_difference(progress.recipe, wanted)}",
            remedy="continue with the same command, or name another folder",
        )
    if progress.is_done:
        stale = [*out.glob("pool-*.parquet"), *out.glob("waiting-*.parquet")]
    else:  # of a selection that was interrupted, and of the pool what was written after the last state was
        late = pool_path(out, progress.shards)
        stale = [
            *out.glob("records-*.parquet"),
            *(path for path in out.glob("pool-*.parquet") if path >= late),
        ]
    for path in stale:
        path.unlink()
    lines = sum(progress.skips.values())
    skipped = out / "skipped.jsonl"
    if skipped.exists():
        with replacing(skipped) as scratch:
            kept = skipped.read_text(encoding="utf-8").splitlines(keepends=True)[:lines]
            scratch.write_text("".join(kept), encoding="utf-8")
    balancer: Balancer[Packed] = Balancer(left_out=progress.unbalanced)
    if progress.waiting:
        rows = pq.read_table(waiting_path(out, progress)).to_pylist()
        balancer.restore(
            [(key, value, pack(row)) for (key, value), row in zip(progress.waiting, rows, strict=True)]
        )
    return progress, balancer


def _difference(begun: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> str:
    for old, new in zip(begun, wanted, strict=False):
        for key in new:
            if old.get(key) != new[key]:
                return f"was begun with {key} = {old.get(key)!r}, now it is {new[key]!r}"
    return f"was begun with {len(begun)} sources, now there are {len(wanted)}"


def note_skips(out: Path, progress: Progress, skips: Iterable[Skip]) -> None:
    lines = []
    for skip in skips:
        lines.append(json.dumps(asdict(skip) | {"reason": skip.reason.name}))
        progress.skips[skip.reason.name] = progress.skips.get(skip.reason.name, 0) + 1
    if lines:
        append_line(out / "skipped.jsonl", "\n".join(lines))
    else:  # there is always such a file
        with storage(out / "skipped.jsonl"):
            (out / "skipped.jsonl").touch()


def save(out: Path, progress: Progress) -> None:
    write_json(out / "build.json", asdict(progress))


def shard_path(out: Path, number: int) -> Path:
    return out / f"records-{number:05d}.parquet"


def pool_path(out: Path, number: int) -> Path:
    return out / f"pool-{number:05d}.parquet"


def waiting_path(out: Path, progress: Progress) -> Path:
    return out / f"waiting-{progress.shards:05d}.parquet"


def write_shard(path: Path, records: list[Packed]) -> None:
    write_rows(map(unpack, records), path)
    pa.default_memory_pool().release_unused()


def skip_table(progress: Progress) -> str:
    """Return what was left out, by reason, as lines of text."""
    counts = Counter(progress.skips)
    lines = [f"{count:8d}  {SkipReason[reason].value}" for reason, count in counts.most_common()]
    lines.append(
        f"{progress.unbalanced:8d}  choices and counts whose answer was commoner than the others of their kind"
    )
    if progress.drafts_left_out:
        lines.append(
            f"{progress.drafts_left_out:8d}  drafts over marked objects whose answer the places of the marks would tell"
        )
    if thinned := sum(each["dropped"] for each in progress.thinned):
        lines.append(f"{thinned:8d}  choices of kinds that are guessed without the video, the easiest first")
    return "\n".join(lines)
