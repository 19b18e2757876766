"""Choice reward: is the answer the right option?

In: the text of the answer block and a record whose answer is a letter. Out: (0 or 1, note).
"""

from __future__ import annotations

import re

from videostr.types import Record

_BOXED = re.compile(r"\\boxed\{(.*)\}", re.DOTALL)
_LETTER = re.compile(
    r"(?:option\s+)?(?:\(([A-Z])\)|([A-Z])(?=[).:]|$))[).:]?(.*)", re.DOTALL | re.IGNORECASE | re.ASCII
)
# "a" and "i" are words, unless a bracket, full stop or colon follows, or nothing.
_LONE_LETTER = re.compile(r"(?<![\w'’])(?:[A-Zb-hj-z](?![\w'’])|[ai](?=[).:]|$))")


def reward(answer: str, record: Record) -> tuple[float, str]:
    """1 if the answer names the true option, else 0; with why it is 0."""
    letter = chosen_letter(answer, record.options)
    if letter is None:
        return 0.0, f"answer: {answer!r:.60} does not name exactly one option"
    truth = str(record.answer.value).upper()
    return (1.0, "") if letter == truth else (0.0, f"answer: {letter}, the truth is {truth}")


def chosen_letter(answer: str, options: tuple[str, ...]) -> str | None:
    """The one option that an answer names, or None.

    Understood are `B`, `b`, `(B)`, `B.`, `B) text`, `Option B`, `\\boxed{B}` and an option's full text. Two different
    letters, a letter with the text of another option, a letter in prose, or one beyond the options name none, where that
    is not an option's full text: `S. Smith`.
    """
    boxed = _BOXED.fullmatch(answer.strip())
    text = (boxed.group(1) if boxed else answer).strip()
    texts = [_plain(option) for option in options]
    by_text = _letter(texts.index(_plain(text))) if _plain(text) in texts else None
    match = _LETTER.fullmatch(text)
    if match is None:
        return by_text
    letter, rest = (match.group(1) or match.group(2)).upper(), match.group(3).strip()
    index = ord(letter) - ord("A")
    if index >= len(options):
        return by_text
    if _plain(rest) == texts[index]:
        return letter
    if rest and by_text:  # "B. Brown", where that is the text of an option
        return by_text
    named = {found.upper() for found in _LONE_LETTER.findall(rest)} & set(map(_letter, range(len(options))))
    return None if named - {letter} or _plain(rest) in texts else letter


def _letter(index: int) -> str:
    return chr(ord("A") + index)


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(".")
