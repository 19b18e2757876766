"""Own annotations: one scene a line, in the schema of docs/annotations.md.

In: `ROOT/annotations.jsonl` for split "train", `ROOT/annotations_SPLIT.jsonl` for others; videos and images lie below ROOT and
are not opened. Out: a scene per line, 2-D, or 3-D where the line has `up`. A line with any problem is skipped whole, with all
its problems: `annotations.jsonl:3: tracks[2].frames[0].size: has 2 numbers, must have 3`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import msgspec
import numpy as np

from videostr.data.scene import Array, Frame, Scene, Skip, SkipReason, Track, are_rigid
from videostr.errors import DataError
from videostr.json_files import json_lines

LIMIT = 1e9
"""No number of an annotation is that large."""


class Jsonl:
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
        self.file = "annotations.jsonl" if split == "train" else f"annotations_{split}.jsonl"
        self.path = root / self.file
        if not self.path.is_file():
            raise DataError(
                f"{self.path}: no such file", remedy="write a scene a line as docs/annotations.md says"
            )
        self._places: dict[str, tuple[int, int]] = {}
        """Line, and where it starts, bytes, of a scene."""
        skips = []
        for number, place, line in json_lines(self.path, "a scene"):
            if problem := self._enter(line, number, place):
                skips.append(self._skip(number, problem))
        self.names: Sequence[str] = tuple(self._places)
        self.skips: Sequence[Skip] = tuple(skips)

    def read(self, name: str) -> Scene | Skip:
        """The scene of a line; a `Skip` where the line has a problem."""
        number, place = self._places[name]
        with self.path.open("rb") as lines:
            lines.seek(place)
            line = lines.readline()
        if problems := check(line):
            return self._skip(number, "; ".join(problems))
        return _scene(msgspec.json.decode(line))

    def _enter(self, line: bytes, number: int, place: int) -> str:
        """Note where the scene of a line stands; what is wrong where it has no name of its own."""
        try:
            name = msgspec.json.decode(line, type=_Named).name
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return "; ".join(check(line))
        if name in self._places:
            return f"name: is {_brief(name)} as in line {self._places[name][0]}, must differ"
        self._places[name] = (number, place)
        return ""

    def _skip(self, number: int, detail: str) -> Skip:
        return Skip(file=self.file, line=number, reason=SkipReason.BAD_LINE, detail=detail)


class _Named(msgspec.Struct):
    """All that is decoded of a line to find it."""

    name: str


def check(line: bytes) -> list[str]:
    """All problems of a line of an annotation file, each as `FIELD: what it is and must be`; empty where it is good."""
    try:
        scene = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return [f"must be JSON of finite numbers ({error})"]
    return _check_scene(scene)


# ----------------------------------------------------------------------------------------------------- rules

Rule = Callable[[Any, str], list[str]]
"""Value and the path of its field -> its problems."""


def _is(must: str, holds: Callable[[Any], bool]) -> Rule:
    def rule(value: Any, path: str) -> list[str]:
        return [] if holds(value) else [f"{path}: is {_brief(value)}, must be {must}"]

    return rule


def _both(first: Rule, then: Rule) -> Rule:
    """The second is only looked at where the first holds."""
    return lambda value, path: first(value, path) or then(value, path)


def _numbers(count: int) -> Rule:
    def rule(value: Any, path: str) -> list[str]:
        if not isinstance(value, list):
            return [f"{path}: is {_brief(value)}, must be a list of {count} numbers"]
        if len(value) != count:
            return [f"{path}: has {len(value)} numbers, must have {count}"]
        return [
            problem for i, v in enumerate(value) if not _is_number(v) for problem in NUMBER(v, f"{path}[{i}]")
        ]

    return rule


def _matrix(rows: int, columns: int) -> Rule:
    def rule(value: Any, path: str) -> list[str]:
        if not isinstance(value, list) or len(value) != rows:
            return [f"{path}: is {_brief(value)}, must be a list of {rows} rows"]
        return _each(_numbers(columns), value, path)

    return rule


def _list(item: Rule, *wholes: Rule, least: int = 1) -> Rule:
    """A list; `wholes` are rules between its items."""

    def rule(value: Any, path: str) -> list[str]:
        if not isinstance(value, list) or len(value) < least:
            return [
                f"{path}: is {_brief(value)}, must be a list" + (f" of at least {least}" if least else "")
            ]
        problems = _each(item, value, path)
        for whole in wholes:
            problems += whole(value, path)
        return problems

    return rule


def _each(item: Rule, values: list[Any], path: str) -> list[str]:
    problems: list[str] = []
    for i, value in enumerate(values):
        problems += item(value, f"{path}[{i}]")
    return problems


def _object(required: dict[str, Rule], optional: dict[str, Rule]) -> Rule:
    rules = required | optional

    def rule(value: Any, path: str) -> list[str]:
        if not isinstance(value, dict):
            return [f"{path or 'the line'}: is {_brief(value)}, must be an object"]
        start = f"{path}." if path else ""
        problems = [f"{start}{key}: is missing" for key in required if key not in value]
        for key, field in value.items():
            if key in rules:
                problems += rules[key](field, start + key)
            else:
                known = ", ".join(rules)
                problems.append(f"{path or 'the line'}: has the field {_brief(key)}, must be one of {known}")
        return problems

    return rule


def _ascending(key: str) -> Rule:
    """Numbers of a list's objects grow."""

    def rule(values: list[Any], path: str) -> list[str]:
        fields: list[Any] = [value.get(key) if isinstance(value, dict) else None for value in values]
        return [
            f"{path}[{i}].{key}: is {_brief(fields[i])}, must be above {_brief(fields[i - 1])}, that of the one before"
            for i in range(1, len(fields))
            if _is_number(fields[i]) and _is_number(fields[i - 1]) and fields[i] <= fields[i - 1]
        ]

    return rule


def _distinct(key: str = "") -> Rule:
    """Texts of a list, or of its objects, differ."""

    def rule(values: list[Any], path: str) -> list[str]:
        first: dict[str, int] = {}
        problems = []
        for i, value in enumerate(values):
            text = value.get(key) if isinstance(value, dict) else value
            if isinstance(text, str) and first.setdefault(text, i) != i:
                place = f"{path}[{i}]" + (f".{key}" if key else "")
                problems.append(f"{place}: is {_brief(text)} as in {path}[{first[text]}], must differ")
        return problems

    return rule


def _refused(why: str) -> Rule:
    return lambda _, path: [f"{path}: {why}"]


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < LIMIT


def _is_whole(value: Any, least: int, limit: float) -> bool:
    return type(value) is int and least <= value < limit


def _is_path(value: Any) -> bool:
    if not isinstance(value, str) or not value.isprintable():
        return False
    path = PurePosixPath(value)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def _is_label(value: Any) -> bool:
    return isinstance(value, str) and value == value.lower() and bool(re.fullmatch(r"[\w-]+", value))


def _is_pose(rows: list[list[float]]) -> bool:
    return bool(are_rigid(np.array([rows]))[0])


def _brief(value: Any) -> str:
    """JSON, cut short."""
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= 60 else f"{text[:57]}..."


NUMBER = _is(f"a number within ±{LIMIT:.0e}", _is_number)
POSITIVE = _is("a number above 0", lambda value: _is_number(value) and value > 0)
TEXT = _is("a text", lambda value: isinstance(value, str) and bool(value))
NAME = _is(
    "letters, digits, '.', '_' or '-', not beginning with '.'",
    lambda value: isinstance(value, str) and bool(re.fullmatch(r"[\w-][\w.-]*", value)),
)
LABEL = _is("letters in lower case, digits, '_' or '-'", _is_label)
PATH = _is("a relative path without '..'", _is_path)
IMAGE_SIZE = _both(
    _numbers(2), _is("whole numbers above 0", lambda value: all(_is_whole(v, 1, LIMIT) for v in value))
)
UP = _both(_numbers(3), _is("a direction", lambda value: math.hypot(*value) > 1e-6))
POSE = _both(
    _matrix(4, 4),
    _is("a rotation and a shift above the row 0, 0, 0, 1", lambda rows: bool(are_rigid(np.array([rows]))[0])),
)
INTRINSICS = _both(
    _matrix(3, 3),
    _is(
        "fx, 0, cx; 0, fy, cy; 0, 0, 1",
        lambda value: value[2] == [0, 0, 1] and min(value[0][0], value[1][1]) > 0,
    ),
)


def _check_scene(scene: Any) -> list[str]:
    """Problems of a decoded line."""
    # Rules that depend on other fields are made from them as far as those are good.
    fields: dict[str, Any] = scene if isinstance(scene, dict) else {}
    video: Any = fields.get("video")
    frames: list[Any] = fields["frames"] if isinstance(fields.get("frames"), list) else []
    image_size: Any = fields.get("image_size")
    if IMAGE_SIZE(image_size, ""):
        image_size = (LIMIT, LIMIT)
    is_3d = "up" in fields
    required = {
        "name": NAME,
        "video": _list(PATH, _distinct()) if isinstance(video, list) else PATH,
        "fps": POSITIVE,
        "image_size": IMAGE_SIZE,
        "frames": _list(_frame_rule(video, frames, is_3d), _ascending("time"), _distinct("image")),
        "tracks": _list(_track_rule(len(frames), image_size, is_3d), _distinct("id")),
    }
    optional = {
        "up": UP,
        "projection": _matrix(3, 4),
        "intrinsics": INTRINSICS,
        "countable": _list(LABEL, least=0),
        "room_size": POSITIVE,
    }
    problems = _object(required, optional)(scene, "")
    if "projection" in fields and "intrinsics" in fields:
        problems.append("intrinsics: stands beside projection, must be left out")
    if isinstance(video, list) and frames and len(video) != len(frames):
        problems.append(f"video: has {len(video)} images, must have {len(frames)}, one a frame")
    return problems


def _frame_rule(video: Any, frames: list[Any], is_3d: bool) -> Rule:
    required = {"time": _is("a number, 0 or above", lambda value: _is_number(value) and value >= 0)}
    optional = {"camera_to_world": POSE}
    if is_3d:
        required, optional = required | optional, {}
    if isinstance(video, list):
        optional["image"] = _refused("must be left out where video is a list of images")
    elif any(isinstance(frame, dict) and "image" in frame for frame in frames):
        required["image"] = PATH
    else:
        optional["image"] = PATH
    return _object(required, optional)


def _track_rule(num_frames: int, image_size: Sequence[float], is_3d: bool) -> Rule:
    required = {
        "frame": _is(f"a frame's index, 0 to {num_frames - 1}", lambda value: _is_whole(value, 0, num_frames))
    }
    optional = {"visibility": _is("a number, 0 to 1", lambda value: _is_number(value) and 0 <= value <= 1)}
    box = {"box2d": _both(_numbers(4), _box_rule(image_size))}
    solid = {
        "center": _numbers(3),
        "size": _both(_numbers(3), _is("above 0", lambda value: min(value) > 0)),
        "yaw": _is("radians, -2 pi to 2 pi", lambda value: _is_number(value) and abs(value) <= 2 * math.pi),
    }
    only_3d = _refused("needs the scene's up")
    if is_3d:
        entry = _object(required | solid, optional | box)
    else:
        entry = _object(required | box, optional | dict.fromkeys(solid, only_3d))
    return _object(
        {"id": TEXT, "label": LABEL, "frames": _list(entry, _ascending("frame"))},
        {"static": _is("true or false", lambda value: isinstance(value, bool)) if is_3d else only_3d},
    )


def _box_rule(image_size: Sequence[float]) -> Rule:
    width, height = image_size

    def holds(box: list[float]) -> bool:
        x1, y1, x2, y2 = box
        return x1 < x2 and y1 < y2 and x1 < width and y1 < height and x2 > 0 and y2 > 0

    return _is("x1, y1, x2, y2 with x1 < x2 and y1 < y2 that overlaps the image", holds)


# ------------------------------------------------------------------------------------------------- good scenes


def _scene(value: dict[str, Any]) -> Scene:
    """The scene of a line without problems."""
    width, height = value["image_size"]
    up = np.array(value["up"], dtype=float) / math.hypot(*value["up"]) if "up" in value else None
    frames = [
        Frame(
            t=float(frame["time"]),
            image=_image(value["video"], frame.get("image"), i),
            camera_to_world=_array(frame.get("camera_to_world")),
        )
        for i, frame in enumerate(value["frames"])
    ]
    projection = _array(value.get("projection"))
    if "intrinsics" in value:
        projection = np.column_stack([value["intrinsics"], np.zeros(3)])
    return Scene(
        source=Jsonl.name,
        name=value["name"],
        frames=tuple(frames),
        fps=float(value["fps"]),
        tracks=tuple(_track(track, (width, height)) for track in value["tracks"]),
        image_size=(width, height),
        projection=projection,
        up=None if up is None else (float(up[0]), float(up[1]), float(up[2])),
        countable=frozenset(value.get("countable", ())),
        room_size=float(value["room_size"]) if "room_size" in value else None,
    )


def _image(video: str | list[str], image: str | None, index: int) -> str:
    if isinstance(video, list):
        return video[index]
    return video if image is None else f"{video}/{image}"


def _track(track: dict[str, Any], image_size: tuple[int, int]) -> Track:
    entries = track["frames"]
    is_3d = "center" in entries[0]
    boxes = None
    if any("box2d" in entry for entry in entries):
        missing = [math.nan] * 4
        boxes = np.clip([entry.get("box2d", missing) for entry in entries], 0.0, np.array(image_size * 2))
    return Track(
        id=track["id"],
        label=track["label"],
        frames=np.array([entry["frame"] for entry in entries], dtype=np.int64),
        visibility=np.array([entry.get("visibility", 1.0) for entry in entries], dtype=float),
        centers=_array([entry["center"] for entry in entries]) if is_3d else None,
        sizes=_array([entry["size"] for entry in entries]) if is_3d else None,
        yaws=_array([entry["yaw"] for entry in entries]) if is_3d else None,
        boxes=boxes,
        is_static=track.get("static", False),
    )


def _array(value: Any) -> Array | None:
    return None if value is None else np.array(value, dtype=float)
