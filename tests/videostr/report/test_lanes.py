"""Where the time goes, worker by worker: lanes, shares, limits, restarts, strange files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.videostr.report.synthetic import HOSTILE, synthetic_run
from videostr.report.page import render
from videostr.report.timeline import SHOWN_LANES, SHOWN_STEPS, Picture, timeline
from videostr.run_data import read_run

Spans = Sequence[tuple[float, float]]
WORKERS: Mapping[str, Mapping[str, Spans]] = {
    "learner-rank-0": {"update": [(1.0, 4.0)], "send_weights": [(4.0, 5.0)]},
    "weight-sync": {"sync": [(4.0, 5.0)]},
    "rollout-engine-10": {"sample": [(0.0, 4.0), (5.0, 10.0)], "pause": [(4.0, 5.0)]},
    "rollout-engine-2": {"sample": [(0.0, 2.0)], "dead": [(2.0, 3.0)], "restarting": [(3.0, 7.0)]},
    "evaluation": {},
    "reward-worker-0": {"score": [(0.5, 1.0), (6.0, 6.5)]},
}


def line(step: int, workers: Mapping[str, Mapping[str, Spans]] = WORKERS, start: float | None = None) -> str:
    """Of a step of 10 s."""
    return json.dumps(
        {
            "step": step,
            "start": 1e9 + 10 * step if start is None else start,
            "seconds": 10.0,
            "workers": {
                worker: {
                    doing: {"busy": sum(end - begin for begin, end in spans), "spans": spans}
                    for doing, spans in activities.items()
                }
                for worker, activities in workers.items()
            },
        }
    )


def picture(folder: Path, lines: Sequence[str]) -> Picture:
    if not (folder / "metrics.jsonl").exists():
        synthetic_run(folder, 200)
    (folder / "timeline.jsonl").write_text("".join(one + "\n" for one in lines))
    found = timeline(read_run(folder))
    assert found is not None
    return found


def test_every_worker_has_a_lane_and_its_shares(tmp_path: Path) -> None:
    shown = picture(tmp_path, [line(1), line(2)])
    assert [use.lane for use in shown.uses] == [
        "rollout-engine-2", "rollout-engine-10", "reward-worker-0", "learner-rank-0", "weight-sync", "evaluation",
    ]  # fmt: skip
    assert [use.share for use in shown.uses] == pytest.approx([0.2, 0.9, 0.1, 0.3, 0.1, 0.0])
    assert [use.idle for use in shown.uses] == pytest.approx([0.3, 0.0, 0.9, 0.6, 0.9, 1.0])
    assert [use.seconds for use in shown.uses] == pytest.approx([2.0, 9.0, 1.0, 3.0, 1.0, 0.0])
    assert [use.other for use in shown.uses] == [
        "restarting 40.0 %, dead 10.0 %", "paused for weights 10.0 %", "", "sends weights 10.0 %", "", "",
    ]  # fmt: skip
    assert (shown.first, shown.last, shown.many, shown.breaks, shown.unread) == (1, 2, 0, 0, 0)
    assert [words for _, words in shown.legend] == [
        "samples", "scores", "learns", "new weights", "starts, is lost or waits for weights",
    ]  # fmt: skip
    # 1100 pixels for 20 s, 4 at either side: 54.6 a second. The second lane begins 22 + 24 pixels down, its bar 5 lower.
    assert (
        'd="M4 51h218.4v14h-218.4zM277 51h273.0v14h-273.0z"><title>step 1, rollout-engine-10: sample 9 s in 2<'
        in shown.svg
    )
    assert 'class="area c3" d="M222.4 51h54.6v14' in shown.svg
    page = render(read_run(tmp_path))
    assert "drawn from timeline.jsonl" in page
    assert "drawn from the times in metrics.jsonl" not in page
    assert "have a lane, and the table has the mean of the others" not in page


def test_of_many_workers_the_busiest_are_shown_and_the_others_counted(tmp_path: Path) -> None:
    workers = {f"rollout-engine-{i}": {"sample": [(0.0, i / 4)]} for i in range(20)}
    shown = picture(tmp_path, [line(1, workers)])
    assert len(shown.uses) == SHOWN_LANES + 1
    assert [use.lane for use in shown.uses[:-1]] == [f"rollout-engine-{i}" for i in range(12, 20)]
    rest = shown.uses[-1]
    assert (rest.lane, rest.workers, rest.seconds) == (
        "12 more",
        "rollout engines, their mean",
        pytest.approx(5.5 / 4),
    )
    assert (rest.share, rest.idle) == (pytest.approx(5.5 / 40), pytest.approx(1 - 5.5 / 40))
    assert shown.svg.count("<path") == SHOWN_LANES
    assert "Of more than 8 workers of a kind the busiest have a lane" in render(read_run(tmp_path))


def test_only_the_last_steps_are_drawn_and_all_are_in_the_table(tmp_path: Path) -> None:
    busy = {"learner-rank-0": {"update": [(0.0, 10.0)]}}
    idle: dict[str, dict[str, Spans]] = {"learner-rank-0": {}}
    lines = [line(step, busy if step <= 40 else idle) for step in range(1, 101)]
    shown = picture(tmp_path, lines)
    assert (shown.first, shown.last) == (101 - SHOWN_STEPS, 100)
    assert shown.uses[0].share == pytest.approx(0.4)
    assert shown.svg.count("<path") == 0
    assert shown.width == 1100 * SHOWN_STEPS // 8


def test_a_worker_that_came_later_is_measured_from_then_on(tmp_path: Path) -> None:
    new = {**WORKERS, "rollout-engine-3": {"sample": [(0.0, 5.0)]}}
    shown = picture(tmp_path, [line(1), line(2), line(3, new)])
    assert next(use.share for use in shown.uses if use.lane == "rollout-engine-3") == pytest.approx(0.5)


def test_a_restart_is_marked_and_its_time_left_out(tmp_path: Path) -> None:
    shown = picture(tmp_path, [line(1), line(2, start=1e9 + 90_000.0), line(3, start=1e9 + 90_010.2)])
    assert shown.breaks == 1
    assert shown.svg.count('class="cut"') == 1
    assert ">30 s</text>" in shown.svg
    assert "the run was started again" in render(read_run(tmp_path))


def test_strange_lines_are_counted_and_hostile_names_stay_text(tmp_path: Path) -> None:
    synthetic_run(tmp_path, 200)
    hostile = {HOSTILE[0]: {HOSTILE[1]: [(0.0, 1.0)]}, "x": {"update": [(1.0, 2.0)]}}
    shown = picture(tmp_path, [line(1, hostile), '{"step": 2}', "no", line(3)])
    assert shown.unread == 2
    page = render(read_run(tmp_path))
    assert "2 lines of timeline.jsonl cannot be read." in page
    assert HOSTILE[0] not in page
    assert HOSTILE[1] not in page


def test_a_folder_without_metrics_has_the_times_too(tmp_path: Path) -> None:
    picture(tmp_path, [line(1)])
    (tmp_path / "metrics.jsonl").unlink()
    shown = timeline(read_run(tmp_path))
    assert shown is not None
    assert shown.wait_share is None
    assert "rollout-engine-10" in render(read_run(tmp_path))
