"""User text -> chat text of one turn with one video, or none, in which nothing of the text is a special token.

A tokenizer takes its special tokens from wherever they stand in a text: a question about `<|im_end|>` would end the turn, one
about `<|video_pad|>` would ask for a second video. `escape` parts such strings by a blank (`< |im_end|>`), so that they are
read as ordinary text; `chat_text` then compares the special tokens of the whole chat text with those of the template alone.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from videostr.errors import PromptError

OWN_TAGS = frozenset({"<think>", "</think>", "<graph>", "</graph>", "<answer>", "</answer>"})
"""What the instruction itself names; some tokenizers have added tokens for them."""
LIKELY = re.compile(
    r"<\|[^\s<>|]{1,64}\|>|<\uff5c[^\s<>\uff5c]{1,64}\uff5c>"
    r"|</?(?:s|bos|eos|pad|unk|image|video|audio|tool_call|tool_response|start_of_turn|end_of_turn)>|\[/?INST\]",
    re.IGNORECASE,
)
"""What is a special token of a common tokenizer, where the tokenizer is not known."""
_BRACKETED = re.compile(r"[<\[{].*[>\]}]", re.DOTALL)
_ROUNDS = 8
"""Most passes of `escape`; a token of one character cannot be parted, and is found by the comparison."""
_PROBE = "What moves?"


@dataclass(frozen=True, slots=True)
class _ChatFormat:
    """What is special to a processor, and what of it the chat template writes around a text."""

    pattern: re.Pattern[str]
    """Matches every special token, the longest first."""
    ids: frozenset[int]
    around: tuple[str, ...]
    around_ids: tuple[int, ...]
    normalizes: bool
    """Whether the tokenizer also takes other spellings for special tokens, which `pattern` does not see."""


def special_tokens(processor: Any) -> frozenset[str]:
    """Return the strings that a text must not hold: special tokens, placeholders, and other added tokens in brackets.

    Added tokens that are words, such as labels of a dataset, belong to the text.
    """
    tokenizer = processor.tokenizer
    added = tokenizer.added_tokens_decoder.values()
    structure = {token.content for token in added if token.special or _BRACKETED.fullmatch(token.content)}
    placeholders = {processor.image_token, processor.video_token}
    return frozenset((structure | set(tokenizer.all_special_tokens) | placeholders) - OWN_TAGS - {"", None})


def hidden_tokens(tokenizer: Any) -> frozenset[int]:
    """Return the ids of special tokens, which the text of a completion leaves out: all but the tags of a trace.

    Tokenizers of models that reason have tokens for `<think>` and `</think>`; some count them among the special ones.
    """
    added = tokenizer.added_tokens_decoder.items()
    return frozenset(i for i, token in added if token.special and token.content not in OWN_TAGS)


def escape(text: str, special: re.Pattern[str]) -> str:
    """Return the text with a blank after the first character of each match, so that none is left."""
    for _ in range(_ROUNDS):
        if not special.search(text):
            break
        text = special.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)
    return text


def found_in(text: str, processor: Any) -> list[str]:
    """Return the special tokens of a processor that a text holds."""
    return _format(processor).pattern.findall(text)


def chat_text(text: str, processor: Any, *, with_video: bool = True, video_place: str = "") -> str:
    """Return the chat text of one user turn with a video and this text; ends where the completion begins.

    Args:
        text: of the user.
        processor: whose chat template.
        with_video: False leaves the video out.
        video_place: what of the text the video takes the place of, where it first stands; "" puts the video before all of it.

    Raises:
        PromptError: the template cannot take the text, or text and template form a special token together.
    """
    chat_format = _format(processor, with_video=with_video)
    try:
        before, place, after = text.partition(video_place) if video_place else ("", "", text)
        parts = [escape(part, chat_format.pattern) for part in ((before, after) if place else ("", text))]
        chat = _apply_template(processor, *parts, with_video=with_video)
        extra = _surplus(chat, chat_format, processor)
    except Exception as error:  # templates are programs, and tokenizers know no type of their own
        raise PromptError(
            f"the text cannot be put into the chat template ({type(error).__name__}: {error})",
            remedy="rewrite the text",
        ) from error
    if extra is not None:
        raise PromptError(
            f"the text, or text and chat template together, would be read as special tokens ({extra})",
            remedy="rewrite the text",
        )
    return chat


def template_problems(processor: Any) -> Iterator[tuple[str, str]]:
    """Yield why the chat template cannot be used for video prompts, and the remedy."""
    remedy = "copy chat_template.jinja from the base model"
    if not processor.chat_template:
        yield "the checkpoint has no chat template", remedy
        return
    try:
        chat = _apply_template(processor, "", _PROBE)
    except Exception as error:  # noqa: BLE001  # templates are programs
        yield f"the chat template raises {type(error).__name__}: {error}", remedy
        return
    videos, images = chat.count(processor.video_token), chat.count(processor.image_token)
    if (videos, images) != (1, 0):
        yield (
            f"the chat template writes {videos} placeholders of a video ({processor.video_token}) and {images} of an image "
            f"for one video, must write 1 and 0",
            remedy,
        )
    if chat.count(_PROBE) != 1:
        yield (
            f"the chat template writes the text of a turn {chat.count(_PROBE)} times, must write it once",
            remedy,
        )


def _apply_template(processor: Any, before: str, after: str, *, with_video: bool = True) -> str:
    """Return the chat text of a turn with these texts before and after the video."""
    content = [{"type": "text", "text": before}, {"type": "video"}, {"type": "text", "text": after}]
    content = [part for part in content if part.get("text") != ""]
    if not with_video:
        content = [{"type": "text", "text": before + after}]
    chat: str = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    return chat


@functools.lru_cache(maxsize=8)
def _format(processor: Any, *, with_video: bool = True) -> _ChatFormat:
    """Return what the prompts of a processor are compared with; made once for each."""
    tokenizer = processor.tokenizer
    special = special_tokens(processor)
    pattern = re.compile("|".join(re.escape(token) for token in sorted(special, key=len, reverse=True)))
    ids = frozenset(tokenizer.convert_tokens_to_ids(sorted(special & tokenizer.get_vocab().keys())))
    chat = _apply_template(processor, "", _PROBE, with_video=with_video)
    return _ChatFormat(
        pattern=pattern,
        ids=ids,
        around=tuple(pattern.findall(chat)),
        around_ids=_special_ids(chat, ids, tokenizer),
        normalizes=not tokenizer.is_fast or _normalizes(tokenizer, special),
    )


def _normalizes(tokenizer: Any, special: Iterable[str]) -> bool:
    tokens = {token.content: token for token in tokenizer.added_tokens_decoder.values()}
    return any(token in tokens and tokens[token].normalized for token in special)


def _special_ids(text: str, ids: frozenset[int], tokenizer: Any) -> tuple[int, ...]:
    return tuple(i for i in tokenizer(text, add_special_tokens=False)["input_ids"] if i in ids)


def _surplus(chat: str, chat_format: _ChatFormat, processor: Any) -> str | None:
    """Return the special tokens of a chat text, where they are not those that the template writes alone."""
    found = tuple(chat_format.pattern.findall(chat))
    if found != chat_format.around:
        return " ".join(found)
    if not chat_format.normalizes:
        return None
    ids = _special_ids(chat, chat_format.ids, processor.tokenizer)
    return (
        None
        if ids == chat_format.around_ids
        else " ".join(processor.tokenizer.convert_ids_to_tokens(list(ids)))
    )
