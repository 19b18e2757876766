"""KITTI tracking: hand-made trees with golden values, every kind of finding, and the real labels where they are there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from videostr.data.build.settings import Settings
from videostr.data.build.worker import scene_records
from videostr.data.records import record_from_row, record_to_row
from videostr.data.scene import Scene, Skip, SkipReason, Track, corners, ground_axes, projected_box, to_camera
from videostr.data.sources.kitti import Kitti
from videostr.errors import DataError
from videostr.query import entailed, is_answerable

REAL = Path(__file__).parents[4].parent / "shared" / "data" / "kitti_tracking"
P2 = "700 0 600 45 0 700 170 0.2 0 0 1 0.003"
STILL = "1 0 0 0 0 1 0 0 0 0 1 0"
CAR = "Car 0 0 -1.5 100 150 200 250 1.5 1.6 4.0 2.0 1.7 10.0 0.3"
"""Height 1.5, width 1.6, length 4; centre of the bottom (2, 1.7, 10)."""
DONT_CARE = "-1 DontCare -1 -1 -10 10 10 20 20 -1000 -1000 -1000 -10 -1 -1 -1"
# The IMU looks forward, left, up; so does the laser scanner.
CALIBRATION = [
    f"P2: {P2}",
    "R_rect 1 0 0 0 1 0 0 0 1 ",
    "Tr_velo_cam 0 -1 0 0 0 0 -1 0 1 0 0 0 ",
    "Tr_imu_velo 1 0 0 0 0 1 0 0 0 0 1 0",
]


def tree(
    root: Path, labels: list[str], *, calib: list[str] = CALIBRATION, name: str = "0007", **tables: list[str]
) -> Kitti:
    """A source of one sequence; `tables` holds the lines of `poses` or `oxts`."""
    for folder, lines in {"label_02": labels, "calib": calib, **(tables or {"poses": [STILL] * 3})}.items():
        file = root / "training" / folder / f"{name}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(f"{line}\n" for line in lines))
    return Kitti(root, "train")


def read(root: Path, labels: list[str], **parts: list[str]) -> Scene:
    scene = tree(root, labels, **parts).read("0007")
    assert isinstance(scene, Scene), scene
    return scene


def unusable(root: Path, labels: list[str], **parts: list[str]) -> Skip:
    skip = tree(root, labels, **parts).read("0007")
    assert isinstance(skip, Skip)
    return skip


def oxts(latitude: float, longitude: float, *, roll: float = 0, pitch: float = 0, yaw: float = 0) -> str:
    return " ".join(map(str, [latitude, longitude, 100.0, roll, pitch, yaw, *[0] * 24]))


def car(frame: int, values: str = CAR, track: int = 3) -> str:
    return f"{frame} {track} {values}"


def pose(turn: np.ndarray, shift: list[float]) -> str:
    return " ".join(map(str, np.column_stack([turn, shift]).ravel()))


def about_down(angle: float) -> np.ndarray:
    """A camera that turned right."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])


# ------------------------------------------------------------------------------------------------ golden values


def test_a_scene(tmp_path):
    source = tree(tmp_path, [f"0 {DONT_CARE}", car(0), car(2), f"3 {DONT_CARE}"], poses=[STILL] * 6)
    assert (source.names, source.skips) == (("0007",), [])
    scene = source.read("0007")
    assert isinstance(scene, Scene)
    assert (scene.source, scene.name, scene.fps, scene.image_size) == ("kitti", "0007", 10.0, (1242, 375))
    assert (scene.up, scene.countable, scene.room_size, scene.skips) == ((0.0, -1.0, 0.0), None, None, ())
    # Frames 1 and 3 have no object and are frames nevertheless; 4 and 5 are not labelled.
    assert [(frame.t, frame.image) for frame in scene.frames] == [
        (0.0, "training/image_02/0007/000000.png"),
        (0.1, "training/image_02/0007/000001.png"),
        (0.2, "training/image_02/0007/000002.png"),
        (0.3, "training/image_02/0007/000003.png"),
    ]
    (track,) = scene.tracks
    assert (track.id, track.label, track.is_static) == ("3", "car", False)
    assert track.frames.tolist() == [0, 2]
    assert track.frames.dtype == np.int64
    np.testing.assert_allclose(track.visibility, [1, 1])
    np.testing.assert_allclose(track.boxes, [[100, 150, 200, 250]] * 2)
    np.testing.assert_allclose(scene.projection, np.array(P2.split(), float).reshape(3, 4))


def test_the_position_is_the_bottoms_and_y_points_down(tmp_path):
    # The centre lies 1.5 m / 2 above y = 1.7.
    np.testing.assert_allclose(only(read(tmp_path, [car(0)])).centers, [[2.0, 0.95, 10.0]])


def test_sizes_are_length_width_height(tmp_path):
    np.testing.assert_allclose(only(read(tmp_path, [car(0)])).sizes, [[4.0, 1.6, 1.5]])


@pytest.mark.parametrize(
    ("rotation_y", "heading"),
    [
        (0.0, [1, 0, 0]),
        (np.pi / 2, [0, 0, -1]),
        (-np.pi / 2, [0, 0, 1]),
        (np.pi / 4, [0.7071068, 0, -0.7071068]),
    ],
)
def test_rotation_y_turns_about_the_down_axis(tmp_path, rotation_y, heading):
    scene = read(tmp_path, [car(0, CAR.replace("0.3", str(rotation_y)))])
    np.testing.assert_allclose(heading_of(scene, only(scene), 0), heading, atol=1e-6)
    assert only(scene).yaws is not None
    assert only(scene).yaws[0] == pytest.approx(-rotation_y)


def test_boxes_go_through_the_pose(tmp_path):
    # In frame 1 the camera stands 5 m further and has turned right by 90 degrees: its z is the world's x, its x the
    # world's -z. The car's centre (2, 0.95, 10) lies at (10, 0.95, -2) + (0, 0, 5). It faces the camera's x.
    turned = pose(about_down(np.pi / 2), [0, 0, 5])
    scene = read(tmp_path, [car(0), car(1, CAR.replace("0.3", "0"))], poses=[STILL, turned])
    np.testing.assert_allclose(only(scene).centers[1], [10, 0.95, 3], atol=1e-9)
    np.testing.assert_allclose(heading_of(scene, only(scene), 1), [0, 0, -1], atol=1e-9)
    np.testing.assert_allclose(scene.frames[1].camera_to_world[:3, 3], [0, 0, 5], atol=1e-9)


def test_a_heading_is_level_in_the_world_where_the_camera_tilts(tmp_path):
    # The camera looks up by 10 degrees: its z is (0, -sin, cos). A car that faces away from it (rotation_y = -90 degrees)
    # faces z in the world, and a centre 10 m before the camera is 1.74 m higher.
    c, s = np.cos(np.radians(10)), np.sin(np.radians(10))
    tilted = pose(np.array([[1, 0, 0], [0, c, -s], [0, s, c]]), [0, 0, 0])
    scene = read(tmp_path, [car(0), car(1, CAR.replace("0.3", "-1.5707963"))], poses=[STILL, tilted])
    np.testing.assert_allclose(only(scene).centers[1], [2, 0.95 * c - 10 * s, 0.95 * s + 10 * c], atol=1e-6)
    np.testing.assert_allclose(heading_of(scene, only(scene), 1), [0, 0, 1], atol=1e-6)
    np.testing.assert_allclose(scene.frames[1].camera_to_world[:3, 1], [0, c, s], atol=1e-9)


def test_poses_are_relative_to_the_first(tmp_path):
    poses = [pose(about_down(np.pi / 2), [7, 0, 0]), pose(about_down(np.pi / 2), [9, 0, 0])]
    scene = read(tmp_path, [car(0), car(1)], poses=poses)
    np.testing.assert_allclose(scene.frames[0].camera_to_world, np.eye(4), atol=1e-9)
    # 2 m along the camera's z
    np.testing.assert_allclose(scene.frames[1].camera_to_world[:3, 3], [0, 0, 2], atol=1e-9)


def test_visibility(tmp_path):
    levels = [(t, o) for t in (0, 1, 2) for o in (0, 1, 2, 3)]
    rows = [car(i, CAR.replace("Car 0 0", f"Car {t} {o}")) for i, (t, o) in enumerate(levels)]
    scene = read(tmp_path, rows, poses=[STILL] * 12)
    expected = [1, 0.5, 0.1, 0, 0.5, 0.25, 0.05, 0, 0.1, 0.05, 0.01, 0]
    np.testing.assert_allclose(only(scene).visibility, expected)


def test_labels(tmp_path):
    kinds = ["Car", "Van", "Truck", "Pedestrian", "Person_sitting", "Person", "Cyclist", "Tram", "Misc"]
    scene = read(
        tmp_path, [car(0, CAR.replace("Car", kind), i) for i, kind in enumerate(kinds)] + [f"0 {DONT_CARE}"]
    )
    assert [(track.id, track.label) for track in scene.tracks] == [
        ("0", "car"),
        ("1", "van"),
        ("2", "truck"),
        ("3", "pedestrian"),
        ("4", "person_sitting"),
        ("5", "person_sitting"),
        ("6", "cyclist"),
        ("7", "tram"),
    ]
    assert scene.skips == ()


def test_rows_of_a_track_may_come_in_any_order_and_with_a_score(tmp_path):
    scene = read(tmp_path, [f"{car(2)} 0.9", car(0, CAR.replace(" 10.0 ", " 11.0 "))])
    assert only(scene).frames.tolist() == [0, 2]
    np.testing.assert_allclose(only(scene).centers[:, 2], [11, 10])


def test_boxes_are_cut_at_the_image(tmp_path):
    scene = read(tmp_path, [car(0, CAR.replace("100 150 200 250", "-3 150 1250 380"))])
    np.testing.assert_allclose(only(scene).boxes, [[0, 150, 1242, 375]])


def test_the_image_size_is_that_of_an_image_where_there_is_one(tmp_path):
    file = tmp_path / "training" / "image_02" / "0007" / "000000.png"
    file.parent.mkdir(parents=True)
    Image.new("RGB", (1224, 370)).save(file)
    scene = read(tmp_path, [car(0, CAR.replace("100 150 200 250", "100 150 1230 375"))])
    assert scene.image_size == (1224, 370)
    np.testing.assert_allclose(only(scene).boxes, [[100, 150, 1224, 370]])


@pytest.mark.parametrize(
    "calib",
    [
        CALIBRATION,
        [f"P2: {P2} ", *(line.replace(" ", ": ", 1) for line in CALIBRATION[1:])],
        [
            line.replace("R_rect", "R0_rect:")
            .replace("velo_cam", "velo_to_cam:")
            .replace("imu_velo", "imu_to_velo:")
            for line in CALIBRATION
        ],
    ],
)
def test_spellings_of_the_calibration(tmp_path, calib):
    scene = read(tmp_path, [car(0)], calib=calib, oxts=[oxts(0, 0)])
    np.testing.assert_allclose(scene.projection, np.array(P2.split(), float).reshape(3, 4))


# ------------------------------------------------------------------------------------------------------- oxts


@pytest.mark.parametrize(("latitude", "step_m"), [(0.0, 1.1131949), (60.0, 0.5565975)])
def test_oxts_east_is_scaled_by_the_cosine_of_the_latitude(tmp_path, latitude, step_m):
    # 1e-5 degrees of longitude: 6378137 m * 1e-5 * pi / 180 = 1.1131949 m at the equator, half at 60 degrees. The car looks
    # east (yaw 0) and drives east: along its camera's z.
    rows = [oxts(latitude, 8.0), oxts(latitude, 8.00001)]
    scene = read(tmp_path, [car(0), car(1)], oxts=rows)
    np.testing.assert_allclose(scene.frames[0].camera_to_world, np.eye(4), atol=1e-9)
    np.testing.assert_allclose(scene.frames[1].camera_to_world[:3, 3], [0, 0, step_m], atol=1e-6)
    np.testing.assert_allclose(only(scene).centers[:, 2], [10, 10 + step_m], atol=1e-6)


def test_oxts_north(tmp_path):
    # Towards the north, that is the left of a car that looks east: also 1.1131949 m, whatever the latitude.
    scene = read(tmp_path, [car(0), car(1)], oxts=[oxts(60.0, 8.0), oxts(60.00001, 8.0)])
    np.testing.assert_allclose(scene.frames[1].camera_to_world[:3, 3], [-1.1131949, 0, 0], atol=1e-5)


def test_oxts_turns_roll_first_and_yaw_last(tmp_path):
    # Rz(90) Rx(90) of the IMU's axes: forward -> left -> left; left -> up -> up; up -> right -> forward. In the camera
    # (z forward, x right, y down): x -> down = y, y -> backward = -z, z -> left = -x.
    scene = read(tmp_path, [car(1)], oxts=[oxts(0, 0), oxts(0, 0, roll=np.pi / 2, yaw=np.pi / 2)])
    expected = np.array([[0, 0, -1], [1, 0, 0], [0, -1, 0]])
    np.testing.assert_allclose(scene.frames[1].camera_to_world[:3, :3], expected, atol=1e-9)
    # Ry(90) Rx(90): forward -> forward -> down; left -> up -> forward; up -> right -> right.
    # x -> -forward = -z, y -> -right = -x, z -> down = y
    scene = read(tmp_path, [car(1)], oxts=[oxts(0, 0), oxts(0, 0, roll=np.pi / 2, pitch=np.pi / 2)])
    expected = np.array([[0, -1, 0], [0, 0, 1], [-1, 0, 0]])
    np.testing.assert_allclose(scene.frames[1].camera_to_world[:3, :3], expected, atol=1e-9)


def test_oxts_reaches_the_camera_through_all_transforms(tmp_path):
    # The scanner lies 1 m behind the IMU (IMU's origin is at x = 1 of the scanner), the camera 0.5 m before the scanner; the
    # rectified camera is turned by 180 degrees about z. The camera so lies 0.5 m behind the IMU. When the car turns left by
    # 90 degrees about the IMU, the camera goes from 0.5 m behind to 0.5 m right of it: in the first camera 0.5 m forward and
    # 0.5 m right, which the rectification makes 0.5 m left.
    calib = [
        f"P2: {P2}",
        "R_rect -1 0 0 0 -1 0 0 0 1",
        "Tr_velo_cam 0 -1 0 0 0 0 -1 0 1 0 0 -0.5",
        "Tr_imu_velo 1 0 0 1 0 1 0 0 0 0 1 0",
    ]
    scene = read(tmp_path, [car(1)], calib=calib, oxts=[oxts(0, 0), oxts(0, 0, yaw=np.pi / 2)])
    np.testing.assert_allclose(scene.frames[1].camera_to_world[:3, 3], [-0.5, 0, 0.5], atol=1e-9)


def test_poses_go_before_oxts(tmp_path):
    parts = {"oxts": [oxts(0, 0), oxts(0, 1)], "poses": [STILL, pose(np.eye(3), [0, 0, 2])]}
    scene = read(tmp_path, [car(0), car(1)], **parts)
    np.testing.assert_allclose(scene.frames[1].camera_to_world[:3, 3], [0, 0, 2])


# -------------------------------------------------------------------------------------------- malformed input

BROKEN_ROWS = {
    "columns": ("0 3 Car 0 0", SkipReason.BAD_LINE, "has 5 columns, must have 17"),
    "empty": ("", SkipReason.BAD_LINE, "has 0 columns"),
    "no ASCII": ("0 3 Cär 0 0", SkipReason.BAD_LINE, "has 5 columns"),
    "frame": (car(0).replace("0", "x", 1), SkipReason.BAD_LINE, "must be whole numbers"),
    "negative frame": (car(-1), SkipReason.BAD_LINE, "frame = -1"),
    "text": (car(0, CAR.replace("4.0", "4,0")), SkipReason.BAD_LINE, "'4,0'"),
    "no track": (car(0, track=-1), SkipReason.BAD_LINE, "-1, 0, 0"),
    "truncated": (car(0, CAR.replace("Car 0 0", "Car 3 0")), SkipReason.BAD_LINE, "3, 3, 0"),
    "occluded": (car(0, CAR.replace("Car 0 0", "Car 0 4")), SkipReason.BAD_LINE, "3, 0, 4"),
    "type": (
        car(0, CAR.replace("Car", "Bus")),
        SkipReason.UNKNOWN_CATEGORY,
        "type = 'Bus', must be one of Car",
    ),
    "NaN": (car(0, CAR.replace("10.0", "nan")), SkipReason.NOT_FINITE, "nan"),
    "infinite": (car(0, CAR.replace("10.0", "1e999")), SkipReason.NOT_FINITE, "inf"),
    "huge": (car(0, CAR.replace("10.0", "1e300")), SkipReason.NOT_FINITE, "1e+300"),
    "no area": (car(0, CAR.replace("100 150 200", "100 150 100")), SkipReason.NO_EXTENT, "box 100.0"),
    "no volume": (car(0, CAR.replace("4.0", "0")), SkipReason.NO_EXTENT, "[1.5, 1.6, 0.0]"),
    "outside": (car(0, CAR.replace("100 150 200", "1300 150 1400")), SkipReason.OUTSIDE, "1242 x 375"),
    "twice": (car(1, track=5), SkipReason.BAD_LINE, "track 5 stands in frame 1 already"),
    "other type": (
        car(0, CAR.replace("Car", "Van"), 5),
        SkipReason.BAD_LINE,
        "track 5 is a van, was a car before",
    ),
}


@pytest.mark.parametrize("case", BROKEN_ROWS)
def test_a_broken_row_is_skipped_and_the_rest_is_used(tmp_path, case):
    row, reason, detail = BROKEN_ROWS[case]
    scene = read(tmp_path, [car(1, track=5), row, car(2, track=5)])
    (skip,) = scene.skips
    assert (skip.file, skip.line, skip.reason) == ("training/label_02/0007.txt", 2, reason)
    assert detail in skip.detail
    assert only(scene).id == "5"
    assert only(scene).frames.tolist() == [1, 2]


BROKEN_POSES = {
    "count": (STILL[:-2], SkipReason.BAD_LINE, "has 11 numbers, must have 12"),
    "empty": (" ", SkipReason.BAD_LINE, "has 0 numbers"),
    "text": (STILL.replace("1", "one", 1), SkipReason.BAD_LINE, "'one'"),
    "NaN": (STILL.replace("1", "nan", 1), SkipReason.NOT_FINITE, "nan"),
    "scaled": (STILL.replace("1", "2"), SkipReason.BAD_LINE, "is not a pose"),
    "mirrored": (STILL.replace("1", "-1", 1), SkipReason.BAD_LINE, "is not a pose"),
}


@pytest.mark.parametrize("case", BROKEN_POSES)
def test_a_frame_with_a_broken_pose_is_left_out(tmp_path, case):
    row, reason, detail = BROKEN_POSES[case]
    last = pose(np.eye(3), [0, 0, 4])
    scene = read(tmp_path, [car(0), car(1), car(2)], poses=[STILL, row, last])
    (skip,) = scene.skips
    assert (skip.file, skip.line, skip.reason) == ("training/poses/0007.txt", 2, reason)
    assert detail in skip.detail
    # Frame 2 keeps its time and its pose, and becomes the scene's second.
    assert [frame.t for frame in scene.frames] == [0.0, 0.2]
    assert only(scene).frames.tolist() == [0, 1]
    np.testing.assert_allclose(only(scene).centers[:, 2], [10, 14])


@pytest.mark.parametrize(
    ("row", "reason", "detail"),
    [
        ("0 0 0 0 0 0", SkipReason.BAD_LINE, "has 6 numbers, must have 30"),
        (oxts(95, 8), SkipReason.BAD_LINE, "latitude"),
        (oxts(float("nan"), 8), SkipReason.NOT_FINITE, "nan"),
    ],
)
def test_a_frame_with_a_broken_oxts_record_is_left_out(tmp_path, row, reason, detail):
    # Also where it is the first: the world is then that of the second.
    scene = read(tmp_path, [car(0), car(1), car(2)], oxts=[row, oxts(0, 0), oxts(0, 0.00001)])
    (skip,) = scene.skips
    assert (skip.file, skip.line, skip.reason) == ("training/oxts/0007.txt", 1, reason)
    assert detail in skip.detail
    assert [frame.t for frame in scene.frames] == [0.1, 0.2]
    np.testing.assert_allclose(scene.frames[0].camera_to_world, np.eye(4), atol=1e-9)
    np.testing.assert_allclose(scene.frames[1].camera_to_world[:3, 3], [0, 0, 1.1131949], atol=1e-6)


def test_an_empty_first_line_is_a_frame_too(tmp_path):
    scene = read(tmp_path, [car(0), car(1)], poses=["", STILL])
    assert [(skip.line, skip.reason) for skip in scene.skips] == [(1, SkipReason.BAD_LINE)]
    assert [frame.t for frame in scene.frames] == [0.1]


def test_last_frames_without_a_pose_are_left_out_with_one_skip(tmp_path):
    scene = read(tmp_path, [car(i) for i in range(6)], poses=[STILL] * 4)
    (skip,) = scene.skips
    assert (skip.file, skip.line, skip.reason) == ("training/poses/0007.txt", None, SkipReason.NO_POSE)
    assert skip.detail == "has rows up to frame 3; left out: frames 4 to 5"
    assert len(scene.frames) == 4
    assert only(scene).frames.tolist() == [0, 1, 2, 3]


def test_an_absurd_frame_number_costs_nothing(tmp_path):
    scene = read(tmp_path, [car(0), car(10**30)])
    assert len(scene.frames) == 3
    assert [skip.reason for skip in scene.skips] == [SkipReason.NO_POSE]


def test_an_unreadable_image_leaves_the_documented_size(tmp_path):
    file = tmp_path / "training" / "image_02" / "0007" / "000000.png"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"\x89PNG")
    scene = read(tmp_path, [car(0)])
    (skip,) = scene.skips
    where = ("training/image_02/0007/000000.png", None, SkipReason.UNREADABLE)
    assert (skip.file, skip.line, skip.reason) == where
    assert scene.image_size == (1242, 375)


def test_frames_without_an_image_are_left_out_where_the_sequence_has_images(tmp_path):
    folder = tmp_path / "training" / "image_02" / "0007"
    folder.mkdir(parents=True)
    for number in (0, 2):
        Image.new("RGB", (1242, 375)).save(folder / f"{number:06d}.png")
    scene = read(tmp_path, [car(frame) for frame in range(3)])
    assert [frame.image[-10:] for frame in scene.frames] == ["000000.png", "000002.png"]
    assert only(scene).frames.tolist() == [0, 1]
    (skip,) = scene.skips
    assert (skip.file, skip.reason) == ("training/image_02/0007", SkipReason.NO_IMAGE)
    assert skip.detail == "1 of 3 frames have none, 000001.png is the first"


BROKEN_CALIBRATIONS = {
    "no P2": ("calib", CALIBRATION[1:], None, SkipReason.NO_CALIBRATION, "has no line P2"),
    "no transform": (
        "calib",
        CALIBRATION[:2],
        None,
        SkipReason.NO_CALIBRATION,
        "Tr_velo_to_cam, Tr_imu_to_velo",
    ),
    "short": (
        "calib",
        [CALIBRATION[1], f"P2: {P2[:-6]}"],
        2,
        SkipReason.BAD_LINE,
        "has 11 numbers, must have 12",
    ),
    "NaN": ("calib", [f"P2: {P2[:-6]} nan"], 1, SkipReason.NOT_FINITE, "nan"),
    "scaled": ("calib", ["R_rect 2 0 0 0 1 0 0 0 1"], 1, SkipReason.BAD_LINE, "R_rect must hold a rotation"),
}


@pytest.mark.parametrize("case", BROKEN_CALIBRATIONS)
def test_a_sequence_without_calibration_is_skipped(tmp_path, case):
    folder, calib, line, reason, detail = BROKEN_CALIBRATIONS[case]
    skip = unusable(tmp_path, [car(0)], calib=calib, oxts=[oxts(0, 0)])
    assert (skip.file, skip.line, skip.reason) == (f"training/{folder}/0007.txt", line, reason)
    assert detail in skip.detail


def test_calibration_that_is_not_needed_is_not_looked_at(tmp_path):
    assert read(tmp_path, [car(0)], calib=[CALIBRATION[0], "R_rect nonsense"]).skips == ()


@pytest.mark.parametrize(
    ("folder", "reason"),
    [
        ("calib", SkipReason.NO_CALIBRATION),
        ("poses", SkipReason.NO_POSE),
        ("label_02", SkipReason.UNREADABLE),
    ],
)
def test_a_sequence_with_a_missing_file_is_skipped(tmp_path, folder, reason):
    source = tree(tmp_path, [car(0)])
    (tmp_path / "training" / folder / "0007.txt").unlink()
    skip = source.read("0007")
    assert isinstance(skip, Skip)
    file = f"training/{'oxts' if folder == 'poses' else folder}/0007.txt"
    # Where neither is there, poses are missed first at the official place.
    assert (skip.file, skip.line, skip.reason) == (file, None, reason)


def test_a_sequence_without_any_pose_is_skipped(tmp_path):
    skip = unusable(tmp_path, [car(0)], poses=["x"])
    assert (skip.file, skip.line, skip.reason) == ("training/poses/0007.txt", None, SkipReason.NO_POSE)


def test_a_sequence_without_an_object_is_skipped(tmp_path):
    skip = unusable(tmp_path, [f"0 {DONT_CARE}", "nonsense"])
    assert (skip.file, skip.line, skip.reason) == ("training/label_02/0007.txt", None, SkipReason.NO_OBJECT)
    assert "first of 1 findings: training/label_02/0007.txt:2: has 1 columns" in skip.detail


def test_other_splits_are_refused(tmp_path):
    tree(tmp_path, [car(0)])
    with pytest.raises(DataError, match="'test' has no labels; use split 'train'"):
        Kitti(tmp_path, "test")


@pytest.mark.parametrize("missing", ["label_02", "calib", "poses"])
def test_another_tree_is_refused(tmp_path, missing):
    tree(tmp_path, [car(0)])
    (tmp_path / "training" / missing).rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=rf"{missing}.*(unpack|name the folder)"):
        Kitti(tmp_path, "train")


# -------------------------------------------------------------------------------------------------- real data


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Scene]:
    """All labelled frames: of some sequences, images of a few are there, and the others would be left out."""
    if not REAL.is_dir():
        pytest.skip("the real labels are not here")
    root = tmp_path_factory.mktemp("real")
    (root / "training").mkdir()
    for folder in ("label_02", "calib", "poses"):
        (root / "training" / folder).symlink_to(REAL / "training" / folder)
    source = Kitti(root, "train")
    scenes = [source.read(name) for name in source.names]
    return {scene.name: scene for scene in scenes if isinstance(scene, Scene)}


def test_real_labels_are_read_without_findings(real):
    found = {
        name: (len(scene.frames), len(scene.tracks), scene.image_size, scene.skips)
        for name, scene in real.items()
    }
    assert found == {
        "0000": (154, 15, (1242, 375), ()),
        "0001": (447, 97, (1242, 375), ()),
        "0012": (78, 4, (1242, 375), ()),
        "0016": (209, 28, (1242, 375), ()),
    }


@pytest.mark.parametrize(("name", "cars"), [("0000", 61), ("0001", 697), ("0012", 128), ("0016", 118)])
def test_projected_boxes_are_those_of_the_labels(real, name, cars):
    overlaps = list(overlaps_of_clear_cars(real[name]))
    assert len(overlaps) == cars
    assert np.mean(overlaps) > 0.85
    assert min(overlaps) > 0.75


@pytest.mark.parametrize(("name", "track"), [("0001", "91"), ("0000", "11"), ("0001", "42")])
def test_a_parked_car_stays_where_it_is(real, name, track):
    # Seen while the camera goes by for 14 m to 33 m. What is left is the error of these poses: their paths are too long by
    # three percent.
    scene = real[name]
    (parked,) = (t for t in scene.tracks if t.id == track)
    first, last = (scene.frames[i].camera_to_world for i in parked.frames[[0, -1]])
    in_camera = [to_camera(parked.centers[[0]], first), to_camera(parked.centers[[-1]], last)]
    apparent = np.linalg.norm(in_camera[1] - in_camera[0])
    real_m = np.linalg.norm(parked.centers[-1] - parked.centers[0])
    assert apparent > 13
    assert real_m < 0.7
    assert real_m < 0.04 * apparent


def test_true_graphs_of_real_labels_entail_the_answers(real):
    counts = Counter()
    for seed in (0, 1):
        settings = Settings(source="kitti", root="", seed=seed, clips=12, questions=24)
        for scene in real.values():
            for record, _ in scene_records(settings, scene):
                # As it is read from a dataset: the graph and the query have been text.
                record = record_from_row(record_to_row(record), "row")
                if record.graph is None:  # too many nodes for one
                    continue
                told = is_answerable(record.query, record.graph)
                counts[record.family, told] += 1
                assert not told or entailed(record.query, record.graph) == record.answer, record
    assert {family for family, told in counts if not told} == {
        "localisation_2d",
        "localisation_3d",
        "size",
        "tracking",
    }
    assert sum(count for (_, told), count in counts.items() if told) > 500


def overlaps_of_clear_cars(scene: Scene) -> Iterator[float]:
    for track in scene.tracks:
        for k in np.flatnonzero(track.visibility == 1) if track.label == "car" else ():
            camera = scene.frames[track.frames[k]].camera_to_world
            box = corners(track.centers[k], track.sizes[k], track.yaws[k], scene.up)
            projected = projected_box(to_camera(box, camera), scene.projection, scene.image_size)
            yield 0.0 if projected is None else overlap(projected, track.boxes[k])


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    shared = np.prod(np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None))
    return float(shared / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - shared))


def only(scene: Scene) -> Track:
    (track,) = scene.tracks
    return track


def heading_of(scene: Scene, track: Track, k: int) -> np.ndarray:
    e1, e2 = ground_axes(scene.up)
    return np.cos(track.yaws[k]) * e1 + np.sin(track.yaws[k]) * e2
