"""V-STaR: items in the true form -> five questions each, prompts, spans, boxes, figures; every rule of the form broken once."""

from __future__ import annotations

import hashlib
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from videostr.errors import DataError
from videostr.evaluate import v_star
from videostr.evaluate.benchmark import Question
from videostr.evaluate.v_star import LEXICAL, Track, VStar
from videostr.evaluate.v_star_figures import OVERLAPS, PARTS
from videostr.evaluate.v_star_reading import boxes, scaled

BENCHMARK = VStar()
TRUE = {"3": (0, 0, 10, 10), "4": (10, 10, 30, 30)}


def item(**changes: Any) -> dict[str, Any]:
    return {
        "vid": "v1",
        "domain": "Sports",
        "fps": 25,
        "width": 640,
        "height": 360,
        "frame_count": 1000,
        "question": "Who runs?",
        "chain": "<think>...<think>",
        "object": "dog",
        "answer": "A brown dog.",
        "temporal_question": "When does the dog run?",
        "timestamps": [2.5, 4.5],
        "spatial_question": "Where is the dog?",
        "spatial_question_2": "Where is the running dog?",
        "bboxes": [
            {"timestamp": int(key), "frame_index": 25 * int(key)}
            | dict(zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
            for key, box in TRUE.items()
        ],
    } | changes


def read(root: Path, *items: Any) -> dict[str, Question]:
    (root / v_star.FILE).write_text(json.dumps(items))
    return {question.id: question for question in BENCHMARK.read(root).questions}


def where(**row: Any) -> Question:
    truth = Track(tuple((key, box) for key, box in TRUE.items()))
    return Question(
        id="0/where", video="v", task="where", text="?", truth=truth, row={"size": (640, 360)} | row
    )


def when() -> Question:
    return Question(id="0/when", video="v", task="when", text="?", truth=(2.0, 6.0))


# -------------------------------------------------------------------------------------------------- reading


def test_an_item_is_five_questions(tmp_path: Path) -> None:
    questions = read(tmp_path, item(), item(vid="v2", domain="Animals"))
    assert list(questions) == [
        f"{n}/{part}" for n in range(2) for part in ("what", "when", "where", "when_2", "where_2")
    ]
    assert [questions[f"0/{part}"].text for part in PARTS] == [
        "Who runs?",
        "When does the dog run?",
        "Where is the dog?",
        "When does the dog run?",
        "Where is the running dog?",
    ]
    assert questions["0/what"].truth == "A brown dog."
    assert questions["0/when_2"].truth == (2.5, 4.5)
    assert questions["0/where_2"].truth.boxes == (("3", (0, 0, 10, 10)), ("4", (10, 10, 30, 30)))
    assert {question.scene for question in questions.values()} == {"Sports", "Animals"}
    digest = hashlib.sha256((tmp_path / v_star.FILE).read_bytes()).hexdigest()
    assert BENCHMARK.read(tmp_path).digest == digest


def test_a_video_is_found_wherever_it_lies(tmp_path: Path) -> None:
    (tmp_path / "clips" / "a").mkdir(parents=True)
    (tmp_path / "clips" / "a" / "v1.mp4").touch()
    questions = read(tmp_path, item(), item(vid="v2"))
    assert questions["0/what"].video == "clips/a/v1.mp4"
    assert questions["1/what"].video == "videos/v2.mp4"


def test_prompts(tmp_path: Path) -> None:
    questions = read(tmp_path, item(timestamps=[2, 4.5]))
    prompt = {part: BENCHMARK.prompt(questions[f"0/{part}"], 1.0, (1, 1)) for part in PARTS}
    assert prompt["what"] == (
        "Answer the question about the video: Who runs? \n (If the answer is a person, you don't need to identify the person.)"
    )
    # 1000 frames at 25 a second. The tuple is the original's, with its line feed written out.
    assert prompt["when"] == (
        "('This video is 40.0 seconds long. Answer the question about the video: When does the dog run? \\n Output the start "
        "and end moment timestamps.',)"
    )
    assert "with a resolution of 640x360 (width x height)" in prompt["when_2"]
    assert "There are 2 bounding boxes" in prompt["when_2"]
    assert "which are:[[0, 0, 10, 10], [10, 10, 30, 30]]. Output" in prompt["when_2"]
    assert "time range [2, 3, 4] provided" in prompt["where"]
    assert 'Example output: {"2": [x1, y1, x2, y2],...}' in prompt["where"]
    assert "Where is the running dog? with" in prompt["where_2"]
    assert "only need to output 2 bbox(es)" in prompt["where_2"]
    for part in PARTS:
        assert BENCHMARK.asks(questions[f"0/{part}"])
    assert "[2, 3, 4]" in BENCHMARK.asks(questions["0/where"])
    assert "[[0, 0, 10, 10], [10, 10, 30, 30]]" in BENCHMARK.asks(questions["0/when_2"])


def test_a_span_without_a_whole_second_is_asked(tmp_path: Path) -> None:
    prompt = BENCHMARK.prompt(read(tmp_path, item(timestamps=[2.2, 2.8]))["0/where"], 1.0, (1, 1))
    assert "time range [] provided" in prompt
    assert '{"3": [x1' in prompt


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vid": "a/b"}, ["`$.vid`"]),
        ({"fps": 0}, ["`$.fps`", "> 0"]),
        ({"frame_count": -1}, ["`$.frame_count`", "> 0"]),
        ({"width": 0}, ["`$.width`"]),
        ({"height": "360"}, ["height"]),
        ({"question": None}, ["question"]),
        ({"timestamps": [4, 2]}, ["timestamps (4, 2)"]),
        ({"timestamps": [4]}, ["timestamps"]),
        ({"bboxes": [{"timestamp": 1}]}, ["bboxes"]),
        (
            {"bboxes": [{"timestamp": 1, "xmin": 5, "ymin": 0, "xmax": 4, "ymax": 1}]},
            ["bboxes[0] (5, 0, 4, 1)", "xmin <= xmax"],
        ),
    ],
)
def test_a_broken_item_is_named(tmp_path: Path, changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, item(), item(**changes))
    for word in ["V_STaR_test.json: item 1", *words]:
        assert word in str(caught.value)


def test_broken_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"V_STaR_test\.json: cannot be read"):
        BENCHMARK.read(tmp_path)
    for content in (b"{}", b"[", b"\xff", b"[" * 100_000):
        (tmp_path / v_star.FILE).write_bytes(content)
        with pytest.raises(DataError, match="no JSON list"):
            BENCHMARK.read(tmp_path)
    with pytest.raises(DataError, match="no items"):
        read(tmp_path)


# ----------------------------------------------------------------------------------------------------- what


@pytest.mark.parametrize(
    ("answer", "rating"),
    [
        ("The brown dog", 3),  # case, full stop and article do not count
        ("a brown dog runs", 2),  # 2 of 3 words and 2 of 2: F1 0.8
        ("it is some kind of dog", 1),  # 1 of 6 and 1 of 2: F1 0.25
        ("someone in the park with one dog on a long red leash", 0),  # 1 of 10 and 1 of 2: F1 0.17
        ("cat", 0),
        ("the", 0),
        ("", 0),
    ],
)
def test_the_lexical_rating(tmp_path: Path, answer: str, rating: int) -> None:
    verdict = BENCHMARK.score(read(tmp_path, item())["0/what"], answer, None)
    assert verdict.scores["rating"] == rating / 3
    assert verdict.scores["correct"] == verdict.scores["strict"] == float(rating >= 2)
    assert verdict.scores["answered"] == float(answer != "")
    assert BENCHMARK.judge_name == LEXICAL


@pytest.mark.parametrize("said", [None, -1, 4])
def test_a_judge_that_gives_no_rating(tmp_path: Path, said: int | None) -> None:
    judged = VStar(lambda question, truth, answer: said)
    verdict = judged.score(read(tmp_path, item())["0/what"], "dog", None)
    assert verdict.scores == {"answered": 1, "correct": 0, "rating": 0, "rated": 0, "strict": 0}
    assert verdict.note == "unnamed judge gave no rating of 0 to 3"


def test_a_judge_is_told_question_truth_and_answer(tmp_path: Path) -> None:
    told: list[tuple[str, str, str]] = []

    class Named:
        name = "the judge's own name"

        def __call__(self, question: str, truth: str, answer: str) -> int:
            told.append((question, truth, answer))
            return 2

    judged = VStar(Named())
    question = read(tmp_path, item())["0/what"]
    assert judged.score(question, "dog", None).scores["correct"] == 1
    judged.score(question, "", None)  # nothing to rate
    assert told == [("Who runs?", "A brown dog.", "dog")]
    assert judged.judge_name == "the judge's own name"


# ----------------------------------------------------------------------------------------------------- when


@pytest.mark.parametrize(
    ("text", "official", "strict"),
    [
        ("2 to 6", 1.0, 1.0),
        ("From 4 to 8 seconds.", 2 / 6, 2 / 6),  # 4..6 of 2..8
        ("8 to 9", 0.0, 0.0),
        ("6 to 2", 0.0, 0.0),  # ends before it starts
        ("2.5s to 6s", 0.0, 3.5 / 4),  # "2" of "2.5s", none of "6s": one number, none
        ("2.0s to 6.0", 1.0, 1.0),  # 2 and 6.0
        ("00:02", 0.0, 0.0),  # two numbers: 0 and 2
        ("00:00:02 - 6", 0.0, 0.0),  # four numbers
        ("-2 to 6", 1.0, 0.0),  # a sign is not part of a number
        ("1. 2 to 6", 0.0, 0.0),
        ("3", 0.0, 0.0),
        ("", 0.0, 0.0),
        ("9" * 400 + " 2", 0.0, 0.0),
    ],
)
def test_spans(text: str, official: float, strict: float) -> None:
    verdict = BENCHMARK.score(when(), text, None)
    assert verdict.scores == pytest.approx({"tiou": official, "strict": strict})


# ---------------------------------------------------------------------------------------------------- where


@pytest.mark.parametrize(
    ("text", "viou", "strict"),
    [
        ('{"3": [0, 0, 10, 10], "4": [10, 10, 30, 30]}', 1.0, 1.0),
        ('```json\n{"3": [0, 0, 10, 10], "4": [10, 10, 30, 30]}\n```', 1.0, 1.0),
        # Half of the first, nothing for the second.
        ('{"3": [0, 0, 10, 5]}', 0.25, 0.25),
        ("{'3': [0, 0, 10, 10]}", 0.5, 0.0),  # single quotes
        ('Boxes: {"3": [0, 0, 10, 10]} as asked', 0.5, 0.0),
        ('{"3": [0, 0, 10, 10]', 0.0, 0.0),  # cut off: no "}" anywhere, so "[0, 0, 10, 10]" is what is read
        ('{"3": [0, 0, 10, 10}', 0.0, 0.0),  # a bracket is missing inside, and is added behind the brace
        ('[{"3": [0, 0, 10, 10], "4": [10, 10, 30, 30}]', 0.0, 0.0),
        ('{{"3": [0, 0, 10, 10]}', 0.0, 0.0),
        ('{"3": [0, 0, 10, 10], "4": {"a": 1}', 0.5, 0.0),  # the brace at the end is added
        ('[{"3": [0, 0, 10, 10]}, {"4": [10, 10, 30, 30]}]', 1.0, 0.0),
        ('[["3", [0, 0, 10, 10]], [4, [10, 10, 30, 30]]]', 1.0, 0.0),
        ('{"3": [[0, 0, 10, 5], [0, 0, 10, 10]]}', 0.5, 0.0),  # the best of two
        ('{"3.0": [0, 0, 10, 10]}', 0.0, 0.0),
        ('{"3": [10, 10, 0, 0]}', 0.0, 0.0),
        ('{"3": [0, 0, NaN, 10]}', 0.0, 0.0),
        ('{"3": [0, 0, 1e999, 10]}', 0.0, 0.0),
        ('{"3": "box"}', 0.0, 0.0),
        ('{"3": {"x1": 0}}', 0.0, 0.0),
        ('{"3": null}', 0.0, 0.0),
        ('["3"]', 0.0, 0.0),
        ("[]", 0.0, 0.0),
        ("none", 0.0, 0.0),
    ],
)
def test_boxes(text: str, viou: float, strict: float) -> None:
    scores = BENCHMARK.score(where(), text, None).scores
    assert (scores["viou"], scores["strict"]) == (viou, strict)
    assert scores["scaled_viou"] == viou
    # Of one whole box of two AP is 0.5 at every overlap, of half a box up to 0.5.
    assert scores["ap@0.5"] == {1.0: 1.0, 0.5: 0.5, 0.25: 0.5, 0.0: 0.0}[viou]
    assert scores["ap@0.7"] == {1.0: 1.0, 0.5: 0.5, 0.25: 0.0, 0.0: 0.0}[viou]


def test_brackets_that_are_missing_are_added() -> None:
    # The last "]" ends the text that is read; "}" is added behind it.
    assert boxes('{"3": [1, 2, 3, 4]') == [1, 2, 3, 4]
    assert boxes('[{"3": [1, 2, 3, 4]') is None
    assert boxes('{"3": [1, 2, 3, 4], {"4": 1}') is None
    assert boxes("[1, [2, 3]") == [1, [2, 3]]
    assert boxes('{"3": {"a": [1]}') == {"3": {"a": [1]}}


def test_boxes_are_scaled_from_the_frames_shown() -> None:
    # Half the size: [0, 0, 5, 5.3] becomes [0, 0, 10, 10] and [5, 5, 15, 15] becomes [10, 10, 30, 30].
    text = '{"3": [0, 0, 5, 5.3], "4": [[5, 5, 15, 15], [0, 0, 1, 1]]}'
    scores = BENCHMARK.score(where(), text, (320, 180)).scores
    # 5 * 5.3 of 100; 5 * 5 of 400 + 100 - 25.
    assert scores["viou"] == pytest.approx((0.265 + 25 / 475) / 2)
    assert (scores["scaled_viou"], scores["scaled_ap@0.9"], scores["strict"]) == (1.0, 1.0, 0.5)
    assert scaled([[1, 2, 3, 4]], (10, 10), (20, 40)) == [[2, 8, 6, 16]]
    assert scaled(["dog", [1, 2, 3, 4]], (10, 10), (20, 40)) == [2, 8, 6, 16]
    assert scaled([math.inf, 0, 0, 0], (10, 10), (20, 40)) == [math.inf, 0, 0, 0]
    assert scaled("no", (10, 10), (20, 40)) == "o"


# ------------------------------------------------------------------------------------------------ robustness

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["3", "4", "x"]), inner, max_size=3)
    ),
    max_leaves=12,
)


@given(st.one_of(st.text(), JSON.map(json.dumps), st.binary().map(lambda data: data.decode("latin-1"))))
def test_any_text_is_scored(text: str) -> None:
    what = Question(id="0/what", video="v", task="what", text="?", truth="a dog")
    for asked in (what, when(), where()):
        for size in (None, (320, 180)):
            scores = BENCHMARK.score(asked, text, size).scores
            assert all(0 <= value <= 1 for value in scores.values())
            assert set(scores) <= set(BENCHMARK.columns)


@pytest.mark.parametrize(
    "part",
    [
        "[",
        "]",
        "{",
        '{"3":',
        "[[0,0,1,1],",
        "```json\n[",
        "]\n```",
        "```json\n[]",
        "```json ",
        " ",
        "\n",
        "1",
        "1.",
        "]  ",
        "''",
    ],
)
def test_a_long_text_takes_no_time(part: str) -> None:
    text = part * (1_000_000 // len(part))
    start = time.monotonic()
    for asked in (when(), where()):
        for said in (text, "{" + text + "}", "[" + text + "]"):
            BENCHMARK.score(asked, said, (320, 180))
    assert time.monotonic() - start < 20


def test_what_is_deep_or_long_is_scored() -> None:
    for text in (
        "[" * 100_000 + "]" * 100_000,
        '{"3":' * 50_000 + "1" + "}" * 50_000,
        '{"3": [' + "9" * 5000 + ", 0, 1, 1]}",
        '{"3": [' + "9" * 4000 + ", 0.5, 1, 1]}",
        '{"3": ' + "[[0, 0, 1, 1], " * 400 + "1" + ", [0], [0]]" * 400 + "}",
    ):
        for size in (None, (320, 180)):
            assert BENCHMARK.score(where(), text, size).scores["viou"] == 0


# --------------------------------------------------------------------------------------------------- figures


def columns(*rows: dict[str, float]) -> dict[str, np.ndarray]:
    return {name: np.array([row.get(name, np.nan) for row in rows]) for name in BENCHMARK.columns}


def what_row(*, answered: bool = True, rating: int = 0) -> dict[str, float]:
    correct = float(rating >= 2)
    return {
        "answered": float(answered),
        "correct": correct,
        "rating": rating / 3,
        "rated": float(answered),
        "strict": correct,
    }


def where_row(viou: float, scaled: float) -> dict[str, float]:
    row = {"viou": viou, "scaled_viou": scaled, "strict": scaled}
    return row | {
        f"{prefix}ap@{o}": float(v >= o) for prefix, v in (("", viou), ("scaled_", scaled)) for o in OVERLAPS
    }


def when_row(tiou: float) -> dict[str, float]:
    return {"tiou": tiou, "strict": tiou}


def test_figures(tmp_path: Path) -> None:
    """Two items; the second has no answer to `what`."""
    questions = list(read(tmp_path, item(), item(domain="Animals", frame_count=5000)).values())
    scores = columns(
        what_row(rating=3),
        when_row(0.6),
        where_row(0.2, 0.4),
        when_row(0.2),
        where_row(0.0, 0.2),
        what_row(answered=False),
        *(when_row(1.0), where_row(1.0, 1.0), when_row(1.0), where_row(1.0, 1.0)),
    )
    figures = {
        name: value[0] for name, value in BENCHMARK.figures(questions, scores, np.ones((1, 10))).items()
    }
    # 1 right, of 2 items; but the mean of the only item that is answered.
    assert figures["what/accuracy"] == 50
    assert (figures["what/rating"], figures["what/rating_where_rated"]) == (3, 3)
    assert figures["chain_1/when/m_tiou"] == pytest.approx(60)
    assert (figures["chain_1/when/r1@0.5"], figures["chain_1/when/r1@0.7"]) == (100, 0)
    assert figures["chain_2/when/m_tiou"] == pytest.approx(20)
    assert figures["chain_1/where/m_viou"] == pytest.approx(20)
    assert (figures["chain_1/where/ap@0.1"], figures["chain_1/where/ap@0.3"]) == (100, 0)
    # A third of 50 + 60 + 20, and of 50 + 20 + 0.
    assert figures["chain_1/am"] == pytest.approx(130 / 3)
    assert figures["m_am"] == pytest.approx((130 / 3 + 70 / 3) / 2)
    # -(ln 0.5 + ln 0.4 + ln 0.8) / 3 = 0.6109.
    assert figures["chain_1/lgm"] == pytest.approx(61.09, abs=0.01)
    # Right in what (3), when (0.6 >= 0.3) and where (0.2 >= 0.1): 1 of 2 items; chain two fails in when and where.
    assert (figures["chain_1/joint/all"], figures["chain_2/joint/what_when"]) == (50, 0)
    # A domain divides by those that are answered: 1 of 1, and none.
    assert figures["domain/Sports/what/accuracy"] == figures["domain/Sports/chain_1/joint/all"] == 100
    assert math.isnan(figures["domain/Animals/what/accuracy"])
    # 1000 and 5000 frames at 25: 40 s and 200 s.
    assert figures["duration/short/what/accuracy"] == 100
    assert math.isnan(figures["duration/long/m_am"])
    # Every item counts, and boxes are scaled.
    assert figures["corrected/what/accuracy"] == 50
    assert figures["corrected/chain_1/when/m_tiou"] == pytest.approx(80)
    assert figures["corrected/chain_1/where/m_viou"] == pytest.approx(70)
    assert figures["corrected/chain_1/where/ap@0.3"] == 100
    assert figures["strict/chain_2/where/m_viou"] == pytest.approx(60)
    assert list(figures)[:2] == ["m_am", "m_lgm"]


def test_figures_of_many_weightings(tmp_path: Path) -> None:
    questions = list(read(tmp_path, item(), item(vid="v2"), item(vid="v3")).values())
    rng = np.random.default_rng(0)
    rows = []
    for rating in (3, 0, 2):
        rows += [what_row(rating=rating), when_row(rng.random()), where_row(rng.random(), rng.random())]
        rows += [when_row(rng.random()), where_row(rng.random(), rng.random())]
    scores = columns(*rows)
    draws = np.array([[1, 1, 1], [2, 0, 1], [0, 3, 0], [0, 0, 0]])
    together = BENCHMARK.figures(questions, scores, np.repeat(draws, 5, axis=1))
    for row, draw in enumerate(draws):
        # The same as of a file in which an item stands as often as it was drawn.
        chosen = [5 * n + part for n, times in enumerate(draw) for _ in range(times) for part in range(5)]
        if chosen:
            index = iter(range(len(chosen)))
            repeated = [
                Question(
                    **{f: getattr(questions[n], f) for f in ("id", "video", "task", "scene", "text", "truth")}
                    | {"row": {**questions[n].row, "index": next(index) // 5}}
                )
                for n in chosen
            ]
            alone = BENCHMARK.figures(
                repeated, {k: v[chosen] for k, v in scores.items()}, np.ones((1, len(chosen)))
            )
            for name, value in together.items():
                assert value[row] == pytest.approx(alone[name][0], nan_ok=True), name
        else:
            assert all(math.isnan(value[row]) for value in together.values())


def test_what_is_perfect_has_a_finite_lgm(tmp_path: Path) -> None:
    questions = list(read(tmp_path, item()).values())
    scores = columns(what_row(rating=3), when_row(1), where_row(1, 1), when_row(1), where_row(1, 1))
    figures = BENCHMARK.figures(questions, scores, np.ones((1, 5)))
    assert figures["m_am"][0] == 100
    assert figures["m_lgm"][0] == pytest.approx(-100 * math.log(1e-9))


def test_questions_of_some_kinds_alone_have_figures(tmp_path: Path) -> None:
    questions = [q for q in read(tmp_path, item()).values() if q.task == "when"]
    figures = BENCHMARK.figures(questions, {"tiou": np.array([0.4])}, np.ones((1, 1)))
    assert figures["chain_1/when/m_tiou"][0] == pytest.approx(40)
    assert math.isnan(figures["m_am"][0])


def test_the_constant_is_everything(tmp_path: Path) -> None:
    questions = read(tmp_path, item(), item(answer="cat"), item(answer="cat"))
    constant = BENCHMARK.constant(list(questions.values()))
    assert constant["0/what"] == "cat"
    # 2.5..4.5 of 0..40; 100 and 400 of 640 * 360 pixels.
    scores = {key: BENCHMARK.score(questions[key], text, None).scores for key, text in constant.items()}
    assert scores["0/when_2"]["tiou"] == pytest.approx(2 / 40)
    assert (
        scores["0/where"]["viou"]
        == scores["0/where"]["strict"]
        == pytest.approx((100 + 400) / 2 / (640 * 360))
    )
    assert BENCHMARK.chance(questions["0/what"]) == {}
