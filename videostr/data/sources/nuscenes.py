"""nuScenes: streets of Boston and Singapore, key frames at 2 Hz (https://www.nuscenes.org/nuscenes).

In, below the root: the JSON tables of `v1.0-trainval/`, or else of `v1.0-mini/`, and, if there, `splits.json`
{"train": [names of scenes], ..}, since the official splits are not part of the download. Images may be missing. Out: a scene
per row of `scene.json`, as the front camera sees it; its world is the global frame (z up) moved to the first pose of the car.

The tables are read once per process, when its first scene is: some 16 s for trainval. Of `sample_data` and `ego_pose`, over two
million rows each, only the front camera's key frames are kept, of `sample_annotation` 100 bytes a row: 0.2 GB for trainval in
all, 0.3 GB while reading. The files themselves are mapped into memory, not copied.
"""

from __future__ import annotations

import mmap
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from videostr.data.scene import (
    NEAR_M,
    Array,
    Frame,
    Refused,
    Scene,
    Skip,
    SkipReason,
    Track,
    project,
    projected_box,
)
from videostr.errors import DataError
from videostr.json_files import json_content

FPS = 2.0
UP = (0.0, 0.0, 1.0)
CHANNEL = "CAM_FRONT"
VERSIONS = ("v1.0-trainval", "v1.0-mini")
SPLITS_FILE = "splits.json"
LABELS = {
    "animal": "animal",
    "human.pedestrian.adult": "pedestrian",
    "human.pedestrian.child": "pedestrian",
    "human.pedestrian.construction_worker": "pedestrian",
    "human.pedestrian.police_officer": "pedestrian",
    "human.pedestrian.personal_mobility": "personal_mobility_device",
    "human.pedestrian.stroller": "stroller",
    "human.pedestrian.wheelchair": "wheelchair",
    "movable_object.barrier": "barrier",
    "movable_object.trafficcone": "traffic_cone",
    "vehicle.bicycle": "bicycle",
    "vehicle.bus.bendy": "bus",
    "vehicle.bus.rigid": "bus",
    "vehicle.car": "car",
    "vehicle.construction": "construction_vehicle",
    "vehicle.emergency.ambulance": "ambulance",
    "vehicle.emergency.police": "police_vehicle",
    "vehicle.motorcycle": "motorcycle",
    "vehicle.trailer": "trailer",
    "vehicle.truck": "truck",
}
DROPPED = frozenset(
    {"movable_object.debris", "movable_object.pushable_pullable", "static_object.bicycle_rack"}
)
"""Clutter of no one kind, and racks, which are areas."""
COUNTABLE = frozenset(LABELS.values()) - {"bicycle", "motorcycle"}
"""A rack is annotated as a whole: what is parked in it is not."""
VISIBILITY = {"1": 0.2, "2": 0.5, "3": 0.7, "4": 0.9}
"""Middles of the bins 0 to 40, 40 to 60, 60 to 80 and 80 to 100 %, of what six cameras together could see."""
LIMIT = 1e6
"""Larger numbers are as useless as infinite ones."""
UNIT = 1e-2
"""Quaternions may be so far from unit length."""


class NuScenes:
    """The annotated scenes.

    Splits: those of `splits.json`, of which "test" is never read; without that file only "train", which is all scenes.
    Objects of the categories `DROPPED`, and what the front camera does not see, are left out without a `Skip`.

    `Track.visibility` is the table's visibility times the share of the box inside the image. Findings that belong to no scene,
    like an annotation of a sample that does not exist, are reported with the first scene of the split.
    """

    name: ClassVar[str] = "nuscenes"
    licence: ClassVar[str] = (
        "nuScenes: CC BY-NC-SA 4.0 and the terms of use at https://www.nuscenes.org/terms-of-use"
    )

    def __init__(self, root: Path, split: str) -> None:
        """Look at the tree and read the names of its scenes.

        Raises:
            DataError: a table is missing, `scene.json` or `splits.json` cannot be read, or the split does not exist, has no
                scene or is "test".
        """
        wanted = _split(root, split)
        self._metadata = _Metadata(root, _version(root))
        skips: list[Skip] = []
        try:
            self._scenes = {row.name: row.token for _, row in self._metadata.rows("scene", _SceneRow, skips)}
        except Refused as refused:
            raise DataError(
                f"{root / refused.skip.file}: {refused.skip.detail}", remedy="unpack the metadata again"
            ) from None
        self.names: Sequence[str] = sorted(name for name in self._scenes if wanted is None or name in wanted)
        if not self.names:
            raise DataError(
                f"{root / self._metadata.file('scene')}: has no scene of split {split!r}",
                remedy=f"list those it has in {root / SPLITS_FILE}",
            )
        self._first = self.names[0]
        detail = f"is not in split {split!r} of {SPLITS_FILE}"
        left_out = sorted(set(self._scenes) - set(self.names))
        skips += [_skip(name, SkipReason.EXCLUDED, detail) for name in left_out]
        self.skips: Sequence[Skip] = skips

    def read(self, name: str) -> Scene | Skip:
        """A scene; a `Skip` where a table is broken, or the scene has no frame or no object that can be used."""
        if isinstance(self._tables, Skip):
            return self._tables
        try:
            return self._scene(name, self._tables)
        except Refused as refused:
            return refused.skip

    @cached_property
    def _tables(self) -> _Tables | Skip:
        try:
            return _read_tables(self._metadata, frozenset(self._scenes.values()))
        except Refused as refused:
            return refused.skip

    def _scene(self, name: str, tables: _Tables) -> Scene:
        skips = list(tables.homeless) if name == self._first else []
        shots = self._shots(name, tables, skips)
        first = shots[0]
        cameras = np.stack([shot.ego @ shot.mount for shot in shots])
        cameras[:, :3, 3] -= first.ego[:3, 3]
        projection = np.hstack([first.intrinsic, np.zeros((3, 1))])
        every = [
            _track(boxes, cameras, first.ego[:3, 3], projection, first.size)
            for boxes in self._boxes(shots, tables, skips)
        ]
        tracks = tuple(track for track in every if len(track.frames))
        if not tracks:
            detail = f"{name}: no object is in view; {len(skips)} other findings"
            raise Refused(self._metadata.file("sample_annotation"), None, SkipReason.NO_OBJECT, detail)
        return Scene(
            source=self.name,
            name=name,
            frames=tuple(
                Frame(t=(shot.time - first.time) / 1e6, image=shot.image, camera_to_world=camera)
                for shot, camera in zip(shots, cameras, strict=True)
            ),
            fps=FPS,
            tracks=tracks,
            image_size=first.size,
            projection=projection,
            up=UP,
            countable=COUNTABLE,
            skips=tuple(skips),
        )

    def _shots(self, name: str, tables: _Tables, skips: list[Skip]) -> list[_Shot]:
        """The scene's usable frames, ascending in time, all of one image size and one set of intrinsics."""
        shots: list[_Shot] = []
        samples = tables.samples_of[self._scenes[name]]
        for sample in sorted(samples, key=lambda sample: sample.time):
            try:
                shot = self._shot(sample, tables)
                if shots and (shot.size != shots[0].size or (shot.intrinsic != shots[0].intrinsic).any()):
                    detail = f"sample {sample.token}: size or intrinsics differ from the first frame's"
                    raise Refused(self._metadata.file("sample_data"), None, SkipReason.NO_CALIBRATION, detail)
            except Refused as refused:
                skips.append(refused.skip)
            else:
                shots.append(shot)
        if not shots:
            detail = f"{name}: none of {len(samples)} samples has a usable image of {CHANNEL}"
            raise Refused(self._metadata.file("sample_data"), None, SkipReason.NO_IMAGE, detail)
        return shots

    def _shot(self, sample: _Sample, tables: _Tables) -> _Shot:
        row = tables.images.get(sample.token)
        if row is None:
            detail = f"sample {sample.token}: has no key frame of a calibrated {CHANNEL}"
            raise Refused(self._metadata.file("sample_data"), None, SkipReason.NO_IMAGE, detail)
        ego = tables.egos.get(row.ego_pose_token)
        if ego is None:
            detail = f"sample {sample.token}: pose {row.ego_pose_token} is missing or not finite"
            raise Refused(self._metadata.file("ego_pose"), None, SkipReason.NO_POSE, detail)
        mount, intrinsic = tables.cameras[row.calibrated_sensor_token]
        size = (row.width, row.height)
        return _Shot(sample.number, sample.time, row.filename, size, ego, mount, intrinsic)

    def _boxes(self, shots: Sequence[_Shot], tables: _Tables, skips: list[Skip]) -> list[_Boxes]:
        """The usable annotations of each object that has a label."""
        table = tables.annotations
        numbers = [shot.number for shot in shots]
        starts = np.searchsorted(table.samples, numbers, "left")
        ends = np.searchsorted(table.samples, numbers, "right")
        rows = np.concatenate([np.arange(a, b) for a, b in zip(starts, ends, strict=True)])
        frames = np.repeat(np.arange(len(shots)), ends - starts)
        found = []
        for number in np.unique(table.instances[rows]).tolist():
            instance = tables.instances[number]
            if instance.problem is not None:
                skips.append(instance.problem)
            elif instance.label:
                at = np.flatnonzero(table.instances[rows] == number)
                at = at[self._are_usable(rows[at], table, skips)]
                found.append(_Boxes(instance, frames[at], table.visibility[rows[at]], table.values[rows[at]]))
        return found

    def _are_usable(
        self, rows: NDArray[np.intp], table: _Annotations, skips: list[Skip]
    ) -> NDArray[np.bool_]:
        """[K] whether each annotation of an object is sound."""
        values = table.values[rows]
        norms = np.linalg.norm(values[:, 6:].clip(-LIMIT, LIMIT), axis=1)
        not_finite = ~(np.abs(values) < LIMIT).all(1)
        no_extent = (values[:, 3:6] <= 0).any(1)
        no_turn = np.abs(norms - 1) > UNIT
        unknown = np.isnan(table.visibility[rows])
        repeated = np.diff(table.samples[rows], prepend=-1) == 0
        usable = np.ones(len(rows), dtype=bool)
        for bad, reason, rule in (
            (not_finite, SkipReason.NOT_FINITE, f"numbers must be finite and below {LIMIT:.0e}"),
            (no_extent, SkipReason.NO_EXTENT, "width, length and height must be positive"),
            (no_turn, SkipReason.BAD_LINE, "the rotation must be a unit quaternion"),
            (
                unknown,
                SkipReason.UNKNOWN_REFERENCE,
                f"visibility_token must be one of {', '.join(VISIBILITY)}",
            ),
            (repeated, SkipReason.BAD_LINE, "the instance has an annotation in the same sample already"),
        ):
            skips += [
                _skip(self._metadata.file("sample_annotation"), reason, f"entry {entry}: {rule}")
                for entry in table.entries[rows[usable & bad]].tolist()
            ]
            usable &= ~bad
        return usable


def _version(root: Path) -> str:
    for version in VERSIONS:
        if (root / version).is_dir():
            return version
    raise DataError(f"{root}: has neither {' nor '.join(VERSIONS)}", remedy="name the folder they lie in")


def _split(root: Path, split: str) -> frozenset[str] | None:
    """Names of the split's scenes; None for all."""
    if split.startswith("test"):
        raise DataError(
            f"nuscenes: split {split!r} has no annotations and is a benchmark's", remedy="use 'train'"
        )
    path = root / SPLITS_FILE
    if not path.exists():
        if split == "train":
            return None
        raise DataError(
            f"{path}: is missing", remedy=f"split {split!r} needs it: put {{{split!r}: [scene names]}} there"
        )
    try:
        splits = msgspec.json.decode(json_content(path.read_bytes()), type=dict[str, frozenset[str]])
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: {error}", remedy="must map splits to lists of scene names") from None
    if split not in splits:
        raise DataError(
            f"{path}: has no split {split!r}", remedy=f"choose one of {', '.join(sorted(splits))}"
        )
    return splits[split]


# ------------------------------------------------------------------------------------------------------ tables


class _SceneRow(msgspec.Struct):
    token: str
    name: str


class _SampleRow(msgspec.Struct):
    token: str
    scene_token: str
    timestamp: int


class _SampleDataRow(msgspec.Struct):
    sample_token: str
    ego_pose_token: str
    calibrated_sensor_token: str
    filename: str
    width: int
    height: int
    is_key_frame: bool


class _EgoPoseRow(msgspec.Struct):
    token: str
    translation: tuple[float, float, float]
    rotation: tuple[float, float, float, float]


class _SensorRow(msgspec.Struct):
    token: str
    channel: str


class _CalibratedSensorRow(msgspec.Struct):
    token: str
    sensor_token: str
    translation: tuple[float, float, float]
    rotation: tuple[float, float, float, float]
    camera_intrinsic: list[list[float]]


class _InstanceRow(msgspec.Struct):
    token: str
    category_token: str


class _CategoryRow(msgspec.Struct):
    token: str
    name: str


class _AnnotationRow(msgspec.Struct):
    sample_token: str
    instance_token: str
    visibility_token: str
    translation: tuple[float, float, float]
    size: tuple[float, float, float]
    rotation: tuple[float, float, float, float]


_Row = TypeVar("_Row")


def _skip(file: str, reason: SkipReason, detail: str) -> Skip:
    return Skip(file=file, line=None, reason=reason, detail=detail)


@dataclass(frozen=True, slots=True)
class _Metadata:
    """A folder of tables."""

    root: Path
    version: str

    def file(self, table: str) -> str:
        return f"{self.version}/{table}.json"

    def rows(self, table: str, kind: type[_Row], skips: list[Skip]) -> Iterator[tuple[int, _Row]]:
        """Rows with their places, from 0; one that breaks the format is a `Skip`.

        Raises:
            Refused: the file is missing or is no list in JSON.
        """
        try:
            with (self.root / self.file(table)).open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            entries = msgspec.json.decode(json_content(mapped), type=list[msgspec.Raw])
        except OSError as error:
            detail = f"cannot be read ({error.strerror})"
            raise Refused(self.file(table), None, SkipReason.UNREADABLE, detail) from None
        except (ValueError, RecursionError) as error:  # an empty file cannot be mapped: a ValueError
            raise Refused(self.file(table), None, SkipReason.UNREADABLE, f"{error!s:.80}") from None
        decoder = msgspec.json.Decoder(kind)
        for number, entry in enumerate(entries):
            try:
                row = decoder.decode(entry)
            except ValueError as error:
                detail = f"entry {number}: {error!s:.80}"
                skips.append(_skip(self.file(table), SkipReason.BAD_LINE, detail))
            else:
                yield number, row


@dataclass(frozen=True, slots=True)
class _Sample:
    number: int
    token: str
    time: int
    """Microseconds."""


@dataclass(frozen=True, slots=True)
class _Instance:
    token: str
    label: str
    """"" where it is of a category that is dropped."""
    problem: Skip | None
    """Why it has no label."""


@dataclass(frozen=True, slots=True)
class _Annotations:
    """A annotations, ascending by sample."""

    samples: NDArray[np.int32]
    """[A] numbers of their samples."""
    instances: NDArray[np.int32]
    """[A] numbers of their instances."""
    entries: NDArray[np.int32]
    """[A] places in the file."""
    visibility: Array
    """[A] middle of the bin; NaN where unknown."""
    values: Array
    """[A, 10] translation, size, rotation."""


@dataclass(frozen=True, slots=True)
class _Tables:
    """What is kept of the metadata."""

    samples_of: dict[str, list[_Sample]]
    """By token of the scene; of all scenes."""
    images: dict[str, _SampleDataRow]
    """The front camera's key frames, by token of the sample."""
    egos: dict[str, Array]
    """[4, 4] pose of the car in the global frame."""
    cameras: dict[str, tuple[Array, Array]]
    """[4, 4] pose of a front camera in the car, and [3, 3] intrinsics."""
    instances: list[_Instance]
    annotations: _Annotations
    homeless: list[Skip]
    """Findings that belong to no scene."""


def _read_tables(metadata: _Metadata, scenes: frozenset[str]) -> _Tables:
    skips: list[Skip] = []
    samples_of: dict[str, list[_Sample]] = {scene: [] for scene in scenes}
    samples: dict[str, _Sample] = {}
    for number, row in metadata.rows("sample", _SampleRow, skips):
        if row.scene_token in samples_of:
            samples[row.token] = _Sample(number, row.token, row.timestamp)
            samples_of[row.scene_token].append(samples[row.token])
        else:
            skips.append(_missing(metadata, "sample", number, "scene", row.scene_token))
    cameras = _read_cameras(metadata, skips)
    images = _read_images(metadata, samples, cameras, skips)
    wanted = {row.ego_pose_token for row in images.values()}
    egos: dict[str, Array] = {}
    for _, ego in metadata.rows("ego_pose", _EgoPoseRow, skips):
        if ego.token in wanted:
            pose = _pose(ego.translation, ego.rotation)
            egos |= {} if pose is None else {ego.token: pose}
    instances = _read_instances(metadata, skips)
    annotations = _read_annotations(metadata, samples, instances, skips)
    return _Tables(samples_of, images, egos, cameras, instances, annotations, skips)


def _read_cameras(metadata: _Metadata, skips: list[Skip]) -> dict[str, tuple[Array, Array]]:
    channels = {row.token: row.channel for _, row in metadata.rows("sensor", _SensorRow, skips)}
    cameras = {}
    for number, row in metadata.rows("calibrated_sensor", _CalibratedSensorRow, skips):
        if row.sensor_token not in channels:
            skips.append(_missing(metadata, "calibrated_sensor", number, "sensor", row.sensor_token))
        elif channels[row.sensor_token] == CHANNEL:
            pose = _pose(row.translation, row.rotation)
            intrinsic = np.array([entry for line in row.camera_intrinsic for entry in line])
            is_sound = len(intrinsic) == 9 and (np.abs(intrinsic) < LIMIT).all() and intrinsic[0] > 0
            if pose is not None and is_sound:
                cameras[row.token] = (pose, intrinsic.reshape(3, 3))
            else:
                detail = f"entry {number}: must have finite numbers, a unit quaternion and 3 x 3 intrinsics"
                file = metadata.file("calibrated_sensor")
                skips.append(_skip(file, SkipReason.NO_CALIBRATION, detail))
    return cameras


def _read_images(
    metadata: _Metadata,
    samples: dict[str, _Sample],
    cameras: dict[str, tuple[Array, Array]],
    skips: list[Skip],
) -> dict[str, _SampleDataRow]:
    images: dict[str, _SampleDataRow] = {}
    file = metadata.file("sample_data")
    for number, row in metadata.rows("sample_data", _SampleDataRow, skips):
        if not row.is_key_frame or row.calibrated_sensor_token not in cameras:
            continue
        if row.sample_token not in samples:
            skips.append(_missing(metadata, "sample_data", number, "sample", row.sample_token))
        elif row.sample_token in images or min(row.width, row.height) <= 0:
            detail = f"entry {number}: must have a positive size, and be the only key frame of its sample"
            skips.append(_skip(file, SkipReason.BAD_LINE, detail))
        else:
            images[row.sample_token] = row
    return images


def _read_instances(metadata: _Metadata, skips: list[Skip]) -> list[_Instance]:
    categories = {row.token: row.name for _, row in metadata.rows("category", _CategoryRow, skips)}
    instances = []
    for number, row in metadata.rows("instance", _InstanceRow, skips):
        category = categories.get(row.category_token)
        problem = None
        if category is None:
            problem = _missing(metadata, "instance", number, "category", row.category_token)
        elif category not in LABELS and category not in DROPPED:
            detail = f"{category!r:.40} of instance {row.token} is not in the list"
            problem = _skip(metadata.file("category"), SkipReason.UNKNOWN_CATEGORY, detail)
        instances.append(_Instance(row.token, LABELS.get(category or "", ""), problem))
    return instances


def _read_annotations(
    metadata: _Metadata, samples: dict[str, _Sample], instances: list[_Instance], skips: list[Skip]
) -> _Annotations:
    """Adds to `instances` those that are annotated but not in their table."""
    numbers = {instance.token: number for number, instance in enumerate(instances)}
    places, values = array("i"), array("d")
    for entry, row in metadata.rows("sample_annotation", _AnnotationRow, skips):
        sample = samples.get(row.sample_token)
        if sample is None:
            skips.append(_missing(metadata, "sample_annotation", entry, "sample", row.sample_token))
            continue
        number = numbers.setdefault(row.instance_token, len(instances))
        if number == len(instances):
            problem = _missing(metadata, "sample_annotation", entry, "instance", row.instance_token)
            instances.append(_Instance(row.instance_token, "", problem))
        places.extend((sample.number, number, entry))
        values.append(VISIBILITY.get(row.visibility_token, np.nan))
        values.extend((*row.translation, *row.size, *row.rotation))
    table = np.asarray(places).reshape(-1, 3)
    order = np.argsort(table[:, 0], kind="stable")
    sample_numbers, instance_numbers, entries = np.ascontiguousarray(table[order].T)
    ordered = np.asarray(values).reshape(-1, 11)[order]
    return _Annotations(sample_numbers, instance_numbers, entries, ordered[:, 0], ordered[:, 1:])


def _missing(metadata: _Metadata, table: str, number: int, other: str, token: str) -> Skip:
    detail = f"entry {number}: {other} {token!r:.40} does not exist"
    return _skip(metadata.file(table), SkipReason.UNKNOWN_REFERENCE, detail)


# ---------------------------------------------------------------------------------------------------- geometry


@dataclass(frozen=True, slots=True)
class _Shot:
    """A key frame of the front camera."""

    number: int
    """Of its sample."""
    time: int
    """Of its sample, as boxes have that of the sample; microseconds."""
    image: str
    size: tuple[int, int]
    ego: Array
    """[4, 4] car to global."""
    mount: Array
    """[4, 4] camera to car."""
    intrinsic: Array


@dataclass(frozen=True, slots=True)
class _Boxes:
    """K usable annotations of an object."""

    instance: _Instance
    frames: NDArray[np.intp]
    visibility: Array
    values: Array
    """[K, 10] translation, size, rotation."""


_LATTICE = np.array([[i, j, k] for i in (-1, 0, 1) for j in (-1, 0, 1) for k in (-1, 0, 1)]) / 2
"""[27, 3] points of a box: its corners, and the middles between them."""
_CORNERS = np.flatnonzero((_LATTICE != 0).all(1))
"""The corners, in the order of `videostr.data.scene.corners`."""


def _track(found: _Boxes, cameras: Array, origin: Array, projection: Array, size: tuple[int, int]) -> Track:
    """The object in those frames whose image holds a part of its box."""
    centers = found.values[:, :3] - origin
    sizes = found.values[:, [4, 3, 5]]  # the table has width, length, height
    headings = _turns(found.values[:, 6:])[:, :, 0]
    yaws = np.arctan2(headings[:, 1], headings[:, 0])
    points = _in_cameras(_lattices(centers, sizes, yaws), cameras[found.frames])
    pixels = project(points.reshape(-1, 3), projection).reshape(*points.shape[:2], 2)
    inside = ((pixels >= 0) & (pixels <= size)).all(2).mean(1)
    boxes = np.full((len(points), 4), np.nan)
    for k in np.flatnonzero((points[:, :, 2] >= NEAR_M).any(1)).tolist():
        box = projected_box(points[k, _CORNERS], projection, size)
        boxes[k] = np.nan if box is None else box
    shown = np.isfinite(boxes[:, 0])
    return Track(
        id=found.instance.token,
        label=found.instance.label,
        frames=found.frames[shown],
        visibility=(found.visibility * inside)[shown],
        centers=centers[shown],
        sizes=sizes[shown],
        yaws=yaws[shown],
        boxes=boxes[shown],
    )


def _lattices(centers: Array, sizes: Array, yaws: Array) -> Array:
    """[K, 27, 3] `_LATTICE` of each box, z up."""
    level = np.zeros((len(yaws), 3, 3))  # rows: along, across, up
    level[:, 0, 0] = level[:, 1, 1] = np.cos(yaws)
    level[:, 0, 1] = np.sin(yaws)
    level[:, 1, 0] = -np.sin(yaws)
    level[:, 2, 2] = 1.0
    points: Array = centers[:, None] + (_LATTICE * sizes[:, None]) @ level
    return points


def _in_cameras(points: Array, cameras: Array) -> Array:
    """[K, P, 3] world points in the frames of [K, 4, 4] cameras."""
    turned: Array = (points - cameras[:, None, :3, 3]) @ cameras[:, :3, :3]
    return turned


def _turns(quaternions: Array) -> Array:
    """[N, 3, 3] rotations of w, x, y, z."""
    w, x, y, z = (quaternions / np.linalg.norm(quaternions, axis=1, keepdims=True)).T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.moveaxis(np.array(rows), 2, 0)


def _pose(translation: Sequence[float], rotation: Sequence[float]) -> Array | None:
    """[4, 4]; None where a number is useless or the quaternion is not of unit length."""
    numbers = np.array([*translation, *rotation])
    if not (np.abs(numbers) < LIMIT).all() or abs(np.linalg.norm(numbers[3:]) - 1) > UNIT:
        return None
    pose = np.eye(4)
    pose[:3, :3] = _turns(numbers[None, 3:])[0]
    pose[:3, 3] = numbers[:3]
    return pose
