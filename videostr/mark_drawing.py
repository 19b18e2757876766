"""Draw marks into decoded frames, by the one function that frame store, engine, learner, evaluation, sheet and report share.

In: the `Mark`s of a clip and its frames. Out: the frames with the marks drawn in. All read frames through `videostr.video`, which
calls `draw_marks`; so all see the same pixels.

A disc lies in the middle of an object that is at least `LARGE` radii wide and high. A smaller object is outlined, and its disc
lies next to it where it covers no marked object and no other disc: what is small stays visible.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from videostr.errors import VideoError
from videostr.marks import COLORS, TEXTS
from videostr.types import Mark

DRAWING = 2
"""Raised when the same marks are drawn differently: clips that have marks then have other names."""
RADIUS = 0.022
"""Of a disc, as a share of the square root of the frame's area: 15 px in 1242 x 375."""
LEAST_RADIUS_PX = 7
"""A digit is then about 9 px high, the least that can be read."""
LARGE = 4.0
"""A disc in the middle of an object so many radii wide and high covers a fifth of it at most."""
GAP_PX = 2
"""Between a disc and what it must not cover."""
LIGHT = 150.0
"""Luma (0 to 255) above which a disc has black text."""
LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in it (ITU-R BT.601)."""
LEAST_LINE_PX = 2
"""Of an outline, without the white line on each of its sides, which sets it off from an object of the same colour."""
DETAIL = 4
"""Discs are drawn so many times larger, then scaled down."""


def draw_marks(pixels: np.ndarray, times: Sequence[float], marks: Sequence[Mark], name: str) -> np.ndarray:
    """Return a copy of the frames with marks drawn in, read-only.

    Args:
        pixels: [F, H, W, 3] uint8 RGB.
        times: [F] seconds.
        marks: each is drawn into the frame nearest to the time of each of its boxes.
        name: of the clip, for the error.

    Raises:
        VideoError: a time of a mark is farther than half the frames' spacing from all of them.
    """
    found = np.array(pixels)
    at: dict[int, list[tuple[Mark, np.ndarray]]] = {}
    height, width = found.shape[1:3]
    most_off = (times[-1] - times[0]) / (len(times) - 1) / 2 if len(times) > 1 else np.inf
    for mark in marks:
        for t, *box in mark.boxes:
            frame = int(np.abs(np.asarray(times) - t).argmin())
            if abs(times[frame] - t) > most_off + 1e-6:
                raise VideoError(
                    f"{name}: mark {mark.text!r:.20} is to be drawn at {t:g} s, the nearest frame that is shown is at "
                    f"{times[frame]:g} s",
                    remedy="correct the times of the mark's boxes, or show the frames that they are drawn on",
                )
            at.setdefault(frame, []).append((mark, np.array(box) * (width, height, width, height) / 1000))
    for frame, drawn in at.items():
        image = Image.fromarray(found[frame])
        _draw(image, [mark.text for mark, _ in drawn], np.array([box for _, box in drawn]))
        found[frame] = np.asarray(image)
    found.flags.writeable = False
    return found


def radius_in(width: int, height: int) -> int:
    """Return the radius of a disc in a frame of this size, px."""
    return max(LEAST_RADIUS_PX, round(RADIUS * float(np.sqrt(width * height))))


def disc_places(boxes: np.ndarray, width: int, height: int) -> np.ndarray:
    """Return [N, 2] centres of the discs of marks, px.

    Args:
        boxes: [N, 4] of the marked objects, px of the frame.
        width: of the frame, px.
        height: of the frame, px.
    """
    radius = radius_in(width, height)
    step = max(2, radius // 2)
    lines = [np.arange(radius, max(radius + 1, side - radius), step) for side in (width, height)]
    grid = np.stack(np.meshgrid(*lines), axis=-1).reshape(-1, 2).astype(float)
    to_boxes = np.stack([_distance(grid, box) for box in boxes])
    room = to_boxes.min(0) - radius
    places = np.array([(box[:2] + box[2:]) / 2 for box in boxes])
    large = np.array([_is_large(box, radius) for box in boxes])
    for place in places[large]:
        room = np.minimum(room, np.linalg.norm(grid - place, axis=1) - 2 * radius)
    for n in np.flatnonzero(~large):
        free = room >= GAP_PX
        # Above the object by preference: below it are its shadow and what stands in front of it.
        cost = to_boxes[n] + 0.01 * grid[:, 1] if free.any() else -room
        places[n] = grid[np.where(free | ~free.any(), cost, np.inf).argmin()]
        room = np.minimum(room, np.linalg.norm(grid - places[n], axis=1) - 2 * radius)
    return places


def _is_large(box: np.ndarray, radius: float) -> bool:
    return bool((box[2:] - box[:2]).min() >= LARGE * radius)


def _distance(points: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Return [N] distances of [N, 2] points from a box, 0 inside."""
    outside = np.maximum(np.maximum(box[:2] - points, points - box[2:]), 0)
    distances: np.ndarray = np.linalg.norm(outside, axis=1)
    return distances


def _draw(image: Image.Image, texts: Sequence[str], boxes: np.ndarray) -> None:
    """Draw marks into one frame, boxes [N, 4] px."""
    pen = ImageDraw.Draw(image)
    radius = radius_in(*image.size)
    line = max(LEAST_LINE_PX, radius // 5)
    places = disc_places(boxes, *image.size)
    for text, box, (x, y) in zip(texts, boxes, places, strict=True):
        color = list(COLORS.values())[TEXTS[text]]
        if text in COLORS or not _is_large(box, radius):
            around = _around(box, line + 1, image.size)
            pen.rectangle(_around(box, line + 2, image.size), outline="white", width=line + 2)
            pen.rectangle(around, outline=color, width=line)
            if text not in COLORS and _distance(np.array([[x, y]]), np.array(around))[0] > radius:
                nearest = (np.clip(x, around[0], around[2]), np.clip(y, around[1], around[3]))
                pen.line((x, y, *nearest), fill=color, width=line)
    for text, (x, y) in zip(texts, places, strict=True):  # on top of all lines
        if text not in COLORS:
            disc = _disc(text, radius)
            image.paste(disc, (round(x) - disc.width // 2, round(y) - disc.height // 2), disc)


def _around(box: np.ndarray, wide: int, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Return a box that is larger by so many px; it stays in the frame where the border cuts the object."""
    low = np.maximum(box[:2] - wide, 0)
    high = np.maximum(low, np.minimum(box[2:] + wide, np.array(size) - 1))
    return float(low[0]), float(low[1]), float(high[0]), float(high[1])


@functools.lru_cache(maxsize=256)
def _disc(text: str, radius: int) -> Image.Image:
    """Return a disc with its text, RGBA."""
    side = 2 * radius + 1
    image = Image.new("RGBA", (side * DETAIL, side * DETAIL), (255, 255, 255, 0))
    pen = ImageDraw.Draw(image)
    pen.ellipse((0, 0, side * DETAIL - 1, side * DETAIL - 1), fill=(255, 255, 255, 255))
    ring = max(1, radius // 8) * DETAIL
    color = list(COLORS.values())[TEXTS[text]]
    pen.ellipse((ring, ring, side * DETAIL - 1 - ring, side * DETAIL - 1 - ring), fill=(*color, 255))
    font = ImageFont.load_default(1.6 * radius * DETAIL)
    middle = side * DETAIL / 2
    ink = "black" if float(np.dot(LUMA, color)) > LIGHT else "white"
    pen.text((middle, middle), text, font=font, fill=ink, anchor="mm", stroke_width=radius * DETAIL // 16)
    return image.resize((side, side), Image.Resampling.BOX)
