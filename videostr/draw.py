"""Scene graphs as SVG views from above, and frames as data URLs.

In: true and predicted `SceneGraph` of one clip. Out: for every selected time one picture of the truth and one of the
prediction at the same scale, with the truth's places left visible as hollow circles.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from markupsafe import Markup, escape
from PIL import Image

from videostr.errors import VideoError
from videostr.graph import InvalidGraph, from_json, ground_axes
from videostr.mark_drawing import draw_marks
from videostr.types import GraphFrame, Mark, Node, SceneGraph
from videostr.video import ClipFrames, FrameStore

SIDE = 170
MARGIN = 5
RADIUS = 5
LETTER = 5.1
MAX_TIMES = 8
MAX_DRAWN_EDGES = 60
MAX_PIXELS = 240
MARKED_PIXELS = 320
"""Longer side of a frame in a page, without marks and with them."""
_DIGEST = re.compile(r"[0-9a-zA-Z_-]+")
_COLORS = {
    "red": "#e03131",
    "green": "#2f9e44",
    "blue": "#3b5bdb",
    "yellow": "#f2c200",
    "white": "#ffffff",
    "black": "#212529",
    "orange": "#f08c00",
    "purple": "#9c36b5",
    "gray": "#868e96",
    "grey": "#868e96",
    "brown": "#8b5e34",
    "pink": "#e64980",
    "cyan": "#1098ad",
}
_OTHER_COLORS = ("#1c7ed6", "#d9480f", "#0ca678", "#ae3ec9", "#e67700", "#c2255c", "#5c940d", "#6741d9")


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """The square of the ground that all pictures of a clip show."""

    right: float
    """Coordinate at the left border."""
    forward: float
    """Coordinate at the lower border."""
    extent: float
    """Length of a side, in the unit of the graph."""
    axes: tuple[int, int]
    """Indices of the right and the forward coordinate."""
    downward: bool
    """Whether the forward coordinate grows towards the bottom, as in images."""

    def place(self, pos: Sequence[float]) -> tuple[float, float, bool]:
        """Return where a position is drawn, and whether it lies within the view; outside it is drawn on the border."""
        x, y, inside = self.share(pos)
        side = SIDE - 2 * MARGIN
        return round(MARGIN + side * x, 1), round(MARGIN + side * y, 1), inside

    def share(self, pos: Sequence[float]) -> tuple[float, float, bool]:
        """Return the place as shares of the side, from the left and from the top, in [0, 1]."""
        x = (pos[self.axes[0]] - self.right) / self.extent
        y = (pos[self.axes[1]] - self.forward) / self.extent
        inside = -0.01 <= x <= 1.01 and -0.01 <= y <= 1.01
        x, y = min(max(x, 0.0), 1.0), min(max(y, 0.0), 1.0)
        return x, y if self.downward else 1 - y, inside


def read_graph(text: str, reference: str) -> SceneGraph | None:
    """Return a graph of a trace dump; None when it is "" or breaks the contract."""
    if not text:
        return None
    try:
        return from_json(text, frame=reference, truth=True)
    except InvalidGraph:
        return None


def view_of(graphs: Sequence[SceneGraph], reference: str) -> View:
    """Return the view for a clip: the whole grid or image where the unit has one, else what the first graph spans.

    Args:
        graphs: the true graph first, when there is one; at least one graph.
        reference: frame of reference, "" where unknown.
    """
    axes, unit = ground_axes(reference), graphs[0].unit
    points = np.array(
        [[n.pos[axes[0]], n.pos[axes[1]]] for f in graphs[0].frames for n in f.nodes if len(n.pos) > axes[1]]
    )
    downward = reference == "image" or unit == "px"
    if unit == "px":
        return View(right=0, forward=0, extent=1000, axes=axes, downward=downward)
    if unit == "grid" and (not points.size or (points.min() >= 0 and points.max() <= 9)):
        return View(right=-0.5, forward=-0.5, extent=10, axes=axes, downward=downward)
    if not points.size:
        return View(right=-1, forward=-1, extent=2, axes=axes, downward=downward)
    middle = (points.min(0) + points.max(0)) / 2
    extent = max(float((points.max(0) - points.min(0)).max()) * 1.4, 1e-3)
    return View(
        right=float(middle[0]) - extent / 2,
        forward=float(middle[1]) - extent / 2,
        extent=extent,
        axes=axes,
        downward=downward,
    )


def draw(frame: GraphFrame | None, view: View, ghosts: GraphFrame | None = None) -> Markup:
    """Return one picture; `ghosts` are drawn hollow beneath it. Without a frame the picture says so."""
    parts = [_floor()]
    parts += [_ghost(node, view) for node in (ghosts.nodes if ghosts else ()) if _drawable(node, view)]
    if frame is None:
        middle = SIDE / 2
        parts.append(f'<text class="none" x="{middle}" y="{middle}" text-anchor="middle">not stated</text>')
    else:
        nodes = {node.id: node for node in frame.nodes if _drawable(node, view)}
        parts += [
            _edge(nodes[e.a], nodes[e.b], view)
            for e in frame.edges[:MAX_DRAWN_EDGES]
            if {e.a, e.b} <= nodes.keys()
        ]
        parts += [_node(node, view) for node in nodes.values()]
        parts += _names(list(nodes.values()), view)
    return Markup(f'<svg class="scene" viewBox="0 0 {SIDE} {SIDE}" role="img">{"".join(parts)}</svg>')


@lru_cache(maxsize=4096)
def label_color(label: str) -> str:
    """Return the colour that a label names, else one that depends on the label only."""
    for word in re.split(r"[^a-z]+", label.lower()):
        if word in _COLORS:
            return _COLORS[word]
    return _OTHER_COLORS[sum(label.encode()) % len(_OTHER_COLORS)]


def chosen(count: int) -> list[int]:
    """Return at most MAX_TIMES of `count` indices, equally spaced, first and last included."""
    return sorted({round(i) for i in np.linspace(0, count - 1, min(count, MAX_TIMES))})


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """Frames of a clip as data URLs, with the size of the frames in the store, pixels."""

    urls: list[str]
    width: int
    height: int
    marked: bool = False
    """Whether marks are drawn in; these are shown larger."""


def frame_images(store: Path, digest: str) -> Images | None:
    """Return the chosen frames of a clip, with its marks; None when the frame store does not have them.

    Marks are drawn after the frames are made small: else a digit would be three pixels high.
    """
    found = _stored(store, digest)
    if found is None:
        return None
    frames, marks = found
    height, width = frames.pixels.shape[1:3]
    indices = range(len(frames.pixels)) if marks else chosen(len(frames.pixels))
    small = [_thumbnail(frames.pixels[index], MARKED_PIXELS if marks else MAX_PIXELS) for index in indices]
    if marks:
        try:
            drawn = draw_marks(np.stack(small), frames.times, marks, digest)
        except VideoError:
            return None
        small = [drawn[index] for index in chosen(len(drawn))]
    kind = "png" if max(height, width) <= 96 else "jpeg"
    urls = [data_url(Image.fromarray(image), kind) for image in small]
    return Images(urls=urls, width=width, height=height, marked=bool(marks))


def frame_times(store: Path, digest: str) -> list[float]:
    """Return the times of all frames of a clip, seconds; empty when the frame store does not have them."""
    found = _stored(store, digest)
    return list(found[0].times) if found else []


def _stored(store: Path, digest: str) -> tuple[ClipFrames, tuple[Mark, ...]] | None:
    """Return the frames of a clip and its marks; None where the frame store does not have them or its files are damaged."""
    if not _DIGEST.fullmatch(digest) or not store.is_dir():
        return None
    try:
        frames, marks = FrameStore(store).stored_apart(digest)
    except (ValueError, OSError, KeyError, TypeError):
        return None
    pixels = frames.pixels
    is_video = pixels.ndim == 4 and pixels.shape[-1] == 3 and pixels.dtype == np.uint8 and bool(pixels.size)
    return (frames, marks) if is_video else None


def _thumbnail(pixels: np.ndarray, most: int) -> np.ndarray:
    image = Image.fromarray(np.asarray(pixels))
    image.thumbnail((most, most))
    return np.asarray(image)


def data_url(image: Image.Image, kind: str = "jpeg") -> str:
    """Return a picture as text that a page can hold; `kind` is "png" or "jpeg"."""
    buffer = io.BytesIO()
    if kind == "png":
        image.save(buffer, "PNG", optimize=True)
    else:
        image.save(buffer, "JPEG", quality=80)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


# ------------------------------------------------------------------------------------------------ drawing


def _drawable(node: Node, view: View) -> bool:
    return len(node.pos) > max(view.axes)


def _floor() -> str:
    side = SIDE - 2 * MARGIN
    lines = [
        f'<path class="mesh" d="M{at} {MARGIN}v{side}M{MARGIN} {at}h{side}"/>'
        for at in (round(MARGIN + side * i / 5, 1) for i in range(1, 5))
    ]
    return f'<rect class="floor" x="{MARGIN}" y="{MARGIN}" width="{side}" height="{side}" rx="3"/>{"".join(lines)}'


def _ghost(node: Node, view: View) -> str:
    x, y, _ = view.place(node.pos)
    return f'<circle class="ghost" cx="{x}" cy="{y}" r="6.5" style="stroke:{label_color(node.label)}"/>'


def _node(node: Node, view: View) -> str:
    x, y, inside = view.place(node.pos)
    where = ", ".join(f"{v:g}" for v in node.pos)
    return (
        f'<g class="node{"" if inside else " outside"}"><title>{escape(node.id)} ({where})</title>'
        f'<circle cx="{x}" cy="{y}" r="{RADIUS}" style="fill:{label_color(node.label)}"/></g>'
    )


def _names(nodes: Sequence[Node], view: View) -> list[str]:
    """Return ids next to their nodes, each where it covers neither a node nor another id; crowded ones are left out."""
    places = [view.place(node.pos)[:2] for node in nodes]
    taken = [(x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS) for x, y in places]
    texts = []
    for node, (x, y) in zip(nodes, places, strict=True):
        name = node.id if len(node.id) <= 18 else node.id[:17] + "…"
        width = LETTER * len(name)
        gap, middle = RADIUS + 3, -width / 2
        candidates = [(gap, -4.5), (-gap - width, -4.5), (middle, gap - 1), (middle, -gap - 8)]
        for dx, dy in candidates:
            box = (x + dx, y + dy, x + dx + width, y + dy + 9)
            within = min(box) >= 0 and max(box) <= SIDE
            if within and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                texts.append(
                    f'<text class="name" x="{box[0]:.1f}" y="{box[3] - 1.5:.1f}">{escape(name)}</text>'
                )
                break
    return texts


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _edge(a: Node, b: Node, view: View) -> str:
    (ax, ay, _), (bx, by, _) = view.place(a.pos), view.place(b.pos)
    return f'<line class="edge" x1="{ax}" y1="{ay}" x2="{bx}" y2="{by}"/>'
