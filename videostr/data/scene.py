"""The canonical scene: what every source of annotated video is read into, and what questions and graphs are made from.

In: files of a source, through its module in `videostr/data/sources/`. Out: a `Scene`: frames with camera poses, tracks of
objects with 3-D and 2-D boxes, all in one world frame; and a `Skip` for everything that could not be used.

Conventions, whatever the source:

    world       metres, right-handed; `Scene.up` points away from the ground
    camera      x right, y down, z forward; pixels = `Scene.projection` @ (x, y, z, 1), divided by the third row
    yaw         radians about `up`: heading = cos(yaw) e1 + sin(yaw) e2, where (e1, e2, up) is right-handed (`ground_axes`)
    size        length along the heading, width, height
    boxes       x1, y1, x2, y2 in pixels of the image, inside it

Shape letters: F frames of the scene, K frames in which a track is annotated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class SkipReason(Enum):
    """Why something of a source is not used."""

    UNREADABLE = "the file is missing, truncated or not of its format"
    BAD_LINE = "the line or entry breaks the format"
    NOT_FINITE = "a number is not finite"
    NO_CALIBRATION = "the calibration is missing"
    NO_POSE = "the camera's pose is missing or not finite: the frame is left out"
    NO_IMAGE = "the image of a frame is missing: the frame is left out"
    NO_EXTENT = "the box has no area or no volume"
    OUTSIDE = "the box lies outside the image"
    UNKNOWN_CATEGORY = "the category is not in the source's list"
    UNKNOWN_REFERENCE = "the entry refers to one that does not exist"
    EXCLUDED = "the scene belongs to a benchmark or to a test split"
    NO_OBJECT = "nothing is left of the scene"
    NO_QUESTION = "no question can be asked about the scene"
    FAULT = "a fault of this program: please report it"


@dataclass(frozen=True, slots=True, kw_only=True)
class Skip:
    """Something that is not used."""

    file: str
    """Path below the source's root."""
    line: int | None = None
    """From 1; None where the file has no lines (JSON, images)."""
    reason: SkipReason
    detail: str
    """The value and the rule."""

    @property
    def place(self) -> str:
        """File, and line where there is one."""
        return self.file if self.line is None else f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """An annotated frame of the video."""

    t: float
    """Seconds from the start of the video."""
    image: str
    """Path below the source's root."""
    camera_to_world: Array | None
    """[4, 4] rigid; None where the source has no poses."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Track:
    """An object over time."""

    id: str
    """Unique in the scene."""
    label: str
    """Category in lower case with underscores, e.g. "person_sitting"."""
    frames: NDArray[np.int64]
    """[K] ascending indices into `Scene.frames`; for a static object of a scanned room, all frames that show it."""
    visibility: Array
    """[K] share that can be seen, 0 to 1, as far as the source tells."""
    centers: Array | None = None
    """[K, 3] centres of the 3-D boxes, world; None where the source has no 3-D boxes."""
    sizes: Array | None = None
    """[K, 3] length, width, height, m."""
    yaws: Array | None = None
    """[K] heading, rad."""
    boxes: Array | None = None
    """[K, 4] 2-D boxes, px, NaN where a frame has none; None where the source has no 2-D boxes."""
    is_static: bool = False
    """It does not move by the nature of the source (a scanned room): its first box holds at all times."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One video of a source with all that is known of it."""

    source: str
    """Name of the source, e.g. "kitti"."""
    name: str
    """Unique in the source, e.g. "0001"."""
    frames: tuple[Frame, ...]
    """F annotated frames, ascending in time."""
    fps: float
    """Rate at which the source numbers its frames, frames per second."""
    tracks: tuple[Track, ...]
    image_size: tuple[int, int]
    """Width and height, px."""
    projection: Array | None
    """[3, 4] camera to pixels; None where the source has no calibration."""
    up: tuple[float, float, float] | None
    """Unit vector of the world away from the ground; None where there is no 3-D."""
    countable: frozenset[str] | None
    """Labels of which every instance is annotated; None for all."""
    room_size: float | None = None
    """Floor area, m^2, where the source states it."""
    skips: tuple[Skip, ...] = ()
    """What was left out of this scene."""

    @property
    def video_file(self) -> str | None:
        """The file that all frames are in, below the source's root; None where they are images of their own."""
        images = {frame.image for frame in self.frames}
        return images.pop() if len(images) == 1 else None


def ground_axes(up: Sequence[float]) -> tuple[Array, Array]:
    """Return (e1, e2) of the ground plane such that (e1, e2, up) is right-handed.

    e1 is the world's x axis made level (its y axis where x is vertical): for z up (x, y), for y down (x, z).
    """
    vertical = np.asarray(up, dtype=float)
    start = np.eye(3)[0] if abs(vertical[0]) < 0.9 else np.eye(3)[1]
    first = start - vertical * (vertical @ start)
    first /= np.linalg.norm(first)
    return first, np.cross(vertical, first)


def corners(center: Array, size: Array, yaw: float, up: Sequence[float]) -> Array:
    """Return [8, 3] corners of a 3-D box, world."""
    e1, e2 = ground_axes(up)
    along = np.cos(yaw) * e1 + np.sin(yaw) * e2
    across = np.cos(yaw) * e2 - np.sin(yaw) * e1
    axes = np.stack([along, across, np.asarray(up, dtype=float)])
    signs = np.array([[i, j, k] for i in (-1, 1) for j in (-1, 1) for k in (-1, 1)]) / 2
    offsets: Array = (signs * size) @ axes
    return center + offsets


def are_rigid(matrices: Array, tolerance: float = 1e-3) -> NDArray[np.bool_]:
    """Return [N] whether each of [N, 3 or 4, 3 or 4] is finite, its 3 x 3 part a rotation, a fourth row 0, 0, 0, 1."""
    finite: NDArray[np.bool_] = np.asarray(np.isfinite(matrices).all((1, 2)))
    turns = np.where(finite[:, None, None], matrices, 0.0)[:, :3, :3]
    off = np.abs(turns @ turns.transpose(0, 2, 1) - np.eye(3)).max((1, 2))
    handed = (np.cross(turns[:, 0], turns[:, 1]) * turns[:, 2]).sum(1)
    last = np.abs(matrices[:, 3:] - np.eye(4)[3:, : matrices.shape[2]]).max((1, 2), initial=0.0) < tolerance
    rigid: NDArray[np.bool_] = finite & (off < tolerance) & (handed > 0) & last
    return rigid


def to_camera(points: Array, camera_to_world: Array) -> Array:
    """Return [N, 3] world points in the camera's frame."""
    turned: Array = (points - camera_to_world[:3, 3]) @ camera_to_world[:3, :3]
    return turned


def project(points: Array, projection: Array) -> Array:
    """Return [N, 2] pixels of camera points; NaN behind the camera."""
    homogeneous = points @ projection[:, :3].T + projection[:, 3]
    depth = np.where(homogeneous[:, 2:] > 1e-6, homogeneous[:, 2:], np.nan)
    pixels: Array = homogeneous[:, :2] / depth
    return pixels


NEAR_M = 0.1
"""Points closer to the camera's plane are cut off."""


def projected_box(corners_camera: Array, projection: Array, image_size: tuple[int, int]) -> Array | None:
    """Return [4] 2-D box around a 3-D box, cut at the image; None where it is behind the camera or outside.

    Edges that cross the plane `NEAR_M` in front of the camera are cut there, so that a box next to the camera keeps its visible
    part.
    """
    points = [corners_camera[corners_camera[:, 2] >= NEAR_M]]
    for a, b in _EDGES:
        start, end = corners_camera[a], corners_camera[b]
        if (start[2] < NEAR_M) != (end[2] < NEAR_M):
            share = (NEAR_M - start[2]) / (end[2] - start[2])
            points.append((start + share * (end - start))[None])
    visible = np.concatenate(points)
    if not len(visible):
        return None
    pixels = project(visible, projection)
    return cut(np.concatenate([pixels.min(0), pixels.max(0)]), image_size)


def cut(box: Array, image_size: tuple[int, int]) -> Array | None:
    """Return [4] the part of a 2-D box inside the image; None where there is none."""
    width, height = image_size
    inside = np.clip(box, 0.0, (width, height, width, height))
    return inside if (inside[2:] > inside[:2]).all() else None


_EDGES = tuple((a, b) for a in range(8) for b in range(a + 1, 8) if (a ^ b) in (1, 2, 4))
