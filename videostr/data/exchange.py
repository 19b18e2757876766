"""Rows of Video-R1 and SpaceR: records -> their files, their files -> records.

In and out: JSON lines, or one JSON array, of rows with problem_id, problem, data_type, problem_type, options, solution, path and
data_source.

What they lose: the graph and its labels, the family, the number and size of the frames, and the interval: those trainers show the
whole video, to which the times in our questions refer. Answers that are neither choices nor numbers have no type there, so those
records are left out. A unit stands at the end of the problem as "Answer in m." Of a record with marks the frames that are shown
are written as a video of their own, marks drawn in, and the problem begins with their times (`marked_export.py`); as images, the
row also has `frames`, a list of files, and `path` is their folder.

Question, options and answer come back as they were, a number to its last digit. Options must not contain line breaks. Videos are
written with absolute paths. A list of images (`*.frames.json`) is a video to this project only: other trainers need a file there,
made e.g. with ffmpeg.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import msgspec

from videostr.chat import LIKELY, escape
from videostr.data.marked_export import Form, Marked, Written, write_marked
from videostr.data.records import record_from_row
from videostr.data.tasks import Pool, Submit, in_order, once, processes
from videostr.errors import RecordError
from videostr.files import make_folder, replacing
from videostr.json_files import json_rows
from videostr.options import letter_of, option_texts
from videostr.prompt import answer_text
from videostr.schema_rules import field_problem
from videostr.types import Answer, AnswerKind, Failure, FailureKind, Record
from videostr.video import name_clip

NUM_FRAMES = 16
"""Frames to show of a video whose row does not say how many."""
CHOICE_TYPE = "multiple choice"
NUMBER_TYPES = ("numerical", "regression")
"""Video-R1 wants the first to be equal, the second to be near: counts, measurements."""


# ------------------------------------------------------------------------------------------------------ export


def export_video_r1(
    records: Iterable[Record],
    out_jsonl: Path,
    root: Path,
    marked: Form | None = "videos",
    workers: int | None = None,
    pool: Pool = processes,
) -> int:
    """Write Video-R1 rows of the choices and numbers; returns how many, which may be less than there are records.

    Args:
        records: of a dataset.
        out_jsonl: file to write.
        root: folder of the dataset, which its videos are relative to.
        marked: what is written of clips with marks, into a folder `NAME-marked` next to the file; None leaves their records out.
        workers: clips that are written at once; None for one on each core.
        pool: what writes them; `actors.data_tasks.ray_tasks` on a cluster.

    Raises:
        VideoError: a clip with marks cannot be read.
    """
    folder = out_jsonl.parent / f"{out_jsonl.stem}-marked"
    make_folder(out_jsonl.parent)
    count = 0
    told = (record for record in records if record.answer.kind in (AnswerKind.CHOICE, AnswerKind.NUMBER))
    if marked is None:
        told = (record for record in told if not record.marks)
    with (
        replacing(out_jsonl) as scratch,
        scratch.open("w", encoding="utf-8") as file,
        pool(workers) as (number, submit),
    ):
        for record, written in in_order(_clips(told, root, folder, marked, submit), number):
            row = _video_r1_row(record, root)
            if written is not None:
                row |= {"problem": written.line + row["problem"], "path": str(written.path.resolve())}
            if written is not None and written.images:
                row["frames"] = [str(image.resolve()) for image in written.images]
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count


def _clips(
    records: Iterable[Record], root: Path, folder: Path, form: Form | None, submit: Submit
) -> Iterator[tuple[Record, Callable[[], Written | None]]]:
    """Yield records with what waits for their clip to be written; records that show the same frames and marks share one."""
    start = once(submit)
    for record in records:
        if form is None or not record.marks:
            yield record, _nothing
            continue
        clip = name_clip(record.clip, root)
        make_folder(folder)
        yield record, start(clip.digest, write_marked, Marked(clip=clip, folder=folder, form=form))


def _nothing() -> None:
    """Return what is written of a clip without marks."""


def _video_r1_row(record: Record, root: Path) -> dict[str, Any]:
    answer = record.answer
    is_choice = answer.kind is AnswerKind.CHOICE
    is_count = not answer.unit and isinstance(answer.value, float) and answer.value.is_integer()
    unit = f" Answer in {answer.unit}." if answer.unit and not is_choice else ""
    return {
        "problem_id": record.id,
        "problem": escape(record.question, LIKELY) + unit,
        "data_type": "video",
        "problem_type": CHOICE_TYPE if is_choice else NUMBER_TYPES[0 if is_count else 1],
        "options": [f"{letter}. {option}" for letter, option in _lettered(option_texts(record.options))],
        "solution": f"<answer>{_text(answer)}</answer>",
        "path": str((root / record.clip.video).resolve()),
        "data_source": record.source,
    }


def _text(answer: Answer) -> str:
    """Return the answer; a number with all its digits."""
    if isinstance(answer.value, float):
        return str(int(answer.value)) if answer.value.is_integer() else repr(answer.value)
    return answer_text(answer)


# ------------------------------------------------------------------------------------------------------ import


class _VideoR1(msgspec.Struct):
    problem_id: int | str
    problem: str
    data_type: Literal["video"]
    problem_type: Literal["multiple choice", "numerical", "regression"]
    solution: str
    path: str
    options: list[str] | None = None
    data_source: str | None = None


def import_video_r1(
    in_jsonl: Path, *, num_frames: int = NUM_FRAMES, unit: str = "", source: str = "video-r1"
) -> Iterator[Record | Failure]:
    """Yield records of rows about videos whose answer is a choice or a number; a `Failure` for every other row.

    The id is the problem's where that is a text, else SOURCE/VIDEO/PROBLEM; the family is the type of the problem.

    Args:
        in_jsonl: file with a row a line, or one JSON array of rows, of Video-R1 or SpaceR.
        num_frames: frames to show; the rows do not say.
        unit: of numbers whose problem does not end in "Answer in UNIT.".
        source: of rows without `data_source`.

    Raises:
        DataError: the file cannot be read, or is neither JSON lines nor a JSON array.
    """
    seen: set[str] = set()
    for origin, line in json_rows(in_jsonl, "a row of Video-R1"):
        try:
            record = _record(_row(line, origin), origin, num_frames, unit, source)
            if record.id in seen:
                raise RecordError(
                    f"{origin}: id {record.id!r} stands in an earlier row", remedy="ids must be unique"
                )
        except RecordError as error:
            yield Failure(kind=FailureKind.BAD_ROW, record_id=origin, detail=str(error))
            continue
        seen.add(record.id)
        yield record


def _row(line: bytes, origin: str) -> _VideoR1:
    try:
        return msgspec.json.decode(line, type=_VideoR1)
    except msgspec.ValidationError as error:
        raise RecordError(f"{origin}: {field_problem(error, _VideoR1)}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RecordError(f"{origin}: {error}") from None


def _record(row: _VideoR1, origin: str, num_frames: int, unit: str, source: str) -> Record:
    """Return the record of a row, checked as every other."""
    kind = AnswerKind.CHOICE if row.problem_type == CHOICE_TYPE else AnswerKind.NUMBER
    solution = re.search(r"<answer>(.*?)</answer>", row.solution, re.DOTALL)
    if not solution:
        raise RecordError(f"{origin}: solution = {row.solution!r:.80}: must hold <answer>..</answer>")
    question, told = row.problem, ""
    if kind is AnswerKind.NUMBER:
        question, told = _unit_taken_off(question)
    source = row.data_source or source
    name = (
        row.problem_id
        if isinstance(row.problem_id, str)
        else f"{source}/{PurePosixPath(row.path).stem}/{row.problem_id}"
    )
    clip = dict.fromkeys(("start_s", "end_s", "height", "width"))
    return record_from_row(
        {
            "id": name,
            "source": source,
            "family": row.problem_type.replace(" ", "_"),
            "question": question,
            "options": _unlettered(row.options or [], origin) if kind is AnswerKind.CHOICE else [],
            "answer": _answer(kind, solution[1], told or unit, origin),
            "clip": clip | {"video": row.path, "num_frames": num_frames},
            "labels": [],
            "graph": None,
            "graph_frame": None,
        },
        origin,
    )


def _answer(kind: AnswerKind, text: str, unit: str, origin: str) -> dict[str, str]:
    """Return the column `answer` of `records.SCHEMA`."""
    text = text.strip()
    if kind is AnswerKind.CHOICE:
        return {"kind": kind, "value": json.dumps(text), "unit": ""}
    if not NUMBER.fullmatch(text):
        raise RecordError(f"{origin}: answer {text!r:.80}: must be a number, or the letter of an option")
    return {"kind": kind, "value": json.dumps(float(text.replace(",", ""))), "unit": unit}


NUMBER = re.compile(r"[-+]?(\d{1,3}(,\d{3})+|\d+|(?=\.\d))(\.\d*)?([eE][-+]?\d+)?")
"""Commas only between thousands: "1,5" may be one and a half."""


def _unit_taken_off(problem: str) -> tuple[str, str]:
    """Return the question and unit of a problem as `export_video_r1` writes it."""
    told = re.fullmatch(r"(.*\S) Answer in ([^\s.]+)\.", problem, re.DOTALL)
    return (told[1], told[2]) if told else (problem, "")


OPTION = re.compile(r"[A-Z][.)] ")


def _unlettered(options: list[str], origin: str) -> list[str]:
    """Return texts of options that bear their letters or none."""
    if not any(OPTION.match(option) for option in options):
        return options
    if all(OPTION.match(option) and option[0] == letter for letter, option in _lettered(options)):
        return [option[3:] for option in options]
    if (texts := option_texts(tuple(options))) != tuple(options):  # letters of several styles
        return list(texts)
    raise RecordError(
        f"{origin}: options = {options!r:.200}: must begin with A., B., ... in order, or all without"
    )


def _lettered(options: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield options with their letters."""
    return ((letter_of(place), option) for place, option in enumerate(options))
