"""Marks: drawn where they can be read and cover nothing small; part of record, digest, frame store and report alike."""

from __future__ import annotations

import base64
import io
import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from videostr.data.__main__ import main
from videostr.data.prompts import RecordSource
from videostr.data.records import GROUP_ROWS, read_records, record_from_row, record_to_row, write_records
from videostr.digests import json_digest
from videostr.draw import frame_images
from videostr.errors import RecordError, VideoError
from videostr.images import ImageList
from videostr.mark_drawing import LARGE, disc_places, draw_marks, radius_in
from videostr.marks import COLORS, STYLES, TEXTS, mark_problem, name_of_mark
from videostr.types import (
    Answer,
    AnswerKind,
    ClipSpec,
    Failure,
    GraphFrame,
    Mark,
    Node,
    Query,
    Record,
    SceneGraph,
)
from videostr.video import DECODING, FrameStore, decode, name_clip, reordered

GREY = 128
SIZES = [(1242, 375), (640, 192), (336, 336), (1296, 968)]
"""Width and height of frames as they are used: KITTI, KITTI resized, the full tabletop, ScanNet."""


def grey(width: int, height: int, frames: int = 1) -> np.ndarray:
    return np.full((frames, height, width, 3), GREY, np.uint8)


def mark(text: str, *box: float, t: float = 0.0, name: str = "car.1") -> Mark:
    x1, y1, x2, y2 = map(float, box)
    return Mark(object=name, text=text, boxes=((t, x1, y1, x2, y2),))


def drawn(pixels: np.ndarray, *marks: Mark) -> np.ndarray:
    return draw_marks(pixels, [float(t) for t in range(len(pixels))], marks, "v.mp4")


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_a_disc_lies_on_a_large_object_and_next_to_a_small_one(width: int, height: int) -> None:
    radius = radius_in(width, height)
    wide, high = 1000 * LARGE * radius / width, 1000 * LARGE * radius / height
    large = drawn(grey(width, height), mark("1", 300, 300, 302 + wide, 302 + high))
    x, y = round((302 / 1000 * width) + 2 * radius), round(302 / 1000 * height + 2 * radius)
    changed = np.argwhere((large[0] != GREY).any(-1))
    assert np.abs(changed.mean(0) - (y, x)).max() < 2
    assert (np.ptp(changed, axis=0) == 2 * radius).all()
    small = drawn(grey(width, height), mark("1", 300, 300, 298 + wide, 298 + high))
    rows, columns = (np.array([300, 298 + high]) * height / 1000, np.array([300, 298 + wide]) * width / 1000)
    inside = small[0, int(rows[0]) + 1 : int(rows[1]), int(columns[0]) + 1 : int(columns[1])]
    assert inside.size > 100
    assert (inside == GREY).all()
    assert (small != GREY).any()


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_small_objects_stay_free_in_a_crowd(width: int, height: int) -> None:
    rng = np.random.default_rng(0)
    radius = radius_in(width, height)
    for _ in range(30):
        low = rng.uniform((0, 0), (width, height), (6, 2)) * 0.95
        boxes = np.concatenate(
            [low, np.minimum(low + rng.uniform(3, 5 * radius, (6, 2)), (width, height))], 1
        )
        places = disc_places(boxes, width, height)
        large = (boxes[:, 2:] - boxes[:, :2]).min(1) >= LARGE * radius
        for n in np.flatnonzero(~large):
            x, y = places[n]
            assert radius <= x <= width - radius
            assert radius <= y <= height - radius
            for box in boxes:  # what is small, and what is large, is not covered by the disc of another
                gap = np.maximum(np.maximum(box[:2] - (x, y), (x, y) - box[2:]), 0)
                assert np.hypot(*gap) >= radius
            others = np.delete(places, n, axis=0)
            assert (np.linalg.norm(others - (x, y), axis=1) >= 2 * radius).all()
            own = np.maximum(np.maximum(boxes[n, :2] - (x, y), (x, y) - boxes[n, 2:]), 0)
            assert np.hypot(*own) < 8 * radius  # and still next to its object


def test_a_frame_without_room_still_shows_the_mark() -> None:
    pixels = drawn(grey(20, 20), mark("1", 200, 200, 800, 800), mark("2", 0, 0, 1000, 1000, name="car.2"))
    assert (pixels != GREY).any()


@pytest.mark.parametrize("style", ["numbers", "letters"])
def test_texts_can_be_told_apart_at_the_least_size(style: str) -> None:
    """Pixels within the discs of 64 x 64 frames that have the text's colour, not the disc's: its shape alone."""
    shapes = {}
    for text in STYLES[style]:
        frame = drawn(grey(64, 64), mark(text, 0, 0, 1000, 1000))[0].astype(float)
        color = np.array(list(COLORS.values())[TEXTS[text]], float)
        ink = 0.0 if text in {"8", "H"} else 255.0  # on yellow
        shapes[text] = (np.abs(frame[28:37, 28:37] - color) / np.abs(ink - color).max()).max(-1).clip(0, 1)
        assert 8 <= shapes[text].sum() <= 60
    for a, first in shapes.items():
        assert all(np.abs(first - other).sum() >= 4 for b, other in shapes.items() if b != a)


def test_an_outline_is_drawn_around_the_object_alone() -> None:
    (frame,) = drawn(grey(400, 400), mark("red", 250, 250, 500, 500))
    assert (frame[102:198, 102:198] == GREY).all()
    painted = frame[(frame != GREY).any(-1)]
    assert {tuple(color) for color in painted.tolist()} == {COLORS["red"], (255, 255, 255)}
    # From outside: white, two lines of red, white, and one that stays free.
    assert [tuple(color) for color in frame[150, 95:101].tolist()] == [
        (GREY,) * 3, (255,) * 3, COLORS["red"], COLORS["red"], (255,) * 3, (GREY,) * 3,
    ]  # fmt: skip
    (edge,) = drawn(
        grey(400, 400), mark("red", 0, 0, 1000, 500)
    )  # where the border cuts, it is drawn in the frame
    assert (edge[0] == COLORS["red"]).all()
    assert (edge[:200, -1] == COLORS["red"]).all()


def test_only_the_frames_of_its_boxes_show_a_mark() -> None:
    plain = grey(336, 336, 4)
    pixels = drawn(plain, Mark(object="a.1", text="A", boxes=((1.1, 0, 0, 500, 500), (3.0, 0, 0, 500, 500))))
    assert [bool((frame != GREY).any()) for frame in pixels] == [False, True, False, True]
    assert (plain == GREY).all()
    assert not pixels.flags.writeable
    with pytest.raises(
        VideoError, match=r"v.mp4: mark 'A' is to be drawn at 4.6 s, the nearest frame .* is at 3 s"
    ):
        drawn(plain, mark("A", 0, 0, 1, 1, t=4.6))


# -------------------------------------------------------------------------------- clip, frame store and report


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Four grey images at 0, 1, 2 and 3 s as a video."""
    for number in range(4):
        Image.fromarray(grey(320, 200)[0]).save(tmp_path / f"{number}.png")
    listed = ImageList(root=".", fps=1.0, frames=tuple((float(i), f"{i}.png") for i in range(4)))
    (tmp_path / "v.frames.json").write_text(
        json.dumps({f: getattr(listed, f) for f in listed.__struct_fields__})
    )
    return tmp_path


PLAIN = ClipSpec(video="v.frames.json", num_frames=4)
MARKED = replace(
    PLAIN, marks=(mark("1", 100, 100, 120, 150, t=1.0), mark("2", 400, 300, 900, 900, t=2.0, name="car.2"))
)


def test_the_digest_covers_marks_and_stays_without_them(images: Path) -> None:
    stat = (images / "v.frames.json").stat()
    sampling = {name: value for name, value in asdict(PLAIN).items() if name != "marks"}
    assert set(sampling) == {"video", "num_frames", "start_s", "end_s", "height", "width"}
    sampling["video"] = str((images / "v.frames.json").resolve())
    before = json_digest([DECODING, stat.st_size, stat.st_mtime_ns, sampling])[:32]
    assert name_clip(PLAIN, images).digest == before
    marked = name_clip(MARKED, images)
    assert marked.spec.marks == MARKED.marks
    moved = replace(MARKED, marks=(replace(MARKED.marks[0], text="3"), *MARKED.marks[1:]))
    assert len({before, marked.digest, name_clip(moved, images).digest}) == 3


def test_prompts_about_one_marked_clip_are_read_at_once(images: Path) -> None:
    """As an engine does with the prompts of a step, of which several may show the same frames with the same marks."""
    clips = [name_clip(spec, images) for spec in (MARKED, PLAIN, replace(MARKED, marks=MARKED.marks[:1]))]
    clips.append(reordered(clips[0], [2, 0, 3, 1]))
    wanted = [FrameStore(images / "alone").frames(clip).pixels for clip in clips]
    for turn in range(8):
        store = FrameStore(images / f"store{turn}")
        with ThreadPoolExecutor(16) as pool:
            found = list(pool.map(store.frames, clips * 8))
        assert all((f.pixels == w).all() for f, w in zip(found, wanted * 8, strict=True))
        assert not [path for path in store.folder.iterdir() if path.name.startswith(".")]


def test_every_reader_of_the_frame_store_sees_the_marks(images: Path) -> None:
    folder = images / "store"
    plain, marked = name_clip(PLAIN, images), name_clip(MARKED, images)
    shown = FrameStore(folder).frames(marked)
    assert [bool((frame != GREY).any()) for frame in shown.pixels] == [False, True, True, False]
    assert (shown.pixels == decode(marked.spec).pixels).all()
    again = FrameStore(folder).frames(marked)  # as another process does
    assert (again.pixels == shown.pixels).all()
    assert again.times == shown.times == (0.0, 1.0, 2.0, 3.0)
    assert (FrameStore(folder).frames(plain).pixels == GREY).all()
    assert len(list(folder.glob("*.npy"))) == 1  # the pixels lie there once
    (images / "v.frames.json").unlink()  # what was read stays, as without marks
    assert (FrameStore(folder).frames(marked).pixels == shown.pixels).all()
    report = frame_images(folder, marked.digest)
    assert report is not None
    first, second, *_ = (_pixels(url) for url in report.urls)
    assert np.abs(first - float(GREY)).max() < 3
    assert np.abs(second - float(GREY)).max() > 60
    assert report.marked
    unmarked = frame_images(folder, plain.digest)
    assert unmarked is not None
    assert not unmarked.marked


def test_frames_in_another_order_keep_their_own_marks(images: Path) -> None:
    store = FrameStore(images / "store")
    moved = store.frames(reordered(name_clip(MARKED, images), (2, 0, 3, 1)))
    shown = store.frames(name_clip(MARKED, images))
    assert (moved.pixels == shown.pixels[[2, 0, 3, 1]]).all()
    assert moved.times == shown.times
    again = FrameStore(images / "store").stored(reordered(name_clip(MARKED, images), (2, 0, 3, 1)).digest)
    assert (again.pixels == moved.pixels).all()


def test_marks_stay_legible_in_the_small_frames_of_a_report(tmp_path: Path) -> None:
    for number in range(2):
        Image.new("RGB", (1242, 375), (GREY,) * 3).save(tmp_path / f"{number}.png")
    listed = {"root": ".", "fps": 1, "frames": [[float(number), f"{number}.png"] for number in range(2)]}
    (tmp_path / "v.frames.json").write_text(json.dumps(listed))
    spec = ClipSpec(video="v.frames.json", num_frames=2, marks=(mark("4", 300, 200, 500, 900, t=1.0),))
    clip = name_clip(spec, tmp_path)
    FrameStore(tmp_path / "store").frames(clip)
    found = frame_images(tmp_path / "store", clip.digest)
    assert found is not None
    assert (found.width, found.height) == (1242, 375)  # of the frames that the policy sees
    first, second = map(_pixels, found.urls)
    assert first.shape == second.shape == (97, 320, 3)
    changed = np.abs(second - first).max(-1) > 40
    assert changed.sum() > 120  # a disc of 7 px at least, where one of the frame would have 4


def _pixels(url: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))).astype(float)


# ----------------------------------------------------------------------------------------------------- records


def record(name: str = "a", **changes: Any) -> Record:
    frames = tuple(
        GraphFrame(
            t=float(t),
            nodes=tuple(
                Node(id=f"car.{number}", label="car", pos=(x, y), size=(20.0, 50.0))
                for number, (x, y) in enumerate([(110.0, 125.0), (650.0, 600.0)], 1)
            ),
        )
        for t in range(4)
    )
    values: dict[str, Any] = {
        "id": name,
        "source": "test",
        "family": "direction_camera",
        "question": "At 3 s, is object 1 to the left or to the right of object 2 in the image?",
        "options": ("left", "right"),
        "answer": Answer(kind=AnswerKind.CHOICE, value="A"),
        "clip": MARKED,
        "labels": ("car",),
        "graph": SceneGraph(unit="px", frame="image", frames=frames),
        "query": Query(
            family="direction_camera", objects=("car.1", "car.2"), names=("object 1", "object 2"), times=(3.0,),
            axis="image", options=("left", "right"),
        ),
    }  # fmt: skip
    return Record(**values | changes)


def test_marks_are_part_of_the_record(images: Path) -> None:
    records = [record(str(i), clip=MARKED if i > GROUP_ROWS else PLAIN) for i in range(GROUP_ROWS + 3)]
    write_records(records, images / "records-00000.parquet")
    found = [row for row in read_records(images) if isinstance(row, Record)]
    assert [replace(row, origin="") for row in found] == records
    assert [row.marks for row in found[-2:]] == [MARKED.marks] * 2
    table = pq.read_table(images / "records-00000.parquet")
    assert table.column("marks").null_count == GROUP_ROWS + 1
    assert main(["check", str(images), "--videos", "2"]) in (0, 1)


def test_shards_of_earlier_versions_have_no_marks(tmp_path: Path) -> None:
    path = tmp_path / "records-00000.parquet"
    write_records([record(clip=PLAIN, query=None)], path)
    pq.write_table(pq.read_table(path).drop_columns("marks"), path)
    (row,) = read_records(tmp_path)
    assert isinstance(row, Record)
    assert row.marks == ()


@pytest.mark.parametrize(
    ("marks", "words"),
    [
        ("[", r"marks = '\[': must be JSON"),
        ('[{"object": "car.1", "text": "1"}]', r"marks: \[0\]\.boxes: is missing"),
        ('[{"object": "car.1", "text": "10", "boxes": [[0, 0, 0, 1, 1]]}]', r"marks\[0\]\.text = '10': must be a digit"),
        ('[{"object": "car.1", "text": "1", "boxes": []}]', r"marks\[0\]\.boxes is empty"),
        ('[{"object": "car.1", "text": "1", "boxes": [[0, 5, 0, 1, 1]]}]', r"marks\[0\]\.boxes has \[0.0, 5.0, 0.0, 1.0"),
        ('[{"object": "car.1", "text": "1", "boxes": [[-1, 0, 0, 1, 1]]}]', "must be seconds"),
        ('[{"object": "car.1", "text": "1", "boxes": [[0, 0, 0, 1, 1001]]}]', "in px of 0 to 1000"),
        (
            '[{"object": "a.1", "text": "1", "boxes": [[0, 0, 0, 1, 1]]},'
            ' {"object": "a.2", "text": "1", "boxes": [[0, 0, 0, 1, 1]]}]',
            r"marks\[1\]\.text = '1': stands there twice",
        ),
    ],
)  # fmt: skip
def test_broken_marks_are_named(marks: str, words: str) -> None:
    with pytest.raises(RecordError, match=rf"f:0: {words}" if words.startswith("marks") else words):
        record_from_row(record_to_row(record()) | {"marks": marks}, "f:0")


def test_a_broken_row_costs_no_other(tmp_path: Path) -> None:
    good, bad = record("a"), record("b", clip=replace(MARKED, marks=(mark("1", 5, 5, 1, 1),)))
    write_records([bad, good], tmp_path / "records-00000.parquet")
    kinds = [type(row) for row in read_records(tmp_path)]
    assert kinds == [Failure, Record]


def test_names_of_marks() -> None:
    assert [name_of_mark(text) for text in ("1", "A", "red")] == [
        "object 1",
        "object A",
        "the object outlined in red",
    ]
    assert len(TEXTS) == sum(map(len, STYLES.values()))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda marks: (), "the query names 'object 1', which no mark of the clip stands for"),
        (lambda marks: marks[:1], "the query names 'object 2'"),
        (
            lambda marks: (replace(marks[0], object="car.2"), marks[1]),
            "mark '1' is drawn on car.2, the query names car.1 by it",
        ),
        (
            lambda marks: (*marks, mark("3", 0, 0, 10, 10, name="car.7")),
            "mark '3': the graph has no car.7 at 0 s",
        ),
        (
            lambda marks: (mark("1", 500, 100, 520, 150), marks[1]),
            r"mark '1': \[500.*\] at 0 s is not where the graph has car.1, \[110, 125\]",
        ),
    ],
)
def test_marks_are_checked_against_graph_and_query(change: Any, words: str) -> None:
    assert mark_problem(record()) == ""
    assert mark_problem(record(clip=PLAIN, query=None)) == ""
    found = mark_problem(record(clip=replace(MARKED, marks=change(MARKED.marks))))
    assert re.match(words, found), found


def test_marks_are_checked_against_the_camera_of_a_graph_in_metres() -> None:
    """x / z = 0.5 and y / z = 0.1 by a view of focal length 400 about (500, 500): (700, 540)."""
    node = Node(id="car.1", label="car", pos=(10.0, 2.0, 20.0))
    view = (400.0, 0.0, 500.0, 0.0, 0.0, 400.0, 500.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    graph = SceneGraph(unit="m", frame="camera0", frames=(GraphFrame(t=0.0, nodes=(node,), view=view),))
    there = replace(PLAIN, marks=(mark("1", 690, 530, 710, 550),))
    elsewhere = replace(PLAIN, marks=(mark("1", 290, 530, 310, 550),))
    assert mark_problem(record(clip=there, graph=graph, query=None)) == ""
    assert "is not where the graph has car.1, [700, 540]" in mark_problem(
        record(clip=elsewhere, graph=graph, query=None)
    )


def test_check_names_the_rows_whose_marks_are_wrong(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    late = replace(MARKED, marks=(*MARKED.marks, mark("3", 0, 0, 10, 10, t=9.0, name="car.1")))
    write_records([record("good"), record("late", clip=late)], images / "records-00000.parquet")
    assert main(["check", str(images)]) == 1
    found = capsys.readouterr().out
    assert "records-00000.parquet:1: mark '3': the graph has no car.1 at 9 s, where it is drawn" in found
    assert "mark '3' is to be drawn at 9 s" in found
    assert "records-00000.parquet:0" not in found


def test_prompts_of_training_show_the_marked_clip(images: Path) -> None:
    write_records([record()], images / "records-00000.parquet")

    source = RecordSource(str(images), None, 0)
    (row,) = source.records
    clip = name_clip(row.clip, images)
    assert clip.spec.marks == MARKED.marks
    assert clip.digest == name_clip(MARKED, images).digest


def test_export_writes_the_marked_clip_or_leaves_it_out(
    images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_records([record("plain", clip=PLAIN), record("marked")], images / "records-00000.parquet")
    command = ["export", str(images), "--out", str(images / "rows.jsonl")]
    assert main(command) == 0
    plain, marked = map(json.loads, (images / "rows.jsonl").read_text().splitlines())
    assert plain["path"] == str(images / "v.frames.json")
    assert Path(marked["path"]).suffix == ".mp4"
    assert "2 rows of 2 records" in capsys.readouterr().out
    assert main([*command, "--marked", "none"]) == 0
    (line,) = (images / "rows.jsonl").read_text().splitlines()
    assert json.loads(line)["problem_id"] == "plain"
    assert "1 rows of 2 records" in capsys.readouterr().out
