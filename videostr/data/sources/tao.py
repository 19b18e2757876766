"""TAO: any object, in videos of seven datasets, annotated about once a second (https://taodataset.org).

In: `annotations/train.json` or `annotations/validation.json`, in the layout of COCO and LVIS with videos and tracks; images
`frames/SPLIT/DATASET/VIDEO/*.jpg` as the file names them, which are not opened and may be missing. Out: a scene per video with
2-D boxes, without depth. Annotated images are the scene's frames, also those in which nothing is annotated.

The frame rate is not in the file. Annotated images lie 1 s apart and their `frame_index` grows by about 30; so a video's rate
is the median step of its `frame_index`, e.g. 30, 25 or 24, and 30 for a video with one annotated image.

Annotations are federated: only of some categories every instance of a video is annotated, see `Tao._countable`.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, ClassVar, TypeVar

import msgspec
import numpy as np

from videostr.data.scene import Array, Frame, Scene, Skip, SkipReason, Track, cut
from videostr.data.source import LIMIT, SkipEntry, Source, no_object
from videostr.errors import DataError
from videostr.json_files import json_content

FPS = 30.0
FILES = {"train": "annotations/train.json", "validation": "annotations/validation.json"}
_BOX = msgspec.json.Decoder(tuple[float, float, float, float])


class Tao(Source):
    """The videos of TAO's training or validation split.

    Of a `Skip` the file is the annotation file, the detail names the entry by its id or, where it has none, by its place.
    """

    name: ClassVar[str] = "tao"
    licence: ClassVar[str] = (
        "TAO states no licence for its annotations; videos keep the terms of ArgoVerse, AVA, BDD-100K, Charades, HACS, LaSOT and "
        "YFCC100M, and those of TAO's test set must not be trained on, https://github.com/TAO-Dataset/tao"
    )

    def __init__(self, root: Path, split: str) -> None:
        """Read the tables.

        Raises:
            DataError: the split is neither "train" nor "validation", or its annotation file is missing or broken.
        """
        if split not in FILES:
            raise DataError(
                f"tao: split {split!r} must not be trained on or does not exist",
                remedy=f"use {' or '.join(FILES)}",
            )
        super().__init__(root, split)
        self.file = FILES[split]
        tables = _decode(root / self.file)
        self._read_categories(tables.categories)
        videos = self._table("videos", tables.videos, _Video)
        self._frames = self._group_images(self._table("images", tables.images, _Image), videos)
        self._tracks = self._table("tracks", tables.tracks, _Track)
        self._group_annotations(tables.annotations)
        self._videos = self._usable(videos)
        self.names = tuple(sorted(self._videos))

    def scene(self, name: str) -> Scene:
        """Return the scene of a video in which something is annotated."""
        video = self._videos[name]
        images = self._frames[video.id]
        places = {image.id: place for place, image in enumerate(images)}
        boxes: dict[int, dict[int, Array]] = defaultdict(dict)
        skips: list[Skip] = []
        unsure: set[str] = set()
        for annotation in self._annotations[video.id]:
            place = places[annotation.image_id]
            try:
                box = self._box(annotation, video, images[place])
                if place in boxes[annotation.track_id]:
                    detail = f"track {annotation.track_id} is in image {annotation.image_id} already"
                    raise self._skipped(annotation, detail, is_seen=False)
            except _SkipAnnotation as entry:
                skips.append(entry.skip)
                if entry.is_seen:
                    unsure |= self._labels_of(annotation)
                continue
            boxes[annotation.track_id][place] = box
        tracks = tuple(self._track(number, boxes[number]) for number in sorted(boxes) if boxes[number])
        if not tracks:
            raise no_object(self.file, f"video {name}", skips)
        steps = np.diff([image.frame_index for image in images])
        fps = float(np.median(steps)) if len(steps) else FPS
        return Scene(
            source=self.name,
            name=name,
            frames=tuple(
                Frame(t=image.frame_index / fps, image=f"frames/{image.file_name}", camera_to_world=None)
                for image in images
            ),
            fps=fps,
            tracks=tracks,
            image_size=(images[0].width, images[0].height),
            projection=None,
            up=None,
            countable=self._countable(video, {track.label for track in tracks}) - unsure,
            skips=tuple(skips),
        )

    def _box(self, annotation: _Annotation, video: _Video, image: _Image) -> Array:
        """Return the box inside the image, of an annotation that agrees with its track."""
        track = self._tracks.get(annotation.track_id)
        if track is None or track.video_id != video.id:
            detail = f"track {annotation.track_id} is not a track of video {video.id}"
            raise self._skipped(annotation, detail, SkipReason.UNKNOWN_REFERENCE)
        category = self._category(annotation.category_id)
        if category not in self._labels:
            detail = f"category {annotation.category_id} is not in categories"
            raise self._skipped(annotation, detail, SkipReason.UNKNOWN_CATEGORY)
        if category != self._category(track.category_id):
            detail = f"is of category {annotation.category_id}, its track of {track.category_id}"
            raise self._skipped(annotation, detail)
        try:
            x, y, width, height = _BOX.decode(annotation.bbox)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise self._skipped(annotation, f"bbox must be 4 numbers ({error})") from None
        text = f"bbox {bytes(annotation.bbox).decode()}"
        if not max(abs(x), abs(y), abs(width), abs(height)) < LIMIT:
            detail = f"{text}: must be finite and below {LIMIT:.0e}"
            raise self._skipped(annotation, detail, SkipReason.NOT_FINITE)
        if width <= 0 or height <= 0:
            raise self._skipped(annotation, f"{text}: must have an area", SkipReason.NO_EXTENT)
        box = cut(np.array([x, y, x + width, y + height]), (image.width, image.height))
        if box is None:
            detail = f"{text}: must overlap the image of {image.width} x {image.height}"
            raise self._skipped(annotation, detail, SkipReason.OUTSIDE, is_seen=False)
        return box

    def _skipped(
        self,
        annotation: _Annotation,
        detail: str,
        reason: SkipReason = SkipReason.BAD_LINE,
        *,
        is_seen: bool = True,
    ) -> _SkipAnnotation:
        entry = _SkipAnnotation(self.file, reason, f"annotation {annotation.id}: {detail}")
        entry.is_seen = is_seen
        return entry

    def _track(self, number: int, boxes: dict[int, Array]) -> Track:
        places = sorted(boxes)
        return Track(
            id=str(number),
            label=self._labels[self._category(self._tracks[number].category_id)],
            frames=np.array(places, dtype=np.int64),
            visibility=np.ones(len(places)),  # not stated
            boxes=np.array([boxes[place] for place in places]),
        )

    def _countable(self, video: _Video, labels: set[str]) -> frozenset[str]:
        """Return those labels of a video's tracks of which every instance is known to be annotated.

        Of a category that has tracks this is so where the file does not list it as not exhaustive. Where several categories
        share a label it must be so of all, or they must be verified absent.
        """
        if self._has_lost:
            return frozenset()
        named = {category for category, label in self._labels.items() if label in labels}
        exhaustive = self._tracked[video.id] | video.neg_category_ids
        exhaustive -= {self._category(category) for category in video.not_exhaustive_category_ids}
        return frozenset(labels - {self._labels[category] for category in named - exhaustive})

    def _category(self, number: int) -> int:
        """Return the category that absorbs a merged one, or itself."""
        return self._absorbing.get(number, number)

    def _labels_of(self, annotation: _Annotation) -> set[str]:
        """Return what an annotation that is not used may have been."""
        numbers = {annotation.category_id}
        if annotation.track_id in self._tracks:
            numbers.add(self._tracks[annotation.track_id].category_id)
        return {self._labels[c] for c in map(self._category, numbers) if c in self._labels}

    # ------------------------------------------------------------------------------------------------- tables

    def _read_categories(self, entries: Sequence[msgspec.Raw]) -> None:
        categories = self._table("categories", entries, _Category)
        absorbs = {merged.id: category.id for category in categories.values() for merged in category.merged}
        self._absorbing = {number: _end(absorbs, number) for number in absorbs}
        self._labels: dict[int, str] = {}
        """Of categories that are not merged into another."""
        for category in categories.values():
            label = _label(category.name)
            if not label:
                self._skip(
                    SkipReason.BAD_LINE, f"category {category.id}: name {category.name!r:.80} has no letter"
                )
            elif self._category(category.id) == category.id:
                self._labels[category.id] = label

    def _group_images(
        self, images: dict[int, _Image], videos: dict[int, _Video]
    ) -> dict[int, tuple[_Image, ...]]:
        """Return the frames of every video, ascending in time."""
        groups: dict[int, dict[int, _Image]] = defaultdict(dict)
        for image in images.values():
            group = groups[image.video_id]
            first = next(iter(group.values()), image)
            if image.video_id not in videos:
                reason, rule = SkipReason.UNKNOWN_REFERENCE, f"video {image.video_id} is not in videos"
            elif image.frame_index in group:
                reason, rule = SkipReason.BAD_LINE, f"frame_index {image.frame_index} is another image's"
            elif (image.width, image.height) != (first.width, first.height):
                reason, rule = SkipReason.BAD_LINE, f"its size is not that of image {first.id}"
            elif image.file_name.startswith("/") or ".." in image.file_name.split("/"):
                reason, rule = SkipReason.BAD_LINE, f"file_name {image.file_name!r:.80} leaves frames/"
            else:
                group[image.frame_index] = image
                continue
            self._skip(reason, f"image {image.id}: {rule}; left out")
        return {video: tuple(groups[video][index] for index in sorted(groups[video])) for video in videos}

    def _group_annotations(self, entries: Sequence[msgspec.Raw]) -> None:
        """Annotations and categories of tracks by video."""
        video_of = {image.id: video for video, images in self._frames.items() for image in images}
        self._annotations: dict[int, list[_Annotation]] = defaultdict(list)
        before = len(self.skips)
        annotations = [annotation for _, annotation in self._decoded("annotations", entries, _Annotation)]
        self._has_lost = len(self.skips) > before
        """Whether objects are not annotated of which nothing is known."""
        for annotation in annotations:
            if annotation.image_id in video_of:
                self._annotations[video_of[annotation.image_id]].append(annotation)
            else:
                detail = (
                    f"annotation {annotation.id}: image {annotation.image_id} is not in images or left out"
                )
                self._skip(SkipReason.UNKNOWN_REFERENCE, detail)
        self._tracked: dict[int, set[int]] = defaultdict(set)
        for track in self._tracks.values():
            self._tracked[track.video_id].add(self._category(track.category_id))

    def _usable(self, videos: dict[int, _Video]) -> dict[str, _Video]:
        """By name, those that are not of the test split."""
        usable: dict[str, _Video] = {}
        for video in videos.values():
            files = [video.name, *(image.file_name for image in self._frames[video.id])]
            if any(file.split("/")[0] == "test" for file in files):
                detail = f"video {video.id}: {video.name} is of the test split, which must not be trained on"
                self._skip(SkipReason.EXCLUDED, detail)
            elif video.name in usable:
                detail = f"video {video.id}: name {video.name!r:.80} is that of video {usable[video.name].id}"
                self._skip(SkipReason.BAD_LINE, detail)
            else:
                usable[video.name] = video
        return usable

    def _table(self, name: str, entries: Sequence[msgspec.Raw], kind: type[E]) -> dict[int, E]:
        """Return entries by their id."""
        table: dict[int, E] = {}
        for place, entry in self._decoded(name, entries, kind):
            if entry.id in table:
                self._skip(SkipReason.BAD_LINE, f"{name}[{place}]: id {entry.id} stands in an earlier entry")
            else:
                table[entry.id] = entry
        return table

    def _decoded(self, name: str, entries: Sequence[msgspec.Raw], kind: type[E]) -> Iterator[tuple[int, E]]:
        """Yield entries with their places."""
        decoder = msgspec.json.Decoder(kind)
        for place, entry in enumerate(entries):
            try:
                decoded = decoder.decode(entry)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                self._skip(SkipReason.BAD_LINE, f"{name}[{place}]: {error}")
                continue
            yield place, decoded

    def _skip(self, reason: SkipReason, detail: str) -> None:
        self.skips.append(Skip(file=self.file, line=None, reason=reason, detail=detail))


class _Tables(msgspec.Struct):
    """The file; entries are decoded one by one, so that a broken one spoils no other."""

    videos: list[msgspec.Raw]
    images: list[msgspec.Raw]
    tracks: list[msgspec.Raw]
    annotations: list[msgspec.Raw]
    categories: list[msgspec.Raw]


class _Entry(msgspec.Struct):
    id: int


class _Category(_Entry):
    name: str
    merged: tuple[_Entry, ...] = ()


class _Video(_Entry):
    name: str
    not_exhaustive_category_ids: frozenset[int]
    neg_category_ids: frozenset[int] = frozenset()


Pixels = Annotated[int, msgspec.Meta(ge=1, le=100_000)]


class _Image(_Entry):
    video_id: int
    file_name: str
    width: Pixels
    height: Pixels
    frame_index: Annotated[int, msgspec.Meta(ge=0, le=100_000_000)]


class _Track(_Entry):
    category_id: int
    video_id: int


class _Annotation(_Entry):
    image_id: int
    track_id: int
    category_id: int
    bbox: msgspec.Raw = msgspec.Raw(b"null")
    """Decoded when the scene is read, so that a broken box is one of that scene."""


E = TypeVar("E", bound=_Entry)


class _SkipAnnotation(SkipEntry):
    """An annotation cannot be used."""

    is_seen: bool
    """Whether the image may show an object that no box is left of."""


def _decode(path: Path) -> _Tables:
    try:
        return msgspec.json.decode(json_content(path.read_bytes()), type=_Tables)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror})",
            remedy="name the folder that holds TAO's annotations/",
        ) from None
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: is not an annotation file of TAO ({error})", remedy="download it again"
        ) from None


def _end(absorbs: dict[int, int], number: int) -> int:
    """Return the category at the end of a chain of merges."""
    for _ in absorbs:  # a circle ends, too
        number = absorbs.get(number, number)
    return number


def _label(name: str) -> str:
    """Return a category's name as a label: "Baby buggy" is baby_buggy, "bow.n.04" is bow."""
    return re.sub(r"[\W_]+", "_", re.sub(r"\.[a-z]\.\d+$", "", name.strip().lower())).strip("_")
