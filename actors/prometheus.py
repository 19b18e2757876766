"""A run's figures on the metrics page of the driver's node, which Ray serves for Prometheus.

In: metrics of the loop, and states of the workers, looked at every few seconds. Out: `ray_videostr_*`, each with the run's name
as the label `run`. A figure `reward/total` is the gauge `ray_videostr_reward_total`; failures are one counter with the label
`kind`, `ray_videostr_failures_total`; workers are counted by `role` and `state` in `ray_videostr_workers`.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Callable, Mapping
from urllib.parse import quote

from ray.util.metrics import Counter as RayCounter
from ray.util.metrics import Gauge

from actors.learner.ray_learner import RayLearner
from actors.pools import RayRolloutPool
from actors.reward import RayRewardPool
from videostr.ports import RewardPool

LOOK_S = 5.0
ASCII = "".join(map(chr, range(32, 127)))
States = Mapping[tuple[str, str], int]
"""Workers by role and state."""


class RayMetrics:
    """Implements `videostr.loggers.Logger`."""

    def __init__(self, run: str, states: Callable[[], States]) -> None:
        """Ray must have been started.

        Args:
            run: value of the label `run`; Ray takes ASCII only, so other characters are percent-encoded.
            states: says how many workers are in which state; one that it has named is shown as 0 when it names it no more.
        """
        self._run = {"run": quote(run, safe=ASCII)}
        self._states = states
        self._gauges: dict[str, Gauge] = {}
        self._failures = RayCounter(
            "videostr_failures", "Failures of the run since its driver started", tag_keys=("run", "kind")
        )
        self._counted: Counter[str] = Counter()
        self._workers = Gauge(
            "videostr_workers", "Workers by role and state", tag_keys=("run", "role", "state")
        )
        self._known: set[tuple[str, str]] = set()
        self._watching: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Look at the workers from now on."""
        self._watching = asyncio.create_task(self._watch())

    def stop(self) -> None:
        """Look no more."""
        if self._watching is not None:
            self._watching.cancel()

    def log(self, values: Mapping[str, float], step: int) -> None:  # noqa: ARG002  # as `Logger` has it
        """Show figures of a step."""
        for name, value in values.items():
            section, _, kind = name.partition("/")
            if section == "failures":
                self._count(kind, int(value))
            else:
                self._gauge(name).set(float(value), self._run)

    def close(self, done: bool) -> None:
        """Do nothing: Ray shows the last figures until the driver ends."""

    def look(self) -> None:
        """Show the states of the workers now."""
        states = self._states()
        self._known |= states.keys()
        for role, state in self._known:
            self._workers.set(states.get((role, state), 0), {**self._run, "role": role, "state": state})

    async def _watch(self) -> None:
        while True:
            self.look()
            await asyncio.sleep(LOOK_S)

    def _count(self, kind: str, total: int) -> None:
        new = total - self._counted[kind]
        if new > 0:
            self._failures.inc(new, {**self._run, "kind": kind})
            self._counted[kind] = total

    def _gauge(self, name: str) -> Gauge:
        if name not in self._gauges:
            safe = re.sub(r"\W", "_", name)
            self._gauges[name] = Gauge(f"videostr_{safe}", f"{name} of the last step", tag_keys=("run",))
        return self._gauges[name]


def worker_states(rollouts: RayRolloutPool, learner: RayLearner, rewards: RewardPool) -> States:
    """Return the number of workers in each state, by role; nothing of a reward service's."""
    found = Counter(("rollout", health.name.lower()) for health in rollouts.health())
    found["learner", "up"] = len(learner.workers)
    if isinstance(rewards, RayRewardPool):
        up, all_of_them = rewards.size()
        found["reward", "up"] = up
        found["reward", "starting"] = all_of_them - up
    return found
