"""Thinning by the guesser's odds: choices that are easily guessed without the video are dropped, until guessing no longer pays.

In: choices of one family of a source, in complete sets. Out: which sets stay, and for every kind how much was dropped.

The rule, in rounds. The guesser of `videostr/data/baseline.py`, cross-validated over videos, gives every right option its
odds. In every kind (`kind_of`) in which it is right more often than chance by over `allowed`, the sets are ordered by the mean
odds of their right options, and the first `STEP` of them are dropped, as far as the odds lie above chance. Then the guesser
learns again from what is left. It ends where no kind is over, or after `ROUNDS`; kinds of fewer than `LEAST_QUESTIONS` stay as
they are. Whole sets are dropped, so that each answer stays right equally often.

The folds are seeded and differ from those of the card, which thus measures what was not fitted to its own folds. Benchmarks
are pruned in this way, too (iterative bias pruning, arXiv 2511.04655).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np

from videostr.data.baseline import Guessed, Guesser, Guessing, kind_of
from videostr.types import Record

STEP = 0.05
"""Share of the sets of a kind that go in a round, at most."""
ROUNDS = 20
"""0.95 to this power: no kind loses more than 64 %."""
LEAST_QUESTIONS = 50
"""Of a kind: in fewer, what a guesser scores over chance is luck."""
SEED = 1_000_003
"""Of the folds, far from that of the card."""


class Thinned(msgspec.Struct, frozen=True, kw_only=True):
    """What was done to a kind."""

    source: str
    family: str
    kind: str
    questions: int
    """Before."""
    dropped: int
    chance: float
    before: float
    """Accuracy of the guesser."""
    after: float


def thin(sets: Sequence[Sequence[Record]], allowed: float, seed: int = 0) -> tuple[np.ndarray, list[Thinned]]:
    """Return [S] which of the sets stay, and what was dropped of the kinds that lost some.

    Args:
        sets: choices of one family of a source, those that were balanced against each other together.
        allowed: accuracy over chance, at most, that the guesser may have in a kind.
        seed: of the folds.
    """
    kept = np.ones(len(sets), dtype=bool)
    guesser, kinds = Guesser(sets), np.array([kind_of(found[0]) for found in sets])
    first: dict[str, Guessing] = {}
    last: dict[str, Guessing] = {}
    for number in range(ROUNDS + 1):
        guessed = guesser.validate(SEED + seed, kept)
        last = {each.kind: each for each in guessed.by_kind()}
        first = first or last
        over = sorted(
            kind
            for kind, each in last.items()
            if each.score - _chance(each) > allowed and each.questions >= LEAST_QUESTIONS
        )
        if not over or number == ROUNDS:
            break
        for kind in over:
            kept[_easiest(guessed, kept & (kinds == kind))] = False
    found = []
    for kind, before in first.items():
        after = last.get(kind)
        left = after.questions if after else 0
        if left < before.questions:
            found.append(
                Thinned(
                    source=before.source, family=before.family, kind=kind, questions=before.questions,
                    dropped=before.questions - left, chance=round(_chance(before), 4), before=round(before.score, 4),
                    after=round(after.score if after else 0.0, 4),
                )
            )  # fmt: skip
    return kept, found


def _easiest(guessed: Guessed, of_kind: np.ndarray) -> np.ndarray:
    """Return which sets go in a round, of those that [S] `of_kind` marks."""
    size = np.maximum(np.bincount(guessed.of_set, minlength=len(of_kind)), 1)
    odds = np.bincount(guessed.of_set, guessed.odds, len(of_kind)) / size
    chances = [1 / len(each.options) for each in guessed.questions]
    able = np.flatnonzero(of_kind & (odds > np.bincount(guessed.of_set, chances, len(of_kind)) / size))
    order: np.ndarray = able[np.argsort(-odds[able], kind="stable")]
    return order[: math.ceil(STEP * int(of_kind.sum()))]


def _chance(guessing: Guessing) -> float:
    assert guessing.chance is not None
    return guessing.chance
