"""A scene during a clip: what is seen in its frames, and the true graph at their times.

In: a `Scene` and F of its annotated frames. Out: the tracks seen in them, positions in the frame of reference of the
graph. Where a source has poses and 3-D boxes that is `camera0`, metres: the ego motion is compensated by moving every
box through the world into the camera of the first selected frame. Elsewhere it is `image`, px of 0..1000.

Rules for what is in view: an object counts as seen in a frame when at least `SEEN` of it is visible, in 3-D also within `RANGE_M`
of that frame's camera. The graph holds the objects seen at its time; of an object that is hidden for a while, the
nodes of that while are left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from videostr.data.scene import Array, Scene, Track, ground_axes, to_camera
from videostr.graph import view_of
from videostr.query import path
from videostr.types import GraphFrame, Node, SceneGraph

DECIMALS = 2
"""Of positions and extents, m and px."""
SEEN = 0.3
CLEAR = 0.6
"""What a question asks about is seen to at least this share."""
LEAST_SIDE_PX = 12.0
"""2-D boxes with a shorter side, px of 0..1000, are too small to be asked for."""
RANGE_M = 60.0
MAX_NODES = 16
"""Of a frame of the true graph; labels are left out of the record, with all their objects, to keep it."""


@dataclass(frozen=True)
class ClipView:
    """A scene during one clip; F selected frames, N tracks seen in them, M tracks of the scene."""

    scene: Scene
    number: int
    """Of the clip in its scene."""
    frames: tuple[int, ...]
    """[F] indices of the selected frames, ascending."""

    @cached_property
    def times(self) -> tuple[float, ...]:
        """[F] seconds from the start of the video."""
        return tuple(self.scene.frames[i].t for i in self.frames)

    @cached_property
    def is_3d(self) -> bool:
        """Whether positions are in metres."""
        return self.scene.up is not None

    @property
    def is_whole(self) -> bool:
        """Whether it goes from the first to the last annotated frame of the scene."""
        return self.frames[0] == 0 and self.frames[-1] == len(self.scene.frames) - 1

    @cached_property
    def tracks(self) -> tuple[Track, ...]:
        """[N] those seen in at least one selected frame, in the scene's order."""
        return tuple(self.scene.tracks[m] for m in self._chosen)

    @cached_property
    def _chosen(self) -> np.ndarray:
        """[N] which of the scene's tracks are seen in at least one selected frame."""
        return np.flatnonzero(self._seen(SEEN).any(1))

    @cached_property
    def seen(self) -> np.ndarray:
        """[N, F] whether a track is seen at a selected frame."""
        seen: np.ndarray = self._seen(SEEN)[self._chosen]
        return seen

    @cached_property
    def clear(self) -> np.ndarray:
        """[N, F] whether it is seen well enough to be asked about."""
        clear: np.ndarray = self.all_clear[self._chosen]
        return clear

    @cached_property
    def all_clear(self) -> np.ndarray:
        """[M, F] `clear` of all tracks of the scene, those that are seen in no selected frame included."""
        return self._seen(CLEAR)

    @cached_property
    def large(self) -> np.ndarray:
        """[N, F] whether there is a 2-D box with sides of at least `LEAST_SIDE_PX`."""
        sides: np.ndarray = (self.boxes[..., 2:] - self.boxes[..., :2]).min(-1) >= LEAST_SIDE_PX
        return sides

    @cached_property
    def centred(self) -> np.ndarray:
        """[N, F] whether the centre lies inside the image, as far as that is known: the border may cut off most of a box."""
        inside = np.ones(self.clear.shape, dtype=bool)
        for f, view in enumerate(self._views):
            if view is not None:
                seen = np.reshape(view, (3, 4))
                x, y, depth = seen[:, :3] @ self.positions[:, f].T + seen[:, 3:]
                inside[:, f] = (depth > 0) & (np.minimum(x, y) >= 0) & (np.maximum(x, y) <= 1000 * depth)
        return inside

    @cached_property
    def visibility(self) -> Array:
        """[N, F] share that can be seen; 0 where it is not annotated."""
        visibility: Array = self.all_visibility[self._chosen]
        return visibility

    @cached_property
    def all_visibility(self) -> Array:
        """[M, F] `visibility` of all tracks of the scene."""
        return self._at_frames(self.scene.tracks, "visibility", 0.0)[..., 0]

    @cached_property
    def positions(self) -> Array:
        """[N, F, 3] centres in `camera0`, m, or [N, F, 2] centres of the boxes, px of 0..1000; NaN where not annotated.

        Rounded as the graph states them, so that answers follow from it to the last digit.
        """
        if not self.is_3d:
            boxes = self.boxes
            return (boxes[..., :2] + boxes[..., 2:]) / 2
        found = to_camera(self._centers.reshape(-1, 3), self.camera0).reshape(self._centers.shape)
        return found.round(DECIMALS)

    def places(self, n: int, frames: Iterable[int]) -> list[tuple[float, ...]]:
        """Return the positions of a track at selected frames."""
        return [tuple(self.positions[n, f].tolist()) for f in frames]

    def distance_between(self, a: int, b: int, f: int) -> float:
        """Return metres between the positions of two tracks at a selected frame."""
        return path([*self.places(a, (f,)), *self.places(b, (f,))])

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """[N] ids of the tracks' nodes in the graph: numbered within their labels."""
        numbers: Counter[str] = Counter()
        found = []
        for label in self.labels:
            numbers[label] += 1
            found.append(f"{label}.{numbers[label]}")
        return tuple(found)

    @cached_property
    def _centers(self) -> Array:
        """[N, F, 3] world; NaN where not annotated."""
        return self._at_frames(self.tracks, "centers", np.nan)

    @cached_property
    def boxes(self) -> Array:
        """[N, F, 4] 2-D boxes, whole px of 0..1000 of the image; NaN where there is none."""
        if all(track.boxes is None for track in self.tracks):
            return np.full((len(self.tracks), len(self.frames), 4), np.nan)
        width, height = self.scene.image_size
        scaled: Array = self._at_frames(self.tracks, "boxes", np.nan) * 1000 / (width, height, width, height)
        return scaled.round()

    @cached_property
    def sizes(self) -> Array:
        """[N, 3] length, width, height, m, of the track's last box."""
        return np.array([track.sizes[-1] for track in self.tracks if track.sizes is not None]).reshape(-1, 3)

    @cached_property
    def headings(self) -> Array:
        """[N, F, 3] unit vectors of the boxes' lengths in `camera0`; NaN where not annotated."""
        assert self.scene.up is not None
        yaws = self._at_frames(self.tracks, "yaws", np.nan)
        e1, e2 = ground_axes(self.scene.up)
        turned: Array = (np.cos(yaws) * e1 + np.sin(yaws) * e2) @ self.camera0[:3, :3]
        return turned

    @cached_property
    def camera0(self) -> Array:
        """[4, 4] pose of the first selected frame's camera."""
        first: Array = self._poses[0]
        return first

    @cached_property
    def up0(self) -> Array:
        """[3] the world's up in `camera0`."""
        assert self.scene.up is not None
        turned: Array = np.asarray(self.scene.up) @ self.camera0[:3, :3]
        return turned

    @cached_property
    def up(self) -> tuple[float, float, float]:
        """`Query.up`."""
        x, y, z = (float(f"{v:.7g}") for v in self.up0)
        return x, y, z

    @cached_property
    def level(self) -> Array:
        """[N, F, 2] positions over the ground, along axes of which the first lies to the right of the second, seen from above."""
        level: Array = self.positions @ np.array(ground_axes(tuple(self.up0))).T
        return level

    @cached_property
    def cameras(self) -> list[tuple[float, ...] | None]:
        """[F] `Query.camera` at each selected frame; None in 2-D."""
        if not self.is_3d:
            return [None] * len(self.frames)
        return [view_of(each[:3]) for each in np.linalg.inv(self._poses) @ self.camera0]

    @cached_property
    def in_camera(self) -> Array:
        """[F, N, 3] centres as the camera of each selected frame sees them."""
        return np.stack([to_camera(self._centers[:, f], pose) for f, pose in enumerate(self._poses)])

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """[N] labels of the tracks."""
        return tuple(track.label for track in self.tracks)

    @cached_property
    def all_labels(self) -> tuple[str, ...]:
        """[M] labels of all tracks of the scene."""
        return tuple(track.label for track in self.scene.tracks)

    def camera_path(self, first: int, last: int) -> float:
        """Return metres that the camera goes from one selected frame to another, through all annotated frames between."""
        return float(
            self._steps[self.frames[first] - self.frames[0] : self.frames[last] - self.frames[0]].sum()
        )

    @cached_property
    def _steps(self) -> Array:
        """Metres that the camera goes from each annotated frame to the next, from the first to the last selected one."""
        frames = self.scene.frames[self.frames[0] : self.frames[-1] + 1]
        places = np.array(
            [frame.camera_to_world[:3, 3] for frame in frames if frame.camera_to_world is not None]
        )
        steps: Array = np.linalg.norm(np.diff(places, axis=0), axis=1)
        return steps

    @cached_property
    def in_clip(self) -> Counter[str]:
        """How many tracks bear a label and have a box at any annotated frame from the first to the last selected one."""
        first, last = self.frames[0], self.frames[-1]
        return Counter(
            track.label
            for track in self.scene.tracks
            if np.searchsorted(track.frames, first) < np.searchsorted(track.frames, last, side="right")
        )

    @cached_property
    def distances(self) -> Array:
        """[N, F] metres from the camera; NaN where not annotated. 3-D only."""
        distances: Array = self.all_distances[self._chosen]
        return distances

    @cached_property
    def all_distances(self) -> Array:
        """[M, F] `distances` of all tracks of the scene. 3-D only."""
        world = self._at_frames(self.scene.tracks, "centers", np.nan)
        distances: Array = np.linalg.norm(world - self._poses[None, :, :3, 3], axis=-1)
        return distances

    @cached_property
    def depth_margin(self) -> Array:
        """[N, F] by how many metres a track is nearer to the camera than all others of its label that are annotated then.

        Infinite where there is no other; -inf in 2-D where there are some; NaN where it is not annotated itself.
        """
        of_all = self.all_distances if self.is_3d else self._there
        of_own = of_all[self._chosen]
        depth_margin = np.full(of_own.shape, np.nan)
        for n, track in enumerate(self.tracks):
            others = [
                m
                for m, other in enumerate(self.scene.tracks)
                if other.label == track.label and other is not track
            ]
            nearest = np.nan_to_num(of_all[others], nan=np.inf).min(0, initial=np.inf)
            depth_margin[n] = (
                nearest - of_own[n] if self.is_3d else np.where(np.isinf(nearest), np.inf, -np.inf)
            )
        depth_margin[np.isnan(of_own)] = np.nan
        return depth_margin

    @property
    def _there(self) -> Array:
        """[M, F] 0 where a track of the scene is annotated, else NaN."""
        return self._at_frames(self.scene.tracks, "visibility", np.nan)[..., 0] * 0

    @cached_property
    def _poses(self) -> Array:
        """[F, 4, 4] camera to world; 3-D only."""
        return np.stack([self.scene.frames[i].camera_to_world for i in self.frames])  # type: ignore[misc]

    def graph(self, labels: frozenset[str]) -> SceneGraph:
        """Return the true graph of the objects that bear one of these labels."""
        if labels not in self._graphs:
            self._graphs[labels] = self._graph(labels)
        return self._graphs[labels]

    @cached_property
    def _graphs(self) -> dict[frozenset[str], SceneGraph]:
        return {}

    def _graph(self, labels: frozenset[str]) -> SceneGraph:
        chosen = [n for n, label in enumerate(self.labels) if label in labels]
        frames = tuple(
            GraphFrame(
                t=t, nodes=tuple(self._nodes[n][f] for n in chosen if self.seen[n, f]), view=self._views[f]
            )
            for f, t in enumerate(self.times)
        )
        if self.is_3d:
            return SceneGraph(unit="m", frame="camera0", frames=frames)
        return SceneGraph(unit="px", frame="image", frames=frames)

    @cached_property
    def _views(self) -> list[tuple[float, ...] | None]:
        """[F] `GraphFrame.view`; None where the source has no calibration, or a number that no graph may have."""
        if not self.is_3d or self.scene.projection is None:
            return [None] * len(self.frames)
        width, height = self.scene.image_size
        projection = np.diag([1000 / width, 1000 / height, 1]) @ self.scene.projection
        return [view_of(projection @ np.linalg.inv(pose) @ self.camera0) for pose in self._poses]

    @cached_property
    def _nodes(self) -> list[list[Node]]:
        """[N][F] nodes; those of frames in which a track is not seen are not used."""
        positions = np.nan_to_num(self.positions).tolist()
        extents = np.nan_to_num(self._extents()).round(DECIMALS).tolist()
        return [
            [
                Node(id=self.ids[n], label=label, pos=tuple(pos), size=tuple(size))
                for pos, size in zip(positions[n], extents[n], strict=True)
            ]
            for n, label in enumerate(self.labels)
        ]

    def _extents(self) -> Array:
        """Return [N, F, 3] or [N, F, 2] extents along the graph's axes."""
        if not self.is_3d:
            return self.boxes[..., 2:] - self.boxes[..., :2]
        along = self.headings
        across = np.cross(self.up0, along)
        length, width, height = (side[:, None, None] for side in self.sizes.T)
        extents: Array = np.abs(along) * length + np.abs(across) * width + np.abs(self.up0) * height
        return extents

    def graph_labels(self, needed: frozenset[str], rng: np.random.Generator) -> frozenset[str] | None:
        """Return the needed labels and as many others as `MAX_NODES` allows; None when the needed ones alone are too many."""
        counts = self._counts
        total = sum((counts[label] for label in needed if label in counts), np.zeros(len(self.frames), int))
        if total.max() > MAX_NODES:
            return None
        chosen = set(needed)
        for label in rng.permutation(sorted(set(counts) - needed)):
            if (total + counts[str(label)]).max() <= MAX_NODES:
                total = total + counts[str(label)]
                chosen.add(str(label))
        return frozenset(chosen)

    @cached_property
    def _counts(self) -> dict[str, np.ndarray]:
        """[F] tracks of each label that are seen at the selected frames."""
        labels = np.array(self.labels)
        return {label: self.seen[labels == label].sum(0) for label in set(self.labels)}

    def _seen(self, share: float) -> np.ndarray:
        """Return [M, F]"""
        seen: np.ndarray = self.all_visibility >= share
        if self.is_3d:
            seen &= self.all_distances <= RANGE_M
        return seen

    def _at_frames(self, tracks: Sequence[Track], name: str, missing: float) -> Array:
        """Return [N, F, ...] values of the tracks at the selected frames; a scalar becomes [N, F, 1]."""
        rows = []
        wanted = np.asarray(self.frames)
        for track in tracks:
            values = getattr(track, name)
            if values is None:  # a track without 2-D boxes among others that have some
                values = np.full((len(track.frames), 4), np.nan)
            values = np.asarray(values, dtype=float).reshape(len(track.frames), -1)
            at = np.searchsorted(track.frames, wanted).clip(max=len(track.frames) - 1)
            there = track.frames[at] == wanted
            rows.append(np.where(there[:, None], values[at], missing))
        return np.array(rows) if rows else np.zeros((0, len(wanted), 1))
