"""Work of the host on one core: frames from the store against decoding, scoring of groups. One JSON object a line."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from rewards import score_group
from tests.benchmarks.measure import report, spread
from videostr.data.records import read_records
from videostr.graph import to_json
from videostr.trace import parse
from videostr.types import Answer, AnswerKind, ClipSpec, Edge, GraphFrame, Node, Record, SceneGraph
from videostr.video import FrameStore, decode, name_clip

REPEATS = 7
HOST = {"cores": 1, "repeats": REPEATS}


def seconds(work: Callable[[], object], calls: int) -> list[float]:
    """CPU seconds per call, of every repeat."""
    found = []
    for _ in range(REPEATS):
        started = time.process_time()
        for _ in range(calls):
            work()
        found.append((time.process_time() - started) / calls)
    return found


def test_frame_store(tabletop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tabletop / "heldout"
    record = next(row for row in read_records(folder) if isinstance(row, Record))
    clip, store = name_clip(record.clip, folder), FrameStore(tmp_path)
    stored = seconds(lambda: np.array(store.frames(clip).pixels), 200)
    decoded = seconds(lambda: decode(clip.spec), 20)
    report(
        capsys,
        **HOST,
        name="decode/frame_store",
        value=round(1 / statistics.median(stored)),
        unit="clips/s",
        ratio=round(statistics.median(decoded) / statistics.median(stored), 2),
        against="decoding at every use",
        shape="4 frames of 64 x 64, H.264",
        spread=spread(stored),
    )


UNIQUE = ("car", "van", "bus", "person", "bike", "tree", "sign", "dog")
REPEATED = ("car", "car", "van", "van", "person", "person", "person", "dog")


def scene(labels: Sequence[str], edges: bool = False, seed: int = 0) -> SceneGraph:
    """Four frames of moving objects in `camera0`; with `edges` all pairs are stated."""
    rng = np.random.default_rng(seed)
    names = [f"{label}.{labels[: i + 1].count(label)}" for i, label in enumerate(labels)]
    start, speed = rng.uniform(0, 10, (len(labels), 3)), rng.normal(0, 1, (len(labels), 3))

    def frame(t: int) -> GraphFrame:
        nodes = tuple(
            Node(id=name, label=label, pos=tuple(pos))
            for name, label, pos in zip(names, labels, np.round(start + t * speed, 2).tolist(), strict=True)
        )
        pairs = itertools.combinations(names, 2) if edges else ()
        return GraphFrame(
            t=float(t), nodes=nodes, edges=tuple(Edge(a=a, b=b, dist=3.5, angle=20.0) for a, b in pairs)
        )

    return SceneGraph(unit="m", frame="camera0", frames=tuple(map(frame, range(4))))


def asked(truth: SceneGraph) -> Record:
    return Record(
        id="bench", source="bench", family="counting", question="?", options=("x", "y"),
        answer=Answer(kind=AnswerKind.CHOICE, value="A"), clip=ClipSpec(video="v.mp4", num_frames=4),
        labels=tuple(set(UNIQUE)), graph=truth,
    )  # fmt: skip


def trace(graph: SceneGraph, think: str = "") -> str:
    return f"<think>{think}<graph>{to_json(graph)}</graph></think><answer>A</answer>"


def cost(labels: Sequence[str], *, edges: bool = False, think: str = "") -> list[float]:
    """Seconds per trace in groups of eight; the stated graphs are those of other scenes."""
    record = asked(scene(labels))
    group = [trace(scene(labels, edges, seed), think) for seed in range(1, 9)]
    calls = max(1, 200 // len(labels) ** 2)
    return [taken / 8 for taken in seconds(lambda: score_group(group, record), calls)]


@pytest.mark.parametrize(
    ("labels", "edges", "shape"),
    [
        (UNIQUE, False, "groups of 8, 4 frames, 8 nodes of different labels"),
        (UNIQUE, True, "groups of 8, 4 frames, 8 nodes of different labels, all 28 edges stated"),
        (REPEATED, False, "groups of 8, 4 frames, 8 nodes, labels repeated 2, 2 and 3 times"),
    ],
)
def test_rewards(labels: Sequence[str], edges: bool, shape: str, capsys: pytest.CaptureFixture[str]) -> None:
    taken = cost(labels, edges=edges)
    texts = [trace(scene(labels, edges, seed)) for seed in range(1, 9)]
    reading = statistics.median(seconds(lambda: [parse(text) for text in texts], 20)) / 8
    report(
        capsys,
        **HOST,
        name="reward/traces_per_s_per_core",
        value=round(1 / statistics.median(taken)),
        unit="traces/s",
        ratio=round(reading / statistics.median(taken), 2),
        against="parsing the traces alone: its share of the time",
        shape=shape,
        spread=spread(taken),
    )


def test_reward_growth(capsys: pytest.CaptureFixture[str]) -> None:
    """Exponents of the cost: at most 3 in the nodes, at most 1 in the length of the text."""
    names = [f"label {chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(64)]
    few, many = (statistics.median(cost(names[:n])) for n in (16, 64))
    repeated_few, repeated_many = (statistics.median(cost(["car"] * n)) for n in (16, 64))
    short, long = (statistics.median(cost(UNIQUE, think="word " * n)) for n in (1600, 12000))
    for against, value, shape in (
        ("nodes^3", math.log(many / few) / math.log(4), "16 to 64 nodes of different labels"),
        ("nodes^3", math.log(repeated_many / repeated_few) / math.log(4), "16 to 64 nodes of one label"),
        ("text^1", math.log(long / short) / math.log(7.5), "8 to 60 kB of thinking"),
    ):
        report(capsys, **HOST, name="reward/growth", value=round(value, 2), unit="exponent", ratio=None, against=against,
               shape=shape, spread=None)  # fmt: skip
