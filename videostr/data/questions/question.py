"""A question with its answer, and the shapes that one can have: a number, a choice among words, a choice among numbers.

In: texts of which one is drawn, and the truth. Out: `PreparedQuestion`, with the key under which its answer is balanced
(`videostr/data/balance.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from videostr.types import Answer, AnswerKind

Rng = np.random.Generator

STEP = 1.3
"""Ratio between neighbouring options of a number."""


@dataclass(frozen=True, slots=True)
class Balance:
    """Among the questions of a key, every value is to be the truth as often as every other."""

    key: str
    value: str
    values: tuple[str, ...]
    """What the value could have been, for the words of the question."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedQuestion:
    """A question with its answer."""

    family: str
    text: str
    answer: Answer
    options: tuple[str, ...] = ()
    labels: frozenset[str] = frozenset()
    """Labels of the objects that it is about."""
    balance: Balance | None = None
    """Of choices and counts."""


def worded(rng: Rng, texts: Sequence[str], **values: object) -> str:
    """Return one of the texts, with its values."""
    return str(texts[int(rng.integers(len(texts)))]).format(**values)


def number(
    family: str,
    rng: Rng,
    texts: Sequence[str],
    value: float,
    unit: str,
    *,
    labels: Iterable[str],
    **values: object,
) -> PreparedQuestion:
    """Return a question for a number."""
    return PreparedQuestion(
        family=family,
        text=worded(rng, texts, **values),
        answer=Answer(kind=AnswerKind.NUMBER, value=value, unit=unit),
        labels=frozenset(labels),
    )


def numeric_choice(
    family: str,
    rng: Rng,
    texts: Sequence[str],
    value: float,
    unit: str,
    least: float,
    key: Sequence[str],
    *,
    labels: Iterable[str],
    **values: object,
) -> PreparedQuestion | None:
    """Return a choice between four numbers of which each is `STEP` times the one before.

    The truth may be any of the four; which one it is, is balanced among questions of a key whose least options differ by less
    than half a step. The key holds what else the question tells of the number: that pedestrians are slow, that more
    way is covered in more time.
    """
    place = int(rng.integers(4))
    steps = [value * STEP ** (i - place) for i in range(4)]
    options = tuple(f"{v:.{1 if v >= 10 else 2}f} {unit}" for v in steps)
    if not steps[0] >= least or len(set(options)) < 4:  # what cannot be true must not be offered
        return None
    size = str(round(2 * np.log(steps[0]) / np.log(STEP)))
    return PreparedQuestion(
        family=family,
        text=worded(rng, texts, **values),
        options=options,
        answer=Answer(kind=AnswerKind.CHOICE, value="ABCD"[place]),
        labels=frozenset(labels),
        balance=Balance("|".join((family, unit, size, *key)), str(place), ("0", "1", "2", "3")),
    )


def choice(
    family: str,
    rng: Rng,
    text: str,
    truth: str,
    options: Sequence[str],
    labels: frozenset[str],
    key: Sequence[str],
) -> PreparedQuestion:
    """Return a question with its options in random order; options that are the same for all questions of a key."""
    shown = [options[i] for i in rng.permutation(len(options))]
    return PreparedQuestion(
        family=family,
        text=text,
        options=tuple(shown),
        answer=Answer(kind=AnswerKind.CHOICE, value=chr(ord("A") + shown.index(truth))),
        labels=labels,
        balance=Balance("|".join((family, *key)), truth, tuple(options)),
    )
