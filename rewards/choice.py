"""Choice reward: is the answer the right option?

In: the text of the answer block and a record whose answer is a letter. Out: (0 or 1, note).
"""

from __future__ import annotations

from videostr.answers import chosen_letter
from videostr.types import Record


def reward(answer: str, record: Record) -> tuple[float, str]:
    """Return 1 if the answer names the true option, else 0; with why it is 0."""
    letter = chosen_letter(answer, record.options)
    if letter is None:
        return 0.0, f"answer: {answer!r:.60} does not name exactly one option"
    truth = str(record.answer.value).upper()
    return (1.0, "") if letter == truth else (0.0, f"answer: {letter}, the truth is {truth}")
