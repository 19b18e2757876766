"""The whole build on a street in KITTI's format: same bytes for any number of workers and after an interruption, and sound."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
from msgspec import structs
from PIL import Image

from videostr.data import build as building
from videostr.data.__main__ import main
from videostr.data.build import Settings, build, worker
from videostr.data.leakage import find
from videostr.data.records import SCHEMA, read_records, write_records
from videostr.data.scene import Scene
from videostr.data.tasks import Submit
from videostr.errors import ConfigError, DataError
from videostr.types import AnswerKind, Record


def settings(street: Path, **more: object) -> Settings:
    values: dict[str, Any] = {"clips": 40, "questions": 24, "num_frames": 4}
    return Settings(source="kitti", root=str(street), **values | more)


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix in {".parquet", ".json", ".jsonl"}
    }


@pytest.fixture(scope="module")
def built(street: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built") / "set"
    build(out, [settings(street)], workers=2)
    return out


def test_only_the_families_that_are_named_are_asked(street: Path, tmp_path: Path) -> None:
    build(tmp_path / "set", [settings(street, families=("size", "tracking"), scenes=2)], workers=1)
    records = [row for row in read_records(tmp_path / "set") if isinstance(row, Record)]
    assert {record.family for record in records} == {"size", "tracking"}
    with pytest.raises(ConfigError, match="families: 'sizes' is unknown; choose from counting, "):
        settings(street, families=("size", "sizes"))
    own = ["build", "--source", "tabletop", "--scenes", "1", "--families", "size", "--out", str(tmp_path)]
    assert main(own) == 2


def test_records_are_of_the_schema_and_point_at_their_images(built: Path, street: Path) -> None:
    rows = list(read_records(built))
    assert all(isinstance(row, Record) for row in rows)
    records = [row for row in rows if isinstance(row, Record)]
    assert len(records) > 500
    assert {r.source for r in records} == {"kitti"}
    assert {r.image_size for r in records} == {(1242, 375)}
    assert {r.clip.video for r in records} == {f"frames/kitti-{i:04d}.frames.json" for i in range(5)}
    listed = json.loads((built / records[0].clip.video).read_text())
    assert listed["root"] == str(street.resolve())
    assert listed["frames"][3] == [0.3, "training/image_02/0000/000003.png"]
    families = Counter(record.family for record in records)
    assert len(families) >= 10, families
    assert (
        pq.read_schema(built / "records-00000.parquet").metadata[b"videostr.schema"]
        == SCHEMA.metadata[b"videostr.schema"]
    )


def test_choices_are_balanced_in_their_answers(built: Path) -> None:
    records = [r for r in read_records(built) if isinstance(r, Record) and r.answer.kind is AnswerKind.CHOICE]
    sides = Counter(
        (r.options[ord(str(r.answer.value)) - 65]) for r in records if set(r.options) == {"left", "right"}
    )
    assert sides["left"] == sides["right"] > 0


def test_the_number_of_workers_changes_nothing(built: Path, street: Path, tmp_path: Path) -> None:
    build(tmp_path / "one", [settings(street)], workers=1)
    assert digests(tmp_path / "one") == digests(built)
    build(tmp_path / "other", [settings(street, seed=1)], workers=1)
    assert digests(tmp_path / "other") != digests(built)


def test_an_interrupted_build_goes_on_to_the_same_bytes(
    built: Path, street: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "SHARD_RECORDS", 40)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    build(whole, [settings(street)], workers=1)
    assert len(list(whole.glob("records-*.parquet"))) > 2

    def stop(progress: building.Progress, _: int) -> None:
        if progress.scenes == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(cut, [settings(street)], workers=1, tell=stop)
    done = json.loads((cut / "build.json").read_text())
    assert not done["is_done"]
    assert not list(cut.glob("records-*.parquet"))
    shutil.copy(
        cut / "pool-00000.parquet", cut / f"pool-{done['shards']:05d}.parquet"
    )  # written, not yet noted
    shutil.copy(cut / "pool-00000.parquet", cut / "records-00009.parquet")  # of a selection that did not end
    with (cut / "skipped.jsonl").open("a") as file:
        file.write("{}\n")
    build(cut, [settings(street)], workers=2)
    assert digests(cut) == digests(whole)
    shutil.copy(cut / "records-00000.parquet", cut / "pool-00000.parquet")  # killed before these were deleted
    shutil.copy(cut / "records-00000.parquet", cut / "waiting-00003.parquet")
    assert build(cut, [settings(street)], workers=1).is_done  # nothing is left to do
    assert digests(cut) == digests(whole)
    with pytest.raises(
        DataError, match=r"was begun with seed = 0, now it is 5; continue with the same command"
    ):
        build(cut, [settings(street, seed=5)], workers=1)


def test_a_killed_build_leaves_no_process(street: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "videostr.data", "build", "--source", "kitti", "--root", str(street),
               "--out", str(tmp_path / "out"), "--clips", "100000", "--questions", "100", "--workers", "1"]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        until = time.monotonic() + 120
        while not (tmp_path / "out/frames").is_dir() and time.monotonic() < until:
            time.sleep(0.1)
        workers: list[psutil.Process] = []
        while (
            len(workers) < 2 and time.monotonic() < until
        ):  # the worker, and Python's tracker of shared memory
            workers = psutil.Process(process.pid).children(recursive=True)
            time.sleep(0.1)
        time.sleep(2)  # the worker has started
        process.kill()
    _, alive = psutil.wait_procs(workers, timeout=20)
    for each in alive:
        each.kill()
    assert workers
    assert not alive


def test_limits_and_recipes(street: Path, tmp_path: Path) -> None:
    recipe = [settings(street, limit=30), settings(street, seed=1, limit=25, scenes=2)]
    progress = build(tmp_path / "two", recipe, workers=1)
    assert (progress.records, progress.by_source) == (55, {"0": 30, "1": 25})
    records = [row for row in read_records(tmp_path / "two") if isinstance(row, Record)]
    assert len(records) == 55  # none has the id of another
    assert {r.clip.video.count("/") for r in records} == {1}  # one list for the same images


def test_scenes_of_one_name_in_two_roots_keep_their_images(street: Path, tmp_path: Path) -> None:
    other, out = tmp_path / "other", tmp_path / "out"
    shutil.copytree(street, other)
    build(out, [settings(root, scenes=2, limit=20) for root in (street, other)], workers=1)
    records = [row for row in read_records(out) if isinstance(row, Record)]
    roots = [json.loads((out / r.clip.video).read_text())["root"] for r in records]
    assert roots == [str(street.resolve())] * 20 + [str(other.resolve())] * 20
    assert {r.clip.video for r in records[20:]} == {
        f"frames/1/kitti-{r.id.split('/')[1]}.frames.json" for r in records[20:]
    }
    (tmp_path / "list.txt").write_text("kitti: 0000\nkitti: 0001\n")
    assert len(find(records, [tmp_path / "list.txt"])) == 40


def test_excluded_scenes_and_broken_files_are_reported(
    street: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "root"
    shutil.copytree(street, root)
    labels = root / "training/label_02/0001.txt"
    labels.write_text("0 1 Car 0 0\n" + labels.read_text())
    (root / "training/calib/0002.txt").unlink()
    (tmp_path / "benchmark.txt").write_text("# scenes of a benchmark\n0003\n")
    out = tmp_path / "out"
    command = [
        "build",
        "--source",
        "kitti",
        "--root",
        str(root),
        "--out",
        str(out),
        "--exclude",
        str(tmp_path / "benchmark.txt"),
    ]
    assert main([*command, "--frames", "4", "--workers", "1"]) == 0
    said = capsys.readouterr().out
    skips = [json.loads(line) for line in (out / "skipped.jsonl").read_text().splitlines()]
    assert {(s["file"], s["line"], s["reason"]) for s in skips} == {
        ("training/label_02/0001.txt", 1, "BAD_LINE"),
        ("training/calib/0002.txt", None, "NO_CALIBRATION"),
        ("0003", None, "EXCLUDED"),
    }
    assert "1  the line or entry breaks the format" in said
    assert "1  the scene belongs to a benchmark or to a test split" in said
    assert {r.clip.video for r in read_records(out) if isinstance(r, Record)} == {
        f"frames/kitti-000{i}.frames.json" for i in (0, 1, 4)
    }
    card = (out / "README.md").read_text()
    assert "CC BY-NC-SA" in card
    assert "| kitti | tracking | track |" in card


def test_a_build_of_nothing_starts_anew_once_the_files_are_mended(street: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(street, root)
    for path in (root / "training/calib").iterdir():
        path.rename(path.with_suffix(".away"))
    wanted = settings(root, scenes=1, clips=4)
    for _ in range(2):
        with pytest.raises(DataError, match="no question could be asked about any of 1 scenes"):
            build(tmp_path / "out", [wanted], workers=1)
        assert len((tmp_path / "out/skipped.jsonl").read_text().splitlines()) == 1
    for path in (root / "training/calib").iterdir():
        path.rename(path.with_suffix(".txt"))
    assert build(tmp_path / "out", [wanted], workers=1).records > 0
    assert (tmp_path / "out/skipped.jsonl").read_text() == ""


def test_a_scene_without_a_question_is_reported(street: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(street, root)
    labels = root / "training/label_02/0001.txt"
    labels.write_text("".join(labels.read_text().splitlines(keepends=True)[:6]))  # of the first frame
    build(tmp_path / "out", [settings(root, scenes=2)], workers=1)
    (skip,) = map(json.loads, (tmp_path / "out/skipped.jsonl").read_text().splitlines())
    assert (skip["file"], skip["line"], skip["reason"]) == ("0001", None, "NO_QUESTION")
    assert skip["detail"] == "no clip of 4 equally spaced ones among its 1 frames supports a question"


def images(root: Path, sequences: tuple[str, ...]) -> None:
    for name in sequences:
        folder = root / "training/image_02" / name
        folder.mkdir(parents=True)
        for frame in range(60):
            Image.new("RGB", (1242, 375), (frame, 90, 90)).save(folder / f"{frame:06d}.png")


def test_a_fault_in_one_scene_leaves_the_others(
    street: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    names = sorted(path.stem for path in (street / "training/label_02").glob("*.txt"))
    made = worker.scene_records

    def broken(settings: Settings, scene: Scene, *arguments: Any) -> Any:
        if scene.name == names[0]:
            raise IndexError("tuple index out of range")
        return made(settings, scene, *arguments)

    @contextmanager
    def here(_workers: int | None) -> Iterator[tuple[int, Submit]]:
        yield 1, lambda work, given: lambda: work(given)

    monkeypatch.setattr(worker, "scene_records", broken)
    assert build(tmp_path / "set", [settings(street)], pool=here).records > 0
    (skip,) = map(json.loads, (tmp_path / "set/skipped.jsonl").read_text().splitlines())
    assert (skip["file"], skip["reason"]) == (names[0], "FAULT")
    assert "IndexError: tuple index out of range" in skip["detail"]
    assert f"kitti/{names[0]}" in caplog.text


def test_check_passes_what_was_built_and_finds_what_was_broken(
    street: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = tmp_path / "root", tmp_path / "out"
    shutil.copytree(street, root)
    images(root, ("0000", "0001"))
    build(out, [settings(root, scenes=2, clips=5, questions=6)], workers=1)
    assert main(["check", str(out)]) == 0
    assert " 0 bad" in capsys.readouterr().out
    records = [row for row in read_records(out) if isinstance(row, Record)]
    lie = next(r for r in records if r.answer.kind is AnswerKind.NUMBER)
    twice = replace(records[0], id="kitti/0000/again")
    off = next(r for r in records if r.graph is not None and r.id != lie.id)
    assert off.graph is not None
    late = replace(
        off,
        id="late",
        graph=structs.replace(
            off.graph, frames=tuple(structs.replace(f, t=f.t + 9) for f in off.graph.frames)
        ),
    )
    gone = replace(
        records[1],
        id="gone",
        question="Where is it?",
        clip=replace(records[1].clip, video="frames/gone.frames.json"),
    )
    broken = replace(
        lie, id="broken", question="How far is it?", answer=replace(lie.answer, unit="parsecs of old")
    )
    (tmp_path / "lists.txt").write_text("kitti: 0001\n")
    write_records([twice, *records, late, gone, broken], out / "records-00000.parquet")
    assert main(["check", str(out), "--exclude", str(tmp_path / "lists.txt")]) == 1
    said = capsys.readouterr().out
    for expected in (
        f"asks the same of the same video as {twice.id}",
        "the graph is 9.00 s off the frames that are shown",
        "gone.frames.json",
        "its scene is in a list of scenes that must not be trained on",
    ):
        assert expected in said
    shown = json.loads((out / records[0].clip.video).read_text())["frames"]
    first = next(path for t, path in shown if t == records[0].clip.start_s)
    (root / first).unlink()
    assert main(["check", str(out)]) == 1
    assert f"{Path(first).name}: image cannot be read" in capsys.readouterr().out


def test_show_and_export(street: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, out = tmp_path / "root", tmp_path / "out"
    shutil.copytree(street, root)
    images(root, ("0000",))
    build(out, [settings(root, scenes=1)], workers=1)
    assert main(["show", str(out), "--n", "5", "--out", str(tmp_path / "sheet.html")]) == 0
    page = (tmp_path / "sheet.html").read_text()
    assert page.count("<article>") == 5
    assert page.count("data:image/jpeg;base64,") == 20
    assert "car.1" in page
    target = tmp_path / "rows.jsonl"
    assert main(["export", str(out), "--out", str(target)]) == 0
    assert target.stat().st_size > 0
    assert main(["import", str(target), "--out", str(tmp_path / "back")]) == 0
    kept = {
        (r.question, r.options, r.answer) for r in read_records(tmp_path / "back") if isinstance(r, Record)
    }
    asked = {(r.question, r.options, r.answer) for r in read_records(out) if isinstance(r, Record)}
    assert kept == {each for each in asked if each[2].kind in {AnswerKind.CHOICE, AnswerKind.NUMBER}}
    capsys.readouterr()
    assert main(["stats", str(out)]) == 0
    stats = json.loads(capsys.readouterr().out)
    assert stats["sources"] == {"kitti": stats["records"]}
    assert 0.1 < stats["numbers"]["size, m"]["5%"] <= stats["numbers"]["size, m"]["95%"]
    assert sum(stats["nodes"].values()) > 0
    assert {row["family"] for row in stats["guessing"]} <= set(stats["families"])
    assert any(row["family"] == "size" and 0 < row["score"] <= 1 for row in stats["guessing"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "x"], "the following arguments are required: --source, --root"),
        (["--source", "kitti", "--out", "x"], "the following arguments are required: --root"),
        (["--source", "kitti", "--root", "/nowhere", "--out", "x"], "label_02: has no"),
        (["--source", "tabletop", "--out", "x"], "the following arguments are required: --scenes"),
        (["--recipe", "gone.yaml", "--out", "x"], "gone.yaml: cannot be read"),
        (
            ["--recipe", "configs/data/stv.yaml", "--root", "here", "--out", "x"],
            "must be NAME=DIR, e.g. kitti=here",
        ),
        (
            ["--recipe", "configs/data/stv.yaml", "--root", "kiti=here", "--out", "x"],
            "configs/data/stv.yaml has no source 'kiti'; it has kitti, scannet, tao",
        ),
        *(
            (["--recipe", "configs/data/stv.yaml", name, value, "--out", "x"], f"unrecognized arguments: {name}")
            for name, value in (("--limit", "9"), ("--seed", "0"), ("--frames", "8"), ("--families", "size"),
                                ("--heldout", "0.1"), ("--size", "64x64"), ("--scenes", "1"), ("--clips", "1"),
                                ("--questions", "1"), ("--difficulty", "easy"))
        ),
        *(
            (["--source", "kitti", "--root", "/nowhere", name, value, "--out", "x"], message)
            for name, value, message in (
                ("--frames", "17", "argument --frames: 17: must be a whole number, from 2 to 16"),
                ("--frames", "1", "argument --frames: 1: must be a whole number, from 2 to 16"),
                ("--seed", "-1", "argument --seed: -1: must be a whole number, from 0"),
                ("--limit", "0", "argument --limit: 0: must be a whole number, at least 1"),
                ("--questions", "0", "argument --questions: 0: must be"),
                ("--size", "64x0", "argument --size: 64x0: must be WIDTHxHEIGHT in pixels"),
                ("--workers", "0", "argument --workers: 0: must be a whole number, at least 1"),
            )
        ),
        *(
            (["--source", "tabletop", "--scenes", "1", name, value, "--out", "x"], message)
            for name, value, message in (
                ("--seed", "-1", "argument --seed: -1: must be a whole number"),
                ("--scenes", "0", "argument --scenes: 0: must be a whole number"),
                ("--questions", "0", "argument --questions: 0: must be a whole number"),
                ("--workers", "0", "argument --workers: 0: must be a whole number, at least 1"),
                ("--frames", "4", "unrecognized arguments: --frames"),
                ("--limit", "9", "unrecognized arguments: --limit"),
                ("--exclude", "list", "unrecognized arguments: --exclude"),
                ("--root", "here", "unrecognized arguments: --root"),
            )
        ),
        (["--source", "kitti", "--root", "/nowhere", "--difficulty", "easy", "--out", "x"], "unrecognized arguments"),
    ],
)  # fmt: skip
def test_bad_arguments_are_refused(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    arguments = [str(tmp_path / "x") if a == "x" else a for a in arguments]
    assert main(["build", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_recipe_with_an_unknown_value_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("sources:\n  - source: kitti\n    root: here\n    limit: many\n")
    assert main(["build", "--recipe", str(recipe), "--out", str(tmp_path / "x")]) == 2
    message = capsys.readouterr().err
    assert "r.yaml: sources[0].limit: must be a whole number, at least 1, or null" in message
    recipe.write_text("sources:\n  - {source: kitti, root: here, limits: 4}\n")
    assert main(["build", "--recipe", str(recipe), "--out", str(tmp_path / "x")]) == 2
    assert (
        "r.yaml: sources[0]: limits is not a field (the fields are source, root, " in capsys.readouterr().err
    )
    recipe.write_text("sources:\n  - {source: kitti, root: here, num_frames: 17}\n")
    assert main(["build", "--recipe", str(recipe), "--out", str(tmp_path / "x")]) == 2
    assert "r.yaml: sources[0].num_frames: must be a whole number, from 2 to 16" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"sources: [", b"sources: \xff", b"sources: {a: b", b"\x00", b"a: ${b"])
def test_a_recipe_that_is_no_yaml_is_refused(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_bytes(content)
    assert main(["build", "--recipe", str(recipe), "--out", str(tmp_path / "x")]) == 2
    assert "r.yaml: not readable as YAML: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("include: b.yaml\nsources: []", "a.yaml: include = 'b.yaml': must be a list of recipes"),
        ("include: [b.yaml]\nsources: []", "b.yaml: cannot be read"),
        ("include: [a.yaml]\nsources: []", "a.yaml: includes itself"),
        ("includes: [b.yaml]\nsources: []", "a.yaml: includes: is no key of a recipe"),
    ],
)
def test_an_include_that_leads_nowhere_is_refused(
    content: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.yaml").write_text(content)
    assert main(["build", "--recipe", str(tmp_path / "a.yaml"), "--out", str(tmp_path / "x")]) == 2
    assert message in capsys.readouterr().err


def test_a_list_of_excluded_scenes_holds_for_every_source_of_a_recipe(street: Path, tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("0001\n")
    (tmp_path / "benchmark.txt").write_text("0000\n0003\n")
    source = f"{{source: kitti, root: {street}, scenes: 3, num_frames: 4, clips: 3"
    (tmp_path / "r.yaml").write_text(
        f"sources:\n  - {source}}}\n  - {source}, seed: 1, exclude: [{tmp_path / 'own.txt'}]}}\n"
    )
    command = ["build", "--recipe", str(tmp_path / "r.yaml"), "--exclude", str(tmp_path / "benchmark.txt")]
    assert main([*command, "--out", str(tmp_path / "x"), "--workers", "1"]) == 0
    records = [row for row in read_records(tmp_path / "x") if isinstance(row, Record)]
    assert {r.id.split("/")[1] for r in records} == {"0001", "0002", "0004"}
    assert {r.id.split("/")[1] for r in records if "." in r.id.split("/")[2]} == {"0002", "0004"}
