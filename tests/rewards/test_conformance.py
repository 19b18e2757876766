"""Our formulas next to those of others: every table of docs/conformance.md is computed here and compared with its text.

The formulas of others are written again from their published definitions, as short as they go.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from rewards import choice, number, region
from rewards.map_score import map_score
from videostr import answers, iou
from videostr.trace import parse
from videostr.types import Answer, AnswerKind, ClipSpec, GraphFrame, Node, Record, SceneGraph

PAGE = Path(__file__).parents[2] / "docs" / "conformance.md"
THRESHOLDS = np.linspace(0.5, 0.95, 10)


# ----------------------------------------------------------------------------------------------- of others


def vsi_mra(said: float, truth: float) -> float:
    """VSI-Bench; SpaceR trains with the same."""
    return float(np.mean(abs(said - truth) / truth <= 1 - THRESHOLDS))


def video_r1_mra(said: float, truth: float) -> float:
    """Video-R1's evaluation: single precision, strictly below, |y| in the denominator."""
    said32, truth32 = np.float32(said), np.float32(truth)
    error = abs(said32 - truth32) / (abs(truth32) + np.float32(1e-8))
    thresholds = (0.5 + 0.05 * np.arange(10)).astype(np.float32)
    return float(np.mean(error < np.float32(1) - thresholds))


def video_r1_regression(said: float, truth: float) -> float:
    return 1 - min(1.0, abs(said - truth) / abs(truth))


def video_r1_numerical(said: str, truth: str) -> float:
    """Right to two digits, and a decimal point on both sides or on none."""
    same_form = ("." in said) == ("." in truth)
    return float(same_form and round(float(said), 2) == round(float(truth), 2))


_SPACER_WORDS = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"


def spacer_number(answer: str) -> float:
    """The first number word of a list that holds "a"; without any, the first digits, without sign."""
    words = {word: value for value, word in enumerate(_SPACER_WORDS.split(), start=1)} | {"a": 1, "an": 1}
    for word, value in words.items():
        if re.search(rf"\b{word}\b", answer.lower()):
            return float(value)
    digits = re.search(r"\d+(\.\d+)?", answer)
    return float(digits.group()) if digits else math.nan


def exact_letter(answer: str, truth: str) -> float:
    """SpaceR and Video-R1."""
    return float(answer.strip() == truth)


def first_token(answer: str, truth: str) -> float:
    """VSI-Bench: the text before the first blank, without a full stop at its end."""
    return float(answer.split(" ")[0].rstrip(".").lower() == truth.lower())


Map = dict[str, list[list[float]]]


def spacer_map(text: str, truth: Map) -> float:
    """SpaceR: the literal is read, keys are lowered, keys that are not asked for dropped, coordinates cut to integers."""
    asked = {label.lower() for label in truth}
    said = {
        label.lower(): [[int(x), int(y)] for x, y in places]
        for label, places in ast.literal_eval(text).items()
        if label.lower() in asked
    }
    labels = said.keys() | truth.keys()
    weight = sum(map(len, truth.values()))
    if weight == 0:
        return 1.0
    return (
        sum(len(truth.get(k, [])) * spacer_label(said.get(k, []), truth.get(k, [])) for k in labels) / weight
    )


def spacer_label(said: Sequence[Sequence[float]], truth: Sequence[Sequence[float]]) -> float:
    pairs = sorted((math.dist(a, b), i, j) for i, a in enumerate(said) for j, b in enumerate(truth))
    scored, used_said, used_true = 0.0, set(), set()
    for away, i, j in pairs:
        if i not in used_said and j not in used_true:
            used_said.add(i)
            used_true.add(j)
            scored += max(0.0, 1 - away / math.hypot(10, 10))
    return scored / max(len(said), len(truth), 1)


def pixel_iou(a: Sequence[float], b: Sequence[float]) -> float:
    """PASCAL VOC: corners are pixels that belong to the box."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]) + 1)
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]) + 1)
    areas = [(v[2] - v[0] + 1) * (v[3] - v[1] + 1) for v in (a, b)]
    return width * height / (sum(areas) - width * height)


def vstar_span(a: Sequence[float], b: Sequence[float]) -> float:
    """V-STaR: over the hull of both."""
    return max(0.0, min(a[1], b[1]) - max(a[0], b[0])) / (max(a[1], b[1]) - min(a[0], b[0]))


def vstar_track(said: dict[int, list[region.Box]], truth: dict[int, region.Box]) -> float:
    """V-STaR: the best of the boxes of a time; times that are not asked for are not looked at."""
    best = [
        max((iou.box_iou(box, true) for box in said.get(t, [])), default=0.0) for t, true in truth.items()
    ]
    return sum(best) / len(best)


def spacer_format(text: str) -> float:
    return float(bool(re.fullmatch(r"<think>.*?</think>\s*<answer>.*?</answer>", text, re.DOTALL)))


# -------------------------------------------------------------------------------------------------- this project


def record(
    kind: AnswerKind, value: str | float | tuple[float, ...] | tuple[tuple[float, ...], ...], unit: str = ""
) -> Record:
    return Record(
        id="r",
        source="test",
        family="test",
        question="?",
        options=("left", "right", "A car", "behind"),
        answer=Answer(kind=kind, value=value, unit=unit),
        clip=ClipSpec(video="v.mp4", num_frames=1),
        labels=(),
        graph=None,
    )


def our_choice(answer: str) -> float:
    return choice.reward(answer, record(AnswerKind.CHOICE, "B"))[0]


def our_number(answer: str, truth: float, unit: str = "") -> float:
    return number.reward(answer, record(AnswerKind.NUMBER, truth, unit))[0]


def our_map(text: str, truth: Map) -> float:
    return map_score(grid(ast.literal_eval(text)), grid(truth))


def grid(places: Map) -> SceneGraph:
    nodes = [
        Node(id=f"{label}.{i}", label=label, pos=(float(x), float(y)))
        for label, positions in places.items()
        for i, (x, y) in enumerate(positions)
    ]
    return SceneGraph(unit="grid", frame="floor", frames=(GraphFrame(t=0.0, nodes=tuple(nodes)),))


def our_box(said: Sequence[float], truth: tuple[float, ...]) -> float:
    return region.box2d(str(said), record(AnswerKind.BOX2D, truth))[0]


def our_span(said: Sequence[float], truth: tuple[float, float]) -> float:
    return region.span(str(said), record(AnswerKind.SPAN, truth))[0]


def our_track(said: str, truth: tuple[region.Box, ...]) -> float:
    graph = SceneGraph(
        unit="px", frame="image", frames=tuple(GraphFrame(t=float(t), nodes=()) for t in range(len(truth)))
    )
    asked = Record(
        **{name: getattr(record(AnswerKind.TRACK, truth), name) for name in Record.__slots__}
        | {"graph": graph}
    )
    return region.track(said, asked)[0]


# ------------------------------------------------------------------------------------------------ the tables


@dataclass(frozen=True)
class Row:
    example: str
    other: str
    theirs: Callable[[], float]
    ours: Callable[[], float]
    why: str


def number_rows() -> list[Row]:
    return [
        Row(
            "9.7 for 10", "VSI-Bench", lambda: vsi_mra(9.7, 10), lambda: our_number("9.7", 10), "one formula"
        ),
        Row(
            "4 for 5",
            "VSI-Bench",
            lambda: vsi_mra(4, 5),
            lambda: our_number("4", 5),
            "an error of 0.2 is at most 1 - 0.8, which rounding makes 0.19999999999999996: we allow 1e-9",
        ),
        Row(
            "15 for 10",
            "Video-R1, evaluation",
            lambda: video_r1_mra(15, 10),
            lambda: our_number("15", 10),
            "theirs wants errors below the bound, VSI-Bench and ours at most the bound",
        ),
        Row(
            "5 for -10",
            "VSI-Bench",
            lambda: vsi_mra(5, -10),
            lambda: our_number("5", -10),
            "theirs divides by y: with y < 0 everything is right; ours divides by its absolute value",
        ),
        Row(
            "0 for 0",
            "VSI-Bench",
            lambda: vsi_mra(0, 0),
            lambda: our_number("0", 0),
            "theirs divides by zero; ours asks for 0 to within 1e-9",
        ),
        Row(
            "12 for 10",
            "Video-R1, `regression`",
            lambda: video_r1_regression(12, 10),
            lambda: our_number("12", 10),
            "theirs is linear in the error; steps are what benchmarks report",
        ),
        Row(
            "`12.0` for 12",
            "Video-R1, `numerical`",
            lambda: video_r1_numerical("12.0", "12"),
            lambda: our_number("12.0", 12),
            "theirs wants a decimal point on both sides or on none",
        ),
        Row(
            "`-3` for -3",
            "SpaceR",
            lambda: vsi_mra(spacer_number("-3"), -3),
            lambda: our_number("-3", -3),
            "theirs loses the sign and then divides by y < 0: two errors cancel",
        ),
        Row(
            "`a chair is 3 m away` for 3 m",
            "SpaceR",
            lambda: vsi_mra(spacer_number("a chair is 3 m away"), 3),
            lambda: our_number("a chair is 3 m away", 3, "m"),
            "theirs reads `a` as 1, before any digit",
        ),
        Row(
            "`300 cm` for 3 m",
            "SpaceR",
            lambda: vsi_mra(spacer_number("300 cm"), 3),
            lambda: our_number("300 cm", 3, "m"),
            "theirs knows no units",
        ),
        Row(
            "`1,200` for 1200",
            "SpaceR",
            lambda: vsi_mra(spacer_number("1,200"), 1200),
            lambda: our_number("1,200", 1200),
            "theirs stops at the comma",
        ),
        Row(
            "`3 or 7` for 3",
            "SpaceR",
            lambda: vsi_mra(spacer_number("3 or 7"), 3),
            lambda: our_number("3 or 7", 3),
            "two numbers are not an answer: guessing twice must not score",
        ),
    ]


def choice_rows() -> list[Row]:
    def row(answer: str, other: str, theirs: Callable[[str, str], float], why: str) -> Row:
        return Row(f"`{answer}`", other, lambda: theirs(answer, "B"), lambda: our_choice(answer), why)

    return [
        row("B", "SpaceR, Video-R1", exact_letter, "what the prompt asks for"),
        row("b", "SpaceR, Video-R1", exact_letter, "case says nothing"),
        row("(B)", "SpaceR, Video-R1", exact_letter, "one letter, however it is set"),
        row("(B)", "VSI-Bench", first_token, "one letter, however it is set"),
        row("B. right", "SpaceR, Video-R1", exact_letter, "letter and text agree"),
        row("B. right", "VSI-Bench", first_token, "letter and text agree"),
        row("right", "VSI-Bench", first_token, "the text of the option names it"),
        row(
            "B or C", "VSI-Bench", first_token, "two letters are not an answer: guessing twice must not score"
        ),
        row("B. left", "VSI-Bench", first_token, "`left` is the text of A: letter and text disagree"),
        row(
            "B is what I see",
            "VSI-Bench",
            first_token,
            "prose; `A car` would begin with the letter A as well",
        ),
    ]


def map_rows() -> list[Row]:
    def row(text: str, truth: Map, why: str) -> Row:
        example = f"`{text}` for `{truth}`"
        return Row(example, "SpaceR", lambda: spacer_map(text, truth), lambda: our_map(text, truth), why)

    tie = "{'a': [[1, 0], [5, 0]]}"
    return [
        row("{'a': [[4, 5]]}", {"a": [[1, 1]]}, "one formula"),
        row("{'a': [[1, 1], [9, 9]]}", {"a": [[1, 1]]}, "an extra instance costs"),
        row("{'a': [[1, 1]], 'lamp': [[5, 5]]}", {"a": [[1, 1]]}, "an invented label costs nothing"),
        row("{}", {"a": [[1, 1]]}, ""),
        row("{'a': [[3.9, 3.9]]}", {"a": [[3, 3]]}, "their parser cuts coordinates to integers"),
        row(
            "{'Chair': [[1, 1]]}",
            {"Chair": [[1, 1]]},
            "their parser lowers the stated labels, not the true ones",
        ),
        row("{'a': [[5, 5]]}", {}, "theirs drops labels that are not asked for before it compares"),
        row(tie, {"a": [[0, 0], [2, 0]]}, "a tie"),
        row(tie, {"a": [[2, 0], [0, 0]]}, "ties by the order of writing there, by position here"),
    ]


BOX = (0.0, 0.0, 10.0, 10.0)
CAR: region.Box3d = (0.0, 0.0, 10.0, 4.0, 2.0, 2.0, math.pi / 6)


def shifted(box: region.Box3d, dy: float) -> region.Box3d:
    return (box[0], box[1] + dy, *box[2:])


def turned_back(box: region.Box3d) -> region.Box3d:
    return (*box[:6], -box[6])


def region_rows() -> list[Row]:
    half, beside = (5.0, 0.0, 15.0, 10.0), (10.0, 0.0, 20.0, 10.0)
    away = (50.0, 50.0, 60.0, 60.0)
    return [
        Row(
            "`[5, 0, 15, 10]` for `[0, 0, 10, 10]`",
            "V-STaR",
            lambda: iou.box_iou(half, BOX),
            lambda: our_box(half, BOX),
            "a box from 0 to 10 is 10 wide",
        ),
        Row(
            "`[5, 0, 15, 10]` for `[0, 0, 10, 10]`",
            "PASCAL VOC",
            lambda: pixel_iou(half, BOX),
            lambda: our_box(half, BOX),
            "theirs counts pixels, both ends included; ours measures, and px are 0..1000 of the frame",
        ),
        Row(
            "`[10, 0, 20, 10]` for `[0, 0, 10, 10]`",
            "PASCAL VOC",
            lambda: pixel_iou(beside, BOX),
            lambda: our_box(beside, BOX),
            "boxes that touch share a column of pixels there, nothing here",
        ),
        Row(
            "span `[4, 8]` for `[2, 6]`",
            "V-STaR",
            lambda: vstar_span((4, 8), (2, 6)),
            lambda: our_span([4, 8], (2, 6)),
            "",
        ),
        Row(
            "span `[7, 9]` for `[2, 6]`",
            "V-STaR",
            lambda: vstar_span((7, 9), (2, 6)),
            lambda: our_span([7, 9], (2, 6)),
            "hull and union differ only where the intersection is empty",
        ),
        Row(
            "track: right at one of two times",
            "V-STaR",
            lambda: vstar_track({0: [BOX]}, {0: BOX, 1: BOX}),
            lambda: our_track("0: [0, 0, 10, 10]", (BOX, BOX)),
            "a missing box counts 0",
        ),
        Row(
            "track: a right and a wrong box at the only time",
            "V-STaR",
            lambda: vstar_track({0: [BOX, away]}, {0: BOX}),
            lambda: our_track("0: [0, 0, 10, 10], 0: [50, 50, 60, 60]", (BOX,)),
            "theirs takes the best; guessing twice must not score",
        ),
        Row(
            "track: right, and a box at a time not asked for",
            "V-STaR",
            lambda: vstar_track({0: [BOX], 7: [away]}, {0: BOX, 1: BOX}),
            lambda: our_track("0: [0, 0, 10, 10], 7: [50, 50, 60, 60]", (BOX, BOX)),
            "as long as there are no more boxes than asked times",
        ),
        Row(
            "a car in camera0 with KITTI's location, not converted",
            "KITTI",
            lambda: iou.box3d_iou(CAR, CAR, "camera0"),
            lambda: iou.box3d_iou(shifted(CAR, CAR[4] / 2), CAR, "camera0"),
            "there (x, y, z) is the centre of the bottom face; here the centre of the box: take h/2 off y",
        ),
        Row(
            "a car in camera0, 30 degrees the other way",
            "right-handed about the up axis",
            lambda: iou.box3d_iou(CAR, CAR, "camera0"),
            lambda: iou.box3d_iou(turned_back(CAR), CAR, "camera0"),
            "camera0 turns about the down axis, as KITTI's rotation_y; a yaw about the up axis changes its sign",
        ),
    ]


def format_rows() -> list[Row]:
    def row(text: str, why: str) -> Row:
        shown = text.replace("\n", "\\n")
        return Row(
            f"`{shown}`", "SpaceR", lambda: spacer_format(text), lambda: float(parse(text).well_formed), why
        )

    return [
        row("<think>t</think><answer>B</answer>", ""),
        row("<think>t</think> so <answer>B</answer>", ""),
        row("<think>t</think><answer>B</answer>\n", "white space around the blocks is allowed here"),
        row("<think>t</think><answer>B</answer> <answer>C</answer>", "exactly one answer here"),
        row("<think><think>t</think><answer>B</answer>", "exactly one think block here"),
    ]


SECTIONS = {
    "number": number_rows,
    "choice": choice_rows,
    "map": map_rows,
    "region": region_rows,
    "format": format_rows,
}


def table(rows: Sequence[Row]) -> str:
    lines = ["| example | other | theirs | ours | |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        theirs, ours = shown(row.theirs), shown(row.ours)
        verdict = "same" if theirs == ours else "**differs**"
        remark = f"{verdict}: {row.why}" if row.why else verdict
        lines.append(f"| {row.example} | {row.other} | {theirs} | {ours} | {remark} |")
    return "\n".join(lines)


def shown(formula: Callable[[], float]) -> str:
    try:
        value = formula()
    except ZeroDivisionError:
        return "error"
    return f"{value:.3f}"


@pytest.mark.parametrize("section", SECTIONS)
def test_the_page_holds_the_table_as_it_is_computed(section: str) -> None:
    found = re.search(
        rf"<!-- {section} -->\n(.*?)\n<!-- end -->", PAGE.read_text(encoding="utf-8"), re.DOTALL
    )
    assert found is not None
    computed = table(SECTIONS[section]())
    assert found.group(1) == computed, f"put this into {PAGE.name}:\n{computed}"


def test_where_the_formulas_are_the_same_they_agree_on_random_inputs() -> None:
    rng = np.random.default_rng(3)
    for _ in range(2000):
        truth, factor = rng.uniform(0.1, 100), rng.uniform(0.3, 1.7)
        assert answers.mean_relative_accuracy(truth * factor, truth) == pytest.approx(
            vsi_mra(truth * factor, truth)
        )
        a, b = (np.sort(rng.uniform(0, 10, (2, 2)), axis=0).ravel().tolist() for _ in range(2))
        assert iou.span_iou(a[::2], b[::2]) == pytest.approx(vstar_span(a[::2], b[::2]))


def test_how_often_rounding_parts_us_from_vsi_bench() -> None:
    cases = [(tenths / 10, truth) for truth in range(1, 41) for tenths in range(5 * truth, 15 * truth + 1)]
    more = [answers.mean_relative_accuracy(*case) - vsi_mra(*case) for case in cases]
    assert f"in {sum(x > 0.05 for x in more)} of {len(cases):,} cases" in PAGE.read_text(encoding="utf-8")
    assert all(x == pytest.approx(0.0, abs=1e-12) or x == pytest.approx(0.1) for x in more)


def test_maps_of_integers_without_ties_score_as_in_spacer() -> None:
    rng = np.random.default_rng(4)
    compared = 0
    for _ in range(1000):
        said, truth = (
            {label: rng.integers(0, 11, (rng.integers(1, 4), 2)).tolist() for label in "abc"}
            for _ in range(2)
        )
        if not any(ties(said[label], truth[label]) for label in "abc"):
            compared += 1
            assert our_map(str(said), truth) == pytest.approx(spacer_map(str(said), truth))
    assert compared > 200


def ties(said: Sequence[Sequence[float]], truth: Sequence[Sequence[float]]) -> bool:
    distances = [math.dist(a, b) for a in said for b in truth]
    return len(set(distances)) < len(distances)
