"""What is in a dataset: counts and baselines as JSON, and as the dataset card `README.md`.

In: a dataset's folder. Out: `Stats`, and the card next to the shards.
"""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader

from videostr.data import baseline
from videostr.data.baseline import Guessing, complete_sets
from videostr.data.records import SCHEMA_VERSION, read_records
from videostr.data.sources import SOURCES
from videostr.files import write_text
from videostr.types import AnswerKind, Failure, Record

CHOICES = 4000
"""Choices that baselines look at, at most, of a family of a source: so many that the error of a share is below a hundredth."""
OTHERS = 1000
"""Records of other kinds, for baselines and quantiles."""
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Of the true numbers."""


@dataclass(slots=True)
class Stats:
    """Counts of a dataset."""

    records: int = 0
    unusable: int = 0
    videos: int = 0
    without_graph: int = 0
    table: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    """By source, family and kind of answer."""
    labels: Counter[str] = field(default_factory=Counter)
    letters: Counter[str] = field(default_factory=Counter)
    """Right letters of choices."""
    nodes: Counter[int] = field(default_factory=Counter)
    """Nodes of a frame of the true graphs."""
    sample: list[Record] = field(default_factory=list)
    """Records without graph, drawn by a fixed seed; those of a set stand together."""


def collect(folder: Path) -> Stats:
    """Read a dataset once; memory holds the sample and the names of videos."""
    stats = Stats()
    videos: set[str] = set()
    chooser = random.Random(0)
    samples: dict[tuple[str, str, AnswerKind], list[list[Record]]] = {}
    seen: Counter[tuple[str, str, AnswerKind]] = Counter()
    for found in complete_sets(_counted(folder, stats, videos)):
        kind = (found[0].source, found[0].family, found[0].answer.kind)
        sample = samples.setdefault(kind, [])
        seen[kind] += 1
        room = CHOICES // len(found[0].options) if kind[2] is AnswerKind.CHOICE else OTHERS
        if len(sample) < room:
            sample.append(found)
        # So every set has the same chance, in one pass.
        elif (place := chooser.randrange(seen[kind])) < len(sample):
            sample[place] = found
    stats.videos = len(videos)
    stats.sample = [record for sample in samples.values() for found in sample for record in found]
    return stats


def _counted(folder: Path, stats: Stats, videos: set[str]) -> Iterator[Record]:
    """Yield the usable records, each counted when it is taken."""
    for row in read_records(folder):
        if isinstance(row, Failure):
            stats.unusable += row.records
            continue
        stats.records += 1
        videos.add(row.clip.video)
        stats.table[row.source, row.family, row.answer.kind.value] += 1
        stats.labels.update(row.labels)
        stats.without_graph += row.graph is None
        if row.graph is not None:
            stats.nodes.update(len(frame.nodes) for frame in row.graph.frames)
        if row.answer.kind is AnswerKind.CHOICE:
            stats.letters[str(row.answer.value)] += 1
        yield replace(row, graph=None, labels=())


def as_json(stats: Stats, guessed: Sequence[Guessing]) -> dict[str, Any]:
    """Return the counts, with what `guessing` scores."""
    return {
        "records": stats.records,
        "unusable": stats.unusable,
        "videos": stats.videos,
        "sources": _sums(stats, 0),
        "families": _sums(stats, 1),
        "answers": _sums(stats, 2),
        "labels": dict(stats.labels.most_common()),
        "letters": dict(sorted(stats.letters.items())),
        "numbers": _quantiles(stats.sample),
        "nodes": dict(sorted(stats.nodes.items())),
        "without_graph": stats.without_graph,
        "guessing": [_row(each) for each in guessed if not each.kind],
        "guessing_by_kind": [_row(each) | {"kind": each.kind} for each in guessed if each.kind],
    }


def _row(guessed: Guessing) -> dict[str, Any]:
    return {
        "source": guessed.source,
        "family": guessed.family,
        "questions": guessed.questions,
        "score": round(guessed.score, 3),
        "error": None if math.isnan(guessed.error) else round(guessed.error, 3),
        "chance": guessed.chance and round(guessed.chance, 3),
        "constant": guessed.constant and round(guessed.constant, 3),
    }


def guessing(stats: Stats) -> list[Guessing]:
    """Return what the questions of the sample are worth without their videos: choices by family, numbers, choices by kind."""
    guessed = baseline.Guesser(complete_sets(stats.sample)).validate()
    if not guessed.questions:
        return baseline.numbers(stats.sample)
    return guessed.by_family() + baseline.numbers(stats.sample) + guessed.by_kind()


def write_card(folder: Path, stats: Stats, guessed: Sequence[Guessing]) -> None:
    """Write `README.md`."""
    environment = Environment(
        loader=PackageLoader("videostr.data", "."), trim_blocks=True, lstrip_blocks=True
    )
    build = _build(folder)
    values = {
        "folder": folder.name,
        "stats": stats,
        "schema": SCHEMA_VERSION,
        "licences": {
            name: SOURCES[name].licence for name in sorted({key[0] for key in stats.table}) if name in SOURCES
        },
        "rows": sorted(stats.table.items()),
        "guessing": [each for each in guessed if not each.kind],
        "kinds": [each for each in guessed if each.kind],
        "thinned": build.get("thinned", []),
        "shares": [each | {"why": _why(each)} for each in build.get("shares", [])],
        "answer_kinds": _answer_kinds(build.get("shares", [])),
        "settings": json.dumps(build["recipe"], indent=1) if build else "",
        "unbalanced": build.get("unbalanced", 0),
        "drafts_left_out": build.get("drafts_left_out", 0),
    }
    write_text(folder / "README.md", environment.get_template("card.md.html").render(values))


def _why(share: dict[str, Any]) -> str:
    """Return why a family has not what its share wanted; "" where it has."""
    wanted, got, pool, thinned = (share[name] for name in ("wanted", "got", "pool", "thinned"))
    if got >= wanted:
        return "in place of what others lack" if got > 1.02 * wanted else ""
    if got < pool - thinned:
        return "sets of several records do not divide the rest"
    return f"all that the scenes give in complete sets{f', less {thinned:,} that are guessed' if thinned else ''}"


def _answer_kinds(shares: Sequence[dict[str, Any]]) -> dict[str, tuple[int, int]]:
    """Return records wanted and got by kind of answer, over all sources."""
    wanted: Counter[str] = Counter()
    got: Counter[str] = Counter()
    for share in shares:
        wanted[share["kind"]] += share["wanted"]
        got[share["kind"]] += share["got"]
    return {kind: (wanted[kind], got[kind]) for kind in wanted}


def _build(folder: Path) -> dict[str, Any]:
    """Return `build.json`; empty where the dataset was not built by this project."""
    path = folder / "build.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def _sums(stats: Stats, place: int) -> dict[str, int]:
    sums: Counter[str] = Counter()
    for key, count in stats.table.items():
        sums[key[place]] += count
    return dict(sums.most_common())


def _quantiles(sample: Sequence[Record]) -> dict[str, dict[str, float]]:
    """Return how the true numbers of each family and unit spread."""
    values: dict[str, list[float]] = {}
    for record in sample:
        if record.answer.kind is AnswerKind.NUMBER:
            name = f"{record.family}, {record.answer.unit}".rstrip(", ")
            values.setdefault(name, []).append(float(record.answer.value))  # type: ignore[arg-type]
    return {
        name: {f"{share:.0%}": round(float(np.quantile(numbers, share)), 3) for share in QUANTILES}
        for name, numbers in sorted(values.items())
    }
