"""Choice, number, region and length: golden values by hand."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards import choice, number, region
from rewards.length import overlong
from videostr.types import Answer, AnswerKind, ClipSpec, Completion, FinishReason, Record


def record(kind: AnswerKind, value: str | float | tuple[float, ...], unit: str = "") -> Record:
    return Record(
        id="r",
        source="test",
        family="test",
        question="?",
        options=("left of it", "right of it", "A car", "behind"),
        answer=Answer(kind=kind, value=value, unit=unit),
        clip=ClipSpec(video="v.mp4", num_frames=1),
        labels=(),
        graph=None,
    )


RIGHT = [
    "B", "b", "(B)", "(b)", "B.", "B)", "B:", "(B).", "B) right of it", "(B) right of it", "B. Right of it.",
    "Option B", "option b", "Option B: right of it", r"\boxed{B}", r"\boxed{(B)}", "right of it", "RIGHT  of it.",
]  # fmt: skip
WRONG = [
    "", "A", "E", "B or C", "B, C", "B) or C)", "B. c", "(B) (C)", "B B", "the answer is B", "B is right",
    "A car", "B) a", "(B) (a)", "B: A.", "I think B",
    "Not B", "B, I think", "B) left of it", "left of it", "right", "BB", "-", "B\nC", r"\boxed{B} \boxed{C}", "Ｂ", "ſ",
]  # fmt: skip


@pytest.mark.parametrize("answer", RIGHT)
def test_accepted_ways_to_name_an_option(answer: str) -> None:
    assert choice.reward(answer, record(AnswerKind.CHOICE, "B")) == (1.0, "")


@pytest.mark.parametrize("answer", WRONG)
def test_anything_else_is_wrong_and_says_why(answer: str) -> None:
    value, note = choice.reward(answer, record(AnswerKind.CHOICE, "B"))
    assert value == 0.0
    assert note.startswith("answer: ")


def test_an_option_that_begins_with_a_letter_is_its_text() -> None:
    options = ("left of it", "right of it", "A car", "behind")
    assert choice.chosen_letter("A car", options) == "C"
    assert choice.chosen_letter("C) A car", options) == "C"


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("S. Smith", "A"), ("s. smith", "A"), (r"\boxed{S. Smith}", "A"), ("(A) S. Smith", "A"),
        ("x", "B"), ("X.", "B"), ("(X)", None), ("y", None), ("S. Jones", None),
        ("B. Brown", "C"), ("B. Smith", "B"), ("B", "B"), ("B. x", "B"), ("B) S. Smith", None),
        ("B) x", "B"), ("(Z) none", "D"), ("(Z) some", None),
    ],
)  # fmt: skip
def test_the_full_text_of_an_option_names_it_whatever_it_begins_with(answer: str, letter: str | None) -> None:
    options = ("S. Smith", "x", "B. Brown", "(Z) none")
    assert choice.chosen_letter(answer, options) == letter


@pytest.mark.parametrize(
    ("said", "truth", "value"),
    [
        (10.0, 10.0, 1.0),
        (9.5, 10.0, 1.0),  # error 0.05 <= 0.05: all ten
        (9.4, 10.0, 0.9),  # 0.06: all but theta = 0.95
        (12.0, 10.0, 0.7),  # 0.20 <= 0.50, 0.45, 0.40, 0.35, 0.30, 0.25, 0.20
        (15.0, 10.0, 0.1),  # 0.50: only theta = 0.50
        (15.1, 10.0, 0.0),
        (-10.0, 10.0, 0.0),
        (-9.4, -10.0, 0.9),
        (0.0, 0.0, 1.0),
        (1e-9, 0.0, 1.0),
        (1e-8, 0.0, 0.0),
    ],
)
def test_mean_relative_accuracy(said: float, truth: float, value: float) -> None:
    assert number.mean_relative_accuracy(said, truth) == value


@pytest.mark.parametrize(
    ("answer", "unit", "value"),
    [
        ("7", "", 7.0),
        ("-7.5", "", -7.5),
        ("−7", "", -7.0),
        (".5", "", 0.5),
        ("1.5e-3", "", 0.0015),
        ("1,234.5", "", 1234.5),
        ("seven", "", 7.0),
        ("Seventeen cubes", "", 17.0),
        ("There are 3 cubes.", "", 3.0),
        ("250 cm", "m", 2.5),
        ("250cm", "m", 2.5),
        ("2500 mm", "m", 2.5),
        ("0.0025 km", "m", 2.5),
        ("2.5 meters", "m", 2.5),
        ("2.5", "m", 2.5),
        ("1500 ms", "s", 1.5),
        ("36 km/h", "m/s", 10.0),
        ("36 km / h", "m/s", 10.0),
        ("36 kilometers per hour", "m/s", 10.0),
        ("10 m/s", "km/h", 36.0),
        ("150 cm/s", "m/s", 1.5),
        ("0.5 s", "ms", 500.0),
        ("12 mm", "cm", 1.2),
        ("180 deg", "rad", math.pi),
        ("5 (cm)", "m", 0.05),
        ("-1,234,567.5", "", -1234567.5),
        ("+5E2", "", 500.0),
        ("Twenty", "", 20.0),
        ("zero", "", 0.0),
        ("It is 5 m wide and 3 m long", "m", 3.0),
        ("3.141592653589793 rad", "deg", 180.0),
        ("90°", "deg", 90.0),
        ("4 cells", "cells", 4.0),
        ("3 + 4 = 7", "", 7.0),
        ("5 m = 500 cm", "m", 5.0),
        ("the distance between the 2 cars is 4.5 m", "m", 4.5),
        ("car.1 is 4 away", "", 4.0),
    ],
)
def test_numbers_that_are_read(answer: str, unit: str, value: float) -> None:
    assert number.stated_number(answer, unit) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(
    ("answer", "unit"),
    [
        ("", ""),
        ("many", ""),
        ("5 or 6", ""),
        ("5-6", ""),
        ("1,2", ""),
        ("1/2", ""),
        ("twenty-one", ""),
        ("thirty-five", ""),
        ("it is thirty five", ""),
        ("one hundred", ""),
        ("1.2.3", ""),
        ("1,234.5.6", ""),
        ("10_000", ""),
        ("5 miles", "m"),
        ("5 mph", "m/s"),
        ("5 m per minute", "m"),
        ("50%", ""),
        ("5 kg", "m"),
        ("5 s", "m"),
        ("5 ft", "m"),
        ("5 m", ""),
        ("5 m", "cells"),
        ("5 m/s", "m"),
        ("1e999", ""),
        ("NaN", ""),
        ("inf", ""),
    ],
)
def test_answers_that_are_not_one_number_in_the_unit(answer: str, unit: str) -> None:
    assert number.stated_number(answer, unit) is None
    assert number.reward(answer, record(AnswerKind.NUMBER, 5.0, unit))[0] == 0.0


def test_number_reward_converts_and_says_what_the_truth_is() -> None:
    value, note = number.reward("470 cm", record(AnswerKind.NUMBER, 5.0, "m"))
    assert value == 0.9  # error 0.06
    assert note == "answer: 4.7, the truth is 5 m"


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("[100, 100, 300, 300]", 1.0),
        ("(100 100) (300 300)", 1.0),
        ("x1=100; y1=100; x2=300; y2=3e2", 1.0),
        ("100,100,300,300", 1.0),
        ("[200, 100, 400, 300]", 1 / 3),  # overlap 100 x 200, union 2 * 40000 - 20000
        ("[100, 100, 200, 200]", 0.25),
        ("[300, 100, 400, 300]", 0.0),  # touch
        ("[300, 300, 100, 100]", 0.0),
        ("[100, 100, 100, 300]", 0.0),
        ("[100, 100, 300]", 0.0),
        ("[100, 100, 300, 300, 300]", 0.0),
        ("[1e999, 100, 300, 300]", 0.0),
        ("[nan, nan, nan, nan]", 0.0),
        ("[-1e308, -1e308, 1e308, 1e308]", 0.0),
        ("", 0.0),
    ],
)
def test_box_iou(answer: str, value: float) -> None:
    assert region.box2d(answer, record(AnswerKind.BOX2D, (100.0, 100.0, 300.0, 300.0)))[0] == pytest.approx(
        value
    )


# Digits, signs, brackets and words that the parsers know: random text made of these reaches deep into them.
_HOSTILE = st.text(
    st.sampled_from("0123456789.,-+−eE/=_ ()[]{}\"'°%²ABCabims\\\n\ud800ſＢ٣"), max_size=1000
) | st.lists(
    st.sampled_from(
        ["one", "is", "=", " per ", "\\boxed{", "option ", "null", "km/h", "1e999", "9" * 300, " "]
    ),
    max_size=100,
).map(lambda words: "".join(words)[:1000])


@given(_HOSTILE | st.text(max_size=200))
def test_no_answer_raises_or_earns_outside_0_to_1(answer: str) -> None:
    for value, _ in (
        choice.reward(answer, record(AnswerKind.CHOICE, "B")),
        number.reward(answer, record(AnswerKind.NUMBER, -3.0, "m")),
        number.reward(answer, record(AnswerKind.NUMBER, 0.0)),
        number.reward(answer, record(AnswerKind.NUMBER, 5e-324, "m/s")),
        region.box2d(answer, record(AnswerKind.BOX2D, (1.0, 2.0, 3.0, 4.0))),
    ):
        assert 0.0 <= value <= 1.0


@pytest.mark.parametrize(
    "answer",
    [
        " " * 1000,
        "1" + " " * 999,
        "1" * 1000,
        "1," * 500,
        "1 " * 500,
        "1e" * 500,
        "-" * 1000,
        "one" * 333,
        "one " * 250,
        "is " * 333,
        "=" * 1000,
        "\\boxed{" * 140,
        "option " * 140,
        "B) " * 333,
        "(" * 1000,
        "1/" * 500,
    ],
)
def test_the_longest_answers_that_are_read_take_milliseconds(answer: str) -> None:
    start = time.process_time()
    for _ in range(10):
        choice.reward(answer, record(AnswerKind.CHOICE, "B"))
        number.reward(answer, record(AnswerKind.NUMBER, 3.0, "m"))
    # Measured: at most 0.1 s for ten; a parser with backtracking takes minutes.
    assert time.process_time() - start < 3.0


@pytest.mark.parametrize(
    ("tokens", "finish", "penalty"),
    [
        (60, FinishReason.STOP, 0.0),
        (80, FinishReason.STOP, 0.0),
        (85, FinishReason.STOP, -0.25),
        (100, FinishReason.STOP, -1.0),
        (100, FinishReason.LENGTH, -1.0),
        (50, FinishReason.LENGTH, -1.0),
    ],
)
def test_overlong_falls_over_the_last_20_of_100_tokens(
    tokens: int, finish: FinishReason, penalty: float
) -> None:
    completion = Completion(
        text="",
        token_ids=np.zeros(tokens, dtype=np.int32),
        logprobs=np.zeros(tokens, dtype=np.float32),
        finish_reason=finish,
        weight_versions=(),
    )
    assert overlong(completion, max_tokens=100, buffer=20) == pytest.approx(penalty)
