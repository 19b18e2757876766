"""The window: what is under way, the bound, failures, cancellation."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from videostr.window import Window


@given(st.integers(0, 4), st.integers(0, 3), st.lists(st.integers(0, 5), min_size=1, max_size=12))
def test_no_batch_begins_too_early_or_is_too_old(staleness: int, first: int, pauses: list[int]) -> None:
    """Batches take different times; each is begun and learned from within S steps."""
    begun: dict[int, int] = {}
    done = first
    last = first + len(pauses)

    async def collect(step: int) -> int:
        begun[step] = done
        for _ in range(pauses[step - first]):
            await asyncio.sleep(0)
        return step

    async def run() -> list[int]:
        nonlocal done
        learned = []
        async with Window(collect, max_staleness=staleness, first=first, last=last) as window:
            while done < last:
                window.advance(done)
                learned.append(await window.next())
                await asyncio.sleep(0)  # learning, while others are sampled
                done += 1
        return learned

    assert asyncio.run(run()) == list(range(first, last))
    assert all(step - at <= staleness for step, at in begun.items())
    if first == 0 and staleness < last:
        assert begun[staleness] == 0  # as early as the bound allows


def test_a_failed_batch_is_told_in_its_turn_and_the_others_are_given_up() -> None:
    async def collect(step: int) -> int:
        if step == 1:
            raise ValueError("no engine is left")
        await asyncio.sleep(0 if step == 0 else 60)
        return step

    async def run() -> None:
        async with Window(collect, max_staleness=2, first=0, last=9) as window:
            window.advance(0)
            assert await window.next() == 0
            with pytest.raises(ValueError, match="no engine is left"):
                await window.next()
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(run())


def test_giving_up_waiting_does_not_give_up_the_batch() -> None:
    async def collect(step: int) -> int:
        await asyncio.sleep(0.05)
        return step

    async def run() -> int:
        async with Window(collect, max_staleness=0, first=3, last=4) as window:
            window.advance(3)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(window.next(), 0.001)
            return await window.next()

    assert asyncio.run(run()) == 3
