"""Deadlines of calls, on real Ray actors."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
import ray

from actors.calls import get_with_timeout


def worker() -> Any:
    """An actor that answers, or sleeps until it is cancelled; defined here, so that Ray ships it by value."""

    class Worker:
        def __init__(self) -> None:
            self.state = "idle"

        async def ping(self) -> str:
            return "here"

        async def sleep(self) -> None:
            self.state = "asleep"
            try:
                await asyncio.sleep(600)
            except asyncio.CancelledError:
                self.state = "cancelled"
                raise

        async def doing(self) -> str:
            return self.state

    return ray.remote(Worker).options(num_cpus=0).remote()


def test_an_answer_that_came_while_the_driver_was_busy_is_not_late(cluster: None) -> None:
    async def use() -> Any:
        actor = worker()
        await actor.ping.remote()  # it is up
        coming = asyncio.create_task(get_with_timeout(actor.ping.remote(), 0.5))
        await asyncio.sleep(0)
        time.sleep(3.0)  # noqa: ASYNC251  # that is the point
        return await coming

    assert asyncio.run(use()) == "here"


def test_a_late_call_and_one_that_is_given_up_are_cancelled(cluster: None) -> None:
    async def until(actor: Any, state: str) -> None:
        while await actor.doing.remote() != state:  # noqa: ASYNC110
            await asyncio.sleep(0.05)

    async def use() -> None:
        late, given_up = worker(), worker()
        called = late.sleep.remote()
        await until(late, "asleep")
        with pytest.raises(TimeoutError):
            await get_with_timeout(called, 0.1)
        await until(late, "cancelled")

        coming = asyncio.create_task(get_with_timeout(given_up.sleep.remote(), 600.0))
        await until(given_up, "asleep")
        coming.cancel()
        await asyncio.gather(coming, return_exceptions=True)
        await until(given_up, "cancelled")

    asyncio.run(asyncio.wait_for(use(), 60))
