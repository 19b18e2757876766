"""Intersection over union (IoU) of boxes, time spans and upright boxes in space.

Coordinates are continuous: a box from 0 to 10 is 10 wide, and boxes that touch do not overlap. What is inverted, without
size or not finite overlaps nothing.

A box in space is `[x, y, z, dx, dy, dz, yaw]`: centre, full sizes along the box's own axes, and a right-handed turn in
radians about the vertical axis of the frame of reference.

- `camera0` (x right, y down, z forward): the ground plane is (x, z), dy is the height, and the box's dx axis points to
  (cos yaw, -sin yaw) in (x, z), as `rotation_y` of KITTI does;
- `floor`, `image`: the ground plane is (x, y), dz is the height, and the dx axis points to (cos yaw, sin yaw) in (x, y).
"""

from __future__ import annotations

import math

from videostr.graph import ground_axes

Box = tuple[float, float, float, float]
"""x1, y1, x2, y2."""
Box3d = tuple[float, float, float, float, float, float, float]
"""x, y, z, dx, dy, dz, yaw."""
Span = tuple[float, float]
"""Start and end, seconds."""
_Points = list[tuple[float, float]]


def box_iou(a: Box, b: Box) -> float:
    """Return the area of the intersection over area of the union of boxes (x1, y1, x2, y2); 0 for boxes without area."""
    intersection = _overlap(a[0], a[2], b[0], b[2]) * _overlap(a[1], a[3], b[1], b[3])
    return _ratio(intersection, (a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))


def span_iou(a: Span, b: Span) -> float:
    """Return the length of the intersection over length of the union of spans (start, end); 0 for spans without length."""
    overlap = _overlap(*a, *b)
    return overlap / (max(a[1], b[1]) - min(a[0], b[0])) if overlap else 0.0  # spans that overlap have no gap


def box3d_iou(a: Box3d, b: Box3d, frame: str) -> float:
    """Return the volume of the intersection over volume of the union of two boxes that stand upright.

    Exact: the intersection of the two turned rectangles in the ground plane, a convex polygon, times the overlap of the
    heights.

    Args:
        a: (x, y, z, dx, dy, dz, yaw) as in the module docstring; sizes above 0.
        b: the same.
        frame: frame of reference, which says what is vertical and how yaw turns.
    """
    right, forward = ground_axes(frame)
    up = 3 - right - forward
    # A right-handed turn about the down axis takes x towards -z.
    sense = -1.0 if frame == "camera0" else 1.0
    # Relative to b, so that far from the origin no digits are lost.
    centre = (a[right] - b[right], a[forward] - b[forward])
    corners = _turned(_rectangle(a[3 + right], a[3 + forward]), sense * a[6])
    moved = [(u + centre[0], v + centre[1]) for u, v in corners]
    area = _area(_clipped(_turned(moved, -sense * b[6]), b[3 + right] / 2, b[3 + forward] / 2))
    lift = a[up] - b[up]
    height = _overlap(lift - a[3 + up] / 2, lift + a[3 + up] / 2, -b[3 + up] / 2, b[3 + up] / 2)
    return _ratio(area * height, a[3] * a[4] * a[5], b[3] * b[4] * b[5])


def _overlap(a_start: float, a_end: float, b_start: float, b_end: float) -> float:
    return max(0.0, min(a_end, b_end) - max(a_start, b_start))


def _ratio(intersection: float, a: float, b: float) -> float:
    """Return the intersection over union; 0 where one of both is empty, too small for a float or inverted."""
    if not (a > 0 and b > 0 and intersection > 0):
        return 0.0
    return min(1.0, intersection / (a + b - intersection))


def _rectangle(width: float, depth: float) -> _Points:
    """Return corners around the origin, counterclockwise."""
    u, v = width / 2, depth / 2
    return [(-u, -v), (u, -v), (u, v), (-u, v)]


def _turned(points: _Points, angle: float) -> _Points:
    sine, cosine = math.sin(angle), math.cos(angle)
    return [(u * cosine - v * sine, u * sine + v * cosine) for u, v in points]


def _clipped(points: _Points, half_width: float, half_depth: float) -> _Points:
    """Return the part of a convex polygon inside |u| <= half_width, |v| <= half_depth (Sutherland and Hodgman)."""
    for axis, limit in ((0, half_width), (1, half_depth)):
        for sign in (1.0, -1.0):
            points = _cut(points, axis, sign, limit)
    return points


def _cut(points: _Points, axis: int, sign: float, limit: float) -> _Points:
    """Return the part of a convex polygon where sign * (coordinate `axis`) <= limit."""
    kept: _Points = []
    for last, point in zip(points[-1:] + points[:-1], points, strict=True):
        before, after = limit - sign * last[axis], limit - sign * point[axis]
        if (before > 0) != (after > 0):
            share = before / (before - after)
            kept.append((last[0] + share * (point[0] - last[0]), last[1] + share * (point[1] - last[1])))
        if after > 0:
            kept.append(point)
    return kept


def _area(points: _Points) -> float:
    """Return the area of a polygon whose corners go round counterclockwise."""
    pairs = zip(points, points[1:] + points[:1], strict=True)
    return sum(u * next_v - next_u * v for (u, v), (next_u, next_v) in pairs) / 2
