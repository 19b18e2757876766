"""MMSI-Video-Bench: choices about motion, space, plans and several videos (arXiv 2512.10863).

In: `mmsivideo.json` of huggingface.co/datasets/rbler/MMSI-Video-Bench; texts of a model. Out: questions, verdicts, and accuracy
overall and by type, by the prompts of `dataset.py` and the figures of `evaluation.py` of github.com/rbler1234/MMSI-Video-Bench at
commit 1f33d74. Engines show one video a prompt: questions about several, or with reference images, can be scored and not asked.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np

from videostr.digests import digest
from videostr.errors import DataError
from videostr.evaluate.benchmark import Question, QuestionSet, Verdict, mean

FILE = "mmsivideo.json"
VIDEOS = "videos"
VIDEO_PLACE = "<video>"
"""Folder of the unpacked videos.zip."""
LETTERS = "ABCDEF"
MARKERS = ('"answer":', "answer is", "answer:", '"Answer":', "Answer is", "Answer:")
"""What an answer follows; the first of these that is anywhere in the text, by its last place there."""
_DROPPED = str.maketrans("", "", " \"'\n:")


class _Video(msgspec.Struct, frozen=True, kw_only=True):
    path: Annotated[str, msgspec.Meta(min_length=1)]


class _Row(msgspec.Struct, frozen=True, kw_only=True):
    """An item; other fields are not read."""

    id: str
    type: Annotated[str, msgspec.Meta(min_length=1)]
    video_list: Annotated[list[_Video], msgspec.Meta(min_length=1)]
    ref_images: list[str]
    system_prompt: str
    task_prompt: str
    user_prompt: str
    format_prompt: str
    ground_truth: Annotated[str, msgspec.Meta(pattern=f"^[{LETTERS}]$")]


class MmsiVideo:
    """The main benchmark; its sub-benchmarks are subsets of it."""

    name: str = "mmsi_video"
    columns: tuple[str, ...] = ("accuracy",)

    def read(self, root: Path) -> QuestionSet:
        """Return all questions, in the order of the file.

        Raises:
            DataError: the file is missing or not in the official form, or an id is there twice; names file, item and field.
        """
        path = root / FILE
        try:
            content = path.read_bytes()
            items = msgspec.json.decode(content, type=list[msgspec.Raw])
        except (OSError, msgspec.MsgspecError) as error:
            raise DataError(
                f"{path}: cannot be read as a JSON array ({error})",
                remedy="root must be the folder of MMSI-Video-Bench",
            ) from None
        questions: dict[str, Question] = {}
        for place, item in enumerate(items):
            try:
                row = msgspec.json.decode(item, type=_Row)
            except msgspec.MsgspecError as error:
                raise DataError(f"{path}: item [{place}]: {error}", remedy="download it again") from None
            if row.id in questions:
                raise DataError(
                    f"{path}: item [{place}]: id {row.id!r} is there twice", remedy="ids must be unique"
                )
            questions[row.id] = _question(row)
        if not questions:
            raise DataError(f"{path}: has no questions", remedy="download it again")
        return QuestionSet(questions=tuple(questions.values()), digest=digest(content))

    def prompt(self, question: Question, seconds: float, size: tuple[int, int]) -> str:
        """Return the official text, the video where it stands there."""
        text: str = question.row["prompt"]
        return text

    def asks(self, question: Question) -> str:
        """Return a letter."""
        return "the letter of the right option"

    def score(self, question: Question, answer: str, size: tuple[int, int] | None) -> Verdict:
        """Return `accuracy` of the letter that the official extraction reads."""
        letter = extract(answer)
        return Verdict(
            extracted=letter,
            scores={"accuracy": float(letter == question.truth)},
            note="" if letter else f"no letter from A to F is read in {answer[:60]!r}",
        )

    def chance(self, question: Question) -> Mapping[str, float]:
        """Return nothing: the options stand in the text of a question, and their number nowhere."""
        return {}

    def constant(self, questions: Sequence[Question]) -> Mapping[str, str]:
        """Return the most frequent letter of each type."""
        types: dict[str, list[Question]] = defaultdict(list)
        for question in questions:
            types[question.task].append(question)
        letters = {
            kind: Counter(str(q.truth) for q in same).most_common(1)[0][0] for kind, same in types.items()
        }
        return {question.id: letters[question.task] for question in questions}

    def figures(
        self, questions: Sequence[Question], scores: Mapping[str, np.ndarray], weights: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Percent: `overall`, `one_video` (of the questions that can be asked here), `task/...` by type."""
        accuracy = 100 * scores["accuracy"]
        kinds = np.array([question.task for question in questions], dtype=object)
        single = np.array([question.row["askable"] for question in questions], dtype=bool)
        found = {
            "overall": mean(accuracy, weights),
            "one_video": mean(accuracy[single], weights[:, single]),
        }
        for kind in dict.fromkeys(kinds):
            found[f"task/{kind}"] = mean(accuracy[kinds == kind], weights[:, kinds == kind])
        return found


def extract(text: str) -> str:
    """Return the letter from A to F that the official program reads, "" for none."""
    text = text.replace("<answer>", "").replace("</answer>", "")
    if "no answer" in text:
        return ""
    if "boxed{" in text:
        found = text.split("boxed{")[1].split("}")[0]
    else:
        marker = next((marker for marker in MARKERS if marker in text), None)
        after = text if marker is None else text.rsplit(marker, 1)[1].split(",")[0]
        found = after.split(".")[0]
    letter = found.translate(_DROPPED)
    return letter if len(letter) == 1 and letter in LETTERS else ""


def _question(row: _Row) -> Question:
    videos, images = len(row.video_list), len(row.ref_images)
    askable = videos == 1 and not images
    return Question(
        id=row.id,
        video=f"{VIDEOS}/{row.video_list[0].path}",
        task=row.type,
        text=row.user_prompt.replace(VIDEO_PLACE, "").strip(),
        truth=row.ground_truth,
        video_place=VIDEO_PLACE,
        problem=""
        if askable
        else f"it shows {videos} videos and {images} images, and engines show one video a prompt",
        row={
            "prompt": f"{row.system_prompt}\n{row.task_prompt}{row.user_prompt}{row.format_prompt}",
            "askable": askable,
        },
    )
