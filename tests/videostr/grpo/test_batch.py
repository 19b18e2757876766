from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from videostr.grpo.batch import (
    Group,
    PromptInputs,
    RowCost,
    RowPlan,
    assign_rows,
    build_row,
    plan_rows,
)


def toy_prompt(length: int = 16) -> PromptInputs:
    """Two text tokens, a video of 3 x 2 x 2 merged patches at times 0, 4, 8, then text."""
    video = torch.stack(
        [
            torch.tensor([0, 4, 8]).repeat_interleave(4),
            *torch.tensor([[0, 0, 1, 1], [0, 1, 0, 1]]).repeat(1, 3),
        ]
    )
    text = torch.arange(length - 14) + 11
    return PromptInputs(
        input_ids=torch.arange(100, 100 + length),
        positions=torch.cat([torch.arange(2).expand(3, -1), video + 2, text.expand(3, -1)], dim=1),
        vision={"pixels": torch.full((48, 8), float(length)), "grid": torch.tensor([[3, 4, 4]])},
        temporal_patches=3,
    )


def toy_group(*lengths: int) -> Group:
    return Group(
        prompt=toy_prompt(),
        completions=tuple(torch.arange(n) + 10 * i for i, n in enumerate(lengths, 1)),
        behaviour_logprobs=tuple(-torch.arange(n) / 10 for n in lengths),
        advantages=torch.arange(len(lengths)).float(),
    )


def test_group_is_one_row_with_the_prompt_once() -> None:
    (plan,) = plan_rows([16], [[3, 1, 2]], max_row_tokens=100)
    assert contents(plan) == [(0, (0, 1, 2))]
    assert plan.tokens == 16 + 2 + 0 + 1
    row = build_row(plan, {0: toy_group(3, 1, 2)})
    # inputs: the prompt, then each completion without its last token
    assert row.input_ids[16:].tolist() == [10, 11, 30]
    # every completion continues from position 12 of the prompt's last token
    assert row.positions[:, 16:].tolist() == [[13, 14, 13]] * 3
    assert row.completion_ids.tolist() == [0] * 16 + [1, 1, 3]
    # the prompt's last token (15) predicts every first token
    assert row.predictors.tolist() == [15, 16, 17, 15, 15, 18]
    assert row.targets.tolist() == [10, 11, 12, 20, 30, 31]
    assert row.sequence_ids.tolist() == [0, 0, 0, 1, 2, 2]
    assert row.behaviour_logprobs.tolist() == pytest.approx([0, -0.1, -0.2, 0, 0, -0.1])
    assert row.advantages.tolist() == [0, 1, 2]
    assert row.origins == ((0, 0), (0, 1), (0, 2))


def test_two_groups_share_a_row() -> None:
    (plan,) = plan_rows([16, 16], [[2], [2]], max_row_tokens=34)
    row = build_row(plan, {0: toy_group(2), 1: toy_group(2)})
    assert row.prompt_ids.tolist() == [0] * 17 + [1] * 17
    assert row.completion_ids.tolist() == [0] * 16 + [1] + [0] * 16 + [2]
    assert row.predictors.tolist() == [15, 16, 32, 33]
    assert row.positions[0, 17] == 0
    assert row.vision["grid"].tolist() == [[3, 4, 4]] * 2
    assert row.vision["pixels"].shape == (96, 8)
    assert len(plan_rows([16, 16], [[2], [2]], max_row_tokens=33)) == 2


def test_long_group_is_split_by_completions() -> None:
    plan = plan_rows([10], [[5, 5, 5, 5, 40]], max_row_tokens=20)
    # 10 + 4 + 4 = 18 fits, a third 4 does not; 40 does not fit at all and stands alone
    assert [row.segments[0].completions for row in plan] == [(4,), (0, 1), (2, 3)]
    assert [row.tokens for row in plan] == [49, 18, 18]


def test_packing_none_is_one_row_per_completion() -> None:
    plan = plan_rows([10, 4], [[3, 2], [1, 0]], max_row_tokens=100, packing="none")
    assert [(contents(row), row.tokens) for row in plan] == [
        ([(0, (0,))], 12),
        ([(0, (1,))], 11),
        ([(1, (0,))], 4),
    ]


def test_cost_by_hand() -> None:
    # tokens 3 + 1 + 2 = 6; pairs: the prompt's 1 + 2 + 3, contexts of 1 and 2 with 3 + 1 and 3 + 1, 3 + 2: 6 + 4 + 9
    cost = RowCost(token=1, pair=100, target=10_000, patch=1_000_000)
    (row,) = plan_rows([3], [[2, 3]], max_row_tokens=100, patches=[8], cost=cost)
    assert row.cost == 6 + 19 * 100 + 5 * 10_000 + 8 * 1_000_000


def test_the_most_expensive_row_goes_to_the_rank_with_the_least_work() -> None:
    rows = plan_rows([9, 8, 6, 5, 4, 1], [[1]] * 6, max_row_tokens=1)
    # rounds (9 8) (6 5) (4 1): 9 | 8, then 6 to the lesser: 14 | 14, then 4 to the first of equals: 18 | 15
    assert [[row.tokens for row in part] for part in assign_rows(rows, 2)] == [[9, 5, 4], [8, 6, 1]]


def test_rows_that_groups_share_are_split_before_one_is_repeated_as_padding() -> None:
    rows = plan_rows([10, 9, 5, 4], [[1]] * 4, max_row_tokens=100)
    assert len(rows) == 1
    assert [[contents(row) for row in part] for part in assign_rows(rows, 2)] == [
        [[(0, (0,)), (2, (0,))]],  # 15 tokens
        [[(1, (0,)), (3, (0,))]],  # 13
    ]
    assert [[(row.tokens, row.padding) for row in part] for part in assign_rows(rows, 3)] == [
        [(13, False)],  # 9 + 4
        [(10, False)],
        [(5, False)],
    ]
    five = assign_rows(rows, 5)
    assert [[(row.tokens, row.padding) for row in part] for part in five] == [
        [(10, False)],
        [(9, False)],
        [(5, False)],
        [(4, False)],
        [(4, True)],
    ]


def contents(row: RowPlan) -> list[tuple[int, tuple[int, ...]]]:
    return [(segment.group, segment.completions) for segment in row.segments]


@given(
    lengths=st.lists(st.tuples(st.integers(1, 30), st.lists(st.integers(0, 20), max_size=6)), max_size=6),
    limit=st.integers(1, 60),
    num_ranks=st.integers(1, 5),
)
def test_every_completion_is_computed_once_and_ranks_have_equally_many_rows(
    lengths: list[tuple[int, list[int]]], limit: int, num_ranks: int
) -> None:
    prompts, completions = [p for p, _ in lengths], [c for _, c in lengths]
    rows = plan_rows(prompts, completions, max_row_tokens=limit)
    found = sorted((p.group, c) for row in rows for p in row.segments for c in p.completions)
    assert found == [(g, c) for g, group in enumerate(completions) for c, n in enumerate(group) if n > 0]
    for row in rows:
        whole = sum(
            prompts[p.group] + sum(completions[p.group][c] - 1 for c in p.completions) for p in row.segments
        )
        assert row.tokens == whole
        assert whole <= limit or len(row.segments) == len(row.segments[0].completions) == 1
    if rows:
        assigned = assign_rows(rows, num_ranks)
        assert len({len(part) for part in assigned}) == 1
        live = [row for part in assigned for row in part if not row.padding]
        assert sorted(p for row in live for p in contents(row)) == sorted(
            p for r in rows for p in contents(r)
        )
        padding = [row for part in assigned for row in part if row.padding]
        assert not padding or all(len(row.segments) == 1 for row in live)
        assert len(padding) < num_ranks


@given(
    lengths=st.lists(
        st.tuples(st.integers(1, 300), st.lists(st.integers(1, 200), min_size=1, max_size=8)),
        min_size=1,
        max_size=12,
    ),
    limit=st.integers(1, 900),
    num_ranks=st.integers(1, 6),
)
def test_ranks_are_balanced(lengths: list[tuple[int, list[int]]], limit: int, num_ranks: int) -> None:
    """No rank has more than the mean and one row (the bound of longest processing time first), nor a wider round."""
    cost = RowCost(token=3, pair=0.01, target=2, patch=5)
    rows = plan_rows(
        [p for p, _ in lengths],
        [c for _, c in lengths],
        max_row_tokens=limit,
        patches=[p // 2 for p, _ in lengths],
        cost=cost,
    )
    assigned = assign_rows(rows, num_ranks)
    work = [sum(row.cost for row in part) for part in assigned]
    rounds = [[row.cost for row in together] for together in zip(*assigned, strict=True)]
    assert max(work) - min(work) <= max(max(r) - min(r) for r in rounds) + 1e-6
    assert max(work) <= sum(work) / num_ranks + max(max(r) for r in rounds) * (1 - 1 / num_ranks) + 1e-6
    for earlier, later in pairwise(rounds):
        assert min(earlier) >= max(later)
