"""What the questions alone are worth: baselines that never see a video.

In: records. Out: accuracy of a guesser of choices, who has learned from the other scenes which options are right for which
words, beside chance; and for numbers what the best constant earns. A dataset that rewards guessing teaches guessing.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from videostr.types import AnswerKind, Record

FOLDS = 5
_WORD = re.compile(r"[a-z]+")
_NUMBER = re.compile(r"\d+(\.\d+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Guessing:
    """What guessing earns in one family."""

    family: str
    questions: int
    earned: float
    """Accuracy of the guesser, or mean relative accuracy of the best constant."""
    chance: float | None
    """Accuracy of a coin; None for numbers."""


def choices(records: Iterable[Record]) -> list[Guessing]:
    """Cross-validated over scenes: a naive Bayes guesser on family, words of the question and options.

    It learns from sets of the other folds only where they are whole: of a set that is cut, what is missing would tell the
    answer of the question that is guessed.
    """
    sets = [found for found in complete_sets(records) if found[0].answer.kind is AnswerKind.CHOICE]
    folds: list[list[Record]] = [[] for _ in range(FOLDS)]
    for record in (record for found in sets for record in found):
        folds[_fold(record)].append(record)
    right: Counter[str] = Counter()
    total: Counter[str] = Counter()
    chance: Counter[str] = Counter()
    for number, fold in enumerate(folds):
        whole = [found for found in sets if all(_fold(record) != number for record in found)]
        guesser = _Guesser([record for found in whole for record in found])
        for record in fold:
            total[record.family] += 1
            chance[record.family] += 1 / len(record.options)  # type: ignore[assignment]  # Counter of floats
            right[record.family] += guesser.guess(record) == _truth(record)
    return [
        Guessing(family=f, questions=total[f], earned=right[f] / total[f], chance=chance[f] / total[f])
        for f in sorted(total)
    ]


def numbers(records: Iterable[Record], judge: Callable[[str, Record], float]) -> list[Guessing]:
    """The best of the deciles of the true values, for each family and unit, on the same records.

    Args:
        records: any.
        judge: reward of an answer's text.
    """
    by_kind: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in records:
        if record.answer.kind is AnswerKind.NUMBER:
            by_kind[record.family, record.answer.unit].append(record)
    found = []
    for (family, _), of in sorted(by_kind.items()):
        values = sorted(float(record.answer.value) for record in of)  # type: ignore[arg-type]
        constants = {values[round(share * (len(values) - 1) / 10)] for share in range(11)}
        earned = max(sum(judge(f"{c:g}", record) for record in of) / len(of) for c in constants)
        found.append(Guessing(family=family, questions=len(of), earned=earned, chance=None))
    return found


def complete_sets(records: Iterable[Record]) -> Iterator[list[Record]]:
    """Choices that were balanced against each other, which stand together in a dataset; other records alone."""
    waiting: list[Record] = []
    for record in records:
        if waiting and _kind(record) != _kind(waiting[0]):
            yield waiting
            waiting = []
        waiting.append(record)
        if len(waiting) == _kind(record)[1]:
            yield waiting
            waiting = []
    if waiting:
        yield waiting


def _kind(record: Record) -> tuple[str, int]:
    """Family, and how many make a set: one for each answer that there is."""
    return record.family, max(1, len(record.options))


class _Guesser:
    """Log-odds of an option being right, given each feature alone, summed."""

    def __init__(self, records: Sequence[Record]) -> None:
        self._shown: Counter[str] = Counter()
        self._right: Counter[str] = Counter()
        for record in records:
            for index in range(len(record.options)):
                for feature in _features(record, index):
                    self._shown[feature] += 1
                    self._right[feature] += index == _truth(record)

    def guess(self, record: Record) -> int:
        scores = [
            sum(self._weight(feature, len(record.options)) for feature in _features(record, index))
            for index in range(len(record.options))
        ]
        return max(range(len(scores)), key=scores.__getitem__)

    def _weight(self, feature: str, options: int) -> float:
        prior = 1 / options
        return math.log((self._right[feature] + 4 * prior) / (self._shown[feature] + 4) / prior)


def _features(record: Record, index: int) -> Iterator[str]:
    family, option = record.family, record.options[index]
    place = chr(ord("A") + index)
    yield f"{family}|{place}"
    yield f"{family}|{option}"
    if number := _NUMBER.match(option):
        size = round(3 * math.log(max(float(number[0]), 1e-3)))
        yield from (f"{family}|size {size}", f"{family}|{place}|size {size}")
    words = [*_WORD.findall(record.question.lower())]
    for word in sorted({*words, *(f"{a} {b}" for a, b in pairwise(words))}):
        yield f"{family}|{option}|{word}"


def _truth(record: Record) -> int:
    return ord(str(record.answer.value)) - ord("A")


def _fold(record: Record) -> int:
    """All records of a video are in one fold."""
    return hashlib.sha256(record.clip.video.encode()).digest()[0] % FOLDS
