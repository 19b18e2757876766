"""What the benchmarks share: alternating measurements in, one JSON object a line out."""

from __future__ import annotations

import json
import multiprocessing
import socket
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch

Work = Callable[[], object]


def alternate(sides: Mapping[str, Work], repeats: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Seconds of every repeat of every side, taken in turn, so that a busy machine slows all alike; one turn more warms up."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(repeats + 1):
        for name, work in sides.items():
            started = clock()
            work()
            if turn > 0:
                found[name].append(clock() - started)
    return found


def processor_seconds(sides: Mapping[str, Work], repeats: int) -> dict[str, list[float]]:
    """`alternate` on one core, in processor time: what else runs on the machine does not count."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return alternate(sides, repeats, time.process_time)
    finally:
        torch.set_num_threads(threads)


def of_ranks(main: Callable[..., None], arguments: Sequence[Any], ranks: int, timeout_s: float) -> list[Any]:
    """What ranks put into a queue, each a process that runs `main(*arguments, rank, ranks, port, queue)`, a module's function."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [
        context.Process(target=main, args=(*arguments, rank, ranks, port, results)) for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    found = [results.get(timeout=timeout_s) for _ in processes]
    for process in processes:
        process.join()
    return found


def spread(values: Sequence[float]) -> float:
    """(max - min) / median."""
    return round((max(values) - min(values)) / statistics.median(values), 3)


def ratio(over: Sequence[float], under: Sequence[float]) -> float:
    """Median of the ratios of the turns."""
    return round(statistics.median(a / b for a, b in zip(over, under, strict=True)), 3)


def report(capsys: pytest.CaptureFixture[str], **values: object) -> None:
    """Print one line past pytest's capture."""
    with capsys.disabled():
        print(json.dumps(values), flush=True)  # noqa: T201
