"""What trace dumps tell beyond the metrics: one row of figures per dumped step.

In: the rows of a dump. Out: `DumpStats`, for curves and for warnings.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from videostr.traces import TraceRow


@dataclass(frozen=True, slots=True, kw_only=True)
class DumpStats:
    """Figures of one dump."""

    step: int
    rollouts: int
    right: float | None
    """Share of completions whose answer part is 1; None without such a part."""
    answer_by_family: dict[str, float]
    """Mean answer part per question family."""
    nodes: float | None
    """Nodes that a stated frame has, mean over the frames of all predicted graphs; None without one."""
    true_nodes: float | None
    """The same for the true graphs of the same prompts."""
    frames: float | None
    """Frames that a predicted graph states, mean."""
    tokens_mean: float
    tokens_p95: float
    tokens_max: int
    absent: float
    """Share of completions without a readable graph, where the record has one; 0 without such records."""


def dump_stats(step: int, rows: Sequence[TraceRow]) -> DumpStats:
    """Return figures of the rows of one step; at least one row."""
    answers = defaultdict(list)
    for row in rows:
        value = json_of(row["parts"], {}).get("answer")
        if isinstance(value, int | float):
            answers[row["family"]].append(float(value))
    every = [value for values in answers.values() for value in values]
    predicted, true = (
        _node_counts(row["predicted_graph"] for row in rows),
        _node_counts(row["true_graph"] for row in rows),
    )
    tokens = np.array([row["tokens"] for row in rows])
    wanted = [row for row in rows if row["true_graph"]]
    return DumpStats(
        step=step,
        rollouts=len(rows),
        right=float(np.mean([value >= 1 - 1e-6 for value in every])) if every else None,
        answer_by_family={family: float(np.mean(values)) for family, values in sorted(answers.items())},
        nodes=_mean([count for graph in predicted for count in graph]),
        true_nodes=_mean([count for graph in true for count in graph]),
        frames=_mean([len(graph) for graph in predicted]),
        tokens_mean=float(tokens.mean()),
        tokens_p95=float(np.percentile(tokens, 95)),
        tokens_max=int(tokens.max()),
        absent=sum(bool(row["absence"]) for row in wanted) / len(wanted) if wanted else 0.0,
    )


def json_of(text: str, default: Any) -> Any:
    """Return a value out of a trace dump; `default` when the text is not JSON, or of another type than it."""
    try:
        value = json.loads(text)
    except ValueError:
        return default
    return value if isinstance(value, type(default)) else default


def _node_counts(texts: Iterable[str]) -> list[list[int]]:
    """Per graph the number of nodes of each of its frames; texts that hold none are left out."""
    counts: dict[str, list[int] | None] = {"": None}  # a group has the same true graph G times
    found = [counts[text] if text in counts else counts.setdefault(text, _nodes(text)) for text in texts]
    return [graph for graph in found if graph is not None]


def _nodes(text: str) -> list[int] | None:
    frames = json_of(text, {}).get("frames")
    if not isinstance(frames, list):
        return None
    found = [frame.get("nodes") for frame in frames if isinstance(frame, dict)]
    return [len(nodes) for nodes in found if isinstance(nodes, list)]


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
