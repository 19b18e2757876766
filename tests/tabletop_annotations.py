"""Scenes of the tabletop world at `full` difficulty as own annotations (docs/annotations.md), to build marked questions from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from videostr.tabletop.render import box2d, write_mp4
from videostr.tabletop.world import Difficulty, Scene, Solid, make_scene

STEP_S = 0.5
"""Between annotated frames."""


def write_annotations(root: Path, seeds: range) -> Path:
    """Write videos and annotations.jsonl of these scenes below `root`; return it."""
    (root / "videos").mkdir(parents=True)
    lines = []
    for seed in seeds:
        scene = make_scene(seed, Difficulty.FULL)
        video = f"videos/{seed:04d}.mp4"
        write_mp4(scene, root / video)
        lines.append(json.dumps(annotated(scene, f"table_{seed:04d}", video)))
    (root / "annotations.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


def annotated(scene: Scene, name: str, video: str) -> dict[str, Any]:
    """The line of a scene."""
    times = [float(t) for t in np.arange(0.0, scene.duration_s + 1e-9, STEP_S)]
    camera, size = scene.camera, scene.size_px
    poses = [np.eye(4) for _ in times]
    for pose, t in zip(poses, times, strict=True):
        pose[:3, :3], pose[:3, 3] = camera.rotation(t).T, camera.position
    solids = enumerate(scene.solids)
    return {
        "name": name,
        "video": video,
        "fps": scene.fps,
        "image_size": [size, size],
        "up": [0, 0, 1],
        "intrinsics": [[camera.focal * size, 0, size / 2], [0, camera.focal * size, size / 2], [0, 0, 1]],
        "frames": [
            {"time": t, "camera_to_world": pose.tolist()} for t, pose in zip(times, poses, strict=True)
        ],
        "tracks": [
            {"id": str(number), "label": solid.label, "frames": entries}
            for number, solid in solids
            if (entries := _entries(scene, solid, times))
        ],
        "countable": sorted({solid.label for solid in scene.solids}),
    }


def _entries(scene: Scene, solid: Solid, times: list[float]) -> list[dict[str, Any]]:
    entries = []
    for frame, t in enumerate(times):
        box = box2d(scene, solid, t)
        if not solid.visible(t) or box is None:
            continue
        entries.append(
            {
                "frame": frame,
                "center": solid.position(t).tolist(),
                "size": [2 * solid.radius] * 3,
                "yaw": 0.0,
                "box2d": [side * scene.size_px / 1000 for side in box],
            }
        )
    return entries
