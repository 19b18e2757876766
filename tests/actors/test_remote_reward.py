"""RemoteRewardPool against a real service on a loopback port, in the same event loop."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.remote_reward import RemoteRewardPool
from rewards import Rubric, score_group
from rewards.service.address import Address
from rewards.service.server import RewardServer
from rewards.service.settings import Settings
from videostr.config.sections import RewardConfig
from videostr.errors import ConfigError, RewardError
from videostr.groups import Sampled
from videostr.types import (
    Answer,
    AnswerKind,
    ClipSpec,
    Completion,
    Failure,
    FailureKind,
    FinishReason,
    Record,
    Score,
)

PROBE = """
import time

def reward(trace, record):
    if trace.answer == "hang":
        time.sleep(3600)
    if trace.answer == "raise":
        raise ValueError("the judge is away")
    return 0.5
"""
RUBRIC = Rubric(custom="remote_probe:reward", w_custom=0.0, overlong_buffer=8, max_tokens=16)
RECORD = Record(
    id="r1",
    source="test",
    family="test",
    question="?",
    options=("left", "right"),
    answer=Answer(kind=AnswerKind.CHOICE, value="A"),
    clip=ClipSpec(video="v.mp4", num_frames=2),
    labels=(),
    graph=None,
)


def completion(answer: str, tokens: int = 5) -> Completion:
    return Completion(
        text=f"<think></think><answer>{answer}</answer>",
        token_ids=np.arange(tokens, dtype=np.int32),
        logprobs=np.zeros(tokens, dtype=np.float32),
        finish_reason=FinishReason.STOP,
        weight_versions=(),
    )


# 12 tokens lie half way through the last 8 before the limit of 16: length -0.5
def group(*completions: Completion) -> Sampled:
    return Sampled(prompt_token_ids=np.arange(3, dtype=np.int32), completions=completions)


GROUP = group(completion("A"), completion("B"), completion("A", tokens=12), completion("B"))
Use = Callable[[RemoteRewardPool, RewardServer], Coroutine[Any, Any, Any]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`run(use)`: what `use(pool, server)` gives, and the pool's failures."""
    (tmp_path / "remote_probe.py").write_text(PROBE)
    monkeypatch.syspath_prepend(str(tmp_path))

    async def main(use: Use, deadline_s: float, service_s: float) -> Any:
        settings = Settings(listen=Address("127.0.0.1", 0), deadline_s=service_s)
        server = await RewardServer.start(settings, RUBRIC)
        config = RewardConfig(endpoint=str(server.address), deadline_s=deadline_s)
        try:
            pool = await RemoteRewardPool.connect(config, RUBRIC)
            try:
                return await use(pool, server), pool.failures
            finally:
                await pool.close()
        finally:
            await server.stop(5.0)

    return lambda use, deadline_s=30.0, service_s=30.0: asyncio.run(main(use, deadline_s, service_s))


def test_scores_come_in_order_as_the_service_gives_them(run: Callable[..., Any]) -> None:
    async def use(pool: RemoteRewardPool, _: RewardServer) -> Any:
        return await asyncio.gather(*(pool.score(RECORD, GROUP) for _ in range(20)))

    groups, failures = run(use)
    assert not failures
    expected = score_group(GROUP.completions, RECORD, RUBRIC)
    assert [score.total for score in expected] == pytest.approx([1.2, 0.2, 0.7, 0.2])
    assert all(list(scores) == expected for scores in groups)


def test_failures_are_values_and_later_groups_are_scored(run: Callable[..., Any]) -> None:
    async def use(pool: RemoteRewardPool, _: RewardServer) -> Any:
        answers = ("raise", "hang", "A")
        return [await pool.score(RECORD, group(*[completion(answer)] * 2)) for answer in answers]

    (raised, hung, scored), failures = run(use, service_s=3.0)
    assert isinstance(raised, Failure)
    assert raised.kind is FailureKind.REWARD_ERROR
    assert raised.record_id == "r1"
    assert "ValueError: the judge is away" in raised.detail
    assert isinstance(hung, Failure)
    assert hung.kind is FailureKind.REWARD_TIMEOUT
    assert "the last of 3 tries" in hung.detail
    assert all(isinstance(score, Score) for score in scored)
    assert failures == {"reward_service_timeout": 3}


def test_a_service_that_goes_away_is_no_records_fault(run: Callable[..., Any]) -> None:
    async def use(pool: RemoteRewardPool, server: RewardServer) -> Any:
        await server.stop(0.0)
        with pytest.raises(RewardError, match="was not reached in time"):
            await pool.score(RECORD, GROUP)

    _, failures = run(use, deadline_s=1.0)
    assert failures == {"reward_service_unavailable": 3}


def service_workers() -> list[int]:
    children = [
        pid for file in Path("/proc/self/task").glob("*/children") for pid in file.read_text().split()
    ]
    return [
        int(pid) for pid in children if b"rewards.service.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]


def test_a_worker_killed_between_groups_costs_nothing(run: Callable[..., Any]) -> None:
    async def use(pool: RemoteRewardPool, server: RewardServer) -> Any:
        (worker,) = service_workers()
        os.kill(worker, signal.SIGKILL)
        return await pool.score(RECORD, GROUP)

    scores, failures = run(use)
    assert [score.total for score in scores] == pytest.approx([1.2, 0.2, 0.7, 0.2])
    assert not failures


def test_a_service_with_another_rubric_is_refused_with_the_difference(run: Callable[..., Any]) -> None:
    async def use(_: RemoteRewardPool, server: RewardServer) -> Any:
        config = RewardConfig(endpoint=str(server.address))
        with pytest.raises(ConfigError) as caught:
            await RemoteRewardPool.connect(config, dataclasses.replace(RUBRIC, w_graph=0.25))
        return str(caught.value)

    message, _ = run(use)
    assert "scores differently from this run: w_graph = 1.0 there, 0.25 here; start it with" in message


def test_a_service_that_is_not_there_is_refused() -> None:
    config = RewardConfig(endpoint="127.0.0.1:1")
    with pytest.raises(RewardError, match=r"127\.0\.0\.1:1 was not reached in time; start it with"):
        asyncio.run(RemoteRewardPool.connect(config, RUBRIC, timeout_s=2.0))
