"""VSI-Bench: questions about rooms, choices and numbers (arXiv 2412.14171).

In: `test.jsonl` or `test-*.parquet` of huggingface.co/datasets/nyu-visionx/VSI-Bench; texts of a model. Out: questions, verdicts,
and the eight task scores with their mean, as `lmms_eval/tasks/vsibench/utils.py` of github.com/vision-x-nyu/thinking-in-space at
commit 51e089c computes them, with a stricter reading as well. docs/evaluation.md has the traps of the original. Benchmarks in the
same form are subclasses.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from videostr.answers import chosen_letter, mean_relative_accuracy, stated_number
from videostr.data.records import plain_rows
from videostr.digests import digest
from videostr.errors import DataError
from videostr.evaluate.benchmark import LIMIT, Question, QuestionSet, Verdict, mean
from videostr.json_files import json_rows

FILE = "test.jsonl"
SHARDS = ("test-*.parquet", "data/test-*.parquet")
LEVELS = ("object_rel_direction_easy", "object_rel_direction_medium", "object_rel_direction_hard")
_ALLOWED = 1 - np.linspace(0.5, 0.95, 10)
_OPTION = re.compile(r"([A-Z])\.\s*(.*)", re.DOTALL)


class VsiBench:
    """VSI-Bench with the default prompt and the scoring of its repository."""

    name: str = "vsi_bench"
    columns: tuple[str, ...] = ("accuracy", "mra", "strict")
    tasks: Mapping[str, tuple[str, ...]] = {
        "object_counting": ("object_counting",),
        "object_abs_distance": ("object_abs_distance",),
        "object_size_estimation": ("object_size_estimation",),
        "room_size_estimation": ("room_size_estimation",),
        "object_rel_distance": ("object_rel_distance",),
        "object_rel_direction": LEVELS,
        "route_planning": ("route_planning",),
        "obj_appearance_order": ("obj_appearance_order",),
    }
    """Task, in the order of the official output -> its question types, whose figures are averaged."""
    units: Mapping[str, str] = {
        "object_counting": "",
        "object_abs_distance": "m",
        "object_size_estimation": "cm",
        "room_size_estimation": "m2",
    }
    """Question types whose answers are numbers -> the unit in which they are asked. The others are choices."""
    number_form: str = "Please answer the question using a single word or phrase."
    """End of the official prompt where the answer is a number."""

    def files(self, root: Path) -> list[Path]:
        """Return the question files; `test.jsonl` where both forms are there."""
        shards = sorted(path for pattern in SHARDS for path in root.glob(pattern))
        return [root / FILE] if (root / FILE).is_file() or not shards else shards

    def read(self, root: Path) -> QuestionSet:
        """Return all questions, in the order of the file. Ids are the file's.

        Raises:
            DataError: no file is there, or a row breaks the official form; names file, row, field and rule.
        """
        paths = self.files(root)
        contents: list[bytes] = []
        questions: dict[str, Question] = {}
        for path in paths:
            try:
                content = path.read_bytes()
            except OSError as error:
                raise DataError(
                    f"{path}: cannot be read ({error.strerror})",
                    remedy=f"root must be the folder of {self.name} with {FILE} or {SHARDS[0]}",
                ) from None
            contents.append(content)
            for place, row in _rows(path, content):
                question = self.question(place, row)
                if question.id in questions:
                    raise DataError(
                        f"{place}: id {question.id!r}: is there twice", remedy="ids must be unique"
                    )
                questions[question.id] = question
        if not questions:
            raise DataError(f"{paths[0]}: has no questions", remedy="download it again")
        return QuestionSet(questions=tuple(questions.values()), digest=digest(b"".join(contents)))

    def prompt(self, question: Question, seconds: float, size: tuple[int, int]) -> str:
        """Return the text of `lmms_eval_specific_kwargs: default`."""
        options = question.row["options"]
        if options is None:
            lines = (question.text, self.number_form)
        else:
            lines = (
                question.text,
                "Options:",
                *options,
                "Answer with the option's letter from the given choices directly.",
            )
        return "\n".join(("These are frames of a video.", *lines))

    def asks(self, question: Question) -> str:
        """Return a letter or a number."""
        if question.options:
            return "the letter of the right option"
        unit = self.units[question.row["question_type"]]
        return f"one number in {unit}" if unit else "one number"

    def first_token(self, answer: str) -> str:
        """Return what the official code reads: the text before the first blank, without full stops at its end and white space."""
        return answer.split(" ", 1)[0].rstrip(".").strip()

    def score(self, question: Question, answer: str, size: tuple[int, int] | None) -> Verdict:
        """Return `accuracy` or `mra` of the official first token; `strict` by `chosen_letter` or `stated_number`."""
        token = self.first_token(answer)
        plain = " ".join(answer.split()) if len(answer) <= LIMIT else ""
        if question.options:
            right = float(token.lower() == question.truth.lower())
            strict = float(chosen_letter(plain, question.options) == question.truth.upper())
            is_letter = len(token) == 1 and token.upper() in question.row["letters"]
            return Verdict(
                extracted=token if is_letter else "",
                scores={"accuracy": right, "strict": strict},
                note="" if is_letter else f"{token[:60]!r}, all before the first blank, is not a letter",
            )
        said, truth = _number(token), float(question.truth)
        mra = 0.0 if said is None else float(_relative_accuracy(said, np.array([truth]))[0])
        number = stated_number(plain, self.units[question.row["question_type"]])
        strict = 0.0 if number is None else mean_relative_accuracy(number, truth)
        is_number = said is not None and not math.isnan(said)
        return Verdict(
            extracted=token[:400] if is_number else "",
            scores={"mra": mra, "strict": strict},
            note="" if is_number else f"{token[:60]!r}, all before the first blank, is not a number",
        )

    def chance(self, question: Question) -> Mapping[str, float]:
        """Return 1 divided by the number of options; not defined for numbers."""
        if not question.options:
            return {}
        return {"accuracy": 1 / len(question.options), "strict": 1 / len(question.options)}

    def constant(self, questions: Sequence[Question]) -> Mapping[str, str]:
        """Return the best single answer to each question type: the paper's "chance level (frequency)".

        Of numbers, the true one that scores most over all questions of the type. Of choices, one letter or one option text,
        whichever is right more often; a question without that text gets the text, which is wrong. Of several that are equally
        good, a letter, then the first in the order of the file.
        """
        types: dict[str, list[Question]] = defaultdict(list)
        for question in questions:
            types[question.row["question_type"]].append(question)
        return {
            question.id: answer
            for same in types.values()
            for question, answer in zip(same, _best_answers(same), strict=True)
        }

    def figures(
        self, questions: Sequence[Question], scores: Mapping[str, np.ndarray], weights: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Percent: `overall` (mean of the tasks present), `task/...`, `level/...` of direction, and the same below `strict/`."""
        types = np.array([question.row["question_type"] for question in questions], dtype=object)
        nothing = np.full(len(questions), np.nan)
        accuracy, mra = (scores.get(column, nothing) for column in ("accuracy", "mra"))
        official = np.where(np.isin(types, list(self.units)), mra, accuracy)
        strict = scores["strict"]
        return self._figures("", types, official, weights) | self._figures("strict/", types, strict, weights)

    def _figures(
        self, prefix: str, types: np.ndarray, values: np.ndarray, weights: np.ndarray
    ) -> dict[str, np.ndarray]:
        tasks: dict[str, np.ndarray] = {}
        levels: dict[str, np.ndarray] = {}
        for task, kinds in self.tasks.items():
            parts = {
                kind: 100 * mean(values[types == kind], weights[:, types == kind])
                for kind in kinds
                if kind in types
            }
            if parts:
                tasks[task] = _mean_of_present(parts)
            if len(kinds) > 1:
                levels |= parts
        found = {f"{prefix}overall": _mean_of_present(tasks)}
        found |= {f"{prefix}task/{task}": value for task, value in tasks.items()}
        return found | {f"{prefix}level/{level}": value for level, value in levels.items()}

    def question(self, place: str, row: Any) -> Question:
        """Return a row in the official form.

        Raises:
            DataError: it is not; starts with `place`.
        """
        try:
            record = msgspec.convert(row, Row)
        except msgspec.ValidationError as error:
            raise DataError(f"{place}: {error}, in {row!r:.300}", remedy="download the file again") from None
        truth, kind = str(record.ground_truth), record.question_type
        task = next((task for task, kinds in self.tasks.items() if kind in kinds), "")
        if not task:
            known = ", ".join(sorted(kind for kinds in self.tasks.values() for kind in kinds))
            raise DataError(f"{place}: question_type {kind!r:.80}: must be one of {known}")
        options: tuple[str, ...] = ()
        if kind not in self.units:
            options = _options(place, record)
            if not (len(truth) == 1 and truth.upper() in _letters(options)):
                raise DataError(
                    f"{place}: ground_truth {truth!r:.80}: must be one of the {len(options)} options' letters"
                )
        elif (value := _number(truth)) is None or not 0 < value < math.inf:
            raise DataError(
                f"{place}: ground_truth {truth!r:.80}: must be a number above 0, the metric divides by it"
            )
        return Question(
            id=str(record.id),
            video=self.video(place, record),
            task=task,
            source=record.dataset,
            text=record.question,
            options=options,
            truth=truth,
            row={
                "question_type": kind,
                "options": record.options if options else None,
                "letters": _letters(options),
                "pruned": record.pruned,
            },
        )

    def video(self, place: str, record: Row) -> str:
        """Return the path of a row's video below the root.

        Raises:
            DataError: a name would lead out of the folder; starts with `place`.
        """
        return f"{file_name(place, 'dataset', record.dataset)}/{file_name(place, 'scene_name', record.scene_name)}.mp4"


def file_name(place: str, field: str, name: str) -> str:
    """Return a name of a file or folder.

    Raises:
        DataError: it would lead elsewhere; starts with `place`.
    """
    if "/" in name or name in {"", ".", ".."}:
        raise DataError(f"{place}: {field} {name!r:.80}: must be the name of a folder or file")
    return name


def _mean_of_present(parts: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return [B] means of several [B], without those that are NaN; NaN where all are."""
    stacked = np.stack(list(parts.values()))
    there = ~np.isnan(stacked)
    means: np.ndarray = np.full(stacked.shape[1], np.nan)
    np.divide(np.where(there, stacked, 0).sum(axis=0), there.sum(axis=0), out=means, where=there.any(axis=0))
    return means


def _best_answers(questions: Sequence[Question]) -> list[str]:
    """Return the answers of the best constant policy to questions of one type."""
    if not questions[0].options:
        truths = np.array([float(question.truth) for question in questions])
        texts = list(dict.fromkeys(question.truth for question in questions))
        best = max(texts, key=lambda text: _relative_accuracy(float(text), truths).mean())
        return [best] * len(questions)
    letter, count = Counter(question.truth.upper() for question in questions).most_common(1)[0]
    text, count_of_text = Counter(map(_true_text, questions)).most_common(1)[0]
    if count >= count_of_text:
        return [letter] * len(questions)
    return [
        _letters(question.options)[question.options.index(text)] if text in question.options else text
        for question in questions
    ]


def _true_text(question: Question) -> str:
    return question.options[_letters(question.options).index(question.truth.upper())]


def _relative_accuracy(said: float, truths: np.ndarray) -> np.ndarray:
    """Return [N] official scores of one number for N truths above 0."""
    accuracy: np.ndarray = ((np.abs(said - truths) / truths)[:, None] <= _ALLOWED).mean(axis=1)
    return accuracy


def _number(token: str) -> float | None:
    try:
        return float(token)
    except ValueError:
        return None


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A row; other fields are not read."""

    id: int | str
    dataset: str
    scene_name: str = ""
    scene_id: str = ""
    question_type: str
    question: str
    ground_truth: str | int | float
    options: list[str] | None = None
    pruned: bool | None = None
    """Whether the authors left it out of VSI-Bench-Debiased; None where the file is older."""


def _rows(path: Path, content: bytes) -> Iterator[tuple[str, Any]]:
    """Yield place and content of each row of a file."""
    if path.suffix == ".parquet":
        try:
            table = pq.read_table(pa.BufferReader(content))
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path}: is no Parquet file ({error})", remedy="download it again") from None
        yield from ((f"{path}: row {number}", row) for number, row in enumerate(plain_rows(table)))
        return
    for place, row in json_rows(path, "a question"):
        try:
            yield place, msgspec.json.decode(row)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise DataError(
                f"{place}: {row!r:.80} is no JSON ({error})", remedy="download it again"
            ) from None


def _options(place: str, record: Row) -> tuple[str, ...]:
    """Return texts of the options, without "A. "."""
    matches = [_OPTION.fullmatch(option) for option in record.options or ()]
    texts = [match.group(2) for match in matches if match]
    letters = "".join(match.group(1) for match in matches if match)
    if len(texts) < 2 or len(texts) < len(matches) or letters != _letters(texts):
        raise DataError(
            f"{place}: options {record.options!r:.200}: must be 'A. text', 'B. text', ... of a choice"
        )
    return tuple(texts)


def _letters(options: Sequence[str]) -> str:
    return "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[: len(options)]
