"""The state of a supervised worker, and when it may be started again. Pure: no Ray, no clock.

               starts                    weights published
RESTARTING ------------> STALE -----------------------------> HEALTHY <--------+
    ^                      |                                   |   | missed    | answered
    | back-off             | died, late, half-updated          |   v a check   |
    +------- DEAD <--------+-----------------------------------+-- SUSPECT ----+
               | budget spent                                      any but GONE: taken out
               v                                                         v
             GONE                                                     RETIRED
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
MISSES_ALLOWED = 3


class Health(Enum):
    """What a worker is good for."""

    RESTARTING = "its process is starting"
    STALE = "it is up, but has not the present weights: serves after the next publication"
    HEALTHY = "it serves"
    SUSPECT = "it missed a health check: gets no new work until it answers one"
    DEAD = "its process ended or was killed, and will be started again"
    GONE = "it was started again too often"
    RETIRED = "it was taken out of use: finishes what it samples, then ends"


@dataclass
class Standing:
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

    def started(self) -> None:
        """Its process is up."""
        self.misses = 0
        if self.health is not Health.RETIRED:
            self.health = Health.STALE

    def served(self) -> None:
        """It has the present weights."""
        if self.is_up:
            self.health = Health.HEALTHY

    def answered(self) -> None:
        """It answered a health check."""
        self.misses = 0
        if self.health is Health.SUSPECT:
            self.health = Health.HEALTHY

    def missed(self) -> bool:
        """It missed a health check; returns whether it counts as dead now."""
        self.misses += 1
        if self.health is Health.HEALTHY:
            self.health = Health.SUSPECT
        return self.misses >= MISSES_ALLOWED

    def retired(self) -> None:
        """It is taken out of use."""
        self.health = Health.RETIRED

    def died(self) -> float | None:
        """Its process is no more; returns the pause before the next start in seconds, None when there is none."""
        if self.health is Health.RETIRED:
            return None
        if self.restarts >= self.budget:
            self.health = Health.GONE
            return None
        self.health = Health.DEAD
        self.restarts += 1
        return pause_before(self.restarts)

    def restarting(self) -> bool:
        """Whether its next process is to be started now; not when it was taken out meanwhile."""
        if self.health is not Health.DEAD:
            return False
        self.health = Health.RESTARTING
        return True


def pause_before(restart: int) -> float:
    """Seconds to wait before the n-th restart, n from 1."""
    return min(FIRST_PAUSE_S * 2.0 ** (restart - 1), LONGEST_PAUSE_S)
