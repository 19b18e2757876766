"""Sampling through our worker against bare AsyncLLM, and weight publication against its alternatives. One JSON object a line.

Two engines, one after the other: the tabletop policy, and a narrow model with as many parameters as Qwen2.5-VL-7B.
"""

from __future__ import annotations

import asyncio
import shutil
import statistics
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from transformers import AutoProcessor, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from actors.pools import RayRolloutPool
from actors.sync import transfer_weights
from tests.benchmarks.engine_sides import EngineWorker, Peer, Sender
from tests.benchmarks.measure import ratio, report, spread
from videostr.config.load import load
from videostr.config.schema import Config
from videostr.data.records import read_records
from videostr.models.base import FAMILIES, family_of
from videostr.models.tiny import make_tiny
from videostr.ports import SampleRequest
from videostr.prompt import render
from videostr.types import Failure, Record
from videostr.video import name_clip

PRETRAINED = Path("videostr/tabletop/pretrained")
G = 8


@dataclass
class Engine:
    """A pool of one engine, and a sender of weights for it."""

    config: Config
    pool: RayRolloutPool
    sender: Any
    run: Callable[[Any], Any]

    @property
    def handle(self) -> Any:
        return self.pool.handles()[0]


@contextmanager
def engine_of(policy: Path, folder: Path, *overrides: str) -> Iterator[Engine]:
    config = load("configs/tabletop_cpu.yaml", [f"model.path={policy.absolute()}", *overrides])
    ray.init(
        "local", num_cpus=4, include_dashboard=False, log_to_driver=False, object_store_memory=200 * 2**20
    )
    loop = asyncio.new_event_loop()
    pool = RayRolloutPool(config, folder / "frames", folder / "logs", worker_class=EngineWorker)
    try:
        loop.run_until_complete(pool.start())
        sender = ray.remote(Sender).options(num_cpus=1).remote(str(policy), 2)
        yield Engine(config, pool, sender, loop.run_until_complete)
    finally:
        pool.close()
        ray.shutdown()
        loop.close()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with engine_of(PRETRAINED, tmp_path_factory.mktemp("small")) as engine:
        yield engine


def requests_of(folder: Path, count: int) -> list[SampleRequest]:
    processor = AutoProcessor.from_pretrained(PRETRAINED)
    records = [row for row in read_records(folder) if isinstance(row, Record)][:count]
    prompts = [render(record, name_clip(record.clip, folder), processor) for record in records]
    return [
        SampleRequest(prompt=prompt, n=G, temperature=1.0, max_tokens=160, seed=seed)
        for seed, prompt in enumerate(prompts)
    ]


async def through_pool(pool: RayRolloutPool, requests: list[SampleRequest]) -> tuple[float, int]:
    """Seconds and tokens of all groups."""
    started = time.perf_counter()
    groups = await asyncio.gather(*(pool.sample(request) for request in requests))
    seconds = time.perf_counter() - started
    assert not any(isinstance(group, Failure) for group in groups)
    return seconds, sum(c.num_tokens for group in groups for c in group.completions)


@dataclass
class Sides:
    """Tokens per second of the clock and per second of processor time, of each turn of our way and of the bare engine's."""

    ours: list[float]
    bare: list[float]
    ours_cpu: list[float]
    bare_cpu: list[float]
    tokens: int
    """Of one repeat of ours."""

    def figures(self) -> dict[str, object]:
        """What is reported of them."""
        return {
            "value": round(statistics.median(self.ours)),
            "unit": "tokens/s",
            "ratio": ratio(self.ours, self.bare),
            "ratio_cpu": ratio(self.ours_cpu, self.bare_cpu),
            "spread": spread(self.ours),
        }


def against_bare(
    engine: Engine, ours: Callable[[], tuple[float, int]], requests: Sequence[SampleRequest], repeats: int
) -> Sides:
    """Our way and the bare engine in turn, nothing cached before either; one turn more warms up.

    Args:
        engine: that both ask.
        ours: returns the seconds and tokens of the requests.
        requests: what the bare engine is asked, all at once.
        repeats: turns that count.
    """

    def measured(work: Callable[[], tuple[float, int]]) -> tuple[float, float, int]:
        ray.get(engine.handle.forget.remote())
        before = time.process_time() + ray.get(engine.handle.processor_seconds.remote())
        seconds, tokens = work()
        after = time.process_time() + ray.get(engine.handle.processor_seconds.remote())
        return tokens / seconds, tokens / (after - before), tokens

    sides = Sides(ours=[], bare=[], ours_cpu=[], bare_cpu=[], tokens=0)
    for turn in range(repeats + 1):
        mine = measured(ours)
        plain = measured(lambda: ray.get(engine.handle.bare.remote(requests)))
        assert abs(mine[2] / plain[2] - 1) < 0.1  # same seeds; the last bits of a batch may differ
        sides.tokens = mine[2]
        if turn > 0:
            sides.ours.append(mine[0])
            sides.ours_cpu.append(mine[1])
            sides.bare.append(plain[0])
            sides.bare_cpu.append(plain[1])
    return sides


@pytest.mark.parametrize(("prompts", "repeats"), [(16, 7), (40, 3)])
def test_rollout(
    small: Engine, tabletop: Path, prompts: int, repeats: int, capsys: pytest.CaptureFixture[str]
) -> None:
    requests = requests_of(tabletop / "train", prompts)
    sides = against_bare(small, lambda: small.run(through_pool(small.pool, requests)), requests, repeats)
    report(
        capsys,
        name="rollout/efficiency",
        **sides.figures(),
        against="bare AsyncLLM.generate in the same engine, frames in memory",
        shape=f"{prompts} prompts x {G} completions of {sides.tokens / prompts / G:.0f} tokens on average, 4 frames of 64 x 64",
        cores=2,
        repeats=repeats,
    )


LONG_TEXT = 1400
"""Tokens."""


@pytest.mark.parametrize("model_type", list(FAMILIES))
def test_prefill_of_a_group(
    model_type: str, tabletop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One token of eight completions of a long prompt, against one token of one."""
    make_tiny(tmp_path / "policy", 0, ["where is the red_ball?"], model_type=model_type)
    dtype = family_of({"model_type": model_type}).engine_dtypes(cpu=True)[0]
    (short,) = requests_of(tabletop / "train", 1)
    prompt = replace(short.prompt, text=short.prompt.text + "7" * LONG_TEXT)
    overrides = (f"model.dtype={dtype}", "rollout.max_model_len=2048")
    sides: dict[int, list[float]] = {G: [], 1: []}
    with engine_of(tmp_path / "policy", tmp_path, *overrides) as engine:
        for turn in range(8):
            for n, seconds in sides.items():
                ray.get(engine.handle.forget.remote())
                request = SampleRequest(prompt=prompt, n=n, temperature=1.0, max_tokens=1, seed=turn)
                took, _ = engine.run(through_pool(engine.pool, [request]))
                if turn > 0:
                    seconds.append(took)
    report(
        capsys,
        name="rollout/prefill_of_a_group",
        value=round(statistics.median(sides[G]), 3),
        unit="s",
        ratio=ratio(sides[G], sides[1]),
        against="the same prompt with one completion",
        model_type=model_type,
        shape=f"prompt of about {LONG_TEXT} tokens x {G} completions of one token, {dtype}",
        cores=2,
        repeats=7,
        spread=spread(sides[G]),
    )


# ---------------------------------------------------------------------------------------------------------- sync


class OneRank:
    """Stands where a learner stands."""

    def __init__(self, rank: Any) -> None:
        self.rank = rank

    async def call(self, method: str, *arguments: Any, **_deadline: Any) -> list[Any]:
        return [await getattr(self.rank, method).remote(*arguments)]


def deep_policy(folder: Path) -> Path:
    """Random weights, narrow, with the depth of Qwen2.5-VL-7B: 729 parameters."""
    shutil.copytree(PRETRAINED, folder)
    config = Qwen2_5_VLConfig.from_pretrained(folder)
    text, vision = config.text_config, config.vision_config
    text.hidden_size, text.intermediate_size, text.num_hidden_layers = 256, 768, 28
    text.layer_types = ["full_attention"] * 28
    text.rope_parameters["mrope_section"] = [8, 12, 12]
    vision.depth, vision.fullatt_block_indexes, vision.out_hidden_size = 32, [7, 15, 23, 31], 256
    torch.manual_seed(0)
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)
    return folder


def compare(engine: Engine, repeats: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Weight syncs, per-tensor sends and raw broadcasts in turn."""
    peer = ray.remote(Peer).options(num_cpus=0.5).remote()
    ours, per_tensor, raw, broadcast, parts = [], [], [], [], []

    def transfer(version: int) -> Coroutine[Any, Any, dict[str, float]]:
        return transfer_weights(engine.config, OneRank(engine.sender), engine.pool.handles(), version)

    engine.run(transfer(1))
    ray.get(engine.sender.meet.remote("engine", engine.handle))
    ray.get(engine.sender.meet.remote("peer", peer))
    ray.get(engine.handle.count_loading.remote())
    for turn in range(repeats + 1):
        ray.get(engine.handle.loading_seconds.remote())
        found = engine.run(transfer(turn + 2))
        loading = ray.get(engine.handle.loading_seconds.remote())
        started = time.perf_counter()
        ray.get(engine.sender.send_per_tensor.remote(engine.handle, str(turn + 2)))
        seconds = time.perf_counter() - started
        flat = ray.get(engine.sender.send_raw.remote(peer))
        if turn > 0:
            ours.append(found["sync/seconds"])
            broadcast.append(found["sync/broadcast_seconds"])
            per_tensor.append(seconds)
            raw.append(flat)
            parts.append([ray.get(engine.sender.gather.remote()), flat, loading])
    tensors, size = ray.get(engine.sender.size.remote())
    shared = {
        "shape": f"{tensors} parameters, {size / 2**20:.1f} MiB, 1 engine",
        "cores": 2,
        "repeats": repeats,
        "spread": spread(ours),
    }
    report(
        capsys,
        name="sync/efficiency",
        value=round(size / 2**20 / statistics.median(ours), 1),
        unit="MiB/s",
        ratio=ratio(raw, ours),
        against="one raw gloo broadcast of the same bytes between two processes",
        seconds={"sync": round(statistics.median(ours), 4), "transfer": round(statistics.median(broadcast), 4),
                 "raw": round(statistics.median(raw), 4)},
        **shared,
    )  # fmt: skip
    medians = [round(statistics.median(each), 4) for each in zip(*parts, strict=True)]
    report(
        capsys,
        name="sync/overlap",
        value=round(statistics.median(broadcast), 4),
        unit="s",
        ratio=ratio([sum(each) for each in parts], broadcast),
        against="gathering, sending and loading one after the other",
        seconds=dict(zip(("gather", "send", "load"), medians, strict=True)),
        **shared,
    )
    report(
        capsys,
        name="sync/vs_per_tensor",
        value=round(statistics.median(ours), 4),
        unit="s",
        ratio=ratio(per_tensor, ours),
        against="one Ray call and one gloo broadcast a parameter into the same engine, between the same first and last call",
        seconds={"per_tensor": round(statistics.median(per_tensor), 4)},
        **shared,
    )


def test_sync(small: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    compare(small, 11, capsys)


def test_sync_of_many_parameters(tmp_path: Path, small: Engine, capsys: pytest.CaptureFixture[str]) -> None:
    """Last: it takes the place of the small engine."""
    small.pool.close()
    ray.shutdown()
    with engine_of(deep_policy(tmp_path / "policy"), tmp_path) as deep:
        compare(deep, 7, capsys)
