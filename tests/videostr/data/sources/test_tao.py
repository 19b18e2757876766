"""TAO: files in the true layout -> scenes; every trap of the format, every reason to leave something out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from videostr.data.scene import Scene, Skip, SkipReason
from videostr.data.sources.tao import Tao
from videostr.errors import DataError

FILE = "annotations/train.json"
NAME = "train/YFCC100M/v_1"

PERSON, CUP, CAR, BABY, ABSORBED, BAT = 1, 2, 3, 4, 5, 6

Tree = dict[str, list[Any]]


def video(number: int = 1, name: str = NAME, **changes: Any) -> dict[str, Any]:
    return {
        "id": number,
        "name": name,
        "width": 640,
        "height": 480,
        "neg_category_ids": [],
        "not_exhaustive_category_ids": [],
        "metadata": {"dataset": "YFCC100M"},
    } | changes


def image(number: int, frame_index: int, **changes: Any) -> dict[str, Any]:
    return {
        "id": number,
        "video": NAME,
        "video_id": 1,
        "file_name": f"{NAME}/frame{frame_index:04d}.jpg",
        "width": 640,
        "height": 480,
        "frame_index": frame_index,
        "license": 0,
    } | changes


def annotation(number: int, image_id: int, track_id: int, category_id: int, bbox: Any) -> dict[str, Any]:
    return {
        "id": number,
        "image_id": image_id,
        "video_id": 1,
        "track_id": track_id,
        "category_id": category_id,
        "bbox": bbox,
        "area": 1.0,
        "iscrowd": 0,
        "segmentation": [[]],
    }


def category(number: int, name: str, *merged: int) -> dict[str, Any]:
    return {
        "id": number,
        "name": name,
        "synset": f"{name}.n.01",
        "frequency": "r",
        "merged": [{"id": other, "name": "other"} for other in merged],
    }


def tree() -> Tree:
    """One video, frames at 10, 40 and 70; a person in two of them, a cup in one, nothing in the last."""
    return {
        "videos": [video()],
        "images": [image(102, 40), image(101, 10), image(103, 70)],
        "tracks": [
            {"id": 11, "category_id": PERSON, "video_id": 1},
            {"id": 12, "category_id": CUP, "video_id": 1},
        ],
        "annotations": [
            annotation(1002, 102, 11, PERSON, [110, 50, 20, 60]),
            annotation(1001, 101, 11, PERSON, [100.5, 50, 20, 60]),
            annotation(1003, 101, 12, CUP, [5, 6, 7, 8]),
        ],
        "categories": [
            category(PERSON, "person"),
            category(CUP, "cup"),
            category(CAR, "car_(automobile)"),
            category(BABY, "Baby buggy", ABSORBED),
            category(BAT, "bat.n.05"),
        ],
        "info": [],
        "licenses": [],
    }


def write(root: Path, content: Tree, split: str = "train") -> Tao:
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations" / f"{split}.json").write_text(json.dumps(content))
    return Tao(root, split)


def scene_of(source: Tao, name: str = NAME) -> Scene:
    scene = source.read(name)
    assert isinstance(scene, Scene), scene
    return scene


def only(skips: Any, reason: SkipReason, *words: str) -> None:
    """There is one finding: of this reason, in the annotation file, which has no lines, with these words."""
    assert [(skip.file, skip.line, skip.reason) for skip in skips] == [(FILE, None, reason)], skips
    for word in words:
        assert word in skips[0].detail


# ------------------------------------------------------------------------------------------------------- scene


def test_scene(tmp_path: Path) -> None:
    source = write(tmp_path, tree())
    assert (source.name, list(source.names), list(source.skips)) == ("tao", [NAME], [])
    assert "https://" in source.licence
    scene = scene_of(source)
    assert (scene.source, scene.name, scene.image_size, scene.skips) == ("tao", NAME, (640, 480), ())
    # No depth: nothing in metres.
    assert (scene.projection, scene.up, scene.room_size) == (None, None, None)
    # In order of frame_index, not of the file; a frame without annotations is a frame.
    assert [frame.image for frame in scene.frames] == [
        f"frames/{NAME}/frame{i:04d}.jpg" for i in (10, 40, 70)
    ]
    # Steps of 30: 30 frames per second, so 10 / 30, 40 / 30, 70 / 30 s from the start of the video.
    assert scene.fps == 30
    assert [frame.t for frame in scene.frames] == pytest.approx([1 / 3, 4 / 3, 7 / 3])
    assert all(frame.camera_to_world is None for frame in scene.frames)
    person, cup = scene.tracks
    assert (person.id, person.label, person.frames.tolist()) == ("11", "person", [0, 1])
    # x, y, width, height -> x1, y1, x2, y2: 100.5 + 20, 50 + 60.
    assert person.boxes is not None
    assert person.boxes.tolist() == [[100.5, 50, 120.5, 110], [110, 50, 130, 110]]
    assert person.visibility.tolist() == [1, 1]
    assert (person.centers, person.sizes, person.yaws, person.is_static) == (None, None, None, False)
    assert (cup.id, cup.label, cup.frames.tolist()) == ("12", "cup", [0])


def test_scenes_are_told_apart(tmp_path: Path) -> None:
    content = tree()
    content["videos"].insert(0, video(2, "train/LaSOT/z"))
    content["images"].append(
        image(201, 0, video_id=2, file_name="train/LaSOT/z/1.jpg", width=320, height=240)
    )
    content["tracks"].append({"id": 21, "category_id": CAR, "video_id": 2})
    content["annotations"].append(annotation(2001, 201, 21, CAR, [0, 0, 10, 10]))
    source = write(tmp_path, content)
    assert list(source.names) == ["train/LaSOT/z", NAME]
    other = scene_of(source, "train/LaSOT/z")
    assert (other.image_size, [track.id for track in other.tracks], other.fps) == ((320, 240), ["21"], 30)
    assert [track.id for track in scene_of(source).tracks] == ["11", "12"]


@pytest.mark.parametrize(
    ("indices", "fps"),
    [
        ([0, 25, 50, 75], 25),
        ([3, 27, 51], 24),
        ([0, 30, 59, 89, 400], 30),  # 29.97 fps and a gap: steps 30, 29, 30, 311
        ([7], 30),
    ],
)
def test_frame_rate_is_the_median_step(tmp_path: Path, indices: list[int], fps: float) -> None:
    content = tree()
    content["images"] = [image(101 + n, index) for n, index in enumerate(indices)]
    content["annotations"] = [annotation(1, 101, 11, PERSON, [1, 1, 5, 5])]
    scene = scene_of(write(tmp_path, content))
    assert scene.fps == fps
    assert [frame.t for frame in scene.frames] == pytest.approx([index / fps for index in indices])


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("Baby buggy", "baby_buggy"),
        ("car_(automobile)", "car_automobile"),
        ("bat.n.05", "bat"),
        ("first-aid kit", "first_aid_kit"),
        ("T. rex", "t_rex"),
    ],
)
def test_labels(tmp_path: Path, name: str, label: str) -> None:
    content = tree()
    content["categories"][0] = category(PERSON, name)
    assert scene_of(write(tmp_path, content)).tracks[0].label == label


def test_validation_split(tmp_path: Path) -> None:
    assert list(write(tmp_path, tree(), "validation").names) == [NAME]


# ------------------------------------------------------------------------------------------- merges, federation


def test_merged_category_becomes_the_one_that_absorbs_it(tmp_path: Path) -> None:
    content = tree()
    content["tracks"].append({"id": 13, "category_id": ABSORBED, "video_id": 1})
    # The annotation may say the one or the other: they are the same category.
    content["annotations"].append(annotation(1004, 101, 13, ABSORBED, [1, 1, 5, 5]))
    content["annotations"].append(annotation(1005, 102, 13, BABY, [1, 1, 5, 5]))
    content["categories"].append(category(ABSORBED, "stroller"))
    scene = scene_of(write(tmp_path, content))
    assert scene.skips == ()
    assert (scene.tracks[2].label, scene.tracks[2].frames.tolist()) == ("baby_buggy", [0, 1])


def test_merges_follow_each_other(tmp_path: Path) -> None:
    content = tree()
    content["categories"] = [category(CAR, "car", PERSON), category(CUP, "cup"), category(BAT, "bat", CAR)]
    assert [track.label for track in scene_of(write(tmp_path, content)).tracks] == ["bat", "cup"]


def test_circle_of_merges_ends(tmp_path: Path) -> None:
    content = tree()
    content["categories"] = [category(PERSON, "person", CUP), category(CUP, "cup", PERSON)]
    assert [track.label for track in scene_of(write(tmp_path, content)).tracks] == ["person", "cup"]


def test_countable_are_tracked_categories_that_are_exhaustive(tmp_path: Path) -> None:
    content = tree()
    # Of cups some are not annotated; cars are verified absent, which is not asked; of baby buggies nothing is known.
    content["videos"] = [video(not_exhaustive_category_ids=[CUP], neg_category_ids=[CAR])]
    assert scene_of(write(tmp_path, content)).countable == {"person"}


def test_not_exhaustive_holds_through_merges(tmp_path: Path) -> None:
    content = tree()
    content["videos"] = [video(not_exhaustive_category_ids=[ABSORBED])]
    content["tracks"].append({"id": 13, "category_id": BABY, "video_id": 1})
    content["annotations"].append(annotation(1004, 101, 13, BABY, [1, 1, 5, 5]))
    assert scene_of(write(tmp_path, content)).countable == {"person", "cup"}


@pytest.mark.parametrize(("negative", "countable"), [([], {"cup"}), ([BAT], {"person", "cup"})])
def test_label_of_two_categories(tmp_path: Path, negative: list[int], countable: set[str]) -> None:
    content = tree()
    content["categories"][-1] = category(BAT, "person.n.02")
    content["videos"] = [video(neg_category_ids=negative)]
    assert scene_of(write(tmp_path, content)).countable == countable


# -------------------------------------------------------------------------------------------------- left out


def test_box_is_cut_at_the_image(tmp_path: Path) -> None:
    content = tree()
    content["annotations"][0]["bbox"] = [-10, 470, 30, 20]
    content["annotations"][1]["bbox"] = [630, -5, 30, 500]
    boxes = scene_of(write(tmp_path, content)).tracks[0].boxes
    assert boxes is not None
    # 640 x 480: -10 .. 20 becomes 0 .. 20, 470 .. 490 becomes 470 .. 480; 630 .. 660 becomes 630 .. 640, -5 .. 495 0 .. 480.
    assert boxes.tolist() == [[630, 0, 640, 480], [0, 470, 20, 480]]


@pytest.mark.parametrize(
    ("bbox", "reason", "word", "countable"),
    [
        ([5, 6, 0, 8], SkipReason.NO_EXTENT, "[5, 6, 0, 8]", {"person"}),
        ([5, 6, 7, -8], SkipReason.NO_EXTENT, "area", {"person"}),
        ([640, 6, 7, 8], SkipReason.OUTSIDE, "640 x 480", {"person", "cup"}),  # nobody can see it
        ([5, -8, 7, 8], SkipReason.OUTSIDE, "640 x 480", {"person", "cup"}),
        ([5, 6, 1e300, 8], SkipReason.NOT_FINITE, "1e+06", {"person"}),
        ([5, 6, 7], SkipReason.BAD_LINE, "4 numbers", {"person"}),
        ([5, 6, 7, "8"], SkipReason.BAD_LINE, "4 numbers", {"person"}),
        (None, SkipReason.BAD_LINE, "4 numbers", {"person"}),
    ],
)
def test_bad_box(tmp_path: Path, bbox: Any, reason: SkipReason, word: str, countable: set[str]) -> None:
    """The box of the only cup; a cup that may be there without a box must not be counted."""
    content = tree()
    content["annotations"][2]["bbox"] = bbox
    content["annotations"].append(annotation(1004, 102, 12, CUP, [1, 1, 5, 5]))
    scene = scene_of(write(tmp_path, content))
    only(scene.skips, reason, "annotation 1003", word)
    assert [track.frames.tolist() for track in scene.tracks] == [[0, 1], [1]]
    assert scene.countable == countable


def test_infinite_number(tmp_path: Path) -> None:
    text = json.dumps(tree()).replace("[5, 6, 7, 8]", "[5, 6, 7, 1e999]")
    (tmp_path / "annotations").mkdir()
    (tmp_path / FILE).write_text(text)
    only(scene_of(Tao(tmp_path, "train")).skips, SkipReason.BAD_LINE, "annotation 1003", "must be 4 numbers")


def test_track_twice_in_an_image_keeps_the_first(tmp_path: Path) -> None:
    content = tree()
    content["annotations"].append(annotation(1004, 101, 12, CUP, [50, 60, 7, 8]))
    scene = scene_of(write(tmp_path, content))
    only(scene.skips, SkipReason.BAD_LINE, "annotation 1004", "track 12", "image 101")
    assert scene.tracks[1].boxes is not None
    assert scene.tracks[1].boxes.tolist() == [[5, 6, 12, 14]]
    assert scene.countable == {"person", "cup"}


def test_annotation_of_an_unknown_image(tmp_path: Path) -> None:
    content = tree()
    content["annotations"].append(annotation(1004, 999, 12, CUP, [1, 1, 5, 5]))
    source = write(tmp_path, content)
    only(source.skips, SkipReason.UNKNOWN_REFERENCE, "annotation 1004", "image 999")
    assert scene_of(source).skips == ()


@pytest.mark.parametrize("where", [None, 2])
def test_annotation_of_an_unknown_track(tmp_path: Path, where: int | None) -> None:
    """A track that does not exist, or is one of another video."""
    content = tree()
    content["annotations"].append(annotation(1004, 101, 99, CUP, [1, 1, 5, 5]))
    if where:
        content["videos"].append(video(2, "train/LaSOT/z"))
        content["tracks"].append({"id": 99, "category_id": CUP, "video_id": 2})
    scene = scene_of(write(tmp_path, content))
    only(scene.skips, SkipReason.UNKNOWN_REFERENCE, "annotation 1004", "track 99", "video 1")
    assert scene.countable == {"person"}


def test_annotation_of_an_unknown_category(tmp_path: Path) -> None:
    content = tree()
    content["annotations"].append(annotation(1004, 102, 12, 77, [1, 1, 5, 5]))
    scene = scene_of(write(tmp_path, content))
    only(scene.skips, SkipReason.UNKNOWN_CATEGORY, "annotation 1004", "category 77")
    assert scene.countable == {"person"}


def test_annotation_of_another_category_than_its_track(tmp_path: Path) -> None:
    content = tree()
    content["annotations"].append(annotation(1004, 102, 12, PERSON, [1, 1, 5, 5]))
    scene = scene_of(write(tmp_path, content))
    only(scene.skips, SkipReason.BAD_LINE, "annotation 1004", "category 1", "2")
    assert scene.countable == set()


def test_annotation_that_cannot_be_read(tmp_path: Path) -> None:
    """It may be of any video, so nothing is countable."""
    content = tree()
    content["annotations"].append({"id": 5, "image_id": "x"})
    source = write(tmp_path, content)
    only(source.skips, SkipReason.BAD_LINE, "annotations[3]", "image_id")
    assert scene_of(source).countable == set()
    assert len(scene_of(source).tracks) == 2


@pytest.mark.parametrize(
    ("changes", "reason", "words"),
    [
        ({"video_id": 9}, SkipReason.UNKNOWN_REFERENCE, ["image 104", "video 9"]),
        ({"frame_index": 70}, SkipReason.BAD_LINE, ["image 104", "frame_index 70"]),
        ({"width": 320}, SkipReason.BAD_LINE, ["image 104", "size"]),
        ({"file_name": "../secret.jpg"}, SkipReason.BAD_LINE, ["image 104", "file_name"]),
        ({"file_name": "/secret.jpg"}, SkipReason.BAD_LINE, ["image 104", "file_name"]),
        ({"frame_index": -1}, SkipReason.BAD_LINE, ["images[3]", "frame_index"]),
        ({"frame_index": 10**30}, SkipReason.BAD_LINE, ["images[3]", "frame_index"]),
        ({"width": 0}, SkipReason.BAD_LINE, ["images[3]", "width"]),
        ({"id": 103}, SkipReason.BAD_LINE, ["images[3]", "id 103"]),
        ({"id": None}, SkipReason.BAD_LINE, ["images[3]", "id"]),
    ],
)
def test_bad_image(tmp_path: Path, changes: dict[str, Any], reason: SkipReason, words: list[str]) -> None:
    content = tree()
    content["images"].append(image(104, 100) | changes)
    source = write(tmp_path, content)
    only(source.skips, reason, *words)
    scene = scene_of(source)
    assert len(scene.frames) == 3
    assert len(scene.tracks) == 2


@pytest.mark.parametrize(
    ("table", "entry", "words"),
    [
        ("tracks", {"id": 11, "category_id": CUP, "video_id": 1}, ["tracks[2]", "id 11"]),
        ("tracks", {"id": 14}, ["tracks[2]", "category_id"]),
        ("videos", video(1, "other"), ["videos[1]", "id 1"]),
        ("videos", video(2), ["video 2", "is that of video 1"]),
        ("videos", {"id": 2, "name": "other"}, ["videos[1]", "not_exhaustive_category_ids"]),
        ("categories", category(CUP, "mug"), ["categories[5]", "id 2"]),
        ("categories", category(8, "()"), ["category 8", "'()'"]),
        ("categories", "cup", ["categories[5]"]),
    ],
)
def test_bad_entry(tmp_path: Path, table: str, entry: Any, words: list[str]) -> None:
    content = tree()
    content[table].append(entry)
    source = write(tmp_path, content)
    only(source.skips, SkipReason.BAD_LINE, *words)
    assert list(source.names) == [NAME]
    assert [track.label for track in scene_of(source).tracks] == ["person", "cup"]


@pytest.mark.parametrize("where", ["name", "file_name"])
def test_video_of_the_test_split_is_excluded(tmp_path: Path, where: str) -> None:
    content = tree()
    content["videos"].append(video(2, "test/LaSOT/z" if where == "name" else "train/LaSOT/z"))
    content["images"].append(
        image(201, 0, video_id=2, file_name=f"{'test' if where != 'name' else 'train'}/z.jpg")
    )
    source = write(tmp_path, content)
    only(source.skips, SkipReason.EXCLUDED, "video 2", "LaSOT/z")
    assert list(source.names) == [NAME]


def test_video_without_usable_annotation(tmp_path: Path) -> None:
    content = tree()
    content["annotations"] = [annotation(1003, 101, 12, CUP, [5, 6, 0, 8])]
    skip = write(tmp_path, content).read(NAME)
    assert isinstance(skip, Skip)
    only([skip], SkipReason.NO_OBJECT, NAME, "first of 1 findings: annotation 1003")
    content["annotations"] = []
    content["images"] = []
    skip = write(tmp_path, content).read(NAME)
    assert isinstance(skip, Skip)
    only([skip], SkipReason.NO_OBJECT, NAME)


# ------------------------------------------------------------------------------------------------ not a tree


@pytest.mark.parametrize("split", ["test", "val", ""])
def test_split_that_must_not_be_used(tmp_path: Path, split: str) -> None:
    write(tmp_path, tree())
    with pytest.raises(DataError, match="use train or validation"):
        Tao(tmp_path, split)


def test_no_annotations(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train\.json: cannot be read .* name the folder"):
        Tao(tmp_path, "train")


@pytest.mark.parametrize("text", ["", '{"videos": []}', "[1]", json.dumps(tree())[:-20], '{"videos": [NaN]}'])
def test_broken_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "annotations").mkdir()
    (tmp_path / FILE).write_text(text)
    with pytest.raises(DataError, match=r"train\.json: is not an annotation file of TAO .* download"):
        Tao(tmp_path, "train")


def test_frames_lie_ascending_in_tracks(tmp_path: Path) -> None:
    """Annotations stand in any order in the file."""
    content = tree()
    content["annotations"].reverse()
    for track in scene_of(write(tmp_path, content)).tracks:
        assert (np.diff(track.frames) > 0).all()
