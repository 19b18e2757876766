"""Scenes made by hand."""

from __future__ import annotations

from typing import Any

import numpy as np

from videostr.data.scene import Frame, Scene, Track

UP = (0.0, -1.0, 0.0)


def track(
    name: str,
    label: str,
    places: list[tuple[float, float, float]],
    frames: list[int] | None = None,
    **more: Any,
) -> Track:
    """4 m long, 2 m wide, 1.5 m high, heading along x."""
    at = np.arange(len(places)) if frames is None else np.array(frames)
    count = len(places)
    return Track(
        **{
            "id": name,
            "label": label,
            "frames": at,
            "visibility": np.ones(count),
            "centers": np.array(places, dtype=float),
            "sizes": np.tile([4.0, 2.0, 1.5], (count, 1)),
            "yaws": np.zeros(count),
            "boxes": np.tile([100.0, 100.0, 200.0, 150.0], (count, 1)),
            **more,
        }
    )


def scene(
    tracks: list[Track], frames: int = 5, step: float = 0.5, drive: float = 1.0, turn: float = 0.0
) -> Scene:
    """A camera that starts at the origin, drives forward `drive` m a frame and turns right `turn` rad a frame."""
    poses = []
    for i in range(frames):
        pose = np.eye(4)
        angle = turn * i
        pose[:3, :3] = [[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]]
        pose[2, 3] = drive * i
        poses.append(pose)
    return Scene(
        source="hand",
        name="one",
        frames=tuple(Frame(t=step * i, image=f"{i}.png", camera_to_world=poses[i]) for i in range(frames)),
        fps=1 / step,
        tracks=tuple(tracks),
        image_size=(1000, 500),
        projection=np.hstack([np.diag([500.0, 500.0, 1.0]), np.zeros((3, 1))]),
        up=UP,
        countable=None,
    )
