"""V-STaR: what happens in a video, when and where, asked in two orders (arXiv 2503.11495).

In: `V_STaR_test.json` of huggingface.co/datasets/V-STaR-Bench/V-STaR; texts of a model. Out: five questions an item, verdicts,
and the figures of `eval.py` on answers read as `inference_demo.py` reads them, of github.com/V-STaR-Bench/V-STaR at commit
1894682, with corrected and stricter ones beside them. docs/benchmarks.md has the traps of the original.

Chain one asks `what`, `when`, `where`; chain two `what`, `where_2`, `when_2`. `where` is told the whole seconds, `when_2` the
true boxes, as in the original.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from videostr.errors import DataError
from videostr.evaluate.benchmark import Parsers, Question, QuestionSet, Verdict

FILE = "V_STaR_test.json"
PARTS = ("what", "when", "where", "when_2", "where_2")
OVERLAPS = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Of AP, boxes."""
RECALLS = (0.3, 0.5, 0.7)
"""Of R1, spans."""
SHOWN = 200
"""Characters of an answer that a verdict repeats."""
LOWEST = 1e-9
"""1 - x in the logarithms of LGM is at least this, so that a perfect score is finite (20.7)."""
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
"""(question, truth, answer) -> 0 to 3, or None where the judge's text was no rating."""
Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Track:
    """True boxes: the second as text, as an answer's key must be, and xmin, ymin, xmax, ymax in the video's pixels."""

    boxes: tuple[tuple[str, Box], ...]


class VStar:
    """V-STaR. Without a judge, words are compared, which is not the official metric: see `judge_name`."""

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

    def __init__(self, parsers: Parsers, judge: Judge | None = None, judge_name: str = "") -> None:
        """Args:
        parsers: not used; every benchmark takes them.
        judge: rates the answers to `what`; None compares words.
        judge_name: for the output; "" takes the judge's `name`, if it has one.
        """
        self._judge = judge or lexical_rating
        self.judge_name = (
            LEXICAL if judge is None else judge_name or str(getattr(judge, "name", "unnamed judge"))
        )

    def read(self, root: Path) -> QuestionSet:
        """Five questions an item, `INDEX/what` and so on, INDEX counting the file's items from 0.

        A video is where below `root` a file `VID.mp4` is; `videos/VID.mp4` where there is none.

        Raises:
            DataError: the file is missing or no JSON list, or an item breaks the official form; names file, item, field, rule.
        """
        path = root / FILE
        try:
            content = path.read_bytes()
            items = msgspec.json.decode(content, type=list[msgspec.Raw])
        except OSError as error:
            raise DataError(
                f"{path}: cannot be read ({error.strerror}); root must be the folder of V-STaR with {FILE}"
            ) from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise DataError(f"{path}: is no JSON list ({error}); download it again") from None
        if not items:
            raise DataError(f"{path}: has no items; download it again")
        files = {file.name: file.relative_to(root).as_posix() for file in sorted(root.rglob("*.mp4"))}
        questions: list[Question] = []
        for index, raw in enumerate(items):
            item = _item(f"{path}: item {index}", raw)
            video = files.get(f"{item.vid}.mp4", f"videos/{item.vid}.mp4")
            questions += [_question(part, index, video, item) for part in PARTS]
        return QuestionSet(questions=tuple(questions), digest=hashlib.sha256(content).hexdigest())

    def prompt(self, question: Question, seconds: float, size: tuple[int, int]) -> str:
        """The text of `inference_demo.py`, which stands before the video; length and resolution as the file has them."""
        return _PROMPTS[question.task](question)

    def asks(self, question: Question) -> str:
        """Words, two times, or boxes by second in pixels of the frames shown."""
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
        """`what`: rating by the judge, `correct` from 2 on. `when`: `tiou`. `where`: `viou` and `ap@...` of boxes as they stand.

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
        """The whole video, the whole frame at every second, and the most frequent true answer to `what`."""
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
        """Percent, ratings 0 to 3.

        As `eval.py`: `m_am`, `m_lgm`, then `what/...`, `chain_1/...`, `chain_2/...`, and all of them below `duration/...` and
        `domain/...`. An item without an answer to `what` counts in nothing but the number that some sums are divided by.
        `corrected/...`: every question counts, boxes are scaled. `strict/...`: the same, of the strict column.
        """
        nothing = np.full(len(questions), np.nan)
        layout = _Layout.of(questions, {column: scores.get(column, nothing) for column in self.columns})
        everything = np.ones(len(questions))
        table = _Table(weights)
        _official(table, "", layout, everything, counts_all=True)
        for prefix, of in (
            ("duration", [_duration(q.row["length"]) for q in questions]),
            ("domain", [q.scene for q in questions]),
        ):
            for value in sorted(set(of)):
                inside = np.array([float(other == value) for other in of])
                _official(table, f"{prefix}/{value}/", layout, inside, counts_all=False)
        _whole(table, "corrected/", layout, ("correct", "tiou", "scaled_viou"))
        _whole(table, "strict/", layout, ("strict", "strict", "strict"))
        return _with_means(table.ratios())

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


# ------------------------------------------------------------------------------------------------- answers


def lexical_rating(_question: str, truth: str, answer: str) -> int:
    """0 to 3 by the F1 of words: from 0.9 on 3, from 0.5 on 2, from 0.2 on 1. Not the official judge, and not comparable with it.

    Case, punctuation and articles do not count.
    """
    said, true = _words(answer), _words(truth)
    shared = sum((said & true).values())
    f1 = 2 * shared / (said.total() + true.total()) if shared else 0.0
    return sum(f1 >= bound for bound in (0.2, 0.5, 0.9))


def _words(text: str) -> Counter[str]:
    return Counter(re.findall(r"\w+", text.casefold())) - Counter({"a": 10**9, "an": 10**9, "the": 10**9})


def timestamps(answer: str) -> tuple[float, float] | None:
    """The span that the official code reads: the numbers of a text, if it has exactly two.

    A number is digits between word boundaries, so that "-3" is 3, "12.5s" is 12, "3s" is none and "00:12" is two.
    """
    found = re.findall(r"\b\d+(?:\.\d+)?\b", answer)
    return (float(found[0]), float(found[1])) if len(found) == 2 else None


def strict_span(answer: str) -> tuple[float, float] | None:
    """The numbers of a text, if it has exactly two, in order; a sign and a unit that follows belong to a number."""
    found = re.findall(r"(?<![\w.:])-?\d+(?:\.\d+)?(?![\d:])", answer)
    if len(found) != 2:
        return None
    start, end = float(found[0]), float(found[1])
    return (start, end) if 0 <= start <= end < math.inf else None


def span_iou(true: tuple[float, float], said: tuple[float, float]) -> float:
    """Overlap over the hull, which is the union wherever there is overlap; 0 of a span that ends before it starts."""
    overlap = max(0, min(true[1], said[1]) - max(true[0], said[0]))
    hull = max(true[1], said[1]) - min(true[0], said[0])
    return overlap / hull if hull > 0 else 0.0


def block(answer: str) -> str:
    """The text that the official code takes for JSON, "" for none.

    That is what a fence "```json" encloses; else all from the first "[" or "{" that is closed anywhere to the last bracket of its
    kind. The official patterns find it in quadratic time, this does in linear time.
    """
    ends: dict[str, list[int]] = {"]": [], "}": []}
    for match in re.finditer(r"([\]}])\s*\n```", answer):
        ends[match.group(1)].append(match.start())
    for match in re.finditer(r"```json\s*\n([\[{])", answer):
        start = match.start(1)
        closers = ends["]" if match.group(1) == "[" else "}"]
        place = bisect_right(closers, start)
        if place < len(closers):
            return answer[start : closers[place] + 1]
    spans = [(answer.find(opener), answer.rfind(closer)) for opener, closer in ("[]", "{}")]
    start, end = min((span for span in spans if 0 <= span[0] < span[1]), default=(0, -1))
    return answer[start : end + 1]


def boxes(answer: str) -> Any:
    """What the official code reads: an object by second, a list that matches no second, or None.

    A list of objects is merged, a list of [second, box] becomes an object. What does not parse, or is a list of neither, is
    parsed again with as many brackets added at its ends as are missing.
    """
    text = block(answer).replace("'", '"')
    if not text:
        return None
    try:
        return _by_second(json.loads(text))
    except (ValueError, RecursionError, TypeError, LookupError):
        pass
    try:
        return json.loads(_balanced(text))
    except (ValueError, RecursionError):
        return None


def _by_second(value: Any) -> dict[str, Any]:
    if isinstance(value, list) and all(isinstance(part, dict) for part in value):
        merged: dict[str, Any] = {}
        for part in value:
            merged |= part
        return merged
    if isinstance(value, list):
        return {str(part[0]): part[1] for part in value}
    found: dict[str, Any] = value
    return found


def _balanced(text: str) -> str:
    for opener, closer in ("[]", "{}"):
        missing = text.count(opener) - text.count(closer)
        text = opener * -missing + text + closer * missing
    return text


def best_iou(true: Box, said: Any) -> float:
    """IoU of a true box and what stands at its second: a box, or several of which the best counts; 0 of anything else."""
    try:
        if not said:
            return 0.0
        several = [said] if isinstance(said[0], int | float) and len(said) == 4 else said
        return max(_iou(true, box) for box in several)
    except (TypeError, LookupError, ValueError, ArithmeticError):
        return 0.0


def _iou(true: Box, said: Any) -> float:
    if not isinstance(said, list) or len(said) != 4:
        return 0.0
    width = max(0, min(true[2], said[2]) - max(true[0], said[0]))
    height = max(0, min(true[3], said[3]) - max(true[1], said[1]))
    overlap = width * height
    union = (true[2] - true[0]) * (true[3] - true[1]) + (said[2] - said[0]) * (said[3] - said[1]) - overlap
    return overlap / union if union > 0 else 0.0


def scaled(value: Any, shown: tuple[int, int], video: tuple[int, int]) -> Any:
    """A box, or several, in pixels of the frames shown -> in those of the video, cut to integers; else the value itself.

    This is what `inference_demo.py` has a function for that it never calls; it also takes [box] and [name, box] for a box.
    """
    if isinstance(value, list) and value and all(isinstance(part, list) and len(part) == 4 for part in value):
        return [_scaled_box(part, shown, video) for part in value]
    return _scaled_box(value, shown, video)


def _scaled_box(value: Any, shown: tuple[int, int], video: tuple[int, int]) -> Any:
    try:
        if len(value) == 1:
            value = value[0]
        if len(value) == 2:
            value = value[1]
        return [int(value[axis] / shown[axis % 2] * video[axis % 2]) for axis in range(4)]
    except (TypeError, LookupError, ValueError, ArithmeticError):
        return value


def strict_boxes(answer: str) -> dict[str, list[float]]:
    """Boxes of an answer that is one JSON object, fenced or not: those that are 4 finite numbers with x1 < x2 and y1 < y2."""
    text = re.sub(r"\A\s*```(?:json)?|```\s*\Z", "", answer)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return {key: box for key, box in value.items() if _is_box(box)} if isinstance(value, dict) else {}


def _is_box(box: Any) -> bool:
    numbers = (
        isinstance(box, list) and len(box) == 4 and all(type(x) in (int, float) and abs(x) < 1e9 for x in box)
    )
    return numbers and box[0] < box[2] and box[1] < box[3]


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


# ------------------------------------------------------------------------------------------------- figures


class _Table:
    """Figures that are sums over questions divided by sums over questions, computed together."""

    def __init__(self, weights: np.ndarray) -> None:
        self._weights = weights
        self._names: list[str] = []
        self._above: list[np.ndarray] = []
        self._below: list[np.ndarray] = []

    def add(
        self, name: str, values: np.ndarray, counted: np.ndarray, divisor: np.ndarray | None = None
    ) -> None:
        """The mean of [N] values over those counted; NaN values count nowhere. The divisor counts others where it is given."""
        there = counted * ~np.isnan(values)
        self._names.append(name)
        self._above.append(np.nan_to_num(values) * there)
        self._below.append(there if divisor is None else divisor)

    def ratios(self) -> dict[str, np.ndarray]:
        """[B] by name."""
        above = self._weights @ np.stack(self._above, axis=1)
        below = self._weights @ np.stack(self._below, axis=1)
        found: np.ndarray = np.full(above.shape, np.nan)
        np.divide(above, below, out=found, where=below > 0)
        return dict(zip(self._names, found.T, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """Where the questions of each kind stand, and what their items earned elsewhere."""

    scores: Mapping[str, np.ndarray]
    is_part: Mapping[str, np.ndarray]
    """Part -> [N] 1 or 0."""
    answered: np.ndarray
    """[N] whether the item has an answer to `what`, 1 or 0; 1 where `what` was not asked."""
    passes: Mapping[str, np.ndarray]
    """Part -> [N], at the `what` of an item: whether that part of the item counts as right in the joint figures."""

    @classmethod
    def of(cls, questions: Sequence[Question], scores: Mapping[str, np.ndarray]) -> _Layout:
        tasks = np.array([question.task for question in questions], dtype=object)
        items = np.array([question.row["index"] for question in questions])
        place = {(item, task): n for n, (item, task) in enumerate(zip(items, tasks, strict=True))}

        def elsewhere(part: str, values: np.ndarray, missing: float) -> np.ndarray:
            """[N] value of the item's question of that part."""
            places = [place.get((item, part), -1) for item in items]
            found = np.where(np.array(places) < 0, missing, values[places])
            return np.where(np.isnan(found), missing, found)

        right = {
            "what": elsewhere("what", scores["correct"], 0) > 0,
            "when": elsewhere("when", scores["tiou"], 0) >= 0.3,
            "when_2": elsewhere("when_2", scores["tiou"], 0) >= 0.3,
            "where": elsewhere("where", scores["viou"], 0) >= 0.1,
            "where_2": elsewhere("where_2", scores["viou"], 0) >= 0.1,
        }
        return cls(
            scores=scores,
            is_part={part: (tasks == part).astype(float) for part in PARTS},
            answered=elsewhere("what", scores["answered"], 1),
            passes={part: value.astype(float) for part, value in right.items()},
        )


def _official(table: _Table, prefix: str, layout: _Layout, inside: np.ndarray, *, counts_all: bool) -> None:
    """The figures of `print_stats`, which divides some sums overall by the number of all items, elsewhere of those answered."""
    scores, counted = layout.scores, layout.answered * inside
    what = layout.is_part["what"]
    divisor = what * (inside if counts_all else counted)
    table.add(f"{prefix}what/accuracy", scores["correct"], what * counted, divisor)
    table.add(f"{prefix}what/rating", 3 * scores["rating"], what * counted)
    table.add(
        f"{prefix}what/rating_where_rated", 3 * scores["rating"], what * counted * (scores["rated"] == 1)
    )
    for chain, (when, where) in enumerate((("when", "where"), ("when_2", "where_2")), start=1):
        name, timed, located = (
            f"{prefix}chain_{chain}/",
            layout.is_part[when] * counted,
            layout.is_part[where] * counted,
        )
        for recall in RECALLS:
            table.add(f"{name}when/r1@{recall}", _from(scores["tiou"], recall), timed)
        table.add(f"{name}when/m_tiou", scores["tiou"], timed)
        for overlap in OVERLAPS:
            table.add(f"{name}where/ap@{overlap}", scores[f"ap@{overlap}"], located)
        table.add(f"{name}where/m_viou", scores["viou"], located)
        passes = layout.passes
        for joint, parts in (
            ("what_when", ("what", when)),
            ("what_where", ("what", where)),
            ("when_where", (when, where)),
            ("all", ("what", when, where)),
        ):
            both = np.prod([passes[part] for part in parts], axis=0)
            table.add(f"{name}joint/{joint}", both, what * counted, divisor)


def _whole(table: _Table, prefix: str, layout: _Layout, columns: tuple[str, str, str]) -> None:
    """What, when and where of every question."""
    what, tiou, viou = (layout.scores[column] for column in columns)
    table.add(f"{prefix}what/accuracy", what, layout.is_part["what"])
    for chain, (when, where) in enumerate((("when", "where"), ("when_2", "where_2")), start=1):
        name = f"{prefix}chain_{chain}/"
        table.add(f"{name}when/m_tiou", tiou, layout.is_part[when])
        table.add(f"{name}where/m_viou", viou, layout.is_part[where])
        if prefix != "strict/":
            for recall in RECALLS:
                table.add(f"{name}when/r1@{recall}", _from(tiou, recall), layout.is_part[when])
            for overlap in OVERLAPS:
                table.add(
                    f"{name}where/ap@{overlap}", layout.scores[f"scaled_ap@{overlap}"], layout.is_part[where]
                )


def _from(values: np.ndarray, bound: float) -> np.ndarray:
    """[N] whether a value is at least the bound, NaN where it is NaN."""
    return np.where(np.isnan(values), np.nan, values >= bound)


def _with_means(found: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """AM and LGM of each chain and their means put before the figures of each group; all in percent but the ratings."""
    everything: dict[str, np.ndarray] = {}
    percent = {name: value if "rating" in name else 100 * value for name, value in found.items()}
    for name, value in percent.items():
        prefix, is_first, _ = name.rpartition("what/accuracy")
        if is_first:
            means = [_means(found, prefix, chain) for chain in ("chain_1", "chain_2")]
            everything[f"{prefix}m_am"] = 100 * (means[0][0] + means[1][0]) / 2
            everything[f"{prefix}m_lgm"] = 100 * (means[0][1] + means[1][1]) / 2
            for chain, (am, lgm) in zip(("chain_1", "chain_2"), means, strict=True):
                everything |= {f"{prefix}{chain}/am": 100 * am, f"{prefix}{chain}/lgm": 100 * lgm}
        everything[name] = value
    overall = ("m_am", "m_lgm")
    return {name: everything[name] for name in overall} | {
        n: v for n, v in everything.items() if n not in overall
    }


def _means(found: Mapping[str, np.ndarray], prefix: str, chain: str) -> tuple[np.ndarray, np.ndarray]:
    """Arithmetic and logarithmic geometric mean of a chain's three figures, fractions."""
    parts = np.stack(
        [
            found[f"{prefix}what/accuracy"],
            found[f"{prefix}{chain}/when/m_tiou"],
            found[f"{prefix}{chain}/where/m_viou"],
        ]
    )
    return parts.sum(axis=0) / 3, -np.log(np.maximum(1 - parts, LOWEST)).sum(axis=0) / 3


def _duration(seconds: float) -> str:
    return "short" if seconds < 60 else "medium" if seconds < 180 else "long"


# --------------------------------------------------------------------------------------------------- items


class _BoxAt(msgspec.Struct, frozen=True):
    timestamp: int | float | str
    xmin: int | float
    ymin: int | float
    xmax: int | float
    ymax: int | float


class _Item(msgspec.Struct, frozen=True, kw_only=True):
    """An item; other fields are not read."""

    vid: str | int
    domain: str = "unknown"
    fps: int | float
    width: int | float
    height: int | float
    frame_count: int | float
    question: str
    answer: str
    temporal_question: str
    timestamps: tuple[int | float, int | float]
    spatial_question: str
    spatial_question_2: str
    bboxes: list[_BoxAt]


def _item(place: str, raw: msgspec.Raw) -> _Item:
    """An item in the official form.

    Raises:
        DataError: it is not; starts with `place`.
    """
    try:
        item = msgspec.json.decode(raw, type=_Item)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{place}: {error}, in {bytes(raw)[:300]!r}; download {FILE} again") from None
    start, end = item.timestamps
    rules = (
        (item.vid != "" and "/" not in str(item.vid), "vid", item.vid, "must be the name of a file"),
        (0 < item.fps < math.inf, "fps", item.fps, "must be above 0"),
        (0 < item.frame_count < math.inf, "frame_count", item.frame_count, "must be above 0"),
        (0 < item.width < math.inf, "width", item.width, "must be above 0"),
        (0 < item.height < math.inf, "height", item.height, "must be above 0"),
        (-1e9 < start <= end < 1e9, "timestamps", item.timestamps, "must be start and end in seconds"),
        *(
            (
                box.xmin <= box.xmax and box.ymin <= box.ymax and max(map(abs, _corners(box))) < 1e9,
                f"bboxes[{number}]",
                _corners(box),
                "must be finite with xmin <= xmax and ymin <= ymax",
            )
            for number, box in enumerate(item.bboxes)
        ),
    )
    for holds, name, value, rule in rules:
        if not holds:
            raise DataError(f"{place}: {name} {value!r:.80}: {rule}")
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
    """A comma after the prompt makes it a tuple in `inference_demo.py`; the chat template shows the model its repr."""
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
