"""Scans written by hand, in the true format, with values worked out on paper."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from videostr.data.scene import Scene, Skip, SkipReason, project, to_camera
from videostr.data.sources.ply import ply_vertices
from videostr.data.sources.scannet import LEAST_FRAMES, MOST_FRAMES, ScanNet
from videostr.errors import DataError

NAME = "scene0001_00"
FOLDER = f"scans/{NAME}"
AGGREGATION, SEGMENTS = f"{FOLDER}/{NAME}.aggregation.json", f"{FOLDER}/{NAME}_vh_clean_2.0.010000.segs.json"
MESH, ABOUT = f"{FOLDER}/{NAME}_vh_clean_2.ply", f"{FOLDER}/{NAME}.txt"

# From the origin along x: the camera's right is -y, its down is -z.
AHEAD = np.array([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
IDENTITY = np.eye(4)
# (x, y, z) -> (1 - y, 2 + x, z - 0.5)
ALIGNMENT = np.array([[0.0, -1, 0, 1], [1, 0, 0, 2], [0, 0, 1, -0.5], [0, 0, 0, 1]])
TABLE = "\n".join(
    "\t".join(row)
    for row in (
        ("id", "raw_category", "category", "nyu40id", "nyu40class"),
        ("1", "wall", "wall", "1", "wall"),
        ("3", "floor", "floor", "2", "floor"),
        ("2", "chair", "chair", "5", "chair"),
        ("4", "office chair", "chair", "5", "chair"),
        ("5", "cardboard box", "box", "29", "box"),
        ("6", "shower curtain", "shower curtain", "28", "shower curtain"),
        ("7", "refrigerator", "refrigerator", "24", "refridgerator"),
        ("8", "book", "book", "23", "books"),
        ("9", "rack", "rack", "39", "otherfurniture"),
    )
)


def block(low: Sequence[float], high: Sequence[float], step: float = 0.02) -> np.ndarray:
    """[N, 3] lattice that fills a box, its corners included."""
    axes = [np.linspace(a, b, max(2, round((b - a) / step) + 1)) for a, b in zip(low, high, strict=True)]
    return np.stack(np.meshgrid(*axes), -1).reshape(-1, 3)


def sheet(low: Sequence[float], high: Sequence[float], step: float = 0.02) -> np.ndarray:
    """[N, 3] lattice in the plane of those axes along which `low` and `high` differ."""
    axes = [np.linspace(a, b, round((b - a) / step) + 1) for a, b in zip(low, high, strict=True)]
    return np.stack(np.meshgrid(*axes), -1).reshape(-1, 3)


def at(x: float, y: float, z: float) -> np.ndarray:
    pose = AHEAD.copy()
    pose[:3, 3] = (x, y, z)
    return pose


def mesh(points: np.ndarray) -> bytes:
    header = (
        f"ply\nformat binary_little_endian 1.0\ncomment VCGLIB generated\nelement vertex {len(points)}\n"
        "property float x\nproperty float y\nproperty float z\nproperty uchar red\nproperty uchar green\n"
        "property uchar blue\nproperty uchar alpha\nelement face 1\n"
        "property list uchar int vertex_indices\nend_header\n"
    )
    rows = np.zeros(len(points), [("position", "<f4", 3), ("colour", "u1", 4)])
    rows["position"] = points
    return header.encode() + rows.tobytes() + bytes([3]) + np.arange(3, dtype="<i4").tobytes()


def write(root: Path, file: str, content: str | bytes | object) -> None:
    path = root / file
    path.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(content, str | bytes):
        content = json.dumps(content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def about(alignment: np.ndarray | None = IDENTITY, **changes: object) -> str:
    values: dict[str, object] = {
        "colorHeight": 480, "colorWidth": 640, "fx_color": 500, "fy_color": 500, "mx_color": 320, "my_color": 240,
        "fx_depth": 1, "numColorFrames": 9, "sceneType": "Living room / Lounge",
    }  # fmt: skip
    values |= changes
    lines = [f"{key} = {value}" for key, value in values.items() if value is not None]
    if alignment is not None:
        lines.insert(0, "axisAlignment = " + " ".join(f"{value:.6f}" for value in alignment.ravel()) + " ")
    return "".join(f"{line}\r\n" for line in lines)


def write_scan(
    root: Path,
    parts: Sequence[tuple[str, np.ndarray]],
    poses: dict[int, np.ndarray] | None = None,
    *,
    name: str = NAME,
    alignment: np.ndarray | None = IDENTITY,
    table: bool = True,
    **changes: object,
) -> None:
    """A scan whose part i is segment 10 * i, and group i; the vertices of the parts are mixed."""
    points = np.concatenate([part for _, part in parts])
    segments = np.repeat(np.arange(len(parts)) * 10, [len(part) for _, part in parts])
    order = np.random.default_rng(0).permutation(len(points))
    groups = [
        {"id": i, "objectId": i, "segments": [10 * i], "label": label} for i, (label, _) in enumerate(parts)
    ]
    folder = f"scans/{name}"
    write(
        root,
        f"{folder}/{name}_vh_clean_2.0.010000.segs.json",
        {"params": {"kThresh": "0.01"}, "sceneId": name, "segIndices": segments[order].tolist()},
    )
    write(
        root,
        f"{folder}/{name}.aggregation.json",
        {"sceneId": f"scannet.{name}", "appId": "a", "segGroups": groups, "segmentsFile": "s"},
    )
    write(root, f"{folder}/{name}_vh_clean_2.ply", mesh(points[order]))
    write(root, f"{folder}/{name}.txt", about(alignment, **changes))
    for number, pose in (poses or {0: AHEAD, 1: AHEAD}).items():
        write(root, f"{folder}/pose/{number}.txt", "".join(" ".join(map(str, row)) + "\n" for row in pose))
    if table:
        write(root, "scannetv2-labels.combined.tsv", TABLE)


BOX = ("cardboard box", block((2, 0.5, 0.1), (2.1, 0.7, 0.3)))
CHAIR = ("chair", block((2, -0.5, 0.1), (2.2, -0.3, 0.3)))


def scene_of(root: Path) -> Scene:
    scene = ScanNet(root, "all").read(NAME)
    assert isinstance(scene, Scene), scene
    return scene


def skip_of(root: Path) -> Skip:
    skip = ScanNet(root, "all").read(NAME)
    assert isinstance(skip, Skip)
    return skip


def only_skip(scene: Scene) -> Skip:
    assert len(scene.skips) == 1, scene.skips
    return scene.skips[0]


# ---------------------------------------------------------------------------------------------------- geometry


def test_scene_aligned(tmp_path: Path) -> None:
    write_scan(tmp_path, [BOX], {0: AHEAD, 30: AHEAD}, alignment=ALIGNMENT)
    scene = scene_of(tmp_path)
    assert (scene.source, scene.name, scene.fps, scene.up) == ("scannet", NAME, 30.0, (0.0, 0.0, 1.0))
    assert scene.image_size == (640, 480)
    assert not scene.skips
    assert scene.room_size is None
    assert [(frame.t, frame.image) for frame in scene.frames] == [
        (0.0, f"{FOLDER}/color/0.jpg"),
        (1.0, f"{FOLDER}/color/30.jpg"),
    ]
    (track,) = scene.tracks
    assert (track.id, track.label, track.is_static) == ("0", "box", True)
    assert track.frames.tolist() == [0, 1]
    # x 2 to 2.1, y 0.5 to 0.7, z 0.1 to 0.3 in the scan: aligned 0.3 to 0.5, 4 to 4.1, -0.4 to -0.2.
    assert track.centers is not None
    assert track.sizes is not None
    assert track.yaws is not None
    np.testing.assert_allclose(track.centers, [[0.4, 4.05, -0.3]] * 2, atol=1e-6)
    np.testing.assert_allclose(track.sizes, [[0.2, 0.1, 0.2]] * 2, atol=1e-6)
    assert track.yaws.tolist() == [0, 0]
    # The camera stands at the scan's origin, (1, 2, -0.5), and looks along the scan's x, the world's y.
    pose = scene.frames[0].camera_to_world
    assert pose is not None
    np.testing.assert_allclose(pose, [[1, 0, 0, 1], [0, 0, 1, 2], [0, -1, 0, -0.5], [0, 0, 0, 1]], atol=1e-6)
    # u = 320 - 500 y / x, v = 240 - 500 z / x: left and top by the front (x = 2, y = 0.7, z = 0.3), right and bottom by
    # the back (x = 2.1, y = 0.5, z = 0.1).
    assert track.boxes is not None
    np.testing.assert_allclose(track.boxes[0], [145, 165, 320 - 250 / 2.1, 240 - 50 / 2.1], rtol=0, atol=1e-3)
    # Box, camera and projection are of one world: its near lower corner is the one at u = 145, v = 215.
    assert scene.projection is not None
    corner = to_camera(np.array([[0.3, 4.0, -0.4]]), pose)
    np.testing.assert_allclose(project(corner, scene.projection), [[145, 215]], atol=1e-4)


def test_two_chairs_have_two_boxes(tmp_path: Path) -> None:
    second = ("chair", CHAIR[1] + [0.0, 1.0, 0.0])
    write_scan(tmp_path, [CHAIR, second])
    tracks = scene_of(tmp_path).tracks
    assert [(track.id, track.label) for track in tracks] == [("0", "chair"), ("1", "chair")]
    centers = [track.centers[0] for track in tracks if track.centers is not None]
    np.testing.assert_allclose(centers, [[2.1, -0.4, 0.2], [2.1, 0.6, 0.2]], atol=1e-6)
    sizes = [track.sizes[0] for track in tracks if track.sizes is not None]
    np.testing.assert_allclose(sizes, [[0.2, 0.2, 0.2]] * 2, atol=1e-6)


def test_object_of_several_segments(tmp_path: Path) -> None:
    write_scan(tmp_path, [CHAIR, BOX])
    group = {"id": 7, "objectId": 9, "segments": [0, 10], "label": "office chair"}
    write(tmp_path, AGGREGATION, {"segGroups": [group]})
    (track,) = scene_of(tmp_path).tracks
    assert (track.id, track.label) == ("9", "chair")
    assert track.sizes is not None
    np.testing.assert_allclose(track.sizes[0], [0.2, 1.2, 0.2], atol=1e-6)


# -------------------------------------------------------------------------------------------------- visibility


def test_hidden_object_is_not_visible(tmp_path: Path) -> None:
    screen = ("wall", sheet((1, -0.5, -0.5), (1, 0.5, 0.5)))
    behind = ("chair", block((2, -0.1, -0.1), (2.1, 0.1, 0.1)))
    # To the chair's edges at y = -0.1 and 0.1, rays cross the screen's plane at y = -0.05 to 0.05 from y = 0, inside it,
    # and at y = 0.525 to 0.625 from y = 1.15, next to it.
    write_scan(tmp_path, [screen, behind], {0: at(0, 0, 0), 1: at(0, 1.15, 0), 2: at(0, 0, 0)})
    (track,) = scene_of(tmp_path).tracks
    assert track.frames.tolist() == [1]
    assert track.visibility.tolist() == [1.0]


def test_half_hidden_object(tmp_path: Path) -> None:
    screen = ("wall", sheet((1, -0.5, -0.5), (1, 0, 0.5)))
    behind = ("chair", block((2, -0.1, -0.1), (2.1, 0.1, 0.1)))
    write_scan(tmp_path, [screen, behind], {0: AHEAD, 1: AHEAD, 2: at(0, 1.15, 0)})
    (track,) = scene_of(tmp_path).tracks
    assert track.visibility[0] == pytest.approx(0.5, abs=0.1)
    assert track.visibility[2] == 1.0
    # Its left half shows: u = 320 - 500 y / x from 295 to 320, give or take a cell of 8 px.
    assert track.boxes is not None
    assert track.boxes[0, 0] == pytest.approx(295)
    assert track.boxes[0, 2] == pytest.approx(320, abs=8)


@pytest.mark.parametrize("distance", [0.6, 0.8, 1.2, 2.0])
def test_near_surface_has_no_holes(tmp_path: Path, distance: float) -> None:
    # In a full-size image, vertices 2.5 cm apart at 0.6 m are 49 px apart: three cells of the finest grid.
    screen = ("wall", sheet((distance, -0.5, -0.5), (distance, 0.5, 0.5), 0.025))
    behind = ("chair", block((distance + 0.5, -0.1, -0.1), (distance + 0.6, 0.1, 0.1)))
    beside = ("cardboard box", block((3, 1.3, -0.1), (3.1, 1.5, 0.1)))
    large = {"colorWidth": 1296, "colorHeight": 968, "mx_color": 648, "my_color": 484}
    large |= {"fx_color": 1170, "fy_color": 1170}
    poses = {0: at(0, 0, 0), 1: at(0, 1.4, 0)}
    write_scan(tmp_path, [screen, behind, beside], poses, **large)
    chairs = [track for track in scene_of(tmp_path).tracks if track.label == "chair"]
    assert all(track.visibility[track.frames == 0].sum() < 0.02 for track in chairs)


def test_a_solid_is_whole_where_its_best_frame_shows_it(tmp_path: Path) -> None:
    # Of a closed box a camera sees one to three of six sides: from the front a sixth to a half of its vertices.
    solid = np.unique(np.concatenate([
        sheet((x, -0.2, -0.2), (x, 0.2, 0.2)) for x in (2.0, 2.4)] + [
        sheet((2.0, y, -0.2), (2.4, y, 0.2)) for y in (-0.2, 0.2)] + [
        sheet((2.0, -0.2, z), (2.4, 0.2, z)) for z in (-0.2, 0.2)], axis=0), axis=0)  # fmt: skip
    write_scan(tmp_path, [("chair", solid)], {0: at(0, 0, 0), 1: at(0, 0.8, 0.8)})
    (track,) = scene_of(tmp_path).tracks
    assert track.visibility.max() > 0.6


def test_visibility_is_cut_at_the_image(tmp_path: Path) -> None:
    # u = 320 - 500 y / 1 is inside the image for y > -0.64: of a sheet from -1.28 to 0, half.
    part = ("chair", block((1, -1.28, 0), (1.01, 0, 0.02), 0.01))
    write_scan(tmp_path, [part], {0: AHEAD, 1: at(0, -0.64, 0)})  # the second shows it from edge to edge
    (track,) = scene_of(tmp_path).tracks
    assert track.visibility.tolist() == pytest.approx([0.5, 1.0], abs=0.02)
    assert track.boxes is not None
    assert track.boxes[0, 2] == pytest.approx(640, abs=5)


def test_object_behind_the_camera_is_no_track(tmp_path: Path) -> None:
    behind = ("chair", block((-2, 0.5, 0.1), (-1.8, 0.7, 0.3)))
    write_scan(tmp_path, [BOX, behind])
    scene = scene_of(tmp_path)
    assert [track.label for track in scene.tracks] == ["box"]
    skip = only_skip(scene)
    assert (skip.file, skip.line, skip.reason) == (AGGREGATION, None, SkipReason.OUTSIDE)
    assert skip.detail.startswith("object 1, chair: ")


# ------------------------------------------------------------------------------------------------------ labels


def test_labels_are_those_of_nyu40(tmp_path: Path) -> None:
    floor = ("floor", sheet((0, -1, -1), (4, 1, -1), 0.1))
    parts = [floor, ("wall", block((5, -1, -1), (5.1, 1, 1), 0.1)), BOX, CHAIR]
    for i, label in enumerate(("office chair", "refrigerator", "shower curtain", "book", "rack")):
        parts.append((label, block((3, -0.8 + 0.3 * i, -0.4), (3.1, -0.6 + 0.3 * i, -0.2))))
    write_scan(tmp_path, parts)
    scene = scene_of(tmp_path)
    assert not scene.skips
    assert [track.label for track in scene.tracks] == [
        "box", "chair", "chair", "refrigerator", "shower_curtain", "books",
    ]  # fmt: skip
    assert scene.countable == {"box", "chair", "refrigerator", "shower_curtain"}


def test_own_words_without_the_table(tmp_path: Path) -> None:
    write_scan(tmp_path, [("Office chair", BOX[1]), ("wall", CHAIR[1])], table=False)
    source = ScanNet(tmp_path, "all")
    (skip,) = source.skips
    assert (skip.file, skip.line, skip.reason) == (
        "scannetv2-labels.combined.tsv", None, SkipReason.UNKNOWN_REFERENCE,
    )  # fmt: skip
    scene = source.read(NAME)
    assert isinstance(scene, Scene)
    assert [track.label for track in scene.tracks] == ["office_chair"]
    assert scene.countable == frozenset()
    assert not scene.skips


def test_label_that_is_not_in_the_table(tmp_path: Path) -> None:
    write_scan(tmp_path, [BOX, ("blorb", CHAIR[1])])
    scene = scene_of(tmp_path)
    assert [track.label for track in scene.tracks] == ["box"]
    skip = only_skip(scene)
    assert (skip.file, skip.reason) == (AGGREGATION, SkipReason.UNKNOWN_CATEGORY)
    assert "segGroups[1]" in skip.detail
    assert "blorb" in skip.detail


@pytest.mark.parametrize("line", ["9\tlamp", "9\tlamp\tlamp\t35\t", ""])
def test_broken_line_of_the_table(tmp_path: Path, line: str) -> None:
    write_scan(tmp_path, [BOX])
    write(tmp_path, "scannetv2-labels.combined.tsv", TABLE.replace("\n3\t", f"\n{line}\n3\t") + "\n")
    source = ScanNet(tmp_path, "all")
    (skip,) = source.skips
    assert (skip.file, skip.line, skip.reason) == ("scannetv2-labels.combined.tsv", 3, SkipReason.BAD_LINE)
    assert isinstance(source.read(NAME), Scene)


@pytest.mark.parametrize("header", ["", "id\traw_category\tcategory", "<!DOCTYPE html>"])
def test_table_without_its_columns(tmp_path: Path, header: str) -> None:
    write_scan(tmp_path, [BOX])
    write(tmp_path, "scannetv2-labels.combined.tsv", header)
    with pytest.raises(DataError, match=r"scannetv2-labels.combined.tsv: .*download"):
        ScanNet(tmp_path, "all")


def test_room_size_is_the_hull_of_the_floor(tmp_path: Path) -> None:
    # 4 m x 3 m, turned by the alignment, with a hole of 2 m x 1 m where a bed stands; in two pieces.
    floor = sheet((0, 0, 0), (4, 3, 0), 0.1)
    under = (np.abs(floor - [2, 1.5, 0]) <= [1, 0.5, 1]).all(1)
    left = floor[:, 0] < 1.95
    pieces = [("floor", floor[~under & left]), ("floor", floor[~under & ~left])]
    write_scan(tmp_path, [*pieces, BOX], alignment=ALIGNMENT)
    scene = scene_of(tmp_path)
    assert scene.room_size == pytest.approx(12.0, abs=1e-4)
    assert [track.label for track in scene.tracks] == ["box"]


def test_floor_without_an_area(tmp_path: Path) -> None:
    write_scan(tmp_path, [("floor", np.array([[0.0, 0, 0], [1, 0, 0], [2, 0, 0]])), BOX])
    assert scene_of(tmp_path).room_size is None
    file = tmp_path / FOLDER / f"{NAME}.aggregation.json"
    tree = json.loads(file.read_text())
    tree["segGroups"][0]["segments"] = []
    file.write_text(json.dumps(tree))
    assert scene_of(tmp_path).room_size is None


# ------------------------------------------------------------------------------------------------------ frames


def test_frames_are_spread_over_the_scan(tmp_path: Path) -> None:
    write_scan(tmp_path, [BOX], dict.fromkeys(range(0, 1000, 10), AHEAD))
    scene = scene_of(tmp_path)
    numbers = [int(Path(frame.image).stem) for frame in scene.frames]
    # 33 s, a frame a second. Not in the order of the names, in which 990 comes before 10.
    assert numbers == list(range(0, 1000, 30))
    assert [frame.t for frame in scene.frames] == [number / 30 for number in numbers]
    assert scene.tracks[0].frames.tolist() == list(range(34))


@pytest.mark.parametrize(("last", "step", "count"), [(300, 5, LEAST_FRAMES), (20_000, 80, MOST_FRAMES)])
def test_short_scans_have_a_least_and_long_ones_a_most(
    tmp_path: Path, last: int, step: int, count: int
) -> None:
    write_scan(tmp_path, [BOX], dict.fromkeys(range(0, last + 1, step), AHEAD))
    numbers = [int(Path(frame.image).stem) for frame in scene_of(tmp_path).frames]
    assert len(numbers) == count
    assert (numbers[0], numbers[-1]) == (0, last)


@pytest.mark.parametrize(
    "content",
    [
        "-inf -inf -inf -inf\n" * 4,
        "nan nan nan nan\n" * 4,
        "1 0 0 0\n0 1 0 0\n0 0 1 0\n",
        "1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 0 x\n",
        "2 0 0 0\n0 2 0 0\n0 0 2 0\n0 0 0 1\n",
        "",
        b"\xff\xfe",
    ],
)
def test_frame_without_a_pose(tmp_path: Path, content: str | bytes) -> None:
    away = at(0, 0, 0)
    away[:3, 0] *= -1
    away[:3, 2] *= -1  # looks back
    write_scan(tmp_path, [BOX], {0: AHEAD, 1: AHEAD, 2: away, 3: AHEAD})
    write(tmp_path, f"{FOLDER}/pose/1.txt", content)
    scene = scene_of(tmp_path)
    assert [frame.image for frame in scene.frames] == [f"{FOLDER}/color/{number}.jpg" for number in (0, 2, 3)]
    assert scene.tracks[0].frames.tolist() == [0, 2]
    skip = only_skip(scene)
    assert (skip.file, skip.line, skip.reason) == (f"{FOLDER}/pose/1.txt", None, SkipReason.NO_POSE)


def test_no_pose_at_all(tmp_path: Path) -> None:
    write_scan(tmp_path, [BOX], {0: np.full((4, 4), -np.inf)})
    skip = skip_of(tmp_path)
    assert (skip.file, skip.reason) == (f"{FOLDER}/pose", SkipReason.NO_POSE)
    (tmp_path / FOLDER / "pose" / "0.txt").unlink()
    skip = skip_of(tmp_path)
    assert (skip.file, skip.reason) == (f"{FOLDER}/pose", SkipReason.NO_POSE)


@pytest.mark.parametrize("stem", ["00", "frame-1", "-1", "9" * 20])
def test_pose_file_that_is_no_frame(tmp_path: Path, stem: str) -> None:
    write_scan(tmp_path, [BOX])
    write(tmp_path, f"{FOLDER}/pose/{stem}.txt", "")
    scene = scene_of(tmp_path)
    assert len(scene.frames) == 2
    skip = only_skip(scene)
    assert (skip.file, skip.line, skip.reason) == (f"{FOLDER}/pose/{stem}.txt", None, SkipReason.BAD_LINE)


def test_padded_numbers_keep_their_spelling(tmp_path: Path) -> None:
    write_scan(tmp_path, [BOX])
    folder = tmp_path / FOLDER / "pose"
    for number in (0, 1):
        (folder / f"{number}.txt").rename(folder / f"{number:06d}.txt")
    assert scene_of(tmp_path).frames[1].image == f"{FOLDER}/color/000001.jpg"


# ----------------------------------------------------------------------------------------------- broken scans


def test_scan_without_alignment_says_so(tmp_path: Path) -> None:
    write_scan(tmp_path, [BOX], alignment=None)
    scene = scene_of(tmp_path)
    assert scene.tracks[0].centers is not None
    np.testing.assert_allclose(scene.tracks[0].centers[0], [2.05, 0.6, 0.2], atol=1e-6)
    skip = only_skip(scene)
    assert (skip.file, skip.line, skip.reason) == (ABOUT, None, SkipReason.NO_CALIBRATION)
    assert "axisAlignment" in skip.detail


@pytest.mark.parametrize(
    ("alignment", "reason"),
    [
        ("1 0 0 0 0 1 0 0 0 0 1 0 0 0 0", SkipReason.BAD_LINE),
        ("1 0 0 0 0 1 0 0 0 0 1 0 0 0 0 one", SkipReason.BAD_LINE),
        ("1 0 0 0 0 1 0 0 0 0 2 0 0 0 0 1", SkipReason.BAD_LINE),
        ("1 0 0 nan 0 1 0 0 0 0 1 0 0 0 0 1", SkipReason.NOT_FINITE),
        ("1 0 0 1e9 0 1 0 0 0 0 1 0 0 0 0 1", SkipReason.NOT_FINITE),
    ],
)
def test_broken_alignment_refuses_the_scan(tmp_path: Path, alignment: str, reason: SkipReason) -> None:
    write_scan(tmp_path, [BOX])
    write(tmp_path, ABOUT, about(None) + f"axisAlignment = {alignment}\n")
    skip = skip_of(tmp_path)
    assert (skip.file, skip.line, skip.reason) == (ABOUT, 10, reason)


@pytest.mark.parametrize(
    ("changes", "line", "reason"),
    [
        ({"fx_color": None}, None, SkipReason.NO_CALIBRATION),
        ({"colorWidth": None}, None, SkipReason.NO_CALIBRATION),
        ({"fy_color": 0}, None, SkipReason.NO_CALIBRATION),
        ({"colorHeight": -3}, None, SkipReason.NO_CALIBRATION),
        ({"my_color": "x"}, 7, SkipReason.BAD_LINE),
        ({"my_color": "1 2"}, 7, SkipReason.BAD_LINE),
        ({"my_color": "inf"}, 7, SkipReason.NOT_FINITE),
    ],
)
def test_broken_calibration_refuses_the_scan(
    tmp_path: Path, changes: dict[str, object], line: int | None, reason: SkipReason
) -> None:
    write_scan(tmp_path, [BOX])
    write(tmp_path, ABOUT, about(**changes))  # type: ignore[arg-type]
    skip = skip_of(tmp_path)
    assert (skip.file, skip.line, skip.reason) == (ABOUT, line, reason)


def test_line_that_is_no_entry(tmp_path: Path) -> None:
    write_scan(tmp_path, [BOX])
    write(tmp_path, ABOUT, about() + "\r\nscene of a room\r\n")
    skip = only_skip(scene_of(tmp_path))
    assert (skip.file, skip.line, skip.reason) == (ABOUT, 12, SkipReason.BAD_LINE)


@pytest.mark.parametrize("file", [AGGREGATION, SEGMENTS, MESH, ABOUT])
def test_missing_file_refuses_the_scan(tmp_path: Path, file: str) -> None:
    write_scan(tmp_path, [BOX])
    (tmp_path / file).unlink()
    skip = skip_of(tmp_path)
    assert (skip.file, skip.line, skip.reason) == (file, None, SkipReason.UNREADABLE)


@pytest.mark.parametrize("file", [AGGREGATION, SEGMENTS, MESH])
def test_truncated_file_refuses_the_scan(tmp_path: Path, file: str) -> None:
    write_scan(tmp_path, [BOX])
    content = (tmp_path / file).read_bytes()
    for size in (0, 40, len(content) * 2 // 3):
        write(tmp_path, file, content[:size])
        skip = skip_of(tmp_path)
        assert (skip.file, skip.line, skip.reason) == (file, None, SkipReason.UNREADABLE), size


@pytest.mark.parametrize(
    ("file", "content"),
    [
        (SEGMENTS, {"segIndices": [0, 0, 0]}),
        (SEGMENTS, {"segIndices": [-1]}),
        (SEGMENTS, {"segIndices": ["0"]}),
        (SEGMENTS, {}),
        (SEGMENTS, "[" * 100_000),
        (AGGREGATION, {"groups": []}),
        (AGGREGATION, '{"segGroups": [' + "[" * 100_000),
        (AGGREGATION, b'{"segGroups": \xff}'),
    ],
)
def test_file_of_another_kind_refuses_the_scan(tmp_path: Path, file: str, content: object) -> None:
    write_scan(tmp_path, [BOX])
    write(tmp_path, file, content)
    skip = skip_of(tmp_path)
    assert (skip.file, skip.line, skip.reason) == (file, None, SkipReason.UNREADABLE)


@pytest.mark.parametrize(
    ("group", "reason"),
    [
        ({"objectId": 5, "segments": [0, 99], "label": "chair"}, SkipReason.UNKNOWN_REFERENCE),
        ({"objectId": 5, "segments": [], "label": "chair"}, SkipReason.NO_EXTENT),
        ({"objectId": 5, "segments": [10], "label": "chair"}, SkipReason.NO_EXTENT),
        ({"objectId": 0, "segments": [0], "label": "chair"}, SkipReason.BAD_LINE),
        ({"objectId": 5, "segments": 0, "label": "chair"}, SkipReason.BAD_LINE),
        ({"objectId": 5, "segments": [2**70], "label": "chair"}, SkipReason.BAD_LINE),
        ({"objectId": 5, "segments": [0], "label": "  "}, SkipReason.BAD_LINE),
        ({"objectId": 5, "segments": [0]}, SkipReason.BAD_LINE),
        ("chair", SkipReason.BAD_LINE),
    ],
)
def test_broken_group_is_left_out(tmp_path: Path, group: object, reason: SkipReason) -> None:
    flat = ("wall", sheet((3, 0, 0), (3, 1, 1), 0.1))
    write_scan(tmp_path, [BOX, flat])
    groups = json.loads((tmp_path / AGGREGATION).read_text())["segGroups"]
    write(tmp_path, AGGREGATION, {"segGroups": [groups[0], group, groups[1]]})
    scene = scene_of(tmp_path)
    assert [track.label for track in scene.tracks] == ["box"]
    skip = only_skip(scene)
    assert (skip.file, skip.line, skip.reason) == (AGGREGATION, None, reason)
    assert skip.detail.startswith("segGroups[1]: ")


def test_scan_without_objects(tmp_path: Path) -> None:
    write_scan(tmp_path, [("wall", BOX[1])])
    skip = skip_of(tmp_path)
    assert (skip.file, skip.line, skip.reason) == (AGGREGATION, None, SkipReason.NO_OBJECT)


def test_useless_vertices_are_left_out(tmp_path: Path) -> None:
    points = np.concatenate([BOX[1], [[np.nan, 0, 0], [np.inf, 0, 0], [1e20, 0, 0]]])
    write_scan(tmp_path, [("cardboard box", points)])
    scene = scene_of(tmp_path)
    assert scene.tracks[0].sizes is not None
    np.testing.assert_allclose(scene.tracks[0].sizes[0], [0.1, 0.2, 0.2], atol=1e-6)
    skip = only_skip(scene)
    assert (skip.file, skip.line, skip.reason) == (MESH, None, SkipReason.NOT_FINITE)
    assert skip.detail.startswith("3 vertices")


# --------------------------------------------------------------------------------------------------------- PLY

VERTICES = np.array([[1.5, -2.0, 3.25], [0.0, 4.0, -5.5]])


def header(encoding: str, *lines: str, newline: str = "\n") -> bytes:
    text = ["ply", f"format {encoding} 1.0", "comment end_header is below", *lines, "end_header", ""]
    return newline.join(text).encode()


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_binary_ply_with_fields_in_any_order(newline: str) -> None:
    fields = [
        ("uchar red", "u1"),
        ("double z", "f8"),
        ("float y", "f4"),
        ("int16 label", "i2"),
        ("float32 x", "f4"),
    ]
    rows = np.zeros(2, [(name.split()[1], "<" + kind) for name, kind in fields])
    for i, axis in enumerate("xyz"):
        rows[axis] = VERTICES[:, i]
    properties = [f"property {name}" for name, _ in fields]
    top = header(
        "binary_little_endian", "element vertex 2", *properties, "element face 0", "property list uchar int vertex_indices",
        newline=newline,
    )  # fmt: skip
    np.testing.assert_array_equal(ply_vertices(top + rows.tobytes()), VERTICES)
    with pytest.raises(ValueError):
        ply_vertices(top + rows.tobytes()[:-1])


XYZ = ("property float x", "property float y", "property float z")


@pytest.mark.parametrize(
    ("encoding", "lines"),
    [
        ("binary_little_endian", ("element vertex 1", *XYZ[:2])),
        ("binary_little_endian", ("element vertex 1", *XYZ, "property list uchar int neighbours")),
        ("binary_little_endian", ("element vertex 1", *XYZ, "property float x")),
        ("binary_little_endian", ("element vertex 1", *XYZ, "property quad w")),
        ("binary_little_endian", ("element vertex -1", *XYZ)),
        ("binary_little_endian", ("element vertex 0", *XYZ)),
        ("binary_little_endian", ("element vertex many", *XYZ)),
        ("binary_little_endian", ("element vertex 9000000000000000000", *XYZ)),
        ("binary_little_endian", (f"element vertex {10**20}", *XYZ)),
        ("ascii", (f"element vertex {10**20}", *XYZ)),
        ("binary_little_endian", ("element face 1", "property int a", "element vertex 1", *XYZ)),
        ("binary_little_endian", ("element face 1", *XYZ)),
        ("binary_big_endian", ("element vertex 1", *XYZ)),
        ("ascii", ("element vertex 1", *XYZ)),
        ("ascii", ("element vertex 1", "property float x")),
    ],
)
def test_ply_of_another_layout(encoding: str, lines: tuple[str, ...]) -> None:
    with pytest.raises(ValueError):
        ply_vertices(header(encoding, *lines) + bytes(16))


def test_what_is_no_ply() -> None:
    for data in (b"", b"ply\n", header("ascii")[4:], b"PK" + header("ascii")):
        with pytest.raises(ValueError):
            ply_vertices(data)


# ------------------------------------------------------------------------------------------------------ splits

SCANS = ("scene0001_00", "scene0001_01", "scene0002_00", "scene0010_00")


def write_scans(root: Path) -> None:
    for name in SCANS:
        write_scan(root, [BOX], name=name)
    write(root, "scans/README.txt", "no scan")


def test_train_needs_the_list_of_validation_scenes(tmp_path: Path) -> None:
    write_scans(tmp_path)
    for split in ("train", "val"):
        with pytest.raises(DataError, match=r"scannetv2_val\.txt: .*put it there"):
            ScanNet(tmp_path, split)
    source = ScanNet(tmp_path, "all")
    assert tuple(source.names) == SCANS
    assert not source.skips


def test_train_leaves_out_validation_rooms(tmp_path: Path) -> None:
    write_scans(tmp_path)
    # The list names one scan of room 1; its other scan shows the same room. Room 99 is not on this disk.
    write(tmp_path, "scannetv2_val.txt", "scene0001_00\r\nscene0099_00\n\n")
    train, val = ScanNet(tmp_path, "train"), ScanNet(tmp_path, "val")
    assert tuple(train.names) == SCANS[2:]
    assert tuple(val.names) == SCANS[:2]
    assert [(skip.file, skip.line, skip.reason) for skip in train.skips] == [
        (f"scans/{name}", None, SkipReason.EXCLUDED) for name in SCANS[:2]
    ]
    assert [skip.file for skip in val.skips] == [f"scans/{name}" for name in SCANS[2:]]
    assert isinstance(train.read(SCANS[2]), Scene)


@pytest.mark.parametrize("content", ["", "\n", "<html>", "scene0001_00\nscene0001\n", "scene0001_00.txt"])
def test_list_that_is_not_the_official_one(tmp_path: Path, content: str) -> None:
    # A list that is cut off or another file would let benchmark scenes through.
    write_scans(tmp_path)
    write(tmp_path, "scannetv2_val.txt", content)
    with pytest.raises(DataError, match=r"scannetv2_val\.txt: .*download"):
        ScanNet(tmp_path, "train")


def test_tree_that_is_not_scannet(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="name the folder that contains scans/"):
        ScanNet(tmp_path, "all")
    write_scans(tmp_path)
    with pytest.raises(DataError, match="test"):
        ScanNet(tmp_path, "test")


def test_all_skips_are_data(tmp_path: Path) -> None:
    """Arbitrary damage never raises."""
    write_scan(tmp_path, [BOX, CHAIR])
    rng = np.random.default_rng(0)
    files: list[Any] = [AGGREGATION, SEGMENTS, MESH, ABOUT, f"{FOLDER}/pose/0.txt"]
    for file in files:
        content = (tmp_path / file).read_bytes()
        for _ in range(15):
            damaged = bytearray(content)
            for place in rng.integers(0, len(content), 3):
                damaged[place] = rng.integers(0, 256)
            write(tmp_path, file, bytes(damaged))
            assert isinstance(ScanNet(tmp_path, "all").read(NAME), Scene | Skip)
        write(tmp_path, file, content)
