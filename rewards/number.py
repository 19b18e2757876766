"""Number reward: mean relative accuracy.

In: the text of the answer block and a record whose answer is a number. Out: (value in [0, 1], note).
"""

from __future__ import annotations

from videostr.answers import mean_relative_accuracy, stated_number
from videostr.types import Record


def reward(answer: str, record: Record) -> tuple[float, str]:
    """Return `mean_theta [ |p - y| / |y| <= 1 - theta ]` over ten theta (VSI-Bench, arXiv 2412.14171); with why it is low."""
    truth = float(record.answer.value)  # type: ignore[arg-type]  # AnswerKind.NUMBER promises a float
    unit = record.answer.unit
    said = stated_number(answer, unit)
    if said is None:
        return 0.0, f"answer: {answer!r:.60} is not one number" + (f" in {unit}" if unit else "")
    value = mean_relative_accuracy(said, truth)
    return value, "" if value == 1.0 else f"answer: {said:g}, the truth is {truth:g} {unit}".rstrip()
