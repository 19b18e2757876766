"""A contact sheet: frames with boxes and graph drawn in, question and answer under them, as one HTML file.

In: a dataset's folder. Out: `sheet.html`, to be looked at: do boxes sit on objects, is the truth true?
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader
from PIL import Image, ImageDraw

from videostr.data.records import read_records, usable_records
from videostr.draw import data_url, draw, view_of
from videostr.errors import VideoError
from videostr.files import write_text
from videostr.options import lettered
from videostr.prompt import answer_text
from videostr.types import AnswerKind, GraphFrame, Record
from videostr.video import ClipFrames, FrameStore, name_clip

MAX_SHOWN = 4
"""Frames of a record."""
WIDTH = 640
"""Of a frame, px."""
SAME_S = 0.05
"""A frame that is shown may begin so much off the time that is asked about."""


def write_sheet(
    folder: Path, out: Path, *, count: int, family: str = "", marked: bool = False, seed: int = 0
) -> int:
    """Write a sheet of records, the families in turn; returns how many there are.

    Args:
        folder: of the dataset.
        out: HTML file.
        count: records, at most, chosen by `seed`.
        family: these alone; "" for all.
        marked: only records with marks.
        seed: of the choice.
    """

    def is_wanted(row: Record) -> bool:
        return family in ("", row.family) and (bool(row.clip.marks) or not marked)

    families = [row.family for row in usable_records(folder) if is_wanted(row)]
    rng = np.random.default_rng(seed)
    by_family: dict[str, list[int]] = {}
    for index in rng.permutation(len(families)).tolist():
        by_family.setdefault(families[index], []).append(index)
    turns = [of[turn] for turn in range(count) for of in by_family.values() if turn < len(of)][:count]
    wanted = set(turns)  # read again: all records with their graphs may be too many for memory
    again = (row for row in read_records(folder) if isinstance(row, Record) and is_wanted(row))
    records = {i: row for i, row in enumerate(again) if i in wanted}
    with tempfile.TemporaryDirectory() as scratch:
        store = FrameStore(scratch)
        cards = [_card(records[index], folder, store) for index in turns]
    environment = Environment(loader=PackageLoader("videostr.data", "."), autoescape=True, trim_blocks=True)
    page = environment.get_template("sheet.html").render(folder=folder.name, cards=cards)
    write_text(out, page)
    return len(cards)


def _card(record: Record, folder: Path, store: FrameStore) -> dict[str, Any]:
    card: dict[str, Any] = {"record": record, "answer": _answer(record), "frames": [], "problem": ""}
    try:
        frames = store.frames(name_clip(record.clip, folder))
    except VideoError as error:
        card["problem"] = str(error)
        return card
    shown = np.unique(
        np.linspace(0, len(frames.times) - 1, min(MAX_SHOWN, len(frames.times))).round().astype(int)
    )
    view = None if record.graph is None else view_of([record.graph], record.graph.frame)
    for index in shown:
        graph = None if record.graph is None else record.graph.frames[index]
        picture = None if graph is None or view is None else draw(graph, view)
        card["frames"].append(
            {"t": frames.times[index], "image": _image(record, frames, int(index), graph), "graph": picture}
        )
    return card


def _answer(record: Record) -> str:
    if record.answer.kind is AnswerKind.CHOICE:
        return lettered(record.options)[ord(str(record.answer.value)) - ord("A")]
    return f"{answer_text(record.answer)} {record.answer.unit}".strip()


def _image(record: Record, frames: ClipFrames, index: int, graph: GraphFrame | None) -> str:
    image = Image.fromarray(frames.pixels[index])
    image = image.resize((WIDTH, round(WIDTH * image.height / image.width)))
    pen = ImageDraw.Draw(image)
    for box in _boxes(record, frames.times[index]):
        pen.rectangle(_scaled(box, image.size), outline="#e03131", width=3)
    if graph is not None and record.graph is not None and record.graph.frame == "image":
        for node in graph.nodes:
            x, y = node.pos[0] * image.width / 1000, node.pos[1] * image.height / 1000
            pen.ellipse((x - 3, y - 3, x + 3, y + 3), fill="#3b5bdb")
            pen.text((x + 5, y - 5), node.id, fill="#3b5bdb")
    return data_url(image)


def _boxes(record: Record, t: float) -> list[Sequence[float]]:
    """Return boxes that belong to a time: of the answer, and of objects that the question names by them."""
    if record.query is None:
        return []
    found: list[tuple[float, Any]] = [(at, box) for at, *box in record.query.boxes]
    if record.answer.kind in (AnswerKind.BOX2D, AnswerKind.TRACK):
        value: Any = record.answer.value
        boxes = (value,) if record.answer.kind is AnswerKind.BOX2D else value
        found += zip(record.query.times, boxes, strict=False)
    return [box for at, box in found if abs(at - t) < SAME_S]


def _scaled(box: Sequence[float], size: tuple[int, int]) -> tuple[float, float, float, float]:
    return (
        box[0] * size[0] / 1000,
        box[1] * size[1] / 1000,
        box[2] * size[0] / 1000,
        box[3] * size[1] / 1000,
    )
