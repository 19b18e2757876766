"""Which vertices of a scanned surface a camera sees: depth grids, in which what lies behind another vertex is hidden.

In: vertices of a scan, pose and projection of a camera. Out: those that are in the image and not behind others, with pixels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from videostr.data.scene import NEAR_M, Array

GRID = (80, 60)
"""Columns and rows of the finest depth grid."""
LEVELS = 3
"""Depth grids, each half as fine as the one before."""
SPACING_M = 0.03
"""Vertices of a scan are not farther apart than this: each is drawn in the finest grid whose cells are as large there, since in
finer ones a near surface would have holes."""
TOLERANCE_M, TOLERANCE = 0.1, 0.02
"""A vertex is hidden when it is farther than the nearest one of its cell by more than this, and this share."""


def seen_vertices(
    axes: NDArray[np.float32], pose: Array, projection: Array, image_size: tuple[int, int]
) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Return indices of those vertices, [3, N], that a camera sees, and their [n, 2] pixels."""
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
