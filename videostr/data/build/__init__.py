"""Annotated video -> record dataset: scenes of one or more sources, read and asked about in parallel, written in their order.

In: what each source is to give. Out: a folder with

    records-00000.parquet ..   the records
    frames/SCENE.frames.json   the images of every scene as a video (nothing is copied); frames/1/SCENE.frames.json where
                               source 1 of the recipe has other images of a scene that an earlier one has, too
    skipped.jsonl              everything that was left out, with file, line and reason
    README.md                  dataset card
    build.json                 how far it is, and what it was asked for: the same command continues after an interruption

The result depends on the sources, the seed and the settings alone, not on the number of workers: workers read scenes and make
questions; the parent takes them in order and lets choices pass in complete sets (`videostr/data/balance.py`) into a pool,
`pool-00000.parquet ..`, from which the records are selected at the end (`selection.py`). Memory holds the scenes under way,
one shard, and the choices that wait for their sets, of which there is a largest number; records travel and wait as
compressed rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

from videostr.data.balance import Balancer
from videostr.data.build.selection import select
from videostr.data.build.settings import Settings
from videostr.data.build.state import (
    Progress,
    note_skips,
    pool_path,
    resume,
    save,
    waiting_path,
    write_shard,
)
from videostr.data.build.worker import Job, Packed, Part, images_of, make, open_source
from videostr.data.tasks import Pool, in_order, processes
from videostr.errors import DataError
from videostr.files import make_folder, write_json

SHARD_RECORDS = 8192


def build(
    out: Path,
    recipe: Sequence[Settings],
    workers: int | None = None,
    tell: Callable[[Progress, int], None] = lambda *_: None,
    pool: Pool = processes,
) -> Progress:
    """Build a dataset, or continue one; return the counts.

    Args:
        out: folder of the dataset.
        recipe: what is asked for, source by source.
        workers: scenes that are read at once; None for one on each core.
        tell: called with the `Progress` and the number of all scenes, after every scene.
        pool: what reads them; `actors.data_tasks.ray_tasks` on a cluster.

    Raises:
        DataError: `out` holds another dataset, or a root is not that of its source.
    """
    progress, balancer = resume(out, recipe)
    if progress.is_done:
        return progress
    make_folder(out / "frames")
    jobs: list[Job] = []
    first: dict[tuple[str, str], int] = {}
    for number, settings in enumerate(recipe):
        source = open_source(settings)
        for name in list(source.names)[: settings.scenes]:
            earlier = first.setdefault((settings.source, name), number)
            jobs.append(_job(number, settings, name, recipe[earlier] if earlier < number else None))
        if progress.scenes == 0:
            note_skips(out, progress, source.skips)
    pending: list[Packed] = []
    with pool(workers) as (count, submit):
        left = jobs[progress.scenes :]
        # Whether there is room is asked when a scene is started
        started = ((job, submit(make, job) if _room(progress, job) != 0 else _nothing) for job in left)
        for job, part in in_order(started, count):
            pending += _take(out, progress, balancer, job, part)
            progress.scenes += 1
            if len(pending) >= SHARD_RECORDS:
                _flush(out, progress, balancer, pending)
            tell(progress, len(jobs))
    balancer.left_out += len(balancer.state())
    balancer.restore([])
    _flush(out, progress, balancer, pending)
    if progress.records == 0:
        (out / "build.json").unlink()  # the same command is to look at the mended files again
        raise DataError(
            f"{out}: no question could be asked about any of {len(jobs)} scenes",
            remedy=f"the reasons are in {out / 'skipped.jsonl'}",
        )
    waiting = waiting_path(out, progress)
    emptied = [pool_path(out, number) for number in range(progress.shards)]
    select(out, progress, recipe, SHARD_RECORDS)
    progress.is_done = True
    save(out, progress)
    for path in (waiting, *emptied):
        path.unlink()
    return progress


def _job(place: int, settings: Settings, name: str, first: Settings | None) -> Job:
    """Return a scene of a source; `first` is the source earlier in the recipe that has one of this name, too."""
    folder, mark = "", ""
    if first is not None:
        mark = f"{place}."
        if (first.root, first.split) != (settings.root, settings.split):
            folder = f"{place}/"
    return Job(place, settings, name, images_of(settings.source, name, folder), mark)


def _nothing() -> Part:
    """Return the part of a scene that is not read."""
    return Part([], (), None)


def _room(progress: Progress, job: Job) -> int | None:
    """Return records that may still be taken of the job's source; None for all, of which shares are taken at the end."""
    limit = job.settings.most
    return (
        None
        if limit is None or job.settings.shares
        else max(0, limit - progress.by_source.get(str(job.place), 0))
    )


def _take(out: Path, progress: Progress, balancer: Balancer[Packed], job: Job, part: Part) -> list[Packed]:
    released = []
    for packed, balance in part.records:
        if balance is not None:  # sources are balanced apart: their videos tell them from each other
            balance = replace(balance, key=f"{job.place}|{balance.key}")
        released += balancer.add(packed, balance)
    progress.drafts_left_out += part.drafts_left_out
    kept = released[: _room(progress, job)]
    progress.by_source[str(job.place)] = progress.by_source.get(str(job.place), 0) + len(kept)
    note_skips(out, progress, part.skips)
    if part.images is not None and part.records:
        path = out / job.images
        make_folder(path.parent)
        write_json(path, msgspec.to_builtins(part.images))
    return kept


def _flush(out: Path, progress: Progress, balancer: Balancer[Packed], pending: list[Packed]) -> None:
    before = waiting_path(out, progress)
    if pending:
        write_shard(pool_path(out, progress.shards), pending)
        progress.shards += 1
        progress.records += len(pending)
        pending.clear()
    state = balancer.state()
    progress.waiting = [(key, value) for key, value, _ in state]
    progress.unbalanced = balancer.left_out
    write_shard(waiting_path(out, progress), [packed for _, _, packed in state])
    save(out, progress)
    if before != waiting_path(out, progress):
        before.unlink(missing_ok=True)
