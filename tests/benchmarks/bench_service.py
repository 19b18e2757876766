"""The reward service against scoring in one process. One JSON object a line."""

from __future__ import annotations

import asyncio
import json
import statistics
import time

import numpy as np
import pytest

from rewards import Rubric, score_group
from rewards.service.address import Address
from rewards.service.client import RewardClient
from rewards.service.server import RewardServer, Settings
from videostr.prompt import reference_trace
from videostr.types import (
    Answer,
    AnswerKind,
    ClipSpec,
    GraphFrame,
    Node,
    Record,
    SceneGraph,
)

REPEATS = 5
GROUP_SIZE = 8
GROUPS = 150


def scene(nodes: int, frames: int) -> Record:
    """A record with random moving objects of half as many labels."""
    rng = np.random.default_rng(0)
    start, step = rng.uniform(0, 10, (nodes, 2)), rng.uniform(-1, 1, (nodes, 2))
    labels = [f"label{i // 2}" for i in range(nodes)]
    graph = SceneGraph(
        unit="m",
        frame="floor",
        frames=tuple(
            GraphFrame(
                t=float(t),
                nodes=tuple(
                    Node(
                        id=f"{label}.{i}", label=label, pos=tuple((start[i] + t * step[i]).round(2).tolist())
                    )
                    for i, label in enumerate(labels)
                ),
            )
            for t in range(frames)
        ),
    )
    return Record(
        id="r1",
        source="benchmark",
        family="benchmark",
        question="?",
        options=("left", "right"),
        answer=Answer(kind=AnswerKind.CHOICE, value="A"),
        clip=ClipSpec(video="v.mp4", num_frames=frames),
        labels=tuple(sorted(set(labels))),
        graph=graph,
    )


def in_process(group: list[str], record: Record) -> float:
    """Traces a second."""
    began = time.perf_counter()
    for _ in range(GROUPS):
        score_group(group, record, Rubric())
    return GROUPS * GROUP_SIZE / (time.perf_counter() - began)


async def over_service(
    client: RewardClient, group: list[str], record: Record, places: int
) -> tuple[float, float]:
    """Traces a second over one stream, and by unary calls of which `places` are under way."""
    began = time.perf_counter()
    async for _ in client.score_groups((group, record) for _ in range(GROUPS)):
        pass
    streamed = time.perf_counter()
    free = asyncio.Semaphore(places)

    async def call() -> None:
        async with free:
            await client.score_group(group, record)

    await asyncio.gather(*(call() for _ in range(GROUPS)))
    traces = GROUPS * GROUP_SIZE
    return traces / (streamed - began), traces / (time.perf_counter() - streamed)


async def measure(num_workers: int, group: list[str], record: Record) -> list[tuple[float, float, float]]:
    """In-process, streamed and unary rates, side by side in every repeat."""
    settings = Settings(listen=Address("127.0.0.1", 0), num_workers=num_workers)
    server = await RewardServer.start(settings, Rubric())
    found = []
    async with RewardClient(str(server.address)) as client:
        await over_service(client, group, record, 4 * num_workers)
        for _ in range(REPEATS):
            alone = await asyncio.to_thread(in_process, group, record)
            found.append((alone, *await over_service(client, group, record, 4 * num_workers)))
    await server.stop(5.0)
    return found


@pytest.mark.parametrize("num_workers", [1, 2])
def test_service(num_workers: int, capsys: pytest.CaptureFixture[str]) -> None:
    record = scene(nodes=8, frames=4)
    rates = asyncio.run(measure(num_workers, [reference_trace(record)] * GROUP_SIZE, record))
    streamed = [stream / alone for alone, stream, _ in rates]
    values = {
        "name": "service/throughput_share",
        "value": round(statistics.median(streamed), 3),
        "unit": "share of scoring in one process",
        "workers": num_workers,
        "streamed_traces_per_s": round(statistics.median(stream for _, stream, _ in rates)),
        "unary_traces_per_s": round(statistics.median(unary for *_, unary in rates)),
        "in_process_traces_per_s": round(statistics.median(alone for alone, *_ in rates)),
        "shape": "groups of 8, 8 nodes, 4 frames; client and server share a process and the cores with the workers",
        "repeats": REPEATS,
        "spread": round((max(streamed) - min(streamed)) / statistics.median(streamed), 3),
    }
    with capsys.disabled():
        print(json.dumps(values), flush=True)  # noqa: T201
