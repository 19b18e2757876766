"""The simulation, which runs the real loop, pool and sync in virtual time, against steps worked out by hand."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from videostr.config.schema import Config
from videostr.config.sections import LearnerConfig, RewardConfig, RolloutConfig, Sampling, TrainConfig
from videostr.errors import ConfigError
from videostr.grpo.batch import RowCost
from videostr.plan.clock import Work, run_virtual
from videostr.plan.costs import Costs
from videostr.plan.simulate import Outcome, simulate
from videostr.plan.workers import World, cores_of, learn_seconds, random_deaths
from videostr.plan.workload import Workload

COSTS = Costs(
    step_s=0.01, sequence_s=0.001, prefill_s=0.1, reward_s=0.5, learn_fixed_s=1.0,
    row=RowCost(token=0.0, target=0.001, patch=0.1), learn_row_s=0.0, sync_s=0.3, prompt_patches=1,
)  # fmt: skip
BARE = dataclasses.replace(
    COSTS, sequence_s=0.0, prefill_s=0.0, reward_s=0.0, row=RowCost(token=0.0), sync_s=0.0
)
"""Decoding 100 tokens takes 1 s however many sequences there are; learning takes learn_fixed_s; all else nothing."""


def config_of(**values: Any) -> Config:
    """One engine and rank, 4 groups of 8, other values by section__key."""
    config = Config(
        sampling=Sampling(group_size=8, max_tokens=1000),
        rollout=RolloutConfig(num_workers=1, max_num_seqs=64, threads=1),
        reward=RewardConfig(num_workers=4),
        learner=LearnerConfig(num_ranks=1, threads=1, zero_stage=0, max_row_tokens=10_000),
        train=TrainConfig(prompts_per_step=4, max_staleness=0),
    )
    for name, value in values.items():
        section, key = name.split("__")
        setattr(getattr(config, section), key, value)
    return config


def run(
    costs: Costs, work: Workload, *, steps: int = 20, seed: int = 0, world: Any = None, **values: Any
) -> Outcome:
    rng = np.random.default_rng(seed)
    inputs = {"seats": 64, "rng": rng, **(world or {})}
    return simulate(World(config=config_of(**values), costs=costs, work=work, **inputs), steps=steps)


def constant(tokens: int, zero_variance: float = 0.0) -> Workload:
    return Workload(prompt_tokens=100, groups=((tokens,) * 8,), zero_variance=zero_variance)


def spread(sigma: float) -> Workload:
    """Lengths around 40 with a standard deviation `sigma` of their logarithms."""
    drawn = np.random.default_rng(0).lognormal(np.log(40), sigma, (256, 8))
    groups = tuple(tuple(int(n) for n in group) for group in np.clip(drawn, 1, 200))
    return Workload(prompt_tokens=100, groups=groups)


# ------------------------------------------------------------------------------------------------- virtual time


def test_virtual_time_jumps_from_timer_to_timer() -> None:
    async def wait() -> tuple[float, list[str]]:
        order: list[str] = []

        async def note(name: str, after_s: float) -> None:
            await asyncio.sleep(after_s)
            order.append(name)

        await asyncio.gather(note("late", 3e6), note("early", 1e6))
        return asyncio.get_running_loop().time(), order

    assert run_virtual(wait()) == (3e6, ["early", "late"])


def test_virtual_time_ends_where_nothing_will_ever_happen() -> None:
    async def wait() -> None:
        await asyncio.Event().wait()

    with pytest.raises(RuntimeError, match="every task waits"):
        run_virtual(wait())


def test_work_shares_cores_and_may_be_stopped() -> None:
    async def share() -> list[tuple[float, float]]:
        async def end(work: Work) -> tuple[float, float]:
            left_s = await work.done()
            return asyncio.get_running_loop().time(), left_s

        second = Work(5.0)
        asyncio.get_running_loop().call_later(4.0, second.stop)
        return await asyncio.gather(end(Work(2.0, cores=2.0)), end(second))

    # Three cores are wanted of two: 2 s of work take 3 s. Then the second, with 3 s left, is alone until 4.0
    first, second = run_virtual(share(), cores=2.0)
    assert first == pytest.approx((3.0, 0.0))
    assert second == pytest.approx((4.0, 2.0))


# -------------------------------------------------------------------------------------------------- the two sides


def test_a_synchronous_step_of_one_engine_is_the_sum_of_its_parts() -> None:
    # Prefill 4 x 0.1; 100 tokens of 32 sequences: 100 (0.01 + 32 x 0.001) = 4.2; reward 0.5 (four workers, four
    # groups); learn 1 + 4 x 0.1 + 3200 x 0.001 = 4.6; sync 0.3: 10.0 in all
    outcome = run(COSTS, constant(100))
    assert outcome.seconds.step == pytest.approx(10.0)
    assert outcome.seconds.rollout == pytest.approx(4.6)
    assert outcome.seconds.reward == pytest.approx(0.5)
    assert outcome.seconds.learn == pytest.approx(4.6)
    assert outcome.seconds.sync == pytest.approx(0.3)
    # Engines are busy for 4.6 + 0.3, the learner too
    assert outcome.engines_busy == pytest.approx(0.49)
    assert outcome.learner_busy == pytest.approx(0.49)
    assert outcome.staleness_max == 0
    assert outcome.samples_per_s == pytest.approx(3.2)


def test_balanced_sides_overlap_with_staleness_one() -> None:
    costs = dataclasses.replace(COSTS, learn_fixed_s=1.5)
    # Sampling 4.6 and reward 0.5 are as long as learning, 5.1; engines pause for the sync: 5.1 + 0.3
    outcome = run(costs, constant(100), train__max_staleness=1)
    assert outcome.seconds.step == pytest.approx(5.4)
    assert outcome.staleness_max == 1


def test_a_longer_learner_hides_sampling() -> None:
    costs = dataclasses.replace(COSTS, learn_fixed_s=5.0)
    outcome = run(costs, constant(100), train__max_staleness=1)
    assert outcome.seconds.step == pytest.approx(5 + 3.6 + 0.3)
    assert outcome.learner_busy == pytest.approx(1, abs=1e-3)


def test_longer_sampling_hides_the_learner() -> None:
    # Batches of 8 sequences, 8 seats: batches are sampled one after the other, 1 s each, and learning takes 0.2 s meanwhile
    costs = dataclasses.replace(BARE, learn_fixed_s=0.2)
    outcome = run(
        costs, constant(100), train__max_staleness=1, train__prompts_per_step=1, rollout__max_num_seqs=8
    )
    assert outcome.seconds.step == pytest.approx(1.0)
    assert outcome.engines_busy == pytest.approx(1, abs=1e-3)
    assert outcome.learner_busy == pytest.approx(0.2, abs=1e-3)


def test_batches_of_two_steps_are_sampled_side_by_side() -> None:
    costs = dataclasses.replace(BARE, learn_fixed_s=0.2)
    # Batches 0, 1 are ready at 1.0; updates end at 1.2 and 1.4, batches 2, 3 begin then and are ready at 2.2 and 2.4:
    # steps alternate between 1.0 and 0.2
    outcome = run(costs, constant(100), train__max_staleness=1)
    assert outcome.seconds.step == pytest.approx(0.6)


# -------------------------------------------------------------------------------------------- engines and rewards


def test_one_reward_worker_scores_groups_one_after_the_other() -> None:
    # All groups end sampling at once; 4 x 0.5 instead of 0.5
    assert run(COSTS, constant(100), reward__num_workers=1).seconds.step == pytest.approx(11.5)


def test_groups_beyond_the_seats_wait_and_are_prefilled_when_they_get_one() -> None:
    # Twice: 2 x 0.1 + 100 (0.01 + 0.016) = 2.8. The pool's 2 x 16 places hold all four groups
    assert run(COSTS, constant(100), rollout__max_num_seqs=16).seconds.rollout == pytest.approx(5.6)


def test_the_cache_limits_what_is_decoded_together_too() -> None:
    assert run(COSTS, constant(100), world={"seats": 16}).seconds.rollout == pytest.approx(5.6)


def test_short_completions_leave_the_engine_to_the_long_ones() -> None:
    work = Workload(prompt_tokens=100, groups=((10, 30),))
    # 10 (a + 2 b) + 20 (a + b)
    outcome = run(COSTS, work, train__prompts_per_step=1, sampling__group_size=2)
    assert outcome.seconds.rollout == pytest.approx(0.1 + 10 * 0.012 + 20 * 0.011)


def test_groups_go_to_the_engine_with_the_least_work() -> None:
    # Two groups each: 2 x 0.1 + 100 (0.01 + 0.016)
    assert run(COSTS, constant(100), rollout__num_workers=2).seconds.rollout == pytest.approx(2.8)


def test_zero_variance_groups_are_not_learned_from() -> None:
    # No update, no sync: 4.6 + 0.5
    outcome = run(COSTS, constant(100, zero_variance=1.0))
    assert outcome.seconds.step == pytest.approx(5.1)
    assert outcome.staleness_max == 0


def test_zero_variance_groups_are_replaced_up_to_the_limit() -> None:
    # Three rounds of four groups, none with variance, and then those fill the step up
    outcome = run(
        COSTS,
        constant(100, zero_variance=1.0),
        sampling__dynamic_sampling=True,
        sampling__dynamic_sampling_limit=3.0,
    )
    assert outcome.seconds.step == pytest.approx(3 * 5.1)


# --------------------------------------------------------------------------------------------------- shared cores


def test_what_shares_a_core_takes_twice_as_long() -> None:
    # Sampling and learning take 1 s alone, and go on side by side at half speed
    assert run(
        BARE, constant(100), train__max_staleness=1, world={"cores": 1.0}
    ).seconds.step == pytest.approx(2.0)
    assert run(
        BARE, constant(100), train__max_staleness=1, world={"cores": 2.0}
    ).seconds.step == pytest.approx(1.0)


def test_what_goes_on_alone_is_faster() -> None:
    class Alternating(Workload):
        tokens = 200

        def draw(self, rng: np.random.Generator, size: int) -> list[int]:
            Alternating.tokens = 300 - self.tokens
            return [self.tokens] * size

    # 1 s and 2 s of work: both at half speed until 2.0, when the short one ends, then the other alone until 3.0
    outcome = run(
        BARE, Alternating(prompt_tokens=100, groups=()), train__prompts_per_step=2, sampling__group_size=2,
        rollout__num_workers=2, world={"cores": 1.0},
    )  # fmt: skip
    assert outcome.seconds.rollout == pytest.approx(3.0)


def test_threads_of_a_process_want_cores() -> None:
    # Two engines of 1 + THREAD_SHARE cores each want more than two cores: all takes so much longer
    wanted = 2 * cores_of(2)
    assert wanted > 2
    outcome = run(
        BARE, constant(100), train__prompts_per_step=2, sampling__group_size=5, rollout__num_workers=2,
        rollout__threads=2, world={"cores": 2.0},
    )  # fmt: skip
    assert outcome.seconds.rollout == pytest.approx(wanted / 2)


# ------------------------------------------------------------------------------------------------------- failures


def test_a_dead_engine_costs_its_group_a_pause_its_restart_and_a_sync() -> None:
    costs = dataclasses.replace(BARE, prefill_s=0.2, learn_fixed_s=0.5, sync_s=0.3)
    # A step: 0.2 + 1 + 0.5 + 0.3 = 2. The first measured one begins at 2; death at 2.7. The pool pauses 1 s before the first
    # restart: up at 8.7, weights at 9.0, sampled at 10.2, over at 11.0: 9 s in place of 2
    outcome = run(
        costs, constant(100), steps=4, train__prompts_per_step=1, sampling__group_size=2,
        world={"restart_s": 5.0, "deaths": ((2.7, 0),)},
    )  # fmt: skip
    assert outcome.seconds.step == pytest.approx((9 + 3 * 2) / 4)
    assert outcome.tokens_again == pytest.approx(2 * 100 / 4)
    assert outcome.staleness_max == 0


def test_the_other_engine_takes_over() -> None:
    costs = dataclasses.replace(BARE, learn_fixed_s=1.0)
    # A step: 1 + 1. Engine 1 dies at 2.5; engine 0 samples its group again until 3.5; the step takes 2.5
    outcome = run(
        costs, constant(100), steps=4, train__prompts_per_step=2, sampling__group_size=2, rollout__num_workers=2,
        world={"restart_s": 1000.0, "deaths": ((2.5, 1),)},
    )  # fmt: skip
    assert outcome.seconds.step == pytest.approx((2.5 + 3 * 2) / 4)
    assert outcome.tokens_again == pytest.approx(2 * 100 / 4)
    # Engine 0 samples for 1.5 s and then 1 s a step, engine 1 for its first half second, of 8.5 s
    assert outcome.engines_busy == pytest.approx((1.5 + 3 * 1 + 0.5) / (2 * 8.5), abs=1e-3)


def test_an_engine_that_dies_in_a_sync_takes_the_others_with_it() -> None:
    costs = dataclasses.replace(BARE, learn_fixed_s=1.0, sync_s=0.4)
    # A step: 1 + 1 + 0.4. At 4.6 engine 1 dies in the sync that begins at 4.4 and ends at 4.8: engine 0 is half-updated, so both
    # start again, after a pause of 1 s and 5 s: weights from 10.8 to 11.2 instead of 4.8
    outcome = run(
        costs, constant(100), steps=4, train__prompts_per_step=2, sampling__group_size=2, rollout__num_workers=2,
        world={"restart_s": 5.0, "deaths": ((4.6, 1),)},
    )  # fmt: skip
    assert outcome.seconds.step == pytest.approx((6.4 + 4 * 2.4) / 4)


def test_random_deaths_cost_time() -> None:
    values = {"rollout__num_workers": 2, "rollout__max_restarts": 1000, "steps": 40}
    outcome = run(
        COSTS, constant(100), world={"restart_s": 20.0, "deaths": random_deaths(200.0, 2)}, **values
    )
    assert outcome.seconds.step > run(COSTS, constant(100), **values).seconds.step
    assert outcome.tokens_again > 0


def test_restarts_are_spent_as_in_a_run() -> None:
    with pytest.raises(ConfigError, match="max_restarts = 1"):
        run(
            COSTS,
            constant(100),
            steps=100,
            rollout__max_restarts=1,
            world={"restart_s": 1.0, "deaths": random_deaths(20.0, 1)},
        )


# ---------------------------------------------------------------------------------------------------- what holds


@settings(max_examples=25, deadline=None)
@given(
    engines=st.integers(1, 4),
    staleness=st.integers(0, 3),
    prompts=st.integers(1, 6),
    seats=st.integers(1, 12),
    learn_s=st.floats(0.0, 5.0),
    sigma=st.floats(0.0, 1.5),
    zero_variance=st.sampled_from([0.0, 0.5]),
    mtbf_s=st.sampled_from([0.0, 60.0]),
    cores=st.sampled_from([float("inf"), 2.0]),
    seed=st.integers(0, 100),
)
def test_staleness_never_exceeds_its_bound(
    engines: int, staleness: int, prompts: int, seats: int, learn_s: float, sigma: float, zero_variance: float,
    mtbf_s: float, cores: float, seed: int,
) -> None:  # fmt: skip
    costs = dataclasses.replace(COSTS, learn_fixed_s=learn_s)
    work = dataclasses.replace(spread(sigma), zero_variance=zero_variance)
    deaths = random_deaths(mtbf_s, engines) if mtbf_s else ()
    outcome = run(
        costs, work, steps=8, seed=seed, world={"restart_s": 1.0, "deaths": deaths, "cores": cores},
        rollout__num_workers=engines, rollout__max_num_seqs=seats, rollout__max_restarts=1000,
        train__max_staleness=staleness, train__prompts_per_step=prompts, sampling__group_size=2,
    )  # fmt: skip
    assert 0 <= outcome.staleness_max <= staleness
    assert 0 < outcome.engines_busy <= 1
    assert 0 <= outcome.learner_busy <= 1


@settings(max_examples=10, deadline=None)
@given(prompts=st.integers(1, 8), seats=st.integers(2, 16), tokens=st.integers(1, 60))
def test_more_engines_are_never_slower_when_synchronous(prompts: int, seats: int, tokens: int) -> None:
    # Of equal lengths: with others the least loaded engine may happen to get the longest groups
    times = [
        run(
            COSTS, constant(tokens), steps=2, rollout__num_workers=engines, rollout__max_num_seqs=seats,
            train__prompts_per_step=prompts, sampling__group_size=2,
        ).seconds.step
        for engines in range(1, 6)
    ]  # fmt: skip
    assert all(after <= before + 1e-9 for before, after in itertools.pairwise(times))


def test_the_same_seed_repeats() -> None:
    work = spread(0.5)
    assert run(COSTS, work, seed=3) == run(COSTS, work, seed=3)
    assert run(COSTS, work, seed=3) != run(COSTS, work, seed=4)


def test_an_engine_without_memory_is_refused() -> None:
    with pytest.raises(ConfigError, match="tensor_parallel_size"):
        run(COSTS, constant(10), world={"seats": 0})


# -------------------------------------------------------------------------------------------------------- updates


def test_an_update_takes_what_its_busiest_rank_takes() -> None:
    config = config_of(learner__num_ranks=2, learner__max_row_tokens=250)
    # Groups of 100 + 2 x 50, 100 + 50, 100 + 100: works 0.1 + 0.1, 0.1 + 0.05, 0.1 + 0.1; the busiest rank has
    # 0.2 + 0.15
    assert learn_seconds(config, COSTS, 100, [[50, 50], [50], [100]]) == pytest.approx(1.35)
    # A group of 100 + 3 x 100 is split into three with a prompt each: works 0.2, 0.2, 0.2
    assert learn_seconds(config, COSTS, 100, [[100, 100, 100]]) == pytest.approx(1.4)


def test_ranks_that_share_rows_have_them_one_after_another() -> None:
    config = config_of(learner__num_ranks=2, learner__max_row_tokens=250, learner__sequence_parallel=2)
    # As above; the costs of a shared row are halved in `costs_of`
    assert learn_seconds(config, COSTS, 100, [[50, 50], [50], [100]]) == pytest.approx(1 + 0.2 + 0.15 + 0.2)


def test_every_update_of_a_batch_has_its_fixed_cost() -> None:
    # The first test's update: 1 + 4 x 0.1 + 3200 x 0.001 = 4.6; two of two groups: 2 x (1 + 2 x 0.1 + 1.6) = 5.6
    outcome = run(COSTS, constant(100), train__updates_per_batch=2)
    assert outcome.seconds.learn == pytest.approx(5.6)
    assert outcome.staleness_max == 0  # one weight sync a batch


def test_under_zero_3_ranks_wait_for_each_other_and_for_collectives() -> None:
    config = config_of(learner__num_ranks=2, learner__max_row_tokens=200, learner__zero_stage=3)
    # Three rows on two ranks: two rounds, of 0.2 s, or of 2 s where collectives take that
    assert learn_seconds(config, COSTS, 100, [[100], [100], [100]]) == pytest.approx(1 + 2 * 0.2)
    costs = dataclasses.replace(COSTS, learn_row_s=2.0)
    assert learn_seconds(config, costs, 100, [[100], [100], [100]]) == pytest.approx(1 + 2 * 2)
