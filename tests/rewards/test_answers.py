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
from videostr import answers
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
    "Not B", "B, I think", "B) left of it", "left of it", "right", "BB", "-", "B\nC", r"\boxed{B} \boxed{C}", "ſ",
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
    assert answers.chosen_letter("A car", options) == "C"
    assert answers.chosen_letter("C) A car", options) == "C"


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
    assert answers.chosen_letter(answer, options) == letter


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
    assert answers.mean_relative_accuracy(said, truth) == value


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
    assert answers.stated_number(answer, unit) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(
    ("answer", "unit"),
    [
        ("", ""),
        ("many", ""),
        ("5 or 6", ""),
        ("5-6", ""),
        ("1,2", ""),
        ("1/2", ""),
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
    assert answers.stated_number(answer, unit) is None
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


# ------------------------------------------------------------------------------------------------- markup

MARKUP = [
    "{}", "**{}**", "*{}*", "__{}__", "_{}_", "***{}***", "~~{}~~", "`{}`", "```\n{}\n```", "```text\n{}\n```", "# {}", "### {}",
    "- {}", "* {}", "• {}", "> {}", "${}$", "$${}$$", r"\({}\)", r"\[{}\]", r"\boxed{{{}}}", r"$\boxed{{{}}}$",
    r"\boxed{{\text{{{}}}}}", r"\boxed{{\textbf{{{}}}}}", r"\text{{{}}}", r"\mathrm{{{}}}", r"\mathbf{{{}}}", r"\fbox{{{}}}",
    "({})", "[{}]", "【{}】", "（{}）", "〈{}〉", "(({}))", '"{}"', "'{}'", "“{}”", "„{}“", "‘{}’", "«{}»", "「{}」", "『{}』",
    "<b>{}</b>", "<strong>{}</strong>", '<span class="x">{}</span>', "&quot;{}&quot;", "&nbsp;{}", "{}.", "{},", "{};", "{}!",
    "{}?", "{}。", "{}\u200b", "\ufeff{}", "\u00a0{}\u3000", "  {}\n", r"**$\boxed{{\text{{{}}}}}$**", "**({})**.",
    r"\bm{{{}}}", r"\boldsymbol{{{}}}", r"\mbox{{{}}}", r"\Large {}", r"\textcolor{{red}}{{{}}}", r"\color{{red}}{}",
    r"\\boxed{{{}}}", r"\begin{{equation}}{}\end{{equation}}", "{}\\\\",
]  # fmt: skip


@pytest.mark.parametrize("markup", MARKUP)
def test_letters_texts_and_numbers_are_read_in_the_same_markup(markup: str) -> None:
    options = ("front-left", "back-right", "back-left")
    assert answers.chosen_letter(markup.format("B"), options) == "B"
    assert answers.chosen_letter(markup.format("b"), options) == "B"
    assert answers.chosen_letter(markup.format("back-right"), options) == "B"
    assert answers.chosen_letter(markup.format("B. back-right"), options) == "B"
    assert answers.chosen_letter(markup.format("B or C"), options) is None
    assert answers.chosen_letter(markup.format("B. back-left"), options) is None
    assert answers.chosen_letter(markup.format("not B"), options) is None
    assert answers.stated_number(markup.format("5"), "m") == 5.0
    assert answers.stated_number(markup.format("-5"), "m") == -5.0
    assert answers.stated_number(markup.format("2.5 m"), "cm") == pytest.approx(250.0)
    assert answers.stated_number(markup.format("5 or 6"), "m") is None


@pytest.mark.parametrize(
    "answer",
    [
        "Ｂ", "𝐁", "Ⓑ", "（Ｂ）", "<B>", "**B.** back-right", "B - back-right", "B – back-right", "B back-right",
        "B\nback-right", "**Option B**", "Option **B**", "B: back-right",
    ],
)  # fmt: skip
def test_other_forms_of_a_letter(answer: str) -> None:
    assert answers.chosen_letter(answer, ("front-left", "back-right", "back-left")) == "B"


@pytest.mark.parametrize(
    "answer",
    [
        "**B** or **C**", "**A** **B**", r"\boxed{B}\boxed{C}", "B front-left", "B, front-left", "B-C", "(B)(C)", "B / C",
        "**not** B", "The answer is **B**", "B is right", "BC", "",
    ],
)  # fmt: skip
def test_markup_makes_no_prose_right(answer: str) -> None:
    assert answers.chosen_letter(answer, ("front-left", "back-right", "back-left")) is None


@pytest.mark.parametrize(
    ("answer", "options", "letter"),
    [
        ("C", ("cat", "dog", "all of the above", ""), "C"),  # an empty option spoils none
        ("D", ("cat", "dog", "all of the above", ""), "D"),
        ("", ("cat", ""), None),
        ("B", ("B", "A", "C"), "B"),  # a lone letter is the letter, whatever the texts are
        ("B. A", ("B", "A", "C"), "B"),
        ("A. A", ("B", "A", "C"), None),
        ("x", ("x", "x"), None),
        ("B. x", ("x", "x"), "B"),
        ("A car", ("car", "bus", "A car"), "C"),
        ("A) car", ("car", "bus", "A car"), "A"),
        ("**left**", ("*left*", "`right`"), "A"),  # options with markup
    ],
)
def test_odd_options(answer: str, options: tuple[str, ...], letter: str | None) -> None:
    assert answers.chosen_letter(answer, options) == letter


@pytest.mark.parametrize(
    ("answer", "unit", "value"),
    [
        ("twenty-one", "", 21.0),
        ("it is thirty five", "", 35.0),
        ("one hundred", "", 100.0),
        ("one hundred and five", "", 105.0),
        ("two thousand three hundred and forty-five", "", 2345.0),
        ("three million", "", 3e6),
        ("a hundred", "", 100.0),
        ("a dozen", "", 12.0),
        ("two dozen eggs", "", 24.0),
        ("minus five", "", -5.0),
        ("negative 3.5", "", -3.5),
        *((f"{sign}5", "", -5.0) for sign in "-\u2212\u2010\u2011\u2012\u2013\u2014\ufe63\uff0d\u208b"),
        ("-twenty", "", -20.0),
        ("\u2212twenty-one", "", -21.0),
        ("１２．５", "", 12.5),
        ("1\u2009234", "", 1234.0),
        ("1\u202f234\u202f567", "", 1234567.0),
        ("1'234'567.5", "", 1234567.5),
        ("1’234", "", 1234.0),
        (r"1{,}234", "", 1234.0),
        (r"1\,234", "", 1234.0),
        ("2 × 10^3", "", 2000.0),
        (r"$2 \times 10^{3}$", "", 2000.0),
        (r"$5\,\mathrm{m}$", "m", 5.0),
        (r"$90^{\circ}$", "deg", 90.0),
        ("12 m²", "m2", 12.0),
        ("12 square meters", "m2", 12.0),
        ("12 metres squared", "m2", 12.0),
        ("120000 cm^2", "m2", 12.0),
        (r"50\%", "%", 50.0),
        ("5 metres", "m", 5.0),
        ("500 centimetres", "m", 5.0),
        ("5 cars", "", 5.0),  # what is counted
        ("5 away", "m", 5.0),  # prose
        ("5 in total", "m", 5.0),
        ("5 parsecs", "parsec", 5.0),
    ],
)
def test_numbers_in_words_signs_and_units(answer: str, unit: str, value: float) -> None:
    assert answers.stated_number(answer, unit) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(
    ("answer", "unit"),
    [
        ("5 parsec", "m"), ("5 light years", "m"), ("5 µm", "m"), ("5 米", "m"), ("5 in", "m"), ('5"', "m"), ("5'", "m"),
        ("5'11\"", "m"), ("5 foo/s", "m/s"), ("5/m", "m"), ("5 m^3", "m2"), ("5 m4", "m"), ("5 €", "m"), ("5 parsec", "s"),
        ("3–5", ""), ("3 to 5", ""), ("5 ± 1", ""), ("½", ""), ("half", ""), ("two and a half", ""), ("three quarters", ""),
        ("1,5", ""), ("1,23", ""), ("12,34,567", ""), ("1 234", ""), ("10^3", ""), ("10⁵", ""), ("5²", ""), ("2 million", ""),
        ("5½", ""), (r"3\frac{1}{2}", ""), (r"2\pi", ""), (r"2\sqrt{5}", ""),
        ("3 hundred", ""), ("dozens", ""), ("one two", ""), ("five or six", ""), (r"\frac{1}{2}", ""), (r"\sqrt{2}", ""),
        ("3*4", ""), ("3**4", ""), ("0x10", ""), ("1e5.3", ""), ("٣", ""),
    ],
)  # fmt: skip
def test_answers_that_are_no_number_in_the_unit(answer: str, unit: str) -> None:
    assert answers.stated_number(answer, unit) is None


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


PIECES = [
    " ", "1", "1,", "111,", "111,111_", "1'", "1.", "1 ", "1e", "-", "- ", "*", "* ", "**1", "_", "a_", "`", "```a", "~", "'",
    "1'", '"', "<", "<a", "&", "&amp;", "\\", "\\boxed{", "\\text", "\\,", "1\\,", "1{,}", "$", "{", "^", "1^", "×10^", "1 ×10^1",
    "one", "one ", "one-", "one hundred and ", "a ", "minus ", "is ", "=", "per ", " per", " / ", "1/", "5 m", "m", "a squared",
    "sq ", "cubic m ", "cu", "(", "B) ", "B, ", "option ", "[B]", "# ", "> ", "\u2009", "1\u2009", "\u200b", "é", "5é", "Ｂ",
    "\n- ", "twenty-", "thousand ", "half", "5/a", "5a^2",
]  # fmt: skip


@pytest.mark.parametrize("end", ["", "x"])
@pytest.mark.parametrize("piece", PIECES)
def test_the_longest_answers_are_read_in_linear_time(piece: str, end: str) -> None:
    def seconds(length: int) -> float:
        answer = piece * (length // len(piece)) + end
        start = time.process_time()
        choice.reward(answer, record(AnswerKind.CHOICE, "B"))
        number.reward(answer, record(AnswerKind.NUMBER, 3.0, "m"))
        return time.process_time() - start

    # 16 times the text: 16 times the time, 256 times with backtracking. The floor is the clock's; each is the best of two.
    short, long = (min(seconds(length) for _ in range(2)) for length in (2048, 32768))
    assert long < 80 * max(short, 1e-3)


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
