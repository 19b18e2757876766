"""Texts that exist already: `{"id", "prediction"}` a line, from any model and program, or the samples that lmms-eval logs.

In: a file of JSON lines, or of one JSON array, and the questions of a benchmark. Out: the text of each question that has
one, and what does not fit, counted and named; nothing that is missing is passed over in silence.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec

from videostr.errors import DataError
from videostr.evaluate.benchmark import Question
from videostr.json_files import json_rows
from videostr.schema_rules import field_problem

Side = Annotated[int, msgspec.Meta(ge=1)]
NO_TEXT = "[LMMS_EVAL_"
"""As in "[LMMS_EVAL_REQUEST_FAILED after 5 retries] ..."."""
NAMED = 5
"""Ids named in a message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """One line."""

    text: str
    size: tuple[int, int] | None = None
    """Width and height of the frames that the model was shown, pixels (`"width"`, `"height"`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictions:
    """A file, held against the questions."""

    by_id: dict[str, Prediction]
    missing: tuple[str, ...]
    """Questions without a prediction; they count as wrong."""
    unknown: tuple[str, ...]
    """Ids that the benchmark does not have; they count for nothing."""
    repeated: tuple[str, ...]
    """Ids that are there again with the same text; they count once."""

    def problems(self) -> list[str]:
        """Return what does not fit, in words."""
        told = (
            (self.missing, "questions without a prediction, which count as wrong"),
            (self.unknown, "ids that are of no question, which are left out"),
            (self.repeated, "ids that are there again with the same text, which count once"),
        )
        return [f"{what}: {len(names)} ({_some(names)})" for names, what in told if names]


class _Line(msgspec.Struct):
    id: int | str
    prediction: str
    width: Side | None = None
    height: Side | None = None


class _Sample(msgspec.Struct):
    """A line of lmms-eval's `--log_samples`; a text that begins with `NO_TEXT` says why the model wrote none."""

    doc_id: Annotated[int, msgspec.Meta(ge=0)]
    """Place of the question in its file, from 0."""
    filtered_resps: str
    resps: str | None = None
    """The whole text, where something was taken off."""


def read_predictions(path: Path, questions: Sequence[Question]) -> Predictions:
    """Read a file of predictions.

    Raises:
        DataError: the file or a line cannot be read, an id is there twice with different texts, or no id is one of the
            benchmark's; names file and line.
    """
    found: dict[str, Prediction] = {}
    places: dict[str, str] = {}
    repeated: dict[str, None] = {}
    for place, row in json_rows(path, "a prediction"):
        name, prediction = _row(place, row, questions)
        if prediction.text.startswith(NO_TEXT):
            continue
        if name in found and found[name] != prediction:
            raise DataError(
                f"{place}: id {name!r} is there twice, in {_short(places[name], path)} with another text",
                remedy="keep one of them",
            )
        if name in found:
            repeated[name] = None
        found[name], places[name] = prediction, place
    known = {question.id for question in questions}
    unknown = tuple(name for name in found if name not in known)
    by_id = {name: prediction for name, prediction in found.items() if name in known}
    if not by_id:
        example = questions[0].id if questions else "none"
        raise DataError(
            f"{path}: none of its {len(found)} ids is one of the benchmark's {len(questions)} (such as {example!r})",
            remedy="check --benchmark and --root",
        )
    missing = tuple(question.id for question in questions if question.id not in by_id)
    return Predictions(by_id=by_id, missing=missing, unknown=unknown, repeated=tuple(repeated))


def _short(place: str, path: Path) -> str:
    """Return a place of this file, without its path: "line 3", or "item [2]" of an array."""
    rest = place.removeprefix(str(path))
    return f"line {rest[1:]}" if rest.startswith(":") else f"item {rest}"


def _row(where: str, row: bytes, questions: Sequence[Question]) -> tuple[str, Prediction]:
    form: type[_Line | _Sample] = _Line
    try:
        # msgspec's own decoder refuses the lone surrogates that may be in texts.
        found = json.loads(row)
        if isinstance(found, dict) and "doc_id" in found:
            form = _Sample
        line = msgspec.convert(found, form)
    except msgspec.ValidationError as error:
        problem = field_problem(error, form)
        raise DataError(f"{where}: {problem}", remedy='write {"id": ..., "prediction": "..."}') from None
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{where}: is not JSON ({error})", remedy='write {"id": ..., "prediction": "..."}'
        ) from None
    if isinstance(line, _Sample):
        place = line.doc_id
        name = questions[place].id if place < len(questions) else f"doc_id {place}"
        return name, Prediction(text=line.filtered_resps if line.resps is None else line.resps)
    size = None if line.width is None or line.height is None else (line.width, line.height)
    if size is None and line.width != line.height:
        raise DataError(
            f"{where}: width and height: must both be there, the pixels of the frames that the model was shown"
        )
    return str(line.id), Prediction(text=line.prediction, size=size)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
