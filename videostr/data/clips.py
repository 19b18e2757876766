"""Scene -> clips: which of its annotated frames are shown.

In: a `Scene`. Out: `ClipView`s of F equally spaced frames.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from videostr.data.clip_view import ClipView
from videostr.data.scene import Array, Scene
from videostr.video import target_times

SPACING_ERROR = 0.25
"""Largest distance of a selected frame from its equally spaced time, of the spacing."""
SPACINGS_S = (0.5, 1.0, 2.0)
"""Seconds between selected frames that are tried for moving scenes, each in its turn."""
STATIC_SPACINGS_S = (1.0, 2.0, 4.0)
"""The same for parts of scenes in which nothing moves but the camera."""


def clips(scene: Scene, *, count: int, num_frames: int, rng: np.random.Generator) -> Iterator[ClipView]:
    """Yield up to `count` clips of a scene, chosen by `rng`: F frames as equally spaced as the annotated ones allow.

    Of a scene of things that do not move the first clip is the whole, since its camera shows the room bit by bit.
    """
    times = np.array([frame.t for frame in scene.frames])
    if len(times) < 2:
        return
    seen: set[tuple[int, ...]] = set()
    spacings = SPACINGS_S
    if all(track.is_static for track in scene.tracks):
        spacings = STATIC_SPACINGS_S
        chosen = _nearest(times, times[0], times[-1], min(num_frames, len(times)))
        if chosen is not None:
            seen.add(chosen)
            yield ClipView(scene, 0, chosen)
    for spacing in spacings:
        length = spacing * (num_frames - 1)
        starts = np.flatnonzero(times <= times[-1] - length + 1e-6)
        share = -(-(count - len(seen)) // (len(spacings) - spacings.index(spacing)))
        for start in np.sort(rng.permutation(starts)[:share]):
            chosen = _nearest(times, times[start], times[start] + length, num_frames)
            if chosen is not None and chosen not in seen:
                yield ClipView(scene, len(seen), chosen)
                seen.add(chosen)


def _nearest(times: Array, start: float, end: float, count: int) -> tuple[int, ...] | None:
    """Return frames nearest to equally spaced times; None where the annotated frames have a gap."""
    targets = target_times(start, end, count)
    chosen = np.abs(times[:, None] - targets).argmin(0)
    off = np.abs(times[chosen] - targets).max()
    if len(set(chosen)) < count or off > SPACING_ERROR * (end - start) / (count - 1):
        return None
    return tuple(int(i) for i in chosen)
