"""Markup of answers: Markdown, LaTeX, HTML, quotes, brackets and letters of other widths say nothing about the answer.

In: the text of an answer block, or of an option. Out: the same words without markup. Choices and numbers are read after it, so
both understand the same markup. Every step is linear in the length of the text.
"""

from __future__ import annotations

import html
import re
import unicodedata

# Most answers: nothing to take off. A sign before a blank is the bullet of a list.
_PLAIN = re.compile(r"(?:[A-Za-z0-9(.]|[-+](?! ))[A-Za-z0-9 .,:()+\-/%=]*")
_LONE_TAG = re.compile(r"\s*<\s*([A-Za-z])\s*>\s*")
_TAG = re.compile(r"</?[A-Za-z][^<>]{0,80}>")
_FENCE = re.compile(r"```[A-Za-z]*\n")
# A command that takes a name before its text: \textcolor{red}{B}, \begin{equation}.
_NAMED = re.compile(r"(?<!\\)\\++(?:(?:text)?color|begin|end)\{[^{}]{0,40}\}")
# In JSON a backslash is doubled, and some models write it so.
_COMMAND = re.compile(
    r"(?<!\\)\\++(?:f?boxed|[a-z]?framebox|[fhm]box|text[a-z]*|math[a-z]*|operatorname|emph|underline|bf|rm|it|displaystyle"
    r"|left|right|bm|bold[a-z]*|pmb|ensuremath|[Ll]arge|LARGE|[Hh]uge|small|big[a-z]*|Big[a-z]*)(?![A-Za-z])\*?"
)
_SYMBOLS = (
    (re.compile(r"\^?\{?\\(?:circ|degree)(?![a-z])\}?"), "°"),
    (re.compile(r"\\(?:times)(?![a-z])"), "×"),
    (re.compile(r"\\(?:cdot)(?![a-z])"), "·"),
    (re.compile(r"(?<=\d)(?:\\,|\{,\}|\\!|,\\!)(?=\d)"), ","),
    (re.compile(r"\\(?:quad|qquad|[,;:! ])|~"), " "),
    (re.compile(r"\\[()\[\]]|\$|[{}]|\\\\(?![A-Za-z])"), ""),
    (re.compile(r"\\([%#&_])"), r"\1"),
)
_LINE_START = re.compile(r"^[ \t]*(?:(?:#{1,6}|>+|[-+*•‣◦▪●·])[ \t]+)+", re.MULTILINE)
# Quotes and emphasis at the edges of words; inside them they stay: 1'234, 10_000, 3*4, car's.
_EDGES = re.compile(r"(?<![A-Za-z0-9*_~`'\"])[*_~`'\"]++|[*_~`'\"]++(?![A-Za-z0-9])")
_THIN = re.compile(r"(?<=\d)\u2009(?=\d{3})")
_TEN_TO_THE = re.compile(r" ?[×·*] ?10\^([-+]?\d+)")


def _same(letters: str, meaning: str) -> dict[int, str]:
    return dict.fromkeys(map(ord, letters), meaning)


def _wide(first: int, last: int) -> dict[int, str]:
    """Return letters and digits in another width or style."""
    return {code: unicodedata.normalize("NFKC", chr(code)) for code in range(first, last + 1)}


_TABLE: dict[int, str] = {
    **_wide(0xFF01, 0xFF5E),  # full width
    **_wide(0x1D400, 0x1D7CB),  # mathematical bold, italic, ...
    **_wide(0x1D7CE, 0x1D7FF),
    **_wide(0x249C, 0x24E9),  # in brackets, in circles
    **_wide(0x1F130, 0x1F149),  # in squares
    # White on black.
    **{start + place: chr(ord("A") + place) for start in (0x1F150, 0x1F170) for place in range(26)},
    **{ord(sup): f"^{digit}" for digit, sup in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")},
    **_same(
        "\u2212\u2010\u2011\u2012\u2013\u2014\u2015\ufe63\ufe58\uff0d\u207b\u208b\u02d7\u2043\u2796", "-"
    ),
    **_same("\ufe62\u2795", "+"),
    **_same("“”„‟«»‹›「」『』〝〞〟＂❝❞", '"'),
    **_same("‘’‚‛＇❛❜", "'"),
    **_same("［【〔〖〈《⟨⟦⟪﹙❨（｛", "("),
    **_same("］】〕〗〉》⟩⟧⟫﹚❩）｝", ")"),
    **_same("。．｡﹒", "."),
    **_same("、，﹐､", ","),
    **_same("：﹕", ":"),
    **_same("！﹗", "!"),
    **_same("？﹖", "?"),
    **_same("；﹔", ";"),
    **_same("％﹪", "%"),
    **_same("º˚", "°"),
    **_same("\u2009\u202f\u00a0\u2007", "\u2009"),  # what separates thousands; else a blank
    **_same(
        "\u200b\u200c\u200d\u200e\u200f\u2060\u2061\u2062\u2063\u2064\ufeff\u00ad\ufe0e\ufe0f\u20e3"
        "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069",
        "",
    ),
}


def plain(text: str) -> str:
    """Return a text without its markup, white space as single blanks.

    Brackets of every kind come back as `(`, `)`; minus signs as `-`; raised digits as `^2`; a thin space between thousands as a
    comma; `2 × 10^3` as `2e3`.
    """
    if _PLAIN.fullmatch(text):
        return text if "  " not in text and text[-1] != " " else " ".join(text.split())
    return _without_markup(text)


def _without_markup(text: str) -> str:
    if lone := _LONE_TAG.fullmatch(text):
        return lone.group(1)
    if "&" in text:
        text = html.unescape(text)
    if not text.isascii():
        text = text.translate(_TABLE)
    if "<" in text:
        text = _TAG.sub("", text.replace("<sup>", "^").replace("<br>", " "))
    if "```" in text:
        text = _FENCE.sub("", text)
    if any(mark in text for mark in "\\${}~"):
        text = _COMMAND.sub("", _NAMED.sub("", text))
        for pattern, meaning in _SYMBOLS:
            text = pattern.sub(meaning, text)
    text = _THIN.sub(",", text).replace("[", "(").replace("]", ")")
    text = " ".join(_LINE_START.sub("", text).split())
    return " ".join(_EDGES.sub("", _TEN_TO_THE.sub(r"e\1", text)).split())
