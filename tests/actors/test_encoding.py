"""Prompts that a rank cannot encode, without Ray: each is a `Failure` that names the record; what was encoded is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoConfig, AutoProcessor

from actors import encoding
from actors.encoding import PromptEncoder
from videostr.data.prompts import PromptItem, RecordSource
from videostr.errors import LearnerError
from videostr.groups import RolloutGroup, Sampled
from videostr.models.base import family_of
from videostr.types import FailureKind
from videostr.video import FrameStore

POLICY = "videostr/tabletop/pretrained"
Change = Callable[[RolloutGroup], RolloutGroup]


@pytest.fixture(scope="module")
def processor() -> Any:
    return AutoProcessor.from_pretrained(POLICY)


@pytest.fixture(scope="module")
def config() -> Any:
    return AutoConfig.from_pretrained(POLICY)


@pytest.fixture
def encoder(processor: Any, config: Any, tmp_path: Path) -> PromptEncoder:
    return PromptEncoder(FrameStore(tmp_path), family_of(config), processor, config)


@pytest.fixture
def group(processor: Any, config: Any, tabletop: Path, tmp_path: Path) -> RolloutGroup:
    item = RecordSource(str(tabletop / "train"), processor, seed=0).draw(0)
    assert isinstance(item, PromptItem)
    frames = FrameStore(tmp_path).frames(item.prompt.clip)
    (inputs,) = family_of(config).encode([item.prompt], [frames], processor, config)
    ids = inputs.input_ids.numpy().astype(np.int32)
    return RolloutGroup(prompt=item.prompt, sampled=Sampled(prompt_token_ids=ids, completions=()), scores=())


def text(change: Callable[[str], str]) -> Change:
    return lambda g: replace(g, prompt=replace(g.prompt, text=change(g.prompt.text)))


def saw(group: RolloutGroup, ids: np.ndarray) -> RolloutGroup:
    return replace(group, sampled=replace(group.tokens, prompt_token_ids=ids))


def ids(change: Callable[[np.ndarray], np.ndarray]) -> Change:
    return lambda g: saw(g, change(g.tokens.prompt_token_ids))


def same_ids(change: Change, processor: Any, folder: Path) -> Change:
    """The engine saw the same tokens, as it does where both take a text apart alike."""

    def apply(g: RolloutGroup) -> RolloutGroup:
        spoiled = change(g)
        inputs = processor(
            text=[spoiled.prompt.text],
            videos=[np.array(FrameStore(folder).frames(g.prompt.clip).pixels)],
            videos_kwargs={"do_sample_frames": False},
        )
        return saw(spoiled, np.array(inputs["input_ids"][0], dtype=np.int32))

    return apply


def gone(g: RolloutGroup) -> RolloutGroup:
    clip = g.prompt.clip
    lost = replace(clip, digest="0" * len(clip.digest), spec=replace(clip.spec, video="/nowhere/gone.mp4"))
    return replace(g, prompt=replace(g.prompt, clip=lost))


FAULTS: dict[str, tuple[Change, str]] = {
    "another token": (ids(lambda i: np.where(np.arange(len(i)) == 5, i + 1, i)), "first difference at token 5"),
    "one token less": (ids(lambda i: i[:-1]), "first difference at token"),
    "no token": (ids(lambda i: i[:0]), "the engine saw 0 tokens"),
    "two videos": (text(lambda t: t.replace("<|video_pad|>", "<|video_pad|><|video_pad|>")), ""),
    "no video": (text(lambda t: t.replace("<|video_pad|>", "")), ""),
    "an image": (text(lambda t: t + "<|image_pad|>"), ""),
    "a video that is gone": (gone, "gone.mp4"),
    "a turn more": (text(lambda t: t + "<|im_end|>"), "first difference"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_a_failure_of_its_record(
    encoder: PromptEncoder, group: RolloutGroup, fault: str
) -> None:
    change, words = FAULTS[fault]
    failure = encoder.failure(change(group))
    assert failure is not None
    assert (failure.kind, failure.record_id) == (FailureKind.LEARNER_ENCODING, group.prompt.record_id)
    assert words in failure.detail
    assert encoder.failure(group) is None


def test_a_vision_token_that_engine_and_learner_see_alike_is_a_failure_too(
    encoder: PromptEncoder, group: RolloutGroup, processor: Any, tmp_path: Path
) -> None:
    change = same_ids(text(lambda t: t + "<|image_pad|>"), processor, tmp_path)
    failure = encoder.failure(change(group))
    assert failure is not None
    assert "2 runs of vision tokens, its video makes 1" in failure.detail


def test_what_was_encoded_is_kept_until_it_is_too_much(
    encoder: PromptEncoder, group: RolloutGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert encoder.failure(group) is None
    first = encoder.encode(group)
    assert encoder.encode(group) is first
    with pytest.raises(LearnerError, match="first difference"):  # what is kept is compared, too
        encoder.encode(saw(group, group.tokens.prompt_token_ids[:-1]))
    encoder.clear()
    assert encoder.encode(group) is not first
    encoder.clear()
    monkeypatch.setattr(encoding, "KEPT_BYTES", sum(t.nbytes for t in first.vision.values()) - 1)
    assert encoder.encode(group) is not encoder.encode(group)


def test_memory_that_is_full_is_not_the_records_fault(
    encoder: PromptEncoder, group: RolloutGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(FrameStore, "frames", full)
    with pytest.raises(MemoryError):
        encoder.failure(group)
