"""Runs from the command line on the real stack: the whole way, bad data, Ctrl-C and resume, refusals."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from contextlib import suppress
from fnmatch import fnmatch
from itertools import pairwise
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForImageTextToText, AutoProcessor

from videostr.launch import main
from videostr.timeline import read_timeline
from videostr.traces import read_traces

LIMIT_S = 600
METRICS = Path("docs/report.md")


@pytest.fixture(scope="module")
def spoiled(tabletop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset with a truncated video, a missing one, a row of an unknown answer kind, and a damaged shard of one row."""
    folder = tmp_path_factory.mktemp("spoiled")
    for split in ("train", "heldout"):
        target = folder / split
        target.mkdir()
        (target / "videos").mkdir()
        for video in (tabletop / split / "videos").iterdir():
            (target / "videos" / video.name).write_bytes(video.read_bytes())
        table = pq.read_table(tabletop / split / "records-00000.parquet")
        if split == "train":
            rows = table.to_pylist()
            rows[3]["answer"]["kind"] = "essay"
            cut, gone = (target / rows[place]["clip"]["video"] for place in (5, 9))
            cut.write_bytes(cut.read_bytes()[:900])
            gone.unlink()
            table = pa.Table.from_pylist(rows[:-1], schema=table.schema)
            last = pa.Table.from_pylist(rows[-1:], schema=table.schema)
            damaged = target / "records-00001.parquet"
            pq.write_table(last, damaged, write_page_checksum=True)
            content = bytearray(damaged.read_bytes())
            content[40] ^= 1
            damaged.write_bytes(content)
        pq.write_table(table, target / "records-00000.parquet")
    return folder


@pytest.fixture(scope="module")
def whole(spoiled: Path, small_run, start_launch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run over the spoiled dataset that was never interrupted: 11 steps, more than an epoch."""
    runs = tmp_path_factory.mktemp("runs")
    # 11 steps of 4 prompts pass over all 38 usable rows, so the broken videos are met.
    # Nothing may depend on the last bits of the engine's log-probabilities: another run is compared with this one. With two
    # updates per batch the learner's own are taken before the first, and the ratio moves in the second.
    arguments = [
        *small_run(spoiled, runs, "whole"), "train.steps=11", "data.max_bad_fraction=0.1", "loss.correction=none",
        "train.updates_per_batch=2",
    ]  # fmt: skip
    process = start_launch(arguments, runs / "log")
    assert process.wait(LIMIT_S) == 0, (runs / "log").read_text()
    return runs / "whole"


def test_run_folder_has_everything(whole: Path) -> None:
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 12))
    assert [row["version"] for row in rows] == list(range(1, 12))
    (table,) = re.findall(r"<!-- metrics -->\n(.*?)<!-- end -->", METRICS.read_text(), re.DOTALL)
    documented = set(re.findall(r"`([a-z_/*]+)`", "".join(re.findall(r"^\| (.*?) \|", table, re.M))))
    assert {key for key in rows[-1] if not any(fnmatch(key, name) for name in documented)} == set()
    # The policy's tower is trained, nothing failed in every way, and an evaluation during training does not count for a step.
    # There is no KL term, and no importance weight without a correction.
    elsewhere = {
        "reward/*", "failures/*", "vision/hits", "vision/misses", "heldout/greedy_total", "kl", "importance_weight_mean",
        "importance_weight_max", "importance_weight_capped_fraction", "nonfinite_steps",
    }  # fmt: skip
    assert documented - rows[-1].keys() == elsewhere
    assert all(row["staleness/max"] == 0 for row in rows)
    # Learner and engine compute the same policy: the mismatch is noise. The ratio is 1 in a first update, not in a second.
    assert min(row["ratio_max"] for row in rows) >= 1
    assert max(row["ratio_max"] for row in rows) > 1
    assert {row["updates"] for row in rows} <= {1, 2}
    assert max(abs(row["mismatch_kl"]) for row in rows) < 1e-3

    summary = json.loads((whole / "summary.json").read_text())
    assert summary["heldout"]["prompts"] == 8
    assert set(summary["heldout"]["gain"]) == {"total", "graph", "answer"}
    assert set(summary["seconds"]) == {"startup", "train", "evaluate"}
    events = EventAccumulator(str(whole / "tensorboard"))
    events.Reload()
    assert len(events.Scalars("reward/total")) == 11
    traces = read_traces(whole / "traces" / "step_000010.parquet")
    assert len(traces) == 16
    assert sum("<answer>" in row["text"] for row in traces) > 8  # a sampled one may break off
    assert "<svg" in (whole / "report.html").read_text()
    ledger = json.loads((whole / "ledger.json").read_text())
    assert ledger["learned"] == 44
    assert ledger["next_position"] == ledger["learned"] + ledger["failed"]


def test_every_worker_has_its_times(whole: Path) -> None:
    steps, unread = read_timeline(whole / "timeline.jsonl")
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert ([step.step for step in steps], unread) == (list(range(1, 12)), 0)
    # After the held-out evaluation before training, before the one after it.
    assert (whole / "eval" / "step_000000.json").stat().st_mtime <= steps[0].start + 0.1
    assert steps[-1].start + steps[-1].seconds <= (whole / "eval" / "step_000011.json").stat().st_mtime
    for before, after in pairwise(steps):
        assert after.start == pytest.approx(before.start + before.seconds, abs=0.01)
    for step, row in zip(steps, rows, strict=True):
        names = {"rollout-engine-0", "reward-worker-0", "learner-rank-0", "weight-sync", "checkpoint"}
        assert step.workers.keys() == names
        for activities in step.workers.values():
            assert sum(activity.busy for activity in activities.values()) <= step.seconds + 0.01
        busy = {
            doing: activity.busy for worker in step.workers.values() for doing, activity in worker.items()
        }
        assert row["time/step"] <= step.seconds + 0.01
        # In synchronous training the one engine samples nearly all of that time: it waits where a lost group is replaced.
        assert 0.5 * row["time/rollout"] < busy["sample"] <= row["time/rollout"] + 0.01
        assert 0 < busy["score"] < row["time/rollout"] + row["time/reward"] + 0.1
        assert 0.5 * row["time/learn"] < busy["update"] <= row["time/learn"] + 0.01
        assert busy["send_weights"] <= busy["sync"] + 0.01
        assert busy["sync"] <= row["time/sync"] + 0.01
        assert ("snapshot" in busy) == (whole / "checkpoints" / f"step_{step.step:06d}").exists()
    page = (whole / "report.html").read_text()
    assert all(name in page for name in ("rollout-engine-0", "reward-worker-0", "learner-rank-0"))


def test_bad_data_is_quarantined_with_file_row_and_reason(whole: Path) -> None:
    rows = [json.loads(line) for line in (whole / "quarantine.jsonl").read_text().splitlines()]
    kinds = {row["kind"]: row["detail"] for row in rows}
    assert len(rows) == 4
    assert "records-00001.parquet: not readable as Parquet" in kinds["BAD_SHARD"]
    assert "records-00000.parquet:3: answer.kind = 'essay'" in kinds["BAD_ROW"]
    details = " ".join(row["detail"] for row in rows if row["kind"] == "BAD_VIDEO")
    assert "cannot be read" in details
    assert "cannot be decoded" in details or "truncated" in details
    metrics = json.loads((whole / "metrics.jsonl").read_text().splitlines()[-1])
    assert metrics["failures/bad_row"] == metrics["failures/bad_shard"] == 1
    assert metrics["failures/bad_video"] == 2


def test_checkpoint_is_a_hugging_face_folder(whole: Path) -> None:
    policy = whole / "checkpoints" / "step_000011" / "policy"
    model, loading = AutoModelForImageTextToText.from_pretrained(policy, output_loading_info=True)
    assert not any(loading[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.config.model_type == "qwen2_5_vl"
    assert AutoProcessor.from_pretrained(policy).tokenizer.eos_token == "<|im_end|>"
    before = load_file("videostr/tabletop/pretrained/model.safetensors")
    after = load_file(policy / "model.safetensors")
    assert before.keys() == after.keys()
    assert all((before[name] != after[name]).any() for name in before), "a parameter was not trained"


def test_a_run_that_loses_workers_and_is_interrupted_ends_with_the_same_bits(
    whole: Path, spoiled: Path, small_run, start_launch, tmp_path: Path
) -> None:
    """kill -9 of a reward worker, an engine and a learner rank, then Ctrl-C and resume: weights as if nothing had happened."""
    arguments = [*small_run(spoiled, tmp_path, "cut"), "train.steps=11", "data.max_bad_fraction=0.1"]
    arguments += ["train.checkpoint_every=2", "loss.correction=none", "train.updates_per_batch=2"]
    log = tmp_path / "first.log"
    process = start_launch(arguments, log)
    metrics = tmp_path / "cut" / "metrics.jsonl"
    for lines, victim in ((1, "ray::RewardWorker"), (2, "VLLM::EngineCore"), (5, "ray::LearnerWorker")):
        _wait_for(process, metrics, lines=lines)
        _find(process, victim).kill()
    _wait_for(process, log, said="resumed after step")
    _wait_for(process, metrics, lines=7)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    assert process.wait(LIMIT_S) == 130, log.read_text()
    for told in (
        "engine 0 is up and waits for weights",
        "learner lost: learner rank 0 died",
        "resumed after step",
    ):
        assert told in log.read_text()
    # half_updated where it was killed in a publication
    assert re.search(r"engine 0 lost \((died|half_updated)\)", log.read_text())
    assert "with a checkpoint" in log.read_text()
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive, "Ray left processes behind"

    again = start_launch(arguments, tmp_path / "second.log")
    assert again.wait(LIMIT_S) == 0, (tmp_path / "second.log").read_text()
    assert "resumed after step" in (tmp_path / "second.log").read_text()
    runs = (whole, tmp_path / "cut")
    one, two = (
        [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in runs
    )
    assert [row["step"] for row in two] == list(range(1, 12))
    times, unread = read_timeline(tmp_path / "cut" / "timeline.jsonl")
    assert ([step.step for step in times], unread) == (list(range(1, 12)), 0)
    assert any("start" in step.workers["learner-rank-0"] for step in times)  # all ranks again, within a step
    for name in (
        "reward/total",
        "reward/graph",
        "tokens/completion",
        "tokens/prompt",
        "version",
        "lr",
        "loss",
    ):
        assert [row[name] for row in one] == [row[name] for row in two], name
    ledgers = [json.loads((run / "ledger.json").read_text()) for run in runs]
    assert ledgers[0] == ledgers[1]
    weights = [
        load_file(run / "checkpoints" / "step_000011" / "policy" / "model.safetensors") for run in runs
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def _find(process: subprocess.Popen[bytes], name: str) -> psutil.Process:
    """The one process of a run that bears a name."""
    children = psutil.Process(process.pid).children(recursive=True)
    found = []
    for child in children:
        with suppress(psutil.Error):  # it has just ended
            if " ".join(child.cmdline()).startswith(name):
                found.append(child)
    (only,) = found
    return only


def _wait_for(process: subprocess.Popen[bytes], path: Path, *, lines: int = 0, said: str = "") -> None:
    """Wait until a file has some lines, and some words in it."""
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline and process.poll() is None:
        text = path.read_text() if path.exists() else ""
        if len(text.splitlines()) >= lines and said in text:
            return
        time.sleep(0.2)
    raise AssertionError(f"the run ended or stalled before {path} had {lines} lines with {said!r}")


@pytest.mark.parametrize(
    ("override", "status", "message"),
    [
        ("train.stepz=3", 2, "train.stepz = 3: is not a key"),
        ("train.steps=many", 2, "train.steps = many: must be a whole number"),
        ("sampling.group_size=1", 2, "sampling.group_size = 1: a group of one has no advantage"),
        ("model.path=configs", 2, "model.path = configs: there is no config.json"),
        ("data.train=no/such", 2, "no/such: no records-*.parquet in this folder; build a dataset with"),
        ("data.max_bad_fraction=0.01", 2, "more than data.max_bad_fraction = 0.01; the reasons stand in"),
        ("rollout.num_cpus=500", 2, "needs 501 CPU (rollout 1 x 500, learner 1 x 0.75, reward 1 x 0.25)"),
    ],
)
def test_refused_at_start(
    override: str,
    status: int,
    message: str,
    spoiled: Path,
    small_run,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = small_run(spoiled, tmp_path, "refused")
    arguments = [a for a in arguments if a.split("=")[0] != override.split("=")[0]]
    arguments.append("data.tabletop.train_scenes=0")
    if "max_bad_fraction" not in override:
        arguments.append("data.max_bad_fraction=0.1")
    assert main([*arguments, override]) == status
    assert message in capsys.readouterr().err


def test_folder_of_another_config_is_refused(
    whole: Path, spoiled: Path, small_run, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*small_run(spoiled, whole.parent, "whole"), "data.max_bad_fraction=0.1", "learner.lr=1e-3"]
    assert main(arguments) == 2
    out = capsys.readouterr().err
    assert "belongs to a run with another config: learner.lr was" in out
    assert "choose another run.name" in out


def test_folder_of_another_version_is_refused(
    whole: Path, spoiled: Path, small_run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = (whole / "config.yaml").read_text()
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.yaml").write_text(
        config.replace("  max_zero_variance_steps:", "  flat_steps:")
    )
    assert main([*small_run(spoiled, tmp_path, "old"), "data.max_bad_fraction=0.1"]) == 2
    out = capsys.readouterr().err
    assert "written by another version of this program" in out
    assert (
        "keys that this one does not know (train.flat_steps) and lacks others (train.max_zero_variance_steps)"
        in out
    )
