"""The data of the trace viewer: a small index of all dumped rollouts, and chunks that the page opens when they are looked at.

In: trace dumps and the frame store. Out: text that is safe inside a page's `<script>`: index and chunks are gzip in base64,
clips are JSON of data URLs in ASCII. Positions are shares of the view, so that the page only places and draws.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from videostr.draw import (
    MAX_DRAWN_EDGES,
    View,
    chosen,
    frame_images,
    frame_times,
    label_color,
    read_graph,
    view_of,
)
from videostr.graph import frame_at, half_spacing
from videostr.report.stats import json_of
from videostr.traces import TraceRow
from videostr.types import FinishReason, GraphAbsence, GraphFrame, SceneGraph

CHUNK_ROLLOUTS = 128
NEAR = 1e-3
"""Depth, in the unit of the graph, from which on a position is before the camera."""
MAX_TEXT = 64 * 1024
"""Characters of a text that the page holds; a trace beyond it is not read by the rewards either."""
FRAMES_MIB = 24.0
"""Frames of clips in the page."""
FAULTS = (
    ("truncated", "truncated: hit the token limit"),
    ("aborted", "given up by the engine"),
    ("no_graph", "no readable graph"),
    ("bad_format", "format reward below 1"),
    ("wrong", "answer reward 0"),
    ("zero_variance", "group without variance"),
)
"""(name, words); a rollout has bit i of its faults when it has the i-th."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewerData:
    """What the page holds of the traces."""

    groups: int
    rollouts: int
    index: str
    """gzip, base64; JSON: see `_index`."""
    chunks: list[str]
    """gzip, base64; JSON: lists of groups."""
    clips: list[str]
    """JSON: {"w", "h", "marked", "images"}; the i-th is clip i of the index."""
    clips_known: int
    """Different clips in the traces; more than `clips` where the frame store lacks them or the page has no room."""


def viewer_data(
    dumps: Sequence[tuple[int, Sequence[TraceRow]]], store: Path, frames_mib: float = FRAMES_MIB
) -> ViewerData:
    """Return everything, groups in order of step and record, rollouts of a group best first."""
    groups = [group for _, rows in dumps for group in _groups(rows)]
    clips, numbers, known = _clips(groups, store, frames_mib)
    chunks: list[str] = []
    places: list[tuple[int, int]] = []
    waiting: list[dict[str, Any]] = []
    held = 0
    for group in groups:
        if waiting and held + len(group) > CHUNK_ROLLOUTS:
            chunks.append(_packed(waiting))
            waiting, held = [], 0
        places.append((len(chunks), len(waiting)))
        waiting.append(_group(group, store))
        held += len(group)
    if waiting:
        chunks.append(_packed(waiting))
    return ViewerData(
        groups=len(groups),
        rollouts=sum(map(len, groups)),
        index=_packed(_index(groups, places, numbers)),
        chunks=chunks,
        clips=clips,
        clips_known=known,
    )


def faults(row: TraceRow, *, zero_variance: bool) -> int:
    """Return bits of FAULTS that a rollout has; `zero_variance` says that its group has no variance."""
    parts = json_of(row["parts"], {})
    found = (
        row["finish_reason"] == FinishReason.LENGTH.name,
        row["finish_reason"] == FinishReason.ABORT.name,
        bool(row["absence"]),
        "format" in parts and _number(parts["format"]) < 1,
        "answer" in parts and _number(parts["answer"]) <= 0,
        zero_variance,
    )
    return sum(1 << bit for bit, has in enumerate(found) if has)


def drawn_over_frames(reference: str, unit: str) -> bool:
    """Return whether the view is that of the frames, so that a graph can be drawn over them.

    It is where positions are shares of the image, and for the grid of a floor, which only the tabletop world has: its
    camera looks straight down on it. For metres it takes the camera: `GraphFrame.view` of the true graph, see `seen_at`.
    """
    return reference == "image" or unit == "px" or (reference == "floor" and unit == "grid")


def seen_at(pos: Sequence[float], camera: Sequence[float]) -> list[float] | None:
    """Return where a position appears in a frame, as shares of its sides from the left and the top; None from behind the camera.

    Args:
        pos: 3 coordinates in the frame of reference of the graph.
        camera: `GraphFrame.view` of the true graph.
    """
    x, y, depth = np.reshape(camera, (3, 4)) @ (*pos, 1.0)
    return [round(float(x / depth) / 1000, 4), round(float(y / depth) / 1000, 4)] if depth > NEAR else None


def _groups(rows: Sequence[TraceRow]) -> Iterator[list[TraceRow]]:
    def key(row: TraceRow) -> tuple[str, str]:
        return row["record_id"], row["prompt"]

    for _, group in groupby(sorted(rows, key=key), key=key):
        yield sorted(group, key=lambda row: -row["total"])


def _index(
    groups: Sequence[Sequence[TraceRow]], places: Sequence[tuple[int, int]], clips: dict[str, int]
) -> dict[str, Any]:
    """Columns: one value per group, then one per rollout in the order of the groups."""
    families, records, questions = ({} for _ in range(3))  # type: ignore[var-annotated]
    zero_variance = [len({row["total"] for row in group}) == 1 for group in groups]
    firsts = [group[0] for group in groups]
    return {
        "faults": FAULTS,
        "step": [row["step"] for row in firsts],
        "record": [records.setdefault(row["record_id"], len(records)) for row in firsts],
        "family": [families.setdefault(row["family"], len(families)) for row in firsts],
        "question": [questions.setdefault(row["question"][:200], len(questions)) for row in firsts],
        "chunk": [chunk for chunk, _ in places],
        "at": [at for _, at in places],
        "clip": [clips.get(row["clip"], -1) for row in firsts],
        "size": [len(group) for group in groups],
        "families": list(families),
        "records": list(records),
        "questions": list(questions),
        "total": [round(row["total"], 4) for group in groups for row in group],
        "fault": [
            faults(row, zero_variance=zero)
            for group, zero in zip(groups, zero_variance, strict=True)
            for row in group
        ],
    }


def _group(group: Sequence[TraceRow], store: Path) -> dict[str, Any]:
    first = group[0]
    reference = first["reference"]
    truth = read_graph(first["true_graph"], reference)
    predictions = [read_graph(row["predicted_graph"], reference) for row in group]
    shown = next((graph for graph in (truth, *predictions) if graph is not None), None)
    times = [frame.t for frame in truth.frames] if truth else frame_times(store, first["clip"])
    times = times or [frame.t for frame in (shown.frames if shown else ())]
    indices, tolerance = chosen(len(times)) if times else [], half_spacing(times)
    view = view_of([shown], reference) if shown else None
    cameras = [truth.frames[i].view if truth else None for i in indices]

    def placed(graph: SceneGraph | None) -> list[Any] | None:
        if graph is None or view is None:
            return None
        return [
            _frame(frame_at(graph, times[i], tolerance), view, camera)
            for i, camera in zip(indices, cameras, strict=True)
        ]

    return {
        "prompt": _clipped(first["prompt"]),
        "question": _clipped(first["question"]),
        "answer": _clipped(first["true_answer"]),
        "reference": reference,
        "unit": shown.unit if shown else "",
        "over": shown is not None
        and (drawn_over_frames(reference, shown.unit) or (len(cameras) > 0 and None not in cameras)),
        "times": [round(times[i], 3) for i in indices],
        "truth": placed(truth),
        "rollouts": [
            {
                "n": row["rollout"],
                "text": _clipped(row["text"]),
                "total": round(row["total"], 4),
                "advantage": round(row["advantage"], 4),
                "parts": {
                    name: round(_number(value), 4) for name, value in json_of(row["parts"], {}).items()
                },
                "notes": [_clipped(str(note)) for note in json_of(row["notes"], [])],
                "tokens": row["tokens"],
                "finish": row["finish_reason"],
                "absence": _absence(row["absence"]),
                "frames": placed(graph),
            }
            for row, graph in zip(group, predictions, strict=True)
        ],
    }


def _frame(frame: GraphFrame | None, view: View, camera: Sequence[float] | None) -> dict[str, Any] | None:
    """Return nodes [id, colour, x, y, 1 when inside the view, position] and edges [node, node] by their index; None: not stated.

    With a camera a node has one more entry: where it appears in the video frame.
    """
    if frame is None:
        return None
    nodes = [node for node in frame.nodes if len(node.pos) > max(view.axes)]
    numbers = {node.id: number for number, node in enumerate(nodes)}
    placed = []
    for node in nodes:
        x, y, inside = view.share(node.pos)
        where = [float(f"{value:.4g}") for value in node.pos]
        entry = [node.id[:60], label_color(node.label), round(x, 4), round(y, 4), int(inside), where]
        if camera is not None:
            entry.append(seen_at(node.pos, camera) if len(node.pos) == 3 else None)
        placed.append(entry)
    edges = [
        [numbers[edge.a], numbers[edge.b]]
        for edge in frame.edges[:MAX_DRAWN_EDGES]
        if {edge.a, edge.b} <= numbers.keys()
    ]
    return {"nodes": placed, "edges": edges}


def _clips(
    groups: Sequence[Sequence[TraceRow]], store: Path, frames_mib: float
) -> tuple[list[str], dict[str, int], int]:
    """Return frames of as many clips as fit, those of the first groups of every step first, newest steps first.

    Returns them, their numbers by digest, and how many different clips there are.
    """
    rank: Counter[int] = Counter()
    ordered = []
    for group in groups:
        step = group[0]["step"]
        ordered.append((rank[step], -step, group[0]["clip"]))
        rank[step] += 1
    ordered.sort(key=lambda entry: entry[:2])
    found: list[str] = []
    numbers: dict[str, int] = {}
    seen: set[str] = set()
    room = frames_mib * 2**20
    for _, _, digest in ordered:
        if digest in seen:
            continue
        seen.add(digest)
        text = _clip(store, digest) if room > 0 else ""
        if text and len(text) <= room:
            room -= len(text)
            numbers[digest] = len(found)
            found.append(text)
    return found, numbers, len(seen)


def _clip(store: Path, digest: str) -> str:
    images = frame_images(store, digest)
    if images is None:
        return ""
    return json.dumps({"w": images.width, "h": images.height, "marked": images.marked, "images": images.urls})


def _clipped(text: str) -> str:
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}\n… {len(text) - MAX_TEXT} more characters"


def _absence(name: str) -> str:
    return GraphAbsence[name].value if name in GraphAbsence.__members__ else name


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) and abs(value) < float("inf") else 0.0


def _packed(value: object) -> str:
    text = json.dumps(value, separators=(",", ":"))
    return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()
