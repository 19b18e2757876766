"""What must not be trained on: scenes of benchmarks and test splits by the user's lists, and rows that ask the same twice.

In: text files with one scene name a line, blank lines and `#` comments apart, optionally for one source only:

    # validation scenes of VSI-Bench
    scene0011_00
    tao: train/YFCC100M/v_1

and records. Out: names to leave out, records whose scene or video is listed, pairs of duplicates. No list comes with this
module. What a source itself tells of its splits (KITTI, ScanNet, TAO, nuScenes) is left out by its reader already.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import accumulate
from pathlib import Path

from videostr.errors import DataError
from videostr.images import LIST_SUFFIX
from videostr.types import Record


def excluded(source: str, lists: Sequence[Path]) -> frozenset[str]:
    """Return names of the scenes of a source that the lists name: lines without a source, and those with this one, in any case.

    Raises:
        DataError: a list cannot be read, or a line is not a scene name; names file and line.
    """
    return _of_source(source, [entry for path in lists for entry in _entries(path)])


def find(records: Iterable[Record], lists: Sequence[Path]) -> list[tuple[str, str]]:
    """Return (id, origin) of the records whose scene or video is in the lists.

    The scene is what an id of the form SOURCE/SCENE/... says, the video is the file's name without its ending, with any of
    the folders above it: `data/scene0011_00.mp4` is listed by `scene0011_00` as well as by `data/scene0011_00`.

    Raises:
        DataError: as `excluded`.
    """
    entries = [entry for path in lists for entry in _entries(path)]
    names: dict[str, frozenset[str]] = {}
    found = []
    for record in records:
        if record.source not in names:
            names[record.source] = _of_source(record.source, entries)
        if not names[record.source].isdisjoint(_names(record)):
            found.append((record.id, record.origin))
    return found


def duplicates(records: Iterable[Record]) -> list[tuple[str, str]]:
    """Return (id of the first, id of a later) record that asks the same question of the same stretch of the same video.

    Neither case, white space nor the order of the options tells questions apart. The same words about another stretch of the
    video are another question.
    """
    first: dict[object, str] = {}
    pairs = []
    for record in records:
        clip = record.clip
        options = tuple(sorted(map(_folded, record.options)))
        key = (clip.video, clip.start_s, clip.end_s, clip.marks, _folded(record.question), options)
        if key in first:
            pairs.append((first[key], record.id))
        else:
            first[key] = record.id
    return pairs


def _of_source(source: str, entries: Iterable[tuple[str, str]]) -> frozenset[str]:
    return frozenset(name for prefix, name in entries if prefix.casefold() in ("", source.casefold()))


def _entries(path: Path) -> list[tuple[str, str]]:
    """Return the source, "" for any, and scene of every line."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise DataError(
            f"{path}: list of scenes cannot be read ({error.strerror})", remedy="correct the path"
        ) from None
    entries = []
    for number, line in enumerate(lines, 1):
        try:
            text = re.sub(r"(^|\s)#.*", "", line.decode("utf-8-sig")).strip()
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path}:{number}: is not UTF-8 ({error})", remedy="save the list as text"
            ) from None
        match = re.fullmatch(r"(?:([^\s,:]+)\s*:\s*)?([^\s,:]+)", text)
        if match:
            entries.append((match[1] or "", match[2]))
        elif text:
            raise DataError(
                f"{path}:{number}: {text!r:.80}: must be one scene, as SCENE or SOURCE: SCENE",
                remedy="put each on its own line",
            )
    return entries


def _names(record: Record) -> set[str]:
    """Return all that a list may call the record's scene; the parts of a name may be joined by slashes."""
    *parts, _ = record.id.removeprefix(f"{record.source}/").split("/")
    folders = re.sub(rf"({re.escape(LIST_SUFFIX)}|\.\w+)$", "", record.clip.video).split("/")
    return {
        *accumulate(parts, lambda start, part: f"{start}/{part}"),
        *accumulate(reversed(folders), lambda end, part: f"{part}/{end}"),
    }


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())
