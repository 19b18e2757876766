"""The processor of a checkpoint (tokenizer, chat template, image and video processor), loaded and looked over.

In: a Hugging Face folder or hub id. Out: the processor, or a `ModelError` that names the file or value and the remedy.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import AutoProcessor

from videostr.chat import template_problems
from videostr.errors import ModelError, first_line, printable

JSON_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "chat_template.json",
)
"""Files of a checkpoint that learner or engine read, those of weights apart; none but the first must be there."""
NORMALISATION = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
PATCHES = {
    "patch_size": "patch_size",
    "merge_size": "spatial_merge_size",
    "temporal_patch_size": "temporal_patch_size",
}
"""Key of both processors: key of `vision_config` in config.json."""
BASE = "copy it from the base model"


def load_processor(path: str | Path, config: Any = None) -> Any:
    """Return the processor of a checkpoint, whose template and pixels are as prompts need them.

    Args:
        path: Hugging Face folder or hub id.
        config: the checkpoint's configuration, which tokens and patches are compared with; None compares nothing.

    Raises:
        ModelError: a file is missing or broken, or what it says cannot be used.
    """
    check_json(path)
    try:
        processor: Any = AutoProcessor.from_pretrained(path)
    except Exception as error:  # transformers and tokenizers share no base class
        problem = printable(first_line(error), 200)
        raise ModelError(
            f"model.path = {path}: its tokenizer or processor cannot be loaded ({problem})",
            remedy=_missing(path),
        ) from error
    lacking = [
        part
        for part in ("tokenizer", "image_processor", "video_processor")
        if getattr(processor, part, None) is None
    ]
    if lacking:
        raise ModelError(f"model.path = {path}: it has no {' and no '.join(lacking)}", remedy=_missing(path))
    if not processor.chat_template:  # tools that save the tokenizer alone leave the template with it
        processor.chat_template = processor.tokenizer.chat_template
    tokens = _token_problems(processor, config) if config is not None else ()
    found = itertools.chain(template_problems(processor), _pixel_problems(processor, config), tokens)
    for problem, remedy in found:
        raise ModelError(f"model.path = {path}: {problem}", remedy=remedy)
    return processor


def check_json(path: str | Path) -> None:
    """Refuse a folder in which one of the files that learner or engine read is not a JSON object.

    Raises:
        ModelError: names the file.
    """
    for name in JSON_FILES:
        file = Path(path) / name
        if not file.exists():
            continue
        try:
            whole = isinstance(json.loads(file.read_text(encoding="utf-8")), dict)
            problem = "" if whole else "not a JSON object"
        except (OSError, ValueError, RecursionError) as error:
            problem = printable(first_line(error), 200)
        if problem:
            raise ModelError(
                f"model.path = {path}: {name} cannot be read ({problem})",
                remedy=f"{BASE}, or download the checkpoint again",
            )


def _missing(path: str | Path) -> str:
    """Return what to do about files that a folder lacks."""
    folder = Path(path)
    if not folder.is_dir():
        return "give the folder of a Hugging Face checkpoint, or a hub id that can be reached"
    wanted = []
    if not (folder / "tokenizer.json").exists() and not (folder / "vocab.json").exists():
        wanted.append("tokenizer.json and tokenizer_config.json")
    if not (folder / "processor_config.json").exists() and not (folder / "preprocessor_config.json").exists():
        wanted.append("preprocessor_config.json (or processor_config.json)")
    if wanted:
        return f"copy {' and '.join(wanted)} from the base model"
    return "copy the files of tokenizer and processor from the base model"


def _pixel_problems(processor: Any, config: Any) -> Iterator[tuple[str, str]]:
    """Yield where image processor, video processor and vision tower do not fit together.

    vLLM normalises pixels on the device with the values of the image processor, and counts tokens with its sizes, for
    videos too; the learner takes those of the video processor.
    """
    image, video = processor.image_processor, processor.video_processor
    for key in (*NORMALISATION, *PATCHES):
        ours, theirs = _plain(getattr(video, key, None)), _plain(getattr(image, key, None))
        if ours != theirs:
            yield (
                f"{key} is {theirs} in the image processor and {ours} in the video processor: engines take the first and "
                "learners the second for videos, so that both would see different pixels",
                "write the values of the base model into preprocessor_config.json, video_preprocessor_config.json or "
                "processor_config.json",
            )
    if config is None:
        return
    for key, of_tower in PATCHES.items():
        stated, built = getattr(video, key, None), getattr(config.vision_config, of_tower, None)
        if stated != built:
            yield (
                f"{key} is {stated} in the video processor, but vision_config.{of_tower} is {built} in config.json: the tower "
                "cannot read such patches",
                "copy preprocessor_config.json (or processor_config.json) from the base model",
            )


def _token_problems(processor: Any, config: Any) -> Iterator[tuple[str, str]]:
    """Yield where the tokenizer and the language model do not fit together."""
    tokenizer = processor.tokenizer
    if len(tokenizer) > config.text_config.vocab_size:
        yield (
            f"the tokenizer has {len(tokenizer)} tokens, config.json has embeddings for text_config.vocab_size = "
            f"{config.text_config.vocab_size}",
            "copy the tokenizer of the base model, or resize the embeddings",
        )
    for name, token in (("video_token_id", processor.video_token), ("image_token_id", processor.image_token)):
        stated, found = getattr(config, name), tokenizer.get_vocab().get(token)
        if stated != found:
            yield (
                f"{name} is {stated} in config.json, but {token} is token {found} of the tokenizer",
                "copy the tokenizer's files from the base model",
            )
    if tokenizer.eos_token_id is None:
        yield (
            "the tokenizer has no eos_token, so that no completion would end",
            "copy tokenizer_config.json from the base model",
        )


def _plain(value: Any) -> Any:
    """Return lists as tuples, numbers as floats rounded as files round them."""
    if isinstance(value, list | tuple):
        return tuple(_plain(v) for v in value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return round(float(value), 6)
    return value
