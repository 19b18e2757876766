"""Host memory of a learner rank while it loads a policy under ZeRO-3, against its own part of the weights and one tensor.

In: a Qwen2.5-VL of 200 million random weights in bfloat16, made here. Out: one JSON object each for 1, 2 and 4 ranks.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from transformers import AutoConfig, AutoModelForImageTextToText

from tests.benchmarks.measure import of_ranks, report
from videostr.models.tiny import make_tiny

WIDE = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 14, "vocab_size": 16384}
HEADS = {"num_attention_heads": 16, "num_key_value_heads": 16}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    make_tiny(folder, seed=0, texts=["where is the red_ball?"])
    return folder


@pytest.fixture(scope="module")
def wide(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint; of the size of a tiny policy but for its language model."""
    folder = tmp_path_factory.mktemp("wide")
    config = AutoConfig.from_pretrained(tiny)
    for name, value in {**WIDE, **HEADS}.items():
        setattr(config.text_config, name, value)
    config.text_config.layer_types = ["full_attention"] * WIDE["num_hidden_layers"]
    config.text_config.rope_parameters["mrope_section"] = [8, 12, 12]
    config.vision_config.out_hidden_size = WIDE["hidden_size"]
    torch.manual_seed(0)
    with torch.device("meta"):
        policy = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    policy.to_empty(device="cpu")
    for parameter in policy.parameters():
        parameter.data.normal_(std=0.02)
    policy.save_pretrained(folder, max_shard_size="100MB")
    return folder


def memory(key: str) -> int:
    """Bytes of this process: VmRSS, VmHWM."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{key}:"))
    return 1024 * int(line.split()[1])


def load_whole(path: Path) -> Any:
    from videostr.models.checkpoint import load_policy

    policy = load_policy(path, torch.bfloat16)
    for parameter in policy.parameters():  # files are mapped, and count when they are read
        parameter.sum()
    return policy


def load_cut(path: Path) -> Any:
    from actors.learner.loading import load_parts

    config = {
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": 3},
    }
    return load_parts(path, torch.bfloat16, torch.device("cpu"), config)


def rank_main(
    load: Callable[[Path], Any], tiny: Path, path: Path, rank: int, ranks: int, port: int, results: Any
) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_RANK="0")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), DS_ACCELERATOR="cpu")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=ranks)
    load(tiny)  # code that is imported on the way, and what is made once, do not count
    dist.barrier()
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak is that from now on
    policy = load(path)
    results.put((rank, memory("VmHWM") - before))
    del policy
    dist.barrier()


def peak(load: Callable[[Path], Any], tiny: Path, path: Path, ranks: int) -> int:
    """Bytes that the largest rank's memory grows by."""
    return max(grown for _, grown in of_ranks(rank_main, (load, tiny, path), ranks, 600))


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_load_peak(tiny: Path, wide: Path, ranks: int, capsys: pytest.CaptureFixture[str]) -> None:
    with torch.device("meta"):
        policy = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(wide))
    sizes = [2 * parameter.numel() for parameter in policy.parameters()]
    total, largest = sum(sizes), max(sizes)
    cut, whole = (peak(load, tiny, wide, ranks) for load in (load_cut, load_whole))
    report(
        capsys, name="load/peak", value=round(cut / 2**20, 1), unit="MiB",
        ratio=round(cut / (1.3 * total / ranks + largest), 3),
        against="1.3 times the part of a rank and the largest tensor",
        whole=round(whole / 2**20, 1), part=round(total / ranks / 2**20, 1), tensor=round(largest / 2**20, 1),
        shape=f"{total // 2 / 1e6:.0f} million parameters in bfloat16", ranks=ranks, cores=os.cpu_count(), repeats=1,
    )  # fmt: skip
    assert cut <= 1.3 * total / ranks + largest
