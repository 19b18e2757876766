"""The state of a supervised worker, and when it may be started again. Pure: no Ray, no clock.

               starts                     weights synced
RESTARTING ------------> STALE -----------------------------> HEALTHY <--------+
    ^                      |                                   |   | missed    | answered
    | back-off             | died, late, half-updated          |   v a check   |
    +------- DEAD <--------+-----------------------------------+-- SUSPECT ----+
               | budget spent                                    any but FAILED: taken out
               v                                                         v
            FAILED                                                   DRAINING
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
MISSES_ALLOWED = 3


class Health(Enum):
    """What a worker can be used for."""

    RESTARTING = "its process is starting"
    STALE = "it is up, but does not have the current weights: serves after the next weight sync"
    HEALTHY = "it serves"
    SUSPECT = "it missed a health check: gets no new work until it answers one"
    DEAD = "its process ended or was killed, and will be started again"
    FAILED = "it was started again too often"
    DRAINING = "it was taken out of use: finishes what it samples, then ends"


@dataclass
class WorkerState:
    """Health of one worker over its restarts."""

    budget: int
    """Restarts allowed."""
    health: Health = Health.RESTARTING
    restarts: int = 0
    misses: int = 0
    """Health checks missed in a row."""

    @property
    def is_up(self) -> bool:
        """Whether weights can be sent to it."""
        return self.health in {Health.STALE, Health.HEALTHY, Health.SUSPECT}

    def mark_started(self) -> None:
        """Note that its process is up."""
        self.misses = 0
        if self.health is not Health.DRAINING:
            self.health = Health.STALE

    def mark_current(self) -> None:
        """Note that it has the current weights."""
        if self.is_up:
            self.health = Health.HEALTHY

    def mark_answered(self) -> None:
        """Note that it answered a health check."""
        self.misses = 0
        if self.health is Health.SUSPECT:
            self.health = Health.HEALTHY

    def mark_missed(self) -> bool:
        """Note that it missed a health check; return whether it counts as dead now."""
        self.misses += 1
        if self.health is Health.HEALTHY:
            self.health = Health.SUSPECT
        return self.misses >= MISSES_ALLOWED

    def drain(self) -> None:
        """Take it out of use."""
        self.health = Health.DRAINING

    def mark_dead(self) -> float | None:
        """Note that its process ended; return the pause before the next start in seconds, None when there is none."""
        if self.health is Health.DRAINING:
            return None
        if self.restarts >= self.budget:
            self.health = Health.FAILED
            return None
        self.health = Health.DEAD
        self.restarts += 1
        return pause_before(self.restarts)

    def restart(self) -> bool:
        """Return whether its next process is to be started now; not when it was taken out meanwhile."""
        if self.health is not Health.DEAD:
            return False
        self.health = Health.RESTARTING
        return True


def pause_before(restart: int) -> float:
    """Return the seconds to wait before the n-th restart, n from 1."""
    return min(FIRST_PAUSE_S * 2.0 ** (restart - 1), LONGEST_PAUSE_S)
