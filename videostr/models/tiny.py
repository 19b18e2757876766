"""Tiny policies in Hugging Face format, for the demo and for tests: own tokenizer, random weights of a few million at most.

In: texts to train the tokenizer on. Out: a folder that `from_pretrained` and vLLM load like any checkpoint. Here is what
families share; `ModelFamily.make_tiny` adds processor, configuration and weights.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

from videostr.models.base import FAMILIES, family_of

VOCAB = 640
END = "<|im_end|>"
PAD = "<|endoftext|>"
SPECIAL = (
    PAD,
    "<|im_start|>",
    END,
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


WIDTH = 128
"""Of the language model."""
PATCHES = {"patch_size": 8, "merge_size": 2, "temporal_patch_size": 2}
"""Of image and video processors."""
FRAME_SIZE = {"shortest_edge": 16 * 16, "longest_edge": 128 * 128}
"""Fewest and most pixels of a frame."""
VISION = {"depth": 2, "num_heads": 2, "patch_size": 8, "spatial_merge_size": 2, "temporal_patch_size": 2}
"""Of `vision_config`."""


def make_tiny(folder: str | Path, seed: int, texts: Iterable[str], *, model_type: str = "") -> None:
    """Write a policy with random weights into a folder.

    Args:
        folder: where to.
        seed: of the weights.
        texts: prompts and traces such as the policy will read and write.
        model_type: one of `FAMILIES`; "" for the first.
    """
    family_of({"model_type": model_type or next(iter(FAMILIES))}).make_tiny(folder, seed, texts)


WORDS = pre_tokenizers.Sequence(
    [
        pre_tokenizers.Split(Regex(r"[a-z]+_[a-z]+|\d|\n|</?[a-z]+>"), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
)
"""Digits and labels (`red_ball`) stand alone, so that a label is always the same token."""


def make_tokenizer(texts: Iterable[str], words: Any = WORDS) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE; no token reaches beyond a word of `words`, a pre-tokenizer of tokenizers."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = words
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=64,
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=list(SPECIAL[1:]),
    )


def text_config(tokenizer: PreTrainedTokenizerFast, **more: Any) -> dict[str, Any]:
    """Return `text_config` of a policy of three layers."""
    ids = tokenizer.get_vocab()
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": 384,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "bos_token_id": None,
        "eos_token_id": ids[END],
        "pad_token_id": ids[PAD],
        # vLLM's CPU build keeps the old packed lm_head after a weight update when embeddings are tied.
        "tie_word_embeddings": False,
        **more,
    }


def shared(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Return what else the configurations share, such as the ids of vision tokens."""
    ids = tokenizer.get_vocab()
    return {
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "tie_word_embeddings": False,
        "dtype": "float32",
    }


def frame_processor(processor_class: Any, tokenizer: PreTrainedTokenizerFast) -> Any:
    """Return a processor whose limits are of one frame, as those before Qwen3-VL's."""
    return processor_class(
        image_processor=Qwen2VLImageProcessor(**PATCHES, size=FRAME_SIZE),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(**PATCHES, size=FRAME_SIZE, cap_pixels_per_frame=False),
        chat_template=CHAT_TEMPLATE,
    )


def save_tiny(folder: str | Path, seed: int, model_class: Any, config: Any, processor: Any) -> None:
    """Write processor and random weights into a folder."""
    processor.save_pretrained(folder)
    torch.manual_seed(seed)
    model = model_class(config)
    ids = processor.tokenizer.get_vocab()
    model.generation_config.eos_token_id = ids[END]
    model.generation_config.pad_token_id = ids[PAD]
    model.save_pretrained(folder)
