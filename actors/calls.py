"""Calls of Ray actors with a deadline."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import ray
from ray.exceptions import RayError


async def answer(ref: Any, limit_s: float) -> Any:
    """The value of a Ray reference. A call that is given up, or is late, is cancelled where that is possible.

    Raises:
        TimeoutError: there is none after `limit_s`. One that came while this event loop was busy is no late one, as it would be
            to `asyncio.wait_for`, whose timer then goes first.
        RayError: the actor died, or its method raised.
    """
    coming = asyncio.wrap_future(ref.future())
    coming.add_done_callback(lambda future: future.cancelled() or future.exception())  # it is heard
    try:
        await asyncio.wait([coming], timeout=limit_s)
        if not coming.done():
            raise TimeoutError
        return coming.result()
    finally:
        if not coming.done():
            coming.cancel()
            if ray.is_initialized():  # else it would start Ray anew
                with contextlib.suppress(RayError):
                    ray.cancel(ref)


def first_line(error: BaseException) -> str:
    """What an error says, in short."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
