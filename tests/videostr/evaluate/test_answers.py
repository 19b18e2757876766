"""Answers survive whatever happens to the process that asked."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from videostr.errors import RunFolderError
from videostr.evaluate.answers import Answer, Answers, key_of


def answer(text: str) -> Answer:
    return Answer(text=text, finish_reason="STOP", prompt_tokens=7, completion_tokens=len(text))


def test_an_answer_is_found_by_its_key_and_the_first_one_stays(tmp_path: Path) -> None:
    with Answers(tmp_path / "a" / "answers.sqlite") as answers:
        assert answers.get("k") is None
        answers.put({"k": answer("B")})
        answers.put({"k": answer("C")})
    with Answers(tmp_path / "a" / "answers.sqlite") as answers:
        assert answers.get("k") == answer("B")
        assert len(answers) == 1


def test_what_utf_8_cannot_hold_is_replaced(tmp_path: Path) -> None:
    with Answers(tmp_path / "answers.sqlite") as answers:
        answers.put({"k": answer("B \ud800 \ud83d\ude00")})
        assert answers.get("k") == Answer(
            text="B \ufffd \U0001f600", finish_reason="STOP", prompt_tokens=7, completion_tokens=6
        )


def test_a_key_depends_on_every_part_and_on_nothing_else() -> None:
    parts = {"model": "m", "prompt": "p", "seed": 0}
    assert key_of(**parts) == key_of(**dict(reversed(parts.items())))
    for name, other in (("model", "n"), ("prompt", "q"), ("seed", 1)):
        assert key_of(**{**parts, name: other}) != key_of(**parts)


def fill_until_killed(path: Path) -> None:
    answers = Answers(path)
    for i in range(1_000_000):
        answers.put({f"{i}": answer(f"text {i}")})
        if i == 20:
            os.kill(os.getpid(), signal.SIGKILL)


def test_what_was_put_is_there_after_kill_9(tmp_path: Path) -> None:
    path = tmp_path / "answers.sqlite"
    process = multiprocessing.get_context("spawn").Process(target=fill_until_killed, args=(path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    with Answers(path) as answers:
        assert len(answers) == 21
        assert answers.get("20") == answer("text 20")


def test_another_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "answers.sqlite"
    path.write_text("no database, but longer than a header of one has to be" * 20)
    with pytest.raises(RunFolderError, match=r"answers\.sqlite: holds no answers .* move it away"):
        Answers(path)
