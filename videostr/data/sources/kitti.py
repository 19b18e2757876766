"""KITTI tracking: streets seen from a car, 10 Hz (https://www.cvlibs.net/datasets/kitti/eval_tracking.php).

In: `training/` with `label_02/NNNN.txt`, `calib/NNNN.txt` and, for the camera's poses, `poses/NNNN.txt` (12 numbers a
frame, camera to world) or else `oxts/NNNN.txt` (the official GPS/IMU records). Out: a scene per label file, with 3-D and
2-D boxes; its world is the camera frame of the first frame that has a pose. `image_02/NNNN/` may be missing; where it is
there, frames without an image are left out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image
from scipy.spatial.transform import Rotation

from videostr.data.scene import Array, Frame, Scene, Skip, SkipReason, Track, are_rigid, ground_axes
from videostr.data.source import SkipEntry, Source, floats, no_object, pose
from videostr.errors import DataError

FPS = 10.0
IMAGE_SIZE = (1242, 375)
"""The documented width and height; the images of a few sequences are some pixels smaller."""
UP = (0.0, -1.0, 0.0)
"""The first frame's camera is taken to be level."""
LABELS = {
    "Car": "car",
    "Van": "van",
    "Truck": "truck",
    "Pedestrian": "pedestrian",
    "Person": "person_sitting",
    "Person_sitting": "person_sitting",
    "Cyclist": "cyclist",
    "Tram": "tram",
}
DROPPED = ("Misc", "DontCare")
NOT_TRUNCATED = {0: 1.0, 1: 0.5, 2: 0.1}
NOT_OCCLUDED = {0: 1.0, 1: 0.5, 2: 0.1, 3: 0.0}
"""Visible share by the file's level; 3 means unknown."""
EARTH_RADIUS_M = 6378137.0
SHAPES = {"P2": (3, 4), "R_rect": (3, 3), "Tr_velo_to_cam": (3, 4), "Tr_imu_to_velo": (3, 4)}
SPELLINGS = {"R0_rect": "R_rect", "Tr_velo_cam": "Tr_velo_to_cam", "Tr_imu_velo": "Tr_imu_to_velo"}


class Kitti(Source):
    """The labelled sequences of KITTI tracking.

    `Scene.countable` is None: the labels hold every object of their classes that is near enough to tell. Far crowds and rows
    of cars are only marked as DontCare regions, so whoever counts must leave out what is far away or badly seen.
    Rows of type DontCare (regions) and Misc (says nothing of the object) are not objects, and not a `Skip` either.

    Only the lines of a calibration file that are needed are looked at: P2, and the transforms where poses come from `oxts`.
    """

    name: ClassVar[str] = "kitti"
    licence: ClassVar[str] = (
        "KITTI Vision Benchmark Suite: CC BY-NC-SA 3.0, https://www.cvlibs.net/datasets/kitti/"
    )

    def __init__(self, root: Path, split: str) -> None:
        """Look at the tree.

        Raises:
            DataError: the split is not "train", or `training/` lacks labels, calibration or any record of poses.
        """
        if split != "train":
            raise DataError(f"kitti: split {split!r} has no labels", remedy="use split 'train'")
        super().__init__(root, split)
        training = root / "training"
        self.names = tuple(sorted(path.stem for path in (training / "label_02").glob("*.txt")))
        if not self.names:
            raise DataError(
                f"{training / 'label_02'}: has no *.txt", remedy="name the folder that contains training/"
            )
        if not (training / "calib").is_dir():
            raise DataError(
                f"{training / 'calib'}: is missing", remedy=f"unpack data_tracking_calib.zip into {root}"
            )
        if not any((training / folder).is_dir() for folder in ("poses", "oxts")):
            raise DataError(
                f"{training}: has neither poses/ nor oxts/",
                remedy=f"unpack data_tracking_oxts.zip into {root}",
            )

    def scene(self, name: str) -> Scene:
        """Return a sequence that has labels, calibration, a pose and an object that can be used."""
        skips: list[Skip] = []
        image_size = self._image_size(name, skips)
        last, rows = self._labels(name, image_size, skips)
        projection, poses = self._cameras(name, last, skips)
        is_kept = np.isfinite(poses).all((1, 2)) & self._has_image(name, len(poses), skips)
        kept = np.flatnonzero(is_kept)
        by_track: dict[int, list[_Row]] = defaultdict(list)
        for row in sorted(rows, key=lambda row: row.frame):
            if row.frame < len(poses) and is_kept[row.frame]:
                by_track[row.track].append(row)
        if not by_track:
            raise no_object(f"training/label_02/{name}.txt", "frames with a pose and an image", skips)
        return Scene(
            source=self.name,
            name=name,
            frames=tuple(
                Frame(t=i / FPS, image=f"training/image_02/{name}/{i:06d}.png", camera_to_world=poses[i])
                for i in kept.tolist()
            ),
            fps=FPS,
            tracks=tuple(_track(by_track[i], poses, kept, image_size) for i in sorted(by_track)),
            image_size=image_size,
            projection=projection,
            up=UP,
            countable=None,
            skips=tuple(skips),
        )

    def _has_image(self, name: str, count: int, skips: list[Skip]) -> np.ndarray:
        """Return [F] whether a frame can be shown; all True where the sequence's folder of images is missing."""
        file = f"training/image_02/{name}"
        if not (self.root / file).is_dir():
            return np.ones(count, dtype=bool)
        there = {path.name for path in (self.root / file).glob("*.png")}
        found = np.array([f"{i:06d}.png" in there for i in range(count)])
        if not found.all():
            detail = f"{(~found).sum()} of {count} frames have none, {found.argmin():06d}.png is the first"
            skips.append(Skip(file=file, reason=SkipReason.NO_IMAGE, detail=detail))
        return found

    def _image_size(self, name: str, skips: list[Skip]) -> tuple[int, int]:
        first = min((self.root / "training" / "image_02" / name).glob("*.png"), default=None)
        if first is None:
            return IMAGE_SIZE
        try:
            with Image.open(first) as image:
                return image.size
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            file = first.relative_to(self.root).as_posix()
            detail = f"{error}; the size is taken to be {IMAGE_SIZE[0]} x {IMAGE_SIZE[1]}"
            skips.append(Skip(file=file, reason=SkipReason.UNREADABLE, detail=detail))
            return IMAGE_SIZE

    def _labels(self, name: str, image_size: tuple[int, int], skips: list[Skip]) -> tuple[int, list[_Row]]:
        """Return the number of the last labelled frame, and the rows of objects in file order."""
        file = f"training/label_02/{name}.txt"
        last = 0
        found: dict[tuple[int, int], _Row] = {}
        labels: dict[int, str] = {}
        for number, text in enumerate(self._lines(file, SkipReason.UNREADABLE), 1):
            try:
                row = _row(file, number, text, image_size)
                problem = ""
                if row.label and (row.frame, row.track) in found:
                    problem = f"track {row.track} stands in frame {row.frame} already"
                elif row.label and labels.setdefault(row.track, row.label) != row.label:
                    problem = f"track {row.track} is a {row.label}, was a {labels[row.track]} before"
                if problem:
                    raise SkipEntry(file, SkipReason.BAD_LINE, problem, number)
            except SkipEntry as entry:
                skips.append(entry.skip)
                continue
            last = max(last, row.frame)
            if row.label:
                found[row.frame, row.track] = row
        return last, list(found.values())

    def _cameras(self, name: str, last: int, skips: list[Skip]) -> tuple[Array, Array]:
        """Return the projection, and [F, 4, 4] poses in the first one's camera up to frame `last`, NaN where one is missing."""
        has_poses = (self.root / "training" / "poses" / f"{name}.txt").exists()
        file = f"training/{'poses' if has_poses else 'oxts'}/{name}.txt"
        calibration = self._calibration(name, ["P2"] if has_poses else list(SHAPES))
        records = self._numbers(file, 12 if has_poses else 30, skips)
        poses = _matrices(records.reshape(-1, 3, 4)) if has_poses else _oxts_poses(records, calibration)
        usable = are_rigid(poses)
        for i in np.flatnonzero(np.isfinite(records).all(1) & ~usable).tolist():
            detail = "is not a pose: needs a rotation, or a latitude between -90 and 90"
            skips.append(Skip(file=file, line=i + 1, reason=SkipReason.BAD_LINE, detail=detail))
        poses[~usable] = np.nan
        if len(poses) <= last:
            detail = f"has rows up to frame {len(poses) - 1}; left out: frames {len(poses)} to {last}"
            skips.append(Skip(file=file, reason=SkipReason.NO_POSE, detail=detail))
        usable, poses = usable[: last + 1], poses[: last + 1]
        if not usable.any():
            raise SkipEntry(file, SkipReason.NO_POSE, f"no row of frames 0 to {last} holds a pose")
        return calibration["P2"], np.linalg.inv(poses[usable.argmax()]) @ poses

    def _calibration(self, name: str, wanted: Sequence[str]) -> dict[str, Array]:
        """Return the wanted matrices of `SHAPES`."""
        file = f"training/calib/{name}.txt"
        found = {}
        for number, line in enumerate(self._lines(file, SkipReason.NO_CALIBRATION), 1):
            key, *fields = line.replace(":", " ").split() or [""]
            key = SPELLINGS.get(key, key)
            if key in wanted:
                shape = SHAPES[key]
                found[key] = np.array(floats(fields, shape[0] * shape[1], file, number)).reshape(shape)
                if key != "P2" and not are_rigid(found[key][None])[0]:
                    raise SkipEntry(file, SkipReason.BAD_LINE, f"{key} must hold a rotation", number)
        missing = [key for key in wanted if key not in found]
        if missing:
            raise SkipEntry(file, SkipReason.NO_CALIBRATION, f"has no line {', '.join(missing)}")
        return found

    def _numbers(self, file: str, count: int, skips: list[Skip]) -> Array:
        """Return [F, count] numbers of a file with a line a frame; NaN where a line is broken."""
        rows = []
        for number, line in enumerate(self._lines(file, SkipReason.NO_POSE), 1):
            try:
                rows.append(floats(line.split(), count, file, number))
            except SkipEntry as entry:
                skips.append(entry.skip)
                rows.append([np.nan] * count)
        return np.array(rows).reshape(-1, count)

    def _lines(self, file: str, reason: SkipReason) -> list[str]:
        # A byte that is not ASCII spoils its line only.
        return self.read_bytes(file, reason).decode("ascii", "replace").rstrip().split("\n")


@dataclass(frozen=True, slots=True)
class _Row:
    """A line of a label file."""

    frame: int
    track: int
    label: str
    """"" where it is not an object."""
    visibility: float = 0.0
    values: tuple[float, ...] = ()
    """left, top, right, bottom; height, width, length; x, y, z of the bottom; rotation_y."""


def _row(file: str, number: int, text: str, image_size: tuple[int, int]) -> _Row:
    def bad(detail: str, reason: SkipReason = SkipReason.BAD_LINE) -> SkipEntry:
        return SkipEntry(file, reason, detail, number)

    fields = text.split()
    if len(fields) not in (17, 18):
        raise bad(f"has {len(fields)} columns, must have 17, or 18 with a score")
    try:
        frame, track, truncated, occluded = (int(fields[i]) for i in (0, 1, 3, 4))
    except ValueError:
        raise bad("frame, track, truncated and occluded must be whole numbers") from None
    kind = fields[2]
    if frame < 0:
        raise bad(f"frame = {frame}, must not be negative")
    if kind in DROPPED:
        return _Row(frame, track, "")
    if kind not in LABELS:
        rule = f"must be one of {', '.join((*LABELS, *DROPPED))}"
        raise bad(f"type = {kind!r:.40}, {rule}", SkipReason.UNKNOWN_CATEGORY)
    if track < 0 or truncated not in NOT_TRUNCATED or occluded not in NOT_OCCLUDED:
        raise bad(
            f"track, truncated, occluded = {track}, {truncated}, {occluded}: must be >= 0, 0 to 2, 0 to 3"
        )
    left, top, right, bottom, *size = values = floats(fields[6:17], 11, file, number)
    box = f"box {left}, {top}, {right}, {bottom}"
    if right <= left or bottom <= top or min(size[:3]) <= 0:
        rule = "must have an area and a volume"
        raise bad(f"{box}, height, width, length {size[:3]}: {rule}", SkipReason.NO_EXTENT)
    width, height = image_size
    if left >= width or top >= height or right <= 0 or bottom <= 0:
        raise bad(f"{box}: must overlap the image of {width} x {height}", SkipReason.OUTSIDE)
    return _Row(frame, track, LABELS[kind], NOT_TRUNCATED[truncated] * NOT_OCCLUDED[occluded], tuple(values))


def _track(rows: list[_Row], poses: Array, kept: np.ndarray, image_size: tuple[int, int]) -> Track:
    """Return an object in the world, its rows ascending in time; `kept` are the numbers of the scene's frames."""
    numbers = np.array([row.frame for row in rows])
    turns, shifts = poses[numbers, :3, :3], poses[numbers, :3, 3]
    values = np.array([row.values for row in rows])
    boxes, (height, width, length) = values[:, :4], values[:, 4:7].T
    x, bottom, z, rotation = values[:, 7:].T
    centers = np.stack([x, bottom - height / 2, z], axis=1)
    # rotation_y turns about the down axis and leaves x where it is 0. The camera turns and tilts with the road, so the
    # heading goes through the pose as a vector.
    headings = np.stack([np.cos(rotation), np.zeros_like(x), -np.sin(rotation)], axis=1)
    headings = (turns @ headings[..., None])[..., 0]
    e1, e2 = ground_axes(UP)
    return Track(
        id=str(rows[0].track),
        label=rows[0].label,
        frames=np.searchsorted(kept, numbers),
        visibility=np.array([row.visibility for row in rows]),
        centers=(turns @ centers[..., None])[..., 0] + shifts,
        sizes=np.stack([length, width, height], axis=1),
        yaws=np.arctan2(headings @ e2, headings @ e1),
        boxes=np.clip(boxes, 0.0, np.array(image_size * 2)),
    )


def _matrices(tops: Array) -> Array:
    """Return [..., 4, 4] of the upper three rows; [..., 3, 3] rotations have no shift."""
    return pose(tops[..., :3], tops[..., 3] if tops.shape[-1] == 4 else np.zeros(3))


def _oxts_poses(records: Array, calibration: dict[str, Array]) -> Array:
    """Return [F, 4, 4] camera to the map (east, north, up) of the Mercator projection; NaN where a record is."""
    latitude, longitude, altitude, roll, pitch, yaw = records[:, :6].T
    usable = latitude[np.abs(latitude) < 90]
    # One scale for the whole sequence: that of its first good record.
    scale = EARTH_RADIUS_M * np.cos(np.radians(usable[0])) if len(usable) else np.nan
    with np.errstate(invalid="ignore", divide="ignore"):
        north = scale * np.log(np.tan(np.radians(90 + latitude) / 2))
    is_read = np.isfinite(records).all(1)
    turns = np.full((len(records), 3, 3), np.nan)
    turns[is_read] = Rotation.from_euler("ZYX", np.stack([yaw, pitch, roll], axis=1)[is_read]).as_matrix()
    imu = pose(turns, np.stack([scale * np.radians(longitude), north, altitude], axis=1))
    rectify, velo, body = (
        _matrices(calibration[key]) for key in ("R_rect", "Tr_velo_to_cam", "Tr_imu_to_velo")
    )
    poses: Array = imu @ np.linalg.inv(rectify @ velo @ body)
    return poses
