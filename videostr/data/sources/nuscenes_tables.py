"""The tables of nuScenes: the rows that a source of its front camera needs, read once and kept small.

In: a folder of JSON tables. Out: `Tables`, and a `Skip` for every row that cannot be used.
"""

from __future__ import annotations

import mmap
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import msgspec
import numpy as np
from msgspec import Meta
from scipy.spatial.transform import Rotation

from videostr.data.scene import Array, Skip, SkipReason
from videostr.data.source import LIMIT, SkipEntry, are_usable, pose
from videostr.errors import DataError
from videostr.json_files import json_content
from videostr.schema_rules import field_problem

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
VISIBILITY = {"1": 0.2, "2": 0.5, "3": 0.7, "4": 0.9}
"""Middles of the bins 0 to 40, 40 to 60, 60 to 80 and 80 to 100 %, of what six cameras together could see."""
UNIT = 1e-2
"""Quaternions may be so far from unit length."""


def scenes_of_split(root: Path, split: str) -> frozenset[str] | None:
    """Return the names of the split's scenes; None for all."""
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


Vector = tuple[float, float, float]
Quaternion = tuple[float, float, float, float]
Metres = Annotated[float, Meta(gt=-LIMIT, lt=LIMIT)]
Extent = Annotated[float, Meta(gt=0, lt=LIMIT)]
Part = Annotated[float, Meta(ge=-1 - UNIT, le=1 + UNIT)]
"""Of a unit quaternion."""


class Named(msgspec.Struct):
    token: str
    name: str


class _SampleRow(msgspec.Struct):
    token: str
    scene_token: str
    timestamp: int


class SampleDataRow(msgspec.Struct):
    sample_token: str
    ego_pose_token: str
    calibrated_sensor_token: str
    filename: str
    width: int
    height: int
    is_key_frame: bool


class _EgoPoseRow(msgspec.Struct):
    token: str
    translation: Vector
    rotation: Quaternion


class _SensorRow(msgspec.Struct):
    token: str
    channel: str


class _CalibratedSensorRow(_EgoPoseRow):
    sensor_token: str
    camera_intrinsic: list[list[float]]


class _InstanceRow(msgspec.Struct):
    token: str
    category_token: str


class _AnnotationRow(msgspec.Struct):
    sample_token: str
    instance_token: str
    visibility_token: Literal["1", "2", "3", "4"]
    translation: tuple[Metres, Metres, Metres]
    size: tuple[Extent, Extent, Extent]
    rotation: tuple[Part, Part, Part, Part]


_Row = TypeVar("_Row")


class Metadata:
    """A folder of tables, and what could not be used of them."""

    def __init__(self, root: Path, version: str) -> None:
        self.root = root
        self.version = version
        self.skips: list[Skip] = []

    def file(self, table: str) -> str:
        return f"{self.version}/{table}.json"

    def skip(self, table: str, reason: SkipReason, detail: str) -> Skip:
        return Skip(file=self.file(table), reason=reason, detail=detail)

    def missing(self, table: str, number: int, other: str, token: str) -> Skip:
        detail = f"entry {number}: {other} {token!r:.40} does not exist"
        return self.skip(table, SkipReason.UNKNOWN_REFERENCE, detail)

    def rows(self, table: str, kind: type[_Row]) -> Iterator[tuple[int, _Row]]:
        """Yield the rows with their places, from 0; one that breaks the format is a `Skip`.

        Raises:
            SkipEntry: the file is missing or is not a list in JSON.
        """
        try:
            with (self.root / self.file(table)).open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            entries = msgspec.json.decode(json_content(mapped), type=list[msgspec.Raw])
        except OSError as error:
            detail = f"cannot be read ({error.strerror})"
            raise SkipEntry(self.file(table), SkipReason.UNREADABLE, detail) from None
        except (ValueError, RecursionError) as error:  # an empty file cannot be mapped: a ValueError
            raise SkipEntry(self.file(table), SkipReason.UNREADABLE, f"{error!s:.80}") from None
        decoder = msgspec.json.Decoder(kind)
        for number, entry in enumerate(entries):
            try:
                row = decoder.decode(entry)
            except ValueError as error:
                detail = (
                    field_problem(error, kind) if isinstance(error, msgspec.ValidationError) else str(error)
                )
                self.skips.append(self.skip(table, SkipReason.BAD_LINE, f"entry {number}: {detail:.80}"))
            else:
                yield number, row


@dataclass(frozen=True, slots=True)
class Sample:
    number: int
    token: str
    time: int
    """Microseconds."""


@dataclass(frozen=True, slots=True)
class Instance:
    token: str
    label: str
    """"" where it is of a category that is dropped."""
    problem: Skip | None
    """Why it has no label."""


SAMPLE, INSTANCE, ENTRY, SHARE = range(4)
"""Columns of `Tables.annotations`, the numbers of sample, instance and entry, and the visible share; then come the box's."""
CENTER, SIZE, TURN = slice(4, 7), slice(7, 10), slice(10, 14)


@dataclass(frozen=True, slots=True)
class Tables:
    """What is kept of the metadata."""

    samples_of: dict[str, list[Sample]]
    """By token of the scene; of all scenes."""
    images: dict[str, SampleDataRow]
    """The front camera's key frames, by token of the sample."""
    egos: dict[str, Array]
    """[4, 4] pose of the car in the global frame."""
    cameras: dict[str, tuple[Array, Array]]
    """[4, 4] pose of a front camera in the car, and [3, 3] intrinsics."""
    instances: list[Instance]
    annotations: Array
    """[A, 14] ascending by sample."""
    orphaned: list[Skip]
    """Findings that belong to no scene."""


def read_tables(metadata: Metadata, scenes: frozenset[str]) -> Tables:
    samples_of: dict[str, list[Sample]] = {scene: [] for scene in scenes}
    samples: dict[str, Sample] = {}
    for number, row in metadata.rows("sample", _SampleRow):
        if row.scene_token in samples_of:
            samples[row.token] = Sample(number, row.token, row.timestamp)
            samples_of[row.scene_token].append(samples[row.token])
        else:
            metadata.skips.append(metadata.missing("sample", number, "scene", row.scene_token))
    cameras = _read_cameras(metadata)
    images = _read_images(metadata, samples, cameras)
    wanted = {row.ego_pose_token for row in images.values()}
    egos = {
        ego.token: found
        for _, ego in metadata.rows("ego_pose", _EgoPoseRow)
        if ego.token in wanted and (found := _pose(ego)) is not None
    }
    instances = _read_instances(metadata)
    annotations = _read_annotations(metadata, samples, instances)
    return Tables(samples_of, images, egos, cameras, instances, annotations, metadata.skips)


def _read_cameras(metadata: Metadata) -> dict[str, tuple[Array, Array]]:
    channels = {row.token: row.channel for _, row in metadata.rows("sensor", _SensorRow)}
    cameras = {}
    table = "calibrated_sensor"
    for number, row in metadata.rows(table, _CalibratedSensorRow):
        if row.sensor_token not in channels:
            metadata.skips.append(metadata.missing(table, number, "sensor", row.sensor_token))
        elif channels[row.sensor_token] == CHANNEL:
            found = _pose(row)
            intrinsic = np.array([entry for line in row.camera_intrinsic for entry in line])
            is_sound = len(intrinsic) == 9 and bool(are_usable(intrinsic)) and intrinsic[0] > 0
            if found is not None and is_sound:
                cameras[row.token] = (found, intrinsic.reshape(3, 3))
            else:
                detail = f"entry {number}: must have finite numbers, a unit quaternion and 3 x 3 intrinsics"
                metadata.skips.append(metadata.skip(table, SkipReason.NO_CALIBRATION, detail))
    return cameras


def _read_images(
    metadata: Metadata, samples: dict[str, Sample], cameras: dict[str, tuple[Array, Array]]
) -> dict[str, SampleDataRow]:
    images: dict[str, SampleDataRow] = {}
    for number, row in metadata.rows("sample_data", SampleDataRow):
        if not row.is_key_frame or row.calibrated_sensor_token not in cameras:
            continue
        if row.sample_token not in samples:
            metadata.skips.append(metadata.missing("sample_data", number, "sample", row.sample_token))
        elif row.sample_token in images or min(row.width, row.height) <= 0:
            detail = f"entry {number}: must have a positive size, and be the only key frame of its sample"
            metadata.skips.append(metadata.skip("sample_data", SkipReason.BAD_LINE, detail))
        else:
            images[row.sample_token] = row
    return images


def _read_instances(metadata: Metadata) -> list[Instance]:
    categories = {row.token: row.name for _, row in metadata.rows("category", Named)}
    instances = []
    for number, row in metadata.rows("instance", _InstanceRow):
        category = categories.get(row.category_token)
        problem = None
        if category is None:
            problem = metadata.missing("instance", number, "category", row.category_token)
        elif category not in LABELS and category not in DROPPED:
            detail = f"{category!r:.40} of instance {row.token} is not in the list"
            problem = metadata.skip("category", SkipReason.UNKNOWN_CATEGORY, detail)
        instances.append(Instance(row.token, LABELS.get(category or "", ""), problem))
    return instances


def _read_annotations(metadata: Metadata, samples: dict[str, Sample], instances: list[Instance]) -> Array:
    """Return the annotations; adds to `instances` those that are annotated but not in their table."""
    numbers = {instance.token: number for number, instance in enumerate(instances)}
    table, values = "sample_annotation", array("d")
    for entry, row in metadata.rows(table, _AnnotationRow):
        sample = samples.get(row.sample_token)
        if sample is None:
            metadata.skips.append(metadata.missing(table, entry, "sample", row.sample_token))
            continue
        if abs(np.linalg.norm(row.rotation) - 1) > UNIT:
            detail = f"entry {entry}: rotation: must be a unit quaternion"
            metadata.skips.append(metadata.skip(table, SkipReason.BAD_LINE, detail))
            continue
        number = numbers.setdefault(row.instance_token, len(instances))
        if number == len(instances):
            problem = metadata.missing(table, entry, "instance", row.instance_token)
            instances.append(Instance(row.instance_token, "", problem))
        values.extend((sample.number, number, entry, VISIBILITY[row.visibility_token]))
        values.extend((*row.translation, *row.size, *row.rotation))
    found = np.asarray(values).reshape(-1, 14)
    return found[np.argsort(found[:, SAMPLE], kind="stable")]


def rotations(quaternions: Array) -> Array:
    """Return [N, 3, 3] rotations of w, x, y, z, which need not be of unit length."""
    return Rotation.from_quat(quaternions[:, [1, 2, 3, 0]]).as_matrix()


def _pose(row: _EgoPoseRow) -> Array | None:
    """Return the [4, 4] pose; None where a number is useless or the quaternion is not of unit length."""
    shift, quaternion = np.array(row.translation), np.array(row.rotation)
    if not (are_usable(shift) and abs(np.linalg.norm(quaternion) - 1) <= UNIT):
        return None
    return pose(rotations(quaternion[None])[0], shift)
