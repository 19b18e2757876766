"""V-STaR: what happens in a video, when and where, asked in two orders (arXiv 2503.11495).

In: `V_STaR_test.json` of huggingface.co/datasets/V-STaR-Bench/V-STaR; texts of a model. Out: five questions an item, verdicts,
and the figures of `eval.py` on answers read as `inference_demo.py` reads them, of github.com/V-STaR-Bench/V-STaR at commit
1894682, with corrected and stricter ones as well. docs/evaluation.md has the traps of the original.

Chain one asks `what`, `when`, `where`; chain two `what`, `where_2`, `when_2`. `where` names the whole seconds, `when_2` the
true boxes, as in the original.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta

from videostr.digests import digest
from videostr.errors import DataError
from videostr.evaluate.benchmark import Question, QuestionSet, Verdict
from videostr.evaluate.v_star_figures import OVERLAPS, PARTS, figures
from videostr.evaluate.v_star_reading import (
    best_iou,
    block,
    boxes,
    lexical_rating,
    scaled,
    strict_boxes,
    strict_span,
    timestamps,
)
from videostr.iou import Box, span_iou
from videostr.json_files import json_content

FILE = "V_STaR_test.json"
SHOWN = 200
"""Characters of an answer that a verdict repeats."""
LEXICAL = "lexical (not the official judge)"

JUDGE_SYSTEM = """
As an AI assistant, your task is to evaluate a candidate answer in comparison to a given correct answer.
The question itself, the correct 'groundtruth' answer, and the candidate answer will be provided to you.
Your assessment should range from 0 to 3, \
based solely on the semantic similarity between the groundtruth and the candidate answer, \
disregarding any grammatical differences.
A rating of 0 suggests no similarity, implying the candidate answer is entirely incorrect.
A rating of 1 suggests low similarity, meaning the candidate answer is largely incorrect.
A rating of 2 suggests high similarity, meaning the candidate answer is largely correct.
Lastly, a rating of 3 indicates complete similarity, which means the candidate answer is entirely correct.
Your response should be a single integer from 0, 1, 2, or 3.
"""
"""The official instruction to Qwen2.5-72B-Instruct; it has to be the same text, or ratings cannot be compared."""
JUDGE_TEMPLATE = (
    "Question: {question}\nGroundtruth answer: {truth}\nCandidate answer: {answer}\nYour response: "
)

Judge = Callable[[str, str, str], int | None]
"""(question, truth, answer) -> 0 to 3, or None where the judge's text was not a rating."""


@dataclass(frozen=True, slots=True)
class Track:
    """True boxes: the second as text, as an answer's key must be, and xmin, ymin, xmax, ymax in the video's pixels."""

    boxes: tuple[tuple[str, Box], ...]


class VStar:
    """V-STaR. Without a judge, words are compared, which is not the official metric: see `LEXICAL`."""

    name: str = "v_star"
    columns: tuple[str, ...] = (
        *("answered", "correct", "rating", "rated"),
        "tiou",
        "viou",
        *(f"ap@{overlap}" for overlap in OVERLAPS),
        "scaled_viou",
        *(f"scaled_ap@{overlap}" for overlap in OVERLAPS),
        "strict",
    )

    def __init__(self, judge: Judge | None = None) -> None:
        """Args:
        judge: rates the answers to `what`, and may have a `name`; None compares words.
        """
        self._judge = judge or lexical_rating
        self.judge_name = LEXICAL if judge is None else str(getattr(judge, "name", "unnamed judge"))

    def read(self, root: Path) -> QuestionSet:
        """Return five questions an item, `INDEX/what` and so on, INDEX counting the file's items from 0.

        A video is where below `root` a file `VID.mp4` is; `videos/VID.mp4` where there is none.

        Raises:
            DataError: the file is missing or no JSON list, or an item breaks the official form; names file, item, field, rule.
        """
        path = root / FILE
        try:
            content = path.read_bytes()
            items = msgspec.json.decode(json_content(content), type=list[msgspec.Raw])
        except OSError as error:
            raise DataError(
                f"{path}: cannot be read ({error.strerror})",
                remedy=f"root must be the folder of V-STaR with {FILE}",
            ) from None
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}: is no JSON list ({error})", remedy="download it again") from None
        if not items:
            raise DataError(f"{path}: has no items", remedy="download it again")
        files = {file.name: file.relative_to(root).as_posix() for file in sorted(root.rglob("*.mp4"))}
        questions: list[Question] = []
        for index, raw in enumerate(items):
            item = _item(f"{path}: item {index}", raw)
            video = files.get(f"{item.vid}.mp4", f"videos/{item.vid}.mp4")
            questions += [_question(part, index, video, item) for part in PARTS]
        return QuestionSet(questions=tuple(questions), digest=digest(content))

    def prompt(self, question: Question, seconds: float, size: tuple[int, int]) -> str:
        """Return the text of `inference_demo.py`, which stands before the video; length and resolution as the file has them."""
        return _PROMPTS[question.task](question)

    def asks(self, question: Question) -> str:
        """Return words, two times, or boxes by second in pixels of the frames shown."""
        if question.task == "what":
            return "the answer in a few words"
        if question.task == "when":
            return "the start and the end in seconds, two numbers"
        if question.task == "when_2":
            known = f"the object's boxes in the video, without their seconds, are {question.row['boxes']}"
            return f"the start and the end in seconds, two numbers ({known})"
        seconds = f"the seconds {question.row['seconds']}" if question.task == "where" else "whole seconds"
        return f'a JSON object with {seconds} as keys and boxes in pixels as values, {{"0": [x1, y1, x2, y2], ...}},'

    def score(self, question: Question, answer: str, size: tuple[int, int] | None) -> Verdict:
        """Score `what` by rating (`correct` from 2 on), `when` by `tiou`, `where` by `viou` and `ap@...` of boxes as they stand.

        `scaled_...` are those of boxes that are first scaled from `size` to the video's pixels and cut to integers.
        `strict` is, of `what`, the same as `correct`; else the IoU of what a stricter reader accepts, see `strict_span` and
        `strict_boxes`.
        """
        if question.task == "what":
            return self._rated(question, answer)
        if question.task in {"when", "when_2"}:
            return _timed(question, answer)
        return _located(question, answer, size)

    def chance(self, question: Question) -> Mapping[str, float]:
        """Not defined: nothing is drawn from."""
        return {}

    def constant(self, questions: Sequence[Question]) -> Mapping[str, str]:
        """Return the whole video, the whole frame at every second, and the most frequent true answer to `what`."""
        answers = Counter(question.truth for question in questions if question.task == "what")
        said: dict[str, str] = {}
        for question in questions:
            if question.task == "what":
                said[question.id] = answers.most_common(1)[0][0]
            elif question.task in {"when", "when_2"}:
                said[question.id] = f"0 to {question.row['length']}"
            else:
                frame = [0, 0, *question.row["size"]]
                said[question.id] = json.dumps({key: frame for key, _ in question.truth.boxes})
        return said

    def figures(
        self, questions: Sequence[Question], scores: Mapping[str, np.ndarray], weights: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Percent, ratings 0 to 3; `v_star_figures.figures` says which there are."""
        return figures(questions, scores, weights)

    def _rated(self, question: Question, answer: str) -> Verdict:
        # White space is an answer to the official code.
        rating = self._judge(question.text, question.truth, answer) if answer else 0
        is_rated = rating is not None and 0 <= rating <= 3
        value = rating if rating is not None and is_rated else 0
        correct = float(value >= 2)
        return Verdict(
            extracted=answer.strip()[:SHOWN],
            scores={
                "answered": float(bool(answer)),
                "correct": correct,
                "rating": value / 3,
                "rated": float(is_rated and bool(answer)),
                "strict": correct,
            },
            note="no text"
            if not answer
            else ""
            if is_rated
            else f"{self.judge_name} gave no rating of 0 to 3",
        )


# ------------------------------------------------------------------------------------------------ verdicts


def _timed(question: Question, answer: str) -> Verdict:
    said, strict = timestamps(answer), strict_span(answer)
    return Verdict(
        extracted="" if said is None else f"{said[0]:g} to {said[1]:g}",
        scores={
            "tiou": 0.0 if said is None else span_iou(question.truth, said),
            "strict": 0.0 if strict is None else span_iou(question.truth, strict),
        },
        note="" if said else f"{answer.strip()[-60:]!r} does not have exactly two numbers",
    )


def _located(question: Question, answer: str, size: tuple[int, int] | None) -> Verdict:
    said, strict = boxes(answer), strict_boxes(answer)
    video = question.row["size"]
    found: Mapping[str, Any] = said if isinstance(said, dict) else {}
    plain: list[float] = []
    moved: list[float] = []
    accepted: list[float] = []
    for key, box in question.truth.boxes:
        plain.append(best_iou(box, found.get(key)))
        moved.append(plain[-1] if size is None else best_iou(box, scaled(found.get(key), size, video)))
        stated: Any = strict.get(key)
        accepted.append(best_iou(box, stated if size is None else scaled(stated, size, video)))
    scores = {"strict": _mean(accepted)}
    for prefix, ious in (("", plain), ("scaled_", moved)):
        scores[f"{prefix}viou"] = _mean(ious)
        scores |= {f"{prefix}ap@{overlap}": _mean([iou >= overlap for iou in ious]) for overlap in OVERLAPS}
    return Verdict(
        extracted=block(answer)[:SHOWN] if found else "",
        scores=scores,
        note="" if found else f"{answer.strip()[-60:]!r} has no JSON of boxes by second",
    )


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else 0.0


# --------------------------------------------------------------------------------------------------- items


Above0 = Annotated[float, Meta(gt=0)]
Side = Annotated[int, Meta(gt=0)] | Above0


class _BoxAt(msgspec.Struct, frozen=True):
    timestamp: int | float | str
    xmin: int | float
    ymin: int | float
    xmax: int | float
    ymax: int | float


class _Item(msgspec.Struct, frozen=True, kw_only=True):
    """An item; other fields are not read."""

    vid: Annotated[str, Meta(pattern=r"\A[^/]+\Z")] | int
    domain: str = "unknown"
    fps: Above0
    width: Side
    height: Side
    frame_count: Above0
    question: str
    answer: str
    temporal_question: str
    timestamps: tuple[int | float, int | float]
    spatial_question: str
    spatial_question_2: str
    bboxes: list[_BoxAt]


def _item(place: str, raw: msgspec.Raw) -> _Item:
    """Return an item in the official form.

    Raises:
        DataError: it is not; starts with `place`.
    """
    try:
        item = msgspec.json.decode(raw, type=_Item)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(
            f"{place}: {error}, in {bytes(raw)[:300]!r}", remedy=f"download {FILE} again"
        ) from None
    start, end = item.timestamps
    if not -1e9 < start <= end < 1e9:
        raise DataError(f"{place}: timestamps {item.timestamps!r:.80}: must be start and end in seconds")
    for number, box in enumerate(map(_corners, item.bboxes)):
        if not (box[0] <= box[2] and box[1] <= box[3] and max(map(abs, box)) < 1e9):
            rule = "must be finite with xmin <= xmax and ymin <= ymax"
            raise DataError(f"{place}: bboxes[{number}] {box!r:.80}: {rule}")
    return item


def _corners(box: _BoxAt) -> Box:
    return box.xmin, box.ymin, box.xmax, box.ymax


def _question(part: str, index: int, video: str, item: _Item) -> Question:
    truth: Any = Track(tuple((str(box.timestamp), _corners(box)) for box in item.bboxes))
    if part == "what":
        truth = item.answer
    elif part in {"when", "when_2"}:
        truth = item.timestamps
    text = {
        "what": item.question,
        "where": item.spatial_question,
        "where_2": item.spatial_question_2,
    }.get(part, item.temporal_question)
    return Question(
        id=f"{index}/{part}",
        video=video,
        task=part,
        scene=item.domain,
        text=text,
        truth=truth,
        row={
            "index": index,
            "length": round(item.frame_count / item.fps, 2),
            "size": (item.width, item.height),
            "seconds": list(range(math.ceil(item.timestamps[0]), math.floor(item.timestamps[1]) + 1)),
            "from": math.ceil(item.timestamps[0]),
            "boxes": [list(_corners(box)) for box in item.bboxes],
        },
    )


# ------------------------------------------------------------------------------------------------- prompts

_INDENT = " " * 20


def _ask_what(question: Question) -> str:
    note = "(If the answer is a person, you don't need to identify the person.)"
    return f"Answer the question about the video: {question.text} \n {note}"


def _ask_when(question: Question) -> str:
    return _as_tuple(
        f"This video is {question.row['length']} seconds long. Answer the question about the video: {question.text} \n "
        "Output the start and end moment timestamps."
    )


def _ask_when_2(question: Question) -> str:
    width, height = question.row["size"]
    known = question.row["boxes"]
    return _as_tuple(
        f"This video is {question.row['length']} seconds long with a resolution of {width}x{height} (width x height). "
        f"Answer the question about the video: {question.text} \n There are {len(known)} bounding boxes of the key object "
        f"related to the question in the video without knowing the time, which are:{known}. "
        "Output the start and end moment timestamps."
    )


def _as_tuple(text: str) -> str:
    """Return the repr of a tuple: a comma in `inference_demo.py` makes the prompt one, and the chat template shows that."""
    return str((text,))


def _ask_where(question: Question) -> str:
    seconds = question.row["seconds"]
    # No whole second in the span: the original fails there and skips the item.
    first = seconds[0] if seconds else question.row["from"]
    return (
        f"{_box_question(question)}{_INDENT}For each whole second within the time range {seconds} provided (inclusive of the "
        "boundaries), output a series of bounding boxes of the object in JSON format. The keys should be the whole seconds (as "
        f"strings), and the values should be the box in [x1, y1, x2, y2] format.\n{_INDENT}Example output: "
        f'{{"{first}": [x1, y1, x2, y2],...}}\n{_INDENT}'
    )


def _ask_where_2(question: Question) -> str:
    count = len(question.truth.boxes)
    return (
        f"{_box_question(question)}{_INDENT}For each whole second that may related to the question, output a series of bounding "
        f"boxes of the object in JSON format. You only need to output {count} bbox(es). You need to determine which frame is "
        "related to the question, and you don't need to output the bbox for the frames not related to the question.\n"
        f"{_INDENT}The keys should be the whole seconds (as strings), and the values should be the bounding box in "
        f"[x0,y0,x1,y1] format. \n{_INDENT}\n Example output:\n{_INDENT}"
        f'{{"0": [x0,y0,x1,y1], "1":..., ..., "{count}":...}} (if the frames at 0~{count} second are related to the questions)\n'
        f"{_INDENT}"
    )


def _box_question(question: Question) -> str:
    box = "with a series of bounding boxes in [x1, y1, x2, y2] format."
    return f"Please answer the question about the video: {question.text} {box} \n\n"


_PROMPTS: Mapping[str, Callable[[Question], str]] = {
    "what": _ask_what,
    "when": _ask_when,
    "where": _ask_where,
    "when_2": _ask_when_2,
    "where_2": _ask_where_2,
}
