"""STI-Bench: 2,064 questions with five options about videos of desks, rooms and streets (arXiv 2503.23765).

In: `qa.parquet` of huggingface.co/datasets/MINT-SJTU/STI-Bench; texts of a model. Out: questions, verdicts, and the micro
accuracy overall, by task, scene and source, as `opensource_test.py` of github.com/MINT-SJTU/STI-Bench at commit 43ddebe computes
it, with a stricter reading as well. docs/evaluation.md has the traps of the original.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from videostr.answers import chosen_letter
from videostr.data.records import plain_rows
from videostr.digests import digest
from videostr.errors import DataError
from videostr.evaluate.benchmark import LIMIT, Question, QuestionSet, Verdict, mean

FILE = "qa.parquet"
LETTERS = "ABCDE"

_L = "([A-E])"
# Tried in this order; the first that is found anywhere counts. Case is ignored, also that of the letter: "Answer: a chair" is A.
_PATTERNS = tuple(
    re.compile(pattern, re.IGNORECASE | re.MULTILINE)
    for pattern in (
        rf"\({_L}\)",
        rf"Ans\s*=\s*['\"]?{_L}",
        rf"Answer\s*[:=]\s*{_L}",
        rf"Option\s+{_L}",
        rf"\b{_L}\s*(?:is|was)\s*correct",
        rf"\b{_L}[.)]\s*$",
    )
)


class StiBench:
    """STI-Bench with the prompt and the scoring of its script for open models."""

    name: str = "sti_bench"
    columns: tuple[str, ...] = ("accuracy", "strict")

    def read(self, root: Path) -> QuestionSet:
        """Return all questions, in the order of `qa.parquet`.

        An id is `Video|ID|time_start|time_end`, which the official script calls a record's key; the plain `ID` where that is
        unique in the file. Videos are looked for in `video/`, or in `videos/` if only that is there.

        Raises:
            DataError: the file is missing or no Parquet, or a row breaks the official form; names file, row, field and rule.
        """
        path = root / FILE
        try:
            content = path.read_bytes()
            rows = plain_rows(pq.read_table(pa.BufferReader(content)))
        except OSError as error:
            raise DataError(
                f"{path}: cannot be read ({error.strerror or error})",
                remedy=f"root must be the folder of STI-Bench with {FILE}",
            ) from None
        except pa.ArrowException as error:
            raise DataError(f"{path}: is no Parquet file ({error})", remedy="download it again") from None
        records = [_record(f"{path}: row {number}", row) for number, row in enumerate(rows)]
        if not records:
            raise DataError(f"{path}: has no rows", remedy="download it again")
        plain = [str(record.id) for record in records]
        ids = plain if len(set(plain)) == len(plain) else [_key(record) for record in records]
        seen: dict[str, int] = {}
        for number, key in enumerate(ids):
            if key in seen:
                raise DataError(
                    f"{path}: row {number}: Video|ID|time_start|time_end is {key!r}, as in row {seen[key]}",
                    remedy="keys must be unique",
                )
            seen[key] = number
        folder = "videos" if (root / "videos").is_dir() and not (root / "video").is_dir() else "video"
        questions = tuple(_question(key, folder, record) for key, record in zip(ids, records, strict=True))
        return QuestionSet(questions=questions, digest=digest(content))

    def prompt(self, question: Question, seconds: float, size: tuple[int, int]) -> str:
        """Return the text of `opensource_test.py`, which stands after the video; times as the file has them."""
        options = "\n".join(f"({letter}) {text}" for letter, text in question.row["candidates"].items())
        start, end = question.row["times"]
        return f"From {start} s to {end} s. {question.text}\n{options}\nPlease output only the option letter!"

    def asks(self, question: Question) -> str:
        """Return a letter."""
        return "the letter of the right option"

    def score(self, question: Question, answer: str, size: tuple[int, int] | None) -> Verdict:
        """Return `accuracy` by the official patterns, else by the last character; `strict` by `chosen_letter`."""
        read = extract(answer)
        strict = _strict_letter(answer, question.options)
        return Verdict(
            extracted=read,
            scores={"accuracy": float(read == question.truth), "strict": float(strict == question.truth)},
            note=""
            if read
            else f"{answer.strip()[-60:]!r} names no option and does not end with one of {LETTERS}",
        )

    def chance(self, question: Question) -> Mapping[str, float]:
        """Return 1 divided by the number of options."""
        return dict.fromkeys(self.columns, 1 / len(question.options))

    def constant(self, questions: Sequence[Question]) -> Mapping[str, str]:
        """Return the most frequent letter of the question's task, the first in the alphabet of several."""
        tasks: dict[str, Counter[str]] = defaultdict(Counter)
        for question in questions:
            tasks[question.task][question.truth] += 1
        best = {task: max(sorted(count), key=count.__getitem__) for task, count in tasks.items()}
        return {question.id: best[question.task] for question in questions}

    def figures(
        self, questions: Sequence[Question], scores: Mapping[str, np.ndarray], weights: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Return micro accuracies, percent: `overall`, `task/...`, `scene/...`, `source/...`, then the same below `strict/`."""
        groups: dict[str, np.ndarray] = {"overall": np.ones(len(questions), dtype=bool)}
        for prefix, of in (
            ("task", [q.task for q in questions]),
            ("scene", [q.scene for q in questions]),
            ("source", [q.source for q in questions]),
        ):
            for value in sorted(set(of) - {""}):
                groups[f"{prefix}/{value}"] = np.array([other == value for other in of])
        return {
            f"{prefix}{name}": 100 * mean(scores[column][inside], weights[:, inside])
            for prefix, column in (("", "accuracy"), ("strict/", "strict"))
            for name, inside in groups.items()
        }


def extract(answer: str) -> str:
    """Return the letter that the official script reads, "" for none. Linear in the length of the text."""
    for pattern in _PATTERNS:
        match = pattern.search(answer)
        if match:
            return match.group(1).upper()
    last = answer.strip()[-1:]
    return last if last and last in LETTERS else ""


def _strict_letter(answer: str, options: tuple[str, ...]) -> str | None:
    return chosen_letter(" ".join(answer.split()), options) if len(answer) <= LIMIT else None


class _Record(msgspec.Struct, frozen=True, kw_only=True):
    """A row; other columns are not read."""

    video: str = msgspec.field(name="Video")
    id: int | str = msgspec.field(name="ID")
    time_start: int | float
    time_end: int | float
    question: str = msgspec.field(name="Question")
    candidates: dict[str, str | int | float | None] = msgspec.field(name="Candidates")
    answer: str = msgspec.field(name="Answer")
    task: str = msgspec.field(name="Task")
    source: str | None = msgspec.field(name="Source", default=None)
    scene: str | None = None
    scene_2: str | None = msgspec.field(name="Scene", default=None)


def _record(place: str, row: dict[str, Any]) -> _Record:
    """Return a row in the official form.

    Raises:
        DataError: it is not; starts with `place`.
    """
    row = dict(row)
    if isinstance(row.get("Candidates"), str):
        try:
            row["Candidates"] = json.loads(row["Candidates"])
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{place}: Candidates {row['Candidates']!r:.80}: must be a dict or JSON ({error})"
            ) from None
    try:
        record = msgspec.convert(row, _Record)
    except msgspec.ValidationError as error:
        raise DataError(f"{place}: {error}, in {row!r:.300}", remedy=f"download {FILE} again") from None
    letters = [letter for letter, text in record.candidates.items() if text is not None]
    if not (2 <= len(letters) <= len(LETTERS) and sorted(letters) == list(LETTERS[: len(letters)])):
        raise DataError(
            f"{place}: Candidates has the options {letters}",
            remedy=f"must be 2 to {len(LETTERS)} letters from A on",
        )
    if record.answer not in letters:
        raise DataError(f"{place}: Answer {record.answer!r:.80}: must be one of {letters}")
    if not (
        math.isfinite(record.time_start)
        and math.isfinite(record.time_end)
        and record.time_start <= record.time_end
    ):
        raise DataError(
            f"{place}: time_start {record.time_start}, time_end {record.time_end}: must be finite and in order"
        )
    if record.video.startswith("/") or ".." in record.video.split("/"):
        raise DataError(f"{place}: Video {record.video!r:.80}: must lie below the folder of the videos")
    return record


def _key(record: _Record) -> str:
    return f"{record.video}|{record.id}|{record.time_start}|{record.time_end}"


def _question(key: str, folder: str, record: _Record) -> Question:
    texts = [record.candidates.get(letter) for letter in LETTERS]
    return Question(
        id=key,
        video=f"{folder}/{record.video}",
        task=record.task,
        scene=record.scene or record.scene_2 or _scene(record.video),
        source=record.source or "",
        start_s=float(record.time_start),
        end_s=float(record.time_end),
        text=record.question,
        options=tuple(str(text) for text in texts if text is not None),
        truth=record.answer,
        # A struct column fills up with nulls; the official prompt prints them: "(E) None".
        row={"candidates": record.candidates, "times": (record.time_start, record.time_end)},
    )


def _scene(video: str) -> str:
    """Return the kind of scene by the official rule on names: Waymo's cameras, ScanNet's scenes, Omni6DPose's six digits."""
    stem = video.split(".")[0]
    if "camera" in video:
        return "outdoor"
    if video.startswith("scene"):
        return "indoor"
    return "desktop" if stem.isdigit() and len(stem) == 6 else "unknown"
