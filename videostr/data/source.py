"""What all sources of annotated video do alike: findings, reading of their files, numbers that can be used.

In: files below a source's root. Out: their content, or `SkipEntry`, which `Source.read` turns into the `Skip` of a scene and
readers of lines and entries into a `Skip` of that one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from videostr.data.scene import Array, Scene, Skip, SkipReason
from videostr.json_files import json_content

LIMIT = 1e6
"""Larger numbers are as useless as infinite ones."""
T = TypeVar("T")


class SkipEntry(Exception):
    """A line, a file or a scene cannot be used; `skip` says why."""

    def __init__(self, file: str, reason: SkipReason, detail: str, line: int | None = None) -> None:
        super().__init__(detail)
        self.skip = Skip(file=file, line=line, reason=reason, detail=detail)


class Source(ABC):
    """A dataset on disk; made as `Source(root, split)`, cheap enough to be made in every worker process.

    A subclass has `name`, `licence`, an `__init__` that fills `names` and `skips`, and `scene`.
    """

    name: ClassVar[str]
    licence: ClassVar[str]
    """One sentence for the dataset card: terms and where they stand."""

    def __init__(self, root: Path, split: str) -> None:
        """Look at the tree.

        Raises:
            DataError: the tree is not that of the source, or the split does not exist or may not be trained on.
        """
        self.root = root
        self.split = split
        self.names: Sequence[str] = ()
        """Scenes that may be used, in an order that does not depend on the file system."""
        self.skips: list[Skip] = []
        """What was left out before any scene was read: excluded scenes, unreadable tables."""

    def read(self, name: str) -> Scene | Skip:
        """Return a scene, or a `Skip` where nothing of it can be used. Never raises on malformed files."""
        try:
            return self.scene(name)
        except SkipEntry as entry:
            return entry.skip

    def place(self, name: str) -> str:
        """Return where a scene was recorded, as far as its name tells: scenes of one place are not held out from each other."""
        return name

    @abstractmethod
    def scene(self, name: str) -> Scene:
        """Return a scene.

        Raises:
            SkipEntry: nothing of it can be used.
        """

    def read_bytes(self, file: str, reason: SkipReason = SkipReason.UNREADABLE) -> bytes:
        """Return the content of a file below the root; a file that cannot be read is skipped for this reason."""
        try:
            return (self.root / file).read_bytes()
        except OSError as error:
            raise SkipEntry(file, reason, f"cannot be read ({error.strerror})") from None

    def read_json(self, file: str, kind: type[T]) -> T:
        """Return the content of a JSON file below the root."""
        try:
            return msgspec.json.decode(json_content(self.read_bytes(file)), type=kind)
        except (ValueError, RecursionError) as error:
            raise SkipEntry(file, SkipReason.UNREADABLE, f"{error!s:.80}") from None


def no_object(file: str, subject: str, skips: Sequence[Skip]) -> SkipEntry:
    """Return the error of a scene in which no object is left, with the first of its findings."""
    detail = f"{subject}: no usable object is left"
    if skips:
        first = skips[0]
        place = "" if first.file == file and first.line is None else f"{first.place}: "
        detail += f"; first of {len(skips)} findings: {place}{first.detail}"
    return SkipEntry(file, SkipReason.NO_OBJECT, detail)


def floats(fields: Iterable[str | bytes], count: int, file: str, line: int, what: str = "") -> list[float]:
    """Return so many numbers of a line; each must be finite and below `LIMIT`.

    Args:
        fields: the words of the line.
        count: of the numbers.
        file: for the finding.
        line: from 1.
        what: start of the finding's detail.
    """
    try:
        values = [float(field) for field in fields]
    except ValueError as error:
        raise SkipEntry(file, SkipReason.BAD_LINE, f"{what}{error!s:.80}", line) from None
    if len(values) != count:
        detail = f"{what}has {len(values)} numbers, must have {count}"
        raise SkipEntry(file, SkipReason.BAD_LINE, detail, line)
    if not are_usable(np.array(values)):
        wrong = next(value for value in values if not abs(value) < LIMIT)
        detail = f"{what}{wrong}: must be finite and below {LIMIT:.0e}"
        raise SkipEntry(file, SkipReason.NOT_FINITE, detail, line)
    return values


def are_usable(values: Array, axis: int | None = None) -> NDArray[np.bool_]:
    """Return whether all numbers (of each row, with `axis=1`) are finite and below `LIMIT`."""
    return np.asarray((np.abs(values) < LIMIT).all(axis))  # NaN is not below it


def pose(rotation: Array, translation: Array) -> Array:
    """Return [..., 4, 4] poses of [..., 3, 3] rotations and [..., 3] shifts."""
    poses = np.zeros((*rotation.shape[:-2], 4, 4))
    poses[..., :3, :3], poses[..., :3, 3], poses[..., 3, 3] = rotation, translation, 1.0
    return poses
