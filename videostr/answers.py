"""What an answer says: the option it names, its number, its coordinates; and how close a number is to the true one.

In: the text of an answer block. Out: a letter, a number or coordinates, None where the text does not state exactly one.
Rewards and benchmarks score what is read here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from functools import lru_cache

from videostr.graph import MAX_ABS
from videostr.iou import Box
from videostr.markup import plain
from videostr.options import option_texts

# ------------------------------------------------------------------------------------------------- options

_LETTER = re.compile(
    r"(?:(?:option|choice) )?(?:\(+ ?([A-Z]) ?\)+|([A-Z])(?![^\s).:,;\-]))(?: ?([).:]))?(.*)",
    re.DOTALL | re.IGNORECASE | re.ASCII,
)
# "a" and "i" are words, unless a bracket, full stop or colon follows, or nothing.
_LONE_LETTER = re.compile(r"(?<![\w'])(?:[A-Zb-hj-z](?![\w'])|[ai](?=[).:]|$))")
_END = " .,;:!?"
"""What may follow an answer and says nothing."""


def chosen_letter(answer: str, options: tuple[str, ...]) -> str | None:
    """Return the one option that an answer names, or None.

    Understood are, in any markup (`videostr.markup`), `B`, `b`, `(B)`, `B.`, `B,`, `B) text`, `B text` with the option's own
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
    """Return letters by the texts of the options, None where two share a text; blank options have none."""
    found: dict[str, str | None] = {}
    for letter, option in zip(_letters(options), options, strict=True):
        text = _folded(plain(option))
        if text:
            found[text] = None if text in found else letter
    return found


def _letters(options: tuple[str, ...]) -> list[str]:
    return [chr(ord("A") + index) for index in range(len(options))]


def _is_own(text: str, letter: str, options: tuple[str, ...]) -> bool:
    """Return whether a text is that of the letter's option; another may have the same."""
    return text == _folded(plain(options[ord(letter) - ord("A")]))


def _unwrapped(text: str) -> str:
    """Without the brackets around all of it; those of a single letter stay."""
    inside = text.strip("() ")
    is_whole = text.endswith(")") and len(inside) > 1 and "(" not in inside and ")" not in inside
    return inside.rstrip(_END) if is_whole else text


def _folded(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(_END)


# ------------------------------------------------------------------------------------------------- numbers

# 1 - theta for theta = 0.50, 0.55, ..., 0.95. Literals: a range in floating point may hold nine or eleven.
_ERRORS_ALLOWED = (0.50, 0.45, 0.40, 0.35, 0.30, 0.25, 0.20, 0.15, 0.10, 0.05)

_DIGITS = {"one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9}
_TEENS = {
    "ten": 10, "eleven": 11, "twelve": 12, "thirteen": 13, "fourteen": 14, "fifteen": 15, "sixteen": 16, "seventeen": 17,
    "eighteen": 18, "nineteen": 19,
}  # fmt: skip
_TENS = {
    "twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90,
}  # fmt: skip
_SMALL = _DIGITS | _TEENS | _TENS
_SCALES = {"dozen": 12, "hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9}

_NO_UNIT = frozenset(("zero", *_SMALL, *_SCALES))


def _any(words: Iterable[str]) -> str:
    return f"(?:{'|'.join(words)})"


_JOIN = "[ -]"
_BELOW_100 = f"(?:{_any(_TENS)}(?:{_JOIN}{_any(_DIGITS)})?|{_any(_TEENS)}|{_any(_DIGITS)})"
_BELOW_1000 = f"(?:(?:{_BELOW_100}|an?){_JOIN}hundred(?:(?: and)?{_JOIN}{_BELOW_100})?|{_BELOW_100})"
_BELOW_MILLION = f"(?:(?:{_BELOW_1000}|an?){_JOIN}thousand(?:(?: and)?{_JOIN}{_BELOW_1000})?|{_BELOW_1000})"
_WORD_NUMBER = (
    f"(?:(?:{_BELOW_100}|an?){_JOIN}dozen|(?:{_BELOW_MILLION}|an?){_JOIN}(?:million|billion)"
    f"(?:(?: and)?{_JOIN}{_BELOW_MILLION})?|{_BELOW_MILLION}|zero)"
)
# Fractions, words for many and factors (2\pi): the number next to them is not the one meant.
_INEXACT = re.compile(
    r"\b(?:half|halves|quarters?|thirds|fourths|fifths|sixths|sevenths|eighths|ninths|tenths|hundredths|thousandths"
    r"|dozens|hundreds|thousands|millions|billions|trillions?)\b|[\u00bc-\u00be\u2150-\u215e\u2189]|\d ?\\[a-z]",
    re.IGNORECASE | re.ASCII,
)
_SIMPLE = re.compile(r"[-+]?(?:\d+(?:\.\d+)?|\.\d+)", re.ASCII)
# A number is taken with all that clings to it, then read or refused: what is left over of "1,2.3" is not a number. Possessive,
# so that the search is linear. A unit is a word, with "/", "^" or a raised digit; letters beyond ASCII belong to it.
_NUMBER = re.compile(
    r"(?<![\w.^])(?:"
    r"(?P<digits>[-+]?(?:\d++(?:[,']\d++)*+)?(?:\.\d++)*+)(?<=\d)(?P<exponent>e[-+]?\d++)?(?P<bad>[_^]\w*+|\.\d[\w.]*+)?"
    rf"|(?=[aefmnostz-])(?P<minus>-|(?:minus|negative) )?(?:(?P<word>{_WORD_NUMBER})(?!\w)|(?P<signed>\d++(?:\.\d++)?))"
    r")[ -]?\(?(?P<unit>/?(?:[a-z%°]|[^\x00-\x7f])++(?:/(?:[a-z]|[^\x00-\x7f])++)?(?:\^?[23](?!\d))?)?",
    re.IGNORECASE | re.ASCII,
)
_THOUSANDS = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d{1,3}(?:'\d{3})+|\d+)?(?:\.\d+)?", re.ASCII)
# A lone quote behind a number: 5" or 5'.
_INCHES = re.compile(r"""[^"']*\d ?["'](?!\d)[^"']*""")
_EQUALS = re.compile(r"=|\bis\b", re.IGNORECASE)
_PER = re.compile(r" per | ?/ ?", re.IGNORECASE)
_POWER_BEFORE = re.compile(r"\b(square|sq|cubic|cu)\b\.? ?([a-z]+)", re.IGNORECASE | re.ASCII)
_POWER_AFTER = re.compile(r"\b([a-z]++) (squared|cubed)\b", re.IGNORECASE | re.ASCII)
_POWERS = {"square": "2", "sq": "2", "squared": "2", "cubic": "3", "cu": "3", "cubed": "3"}

_LENGTHS = (
    (1.0, "m meter meters metre metres"),
    (1e-3, "mm millimeter millimeters millimetre millimetres"),
    (1e-2, "cm centimeter centimeters centimetre centimetres"),
    (1e3, "km kilometer kilometers kilometre kilometres"),
)
_TIMES = ((1.0, "s sec second seconds"), (3600.0, "h hr hour hours"))

# Unit -> (what it measures, size in that quantity's first unit). Only units of the same quantity convert.
_UNITS: dict[str, tuple[str, float]] = {
    alias: (quantity, size)
    for quantity, size, aliases in (
        *(("length", size, aliases) for size, aliases in _LENGTHS),
        *(
            ("speed", length / time, f"{name}/{clock}")
            for length, names in _LENGTHS
            for time, clocks in _TIMES
            for name in names.split()
            for clock in clocks.split()
        ),
        ("speed", 1 / 3.6, "kph kmh"),
        ("time", 1.0, "s sec second seconds"),
        ("time", 1e-3, "ms millisecond milliseconds"),
        ("angle", 1.0, "deg degree degrees °"),
        ("angle", 180 / math.pi, "rad radian radians"),
        ("acceleration", 1.0, "m/s2 m/s^2"),
        *(
            (quantity, size**power, f"{name}{sign}{power}")
            for quantity, power in (("area", 2), ("volume", 3))
            for size, names in _LENGTHS
            for name in names.split()
            for sign in ("", "^")
        ),
        ("cells", 1.0, "cell cells"),
        ("pixels", 1.0, "px pixel pixels"),
        ("percent", 1.0, "% percent"),
        ("feet", 1.0, "ft foot feet"),
        ("inches", 1.0, "inch inches"),
        ("yards", 1.0, "yd yard yards"),
        ("miles", 1.0, "mi mile miles"),
        ("miles an hour", 1.0, "mph"),
        ("minutes", 1.0, "min minute minutes"),
        ("hours", 1.0, "h hr hour hours"),
        ("mass", 1.0, "kg"),
    )
    for alias in aliases.split()
}
# Words after a number that say nothing about its unit.
_PROSE = frozenset(
    re.findall(
        "[a-z]+",
        "a about above across ahead all along altogether and apart approximately around as at away because behind below between"
        " but by deep each far for from high if in left long of off on or overall right roughly so tall that the then thick to"
        " total up was when where which wide with",
    )
)


def mean_relative_accuracy(said: float, truth: float) -> float:
    """Return the share of the ten error bounds that `said` keeps; for a truth of 0, whether it is 0 to within 1e-9."""
    if truth == 0:
        return float(abs(said) <= 1e-9)
    error = abs(said - truth) / abs(truth)
    return sum(error <= allowed + 1e-9 for allowed in _ERRORS_ALLOWED) / len(_ERRORS_ALLOWED)


def stated_number(answer: str, unit: str = "") -> float | None:
    """Return the only number in an answer, or the last one that follows "=" or "is", in `unit`.

    Numbers are digits, with commas, apostrophes or thin spaces between thousands, or words; markup says nothing
    (`videostr.markup`). None where there is no number, several without "=" or "is" before one of them, a number that is not
    finite, a fraction, or a unit that does not convert. A number without a unit is in `unit`. A word after the number counts
    as its unit, unless it is one of ordinary prose (`5 away`); where the truth has no unit, a word that is not a unit is what is
    counted (`5 cars`).
    """
    if ('"' in answer or "'" in answer) and _INCHES.fullmatch(answer):
        return None
    text = plain(answer)
    if _SIMPLE.fullmatch(text):
        return _finite(float(text))
    if _INEXACT.search(text):
        return None
    found = list(_NUMBER.finditer(_with_units(text)))
    if len(found) > 1:
        marker = _EQUALS.search(found[0].string)
        found = [match for match in found if marker is not None and match.start() >= marker.end()][-1:]
    return _finite(_value(found[0]) * _conversion(found[0], unit)) if len(found) == 1 else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _with_units(text: str) -> str:
    """With "per" as "/", "square metres" and "metres squared" as "metres^2"."""
    text = _PER.sub("/", text)
    if "squ" in text.lower() or "cu" in text.lower() or "sq" in text.lower():
        text = _POWER_BEFORE.sub(lambda match: f"{match[2]}^{_POWERS[match[1].lower()]}", text)
        text = _POWER_AFTER.sub(lambda match: f"{match[1]}^{_POWERS[match[2].lower()]}", text)
    return text


def _value(match: re.Match[str]) -> float:
    """Return the number; NaN where it is not well formed."""
    if match["bad"]:
        return math.nan
    sign = -1.0 if match["minus"] else 1.0
    if match["word"]:
        return sign * _value_of_words(match["word"].lower())
    if match["signed"]:
        return sign * float(match["signed"])
    if not _THOUSANDS.fullmatch(match["digits"]):
        return math.nan
    return float(match["digits"].replace(",", "").replace("'", "") + (match["exponent"] or ""))


def _value_of_words(text: str) -> float:
    """Of a `_WORD_NUMBER`."""
    total = part = 0
    for word in text.replace("-", " ").split():
        if word in _SCALES:
            scaled = (part or 1) * _SCALES[word]
            total, part = (total + scaled, 0) if _SCALES[word] >= 1000 else (total, scaled)
        else:
            part += _SMALL.get(word, 0)
    return float(total + part)


def _conversion(match: re.Match[str], wanted: str) -> float:
    """Return the factor from the unit said to the unit wanted; NaN where there is none."""
    said, wanted = (match["unit"] or "").lower(), wanted.lower().replace("²", "^2").replace("³", "^3")
    following = match.string[match.end() : match.end() + 2]
    if said in _NO_UNIT or (said and following[:1].isalnum()):  # "one two", "2 million"; "0x10", "5 m4"
        return math.nan
    if not said or said == wanted:
        return 1.0
    if said in _UNITS:
        quantity, size = _UNITS[said]
        wanted_quantity, wanted_size = _UNITS.get(wanted, ("", 1.0))
        return size / wanted_size if quantity == wanted_quantity else math.nan
    if "/" in said or "^" in said or (said == "in" and not following[1:].isalpha()):  # 5 in: inches
        return math.nan
    is_noun = not wanted or said in _PROSE or said.rstrip("s") == wanted.rstrip("s")
    return 1.0 if is_noun else math.nan


# ------------------------------------------------------------------------------------------------- coordinates

# A sign that follows a digit or a letter is a dash: "2-5" holds 2 and 5.
COORDINATE = r"(?<![\w.])[-+−]?(?:\d++(?:\.\d*+)?|\.\d++)(?:e[-+]?\d++)?"
_COORDINATE = re.compile(COORDINATE, re.IGNORECASE | re.ASCII)


def stated_box(answer: str) -> Box | None:
    """Return the four numbers of an answer, in any brackets and with any separators; None if they are not a box."""
    numbers = stated_numbers(answer, 4)
    if numbers is None:
        return None
    x1, y1, x2, y2 = numbers
    return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None


def stated_numbers(answer: str, count: int) -> tuple[float, ...] | None:
    """Return all numbers of an answer; None unless there are `count` of them, each within +-1e6."""
    numbers = tuple([float(text.replace("−", "-")) for text in _COORDINATE.findall(answer)])
    return numbers if len(numbers) == count and all(abs(x) <= MAX_ABS for x in numbers) else None
