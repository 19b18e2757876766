"""The notes of what workers do: spans, cuts between steps, limits, and the file of a run."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pytest

from videostr.timeline import SPANS, Activity, StepTimes, Timeline, read_timeline


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_worker_does_one_thing_at_a_time(clock: Clock) -> None:
    timeline = Timeline(clock)
    for after, doing in (
        (1.0, "sample"),
        (2.0, "sample"),
        (1.0, "pause"),
        (0.5, None),
        (3.0, "sample"),
        (1.0, None),
    ):
        clock.now += after
        timeline.note("engine", doing)
    clock.now += 1.5
    times = timeline.drain(1)
    assert (times.step, times.seconds) == (1, 10.0)
    assert times.start == pytest.approx(time.time(), abs=5)
    assert times.workers == {
        "engine": {
            "sample": Activity(busy=4.0, spans=((1.0, 4.0), (7.5, 8.5))),
            "pause": Activity(busy=0.5, spans=((4.0, 4.5),)),
        }
    }


def test_what_goes_on_is_cut_between_steps(clock: Clock) -> None:
    timeline = Timeline(clock)
    with timeline.during("rank", "update"):
        clock.now += 2.0
        first = timeline.drain(1)
        clock.now += 1.0
    clock.now += 0.25
    second, third = timeline.drain(2), timeline.drain(3)
    assert first.workers == {"rank": {"update": Activity(busy=2.0, spans=((0.0, 2.0),))}}
    assert second.workers == {"rank": {"update": Activity(busy=1.0, spans=((0.0, 1.0),))}}
    assert second.start == pytest.approx(first.start + first.seconds, abs=1e-3)
    assert third.workers == {"rank": {}}  # known, and idle


def test_a_block_that_raises_ends(clock: Clock) -> None:
    timeline = Timeline(clock)

    def fail() -> None:
        with timeline.during("rank", "update"):
            clock.now += 1.0
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    clock.now += 1.0
    assert timeline.drain(1).workers["rank"]["update"].busy == 1.0


def test_a_step_of_any_length_has_few_spans_and_all_its_seconds(clock: Clock) -> None:
    timeline, rng = Timeline(clock), random.Random(0)
    worked = 0.0
    for number in range(5000):
        idle, busy = (100.0 if number == 2500 else rng.uniform(0.01, 1.0)), rng.uniform(0.01, 1.0)
        clock.now += idle
        with timeline.during("reward", "score"):
            clock.now += busy
        worked += busy
    times = timeline.drain(1)
    activity = times.workers["reward"]["score"]
    assert SPANS // 2 < len(activity.spans) <= SPANS
    assert activity.busy == pytest.approx(worked, abs=1e-3)
    edges = [edge for span in activity.spans for edge in span]
    assert edges == sorted(edges)
    assert edges[-1] == pytest.approx(times.seconds, abs=1e-3)
    # The long pause is not covered up.
    assert max(after - before for before, after in zip(edges[1::2], edges[2::2], strict=False)) > 99.0


def test_a_note_costs_little() -> None:
    """Of the fastest of some goes: other work of the machine does not count."""
    timeline = Timeline()

    def notes() -> float:
        began = time.perf_counter()
        for number in range(2000):
            timeline.note(f"engine-{number % 64}", "sample" if number % 3 else None)
        return (time.perf_counter() - began) / 2000

    assert min(notes() for _ in range(20)) < 50e-6


def test_lines_are_read_again(clock: Clock, tmp_path: Path) -> None:
    timeline, written = Timeline(clock), []
    for step in (1, 2, 3):
        with timeline.during("engine-1", "sample"):
            clock.now += step / 3
        timeline.note("engine-2", None)
        written.append(timeline.drain(step))
    path = tmp_path / "timeline.jsonl"
    lines = [times.line() for times in written]
    path.write_text("\n".join([lines[0], lines[1], lines[2], '{"step":4,"sta']))
    assert read_timeline(path) == (written, 0)
    path.write_text("\n".join([lines[0], "{}", "nonsense", lines[1], lines[1]]))
    assert read_timeline(path) == (written[:2], 2)
    assert read_timeline(tmp_path / "none") == ([], 0)


@pytest.mark.parametrize(
    "changes",
    [
        {"seconds": float("inf")},
        {"seconds": "long"},
        {"start": -1},
        {"step": None},
        {"workers": [1]},
        {"workers": {"e": 3}},
        {"workers": {"e": {"sample": {"busy": 1.0}}}},
        {"workers": {"e": {"sample": {"busy": 1.0, "spans": {}}}}},
        {"workers": {"e": {"sample": {"busy": 1.0, "spans": [[0.0, 5.0]]}}}},
        {"workers": {"e": {"sample": {"busy": 1.0, "spans": [[0.0]]}}}},
        {"workers": {"e": {"sample": {"busy": 9.0, "spans": []}}}},
    ],
)
def test_lines_that_are_none_are_refused(changes: dict[str, object]) -> None:
    whole = {
        "step": 1,
        "start": 1.0,
        "seconds": 2.0,
        "workers": {"e": {"sample": {"busy": 1.0, "spans": [[0, 1]]}}},
    }
    assert StepTimes.of(json.dumps(whole)).workers["e"]["sample"].spans == ((0.0, 1.0),)
    with pytest.raises(ValueError, match=r"JSON is malformed|Expected `|lie after the end|missing required"):
        StepTimes.of(json.dumps(whole | changes))
