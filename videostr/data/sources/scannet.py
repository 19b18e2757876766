"""ScanNet: scanned rooms seen from a hand-held camera (http://www.scan-net.org).

In, below the root: `scans/sceneXXXX_YY/` with `ID.aggregation.json` (objects), `ID_vh_clean_2.0.010000.segs.json` (segment of
each vertex), `ID_vh_clean_2.ply` (vertices), `ID.txt` (intrinsics, axis alignment) and exported `pose/N.txt`;
`scannetv2-labels.combined.tsv` (names of labels) and `scannetv2_val.txt` (scenes of the validation split). The images
`color/N.jpg` may be missing. Out: a scene per folder; its world is the axis-aligned scan, z up, its boxes are axis-aligned.

Which frame shows what is not annotated: an object counts as seen as far as its vertices are not behind others.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy.spatial import ConvexHull, QhullError

from videostr.data.scene import Array, Frame, Scene, Skip, SkipReason, Track, are_rigid, cut
from videostr.data.source import LIMIT, SkipEntry, Source, are_usable, floats, no_object
from videostr.data.sources.occlusion import seen_vertices
from videostr.data.sources.ply import ply_vertices
from videostr.errors import DataError

FPS = 30.0
UP = (0.0, 0.0, 1.0)
SPLITS = ("train", "val", "all")
VAL_LIST = "scannetv2_val.txt"
LABEL_TABLE = "scannetv2-labels.combined.tsv"
SPACING_S = 1.0
LEAST_FRAMES, MOST_FRAMES = 32, 240
"""Frames that are read of a scan, nearest to equally spaced times: one each `SPACING_S`, within these bounds. A scan has
thousands; clips choose among these, so that those of a long scan come from all its length."""
FLOOR = "floor"
STRUCTURE = frozenset(
    (FLOOR, "wall", "ceiling", "structure", "object", "void", "unannotated", "unknown", "remove")
) | {"otherstructure", "otherfurniture", "otherprop"}
"""Labels of the building itself, and those that do not say what the object is."""
HEAPS = frozenset({"books", "clothes", "paper"})
"""Labels one instance of which may be several things."""
SPELLINGS = {"refridgerator": "refrigerator"}
"""NYU40's own spelling."""
LEAST_BEST = 0.25
"""An object of which no frame shows this share of its vertices is hidden in part in all of them."""


class ScanNet(Source):
    """Annotated scans.

    Splits: "train" is all scenes but those of the validation split's rooms, on which benchmarks are made; "val" is those alone,
    "all" is both. The list of the validation split is not part of the download, so "train" and "val" ask for it.

    With `scannetv2-labels.combined.tsv` labels are the class of NYU40, all countable but `HEAPS`. Without it they are the
    annotators' own words; as "chair" then leaves out what someone called "office chair", no label is countable.
    Objects of `STRUCTURE` are left out without a `Skip`.

    `Scene.room_size` is the area of the floor's convex hull: the floor goes on under beds and cupboards, where a scan has no
    vertices to count. It is too large for rooms that are not convex.
    """

    name: ClassVar[str] = "scannet"
    licence: ClassVar[str] = (
        "ScanNet Terms of Use (non-commercial research and education), "
        "http://kaldir.vc.in.tum.de/scannet/ScanNet_TOS.pdf"
    )

    def __init__(self, root: Path, split: str) -> None:
        """Look at the tree.

        Raises:
            DataError: there is no such split, no scene, or no list of validation scenes; or a list is not what it should be.
        """
        super().__init__(root, split)
        if split not in SPLITS:
            raise DataError(f"scannet: split {split!r} is not one of {', '.join(SPLITS)}")
        names = sorted(path.name for path in (root / "scans").glob("scene????_??") if path.is_dir())
        if not names:
            raise DataError(
                f"{root / 'scans'}: has no sceneXXXX_YY/", remedy="name the folder that contains scans/"
            )
        self._labels = _read_labels(root, self.skips)
        if split != "all":
            rooms = _val_rooms(root, split)
            detail = f"split {split!r}: {VAL_LIST} {'has' if split == 'train' else 'does not have'} its room"
            kept = [name for name in names if (_room(name) in rooms) == (split == "val")]
            self.skips += [
                Skip(file=f"scans/{name}", reason=SkipReason.EXCLUDED, detail=detail)
                for name in sorted({*names} - {*kept})
            ]
            names = kept
        self.names = names

    def place(self, name: str) -> str:
        """Return the room of a scan."""
        return _room(name)

    def scene(self, name: str) -> Scene:
        """Return a scan of which every file can be read and an object is seen."""
        skips: list[Skip] = []
        projection, image_size, alignment = self._cameras(name, skips)
        points, segments = self._mesh(name, alignment, skips)
        found = self._objects(name, points, segments, skips)
        numbers, poses = self._poses(name, alignment, skips)
        objects = [item for item in found if item.label not in STRUCTURE]
        floor = [item.vertices for item in found if item.label == FLOOR]
        every = _tracks(objects, points, poses, projection, image_size)
        tracks = tuple(track for track in every if len(track.frames))
        file = _file(name, ".aggregation.json")
        for track in every:
            if not len(track.frames):
                detail = (
                    f"object {track.id}, {track.label}: no vertex of it is seen in any of {len(poses)} frames"
                )
                skips.append(Skip(file=file, reason=SkipReason.OUTSIDE, detail=detail))
        if not tracks:
            raise no_object(file, name, skips)
        countable = set() if self._labels is None else {track.label for track in tracks} - HEAPS
        return Scene(
            source=self.name,
            name=name,
            frames=tuple(
                Frame(t=int(number) / FPS, image=f"scans/{name}/color/{number}.jpg", camera_to_world=pose)
                for number, pose in zip(numbers, poses, strict=True)
            ),
            fps=FPS,
            tracks=tracks,
            image_size=image_size,
            projection=projection,
            up=UP,
            countable=frozenset(countable),
            room_size=_hull_area(points[np.concatenate(floor)][:, :2]) if floor else None,
            skips=tuple(skips),
        )

    def _cameras(self, name: str, skips: list[Skip]) -> tuple[Array, tuple[int, int], Array]:
        """Return projection, image size and [4, 4] axis alignment."""
        file = _file(name, ".txt")
        entries: dict[str, tuple[int, list[str]]] = {}
        for number, line in enumerate(self.read_bytes(file).decode("ascii", "replace").splitlines(), 1):
            key, equals, value = line.partition("=")
            if equals:
                entries[key.strip()] = (number, value.split())
            elif line.strip():
                detail = f"{line:.40}: must be key = value"
                skips.append(Skip(file=file, line=number, reason=SkipReason.BAD_LINE, detail=detail))

        def numbers(key: str, count: int) -> list[float]:
            if key not in entries:
                raise SkipEntry(file, SkipReason.NO_CALIBRATION, f"has no {key}")
            line, fields = entries[key]
            return floats(fields, count, file, line, f"{key}: ")

        width, height, fx, fy, mx, my = (
            numbers(key, 1)[0]
            for key in ("colorWidth", "colorHeight", "fx_color", "fy_color", "mx_color", "my_color")
        )
        if min(width, height, fx, fy) <= 0:
            detail = f"size {width:g} x {height:g}, focal lengths {fx}, {fy}: must be positive"
            raise SkipEntry(file, SkipReason.NO_CALIBRATION, detail)
        alignment = np.eye(4)
        if "axisAlignment" in entries:
            alignment = np.reshape(numbers("axisAlignment", 16), (4, 4))
            if not _is_pose(alignment):
                detail = "axisAlignment must be a rotation and a shift"
                raise SkipEntry(file, SkipReason.BAD_LINE, detail, entries["axisAlignment"][0])
        else:
            detail = "has no axisAlignment: the scan's own axes are used"
            skips.append(Skip(file=file, reason=SkipReason.NO_CALIBRATION, detail=detail))
        projection = np.array([[fx, 0.0, mx, 0.0], [0.0, fy, my, 0.0], [0.0, 0.0, 1.0, 0.0]])
        return projection, (int(width), int(height)), alignment

    def _mesh(self, name: str, alignment: Array, skips: list[Skip]) -> tuple[Array, NDArray[np.int64]]:
        """Return [N, 3] aligned vertices and [N] the segment of each."""
        file = _file(name, "_vh_clean_2.ply")
        try:
            points = ply_vertices(self.read_bytes(file))
        except ValueError as error:
            raise SkipEntry(file, SkipReason.UNREADABLE, f"{error!s:.80}") from None
        segments_file = _file(name, "_vh_clean_2.0.010000.segs.json")
        segments = np.array(self.read_json(segments_file, _Segments).seg_indices, dtype=np.int64)
        if len(segments) != len(points):
            detail = f"has segments of {len(segments)} vertices, {file} has {len(points)} vertices"
            raise SkipEntry(segments_file, SkipReason.UNREADABLE, detail)
        usable = are_usable(points, axis=1)
        if not usable.all():
            detail = f"{(~usable).sum()} vertices are left out: must be finite and below {LIMIT:.0e}"
            skips.append(Skip(file=file, reason=SkipReason.NOT_FINITE, detail=detail))
        return points[usable] @ alignment[:3, :3].T + alignment[:3, 3], segments[usable]

    def _objects(
        self, name: str, points: Array, segments: NDArray[np.int64], skips: list[Skip]
    ) -> list[_Object]:
        """Return all that is annotated, structure included, in the file's order."""
        file = _file(name, ".aggregation.json")
        known, place = np.unique(segments, return_inverse=True)
        found: dict[int, _Object] = {}
        for number, raw in enumerate(self.read_json(file, _Aggregation).seg_groups):

            def bad(reason: SkipReason, detail: str, number: int = number) -> SkipEntry:
                return SkipEntry(file, reason, f"segGroups[{number}]: {detail}")

            try:
                try:
                    group = msgspec.json.decode(raw, type=_Group)
                except ValueError as error:
                    raise bad(SkipReason.BAD_LINE, f"{error!s:.80}") from None
                label = self._label(group.label)
                if label is None:
                    rule = f"is not a raw_category of {LABEL_TABLE}"
                    raise bad(SkipReason.UNKNOWN_CATEGORY, f"label {group.label!r:.40} {rule}")
                if group.object_id in found:
                    raise bad(SkipReason.BAD_LINE, f"objectId {group.object_id} stands there already")
                if len(missing := np.setdiff1d(group.segments, known)):
                    raise bad(SkipReason.UNKNOWN_REFERENCE, f"segment {missing[0]:.0f} has no vertex")
                # Each group has its own vertices: those of all groups of a label would make one box of all chairs.
                vertices = np.flatnonzero(np.isin(known, group.segments)[place])
                is_flat = not len(vertices) or (np.ptp(points[vertices], axis=0) <= 0).any()
                if is_flat and label not in STRUCTURE:
                    raise bad(SkipReason.NO_EXTENT, f"{len(vertices)} vertices have no volume")
            except SkipEntry as entry:
                skips.append(entry.skip)
            else:
                found[group.object_id] = _Object(str(group.object_id), label, vertices)
        return list(found.values())

    def _label(self, raw: str) -> str | None:
        return (
            raw.strip().lower().replace(" ", "_") if self._labels is None else self._labels.get(raw.strip())
        )

    def _poses(self, name: str, alignment: Array, skips: list[Skip]) -> tuple[list[str], Array]:
        """Return the numbers of the frames, as their files spell them, and their [F, 4, 4] poses in the aligned world."""
        folder = f"scans/{name}/pose"
        spelled: dict[int, str] = {}
        for stem in sorted(path.stem for path in (self.root / folder).glob("*.txt")):
            if re.fullmatch("[0-9]{1,9}", stem) and int(stem) not in spelled:
                spelled[int(stem)] = stem
            else:
                detail = "the name must be the number of a frame, and no other file's"
                skips.append(Skip(file=f"{folder}/{stem}.txt", reason=SkipReason.BAD_LINE, detail=detail))
        if not spelled:
            raise SkipEntry(folder, SkipReason.NO_POSE, "has no N.txt; export the poses of the scan")
        numbers = np.array(sorted(spelled))
        count = round((numbers[-1] - numbers[0]) / (SPACING_S * FPS)) + 1
        targets = np.linspace(numbers[0], numbers[-1], int(np.clip(count, LEAST_FRAMES, MOST_FRAMES)))
        kept, poses = [], []
        for i in np.unique(np.abs(numbers[:, None] - targets).argmin(0)).tolist():
            file = f"{folder}/{spelled[int(numbers[i])]}.txt"
            try:
                pose = np.array(self.read_bytes(file).split(), dtype=float).reshape(4, 4)
            except (ValueError, SkipEntry):
                pose = np.full((4, 4), np.nan)
            if _is_pose(pose):
                kept.append(spelled[int(numbers[i])])
                poses.append(alignment @ pose)
            else:
                detail = "must hold 4 x 4 finite numbers, a rotation and a shift"
                skips.append(Skip(file=file, reason=SkipReason.NO_POSE, detail=detail))
        if not poses:
            raise SkipEntry(folder, SkipReason.NO_POSE, "none of the chosen frames has a pose")
        return kept, np.stack(poses)


# ------------------------------------------------------------------------------------------------------- files

_Id = Annotated[int, msgspec.Meta(ge=0, le=2**31)]


class _Segments(msgspec.Struct, rename="camel"):
    seg_indices: list[_Id]


class _Aggregation(msgspec.Struct, rename="camel"):
    seg_groups: list[msgspec.Raw]


class _Group(msgspec.Struct, rename="camel"):
    object_id: int
    segments: list[_Id]
    label: Annotated[str, msgspec.Meta(pattern=r"\S")]


@dataclass(frozen=True, slots=True)
class _Object:
    """Something annotated; `vertices` are indices."""

    id: str
    label: str
    vertices: NDArray[np.intp]


def _file(name: str, ending: str) -> str:
    return f"scans/{name}/{name}{ending}"


def _room(name: str) -> str:
    """sceneXXXX_YY is scan YY of room XXXX."""
    return name[: len("sceneXXXX")]


def _val_rooms(root: Path, split: str) -> set[str]:
    path = root / VAL_LIST
    try:
        lines = path.read_text("ascii", "replace").split()
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror})",
            remedy=f"split {split!r} needs the official list of validation scenes: put it "
            "there, from Tasks/Benchmark of https://github.com/ScanNet/ScanNet",
        ) from None
    wrong = [
        f"{line!r:.40} is not sceneXXXX_YY" for line in lines if not re.fullmatch(r"scene\d{4}_\d\d", line)
    ]
    if wrong or not lines:
        raise DataError(f"{path}: {wrong[0] if wrong else 'is empty'}", remedy="download the list again")
    return {_room(line) for line in lines}


def _read_labels(root: Path, skips: list[Skip]) -> dict[str, str] | None:
    """Return raw category -> class of NYU40; None where the table is missing."""
    path = root / LABEL_TABLE
    if not path.exists():
        detail = "is missing: the annotators' own words are the labels, and none is countable"
        skips.append(Skip(file=LABEL_TABLE, reason=SkipReason.UNKNOWN_REFERENCE, detail=detail))
        return None
    header, *lines = path.read_text("utf-8", "replace").rstrip().split("\n")
    columns = header.split("\t")
    try:
        raw, nyu = columns.index("raw_category"), columns.index("nyu40class")
    except ValueError as error:
        raise DataError(
            f"{path}: its first line lacks a column ({error})", remedy="download the table again"
        ) from None
    labels = {}
    for number, line in enumerate(lines, 2):
        fields = line.split("\t")
        if len(fields) == len(columns) and fields[raw].strip() and fields[nyu].strip():
            label = fields[nyu].strip().lower().replace(" ", "_")
            labels[fields[raw].strip()] = SPELLINGS.get(label, label)
        else:
            detail = f"must have {len(columns)} columns, raw_category and nyu40class not empty"
            skips.append(Skip(file=LABEL_TABLE, line=number, reason=SkipReason.BAD_LINE, detail=detail))
    return labels


def _is_pose(matrix: Array) -> bool:
    """Return [4, 4]; poses of the scans are rigid to a hundredth only."""
    return bool(are_usable(matrix) and are_rigid(matrix[None], 1e-2)[0])


# ---------------------------------------------------------------------------------------------------- geometry


def _hull_area(points: Array) -> float | None:
    """Return the area of the convex hull of [N, 2] points, m^2; None where they span none."""
    try:
        return float(ConvexHull(points).volume)
    except (QhullError, ValueError):  # of no points at all
        return None


def _tracks(
    objects: Sequence[_Object], points: Array, poses: Array, projection: Array, image_size: tuple[int, int]
) -> list[Track]:
    """Return a track per object, with those frames that show a vertex of it."""
    shares = np.zeros((len(objects), len(poses)))
    boxes = np.full((len(objects), len(poses), 4), np.nan)
    # Vertices object by object, then those of no object: those seen of an object lie together.
    counts = np.array([len(item.vertices) for item in objects], dtype=int)
    owned = np.concatenate([np.zeros(0, dtype=int), *(item.vertices for item in objects)])
    others = np.delete(np.arange(len(points)), owned)
    axes = np.ascontiguousarray(points[np.concatenate([owned, others])].T, dtype=np.float32)
    ends = np.cumsum(counts)
    for f, pose in enumerate(poses):
        seen, pixels = seen_vertices(axes, pose, projection, image_size)
        first, last = (np.searchsorted(seen, each) for each in (ends - counts, ends))
        shares[:, f] = (last - first) / counts
        for n in np.flatnonzero(shares[:, f]).tolist():
            shown = pixels[first[n] : last[n]]
            box = cut(np.concatenate([shown.min(0), shown.max(0)]), image_size)
            boxes[n, f] = np.nan if box is None else box
    return [
        _track(item, points[item.vertices], share, box)
        for item, share, box in zip(objects, shares, boxes, strict=True)
    ]


def _track(item: _Object, points: Array, shares: Array, boxes: Array) -> Track:
    frames = np.flatnonzero(shares)
    low, high = points.min(0), points.max(0)
    return Track(
        id=item.id,
        label=item.label,
        frames=frames,
        # A solid turns about half of its surface away wherever one stands: what its best frame shows is the whole.
        visibility=shares[frames] / max(shares.max(), LEAST_BEST),
        centers=np.tile((low + high) / 2, (len(frames), 1)),
        sizes=np.tile(high - low, (len(frames), 1)),
        yaws=np.zeros(len(frames)),
        boxes=boxes[frames],
        is_static=True,
    )
