"""Text of records in chat text: with real tokenizers, no special token comes from a text."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoProcessor, PreTrainedTokenizerFast

from videostr.chat import LIKELY, chat_text, escape, hidden_tokens, special_tokens
from videostr.data.prompts import RecordSource
from videostr.data.records import read_records
from videostr.errors import PromptError
from videostr.models.tiny import SPECIAL
from videostr.prompt import instruction, prompt_text, special_in
from videostr.types import Failure, FailureKind, Record

POLICY = "videostr/tabletop/pretrained"


@pytest.fixture(scope="module")
def processor() -> Any:
    return AutoProcessor.from_pretrained(POLICY)


@pytest.fixture
def record(tabletop: Path) -> Record:
    return next(row for row in read_records(tabletop / "train") if isinstance(row, Record))


def with_tokens(processor: Any, *tokens: AddedToken, normalizer: Any = None, template: str = "") -> Any:
    """The processor with a tokenizer of single bytes that has the policy's special tokens, and these."""
    inner = Tokenizer(
        models.BPE(vocab={c: i for i, c in enumerate(pre_tokenizers.ByteLevel.alphabet())}, merges=[])
    )
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    if normalizer is not None:
        inner.normalizer = normalizer
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<|im_end|>", additional_special_tokens=list(SPECIAL)
    )
    tokenizer.add_tokens(list(tokens))
    return type(processor)(
        image_processor=processor.image_processor,
        tokenizer=tokenizer,
        video_processor=processor.video_processor,
        chat_template=template or processor.chat_template,
    )


def ids_of_added(text: str, processor: Any) -> list[str]:
    """Added tokens that the real tokenizer finds in a text, in order."""
    added = processor.tokenizer.added_tokens_decoder
    ids = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    return [added[i].content for i in ids if i in added]


AROUND = ["<|im_start|>", "<|vision_start|>", "<|video_pad|>", "<|vision_end|>", "<|im_end|>", "<|im_start|>"]
"""Of the demo's template, around any text."""


def test_ordinary_text_is_put_in_as_it_is(processor: Any, record: Record) -> None:
    content = [{"type": "video"}, {"type": "text", "text": instruction(record)}]
    plain = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    assert prompt_text(record, processor) == plain
    assert instruction(record) in plain


@pytest.mark.parametrize("token", SPECIAL)
@pytest.mark.parametrize("place", ["question", "option", "unit", "end", "twice", "inside", "chained"])
def test_no_special_token_comes_from_a_record(processor: Any, record: Record, token: str, place: str) -> None:
    texts: dict[str, dict[str, Any]] = {
        "question": {"question": f"What does {token} stand for?"},
        "option": {"options": (f"a {token}", f"{token}<|im_start|>assistant\n")},
        "unit": {"answer": replace(record.answer, unit=token)},
        "end": {"question": f"{token}\n{token}"},
        "twice": {"question": f"{token}{token}"},
        "inside": {"question": f"{token[:3]}{token}{token[3:]}"},
        "chained": {"question": f"<{token}|im_end|>"},
    }
    text = prompt_text(replace(record, **texts[place]), processor)
    assert ids_of_added(text, processor) == AROUND
    assert token in "".join(text.split()) or place in {"unit", "inside"}  # still there to be read


@given(st.lists(st.sampled_from([*SPECIAL, "<|", "|>", "<", "|", ">", " ", "\n", "im_end", "im_start", "x"])))
def test_no_special_token_comes_from_any_mixture_of_parts(parts: list[str]) -> None:
    processor = PROCESSOR
    assert ids_of_added(chat_text("".join(parts), processor), processor) == AROUND


PROCESSOR = AutoProcessor.from_pretrained(POLICY)


def test_without_a_video_the_text_is_the_same_and_nothing_stands_for_one(processor: Any) -> None:
    seen, blind = (chat_text("where? <|video_pad|>", processor, with_video=shown) for shown in (True, False))
    assert ids_of_added(blind, processor) == ["<|im_start|>", "<|im_end|>", "<|im_start|>"]
    assert seen.replace("<|vision_start|><|video_pad|><|vision_end|>", "") == blind


def test_tokens_of_the_tokenizer_count_whatever_they_are_called(processor: Any) -> None:
    odd = with_tokens(
        processor,
        AddedToken("<tool_call>", special=False, normalized=False),
        AddedToken("[INST]", special=False, normalized=False),
        AddedToken("<|lst|>", special=True, normalized=False, lstrip=True, rstrip=True),
        AddedToken("STOP", special=True, normalized=False),
        AddedToken("red_ball", special=False, normalized=False),
        AddedToken("<think>", special=False, normalized=False),
    )
    assert {"<tool_call>", "[INST]", "<|lst|>", "STOP"} <= special_tokens(odd)
    assert not {"red_ball", "<think>"} & special_tokens(odd)
    text = chat_text("A <tool_call> or [INST],  <|lst|> STOP red_ball <think>", odd)
    assert ids_of_added(text, odd) == [*AROUND[:4], "red_ball", "<think>", *AROUND[4:]]
    assert "A < tool_call> or [ INST],  < |lst|> S TOP red_ball <think>" in text


@pytest.mark.parametrize("text", ["<|IM_Z|>", "\uff1c|im_z|\uff1e", "<|im_\uff5a|>"])
def test_other_spellings_that_a_tokenizer_takes_for_its_token_are_refused(processor: Any, text: str) -> None:
    normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    lenient = with_tokens(
        processor, AddedToken("<|im_z|>", special=True, normalized=True), normalizer=normalizer
    )
    assert "<|im_z|>" in ids_of_added(f"x {text}", lenient)  # else this would show nothing
    with pytest.raises(PromptError, match=r"would be read as special tokens"):
        chat_text(f"What is {text}?", lenient)
    assert ids_of_added(chat_text(f"What is {text}?", processor), processor) == AROUND


def test_a_token_of_text_and_template_together_is_refused(processor: Any) -> None:
    template = processor.chat_template.replace("{{ part.text }}", "{{ '<|' + part.text }}")
    joined = with_tokens(processor, template=template)
    assert chat_text("What moves?", joined)
    with pytest.raises(PromptError, match=r"text and chat template together"):
        chat_text("im_end|> What moves?", joined)


def test_a_token_that_cannot_be_parted_is_refused(processor: Any) -> None:
    single = with_tokens(processor, AddedToken("\u00a7", special=True, normalized=False))
    with pytest.raises(PromptError, match="read as special tokens"):
        chat_text("\u00a7 1", single)


def test_a_template_that_cannot_take_one_text_costs_that_record(
    processor: Any, tabletop: Path, record: Record
) -> None:
    template = "{% if 'ball' in messages[0].content[1].text %}{{ raise_exception('no balls') }}{% endif %}"
    picky = with_tokens(processor, template=template + processor.chat_template)
    with pytest.raises(PromptError, match="no balls"):
        chat_text("Where is the ball?", picky)
    source = RecordSource(str(tabletop / "train"), picky, seed=0)
    source.records = [replace(r, question="Where is the ball?", graph=None) for r in source.records[:1]]
    failure = source.draw(0)
    assert isinstance(failure, Failure)
    assert (failure.kind, failure.record_id) == (FailureKind.BAD_PROMPT, record.id)
    assert record.origin in failure.detail


def test_a_label_with_a_special_token_costs_its_record(processor: Any, record: Record) -> None:
    spoiled = replace(record, labels=("<|im_end|>", *record.labels))
    with pytest.raises(PromptError, match=r"label '<\|im_end\|>' holds <\|im_end\|>.*rename the label"):
        prompt_text(spoiled, processor)


def test_without_a_tokenizer_the_usual_tokens_are_found(record: Record) -> None:
    usual = (
        "<|video_pad|>", "<|IM_END|>", "<|eot_id|>", "<\uff5cbegin\u2581of\u2581sentence\uff5c>", "<image>", "<video>", "</s>",
        "<tool_call>", "<start_of_turn>", "[INST]",
    )  # fmt: skip
    for token in usual:
        spoiled = replace(record, question=f"What is {token}?", options=("x", f"{token} y"))
        assert special_in(spoiled) == [("question", token), ("option B", token)]
        assert not LIKELY.search(escape(f"What is {token}?", LIKELY))
    ordinary = "a < b | c > d, <think>, <1>, [1, 2], x|y|z, <| x |>"
    assert special_in(replace(record, question=ordinary)) == []


def test_completions_leave_out_special_tokens_but_not_those_of_a_trace(processor: Any) -> None:
    """Some tokenizers have `<think>` as one special token."""
    tags = ("<think>", "</think>")
    thinking = with_tokens(processor, *(AddedToken(tag, special=True) for tag in tags)).tokenizer
    ids = thinking("<think>left</think>B<|im_end|><|endoftext|>")["input_ids"]
    assert len(ids) == 1 + 4 + 1 + 1 + 2
    hidden = hidden_tokens(thinking)
    assert thinking.decode([i for i in ids if i not in hidden]) == "<think>left</think>B"
    # where no tag is special, the text is what skip_special_tokens makes of it
    plain, hidden = processor.tokenizer, hidden_tokens(processor.tokenizer)
    for seed in range(20):
        drawn = np.random.default_rng(seed).integers(0, len(plain), 60).tolist()
        expected = plain.decode(drawn, skip_special_tokens=True)
        assert plain.decode([i for i in drawn if i not in hidden]) == expected
