"""What actors are called: in Ray's dashboard and state API, and before every line of their logs."""

from __future__ import annotations

from collections import Counter

import ray

_starts: Counter[str] = Counter()


def actor_name(called: str, index: int) -> str:
    """Return `rollout-engine-0`; `rollout-engine-0-start-2` for the process that takes its place.

    Ray gives a name only once at a time, and learns of a death later than who starts the next process may.
    """
    name = f"{called}-{index}"
    _starts[name] += 1
    return name if _starts[name] == 1 else f"{name}-start-{_starts[name]}"


class Named:
    """An actor that Ray shows by its name."""

    def __repr__(self) -> str:
        """Return its name; outside of Ray that of its class."""
        name = ray.get_runtime_context().get_actor_name() if ray.is_initialized() else None
        return name or type(self).__name__
