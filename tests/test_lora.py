"""Adapters in real runs: trained, sent to the engine, saved, and started from."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.conftest import SmallRun
from videostr.launch import main
from videostr.models.checkpoint import load_policy
from videostr.run_data import read_run

ADAPTED = [
    "model.freeze_vision=true",
    "model.lora.rank=4",
    "model.lora.alpha=8",
    "sync.verify=true",
    "learner.lr=3e-3",
]


def test_a_run_trains_adapters_and_another_one_starts_from_them(
    tabletop: Path, small_run: SmallRun, tmp_path: Path
) -> None:
    given = [*small_run(tabletop, tmp_path, "first"), *ADAPTED, "loss.kl_coef=0.01"]
    assert main(given) == 0
    first = read_run(tmp_path / "first")
    kl = first.series("kl")
    assert kl[0] == 0.0  # the reference is the policy without its adapters
    assert kl[-1] is not None
    assert kl[-1] > 0.0
    checkpoint = tmp_path / "first" / "checkpoints" / "step_000003"
    base, policy = (
        {name: parameter.detach() for name, parameter in load_policy(path, torch.float32).named_parameters()}
        for path in ("videostr/tabletop/pretrained", checkpoint / "policy")
    )
    adapter = load_file(checkpoint / "adapter" / "adapter_model.safetensors")
    layers = {name.removeprefix("base_model.model.").rpartition(".lora_")[0] for name in adapter}
    assert len(layers) == 3 * 7
    for name, weight in policy.items():
        layer = name.removesuffix(".weight")
        if layer in layers:
            a, b = (adapter[f"base_model.model.{layer}.lora_{part}.weight"] for part in "AB")
            assert torch.allclose(weight, base[name] + 2.0 * b @ a, atol=1e-6), name
            assert not torch.equal(weight, base[name]), name
        else:
            assert torch.equal(weight, base[name]), name

    given = [
        *small_run(tabletop, tmp_path, "second"),
        *ADAPTED,
        f"model.lora.adapter={checkpoint / 'adapter'}",
    ]
    assert main([*given, "train.steps=1"]) == 0
    after, before = (
        json.loads((tmp_path / run / "eval" / f"step_00000{step}.json").read_text())
        for run, step in (("first", 3), ("second", 0))
    )
    assert after["greedy"] == before["greedy"]  # the engine had the adapter before its first sample
