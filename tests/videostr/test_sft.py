"""What supervised fine-tuning learns from: references by position, their tokens, their loss."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actors.reference import ReferenceWorker
from videostr.config.load import load_sft
from videostr.config.schema import References
from videostr.config.supervised import as_training
from videostr.data.prompts import PromptItem
from videostr.groups import Sampled
from videostr.grpo.advantage import advantages
from videostr.grpo.losses import LOSSES, LossInputs
from videostr.models.processor import load_processor
from videostr.ports import SampleRequest
from videostr.prompt import reference_trace
from videostr.sft import ReferenceSource, main
from videostr.trace import parse
from videostr.types import Failure, FailureKind

PRETRAINED = "videostr/tabletop/pretrained"


@pytest.fixture(scope="module")
def processor() -> Any:
    return load_processor(PRETRAINED)


def source(tabletop: Path, processor: Any, **options: Any) -> ReferenceSource:
    return ReferenceSource(str(tabletop / "train"), processor, 3, References(**options))


def item_at(found: ReferenceSource, position: int) -> PromptItem:
    item = found.draw(position)
    assert isinstance(item, PromptItem)
    return item


def test_references_depend_on_seed_and_position_alone(tabletop: Path, processor: Any) -> None:
    one = source(tabletop, processor, per_prompt=3, ends_only=0.5)
    two = source(tabletop, processor, per_prompt=3, ends_only=0.5)
    backwards = {position: two.draw(position) for position in reversed(range(20))}
    for position in range(20):
        assert item_at(one, position) == backwards[position]
    texts = [text for position in range(20) for text in item_at(one, position).references]
    assert len(texts) == 60
    assert 15 < sum(text.count('"t":') == 2 for text in texts) < 45


def test_complete_references_state_every_time(tabletop: Path, processor: Any) -> None:
    complete, ends = source(tabletop, processor), source(tabletop, processor, ends_only=1.0)
    assert [item_at(complete, 0).references[0].count(f'"t":{t},') for t in range(4)] == [1, 1, 1, 1]
    assert [item_at(ends, 0).references[0].count(f'"t":{t},') for t in range(4)] == [1, 0, 0, 1]
    (held_out,) = ends.first(1)
    assert isinstance(held_out, PromptItem)
    assert held_out.references == (reference_trace(held_out.record, reasoned=True),)


def test_a_share_of_references_reasons(tabletop: Path, processor: Any) -> None:
    half = source(tabletop, processor, per_prompt=8, reasoned=0.5)
    texts = [text for position in range(20) for text in item_at(half, position).references]
    reasoned = [text for text in texts if "</graph></think>" not in text]
    assert 0.3 < len(reasoned) / len(texts) < 0.7
    never = source(tabletop, processor, reasoned=0.0)
    assert all("</graph></think>" in item_at(never, position).references[0] for position in range(20))


class Worker(ReferenceWorker):
    """In this process, whose output stays where it is."""

    def __init__(self, frames: Path, limit: int = 512) -> None:
        config = as_training(load_sft("configs/tabletop_sft_habit.yaml", [f"model.path={PRETRAINED}"]))
        config.rollout.max_model_len = limit
        super().__init__(0, config, str(frames), "")
        self.load()

    def read(self, item: PromptItem, text: str | None = None) -> Sampled | Failure:
        prompt = item.prompt if text is None else replace(item.prompt, text=text)
        return asyncio.run(
            self.sample(
                SampleRequest(
                    prompt=prompt, n=1, temperature=1.0, max_tokens=1, seed=0, references=item.references
                )
            )
        )


def test_only_the_trace_and_its_end_are_learned(tabletop: Path, processor: Any, tmp_path: Path) -> None:
    item = item_at(source(tabletop, processor, per_prompt=2, ends_only=0.5), 4)
    found = Worker(tmp_path).read(item)
    assert isinstance(found, Sampled)
    for text, completion in zip(item.references, found.completions, strict=True):
        assert processor.tokenizer.decode(completion.token_ids) == text + "<|im_end|>"
        assert np.isnan(completion.logprobs).all()
        assert completion.weight_versions == ()
    assert processor.tokenizer.decode(found.prompt_token_ids).endswith("assistant\n")


def test_what_the_prompt_opens_is_not_written_twice(tabletop: Path, processor: Any, tmp_path: Path) -> None:
    item = item_at(source(tabletop, processor), 4)
    found = Worker(tmp_path).read(item, item.prompt.text + "<think>\n")
    assert isinstance(found, Sampled)
    (completion,) = found.completions
    assert processor.tokenizer.decode(completion.token_ids).startswith("<graph>")
    assert parse(completion.text).well_formed


def test_what_is_too_long_is_named(tabletop: Path, processor: Any, tmp_path: Path) -> None:
    item = item_at(source(tabletop, processor), 4)
    whole = Worker(tmp_path).read(item)
    assert isinstance(whole, Sampled)
    length = len(whole.prompt_token_ids) + len(whole.completions[0].token_ids)
    assert isinstance(Worker(tmp_path, limit=length).read(item), Sampled)
    found = Worker(tmp_path, limit=length - 1).read(item)
    assert isinstance(found, Failure)
    assert found.kind is FailureKind.PROMPT_TOO_LONG
    assert found.detail.startswith(
        f"{length} tokens of prompt and reference, rollout.max_model_len = {length - 1}"
    )


def test_the_loss_is_the_negative_log_likelihood() -> None:
    logprobs = torch.tensor([-0.5, -2.0, -0.1], requires_grad=True)
    nan = torch.full((3,), torch.nan)
    found = LOSSES["reinforce"](
        LossInputs(
            logprobs=logprobs,
            log_ratio=torch.zeros(3),
            behaviour_logprobs=nan,
            entropy=nan,
            advantages=torch.from_numpy(advantages([1.0], "none")).repeat(3),
            sequence_ids=torch.zeros(3, dtype=torch.int64),
            eps_low=0.2,
            eps_high=0.2,
        )
    )
    assert found.loss.tolist() == pytest.approx([0.5, 2.0, 0.1])
    (gradient,) = torch.autograd.grad(found.loss.sum(), logprobs)
    assert gradient.tolist() == [-1.0, -1.0, -1.0]
    assert not found.clipped.any()


def test_bad_input_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--config", "configs/tabletop_sft.yaml", f"run.dir={tmp_path}"]
    assert main([*given, "model.tiny=gpt2"]) == 2
    assert "model.tiny = gpt2: must be one of qwen2_5_vl" in capsys.readouterr().err
    nothing_built = ["data.tabletop.train_scenes=0", "data.tabletop.heldout_scenes=0"]
    assert main([*given, f"data.train={tmp_path}", *nothing_built]) == 2
    assert "no records-*.parquet in this folder" in capsys.readouterr().err
