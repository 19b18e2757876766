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
from typing import Annotated, ClassVar, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy.spatial import ConvexHull, QhullError

from videostr.data.scene import NEAR_M, Array, Frame, Refused, Scene, Skip, SkipReason, Track, are_rigid, cut
from videostr.errors import DataError
from videostr.json_files import json_content

FPS = 30.0
UP = (0.0, 0.0, 1.0)
SPLITS = ("train", "val", "all")
VAL_LIST = "scannetv2_val.txt"
LABEL_TABLE = "scannetv2-labels.combined.tsv"
MAX_FRAMES = 32
"""Frames of a scene, nearest to equally spaced times. A scan has thousands; no clip shows more than a few dozen."""
FLOOR = "floor"
STRUCTURE = frozenset(
    (FLOOR, "wall", "ceiling", "structure", "object", "void", "unannotated", "unknown", "remove")
) | {"otherstructure", "otherfurniture", "otherprop"}
"""Labels of the building itself, and those that do not say what the object is."""
HEAPS = frozenset({"books", "clothes", "paper"})
"""Labels one instance of which may be several things."""
SPELLINGS = {"refridgerator": "refrigerator"}
"""NYU40's own spelling."""
LIMIT = 1e6
"""Larger numbers are as useless as infinite ones."""
GRID = (80, 60)
"""Columns and rows of the finest depth grid."""
LEVELS = 3
"""Depth grids, each half as fine as the one before."""
SPACING_M = 0.03
"""Vertices of a scan are no farther apart than this: each is drawn in the finest grid whose cells are as large there, since in
finer ones a near surface would have holes."""
TOLERANCE_M, TOLERANCE = 0.1, 0.02
"""A vertex is hidden when it is farther than the nearest one of its cell by more than this, and this share."""

LEAST_BEST = 0.25
"""An object of which no frame shows this share of its vertices is hidden in part in all of them."""


class ScanNet:
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
        if split not in SPLITS:
            raise DataError(f"scannet: split {split!r} is none of {', '.join(SPLITS)}")
        self.root = root
        names = sorted(path.name for path in (root / "scans").glob("scene????_??") if path.is_dir())
        if not names:
            raise DataError(
                f"{root / 'scans'}: has no sceneXXXX_YY/", remedy="name the folder that scans/ lies in"
            )
        skips: list[Skip] = []
        self._labels = _read_labels(root, skips)
        if split != "all":
            rooms = _val_rooms(root, split)
            kept = [name for name in names if (_room(name) in rooms) == (split == "val")]
            detail = f"split {split!r}: {VAL_LIST} {'has' if split == 'train' else 'does not have'} its room"
            skips += [
                _skip(f"scans/{name}", None, SkipReason.EXCLUDED, detail)
                for name in sorted(set(names) - set(kept))
            ]
            names = kept
        self.names: Sequence[str] = names
        self.skips: Sequence[Skip] = skips

    def read(self, name: str) -> Scene | Skip:
        """A scan; a `Skip` where a file of it is broken or no object is left."""
        try:
            return self._scene(name)
        except Refused as refused:
            return refused.skip

    def _scene(self, name: str) -> Scene:
        skips: list[Skip] = []
        projection, image_size, alignment = self._cameras(name, skips)
        points, segments = self._mesh(name, alignment, skips)
        found = self._objects(name, points, segments, skips)
        numbers, poses = self._poses(name, alignment, skips)
        objects = [item for item in found if item.label not in STRUCTURE]
        floor = [item.vertices for item in found if item.label == FLOOR]
        tracks = []
        for item, track in zip(objects, _tracks(objects, points, poses, projection, image_size), strict=True):
            if len(track.frames):
                tracks.append(track)
            else:
                detail = (
                    f"object {item.id}, {item.label}: no vertex of it is seen in any of {len(poses)} frames"
                )
                skips.append(_skip(_file(name, ".aggregation.json"), None, SkipReason.OUTSIDE, detail))
        if not tracks:
            detail = f"no object is seen in any frame; {len(skips)} other findings"
            raise Refused(_file(name, ".aggregation.json"), None, SkipReason.NO_OBJECT, detail)
        return Scene(
            source=self.name,
            name=name,
            frames=tuple(
                Frame(t=int(number) / FPS, image=f"scans/{name}/color/{number}.jpg", camera_to_world=pose)
                for number, pose in zip(numbers, poses, strict=True)
            ),
            fps=FPS,
            tracks=tuple(tracks),
            image_size=image_size,
            projection=projection,
            up=UP,
            countable=frozenset()
            if self._labels is None
            else frozenset(track.label for track in tracks) - HEAPS,
            room_size=_hull_area(points[np.concatenate(floor)][:, :2]) if floor else None,
            skips=tuple(skips),
        )

    def _cameras(self, name: str, skips: list[Skip]) -> tuple[Array, tuple[int, int], Array]:
        """Projection, image size and [4, 4] axis alignment."""
        file = _file(name, ".txt")
        entries: dict[str, tuple[int, list[str]]] = {}
        for number, line in enumerate(self._read(file).decode("ascii", "replace").splitlines(), 1):
            key, equals, value = line.partition("=")
            if equals:
                entries[key.strip()] = (number, value.split())
            elif line.strip():
                skips.append(_skip(file, number, SkipReason.BAD_LINE, f"{line:.40}: must be key = value"))
        width, height, fx, fy, mx, my = (
            _numbers(file, entries, key, 1)[0]
            for key in ("colorWidth", "colorHeight", "fx_color", "fy_color", "mx_color", "my_color")
        )
        if min(width, height, fx, fy) <= 0:
            detail = f"size {width:g} x {height:g}, focal lengths {fx}, {fy}: must be positive"
            raise Refused(file, None, SkipReason.NO_CALIBRATION, detail)
        alignment = np.eye(4)
        if "axisAlignment" in entries:
            alignment = np.reshape(_numbers(file, entries, "axisAlignment", 16), (4, 4))
            if not _is_pose(alignment):
                line_number = entries["axisAlignment"][0]
                detail = "axisAlignment must be a rotation and a shift"
                raise Refused(file, line_number, SkipReason.BAD_LINE, detail)
        else:
            detail = "has no axisAlignment: the scan's own axes are used"
            skips.append(_skip(file, None, SkipReason.NO_CALIBRATION, detail))
        projection = np.array([[fx, 0.0, mx, 0.0], [0.0, fy, my, 0.0], [0.0, 0.0, 1.0, 0.0]])
        return projection, (int(width), int(height)), alignment

    def _mesh(self, name: str, alignment: Array, skips: list[Skip]) -> tuple[Array, NDArray[np.int64]]:
        """[N, 3] aligned vertices and [N] the segment of each."""
        file = _file(name, "_vh_clean_2.ply")
        try:
            points = ply_vertices(self._read(file))
        except ValueError as error:
            raise Refused(file, None, SkipReason.UNREADABLE, f"{error!s:.80}") from None
        segments_file = _file(name, "_vh_clean_2.0.010000.segs.json")
        segments = np.array(self._decode(segments_file, _Segments).seg_indices, dtype=np.int64)
        if len(segments) != len(points):
            detail = f"has segments of {len(segments)} vertices, {file} has {len(points)} vertices"
            raise Refused(segments_file, None, SkipReason.UNREADABLE, detail)
        usable = (np.abs(points) < LIMIT).all(1)
        if not usable.all():
            detail = f"{(~usable).sum()} vertices are left out: must be finite and below {LIMIT:.0e}"
            skips.append(_skip(file, None, SkipReason.NOT_FINITE, detail))
        return points[usable] @ alignment[:3, :3].T + alignment[:3, 3], segments[usable]

    def _objects(
        self, name: str, points: Array, segments: NDArray[np.int64], skips: list[Skip]
    ) -> list[_Object]:
        """All that is annotated, structure included, in the file's order."""
        file = _file(name, ".aggregation.json")
        known, place = np.unique(segments, return_inverse=True)
        found: dict[int, _Object] = {}
        for number, raw in enumerate(self._decode(file, _Aggregation).seg_groups):
            try:
                group = msgspec.json.decode(raw, type=_Group)
                label = self._label(group.label)
                if group.object_id in found:
                    raise _Unusable(SkipReason.BAD_LINE, f"objectId {group.object_id} stands there already")
                missing = np.setdiff1d(group.segments, known)
                if len(missing):
                    detail = f"segment {missing[0]:.0f} has no vertex"
                    raise _Unusable(SkipReason.UNKNOWN_REFERENCE, detail)
                # Each group has its own vertices: those of all groups of a label would make one box of all chairs.
                vertices = np.flatnonzero(np.isin(known, group.segments)[place])
                is_flat = not len(vertices) or (np.ptp(points[vertices], axis=0) <= 0).any()
                if is_flat and label not in STRUCTURE:
                    raise _Unusable(SkipReason.NO_EXTENT, f"{len(vertices)} vertices have no volume")
            except _Unusable as unusable:
                detail = f"segGroups[{number}]: {unusable}"
                skips.append(_skip(file, None, unusable.reason, detail))
            except ValueError as error:
                skips.append(_skip(file, None, SkipReason.BAD_LINE, f"segGroups[{number}]: {error!s:.80}"))
            else:
                found[group.object_id] = _Object(str(group.object_id), label, vertices)
        return list(found.values())

    def _label(self, raw: str) -> str:
        if self._labels is None:
            return _words(raw)
        if raw.strip() not in self._labels:
            raise _Unusable(
                SkipReason.UNKNOWN_CATEGORY, f"label {raw!r:.40} is no raw_category of {LABEL_TABLE}"
            )
        return self._labels[raw.strip()]

    def _poses(self, name: str, alignment: Array, skips: list[Skip]) -> tuple[list[str], Array]:
        """Numbers of the frames, as their files spell them, and their [F, 4, 4] poses in the aligned world."""
        folder = f"scans/{name}/pose"
        spelled: dict[int, str] = {}
        for stem in sorted(path.stem for path in (self.root / folder).glob("*.txt")):
            if re.fullmatch("[0-9]{1,9}", stem) and int(stem) not in spelled:
                spelled[int(stem)] = stem
            else:
                detail = "the name must be the number of a frame, and no other file's"
                skips.append(_skip(f"{folder}/{stem}.txt", None, SkipReason.BAD_LINE, detail))
        if not spelled:
            raise Refused(folder, None, SkipReason.NO_POSE, "has no N.txt; export the poses of the scan")
        numbers = np.array(sorted(spelled))
        targets = np.linspace(numbers[0], numbers[-1], MAX_FRAMES)
        kept, poses = [], []
        for i in np.unique(np.abs(numbers[:, None] - targets).argmin(0)).tolist():
            file = f"{folder}/{spelled[int(numbers[i])]}.txt"
            try:
                pose = np.array(self._read(file).split(), dtype=float).reshape(4, 4)
            except (ValueError, Refused):
                pose = np.full((4, 4), np.nan)
            if _is_pose(pose):
                kept.append(spelled[int(numbers[i])])
                poses.append(alignment @ pose)
            else:
                detail = "must hold 4 x 4 finite numbers, a rotation and a shift"
                skips.append(_skip(file, None, SkipReason.NO_POSE, detail))
        if not poses:
            raise Refused(folder, None, SkipReason.NO_POSE, "none of the chosen frames has a pose")
        return kept, np.stack(poses)

    def _read(self, file: str) -> bytes:
        try:
            return (self.root / file).read_bytes()
        except OSError as error:
            detail = f"cannot be read ({error.strerror})"
            raise Refused(file, None, SkipReason.UNREADABLE, detail) from None

    def _decode(self, file: str, kind: type[_Json]) -> _Json:
        try:
            return msgspec.json.decode(json_content(self._read(file)), type=kind)
        except (ValueError, RecursionError) as error:
            raise Refused(file, None, SkipReason.UNREADABLE, f"{error!s:.80}") from None


# ------------------------------------------------------------------------------------------------------- files

_Json = TypeVar("_Json")
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


class _Unusable(Exception):
    """An object cannot be used."""

    def __init__(self, reason: SkipReason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def _skip(file: str, line: int | None, reason: SkipReason, detail: str) -> Skip:
    return Skip(file=file, line=line, reason=reason, detail=detail)


def _file(name: str, ending: str) -> str:
    return f"scans/{name}/{name}{ending}"


def _room(name: str) -> str:
    """sceneXXXX_YY is scan YY of room XXXX."""
    return name[: len("sceneXXXX")]


def _words(label: str) -> str:
    return label.strip().lower().replace(" ", "_")


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
    wrong = [line for line in lines if not re.fullmatch(r"scene\d{4}_\d\d", line)]
    if wrong or not lines:
        raise DataError(
            f"{path}: {wrong[0]!r:.40} is no sceneXXXX_YY; download the list again"
            if wrong
            else f"{path}: is empty; download the list again"
        )
    return {_room(line) for line in lines}


def _read_labels(root: Path, skips: list[Skip]) -> dict[str, str] | None:
    """Raw category -> class of NYU40; None where the table is missing."""
    path = root / LABEL_TABLE
    if not path.exists():
        detail = "is missing: the annotators' own words are the labels, and none is countable"
        skips.append(_skip(LABEL_TABLE, None, SkipReason.UNKNOWN_REFERENCE, detail))
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
            label = _words(fields[nyu])
            labels[fields[raw].strip()] = SPELLINGS.get(label, label)
        else:
            detail = f"must have {len(columns)} columns, raw_category and nyu40class not empty"
            skips.append(_skip(LABEL_TABLE, number, SkipReason.BAD_LINE, detail))
    return labels


def _numbers(file: str, entries: dict[str, tuple[int, list[str]]], key: str, count: int) -> list[float]:
    """That many usable numbers of a line "key = value"."""
    if key not in entries:
        raise Refused(file, None, SkipReason.NO_CALIBRATION, f"has no {key}")
    line, fields = entries[key]
    try:
        values = [float(field) for field in fields]
    except ValueError as error:
        raise Refused(file, line, SkipReason.BAD_LINE, f"{key}: {error!s:.80}") from None
    if len(values) != count:
        detail = f"{key} has {len(values)} numbers, must have {count}"
        raise Refused(file, line, SkipReason.BAD_LINE, detail)
    if not all(abs(value) < LIMIT for value in values):
        detail = f"{key}: must be finite and below {LIMIT:.0e}"
        raise Refused(file, line, SkipReason.NOT_FINITE, detail)
    return values


def _is_pose(matrix: Array) -> bool:
    """[4, 4]; poses of the scans are rigid to a hundredth only."""
    return bool((np.abs(matrix) < LIMIT).all() and are_rigid(matrix[None], 1e-2)[0])


_KINDS = {
    "char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4",
    "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4",
    "float": "f4", "double": "f8", "float32": "f4", "float64": "f8",
}  # fmt: skip
_ORDERS = {"ascii": "<", "binary_little_endian": "<", "binary_big_endian": ">"}


def ply_vertices(data: bytes) -> Array:
    """[N, 3] vertices of a PLY file whose first element they are; whatever else it holds is passed over.

    Raises:
        ValueError: the file is truncated or not of that format.
    """
    end = re.search(rb"^end_header[ \t]*\r?\n", data, re.MULTILINE)
    if end is None or not data.startswith(b"ply"):
        raise ValueError("has no PLY header")
    encoding, count, fields = _ply_header(data[: end.start()].decode("ascii", "replace").splitlines())
    if count > len(data):
        raise ValueError(f"{len(data)} bytes are too few for {count} vertices")
    if encoding == "ascii":
        rows = [line.split() for line in data[end.end() :].split(b"\n", count)[:count]]
        table = np.array(rows, dtype=float)  # a ValueError where rows differ in length
        if table.shape != (count, len(fields)):
            raise ValueError(f"must have {count} lines of {len(fields)} numbers, has {table.shape}")
        columns = [name for name, _ in fields]
        return table[:, [columns.index(axis) for axis in "xyz"]]
    layout = np.dtype([(name, _ORDERS[encoding] + kind) for name, kind in fields])
    vertices = np.frombuffer(data, layout, count, end.end())  # a ValueError where bytes are missing
    return np.stack([vertices[axis].astype(float) for axis in "xyz"], axis=1)


def _ply_header(lines: Sequence[str]) -> tuple[str, int, list[tuple[str, str]]]:
    """Encoding, number of vertices, and their fields as (name, NumPy kind)."""
    encoding, elements, count = "", 0, 0
    fields: list[tuple[str, str]] = []
    for line in lines:
        match line.split():
            case ["format", str(encoding), _]:
                pass
            case ["element", kind, number]:
                if elements == 0 and kind == "vertex":
                    count = int(number)
                elements += 1
            case ["property", kind, field] if elements == 1:
                fields.append((field, _KINDS.get(kind, "")))
            case ["property", *_] if elements == 1:
                raise ValueError(f"{line:.40}: a vertex has numbers only")
    names = [name for name, _ in fields]
    is_sound = (
        all(kind for _, kind in fields) and {"x", "y", "z"} <= set(names) and len(set(names)) == len(names)
    )
    if encoding not in _ORDERS or count <= 0 or not is_sound:
        detail = f"format {encoding!r}, {count} vertices of {', '.join(names)}"
        raise ValueError(f"{detail}: the first element must be vertices with x, y, z")
    return encoding, count, fields


# ---------------------------------------------------------------------------------------------------- geometry


def _hull_area(points: Array) -> float | None:
    """Area of the convex hull of [N, 2] points, m^2; None where they span none."""
    if not len(points):
        return None
    try:
        return float(ConvexHull(points).volume)
    except QhullError:
        return None


def _tracks(
    objects: Sequence[_Object], points: Array, poses: Array, projection: Array, image_size: tuple[int, int]
) -> list[Track]:
    """A track per object, with those frames that show a vertex of it."""
    shares = np.zeros((len(objects), len(poses)))
    boxes = np.full((len(objects), len(poses), 4), np.nan)
    axes = np.ascontiguousarray(points.T, dtype=np.float32)
    for f, pose in enumerate(poses):
        seen, pixels = _seen(axes, pose, projection, image_size)
        place = np.full(len(points), -1)
        place[seen] = np.arange(len(seen))
        for n, item in enumerate(objects):
            hits = place[item.vertices]
            shown = pixels[hits[hits >= 0]]
            if len(shown):
                shares[n, f] = len(shown) / len(hits)
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


def _seen(
    axes: NDArray[np.float32], pose: Array, projection: Array, image_size: tuple[int, int]
) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Indices of those vertices, [3, N], that a camera sees, and their [n, 2] pixels."""
    width, height = image_size
    # Sums over whole axes: a product of matrices is several times slower where processes share the cores.
    u, v, depth = (
        a * axes[0] + b * axes[1] + c * axes[2] + d
        for a, b, c, d in (projection @ np.linalg.inv(pose)).tolist()
    )
    inside = (depth >= NEAR_M) & (u >= 0) & (u < width * depth) & (v >= 0) & (v < height * depth)
    index = np.flatnonzero(inside)
    depth = depth[index]
    pixels = np.stack([u[index], v[index]], axis=1) / depth[:, None]
    cells_per_spacing = SPACING_M * projection[0, 0] / depth * GRID[0] / width
    levels = np.clip(np.ceil(np.log2(cells_per_spacing)), 0, LEVELS - 1)
    hidden = np.zeros(len(depth), dtype=bool)
    for level in range(LEVELS):
        columns, rows = GRID[0] >> level, GRID[1] >> level
        column, row = (pixels * (columns / width, rows / height)).astype(int).T
        cells = np.minimum(row, rows - 1) * columns + np.minimum(column, columns - 1)
        drawn = levels == level
        nearest = np.full(columns * rows, np.inf, dtype=np.float32)  # of the type of depth, or `at` is slow
        np.minimum.at(nearest, cells[drawn], depth[drawn])
        hidden |= depth > nearest[cells] * (1 + TOLERANCE) + TOLERANCE_M
    return index[~hidden], pixels[~hidden]
