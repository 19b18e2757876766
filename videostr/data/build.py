"""Annotated video -> record dataset: scenes of one or more sources, read and asked about in parallel, written in their order.

In: what is asked of each source. Out: a folder with

    records-00000.parquet ..   the records
    frames/SCENE.frames.json   the images of every scene as a video (nothing is copied); frames/1/SCENE.frames.json where
                               source 1 of the recipe has other images of a scene that an earlier one has, too
    skipped.jsonl              everything that was left out, with file, line and reason
    README.md  stats.html      dataset card, plots
    build.json                 how far it is, and what it was asked for: the same command goes on after an interruption

The result depends on the sources, the seed and the settings alone, not on the number of workers: workers read scenes and make
questions; the parent takes them in order and lets choices pass in complete sets (`videostr/data/balance.py`). Memory holds
the scenes under way, one shard, and the choices that wait for their sets, of which there is a largest number; records travel
and wait as compressed rows.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import threading
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from videostr.data.asked import Asked, Balance
from videostr.data.balance import Balancer
from videostr.data.clips import ClipView, clips
from videostr.data.families import FAMILIES, ask
from videostr.data.leakage import excluded
from videostr.data.records import record_to_row, write_rows
from videostr.data.scene import Scene, SceneSource, Skip, SkipReason
from videostr.data.sources import SOURCES
from videostr.digests import digest
from videostr.errors import ConfigError, DataError
from videostr.files import append_line, make_folder, replacing, storage, write_json
from videostr.graph import MAX_FRAMES
from videostr.images import LIST_SUFFIX, ImageList
from videostr.types import ClipSpec, Record

SHARD_RECORDS = 8192
AHEAD = 4
"""Scenes under way, per worker."""

Packed = bytes
"""A record as `_pack` makes it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What is asked of a source; decides the bytes that come out."""

    source: str
    root: str
    split: str = "train"
    seed: int = 0
    limit: int | None = None
    """Records, at most."""
    scenes: int | None = None
    """Scenes, at most, from the first."""
    clips: int = 8
    """Clips of a scene, at most."""
    questions: int = 8
    """Questions about a clip, at most, before balancing."""
    num_frames: int = 8
    """F, frames shown and times of the graph."""
    height: int | None = None
    width: int | None = None
    """Size of the frames handed to the model, px; None keeps the images'."""
    exclude: tuple[str, ...] = ()
    """Files with names of scenes to leave out (`videostr/data/leakage.py`)."""
    families: tuple[str, ...] = ()
    """Those that are asked; () is all."""

    def __post_init__(self) -> None:
        """Refuse numbers that nothing can be built with, and families that do not exist.

        Raises:
            ConfigError: names the key, its value and the rule.
        """
        if not 2 <= self.num_frames <= MAX_FRAMES:
            raise ConfigError(
                f"num_frames = {self.num_frames}: must be 2 to {MAX_FRAMES}, as many times as a graph may have"
            )
        if self.seed < 0:
            raise ConfigError(f"seed = {self.seed}: must not be negative")
        for key in ("limit", "scenes", "clips", "questions", "height", "width"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ConfigError(f"{key} = {value}: must be at least 1")
        for name in self.families:
            if name not in FAMILIES:
                raise ConfigError(f"families: {name!r} is none", remedy=f"choose from {', '.join(FAMILIES)}")


@dataclass(slots=True)
class Progress:
    """How far a build is; `build.json`."""

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
    skips: dict[str, int] = field(default_factory=dict)
    """By reason."""


@dataclass(frozen=True, slots=True)
class Job:
    """One scene to be read."""

    place: int
    """Of its source in the recipe."""
    settings: Settings
    name: str
    images: str
    """List of its images, below the dataset's folder."""
    mark: str
    """Part of the ids that tells questions about scenes of one name apart; "" for the first source that has it."""


@dataclass(frozen=True, slots=True)
class Part:
    """What a worker made of a scene."""

    records: list[tuple[Packed, Balance | None]]
    skips: tuple[Skip, ...]
    images: ImageList | None
    """None where the video is a file."""


def build(
    out: Path,
    recipe: Sequence[Settings],
    workers: int,
    tell: Callable[[Progress, int], None] = lambda *_: None,
) -> Progress:
    """Build a dataset, or go on with one; returns the counts.

    Args:
        out: folder of the dataset.
        recipe: what is asked for, source by source.
        workers: processes that read scenes.
        tell: called with the `Progress` and the number of all scenes, after every scene.

    Raises:
        DataError: `out` holds another dataset, or a root is not that of its source.
    """
    progress, balancer = _resume(out, recipe)
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
            _note_skips(out, progress, source.skips)
    pending: list[Packed] = []
    for job, part in _parts(progress, jobs[progress.scenes :], workers):
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
    progress.is_done = True
    _waiting_path(out, progress).unlink()
    _save(out, progress)
    return progress


def open_source(settings: Settings) -> SceneSource:
    """The source, with the user's lists applied.

    Raises:
        DataError: there is no such source, or the root is not one of it.
    """
    if settings.source not in SOURCES:
        raise DataError(
            f"source {settings.source!r} is unknown", remedy=f"choose one of {', '.join(sorted(SOURCES))}"
        )
    source = SOURCES[settings.source](Path(settings.root), settings.split)
    left_out = excluded(settings.source, [Path(path) for path in settings.exclude])
    source.skips = [
        *source.skips,
        *(
            Skip(
                file=name, line=None, reason=SkipReason.EXCLUDED, detail="named in a list of excluded scenes"
            )
            for name in source.names
            if name in left_out
        ),
    ]
    source.names = [name for name in source.names if name not in left_out]
    return source


def _job(place: int, settings: Settings, name: str, first: Settings | None) -> Job:
    """A scene of a source; `first` is the source earlier in the recipe that has one of this name, too."""
    folder, mark = "", ""
    if first is not None:
        mark = f"{place}."
        if (first.root, first.split) != (settings.root, settings.split):
            folder = f"{place}/"
    return Job(place, settings, name, _images(settings.source, name, folder), mark)


def _images(source: str, name: str, folder: str = "") -> str:
    return f"frames/{folder}{source}-{name.replace('/', '-')}{LIST_SUFFIX}"


def scene_records(
    settings: Settings, scene: Scene, images: str = "", mark: str = ""
) -> Iterator[tuple[Record, Balance | None]]:
    """All questions about a scene, before balancing.

    Args:
        settings: of its source.
        scene: as the source reads it.
        images: `Job.images`; "" where no other source has a scene of this name.
        mark: `Job.mark`.
    """
    name = int(digest(f"{scene.source}/{scene.name}")[:16], 16)
    rng = np.random.default_rng([settings.seed, name])
    video = images or _images(scene.source, scene.name)
    if (file := scene.video_file) is not None:
        video = str((Path(settings.root) / file).resolve())
    for view in clips(scene, count=settings.clips, num_frames=settings.num_frames, rng=rng):
        for number, asked in enumerate(ask(view, rng, settings.questions, settings.families)):
            identity = f"{scene.source}/{scene.name}/{mark}{view.number}/{asked.family}/{number}"
            yield _record(settings, identity, video, view, asked, rng), asked.balance


def _record(
    settings: Settings, identity: str, video: str, view: ClipView, asked: Asked, rng: np.random.Generator
) -> Record:
    labels = view.graph_labels(asked.labels, rng)
    return Record(
        id=identity,
        source=view.scene.source,
        family=asked.family,
        question=asked.text,
        options=asked.options,
        answer=asked.answer,
        clip=ClipSpec(
            video=video,
            num_frames=len(view.frames),
            start_s=view.times[0],
            end_s=view.times[-1],
            height=settings.height,
            width=settings.width,
        ),
        labels=tuple(sorted(asked.labels if labels is None else labels)),
        graph=None if labels is None else view.graph(labels),
        image_size=view.scene.image_size,
    )


# ---------------------------------------------------------------------------------------------------- workers


@functools.lru_cache(maxsize=1)
def _source_of_process(settings: Settings) -> SceneSource:
    return open_source(settings)


def _make(job: Job) -> Part:
    """What a worker does."""
    settings, name = job.settings, job.name
    scene = _source_of_process(settings).read(name)
    if isinstance(scene, Skip):
        return Part([], (scene,), None)
    images = None
    if scene.video_file is None:
        frames = tuple((frame.t, frame.image) for frame in scene.frames)
        images = ImageList(root=str(Path(settings.root).resolve()), fps=scene.fps, frames=frames)
    asked = scene_records(settings, scene, job.images, job.mark)
    records = [(_pack(record_to_row(record)), balance) for record, balance in asked]
    skips = scene.skips
    if not records:
        detail = (
            f"no clip of {settings.num_frames} equally spaced ones among its {len(scene.frames)} frames "
            "supports a question"
        )
        skips = (*skips, Skip(file=name, line=None, reason=SkipReason.NO_QUESTION, detail=detail))
    return Part(records, skips, images)


def _pack(row: dict[str, Any]) -> Packed:
    """A row in a third of its bytes."""
    return zlib.compress(msgspec.msgpack.encode(row), 1)


def _unpack(packed: Packed) -> dict[str, Any]:
    row: dict[str, Any] = msgspec.msgpack.decode(zlib.decompress(packed))
    return row


def _parts(progress: Progress, jobs: Sequence[Job], workers: int) -> Iterator[tuple[Job, Part]]:
    """Parts in the order of the jobs; so many scenes at a time that memory stays flat."""
    with (
        _environment("OPENBLAS_NUM_THREADS", "1"),
        ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_end_with_parent) as pool,
    ):
        waiting: deque[tuple[Job, Future[Part] | None]] = deque()
        for job in jobs:
            future = None if _room(progress, job) == 0 else pool.submit(_make, job)
            waiting.append((job, future))
            if len(waiting) >= AHEAD * workers:
                yield _finished(*waiting.popleft())
        while waiting:
            yield _finished(*waiting.popleft())


def _end_with_parent() -> None:
    """Ends this process when its parent is gone: workers of a build that was killed would wait for ever."""

    def wait() -> None:
        parent = parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """Of processes started meanwhile; there, threads of the linear algebra would compete with the other workers."""
    before = os.environ.get(name)
    os.environ[name] = before or value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]


def _finished(job: Job, future: Future[Part] | None) -> tuple[Job, Part]:
    return job, Part([], (), None) if future is None else future.result()


# ----------------------------------------------------------------------------------------------------- parent


def _room(progress: Progress, job: Job) -> int | None:
    """Records that may still be taken of the job's source."""
    limit = job.settings.limit
    return None if limit is None else max(0, limit - progress.by_source.get(str(job.place), 0))


def _take(out: Path, progress: Progress, balancer: Balancer[Packed], job: Job, part: Part) -> list[Packed]:
    released = []
    for packed, balance in part.records:
        if balance is not None:  # sources are balanced apart: their videos tell them from each other
            balance = replace(balance, key=f"{job.place}|{balance.key}")
        released += balancer.add(packed, balance)
    kept = released[: _room(progress, job)]
    progress.by_source[str(job.place)] = progress.by_source.get(str(job.place), 0) + len(kept)
    _note_skips(out, progress, part.skips)
    if part.images is not None and part.records:
        path = out / job.images
        make_folder(path.parent)
        write_json(path, msgspec.to_builtins(part.images))
    return kept


def _flush(out: Path, progress: Progress, balancer: Balancer[Packed], pending: list[Packed]) -> None:
    before = _waiting_path(out, progress)
    if pending:
        _write_shard(_shard(out, progress.shards), pending)
        progress.shards += 1
        progress.records += len(pending)
        pending.clear()
    state = balancer.state()
    progress.waiting = [(key, value) for key, value, _ in state]
    progress.unbalanced = balancer.left_out
    _write_shard(_waiting_path(out, progress), [packed for _, _, packed in state])
    _save(out, progress)
    if before != _waiting_path(out, progress):
        before.unlink(missing_ok=True)


def _write_shard(path: Path, records: list[Packed]) -> None:
    write_rows(map(_unpack, records), path)
    pa.default_memory_pool().release_unused()


def _resume(out: Path, recipe: Sequence[Settings]) -> tuple[Progress, Balancer[Packed]]:
    wanted = json.loads(json.dumps([asdict(settings) for settings in recipe]))
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
            remedy="go on with the same command, or name another folder",
        )
    for shard in out.glob("records-*.parquet"):  # written after the last state was
        if shard >= _shard(out, progress.shards):
            shard.unlink()
    lines = sum(progress.skips.values())
    skipped = out / "skipped.jsonl"
    if skipped.exists():
        with replacing(skipped) as scratch:
            kept = skipped.read_text(encoding="utf-8").splitlines(keepends=True)[:lines]
            scratch.write_text("".join(kept), encoding="utf-8")
    balancer: Balancer[Packed] = Balancer(left_out=progress.unbalanced)
    if progress.waiting:
        rows = pq.read_table(_waiting_path(out, progress)).to_pylist()
        balancer.restore(
            [(key, value, _pack(row)) for (key, value), row in zip(progress.waiting, rows, strict=True)]
        )
    return progress, balancer


def _difference(begun: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> str:
    for old, new in zip(begun, wanted, strict=False):
        for key in new:
            if old.get(key) != new[key]:
                return f"was begun with {key} = {old.get(key)!r}, now it is {new[key]!r}"
    return f"was begun with {len(begun)} sources, now there are {len(wanted)}"


def _note_skips(out: Path, progress: Progress, skips: Iterable[Skip]) -> None:
    lines = []
    for skip in skips:
        lines.append(json.dumps(asdict(skip) | {"reason": skip.reason.name}))
        progress.skips[skip.reason.name] = progress.skips.get(skip.reason.name, 0) + 1
    if lines:
        append_line(out / "skipped.jsonl", "\n".join(lines))
    else:  # there is always such a file
        with storage(out / "skipped.jsonl"):
            (out / "skipped.jsonl").touch()


def _save(out: Path, progress: Progress) -> None:
    write_json(out / "build.json", asdict(progress))


def _shard(out: Path, number: int) -> Path:
    return out / f"records-{number:05d}.parquet"


def _waiting_path(out: Path, progress: Progress) -> Path:
    return out / f"waiting-{progress.shards:05d}.parquet"


def skip_table(progress: Progress) -> str:
    """What was left out, by reason, as lines of text."""
    counts = Counter(progress.skips)
    lines = [f"{count:8d}  {SkipReason[reason].value}" for reason, count in counts.most_common()]
    lines.append(
        f"{progress.unbalanced:8d}  choices and counts whose answer was commoner than the others of their kind"
    )
    return "\n".join(lines)
