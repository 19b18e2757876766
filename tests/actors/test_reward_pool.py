"""RayRewardPool on a real local Ray: order of results, hung and dead workers, exceptions in a reward."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray.exceptions import ObjectLostError, OutOfMemoryError

from actors import reward
from actors.reward import RayRewardPool, RewardWorker
from rewards import Rubric
from tests.actors.waiting import ended
from videostr.config.sections import RewardConfig
from videostr.errors import RewardError, SampleLost
from videostr.groups import Sampled, SampledRef
from videostr.timeline import Timeline
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


def record() -> Record:
    return Record(
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


def completion(text: str) -> Completion:
    return Completion(
        text=text,
        token_ids=np.arange(5, dtype=np.int32),
        logprobs=np.zeros(5, dtype=np.float32),
        finish_reason=FinishReason.STOP,
        weight_versions=(),
    )


def group(*texts: str) -> Sampled:
    ids = np.arange(3, dtype=np.int32)
    return Sampled(prompt_token_ids=ids, completions=tuple(map(completion, texts)))


GROUP = group(*(f"<think></think><answer>{letter}</answer>" for letter in "ABAB"))


def hangs_once(flag: Path, misbehave: Callable[[], Any]) -> type[RewardWorker]:
    """A worker class that misbehaves on the first group that any worker gets.

    Defined in a function, so that Ray ships it by value: worker processes cannot import this module.
    """

    class Worker(RewardWorker):
        def score(self, record: Record, sampled: Sampled) -> Any:
            with suppress(FileExistsError):  # two may come at once
                flag.touch(exist_ok=False)
                misbehave()
            return super().score(record, sampled)

    return Worker


def run_pool(
    use: Callable[[RayRewardPool], Coroutine[Any, Any, Any]],
    worker: type[RewardWorker] = RewardWorker,
    num_workers: int = 1,
    deadline_s: float = 60.0,
    rubric: Rubric | None = None,
    timeline: Timeline | None = None,
) -> Any:
    async def main() -> Any:
        config = RewardConfig(num_workers=num_workers, deadline_s=deadline_s, num_cpus=0.5, memory_gib=1.0)
        pool = RayRewardPool(config, rubric or Rubric(), {"max_restarts": 0}, worker, timeline)
        try:
            return await use(pool), pool.failures
        finally:
            pool.close()

    return asyncio.run(main())


def test_scores_come_in_the_order_of_the_completions(cluster: None) -> None:
    async def use(pool: RayRewardPool) -> list[Any]:
        return await asyncio.gather(*(pool.score(record(), GROUP) for _ in range(20)))

    groups, failures = run_pool(use, num_workers=2)
    assert not failures
    for scores in groups:
        # default rubric: 0.2 for the format and 1 for the right letter A
        assert [score.total for score in scores] == pytest.approx([1.2, 0.2, 1.2, 0.2])


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_hanging_reward_costs_its_worker_and_not_the_group(
    cluster: None, tmp_path: Path, num_workers: int
) -> None:
    async def use(pool: RayRewardPool) -> list[Any]:
        return await asyncio.gather(*(pool.score(record(), GROUP) for _ in range(6)))

    worker = hangs_once(tmp_path / "hung", lambda: time.sleep(3600))
    groups, failures = run_pool(use, worker, num_workers, deadline_s=5.0)
    assert [len(scores) for scores in groups] == [4] * 6
    assert failures == {"reward_worker_timeout": 1}


def test_the_timeline_has_the_groups_of_every_worker(cluster: None, tmp_path: Path) -> None:
    class Worker(RewardWorker):
        def score(self, record: Record, sampled: Sampled) -> Any:
            time.sleep(0.1)
            return super().score(record, sampled)

    async def use(pool: RayRewardPool) -> Any:
        idle = timeline.drain(0)
        await asyncio.gather(*(pool.score(record(), GROUP) for _ in range(6)))
        return idle, timeline.drain(1), timeline.drain(2)

    timeline = Timeline()
    (idle, times, after), _ = run_pool(use, Worker, num_workers=2, timeline=timeline)
    assert idle.workers == after.workers == {"reward-worker-0": {}, "reward-worker-1": {}}
    assert sum(worker["score"].busy for worker in times.workers.values()) >= 0.6
    assert all(0.1 <= worker["score"].busy < times.seconds for worker in times.workers.values())


def test_a_dying_worker_is_replaced(cluster: None, tmp_path: Path) -> None:
    async def use(pool: RayRewardPool) -> Any:
        return await pool.score(record(), GROUP)

    worker = hangs_once(tmp_path / "died", lambda: os._exit(1))
    scores, failures = run_pool(use, worker)
    assert isinstance(scores[0], Score)
    assert failures == {"reward_worker_died": 1}


def test_workers_that_died_while_idle_are_not_laid_to_the_charge_of_a_group(cluster: None) -> None:
    """As when the node of all of them is lost."""

    async def use(pool: RayRewardPool) -> Any:
        first = [await pool._take_worker(check_alive=True) for _ in range(4)]
        for actor in first:
            ray.kill(actor)
            await ended(actor)
            pool._idle.put_nowait(actor)
        return await pool.score(record(), GROUP)

    scores, failures = run_pool(use, num_workers=4)
    assert isinstance(scores[0], Score)
    assert failures == {"reward_worker_died": 4}


def test_a_worker_that_ray_kills_for_its_memory_is_replaced(
    cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, killed = reward.get_with_timeout, []

    async def answer(ref: Any, timeout_s: float) -> Any:
        found = await real(ref, timeout_s)
        if isinstance(found, list) and not killed:
            killed.append(True)
            raise OutOfMemoryError("killed by the memory monitor")
        return found

    async def use(pool: RayRewardPool) -> Any:
        return await pool.score(record(), GROUP)

    monkeypatch.setattr(reward, "get_with_timeout", answer)
    scores, failures = run_pool(use)
    assert isinstance(scores[0], Score)
    assert failures == {"reward_worker_died": 1}


@pytest.mark.parametrize("deaths", [1, 5])
def test_a_worker_that_dies_at_its_start_is_replaced_some_times(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deaths: int
) -> None:
    monkeypatch.setattr("actors.reward.pause_before", lambda _: 0.0)

    class Worker(RewardWorker):
        def ready(self) -> None:
            died = len(list(tmp_path.iterdir()))
            if died < deaths:
                (tmp_path / str(died)).touch()
                os._exit(1)
            super().ready()

    async def use(pool: RayRewardPool) -> Any:
        return await pool.score(record(), GROUP)

    if deaths == 5:
        with pytest.raises(RewardError, match="5 reward workers died at their start"):
            run_pool(use, Worker)
        return
    scores, failures = run_pool(use, Worker)
    assert isinstance(scores[0], Score)
    assert failures == {"reward_worker_died": 1}


def test_a_group_that_hangs_three_times_is_a_failure(cluster: None) -> None:
    class Worker(RewardWorker):
        def score(self, record: Record, sampled: Sampled) -> Any:
            time.sleep(3600)

    async def use(pool: RayRewardPool) -> Any:
        return await pool.score(record(), GROUP)

    failure, failures = run_pool(use, Worker, deadline_s=0.3)
    assert isinstance(failure, Failure)
    assert failure.kind is FailureKind.REWARD_TIMEOUT
    assert failure.record_id == "r1"
    assert "reward.deadline_s = 0.3 s" in failure.detail
    assert failures == {"reward_worker_timeout": 3}


def test_an_exception_in_a_reward_is_a_failure_and_keeps_the_worker(cluster: None) -> None:
    class Worker(RewardWorker):
        def score(self, record: Record, sampled: Sampled) -> Any:
            raise TimeoutError("the judge is away")

    async def use(pool: RayRewardPool) -> Any:
        return await pool.score(record(), GROUP)

    failure, failures = run_pool(use, Worker)
    assert failure == Failure(
        kind=FailureKind.REWARD_ERROR, record_id="r1", detail="TimeoutError: the judge is away"
    )
    assert not failures


def test_a_custom_reward_that_raises_is_a_failure_with_record_and_reward(cluster: None) -> None:
    async def use(pool: RayRewardPool) -> Any:
        return await pool.score(record(), GROUP)

    failure, _ = run_pool(use, rubric=Rubric(custom="json:loads"))
    assert failure.kind is FailureKind.REWARD_ERROR
    assert "record r1 : reward.custom = json:loads raised TypeError" in failure.detail


ODD = """
import multiprocessing, os, pathlib, time

HERE = pathlib.Path(__file__).parent

class Mute(Exception):
    def __str__(self):
        raise RuntimeError("no words")

def reward(trace, record):
    if trace.answer == "surrogate":
        raise ValueError("boom \\ud800")
    if trace.answer == "mute":
        raise Mute
    if trace.answer == "exit":
        raise SystemExit(0)
    if trace.answer == "interrupt":
        raise KeyboardInterrupt("mine")
    if trace.answer == "child":
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(3600,))
        child.start()
        (HERE / "processes").write_text(f"{os.getpid()} {child.pid}")
    return 0.5
"""


@pytest.fixture
def odd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type[RewardWorker]:
    """A worker class that finds the module `odd_reward`."""
    (tmp_path / "odd_reward.py").write_text(ODD)
    folder = str(tmp_path)

    class Worker(RewardWorker):
        def ready(self) -> None:
            sys.path.insert(0, folder)
            super().ready()

    return Worker


def test_any_error_of_a_reward_is_a_failure_and_keeps_the_worker(
    cluster: None, odd: type[RewardWorker]
) -> None:
    async def use(pool: RayRewardPool) -> Any:
        words = ("surrogate", "mute", "exit", "interrupt", "A")
        groups = (group(f"<think></think><answer>{word}</answer>") for word in words)
        return [await pool.score(record(), each) for each in groups]

    (*found, scored), failures = run_pool(use, odd, rubric=Rubric(custom="odd_reward:reward"))
    assert {failure.kind for failure in found} == {FailureKind.REWARD_ERROR}
    expected = (
        "ValueError: boom \\ud800",
        "Mute: (its __str__ raised RuntimeError)",
        "SystemExit: 0",
        "KeyboardInterrupt: mine",
    )
    assert all(words in failure.detail for words, failure in zip(expected, found, strict=True))
    assert isinstance(scored[0], Score)
    assert not failures


def test_a_worker_whose_child_outlives_it_is_replaced_and_the_child_ends(
    cluster: None, odd: type[RewardWorker], tmp_path: Path
) -> None:
    async def use(pool: RayRewardPool) -> Any:
        await pool.score(record(), group("<think></think><answer>child</answer>"))
        worker, child = map(int, (tmp_path / "processes").read_text().split())
        (actor,) = pool._actors
        os.kill(worker, signal.SIGKILL)
        await ended(actor)
        return child, await pool.score(record(), GROUP)

    # Without the end being seen this would be a timeout, after a deadline of 600 s.
    (child, scores), failures = run_pool(
        use, odd, deadline_s=600.0, rubric=Rubric(custom="odd_reward:reward")
    )
    assert isinstance(scores[0], Score)
    assert failures == {"reward_worker_died": 1}
    stat = Path(f"/proc/{child}/stat")
    assert not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


def test_a_reward_that_eats_memory_is_stopped(cluster: None) -> None:
    class Worker(RewardWorker):
        def score(self, record: Record, sampled: Sampled) -> Any:
            eaten = []
            while True:
                eaten.append(bytearray(64 << 20))

    async def use(pool: RayRewardPool) -> Any:
        return await pool.score(record(), GROUP)

    failure, failures = run_pool(use, Worker)
    assert failure.kind is FailureKind.REWARD_ERROR
    assert "MemoryError" in failure.detail
    assert not failures


def test_a_group_that_was_lost_with_its_machine_costs_no_worker_and_is_to_be_sampled_again(
    cluster: None,
) -> None:
    class Holder:
        def hold(self, group: Sampled) -> list[Any]:
            return [ray.put(group)]

        def ping(self) -> None: ...

    async def use(pool: RayRewardPool) -> Any:
        holder = ray.remote(Holder).options(num_cpus=0.5).remote()
        (reference,) = await holder.hold.remote(GROUP)
        ray.kill(holder)  # who owns an object takes it along
        await ended(holder)
        with contextlib.suppress(ObjectLostError):  # the machine's store lets it go some time later
            for _ in range(600):
                ray.get(reference)
                await asyncio.sleep(0.1)
        with pytest.raises(SampleLost):
            await pool.score(record(), replace(SampledRef.of(GROUP), content=reference))
        return await pool.score(record(), GROUP)

    scores, failures = run_pool(use)
    assert [score.total for score in scores] == pytest.approx([1.2, 0.2, 1.2, 0.2])
    assert not failures
