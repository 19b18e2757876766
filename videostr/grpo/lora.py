"""Low-rank adapters (LoRA, arXiv 2106.09685): linear layers of a policy in, the same layers with two small trained matrices out.

A layer computes with the weights that are published, W + (alpha / r) B A rounded to the model's dtype, and not with a side path:
a small update often disappears in the rounding of a bfloat16 weight, and learner and engine would then disagree by as much as the
adapter changes. Names of weights and biases stay; A and B are `lora_A` [r, in] and `lora_B` [out, r] next to them.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from videostr.config.sections import Lora
from videostr.errors import ModelError
from videostr.files import make_folder, write_json

WEIGHTS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"
"""Files of an adapter, as peft names them."""
PREFIX = "base_model.model."
"""Before the names of layers in peft's files."""


class _MergedLinear(torch.autograd.Function):
    """x (W + s B A)^T + b with the sum of matrices rounded to W's dtype; the gradient takes the rounding for the identity.

    The gradient of the sum, [out, in], is never made: dA = s (dy B)^T x and dB = s dy^T (x A^T).
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float
    ) -> Tensor:
        ctx.save_for_backward(x, weight, a, b)
        ctx.scale = scale
        return F.linear(x, merged(weight, a, b, scale), bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b = ctx.saved_tensors
        (grad,) = grads
        grad_x = grad @ merged(weight, a, b, ctx.scale) if ctx.needs_input_grad[0] else None
        rows, flat = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
        grad_a = (flat @ b).T @ rows * ctx.scale
        grad_b = flat.T @ (rows @ a.T) * ctx.scale
        return grad_x, None, None, grad_a, grad_b, None


def merged(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """Return W + s B A [out, in], summed in float32 (or what is wider) and rounded to W's dtype."""
    wide = torch.promote_types(weight.dtype, torch.float32)
    return (weight.to(wide) + scale * (b.to(wide) @ a.to(wide))).to(weight.dtype)


class LoraLinear(nn.Linear):
    """A frozen linear layer with an adapter; takes the place of another one and shares its parameters.

    Attributes:
        scale: alpha / r.
        is_adapted: False computes with the frozen weights alone, which are the initial policy.
    """

    def __init__(self, linear: nn.Linear, rank: int, alpha: float, generator: torch.Generator) -> None:
        """Start from B = 0, so that nothing changes; A is uniform as peft's, drawn from `generator`."""
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        bound = 1.0 / math.sqrt(linear.in_features)
        a = torch.empty(rank, linear.in_features).uniform_(-bound, bound, generator=generator)
        self.lora_A = nn.Parameter(a.to(linear.weight))
        self.lora_B = nn.Parameter(linear.weight.new_zeros(linear.out_features, rank))
        self.scale = alpha / rank
        self.is_adapted = True

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in] to [..., out]."""
        if not self.is_adapted:
            return super().forward(x)
        y: Tensor = _MergedLinear.apply(x, self.weight, self.bias, self.lora_A, self.lora_B, self.scale)  # type: ignore[no-untyped-call]
        return y

    def merged_weight(self) -> Tensor:
        """Return the weights that are published [out, in], without gradient."""
        return merged(self.weight.detach(), self.lora_A.detach(), self.lora_B.detach(), self.scale)


def add_lora(policy: nn.Module, lora: Lora, seed: int, leave_out: nn.Module | None = None) -> None:
    """Freeze a policy and give its layers of these names an adapter.

    Args:
        policy: the Hugging Face model.
        lora: rank, scale, names, and the adapter to start from.
        seed: of A.
        leave_out: a part without adapters, such as the vision tower.

    Raises:
        ModelError: no layer has one of the names, or the adapter to start from is of another model or shape.
    """
    policy.requires_grad_(False)
    left_out = set(leave_out.modules()) if leave_out is not None else set()
    found = {
        name: module
        for name, module in policy.named_modules()
        if name.rpartition(".")[2] in lora.targets
        and isinstance(module, nn.Linear)
        and module not in left_out
    }
    missing = sorted(set(lora.targets) - {name.rpartition(".")[2] for name in found})
    if missing:
        raise ModelError(
            f"model.lora.targets: the model has no linear layer called {', '.join(missing)}",
            remedy=f"choose among {', '.join(_linear_names(policy, left_out))}",
        )
    generator = torch.Generator().manual_seed(seed)
    for name, module in found.items():
        policy.set_submodule(name, LoraLinear(module, lora.rank, lora.alpha, generator))
    if lora.adapter:
        load_adapter(policy, lora)


def adapted_layers(policy: nn.Module) -> dict[str, LoraLinear]:
    """Return the layers with an adapter, by name; none without LoRA."""
    return {name: module for name, module in policy.named_modules() if isinstance(module, LoraLinear)}


@contextlib.contextmanager
def without_adapters(policy: nn.Module) -> Iterator[None]:
    """Compute with the frozen weights alone, for the time of the context."""
    layers = adapted_layers(policy).values()
    for layer in layers:
        layer.is_adapted = False
    try:
        yield
    finally:
        for layer in layers:
            layer.is_adapted = True


# ------------------------------------------------------------------------------------------------- files, peft's


def save_adapter(
    folder: str | Path, lora: Lora, base: str, weights: dict[str, tuple[Tensor, Tensor]]
) -> None:
    """Write adapters as peft does.

    Args:
        folder: gets `adapter_model.safetensors` and `adapter_config.json`.
        lora: rank, scale and names.
        base: path or hub id of the model that they belong to.
        weights: A [r, in] and B [out, r] by the name of their layer.
    """
    folder = Path(folder)
    make_folder(folder)
    tensors = {}
    for name, (a, b) in weights.items():
        tensors[f"{PREFIX}{name}.lora_A.weight"] = a.contiguous()
        tensors[f"{PREFIX}{name}.lora_B.weight"] = b.contiguous()
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    write_json(
        folder / SETTINGS,
        {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base,
            "r": lora.rank,
            "lora_alpha": lora.alpha,
            "lora_dropout": 0.0,
            "bias": "none",
            # Layers of the tower may have the same last name
            "target_modules": _pattern(weights),
            "inference_mode": True,
        },
    )


def load_adapter(policy: nn.Module, lora: Lora) -> None:
    """Set A and B from a folder that peft, or `save_adapter`, has written.

    Raises:
        ModelError: it cannot be read, or it is of another rank, scale, or set of layers.
    """
    folder = Path(lora.adapter)
    try:
        settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        tensors = load_file(folder / WEIGHTS)
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(
            f"model.lora.adapter = {folder}: cannot be read ({error})",
            remedy=f"give a folder with {WEIGHTS} and {SETTINGS}, as peft writes it",
        ) from error
    if not isinstance(settings, dict):
        raise ModelError(
            f"model.lora.adapter = {folder}: {SETTINGS} must be a JSON object",
            remedy="write it again by peft",
        )
    _check_settings(folder, settings, lora)
    layers = adapted_layers(policy)
    wanted = {
        f"{PREFIX}{name}.{part}.weight": (layer, part)
        for name, layer in layers.items()
        for part in ("lora_A", "lora_B")
    }
    if wanted.keys() != tensors.keys():
        odd = sorted(wanted.keys() ^ tensors.keys())
        raise ModelError(
            f"model.lora.adapter = {folder}: {len(odd)} weights are on one side only, the first {odd[0]}",
            remedy="set model.lora.targets to the layers of the adapter, and model.path to its model",
        )
    for name, (layer, part) in wanted.items():
        parameter = getattr(layer, part)
        if parameter.shape != tensors[name].shape:
            raise ModelError(
                f"model.lora.adapter = {folder}: {name} is {list(tensors[name].shape)}, the model needs {list(parameter.shape)}",
                remedy="set model.path to the model that the adapter was trained on",
            )
        parameter.data.copy_(tensors[name])


def _check_settings(folder: Path, settings: Any, lora: Lora) -> None:
    for key, wanted, name in (("r", lora.rank, "rank"), ("lora_alpha", lora.alpha, "alpha")):
        if settings.get(key) != wanted:
            raise ModelError(
                f"model.lora.adapter = {folder}: has {key} = {settings.get(key)}, but model.lora.{name} = {wanted}",
                remedy=f"set model.lora.{name}={settings.get(key)}",
            )
    for key in ("use_rslora", "use_dora"):
        if settings.get(key):
            raise ModelError(
                f"model.lora.adapter = {folder}: {key} is not supported", remedy="give a plain LoRA adapter"
            )


def _pattern(names: Iterable[str]) -> str:
    """Return a regular expression that matches these names of layers, and no others of the model."""
    general = sorted({re.sub(r"\\\.\d+\\\.", r"\\.\\d+\\.", re.escape(name)) for name in names})
    return "|".join(general)


def _linear_names(policy: nn.Module, left_out: set[nn.Module]) -> list[str]:
    return sorted(
        {
            name.rpartition(".")[2]
            for name, module in policy.named_modules()
            if isinstance(module, nn.Linear) and module not in left_out and name != "lm_head"
        }
    )
