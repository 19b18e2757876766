"""V-STaR's figures: those of `eval.py` of github.com/V-STaR-Bench/V-STaR at commit 1894682, corrected and stricter ones.

In: questions and columns of `v_star`. Out: figures by name, for many weightings of the questions at once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from videostr.evaluate.benchmark import Question

PARTS = ("what", "when", "where", "when_2", "where_2")
OVERLAPS = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Of AP, boxes."""
RECALLS = (0.3, 0.5, 0.7)
"""Of R1, spans."""
LOWEST = 1e-9
"""1 - x in the logarithms of LGM is at least this, so that a perfect score is finite (20.7)."""


def figures(
    questions: Sequence[Question], scores: Mapping[str, np.ndarray], weights: np.ndarray
) -> dict[str, np.ndarray]:
    """Percent, ratings 0 to 3.

    As `eval.py`: `m_am`, `m_lgm`, then `what/...`, `chain_1/...`, `chain_2/...`, and all of them below `duration/...` and
    `domain/...`. An item without an answer to `what` counts in nothing but the number that some sums are divided by.
    `corrected/...`: every question counts, boxes are scaled. `strict/...`: the same, of the strict column.
    """
    nothing = np.full(len(questions), np.nan)
    layout = _Layout.of(questions, defaultdict(lambda: nothing, scores))
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
        """The mean of [N] values over those counted; NaN values do not count. The divisor counts others where it is given."""
        there = counted * ~np.isnan(values)
        self._names.append(name)
        self._above.append(np.nan_to_num(values) * there)
        self._below.append(there if divisor is None else divisor)

    def ratios(self) -> dict[str, np.ndarray]:
        """Return [B] by name."""
        above = self._weights @ np.stack(self._above, axis=1)
        below = self._weights @ np.stack(self._below, axis=1)
        found: np.ndarray = np.full(above.shape, np.nan)
        np.divide(above, below, out=found, where=below > 0)
        return dict(zip(self._names, found.T, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """Where the questions of each kind stand, and what their items scored elsewhere."""

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
            """Return [N] value of the item's question of that part."""
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
    """Return [N] whether a value is at least the bound, NaN where it is NaN."""
    return np.where(np.isnan(values), np.nan, values >= bound)


def _with_means(found: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return AM and LGM of each chain and their means put before the figures of each group; all in percent but the ratings."""
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
    """Return the arithmetic and logarithmic geometric mean of a chain's three figures, fractions."""
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
