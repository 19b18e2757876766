"""What `data check` and `data import` say of videos that can be read, but are not what the records were made from."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from videostr.data.__main__ import main
from videostr.data.records import read_records, write_records
from videostr.prompt import instruction, part_shown
from videostr.types import Answer, AnswerKind, ClipSpec, GraphFrame, Node, Query, Record, SceneGraph

RECORD = Record(
    id="a",
    source="own",
    family="counting",
    question="How many cars are there?",
    options=(),
    answer=Answer(kind=AnswerKind.NUMBER, value=3.0),
    clip=ClipSpec(video="v.mp4", num_frames=4),
    labels=(),
    graph=None,
)

OUTSIDE = Query(family="counting", boxes=((0.5, 10.0, 10.0, 1500.0, 40.0),))


def write_video(path: Path, frames: int = 10, size: tuple[int, int] = (64, 48), upright: bool = True) -> None:
    """10 frames a second; one that is not upright is shown after a turn by 90 degrees."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=10)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        if not upright:
            stream.set_display_rotation(90)
        for number in range(frames):
            pixels = np.full((size[1], size[0], 3), 20 * number % 256, np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        out.mux(stream.encode())


def check(folder: Path, capsys: pytest.CaptureFixture[str], *records: Record) -> tuple[int, str]:
    write_records(records, folder / "records-00000.parquet")
    capsys.readouterr()
    return main(["check", str(folder)]), capsys.readouterr().out


def test_the_size_that_was_annotated_is_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_video(tmp_path / "v.mp4")
    write_video(tmp_path / "phone.mp4", upright=False)
    upright = replace(RECORD, image_size=(64, 48))
    phone = replace(RECORD, id="b", image_size=(64, 48), clip=replace(RECORD.clip, video="phone.mp4"))
    assert check(tmp_path, capsys, upright) == (0, f"{tmp_path}: 1 rows, 0 bad\n")
    # Also where the frames are handed on in another size.
    resized = replace(upright, clip=replace(RECORD.clip, height=28, width=28))
    assert check(tmp_path, capsys, resized)[0] == 0
    status, said = check(tmp_path, capsys, upright, phone)
    assert status == 1
    assert "records-00000.parquet:1: image_size is 64 x 48, the frames of phone.mp4 are 48 x 64" in said
    assert "2 rows, 1 bad" in said
    # A smaller copy of what was annotated keeps its proportions, and with them the boxes.
    status, said = check(tmp_path, capsys, replace(RECORD, image_size=(128, 96)))
    assert status == 0
    assert "warning: " in said
    assert "the same picture in another size" in said


def test_boxes_outside_the_frame_are_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_video(tmp_path / "v.mp4")
    frames = tuple(
        GraphFrame(t=t, nodes=(Node(id="car.1", label="car", pos=(1200.0, 500.0)),))
        for t in (0.0, 0.3, 0.6, 0.9)
    )
    wrong = (
        replace(RECORD, id="box", answer=Answer(kind=AnswerKind.BOX2D, value=(100.0, 100.0, 1920.0, 900.0))),
        replace(RECORD, id="track", answer=Answer(kind=AnswerKind.TRACK, value=((0.0, -50.0, 10.0, 10.0),))),
        replace(RECORD, id="name", question="How far?", query=OUTSIDE),
        replace(
            RECORD,
            id="graph",
            question="?",
            labels=("car",),
            graph=SceneGraph(unit="px", frame="image", frames=frames),
        ),
    )
    right = replace(
        RECORD,
        id="whole",
        question="!",
        answer=Answer(kind=AnswerKind.BOX2D, value=(0.0, 0.0, 1000.0, 1000.0)),
    )
    status, said = check(tmp_path, capsys, *wrong, right)
    assert status == 1
    assert said.count("lies outside the frame: must be px of 0 to 1000") == 4
    assert "records-00000.parquet:4: [" not in said


def test_a_row_with_two_problems_is_one_bad_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_video(tmp_path / "v.mp4")
    wrong = replace(RECORD, query=OUTSIDE)
    status, said = check(tmp_path, capsys, wrong, replace(wrong, id="again"))
    assert status == 1
    assert said.count("lies outside the frame") == 2
    assert said.count("asks the same of the same video") == 1
    assert "2 rows, 2 bad" in said


def test_clips_of_one_frame_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_video(tmp_path / "v.mp4")
    write_video(tmp_path / "one.mp4", frames=1)
    end = replace(RECORD, id="b", clip=replace(RECORD.clip, start_s=0.9))
    one = replace(RECORD, id="c", clip=replace(RECORD.clip, video="one.mp4"))
    picture = replace(
        RECORD, id="d", question="What is it?", clip=replace(RECORD.clip, video="one.mp4", num_frames=1)
    )
    status, said = check(tmp_path, capsys, RECORD, end, one, picture)
    assert status == 1
    assert "records-00000.parquet:1: " in said
    assert said.count("all 4 selected frames are the same frame of the file") == 2
    assert "4 rows, 2 bad" in said


def test_an_interval_outside_the_video_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_video(tmp_path / "v.mp4")
    status, said = check(tmp_path, capsys, replace(RECORD, clip=replace(RECORD.clip, start_s=7.0, end_s=9.0)))
    assert status == 1
    assert "clip.start_s = 7: the video ends at 1.00 s" in said
    assert "truncated" not in said


def row(number: int, video: str) -> dict[str, Any]:
    return {
        "problem_id": number, "problem": f"How many are there? {number}", "data_type": "video", "problem_type": "numerical",
        "solution": "<answer>3</answer>", "path": video,
    }  # fmt: skip


def test_large_frames_are_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_video(tmp_path / "large.mp4", frames=16, size=(1920, 1080))
    write_video(tmp_path / "small.mp4", frames=16)
    rows = [row(0, "large.mp4"), row(1, "small.mp4"), row(2, "gone.mp4")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    take = ["import", str(tmp_path / "rows.jsonl"), "--format", "video-r1", "--root", str(tmp_path), "--out"]
    assert main([*take, str(tmp_path / "out")]) == 0
    # 16 x 1920 x 1080 x 3 bytes = 99.5 MB; the video that is not there is left to `data check`.
    warning = "warning: 1 of 2 clips take more than 64 MB, up to 100 MB (16 frames of 1920 x 1080)"
    said = capsys.readouterr().out
    assert warning in said
    assert "--size WxH" in said
    (tmp_path / "out/gone").touch()
    records = [
        r for r in read_records(tmp_path / "out") if isinstance(r, Record) and "gone" not in r.clip.video
    ]
    status, said = check(tmp_path / "out", capsys, *records)
    assert status == 0
    assert warning in said
    assert main([*take, str(tmp_path / "sized"), "--size", "448x252"]) == 0
    assert "warning" not in capsys.readouterr().out
    (first, *_) = read_records(tmp_path / "sized")
    assert isinstance(first, Record)
    assert (first.clip.width, first.clip.height) == (448, 252)


def test_a_prompt_says_which_part_of_a_video_is_shown(tmp_path: Path) -> None:
    part = replace(RECORD, question="When does it stop?", clip=replace(RECORD.clip, start_s=20.3, end_s=23.8))
    line = "The video is shown from 20.3 s to 23.8 s; times count from its beginning, which is not shown."
    assert instruction(part).splitlines()[:2] == [line, "When does it stop?"]
    assert instruction(RECORD).startswith("How many cars are there?")
    assert part_shown(replace(part.clip, end_s=None)).startswith("The video is shown from 20.3 s on; ")
    assert part_shown(replace(part.clip, start_s=0.0)) == ""
    # With a graph, its contract names the times of the frames.
    frames = tuple(GraphFrame(t=t, nodes=()) for t in (20.3, 23.8))
    with_graph = replace(part, graph=SceneGraph(unit="px", frame="image", frames=frames))
    assert "The video is shown" not in instruction(with_graph)
    assert "Times: 20.3, 23.8 s." in instruction(with_graph)
