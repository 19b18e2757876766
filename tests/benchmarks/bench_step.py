"""Whole training steps: against TRL's GRPOTrainer, and at a growing number of prompts. One JSON object a line.

One set of our actors serves all tests: an engine, a learner rank, a reward worker, each with two threads. TRL runs in its own
environment (extra `bench`; `make bench` makes it in build/bench), takes its steps in turn with ours, and waits meanwhile.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import statistics
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import ray
from transformers import AutoProcessor

from tests.benchmarks.measure import ratio, report, spread
from videostr.checkpoint import Ledger, RunState
from videostr.config.load import load
from videostr.config.schema import Config
from videostr.data.prompts import RecordSource
from videostr.data.records import read_records, write_records
from videostr.launch import cluster
from videostr.loop import train
from videostr.ports import Ports
from videostr.run_folder import RunFolder
from videostr.types import Record

TRL_PYTHON = Path("build/bench/bin/python")
PRETRAINED = Path("videostr/tabletop/pretrained")
CUSTOM = "tests.benchmarks.custom_reward:reward"
G = 8
NEVER_SAMPLED = "<|image_pad|>"
"""Banned in our engine, suppressed by `min_new_tokens` in TRL: as end-of-turn token it lets every completion run to the limit."""


@dataclass(frozen=True)
class Shape:
    """A step: lengths in tokens, frames of `height` x `width` pixels."""

    name: str
    prompts: int
    completion: int
    frames: int
    height: int
    width: int
    images: int
    """Of the frames, how many TRL is shown: an image takes twice the tokens of a video's frame."""
    micro_batch: int
    """Completions of one forward and backward in TRL."""
    repeats: int


DEMO = Shape("demo", 16, 80, 4, 64, 64, images=4, micro_batch=32, repeats=5)
LONG = Shape("long", 4, 128, 16, 144, 208, images=8, micro_batch=8, repeats=3)


def policy_that_never_ends(folder: Path) -> Path:
    """The shipped policy with another end-of-turn token, and a processor that lets larger videos in."""
    shutil.copytree(PRETRAINED, folder)

    def edit(name: str, change: Callable[[dict[str, Any]], object]) -> None:
        values = json.loads((folder / name).read_text())
        change(values)
        (folder / name).write_text(json.dumps(values))

    end = AutoProcessor.from_pretrained(folder).tokenizer.convert_tokens_to_ids(NEVER_SAMPLED)
    edit("tokenizer_config.json", lambda v: v.update(eos_token=NEVER_SAMPLED))
    edit("generation_config.json", lambda v: v.update(eos_token_id=end))
    edit("config.json", lambda v: v["text_config"].update(eos_token_id=end))
    for part in ("image_processor", "video_processor"):
        edit("processor_config.json", lambda v, part=part: v[part]["size"].update(longest_edge=2**24))
    return folder


@dataclass
class System:
    """Our actors, and how far they have trained."""

    config: Config
    ports: Ports
    folder: RunFolder
    run: Callable[[Any], Any]
    state: RunState = field(
        default_factory=lambda: RunState(step=0, version=0, ledger=Ledger(seed=0, records=1))
    )

    def source(self, records: Path) -> RecordSource:
        source = RecordSource(str(records), AutoProcessor.from_pretrained(self.config.model.path), 0)
        self.state = replace(self.state, ledger=Ledger(seed=0, records=len(source.records)))
        return source

    def steps(
        self, source: RecordSource, count: int, prompts: int, completion: int, max_staleness: int = 0
    ) -> list[dict[str, float]]:
        """Metrics of so many steps."""
        last = self.state.step + count
        config = replace(
            self.config,
            train=replace(
                self.config.train, steps=last, prompts_per_step=prompts, max_staleness=max_staleness
            ),
            sampling=replace(self.config.sampling, max_tokens=completion),
        )
        self.state = self.run(train(config, source, self.ports, self.folder, self.state, asyncio.Event()))
        lines = (self.folder.path / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines[-count:]]

    def allow_row_tokens(self, tokens: int) -> None:
        """Set `learner.max_row_tokens`, which a run has fixed, in the running rank."""

        def change(worker: Any) -> None:
            worker.config.learner.max_row_tokens = tokens

        ray.get(self.ports.learner.workers[0].__ray_call__.remote(change))


@contextmanager
def started(folder: Path, *overrides: str) -> Iterator[System]:
    """The demo's actors with a policy whose completions run to the limit."""
    config = load(
        "configs/tabletop_cpu.yaml",
        [
            f"run.dir={folder}",
            f"model.path={policy_that_never_ends(folder / 'policy')}",
            "rollout.max_model_len=1280",
            "reward.rubric=paper",
            f"reward.custom={CUSTOM}",
            "train.traces_every=0",
            "train.checkpoint_every=0",
            *overrides,
        ],
    )
    run_folder = RunFolder(config)
    loop = asyncio.new_event_loop()
    running = cluster(config, run_folder, asyncio.Event())
    ports = loop.run_until_complete(running.__aenter__())
    yield System(config, ports, run_folder, loop.run_until_complete)
    loop.run_until_complete(running.__aexit__(None, None, None))
    run_folder.close()
    loop.close()


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with started(tmp_path_factory.mktemp("step")) as running:
        yield running


def records_of(tabletop: Path, shape: Shape, folder: Path) -> Path:
    """A dataset of as many records as a step of the shape has prompts."""
    source = tabletop / "train"
    chosen = []
    for record in read_records(source):
        if isinstance(record, Record) and len(chosen) < shape.prompts:
            video = str((source / record.clip.video).resolve())
            clip = replace(
                record.clip, video=video, num_frames=shape.frames, height=shape.height, width=shape.width
            )
            chosen.append(replace(record, clip=clip))
    folder.mkdir()
    write_records(chosen, folder / "records-0.parquet")
    return folder


@contextmanager
def trl(job: dict[str, Any], folder: Path) -> Iterator[Callable[[], dict[str, float]]]:
    """A GRPOTrainer in a process of its own; a call takes one step."""
    (folder / "job.json").write_text(json.dumps(job))
    with (folder / "trl.log").open("wb") as log:
        process = subprocess.Popen(
            [TRL_PYTHON.absolute(), "-m", "tests.benchmarks.trl_step", folder / "job.json"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    assert process.stdin is not None
    assert process.stdout is not None

    def step() -> dict[str, float]:
        process.stdin.write("\n")
        process.stdin.flush()
        line = process.stdout.readline()
        assert line, (folder / "trl.log").read_text()[-2000:]
        return json.loads(line)

    try:
        yield step
    finally:
        process.stdin.close()
        process.stdout.close()
        process.kill()
        process.wait()


@pytest.mark.skipif(
    not TRL_PYTHON.exists(), reason="TRL is not installed; `make bench` does it, into build/bench"
)
@pytest.mark.parametrize("shape", [DEMO, LONG], ids=lambda shape: shape.name)
def test_against_trl(
    system: System, tabletop: Path, tmp_path: Path, shape: Shape, capsys: pytest.CaptureFixture[str]
) -> None:
    records = records_of(tabletop, shape, tmp_path / "records")
    source = system.source(records)
    system.allow_row_tokens(1024 if shape is DEMO else 2100)
    job = {
        "policy": system.config.model.path,
        "records": str(records),
        "frame_store": str(tmp_path / "frames"),
        "prompts": shape.prompts,
        "group_size": G,
        "completion": shape.completion,
        "images": shape.images,
        "micro_batch": shape.micro_batch,
        "steps": shape.repeats + 1,
        "threads": 2,
        "custom": CUSTOM,
    }
    ours, theirs = [], []
    with trl(job, tmp_path) as trl_step:
        for _ in range(shape.repeats + 1):
            ours += system.steps(source, 1, shape.prompts, shape.completion)
            theirs.append(trl_step())
        ahead = system.steps(source, shape.repeats + 2, shape.prompts, shape.completion, max_staleness=1)
    yours = [t["seconds"] for t in theirs[1:]]
    samples = shape.prompts * G
    assert ours[-1]["tokens/completion"] / samples == theirs[-1]["completion_tokens"] == shape.completion
    for staleness, steps in ((0, ours[1:]), (1, ahead[2:])):  # the first ones ahead fill the pipeline
        mine = [m["time/step"] for m in steps]
        report(
            capsys,
            name="step/vs_trl",
            value=round(samples / statistics.median(mine), 1),
            unit="completions/s",
            ratio=ratio(yours, mine) if staleness == 0 else round(statistics.median(yours) / statistics.median(mine), 2),
            max_staleness=staleness,
            against="TRL 1.16.0 GRPOTrainer: Hugging Face generate, float32, 2 threads, no gradient checkpointing, "
            f"no KL, micro-batches of {shape.micro_batch}",
            shape=f"{shape.prompts} prompts x {G} completions of {shape.completion} tokens, "
            f"prompts of {ours[-1]['tokens/prompt'] / shape.prompts:.0f} tokens, TRL's of {theirs[-1]['prompt_tokens']:.0f}, "
            f"{shape.frames} frames of {shape.height} x {shape.width}, TRL {shape.images} of them as images",
            seconds={
                **{name: round(statistics.median(m[f"time/{name}"] for m in steps), 3) for name in
                   ("rollout", "reward", "learn", "sync", "step")},
                "trl_sampling": round(statistics.median(t["seconds_sampling"] for t in theirs[1:]), 3),
                "trl_step": round(statistics.median(yours), 3),
            },
            cores=2,
            repeats=shape.repeats,
            spread=spread(mine),
        )  # fmt: skip


def test_scaling(system: System, tabletop: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = system.source(tabletop / "train")
    system.allow_row_tokens(1024)
    sizes, repeats = (4, 8, 16, 32), 3
    seconds: dict[int, list[float]] = {size: [] for size in sizes}
    system.steps(source, 2, sizes[-1], 80)
    for _ in range(repeats):
        for size in sizes:
            seconds[size] += [m["time/step"] for m in system.steps(source, 1, size, 80)]
    for size in sizes:
        report(
            capsys,
            name="step/scaling",
            value=round(statistics.median(seconds[size]), 3),
            unit="s/step",
            ratio=ratio(seconds[size], seconds[sizes[0]]),
            against=f"{sizes[0]} prompts: {size // sizes[0]} times the prompts",
            shape=f"{size} prompts x {G} completions of 80 tokens, 4 frames of 64 x 64",
            cores=2,
            repeats=repeats,
            spread=spread(seconds[size]),
        )
