"""What V-STaR's answers say: spans and boxes as `inference_demo.py` reads them (github.com/V-STaR-Bench/V-STaR at commit
1894682), and as a stricter reader does; what they overlap with; and words in common, where there is no judge.

In: texts of a model. Out: seconds, boxes in pixels by second, overlaps in [0, 1]. Nothing here raises, whatever the text.
"""

from __future__ import annotations

import json
import math
import re
from bisect import bisect_right
from collections import Counter
from typing import Any

from videostr.iou import Box, box_iou


def lexical_rating(_question: str, truth: str, answer: str) -> int:
    """Return a rating by the F1 of words: from 0.9 on 3, from 0.5 on 2, from 0.2 on 1, else 0; not comparable with a judge.

    Case, punctuation and articles do not count.
    """
    said, true = _words(answer), _words(truth)
    shared = sum((said & true).values())
    f1 = 2 * shared / (said.total() + true.total()) if shared else 0.0
    return sum(f1 >= bound for bound in (0.2, 0.5, 0.9))


def _words(text: str) -> Counter[str]:
    return Counter(re.findall(r"\w+", text.casefold())) - Counter({"a": 10**9, "an": 10**9, "the": 10**9})


def timestamps(answer: str) -> tuple[float, float] | None:
    """Return the span that the official code reads: the numbers of a text, if it has exactly two.

    A number is digits between word boundaries, so that "-3" is 3, "12.5s" is 12, "3s" is none and "00:12" is two.
    """
    found = re.findall(r"\b\d+(?:\.\d+)?\b", answer)
    return (float(found[0]), float(found[1])) if len(found) == 2 else None


def strict_span(answer: str) -> tuple[float, float] | None:
    """Return the numbers of a text, if it has exactly two, in order; a sign and a unit that follows belong to a number."""
    found = re.findall(r"(?<![\w.:])-?\d+(?:\.\d+)?(?![\d:])", answer)
    if len(found) != 2:
        return None
    start, end = float(found[0]), float(found[1])
    return (start, end) if 0 <= start <= end < math.inf else None


def block(answer: str) -> str:
    """Return the text that the official code takes for JSON, "" for none.

    That is what a fence "```json" encloses; else all from the first "[" or "{" that is closed anywhere to the last bracket of its
    kind. The official patterns find it in quadratic time, this does in linear time.
    """
    ends: dict[str, list[int]] = {"]": [], "}": []}
    for match in re.finditer(r"([\]}])\s*\n```", answer):
        ends[match.group(1)].append(match.start())
    for match in re.finditer(r"```json\s*\n([\[{])", answer):
        start = match.start(1)
        closers = ends["]" if match.group(1) == "[" else "}"]
        place = bisect_right(closers, start)
        if place < len(closers):
            return answer[start : closers[place] + 1]
    spans = [(answer.find(opener), answer.rfind(closer)) for opener, closer in ("[]", "{}")]
    start, end = min((span for span in spans if 0 <= span[0] < span[1]), default=(0, -1))
    return answer[start : end + 1]


def boxes(answer: str) -> Any:
    """Return what the official code reads: an object by second, a list that matches no second, or None.

    A list of objects is merged, a list of [second, box] becomes an object. What does not parse, or is a list of neither, is
    parsed again with as many brackets added at its ends as are missing.
    """
    text = block(answer).replace("'", '"')
    if not text:
        return None
    try:
        return _by_second(json.loads(text))
    except (ValueError, RecursionError, TypeError, LookupError):
        pass
    try:
        return json.loads(_balanced(text))
    except (ValueError, RecursionError):
        return None


def _by_second(value: Any) -> dict[str, Any]:
    if isinstance(value, list) and all(isinstance(part, dict) for part in value):
        merged: dict[str, Any] = {}
        for part in value:
            merged |= part
        return merged
    if isinstance(value, list):
        return {str(part[0]): part[1] for part in value}
    found: dict[str, Any] = value
    return found


def _balanced(text: str) -> str:
    for opener, closer in ("[]", "{}"):
        missing = text.count(opener) - text.count(closer)
        text = opener * -missing + text + closer * missing
    return text


def best_iou(true: Box, said: Any) -> float:
    """Return the IoU of a true box with what stands at its second: a box, or the best of several; 0 of anything else."""
    try:
        if not said:
            return 0.0
        several = [said] if isinstance(said[0], int | float) and len(said) == 4 else said
        return max(box_iou(true, tuple(box)) for box in several if isinstance(box, list) and len(box) == 4)
    except (TypeError, LookupError, ValueError, ArithmeticError):
        return 0.0


def scaled(value: Any, shown: tuple[int, int], video: tuple[int, int]) -> Any:
    """Return a box, or several, in pixels of the frames shown -> in those of the video, cut to integers; else the value itself.

    This is what `inference_demo.py` has a function for that it never calls; it also takes [box] and [name, box] for a box.
    """
    if isinstance(value, list) and value and all(isinstance(part, list) and len(part) == 4 for part in value):
        return [_scaled_box(part, shown, video) for part in value]
    return _scaled_box(value, shown, video)


def _scaled_box(value: Any, shown: tuple[int, int], video: tuple[int, int]) -> Any:
    try:
        if len(value) == 1:
            value = value[0]
        if len(value) == 2:
            value = value[1]
        return [int(value[axis] / shown[axis % 2] * video[axis % 2]) for axis in range(4)]
    except (TypeError, LookupError, ValueError, ArithmeticError):
        return value


def strict_boxes(answer: str) -> dict[str, list[float]]:
    """Return the boxes of an answer that is one JSON object, fenced or not: 4 finite numbers each, x1 < x2 and y1 < y2."""
    text = re.sub(r"\A\s*```(?:json)?|```\s*\Z", "", answer)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return {key: box for key, box in value.items() if _is_box(box)} if isinstance(value, dict) else {}


def _is_box(box: Any) -> bool:
    numbers = (
        isinstance(box, list) and len(box) == 4 and all(type(x) in (int, float) and abs(x) < 1e9 for x in box)
    )
    return numbers and box[0] < box[2] and box[1] < box[3]
