"""Own annotations: the documented example, every rule of the schema, and findings that name line and field."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from videostr.data.scene import Scene, Skip, SkipReason, corners, projected_box, to_camera
from videostr.data.sources.jsonl import Jsonl, _Entry, _Frame, _Scene, _Track
from videostr.errors import DataError

DOCUMENT = Path(__file__).parents[4] / "docs" / "annotations.md"
EYE = np.eye(4).tolist()


def flat() -> dict[str, Any]:
    """A good 2-D scene of a video file."""
    return {
        "name": "street",
        "video": "videos/street.mp4",
        "fps": 25,
        "image_size": [640, 480],
        "frames": [{"time": 0}, {"time": 0.5}, {"time": 1.0}],
        "tracks": [
            {"id": "a", "label": "dog", "frames": [{"frame": 0, "box2d": [1, 2, 30, 40]}]},
            {"id": "b", "label": "dog", "frames": [{"frame": i, "box2d": [5, 6, 70, 80]} for i in range(3)]},
        ],
    }


def solid() -> dict[str, Any]:
    """A good 3-D scene of a folder of images."""
    entry = {"center": [1, 2, 3], "size": [4, 5, 6], "yaw": 0.5}
    return {
        "name": "room",
        "video": "rooms/1",
        "fps": 30,
        "image_size": [640, 480],
        "up": [0, 0, 2],
        "frames": [{"time": i, "image": f"{i}.jpg", "camera_to_world": EYE} for i in range(3)],
        "tracks": [
            {"id": "a", "label": "chair", "frames": [{"frame": i, **entry} for i in range(2)]},
            {"id": "b", "label": "sofa", "frames": [{"frame": 2, **entry}]},
        ],
    }


def source(root: Path, *lines: object, split: str = "train") -> Jsonl:
    file = root / ("annotations.jsonl" if split == "train" else f"annotations_{split}.jsonl")
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    file.write_text("".join(f"{text}\n" for text in texts))
    return Jsonl(root, split)


def read(root: Path, value: dict[str, Any]) -> Scene:
    scene = source(root, value).read(value["name"])
    assert isinstance(scene, Scene), scene
    return scene


def change(value: dict[str, Any], path: str, to: object) -> dict[str, Any]:
    """The scene with one field set, or taken away with `...`; path as in findings."""
    *parents, last = [int(part) if part.isdigit() else part for part in re.findall(r"\w+", path)]
    changed = at = copy.deepcopy(value)
    for part in parents:
        at = at[part]
    if to is ...:
        del at[last]
    else:
        at[last] = to
    return changed


# -------------------------------------------------------------------------------------------------- documented


def example() -> dict[str, Any]:
    found = re.search(r"```json\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    assert found
    return json.loads(found[1])


def test_the_documented_example_is_good(tmp_path):
    scene = read(tmp_path, example())
    table, cat = scene.tracks
    assert (scene.countable, scene.room_size, scene.up) == (
        frozenset({"dining_table"}),
        14.5,
        (0.0, 0.0, 1.0),
    )
    assert [frame.image for frame in scene.frames] == [
        "videos/kitchen_01/000000.jpg",
        "videos/kitchen_01/000015.jpg",
    ]
    assert (table.is_static, cat.is_static) == (True, False)
    # Its numbers agree with each other, so that a reader can check his conventions with it.
    for frame, box in zip(table.frames, table.boxes, strict=True):
        solid = corners(table.centers[frame], table.sizes[frame], table.yaws[frame], scene.up)
        seen = to_camera(solid, scene.frames[frame].camera_to_world)
        np.testing.assert_allclose(projected_box(seen, scene.projection, scene.image_size), box, atol=0.6)


def test_the_document_names_every_field():
    fields = {name for kind in (_Scene, _Frame, _Track, _Entry) for name in kind.__struct_fields__}
    assert fields == set(re.findall(r"^\| `(\w+)`", DOCUMENT.read_text(), re.MULTILINE))


# -------------------------------------------------------------------------------------------------- good scenes


def test_a_2d_scene_of_a_video_file(tmp_path):
    scene = read(tmp_path, flat())
    assert (scene.source, scene.name, scene.fps, scene.image_size) == ("jsonl", "street", 25.0, (640, 480))
    assert (scene.up, scene.projection, scene.room_size, scene.skips) == (None, None, None, ())
    # All frames name the video; nothing is said of what is countable.
    assert [(frame.t, frame.image, frame.camera_to_world) for frame in scene.frames] == [
        (t, "videos/street.mp4", None) for t in (0.0, 0.5, 1.0)
    ]
    assert scene.countable == frozenset()
    first, second = scene.tracks
    assert (first.id, first.label, first.is_static, first.centers, first.sizes, first.yaws) == (
        ("a", "dog", False, None, None, None)
    )
    assert (first.frames.tolist(), second.frames.tolist()) == ([0], [0, 1, 2])
    assert second.frames.dtype == np.int64
    np.testing.assert_allclose(second.boxes, [[5, 6, 70, 80]] * 3)
    np.testing.assert_allclose(second.visibility, [1, 1, 1])


def test_a_3d_scene_of_a_folder(tmp_path):
    value = solid() | {"projection": [[500, 0, 320, 1], [0, 500, 240, 2], [0, 0, 1, 3]]}
    value["tracks"][0]["static"] = True
    value["tracks"][0]["frames"][1] |= {"visibility": 0.25, "box2d": [1, 2, 30, 40]}
    scene = read(tmp_path, value)
    assert [frame.image for frame in scene.frames] == ["rooms/1/0.jpg", "rooms/1/1.jpg", "rooms/1/2.jpg"]
    assert scene.up == (0.0, 0.0, 1.0)  # made a unit vector
    np.testing.assert_allclose(scene.projection, value["projection"])
    np.testing.assert_allclose(scene.frames[1].camera_to_world, EYE)
    chair, sofa = scene.tracks
    assert (chair.is_static, sofa.is_static, sofa.boxes) == (True, False, None)
    np.testing.assert_allclose(chair.centers, [[1, 2, 3]] * 2)
    np.testing.assert_allclose(chair.sizes, [[4, 5, 6]] * 2)
    np.testing.assert_allclose(chair.yaws, [0.5, 0.5])
    np.testing.assert_allclose(chair.visibility, [1, 0.25])
    np.testing.assert_allclose(chair.boxes, [[np.nan] * 4, [1, 2, 30, 40]])


def test_a_list_of_images(tmp_path):
    scene = read(tmp_path, flat() | {"video": ["a/1.png", "b/2.png", "c.png"]})
    assert [frame.image for frame in scene.frames] == ["a/1.png", "b/2.png", "c.png"]


def test_intrinsics_become_a_projection(tmp_path):
    scene = read(tmp_path, solid() | {"intrinsics": [[500, 0, 320], [0, 400, 240], [0, 0, 1]]})
    np.testing.assert_allclose(scene.projection, [[500, 0, 320, 0], [0, 400, 240, 0], [0, 0, 1, 0]])


def test_boxes_are_cut_at_the_image(tmp_path):
    scene = read(tmp_path, change(flat(), "tracks[0].frames[0].box2d", [-5, 2, 700, 500]))
    np.testing.assert_allclose(scene.tracks[0].boxes, [[0, 2, 640, 480]])


def test_lines_are_found_whatever_stands_between_them(tmp_path):
    # Bytes, not characters, tell where a line starts; the last line has no end.
    first = json.dumps(flat() | {"name": "straße"}, ensure_ascii=False)
    file = tmp_path / "annotations.jsonl"
    file.write_bytes(f"{first}\r\n\r\n  \n{{broken\n{json.dumps(solid())}".encode())
    found = Jsonl(tmp_path, "train")
    assert found.names == ("straße", "room")
    assert [skip.line for skip in found.skips] == [4]
    assert [getattr(found.read(name), "name", None) for name in found.names] == ["straße", "room"]


def test_splits(tmp_path):
    source(tmp_path, flat())
    assert source(tmp_path, solid(), split="heldout").names == ("room",)
    assert Jsonl(tmp_path, "train").names == ("street",)
    with pytest.raises(DataError, match=r"annotations_val\.jsonl: no such file; write a scene a line"):
        Jsonl(tmp_path, "val")


# --------------------------------------------------------------------------------------------------- findings

ROTATED = [[0, -1, 0, 5], [1, 0, 0, 6], [0, 0, 1, 7], [0, 0, 0, 1]]
MISSING: Any = ...
BOX = "tracks[0].frames[0].box2d"
ENTRY = "tracks[0].frames[1]"
FLAT = [
    ("name", "a b", "name: must be"),
    ("name", "../up", "name: must be"),
    ("name", MISSING, "name: is missing"),
    ("video", "/v.mp4", "video: must be"),
    ("video", "a/../../b.mp4", "video: must be"),
    ("video", "..", "video: must be"),
    ("video", ".", "video: must be"),
    ("video", "a\n", "video: must be"),
    ("video", "", "video: must be"),
    ("video", 3, "video: must be"),
    ("video", ["1.jpg", "2.jpg"], "video: has 2 images, must have 3, one a frame"),
    ("video", ["1.jpg", "2.jpg", "1.jpg"], "video[2]: is '1.jpg' as in video[0], must differ"),
    ("video", ["1.jpg", "2.jpg", 3], "video[2]: must be"),
    ("fps", 0, "fps: must be"),
    ("fps", True, "fps: must be"),
    ("image_size", [640], "image_size: must be"),
    ("image_size", [640.5, 480], "image_size[0]: must be"),
    ("image_size", {"w": 1}, "image_size: must be"),
    ("frames", [], "frames: must be"),
    ("frames[1]", 3, "frames[1]: must be"),
    ("frames[0].x", 1, "frames[0]: x is not a field"),
    ("frames[1].time", -1, "frames[1].time: must be"),
    ("frames[2].time", 0.5, "frames[2].time: is 0.5, must be above 0.5, that of the one before"),
    ("frames[1].image", "a.jpg", "frames[0].image: is missing"),
    ("frames[0].camera_to_world", [[1]], "frames[0].camera_to_world[0]: must be"),
    ("tracks", None, "tracks: must be"),
    ("tracks[1].id", "a", "tracks[1].id: is 'a' as in tracks[0], must differ"),
    ("tracks[0].id", 7, "tracks[0].id: must be"),
    ("tracks[0].label", "Dog", "tracks[0].label: must be"),
    ("tracks[0].static", True, "tracks[0].static: needs the scene's up"),
    ("tracks[0].frames", [], "tracks[0].frames: must be"),
    ("tracks[0].frames[0].frame", 3, "tracks[0].frames[0].frame: is 3, must be a frame's index, 0 to 2"),
    ("tracks[0].frames[0].frame", -1, "tracks[0].frames[0].frame: must be"),
    ("tracks[1].frames[1].frame", 0, "tracks[1].frames[1].frame: is 0, must be above 0"),
    ("tracks[0].frames[0].center", [1, 2, 3], "tracks[0].frames[0].center: needs the scene's up"),
    ("tracks[0].frames[0].visibility", 1.5, "tracks[0].frames[0].visibility: must be"),
    (BOX, MISSING, f"{BOX}: is missing"),
    (BOX, [1, 2, "3", 4], f"{BOX}[2]: must be"),
    (BOX, [1, 2, 3, 1e12], f"{BOX}[3]: must be"),
    (
        BOX,
        [30, 2, 1, 40],
        f"{BOX}: is [30.0, 2.0, 1.0, 40.0], must be x1, y1, x2, y2 with x1 < x2 and y1 < y2",
    ),
    (BOX, [640, 2, 700, 40], f"{BOX}: is [640.0, 2.0, 700.0, 40.0], must be x1, y1, x2, y2"),
    (BOX, [1, -9, 2, 0], f"{BOX}: is [1.0, -9.0, 2.0, 0.0], must be x1, y1, x2, y2"),
    ("countable", ["Dog"], "countable[0]: must be"),
    ("countable", "dog", "countable: must be"),
    ("room_size", True, "room_size: must be"),
]
SOLID = [
    ("up", [0, 0], "up: must be"),
    ("up", [0, 0, 0], "up: has no length, must be a direction"),
    ("frames[1].camera_to_world", MISSING, "frames[1].camera_to_world: is missing"),
    ("frames[0].camera_to_world[2]", [0, 0, 1], "frames[0].camera_to_world[2]: must be"),
    (
        "frames[1].camera_to_world",
        np.transpose(ROTATED).tolist(),
        "frames[1].camera_to_world: must be a rotation and a shift",
    ),
    ("frames[1].camera_to_world[0][0]", 2, "frames[1].camera_to_world: must be a rotation"),
    ("frames[1].camera_to_world[0][0]", -1, "frames[1].camera_to_world: must be a rotation"),
    ("frames[1].image", "0.jpg", "frames[1].image: is '0.jpg' as in frames[0], must differ"),
    ("frames[1].image", "../0.jpg", "frames[1].image: must be"),
    ("frames[1].image", MISSING, "frames[1].image: is missing"),
    (f"{ENTRY}.center", MISSING, f"{ENTRY}.center: is missing"),
    (f"{ENTRY}.size", MISSING, f"{ENTRY}.size: is missing"),
    (f"{ENTRY}.yaw", MISSING, f"{ENTRY}.yaw: is missing"),
    (f"{ENTRY}.size", [1, 2], f"{ENTRY}.size: must be"),
    (f"{ENTRY}.size", [1, 2, 0], f"{ENTRY}.size[2]: must be"),
    (f"{ENTRY}.yaw", 90, f"{ENTRY}.yaw: must be"),
    ("tracks[0].static", "yes", "tracks[0].static: must be"),
    ("projection", EYE, "projection: must be"),
    ("intrinsics", [[500, 0, 0], [0, 500, 0], [320, 240, 1]], "intrinsics: must be fx"),
    ("intrinsics", [[0, 0, 320], [0, 500, 240], [0, 0, 1]], "intrinsics: must be fx"),
]
CASES = [
    *((flat, *case) for case in FLAT),
    *((solid, *case) for case in SOLID),
]


def problems(root: Path, line: object) -> list[str]:
    """What a line is skipped for."""
    found = source(root, line)
    skip = found.read(found.names[0]) if found.names else found.skips[0]
    assert isinstance(skip, Skip)
    return skip.detail.split("; ")


@pytest.mark.parametrize(
    ("good", "path", "to", "problem"), CASES, ids=[f"{c[0].__name__}-{c[1]}" for c in CASES]
)
def test_a_problem_is_named_by_its_field(tmp_path, good, path, to, problem):
    found = problems(tmp_path, change(good(), path, to))
    assert any(text.startswith(problem) for text in found), found


def test_the_image_of_a_frame_is_refused_with_a_list(tmp_path):
    value = change(flat() | {"video": ["1.jpg", "2.jpg", "3.jpg"]}, "frames[1].image", "4.jpg")
    assert problems(tmp_path, value) == ["frames[1].image: must be left out where video is a list of images"]


def test_intrinsics_are_refused_with_a_projection(tmp_path):
    value = solid() | {"projection": np.eye(3, 4).tolist(), "intrinsics": np.eye(3).tolist()}
    assert problems(tmp_path, value) == ["intrinsics: stands next to projection, must be left out"]


@pytest.mark.parametrize("line", ['{"name": "a"', '{"name": "a", "fps": NaN}'])
def test_what_is_no_json_is_a_problem(tmp_path, line):
    good = json.dumps(flat())
    (skip,) = source(tmp_path, good, line).skips
    assert skip.line == 2
    assert skip.detail.startswith("must be JSON (")


def test_all_rules_between_fields_are_named_and_the_scene_is_skipped_whole(tmp_path):
    bad = solid() | {"name": "bad"}
    bad["frames"][1]["time"] = 0
    bad["tracks"][1]["frames"][0]["frame"] = 9
    del bad["tracks"][1]["frames"][0]["yaw"]
    found = source(tmp_path, flat(), "", bad, solid())
    assert (found.names, found.skips) == (("street", "bad", "room"), [])
    skip = found.read("bad")
    assert isinstance(skip, Skip)
    assert (skip.file, skip.line, skip.reason) == ("annotations.jsonl", 3, SkipReason.BAD_LINE)
    assert skip.detail.split("; ") == [
        "frames[1].time: is 0, must be above 0, that of the one before",
        "tracks[1].frames[0].frame: is 9, must be a frame's index, 0 to 2",
        "tracks[1].frames[0].yaw: is missing",
    ]
    assert isinstance(found.read("street"), Scene)
    assert isinstance(found.read("room"), Scene)


def test_lines_without_a_name_of_their_own_are_skipped_at_once(tmp_path):
    nameless = change(flat(), "name", MISSING) | {"fps": 0}
    found = source(tmp_path, flat(), nameless, "{broken", flat(), 3, '{"name": "x", "y": ' + "[" * 5000)
    assert found.names == ("street",)
    assert {(skip.file, skip.reason) for skip in found.skips} == {("annotations.jsonl", SkipReason.BAD_LINE)}
    assert [(skip.line, skip.detail[:32].strip()) for skip in found.skips] == [
        (2, "fps: must be a finite number, ab"),
        (3, "must be JSON (JSON is malformed:"),
        (4, "name: is 'street' as in line 1,"),
        (5, "must be an object with name, vid"),
        (6, "y is not a field (the fields are"),
    ]


def test_a_line_that_breaks_behind_its_name_is_skipped_when_read(tmp_path):
    # The number is only looked at when the scene is.
    line = json.dumps(flat()).replace('"fps": 25', '"fps": 1e999')
    found = source(tmp_path, line)
    skip = found.read("street")
    assert isinstance(skip, Skip)
    assert (skip.file, skip.line, skip.reason) == ("annotations.jsonl", 1, SkipReason.BAD_LINE)
    assert skip.detail == "fps: must be a finite number, above 0 and below 1e+09"
