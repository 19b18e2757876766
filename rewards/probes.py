"""Hacking probes: what shortcuts earn (docs/rewards.md). `python -m rewards.probes [--data DIR]` prints them as a table.

In: records with true graphs, those of the tabletop world unless a dataset is named. Out: the mean reward of every probe. A
graph reward is fit for training when cheap texts, which tell nothing about the scene, earn little.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from msgspec.structs import replace

from rewards.match import Floats
from rewards.rubric import Rubric, score_group
from videostr.data.records import read_records
from videostr.errors import DataError, VideoStrError
from videostr.graph import MAX_NODES, ground_axes, to_json
from videostr.prompt import answer_text
from videostr.tabletop.build import Split, scene_seed
from videostr.tabletop.questions import make_records
from videostr.tabletop.world import Difficulty, make_scene
from videostr.types import Answer, AnswerKind, GraphFrame, Node, Record, SceneGraph

_Move = Callable[[GraphFrame, Floats], Floats]
COLUMNS = ("format", "answer", "graph_node", "graph_edge", "graph", "total")


def trace(graph: str, answer: str) -> str:
    """A trace around the JSON of a graph."""
    return f"<think>I look at the frames. <graph>{graph}</graph></think>\n<answer>{answer}</answer>"


def moved(truth: SceneGraph, move: _Move) -> SceneGraph:
    """The truth with other positions: `move` maps a frame and its positions [N, D] to new ones."""
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


GRAPH_PROBES: dict[str, Callable[[SceneGraph, np.random.Generator], SceneGraph]] = {
    "(c) every node at the centroid": _centroid,
    "(d) the label list at random positions": _at_random,
    "(e) copies of each label, 64 nodes": _copies,
    "(f) the true graph mirrored": _mirrored,
    "(g) the true graph turned by 90 degrees": _rotated,
}
"""Graphs made from the true one, written without an answer, so that only the graph is paid."""


def probes(record: Record, truth: SceneGraph, rng: np.random.Generator) -> dict[str, str]:
    """Text of every probe for a record and its true graph."""
    answer = answer_text(record.answer)
    return {
        "(a) empty text": "",
        "(b) format only": "<think></think><answer></answer>",
        **{name: trace(to_json(attack(truth, rng)), "") for name, attack in GRAPH_PROBES.items()},
        "(h) the answer repeated as thinking": f"<think>{f'{answer} ' * 20}</think><answer>{answer}</answer>",
        "(i) the true graph, a wrong answer": trace(to_json(truth), wrong_answer(record.answer)),
        "(j) truth": trace(to_json(truth), answer),
    }


def wrong_answer(answer: Answer) -> str:
    """An answer that earns nothing."""
    if answer.kind is AnswerKind.CHOICE:
        return "B" if answer.value == "A" else "A"
    return "-1e9" if answer.kind is AnswerKind.NUMBER else "none"


def measure(
    records: Iterable[Record], rubric: Rubric | str = "default", seed: int = 0
) -> dict[str, dict[str, float]]:
    """Mean of every part over the records, by probe; records without a graph are passed over.

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
        for name, earned in zip(texts, score_group(list(texts.values()), record, rubric), strict=True):
            found[name].append({**earned.parts, "total": earned.total})
    return {name: {column: _mean(parts, column) for column in COLUMNS} for name, parts in found.items()}


def _mean(parts: Sequence[dict[str, float]], column: str) -> float:
    values = [part[column] for part in parts if column in part]
    return sum(values) / len(values) if values else math.nan


def table(rows: dict[str, dict[str, float]]) -> str:
    """Markdown."""
    head = f"| probe | {' | '.join(COLUMNS)} |\n| --- |{' ---: |' * len(COLUMNS)}\n"
    body = (f"| {name} | {' | '.join(f'{row[c]:.2f}' for c in COLUMNS)} |" for name, row in rows.items())
    return head + "\n".join(body) + "\n"


def tabletop_records(scenes: int, difficulty: Difficulty, seed: int = 0) -> list[Record]:
    """The held-out records of the tabletop world, without their videos."""
    return [
        record
        for index in range(scenes)
        for record in make_records(
            make_scene(scene_seed(seed, Split.HELDOUT, index), difficulty),
            "",
            f"heldout-{seed}-{index:06d}",
            1,
        )
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0, or 2 on bad input."""
    parser = argparse.ArgumentParser(prog="python -m rewards.probes", description=__doc__)
    parser.add_argument(
        "--data", type=Path, help="a record dataset; default: the tabletop world's held-out records"
    )
    parser.add_argument(
        "--difficulty", choices=[d.value for d in Difficulty], default="easy", help="of the tabletop world"
    )
    parser.add_argument("--records", type=int, default=256, help="how many")
    parser.add_argument("--rubric", default="default")
    options = parser.parse_args(arguments)
    try:
        records = (
            [row for row in read_records(options.data) if isinstance(row, Record)][: options.records]
            if options.data
            else tabletop_records(options.records, Difficulty(options.difficulty))
        )
        sys.stdout.write(table(measure(records, options.rubric)))
    except VideoStrError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
