"""What the page holds of the traces: index, chunks, frames; and the figures next to them."""

from __future__ import annotations

import base64
import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.videostr.report.synthetic import synthetic_run
from tests.videostr.report.test_report import TRUE_GRAPH, metric_row, trace_row
from videostr.report.curves import curves
from videostr.report.page import render
from videostr.report.stats import dump_stats
from videostr.report.timeline import timeline
from videostr.report.viewer import FAULTS, MAX_TEXT, drawn_over_frames, faults, viewer_data
from videostr.run_data import read_run


def opened(text: str) -> Any:
    return json.loads(gzip.decompress(base64.b64decode(text)))


def named(bits: int) -> set[str]:
    return {name for i, (name, _) in enumerate(FAULTS) if bits >> i & 1}


def test_groups_are_found_through_the_index(tmp_path: Path) -> None:
    rows = synthetic_run(tmp_path, 400)
    run = read_run(tmp_path)
    data = viewer_data(run.dumps, run.frame_store)
    index, chunks = opened(data.index), [opened(chunk) for chunk in data.chunks]
    assert (data.groups, data.rollouts, len(chunks)) == (50, 400, 4)  # 16 groups of 8 to a chunk
    start = 0
    for g, size in enumerate(index["size"]):
        group = chunks[index["chunk"][g]][index["at"][g]]
        record = index["records"][index["record"][g]]
        mine = [row for row in rows if row["record_id"] == record and row["step"] == index["step"][g]]
        mine.sort(key=lambda row: -row["total"])
        assert [one["n"] for one in group["rollouts"]] == [row["rollout"] for row in mine]
        assert index["total"][start : start + size] == pytest.approx([row["total"] for row in mine], abs=1e-4)
        assert index["families"][index["family"][g]] == mine[0]["family"]
        assert group["answer"] == "1 px"
        assert group["over"]
        assert json.loads(data.clips[index["clip"][g]])["w"] == 128
        start += size


def test_places_are_shares_of_the_view(tmp_path: Path) -> None:
    data = viewer_data([(3, [trace_row()])], tmp_path)
    (group,) = opened(data.chunks[0])
    # The floor shows -0.5 to 9.5: cell 0 is at 0.05 from the left, and cell 0 forward at 0.95 from the top.
    assert group["truth"][0]["nodes"] == [
        ["red_ball.1", "#e03131", 0.05, 0.95, 1, [0, 0]],
        ["blue_ball.1", "#3b5bdb", 0.95, 0.05, 1, [9, 9]],
    ]
    first, second = group["rollouts"][0]["frames"]
    assert first["nodes"] == [["red_ball.1", "#e03131", 0.15, 0.95, 1, [1, 0]]]
    assert second is None  # 0.1 s stands for 0 s; 1 s is not stated
    assert group["times"] == [0, 1]
    assert (group["rollouts"][0]["parts"], group["rollouts"][0]["notes"]) == (
        {"format": 1, "answer": 0.5},
        ["answer: 2 read, 3 true"],
    )


def test_edges_join_nodes_by_number(tmp_path: Path) -> None:
    nodes = '[{"id":"a.1","pos":[0,0]},{"id":"b.1","pos":[1,1]}]'
    graph = (
        f'{{"unit":"grid","frames":[{{"t":0,"nodes":{nodes},"edges":[{{"a":"b.1","b":"a.1","dist":1}}]}}]}}'
    )
    (group,) = opened(viewer_data([(1, [trace_row(predicted_graph=graph)])], tmp_path).chunks[0])
    assert group["rollouts"][0]["frames"][0]["edges"] == [[1, 0]]


@pytest.mark.parametrize(
    ("changes", "zero_variance", "expected"),
    [
        ({}, False, set()),
        ({"finish_reason": "LENGTH"}, False, {"truncated"}),
        ({"finish_reason": "ABORT"}, True, {"aborted", "zero_variance"}),
        ({"absence": "BAD_JSON"}, False, {"no_graph"}),
        ({"parts": '{"format": 0.0, "answer": 0}'}, False, {"bad_format", "wrong"}),
        ({"parts": "no JSON"}, False, set()),
        ({"parts": '{"graph": 0.0}'}, False, set()),
    ],
)
def test_faults_of_a_rollout(changes: dict[str, Any], zero_variance: bool, expected: set[str]) -> None:
    assert named(faults(trace_row(**changes), zero_variance=zero_variance)) == expected


def test_a_group_without_variance_is_reported(tmp_path: Path) -> None:
    rows = [
        trace_row(rollout=n, record_id=record, total=n * spread)
        for record, spread in (("a", 0), ("b", 1))
        for n in (0, 1)
    ]
    index = opened(viewer_data([(1, rows)], tmp_path).index)
    assert [("zero_variance" in named(bits)) for bits in index["fault"]] == [True, True, False, False]


@pytest.mark.parametrize(
    ("reference", "unit", "expected"),
    [
        ("image", "px", True),
        ("", "px", True),
        ("floor", "grid", True),
        ("floor", "m", False),
        ("camera0", "m", False),
    ],
)
def test_graphs_are_drawn_over_frames_only_where_the_camera_is_known(
    reference: str, unit: str, expected: bool
) -> None:
    assert drawn_over_frames(reference, unit) is expected


def test_graphs_in_metres_are_drawn_over_frames_through_the_camera(tmp_path: Path) -> None:
    # 90 degrees wide; at the second time the camera has gone 2 m forward, past the cup.
    views = [
        [500, 0, 500, 0, 0, 500, 500, 0, 0, 0, 1, 0],
        [500, 0, 500, -1000, 0, 500, 500, -1000, 0, 0, 1, -2],
    ]
    nodes = [{"id": "cup.1", "pos": [0.5, -0.25, 1]}, {"id": "box.1", "pos": [0, 0, 4]}]
    graph = {"unit": "m", "frames": [{"t": t, "nodes": nodes, "view": v} for t, v in enumerate(views)]}
    row = trace_row(reference="camera0", true_graph=json.dumps(graph), predicted_graph=json.dumps(graph))
    (group,) = opened(viewer_data([(1, [row])], tmp_path).chunks[0])
    seen = [[node[6] for node in frame["nodes"]] for frame in group["truth"]]
    assert (group["over"], seen) == (True, [[[0.75, 0.375], [0.5, 0.5]], [None, [0.5, 0.5]]])
    assert group["rollouts"][0]["frames"] == group["truth"]

    del graph["frames"][1]["view"]  # of one frame it is not known
    row = trace_row(reference="camera0", true_graph=json.dumps(graph))
    (group,) = opened(viewer_data([(1, [row])], tmp_path).chunks[0])
    assert not group["over"]


def test_long_texts_are_cut_and_unreadable_graphs_left_out(tmp_path: Path) -> None:
    row = trace_row(
        text="x" * (MAX_TEXT + 7),
        true_graph="",
        predicted_graph="{",
        absence="BAD_JSON",
        reference="",
        parts="[]",
    )
    (group,) = opened(viewer_data([(1, [row])], tmp_path).chunks[0])
    (one,) = group["rollouts"]
    assert one["text"].endswith("… 7 more characters")
    assert (one["absence"], one["frames"], one["parts"]) == ("the <graph> block is not JSON", None, {})
    assert (group["truth"], group["times"], group["over"]) == (None, [], False)


def test_without_a_true_graph_times_come_from_the_clip(tmp_path: Path) -> None:
    np.save(tmp_path / "abc123.npy", np.zeros((2, 8, 8, 3), np.uint8))
    about = {"times": [0.0, 1.0], "indices": [0, 1], "fps": 1.0, "total_frames": 2, "damaged": 0}
    (tmp_path / "abc123.json").write_text(json.dumps(about))
    data = viewer_data([(1, [trace_row(true_graph="")])], tmp_path)
    (group,) = opened(data.chunks[0])
    assert (group["times"], group["rollouts"][0]["frames"][1]) == ([0, 1], None)
    assert len(json.loads(data.clips[0])["images"]) == 2


def test_frames_fill_their_room_newest_first(tmp_path: Path) -> None:
    synthetic_run(tmp_path, 400)
    run = read_run(tmp_path)
    whole = viewer_data(run.dumps, run.frame_store)
    one = len(whole.clips[0]) / 2**20
    few = viewer_data(run.dumps, run.frame_store, frames_mib=2.5 * one)
    assert (len(whole.clips), len(few.clips), few.clips_known) == (25, 2, 25)
    assert "Video frames of 2 of 25 clips are in the page" in render(run, frames_mib=2.5 * one).replace(
        "\n   ", ""
    )
    assert viewer_data(run.dumps, run.frame_store, frames_mib=0).clips == []


def test_dumps_beyond_the_limit_are_left_out_evenly(tmp_path: Path) -> None:
    synthetic_run(tmp_path, 2000)
    assert [step for step, _ in read_run(tmp_path).dumps] == list(range(1, 11))
    some = read_run(tmp_path, max_traces=850)
    assert ([step for step, _ in some.dumps], some.dumps_left_out) == ([1, 4, 7, 10], 6)
    assert [step for step, _ in read_run(tmp_path, max_traces=1).dumps] == [10]


# ------------------------------------------------------------------------------------- figures of dumps


def test_figures_of_a_dump() -> None:
    rows = [
        trace_row(parts='{"answer": 1.0}', tokens=10),
        trace_row(parts='{"answer": 0.5}', tokens=30, predicted_graph="", absence="ABSENT"),
        trace_row(parts='{"answer": 0.0}', tokens=20, family="order", predicted_graph=TRUE_GRAPH),
    ]
    stats = dump_stats(3, rows)
    assert stats.right == pytest.approx(1 / 3)
    assert stats.answer_by_family == {"counting": 0.75, "order": 0.0}
    # Predicted frames have 1, 2 and 2 nodes, and their graphs 1 and 2 frames; every true frame has 2 nodes.
    assert (stats.nodes, stats.frames, stats.true_nodes) == (pytest.approx(5 / 3), 1.5, 2.0)
    assert (stats.tokens_mean, stats.tokens_max, stats.absent) == (20.0, 30, pytest.approx(1 / 3))


def test_figures_of_a_dump_without_graphs() -> None:
    stats = dump_stats(
        1, [trace_row(parts="{}", true_graph="", predicted_graph='{"frames": [{"nodes": 3}]}')]
    )
    assert (stats.right, stats.nodes, stats.true_nodes, stats.absent) == (None, None, None, 0.0)


def test_every_part_of_the_reward_has_a_curve(tmp_path: Path) -> None:
    synthetic_run(tmp_path, 1000)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    more = {"reward/custom": 0.4, "reward/map": 0.2, "failures/engine_died": 2, "kl": 0.0}
    more |= {
        "importance_weight_mean": 1.01,
        "importance_weight_max": 3.0,
        "importance_weight_capped_fraction": 0.02,
    }
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line | more) + "\n" for line in lines))
    run = read_run(tmp_path)
    made = curves(run, [dump_stats(step, rows) for step, rows in run.dumps])
    names = {chart.title: chart.names for chart in made.charts}
    assert names["More reward parts"] == ("custom", "map")
    assert {
        "Reward",
        "Reward parts",
        "Entropy",
        "Mismatch",
        "Clipped tokens",
        "Importance weights",
        "Capped importance weights",
        "Completion length",
        "Failures",
    } <= names.keys()
    assert {
        "Answers fully right",
        "Answer reward by family",
        "Nodes of a stated frame",
        "Spread of lengths",
    } <= names.keys()
    assert made.zero == ["KL from the reference", "Staleness"]
    assert "Gradient norm" in made.absent


def test_a_run_without_times_has_no_timeline(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(json.dumps(metric_row(1)) + "\n")
    assert timeline(read_run(tmp_path)) is None


def test_synthetic_runs_have_what_the_viewer_is_for(tmp_path: Path) -> None:
    rows = synthetic_run(tmp_path, 1000)
    visits = Counter((row["record_id"], row["step"]) for row in rows)
    assert set(visits.values()) == {8}
    assert Counter(record for record, _ in visits).most_common(1)[0][1] == 5
    assert any("</script>" in row["text"] for row in rows)
