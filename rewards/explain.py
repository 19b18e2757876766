"""Why a trace scored as it did: its parts, the notes, and a picture of the stated graph over the true one.

`python -m rewards.explain --data DIR --id RECORD --trace FILE [--rubric NAME] [--picture OUT.svg]`
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from msgspec.structs import replace

from rewards.rubric import score_group_with_traces
from videostr.command import command, run_main
from videostr.data.records import read_records
from videostr.draw import SIDE, draw, view_of
from videostr.errors import DataError
from videostr.files import write_text
from videostr.graph import frame_at, half_spacing
from videostr.types import Record, SceneGraph

GAP = 10
TITLE = 42
STYLE = """
text { font: 13px sans-serif; fill: #212529; } .soft { fill: #6c757d; font-size: 11.5px; }
.floor { fill: #f8f9fa; stroke: #ced4da; } .mesh { stroke: #e9ecef; fill: none; }
.node circle { stroke: #212529; stroke-width: .8; } .node.outside circle { stroke-dasharray: 2 1.5; }
.name { font-size: 9px; } .none { font-size: 11px; fill: #6c757d; }
.ghost { fill: none; stroke-width: 1.4; stroke-dasharray: 2.5 2; } .edge { stroke: #868e96; stroke-width: .8; }
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One trace in a picture."""

    title: str
    remark: str
    truth: SceneGraph
    stated: SceneGraph | None


def picture(rows: Sequence[Row]) -> str:
    """Return an SVG: for every trace its title and, at every selected time, the view from above; hollow circles are the truth."""
    columns = max(len(row.truth.frames) for row in rows)
    width, height = GAP + columns * (SIDE + GAP), len(rows) * (TITLE + SIDE + GAP)
    parts = [part for k, row in enumerate(rows) for part in _row(row, k * (TITLE + SIDE + GAP))]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">'
        f'<style>{STYLE}</style><rect width="{width}" height="{height}" fill="#fff"/>{"".join(parts)}</svg>\n'
    )


def _row(row: Row, top: int) -> list[str]:
    reference = row.truth.frame
    view = view_of([row.truth], reference)
    reach = half_spacing([item.t for item in row.truth.frames])
    parts = [
        f'<text x="{GAP}" y="{top + 18}">{escape(row.title)}</text>',
        f'<text class="soft" x="{GAP}" y="{top + 34}">{escape(row.remark)}</text>',
    ]
    for k, true in enumerate(row.truth.frames):
        scene = str(draw(frame_at(row.stated, true.t, reach), view, ghosts=true))
        place = f'x="{GAP + k * (SIDE + GAP)}" y="{top + TITLE}" width="{SIDE}" height="{SIDE}"'
        parts.append(scene.replace("<svg ", f"<svg {place} ", 1))
    return parts


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m rewards.explain", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="a record dataset")
    parser.add_argument("--id", required=True, help="which record")
    parser.add_argument("--trace", type=Path, required=True, help="file with the completion's text")
    parser.add_argument("--rubric", default="default", help="preset")
    parser.add_argument("--picture", type=Path, help="write the graph over the true one as SVG")
    options = parser.parse_args(arguments)
    record = next(
        (r for r in read_records(options.data) if isinstance(r, Record) and r.id == options.id), None
    )
    if record is None:
        raise DataError(
            f"{options.data}: has no usable record with id = {options.id!r}",
            remedy=f"python -m videostr.data check {options.data} lists what cannot be used",
        )
    try:
        text = options.trace.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise DataError(
            f"{options.trace}: cannot be read ({error})", remedy="name a text file by --trace"
        ) from None
    ((parsed, scored),) = score_group_with_traces([text], record, options.rubric)
    lines = [
        f"total {scored.total:.3f}",
        *(f"  {name:<11} {value:.3f}" for name, value in scored.parts.items()),
    ]
    sys.stdout.write("\n".join([*lines, *(f"- {note}" for note in scored.notes)]) + "\n")
    if options.picture and record.graph is not None:
        stated = (
            replace(parsed.graph, frame=record.graph.frame) if isinstance(parsed.graph, SceneGraph) else None
        )
        remark = ", ".join(f"{name} {value:.2f}" for name, value in scored.parts.items())
        row = Row(title=record.question, remark=remark, truth=record.graph, stated=stated)
        write_text(options.picture, picture([row]))
    return 0


if __name__ == "__main__":
    run_main(main)
