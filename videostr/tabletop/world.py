"""A seeded synthetic world: coloured solids that move on a floor, seen by a camera that may pan.

`make_scene(seed, difficulty)` gives a `Scene`, whose state at any time is exact: positions, image boxes, camera.
World axes: x right, y forward, z up, the floor is z = 0. Two difficulties:

- `easy`, for the tabletop policy: a floor of 10 x 10 cells seen from straight above, 2 or 3 balls of different colours,
  whole-cell positions at the selected times, 64 x 64 pixels. The floor's colour varies with x and y, because without
  such a visible coordinate a small model does not learn to read positions.
- `full`, for real models: metres, 3 to 5 solids of four shapes, several instances of a label, an oblique camera that pans.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

import numpy as np

from videostr.graph import view_of

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (230, 30, 30),
    "green": (20, 190, 40),
    "blue": (40, 60, 240),
    "yellow": (245, 225, 30),
    "white": (250, 250, 250),
    "black": (15, 15, 15),
}
SHAPES = ("ball", "cube", "cone", "cylinder")


class Difficulty(StrEnum):
    EASY = "easy"
    FULL = "full"


@dataclass(frozen=True, slots=True, kw_only=True)
class Solid:
    """One object and its straight, uniform path."""

    color: str
    shape: str
    radius: float
    """Half extent along every axis, cells or metres."""
    start: tuple[float, float]
    """Floor position at time 0."""
    velocity: tuple[float, float]
    """Floor units per second."""
    appears_s: float
    """It is put on the floor at this time, seconds."""

    @property
    def label(self) -> str:
        return f"{self.color}_{self.shape}"

    def position(self, t: float) -> np.ndarray:
        """Return the centre [3] at time `t` seconds, in world axes."""
        x, y = (s + v * t for s, v in zip(self.start, self.velocity, strict=True))
        return np.array([x, y, self.radius])

    def visible(self, t: float) -> bool:
        """Return whether it is on the floor at time `t`; exact at the selected times."""
        return t >= self.appears_s - 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Camera:
    """A pinhole camera that turns about the vertical at a constant rate."""

    position: tuple[float, float, float]
    pitch_deg: float
    """Angle below the horizon, 90 looks straight down."""
    yaw_deg: float
    """Heading at time 0, to the left of the y axis."""
    pan_deg_s: float
    """Turning rate, degrees per second."""
    focal: float
    """Focal length in units of the image's height."""

    def rotation(self, t: float) -> np.ndarray:
        """Return [3, 3] world to camera axes (x right, y down, z forward) at time `t`."""
        yaw, pitch = np.radians(self.yaw_deg + self.pan_deg_s * t), np.radians(self.pitch_deg)
        right = np.array([np.cos(yaw), np.sin(yaw), 0.0])
        level = np.array([-np.sin(yaw), np.cos(yaw), 0.0])
        forward = np.cos(pitch) * level - np.sin(pitch) * np.array([0.0, 0.0, 1.0])
        return np.stack([right, np.cross(forward, right), forward])

    def view(self, t: float) -> tuple[float, ...] | None:
        """Return `GraphFrame.view` at time `t`: the camera turns about itself, so there is no shift."""
        scale = np.array([[self.focal * 1000, 0, 500], [0, self.focal * 1000, 500], [0, 0, 1]])
        turned = scale @ self.rotation(t) @ self.rotation(0.0).T
        return view_of(np.column_stack([turned, np.zeros(3)]))

    def to_camera(self, points: np.ndarray, t: float) -> np.ndarray:
        """Return [..., 3] world points in camera axes at time `t`."""
        result: np.ndarray = (points - np.array(self.position)) @ self.rotation(t).T
        return result


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """Everything there is to know about one video."""

    seed: int
    difficulty: Difficulty
    unit: Literal["grid", "m"]
    solids: tuple[Solid, ...]
    camera: Camera
    floor: float
    """The floor spans [0, floor] in x and y; `easy` counts cell centres, so the first lies at 0."""
    margin: float
    """Floor visible beyond that span, same unit."""
    size_px: int
    """Height and width of the video, pixels."""
    fps: int
    duration_s: float
    num_frames: int
    """Selected frames F; they lie at equal spacing from 0 to `duration_s`."""

    def times(self) -> list[float]:
        """Return the F selected times, seconds."""
        return [float(t) for t in np.linspace(0.0, self.duration_s, self.num_frames)]

    def present(self, t: float) -> list[Solid]:
        """Return solids on the floor at time `t`."""
        return [solid for solid in self.solids if solid.visible(t)]


def make_scene(seed: int, difficulty: Difficulty) -> Scene:
    """Return the scene of a seed; the same seed gives the same scene."""
    rng = np.random.default_rng(seed)
    return _easy(seed, rng) if difficulty is Difficulty.EASY else _full(seed, rng)


def _easy(seed: int, rng: np.random.Generator) -> Scene:
    count = int(rng.integers(2, 4))
    colors = rng.permutation(list(COLORS))[:count]
    last = int(rng.integers(count))  # at most one comes late, so that there is an order of appearance
    late = int(rng.integers(1, 4)) if rng.random() < 0.5 else 0
    solids: list[Solid] = []
    while len(solids) < count:
        velocity = rng.integers(-2, 3, size=2) if rng.random() < 0.7 else np.zeros(2, dtype=int)
        start = rng.integers(0, 10, size=2)
        end = start + 3 * velocity
        if end.min() < 0 or end.max() > 9:
            continue
        solid = Solid(
            color=str(colors[len(solids)]),
            shape="ball",
            radius=0.75,
            start=(float(start[0]), float(start[1])),
            velocity=(float(velocity[0]), float(velocity[1])),
            appears_s=float(late) if len(solids) == last else 0.0,
        )
        if all(_apart(solid, other, np.arange(4), 1.8) for other in solids):
            solids.append(solid)
    camera = Camera(position=(4.5, 4.5, 60.0), pitch_deg=90, yaw_deg=0, pan_deg_s=0, focal=60.0 / 10.0)
    return Scene(
        seed=seed, difficulty=Difficulty.EASY, unit="grid", solids=tuple(solids), camera=camera, floor=9.0,
        margin=0.5, size_px=64, fps=4, duration_s=3.0, num_frames=4,
    )  # fmt: skip


def _full(seed: int, rng: np.random.Generator) -> Scene:
    count = int(rng.integers(3, 6))
    duration, num_frames = 7.0, 8
    times = np.linspace(0.0, duration, num_frames)
    solids: list[Solid] = []
    while len(solids) < count:
        moving = rng.random() < 0.6
        start = rng.uniform(0.4, 3.6, size=2)
        velocity = rng.uniform(-0.4, 0.4, size=2) if moving else np.zeros(2)
        end = start + duration * velocity
        if end.min() < 0.3 or end.max() > 3.7:
            continue
        late = float(rng.choice(times[1:-1])) if len(solids) > 1 and rng.random() < 0.3 else 0.0
        solid = Solid(
            color=str(rng.choice(list(COLORS))),
            shape=str(rng.choice(SHAPES)),
            radius=float(rng.uniform(0.14, 0.22)),
            start=(float(start[0]), float(start[1])),
            velocity=(float(velocity[0]), float(velocity[1])),
            appears_s=late,
        )
        if all(_apart(solid, other, np.linspace(0, duration, 57), 0.5) for other in solids):
            solids.append(solid)
    camera = Camera(
        position=(2.0 + float(rng.uniform(-0.5, 0.5)), -3.0, float(rng.uniform(2.2, 3.0))),
        pitch_deg=float(rng.uniform(24, 30)),
        yaw_deg=float(rng.uniform(-4, 4)),
        pan_deg_s=float(rng.uniform(-1, 1)),
        focal=1.25,
    )
    return Scene(
        seed=seed, difficulty=Difficulty.FULL, unit="m", solids=tuple(solids), camera=camera, floor=4.0,
        margin=6.0, size_px=336, fps=8, duration_s=duration, num_frames=num_frames,
    )  # fmt: skip


def _apart(a: Solid, b: Solid, times: np.ndarray, distance: float) -> bool:
    return all(float(np.linalg.norm(a.position(t) - b.position(t))) >= distance for t in times)
