"""Settings of a source of annotated video."""

from __future__ import annotations

from dataclasses import dataclass

from videostr.data.questions import FAMILIES
from videostr.errors import ConfigError
from videostr.graph import MAX_FRAMES


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Settings of one source; they decide the bytes that come out."""

    source: str
    root: str
    split: str = "train"
    seed: int = 0
    limit: int | None = None
    """Records, at most."""
    scenes: int | None = None
    """Scenes, at most, from the first."""
    clips: int = 8
    """Clips of a scene, at most."""
    questions: int = 8
    """Questions about a clip, at most, before balancing."""
    num_frames: int = 8
    """F, frames shown and times of the graph."""
    height: int | None = None
    width: int | None = None
    """Size of the frames handed to the model, px; None keeps the images'."""
    exclude: tuple[str, ...] = ()
    """Files with names of scenes to leave out (`videostr/data/leakage.py`)."""
    families: tuple[str, ...] = ()
    """Those that are asked; () is all."""

    def __post_init__(self) -> None:
        """Refuse numbers that nothing can be built with, and families that do not exist.

        Raises:
            ConfigError: names the key, its value and the rule.
        """
        if not 2 <= self.num_frames <= MAX_FRAMES:
            raise ConfigError(
                f"num_frames = {self.num_frames}: must be 2 to {MAX_FRAMES}, as many times as a graph may have"
            )
        if self.seed < 0:
            raise ConfigError(f"seed = {self.seed}: must not be negative")
        for key in ("limit", "scenes", "clips", "questions", "height", "width"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ConfigError(f"{key} = {value}: must be at least 1")
        for name in self.families:
            if name not in FAMILIES:
                raise ConfigError(
                    f"families: {name!r} is unknown", remedy=f"choose from {', '.join(FAMILIES)}"
                )
