"""nuScenes: streets of Boston and Singapore, key frames at 2 Hz (https://www.nuscenes.org/nuscenes).

In, below the root: the JSON tables of `v1.0-trainval/`, or else of `v1.0-mini/`, and, if there, `splits.json`
{"train": [names of scenes], ..}, since the official splits are not part of the download. Images may be missing. Out: a scene
per row of `scene.json`, as the front camera sees it; its world is the global frame (z up) moved to the first pose of the car.

The tables are read once per process, when its first scene is: some 16 s for trainval. Of `sample_data` and `ego_pose`, over two
million rows each, only the front camera's key frames are kept, of `sample_annotation` 100 bytes a row: 0.2 GB for trainval in
all, 0.3 GB while reading. The files themselves are mapped into memory, not copied.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np

from videostr.data.scene import NEAR_M, Array, Frame, Scene, Skip, SkipReason, Track, project, projected_box
from videostr.data.source import SkipEntry, Source, no_object
from videostr.data.sources.nuscenes_tables import (
    CENTER,
    CHANNEL,
    ENTRY,
    INSTANCE,
    LABELS,
    SAMPLE,
    SHARE,
    SIZE,
    SPLITS_FILE,
    TURN,
    VERSIONS,
    Instance,
    Metadata,
    Named,
    Sample,
    Tables,
    read_tables,
    rotations,
    scenes_of_split,
)
from videostr.errors import DataError

FPS = 2.0
UP = (0.0, 0.0, 1.0)
COUNTABLE = frozenset(LABELS.values()) - {"bicycle", "motorcycle"}
"""A rack is annotated as a whole: what is parked in it is not."""


class NuScenes(Source):
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
        super().__init__(root, split)
        wanted = scenes_of_split(root, split)
        version = next((name for name in VERSIONS if (root / name).is_dir()), "")
        if not version:
            raise DataError(
                f"{root}: has neither {' nor '.join(VERSIONS)}", remedy="name the folder they lie in"
            )
        self._metadata = Metadata(root, version)
        self.skips = self._metadata.skips
        try:
            self._scenes = {row.name: row.token for _, row in self._metadata.rows("scene", Named)}
        except SkipEntry as entry:
            file, detail = entry.skip.file, entry.skip.detail
            raise DataError(f"{root / file}: {detail}", remedy="unpack the metadata again") from None
        self.names = sorted(name for name in self._scenes if wanted is None or name in wanted)
        if not self.names:
            raise DataError(
                f"{root / self._metadata.file('scene')}: has no scene of split {split!r}",
                remedy=f"list those it has in {root / SPLITS_FILE}",
            )
        self.skips += [
            Skip(file=name, reason=SkipReason.EXCLUDED, detail=f"is not in split {split!r} of {SPLITS_FILE}")
            for name in sorted(set(self._scenes) - set(self.names))
        ]

    def read(self, name: str) -> Scene | Skip:
        """Return a scene; a `Skip` where a table is broken, or the scene has no frame or no object that can be used."""
        return self._tables if isinstance(self._tables, Skip) else super().read(name)

    @cached_property
    def _tables(self) -> Tables | Skip:
        try:
            return read_tables(Metadata(self.root, self._metadata.version), frozenset(self._scenes.values()))
        except SkipEntry as entry:
            return entry.skip

    def scene(self, name: str) -> Scene:
        """Return a scene that has a frame and an object that can be used."""
        tables = self._tables
        assert isinstance(tables, Tables)
        skips = list(tables.orphaned) if name == self.names[0] else []
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
            raise no_object(self._metadata.file("sample_annotation"), name, skips)
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

    def _shots(self, name: str, tables: Tables, skips: list[Skip]) -> list[_Shot]:
        """Return the scene's usable frames, ascending in time, all of one image size and one set of intrinsics."""
        shots: list[_Shot] = []
        samples = tables.samples_of[self._scenes[name]]
        file = self._metadata.file("sample_data")
        for sample in sorted(samples, key=lambda sample: sample.time):
            try:
                shot = self._shot(sample, tables)
                if shots and (shot.size != shots[0].size or (shot.intrinsic != shots[0].intrinsic).any()):
                    detail = f"sample {sample.token}: size or intrinsics differ from the first frame's"
                    raise SkipEntry(file, SkipReason.NO_CALIBRATION, detail)
            except SkipEntry as entry:
                skips.append(entry.skip)
            else:
                shots.append(shot)
        if not shots:
            detail = f"{name}: none of {len(samples)} samples has a usable image of {CHANNEL}"
            raise SkipEntry(file, SkipReason.NO_IMAGE, detail)
        return shots

    def _shot(self, sample: Sample, tables: Tables) -> _Shot:
        row = tables.images.get(sample.token)
        if row is None:
            detail = f"sample {sample.token}: has no key frame of a calibrated {CHANNEL}"
            raise SkipEntry(self._metadata.file("sample_data"), SkipReason.NO_IMAGE, detail)
        ego = tables.egos.get(row.ego_pose_token)
        if ego is None:
            detail = f"sample {sample.token}: pose {row.ego_pose_token} is missing or not finite"
            raise SkipEntry(self._metadata.file("ego_pose"), SkipReason.NO_POSE, detail)
        mount, intrinsic = tables.cameras[row.calibrated_sensor_token]
        return _Shot(sample.number, sample.time, row.filename, (row.width, row.height), ego, mount, intrinsic)

    def _boxes(self, shots: Sequence[_Shot], tables: Tables, skips: list[Skip]) -> Iterator[_Boxes]:
        """Yield the annotations of each object that has a label."""
        table = tables.annotations
        numbers = [shot.number for shot in shots]
        starts = np.searchsorted(table[:, SAMPLE], numbers, "left")
        ends = np.searchsorted(table[:, SAMPLE], numbers, "right")
        rows = np.concatenate([table[a:b] for a, b in zip(starts, ends, strict=True)])
        frames = np.repeat(np.arange(len(shots)), ends - starts)
        for number in np.unique(rows[:, INSTANCE]).astype(int).tolist():
            instance = tables.instances[number]
            if instance.problem is not None:
                skips.append(instance.problem)
            elif instance.label:
                at = np.flatnonzero(rows[:, INSTANCE] == number)
                is_second = np.diff(rows[at, SAMPLE], prepend=-1) == 0
                rule = "the instance has an annotation in the same sample already"
                skips += [
                    self._metadata.skip("sample_annotation", SkipReason.BAD_LINE, f"entry {entry}: {rule}")
                    for entry in rows[at[is_second], ENTRY].astype(int).tolist()
                ]
                yield _Boxes(instance, frames[at[~is_second]], rows[at[~is_second]])


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
    """K annotations of an object."""

    instance: Instance
    frames: np.ndarray
    """[K]"""
    rows: Array
    """[K, 14] of `Tables.annotations`."""


_LATTICE = np.array([[i, j, k] for i in (-1, 0, 1) for j in (-1, 0, 1) for k in (-1, 0, 1)]) / 2
"""[27, 3] points of a box: its corners, and the middles between them."""
_CORNERS = np.flatnonzero((_LATTICE != 0).all(1))
"""The corners, in the order of `videostr.data.scene.corners`."""


def _track(found: _Boxes, cameras: Array, origin: Array, projection: Array, size: tuple[int, int]) -> Track:
    """Return the object in those frames whose image holds a part of its box."""
    centers = found.rows[:, CENTER] - origin
    sizes = found.rows[:, SIZE][:, [1, 0, 2]]  # the table has width, length, height
    headings = rotations(found.rows[:, TURN])[:, :, 0]
    yaws = np.arctan2(headings[:, 1], headings[:, 0])
    points = _lattices(centers, sizes, yaws)
    own = cameras[found.frames]
    points = (points - own[:, None, :3, 3]) @ own[:, :3, :3]
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
        visibility=(found.rows[:, SHARE] * inside)[shown],
        centers=centers[shown],
        sizes=sizes[shown],
        yaws=yaws[shown],
        boxes=boxes[shown],
    )


def _lattices(centers: Array, sizes: Array, yaws: Array) -> Array:
    """Return [K, 27, 3] `_LATTICE` of each box, z up."""
    cos, sin, zero, one = np.cos(yaws), np.sin(yaws), np.zeros(len(yaws)), np.ones(len(yaws))
    level = np.array([[cos, sin, zero], [-sin, cos, zero], [zero, zero, one]])  # rows: along, across, up
    level = np.moveaxis(level, 2, 0)
    points: Array = centers[:, None] + (_LATTICE * sizes[:, None]) @ level
    return points
