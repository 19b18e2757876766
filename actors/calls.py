"""Calls of Ray actors with a deadline."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import ray
from ray.exceptions import RayError


async def get_with_timeout(ref: Any, timeout_s: float) -> Any:
    """Return the value of a Ray reference. A call that is given up, or is late, is cancelled where that is possible.

    Raises:
        TimeoutError: there is no value after `timeout_s`. One that came while this event loop was busy is not late, as it would
            be to `asyncio.wait_for`, whose timer then goes first.
        RayError: the actor died, or its method raised.
    """
    future = asyncio.wrap_future(ref.future())
    # It marks an exception as retrieved.
    future.add_done_callback(lambda done: done.cancelled() or done.exception())
    try:
        await asyncio.wait([future], timeout=timeout_s)
        if not future.done():
            raise TimeoutError
        return future.result()
    finally:
        if not future.done():
            future.cancel()
            if ray.is_initialized():  # else cancelling would start Ray
                with contextlib.suppress(RayError):
                    ray.cancel(ref)
