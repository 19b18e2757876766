"""Choice reward: is the answer the right option?

In: the text of the answer block and a record whose answer is a letter. Out: (0 or 1, note).
"""

from __future__ import annotations

import re
from functools import lru_cache

from rewards.markup import plain
from videostr.options import option_texts
from videostr.types import Record

_LETTER = re.compile(
    r"(?:(?:option|choice) )?(?:\(+ ?([A-Z]) ?\)+|([A-Z])(?![^\s).:,;\-]))(?: ?([).:]))?(.*)",
    re.DOTALL | re.IGNORECASE | re.ASCII,
)
# "a" and "i" are words, unless a bracket, full stop or colon follows, or nothing.
_LONE_LETTER = re.compile(r"(?<![\w'])(?:[A-Zb-hj-z](?![\w'])|[ai](?=[).:]|$))")
_END = " .,;:!?"
"""What may follow an answer and says nothing."""


def reward(answer: str, record: Record) -> tuple[float, str]:
    """1 if the answer names the true option, else 0; with why it is 0."""
    letter = chosen_letter(answer, record.options)
    if letter is None:
        return 0.0, f"answer: {answer!r:.60} does not name exactly one option"
    truth = str(record.answer.value).upper()
    return (1.0, "") if letter == truth else (0.0, f"answer: {letter}, the truth is {truth}")


def chosen_letter(answer: str, options: tuple[str, ...]) -> str | None:
    """Return the one option that an answer names, or None.

    Understood are, in any markup (`rewards.markup`), `B`, `b`, `(B)`, `B.`, `B,`, `B) text`, `B text` with the option's own
    text, `Option B`, and an option's full text. Two different letters, a letter with the text of another option, a letter in
    prose, or one beyond the options name none, where that is not an option's full text: `S. Smith`. A lone letter is always
    the letter, never the text of an option that is a letter itself. A text that two options share names none.
    """
    text = plain(answer).rstrip(_END)
    written, options = options, option_texts(options)
    texts = _texts(written) | _texts(options)
    by_text = texts.get(_folded(text))
    if by_text is None and text.startswith("("):
        text = _unwrapped(text)
        by_text = texts.get(_folded(text))
    match = _LETTER.fullmatch(text)
    if match is None:
        return by_text
    bracketed, bare, mark, rest = match.groups()
    letter, rest = (bracketed or bare).upper(), _folded(rest.lstrip(" ,;-"))
    if ord(letter) - ord("A") >= len(options):
        return by_text
    is_set_off = bool(bracketed or mark)
    if not rest or (_is_own(rest, letter, options) and (is_set_off or not by_text)):
        return letter
    if by_text or not is_set_off:  # "B. Brown", where that is the text of an option; "B is right"
        return by_text
    named = {found.upper() for found in _LONE_LETTER.findall(match.group(4))} & set(_letters(options))
    return None if named - {letter} or rest in texts else letter


@lru_cache(maxsize=4096)
def _texts(options: tuple[str, ...]) -> dict[str, str | None]:
    """Letters by the texts of the options, None where two share a text; blank options have none."""
    found: dict[str, str | None] = {}
    for letter, option in zip(_letters(options), options, strict=True):
        text = _folded(plain(option))
        if text:
            found[text] = None if text in found else letter
    return found


def _letters(options: tuple[str, ...]) -> list[str]:
    return [chr(ord("A") + index) for index in range(len(options))]


def _is_own(text: str, letter: str, options: tuple[str, ...]) -> bool:
    """Whether a text is that of the letter's option; another may have the same."""
    return text == _folded(plain(options[ord(letter) - ord("A")]))


def _unwrapped(text: str) -> str:
    """Without the brackets around all of it; those of a single letter stay."""
    inside = text.strip("() ")
    is_whole = text.endswith(")") and len(inside) > 1 and "(" not in inside and ")" not in inside
    return inside.rstrip(_END) if is_whole else text


def _folded(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(_END)
