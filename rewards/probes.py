"""Hacking probes: what shortcuts score (docs/rewards.md). `python -m rewards.probes [--data DIR]` prints them as a table.

In: records with true graphs, those of the tabletop world unless a dataset is named. Out: the mean reward of every probe. A
graph reward is fit for training when cheap texts, which tell nothing about the scene, score little.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from msgspec.structs import replace

from rewards.graph import GraphRule, prepare, reward
from rewards.match import Floats
from rewards.rubric import Rubric, score_group
from videostr.command import command, run_main
from videostr.data.records import usable_records
from videostr.errors import DataError
from videostr.graph import MAX_NODES, ground_axes, to_json
from videostr.prompt import answer_text
from videostr.query import entailed
from videostr.tabletop.build import Split, scene_seed
from videostr.tabletop.questions import make_records
from videostr.tabletop.world import Difficulty, make_scene
from videostr.types import Answer, AnswerKind, Edge, GraphFrame, Node, Record, SceneGraph

_Move = Callable[[GraphFrame, Floats], Floats]
GRAPH_COLUMNS = ("graph_node", "graph_edge", "graph")
COLUMNS = ("format", "answer", *GRAPH_COLUMNS, "entailed", "consistency", "total")
CROWDS = (2, 5, 12, 20, 60)


def trace(graph: str, answer: str) -> str:
    """Return a trace around the JSON of a graph."""
    return f"<think>I look at the frames. <graph>{graph}</graph></think>\n<answer>{answer}</answer>"


def moved(truth: SceneGraph, move: _Move) -> SceneGraph:
    """Return the truth with other positions: `move` maps a frame and its positions [N, D] to new ones."""
    frames = []
    for item in truth.frames:
        pos = np.array([node.pos for node in item.nodes], dtype=np.float64)
        places = move(item, pos).tolist() if item.nodes else []
        nodes = (replace(node, pos=tuple(place)) for node, place in zip(item.nodes, places, strict=True))
        frames.append(replace(item, nodes=tuple(nodes), edges=()))
    return replace(truth, frames=tuple(frames))


def _bounds(truth: SceneGraph) -> tuple[Floats, Floats]:
    pos = np.array([node.pos for item in truth.frames for node in item.nodes])
    return pos.min(axis=0), pos.max(axis=0)


def _centre(truth: SceneGraph) -> Floats:
    low, high = _bounds(truth)
    centre: Floats = (low + high) / 2
    return centre


def _centroid(truth: SceneGraph, _: np.random.Generator) -> SceneGraph:
    return moved(truth, lambda _, pos: np.tile(pos.mean(axis=0), (len(pos), 1)))


def _at_random(truth: SceneGraph, rng: np.random.Generator) -> SceneGraph:
    low, high = _bounds(truth)
    return moved(truth, lambda _, pos: rng.uniform(low, high, pos.shape))


def _held_still(truth: SceneGraph, rng: np.random.Generator) -> SceneGraph:
    """Return every object at one random place for the whole clip."""
    low, high = _bounds(truth)
    place = {name: rng.uniform(low, high) for name in _object_ids(truth)}
    return moved(truth, lambda item, _: np.array([place[node.id] for node in item.nodes]))


def _object_ids(truth: SceneGraph) -> list[str]:
    return sorted({node.id for item in truth.frames for node in item.nodes})


def fixed_graph(truth: SceneGraph, text: FixedText) -> SceneGraph:
    """Return one text for all records: the k-th object at the k-th place at all times, all objects equally far apart."""
    place = {name: text.places[k % len(text.places)] for k, name in enumerate(_object_ids(truth))}
    graph = moved(truth, lambda item, _: np.array([place[node.id] for node in item.nodes]))
    return replace(
        graph, frames=tuple(replace(item, edges=_all_edges(item, text.dist)) for item in graph.frames)
    )


def _all_edges(item: GraphFrame, dist: float) -> tuple[Edge, ...]:
    pairs = itertools.combinations(item.nodes, 2)
    return tuple(Edge(a=a.id, b=b.id, dist=dist, angle=None) for a, b in pairs)


def _copies(truth: SceneGraph, rng: np.random.Generator) -> SceneGraph:
    """As many copies of every label as the contract lets through."""
    low, high = _bounds(truth)

    def fill(item: GraphFrame) -> GraphFrame:
        labels = sorted({node.label for node in item.nodes})
        each = MAX_NODES // max(len(labels), 1)
        names = [(label, f"{label}.{k}") for label in labels for k in range(1, each + 1)]
        pos = rng.uniform(low, high, (len(names), len(low))).tolist()
        nodes = (
            Node(id=name, label=label, pos=tuple(p)) for (label, name), p in zip(names, pos, strict=True)
        )
        return replace(item, nodes=tuple(nodes), edges=())

    return replace(truth, frames=tuple(map(fill, truth.frames)))


def _mirrored(truth: SceneGraph, _: np.random.Generator) -> SceneGraph:
    axis, centre = ground_axes(truth.frame)[0], _centre(truth)

    def flip(_: GraphFrame, pos: Floats) -> Floats:
        pos[:, axis] = 2 * centre[axis] - pos[:, axis]
        return pos

    return moved(truth, flip)


def _rotated(truth: SceneGraph, _: np.random.Generator) -> SceneGraph:
    (x, y), centre = ground_axes(truth.frame), _centre(truth)

    def turn(_: GraphFrame, pos: Floats) -> Floats:
        away = pos - centre
        pos[:, x], pos[:, y] = centre[x] - away[:, y], centre[y] + away[:, x]
        return pos

    return moved(truth, turn)


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedText:
    """A graph that is stated for every record."""

    places: tuple[tuple[float, ...], ...]
    """Of the objects in the order of their ids."""
    dist: float
    """Of every pair."""


FIXED_TEXTS: dict[str, FixedText] = {
    "grid": FixedText(places=((5.0, 3.0), (1.0, 4.0), (2.03, 4.0)), dist=5.11),
    "m": FixedText(
        places=(
            (0.15, 0.27, 4.78),
            (-0.52, -0.65, 6.3),
            (0.79, -0.1, 5.77),
            (0.66, 0.16, 5.03),
            (-0.65, -0.36, 5.68),
        ),
        dist=1.75,
    ),
}
"""Unit -> the best fixed text that `python -m tests.rewards.fixed_text` found on training scenes of the tabletop world."""


GRAPH_PROBES: dict[str, Callable[[SceneGraph, np.random.Generator], SceneGraph]] = {
    "(c) every node at the centroid": _centroid,
    "(d) the label list at random positions": _at_random,
    "(e) copies of each label, 64 nodes": _copies,
    "(f) the true graph mirrored": _mirrored,
    "(g) the true graph turned by 90 degrees": _rotated,
}
"""Graphs made from the true one, written without an answer, so that only the graph scores."""


def probes(record: Record, truth: SceneGraph, rng: np.random.Generator) -> dict[str, str]:
    """Return the text of every probe for a record and its true graph."""
    answer, fixed = answer_text(record.answer), FIXED_TEXTS.get(truth.unit)
    return {
        "(a) empty text": "",
        "(b) format only": "<think></think><answer></answer>",
        **{name: trace(to_json(attack(truth, rng)), "") for name, attack in GRAPH_PROBES.items()},
        "(h) the answer repeated as thinking": f"<think>{f'{answer} ' * 20}</think><answer>{answer}</answer>",
        "(i) the true graph, a wrong answer": trace(to_json(truth), wrong_answer(record.answer)),
        "(j) truth": trace(to_json(truth), answer),
        "(k) the label list at random positions, held still": trace(to_json(_held_still(truth, rng)), ""),
        **(
            {"(l) one fixed text for all records": trace(to_json(fixed_graph(truth, fixed)), "")}
            if fixed
            else {}
        ),
        **_fitted(record, truth, rng),
    }


def _fitted(record: Record, truth: SceneGraph, rng: np.random.Generator) -> dict[str, str]:
    """Return a graph at random places with the answer that follows from it: what fitting a graph to a guess is worth."""
    graph = _held_still(truth, rng)
    found = None if record.query is None else entailed(record.query, graph)
    return (
        {}
        if found is None
        else {"(n) a graph at random, the answer that it entails": trace(to_json(graph), answer_text(found))}
    )


def wrong_answer(answer: Answer) -> str:
    """Return an answer that scores 0."""
    if answer.kind is AnswerKind.CHOICE:
        return "B" if answer.value == "A" else "A"
    return "-1e9" if answer.kind is AnswerKind.NUMBER else "none"


def measure(
    records: Iterable[Record], rubric: Rubric | str = "default", seed: int = 0
) -> dict[str, dict[str, float]]:
    """Return the mean of every part over the records, by probe; records without a graph are passed over.

    Raises:
        DataError: no record has a graph with a node.
    """
    usable = [
        (r, r.graph) for r in records if r.graph is not None and any(item.nodes for item in r.graph.frames)
    ]
    if not usable:
        raise DataError("no record has a graph with a node, so there is nothing to probe")
    rng = np.random.default_rng(seed)
    found: dict[str, list[dict[str, float]]] = defaultdict(list)
    for record, truth in usable:
        texts = probes(record, truth, rng)
        for name, scored in zip(texts, score_group(list(texts.values()), record, rubric), strict=True):
            found[name].append({**scored.parts, "total": scored.total})
    return {name: {column: _mean(parts, column) for column in COLUMNS} for name, parts in found.items()}


def _mean(parts: Sequence[dict[str, float]], column: str) -> float:
    values = [part[column] for part in parts if column in part]
    return sum(values) / len(values) if values else math.nan


def crowds(scenes: int = 24, seed: int = 0) -> dict[str, dict[str, float]]:
    """Return the graph terms of probe (m) by the number of objects of one label: true and stated places random and held still.

    A crowd without names is a density, and a random one resembles it: reported, not bounded.
    """
    rng, rule = np.random.default_rng(seed), GraphRule()
    found = {}
    for count in CROWDS:
        truths = [_crowd(rng, count) for _ in range(scenes)]
        scores = [reward(_held_still(truth, rng), prepare(truth, rule), rule) for truth in truths]
        terms = [{"graph_node": s.node, "graph_edge": s.edge or 0.0, "graph": s.graph} for s in scores]
        name = f"(m) a crowd of {count}"
        found[name] = {column: _mean(terms, column) for column in GRAPH_COLUMNS}
    return found


def _crowd(rng: np.random.Generator, count: int) -> SceneGraph:
    """Return `count` objects of one label at random places, at four times."""
    nodes = tuple(
        Node(id=f"person.{k}", label="person", pos=tuple(place))
        for k, place in enumerate(rng.uniform(0, 10, (count, 2)).tolist(), start=1)
    )
    frames = tuple(GraphFrame(t=float(t), nodes=nodes) for t in range(4))
    return SceneGraph(unit="m", frame="floor", frames=frames)


def table(rows: dict[str, dict[str, float]]) -> str:
    """Return the rows as a Markdown table."""
    columns = [*next(iter(rows.values()))]
    head = f"| probe | {' | '.join(columns)} |\n| --- |{' ---: |' * len(columns)}\n"
    body = (f"| {name} | {' | '.join(f'{row[c]:.2f}' for c in columns)} |" for name, row in rows.items())
    return head + "\n".join(body) + "\n"


def tabletop_records(
    scenes: int, difficulty: Difficulty, seed: int = 0, split: Split = Split.HELDOUT
) -> list[Record]:
    """Return records of the tabletop world, one a scene, without their videos."""
    return [
        record
        for index in range(scenes)
        for record in make_records(
            make_scene(scene_seed(seed, split, index), difficulty),
            "",
            f"{split.name.lower()}-{seed}-{index:06d}",
            1,
        )
    ]


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m rewards.probes", description=__doc__)
    parser.add_argument(
        "--data", type=Path, help="a record dataset; default: the tabletop world's held-out records"
    )
    parser.add_argument(
        "--difficulty", choices=[d.value for d in Difficulty], default="easy", help="of the tabletop world"
    )
    parser.add_argument("--records", type=int, default=256, help="how many")
    parser.add_argument("--rubric", default="default")
    parser.add_argument("--crowds", action="store_true", help="instead: probe (m), crowds of one label")
    options = parser.parse_args(arguments)
    if options.crowds:
        sys.stdout.write(table(crowds()))
        return 0
    records = (
        list(usable_records(options.data))[: options.records]
        if options.data
        else tabletop_records(options.records, Difficulty(options.difficulty))
    )
    sys.stdout.write(table(measure(records, options.rubric)))
    return 0


if __name__ == "__main__":
    run_main(main)
