"""The HTML report: what it shows of a whole run, of a run in any unfinished state, and of hostile text."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from videostr.charts import Series, line_chart, nice_ticks, share_chart, short, smoothed
from videostr.config.load import dump
from videostr.config.schema import Config
from videostr.draw import (
    chosen,
    draw,
    frame_images,
    frame_times,
    label_color,
    read_graph,
    view_of,
)
from videostr.errors import DataError, RunFolderError
from videostr.graph import frame_at, half_spacing
from videostr.groups import RolloutGroup, Sampled
from videostr.metrics import duration
from videostr.report.__main__ import main
from videostr.report.page import render, write_report
from videostr.run_data import read_run
from videostr.traces import SCHEMA, TraceRow, read_traces, trace_rows, write_traces
from videostr.types import Answer, AnswerKind, Clip, ClipSpec, Completion, FinishReason, Prompt, Record, Score

TRUE_GRAPH = (
    '{"unit":"grid","frames":[{"t":0.0,"nodes":[{"id":"red_ball.1","pos":[0,0]},{"id":"blue_ball.1","pos":[9,9]}]},'
    '{"t":1.0,"nodes":[{"id":"red_ball.1","pos":[4,4]},{"id":"blue_ball.1","pos":[9,0]}]}]}'
)
PREDICTED_GRAPH = '{"unit":"grid","frames":[{"t":0.1,"nodes":[{"id":"red_ball.1","pos":[1,0]}]}]}'
SUMMARY = {
    "seed": 0,
    "heldout": {
        "prompts": 256,
        "before": {"total": 0.9512, "format": 0.97, "answer": 0.31, "graph": 0.46},
        "after": {"total": 1.3104, "format": 0.99, "answer": 0.44, "graph": 0.68},
        "greedy_before": {"total": 1.1, "format": 0.98, "answer": 0.36, "graph": 0.56},
        "greedy_after": {"total": 1.35, "format": 1.0, "answer": 0.45, "graph": 0.7},
        "gain": {
            "total": {"mean": 0.3592, "ci95": [0.311, 0.412]},
            "graph": {"mean": 0.22, "ci95": [0.19, 0.25]},
            "answer": {"mean": 0.13, "ci95": [-0.02, 0.16]},
        },
    },
    "seconds": {"startup": 95.0, "train": 420.0, "evaluate": 61.0},
}


def trace_row(**changes: Any) -> TraceRow:
    row = TraceRow(
        step=3,
        record_id="tabletop/easy/0",
        question="How many balls are there?",
        family="counting",
        prompt="<|im_start|>user How many balls are there?",
        rollout=0,
        text="<think> two </think> <answer> 2 </answer>",
        total=1.25,
        parts='{"format": 1.0, "answer": 0.5}',
        notes='["answer: 2 read, 3 true"]',
        advantage=0.5,
        tokens=17,
        finish_reason="STOP",
        true_answer="3",
        true_graph=TRUE_GRAPH,
        predicted_graph=PREDICTED_GRAPH,
        absence="",
        reference="floor",
        clip="abc123",
    )
    row.update(changes)  # type: ignore[typeddict-item]
    return row


def metric_row(step: int, **more: float) -> dict[str, float]:
    return {
        "step": step,
        "reward/total": 0.5 + step / 10,
        "loss": 0.1,
        "time/rollout": 3.0,
        "time/step": 4.0,
        **more,
    }


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "demo"
    (folder / "frames").mkdir(parents=True)
    config = Config()
    config.model.path, config.data.train, config.train.steps, config.run.seed = "m", "d", 3, 5
    (folder / "config.yaml").write_text(dump(config))
    rows = [
        metric_row(1),
        metric_row(2, **{"failures/bad_video": 2}),
        metric_row(3, **{"failures/bad_video": 1}),
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "summary.json").write_text(json.dumps(SUMMARY))
    (folder / "quarantine.jsonl").write_text(
        '{"kind": "bad_video", "record_id": "r7", "detail": "7.mp4: truncated"}\n'
    )
    np.save(folder / "frames" / "abc123.npy", np.full((2, 8, 8, 3), 200, np.uint8))
    write_traces(folder / "traces" / "step_000003.parquet", [trace_row(), trace_row(rollout=1, total=0.25)])
    return folder


class Outline(HTMLParser):
    """Tags, attribute values and visible text of a page; refuses tags that are closed in the wrong order."""

    VOID = frozenset({"meta", "link", "img", "br", "input"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in {"src", "href"}]
        assert not any(name.startswith("on") for name, _ in attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif not self.open or self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


# ------------------------------------------------------------------------------------------- a whole run


def test_a_finished_run_shows_its_figures(run_dir: Path) -> None:
    path = write_report(run_dir)
    assert path == run_dir / "report.html"
    page = Outline(path.read_text())
    for words in [
        "demo finished",
        "seed 5",
        "Held-out answer 0.310 → 0.440",
        "Held-out reward 0.951 → 1.310",
        "Steps 3 of 3",
        "Training time 7 min 00 s startup 1 min 35 s, evaluate 1 min 01 s",
        "Failures 3 1 in quarantine",
        "256 prompts.",
        "total 0.951 1.310 +0.359 +0.311 to +0.412",
        "answer 0.310 0.440 +0.130 -0.020 to +0.160",
        "greedy before after gain 95 % interval answer 0.360 0.450 –",
        "bad_video 3 the video is missing or cannot be decoded",
        "7.mp4: truncated",
        "2 rollouts of 1 prompt, dumped at 1 step.",
        "group_size: 8",
    ]:
        assert words in page.text, words


def test_the_page_is_one_file(run_dir: Path) -> None:
    page = Outline(write_report(run_dir).read_text())
    assert page.addresses
    assert all(address.startswith(("data:", "#")) for address in page.addresses)
    assert [path.name for path in run_dir.iterdir() if "report" in path.name] == ["report.html"]


def test_the_command_writes_the_report_and_refuses_another_folder(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(run_dir)]) == 0
    assert capsys.readouterr().out == f"{run_dir / 'report.html'}\n"
    assert main([str(tmp_path / "frames")]) == 2
    assert "name a run folder" in capsys.readouterr().err


# ----------------------------------------------------------------------------------------- missing pieces


@pytest.mark.parametrize("missing", ["config.yaml", "metrics.jsonl", "summary.json", "quarantine.jsonl"])
def test_any_file_may_be_missing(run_dir: Path, missing: str) -> None:
    (run_dir / missing).unlink()
    assert "2 rollouts of 1 prompt" in Outline(render(read_run(run_dir))).text


def test_a_run_in_progress(run_dir: Path) -> None:
    (run_dir / "summary.json").unlink()
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "reward/to')  # being written
    page = Outline(render(read_run(run_dir)))
    assert "step 3 of 3, running or stopped" in page.text
    assert "Before and after" not in page.text
    assert "Not shown" not in page.text
    # The mean of 0.6, 0.7 and 0.8.
    assert "Reward 0.7 mean of the last 10 steps" in page.text


def test_a_folder_with_only_a_config(run_dir: Path, tmp_path: Path) -> None:
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    (fresh / "config.yaml").write_text((run_dir / "config.yaml").read_text())
    assert "no step yet" in Outline(render(read_run(fresh))).text


def test_unreadable_pieces_are_named(run_dir: Path) -> None:
    (run_dir / "config.yaml").write_text("nonsense: 1\n")
    (run_dir / "summary.json").write_text("{")
    (run_dir / "traces" / "step_000009.parquet").write_bytes(b"PAR1 no")
    lines = (run_dir / "metrics.jsonl").read_text()
    (run_dir / "metrics.jsonl").write_text("not json\n" + lines)
    run = read_run(run_dir)
    assert len(run.problems) == 4
    page = Outline(render(run))
    for words in [
        "nonsense",
        "summary.json: not readable",
        "step_000009.parquet: not readable",
        "metrics.jsonl:1:",
    ]:
        assert words in page.text
    assert "2 rollouts of 1 prompt" in page.text


def test_a_step_written_twice_after_a_resume_counts_once(run_dir: Path) -> None:
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(metric_row(2, loss=9.0)) + "\n")
    run = read_run(run_dir)
    assert [row["step"] for row in run.metrics] == [1, 2, 3]
    assert run.series("loss") == [0.1, 9.0, 0.1]
    assert run.failures() == [("bad_video", 1)]


def test_failures_are_counted_since_the_process_started(run_dir: Path) -> None:
    counts = [0, 2, 2, 5, 1, 1]  # a new process begins with the fifth step
    rows = [metric_row(step, **{"failures/engine_died": n}) for step, n in enumerate(counts, 1)]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = read_run(run_dir)
    assert run.failures_by_step() == {"engine_died": [0, 2, 0, 3, 1, 0]}
    assert run.failures() == [("engine_died", 6)]
    assert "engine_died 6 an engine's process ended" in Outline(render(run)).text


def test_nested_and_non_finite_metrics(tmp_path: Path) -> None:
    row = {"step": 1, "failures": {"engine": 2}, "loss": float("nan"), "kl": "oops"}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    run = read_run(tmp_path)
    assert run.failures() == [("engine", 2)]
    assert run.series("loss") == run.series("kl") == run.series("absent") == [None]
    assert "the rollout engine failed on the request" in Outline(render(run)).text


# ------------------------------------------------------------------------------------------- hostile text

HOSTILE = "</pre></script><script>alert(1)</script><img src=x onerror=alert(2)>\"' {{ 7*7 }} &amp; \x00"


def test_hostile_text_is_shown_not_run(run_dir: Path) -> None:
    hostile = trace_row(
        **dict.fromkeys(
            ("text", "question", "family", "prompt", "true_answer", "record_id", "finish_reason", "absence"),
            HOSTILE,
        ),
        clip="../../etc/passwd",
        parts=json.dumps({HOSTILE: 1.0, "x": "not a number"}),
        notes=json.dumps([HOSTILE]),
    )
    write_traces(run_dir / "traces" / "step_000003.parquet", [hostile])
    (run_dir / "quarantine.jsonl").write_text(json.dumps({"kind": HOSTILE, "detail": HOSTILE}) + "\n")
    (run_dir / "environment.json").write_text(json.dumps({"gpu": HOSTILE}))
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(metric_row(4, **{f"failures/{HOSTILE}": 1, f"reward/{HOSTILE}": 1})) + "\n")
    page = Outline(render(read_run(run_dir)))
    # One script runs; the others are the index and the chunk of the traces, whose text is base64.
    assert page.tags.count("script") == 3
    assert page.text.count("alert(1)") >= 4
    assert "{{ 7*7 }}" in page.text
    assert "img" not in page.tags
    assert HOSTILE not in "".join(page.scripts)


def test_the_environment_is_the_runs_own_where_it_is_known(run_dir: Path) -> None:
    page = Outline(render(read_run(run_dir)))
    assert "Environment of the process that wrote this page" in page.text
    assert f"python {platform.python_version()}" in page.text
    (run_dir / "environment.json").write_text('{"torch": "9.9.9", "accelerators": "8 x H100"}')
    page = Outline(render(read_run(run_dir)))
    assert "Environment torch 9.9.9 accelerators 8 x H100" in page.text


def test_gains_without_a_summary_of_them_come_from_single_prompts(run_dir: Path) -> None:
    (run_dir / "eval").mkdir()
    for step, form in ((0, 0.25), (3, 0.75)):
        values = {"sampled": {}, "greedy": {f"r{i}": {"format": form} for i in range(20)}, "version": step}
        (run_dir / "eval" / f"step_{step:06d}.json").write_text(json.dumps(values))
    page = Outline(render(read_run(run_dir)))
    assert "format 0.980 1.000 +0.500 +0.500 to +0.500" in page.text  # greedy; every prompt gained the same
    assert "format 0.970 0.990 –" in page.text


def test_half_a_surrogate_pair_does_not_stop_the_report(run_dir: Path) -> None:
    (run_dir / "quarantine.jsonl").write_text('{"kind": "bad_row", "detail": "\\ud800"}\n')
    assert "bad_row" in write_report(run_dir).read_text()


# ------------------------------------------------------------------------------------------------- traces


def test_rows_of_a_step_come_from_its_groups(tmp_path: Path) -> None:
    true_graph = read_graph(TRUE_GRAPH, "floor")
    predicted_graph = read_graph(PREDICTED_GRAPH, "floor")
    assert true_graph is not None
    assert predicted_graph is not None
    record = Record(
        id="r1",
        source="tabletop/easy",
        family="displacement",
        question="How far?",
        options=(),
        answer=Answer(kind=AnswerKind.NUMBER, value=4.5, unit="cells"),
        clip=ClipSpec(video="v.mp4", num_frames=2),
        labels=("red_ball",),
        graph=true_graph,
    )
    text = f"<think><graph>{PREDICTED_GRAPH}</graph></think><answer>4</answer>"
    completions = [
        Completion(
            text=text,
            token_ids=np.arange(length, dtype=np.int32),
            logprobs=np.zeros(length, np.float32),
            finish_reason=reason,
            weight_versions=(),
        )
        for text, length, reason in ((text, 5, FinishReason.STOP), ("no graph", 9, FinishReason.LENGTH))
    ]
    scores = tuple(Score(total=1.5 - index, parts={"format": 1.0}, notes=("near",)) for index in range(2))
    sampled = Sampled(prompt_token_ids=np.arange(3, dtype=np.int32), completions=tuple(completions))
    group = RolloutGroup(
        prompt=Prompt(record_id="r1", text="prompt", clip=Clip(digest="d1", spec=record.clip)),
        sampled=sampled,
        scores=scores,
    )
    rows = trace_rows(7, group, sampled, np.array([1.0, -1.0], np.float32), record)
    assert [row["rollout"] for row in rows] == [0, 1]
    assert rows[0] == TraceRow(
        step=7,
        record_id="r1",
        question="How far?",
        family="displacement",
        prompt="prompt",
        rollout=0,
        text=text,
        total=1.5,
        parts='{"format": 1.0}',
        notes='["near"]',
        advantage=1.0,
        tokens=5,
        finish_reason="STOP",
        true_answer="4.5 cells",
        true_graph=rows[0]["true_graph"],
        predicted_graph=rows[0]["predicted_graph"],
        absence="",
        reference="floor",
        clip="d1",
    )
    assert read_graph(rows[0]["true_graph"], "floor") == true_graph
    assert read_graph(rows[0]["predicted_graph"], "floor") == predicted_graph
    assert (rows[1]["finish_reason"], rows[1]["absence"], rows[1]["predicted_graph"]) == (
        "LENGTH",
        "ABSENT",
        "",
    )
    path = tmp_path / "traces" / "step_000007.parquet"
    write_traces(path, rows)
    assert read_traces(path) == rows
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_dump_that_is_not_one_is_refused(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "step_000001.parquet"
    pq.write_table(pa.table({"step": [1]}), path)
    with pytest.raises(DataError, match=r"lacks .*record_id"):
        read_traces(path)
    with pytest.raises(DataError, match="not readable as Parquet"):
        read_traces(tmp_path / "none.parquet")
    assert len(SCHEMA.names) == 19


# ----------------------------------------------------------------------------------------- charts, scenes


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.0, 1.0, [0.0, 0.25, 0.5, 0.75, 1.0]),
        (0.83, 1.47, [0.8, 1.0, 1.2, 1.4, 1.6]),
        (-3.0, 12.0, [-5.0, 0.0, 5.0, 10.0, 15.0]),
        (2.0, 2.0, [1.0, 1.5, 2.0, 2.5, 3.0]),
        (1.0000001, 1.0000003, [0.0, 0.5, 1.0, 1.5, 2.0]),
        (0.0, 0.0, [-0.5, -0.25, 0.0, 0.25, 0.5]),
    ],
)
def test_ticks_are_round_and_enclose(low: float, high: float, ticks: list[float]) -> None:
    assert nice_ticks(low, high) == ticks


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.0, "0"),
        (0.12345, "0.123"),
        (1.3, "1.3"),
        (1234.4, "1234"),
        (12345.0, "12.3k"),
        (1.5e6, "1.5M"),
        (0.0025, "0.0025"),
        (2.5e-6, "2.5e-6"),
    ],
)
def test_numbers_are_short(value: float | None, text: str) -> None:
    assert short(value) == text


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([2.25, 2.35], ["2.25", "2.275", "2.3", "2.325", "2.35"]),
        ([1000.0, 1002.0], ["1000", "1000.5", "1001", "1001.5", "1002"]),
        ([0.0, 20_000.0], ["0", "5000", "10k", "15k", "20k"]),
        ([0.0, 1e-4], ["0", "2.5e-5", "5.0e-5", "7.5e-5", "0.0001"]),
    ],
)
def test_ticks_are_told_apart(values: list[float], labels: list[str]) -> None:
    chart = line_chart("", "", [1, 2], [Series(name="a", values=values)])
    assert chart is not None
    assert re.findall(r'text-anchor="end">([^<]+)</text>', chart.svg)[: len(labels)] == labels


def test_smoothing_is_a_centred_mean_that_keeps_gaps() -> None:
    # Reach 1: the mean of a value and its neighbours, the gap itself left out.
    assert smoothed([3.0, 6.0, None, 1.0, 4.0]) == [4.5, 4.5, None, 2.5, 2.5]


def test_a_curve_is_drawn_where_it_belongs_and_broken_at_gaps() -> None:
    chart = line_chart("Loss", "", [1, 2, 3, 4, 5], [Series(name="loss", values=[0.0, 1.0, None, 0.0, 1.0])])
    assert chart is not None
    # Width 420 less borders 46 and 10: 91 a step; height 190 less 10 and 24: 0 lies at 166, 1 at 10.
    assert 'd="M46.0 166.0h0L137.0 10.0M319.0 166.0h0L410.0 10.0"' in chart.svg
    assert chart.latest == "1"
    assert chart.names == ()


def test_nothing_to_draw_is_no_chart() -> None:
    assert line_chart("Loss", "", [1], [Series(name="loss", values=[None])]) is None
    assert (
        share_chart("Time", "", [1], [Series(name="a", values=[None]), Series(name="b", values=[0.0])])
        is None
    )


def test_shares_are_stacked_to_one() -> None:
    chart = share_chart(
        "Time", "", [1, 2], [Series(name="a", values=[1.0, 3.0]), Series(name="b", values=[3.0, 1.0])]
    )
    assert chart is not None
    # a: 0 to 0.25 and 0 to 0.75 (y = 166 - 156 share); b: from there to 1.
    assert 'd="M46.0 127.0L410.0 49.0L410.0 166.0L46.0 166.0Z"' in chart.svg
    assert 'd="M46.0 10.0L410.0 10.0L410.0 49.0L46.0 127.0Z"' in chart.svg
    assert chart.names == ("a", "b")


def test_long_runs_are_thinned_to_means() -> None:
    chart = line_chart("Loss", "", list(range(1, 481)), [Series(name="loss", values=[0.0, 1.0] * 240)])
    assert chart is not None
    assert '"x": [2, 4, 6'.replace('"', "&#34;") in chart.svg
    assert '["0.5", "0.5"'.replace('"', "&#34;") in chart.svg


def test_the_grid_is_seen_whole_with_forward_up() -> None:
    graph = read_graph(TRUE_GRAPH, "floor")
    assert graph is not None
    view = view_of([graph], "floor")
    # A side of 170 with margins of 5 shows -0.5 to 9.5, 16 a cell: (0, 0) lies 8 from the lower left corner.
    assert view.place((0.0, 0.0)) == (13.0, 157.0, True)
    assert view.place((9.0, 9.0)) == (157.0, 13.0, True)
    assert view.place((30.0, 4.5)) == (165.0, 85.0, False)


def test_camera_scenes_are_seen_along_x_and_z_and_images_downwards() -> None:
    nodes = '[{"id":"car.1","pos":[0,1,10]},{"id":"van.1","pos":[4,1,20]}]'
    camera = read_graph(f'{{"unit":"m","frames":[{{"t":0,"nodes":{nodes}}}]}}', "camera0")
    assert camera is not None
    view = view_of([camera], "camera0")
    # z spans 10, so the view spans 14 about (2, 15): x from -5, z from 8.
    assert (view.right, view.forward, view.extent) == pytest.approx((-5.0, 8.0, 14.0))
    assert view.place((0.0, 1.0, 10.0))[1] > view.place((4.0, 1.0, 20.0))[1]
    image = read_graph('{"unit":"px","frames":[{"t":0,"nodes":[{"id":"a.1","pos":[0,0]}]}]}', "image")
    assert image is not None
    assert view_of([image], "image").place((0.0, 1000.0)) == (5.0, 165.0, True)


def test_a_frame_is_taken_within_half_the_spacing() -> None:
    graph = read_graph(TRUE_GRAPH, "floor")
    assert half_spacing([0.0, 1.0, 3.0]) == 0.5
    assert half_spacing([2.0]) == float("inf")
    assert graph is not None
    first = frame_at(graph, 0.4, 0.5)
    assert first is not None
    assert first.t == 0.0
    assert frame_at(graph, 1.6, 0.5) is None
    assert frame_at(None, 0.0, 1.0) is None


def test_crowded_names_are_left_out_but_every_node_is_drawn() -> None:
    nodes = ",".join(f'{{"id":"ball.{i}","pos":[5,5]}}' for i in range(12))
    graph = read_graph(f'{{"unit":"grid","frames":[{{"t":0,"nodes":[{nodes}]}}]}}', "floor")
    assert graph is not None
    picture = draw(graph.frames[0], view_of([graph], "floor"))
    assert picture.count("<circle") == 12
    assert 1 <= picture.count('class="name"') <= 4
    assert "ball.11 (5, 5)" in picture


def test_colours_follow_labels() -> None:
    assert label_color("red_ball") == label_color("dark red cube") != label_color("blue_ball")
    assert label_color("car") == label_color("car")


def test_at_most_eight_times_are_chosen() -> None:
    assert chosen(4) == [0, 1, 2, 3]
    assert chosen(16) == [0, 2, 4, 6, 9, 11, 13, 15]


@pytest.mark.parametrize(
    "spoil", [lambda path: path.write_bytes(b"no"), lambda path: np.save(path, np.zeros(3)), Path.unlink]
)
def test_frames_that_cannot_be_read_are_left_out(tmp_path: Path, spoil: Callable[[Path], object]) -> None:
    path = stored(tmp_path, "d", {"times": [0.0, 1.5]})
    images = frame_images(tmp_path, "d")
    assert images is not None
    assert [url[:22] for url in images.urls] == ["data:image/jpeg;base64"] * 2
    assert (images.width, images.height) == (160, 120)
    spoil(path)
    assert frame_images(tmp_path, "d") is None
    assert frame_images(tmp_path, "../d") is None


def stored(folder: Path, name: str, changes: dict[str, object]) -> Path:
    """Write an entry as `FrameStore` does; return the file of its pixels."""
    about = {"times": [0.0, 1.5], "indices": [0, 1], "fps": 1.0, "total_frames": 2, "damaged": 0, **changes}
    (folder / f"{name}.json").write_text(json.dumps(about))
    np.save(folder / f"{name}.npy", np.zeros((2, 120, 160, 3), np.uint8))
    return folder / f"{name}.npy"


def test_times_of_a_clip_come_from_the_frame_store(tmp_path: Path) -> None:
    stored(tmp_path, "d", {})
    assert frame_times(tmp_path, "d") == [0.0, 1.5]
    stored(tmp_path, "d", {"times": "no"})
    assert frame_times(tmp_path, "d") == frame_times(tmp_path, "e") == []
    assert frame_times(tmp_path / "none", "d") == []
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("frames", ["../d", "e", "m", "", 3])
def test_a_marked_clip_names_frames_of_the_store_and_no_others(tmp_path: Path, frames: object) -> None:
    stored(tmp_path, "d", {})
    (tmp_path / "store").mkdir()
    about = {"frames": frames, "marks": []}
    (tmp_path / "store" / "m.json").write_text(json.dumps(about))
    assert frame_images(tmp_path / "store", "m") is None
    stored(tmp_path / "store", "d", {})
    (tmp_path / "store" / "m.json").write_text(json.dumps(about | {"frames": "d"}))
    assert frame_times(tmp_path / "store", "m") == [0.0, 1.5]


def test_durations_and_folders(tmp_path: Path) -> None:
    assert [duration(s) for s in (41.6, 61.0, 7500.0)] == ["42 s", "1 min 01 s", "2 h 05 min"]
    with pytest.raises(RunFolderError, match="name a run folder"):
        read_run(tmp_path)
