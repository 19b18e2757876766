"""Which checkpoints can be trained and served; `python -m videostr.models untie IN OUT` cures the commonest obstacle.

`check_model` reads config.json alone; `open_checkpoint` also looks at weights, tokenizer, chat template and processors, as every
command does before it starts an engine.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from videostr.errors import ModelError
from videostr.files import storage
from videostr.models.base import family_of, read_config
from videostr.models.processor import load_processor
from videostr.models.weights import Weights, check_weights

log = logging.getLogger(__name__)


def open_checkpoint(path: str | Path, *, cpu: bool, dtype: str = "") -> Any:
    """Return the processor of a checkpoint that can be trained and served; logs what is odd about it.

    Args:
        path: Hugging Face folder or hub id.
        cpu: whether the engines run on CPU.
        dtype: in which they compute, see `check_model`.

    Raises:
        ModelError: a file is missing, broken or cannot be used.
    """
    config = check_model(path, cpu=cpu, dtype=dtype)
    processor = load_processor(path, config)
    weights = weights_of(path, config) if Path(path).is_dir() else None
    for found, remedy in warnings_of(path, weights):
        log.warning("model.path = %s: %s; %s", path, found, remedy)
    return processor


def weights_of(path: str | Path, config: Any) -> Weights:
    """Return the weight files of a checkpoint's folder, which hold all parameters.

    Raises:
        ModelError: a file is missing or not whole, or numbers lack.
    """
    # Quantised weights are packed: an engine can evaluate them, but they cannot be counted
    quantised = getattr(config, "quantization_config", None)
    return check_weights(Path(path), 0 if quantised else family_of(config).shapes(config).parameters)


def warnings_of(path: str | Path, weights: Weights | None) -> Iterator[tuple[str, str]]:
    """Return what would work, but badly, each with its remedy."""
    if weights is not None and weights.pickled:
        yield (
            f"{', '.join(weights.files[:3])}: pickled weights load more slowly than safetensors, and a pickle can hold code",
            f"AutoModelForImageTextToText.from_pretrained({str(path)!r}).save_pretrained(DIR) writes safetensors",
        )
    if weights is not None and weights.ignored:
        yield f"{', '.join(weights.ignored[:3])}: not read, the safetensors are", "delete them"


def check_model(path: str | Path, *, cpu: bool, dtype: str = "", sequence_parallel: int = 1) -> Any:
    """Return the configuration of a checkpoint that can be trained and served; reads its config.json only.

    Args:
        path: Hugging Face folder or hub id.
        cpu: whether the engines run on CPU.
        dtype: in which they compute, as `model.dtype` names it; "" where there are none.
        sequence_parallel: learner ranks that share a row, `learner.sequence_parallel`.

    Raises:
        ModelError: no config.json, no video support, or something that learner or engine cannot do.
    """
    raw = read_config(path)
    family = family_of(raw, path)
    config = family.config_of(raw, path)
    family.check(config, path, cpu=cpu)
    if sequence_parallel > 1:
        family.check_sequence_parallel(config, sequence_parallel)
    served = family.engine_dtypes(cpu=cpu)
    if dtype and dtype not in served:
        raise ModelError(
            f"model.dtype = {dtype}: vLLM's {'CPU ' if cpu else ''}engine computes a {family.name} in {' or '.join(served)} only",
            remedy=f"set model.dtype={served[0]}{', or give the engines GPUs (rollout.num_gpus)' if cpu else ''}",
        )
    return config


def load_policy(path: str | Path, dtype: torch.dtype | str) -> Any:
    """Return the policy of a checkpoint with its weights, on CPU; dtype "auto" is that of its weights."""
    return family_of(path).load(path, dtype)


def untie(source: str | Path, target: str | Path) -> None:
    """Copy a checkpoint, giving the output layer weights of its own; the function it computes stays the same."""
    processor = open_checkpoint(source, cpu=False)
    policy = load_policy(source, "auto")
    policy.lm_head.weight = torch.nn.Parameter(policy.get_input_embeddings().weight.detach().clone())
    policy.config.tie_word_embeddings = False
    policy.config.text_config.tie_word_embeddings = False
    with storage(target):
        policy.save_pretrained(target)
        processor.save_pretrained(target)
