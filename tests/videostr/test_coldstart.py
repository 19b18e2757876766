"""A short real cold start: from random weights and from a checkpoint, on a record dataset."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoProcessor

from videostr import coldstart
from videostr.coldstart import IGNORED, Examples, main
from videostr.models.checkpoint import load_policy
from videostr.prompt import reference_trace

PRETRAINED = "videostr/tabletop/pretrained"


def test_cold_start_learns_and_goes_on(tabletop: Path, tmp_path: Path) -> None:
    arguments = [
        "--config", "configs/tabletop_coldstart.yaml", f"data.train={tabletop / 'train'}", f"data.heldout={tabletop / 'heldout'}",
        f"data.frame_store={tmp_path / 'frames'}", "train.steps=30", "train.batch_size=16", "learner.warmup_steps=3",
    ]  # fmt: skip
    assert main([*arguments, f"out={tmp_path / 'one'}"]) == 0
    about = json.loads((tmp_path / "one" / "coldstart.json").read_text())
    assert about["records"] == 40
    # 640 tokens: chance is 0.002; thirty steps are enough for the format's constant parts.
    assert about["heldout"]["tokens"] > 0.3
    assert (
        main([*arguments, f"model.path={tmp_path / 'one'}", f"out={tmp_path / 'two'}", "train.ends_only=0.5"])
        == 0
    )
    more = json.loads((tmp_path / "two" / "coldstart.json").read_text())
    assert more["heldout"]["tokens"] > about["heldout"]["tokens"]


def test_weights_are_learned_in_float32_and_written_in_the_dtype_asked_for(
    tabletop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned: list[tuple[set[torch.dtype], torch.dtype]] = []
    measured = coldstart.measure

    def measure(model: Any, *arguments: Any) -> Any:
        inner = model.model.language_model.layers[0].mlp.down_proj
        inner.register_forward_hook(
            lambda _, __, out: learned.append(({p.dtype for p in model.parameters()}, out.dtype))
        )
        return measured(model, *arguments)

    monkeypatch.setattr(coldstart, "measure", measure)
    assert main([
        "--config", "configs/tabletop_coldstart.yaml", f"model.path={PRETRAINED}", "model.dtype=bfloat16",
        "train.steps=1", "train.batch_size=1",
        f"data.train={tabletop / 'train'}", f"data.heldout={tabletop / 'heldout'}", "evaluate.prompts=1", f"out={tmp_path}",
        f"data.frame_store={tmp_path / 'frames'}",
    ]) == 0  # fmt: skip
    assert learned == [({torch.float32}, torch.bfloat16)]
    written = load_file(tmp_path / "model.safetensors")
    assert {tensor.dtype for tensor in written.values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"


def test_only_the_trace_is_learned(tabletop: Path, tmp_path: Path) -> None:
    processor = AutoProcessor.from_pretrained(PRETRAINED)
    model = load_policy(PRETRAINED, torch.float32)
    examples = Examples(str(tabletop / "train"), str(tmp_path), processor, model.config)
    records = examples.records[:3]
    batch = examples.batch(records, [reference_trace(record) for record in records])
    for labels, ids, record in zip(batch["labels"], batch["input_ids"], records, strict=True):
        learned = labels != IGNORED
        assert torch.equal(labels[learned], ids[learned])
        assert processor.tokenizer.decode(labels[learned]) == reference_trace(record) + "<|im_end|>"
    # The shipped policy knows the world: it finds the true traces far likelier than chance, log(640) = 6.5.
    assert model(**batch).loss.item() < 0.5


def test_ends_only_leaves_out_the_frames_between(tabletop: Path, tmp_path: Path) -> None:
    processor = AutoProcessor.from_pretrained(PRETRAINED)
    model = load_policy(PRETRAINED, torch.float32)
    record = Examples(str(tabletop / "train"), str(tmp_path), processor, model.config).records[0]
    whole, ends = reference_trace(record), reference_trace(record, ends_only=True)
    assert [f'"t":{t},' in whole for t in range(4)] == [True] * 4
    assert [f'"t":{t},' in ends for t in range(4)] == [True, False, False, True]


def test_bad_input_is_refused(tmp_path: Path) -> None:
    arguments = ["--config", "configs/tabletop_coldstart.yaml", f"out={tmp_path}"]
    assert main([*arguments, "train.ends_only=2"]) == 2
    assert main([*arguments, f"data.train={tmp_path}"]) == 2
