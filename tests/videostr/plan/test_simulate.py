"""The simulation against steps worked out by hand."""

from __future__ import annotations

import ast
import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from videostr.errors import ConfigError
from videostr.grpo.batch import deal, plan_rows
from videostr.plan.lengths import Lognormal
from videostr.plan.simulate import AHEAD, Costs, Failures, Layout, learn_seconds, simulate

ROOT = Path(__file__).parents[3]
LAYOUT = Layout(
    engines=1, ranks=1, reward_workers=4, prompts=4, group_size=8, staleness=0,
    max_num_seqs=64, kv_seqs=64, row_tokens=10_000,
)  # fmt: skip
COSTS = Costs(
    step_s=0.01, sequence_s=0.001, prefill_s=0.1, reward_s=0.5, learn_fixed_s=1.0, learn_prompt_s=0.1,
    learn_token_s=0.001, learn_row_s=0.0, sync_s=0.3, prompt_tokens=100,
)  # fmt: skip
BARE = dataclasses.replace(
    COSTS, sequence_s=0.0, prefill_s=0.0, reward_s=0.0, learn_prompt_s=0.0, learn_token_s=0.0, sync_s=0.0
)
"""Decoding 100 tokens takes 1 s however many sequences there are; learning takes learn_fixed_s; all else nothing."""


def constant(tokens: int) -> Lognormal:
    return Lognormal(median=tokens, sigma=0, cap=tokens)


def test_a_synchronous_step_of_one_engine_is_the_sum_of_its_parts() -> None:
    # prefill 4 x 0.1; 100 tokens of 32 sequences: 100 (0.01 + 32 x 0.001) = 4.2; reward 0.5 (four workers, four
    # groups); learn 1 + 4 x 0.1 + 3200 x 0.001 = 4.6; sync 0.3: 10.0 in all
    outcome = simulate(LAYOUT, COSTS, constant(100))
    assert outcome.step_s == pytest.approx(10.0)
    assert outcome.step_p90_s == pytest.approx(10.0)
    assert outcome.rollout_s == pytest.approx(4.6)
    assert outcome.reward_s == pytest.approx(0.5)
    assert outcome.learn_s == pytest.approx(4.6)
    assert outcome.sync_s == pytest.approx(0.3)
    assert outcome.steps_per_hour == pytest.approx(360)
    # engines are busy for 4.6 + 0.3, the learner too; four workers for 0.5 each
    assert outcome.idle_rollout == pytest.approx(0.51)
    assert outcome.idle_learner == pytest.approx(0.51)
    assert outcome.idle_reward == pytest.approx(0.95)
    assert (outcome.staleness_mean, outcome.staleness_max) == (0, 0)
    assert outcome.tokens_per_s == pytest.approx(320)
    assert outcome.samples_per_s == pytest.approx(3.2)


def test_one_reward_worker_scores_groups_one_after_the_other() -> None:
    layout = dataclasses.replace(LAYOUT, reward_workers=1)
    # All groups end sampling at once; 4 x 0.5 instead of 0.5
    assert simulate(layout, COSTS, constant(100)).step_s == pytest.approx(11.5)


def test_groups_beyond_the_seats_wait_and_are_prefilled_when_they_get_one() -> None:
    layout = dataclasses.replace(LAYOUT, max_num_seqs=16)
    # Twice: 2 x 0.1 + 100 (0.01 + 0.016) = 2.8. The pool's 2 x 16 places hold all four groups.
    assert simulate(layout, COSTS, constant(100)).rollout_s == pytest.approx(5.6)


def test_the_cache_limits_what_is_decoded_together_too() -> None:
    layout = dataclasses.replace(LAYOUT, kv_seqs=16)
    assert simulate(layout, COSTS, constant(100)).rollout_s == pytest.approx(5.6)


def test_short_completions_leave_the_engine_to_the_long_ones() -> None:
    # One group of two: lengths 10 and 30 by the seeds below; 10 (a + 2 b) + 20 (a + b)
    class TwoLengths:
        mean = 20.0

        def group(self, rng: np.random.Generator, size: int) -> list[int]:
            return [10, 30]

    layout = dataclasses.replace(LAYOUT, prompts=1, group_size=2)
    outcome = simulate(layout, COSTS, TwoLengths())
    assert outcome.rollout_s == pytest.approx(0.1 + 10 * 0.012 + 20 * 0.011)


def test_groups_go_to_the_engine_with_the_least_work() -> None:
    layout = dataclasses.replace(LAYOUT, engines=2)
    # Two groups each: 2 x 0.1 + 100 (0.01 + 0.016)
    assert simulate(layout, COSTS, constant(100)).rollout_s == pytest.approx(2.8)


def test_balanced_sides_overlap_with_staleness_one() -> None:
    layout = dataclasses.replace(LAYOUT, staleness=1)
    costs = dataclasses.replace(COSTS, learn_fixed_s=1.5)
    # Sampling 4.6 and reward 0.5 are as long as learning, 5.1; engines pause for the publication: 5.1 + 0.3
    outcome = simulate(layout, costs, constant(100))
    assert outcome.step_s == pytest.approx(5.4)
    assert (outcome.staleness_mean, outcome.staleness_max) == (1, 1)


def test_a_longer_learner_hides_sampling() -> None:
    layout = dataclasses.replace(LAYOUT, staleness=1)
    costs = dataclasses.replace(COSTS, learn_fixed_s=5.0)
    outcome = simulate(layout, costs, constant(100))
    assert outcome.step_s == pytest.approx(5 + 3.6 + 0.3)
    assert outcome.idle_learner == pytest.approx(0)


def test_batches_of_two_steps_are_sampled_side_by_side() -> None:
    layout = dataclasses.replace(LAYOUT, staleness=1)
    costs = dataclasses.replace(BARE, learn_fixed_s=0.2)
    # Batches 0, 1 are ready at 1.0; updates end at 1.2 and 1.4, batches 2, 3 begin then and are ready at 2.2 and 2.4:
    # steps alternate between 1.0 and 0.2
    outcome = simulate(layout, costs, constant(100))
    assert outcome.step_s == pytest.approx(0.6)
    assert outcome.step_p90_s == pytest.approx(1.0)


def test_what_shares_a_core_takes_twice_as_long() -> None:
    layout = dataclasses.replace(LAYOUT, staleness=1, cores=1.0)
    # Sampling and learning take 1 s alone, and go on side by side at half speed
    outcome = simulate(layout, BARE, constant(100))
    assert outcome.step_s == pytest.approx(2.0)
    assert simulate(dataclasses.replace(layout, cores=2.0), BARE, constant(100)).step_s == pytest.approx(1.0)


def test_what_goes_on_alone_is_faster() -> None:
    class Alternating:
        mean = 150.0
        tokens = 200

        def group(self, rng: np.random.Generator, size: int) -> list[int]:
            self.tokens = 300 - self.tokens
            return [self.tokens]

    layout = dataclasses.replace(LAYOUT, prompts=2, group_size=1, engines=2, cores=1.0)
    # 1 s and 2 s of work: both at half speed until 2.0, when the short one ends, then the other alone until 3.0
    assert simulate(layout, BARE, Alternating()).rollout_s == pytest.approx(3.0)


def test_the_growing_part_of_a_decode_step_uses_all_threads() -> None:
    layout = dataclasses.replace(LAYOUT, prompts=2, group_size=5, engines=2, engine_threads=2, cores=2.0)
    costs = dataclasses.replace(BARE, sequence_s=0.002)
    # Each engine: a = 0.01 on one core, 5 b = 0.01 on two: 1.5 cores wanted, 3 by both, so everything takes 1.5 times
    # as long: 100 x 0.02 x 1.5
    assert simulate(layout, costs, constant(100)).rollout_s == pytest.approx(3.0)


def test_flat_groups_are_not_learned_from() -> None:
    costs = dataclasses.replace(COSTS, flat_fraction=1.0)
    # No update, no publication: 4.6 + 0.5
    outcome = simulate(LAYOUT, costs, constant(100))
    assert outcome.step_s == pytest.approx(5.1)
    assert outcome.staleness_max == 0


def test_flat_groups_are_replaced_up_to_the_limit() -> None:
    layout = dataclasses.replace(LAYOUT, refill_limit=3.0)
    costs = dataclasses.replace(COSTS, flat_fraction=1.0)
    # Three rounds of four groups, none with variance, and then those fill the step up
    assert simulate(layout, costs, constant(100)).step_s == pytest.approx(3 * 5.1)


def test_a_dead_engine_costs_its_tokens_its_restart_and_a_publication() -> None:
    layout = dataclasses.replace(LAYOUT, prompts=1, group_size=1)
    costs = dataclasses.replace(BARE, prefill_s=0.2, learn_fixed_s=0.5, sync_s=0.3)
    # A step: 0.2 + 1 + 0.5 + 0.3 = 2. The first measured one begins at 2; at 2.7 50 tokens are there. Up at 7.7,
    # weights at 8.0, sampled at 9.2, over at 10.0: 8 s in place of 2
    failures = Failures(restart_s=5.0, at=((2.7, 0),))
    outcome = simulate(layout, costs, constant(100), steps=4, failures=failures)
    assert outcome.step_s == pytest.approx((8 + 3 * 2) / 4)
    assert outcome.tokens_again == pytest.approx(50 / 4)
    assert outcome.staleness_max == 0


def test_the_other_engine_takes_over() -> None:
    layout = dataclasses.replace(LAYOUT, prompts=2, group_size=1, engines=2)
    costs = dataclasses.replace(BARE, learn_fixed_s=1.0)
    # A step: 1 + 1. Engine 1 dies at 2.5 with 50 tokens; engine 0 samples its group anew until 3.5; the step takes 2.5
    failures = Failures(restart_s=1000.0, at=((2.5, 1),))
    outcome = simulate(layout, costs, constant(100), steps=4, failures=failures)
    assert outcome.step_s == pytest.approx((2.5 + 3 * 2) / 4)
    assert outcome.tokens_again == pytest.approx(50 / 4)
    # Idle: half of engine 0's time, and engine 1 but for its first half second, of 8.5 s
    assert outcome.idle_rollout == pytest.approx(1 - (1.5 + 3 * 1 + 0.5) / (2 * 8.5))


def test_random_deaths_cost_time() -> None:
    layout = dataclasses.replace(LAYOUT, engines=2)
    failures = Failures(restart_s=20.0, mtbf_s=60.0)
    outcome = simulate(layout, COSTS, constant(100), steps=40, failures=failures)
    assert outcome.step_s > simulate(layout, COSTS, constant(100), steps=40).step_s
    assert outcome.tokens_again > 0


def test_an_unknown_engine_cannot_die() -> None:
    with pytest.raises(ConfigError, match="engine 3 of 1"):
        simulate(LAYOUT, COSTS, constant(10), failures=Failures(restart_s=1.0, at=((0.0, 3),)))


@settings(max_examples=40)
@given(
    engines=st.integers(1, 4),
    staleness=st.integers(0, 3),
    prompts=st.integers(1, 6),
    seats=st.integers(1, 12),
    learn_s=st.floats(0.0, 5.0),
    sigma=st.floats(0.0, 1.5),
    flat=st.sampled_from([0.0, 0.5]),
    mtbf_s=st.sampled_from([float("inf"), 5.0]),
    cores=st.sampled_from([0.0, 2.0]),
    seed=st.integers(0, 100),
)
def test_staleness_never_exceeds_its_bound(
    engines: int, staleness: int, prompts: int, seats: int, learn_s: float, sigma: float, flat: float,
    mtbf_s: float, cores: float, seed: int,
) -> None:  # fmt: skip
    layout = dataclasses.replace(
        LAYOUT, engines=engines, staleness=staleness, prompts=prompts, group_size=2, max_num_seqs=seats, cores=cores
    )  # fmt: skip
    costs = dataclasses.replace(COSTS, learn_fixed_s=learn_s, flat_fraction=flat)
    failures = Failures(restart_s=1.0, mtbf_s=mtbf_s)
    lengths = Lognormal(median=40, sigma=sigma, cap=200, correlation=0.5)
    outcome = simulate(layout, costs, lengths, steps=8, seed=seed, failures=failures)
    assert 0 <= outcome.staleness_mean <= outcome.staleness_max <= staleness
    assert outcome.steps == 8
    for idle in (outcome.idle_rollout, outcome.idle_learner, outcome.idle_reward):
        assert -1e-6 <= idle <= 1


@settings(max_examples=25)
@given(prompts=st.integers(1, 8), seats=st.integers(2, 16), tokens=st.integers(1, 60))
def test_more_engines_are_never_slower_when_synchronous(prompts: int, seats: int, tokens: int) -> None:
    # Of equal lengths: with others the least loaded engine may happen to get the longest groups
    layout = dataclasses.replace(LAYOUT, prompts=prompts, group_size=2, max_num_seqs=seats)
    times = [
        simulate(dataclasses.replace(layout, engines=engines), COSTS, constant(tokens), steps=2).step_s
        for engines in range(1, 6)
    ]
    assert all(after <= before + 1e-9 for before, after in itertools.pairwise(times))


def test_the_same_seed_repeats() -> None:
    lengths = Lognormal(median=40, sigma=0.5, cap=200, correlation=0.5)
    assert simulate(LAYOUT, COSTS, lengths, seed=3) == simulate(LAYOUT, COSTS, lengths, seed=3)
    assert simulate(LAYOUT, COSTS, lengths, seed=3) != simulate(LAYOUT, COSTS, lengths, seed=4)


def test_an_update_takes_what_its_busiest_rank_takes() -> None:
    layout = dataclasses.replace(LAYOUT, ranks=2, row_tokens=250)
    # Groups of 100 + 2 x 50, 100 + 50, 100 + 100: works 0.1 + 0.1, 0.1 + 0.05, 0.1 + 0.1; the busiest rank has
    # 0.2 + 0.15
    assert learn_seconds([[50, 50], [50], [100]], layout, COSTS) == pytest.approx(1.35)
    # A group of 100 + 3 x 100 is split into 100 + 100 and twice more, its prompt repeated: works 0.2, 0.2, 0.2
    assert learn_seconds([[100, 100, 100]], layout, COSTS) == pytest.approx(1.4)


def test_every_update_of_a_batch_has_its_fixed_cost() -> None:
    # the first test's update: 1 + 4 x 0.1 + 3200 x 0.001 = 4.6; two of two groups: 2 x (1 + 2 x 0.1 + 1.6) = 5.6
    outcome = simulate(dataclasses.replace(LAYOUT, updates_per_batch=2), COSTS, constant(100))
    assert outcome.learn_s == pytest.approx(5.6)
    assert (outcome.staleness_mean, outcome.staleness_max) == (0, 0)  # one publication a batch


def test_collectives_bound_an_update_of_little_work() -> None:
    layout = dataclasses.replace(LAYOUT, ranks=2, row_tokens=200)
    costs = dataclasses.replace(COSTS, learn_row_s=2.0)
    # Three rows of 200 tokens on two ranks: two rows, 2 s each
    assert learn_seconds([[100], [100], [100]], layout, costs) == pytest.approx(1 + 4)


@pytest.mark.parametrize("ranks", [1, 3, 8])
def test_ranks_share_work_as_the_learner_deals_rows(ranks: int) -> None:
    rng = np.random.default_rng(0)
    groups = [[int(n) for n in rng.integers(20, 160, size=8)] for _ in range(32)]
    rows = plan_rows([120] * 32, groups, max_row_tokens=1024)
    dealt = max(sum(row.tokens for row in part) for part in deal(rows, ranks))
    layout = dataclasses.replace(LAYOUT, ranks=ranks, row_tokens=1024)
    costs = dataclasses.replace(COSTS, learn_fixed_s=0, learn_prompt_s=120.0, learn_token_s=1.0)
    assert learn_seconds(groups, layout, costs) == pytest.approx(dealt, rel=0.12)


def test_constants_of_other_packages_are_theirs() -> None:
    source = ast.parse((ROOT / "actors" / "pools.py").read_text())
    values = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in source.body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Constant)
    }
    assert values["AHEAD"] == AHEAD


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [("engines", 0, "engines = 0"), ("prompts", 0, "prompts = 0"), ("kv_seqs", 0, "tensor_parallel_size")],
)
def test_an_impossible_layout_is_refused(key: str, value: int, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        dataclasses.replace(LAYOUT, **{key: value})
