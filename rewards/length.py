"""Length terms: the penalty for running into the token limit, or the bonus for a wanted length."""

from __future__ import annotations

from collections.abc import Sequence

from videostr.types import Completion, FinishReason

_RIGHT = 0.1  # answers that score more count as right
_BONUS = 0.2


def overlong(completion: Completion, max_tokens: int, buffer: int) -> float:
    """Return the linear penalty from 0 to -1 over the last `buffer` tokens before the limit (DAPO, arXiv 2503.14476).

    A truncated completion scores -1 whatever its length: the engine's own limit may lie below `max_tokens`.
    """
    if completion.finish_reason is FinishReason.LENGTH:
        return -1.0
    over = len(completion.token_ids) - (max_tokens - buffer)
    return -min(max(over / buffer, 0.0), 1.0)


def band(answers: Sequence[float], tokens: Sequence[int], limits: tuple[int, int]) -> list[float]:
    """Return 0.2 for each right answer of a wanted length, where at least two of the group are right (arXiv 2503.21776).

    Args:
        answers: [G] answer rewards.
        tokens: [G] lengths of the completions.
        limits: fewest and most tokens that get it.
    """
    several = sum(answer > _RIGHT for answer in answers) >= 2
    return [
        _BONUS if several and answer > _RIGHT and limits[0] <= count <= limits[1] else 0.0
        for answer, count in zip(answers, tokens, strict=True)
    ]
