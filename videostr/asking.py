"""Engines are asked here, whoever evaluates: a policy on a benchmark, or a training run on its held-out records.

In: requests by name, engines. Out: each sampled group handed over as it comes, and the failures of the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Hashable, Mapping
from typing import TypeVar

from videostr.errors import SampleLost
from videostr.groups import SampledGroup
from videostr.metrics import duration
from videostr.ports import RolloutPool, SampleRequest
from videostr.tasks import gather_or_cancel
from videostr.types import Failure

log = logging.getLogger("videostr.evaluate")
Name = TypeVar("Name", bound=Hashable)
SAY_EVERY_S = 30.0


async def ask(
    requests: Mapping[Name, SampleRequest],
    pool: RolloutPool,
    take: Callable[[Name, SampledGroup], Awaitable[Failure | None]],
    at_once: int,
) -> dict[Name, Failure]:
    """Sample every request; what `take` does with a group is done before the next one is asked in its place.

    Args:
        requests: what to ask, by any name.
        pool: engines.
        take: keeps or scores a group; a `Failure` of it counts as one of the engines.
        at_once: most requests in flight.

    Returns:
        Name -> why there is no answer, in the order of `requests`.

    Raises:
        VideoStrError: what `pool` or `take` raises, such as `RolloutError` when no engine is left; the others are cancelled.
    """
    failures: dict[Name, Failure] = {}
    places = asyncio.Semaphore(at_once)
    began = said = time.monotonic()
    done = 0

    async def sampled_and_taken(name: Name, request: SampleRequest) -> Failure | None:
        while True:
            found = await pool.sample(request)
            if isinstance(found, Failure):
                return found
            with contextlib.suppress(SampleLost):
                return await take(name, found)

    async def one(name: Name, request: SampleRequest) -> None:
        nonlocal done, said
        async with places:
            failure = await sampled_and_taken(name, request)
        if failure is not None:
            failures[name] = failure
            log.warning("%s: %s (%s)", failure.record_id, failure.detail, failure.kind.value)
        done += 1
        if time.monotonic() - said > SAY_EVERY_S:
            said = time.monotonic()
            left = (said - began) / done * (len(requests) - done)
            log.info("%d of %d answered, about %s left", done, len(requests), duration(left))

    await gather_or_cancel(one(name, request) for name, request in requests.items())
    return {name: failures[name] for name in requests if name in failures}
