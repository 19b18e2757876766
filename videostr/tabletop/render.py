"""Draws a scene and writes it as MP4; gives the image box of a solid.

In: a `Scene`. Out: frames uint8 [F, H, W, 3] by pinhole projection (painter's algorithm), an H.264 file, boxes in px.
"""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw

from videostr.tabletop.world import COLORS, Camera, Scene, Solid

SUPERSAMPLE = 2
LIGHT = np.array([-0.4, -0.5, 0.77])


def write_mp4(scene: Scene, path: Path) -> None:
    """Render the scene at its frame rate into an H.264 file."""
    frames = round(scene.duration_s * scene.fps) + 1
    floor = _floor(scene, 0.0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=scene.fps, options={"crf": "14", "preset": "veryfast"})
        stream.width = stream.height = scene.size_px
        stream.pix_fmt = "yuv420p"
        for index in range(frames):
            t = index / scene.fps
            background = floor if scene.camera.pan_deg_s == 0 else _floor(scene, t)
            image = av.VideoFrame.from_ndarray(draw(scene, t, background), format="rgb24")
            container.mux(stream.encode(image))
        container.mux(stream.encode())


def draw(scene: Scene, t: float, floor: Image.Image | None = None) -> np.ndarray:
    """Return the image [H, W, 3] uint8 at time `t`."""
    image = (floor or _floor(scene, t)).copy()
    canvas = ImageDraw.Draw(image)
    by_distance = sorted(
        scene.present(t), key=lambda solid: -float(scene.camera.to_camera(solid.position(t), t)[2])
    )
    for solid in by_distance:
        _draw_solid(canvas, scene, solid, t)
    return np.asarray(image.resize((scene.size_px, scene.size_px), Image.Resampling.BOX))


def box2d(scene: Scene, solid: Solid, t: float) -> tuple[float, float, float, float] | None:
    """Return the image box (x1, y1, x2, y2) of a solid, 0..1000 of width and height; None when it is out of view."""
    if solid.shape == "ball":
        low, high = _ball_box(scene, solid, t, 1000)
    else:
        points = _project(scene.camera, np.concatenate(_faces(solid, t)), t, 1000)
        low, high = points.min(axis=0), points.max(axis=0)
    x1, y1 = np.clip(low, 0, 1000)
    x2, y2 = np.clip(high, 0, 1000)
    if x2 - x1 < 1 or y2 - y1 < 1:
        return None
    return float(x1), float(y1), float(x2), float(y2)


def _project(camera: Camera, points: np.ndarray, t: float, size: float) -> np.ndarray:
    """Return [N, 2] pixels of world points [N, 3] in a square image of `size` pixels."""
    p = camera.to_camera(points, t)
    pixels: np.ndarray = size * (0.5 + camera.focal * p[:, :2] / p[:, 2:])
    return pixels


def _floor(scene: Scene, t: float) -> Image.Image:
    """Return the empty scene, at SUPERSAMPLE size: red rises with x and blue with y, so that position can be seen."""
    size = scene.size_px
    pixel = ((np.arange(size) + 0.5) / size - 0.5).astype(np.float32)
    rays = np.stack(
        [*np.meshgrid(pixel, pixel), np.full((size, size), scene.camera.focal, np.float32)], axis=-1
    )
    world = rays @ scene.camera.rotation(t).astype(np.float32)
    down = np.minimum(world[..., 2], -1e-6)
    point = np.array(scene.camera.position, np.float32) - world * (scene.camera.position[2] / down)[..., None]
    low, span = -scene.margin, scene.floor + 2 * scene.margin
    if scene.margin > 1:
        low, span = 0.0, scene.floor
    share = np.clip((point[..., :2] - low) / span, 0, 1)
    square = (np.floor(point[..., 0] + 0.5) + np.floor(point[..., 1] + 0.5)) % 2
    color = np.empty((size, size, 3), np.float32)
    color[..., 0] = 70 + 110 * share[..., 0]
    color[..., 1] = 110 + 12 * square
    color[..., 2] = 70 + 110 * share[..., 1]
    beyond = np.abs(point[..., :2] - scene.floor / 2).max(axis=-1) > scene.floor / 2 + scene.margin
    color[beyond | (world[..., 2] > -1e-6)] = (190, 205, 215)
    return Image.fromarray(color.astype(np.uint8)).resize((size * SUPERSAMPLE, size * SUPERSAMPLE))


def _draw_solid(canvas: ImageDraw.ImageDraw, scene: Scene, solid: Solid, t: float) -> None:
    size = scene.size_px * SUPERSAMPLE
    base = np.array(COLORS[solid.color], dtype=float)
    if solid.shape == "ball":
        low, high = _ball_box(scene, solid, t, size)
        canvas.ellipse([*low, *high], fill=_rgb(base * 0.8))
        shift, inner = (high - low) * 0.06, (high - low) * 0.14
        canvas.ellipse([*(low + inner - shift), *(high - inner - shift)], fill=_rgb(base))
        return
    for face in _faces(solid, t):
        normal = np.cross(face[1] - face[0], face[2] - face[1])
        normal /= np.linalg.norm(normal)
        if normal @ (np.array(scene.camera.position) - face[0]) <= 0:
            continue
        shade = 0.55 + 0.45 * max(0.0, float(normal @ LIGHT))
        canvas.polygon([tuple(p) for p in _project(scene.camera, face, t, size)], fill=_rgb(base * shade))


def _rgb(color: np.ndarray) -> tuple[int, int, int]:
    r, g, b = (int(c) for c in np.clip(color, 0, 255))
    return r, g, b


def _ball_box(scene: Scene, solid: Solid, t: float, size: float) -> tuple[np.ndarray, np.ndarray]:
    center = solid.position(t)[None]
    depth = float(scene.camera.to_camera(center, t)[0, 2])
    radius = size * scene.camera.focal * solid.radius / depth
    pixel = _project(scene.camera, center, t, size)[0]
    return pixel - radius, pixel + radius


def _faces(solid: Solid, t: float) -> list[np.ndarray]:
    """Return faces of the convex mesh, each [corners, 3], counter-clockwise from outside."""
    sides = {"cube": 4, "cone": 16, "cylinder": 16}[solid.shape]
    angle = (np.arange(sides) + 0.5) * 2 * np.pi / sides
    reach = solid.radius / (np.cos(np.pi / sides) if solid.shape == "cube" else 1.0)
    ring = np.stack([reach * np.cos(angle), reach * np.sin(angle), np.full(sides, -solid.radius)], axis=1)
    center = solid.position(t)
    bottom = ring + center
    top = bottom + np.array([0, 0, 2 * solid.radius])
    nearest = np.roll(np.arange(sides), -1)
    if solid.shape == "cone":
        apex = center + np.array([0, 0, solid.radius])
        return [np.stack([bottom[i], bottom[nearest[i]], apex]) for i in range(sides)]
    walls = [np.stack([bottom[i], bottom[nearest[i]], top[nearest[i]], top[i]]) for i in range(sides)]
    return [*walls, top]
