"""The states of a supervised worker."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from videostr.supervision import Health, Standing


def test_the_way_of_a_worker() -> None:
    worker = Standing(budget=2)
    assert (worker.health, worker.is_up) == (Health.RESTARTING, False)
    worker.started()
    assert (worker.health, worker.is_up) == (Health.STALE, True)
    worker.served()
    assert worker.health is Health.HEALTHY
    assert [worker.missed(), worker.health] == [False, Health.SUSPECT]
    worker.answered()
    assert (worker.health, worker.misses) == (Health.HEALTHY, 0)
    assert [worker.missed(), worker.missed(), worker.missed()] == [False, False, True]
    assert worker.died() == 1.0
    assert (worker.health, worker.is_up) == (Health.DEAD, False)
    worker.served()
    assert worker.health is Health.DEAD  # a publication reaches no dead worker
    worker.restarting()
    assert worker.died() == 2.0
    worker.restarting()
    worker.started()
    assert worker.died() is None
    assert worker.health is Health.GONE


def test_a_stale_worker_that_misses_a_check_stays_stale() -> None:
    worker = Standing(budget=1)
    worker.started()
    worker.missed()
    worker.answered()
    assert worker.health is Health.STALE


@given(st.integers(0, 20))
def test_pauses_grow_to_a_minute_and_end_with_the_budget(budget: int) -> None:
    worker = Standing(budget=budget)
    pauses = []
    while (pause := worker.died()) is not None:
        pauses.append(pause)
        worker.restarting()
    assert len(pauses) == budget
    assert pauses == sorted(pauses)
    assert all(1.0 <= pause <= 60.0 for pause in pauses)


def test_a_worker_that_was_taken_out_stays_out() -> None:
    worker = Standing(budget=5)
    worker.started()
    worker.retired()
    worker.served()
    worker.started()
    assert (worker.health, worker.is_up) == (Health.RETIRED, False)
    assert worker.died() is None
    assert worker.restarting() is False
    assert worker.health is Health.RETIRED
