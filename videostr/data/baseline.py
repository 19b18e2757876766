"""What the questions alone are worth: baselines that never see a video.

In: records. Out: accuracy of a guesser of choices, who has learned from the other scenes which options are right for which
words, next to chance; and for numbers what the best constant scores. A dataset that rewards guessing teaches guessing.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, TypeVar

import numpy as np

from videostr.answers import mean_relative_accuracy
from videostr.data.places import option_role, statements
from videostr.data.scene import Array
from videostr.digests import digest
from videostr.types import AnswerKind, Record

FOLDS = 5
REPEATS = 4
"""Divisions of the videos into folds, whose results are averaged: what a guesser makes of nothing differs among them."""
PRIOR = 4.0
"""Times that every word counts as seen with chance's share of right options."""
_WORD = re.compile(r"[a-z]+")
_NUMBER = re.compile(r"\d+(\.\d+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Guessing:
    """What guessing scores in one family of a source."""

    source: str
    family: str
    kind: str = ""
    """Of the questions, as `kind_of` says; "" for the whole family."""
    questions: int
    score: float
    """Accuracy of the guesser, or mean relative accuracy of the best constant."""
    error: float
    """Standard error of `score`: of a mean over videos, since questions about one video share their answers; NaN of one."""
    chance: float | None
    """Accuracy of a coin; None for numbers."""
    constant: float | None = None
    """Accuracy of the letter that is right most often; None for numbers, whose `score` is that of a constant."""


@dataclass(frozen=True, slots=True)
class Guessed:
    """What the guesser made of choices, each guessed by what it learned from other videos."""

    questions: list[Record]
    """[N]"""
    of_set: np.ndarray
    """[N] number of the set that a question belongs to."""
    right: Array
    """[N] share of the `REPEATS` in which the guess was right."""
    odds: Array
    """[N] what the guesser gave the right option, a probability, mean over the `REPEATS`."""

    def scores(self, name: Callable[[Record], tuple[str, str, str]]) -> list[Guessing]:
        """Return the accuracy of all questions that `name` calls the same: source, family, kind."""
        by_name: dict[tuple[str, str, str], list[int]] = defaultdict(list)
        for place, record in enumerate(self.questions):
            by_name[name(record)].append(place)
        found = []
        for (source, family, kind), of in sorted(by_name.items()):
            score, error = _mean([self.questions[i] for i in of], self.right[of])
            chance = float(np.mean([1 / len(self.questions[i].options) for i in of]))
            letters = Counter(self.questions[i].answer.value for i in of)
            constant = max(letters.values()) / len(of)
            found.append(
                Guessing(
                    source=source, family=family, kind=kind, questions=len(of), score=score, error=error, chance=chance,
                    constant=constant,
                )
            )  # fmt: skip
        return found

    def by_family(self) -> list[Guessing]:
        return self.scores(lambda record: (*_kind(record), ""))

    def by_kind(self) -> list[Guessing]:
        return self.scores(lambda record: (*_kind(record), kind_of(record)))


def kind_of(record: Record) -> str:
    """Return which kind of its family a choice is: what is compared, how many options, whether marks name the objects."""
    axis = record.query.axis if record.query else ""
    words = [axis, f"{len(record.options)} options", "marked" if record.marks else ""]
    return ", ".join(filter(None, words))


def choices(sets: Iterable[Sequence[Record]]) -> list[Guessing]:
    """Return what the guesser scores in each family of a source."""
    guessed = Guesser(sets).validate()
    return guessed.by_family() if guessed.questions else []


def numbers(records: Iterable[Record]) -> list[Guessing]:
    """Return the best of the deciles of the true values, for each source, family and unit, on the same records."""
    by_kind: dict[tuple[str, str, str], list[Record]] = defaultdict(list)
    for record in records:
        if record.answer.kind is AnswerKind.NUMBER:
            by_kind[*_kind(record), record.answer.unit].append(record)
    found = []
    for (source, family, _), of in sorted(by_kind.items()):
        truths = [float(record.answer.value) for record in of]  # type: ignore[arg-type]
        values = sorted(truths)
        constants = {values[round(share * (len(values) - 1) / 10)] for share in range(11)}
        said = [float(f"{constant:g}") for constant in sorted(constants)]
        rewards = [np.array([mean_relative_accuracy(number, truth) for truth in truths]) for number in said]
        score, error = _mean(of, max(rewards, key=lambda each: float(each.mean())))
        found.append(
            Guessing(source=source, family=family, questions=len(of), score=score, error=error, chance=None)
        )
    return found


class InSets(Protocol):
    """A record, or what is held of one."""

    @property
    def source(self) -> str: ...
    @property
    def family(self) -> str: ...
    @property
    def options(self) -> tuple[str, ...]: ...


T = TypeVar("T", bound=InSets)


def complete_sets(records: Iterable[T]) -> Iterator[list[T]]:
    """Yield choices that were balanced against each other, which stand together in a dataset; other records alone."""
    waiting: list[T] = []
    for record in records:
        if waiting and _set(record) != _set(waiting[0]):
            yield waiting
            waiting = []
        waiting.append(record)
        if len(waiting) == _set(record)[1]:
            yield waiting
            waiting = []
    if waiting:
        yield waiting


def _kind(record: InSets) -> tuple[str, str]:
    return record.source, record.family


def _set(record: InSets) -> tuple[tuple[str, str], int]:
    """Return the kind, and how many make a set: one for each answer that there is."""
    return _kind(record), max(1, len(record.options))


def _mean(records: Sequence[Record], values: Array) -> tuple[float, float]:
    """Return mean and standard error of [N] values, one a record, with videos as the independent draws; NaN of one video."""
    mean = float(values.mean())
    _, video = np.unique([record.clip.video for record in records], return_inverse=True)
    off = np.bincount(video, values - mean)
    if len(off) < 2:
        return mean, math.nan
    spread = math.sqrt(len(off) / (len(off) - 1) * float(off @ off))
    return mean, spread / len(values)


class Guesser:
    """A naive Bayes guesser on source, family, words of the question, options and places of marks.

    It sums log-odds of an option being right, given each feature alone. Features of all options of all questions are numbered
    once; learning from some of the questions is then counting.
    """

    def __init__(self, sets: Iterable[Sequence[Record]]) -> None:
        """Number the features.

        Args:
            sets: records that were balanced against each other (`complete_sets`); those that are not choices are passed over.
        """
        sets = [found for found in sets if found[0].answer.kind is AnswerKind.CHOICE]
        self.records = records = [record for found in sets for record in found]
        self.of_set = np.repeat(np.arange(len(sets)), [len(found) for found in sets])
        """[N] number of the set that a question belongs to."""
        numbers_of: dict[str, int] = {}
        features: list[int] = []
        lengths: list[int] = []
        for record in records:
            for index in range(len(record.options)):
                of_option = [
                    numbers_of.setdefault(text, len(numbers_of)) for text in _features(record, index)
                ]
                features += of_option
                lengths.append(len(of_option))
        self.truth = np.array([ord(str(record.answer.value)) - ord("A") for record in records], dtype=int)
        """[N] index of the right option."""
        options = np.array([len(record.options) for record in records], dtype=int)
        self._count, self._first = options, np.cumsum(options) - options
        """[N] first option of a question, among all options."""
        is_right = np.zeros(options.sum(), dtype=bool)
        is_right[self._first + self.truth] = True
        self._option = np.repeat(np.arange(len(lengths)), lengths)
        self._feature = np.array(features, dtype=np.int32)
        self._is_right = is_right[self._option]
        self._question = np.repeat(np.arange(len(records)), options)[self._option]
        chance = np.zeros(len(numbers_of))
        # A feature belongs to one family and number of options.
        chance[self._feature] = (1 / options)[self._question]
        self._chance = chance

    def validate(self, seed: int = 0, kept: np.ndarray | None = None) -> Guessed:
        """Cross-validate over videos, and return the guesses.

        It learns from sets of the other folds only where they are whole: of a set that is cut, what is missing would tell the
        answer of the question that is guessed.

        Args:
            seed: of the folds.
            kept: [S] which sets there are; None for all.
        """
        use = np.ones(len(self.records), dtype=bool) if kept is None else kept[self.of_set]
        right, odds = np.zeros(len(use)), np.zeros(len(use))
        for repeat in range(REPEATS if use.any() else 0):
            folds = np.array([_fold(record, REPEATS * seed + repeat) for record in self.records])
            for number in range(FOLDS):
                is_cut = np.bincount(self.of_set, folds == number) > 0
                guessed, of_truth = self._guess(learned=~is_cut[self.of_set] & use)
                right += (folds == number) * (guessed == self.truth) / REPEATS
                odds += (folds == number) * of_truth / REPEATS
        chosen = np.flatnonzero(use)
        return Guessed([self.records[i] for i in chosen], self.of_set[chosen], right[chosen], odds[chosen])

    def _guess(self, learned: np.ndarray) -> tuple[np.ndarray, Array]:
        """Return [N] guessed options and [N] odds of the right ones, having learned from questions that [N] `learned` marks."""
        use = learned[self._question]
        shown = np.bincount(self._feature[use], minlength=len(self._chance))
        right = np.bincount(self._feature[use & self._is_right], minlength=len(self._chance))
        weights = np.log((right + PRIOR * self._chance) / (shown + PRIOR) / self._chance)
        scores = np.bincount(self._option, weights[self._feature])
        best = np.maximum.reduceat(scores, self._first)
        is_best = np.flatnonzero(scores == np.repeat(best, self._count))
        guessed = is_best[np.searchsorted(is_best, self._first)] - self._first  # the first of several
        shares = np.exp(scores - np.repeat(best, self._count))
        odds: Array = shares[self._first + self.truth] / np.add.reduceat(shares, self._first)
        return guessed, odds


def _features(record: Record, index: int) -> Iterator[str]:
    """Yield what an option looks like, and what stands next to it; a number by its size and its place among the four."""
    option, place = record.options[index], chr(ord("A") + index)
    kind = f"{record.source}|{record.family}|{len(record.options)}"
    if number := _NUMBER.match(option):
        size = round(6 * math.log(max(float(number[0]), 1e-3)))
        option = f"size {size}"
        yield f"{kind}|{place}|{option}"
    yield f"{kind}|{place}"
    yield f"{kind}|{option}"
    words = _WORD.findall(record.question.lower())
    for text in sorted({*words, *(f"{a} {b}" for a, b in pairwise(words))}):
        yield f"{kind}|{option}|{text}"
    if record.marks and record.query is not None and record.query.options:
        role = option_role(record.query, record.query.options[index])
        for text in statements(record.query, record.marks):
            yield f"{kind}|{record.query.axis}|{role}|{text}"


def _fold(record: Record, repeat: int) -> int:
    """Return the fold of a record; all records of a video are in one."""
    return int(digest(f"{repeat}|{record.clip.video}")[:2], 16) % FOLDS
