"""The loop on ports that answer at once: order, replacement of failures, zero variance, stop, ledger, rewind.

The same loop runs on the real ports in tests/test_launch.py and tests/test_two_by_two.py.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoProcessor

from videostr.checkpoint import Files, Ledger, RunState
from videostr.config.schema import Config
from videostr.config.sections import Data, Model, Run, Sampling, TrainConfig
from videostr.data.prompts import RecordSource
from videostr.errors import (
    CheckpointError,
    LearnerError,
    RolloutError,
    RunFolderError,
    SampleLost,
    TooManyBadRecords,
    ZeroVarianceError,
)
from videostr.groups import LearnerBatch, Sampled, SampledGroup
from videostr.heldout import Evaluation
from videostr.loop import train
from videostr.ports import Ports, SampleRequest
from videostr.run import HeldOut, Stopped, resume, train_with_restarts
from videostr.run_folder import RunFolder
from videostr.timeline import read_timeline
from videostr.types import Completion, Failure, FailureKind, FinishReason, Record, Score, Update, VersionSpan


class Rollouts:
    """Samples texts that say who was asked; fails for some records."""

    def __init__(self, failing: dict[str, FailureKind]) -> None:
        self.failing = failing
        self.failures: Counter[str] = Counter()
        self.asked: list[SampleRequest] = []
        self.version = 0

    async def sample(self, request: SampleRequest) -> Sampled | Failure:
        self.asked.append(request)
        # Later requests answer first, so that order must come from the loop.
        await asyncio.sleep(0.002 * (5 - len(self.asked) % 5))
        record_id = request.prompt.record_id
        if record_id in self.failing:
            return Failure(kind=self.failing[record_id], record_id=record_id, detail="because")
        ids = np.arange(3, dtype=np.int32)
        span = VersionSpan(version=self.version, start=0, end=3)
        completion = Completion(
            text=record_id, token_ids=ids, logprobs=-np.ones(3, np.float32), finish_reason=FinishReason.STOP,
            weight_versions=(span,),
        )  # fmt: skip
        return Sampled(prompt_token_ids=ids, completions=(completion,) * request.n)


class Rewards:
    """Scores 0, 1, ...; 0 for the records in `zero_variance`, True for all."""

    def __init__(self, zero_variance: Collection[str] | bool) -> None:
        self.failures: Counter[str] = Counter()
        self.zero_variance = zero_variance

    async def score(self, record: Record, sampled: Sampled) -> tuple[Score, ...]:
        zero_variance = (
            self.zero_variance if isinstance(self.zero_variance, bool) else record.id in self.zero_variance
        )
        return tuple(
            Score(total=0.0 if zero_variance else i, parts={"format": 1.0})
            for i in range(len(sampled.completions))
        )


class Learner:
    def __init__(self, rollouts: Rollouts) -> None:
        self.rollouts = rollouts
        self.batches: list[LearnerBatch] = []
        self.copied = ""

    async def update(self, batch: LearnerBatch) -> Update:
        self.batches.append(batch)
        return Update(version=self.rollouts.version + 1, metrics={"loss": 0.5})

    async def snapshot(self) -> None:
        self.copied = f"version {self.rollouts.version}"

    async def write(self, folder: Path) -> Files:
        (folder / "policy").mkdir()
        (folder / "policy" / "weights").write_text(self.copied)
        return {}

    async def load(self, folder: Path) -> int:
        raise AssertionError

    async def restart(self) -> None:
        raise AssertionError


class Sync:
    def __init__(self, rollouts: Rollouts) -> None:
        self.failures: Counter[str] = Counter()
        self.rollouts = rollouts

    async def sync(self, version: int) -> dict[str, float]:
        self.rollouts.version = version
        return {"sync/bytes": 8.0}


class Stage:
    """A run over the tabletop records on these ports."""

    def __init__(
        self,
        tabletop: Path,
        runs: Path,
        *,
        steps: int = 3,
        bad: float = 0.5,
        zero_variance: Collection[str] | bool = False,
        sampling: Sampling | None = None,
        **train: Any,
    ) -> None:
        self.config = Config(
            run=Run(name="r", dir=str(runs)),
            model=Model(path="videostr/tabletop/pretrained"),
            data=Data(train=str(tabletop / "train"), max_bad_fraction=bad),
            sampling=sampling or Sampling(group_size=2),
            train=TrainConfig(
                **{
                    "steps": steps,
                    "prompts_per_step": 4,
                    "checkpoint_every": 2,
                    "keep_checkpoints": 2,
                    **train,
                }
            ),
        )
        processor = AutoProcessor.from_pretrained(self.config.model.path)
        self.source = RecordSource(self.config.data.train, processor, seed=0)
        self.folder = RunFolder(self.config)
        self.folder.quarantine.records = len(self.source.records)
        self.rollouts = Rollouts({})
        self.learner = Learner(self.rollouts)
        self.ports = Ports(
            rollouts=self.rollouts,
            rewards=Rewards(zero_variance),
            learner=self.learner,
            sync=Sync(self.rollouts),
        )
        self.stop = asyncio.Event()

    def order(self, count: int) -> list[str]:
        """Record ids of the first positions."""
        drawn = [self.source.draw(position) for position in range(count)]
        return [d.record.id for d in drawn if not isinstance(d, Failure)]

    def train(self, state: RunState | None = None, **options: Any) -> RunState:
        fresh = RunState(step=0, version=0, ledger=Ledger(seed=0, records=len(self.source.records)))
        state = state or fresh
        self.folder.rewind(state.step, self.config.run.resume)
        state = asyncio.run(
            train(self.config, self.source, self.ports, self.folder, state, self.stop, **options)
        )
        self.folder.close()
        return state

    def learned(self) -> list[list[str]]:
        """Record ids of every batch."""
        return [[group.prompt.record_id for group in batch.groups] for batch in self.learner.batches]


def test_batches_follow_the_seeded_order(tabletop: Path, tmp_path: Path) -> None:
    stage = Stage(tabletop, tmp_path)
    state = stage.train()
    order = stage.order(12)
    assert stage.learned() == [order[0:4], order[4:8], order[8:12]]
    assert (state.step, state.version, state.ledger.next_position) == (3, 3, 12)
    # Rewards 0 and 1: mean 0.5, sample deviation 0.7071, so -0.5 / (0.7071 + 1e-4) and its opposite.
    assert stage.learner.batches[0].advantages[0] == pytest.approx([-0.70701, 0.70701], abs=1e-5)
    assert len({request.seed for request in stage.rollouts.asked}) == 12
    names = sorted(path.name for path in (tmp_path / "r" / "checkpoints").iterdir())
    assert names == ["step_000002", "step_000003"]
    rows = [json.loads(line) for line in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["staleness/max"], row["tokens/completion"]) for row in rows] == [
        (1, 0, 24), (2, 0, 24), (3, 0, 24),
    ]  # fmt: skip


def test_a_failed_group_is_quarantined_and_replaced_by_the_next_record(
    tabletop: Path, tmp_path: Path
) -> None:
    stage = Stage(tabletop, tmp_path, steps=2)
    order = stage.order(10)
    stage.rollouts.failing = {order[1]: FailureKind.BAD_VIDEO, order[4]: FailureKind.ENGINE}
    state = stage.train()
    assert stage.learned() == [[order[0], order[2], order[3], order[5]], order[6:10]]
    assert (state.ledger.next_position, state.ledger.learned, state.ledger.failed) == (10, 8, 2)
    rows = [json.loads(line) for line in (tmp_path / "r" / "quarantine.jsonl").read_text().splitlines()]
    assert {row["record_id"]: row["kind"] for row in rows} == {order[1]: "BAD_VIDEO", order[4]: "ENGINE"}
    metrics = [json.loads(line) for line in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()]
    assert metrics[-1]["failures/bad_video"] == metrics[-1]["failures/engine"] == 1
    assert [row["dropped_fraction"] for row in metrics] == pytest.approx([2 / 6, 0])
    # A record with a broken video is not asked again, one that met an engine failure is.
    assert order[1] in stage.folder.quarantine
    assert order[4] not in stage.folder.quarantine


def test_too_many_failures_stop_the_run(tabletop: Path, tmp_path: Path) -> None:
    stage = Stage(tabletop, tmp_path, bad=0.05)  # 2 of 40
    stage.rollouts.failing = dict.fromkeys(stage.order(3), FailureKind.BAD_VIDEO)
    with pytest.raises(
        TooManyBadRecords, match=r"3 of 40 records are quarantined, more than data.max_bad_fraction"
    ):
        stage.train()


def test_groups_that_the_learner_cannot_encode_are_quarantined_and_the_step_counts(
    tabletop: Path, tmp_path: Path
) -> None:
    stage = Stage(tabletop, tmp_path, steps=3)
    order = stage.order(12)
    lost = {order[1], *order[4:8]}  # one of the first step, all of the second
    plain = stage.learner.update

    async def update(batch: LearnerBatch) -> Update:
        found = await plain(batch)
        names = [group.prompt.record_id for group in batch.groups]
        failures = tuple(
            Failure(kind=FailureKind.LEARNER_ENCODING, record_id=name, detail="other tokens")
            for name in names
            if name in lost
        )
        none_left = len(failures) == len(names)
        return replace(found, version=found.version - none_left, failures=failures)

    stage.learner.update = update  # type: ignore[method-assign]
    state = stage.train()
    assert stage.learned() == [order[0:4], order[4:8], order[8:12]]
    assert (state.step, state.version) == (3, 2)  # the second step changed nothing
    assert (state.ledger.next_position, state.ledger.learned, state.ledger.failed) == (12, 7, 5)
    rows = [json.loads(line) for line in (tmp_path / "r" / "quarantine.jsonl").read_text().splitlines()]
    assert {row["record_id"] for row in rows} == lost
    assert {row["kind"] for row in rows} == {"LEARNER_ENCODING"}
    metrics = [json.loads(line) for line in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()]
    assert metrics[-1]["failures/learner_encoding"] == 5
    assert [row["dropped_fraction"] for row in metrics] == pytest.approx([1 / 4, 1, 0])
    # Drawn again: a run that was killed in between must come to the same steps.
    assert order[1] not in stage.folder.quarantine


def test_groups_without_variance_are_counted_and_not_learned_from(tabletop: Path, tmp_path: Path) -> None:
    stage = Stage(tabletop, tmp_path, steps=1, zero_variance=True)
    state = stage.train()
    assert stage.learner.batches == []
    assert (state.step, state.version) == (1, 0)
    (row,) = (json.loads(line) for line in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines())
    assert row["zero_variance_groups"] == 4
    assert row["staleness/max"] == 0


def test_stop_gives_up_the_step_and_saves_the_last_one(tabletop: Path, tmp_path: Path) -> None:
    stage = Stage(tabletop, tmp_path)

    async def slow(request: SampleRequest) -> Sampled | Failure:
        if len(stage.rollouts.asked) == 4:
            stage.stop.set()
            await asyncio.sleep(60)
        return await Rollouts.sample(stage.rollouts, request)

    stage.rollouts.sample = slow  # type: ignore[method-assign]
    state = stage.train()
    assert (state.step, state.ledger.next_position) == (1, 4)
    latest = stage.folder.checkpoints.latest()
    assert latest is not None
    assert stage.folder.checkpoints.state(latest) == state


@pytest.mark.parametrize("staleness", [1, 2])
def test_batches_are_sampled_ahead_and_never_too_old(staleness: int, tabletop: Path, tmp_path: Path) -> None:
    stage = Stage(tabletop, tmp_path, steps=8, max_staleness=staleness)
    ahead = []

    async def slow(batch: LearnerBatch) -> Update:
        await asyncio.sleep(0.05)  # sampling a batch takes 0.01 s
        ahead.append(len(stage.rollouts.asked) // 4 - len(stage.learner.batches) - 1)
        return await Learner.update(stage.learner, batch)

    stage.learner.update = slow  # type: ignore[method-assign]
    state = stage.train()
    order = stage.order(32)
    assert stage.learned() == [order[place : place + 4] for place in range(0, 32, 4)]
    assert (state.ledger.next_position, state.ledger.in_flight) == (32, ())
    assert ahead == [*[staleness] * (8 - staleness), *range(staleness - 1, -1, -1)]
    rows = [json.loads(line) for line in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()]
    assert [row["staleness/max"] for row in rows] == [min(step, staleness) for step in range(8)]


def test_a_stopped_asynchronous_run_draws_what_it_left_open_first(tabletop: Path, tmp_path: Path) -> None:
    stage = Stage(tabletop, tmp_path, steps=6, max_staleness=2)
    stage.rollouts.failing = {stage.order(3)[2]: FailureKind.BAD_VIDEO}

    async def stopping(batch: LearnerBatch) -> Update:
        await asyncio.sleep(0.05)
        if len(stage.learner.batches) == 1:
            stage.stop.set()
        return await Learner.update(stage.learner, batch)

    stage.learner.update = stopping  # type: ignore[method-assign]
    first = stage.train()
    # Three batches of four were begun at once, position 2 failed and was replaced by 12; two batches were learned from.
    assert (first.step, first.ledger.learned, first.ledger.failed) == (2, 8, 1)
    assert set(first.ledger.in_flight) == {8, 9, 10, 11} | set(range(13, first.ledger.next_position))

    again = Stage(tabletop, tmp_path, steps=6, max_staleness=2)
    again.rollouts.failing, again.rollouts.version = stage.rollouts.failing, first.version
    last = again.train(first)
    learned = [record for batch in stage.learned() + again.learned() for record in batch]
    order = stage.order(25)
    assert sorted(learned) == sorted(set(order) - {order[2]})
    assert (last.ledger.learned, last.ledger.failed, last.ledger.in_flight) == (24, 1, ())


def test_groups_without_variance_are_replaced(tabletop: Path, tmp_path: Path) -> None:
    sampling = Sampling(group_size=2, dynamic_sampling=True, dynamic_sampling_limit=2.0)
    order = Stage(tabletop, tmp_path / "x").order(20)
    stage = Stage(tabletop, tmp_path, steps=2, sampling=sampling, zero_variance={*order[1:3], *order[8:16]})
    state = stage.train()
    # Step 1: 0..3, two of them of zero variance, replaced by 4 and 5. Step 2: 6..9; 8 and 9 have zero variance, as have 10 to 13
    # in their place: 8 groups were sampled, twice as many as needed, so two of those fill the batch, and carry no gradient.
    assert stage.learned() == [[order[0], *order[3:6]], order[6:8]]
    assert (state.ledger.next_position, state.ledger.learned, state.ledger.failed) == (14, 14, 0)
    rows = [json.loads(line) for line in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()]
    assert [(row["replaced_groups"], row["zero_variance_groups"]) for row in rows] == [(2, 0), (4, 2)]
    assert [row["dropped_fraction"] for row in rows] == pytest.approx([2 / 6, 4 / 8])


def test_a_run_without_any_signal_ends_with_the_likely_cause(tabletop: Path, tmp_path: Path) -> None:
    stage = Stage(tabletop, tmp_path, steps=9, zero_variance=True, max_zero_variance_steps=3)
    with pytest.raises(
        ZeroVarianceError, match=r"3 steps in a row had no group.*format 1.000.*raise sampling.temperature"
    ):
        stage.train()
    assert len((tmp_path / "r" / "metrics.jsonl").read_text().splitlines()) == 3
    newest = stage.folder.checkpoints.latest()
    assert newest is not None
    assert newest.name == "step_000003"  # what it had learned is not lost


def test_a_checkpoint_that_cannot_be_written_is_counted_and_the_run_goes_on(
    tabletop: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stage = Stage(tabletop, tmp_path, steps=5)

    async def full(folder: Path) -> Files:
        if stage.learner.copied == "version 2":
            raise OSError(28, "No space left on device")
        return await Learner.write(stage.learner, folder)

    stage.learner.write = full  # type: ignore[method-assign]
    state = stage.train()
    assert state.step == 5
    assert (
        "no checkpoint after step 2: [Errno 28] No space left on device; the one before is kept"
        in caplog.text
    )
    assert stage.folder.quarantine.counts["checkpoint"] == 1
    assert sorted(p.name for p in (tmp_path / "r" / "checkpoints").iterdir()) == [
        "step_000004",
        "step_000005",
    ]


class SlowDisk:
    """Lets a stage's checkpoints be written only up to a number of updates later."""

    def __init__(self, stage: Stage, updates: int) -> None:
        self.done: list[str] = []
        """What was written, and what the next snapshot found."""
        self._stage = stage
        self._updates = updates
        self.go = asyncio.Event()
        stage.learner.write = self.write  # type: ignore[method-assign]
        stage.learner.snapshot = self.snapshot  # type: ignore[method-assign]

    async def snapshot(self) -> None:
        await Learner.snapshot(self._stage.learner)
        self.done.append(f"copied {self._stage.learner.copied}")
        self._copied_after = len(self._stage.learner.batches)

    async def write(self, folder: Path) -> Files:
        files = await Learner.write(self._stage.learner, folder)
        last = self._copied_after + self._updates
        while len(self._stage.learner.batches) < last and not self.go.is_set():  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        self.done.append(f"written after {len(self._stage.learner.batches)} updates")
        return files


def test_training_continues_while_a_checkpoint_is_written_and_the_next_one_waits_for_it(
    tabletop: Path, tmp_path: Path
) -> None:
    stage = Stage(tabletop, tmp_path, steps=5, keep_checkpoints=9)
    disk = SlowDisk(stage, updates=2)
    later = stage.learner.update

    async def update(batch: LearnerBatch) -> Update:
        found = await later(batch)
        if len(stage.learner.batches) == 5:
            disk.go.set()
        return found

    stage.learner.update = update  # type: ignore[method-assign]
    assert stage.train().step == 5
    assert disk.done == [
        "copied version 2", "written after 4 updates", "copied version 4", "written after 5 updates",
        "copied version 5", "written after 5 updates",
    ]  # fmt: skip
    checkpoints = tmp_path / "r" / "checkpoints"
    for step in (2, 4, 5):
        folder = checkpoints / f"step_{step:06d}"
        assert (folder / "policy" / "weights").read_text() == f"version {step}"
        assert stage.folder.checkpoints.state(folder).ledger.next_position == 4 * step


@pytest.mark.parametrize("error", [LearnerError("rank 1 died"), RolloutError("no engine"), KeyError("bug")])
def test_a_checkpoint_that_was_begun_is_finished_when_an_error_ends_the_run(
    error: Exception, tabletop: Path, tmp_path: Path
) -> None:
    stage = Stage(tabletop, tmp_path, steps=5)
    disk = SlowDisk(stage, updates=9)

    async def update(batch: LearnerBatch) -> Update:
        if len(stage.learner.batches) == 3:
            asyncio.get_running_loop().call_later(0.05, disk.go.set)
            raise error
        return await Learner.update(stage.learner, batch)

    stage.learner.update = update  # type: ignore[method-assign]
    with pytest.raises(type(error)):
        stage.train()
    newest = stage.folder.checkpoints.latest_intact()
    assert newest is not None
    assert newest.name == "step_000002"
    assert json.loads((tmp_path / "r" / "ledger.json").read_text())["step"] == 2


def test_a_cancelled_run_gives_up_the_checkpoint_that_was_begun(tabletop: Path, tmp_path: Path) -> None:
    """Its folder may be another process's by then."""
    stage = Stage(tabletop, tmp_path, steps=5)
    SlowDisk(stage, updates=9)

    async def update(batch: LearnerBatch) -> Update:
        if len(stage.learner.batches) == 3:
            raise asyncio.CancelledError
        return await Learner.update(stage.learner, batch)

    stage.learner.update = update  # type: ignore[method-assign]
    with pytest.raises(asyncio.CancelledError):
        stage.train()
    assert stage.folder.checkpoints.latest() is None
    assert [p.name for p in (tmp_path / "r" / "checkpoints").iterdir()] == [".writing_000002"]


def test_a_checkpoint_that_fails_while_training_continues_is_counted_in_the_next_step(
    tabletop: Path, tmp_path: Path
) -> None:
    stage = Stage(tabletop, tmp_path, steps=6, checkpoint_every=3)

    async def full(folder: Path) -> Files:
        if stage.learner.copied == "version 3":
            raise CheckpointError("/runs/r/policy: No space left on device")
        return await Learner.write(stage.learner, folder)

    stage.learner.write = full  # type: ignore[method-assign]
    stage.train()
    rows = [json.loads(line) for line in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()]
    assert [row.get("failures/checkpoint", 0) for row in rows] == [0, 0, 0, 1, 1, 1]


def test_a_logger_that_fails_is_counted_and_the_run_goes_on(tabletop: Path, tmp_path: Path) -> None:
    stage = Stage(tabletop, tmp_path)

    def no_server(step: int) -> Any:
        raise ConnectionError("no server")

    async def update(batch: LearnerBatch) -> Update:
        while len(stage.learner.batches) == 2 and stage.folder.loggers.failures()["logger_wandb"] < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)  # its thread may be late
        return await Learner.update(stage.learner, batch)

    stage.folder.loggers.add("wandb", no_server)
    stage.learner.update = update  # type: ignore[method-assign]
    assert stage.train().step == 3
    rows = [json.loads(line) for line in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()]
    assert "failures/logger_wandb" not in rows[0]
    assert rows[2]["failures/logger_wandb"] == 2


def test_a_last_checkpoint_that_cannot_be_written_fails_the_run(tabletop: Path, tmp_path: Path) -> None:
    stage = Stage(tabletop, tmp_path, steps=3)

    async def full(folder: Path) -> Files:
        if stage.learner.copied == "version 3":
            raise CheckpointError("rank 0: disk is full")
        return await Learner.write(stage.learner, folder)

    stage.learner.write = full  # type: ignore[method-assign]
    with pytest.raises(
        RunFolderError, match=r"after step 3 could not be written .*continues from .*step_000002"
    ):
        stage.train()


class Evaluator:
    """Evaluates by a function."""

    def __init__(self, evaluate: Callable[[RunState], Awaitable[None]], by_learner: bool = False) -> None:
        self.by_learner = by_learner
        self.evaluate = evaluate

    async def evaluate_greedily(self, state: RunState) -> None:
        await self.evaluate(state)


@pytest.mark.parametrize("by_learner", [False, True])
@pytest.mark.parametrize("staleness", [0, 1])
def test_evaluation_during_training_sees_one_version(
    staleness: int, by_learner: bool, tabletop: Path, tmp_path: Path
) -> None:
    stage = Stage(tabletop, tmp_path, steps=6, max_staleness=staleness)
    stage.config.evaluate.every = 2
    seen: list[tuple[int, set[int], int]] = []

    async def evaluate(state: RunState) -> None:
        versions, asked = set(), len(stage.learner.batches)
        for _ in range(10):
            versions.add(stage.rollouts.version)
            await asyncio.sleep(0.01)
        seen.append((state.step, versions, len(stage.learner.batches) - asked))
        stage.folder.checkpoints.note_held_out(state.step, {2: 1.0, 4: 0.5}[state.step])

    stage.train(evaluator=Evaluator(evaluate, by_learner))
    # The next step was sampled and, unless the learner itself is asked, learned meanwhile; its weights came after.
    assert seen == [(2, {2}, 0 if by_learner else 1), (4, {4}, 0 if by_learner else 1)]
    assert sorted(p.name for p in (tmp_path / "r" / "checkpoints").glob("step_*")) == [
        "step_000002", "step_000004", "step_000006",
    ]  # fmt: skip


@pytest.mark.parametrize("ends", ["stop", "error"])
def test_an_evaluation_under_way_is_given_up_and_made_up_for(
    ends: str, tabletop: Path, tmp_path: Path
) -> None:
    stage = Stage(tabletop, tmp_path, steps=6)
    stage.config.evaluate.every = 2
    evaluated: list[tuple[int, str]] = []

    async def evaluate(state: RunState) -> None:
        evaluated.append((state.step, "begun"))
        try:
            await asyncio.sleep(0.0 if len(evaluated) > 2 else 60.0)
        except asyncio.CancelledError:
            evaluated.append((state.step, "given up"))
            raise
        evaluated.append((state.step, "done"))

    async def update(batch: LearnerBatch) -> Update:
        if len(stage.learner.batches) == 2 and ends == "error":
            raise LearnerError("rank 0 died")
        if len(stage.learner.batches) == 2:
            stage.stop.set()
        return await Learner.update(stage.learner, batch)

    stage.learner.update = update  # type: ignore[method-assign]
    if ends == "stop":
        state = stage.train(evaluator=Evaluator(evaluate))
        assert state.step == 3
    else:
        with pytest.raises(LearnerError, match="rank 0 died"):
            stage.train(evaluator=Evaluator(evaluate))
    assert evaluated == [(2, "begun"), (2, "given up")]
    newest = stage.folder.checkpoints.latest()
    assert newest is not None
    assert newest.name == {"stop": "step_000003", "error": "step_000002"}[ends]

    again = Stage(tabletop, tmp_path, steps=6)
    again.config.evaluate.every = 2
    state = again.folder.checkpoints.state(newest)
    again.rollouts.version = state.version
    assert again.train(state, evaluator=Evaluator(evaluate)).step == 6
    missing = [(2, "begun"), (2, "done")] if ends == "error" else []
    assert evaluated[2:] == [*missing, (4, "begun"), (4, "done")]


def test_when_one_group_fails_the_run_no_other_is_sampled_on(tabletop: Path, tmp_path: Path) -> None:
    stage = Stage(tabletop, tmp_path, max_staleness=1)
    ended = []

    async def sample(request: SampleRequest) -> Sampled | Failure:
        stage.rollouts.asked.append(request)
        if len(stage.rollouts.asked) == 4:
            await asyncio.sleep(0.05)
            raise RolloutError("no rollout engine is left")
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(request)
        raise AssertionError

    async def run() -> int:
        fresh = RunState(step=0, version=0, ledger=Ledger(seed=0, records=len(stage.source.records)))
        with pytest.raises(RolloutError):
            await train(stage.config, stage.source, stage.ports, stage.folder, fresh, stage.stop)
        return len(asyncio.all_tasks())

    stage.rollouts.sample = sample  # type: ignore[method-assign]
    assert asyncio.run(run()) == 1
    assert len(ended) == 7


def test_a_rank_that_is_lost_in_a_checkpoint_is_no_full_disk(tabletop: Path, tmp_path: Path) -> None:
    stage = Stage(tabletop, tmp_path)

    async def write(folder: Path) -> Files:
        raise LearnerError("learner rank 0 died in `write`")

    stage.learner.write = write  # type: ignore[method-assign]
    with pytest.raises(LearnerError, match="died in `write`"):
        stage.train()


@pytest.mark.parametrize("kl", [0.0, 0.1])
def test_what_the_loss_masks_out_is_not_learned_from(kl: float, tabletop: Path, tmp_path: Path) -> None:
    stage = Stage(tabletop, tmp_path, steps=2)
    stage.config.loss.mask_truncated, stage.config.loss.kl_coef = True, kl
    cut = set(stage.order(5)[1:5])  # one group is left of the first batch, all but one of the second

    async def sample(request: SampleRequest) -> Sampled | Failure:
        found = await Rollouts.sample(stage.rollouts, request)
        assert isinstance(found, Sampled)
        reason = FinishReason.LENGTH if request.prompt.record_id in cut else FinishReason.STOP
        return replace(found, completions=tuple(replace(c, finish_reason=reason) for c in found.completions))

    stage.rollouts.sample = sample  # type: ignore[method-assign]
    assert stage.train().step == 2
    order = stage.order(8)
    assert stage.learned() == [order[:1], order[5:8]]


def test_a_kl_term_is_no_signal(tabletop: Path, tmp_path: Path) -> None:
    stage = Stage(tabletop, tmp_path, steps=9, zero_variance=True, max_zero_variance_steps=3)
    stage.config.loss.kl_coef = 0.1
    with pytest.raises(ZeroVarianceError, match=r"3 steps in a row had no group"):
        stage.train()
    assert len(stage.learner.batches) == 3  # its gradient was learned from


class Mortal(Learner):
    """A rank dies in the fourth update, and once more in the start after it."""

    def __init__(self, rollouts: Rollouts) -> None:
        super().__init__(rollouts)
        self.starts = 0

    async def update(self, batch: LearnerBatch) -> Update:
        if len(self.batches) == 3 and not self.starts:
            raise LearnerError("rank 0 died in `update`")
        return await super().update(batch)

    async def restart(self) -> None:
        self.starts += 1
        if self.starts == 1:
            raise LearnerError("rank 0 died in `rendezvous`")

    async def load(self, folder: Path) -> int:
        self.rollouts.version = int((folder / "policy" / "weights").read_text().split()[1])
        long_ago = time.time() - 100
        os.utime(folder / "state.json", (long_ago, long_ago))
        return self.rollouts.version


@pytest.mark.parametrize("allowed", [1, 2])
def test_a_start_that_fails_counts_like_a_loss(
    allowed: int, tabletop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("videostr.run.pause_before", lambda _: 0.0)
    stage = Stage(tabletop, tmp_path, steps=6)
    stage.config.learner.max_restarts = allowed
    learner = Mortal(stage.rollouts)
    ports = replace(stage.ports, learner=learner)
    fresh = RunState(step=0, version=0, ledger=Ledger(seed=0, records=len(stage.source.records)))
    run = train_with_restarts(stage.config, stage.source, ports, stage.folder, fresh, stage.stop, None)
    if allowed == 1:
        with pytest.raises(LearnerError, match="rendezvous"):
            asyncio.run(run)
        return
    state = asyncio.run(run)
    assert (state.step, state.ledger.next_position, learner.starts) == (6, 24, 2)
    assert stage.folder.quarantine.counts["learner_lost"] == 2
    assert 100 <= stage.folder.quarantine.counts["learner_lost_seconds"] < 200  # since the checkpoint
    # Three steps, and all after the checkpoint of step 2 again.
    order, seen = stage.order(24), [[g.prompt.record_id for g in b.groups] for b in learner.batches]
    assert seen == [order[4 * i : 4 * i + 4] for i in (0, 1, 2, 2, 3, 4, 5)]


def test_a_stop_while_a_rank_is_lost_does_not_wait_for_its_start(tabletop: Path, tmp_path: Path) -> None:
    stage = Stage(tabletop, tmp_path)

    class Slow(Mortal):
        async def restart(self) -> None:
            stage.stop.set()
            await asyncio.sleep(60)

    stage.config.train.steps = 6
    ports = replace(stage.ports, learner=Slow(stage.rollouts))
    fresh = RunState(step=0, version=0, ledger=Ledger(seed=0, records=len(stage.source.records)))
    with pytest.raises(Stopped):
        asyncio.run(
            asyncio.wait_for(
                train_with_restarts(stage.config, stage.source, ports, stage.folder, fresh, stage.stop, None),
                30,
            )
        )


def test_a_run_goes_back_to_a_checkpoint_once_and_discards_later_ones(tabletop: Path, tmp_path: Path) -> None:
    stage = Stage(tabletop, tmp_path, steps=6)
    stage.config.train.keep_checkpoints = 3
    stage.folder.checkpoints.keep = 3
    stage.train()
    checkpoints = tmp_path / "r" / "checkpoints"
    for step, reward in ((2, 0.5), (4, 0.9)):
        found = Evaluation(
            version=step, sampled={}, greedy={"a": {"tokens": reward}}, failures={}, best_by="tokens"
        )
        found.write(tmp_path / "r" / "eval" / f"greedy_{step:06d}.json")
        stage.folder.checkpoints.note_held_out(step, reward)

    def go_on(steps: int) -> tuple[int, int]:
        """The steps that a start of the same command resumes after, and ends at."""
        again = Stage(tabletop, tmp_path, steps=steps, keep_checkpoints=2)
        again.config.run.resume = str(checkpoints / "step_000002")
        ports = replace(again.ports, learner=Mortal(again.rollouts))
        state = asyncio.run(resume(again.config, again.source, ports, again.folder))
        return state.step, again.train(state).step

    (checkpoints / "step_000006_copy").mkdir()  # someone's own
    assert go_on(3) == (2, 3)
    assert stage.folder.checkpoints.best() == (2, 0.5)
    assert sorted(path.name for path in checkpoints.iterdir()) == [
        "best.json", "discarded_000004", "discarded_000006", "resumed_from.json",
        "step_000002", "step_000003", "step_000006_copy",
    ]  # fmt: skip
    assert [path.name for path in (tmp_path / "r" / "eval").iterdir()] == ["greedy_000002.json"]
    assert go_on(5) == (3, 5)


def test_a_run_goes_on_from_the_path_of_another_until_it_has_a_checkpoint_of_its_own(
    tabletop: Path, tmp_path: Path
) -> None:
    Stage(tabletop, tmp_path / "other", steps=5).train()
    Stage(tabletop, tmp_path, steps=3).train()
    path = tmp_path / "other" / "r" / "checkpoints" / "step_000005"

    def go_on(steps: int) -> int:
        """The step that a start of the same command resumes after."""
        again = Stage(tabletop, tmp_path, steps=steps)
        again.config.run.resume = str(path)
        ports = replace(again.ports, learner=Mortal(again.rollouts))
        state = asyncio.run(resume(again.config, again.source, ports, again.folder))
        if steps > state.step:
            again.train(state)
        return state.step

    # Killed twice before there is a checkpoint; step 3, of before, is none.
    assert [go_on(0), go_on(0), go_on(6), go_on(0)] == [5, 5, 5, 6]


@pytest.mark.parametrize("served", [[2, 3], [3]])
def test_an_evaluation_that_saw_other_weights_is_none(
    served: list[int], tabletop: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stage = Stage(tabletop, tmp_path)
    stage.config.evaluate.prompts = 2
    stage.config.evaluate.every = 1
    heldout = HeldOut(stage.config, stage.source, stage.ports, stage.folder)
    versions = iter([*served, 3])

    async def sample(request: SampleRequest) -> Sampled | Failure:
        stage.rollouts.version = next(versions)
        return await Rollouts.sample(stage.rollouts, request)

    stage.rollouts.sample = sample  # type: ignore[method-assign]
    state = RunState(step=2, version=2, ledger=Ledger(seed=0, records=1))
    asyncio.run(heldout.evaluate_greedily(state))
    assert "no held-out evaluation after step 2, prompts failed: {'other_weights': " in caplog.text
    assert not list((tmp_path / "r" / "eval").iterdir())
    assert stage.folder.checkpoints.best() is None


def test_a_line_of_the_quarantine_that_was_cut_is_dropped(tabletop: Path, tmp_path: Path) -> None:
    stage = Stage(tabletop, tmp_path)
    failure = Failure(kind=FailureKind.BAD_VIDEO, record_id="a", detail="cut")
    stage.folder.quarantine.add(failure)
    with (tmp_path / "r" / "quarantine.jsonl").open("a") as file:
        file.write('{"kind": "BAD_VID')
    again = Stage(tabletop, tmp_path)
    assert "a" in again.folder.quarantine
    again.folder.quarantine.add(replace(failure, record_id="b"))
    assert all(name in Stage(tabletop, tmp_path).folder.quarantine for name in ("a", "b"))


def test_metrics_after_the_checkpoint_are_dropped_on_resume(tabletop: Path, tmp_path: Path) -> None:
    stage = Stage(tabletop, tmp_path)
    stage.train()
    again = RunFolder(stage.config)
    again.rewind(2)
    again.close()
    rows = [json.loads(line)["step"] for line in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()]
    assert rows == [1, 2]


@pytest.mark.parametrize("staleness", [0, 1])
def test_times_of_workers_have_one_line_a_step(staleness: int, tabletop: Path, tmp_path: Path) -> None:
    stage = Stage(tabletop, tmp_path, steps=4, max_staleness=staleness)
    note = stage.folder.timeline.note
    asked = 0

    async def sample(request: SampleRequest) -> Sampled | Failure:
        nonlocal asked
        asked += 1
        note("rollout-engine-0", "sample")
        await asyncio.sleep(0.03)
        asked -= 1
        note("rollout-engine-0", "sample" if asked else None)
        return await Rollouts.sample(stage.rollouts, request)

    async def update(batch: LearnerBatch) -> Update:
        with stage.folder.timeline.during("learner-rank-0", "update"):
            await asyncio.sleep(0.1)
        return await Learner.update(stage.learner, batch)

    async def snapshot() -> None:
        with stage.folder.timeline.during("learner-rank-0", "snapshot"):
            await Learner.snapshot(stage.learner)

    stage.rollouts.sample, stage.learner.update, stage.learner.snapshot = sample, update, snapshot  # type: ignore[method-assign]
    stage.train()
    steps, unread = read_timeline(tmp_path / "r" / "timeline.jsonl")
    assert ([step.step for step in steps], unread) == ([1, 2, 3, 4], 0)
    for before, after in pairwise(steps):
        assert after.start == pytest.approx(before.start + before.seconds, abs=0.002)
    ranks = [step.workers["learner-rank-0"] for step in steps]
    assert all(0.1 <= rank["update"].busy < step.seconds for rank, step in zip(ranks, steps, strict=True))
    assert any("write" in step.workers.get("checkpoint", {}) for step in steps)
    assert ["snapshot" in rank for rank in ranks] == [
        False,
        True,
        False,
        True,
    ]  # after the step's metrics, but within it
    # Ahead of learning, a batch is sampled while the one before is learned from; else never.
    overlaps = [
        start < ranks[number]["update"].spans[0][1] and end > ranks[number]["update"].spans[0][0]
        for number, step in enumerate(steps[:3])
        for start, end in step.workers["rollout-engine-0"]["sample"].spans
    ]
    assert any(overlaps) == bool(staleness)

    again = RunFolder(stage.config)
    again.rewind(2)
    again.close()
    assert [step.step for step in read_timeline(tmp_path / "r" / "timeline.jsonl")[0]] == [1, 2]


def test_a_line_that_was_being_written_when_the_run_was_killed_is_dropped(
    tabletop: Path, tmp_path: Path
) -> None:
    stage = Stage(tabletop, tmp_path)
    stage.train()
    for name in ("metrics.jsonl", "timeline.jsonl"):
        with (tmp_path / "r" / name).open("a") as file:
            file.write('{"step":4,"sta')
    again = RunFolder(stage.config)
    again.rewind(3)
    again.close()
    for name in ("metrics.jsonl", "timeline.jsonl"):
        rows = [json.loads(line)["step"] for line in (tmp_path / "r" / name).read_text().splitlines()]
        assert rows == [1, 2, 3]


def test_another_config_or_never_resume_is_refused(tabletop: Path, tmp_path: Path) -> None:
    stage = Stage(tabletop, tmp_path)
    stage.train()
    stage.config.sampling.temperature = 0.5
    with pytest.raises(
        RunFolderError, match=r"sampling.temperature was 1.0, is 0.5; choose another run.name"
    ):
        RunFolder(stage.config)
    stage.config.sampling.temperature = 1.0
    stage.config.train.steps = 9
    RunFolder(stage.config)
    stage.config.run.resume = "never"
    with pytest.raises(RunFolderError, match=r"run.resume = never"):
        RunFolder(stage.config)


def test_a_group_that_is_lost_before_it_is_scored_is_sampled_again_as_it_was(
    tabletop: Path, tmp_path: Path
) -> None:
    stage = Stage(tabletop, tmp_path, steps=1)
    lost = stage.order(2)[1]
    plain, asked = stage.ports.rewards.score, []

    async def score(record: Record, sampled: SampledGroup) -> tuple[Score, ...] | Failure:
        asked.append(record.id)
        if asked.count(lost) == 1 and record.id == lost:
            raise SampleLost("with its machine")
        return await plain(record, sampled)

    stage.ports.rewards.score = score  # type: ignore[method-assign]
    state = stage.train()
    assert stage.learned() == [stage.order(4)]
    assert state.ledger.failed == 0
    first, second = (request for request in stage.rollouts.asked if request.prompt.record_id == lost)
    assert first == second
