"""Is a dataset sound? Every row, its truth, what its graph entails, its video; leakage and duplicates.

In: a dataset's folder. Out: problems, each with the row it is in. What a row must be is said by `records.record_from_row`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import structs

from rewards import score
from rewards.rubric import PRESETS
from videostr.data import leakage
from videostr.data.records import read_records
from videostr.data.tasks import Pool, Submit, in_order, once, processes
from videostr.errors import PromptError, VideoError
from videostr.marks import mark_problem
from videostr.prompt import answer_text, prompt_text, reference_trace, special_in
from videostr.query import entailed, is_answerable
from videostr.types import AnswerKind, Clip, Failure, Record
from videostr.video import LARGE_CLIP_BYTES, decode, name_clip, probe

SAME_PROPORTIONS = 0.01
"""Pictures whose ratios of width to height differ by less are one picture in two sizes."""
OUTSIDE_PX = 1.0
"""Boxes are rounded."""
PARTS = {"format", "answer", "graph", "graph_node", "graph_edge"}
"""A truth must score 1 in each."""
FULL = 1 - 1e-6
RUBRICS = {
    replace(rubric, w_format=1.0, w_graph=1.0, gate="none", length="none"): name
    for name, rubric in PRESETS.items()
}
"""Presets that score a truth apart, with one of their names: not those that only weigh the same parts otherwise."""
TOGETHER = 128
"""Rows that one process looks at at a time."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong, and where."""

    detail: str
    origin: str = ""
    """File and number of the row; "" of a warning and of a part of a file."""
    rows: int = 0
    """How many rows are lost, where no single one is named."""

    def __str__(self) -> str:
        return f"{self.origin}: {self.detail}" if self.origin else self.detail


@dataclass(slots=True)
class Tally:
    """How many rows a dataset has, and how many of them are bad."""

    rows: int = 0
    lost: int = 0
    """Rows that cannot be read."""
    origins: set[str] = field(default_factory=set)
    """Of the other rows with a problem."""

    @property
    def bad(self) -> int:
        return self.lost + len(self.origins)

    def add(self, problem: Problem) -> None:
        """Count the rows of a problem as bad."""
        self.lost += problem.rows
        self.origins |= {problem.origin} - {""}


def problems(
    folder: Path,
    tally: Tally,
    *,
    lists: Sequence[Path] = (),
    videos: int | None = None,
    seed: int = 0,
    model: str = "",
    workers: int | None = None,
    pool: Pool = processes,
) -> Iterator[Problem]:
    """Yield problems as they are found, in the same order for any number of processes.

    Args:
        folder: of the dataset.
        tally: counts the rows that were read.
        lists: files with names of scenes that must not be in it.
        videos: clips to decode, chosen by `seed`; None for all.
        seed: of that choice.
        model: checkpoint whose special tokens the texts must not hold; "" for those of common tokenizers.
        workers: processes that look at rows and videos; None for one on each core.
        pool: what starts them; `actors.data_tasks.ray_tasks` on a cluster.

    Raises:
        ModelError: the checkpoint has no processor that can be loaded.
    """
    _processor(model)  # raises here, not in a process
    entailment = _Entailment()
    records: list[Record] = []
    with pool(workers) as (count, submit):
        rows = read_records(folder)
        together = iter(lambda: tuple(islice(rows, TOGETHER)), ())
        parts = ((part, submit(_of_rows, _Rows(part, model))) for part in together)
        for part, (found, entailed_here) in in_order(parts, count):
            tally.rows += sum(row.records if isinstance(row, Failure) else 1 for row in part)
            records += [_without_nodes(row) for row in part if isinstance(row, Record)]
            entailment.add(entailed_here)
            yield from found
        yield from _of_all(records, lists)
        yield from _of_videos(folder, records, videos, seed, submit, count)
    if summary := entailment.summary():
        yield Problem(summary)


@dataclass(frozen=True, slots=True)
class _Rows:
    """Some rows, and what they are checked against."""

    rows: tuple[Record | Failure, ...]
    model: str


def _of_rows(given: _Rows) -> tuple[list[Problem], _Entailment]:
    """Return what is wrong with each row alone."""
    entailment, found = _Entailment(), []
    processor = _processor(given.model)
    for row in given.rows:
        if isinstance(row, Failure):
            found.append(Problem(row.detail, rows=row.records))
            continue
        details = (
            _text_problem(row, processor),
            truth_problem(row),
            entailment.problem(row),
            _outside(row) or mark_problem(row),
        )
        found += [Problem(detail, row.origin) for detail in details if detail]
    return found, entailment


@cache
def _processor(model: str) -> Any:
    if not model:
        return None
    from videostr.models.processor import load_processor  # its import takes seconds

    return load_processor(model)


def _of_all(records: Sequence[Record], lists: Sequence[Path]) -> Iterator[Problem]:
    """Yield what is wrong with rows in the light of others."""
    by_id = {record.id: record for record in records}
    for record_id, place in leakage.find(records, lists):
        yield Problem(
            f"{record_id}: its scene is in a list of scenes that must not be trained on; drop the row", place
        )
    for first, second in leakage.duplicates(records):
        place = by_id[second].origin
        yield Problem(f"{second}: asks the same of the same video as {first}; drop one", place)


def truth_problem(record: Record) -> str:
    """Return why the record's own truth, written as a trace, does not score full reward under some rubric; "" when it does."""
    trace = reference_trace(record)
    for rubric, name in RUBRICS.items():
        scored = score(trace, record, rubric)
        low = {part: value for part, value in scored.parts.items() if part in PARTS and value < FULL}
        if low:
            return f"its own truth does not score full reward: {name}: {low}; {'; '.join(scored.notes)}"
    return ""


@dataclass(slots=True)
class _Entailment:
    """Whether true graphs entail true answers."""

    entailed: int = 0
    wrong: int = 0
    untold: Counter[str] = field(default_factory=Counter)
    """Records by family whose answer a graph of theirs does not tell."""
    without: int = 0
    """Records without query or graph."""

    def add(self, other: _Entailment) -> None:
        """Count what another has counted."""
        self.entailed += other.entailed
        self.wrong += other.wrong
        self.untold += other.untold
        self.without += other.without

    def problem(self, record: Record) -> str:
        """Count a record; return what is wrong with it."""
        if record.query is None or record.graph is None:
            self.without += 1
            return ""
        if not is_answerable(record.query, record.graph):
            self.untold[record.family] += 1
            return ""
        found = entailed(record.query, record.graph)
        if found == record.answer:
            self.entailed += 1
            return ""
        self.wrong += 1
        said = "no answer" if found is None else f"{answer_text(found)} {found.unit}".rstrip()
        return (
            f"its graph entails {said}, its answer is {answer_text(record.answer)} {record.answer.unit}".rstrip()
            + "; correct the graph, the query or the answer"
        )

    def summary(self) -> str:
        """Return one line about all records; "" where none has a query."""
        if not (self.entailed or self.wrong or self.untold):
            return ""
        families = ", ".join(f"{family} ({count})" for family, count in sorted(self.untold.items()))
        return (
            f"answers that the graph entails: {self.entailed} of {self.entailed + self.wrong}; not told by a graph: "
            f"{families or 'none'}; without query or graph: {self.without}"
        )


def _text_problem(record: Record, processor: Any) -> str:
    """Return which texts of a record would be read as special tokens; "" when none would."""
    if found := special_in(record, processor):
        places = ", ".join(f"{where} holds {token}" for where, token in found[:3])
        return (
            f"{places}: a special token of {'common tokenizers' if processor is None else 'the tokenizer'}; prompts part it by a "
            "blank, in a label it costs the record; rewrite the text"
        )
    try:
        if processor is not None:
            prompt_text(record, processor)
    except PromptError as error:
        return str(error)
    return ""


def _without_nodes(record: Record) -> Record:
    """With the times of the graph alone: those of a large dataset fit into memory, its nodes do not."""
    if record.graph is None:
        return record
    frames = tuple(structs.replace(frame, nodes=()) for frame in record.graph.frames)
    return replace(record, graph=structs.replace(record.graph, frames=frames))


@dataclass(frozen=True, slots=True)
class _Shown:
    """What is kept of a decoded clip."""

    clip: Clip
    times: tuple[float, ...]
    remarks: list[str]
    shape: tuple[int, ...]
    """F, H, W, 3."""
    size: tuple[int, int]
    """Width and height of the video, px."""


def _of_videos(
    folder: Path, records: Sequence[Record], count: int | None, seed: int, submit: Submit, workers: int
) -> Iterator[Problem]:
    chosen = np.random.default_rng(seed).permutation(len(records))[:count]
    shapes: dict[str, tuple[int, ...]] = {}
    started = _decoding([records[index] for index in sorted(chosen)], folder, submit)
    for record, shown in in_order(started, workers):
        if isinstance(shown, str):
            yield Problem(shown, record.origin)
            continue
        for remark in shown.remarks:
            yield Problem(f"{shown.clip.spec.video}: {remark}", record.origin)
        if record.graph and (off := _off(record, shown.times)):
            yield Problem(off, record.origin)
        yield from _resized(record, shown)
        shapes[shown.clip.digest] = shown.shape
    if large := [shape for shape in shapes.values() if math.prod(shape) > LARGE_CLIP_BYTES]:
        yield Problem(f"warning: {large_clips(large, len(shapes))}")


def _decoding(
    records: Sequence[Record], folder: Path, submit: Submit
) -> Iterator[tuple[Record, Callable[[], _Shown | str]]]:
    """Yield records with what waits for their clip, which is decoded once."""
    start = once(submit)
    for record in records:
        try:
            clip = name_clip(record.clip, folder)
        except VideoError as error:
            yield record, partial(str, error)
        else:
            yield record, start(clip.digest, _shown, clip)


def _shown(clip: Clip) -> _Shown | str:
    """Return a decoded clip, or why it cannot be."""
    try:
        frames, shape = decode(clip.spec), probe(Path(clip.spec.video))
    except VideoError as error:
        return str(error)
    return _Shown(clip, frames.times, frames.remarks, frames.pixels.shape, (shape.width, shape.height))


def _resized(record: Record, shown: _Shown) -> Iterator[Problem]:
    """Check whether the video has the size that the boxes were drawn on; boxes are shares of it, so its proportions matter."""
    if record.image_size is None or record.image_size == shown.size:
        return
    (width, height), (shown_width, shown_height) = record.image_size, shown.size
    found = f"image_size is {width} x {height}, the frames of {record.clip.video} are {shown_width} x {shown_height}"
    if abs(width * shown_height / (height * shown_width) - 1) <= SAME_PROPORTIONS:
        yield Problem(
            f"warning: {record.origin}: {found}: the same picture in another size; correct image_size"
        )
    else:
        yield Problem(
            f"{found}: boxes lie elsewhere there; annotate the frames as a player shows them, or correct image_size",
            record.origin,
        )


def large_clips(shapes: Sequence[tuple[int, ...]], of: int) -> str:
    """Return what is said of clips, [F, H, W, 3] each, that take more than `LARGE_CLIP_BYTES`."""
    frames, height, width, _ = worst = max(shapes, key=math.prod)
    return (
        f"{len(shapes)} of {of} clips take more than {LARGE_CLIP_BYTES / 1e6:.0f} MB, up to {math.prod(worst) / 1e6:.0f} MB "
        f"({frames} frames of {width} x {height}), in the frame store and in every process that reads them; limit it by "
        "clip.width and clip.height of the records (--size WxH of data build and data import), or by fewer frames (--frames)"
    )


def _outside(record: Record) -> str:
    """Return the first box or position, in px of 0 to 1000 of the frame, that lies outside the frame."""
    boxes: list[Any] = [box for _, *box in record.query.boxes] if record.query else []
    if record.answer.kind is AnswerKind.BOX2D:
        boxes.append(record.answer.value)
    if record.answer.kind is AnswerKind.TRACK:
        boxes += list(record.answer.value)  # type: ignore[arg-type]  # a track's value is a list
    if record.graph is not None and record.graph.unit == "px":
        boxes += [node.pos for frame in record.graph.frames for node in frame.nodes]
    for box in boxes:
        if not all(-OUTSIDE_PX <= x <= 1000 + OUTSIDE_PX for x in box):
            return f"{list(box)} lies outside the frame: must be px of 0 to 1000 of its width and height"
    return ""


def _off(record: Record, times: Sequence[float]) -> str:
    """Return whether the frames that are shown are those that the graph speaks of."""
    assert record.graph is not None
    stated = [frame.t for frame in record.graph.frames]
    if len(stated) != len(times):
        return f"the graph has {len(stated)} times, the clip shows {len(times)} frames"
    spacing = (times[-1] - times[0]) / max(1, len(times) - 1)
    worst = max(abs(a - b) for a, b in zip(stated, times, strict=True))
    return f"the graph is {worst:.2f} s off the frames that are shown" if worst > 0.5 * spacing + 1e-6 else ""
