"""Adapters against peft: this project's in peft, and peft's here. Largest difference of log-probabilities, nats, in float64.

peft runs in an environment of its own (extra `bench`; `make bench` makes it in build/bench): transformers changes its ways where
accelerate, which peft needs, is installed.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.benchmarks.measure import report
from videostr.config.sections import Lora
from videostr.grpo.lora import adapted_layers, add_lora, save_adapter
from videostr.models.base import family_of
from videostr.models.checkpoint import load_policy
from videostr.models.processor import load_processor
from videostr.prompt import instruction, reference_trace
from videostr.tabletop.questions import make_records
from videostr.tabletop.world import Difficulty, make_scene

PEFT_PYTHON = Path(os.environ.get("VIDEOSTR_PEFT_PYTHON", "build/bench/bin/python"))
PRETRAINED = "videostr/tabletop/pretrained"


@pytest.mark.skipif(
    not PEFT_PYTHON.exists(), reason="peft is not installed; `make bench` does it, into build/bench"
)
def test_adapters_are_those_of_peft(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lora = Lora(rank=4, alpha=8.0, targets=["q_proj", "k_proj", "down_proj"])
    policy = load_policy(PRETRAINED, torch.float64)
    add_lora(policy, lora, 0, leave_out=family_of(PRETRAINED).tower(policy))
    layers = adapted_layers(policy)
    for layer in layers.values():
        torch.nn.init.normal_(layer.lora_B, std=0.01)
    save_adapter(
        tmp_path / "adapter", lora, PRETRAINED, {n: (m.lora_A.data, m.lora_B.data) for n, m in layers.items()}
    )
    (record, *_) = make_records(make_scene(1, Difficulty.EASY), "none.mp4", "scene", 1)
    text = instruction(record) + reference_trace(record)
    ids = np.array([load_processor(PRETRAINED).tokenizer(text)["input_ids"]])
    np.save(tmp_path / "ids.npy", ids)
    command = [
        PEFT_PYTHON, "-m", "tests.benchmarks.peft_side", PRETRAINED, str(tmp_path / "adapter"), str(tmp_path),
    ]  # fmt: skip
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": "."})

    found = {"ours_in_peft": difference(policy, ids, tmp_path / "ours.npy")}
    again = load_policy(PRETRAINED, torch.float64)
    theirs = Lora(rank=4, alpha=8.0, targets=["q_proj", "down_proj"], adapter=str(tmp_path / "peft"))
    add_lora(again, theirs, 0, leave_out=family_of(PRETRAINED).tower(again))
    found["theirs_in_ours"] = difference(again, ids, tmp_path / "theirs.npy")
    report(capsys, name="lora/peft", unit="nats", **found)
    assert max(found.values()) < 1e-5


def difference(policy: Any, ids: np.ndarray, file: Path) -> float:
    """Return the largest difference to the log-probabilities in a file; without adapters it is above 0.1."""
    there, plain = np.load(file), logprobs(load_policy(PRETRAINED, torch.float64), ids)
    assert np.abs(plain - there).max() > 0.01
    return float(np.abs(logprobs(policy, ids) - there).max())


def logprobs(model: Any, ids: np.ndarray) -> np.ndarray:
    """Return the log-probability [B, T - 1] of each token of texts but the first."""
    tokens = torch.from_numpy(ids)
    with torch.no_grad():
        logits = model(input_ids=tokens).logits[:, :-1].double()
    found: np.ndarray = logits.log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0].numpy()
    return found
