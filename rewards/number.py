"""Number reward: mean relative accuracy.

In: the text of the answer block and a record whose answer is a number. Out: (value in [0, 1], note).
"""

from __future__ import annotations

import math
import re

from videostr.types import Record

# 1 - theta for theta = 0.50, 0.55, ..., 0.95. Literals: a range in floating point may hold nine or eleven.
_ERRORS_ALLOWED = (0.50, 0.45, 0.40, 0.35, 0.30, 0.25, 0.20, 0.15, 0.10, 0.05)

_WORDS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *(
        "eleven",
        "twelve",
        "thirteen",
        "fourteen",
        "fifteen",
        "sixteen",
        "seventeen",
        "eighteen",
        "nineteen",
        "twenty",
    ),
)
# Words that make a number of other words, or one beyond twenty: what they stand beside is not the number meant.
_BEYOND = re.compile(
    r"\b(?:thirty|forty|fifty|sixty|seventy|eighty|ninety|hundreds?|thousands?|millions?|billions?|dozens?|half|halves)\b",
    re.IGNORECASE | re.ASCII,
)
_NUMBER = re.compile(
    r"(?<![\w.])(?:"
    # Atomic, so that nothing is read of "1,234.5.6" or "10_000".
    r"(?P<digits>(?>[-+−]?(?:\d{1,3}(?:,\d{3})+(?![\d,])|\d+)(?:\.\d+)?|[-+−]?\.\d+))(?!\.?\d|_)"
    r"(?P<exponent>e[-+]?\d+)?"
    rf"|(?P<word>{'|'.join(sorted(_WORDS, key=len, reverse=True))})(?!\w)"
    r")\s*\(?(?P<unit>[a-z°%]+(?:/[a-z]+)?(?:\^?[23²³])?)?",
    re.IGNORECASE | re.ASCII,
)
_EQUALS = re.compile(r"=|\bis\b", re.IGNORECASE)
_PER = re.compile(r"\s+per\s+|\s*/\s*", re.IGNORECASE)

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
        ("acceleration", 1.0, "m/s2 m/s^2 m/s²"),
        ("area", 1.0, "m2 m^2 m²"),
        ("volume", 1.0, "m3 m^3 m³"),
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


def reward(answer: str, record: Record) -> tuple[float, str]:
    """`mean_theta [ |p - y| / |y| <= 1 - theta ]` over ten theta (VSI-Bench, arXiv 2412.14171); with why it is low."""
    truth = float(record.answer.value)  # type: ignore[arg-type]  # AnswerKind.NUMBER promises a float
    unit = record.answer.unit
    said = stated_number(answer, unit)
    if said is None:
        return 0.0, f"answer: {answer!r:.60} is not one number" + (f" in {unit}" if unit else "")
    value = mean_relative_accuracy(said, truth)
    return value, "" if value == 1.0 else f"answer: {said:g}, the truth is {truth:g} {unit}".rstrip()


def mean_relative_accuracy(said: float, truth: float) -> float:
    """Share of the ten error bounds that `said` keeps; for a truth of 0, whether it is 0 to within 1e-9."""
    if truth == 0:
        return float(abs(said) <= 1e-9)
    error = abs(said - truth) / abs(truth)
    return sum(error <= allowed + 1e-9 for allowed in _ERRORS_ALLOWED) / len(_ERRORS_ALLOWED)


def stated_number(answer: str, unit: str = "") -> float | None:
    """The only number in an answer, or the last one that follows "=" or "is", in `unit`.

    None where there is no number, several without "=" or "is" before one of them, a number that is not finite, a number
    word beyond twenty, or a unit that does not convert. A number without a unit is in `unit`; a word that is no unit says
    nothing.
    """
    if _BEYOND.search(answer):
        return None
    text = _PER.sub("/", answer)
    found = list(_NUMBER.finditer(text))
    if len(found) > 1:
        marker = _EQUALS.search(text)
        found = [match for match in found if marker is not None and match.start() >= marker.end()][-1:]
    if len(found) != 1:
        return None
    value = _value(found[0]) * _conversion(found[0]["unit"], unit)
    return value if math.isfinite(value) else None


def _value(match: re.Match[str]) -> float:
    if match["word"]:
        return float(_WORDS.index(match["word"].lower()))
    return float(match["digits"].replace(",", "").replace("−", "-") + (match["exponent"] or ""))


def _conversion(said: str | None, wanted: str) -> float:
    """Factor from the unit said to the unit wanted; NaN where there is none."""
    said = (said or "").lower()
    if said == wanted.lower():
        return 1.0
    if said not in _UNITS:
        return math.nan if "/" in said else 1.0
    quantity, size = _UNITS[said]
    wanted_quantity, wanted_size = _UNITS.get(wanted.lower(), ("", 1.0))
    return size / wanted_size if quantity == wanted_quantity else math.nan
