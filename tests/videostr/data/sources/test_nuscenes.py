"""Tables written by hand, in the true format, with values worked out on paper."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from videostr.data.scene import Scene, Skip, SkipReason, Track, corners, project, to_camera
from videostr.data.sources.nuscenes import NuScenes
from videostr.data.sources.nuscenes_tables import DROPPED, LABELS
from videostr.errors import DataError

Tables = dict[str, list[Any]]

MINI = "v1.0-mini"
HALF = 0.5**0.5
TURN = [HALF, 0.0, 0.0, HALF]
"""90 degrees about z."""
FORWARD = [0.5, -0.5, 0.5, -0.5]
"""The camera's x, y, z are the car's -y, -z, x."""
INTRINSIC = [[1000.0, 0.0, 800.0], [0.0, 1000.0, 450.0], [0.0, 0.0, 1.0]]
START_US = 1532402927647951
OTHERS = {"attribute_tokens": [], "prev": "", "next": "", "num_lidar_pts": 5, "num_radar_pts": 0}


def annotation(sample: str, instance: str, translation: list[float], **changes: object) -> dict[str, object]:
    return {
        "token": f"annotation-{sample}-{instance}",
        "sample_token": sample,
        "instance_token": instance,
        "visibility_token": "4",
        "translation": translation,
        "size": [2.0, 4.0, 1.5],
        "rotation": TURN,
        **OTHERS,
        **changes,
    }


def image(sample: str, **changes: object) -> dict[str, object]:
    return {
        "token": f"image-{sample}",
        "sample_token": sample,
        "ego_pose_token": f"ego-{sample}",
        "calibrated_sensor_token": "front",
        "timestamp": 0,
        "fileformat": "jpg",
        "is_key_frame": True,
        "height": 900,
        "width": 1600,
        "filename": f"samples/CAM_FRONT/{sample}.jpg",
        "prev": "",
        "next": "",
        **changes,
    }


def tables() -> Tables:
    """Scene "scene-0061" of two samples, with a car; the car that films stands at (1000, 2000), then 5 m on, and faces +y."""
    ego = {"rotation": TURN, "timestamp": 0}
    return {
        "scene": [
            {"token": "s1", "name": "scene-0061", "description": "", "log_token": "", "nbr_samples": 2}
        ],
        "sample": [
            {"token": "b", "timestamp": START_US + 500_000, "scene_token": "s1", "prev": "a", "next": ""},
            {"token": "a", "timestamp": START_US, "scene_token": "s1", "prev": "", "next": "b"},
        ],
        "sample_data": [
            image("b"),
            image("a"),
            image("a", filename="sweeps/CAM_FRONT/a.jpg", is_key_frame=False, ego_pose_token="elsewhere"),
            image("a", filename="samples/CAM_BACK/a.jpg", calibrated_sensor_token="back"),
            image("a", filename="samples/LIDAR_TOP/a.bin", calibrated_sensor_token="top", width=0, height=0),
        ],
        "ego_pose": [
            {"token": "elsewhere", "translation": [0.0, 0.0, 0.0], **ego},
            {"token": "ego-a", "translation": [1000.0, 2000.0, 0.0], **ego},
            {"token": "ego-b", "translation": [1000.0, 2005.0, 0.0], **ego},
        ],
        "sensor": [
            {"token": "cam-front", "channel": "CAM_FRONT", "modality": "camera"},
            {"token": "cam-back", "channel": "CAM_BACK", "modality": "camera"},
            {"token": "lidar", "channel": "LIDAR_TOP", "modality": "lidar"},
        ],
        "calibrated_sensor": [
            {
                "token": "front",
                "sensor_token": "cam-front",
                "translation": [1.5, 0.0, 1.6],
                "rotation": FORWARD,
                "camera_intrinsic": INTRINSIC,
            },
            {
                "token": "back",
                "sensor_token": "cam-back",
                "translation": [0.0, 0.0, 1.6],
                "rotation": [0.5, -0.5, -0.5, 0.5],
                "camera_intrinsic": INTRINSIC,
            },
            {
                "token": "top",
                "sensor_token": "lidar",
                "translation": [0.9, 0.0, 1.8],
                "rotation": TURN,
                "camera_intrinsic": [],
            },
        ],
        "instance": [
            {"token": name, "category_token": name, "nbr_annotations": 1}
            for name in ("car", "walker", "litter")
        ],
        "category": [
            {"token": "car", "name": "vehicle.car", "description": ""},
            {"token": "walker", "name": "human.pedestrian.adult", "description": ""},
            {"token": "litter", "name": "movable_object.debris", "description": ""},
        ],
        "sample_annotation": [
            annotation("b", "car", [1002.0, 2021.5, 1.0], visibility_token="1"),
            annotation("a", "car", [1002.0, 2021.5, 1.0]),
        ],
    }


def write(root: Path, content: Tables, version: str = MINI) -> None:
    folder = root / version
    folder.mkdir(exist_ok=True)
    for name, rows in content.items():
        (folder / f"{name}.json").write_text(json.dumps(rows, indent=0))


def read(root: Path, content: Tables) -> Scene | Skip:
    write(root, content)
    return NuScenes(root, "train").read("scene-0061")


def scene_of(root: Path, content: Tables) -> Scene:
    scene = read(root, content)
    assert isinstance(scene, Scene), scene
    return scene


def found(scene: Scene | Skip) -> list[tuple[str, SkipReason]]:
    skips = scene.skips if isinstance(scene, Scene) else (scene,)
    assert all(skip.line is None for skip in skips)
    return [(skip.file, skip.reason) for skip in skips]


def only_track(scene: Scene) -> Track:
    (track,) = scene.tracks
    return track


# ---------------------------------------------------------------------------------------------------- geometry


def test_scene(tmp_path: Path) -> None:
    scene = scene_of(tmp_path, tables())
    assert (scene.source, scene.name, scene.fps) == ("nuscenes", "scene-0061", 2.0)
    assert (scene.image_size, scene.up, scene.skips) == ((1600, 900), (0.0, 0.0, 1.0), ())
    # In order of time, not of the table.
    assert [(frame.t, frame.image) for frame in scene.frames] == [
        (0.0, "samples/CAM_FRONT/a.jpg"),
        (0.5, "samples/CAM_FRONT/b.jpg"),
    ]
    # The car's x is the world's y, its y the world's -x. So the camera stands 1.5 m along y, 1.6 m up; its right is the car's
    # -y: x, its down -z, its forward y. The first position of the car, (1000, 2000, 0), is the origin.
    first, second = (frame.camera_to_world for frame in scene.frames)
    assert first is not None
    assert second is not None
    np.testing.assert_allclose(
        first, [[1, 0, 0, 0], [0, 0, 1, 1.5], [0, -1, 0, 1.6], [0, 0, 0, 1]], atol=1e-9
    )
    np.testing.assert_allclose(second[:3, 3], [0, 6.5, 1.6], atol=1e-9)
    assert scene.projection is not None
    np.testing.assert_array_equal(scene.projection, [[1000, 0, 800, 0], [0, 1000, 450, 0], [0, 0, 1, 0]])


def test_track(tmp_path: Path) -> None:
    scene = scene_of(tmp_path, tables())
    track = only_track(scene)
    assert (track.id, track.label, track.is_static) == ("car", "car", False)
    assert track.frames.tolist() == [0, 1]
    assert track.visibility.tolist() == [0.9, 0.2]
    assert track.centers is not None
    assert track.sizes is not None
    assert track.yaws is not None
    assert track.boxes is not None
    np.testing.assert_allclose(track.centers, [[2, 21.5, 1.0]] * 2, atol=1e-9)
    # The table has width 2, length 4, height 1.5.
    np.testing.assert_array_equal(track.sizes, [[4, 2, 1.5]] * 2)
    np.testing.assert_allclose(track.yaws, [np.pi / 2] * 2)
    # It faces +y, as the camera does: x 1 to 3, y 19.5 to 23.5, z 0.25 to 1.75. In the first camera: x 1 to 3, depth 18 to 22,
    # down -0.15 to 1.35; in the second 5 m less deep. Left by the far side, the rest by the near one.
    np.testing.assert_allclose(
        track.boxes,
        [
            [800 + 1000 / 22, 450 - 150 / 18, 800 + 3000 / 18, 450 + 1350 / 18],
            [800 + 1000 / 17, 450 - 150 / 13, 800 + 3000 / 13, 450 + 1350 / 13],
        ],
        atol=1e-6,
    )
    # World, camera, projection and box agree.
    pose = scene.frames[0].camera_to_world
    assert pose is not None
    assert scene.projection is not None
    assert scene.up is not None
    points = corners(track.centers[0], track.sizes[0], float(track.yaws[0]), scene.up)
    pixels = project(to_camera(points, pose), scene.projection)
    np.testing.assert_allclose([*pixels.min(0), *pixels.max(0)], track.boxes[0], atol=1e-6)


@pytest.mark.parametrize("degrees", [0, 30, 135, -120])
def test_yaw_is_about_z(tmp_path: Path, degrees: float) -> None:
    content = tables()
    half = np.radians(degrees) / 2
    content["sample_annotation"][1]["rotation"] = [np.cos(half), 0.0, 0.0, np.sin(half)]
    yaws = only_track(scene_of(tmp_path, content)).yaws
    assert yaws is not None
    assert np.degrees(yaws[0]) == pytest.approx(degrees)


def test_heading_of_a_box_on_a_slope(tmp_path: Path) -> None:
    content = tables()
    # 90 degrees about z, then (in the box's frame) -10 degrees about y: still heads for +y.
    a = np.radians(-10) / 2
    content["sample_annotation"][1]["rotation"] = [
        HALF * np.cos(a), -HALF * np.sin(a), HALF * np.sin(a), HALF * np.cos(a),
    ]  # fmt: skip
    yaws = only_track(scene_of(tmp_path, content)).yaws
    assert yaws is not None
    assert yaws[0] == pytest.approx(np.pi / 2)


def test_turned_camera_and_car(tmp_path: Path) -> None:
    """A car that faces -x and a camera that looks to its left: rotations that do not commute with the shifts."""
    content = tables()
    for pose in content["ego_pose"]:
        pose["rotation"] = [0.0, 0.0, 0.0, 1.0]  # 180 degrees about z
    # Forward is the car's y, right its x, down -z: as the axes (1, 0, 0), (0, 0, -1), (0, 1, 0), a turn of -90 degrees about x.
    content["calibrated_sensor"][0] |= {"rotation": [HALF, -HALF, 0.0, 0.0], "translation": [1.0, 0.5, 1.6]}
    content["sample_annotation"] = [
        annotation("a", "car", [1001.0, 1989.5, 1.6], size=[2.0, 2.0, 2.0], rotation=[1.0, 0.0, 0.0, 0.0])
    ]
    scene = scene_of(tmp_path, content)
    pose = scene.frames[0].camera_to_world
    assert pose is not None
    # Half a turn: the camera is at (-1, -0.5, 1.6) and looks along -y, with -x to its right.
    np.testing.assert_allclose(
        pose, [[-1, 0, 0, -1], [0, 0, -1, -0.5], [0, -1, 0, 1.6], [0, 0, 0, 1]], atol=1e-9
    )
    # The car's centre, world (1, -10.5, 1.6), is 10 m ahead and 2 m to the left, its near side 9 m.
    boxes = only_track(scene).boxes
    assert boxes is not None
    np.testing.assert_allclose(
        boxes[0], [800 - 3000 / 9, 450 - 1000 / 9, 800 - 1000 / 11, 450 + 1000 / 9], atol=1e-6
    )


def test_world_is_near_its_origin(tmp_path: Path) -> None:
    content = tables()
    content["ego_pose"][1]["translation"][2] = 40.0
    content["sample_annotation"][1]["translation"][2] = 41.0
    scene = scene_of(tmp_path, content)
    pose = scene.frames[0].camera_to_world
    assert pose is not None
    np.testing.assert_allclose(pose[:3, 3], [0, 1.5, 1.6], atol=1e-9)


# -------------------------------------------------------------------------------------------------------- view


def test_only_frames_that_show_the_box(tmp_path: Path) -> None:
    content = tables()
    content["sample_annotation"] = [
        annotation("a", "car", [1002.0, 2021.5, 1.0]),
        annotation("b", "car", [1002.0, 1995.0, 1.0]),  # behind the camera
        annotation("a", "walker", [1050.0, 2021.5, 1.0]),  # next to the image
        annotation("b", "walker", [1000.0, 2030.0, 1.0]),
    ]
    scene = scene_of(tmp_path, content)
    assert [(track.id, track.label, track.frames.tolist()) for track in scene.tracks] == [
        ("car", "car", [0]),
        ("walker", "pedestrian", [1]),
    ]
    assert not scene.skips


def test_visibility_counts_the_part_inside_the_image(tmp_path: Path) -> None:
    content = tables()
    # 10 m ahead, thin, x -8.4 to -7.4: the image ends at u = 0, x = -8. Two of three of its lattice's columns are inside.
    content["sample_annotation"] = [
        annotation("a", "walker", [992.1, 2011.5, 1.6], size=[0.001, 1.0, 1.0], rotation=[1.0, 0.0, 0.0, 0.0])
    ]
    track = only_track(scene_of(tmp_path, content))
    assert track.visibility[0] == pytest.approx(0.9 * 2 / 3)
    assert track.boxes is not None
    np.testing.assert_allclose(track.boxes[0], [0, 400, 60, 500], atol=0.1)


def test_box_next_to_the_camera_keeps_its_part_in_view(tmp_path: Path) -> None:
    content = tables()
    # x 1 to 3, y -1 to 9 around the camera's plane y = 1.5: its far end, 7.5 m ahead, begins at u = 800 + 1000 / 7.5.
    content["sample_annotation"] = [annotation("a", "car", [1002.0, 2004.0, 1.6], size=[2.0, 10.0, 2.0])]
    track = only_track(scene_of(tmp_path, content))
    assert track.boxes is not None
    np.testing.assert_allclose(track.boxes[0], [800 + 1000 / 7.5, 0, 1600, 900], atol=1e-6)
    assert 0 < track.visibility[0] < 0.6


def test_pole_through_the_camera_is_cut_before_it(tmp_path: Path) -> None:
    content = tables()
    # 0.1 m wide, 0.05 m tall, from 0.2 m behind the camera to 3.8 m before it: widest where it is cut, at a depth of 0.1 m.
    content["sample_annotation"] = [annotation("a", "car", [1000.0, 2003.3, 1.6], size=[0.1, 4.0, 0.05])]
    boxes = only_track(scene_of(tmp_path, content)).boxes
    assert boxes is not None
    np.testing.assert_allclose(boxes[0], [800 - 500, 450 - 250, 800 + 500, 450 + 250], atol=1e-6)


@pytest.mark.parametrize(("token", "share"), [("1", 0.2), ("2", 0.5), ("3", 0.7), ("4", 0.9)])
def test_visibility_is_the_middle_of_its_bin(tmp_path: Path, token: str, share: float) -> None:
    content = tables()
    content["sample_annotation"][1]["visibility_token"] = token
    assert only_track(scene_of(tmp_path, content)).visibility[0] == share


# ------------------------------------------------------------------------------------------------------ labels


def test_labels() -> None:
    assert len(LABELS.keys() | DROPPED) == 23
    assert not LABELS.keys() & DROPPED
    assert LABELS["vehicle.car"] == "car"
    assert LABELS["human.pedestrian.child"] == LABELS["human.pedestrian.adult"] == "pedestrian"
    assert all(label.replace("_", "").isalpha() and label.islower() for label in LABELS.values())


def test_bicycles_are_not_countable(tmp_path: Path) -> None:
    # Those in a rack are annotated as the rack.
    countable = scene_of(tmp_path, tables()).countable
    assert countable is not None
    assert {"car", "pedestrian", "bus"} <= countable
    assert not {"bicycle", "motorcycle"} & countable


def test_clutter_is_dropped(tmp_path: Path) -> None:
    content = tables()
    content["sample_annotation"].append(annotation("a", "litter", [1000.0, 2021.5, 1.0]))
    scene = scene_of(tmp_path, content)
    assert only_track(scene).id == "car"
    assert not scene.skips


# --------------------------------------------------------------------------------------------- broken entries

ANNOTATIONS, IMAGES = f"{MINI}/sample_annotation.json", f"{MINI}/sample_data.json"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"translation": [1e300, 0.0, 0.0]}, SkipReason.BAD_LINE),
        ({"rotation": [1e300, 0.0, 0.0, 0.0]}, SkipReason.BAD_LINE),
        ({"size": [0.0, 4.0, 1.5]}, SkipReason.BAD_LINE),
        ({"size": [2.0, -4.0, 1.5]}, SkipReason.BAD_LINE),
        ({"rotation": [0.0, 0.0, 0.0, 0.0]}, SkipReason.BAD_LINE),
        ({"rotation": [1.0, 1.0, 0.0, 0.0]}, SkipReason.BAD_LINE),
        ({"visibility_token": ""}, SkipReason.BAD_LINE),
        ({"visibility_token": "5"}, SkipReason.BAD_LINE),
        ({"visibility_token": 4}, SkipReason.BAD_LINE),
        ({"translation": [1.0, 2.0]}, SkipReason.BAD_LINE),
        ({"size": None}, SkipReason.BAD_LINE),
        ({"sample_token": "nowhere"}, SkipReason.UNKNOWN_REFERENCE),
        ({"instance_token": "nobody"}, SkipReason.UNKNOWN_REFERENCE),
        ({"sample_token": "b"}, SkipReason.BAD_LINE),  # a second one of the same car
    ],
)
def test_broken_annotation_is_left_out(
    tmp_path: Path, changes: dict[str, object], reason: SkipReason
) -> None:
    content = tables()
    content["sample_annotation"][1] |= changes
    scene = scene_of(tmp_path, content)
    assert found(scene) == [(ANNOTATIONS, reason)]
    assert scene.skips[0].detail.startswith("entry 1: ")
    assert only_track(scene).frames.tolist() == [1]


def test_entry_that_is_no_object(tmp_path: Path) -> None:
    content = tables()
    content["sample_annotation"][1] = ["a", "car"]
    scene = scene_of(tmp_path, content)
    assert found(scene) == [(ANNOTATIONS, SkipReason.BAD_LINE)]


@pytest.mark.parametrize(
    ("break_it", "file", "reason"),
    [
        (
            lambda t: t["category"].append({"token": "walker", "name": "vehicle.hovercraft"}),
            "category",
            SkipReason.UNKNOWN_CATEGORY,
        ),
        (lambda t: t["category"].pop(1), "instance", SkipReason.UNKNOWN_REFERENCE),
        (lambda t: t["instance"].pop(1), "sample_annotation", SkipReason.UNKNOWN_REFERENCE),
    ],
)
def test_object_without_a_label(
    tmp_path: Path, break_it: Callable[[Tables], object], file: str, reason: SkipReason
) -> None:
    content = tables()
    for sample in ("a", "b"):
        content["sample_annotation"].append(annotation(sample, "walker", [1000.0, 2030.0, 1.0]))
    break_it(content)
    scene = scene_of(tmp_path, content)
    # Once for the object, not for each of its boxes.
    assert found(scene) == [(f"{MINI}/{file}.json", reason)]
    assert only_track(scene).id == "car"


def drop_first_image(content: Tables) -> None:
    del content["sample_data"][1]


@pytest.mark.parametrize(
    ("break_it", "file", "reason"),
    [
        (drop_first_image, "sample_data", SkipReason.NO_IMAGE),
        (lambda t: t["ego_pose"].pop(1), "ego_pose", SkipReason.NO_POSE),
        (lambda t: t["ego_pose"][1].update(rotation=[0.0] * 4), "ego_pose", SkipReason.NO_POSE),
        (lambda t: t["ego_pose"][1].update(translation=[1e9, 0.0, 0.0]), "ego_pose", SkipReason.NO_POSE),
    ],
)
def test_frame_that_cannot_be_used(
    tmp_path: Path, break_it: Callable[[Tables], object], file: str, reason: SkipReason
) -> None:
    content = tables()
    break_it(content)
    scene = scene_of(tmp_path, content)
    assert found(scene) == [(f"{MINI}/{file}.json", reason)]
    assert "sample a" in scene.skips[0].detail
    assert [(frame.t, frame.image) for frame in scene.frames] == [(0.0, "samples/CAM_FRONT/b.jpg")]
    track = only_track(scene)
    assert track.frames.tolist() == [0]
    # The origin is the first position that is used.
    assert track.centers is not None
    np.testing.assert_allclose(track.centers[0], [2, 16.5, 1.0], atol=1e-9)


@pytest.mark.parametrize("changes", [{"width": 0}, {"height": -900}])
def test_image_without_a_size(tmp_path: Path, changes: dict[str, object]) -> None:
    content = tables()
    content["sample_data"][1] |= changes
    scene = scene_of(tmp_path, content)
    assert found(scene) == [(IMAGES, SkipReason.BAD_LINE), (IMAGES, SkipReason.NO_IMAGE)]
    assert len(scene.frames) == 1


def test_second_key_frame_of_a_sample(tmp_path: Path) -> None:
    content = tables()
    content["sample_data"].append(image("a", filename="samples/CAM_FRONT/again.jpg"))
    scene = scene_of(tmp_path, content)
    assert found(scene) == [(IMAGES, SkipReason.BAD_LINE)]
    assert scene.frames[0].image == "samples/CAM_FRONT/a.jpg"


def test_camera_that_changes(tmp_path: Path) -> None:
    content = tables()
    other = copy.deepcopy(content["calibrated_sensor"][0]) | {"token": "other"}
    other["camera_intrinsic"][0][0] = 900.0
    content["calibrated_sensor"].append(other)
    content["sample_data"][0]["calibrated_sensor_token"] = "other"
    scene = scene_of(tmp_path, content)
    assert found(scene) == [(IMAGES, SkipReason.NO_CALIBRATION)]
    assert [frame.image for frame in scene.frames] == ["samples/CAM_FRONT/a.jpg"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"camera_intrinsic": []}, SkipReason.NO_CALIBRATION),
        ({"camera_intrinsic": [[0.0] * 3] * 3}, SkipReason.NO_CALIBRATION),
        ({"rotation": [2.0, 0.0, 0.0, 0.0]}, SkipReason.NO_CALIBRATION),
        ({"sensor_token": "none"}, SkipReason.UNKNOWN_REFERENCE),
        ({"translation": "here"}, SkipReason.BAD_LINE),
    ],
)
def test_broken_camera(tmp_path: Path, changes: dict[str, object], reason: SkipReason) -> None:
    content = tables()
    content["calibrated_sensor"].append(content["calibrated_sensor"][0] | {"token": "broken"} | changes)
    content["sample_data"][0]["calibrated_sensor_token"] = "broken"
    scene = scene_of(tmp_path, content)
    assert found(scene) == [(f"{MINI}/calibrated_sensor.json", reason), (IMAGES, SkipReason.NO_IMAGE)]
    assert scene.skips[0].detail.startswith("entry 3: ")
    assert len(scene.frames) == 1


@pytest.mark.parametrize("table", ["sample", "sample_data"])
def test_entry_that_refers_to_nothing(tmp_path: Path, table: str) -> None:
    content = tables()
    row = copy.deepcopy(content[table][1])
    row |= {"token": "x", "scene_token": "nowhere", "sample_token": "nowhere"}
    content[table].append(row)
    scene = scene_of(tmp_path, content)
    assert found(scene) == [(f"{MINI}/{table}.json", SkipReason.UNKNOWN_REFERENCE)]
    assert "'nowhere'" in scene.skips[0].detail
    assert len(scene.frames) == 2


def test_findings_of_no_scene_are_reported_once(tmp_path: Path) -> None:
    content = tables()
    content["scene"].insert(0, {"token": "s2", "name": "scene-0103"})
    content["sample"].append({"token": "c", "timestamp": START_US, "scene_token": "s2"})
    content["sample_data"].append(image("c", ego_pose_token="ego-a"))
    content["sample_annotation"] += [
        annotation("c", "walker", [1000.0, 2030.0, 1.0]),
        annotation("nowhere", "car", [1002.0, 2021.5, 1.0]),
    ]
    write(tmp_path, content)
    # Whichever scene is read first.
    source = NuScenes(tmp_path, "train")
    assert tuple(source.names) == ("scene-0061", "scene-0103")
    second, first = source.read("scene-0103"), source.read("scene-0061")
    assert isinstance(second, Scene)
    assert [track.label for track in second.tracks] == ["pedestrian"]
    assert not second.skips
    assert found(first) == [(ANNOTATIONS, SkipReason.UNKNOWN_REFERENCE)]


def test_scene_without_objects(tmp_path: Path) -> None:
    content = tables()
    content["sample_annotation"] = []
    assert found(read(tmp_path, content)) == [(ANNOTATIONS, SkipReason.NO_OBJECT)]


@pytest.mark.parametrize("table", ["sample", "sample_data"])
def test_scene_without_frames(tmp_path: Path, table: str) -> None:
    content = tables()
    content[table] = []
    assert found(read(tmp_path, content)) == [(IMAGES, SkipReason.NO_IMAGE)]


# ---------------------------------------------------------------------------------------------- broken tables


@pytest.mark.parametrize("table", sorted(set(tables()) - {"scene"}))
def test_broken_table_refuses_every_scene(tmp_path: Path, table: str) -> None:
    path = tmp_path / MINI / f"{table}.json"
    write(tmp_path, tables())
    whole = path.read_bytes()
    damages = (whole[:-9], b"", b"{}", b"[" * 100_000, whole.replace(b"[", b"[NaN, ", 1), b"\xff" + whole)
    for content in damages:
        path.write_bytes(content)
        source = NuScenes(tmp_path, "train")
        for _ in range(2):
            assert found(source.read("scene-0061")) == [(f"{MINI}/{table}.json", SkipReason.UNREADABLE)]
    path.unlink()
    assert found(NuScenes(tmp_path, "train").read("scene-0061")) == [
        (f"{MINI}/{table}.json", SkipReason.UNREADABLE)
    ]


def test_tables_are_read_once(tmp_path: Path) -> None:
    write(tmp_path, tables())
    source = NuScenes(tmp_path, "train")
    first = source.read("scene-0061")
    for path in (tmp_path / MINI).iterdir():
        path.unlink()
    second = source.read("scene-0061")
    assert isinstance(first, Scene)
    assert isinstance(second, Scene)
    assert len(first.tracks) == len(second.tracks) == 1


def test_making_a_source_reads_only_the_scenes(tmp_path: Path) -> None:
    write(tmp_path, tables())
    for path in (tmp_path / MINI).iterdir():
        if path.name != "scene.json":
            path.write_text("")
    assert tuple(NuScenes(tmp_path, "train").names) == ("scene-0061",)


@pytest.mark.parametrize("content", ["", "[{", "{}", "[]", None])
def test_scene_table_that_cannot_be_read(tmp_path: Path, content: str | None) -> None:
    write(tmp_path, tables())
    path = tmp_path / MINI / "scene.json"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(DataError, match=r"scene\.json: "):
        NuScenes(tmp_path, "train")


def test_broken_row_of_a_scene(tmp_path: Path) -> None:
    content = tables()
    content["scene"].append({"token": "s2"})
    write(tmp_path, content)
    source = NuScenes(tmp_path, "train")
    assert tuple(source.names) == ("scene-0061",)
    (skip,) = source.skips
    assert (skip.file, skip.line, skip.reason) == (f"{MINI}/scene.json", None, SkipReason.BAD_LINE)
    assert skip.detail.startswith("entry 1: ")


# ------------------------------------------------------------------------------------------------------ splits


def many(*names: str) -> Tables:
    return tables() | {"scene": [{"token": f"s-{name}", "name": name} for name in names]}


def test_train_is_all_scenes_without_a_list(tmp_path: Path) -> None:
    write(tmp_path, many("scene-0103", "scene-0061"))
    source = NuScenes(tmp_path, "train")
    assert tuple(source.names) == ("scene-0061", "scene-0103")
    assert not source.skips
    with pytest.raises(DataError, match=r"splits\.json: is missing"):
        NuScenes(tmp_path, "val")


def test_splits_follow_the_list(tmp_path: Path) -> None:
    write(tmp_path, many("scene-0103", "scene-0061", "scene-0553"))
    lists = {"train": ["scene-0061", "scene-9999"], "val": ["scene-0103"], "test": ["scene-0553"]}
    (tmp_path / "splits.json").write_text(json.dumps(lists))
    train, val = NuScenes(tmp_path, "train"), NuScenes(tmp_path, "val")
    assert tuple(train.names) == ("scene-0061",)
    assert tuple(val.names) == ("scene-0103",)
    assert [(skip.file, skip.line, skip.reason) for skip in train.skips] == [
        ("scene-0103", None, SkipReason.EXCLUDED),
        ("scene-0553", None, SkipReason.EXCLUDED),
    ]
    with pytest.raises(DataError, match="'test'"):
        NuScenes(tmp_path, "test")
    with pytest.raises(DataError, match="choose one of test, train, val"):
        NuScenes(tmp_path, "trian")


@pytest.mark.parametrize("content", ["", "[]", '{"train": "scene-0061"}', '{"train": [61]}', b"\xff"])
def test_broken_list(tmp_path: Path, content: str | bytes) -> None:
    write(tmp_path, tables())
    (tmp_path / "splits.json").write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DataError, match=r"splits\.json: "):
        NuScenes(tmp_path, "train")


def test_split_without_scenes(tmp_path: Path) -> None:
    write(tmp_path, tables())
    (tmp_path / "splits.json").write_text('{"train": ["scene-9999"]}')
    with pytest.raises(DataError, match="has no scene of split 'train'"):
        NuScenes(tmp_path, "train")


def test_trainval_comes_before_mini_and_test_is_never_read(tmp_path: Path) -> None:
    write(tmp_path, many("scene-0077"), "v1.0-test")
    with pytest.raises(DataError, match=r"neither v1\.0-trainval nor v1\.0-mini"):
        NuScenes(tmp_path, "train")
    write(tmp_path, many("scene-0061"))
    assert tuple(NuScenes(tmp_path, "train").names) == ("scene-0061",)
    write(tmp_path, many("scene-0001", "scene-0061"), "v1.0-trainval")
    assert tuple(NuScenes(tmp_path, "train").names) == ("scene-0001", "scene-0061")


def test_damage_never_raises(tmp_path: Path) -> None:
    write(tmp_path, tables())
    rng = np.random.default_rng(0)
    for name in sorted(set(tables()) - {"scene"}):
        path = tmp_path / MINI / f"{name}.json"
        content = path.read_bytes()
        for _ in range(25):
            damaged = bytearray(content)
            for place in rng.integers(0, len(content), 2):
                damaged[place] = rng.integers(0, 256)
            path.write_bytes(bytes(damaged))
            assert isinstance(NuScenes(tmp_path, "train").read("scene-0061"), Scene | Skip)
        path.write_bytes(content)
