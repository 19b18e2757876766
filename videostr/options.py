"""Letters of options: one place where they are written, and where letters that the texts carry already are taken off.

In: texts of options, as a dataset row has them. Out: texts without letters, and lines "A) text".
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Sequence

_LETTERED = re.compile(
    r"""\s*(?:option\s+)?
    (?: [(\[\u3010]\s*(?P<enclosed>[A-Z])\s*[)\]\u3011]\s*[:.,]?     # (A)  [A]  (A):  \u3010A\u3011
      | (?P<mark>\*{1,3}|_{1,2}|\$)\s*[(\[]?\s*(?P<marked>[A-Z])\s*[)\]:.]?\s*(?P=mark)\s*[)\]:.,]?  # **A.**  **A**.  $A$
      | (?P<open>[A-Z])\s*[)\]:.\u3001]                       # A)   A:   A.  A\u3001
      | (?P<dashed>[A-Z])\s*[-\u2013\u2014](?=\s)         # A - , but not A-frame
    )\s*(?P<text>.*\S)\s*""",
    re.VERBOSE | re.DOTALL | re.IGNORECASE | re.ASCII,
)


def letter_of(index: int) -> str:
    """Return the letter of an option by its place: 0 is "A"."""
    return chr(ord("A") + index)


def text_of(options: Sequence[str], letter: str) -> str:
    """Return the text of the option with a letter, without letters that the texts carry themselves."""
    return option_texts(tuple(options))[ord(letter) - ord("A")]


def lettered(options: Sequence[str]) -> list[str]:
    """Return one line "A) text" for each option, whether or not the texts carry letters already."""
    return [f"{letter_of(i)}) {text}" for i, text in enumerate(option_texts(tuple(options)))]


@functools.lru_cache(maxsize=1024)
def option_texts(options: tuple[str, ...]) -> tuple[str, ...]:
    """Return the options without the letters that they carry ("A: x", "(A) x", "A.x", "A - x", "Option A: x", "**A.** x").

    Letters are taken off only where all options carry one, the right one, and texts after it that differ: an option
    "A. Lincoln" among others without letters stays as it is, and so do "A.5 m" and "B.5 m".
    """
    if len(options) < 2:
        return options
    texts = [_without_letter(option, letter_of(i)) for i, option in enumerate(options)]
    found = tuple(text for text in texts if text is not None)
    return found if len(set(found)) == len(options) else options


def _without_letter(option: str, letter: str) -> str | None:
    """Return the text after the letter; None where the option does not begin with that letter."""
    # Full-width letters and marks become ASCII, one for one, so that places in both texts are the same.
    plain = "".join(_ascii(character) for character in option)
    match = _LETTERED.fullmatch(plain)
    if match is None:
        return None
    found = match["enclosed"] or match["marked"] or match["open"] or match["dashed"]
    return option[slice(*match.span("text"))] if found.upper() == letter else None


def _ascii(character: str) -> str:
    if "\uff01" <= character <= "\uff5e" or character in "\u3000\u00a0":
        return unicodedata.normalize("NFKC", character)
    return character
