"""RayRolloutPool and SupervisedSync on real Ray actors that sample nothing: lost engines, half-updated ones, spent budgets.

Real engines are killed in tests/actors/test_engines.py and tests/chaos.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from actors import names
from actors.learner.ray_learner import RayLearner
from actors.pools import RayRolloutPool
from actors.prometheus import RayMetrics, worker_states
from actors.reward import RayRewardPool, RewardWorker
from actors.sampling import SamplingWorker, fetched, for_ranks
from actors.sync import SupervisedSync
from actors.transfer.request import TransferRequest
from rewards import Rubric
from tests.actors.waiting import ended
from videostr.config.schema import Config
from videostr.config.sections import LearnerConfig, RewardConfig, RolloutConfig, SyncConfig
from videostr.errors import LearnerError, RolloutError, TransferError
from videostr.groups import LearnerBatch, RolloutGroup, Sampled, SampledRef
from videostr.ports import SampleRequest
from videostr.timeline import Timeline
from videostr.types import Clip, ClipSpec, Completion, Failure, FailureKind, FinishReason, Prompt, Score
from videostr.worker_state import Health


def puppet(folder: Path) -> Any:  # noqa: C901  # one flat class: Ray ships it by value
    """A worker class whose engines do as the files in `folder` say; made here, so that Ray ships it by value.

    Not a `RolloutWorker`: its processes need not import transformers, and start in a second.
    """

    class Puppet(SamplingWorker):
        def __init__(self, index: int, config: Any, frame_store: str, log_file: str) -> None:
            self.index = index

        async def start(self) -> None:
            (folder / f"started_{self.index}_{time.monotonic_ns()}").touch()
            if (folder / f"no_start_{self.index}").exists():
                os._exit(1)

        async def sample(self, request: Any) -> Any:
            if (folder / f"die_{self.index}").exists():
                await asyncio.sleep(0.05)
                (folder / f"die_{self.index}").unlink(missing_ok=True)
                os._exit(1)
            if (folder / "always_die").exists():
                os._exit(1)
            if (folder / f"hang_{self.index}").exists():
                (folder / f"hang_{self.index}").unlink()
                time.sleep(60)  # noqa: ASYNC251  # that is the point
            return Sampled(prompt_token_ids=np.arange(self.index), completions=(COMPLETION,) * request.n)

        async def ping(self) -> None:
            pass

        async def pause(self) -> None:
            time.sleep(60 * (folder / f"hang_in_pause_{self.index}").exists())  # noqa: ASYNC251

        def close(self) -> None:
            pass

    return Puppet


COMPLETION = Completion(
    text="abc", token_ids=np.arange(3), logprobs=np.zeros(3), finish_reason=FinishReason.STOP, weight_versions=(),
)  # fmt: skip
NAME = 'a#b%20 é "q" 実験 🚀'
"""A valid `run.name`."""
LABEL = r"a#b%20 %C3%A9 \"q\" %E5%AE%9F%E9%A8%93 %F0%9F%9A%80"
"""The same in ASCII, in the UTF-8 of RFC 3986, quoted as Prometheus reads it."""
REQUEST = SampleRequest(
    prompt=Prompt(
        record_id="r1", text="", clip=Clip(digest="", spec=ClipSpec(video="v.mp4", num_frames=1))
    ),
    n=2, temperature=1.0, max_tokens=8, seed=0,
)  # fmt: skip


class Learner:
    """Sends nothing; fails a given number of times."""

    def __init__(self, broken: int = 0) -> None:
        self.broken = broken
        self.sent: list[tuple[int, int]] = []
        self.updating = asyncio.Lock()
        self.version = 0
        self.workers = ("rank",)

    async def call(self, method: str, request: TransferRequest, **deadline: Any) -> list[dict[str, float]]:
        if self.broken:
            self.broken -= 1
            raise TransferError("engine 1: `update` broke")
        self.sent.append((request.version, len(request.engines)))
        return [{"sync/bytes": 1.0}]


Use = Callable[[RayRolloutPool, SupervisedSync, Any], Coroutine[Any, Any, Any]]


def play(
    folder: Path, use: Use, learner: Any = None, timeline: Timeline | None = None, **rollout: Any
) -> Any:
    """Run `use` with a pool of two puppets and a sync over them."""
    config = Config(
        rollout=RolloutConfig(num_workers=2, num_cpus=0.5, **{"health_check_s": 30.0, "max_restarts": 2, **rollout}),
        learner=LearnerConfig(), sync=SyncConfig(),
    )  # fmt: skip

    async def main() -> Any:
        sender = learner() if learner else Learner()
        pool = RayRolloutPool(config, folder, folder, worker_class=puppet(folder), timeline=timeline)
        sync = SupervisedSync(config, sender, pool, timeline)  # type: ignore[arg-type]
        await pool.start()
        sync.start()
        try:
            return await asyncio.wait_for(use(pool, sync, sender), 240)
        finally:
            sync.close()
            pool.close()

    return asyncio.run(main())


async def until(holds: Callable[[], bool]) -> None:
    while not holds():  # noqa: ASYNC110
        await asyncio.sleep(0.05)


def test_an_engine_that_dies_costs_its_requests_a_second_try_and_serves_again_after_a_weight_sync(
    cluster: None, tmp_path: Path
) -> None:
    async def use(pool: RayRolloutPool, sync: SupervisedSync, learner: Learner) -> Any:
        learner.version = 7
        (tmp_path / "die_1").touch()
        answers = await asyncio.gather(*(pool.sample(REQUEST) for _ in range(12)))
        first = pool.health()
        await until(lambda: pool.health() == [Health.HEALTHY] * 2)
        again = await asyncio.gather(*(pool.sample(REQUEST) for _ in range(12)))
        return answers, first, again, dict(pool.failures), learner.sent

    answers, first, again, failures, sent = play(tmp_path, use)
    assert all(isinstance(answer, SampledRef) for answer in answers)
    assert first[0] is Health.HEALTHY
    assert first[1] is not Health.HEALTHY
    assert {answer.num_prompt_tokens for answer in again} == {0, 1}
    lost = failures.pop("tokens_sampled_again")
    assert lost > 0
    assert lost % (REQUEST.n * len(COMPLETION.token_ids)) == 0
    assert failures == {"engine_died": 1}
    assert sent == [(7, 2)]  # the present version, once, to both


def test_the_timeline_has_the_states_of_an_engine_that_dies(cluster: None, tmp_path: Path) -> None:
    timeline = Timeline()

    async def use(pool: RayRolloutPool, *_: Any) -> Any:
        idle = timeline.drain(0)
        (tmp_path / "die_1").touch()
        await asyncio.gather(*(pool.sample(REQUEST) for _ in range(12)))
        await until(lambda: pool.health() == [Health.HEALTHY] * 2)
        return idle, timeline.drain(1), timeline.drain(2)

    idle, times, after = play(tmp_path, use, timeline=timeline)
    assert idle.workers == {"rollout-engine-0": {}, "rollout-engine-1": {}}
    assert after.workers == {"rollout-engine-0": {}, "rollout-engine-1": {}, "weight-sync": {}}
    well, lost = times.workers["rollout-engine-0"], times.workers["rollout-engine-1"]
    assert well.keys() == {"sample", "pause"}  # for the weight sync to the new engine
    assert list(lost) == ["sample", "dead", "restarting", "stale"]
    ends = [activity.spans[-1][1] for activity in lost.values()]
    assert ends == sorted(ends)
    assert lost["dead"].busy >= 1.0  # the pause before a restart
    assert sum(activity.busy for activity in lost.values()) <= times.seconds + 0.01
    assert times.workers["weight-sync"]["sync"].spans[-1][1] <= ends[-1]


def test_a_group_that_is_late_is_asked_again_and_a_hung_engine_replaced(
    cluster: None, tmp_path: Path
) -> None:
    async def use(pool: RayRolloutPool, *_: Any) -> Any:
        (tmp_path / "hang_0").touch()
        answers = await asyncio.gather(*(pool.sample(REQUEST) for _ in range(4)))
        await until(lambda: pool.failures["engine_hung"] == 1)
        return answers, dict(pool.failures)

    answers, failures = play(tmp_path, use, request_timeout_s=2.0, health_check_s=1.0)
    assert all(isinstance(answer, SampledRef) for answer in answers)
    assert failures["request_late"] >= 1


def test_a_hung_engine_without_work_is_found_by_health_checks(cluster: None, tmp_path: Path) -> None:
    async def use(pool: RayRolloutPool, *_: Any) -> Any:
        (tmp_path / "hang_0").touch()
        pool.handles()[0].sample.remote(REQUEST)  # behind the pool's back
        await until(lambda: pool.health()[0] is Health.SUSPECT)
        await until(lambda: pool.failures["engine_hung"] == 1)
        return await pool.sample(REQUEST)

    assert isinstance(play(tmp_path, use, health_check_s=1.0), SampledRef)


def test_a_request_that_kills_every_engine_is_a_failure(cluster: None, tmp_path: Path) -> None:
    async def use(pool: RayRolloutPool, *_: Any) -> Any:
        (tmp_path / "always_die").touch()
        return await pool.sample(REQUEST), dict(pool.failures)

    failure, failures = play(tmp_path, use, max_restarts=5)
    assert isinstance(failure, Failure)
    assert (failure.kind, failure.record_id) == (FailureKind.ENGINE, "r1")
    assert "died in `sample`" in failure.detail
    assert "the last of 3 tries" in failure.detail
    assert failures == {"engine_died": 3}


def test_when_all_restarts_are_spent_the_run_is_told_why(cluster: None, tmp_path: Path) -> None:
    async def use(pool: RayRolloutPool, *_: Any) -> Any:
        for index in (0, 1):
            (tmp_path / f"die_{index}").touch()
            (tmp_path / f"no_start_{index}").touch()
        await asyncio.gather(*(pool.sample(REQUEST) for _ in range(2)))

    with pytest.raises(
        RolloutError, match=r"no rollout engine is left: each was started again 1 times .*engine_\*.log"
    ):
        play(tmp_path, use, max_restarts=1)


def test_engines_of_a_broken_transfer_are_replaced_and_get_the_weights(cluster: None, tmp_path: Path) -> None:
    async def use(pool: RayRolloutPool, sync: SupervisedSync, learner: Learner) -> Any:
        before = pool.handles()
        metrics = await sync.sync(3)
        await until(lambda: pool.health() == [Health.HEALTHY] * 2)
        return before, pool.handles(), metrics, dict(pool.failures), dict(sync.failures), learner.sent

    before, after, metrics, lost, failures, sent = play(tmp_path, use, learner=lambda: Learner(broken=1))
    assert not set(before) & set(after)
    assert metrics["sync/bytes"] == 1.0
    assert lost == {"engine_half_updated": 2}
    assert failures == {"transfer": 1}
    assert sent[0][0] == 3


def test_an_engine_that_hangs_before_a_transfer_costs_no_other_its_weights(
    cluster: None, tmp_path: Path
) -> None:
    async def use(pool: RayRolloutPool, sync: SupervisedSync, learner: Learner) -> Any:
        before = pool.handles()
        (tmp_path / "hang_in_pause_0").touch()
        await sync.sync(3)
        (tmp_path / "hang_in_pause_0").unlink()
        sent = list(learner.sent)
        await until(lambda: pool.health() == [Health.HEALTHY] * 2)
        return before, pool.handles(), sent, dict(pool.failures), dict(sync.failures)

    before, after, sent, lost, failures = play(tmp_path, use, health_check_s=2.0)
    assert (before[0] in after, before[1] in after) == (False, True)
    assert sent == [(3, 1)]
    assert lost == {"engine_hung": 1}
    assert failures == {}


def test_a_learner_that_is_stuck_in_a_weight_sync_is_lost(cluster: None, tmp_path: Path) -> None:
    class Stuck:
        def send_weights(self, request: Any) -> None:
            time.sleep(600)

    def learner() -> RayLearner:
        stuck = RayLearner(Config(), tmp_path)
        stuck.workers = (ray.remote(Stuck).options(num_cpus=0).remote(),)
        return stuck

    async def use(pool: RayRolloutPool, sync: SupervisedSync, learner: RayLearner) -> Any:
        sync._config = replace(sync._config, sync=SyncConfig(timeout_s=0.1))
        with pytest.raises(
            LearnerError,
            match=r"ranks \[0\] did not finish `send_weights` within 6 x sync\.timeout_s = 0\.6 s",
        ):
            await sync.sync(3)
        learner.close()
        return dict(sync.failures)

    assert play(tmp_path, use, learner=learner) == {}


class LostLearner(Learner):
    """Has no rank left until it is `well`."""

    well = False

    async def call(self, method: str, request: TransferRequest, **deadline: Any) -> list[dict[str, float]]:
        if not self.well:
            raise LearnerError("learner rank 0 died in `send_weights`")
        return await super().call(method, request, **deadline)


def test_a_run_that_waits_for_engines_hears_of_a_lost_learner(cluster: None, tmp_path: Path) -> None:
    """As when the learner and all engines are lost together: engines would wait for weights, and the run for engines."""

    async def use(pool: RayRolloutPool, sync: SupervisedSync, learner: LostLearner) -> Any:
        await pool.discard(pool.handles(), "lost")
        with pytest.raises(LearnerError, match="learner rank 0 died in `send_weights`"):
            await pool.sample(REQUEST)
        learner.well = True
        await sync.sync(5)
        return await pool.sample(REQUEST), learner.sent

    answer, sent = play(tmp_path, use, learner=LostLearner, max_restarts=9)
    assert isinstance(answer, SampledRef)
    assert sent[0][0] == 5


def test_a_transfer_that_breaks_three_times_fails(cluster: None, tmp_path: Path) -> None:
    async def use(pool: RayRolloutPool, sync: SupervisedSync, _: Any) -> Any:
        await sync.sync(3)

    with pytest.raises(TransferError, match="engine 1: `update` broke"):
        play(tmp_path, use, learner=lambda: Learner(broken=99), max_restarts=9)


def test_engines_are_added_and_taken_out_while_groups_are_sampled(cluster: None, tmp_path: Path) -> None:
    async def use(pool: RayRolloutPool, sync: SupervisedSync, learner: Learner) -> Any:
        learner.version = 4
        sampling = asyncio.gather(*(pool.sample(REQUEST) for _ in range(40)))
        await pool.resize(4)
        await sampling
        await until(lambda: pool.health() == [Health.HEALTHY] * 4)
        grown = await asyncio.gather(*(pool.sample(REQUEST) for _ in range(40)))
        sampling = asyncio.gather(*(pool.sample(REQUEST) for _ in range(40)))
        await asyncio.sleep(0)
        await pool.resize(1)
        shrunk = [*await sampling, *await asyncio.gather(*(pool.sample(REQUEST) for _ in range(8)))]
        health, handles = pool.health(), len(pool.handles())
        await pool.resize(2)
        await until(lambda: len(pool.handles()) == 2)
        return grown, shrunk, health, handles, pool.size(), dict(pool.failures), learner.sent

    grown, shrunk, health, handles, size, failures, sent = play(tmp_path, use)
    assert {answer.num_prompt_tokens for answer in grown} == {0, 1, 2, 3}
    assert all(isinstance(answer, SampledRef) for answer in shrunk)
    assert {answer.num_prompt_tokens for answer in shrunk[-8:]} == {0}
    assert health == [Health.HEALTHY, *[Health.DRAINING] * 3]
    assert (handles, size) == (1, 2)
    assert failures == {}
    assert (4, 4) in sent  # the present version, to all


def test_an_engine_that_is_taken_out_during_a_weight_sync_gets_its_weights_first(
    cluster: None, tmp_path: Path
) -> None:
    async def use(pool: RayRolloutPool, sync: SupervisedSync, learner: Learner) -> Any:
        handles = await pool.pause()
        await pool.resize(1)
        await pool.resize(2)  # takes the index
        await asyncio.sleep(1.0)
        await asyncio.gather(*(handle.ping.remote() for handle in handles))  # both are still there
        await pool.mark_current(handles)
        await until(lambda: not pool._draining)
        await ended(handles[1])
        await until(lambda: pool.health() == [Health.HEALTHY] * 2)
        return dict(pool.failures)

    assert play(tmp_path, use) == {}


def test_health_checks_that_are_asked_for_at_once_count_once(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("videostr.supervisor.CLOSE_S", 1.0)  # it hangs

    async def use(pool: RayRolloutPool, *_: Any) -> Any:
        hang = tmp_path / "hang_0"
        hang.touch()
        pool.handles()[0].sample.remote(REQUEST)  # behind the pool's back
        await until(lambda: not hang.exists())  # else a health check may come before it
        await asyncio.gather(*(pool._check(pool._engines[0]) for _ in range(4)))
        return pool.health(), dict(pool.failures)

    assert play(tmp_path, use, health_check_s=2.0) == ([Health.SUSPECT, Health.HEALTHY], {})


def test_an_engine_that_dies_after_it_was_taken_out_is_not_started_again(
    cluster: None, tmp_path: Path
) -> None:
    async def use(pool: RayRolloutPool, *_: Any) -> Any:
        (tmp_path / "die_1").touch()
        sampling = asyncio.gather(*(pool.sample(REQUEST) for _ in range(4)))
        await asyncio.sleep(0)
        await pool.resize(1)
        answers = await sampling
        await asyncio.sleep(2.0)
        return answers, pool.health()

    answers, health = play(tmp_path, use)
    assert all(isinstance(answer, SampledRef) for answer in answers)
    assert health == [Health.HEALTHY, Health.DRAINING]
    assert len(list(tmp_path.glob("started_1_*"))) == 1


def test_weights_that_change_are_not_sent_to_a_stale_engine(cluster: None, tmp_path: Path) -> None:
    async def use(pool: RayRolloutPool, sync: SupervisedSync, learner: Learner) -> Any:
        async with learner.updating:
            (tmp_path / "die_1").touch()
            await asyncio.gather(*(pool.sample(REQUEST) for _ in range(4)))
            await until(pool.has_stale)
            await asyncio.sleep(0.2)
            during = list(learner.sent)
            learner.version = 1
        await until(lambda: not pool.has_stale())
        return during, learner.sent

    during, after = play(tmp_path, use)
    assert during == []
    assert after == [(1, 2)]


def test_engines_and_reward_workers_are_called_by_role_and_index(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names, "_starts", Counter())

    async def use(pool: RayRolloutPool, *_: Any) -> Any:
        rewards = RayRewardPool(RewardConfig(num_workers=2, num_cpus=0.5), Rubric())
        said = await asyncio.gather(*(actor.__ray_call__.remote(repr) for actor in rewards._actors))
        before = set(ray.util.list_named_actors())
        (tmp_path / "die_1").touch()
        await asyncio.gather(*(pool.sample(REQUEST) for _ in range(4)))
        await until(lambda: pool.health() == [Health.HEALTHY] * 2)
        rewards._replace(next(iter(rewards._actors)), "reward_worker_died")
        after = set(ray.util.list_named_actors())
        rewards.close()
        return said, before, after

    said, before, after = play(tmp_path, use)
    assert said == ["reward-worker-0", "reward-worker-1"]
    assert before == {"rollout-engine-0", "rollout-engine-1", "reward-worker-0", "reward-worker-1"}
    assert after == {
        "rollout-engine-0",
        "rollout-engine-1-start-2",
        "reward-worker-0-start-2",
        "reward-worker-1",
    }


def metrics_page() -> dict[str, float]:
    """Values of our figures on the metrics page of Ray's node, by name with their own labels."""
    (node,) = ray.nodes()
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(address, timeout=10) as page:
        lines = [line for line in page.read().decode().splitlines() if line.startswith("ray_videostr_")]
    found = {}
    for line in lines:
        name, labels = line.split("{")[0], line[line.index("{") + 1 : line.rindex("}")]
        own = [part for part in labels.split(",") if part.split("=")[0] in {"run", "role", "state", "kind"}]
        found[f"{name}{{{','.join(sorted(own))}}}"] = float(line.rsplit(" ", 1)[1])
    return found


def test_figures_failures_and_states_are_on_the_metrics_page_of_the_node(
    cluster: None, tmp_path: Path
) -> None:
    async def use(pool: RayRolloutPool, sync: SupervisedSync, learner: Learner) -> Any:
        rewards = RayRewardPool(RewardConfig(num_workers=1, num_cpus=0.5), Rubric())
        metrics = RayMetrics(NAME, lambda: worker_states(pool, learner, rewards))  # type: ignore[arg-type]
        metrics.log({"step": 1, "reward/total": 0.25, "failures/engine_died": 2}, 1)
        metrics.log({"step": 2, "reward/total": 0.5, "failures/engine_died": 3, "failures/transfer": 1}, 2)
        metrics.look()
        (tmp_path / "no_start_1").touch()
        pool.handles()[1].__ray_terminate__.remote()
        await until(lambda: pool.health()[1] is not Health.HEALTHY)
        metrics.start()
        page: dict[str, float] = {}
        while page.get(f'ray_videostr_workers{{role="rollout",run="{LABEL}",state="healthy"}}') != 1:
            await asyncio.sleep(1)
            page = await asyncio.to_thread(metrics_page)
        metrics.stop()
        rewards.close()
        return page

    page = play(tmp_path, use, health_check_s=2.0)
    assert page[f'ray_videostr_step{{run="{LABEL}"}}'] == 2
    assert page[f'ray_videostr_reward_total{{run="{LABEL}"}}'] == 0.5
    assert page[f'ray_videostr_failures_total{{kind="engine_died",run="{LABEL}"}}'] == 3
    assert page[f'ray_videostr_failures_total{{kind="transfer",run="{LABEL}"}}'] == 1
    assert page[f'ray_videostr_workers{{role="learner",run="{LABEL}",state="up"}}'] == 1
    assert page[f'ray_videostr_workers{{role="reward",run="{LABEL}",state="starting"}}'] == 1
    assert sum(value for name, value in page.items() if 'workers{role="rollout"' in name) == 2


def test_what_the_driver_holds_of_a_group_does_not_grow_with_its_tokens(
    cluster: None, tmp_path: Path
) -> None:
    """Counted in bytes, and in arrays: from the engine to a reward worker and to a rank, by reference."""

    class Writer(SamplingWorker):
        def __init__(self, *_: Any) -> None: ...
        async def start(self) -> None: ...
        def close(self) -> None: ...
        async def sample(self, request: Any) -> Any:
            long = Completion(
                text="a" * request.max_tokens, token_ids=np.arange(request.max_tokens, dtype=np.int32),
                logprobs=np.zeros(request.max_tokens, np.float32), finish_reason=FinishReason.STOP, weight_versions=(),
            )  # fmt: skip
            return Sampled(prompt_token_ids=np.arange(300, dtype=np.int32), completions=(long,) * request.n)

    class Rewards(RewardWorker):
        def score(self, record: Any, sampled: Sampled) -> Any:
            return [Score(total=float(each.num_tokens), parts={}) for each in sampled.completions]

    @ray.remote
    def learned(batch: LearnerBatch) -> int:
        return sum(
            each.token_ids.nbytes for group in fetched(batch).groups for each in group.tokens.completions
        )

    def counted(found: Any) -> tuple[int, bytes]:
        data = pickle.dumps(replace(found, content=None))
        return len(data), data

    async def main(tokens: int) -> tuple[int, list[float], int, bool]:
        config = Config(rollout=RolloutConfig(num_workers=1, num_cpus=0.5))
        pool = RayRolloutPool(config, tmp_path, tmp_path, worker_class=Writer)
        rewards = RayRewardPool(RewardConfig(num_workers=1, num_cpus=0.5), Rubric(), worker=Rewards)
        await pool.start()
        found = await pool.sample(replace(REQUEST, max_tokens=tokens))
        assert isinstance(found, SampledRef)
        scores = await rewards.score(None, found)  # type: ignore[arg-type]  # not looked at
        assert isinstance(scores, tuple)
        group = RolloutGroup(prompt=REQUEST.prompt, sampled=found, scores=scores)
        gains = (np.zeros(REQUEST.n, np.float32),)
        batch = for_ranks(LearnerBatch(groups=(group,), advantages=gains, temperature=1.0))
        learned_bytes = await learned.remote(batch)
        size, data = counted(found)
        pool.close()
        rewards.close()
        return size, [score.total for score in scores], learned_bytes, b"numpy" in data

    short, long = (asyncio.run(main(tokens)) for tokens in (300, 50_000))
    assert short == (long[0], [300.0] * REQUEST.n, 300 * 4 * REQUEST.n, False)
    assert long[1:] == ([50_000.0] * REQUEST.n, 50_000 * 4 * REQUEST.n, False)
