"""Consistency: does the stated answer follow from the stated graph, and would that graph have given the right answer?

In: traces of one record that has a query, and its true graph as `Target`. Out: two parts of a score (method, section 7):
`entailed`, what the answer that follows from the stated graph would score, and `consistency`, what the stated answer would score
if that were the truth. Both are 0 where nothing follows from the stated graph.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace

import msgspec
import numpy as np

from rewards.match import Floats, Target, assign
from videostr.prompt import answer_text
from videostr.query import entailed
from videostr.types import GraphFrame, Record, SceneGraph, Trace

Judge = Callable[[str, Record], tuple[float, str]]
"""The answer reward: text of an answer, record -> value in [0, 1], and why it is low."""

Frames = Sequence[GraphFrame | None]
"""What is stated at each selected time."""
_Places = dict[str, dict[int, tuple[float, ...]]]
"""Id of a node -> number of a selected time -> position."""


def reward_group(
    traces: Sequence[Trace], stated: Sequence[Frames], record: Record, target: Target, judge: Judge
) -> list[tuple[float, float]]:
    """Return (entailed, consistency) of every trace; nothing where a graph as traces state it cannot tell the answer.

    Args:
        traces: of one record.
        stated: `GraphScore.frames` of each.
        record: with its query and true graph.
        target: that graph, prepared.
        judge: what an answer is worth.
    """
    query, truth = record.query, record.graph
    if query is None or truth is None or entailed(query, _without_sizes(truth)) is None:
        return []
    found = []
    for trace, frames in zip(traces, stated, strict=True):
        answer = entailed(query, as_truth(frames, truth, target)) if frames else None
        if answer is None:
            found.append((0.0, 0.0))
        else:
            would, _ = judge(answer_text(answer), record)
            follows, _ = judge(trace.answer, replace(record, answer=answer))
            found.append((would, follows))
    return found


def _without_sizes(truth: SceneGraph) -> SceneGraph:
    """Return the truth as a trace may state it."""
    frames = [
        msgspec.structs.replace(
            item, nodes=tuple(msgspec.structs.replace(node, size=None) for node in item.nodes)
        )
        for item in truth.frames
    ]
    return msgspec.structs.replace(truth, frames=tuple(frames))


def as_truth(frames: Frames, truth: SceneGraph, target: Target) -> SceneGraph:
    """Return what is stated as a graph with the truth's frame of reference and times and, where a label has several, its ids.

    Ids of a stated graph are only names: those of one label stand for the true ids of that label for which the places of the
    whole clip agree best. What is left over gets a name that no true node has.
    """
    stated, true = _places(frames), _places(truth.frames)
    names: dict[str, str] = {}
    for label, ids in stated.items():
        names |= _names(ids, true.get(label, {}), target.reach)
    return SceneGraph(
        unit=truth.unit,
        frame=truth.frame,
        frames=tuple(
            GraphFrame(
                t=t,
                nodes=tuple(msgspec.structs.replace(node, id=names[node.id]) for node in item.nodes),
            )
            for t, item in zip(target.times, frames, strict=True)
            if item is not None
        ),
    )


def _places(frames: Frames) -> dict[str, _Places]:
    """Return the places of every node, by label."""
    found: dict[str, _Places] = defaultdict(lambda: defaultdict(dict))
    for k, item in enumerate(frames):
        for node in () if item is None else item.nodes:
            found[node.label][node.id][k] = node.pos
    return found


def _names(stated: _Places, true: _Places, reach: Floats) -> dict[str, str]:
    """Return the new id of every stated node of a label."""
    left = {name: f"{name} (not in the truth)" for name in stated}
    if not true:
        return left | {name: name for name in stated}
    credit = np.array([[_credit(a, b, reach) for b in stated.values()] for a in true.values()])
    columns = assign(-credit).tolist()
    ids = [*stated]
    return left | {ids[j]: name for name, j in zip(true, columns, strict=True) if j >= 0}


def _credit(a: dict[int, tuple[float, ...]], b: dict[int, tuple[float, ...]], reach: Floats) -> float:
    """Return how well two objects agree: the node credit, added over the times that both have."""
    return sum(max(0.0, 1.0 - math.dist(a[k], b[k]) / float(reach[k])) for k in sorted(a.keys() & b.keys()))
