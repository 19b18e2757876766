"""Every source from its true format to records: the families that it supports and no more, and a check that finds nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from msgspec import structs

from tests.videostr.data.sources import test_nuscenes as nuscenes
from tests.videostr.data.sources import test_scannet as scannet
from tests.videostr.data.sources import test_tao as tao
from videostr.data.__main__ import main
from videostr.data.build import Settings, build
from videostr.data.build.recipe import read_recipe
from videostr.data.build.worker import open_source, scene_records
from videostr.data.records import read_records
from videostr.data.scene import Scene
from videostr.query import entailed, is_answerable
from videostr.types import Record

DOCS = Path(__file__).parents[3] / "docs"


def write_tao(root: Path) -> None:
    tree = tao.tree()
    tree["images"] = [tao.image(100 + i, 30 * i) for i in range(12)]
    tree["tracks"] = [{"id": 10 + i, "category_id": i, "video_id": 1} for i in (tao.PERSON, tao.CUP, tao.CAR)]
    tree["annotations"] = [
        tao.annotation(1000 + 20 * c + i, 100 + i, 10 + c, c, [40 + 150 * c + 5 * i, 80, 60, 90])
        for c in (tao.PERSON, tao.CUP, tao.CAR)
        for i in range(0 if c != tao.CAR else 5, 12)
    ]
    (root / "annotations").mkdir(parents=True)
    (root / tao.FILE).write_text(json.dumps(tree))


def write_nuscenes(root: Path) -> None:
    root.mkdir()
    tables = nuscenes.tables()
    names = [f"s{i:02d}" for i in range(20)]
    ego = {"rotation": nuscenes.TURN, "timestamp": 0}
    tables["sample"] = [
        {
            "token": name,
            "timestamp": nuscenes.START_US + 500_000 * i,
            "scene_token": "s1",
            "prev": "",
            "next": "",
        }
        for i, name in enumerate(names)
    ]
    tables["sample_data"] = [nuscenes.image(name) for name in names]
    tables["ego_pose"] = [
        {"token": f"ego-{name}", "translation": [1000.0, 2000.0 + i, 0.0], **ego}
        for i, name in enumerate(names)
    ]
    tables["sample_annotation"] = [
        nuscenes.annotation(name, kind, [1000.0 + x, 2020.0 + i * speed, 1.0])
        for i, name in enumerate(names)
        for kind, x, speed in (("car", 2.0, 2.0), ("walker", -4.0, 1.5))
    ]
    nuscenes.write(root, tables)


def write_scannet(root: Path) -> None:
    parts = [
        ("chair", scannet.block((2.0, -0.6, -0.2), (2.3, -0.3, 0.2))),
        ("refrigerator", scannet.block((2.4, 0.5, -0.3), (3.4, 1.3, 0.1))),
        ("shower curtain", scannet.block((4.0, -1.6, 0.0), (4.2, -1.4, 0.6))),
        ("cardboard box", scannet.block((3.0, 2.2, -0.3), (3.5, 2.6, 0.1))),
        ("floor", scannet.sheet((1.0, -2.0, -0.5), (5.0, 3.0, -0.5), 0.05)),
    ]
    poses = {i: scannet.at(0.05 * i, 0.1 * i - 0.4, 0.0) for i in range(12)}
    root.mkdir()
    scannet.write_scan(root, parts, poses)
    (root / "scannetv2_val.txt").write_text("scene0999_00\n")


def write_jsonl(root: Path) -> None:
    """The example of the docs."""
    (example,) = re.findall(r"```json\n(.*?)```", (DOCS / "annotations.md").read_text(), re.DOTALL)
    root.mkdir()
    (root / "annotations.jsonl").write_text(json.dumps(json.loads(example)) + "\n")


MOTION = {"speed", "displacement", "path_length"}
IN_METRES = {"size", "distance_absolute", "direction_camera", "localisation_2d"}


@pytest.mark.parametrize(
    ("source", "write", "needed", "impossible"),
    [
        (
            "tao",
            write_tao,
            {"direction_camera", "tracking", "localisation_2d", "order", "presence"},
            {"size", "speed", "displacement", "distance_absolute", "distance_relative", "localisation_3d", "room_size"},
        ),
        ("nuscenes", write_nuscenes, {*IN_METRES, *MOTION, "tracking", "localisation_3d"}, {"room_size"}),
        ("scannet", write_scannet, {*IN_METRES, "room_size"}, MOTION),
        ("jsonl", write_jsonl, {"room_size", "size"}, {"counting", "speed"}),
    ],
)  # fmt: skip
def test_from_its_format_to_records(
    source: str, write: Callable[[Path], None], needed: set[str], impossible: set[str], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    write(tmp_path / "root")
    out = tmp_path / "out"
    frames = 2 if source == "jsonl" else 4
    settings = Settings(source=source, root=str(tmp_path / "root"), clips=30, questions=40, num_frames=frames)
    build(out, [settings], workers=1)
    records = [row for row in read_records(out) if isinstance(row, Record)]
    # Choices of a single scene seldom find a complete set: what is asked shows in the numbers, boxes and tracks alone.
    families = {record.family for record in records}
    choices = {"direction_camera", "order", "distance_relative", "direction_object"}
    assert needed - choices <= families
    assert not impossible & families
    assert main(["check", str(out), "--videos", "0"]) == 0
    said = capsys.readouterr().out
    assert f"{len(records)} rows, 0 bad" in said
    assert re.search(r"answers that the graph entails: (\d+) of \1; ", said)
    check_entailment(settings, set() if source == "tao" else {"localisation_2d", "tracking"})
    graphs = [record.graph for record in records if record.graph is not None]
    assert {graph.frame for graph in graphs} == {"image" if source == "tao" else "camera0"}
    positions = np.array([node.pos for graph in graphs for frame in graph.frames for node in frame.nodes])
    assert np.abs(positions).max() < 1000


def check_entailment(settings: Settings, untold: set[str]) -> None:
    """The true graph entails the answer of every question before balancing, but of these families and those of no graph."""
    source = open_source(settings)
    for name in source.names:
        scene = source.read(name)
        assert isinstance(scene, Scene)
        for record, _ in scene_records(settings, scene):
            assert record.query is not None
            if record.graph is None:
                continue
            if is_answerable(record.query, record.graph):
                assert entailed(record.query, record.graph) == record.answer, record
            else:
                assert record.family in untold | {"size", "localisation_3d", "room_size"}


def test_the_recipe_of_all_sources_builds(street: Path, tmp_path: Path) -> None:
    made = {"tao": write_tao, "scannet": write_scannet, "nuscenes": write_nuscenes, "jsonl": write_jsonl}
    for source, write in made.items():
        write(tmp_path / source)
    roots = {source: str(tmp_path / source) for source in made} | {"kitti": str(street)}
    recipe = read_recipe(Path("configs/data/stv_more.yaml"), roots)
    assert [each.source for each in recipe] == ["tao", "kitti", "scannet", "nuscenes", "jsonl"]
    # Scenes of a few frames, all of them for training
    few = [
        structs.replace(each, heldout=0.0, num_frames=2 if each.source == "jsonl" else 4) for each in recipe
    ]
    build(tmp_path / "set", few, workers=2)
    records = [row for row in read_records(tmp_path / "set") if isinstance(row, Record)]
    assert {record.source for record in records} == {each.source for each in recipe}
    assert main(["check", str(tmp_path / "set"), "--videos", "0"]) == 0
