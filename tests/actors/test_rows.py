"""Rows of a rank: frames of the next row are read and processed while one is computed, never more than one ahead."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

from actors.learner.rows import RankRows
from videostr.groups import LearnerBatch
from videostr.grpo.batch import Group, PromptInputs, RowPlan, plan_rows

WAIT_S = 60.0


def group(number: int) -> Group:
    return Group(
        prompt=PromptInputs(
            input_ids=torch.full((5,), number), positions=torch.arange(5), vision={}, temporal_patches=0
        ),
        completions=(torch.arange(3),),
        behaviour_logprobs=(torch.zeros(3),),
        advantages=torch.ones(1),
    )


class Rows(RankRows):
    """Rows whose groups are made at once; notes which, and in which thread."""

    def __init__(self, failing: int | None = None) -> None:
        self._features, self._device, self._failing = None, torch.device("cpu"), failing
        self.begun = [threading.Event() for _ in range(4)]
        self.threads: set[str] = set()

    def _encode_row(self, batch: LearnerBatch, row: RowPlan) -> dict[int, Group]:
        del batch
        (number,) = {segment.group for segment in row.segments}
        self.threads.add(threading.current_thread().name)
        self.begun[number].set()
        if number == self._failing:
            raise MemoryError("no room for pixels")
        return {number: group(number)}


PLAN = plan_rows([5] * 4, [[3]] * 4, max_row_tokens=7)
BATCH: Any = None


def test_the_next_row_is_made_while_one_is_computed() -> None:
    rows, threads = Rows(), torch.get_num_threads()
    for number, row in enumerate(rows.build(PLAN, BATCH)):
        assert int(row.input_ids[0]) == number
        # Here the device computes, and nobody has asked for the next row.
        assert all(event.wait(WAIT_S) for event in rows.begun[: number + 2])
        assert not any(event.is_set() for event in rows.begun[number + 2 :])
    assert rows.threads == {"rows_0"}
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    "end", [lambda rows: rows.close(), lambda rows: rows.throw(KeyError("computing failed"))]
)
def test_rows_that_nobody_asks_for_are_not_made(end: Callable[[Any], Any]) -> None:
    rows = Rows()
    found = rows.build(PLAN, BATCH)
    next(found)
    with contextlib.suppress(KeyError):
        end(found)
    assert not any(event.is_set() for event in rows.begun[2:])
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("rows")]


def test_what_fails_ahead_is_raised_where_its_row_is_asked_for() -> None:
    found = Rows(failing=1).build(PLAN, BATCH)
    next(found)
    with pytest.raises(MemoryError, match="no room for pixels"):
        next(found)
