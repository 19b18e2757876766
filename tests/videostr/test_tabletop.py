"""The tabletop world: exact truth, real MP4 files, disjoint splits, questions with right answers."""

from __future__ import annotations

import numpy as np
import pytest

from videostr.data.records import read_records
from videostr.errors import DataError
from videostr.prompt import graph_contract, instruction, reference_trace
from videostr.tabletop.build import Split, build, scene_seed
from videostr.tabletop.questions import FAMILIES, make_records, true_graph
from videostr.tabletop.render import box2d, draw, write_mp4
from videostr.tabletop.world import COLORS, Camera, Difficulty, Scene, Solid, make_scene
from videostr.types import AnswerKind, ClipSpec, GraphFrame, Record, SceneGraph
from videostr.video import FrameStore, name_clip

ABOVE = Camera(position=(4.5, 4.5, 60.0), pitch_deg=90, yaw_deg=0, pan_deg_s=0, focal=6.0)


def scene(*solids: Solid) -> Scene:
    return Scene(
        seed=0, difficulty=Difficulty.EASY, unit="grid", solids=solids, camera=ABOVE, floor=9.0, margin=0.5,
        size_px=64, fps=4, duration_s=3.0, num_frames=4,
    )  # fmt: skip


def ball(color: str, start: tuple[float, float], velocity=(0.0, 0.0), appears_s: float = 0.0) -> Solid:
    return Solid(color=color, shape="ball", radius=0.75, start=start, velocity=velocity, appears_s=appears_s)


def test_a_ball_is_where_the_truth_says():
    # From 60 above, 10 cells fill the image at floor level: cell (2, 7) is at x = (2 + 0.5) / 10 of the width and, y
    # pointing up, at (9 - 7 + 0.5) / 10 of the height. The ball's centre is 0.75 nearer, which moves it by 1.3 %.
    box = box2d(scene(ball("red", (2, 7))), ball("red", (2, 7)), 0.0)
    assert box is not None
    x1, y1, x2, y2 = box
    assert (x1 + x2) / 2 == pytest.approx(500 - 250 * 60 / 59.25, abs=0.1)
    assert (y1 + y2) / 2 == pytest.approx(500 - 250 * 60 / 59.25, abs=0.1)
    assert x2 - x1 == pytest.approx(150 * 60 / 59.25, abs=0.1)
    image = draw(scene(ball("red", (2, 7))), 0.0)
    rows, columns = np.nonzero((image[..., 0] > 140) & (image[..., 1] < 80))
    assert (columns.mean() + 0.5) / 64 * 1000 == pytest.approx(250, abs=10)
    assert (rows.mean() + 0.5) / 64 * 1000 == pytest.approx(250, abs=10)


def test_graph_follows_the_motion_and_the_time_of_appearance():
    graph = true_graph(scene(ball("red", (1, 1), (2, 0)), ball("blue", (5, 5), appears_s=2.0)))
    assert [frame.t for frame in graph.frames] == [0.0, 1.0, 2.0, 3.0]
    assert [[(node.id, node.pos) for node in frame.nodes] for frame in graph.frames] == [
        [("red_ball.1", (1.0, 1.0))],
        [("red_ball.1", (3.0, 1.0))],
        [("blue_ball.1", (5.0, 5.0)), ("red_ball.1", (5.0, 1.0))],
        [("blue_ball.1", (5.0, 5.0)), ("red_ball.1", (7.0, 1.0))],
    ]


def test_a_panning_camera_keeps_the_graph_in_the_first_camera():
    found = make_scene(5, Difficulty.FULL)
    assert found.camera.pan_deg_s != 0
    graph = true_graph(found)
    assert graph.frame == "camera0"
    still = next(solid for solid in found.solids if solid.velocity == (0.0, 0.0) and solid.appears_s == 0)
    seen = [node.pos for frame in graph.frames for node in frame.nodes if node.label == still.label]
    assert len(set(seen)) == 1
    # Depth is the distance along the optical axis, so a point right in the axis at distance d has pos (0, 0, d).
    camera = Camera(position=(0, 0, 1.0), pitch_deg=0, yaw_deg=0, pan_deg_s=0, focal=1)
    assert camera.to_camera(np.array([0.0, 7.0, 1.0]), 0.0) == pytest.approx([0, 0, 7])
    assert camera.to_camera(np.array([2.0, 7.0, 0.0]), 0.0) == pytest.approx([2, 1, 7])


def test_the_view_of_a_true_graph_puts_balls_where_they_are_drawn():
    compared = 0
    for seed in range(12):
        found = make_scene(seed, Difficulty.FULL)
        for frame in true_graph(found).frames:
            view = np.reshape(frame.view, (3, 4))
            for node in frame.nodes:
                same = [solid for solid in found.solids if solid.label == node.label]
                if len(same) > 1 or same[0].shape != "ball":
                    continue
                x, y, depth = view @ (*node.pos, 1)
                x1, y1, x2, y2 = box2d(found, same[0], frame.t)
                if min(x1, y1) > 0 and max(x2, y2) < 1000:
                    assert (x / depth, y / depth) == pytest.approx(((x1 + x2) / 2, (y1 + y2) / 2), abs=1)
                    compared += 1
    assert compared > 20
    assert all(frame.view is None for frame in true_graph(make_scene(0, Difficulty.EASY)).frames)


@pytest.mark.parametrize("difficulty", list(Difficulty))
def test_every_family_is_asked_with_a_valid_answer(difficulty):
    families = set()
    for index in range(80):
        found = make_scene(scene_seed(3, Split.TRAIN, index), difficulty)
        for record in make_records(found, "v.mp4", f"s{index}", len(FAMILIES)):
            families.add(record.family)
            _check(record, found)
    assert families == set(FAMILIES)


def _check(record: Record, found: Scene) -> None:
    """The answer follows from the scene, by a second way of computing it."""
    by_label = {solid.label: solid for solid in found.solids}
    named = [label for label in by_label if label in record.question]
    assert record.graph is not None
    last = record.graph.frames[-1]
    if record.family == "counting":
        t = float(record.question.split(" at ")[1].split()[0])
        nodes = next(frame.nodes for frame in record.graph.frames if frame.t == t)
        assert record.answer.value == len(nodes)
    elif record.family == "displacement":
        solid = by_label[named[0]]
        moved = np.hypot(*solid.velocity) * found.duration_s
        assert record.answer.value == pytest.approx(moved, abs=0.051)
    elif record.family == "order":
        first = record.options["AB".index(str(record.answer.value))]
        other = record.options[1 - "AB".index(str(record.answer.value))]
        assert by_label[first].appears_s < by_label[other].appears_s
    elif record.family == "localisation":
        assert record.answer.kind is AnswerKind.BOX2D
        x1, y1, x2, y2 = record.answer.value
        assert 0 <= x1 < x2 <= 1000
        assert 0 <= y1 < y2 <= 1000
    if record.answer.kind is AnswerKind.CHOICE:
        assert len(set(record.options)) == 2
    assert {node.label for node in last.nodes} <= set(record.labels)
    assert set(record.labels) - set(by_label), "no distractor"


def test_labels_and_letters_are_balanced():
    records = [
        record
        for index in range(300)
        for record in make_records(
            make_scene(scene_seed(1, Split.TRAIN, index), Difficulty.EASY), "v", str(index), 1
        )
    ]
    letters = [record.answer.value for record in records if record.answer.kind is AnswerKind.CHOICE]
    # A fair coin over about 100 questions stays within 3 standard deviations, 0.15.
    assert letters.count("A") / len(letters) == pytest.approx(0.5, abs=0.15)


def test_scenes_repeat_by_seed_and_splits_are_disjoint():
    assert make_scene(11, Difficulty.FULL) == make_scene(11, Difficulty.FULL)
    assert make_scene(11, Difficulty.EASY) != make_scene(12, Difficulty.EASY)
    seeds = [scene_seed(0, split, index) for split in Split for index in range(500)]
    assert len(set(seeds)) == 1500


def test_video_shows_the_scene(tmp_path):
    found = make_scene(4, Difficulty.EASY)
    write_mp4(found, tmp_path / "a.mp4")
    clip = name_clip(ClipSpec(video="a.mp4", num_frames=found.num_frames), tmp_path)
    frames = FrameStore(tmp_path / "store").frames(clip)
    for t, pixels in zip(found.times(), frames.pixels, strict=True):
        # H.264 halves the resolution of colour, so single pixels differ; on average they agree.
        assert np.abs(pixels.astype(float) - draw(found, t)).mean() < 6


def test_dataset_does_not_depend_on_the_number_of_workers(tmp_path):
    for workers in (1, 2):
        count = build(
            tmp_path / str(workers), scenes=6, seed=9, split=Split.HELDOUT, difficulty=Difficulty.EASY, questions=2,
            workers=workers,
        )  # fmt: skip
        assert count > 6
    one, two = (list(read_records(tmp_path / name)) for name in "12")
    assert [record.id for record in one] == [record.id for record in two]
    assert one[0].graph == two[0].graph
    for path in sorted((tmp_path / "1" / "videos").iterdir()):
        assert path.read_bytes() == (tmp_path / "2" / "videos" / path.name).read_bytes()
    with pytest.raises(DataError, match="already holds a dataset"):
        build(
            tmp_path / "1",
            scenes=1,
            seed=0,
            split=Split.TRAIN,
            difficulty=Difficulty.EASY,
            questions=1,
            workers=1,
        )


def test_prompt_states_what_the_contract_asks_for():
    record = make_records(make_scene(5, Difficulty.EASY), "v.mp4", "s", 1)[0]
    text = instruction(record)
    for part in (
        "Unit: grid",
        "x to the right",
        "Times: 0, 1, 2, 3 s",
        *record.labels,
        "Example of another scene",
    ):
        assert part in text
    colors = {label.split("_")[0] for label in record.labels}
    assert colors <= set(COLORS)
    trace = reference_trace(record)
    assert trace.startswith('<think><graph>{"unit":"grid","frames":[{"t":0,')
    assert trace.endswith("</answer>")


@pytest.mark.parametrize(
    ("reference", "lamp"), [("floor", "[4,7]"), ("image", "[4,7]"), ("camera0", "[4,7,1]")]
)
def test_the_example_has_the_coordinates_of_a_scene_without_nodes(reference, lamp):
    empty = SceneGraph(unit="m", frame=reference, frames=(GraphFrame(t=0.0, nodes=()),))
    assert f'"id":"lamp.1","pos":{lamp}' in graph_contract(empty, [0.0], "")
