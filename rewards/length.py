"""Length terms: what a completion pays for running into the token limit."""

from __future__ import annotations

from videostr.types import Completion, FinishReason


def overlong(completion: Completion, max_tokens: int, buffer: int) -> float:
    """Linear penalty from 0 to -1 over the last `buffer` tokens before the limit (DAPO, arXiv 2503.14476).

    A truncated completion pays -1 whatever its length: the engine's own limit may lie below `max_tokens`.
    """
    if completion.finish_reason is FinishReason.LENGTH:
        return -1.0
    over = len(completion.token_ids) - (max_tokens - buffer)
    return -min(max(over / buffer, 0.0), 1.0)
