"""Which checkpoints can be trained and served; `python -m videostr.model untie IN OUT` cures the commonest obstacle.

`check_model` reads config.json alone; `open_checkpoint` also looks at weights, tokenizer, chat template and processors, as every
command does before it starts an engine.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from videostr.command import command, run_main
from videostr.errors import ModelError
from videostr.files import storage
from videostr.processor import check_json, load_processor, processor_warnings
from videostr.weights import Weights, check_weights

log = logging.getLogger(__name__)
MODEL_TYPE = "qwen2_5_vl"
QWEN3 = ("qwen3_vl", "qwen3_vl_moe")
WANTED = "give the folder of a Hugging Face checkpoint, or a hub id that can be reached"


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Parameters of a policy."""

    total: int
    vision: int


def open_checkpoint(path: str | Path, *, cpu: bool) -> Any:
    """Return the processor of a checkpoint that can be trained and served; logs what is odd about it.

    Args:
        path: Hugging Face folder or hub id.
        cpu: whether the engines run on CPU.

    Raises:
        ModelError: a file is missing, broken or cannot be used.
    """
    config = check_model(path, cpu=cpu)
    processor = load_processor(path, config)
    weights = weights_of(path, config) if Path(path).is_dir() else None
    for found, remedy in warnings_of(path, processor, weights):
        log.warning("model.path = %s: %s; %s", path, found, remedy)
    return processor


def weights_of(path: str | Path, config: Any) -> Weights:
    """Return the weight files of a checkpoint's folder, which hold all parameters.

    Raises:
        ModelError: a file is missing or not whole, or numbers lack.
    """
    # Quantised weights are packed: an engine can evaluate them, but they cannot be counted
    quantised = getattr(config, "quantization_config", None)
    return check_weights(Path(path), 0 if quantised else size_of(config).total)


def warnings_of(path: str | Path, processor: Any, weights: Weights | None) -> Iterator[tuple[str, str]]:
    """Return what would work, but badly, each with its remedy."""
    yield from processor_warnings(processor)
    if weights is not None and weights.pickled:
        yield (
            f"{', '.join(weights.files[:3])}: pickled weights load more slowly than safetensors, and a pickle can hold code",
            f"Qwen2_5_VLForConditionalGeneration.from_pretrained({str(path)!r}).save_pretrained(DIR) writes safetensors",
        )
    if weights is not None and weights.ignored:
        yield f"{', '.join(weights.ignored[:3])}: not read, the safetensors are", "delete them"


def size_of(config: Any) -> Size:
    """Return the parameters of a Qwen2.5-VL of this configuration, shared ones counted once."""
    with torch.device("meta"):
        policy: Any = Qwen2_5_VLForConditionalGeneration(config)
    policy.tie_weights()
    return Size(
        total=sum(parameter.numel() for parameter in policy.parameters()),
        vision=sum(parameter.numel() for parameter in policy.model.visual.parameters()),
    )


def check_model(path: str | Path, *, cpu: bool) -> Any:
    """Return the configuration of a checkpoint that can be trained and served; reads its config.json only.

    Args:
        path: Hugging Face folder or hub id.
        cpu: whether the engines run on CPU, where tied embeddings do not survive a weight update.

    Raises:
        ModelError: no config.json, no video support, an attention that cannot be packed, or tied embeddings with `cpu`.
    """
    if Path(path).is_file():
        raise ModelError(f"model.path = {path}: is a file, must be a folder", remedy=WANTED)
    check_json(path)
    try:
        raw, _ = PretrainedConfig.get_config_dict(path)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"model.path = {path}: config.json cannot be read ({error})", remedy=WANTED
        ) from None
    if not raw:
        raise ModelError(f"model.path = {path}: there is no config.json", remedy=WANTED)
    kind = raw.get("model_type")
    if kind in QWEN3:
        raise ModelError(
            f"model.path = {path}: a Qwen3-VL ({kind}) cannot be trained yet: it writes a time in front of every frame and "
            "feeds features of several tower layers into the language model, while positions and features here are those "
            "of Qwen2.5-VL",
            remedy="use one, such as Qwen/Qwen2.5-VL-7B-Instruct",
        )
    if kind != MODEL_TYPE or "vision_config" not in raw:
        lack = "no vision_config" if kind == MODEL_TYPE else f"model_type {kind!r}"
        raise ModelError(
            f"model.path = {path}: {lack}, so it takes no video here",
            remedy=f"use a Qwen2.5-VL (model_type {MODEL_TYPE!r})",
        )
    try:
        config: Any = Qwen2_5_VLConfig.from_dict(raw)
    except Exception as error:  # what transformers raises for values of the wrong type is of many kinds
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"model.path = {path}: config.json does not describe a Qwen2.5-VL ({reason})",
            remedy="copy it from the base model",
        ) from error
    if "sliding_attention" in config.text_config.layer_types:
        raise ModelError(
            f"model.path = {path}: use_sliding_window is true, but packed rows attend without a window",
            remedy="if the checkpoint "
            "was trained without one, as those of Qwen are, set it to false in config.json",
        )
    if cpu and config.tie_word_embeddings:
        raise ModelError(
            f"model.path = {path}: tie_word_embeddings is true, but vLLM's CPU engine keeps its packed copy of a tied "
            "output layer through a weight update and would sample from a mixture of old and new weights",
            remedy=f"untie it with `python -m videostr.model untie {path} DIR` and set model.path=DIR",
        )
    return config


def load_policy(path: str | Path, dtype: torch.dtype) -> Qwen2_5_VLForConditionalGeneration:
    """The policy with its weights, on CPU, attention through SDPA."""
    policy: Qwen2_5_VLForConditionalGeneration = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        path, dtype=dtype, attn_implementation="sdpa"
    )
    return policy


def untie(source: str | Path, target: str | Path) -> None:
    """Copy a checkpoint, giving the output layer weights of its own; the function it computes stays the same."""
    processor = open_checkpoint(source, cpu=False)
    policy: Any = Qwen2_5_VLForConditionalGeneration.from_pretrained(source, dtype="auto")
    policy.lm_head.weight = torch.nn.Parameter(policy.get_input_embeddings().weight.detach().clone())
    policy.config.tie_word_embeddings = False
    policy.config.text_config.tie_word_embeddings = False
    with storage(target):
        policy.save_pretrained(target)
        processor.save_pretrained(target)


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m videostr.model", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    copy = commands.add_parser(
        "untie", help="copy a checkpoint with its output layer untied from the embeddings"
    )
    copy.add_argument("source", metavar="IN", help="Hugging Face folder or hub id")
    copy.add_argument("target", metavar="OUT", help="folder to write")
    options = parser.parse_args(arguments)
    untie(options.source, options.target)
    return 0


if __name__ == "__main__":
    run_main(main)
