"""Settings of a source of annotated video."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from videostr.config.sections import Count, NonNegativeInt, Seed
from videostr.data.questions import FAMILIES
from videostr.data.questions.marked import MARKED
from videostr.errors import ConfigError
from videostr.graph import MAX_FRAMES

FrameCount = Annotated[int, msgspec.Meta(ge=2, le=MAX_FRAMES)]
"""As many times as a graph may have."""


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of one source; they decide the bytes that come out."""

    source: str
    root: str
    split: str = "train"
    seed: Seed = 0
    limit: Count | None = None
    """Records, at most."""
    scenes: Count | None = None
    """Scenes, at most, from the first."""
    clips: Count = 8
    """Clips of a scene, at most."""
    questions: Count = 8
    """Questions about a clip, at most, before balancing."""
    marked: NonNegativeInt = 0
    """Tries of questions over marked objects about a clip, of each family and before balancing; 0 for none."""
    marks: Literal["numbers", "letters", "outlines"] = "numbers"
    """How objects are marked (`videostr/marks.py`)."""
    num_frames: FrameCount = 8
    """F, frames shown and times of the graph."""
    height: Count | None = None
    width: Count | None = None
    """Size of the frames handed to the model, px; None keeps the images'."""
    exclude: tuple[str, ...] = ()
    """Files with names of scenes to leave out (`videostr/data/leakage.py`)."""
    families: tuple[str, ...] = ()
    """Those that are asked; () is all."""

    def __post_init__(self) -> None:
        """Refuse families that do not exist.

        Raises:
            ConfigError: names the first of them.
        """
        for name in self.families:
            if name not in FAMILIES and name not in MARKED:
                known = dict.fromkeys((*FAMILIES, *MARKED))
                raise ConfigError(f"families: {name!r} is unknown", remedy=f"choose from {', '.join(known)}")
