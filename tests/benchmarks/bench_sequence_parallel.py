"""One long packed row on 1, 2 and 4 ranks that share it: memory of a rank and time, against one rank alone.

In: a row of 16,000 tokens, half of them video, random weights and pixels; processes of one thread over gloo. Out: one JSON object
for each number of ranks and figure. Time is that of the processors, of all ranks together.
"""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from tests.benchmarks.bench_learner import G, Shape, make_group, peak, rows
from tests.benchmarks.measure import of_ranks, report
from videostr.grpo.batch import Group
from videostr.grpo.logprobs import PolicyLogprobs
from videostr.grpo.sequence_parallel import SequenceGroup
from videostr.models.base import family_of
from videostr.models.checkpoint import load_policy

REPEATS = 1
MODEL = "qwen2_5_vl"
SHAPE = Shape(prompt=8320, completion=960, frames=64, pixels=256)


def rank_main(folder: Path, rank: int, ranks: int, port: int, results: Any) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(ranks), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=ranks)
    family = family_of({"model_type": MODEL})
    sequence = SequenceGroup.connect(ranks) if ranks > 1 else None
    policy = PolicyLogprobs(load_policy(folder, torch.float32), family, sequence=sequence)
    group = make_group(policy, folder, SHAPE)
    if sequence is not None:
        group = with_part(group, sequence)
    (row,) = rows(policy, group, "group", max_row_tokens=10**6)

    def step() -> None:
        policy.zero_grad()
        logprobs, _ = policy(row, 1.0)
        logprobs.mean().backward()

    memory = peak(step)
    seconds = []
    for _ in range(REPEATS):
        dist.barrier()
        started = time.process_time()
        step()
        seconds.append(time.process_time() - started)
    results.put((memory, statistics.median(seconds), len(row.input_ids)))
    dist.barrier()
    dist.destroy_process_group()


def with_part(group: Group, sequence: SequenceGroup) -> Group:
    """The group with the pixels of this rank alone, as `actors.learner.rows` has it."""
    prompt, family = group.prompt, family_of({"model_type": MODEL})
    part = sequence.computed(prompt.temporal_patches)
    return replace(group, prompt=replace(prompt, vision=family.temporal_part(prompt.vision, part)))


def measured(folder: Path, ranks: int) -> tuple[int, float, int]:
    """Bytes of the largest rank's activations, processor seconds of a step in all ranks, tokens of the row."""
    memory, seconds, tokens = zip(*of_ranks(rank_main, (folder,), ranks, 3000), strict=True)
    return max(memory), sum(seconds), tokens[0]


def test_a_long_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    family_of({"model_type": MODEL}).make_tiny(tmp_path, 0, ["where is the red_ball?"])
    alone: tuple[int, float, int] | None = None
    for ranks in (1, 2, 4):
        memory, seconds, tokens = found = measured(tmp_path, ranks)
        alone = alone or found
        shape = f"{SHAPE}, one row of {tokens} tokens, G {G}"
        shared = {"shape": shape, "ranks": ranks, "cores": os.cpu_count()}
        report(
            capsys, name="sequence_parallel/memory", value=round(memory / 2**20, 1), unit="MiB a rank",
            ratio=round(memory / alone[0], 3), against="one rank", repeats=1, **shared,
        )  # fmt: skip
        report(
            capsys, name="sequence_parallel/efficiency", value=round(seconds, 3), unit="processor s a row, all ranks",
            ratio=round(alone[1] / seconds, 3), against="one rank", repeats=REPEATS, **shared,
        )  # fmt: skip
