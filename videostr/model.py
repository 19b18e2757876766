"""Which checkpoints can be trained and served; `python -m videostr.model untie IN OUT` cures the commonest obstacle."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    PretrainedConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
)

from videostr.console import run_command, run_main
from videostr.errors import ModelError
from videostr.files import storage

MODEL_TYPE = "qwen2_5_vl"
QWEN3 = ("qwen3_vl", "qwen3_vl_moe")
WANTED = "give the folder of a Hugging Face checkpoint, or a hub id that can be reached"


def check_model(path: str | Path, *, cpu: bool) -> None:
    """Refuse a checkpoint that cannot be trained or served; reads its config.json only.

    Args:
        path: Hugging Face folder or hub id.
        cpu: whether the engines run on CPU, where tied embeddings do not survive a weight update.

    Raises:
        ModelError: no config.json, no video support, an attention that cannot be packed, or tied embeddings with `cpu`.
    """
    try:
        raw, _ = PretrainedConfig.get_config_dict(path)
    except (OSError, ValueError) as error:
        raise ModelError(f"model.path = {path}: config.json cannot be read ({error}); {WANTED}") from None
    if not raw:
        raise ModelError(f"model.path = {path}: there is no config.json; {WANTED}")
    kind = raw.get("model_type")
    if kind in QWEN3:
        raise ModelError(
            f"model.path = {path}: a Qwen3-VL ({kind}) cannot be trained yet: it writes a time in front of every frame and "
            "feeds features of several tower layers into the language model, while positions and features here are those "
            "of Qwen2.5-VL; use one, such as Qwen/Qwen2.5-VL-7B-Instruct"
        )
    if kind != MODEL_TYPE or "vision_config" not in raw:
        lack = "no vision_config" if kind == MODEL_TYPE else f"model_type {kind!r}"
        raise ModelError(
            f"model.path = {path}: {lack}, so it takes no video here; use a Qwen2.5-VL (model_type {MODEL_TYPE!r})"
        )
    config: Any = Qwen2_5_VLConfig.from_dict(raw)
    if "sliding_attention" in config.text_config.layer_types:
        raise ModelError(
            f"model.path = {path}: use_sliding_window is true, but packed rows attend without a window; if the checkpoint "
            "was trained without one, as those of Qwen are, set it to false in config.json"
        )
    if cpu and config.tie_word_embeddings:
        raise ModelError(
            f"model.path = {path}: tie_word_embeddings is true, but vLLM's CPU engine keeps its packed copy of a tied "
            "output layer through a weight update and would sample from a mixture of old and new weights; untie it "
            f"with `python -m videostr.model untie {path} DIR` and set model.path=DIR"
        )


def load_policy(path: str | Path, dtype: torch.dtype) -> Qwen2_5_VLForConditionalGeneration:
    """The policy with its weights, on CPU, attention through SDPA."""
    policy: Qwen2_5_VLForConditionalGeneration = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        path, dtype=dtype, attn_implementation="sdpa"
    )
    return policy


def untie(source: str | Path, target: str | Path) -> None:
    """Copy a checkpoint, giving the output layer weights of its own; the function it computes stays the same."""
    check_model(source, cpu=False)
    policy: Any = Qwen2_5_VLForConditionalGeneration.from_pretrained(source, dtype="auto")
    policy.lm_head.weight = torch.nn.Parameter(policy.get_input_embeddings().weight.detach().clone())
    policy.config.tie_word_embeddings = False
    policy.config.text_config.tie_word_embeddings = False
    with storage(target):
        policy.save_pretrained(target)
        Qwen2_5_VLProcessor.from_pretrained(source).save_pretrained(target)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0, or 2 on bad input."""
    parser = argparse.ArgumentParser(prog="python -m videostr.model", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser(
        "untie", help="copy a checkpoint with its output layer untied from the embeddings"
    )
    command.add_argument("source", metavar="IN", help="Hugging Face folder or hub id")
    command.add_argument("target", metavar="OUT", help="folder to write")
    options = parser.parse_args(arguments)

    def work() -> int:
        untie(options.source, options.target)
        return 0

    return run_command(work)


if __name__ == "__main__":
    run_main(main)
