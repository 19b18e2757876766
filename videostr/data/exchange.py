"""Rows of other trainers: records -> their files, their files -> records.

In and out:

    Video-R1, SpaceR  JSON lines, or one JSON array: problem_id, problem, data_type, problem_type, options, solution, path,
                      data_source
    EasyR1            Parquet: problem (a `<video>` placeholder, then the instruction), answer, videos
    TRL               Parquet: prompt (chat messages), and columns that are handed to the reward; export only

What they lose, there and back:

    everywhere        the graph and its labels (not TRL), the frames' number and size, and the interval: those trainers show the
                      whole video, to which the times in our questions refer (not TRL, where these are columns of their own)
    Video-R1          answers that are neither choices nor numbers: it has no type for them, so those records are left out; the
                      family; a unit stands at the end of the problem as "Answer in m."
    EasyR1            id, source and family; answers of other kinds come back as `Failure`

Question, options and answer of choices and numbers come back as they were, a number to its last digit. Texts must not contain
what the format marks things with: line breaks in options, `<video>` in questions. Videos are written with absolute paths. A
list of images (`*.frames.json`) is a video to this project only: other trainers need a file there, made e.g. with ffmpeg.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from videostr.chat import LIKELY, escape
from videostr.data.records import plain_rows, record_from_row, record_to_row
from videostr.data.row_rules import type_problems
from videostr.errors import DataError, RecordError
from videostr.files import make_folder, replacing
from videostr.json_files import json_rows
from videostr.options import letter_of, option_texts
from videostr.prompt import answer_text, instruction
from videostr.types import Answer, AnswerKind, Failure, FailureKind, Record

NUM_FRAMES = 16
"""Frames to show of a video whose row does not say how many."""
PLACEHOLDER = "<video>"
CHOICE_TYPE = "multiple choice"
NUMBER_TYPES = ("numerical", "regression")
"""Video-R1 wants the first to be equal, the second to be near: counts, measurements."""
BATCH_ROWS = 1024

EASYR1_SCHEMA = pa.schema(
    [("problem", pa.string()), ("answer", pa.string()), ("videos", pa.list_(pa.string()))]
)
_CONTENT = pa.list_(pa.struct([("type", pa.string()), ("text", pa.string())]))
TRL_SCHEMA = pa.schema(
    [
        ("prompt", pa.list_(pa.struct([("role", pa.string()), ("content", _CONTENT)]))),
        ("answer", pa.string()),
        ("options", pa.list_(pa.string())),
        ("graph", pa.string()),
        ("graph_frame", pa.string()),
        ("labels", pa.list_(pa.string())),
        ("video", pa.string()),
        ("num_frames", pa.int32()),
        ("start_s", pa.float64()),
        ("end_s", pa.float64()),
    ]
)
"""`answer` is JSON {kind, value, unit}; `graph` and `graph_frame` are as in `records.SCHEMA`; the last three are the clip."""


# ------------------------------------------------------------------------------------------------------ export


def export_video_r1(records: Iterable[Record], out_jsonl: Path, root: Path) -> int:
    """Write Video-R1 rows of the choices and numbers; returns how many, which may be less than there are records.

    Args:
        records: of a dataset.
        out_jsonl: file to write.
        root: folder of the dataset, which its videos are relative to.
    """
    make_folder(out_jsonl.parent)
    count = 0
    with replacing(out_jsonl) as scratch, scratch.open("w", encoding="utf-8") as file:
        for record in records:
            if record.answer.kind in (AnswerKind.CHOICE, AnswerKind.NUMBER):
                file.write(json.dumps(_video_r1_row(record, root), ensure_ascii=False) + "\n")
                count += 1
    return count


def export_easyr1(records: Iterable[Record], out_parquet: Path, root: Path) -> int:
    """Write EasyR1 rows, answers as a policy would write them; returns how many. Arguments as `export_video_r1`."""
    rows = (
        {
            "problem": PLACEHOLDER + escape(instruction(_of_whole_video(record)), LIKELY),
            "answer": _text(record.answer),
            "videos": [_path(record, root)],
        }
        for record in records
    )
    return _write(rows, out_parquet, EASYR1_SCHEMA)


def export_trl(records: Iterable[Record], out_parquet: Path, root: Path) -> int:
    """Write TRL rows, `TRL_SCHEMA`; returns how many. Arguments as `export_video_r1`."""
    return _write((_trl_row(record, root) for record in records), out_parquet, TRL_SCHEMA)


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
        "path": _path(record, root),
        "data_source": record.source,
    }


def _trl_row(record: Record, root: Path) -> dict[str, Any]:
    row = record_to_row(record)
    content = [{"type": "video"}, {"type": "text", "text": escape(instruction(record), LIKELY)}]
    answer = record.answer
    return {
        "prompt": [{"role": "user", "content": content}],
        "answer": json.dumps({"kind": answer.kind, "value": answer.value, "unit": answer.unit}),
        "options": row["options"],
        "graph": row["graph"],
        "graph_frame": row["graph_frame"],
        "labels": row["labels"],
        "video": _path(record, root),
        "num_frames": record.clip.num_frames,
        "start_s": record.clip.start_s,
        "end_s": record.clip.end_s,
    }


def _of_whole_video(record: Record) -> Record:
    """For trainers that show the whole video: the prompt must not say that a part is shown."""
    return replace(record, clip=replace(record.clip, start_s=0.0, end_s=None))


def _path(record: Record, root: Path) -> str:
    return str((root / record.clip.video).resolve())


def _text(answer: Answer) -> str:
    """Return the answer; a number with all its digits."""
    if isinstance(answer.value, float):
        return str(int(answer.value)) if answer.value.is_integer() else repr(answer.value)
    return answer_text(answer)


def _write(rows: Iterable[dict[str, Any]], out: Path, schema: pa.Schema) -> int:
    make_folder(out.parent)
    rows = iter(rows)
    count = 0
    with replacing(out) as scratch, pq.ParquetWriter(scratch, schema, compression="zstd") as writer:
        while batch := list(islice(rows, BATCH_ROWS)):
            writer.write_table(pa.Table.from_pylist(batch, schema=schema))
            count += len(batch)
    return count


# ------------------------------------------------------------------------------------------------------ import


class _VideoR1(msgspec.Struct):
    problem_id: int | str
    problem: str
    data_type: str
    problem_type: str
    solution: str
    path: str
    options: list[str] | None = None
    data_source: str | None = None


class _EasyR1(msgspec.Struct):
    problem: str
    answer: str
    videos: list[str]


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

    def parse(line: bytes, origin: str) -> Record:
        row = _checked(origin, lambda: msgspec.json.decode(line, type=_VideoR1))
        kind = _kind(row, origin)
        solution = re.search(r"<answer>(.*?)</answer>", row.solution, re.DOTALL)
        if not solution:
            raise RecordError(f"{origin}: solution = {row.solution!r:.80}: must hold <answer>..</answer>")
        question, told = row.problem, ""
        if kind is AnswerKind.NUMBER:
            question, told = _unit_taken_off(question)
        of = row.data_source or source
        name = (
            row.problem_id if isinstance(row.problem_id, str) else f"{of}/{_stem(row.path)}/{row.problem_id}"
        )
        return _record(
            origin,
            {"id": name, "source": of, "family": row.problem_type.replace(" ", "_"), "question": question},
            options=_unlettered(row.options or [], origin) if kind is AnswerKind.CHOICE else [],
            answer=_answer(kind, solution[1], told or unit, origin),
            clip=(row.path, num_frames),
        )

    return _records(json_rows(in_jsonl, "a row of Video-R1"), parse)


def import_easyr1(
    in_parquet: Path, *, num_frames: int = NUM_FRAMES, unit: str = "", source: str = "easyr1"
) -> Iterator[Record | Failure]:
    """Yield records of rows with one video whose answer is a choice or a number; a `Failure` for every other row.

    The answer is a choice where the question ends in lines "A) ..", "B) .." or "A. ..", "B. ..". From the first line with
    `<think>` on, its very first apart, a problem is taken as instruction. The id is SOURCE/VIDEO/ROW, the family "unknown".

    Args:
        in_parquet: file with columns problem, answer, videos.
        num_frames: frames to show; the rows do not say.
        unit: of numbers whose instruction does not name one.
        source: of all rows.

    Raises:
        DataError: the file cannot be read or lacks a column.
    """

    def parse(values: dict[str, Any], origin: str) -> Record:
        row = _checked(origin, lambda: msgspec.convert(values, _EasyR1))
        if len(row.videos) != 1:
            raise RecordError(f"{origin}: videos has {len(row.videos)} entries, must have one")
        question, options, told = _taken_apart(row.problem)
        name = f"{source}/{_stem(row.videos[0])}/{origin.rpartition(':')[2]}"
        return _record(
            origin,
            {"id": name, "source": source, "family": "unknown", "question": question},
            options=options,
            answer=_answer(
                AnswerKind.CHOICE if options else AnswerKind.NUMBER, row.answer, told or unit, origin
            ),
            clip=(row.videos[0], num_frames),
        )

    return _records(_parquet_rows(in_parquet), parse)


Raw = TypeVar("Raw")
Row = TypeVar("Row")


def _records(
    rows: Iterable[tuple[str, Raw]], parse: Callable[[Raw, str], Record]
) -> Iterator[Record | Failure]:
    """Yield rows with their origins, parsed."""
    seen: set[str] = set()
    for origin, row in rows:
        try:
            record = parse(row, origin)
            if record.id in seen:
                raise RecordError(
                    f"{origin}: id {record.id!r} stands in an earlier row", remedy="ids must be unique"
                )
        except RecordError as error:
            yield Failure(kind=FailureKind.BAD_ROW, record_id=origin, detail=str(error))
            continue
        seen.add(record.id)
        yield record


def _parquet_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            missing = set(EASYR1_SCHEMA.names) - set(file.schema_arrow.names)
            if missing:
                raise DataError(
                    f"{path}: lacks the columns {sorted(missing)}", remedy="name a file of EasyR1"
                )
            if wrong := type_problems(file.schema_arrow, EASYR1_SCHEMA):
                raise DataError(f"{path}: {'; '.join(wrong)}", remedy="name a file of EasyR1")
            for batch in file.iter_batches(BATCH_ROWS, columns=EASYR1_SCHEMA.names):
                for row in plain_rows(batch):
                    yield f"{path}:{number}", row
                    number += 1
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path}: not readable as Parquet after {number} rows ({error})", remedy="copy it again"
        ) from None


def _checked(origin: str, decode: Callable[[], Row]) -> Row:
    try:
        return decode()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RecordError(f"{origin}: {error}") from None


def _kind(row: _VideoR1, origin: str) -> AnswerKind:
    if row.data_type != "video":
        raise RecordError(f"{origin}: data_type = {row.data_type!r:.40}: must be 'video'")
    if row.problem_type == CHOICE_TYPE:
        return AnswerKind.CHOICE
    if row.problem_type in NUMBER_TYPES:
        return AnswerKind.NUMBER
    supported = ", ".join((CHOICE_TYPE, *NUMBER_TYPES))
    raise RecordError(f"{origin}: problem_type = {row.problem_type!r:.40}: must be one of {supported}")


def _record(
    origin: str, about: dict[str, str], *, options: list[str], answer: dict[str, str], clip: tuple[str, int]
) -> Record:
    """Return a record whose row is checked as every other."""
    video, num_frames = clip
    shown = {"video": video, "num_frames": num_frames}
    unknown = dict.fromkeys(("start_s", "end_s", "height", "width"))
    row = {"options": options, "answer": answer, "clip": unknown | shown, "labels": [], "graph": None}
    return record_from_row({**about, **row, "graph_frame": None}, origin)


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


def _taken_apart(problem: str) -> tuple[str, list[str], str]:
    """Return the question, options and unit, "" where none is named, of an EasyR1 problem."""
    every = problem.replace(PLACEHOLDER, "", 1).strip().split("\n")
    end = next((i for i, line in enumerate(every) if i and "<think>" in line), len(every))
    lines, told = every[:end], "\n".join(every[end:])
    start = len(lines)
    while start and OPTION.match(lines[start - 1]):
        start -= 1
    options = [line[3:] for line in lines[start:]]
    if [line[0] for line in lines[start:]] != [letter for letter, _ in _lettered(options)] or len(
        options
    ) < 2:
        start, options = len(lines), []
    unit = re.search(r"a number in (\S+) inside <answer>", told)
    return "\n".join(lines[:start]).strip(), options, unit[1] if unit else ""


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


def _stem(path: str) -> str:
    return PurePosixPath(path).stem
