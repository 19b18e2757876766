"""Low-rank adapters: the layer against plain autograd, the policy, files in peft's format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from videostr.config.sections import Lora
from videostr.errors import ModelError
from videostr.grpo.lora import (
    SETTINGS,
    WEIGHTS,
    LoraLinear,
    adapted_layers,
    add_lora,
    load_adapter,
    merged,
    save_adapter,
    without_adapters,
)
from videostr.models.base import family_of
from videostr.models.checkpoint import load_policy
from videostr.models.tiny import make_tiny


def layer(dtype: torch.dtype = torch.float32, *, bias: bool = True) -> LoraLinear:
    torch.manual_seed(0)
    linear = nn.Linear(12, 20, bias=bias).to(dtype).requires_grad_(False)
    adapted = LoraLinear(linear, 3, 6.0, torch.Generator().manual_seed(1))
    nn.init.normal_(adapted.lora_B, std=0.1)
    return adapted


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy")
    make_tiny(folder, 0, ["where is the red_ball?"])
    return folder


def adapted_policy(folder: Path, **options: Any) -> tuple[Any, Lora]:
    policy = load_policy(folder, torch.float32)
    lora = Lora(**{"rank": 4, "alpha": 8.0, **options})
    add_lora(policy, lora, 7, leave_out=family_of(folder).tower(policy))
    return policy, lora


@pytest.mark.parametrize("bias", [True, False])
def test_output_and_gradients_are_those_of_the_merged_weights(bias: bool) -> None:
    adapted = layer(bias=bias)
    x = torch.randn(2, 5, 12, requires_grad=True)
    weight = adapted.weight + 2.0 * adapted.lora_B @ adapted.lora_A  # alpha / r = 2
    expected = F.linear(x, weight, adapted.bias)
    assert torch.allclose(adapted(x), expected, atol=1e-6)
    upstream = torch.randn_like(expected)
    parameters = [x, adapted.lora_A, adapted.lora_B]
    found = torch.autograd.grad(adapted(x), parameters, upstream)
    for mine, plain in zip(found, torch.autograd.grad(expected, parameters, upstream), strict=True):
        assert torch.allclose(mine, plain, atol=1e-5)


def test_a_new_adapter_changes_nothing() -> None:
    linear = nn.Linear(12, 20)
    adapted = LoraLinear(linear, 3, 6.0, torch.Generator())
    x = torch.randn(4, 12)
    assert torch.equal(adapted(x), linear(x))
    # peft's A: kaiming_uniform(a=sqrt(5)), which is uniform within 1 / sqrt(in)
    assert 0.2 < float(adapted.lora_A.detach().abs().max()) <= 12**-0.5


def test_in_bfloat16_it_computes_with_the_rounded_weights_that_are_published() -> None:
    adapted = layer(torch.bfloat16)
    adapted.lora_B.data *= 1e-3  # most of such an update is lost in the rounding of W
    x = torch.randn(64, 12).bfloat16()
    published = adapted.merged_weight()
    assert published.dtype is torch.bfloat16
    assert torch.equal(adapted(x), F.linear(x, published, adapted.bias))
    side = F.linear(x, adapted.weight, adapted.bias) + 2.0 * (x @ adapted.lora_A.T) @ adapted.lora_B.T
    assert not torch.equal(adapted(x), side)
    exact = merged(adapted.weight.float(), adapted.lora_A.float(), adapted.lora_B.float(), 2.0)
    assert torch.equal(published, exact.bfloat16())


def test_layers_of_the_language_model_alone_are_adapted(folder: Path) -> None:
    policy, _ = adapted_policy(folder, targets=["q_proj", "gate_proj"])  # the tower has a gate_proj, too
    names = set(adapted_layers(policy))
    layers = len(policy.model.language_model.layers)
    assert len(names) == 2 * layers
    assert all("language_model" in name for name in names)
    trained = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    assert trained == {f"{name}.{part}" for name in names for part in ("lora_A", "lora_B")}


def test_every_rank_makes_the_same_adapter(folder: Path) -> None:
    torch.manual_seed(1)
    one, _ = adapted_policy(folder)
    torch.manual_seed(2)
    two, _ = adapted_policy(folder)
    pairs = zip(one.named_parameters(), two.named_parameters(), strict=True)
    assert all(torch.equal(a, b) for (_, a), (_, b) in pairs)


def test_without_adapters_it_is_the_initial_policy(folder: Path) -> None:
    policy, _ = adapted_policy(folder)
    (first, *_) = adapted_layers(policy).values()
    nn.init.normal_(first.lora_B)
    x = torch.randn(3, first.in_features)
    with without_adapters(policy):
        assert torch.equal(first(x), F.linear(x, first.weight, first.bias))
    assert not torch.equal(first(x), F.linear(x, first.weight, first.bias))


def test_an_unknown_layer_is_named(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"no linear layer called w_q; choose among .*q_proj"):
        adapted_policy(folder, targets=["q_proj", "w_q"])


def test_files_are_those_of_peft(folder: Path, tmp_path: Path) -> None:
    policy, lora = adapted_policy(folder, targets=["q_proj"])
    layers = adapted_layers(policy)
    for each in layers.values():
        nn.init.normal_(each.lora_B)
    save_adapter(tmp_path, lora, "the/base", {n: (m.lora_A.data, m.lora_B.data) for n, m in layers.items()})
    tensors = load_file(tmp_path / WEIGHTS)
    name = "base_model.model.model.language_model.layers.0.self_attn.q_proj"
    assert tensors[f"{name}.lora_A.weight"].shape == (4, layers[name[len("base_model.model.") :]].in_features)
    settings = json.loads((tmp_path / SETTINGS).read_text())
    assert (settings["peft_type"], settings["r"], settings["lora_alpha"]) == ("LORA", 4, 8.0)
    assert settings["base_model_name_or_path"] == "the/base"
    again, _ = adapted_policy(folder, targets=["q_proj"], adapter=str(tmp_path))
    for a, b in zip(layers.values(), adapted_layers(again).values(), strict=True):
        assert torch.equal(a.lora_A, b.lora_A)
        assert torch.equal(a.lora_B, b.lora_B)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rank": 2}, r"has r = 4, but model\.lora\.rank = 2; set model\.lora\.rank=4"),
        ({"alpha": 1.0}, r"has lora_alpha = 8\.0, but model\.lora\.alpha = 1\.0"),
        ({"targets": ["q_proj", "v_proj"]}, r"weights are on one side only, the first .*v_proj"),
        ({"adapter": "no/such"}, r"model\.lora\.adapter = no/such: cannot be read"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(
    folder: Path, tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    policy, lora = adapted_policy(folder, targets=["q_proj"])
    layers = adapted_layers(policy)
    save_adapter(tmp_path, lora, "base", {n: (m.lora_A.data, m.lora_B.data) for n, m in layers.items()})
    with pytest.raises(ModelError, match=said):
        adapted_policy(folder, **{"targets": ["q_proj"], "adapter": str(tmp_path), **options})


@pytest.mark.parametrize("damage", ["cut", "shape", "settings", "dora"])
def test_a_damaged_adapter_is_named(folder: Path, tmp_path: Path, damage: str) -> None:
    policy, lora = adapted_policy(folder, targets=["q_proj"])
    layers = adapted_layers(policy)
    save_adapter(tmp_path, lora, "base", {n: (m.lora_A.data, m.lora_B.data) for n, m in layers.items()})
    weights, settings = tmp_path / WEIGHTS, tmp_path / SETTINGS
    match damage:
        case "cut":
            weights.write_bytes(weights.read_bytes()[:100])
        case "shape":
            save_file({name: t[:, :-1].contiguous() for name, t in load_file(weights).items()}, weights)
        case "settings":
            settings.write_text("[]")
        case "dora":
            settings.write_text(json.dumps({**json.loads(settings.read_text()), "use_dora": True}))
    lora.adapter = str(tmp_path)
    with pytest.raises(ModelError, match=r"model\.lora\.adapter = .*; "):
        load_adapter(policy, lora)
