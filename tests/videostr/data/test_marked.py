"""Questions about marked objects: true, named by their marks alone, and such that the marks' places do not tell the answer."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.videostr.data.hand import scene, track
from videostr.data.__main__ import main
from videostr.data.balance import Balancer
from videostr.data.baseline import choices, complete_sets
from videostr.data.build import Settings, build
from videostr.data.build.worker import scene_records
from videostr.data.clip_view import ClipView
from videostr.data.places import balance_of, option_role, traits
from videostr.data.questions import FAMILIES, ask
from videostr.data.questions.marked import INTRODUCTIONS, LATE, MARKED, MOST_MARKED, ask_marked, mark_objects
from videostr.data.questions.question import PreparedQuestion
from videostr.data.records import read_records
from videostr.data.scene import Scene
from videostr.marks import STYLES, mark_problem, name_of_mark
from videostr.query import entailed
from videostr.reasoning import reasoning
from videostr.types import Answer, AnswerKind, ClipSpec, Mark, Query, Record

FRAMES = 8
PROJECTION = np.array([[500.0, 0.0, 500.0, 0.0], [0.0, 500.0, 250.0, 0.0], [0.0, 0.0, 1.0, 0.0]])
"""Of `box`."""


def box(x: float, z: float) -> list[float]:
    """Of a car 2 m wide and 1.5 m high whose middle is 1 m below the camera; focal length 500 px, frame 1000 x 500."""
    edges = [500 + 500 * (x - 1) / z, 250 + 125 / z, 500 + 500 * (x + 1) / z, 250 + 875 / z]
    return np.clip(edges, 0, (1000, 500, 1000, 500)).tolist()


def cars(seed: int, count: int = 7, frames: int = FRAMES) -> Scene:
    """A street of cars alone, some of which move or come into view late; the camera stands still."""
    rng = np.random.default_rng(seed)
    tracks = []
    for number in range(count):
        x, z = rng.uniform(-8, 8), rng.uniform(18, 40)
        vx, vz = rng.choice([0.0, 0.0, -2.0, 2.5]), rng.choice([0.0, -1.5, 2.0])
        first = int(rng.choice([0, 0, 2, 4]))
        shown = list(range(first, frames))
        turn = rng.choice([0.0, 1.5])
        places = [(x + vx * i, 1.0, z + vz * i + turn * max(0, i - 3)) for i in shown]
        tracks.append(
            track(str(number), "car", places, shown, boxes=np.array([box(px, pz) for px, _, pz in places]))
        )
    return replace(scene(tracks, frames=frames, drive=0.0), projection=PROJECTION)


def drafts(
    given: Scene, seed: int, style: str = "numbers", families: tuple[str, ...] = ()
) -> Iterator[tuple[ClipView, PreparedQuestion, tuple[Mark, ...]]]:
    view = ClipView(given, 0, tuple(range(len(given.frames))))
    for question, marks in ask_marked(view, np.random.default_rng(seed), style, 12, families):
        yield view, question, marks


def test_objects_of_one_label_can_be_asked_about_by_their_marks() -> None:
    found: Counter[str] = Counter()
    for seed in range(12):
        given = cars(seed)
        view = ClipView(given, 0, tuple(range(FRAMES)))
        asked = {question.query.family for question in ask(view, np.random.default_rng(seed), 40)}
        assert not asked & {"direction_object", "distance_relative", "order"}
        found.update(question.query.family for _, question, _ in drafts(given, seed))
    assert set(found) == set(MARKED)


@pytest.mark.parametrize("style", list(STYLES))
def test_the_words_name_marks_and_the_marks_lie_on_their_objects(style: str) -> None:
    for view, question, marks in drafts(cars(3), 3, style):
        assert question.text.startswith(INTRODUCTIONS[style])
        by_object = {mark.object: mark for mark in marks}
        assert 2 <= len(marks) <= MOST_MARKED
        for name, said in zip(question.query.objects, question.query.names, strict=True):
            assert said == name_of_mark(by_object[name].text)
            assert said in " ".join((question.text, *question.options)) + "."
        assert "car" not in question.text
        assert "box" not in question.text
        for mark in marks:
            ((t, *place),) = mark.boxes
            n, f = view.ids.index(mark.object), view.times.index(t)
            assert place == view.boxes[n, f].tolist()
            assert view.clear[n, f]


def test_the_graph_entails_every_answer_and_reasons_to_it() -> None:
    seen: Counter[tuple[str, str, str]] = Counter()
    for seed in range(25):
        for record, _ in scene_records(Settings(source="hand", root="", questions=1, marked=16), cars(seed)):
            if not record.marks:
                continue
            assert record.graph is not None
            assert record.query is not None
            assert entailed(record.query, record.graph) == record.answer
            assert mark_problem(record) == ""
            said = record.options[ord(str(record.answer.value)) - ord("A")]
            assert reasoning(record, record.graph).endswith(f" So {said}.")
            seen[record.family, record.query.axis, str(len(record.options))] += 1
    assert {family for family, _, _ in seen} >= {"direction_object", "approach", "order"}


def truth(view: ClipView, question: PreparedQuestion) -> str:
    """Work an answer out from the words of the question and the tracks."""
    text = question.text.partition(". ")[2]
    times = [float(t) for t in re.findall(r"([\d.]+) s\b", text)]
    at = {
        name: view.ids.index(each)
        for name, each in zip(question.query.names, question.query.objects, strict=True)
    }
    mentioned = [at[name] for name in re.findall(r"object \d", text)]
    place = lambda n, t: view.positions[n, view.times.index(t)]  # noqa: E731
    axis = question.query.axis
    if axis == "image":
        first, last = (min(times), max(times))
        gap = place(mentioned[0], last)[0] / place(mentioned[0], last)[2]
        gap -= place(mentioned[0], first)[0] / place(mentioned[0], first)[2]
        return "to the right" if gap > 0 else "to the left"
    if axis == "object":
        start, end = min(times), max(times)
        a, b = (
            (mentioned[0], mentioned[1])
            if "does" in text.partition(",")[2][:6]
            else (mentioned[1], mentioned[0])
        )
        step = place(a, end) - place(a, start)
        return "towards it" if step @ (place(b, start) - place(a, start)) > 0 else "away from it"
    step = place(mentioned[0], max(times)) - place(mentioned[0], min(times))
    if abs(step[0]) > abs(step[2]):
        return "to the right" if step[0] > 0 else "to the left"
    return "away from the camera" if step[2] > 0 else "towards the camera"


def test_motion_directions_are_those_of_the_words() -> None:
    seen: Counter[str] = Counter()
    for seed in range(20):
        for view, question, _ in drafts(cars(seed), seed, families=("motion_direction",)):
            if question.query.axis == "turn":
                continue
            said = question.options[ord(str(question.answer.value)) - ord("A")]
            assert said == truth(view, question), question.text
            seen[said] += 1
    assert len(seen) == 6
    assert min(seen.values()) >= 3


def test_what_is_ahead_and_what_comes_closer() -> None:
    """Car 1 drives away from the camera at 2 m a frame; car 2 stands ahead of it, car 3 behind."""
    places = [[(0.0, 1.0, 20.0 + 2 * i) for i in range(4)], [(3.0, 1.0, 40.0)] * 4, [(-3.0, 1.0, 14.0)] * 4]
    tracks = [
        track(str(n), "car", each, boxes=np.array([box(x, z) for x, _, z in each]))
        for n, each in enumerate(places)
    ]
    seen = set()
    street = replace(scene(tracks, frames=4, drive=0.0), projection=PROJECTION)
    for question in (question for seed in range(4) for _, question, _ in drafts(street, seed)):
        objects, family = question.query.objects, question.query.family
        said = question.options[ord(str(question.answer.value)) - ord("A")]
        if family == "ahead":
            assert objects[0] == "car.1"
            assert said == {"car.2": "in front of it", "car.3": "behind it"}[objects[1]]
            seen.add(said)
        if family == "approach":
            assert "car.1" in objects
            assert said == ("they come closer" if "car.2" in objects else "they move apart")
            seen.add(said)
    assert len(seen) == 4


def test_marks_of_order_are_drawn_when_all_have_come_into_view() -> None:
    asked = 0
    for seed in range(12):
        for view, question, marks in drafts(cars(seed), seed, families=tuple(LATE)):
            asked += 1
            firsts = [int((view.visibility[view.ids.index(mark.object)] > 0).argmax()) for mark in marks]
            assert min(view.times.index(mark.boxes[0][0]) for mark in marks) >= max(firsts)
            assert question.query.family == "order"
    assert asked > 30


def test_marks_and_texts_are_dealt_at_random() -> None:
    view = ClipView(cars(5), 0, tuple(range(FRAMES)))
    dealt: Counter[tuple[str, str]] = Counter()
    frames: Counter[float] = Counter()
    for seed in range(300):
        for mark in mark_objects(view, np.random.default_rng(seed), "numbers").marks:
            dealt[mark.object, mark.text] += 1
            frames[mark.boxes[0][0]] += 1
    assert max(dealt.values()) < 2.5 * 300 / MOST_MARKED
    assert len(dealt) == 49
    assert set(frames) == set(view.times)


# --------------------------------------------------------------------------------------------- balance of places


def mark_at(name: str, text: str, t: float, *place: float) -> Mark:
    x1, y1, x2, y2 = place
    return Mark(object=name, text=text, boxes=((t, x1, y1, x2, y2),))


def test_traits_are_of_the_objects_in_the_order_of_the_question() -> None:
    marks = [
        mark_at("car.1", "2", 0.0, 100, 400, 200, 500),
        mark_at("car.2", "1", 1.0, 600, 400, 800, 600),
        mark_at("car.3", "3", 1.0, 450, 400, 550, 420),
    ]
    pair = Query(family="approach", objects=("car.1", "car.2"))
    # The first is 550 px to the left, half as high (log 0.5 = -0.69) and marked earlier.
    assert traits(pair, marks) == ["side 0", "size 0", "time -1"]
    back = Query(family="approach", objects=("car.2", "car.1"))
    assert traits(back, marks) == ["side 3", "size 3", "time 1"]
    assert traits(Query(family="speed_change", objects=("car.3",)), marks) == ["column 2", "height 0"]
    # On level ground (x - 500) / h and 1 / h: (-3.5, 0.01), (1, 0.005), (0, 0.05): from the first towards the second, which is
    # to the right, the third lies ahead on the left.
    stance = Query(family="direction_object", objects=("car.1", "car.2", "car.3"), options=("left", "right"))
    assert traits(stance, marks) == ["from left"]
    near = Query(family="distance_relative", objects=("car.1", "car.2", "car.3"), axis="nearest")
    assert traits(near, marks) == ["ground 2", "image 2"]


def test_options_are_told_by_their_roles_not_by_their_numbers() -> None:
    query = Query(
        family="order", objects=("car.2", "car.1"), options=(("car.1", "car.2"), ("car.2", "car.1"))
    )
    assert [option_role(query, option) for option in query.options] == ["1,0", "0,1"]
    assert option_role(query, "car.1") == "1"
    assert option_role(query, "left") == "left"
    marks = [mark_at("car.1", "1", 0.0, 1, 1, 9, 9), mark_at("car.2", "2", 0.0, 1, 1, 9, 9)]
    balance = balance_of(query, Answer(kind=AnswerKind.CHOICE, value="A"), marks)
    assert (balance.value, balance.values) == ("1,0", ("0,1", "1,0"))


def test_balancing_takes_most_from_a_guesser_of_places() -> None:
    """On streets where what is lower in the image is nearer; each street is a video of its own."""
    before: list[Record] = []
    balancer: Balancer[Record] = Balancer()
    after: list[Record] = []
    for seed in range(160):
        for _, question, marks in drafts(cars(seed), seed, families=("direction_camera",)):
            before.append(_record(f"{seed}", question, marks))
            after += balancer.add(before[-1], question.balance)
    (guessed,) = choices([record] for record in before)
    assert guessed.score > 0.8  # the places tell, as long as nothing is done about it
    (balanced,) = choices(complete_sets(after))
    assert balanced.questions > 100
    assert balanced.score - 0.5 < 0.35 * (
        guessed.score - 0.5
    )  # what is left lies within the bins of the traits


def _record(video: str, question: PreparedQuestion, marks: tuple[Mark, ...]) -> Record:
    return Record(
        id="x", source="hand", family=question.query.family, question=question.text, options=question.options,
        answer=question.answer, clip=ClipSpec(video=video, num_frames=4, marks=marks), labels=(), graph=None,
        query=question.query,
    )  # fmt: skip


# --------------------------------------------------------------------------------------------------------- build


def rows(folder: Path) -> list[Record]:
    return [row for row in read_records(folder) if isinstance(row, Record)]


def test_a_build_has_sets_of_marked_questions_and_the_others_stay(
    street: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = {"source": "kitti", "root": str(street), "clips": 12, "questions": 6, "num_frames": 4}
    build(tmp_path / "plain", [Settings(**values, marked=0)], workers=1)  # type: ignore[arg-type]
    build(tmp_path / "marked", [Settings(**values, marked=32, marks="letters")], workers=1)  # type: ignore[arg-type]
    plain, both = rows(tmp_path / "plain"), rows(tmp_path / "marked")
    assert not any(record.marks for record in plain)
    unmarked = [replace(record, origin="") for record in both if not record.marks]
    assert [record.id for record in unmarked] == [record.id for record in plain]
    assert unmarked == [replace(record, origin="") for record in plain]
    marked = [record for record in both if record.marks]
    assert len(marked) > 100
    assert all(record.graph is not None for record in marked)
    assert {mark.text for record in marked for mark in record.marks} <= set(STYLES["letters"])
    for found in complete_sets(marked):  # each answer once, by role
        roles = {
            option_role(r.query, r.query.options[ord(str(r.answer.value)) - ord("A")])
            for r in found
            if r.query
        }
        assert len(roles) == len(found) == len(found[0].options)
    assert main(["check", str(tmp_path / "marked"), "--videos", "0"]) == 0
    assert main(["stats", str(tmp_path / "marked")]) == 0
    capsys.readouterr()
    card = (tmp_path / "marked" / "README.md").read_text(encoding="utf-8")
    assert re.search(r"[\d,]+ drafts of questions over marked objects were left out", card)


def test_families_of_marked_objects_can_be_asked_alone(street: Path, tmp_path: Path) -> None:
    settings = Settings(
        source="kitti", root=str(street), clips=12, marked=16, num_frames=4, families=("approach", "ahead")
    )
    build(tmp_path / "set", [settings], workers=1)
    assert {record.family for record in rows(tmp_path / "set")} <= {"approach", "ahead"}
    assert set(MARKED) - set(FAMILIES) == {"motion_direction", "ahead", "approach", "speed_change"}
