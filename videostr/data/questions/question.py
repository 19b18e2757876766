"""A question with its answer, and the shapes that one can have: a number, a choice among words, a choice among numbers.

In: a `Query`, texts of which one is drawn, and the truth. Out: `PreparedQuestion`, with the key under which its answer is
balanced (`videostr/data/balance.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from msgspec.structs import replace

from videostr.types import Answer, AnswerKind, Query

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

    query: Query
    text: str
    answer: Answer
    options: tuple[str, ...] = ()
    """Texts of `query.options`."""
    balance: Balance | None = None
    """Of choices and counts."""

    @property
    def labels(self) -> frozenset[str]:
        """Labels of the objects that it is about."""
        counted = {self.query.label} - {""}
        return frozenset({name.rpartition(".")[0] for name in self.query.objects} | counted)


def worded(rng: Rng, texts: Sequence[str], query: Query, **more: object) -> str:
    """Return one of the texts with the values of a query: {a}, {b}, {c} are its names, {t}, {start}, {end} its times."""
    values: dict[str, object] = dict(zip("abc", query.names, strict=False))
    if query.times:
        values |= {"t": query.times[0], "start": query.times[0], "end": query.times[-1]}
    return str(texts[int(rng.integers(len(texts)))]).format(**values, **more)


def number(
    rng: Rng, texts: Sequence[str], query: Query, value: float, unit: str, **more: object
) -> PreparedQuestion:
    """Return a question for a number."""
    answer = Answer(kind=AnswerKind.NUMBER, value=value, unit=unit)
    return PreparedQuestion(query=query, text=worded(rng, texts, query, **more), answer=answer)


def numeric_choice(
    rng: Rng, texts: Sequence[str], query: Query, value: float, unit: str, least: float, key: Sequence[str]
) -> PreparedQuestion | None:
    """Return a choice between four numbers of which each is `STEP` times the one before.

    The truth may be any of the four; which one it is, is balanced among questions of a key whose least options differ by less
    than half a step. The key holds what else the question tells of the number: that pedestrians are slow, that more
    way is covered in more time.
    """
    place = int(rng.integers(4))
    steps = [value * STEP ** (i - place) for i in range(4)]
    shown = [f"{v:.{1 if v >= 10 else 2}f}" for v in steps]
    if not steps[0] >= least or len(set(shown)) < 4:  # what cannot be true must not be offered
        return None
    size = str(round(2 * np.log(steps[0]) / np.log(STEP)))
    return PreparedQuestion(
        query=replace(query, options=tuple(map(float, shown))),
        text=worded(rng, texts, query),
        options=tuple(f"{v} {unit}" for v in shown),
        answer=Answer(kind=AnswerKind.CHOICE, value="ABCD"[place]),
        balance=Balance("|".join((query.family, unit, size, *key)), str(place), ("0", "1", "2", "3")),
    )


def choice(
    rng: Rng,
    text: str,
    query: Query,
    truth: str,
    options: Mapping[str, str | tuple[str, ...]],
    key: Sequence[str],
) -> PreparedQuestion:
    """Return a question with its options in random order; options that are the same for all questions of a key.

    Args:
        rng: of the order.
        text: of the question.
        query: what it asks, without options.
        truth: text of the right option.
        options: text of every option -> what it says, as in `Query.options`.
        key: with the family, of the balance.
    """
    texts = list(options)
    shown = [texts[i] for i in rng.permutation(len(texts))]
    return PreparedQuestion(
        query=replace(query, options=tuple(options[each] for each in shown)),
        text=text,
        options=tuple(shown),
        answer=Answer(kind=AnswerKind.CHOICE, value=chr(ord("A") + shown.index(truth))),
        balance=Balance("|".join((query.family, *key)), truth, tuple(texts)),
    )
