"""The states of a supervised worker."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from videostr.worker_state import Health, WorkerState


def test_the_way_of_a_worker() -> None:
    worker = WorkerState(budget=2)
    assert (worker.health, worker.is_up) == (Health.RESTARTING, False)
    worker.mark_started()
    assert (worker.health, worker.is_up) == (Health.STALE, True)
    worker.mark_current()
    assert worker.health is Health.HEALTHY
    assert [worker.mark_missed(), worker.health] == [False, Health.SUSPECT]
    worker.mark_answered()
    assert (worker.health, worker.misses) == (Health.HEALTHY, 0)
    assert [worker.mark_missed(), worker.mark_missed(), worker.mark_missed()] == [False, False, True]
    assert worker.mark_dead() == 1.0
    assert (worker.health, worker.is_up) == (Health.DEAD, False)
    worker.mark_current()
    assert worker.health is Health.DEAD  # a weight sync reaches no dead worker
    worker.restart()
    assert worker.mark_dead() == 2.0
    worker.restart()
    worker.mark_started()
    assert worker.mark_dead() is None
    assert worker.health is Health.FAILED


def test_a_stale_worker_that_misses_a_check_stays_stale() -> None:
    worker = WorkerState(budget=1)
    worker.mark_started()
    worker.mark_missed()
    worker.mark_answered()
    assert worker.health is Health.STALE


@given(st.integers(0, 20))
def test_pauses_grow_to_a_minute_and_end_with_the_budget(budget: int) -> None:
    worker = WorkerState(budget=budget)
    pauses = []
    while (pause := worker.mark_dead()) is not None:
        pauses.append(pause)
        worker.restart()
    assert len(pauses) == budget
    assert pauses == sorted(pauses)
    assert all(1.0 <= pause <= 60.0 for pause in pauses)


def test_a_worker_that_was_taken_out_stays_out() -> None:
    worker = WorkerState(budget=5)
    worker.mark_started()
    worker.drain()
    worker.mark_current()
    worker.mark_started()
    assert (worker.health, worker.is_up) == (Health.DRAINING, False)
    assert worker.mark_dead() is None
    assert worker.restart() is False
    assert worker.health is Health.DRAINING
