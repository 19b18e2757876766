"""Choices and counts in complete sets: for every kind of question, each possible answer is the truth equally often.

In: questions in the order of the scenes. Out: the same, a choice only together with one of its kind for every other value
that its answer could have had. So a guesser that never sees a video has nothing to go by: not which side pedestrians
keep to, not which distances are usual. To allow a small surplus would not do: kinds that are asked once or twice are many,
and their answers would follow the world's habits.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, TypeVar

from videostr.data.questions.question import Balance

MAX_WAITING = 8
"""Questions of one kind and value that wait for the others, at most; what comes then is left out."""
MAX_WAITING_IN_ALL = 16_384
"""Questions that wait, at most: a source of many labels has more kinds than memory has room for. Beyond that, the kind that
was asked for least recently is left out."""

Item = TypeVar("Item")


@dataclass(slots=True)
class Balancer(Generic[Item]):
    """Holds choices back until their set is complete."""

    waiting: dict[str, dict[str, list[Item]]] = field(default_factory=dict)
    """By key and value; the key asked for least recently comes first, and none is without items."""
    held: int = 0
    """Items in `waiting`."""
    left_out: int = 0
    """Questions that had a value which too many of their kind had, or were of a kind that had to make room."""

    def add(self, item: Item, balance: Balance | None) -> list[Item]:
        """Return what can be released now; nothing, the item itself, or a complete set."""
        if balance is None:
            return [item]
        by_value = self.waiting.pop(balance.key, {})
        self.waiting[balance.key] = by_value  # now the last
        queue = by_value.setdefault(balance.value, [])
        if len(queue) >= MAX_WAITING:
            self.left_out += 1
            return []
        queue.append(item)
        self.held += 1
        if all(by_value.get(value) for value in balance.values):
            return self._released(balance, by_value)
        while self.held > MAX_WAITING_IN_ALL:
            gone = sum(map(len, self.waiting.pop(next(iter(self.waiting))).values()))
            self.held -= gone
            self.left_out += gone
        return []

    def _released(self, balance: Balance, by_value: dict[str, list[Item]]) -> list[Item]:
        found = [by_value[value].pop(0) for value in balance.values]
        self.held -= len(found)
        if not any(by_value.values()):
            del self.waiting[balance.key]
        return found

    def state(self) -> list[tuple[str, str, Item]]:
        """Return (key, value, item) of all that wait, so that `restore` gives the same."""
        return [
            (key, value, item)
            for key, by_value in self.waiting.items()
            for value, queue in by_value.items()
            for item in queue
        ]

    def restore(self, state: list[tuple[str, str, Item]]) -> None:
        """Wait for the same again."""
        self.waiting.clear()
        self.held = len(state)
        for key, value, item in state:
            self.waiting.setdefault(key, {}).setdefault(value, []).append(item)
