"""Sizes of a Qwen2.5-VL: its config.json, or the name of a published model, in; parameters, bytes, operations out.

All that a plan knows of the model is here, as functions of its config.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from videostr.errors import ModelError
from videostr.grpo.batch import RowCost


@dataclass(frozen=True, slots=True, kw_only=True)
class Vision:
    """The vision tower; names as in `vision_config`."""

    depth: int
    hidden_size: int
    intermediate_size: int
    out_hidden_size: int
    patch_size: int = 14
    spatial_merge_size: int = 2
    window_size: int = 112
    temporal_patch_size: int = 2
    in_channels: int = 3

    @property
    def parameters(self) -> int:
        """Weights and biases of patch embedding, blocks (attention, gated MLP, two norms) and merger."""
        v, m = self.hidden_size, self.intermediate_size
        embedding = self.in_channels * self.temporal_patch_size * self.patch_size**2 * v
        block = (4 * v * v + 4 * v) + (3 * v * m + 2 * m + v) + 2 * v
        wide = v * self.spatial_merge_size**2
        merger = v + (wide * wide + wide) + (wide * self.out_hidden_size + self.out_hidden_size)
        return embedding + self.depth * block + merger


@dataclass(frozen=True, slots=True, kw_only=True)
class Shapes:
    """The language model; names as in `text_config`."""

    name: str
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    tie_word_embeddings: bool
    vision: Vision

    @property
    def kv_width(self) -> int:
        """Width of the keys of one token in one layer."""
        return self.hidden_size // self.num_attention_heads * self.num_key_value_heads

    @property
    def layer_parameters(self) -> int:
        """Weights and biases of one layer: attention with biases on q, k and v, gated MLP, two norms."""
        h, kv = self.hidden_size, self.kv_width
        return (h * h + h) + 2 * (h * kv + kv) + h * h + 3 * h * self.intermediate_size + 2 * h

    @property
    def embedding_parameters(self) -> int:
        """Of the embeddings, and as many of the output layer."""
        return self.vocab_size * self.hidden_size

    @property
    def text_parameters(self) -> int:
        """Of the language model, embeddings and output layer included; tied ones once."""
        tables = 1 if self.tie_word_embeddings else 2
        layers = self.num_hidden_layers * self.layer_parameters
        return tables * self.embedding_parameters + layers + self.hidden_size

    @property
    def parameters(self) -> int:
        """Of the whole model."""
        return self.text_parameters + self.vision.parameters

    @property
    def decode_parameters(self) -> int:
        """Weights that one decode step reads: layers and output layer."""
        return self.num_hidden_layers * self.layer_parameters + self.embedding_parameters

    @property
    def forward(self) -> RowCost:
        """Floating-point operations of a forward pass: a third of what `RowCost` counts, whose backward costs twice that.

        It counts the logits of a target four times, since they are computed twice.
        """
        shapes = SimpleNamespace(text_config=self, vision_config=self.vision)
        cost = RowCost.of(shapes, freeze_vision=True)
        return RowCost(token=cost.token / 3, pair=cost.pair / 3, target=cost.target / 4, patch=cost.patch)

    def kv_bytes(self, element_bytes: int) -> int:
        """Bytes of keys and values of one token in all layers."""
        return 2 * self.num_hidden_layers * self.kv_width * element_bytes

    def activations(self, *, checkpointing: bool) -> tuple[int, int]:
        """Elements held for the backward pass, per token of the language model and per patch of a trained tower.

        Of width h, MLP m, g = key-value heads / heads, counted from Hugging Face's layer with fused attention (as
        Korthikanti et al. 2022, arXiv 2205.05198, section 4 for GPT): a layer holds 11 h + 3 g h + 4 m, i.e. inputs of norms
        and their float32 copies, q k v before and after rotation, attention's output, two residuals, gate, its activation,
        up, product. With gradient checkpointing h a layer, and one layer whole, twice for its backward.
        """
        h, vision = self.hidden_size, self.vision
        layer = 11 * h + 3 * self.kv_width + 4 * self.intermediate_size
        block = 14 * vision.hidden_size + 4 * vision.intermediate_size
        if checkpointing:
            return self.num_hidden_layers * h + 2 * layer, vision.depth * vision.hidden_size + 2 * block
        return self.num_hidden_layers * layer, vision.depth * block

    def engine_elements(self, tokens: int, patches: int, parts: int) -> float:
        """Elements that the widest layers of an engine hold for a step of `tokens` and an encoder's pass over `patches`."""
        layer = 4 * self.hidden_size + 3 * self.intermediate_size / parts
        return tokens * layer + patches * 10 * self.vision.hidden_size


def _published(name: str, text: tuple[int, ...], vision_mlp: int, *, tied: bool = False) -> Shapes:
    h, m, layers, heads, kv_heads, vocabulary = text
    return Shapes(
        name=name,
        hidden_size=h,
        intermediate_size=m,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=vocabulary,
        tie_word_embeddings=tied,
        vision=Vision(depth=32, hidden_size=1280, intermediate_size=vision_mlp, out_hidden_size=h),
    )


PUBLISHED = {
    "3B": _published("Qwen2.5-VL-3B", (2048, 11008, 36, 16, 2, 151_936), 3420, tied=True),
    "7B": _published("Qwen2.5-VL-7B", (3584, 18944, 28, 28, 4, 152_064), 3420),
    "32B": _published("Qwen2.5-VL-32B", (5120, 27648, 64, 40, 8, 152_064), 3456),
    "72B": _published("Qwen2.5-VL-72B", (8192, 29568, 80, 64, 8, 152_064), 3456),
}
"""Shapes of the published models (their config.json), by size."""


def shapes_of(path: str) -> Shapes:
    """Return the shapes of `model.path`.

    Raises:
        ModelError: neither a folder with a Qwen2.5-VL's config.json nor a name with one of the published sizes in it.
    """
    file = Path(path) / "config.json"
    if file.is_file():
        return _read(file)
    sizes = [size for size in PUBLISHED if f"-{size.lower()}" in Path(path).name.lower()]
    if len(sizes) != 1:
        raise ModelError(
            f"model.path = {path}: no config.json is there, and its name has none of the sizes "
            f"{', '.join(PUBLISHED)} in it",
            remedy="give the folder of a checkpoint, or a name such as Qwen/Qwen2.5-VL-7B-Instruct",
        )
    return PUBLISHED[sizes[0]]


def _read(file: Path) -> Shapes:
    try:
        raw: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        # Older files of Qwen have the language model's keys at the top
        text = raw.get("text_config", raw)
        kept = {f.name for f in fields(Vision)}
        return Shapes(
            name=file.parent.resolve().name,
            tie_word_embeddings=bool(raw.get("tie_word_embeddings", False)),
            vision=Vision(**{key: value for key, value in raw["vision_config"].items() if key in kept}),
            **{f.name: text[f.name] for f in fields(Shapes) if f.type == "int"},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"model.path: {file} does not give the shapes of a Qwen2.5-VL ({error!r})",
            remedy="give the folder of one",
        ) from None
