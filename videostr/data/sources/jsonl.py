"""Own annotations: one scene a line, in the schema of docs/annotations.md.

In: `ROOT/annotations.jsonl` for split "train", `ROOT/annotations_SPLIT.jsonl` for others; videos and images lie below ROOT and
are not opened. Out: a scene per line, 2-D, or 3-D where the line has `up`. A line with a problem is skipped whole, with the
first field that breaks the schema, or else all rules between fields that do not hold:
`annotations.jsonl:3: tracks[2].frames[0].size: Expected `array` of length 3`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, ClassVar

import msgspec
import numpy as np
from msgspec import Meta

from videostr.data.scene import Array, Frame, Scene, SkipReason, Track, are_rigid
from videostr.data.source import SkipEntry, Source
from videostr.errors import DataError
from videostr.json_files import json_lines
from videostr.schema_rules import field_problem

Number = Annotated[float, Meta(gt=-1e9, lt=1e9)]
Positive = Annotated[float, Meta(gt=0, lt=1e9)]
Side = Annotated[int, Meta(ge=1, lt=1_000_000_000)]
Three = tuple[Number, Number, Number]
Four = tuple[Number, Number, Number, Number]
Label = Annotated[str, Meta(pattern=r"^([^\WA-Z]|-)+\Z", description="lower-case letters, digits, _ and -")]
Text = Annotated[str, Meta(min_length=1)]
RelativePath = Annotated[
    str,
    Meta(
        pattern=r"^(?!/)(?!(.*/)?\.\.(/|\Z))(?=.*[^./])[^\x00-\x1f\x7f]+\Z",
        description="a path below the root, without ..",
    ),
]
"""Below ROOT, so that it holds no ".."."""


class _Frame(msgspec.Struct, forbid_unknown_fields=True):
    time: Annotated[float, Meta(ge=0, lt=1e9)]
    camera_to_world: tuple[Four, Four, Four, Four] | None = None
    image: RelativePath | None = None


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    """A track in one frame."""

    frame: Annotated[int, Meta(ge=0)]
    center: Three | None = None
    size: tuple[Positive, Positive, Positive] | None = None
    yaw: Annotated[float, Meta(ge=-2 * math.pi, le=2 * math.pi)] | None = None
    visibility: Annotated[float, Meta(ge=0, le=1)] = 1.0
    box2d: Four | None = None


class _Track(msgspec.Struct, forbid_unknown_fields=True):
    id: Text
    label: Label
    frames: Annotated[list[_Entry], Meta(min_length=1)]
    static: bool = False


class _Scene(msgspec.Struct, forbid_unknown_fields=True):
    name: Annotated[
        str, Meta(pattern=r"^[\w-][\w.-]*\Z", description="letters, digits, _, - and ., not first a .")
    ]
    video: RelativePath | list[RelativePath]
    fps: Positive
    image_size: tuple[Side, Side]
    frames: Annotated[list[_Frame], Meta(min_length=1)]
    tracks: Annotated[list[_Track], Meta(min_length=1)]
    up: Three | None = None
    projection: tuple[Four, Four, Four] | None = None
    intrinsics: tuple[Three, Three, Three] | None = None
    countable: frozenset[Label] = frozenset()
    room_size: Positive | None = None


class _Named(msgspec.Struct):
    """All that is decoded of a line to find it."""

    name: str


class Jsonl(Source):
    """The scenes of an annotation file; where a line does not say what is countable, nothing is.

    Every `Frame.image` of a scene whose video is a file is that file: its frames are told by their times.
    """

    name: ClassVar[str] = "jsonl"
    licence: ClassVar[str] = "Own annotations: the terms are those of whoever owns them and the videos."

    def __init__(self, root: Path, split: str) -> None:
        """Find the line of every scene.

        Raises:
            DataError: the split has no annotation file, or it is in another form.
        """
        super().__init__(root, split)
        self.file = "annotations.jsonl" if split == "train" else f"annotations_{split}.jsonl"
        self.path = root / self.file
        if not self.path.is_file():
            raise DataError(
                f"{self.path}: no such file", remedy="write a scene a line as docs/annotations.md says"
            )
        self._places: dict[str, tuple[int, int]] = {}
        """Line, and where it starts, bytes, of a scene."""
        for number, place, line in json_lines(self.path, "a scene"):
            try:
                self._enter(line, number, place)
            except SkipEntry as entry:
                self.skips.append(entry.skip)
        self.names = tuple(self._places)

    def scene(self, name: str) -> Scene:
        """Return the scene of a line."""
        number, place = self._places[name]
        with self.path.open("rb") as lines:
            lines.seek(place)
            found = self._decode(lines.readline(), number)
        if problems := list(_problems(found)):
            raise self._bad_line(number, "; ".join(problems))
        return _scene(found)

    def _enter(self, line: bytes, number: int, place: int) -> None:
        """Note where the scene of a line stands."""
        try:
            name = msgspec.json.decode(line, type=_Named).name
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self._decode(line, number)  # raises, with the problem of the whole line
            raise
        if name in self._places:
            raise self._bad_line(number, f"name: is {name!r} as in line {self._places[name][0]}, must differ")
        self._places[name] = (number, place)

    def _decode(self, line: bytes, number: int) -> _Scene:
        try:
            return msgspec.json.decode(line, type=_Scene)
        except msgspec.ValidationError as error:
            raise self._bad_line(number, field_problem(error, _Scene)) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise self._bad_line(number, f"must be JSON ({error})") from None

    def _bad_line(self, number: int, detail: str) -> SkipEntry:
        return SkipEntry(self.file, SkipReason.BAD_LINE, detail, number)


# ---------------------------------------------------------------------------------------- rules between fields


def _problems(scene: _Scene) -> Iterator[str]:
    """Yield the rules between fields of a scene that do not hold, each as `FIELD: what it is and must be`."""
    if scene.up is not None and math.hypot(*scene.up) < 1e-6:
        yield "up: has no length, must be a direction"
    if scene.intrinsics is not None:
        (fx, *_), (_, fy, _), last = scene.intrinsics
        if last != (0.0, 0.0, 1.0) or min(fx, fy) <= 0:
            yield "intrinsics: must be fx, 0, cx; 0, fy, cy; 0, 0, 1"
        if scene.projection is not None:
            yield "intrinsics: stands next to projection, must be left out"
    yield from _repeated("tracks", ".id", [track.id for track in scene.tracks])
    yield from _frame_problems(scene)
    for i, track in enumerate(scene.tracks):
        yield from _track_problems(f"tracks[{i}]", track, scene)


def _frame_problems(scene: _Scene) -> Iterator[str]:
    frames, images = scene.frames, [frame.image for frame in scene.frames]
    yield from _not_ascending("frames", "time", [frame.time for frame in frames])
    is_list = isinstance(scene.video, list)
    if isinstance(scene.video, list):
        if len(scene.video) != len(frames):
            yield f"video: has {len(scene.video)} images, must have {len(frames)}, one a frame"
        yield from _repeated("video", "", scene.video)
    yield from _repeated("frames", ".image", [image for image in images if image is not None])
    for i, frame in enumerate(frames):
        if is_list and frame.image is not None:
            yield f"frames[{i}].image: must be left out where video is a list of images"
        if not is_list and frame.image is None and any(images):
            yield f"frames[{i}].image: is missing, other frames have one"
        if frame.camera_to_world is None:
            if scene.up is not None:
                yield f"frames[{i}].camera_to_world: is missing, the scene has up"
        elif not are_rigid(np.array([frame.camera_to_world]))[0]:
            yield f"frames[{i}].camera_to_world: must be a rotation and a shift above the row 0, 0, 0, 1"


def _track_problems(path: str, track: _Track, scene: _Scene) -> Iterator[str]:
    if track.static and scene.up is None:
        yield f"{path}.static: needs the scene's up"
    yield from _not_ascending(f"{path}.frames", "frame", [entry.frame for entry in track.frames])
    width, height = scene.image_size
    for i, entry in enumerate(track.frames):
        start = f"{path}.frames[{i}]"
        if entry.frame >= len(scene.frames):
            yield f"{start}.frame: is {entry.frame}, must be a frame's index, 0 to {len(scene.frames) - 1}"
        for name in ("center", "size", "yaw"):
            if (getattr(entry, name) is None) != (scene.up is None):
                yield f"{start}.{name}: " + ("is missing" if scene.up else "needs the scene's up")
        if entry.box2d is None:
            if scene.up is None:
                yield f"{start}.box2d: is missing"
            continue
        x1, y1, x2, y2 = entry.box2d
        if not (x1 < x2 and y1 < y2 and x1 < width and y1 < height and x2 > 0 and y2 > 0):
            rule = "x1, y1, x2, y2 with x1 < x2 and y1 < y2 that overlaps the image"
            yield f"{start}.box2d: is {list(entry.box2d)}, must be {rule}"


def _not_ascending(path: str, field: str, values: Sequence[float]) -> Iterator[str]:
    for i, (before, value) in enumerate(pairwise(values), 1):
        if value <= before:
            yield f"{path}[{i}].{field}: is {value:g}, must be above {before:g}, that of the one before"


def _repeated(path: str, field: str, texts: Sequence[str]) -> Iterator[str]:
    first: dict[str, int] = {}
    for i, text in enumerate(texts):
        if first.setdefault(text, i) != i:
            yield f"{path}[{i}]{field}: is {text!r} as in {path}[{first[text]}], must differ"


# ------------------------------------------------------------------------------------------------- good scenes


def _scene(scene: _Scene) -> Scene:
    """Return the scene of a line without problems."""
    up = None if scene.up is None else np.array(scene.up) / math.hypot(*scene.up)
    projection = _array(scene.projection)
    if scene.intrinsics is not None:
        projection = np.column_stack([scene.intrinsics, np.zeros(3)])
    return Scene(
        source=Jsonl.name,
        name=scene.name,
        frames=tuple(
            Frame(t=frame.time, image=_image(scene, i), camera_to_world=_array(frame.camera_to_world))
            for i, frame in enumerate(scene.frames)
        ),
        fps=scene.fps,
        tracks=tuple(_track(track, scene) for track in scene.tracks),
        image_size=scene.image_size,
        projection=projection,
        up=None if up is None else (float(up[0]), float(up[1]), float(up[2])),
        countable=scene.countable,
        room_size=scene.room_size,
    )


def _image(scene: _Scene, index: int) -> str:
    if isinstance(scene.video, list):
        return scene.video[index]
    image = scene.frames[index].image
    return scene.video if image is None else f"{scene.video}/{image}"


def _track(track: _Track, scene: _Scene) -> Track:
    entries, boxes = track.frames, None
    if any(entry.box2d for entry in entries):
        given = [entry.box2d or [math.nan] * 4 for entry in entries]
        boxes = np.clip(given, 0.0, np.array(scene.image_size * 2))
    is_3d = scene.up is not None
    return Track(
        id=track.id,
        label=track.label,
        frames=np.array([entry.frame for entry in entries], dtype=np.int64),
        visibility=np.array([entry.visibility for entry in entries]),
        centers=_array([entry.center for entry in entries]) if is_3d else None,
        sizes=_array([entry.size for entry in entries]) if is_3d else None,
        yaws=_array([entry.yaw for entry in entries]) if is_3d else None,
        boxes=boxes,
        is_static=track.static,
    )


def _array(value: object) -> Array | None:
    return None if value is None else np.array(value, dtype=float)
