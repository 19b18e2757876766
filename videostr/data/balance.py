"""Choices and counts in complete sets: for every kind of question, each possible answer is the truth equally often.

In: questions in the order of the scenes. Out: the same, a choice only together with one of its kind for every other value
that its answer could have had. So a guesser that never sees a video has nothing to go by: not which side pedestrians
keep to, not which distances are usual. To allow a small surplus would not do: kinds that are asked once or twice are many,
and their answers would follow the world's habits.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from videostr.data.families import Balance
from videostr.types import Record

MAX_WAITING = 8
"""Questions of one kind and value that wait for the others, at most; what comes then is left out."""


@dataclass(slots=True)
class Balancer:
    """Holds choices back until their set is complete."""

    waiting: dict[str, dict[str, deque[Record]]] = field(default_factory=dict)
    """By key and value."""
    left_out: int = 0
    """Questions with a value that too many of their kind had."""

    def add(self, record: Record, balance: Balance | None) -> list[Record]:
        """What can be released now; nothing, the record itself, or a complete set."""
        if balance is None:
            return [record]
        by_value = self.waiting.setdefault(balance.key, {})
        queue = by_value.setdefault(balance.value, deque())
        if len(queue) >= MAX_WAITING:
            self.left_out += 1
            return []
        queue.append(record)
        if not all(by_value.get(value) for value in balance.values):
            return []
        return [by_value[value].popleft() for value in balance.values]

    def state(self) -> list[tuple[str, str, Record]]:
        """(key, value, record) of all that wait, so that `restore` gives the same."""
        return [
            (key, value, record)
            for key, by_value in self.waiting.items()
            for value, queue in by_value.items()
            for record in queue
        ]

    def restore(self, state: list[tuple[str, str, Record]]) -> None:
        """Wait for the same again."""
        self.waiting.clear()
        for key, value, record in state:
            self.waiting.setdefault(key, {}).setdefault(value, deque()).append(record)
