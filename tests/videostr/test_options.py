"""Letters of options: taken off where all carry the right one, and only there."""

from __future__ import annotations

import pytest

from videostr.answers import chosen_letter
from videostr.options import lettered, option_texts
from videostr.prompt import format_question

STYLES = (
    "{}: {}", "({}) {}", "{}.{}", "{}. {}", "{}) {}", "{}){}", "{} - {}", "{} \u2013 {}", "[{}] {}", "Option {}: {}",
    "option ({}) {}", "({}): {}", " {} :  {} ", "{}\u3001{}", "{}\n) {}",
    "**{}.** {}", "**{}**. {}", "*{}* {}", "${}$ {}", "\u3010{}\u3011{}", "__({})__ {}",
)  # fmt: skip


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("lower", [False, True])
def test_letters_in_every_style_are_not_written_twice(style: str, lower: bool) -> None:
    letters = "abc" if lower else "ABC"
    texts = ("3.5 m", "B-side", "left of A: it")
    options = tuple(style.format(letter, text) for letter, text in zip(letters, texts, strict=True))
    assert option_texts(options) == texts
    assert format_question("Which?", options) == "Which?\nA) 3.5 m\nB) B-side\nC) left of A: it"
    for index, (written, text) in enumerate(zip(options, texts, strict=True)):
        for answer in (written.strip(), text, "ABC"[index], f"{'ABC'[index]}) {text}"):
            assert chosen_letter(answer, options) == "ABC"[index], answer


def test_full_width_letters_and_marks_are_letters() -> None:
    assert option_texts(("\uff21\uff1ared", "\uff22\uff1ablue")) == ("red", "blue")
    assert option_texts(("\uff08\uff21\uff09 red", "\uff08\uff22\uff09 blue")) == ("red", "blue")
    assert option_texts(("A\uff0e\uff11", "B\uff0e\uff12")) == ("\uff11", "\uff12")


def test_several_styles_in_one_question_are_letters() -> None:
    assert option_texts(("A: red", "(b) blue", "C. green")) == ("red", "blue", "green")


@pytest.mark.parametrize(
    "options",
    [
        ("A. Lincoln", "G. Washington"),
        ("A. Lincoln", "the president"),
        ("A.5 m", "B.5 m"),  # without letters they would be one option twice
        ("B: red", "A: blue"),
        ("A: red", "A: blue"),
        ("red", "blue"),
        ("A-frame", "B-side"),
        ("A red one", "B blue"),
        ("i) red", "ii) blue"),
        ("1. red", "2. blue"),
        ("A", "B"),
        ("A:", "B:"),
        ("Apple: red", "Berry: blue"),
        ("A: red",),
        (),
    ],
)
def test_other_options_stay_as_they_are(options: tuple[str, ...]) -> None:
    assert option_texts(options) == options
    assert lettered(options) == [f"{'ABCDEF'[i]}) {option}" for i, option in enumerate(options)]
