"""What a worker of a build does: a scene, read and asked about.

In: a `Job`. Out: a `Part`: records as compressed rows, what was left out, the list of images.
"""

from __future__ import annotations

import functools
import logging
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from videostr.data.balance import Balancer
from videostr.data.build.settings import HELDOUT, Settings
from videostr.data.clip_view import ClipView
from videostr.data.clips import clips
from videostr.data.leakage import excluded
from videostr.data.questions import ask
from videostr.data.questions.marked import ask_marked
from videostr.data.questions.question import Balance, PreparedQuestion
from videostr.data.records import record_to_row
from videostr.data.scene import Scene, Skip, SkipReason
from videostr.data.source import Source
from videostr.data.sources import SOURCES
from videostr.digests import digest
from videostr.errors import DataError
from videostr.images import LIST_SUFFIX, ImageList
from videostr.types import ClipSpec, Mark, Record

log = logging.getLogger(__name__)

Packed = bytes
"""A record as `pack` makes it."""


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
    drafts_left_out: int = 0
    """Drafts of questions over marked objects that found no complete set in the scene."""


def scene_records(
    settings: Settings, scene: Scene, images: str = "", mark: str = "", drafts: Balancer[Draft] | None = None
) -> Iterator[tuple[Record, Balance | None]]:
    """Yield all questions about a scene, before balancing.

    Args:
        settings: of its source.
        scene: as the source reads it.
        images: `Job.images`; "" where no other source has a scene of this name.
        mark: `Job.mark`.
        drafts: holds drafts of questions over marked objects until their sets are complete; those that are not stay in it.
    """
    name = int(digest(f"{scene.source}/{scene.name}")[:16], 16)
    rng = np.random.default_rng([settings.seed, name])
    video = images or images_of(scene.source, scene.name)
    if (file := scene.video_file) is not None:
        video = str((Path(settings.root) / file).resolve())
    drafts = Balancer() if drafts is None else drafts
    for view in clips(scene, count=settings.clips, num_frames=settings.num_frames, rng=rng):
        for number, question in enumerate(ask(view, rng, settings.questions, settings.asked)):
            identity = f"{scene.source}/{scene.name}/{mark}{view.number}/{question.query.family}/{number}"
            yield _record(settings, identity, video, view, question, rng), question.balance
        own = np.random.default_rng([settings.seed, name, 1, view.number])
        asked = ask_marked(view, own, settings.marks, settings.marked, settings.asked)
        for number, (question, marks) in enumerate(asked):
            identity = f"{scene.source}/{scene.name}/{mark}{view.number}/{question.query.family}/m{number}"
            for draft in drafts.add(Draft(identity, view, question, marks), question.balance):
                yield (
                    _record(settings, draft.identity, video, draft.view, draft.question, own, draft.marks),
                    None,
                )


@dataclass(frozen=True, slots=True)
class Draft:
    """A question over marked objects that waits for its set: of its scene alone, whose habits are then balanced, too."""

    identity: str
    view: ClipView
    question: PreparedQuestion
    marks: tuple[Mark, ...]


def _record(
    settings: Settings,
    identity: str,
    video: str,
    view: ClipView,
    question: PreparedQuestion,
    rng: np.random.Generator,
    marks: tuple[Mark, ...] = (),
) -> Record:
    labels = view.graph_labels(question.labels, rng)
    return Record(
        id=identity,
        source=view.scene.source,
        family=question.query.family,
        question=question.text,
        options=question.options,
        answer=question.answer,
        clip=ClipSpec(
            video=video,
            num_frames=len(view.frames),
            start_s=view.times[0],
            end_s=view.times[-1],
            height=settings.height,
            width=settings.width,
            marks=marks,
        ),
        labels=tuple(sorted(question.labels if labels is None else labels)),
        graph=None if labels is None else view.graph(labels),
        query=question.query,
        image_size=view.scene.image_size,
    )


def images_of(source: str, name: str, folder: str = "") -> str:
    return f"frames/{folder}{source}-{name.replace('/', '-')}{LIST_SUFFIX}"


# ---------------------------------------------------------------------------------------------------- workers


@functools.lru_cache(maxsize=1)
def _source_of_process(settings: bytes) -> Source:
    return open_source(msgspec.json.decode(settings, type=Settings))


def open_source(settings: Settings) -> Source:
    """Return the source, with the user's lists applied.

    Raises:
        DataError: the source does not exist, or the root does not belong to it.
    """
    if settings.source not in SOURCES:
        raise DataError(
            f"source {settings.source!r} is unknown", remedy=f"choose one of {', '.join(sorted(SOURCES))}"
        )
    split = "train" if settings.split == HELDOUT else settings.split
    source = SOURCES[settings.source](Path(settings.root), split)
    left_out = excluded(settings.source, [Path(path) for path in settings.exclude])
    source.skips += [
        Skip(file=name, reason=SkipReason.EXCLUDED, detail="named in a list of excluded scenes")
        for name in source.names
        if name in left_out
    ]
    source.names = [name for name in source.names if name not in left_out]
    if settings.heldout:
        apart = _heldout(source, settings)
        wanted = settings.split == HELDOUT
        source.names = [name for name in source.names if (source.place(name) in apart) == wanted]
    return source


def _heldout(source: Source, settings: Settings) -> set[str]:
    """Return the places of the scenes that are held out: scenes of one place stay together."""
    places = {source.place(name) for name in source.names}
    order = sorted(places, key=lambda place: digest(f"{settings.seed}|{settings.source}|{place}"))
    return set(order[: max(1, round(settings.heldout * len(places)))])


def make(job: Job) -> Part:
    """Do the work of one worker; where that fails, other scenes go on."""
    try:
        return _make(job)
    except Exception as error:
        log.exception("%s/%s", job.settings.source, job.name)
        detail = f"its questions could not be made ({type(error).__name__}: {error!s:.80})"
        return Part([], (Skip(file=job.name, reason=SkipReason.FAULT, detail=detail),), None)


def _make(job: Job) -> Part:
    settings, name = job.settings, job.name
    scene = _source_of_process(msgspec.json.encode(settings)).read(name)
    if isinstance(scene, Skip):
        return Part([], (scene,), None)
    images = None
    if scene.video_file is None:
        frames = tuple((frame.t, frame.image) for frame in scene.frames)
        images = ImageList(root=str(Path(settings.root).resolve()), fps=scene.fps, frames=frames)
    drafts: Balancer[Draft] = Balancer()
    found = scene_records(settings, scene, job.images, job.mark, drafts)
    records = [(pack(record_to_row(record)), balance) for record, balance in found]
    skips = scene.skips
    if not records:
        detail = (
            f"no clip of {settings.num_frames} equally spaced ones among its {len(scene.frames)} frames "
            "supports a question"
        )
        skips = (*skips, Skip(file=name, reason=SkipReason.NO_QUESTION, detail=detail))
    return Part(records, skips, images, drafts.left_out + drafts.held)


def pack(row: dict[str, Any]) -> Packed:
    """Return a row in a third of its bytes."""
    return zlib.compress(msgspec.msgpack.encode(row), 1)


def unpack(packed: Packed) -> dict[str, Any]:
    row: dict[str, Any] = msgspec.msgpack.decode(zlib.decompress(packed))
    return row
