"""What tests of pools wait for."""

from __future__ import annotations

from typing import Any

from ray.exceptions import RayActorError


async def ended(actor: Any) -> None:
    """Return when an actor's process has ended: `ray.kill` returns before. Runs forever where it does not."""
    try:
        while True:
            await actor.ping.remote()
    except RayActorError:
        return
