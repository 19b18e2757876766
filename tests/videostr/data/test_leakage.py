"""Lists of scenes that must not be trained on, records that are in them, duplicates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from videostr.data.leakage import duplicates, excluded, find
from videostr.errors import DataError
from videostr.types import Answer, AnswerKind, ClipSpec, Record


def record(name: str, source: str = "scannet", video: str = "frames/x.frames.json", **changes: Any) -> Record:
    values: dict[str, Any] = {
        "id": name,
        "source": source,
        "family": "counting",
        "question": "How many chairs?",
        "options": (),
        "answer": Answer(kind=AnswerKind.NUMBER, value=2.0),
        "clip": ClipSpec(video=video, num_frames=4),
        "labels": (),
        "graph": None,
        "origin": "shard:3",
    }
    return Record(**values | changes)


def written(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


# ------------------------------------------------------------------------------------------------------ lists


def test_lists(tmp_path: Path) -> None:
    one = written(
        tmp_path / "one.txt",
        "\ufeff# validation\nscene0011_00\n\n  scene0011_01  # twice seen\r\nscannet: scene0012_00\nkitti:0001\n",
    )
    two = written(tmp_path / "two.txt", "TAO: train/YFCC100M/v_1\nscene#1")
    both = {"scene0011_00", "scene0011_01", "scene#1"}
    assert excluded("scannet", [one, two]) == both | {"scene0012_00"}
    assert excluded("kitti", [one, two]) == both | {"0001"}
    assert excluded("tao", [one, two]) == both | {"train/YFCC100M/v_1"}
    assert excluded("kitti", []) == frozenset()


@pytest.mark.parametrize(
    "line", ["scene0011_00 scene0012_00", "scene0011_00,val", "scannet:", ": scene0011_00", "a: b: c"]
)
def test_line_that_is_no_scene(tmp_path: Path, line: str) -> None:
    path = written(tmp_path / "bad.txt", f"# header\nfirst\n{line}\n")
    with pytest.raises(DataError, match=r"bad\.txt:3: .* must be one scene"):
        excluded("scannet", [path])
    with pytest.raises(DataError, match=r"bad\.txt:3: "):
        find([], [path])


def test_list_that_is_no_text(tmp_path: Path) -> None:
    path = written(tmp_path / "bad.txt", b"scene0011_00\n\xff\xfe\n")
    with pytest.raises(DataError, match=r"bad\.txt:2: is not UTF-8"):
        excluded("scannet", [path])


def test_list_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.txt: list of scenes cannot be read \(No such file"):
        excluded("scannet", [tmp_path / "none.txt"])


# ------------------------------------------------------------------------------------------------------- find


@pytest.mark.parametrize(
    ("name", "source", "video"),
    [
        ("scannet/scene0011_00/0/counting/1", "scannet", "frames/scannet-scene0011_00.frames.json"),
        ("tao/train/BDD/v_1/0/tracking/0", "tao", "frames/tao-train-BDD-v_1.frames.json"),
        ("train-0-000007/counting", "tabletop/easy", "videos/train-0-000007.mp4"),
        ("17", "spacer", "./data/ScanNet/scene0011_00.mp4"),
        ("17", "spacer", "/data/room.1/scene0011_00"),
        ("17", "spacer", "frames/scene0011_00.frames.json"),
        ("17", "spacer", "videos/v2/kitchen.mp4"),
    ],
)
def test_find(tmp_path: Path, name: str, source: str, video: str) -> None:
    lines = ["scene0011_00", "tao: train/BDD/v_1", "tabletop/easy: train-0-000007", "v2/kitchen"]
    path = written(tmp_path / "list.txt", "\n".join(lines))
    assert find([record(name, source, video)], [path]) == [(name, "shard:3")]
    assert find([record(name, source, video)], []) == []


@pytest.mark.parametrize(
    ("name", "source", "video"),
    [
        ("scannet/scene0011_001/0/counting/1", "scannet", "frames/scannet-scene0011_001.frames.json"),
        (
            "kitti/0001/0/counting/1",
            "kitti",
            "frames/kitti-0001.frames.json",
        ),  # the list means another source
        ("a/counting", "kitti", "scene0011_00/other.mp4"),  # only a folder's name
        ("kitti/0002/0/counting/0011", "kitti", "frames/kitti-0002.frames.json"),  # only a number at the end
        ("17", "spacer", "a.mp4"),  # no scene in the id
    ],
)
def test_not_found(tmp_path: Path, name: str, source: str, video: str) -> None:
    path = written(tmp_path / "list.txt", "scene0011_00\nscannet: 0001\n0011\n17\n")
    assert find([record(name, source, video)], [path]) == []


# -------------------------------------------------------------------------------------------------- duplicates


def test_duplicates() -> None:
    choice = {"options": ("left", "right"), "answer": Answer(kind=AnswerKind.CHOICE, value="A")}
    assert duplicates(
        [
            record("first"),
            record("other video", video="frames/y.frames.json"),
            record("again", question="how  many\nCHAIRS? "),
            record("other words", question="How many stools?"),
            record("choice", **choice),
            record("third"),
            record("turned", options=("Right", " left"), answer=Answer(kind=AnswerKind.CHOICE, value="B")),
            record("other options", options=("left", "right", "behind"), answer=choice["answer"]),
            record("later", clip=ClipSpec(video="frames/x.frames.json", num_frames=4, start_s=1.0)),
        ]
    ) == [("first", "again"), ("first", "third"), ("choice", "turned")]
