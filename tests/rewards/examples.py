"""The five example traces of docs/rewards.md.

`python -m tests.rewards.examples docs/images/graph_scores.svg` draws them and prints their table.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from msgspec.structs import replace

from rewards.explain import Row, picture
from rewards.match import Floats
from rewards.probes import moved, trace
from rewards.rubric import score
from videostr.graph import to_json
from videostr.prompt import answer_text
from videostr.types import Answer, AnswerKind, ClipSpec, GraphFrame, Node, Record, SceneGraph

AT = {
    "cup.1": [(1, 1), (3, 2), (5, 3)],
    "pen.1": [(8, 2), (8, 4), (8, 6)],
    "box.1": [(4, 8), (4, 7), (3, 7)],
}
EXAMPLE = Record(
    id="example",
    source="docs",
    family="counting",
    question="How many objects move?",
    options=(),
    answer=Answer(kind=AnswerKind.NUMBER, value=3.0),
    clip=ClipSpec(video="example.mp4", num_frames=3),
    labels=("box", "cup", "hat", "pen"),
    graph=SceneGraph(
        unit="m",
        frame="floor",
        frames=tuple(
            GraphFrame(
                t=float(t),
                nodes=tuple(
                    Node(id=name, label=name[:-2], pos=(float(at[t][0]), float(at[t][1])))
                    for name, at in AT.items()
                ),
            )
            for t in range(3)
        ),
    ),
)


def _about_middle(move: Floats, pos: Floats) -> Floats:
    """Return positions under a linear map about (4.5, 4.5)."""
    changed: Floats = (pos - 4.5) @ move.T + 4.5
    return changed


def examples() -> list[tuple[str, SceneGraph]]:
    """Return five traces of `EXAMPLE`: what is wrong with each, and its graph."""
    truth = EXAMPLE.graph
    assert truth is not None
    shift = np.array([[0.6, -0.5], [-0.7, 0.4], [0.3, 0.8]])
    quarter, mirror = np.array([[0.0, -1.0], [1.0, 0.0]]), np.array([[-1.0, 0.0], [0.0, 1.0]])
    hat = replace(truth.frames[0].nodes[0], id="hat.1", label="hat", pos=(6.0, 6.0))
    swapped = tuple(replace(item, nodes=(*item.nodes[:2], hat)) for item in truth.frames[:2])
    return [
        ("slightly off everywhere", moved(truth, lambda _, pos: pos + shift)),
        ("box missing, hat invented, last frame not stated", replace(truth, frames=swapped)),
        ("turned by 90 degrees", moved(truth, lambda _, pos: _about_middle(quarter, pos))),
        ("mirrored", moved(truth, lambda _, pos: _about_middle(mirror, pos))),
        ("everything at the centroid", moved(truth, lambda _, pos: np.tile(pos.mean(axis=0), (len(pos), 1)))),
    ]


def example_rows() -> tuple[str, str]:
    """Return the picture (SVG) and Markdown table of the five examples."""
    assert EXAMPLE.graph is not None
    rows, lines = [], ["| trace | graph_node | graph_edge | graph |", "| --- | ---: | ---: | ---: |"]
    for title, graph in examples():
        parts = score(trace(to_json(graph), answer_text(EXAMPLE.answer)), EXAMPLE).parts
        terms = {name: parts[name] for name in ("graph_node", "graph_edge", "graph")}
        text = ", ".join(f"{name} {value:.2f}" for name, value in terms.items())
        rows.append(Row(title=title, remark=text, truth=EXAMPLE.graph, stated=replace(graph, frame="floor")))
        lines.append(f"| {title} | {' | '.join(f'{value:.2f}' for value in terms.values())} |")
    return picture(rows), "\n".join(lines) + "\n"


if __name__ == "__main__":
    drawn, table = example_rows()
    Path(sys.argv[1]).write_text(drawn)
    sys.stdout.write(table)
