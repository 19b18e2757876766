"""Supervised fine-tuning as users run it: from random weights, interrupted and resumed; two ranks of ZeRO-3 in bfloat16."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoProcessor

from videostr.report.page import write_report
from videostr.run_data import read_run
from videostr.sft import main
from videostr.traces import read_traces

ROOT = Path(__file__).parents[1]
LIMIT_S = 600


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


def arguments(tabletop: Path, runs: Path, name: str) -> list[str]:
    """Twelve small steps from random weights."""
    return [
        "--config", "configs/tabletop_sft.yaml", f"run.dir={runs}", f"run.name={name}", f"data.train={tabletop / 'train'}",
        f"data.heldout={tabletop / 'heldout'}", "train.steps=12", "train.prompts_per_step=8", "train.checkpoint_every=4",
        "train.traces_every=6", "evaluate.every=4", "learner.warmup_steps=2", "references.per_prompt=2",
        "references.ends_only=0.5",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def whole(tabletop: Path, runs: Path) -> Iterator[Path]:
    """A run that nothing happened to."""
    assert main(arguments(tabletop, runs, "whole")) == 0
    return runs / "whole"


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / "step_000012" / "policy" / "model.safetensors")


def test_it_learns_from_random_weights(whole: Path) -> None:
    run = read_run(whole)
    assert run.problems == ()
    losses = run.series("loss")
    # 640 tokens: log 640 = 6.46 of random weights. The constant parts of a trace come first.
    assert losses[0] == pytest.approx(6.46, abs=0.1)
    assert losses[-1] is not None
    assert losses[-1] < 5.0
    heldout = json.loads((whole / "summary.json").read_text())["heldout"]
    assert heldout["prompts"] == 8
    assert heldout["greedy_before"]["tokens"] < 0.05
    assert heldout["greedy_after"]["tokens"] > 0.2
    assert heldout["greedy_after"]["loss"] < 4.8
    assert sorted(path.name for path in (whole / "eval").glob("greedy_*")) == [
        "greedy_000004.json", "greedy_000008.json",
    ]  # fmt: skip


def test_figures_are_those_of_fine_tuning(whole: Path) -> None:
    """Nothing was sampled and nothing scored: such figures would mean nothing."""
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    unfit = re.compile(r"reward/|staleness/|zero_variance|truncated|mismatch|ratio_max|clip|rollout/")
    assert not [name for row in rows for name in row if unfit.match(name)]
    assert {"loss", "entropy", "grad_norm", "lr", "tokens/completion", "time/step"} <= rows[0].keys()
    assert all(row["failures/learner_lost"] == 0 for row in rows if "failures/learner_lost" in row)


def test_traces_and_report_show_the_references(whole: Path) -> None:
    rows = read_traces(whole / "traces" / "step_000006.parquet")
    assert len(rows) == 16
    assert all(row["text"].startswith("<think><graph>") and row["advantage"] == 1 for row in rows)
    assert {row["text"].count('"t":') for row in rows} == {
        2,
        4,
    }  # half state the first and the last time only
    page = write_report(whole).read_text()
    assert "Loss" in page


def test_the_policy_can_be_used(whole: Path) -> None:
    policy = whole / "checkpoints" / "step_000012" / "policy"
    assert AutoProcessor.from_pretrained(policy).tokenizer.eos_token == "<|im_end|>"
    before = load_file(whole / "initial" / "model.safetensors")
    after = weights(whole)
    assert before.keys() == after.keys()
    assert all((before[name] != after[name]).any() for name in before), "a parameter was not trained"


def test_interrupted_and_resumed_it_ends_with_the_same_bits(whole: Path, tabletop: Path, runs: Path) -> None:
    log = runs / "cut.log"
    process = start(arguments(tabletop, runs, "cut"), log)
    metrics = runs / "cut" / "metrics.jsonl"
    deadline = time.monotonic() + LIMIT_S
    while not (metrics.exists() and len(metrics.read_text().splitlines()) >= 6):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
    for child in psutil.Process(process.pid).children(recursive=True):
        if child.cmdline()[:1] == ["ray::LearnerWorker"] or "LearnerWorker" in " ".join(child.cmdline()):
            child.kill()  # all ranks start again from the checkpoint of step 4
            break
    else:
        raise AssertionError("no learner rank found")
    while "resumed after step" not in log.read_text():
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert process.wait(LIMIT_S) == 130, log.read_text()
    assert main(arguments(tabletop, runs, "cut")) == 0
    one, two = weights(whole), weights(runs / "cut")
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_two_ranks_of_zero3_in_bfloat16_with_a_frozen_tower(tabletop: Path, runs: Path) -> None:
    given = [*arguments(tabletop, runs, "zero3"), "model.tiny=''", "model.path=videostr/tabletop/pretrained"]
    given += [
        "model.dtype=bfloat16",
        "model.freeze_vision=true",
        "learner.num_ranks=2",
        "learner.zero_stage=3",
    ]
    given += [
        "learner.num_cpus=0.5",
        "learner.threads=1",
        "learner.lr=1e-4",
        "train.steps=2",
        "train.checkpoint_every=0",
    ]
    given += ["evaluate.every=0", "learner.warmup_steps=0", "references.ends_only=0", "rollout.num_cpus=0.5"]
    assert main(given) == 0
    run = read_run(runs / "zero3")
    (loss, _) = run.series("loss")
    # The shipped policy knows the world: it finds the true traces far likelier than chance, log 640 = 6.5.
    assert loss is not None
    assert loss < 0.5
    shards = (runs / "zero3" / "checkpoints" / "step_000002" / "policy").glob(
        "model-0000?-of-00002.safetensors"
    )
    after = {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
    before = load_file("videostr/tabletop/pretrained/model.safetensors")
    assert {tensor.dtype for tensor in after.values()} == {torch.bfloat16}
    same = {name for name in after if torch.equal(after[name], before[name].bfloat16())}
    assert {name for name in after if ".visual." in name} <= same
    assert any(name not in same for name in after)


def start(given: list[str], log: Path) -> subprocess.Popen[bytes]:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "videostr.sft", *given],
            cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, env=environment,
        )  # fmt: skip
