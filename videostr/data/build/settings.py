"""Settings of a source of annotated video."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

import msgspec

from videostr.config.sections import Count, NonNegativeInt, Seed
from videostr.data.questions import FAMILIES
from videostr.data.questions.marked import MARKED
from videostr.errors import ConfigError
from videostr.graph import MAX_FRAMES
from videostr.types import AnswerKind

FrameCount = Annotated[int, msgspec.Meta(ge=2, le=MAX_FRAMES)]
"""As many times as a graph may have."""
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
HELDOUT = "heldout"
"""Split of the scenes that are held out."""


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of one source; they decide the bytes that come out."""

    source: str
    root: str
    split: str = "train"
    """Of the source; or "heldout", the scenes that `heldout` keeps out of "train"."""
    heldout: Share = 0.0
    """Share of the scenes of "train" that are held out, drawn by `seed`; one at least unless it is 0."""
    seed: Seed = 0
    limit: Count | None = None
    """Records, at most; of the split "heldout" the share `heldout` of it."""
    shares: dict[str, dict[str, Share]] = {}
    """Kind of answer -> family -> share of `limit`; in all 1. {} takes records as they come, scene by scene."""
    max_over_chance: Share = 0.02
    """Accuracy over chance that a guesser who never sees the video may have in a kind of choices; 1 keeps all
    (`videostr/data/thinning.py`)."""
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
    """Those that are asked; () is those of `shares`, or all."""

    @property
    def asked(self) -> tuple[str, ...]:
        """Families that are asked; () is all."""
        return self.families or tuple(dict.fromkeys(name for of in self.shares.values() for name in of))

    @property
    def most(self) -> int | None:
        """Records of the split, at most."""
        if self.limit is None or self.split != HELDOUT:
            return self.limit
        return max(1, round(self.limit * self.heldout))

    def __post_init__(self) -> None:
        """Refuse what does not exist or would have no effect.

        Raises:
            ConfigError: names the first of it.
        """
        _check_families("families", self.families)
        for kind, of in self.shares.items():
            if kind not in {*AnswerKind}:
                raise ConfigError(
                    f"shares: {kind!r} is not a kind of answer", remedy=f"choose from {', '.join(AnswerKind)}"
                )
            _check_families(f"shares.{kind}", of)
        total = sum(share for of in self.shares.values() for share in of.values())
        if self.shares and (self.limit is None or abs(total - 1) > 1e-6):
            raise ConfigError(
                f"shares: they are {total:g} in all, limit is {self.limit}: must be 1 of a limit",
                remedy="set limit, and shares that sum to 1",
            )
        if self.heldout and self.split not in ("train", HELDOUT):
            raise ConfigError(
                f"heldout = {self.heldout:g}: has no effect on split {self.split!r}",
                remedy=f'set split to "train" or "{HELDOUT}", or leave heldout out',
            )
        if self.split == HELDOUT and not self.heldout:
            raise ConfigError(
                f'split = "{HELDOUT}": no scene is held out', remedy="set heldout to a share of the scenes"
            )


def _check_families(where: str, names: Iterable[str]) -> None:
    for name in names:
        if name not in FAMILIES and name not in MARKED:
            known = dict.fromkeys((*FAMILIES, *MARKED))
            raise ConfigError(f"{where}: {name!r} is unknown", remedy=f"choose from {', '.join(known)}")
