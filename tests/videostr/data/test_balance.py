"""Choices pass in complete sets; a guesser finds nothing in what passed, and would have in what came."""

from __future__ import annotations

import math

import numpy as np
import pytest

from videostr.data import balance
from videostr.data.balance import MAX_WAITING, Balancer
from videostr.data.baseline import choices, complete_sets, numbers
from videostr.data.questions.question import Balance
from videostr.types import Answer, AnswerKind, ClipSpec, Record

SIDES = ("left", "right")


def choice(
    number: int, truth: str, question: str = "Where is the dog?", options: tuple[str, ...] = SIDES
) -> Record:
    return Record(
        id=f"r{number}", source="s", family="side", question=question, options=options,
        answer=Answer(kind=AnswerKind.CHOICE, value="AB"[options.index(truth)]),
        clip=ClipSpec(video=f"{number}.mp4", num_frames=2), labels=(), graph=None,
    )  # fmt: skip


def test_a_set_is_released_when_it_is_complete() -> None:
    balancer: Balancer[Record] = Balancer()
    left, right = Balance("k", "left", SIDES), Balance("k", "right", SIDES)
    a, b, c, d = (choice(i, "left") for i in range(4))
    assert balancer.add(a, left) == []
    assert balancer.add(b, left) == []
    assert balancer.add(c, Balance("other", "right", SIDES)) == []
    assert balancer.add(d, right) == [a, d]
    assert balancer.add(c, None) == [c]
    assert [(key, value, r.id) for key, value, r in balancer.state()] == [
        ("other", "right", "r2"),
        ("k", "left", "r1"),  # asked for last
    ]
    again: Balancer[Record] = Balancer()
    again.restore(balancer.state())
    assert again.add(d, right) == [b, d]


def test_what_comes_too_often_is_left_out_and_counted() -> None:
    balancer: Balancer[Record] = Balancer()
    for i in range(MAX_WAITING + 5):
        balancer.add(choice(i, "left"), Balance("k", "left", SIDES))
    assert balancer.left_out == 5
    assert len(balancer.state()) == MAX_WAITING


def test_the_kind_asked_least_recently_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(balance, "MAX_WAITING_IN_ALL", 3)
    balancer: Balancer[int] = Balancer()
    for number, key in enumerate(("a", "b", "a", "c")):
        assert balancer.add(number, Balance(key, "left", SIDES)) == []
    assert balancer.state() == [("a", "left", 0), ("a", "left", 2), ("c", "left", 3)]
    assert (balancer.left_out, balancer.held) == (1, 3)
    assert balancer.add(4, Balance("c", "right", SIDES)) == [3, 4]
    assert (list(balancer.waiting), balancer.held) == (["a"], 2)  # a kind that nothing waits for is forgotten
    again: Balancer[int] = Balancer()
    again.restore(balancer.state())
    assert (again.waiting, again.held) == (balancer.waiting, balancer.held)


def world(count: int, rng: np.random.Generator) -> list[tuple[Record, Balance]]:
    """Dogs keep to the left in 8 of 10 cases, cats to the right; each of 40 names is asked about a few times."""
    found = []
    for i in range(count):
        kind = ("dog", "cat")[int(rng.integers(2))]
        truth = SIDES[int((rng.random() < 0.8) == (kind == "cat"))]
        name = f"{kind} {int(rng.integers(40))}"
        options = SIDES if rng.integers(2) else SIDES[::-1]
        record = choice(i, truth, f"Where is the {name}?", options)
        found.append((record, Balance(name, truth, SIDES)))
    return found


def test_a_guesser_beats_chance_before_and_not_after() -> None:
    came = world(4000, np.random.default_rng(0))
    balancer: Balancer[Record] = Balancer()
    passed = [record for asked in came for record in balancer.add(*asked)]
    (before,) = choices([record] for record, _ in came)
    (after,) = choices(complete_sets(passed))
    assert before.score > 0.75
    assert len(passed) > 1000
    assert abs(after.score - 0.5) < 0.04  # two standard errors
    assert after.chance == 0.5


def test_sets_stand_together() -> None:
    options = ("a", "b", "c")
    records = [choice(i, "a", "?", options) for i in range(7)]
    records[3:3] = [choice(8, "a", "?", ("a", "b")), choice(9, "a", "?", ("a", "b"))]
    found = [[record.id for record in members] for members in complete_sets(records)]
    assert [len(members) for members in found] == [3, 2, 3, 1]


def test_the_guesser_sees_which_magnitude_is_usual() -> None:
    rng = np.random.default_rng(1)
    records = []
    for i in range(600):
        truth = float(rng.lognormal(1.0, 0.2))
        ladder = [truth * 1.5 ** (k - int(rng.integers(4))) for k in range(4)]
        options = tuple(
            f"{v:.2f} m" for v in sorted([truth, *[v for v in ladder if abs(v - truth) > 1e-9]][:4])
        )
        answer = Answer(kind=AnswerKind.CHOICE, value="ABCD"[options.index(f"{truth:.2f} m")])
        records.append(
            Record(
                id=str(i),
                source="s",
                family="distance",
                question="How far?",
                options=options,
                answer=answer,
                clip=ClipSpec(video=f"{i}.mp4", num_frames=2),
                labels=(),
                graph=None,
            )
        )
    (found,) = choices([record] for record in records)
    assert found.score > 0.45


def test_the_best_constant() -> None:
    answers = [1.0, 1.0, 1.0, 2.0]
    records = [
        Record(
            id=str(i), source="s", family="count", question="How many?", options=(),
            answer=Answer(kind=AnswerKind.NUMBER, value=value), clip=ClipSpec(video="v", num_frames=2), labels=(), graph=None,
        )
        for i, value in enumerate(answers)
    ]  # fmt: skip
    (found,) = numbers(records)  # 1.0 is right three times, and half of the 2.0: one bound of ten
    assert (found.family, found.questions, found.score, found.chance) == (
        "count",
        4,
        0.775,
        None,
    )  # 1.0 is half of the 2.0: one bound of ten
    assert math.isnan(found.error)  # one video says nothing about others


def test_the_error_is_one_of_videos() -> None:
    def scored(videos: int) -> float:
        values = [float(i % videos < videos / 2) for i in range(400)]  # the same in all of a video
        records = [
            Record(
                id=str(i), source="s", family="f", question="?", options=(),
                answer=Answer(kind=AnswerKind.NUMBER, value=value),
                clip=ClipSpec(video=str(i % videos), num_frames=2), labels=(), graph=None,
            )
            for i, value in enumerate(values)
        ]  # fmt: skip
        (found,) = numbers(records)
        return found.error

    assert scored(400) == pytest.approx(0.5 / 400**0.5, rel=0.01)
    assert scored(16) == pytest.approx(0.5 / 15**0.5, rel=0.01)
