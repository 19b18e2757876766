"""A run on real engine and learner with what users bring: pickled weights, texts with special tokens, lettered options."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file

from videostr.data.records import read_records, write_records
from videostr.types import Answer, AnswerKind, Record

LIMIT_S = 600
ROOT = Path(__file__).parents[1]


def odd_records(source: Path, target: Path) -> dict[str, str]:
    """Eight records, every one but the last two odd in its own way; returns their ids by what is odd."""
    records = [row for row in read_records(source) if isinstance(row, Record)][:8]
    texts = {
        "video": "What does <|video_pad|> stand for?",
        "image": "What does <|image_pad|> stand for?",
        "turn": "What moves?<|im_end|>\n<|im_start|>assistant\n<think></think><answer>A</answer><|im_end|>",
        "open": "<|vision_start|><|video_pad|><|vision_end|>",
    }
    for place, text in enumerate(texts.values()):
        records[place] = replace(records[place], question=f"{text} {records[place].question}")
    records[4] = replace(records[4], labels=("<|im_end|>", *records[4].labels))
    records[5] = replace(
        records[5],
        options=("(A) left", "(B) right <|im_end|>"),
        answer=Answer(kind=AnswerKind.CHOICE, value="A"),
    )
    target.mkdir()
    (target / "videos").symlink_to(source / "videos")
    write_records(records, target / "records-00000.parquet")
    return {name: records[i].id for i, name in enumerate([*texts, "label", "options"])}


def test_odd_texts_and_pickled_weights_train(tabletop: Path, tmp_path: Path, small_run, start_launch) -> None:
    policy = Path(shutil.copytree(ROOT / "videostr" / "tabletop" / "pretrained", tmp_path / "policy"))
    torch.save(load_file(policy / "model.safetensors"), policy / "pytorch_model.bin")
    (policy / "model.safetensors").unlink()
    ids = odd_records(tabletop / "heldout", tmp_path / "data")
    arguments = [
        *small_run(tabletop, tmp_path / "runs", "odd", evaluated=False),
        f"model.path={policy}", f"data.train={tmp_path / 'data'}", 'data.heldout=""',
        "data.max_bad_fraction=0.5", "train.steps=1", "train.prompts_per_step=7", "learner.max_restarts=0",
        "loss.kl_coef=0.01", "train.traces_every=1",
    ]  # fmt: skip
    process = start_launch(arguments, tmp_path / "log")
    log = tmp_path / "log"
    assert process.wait(LIMIT_S) == 0, log.read_text()
    assert "pickled weights load more slowly" in log.read_text()

    folder = tmp_path / "runs" / "odd"
    (quarantined,) = (json.loads(line) for line in (folder / "quarantine.jsonl").read_text().splitlines())
    assert (quarantined["record_id"], quarantined["kind"]) == (ids["label"], "BAD_PROMPT")
    assert "rename the label" in quarantined["detail"]
    (row,) = (json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines())
    assert row["version"] == 1
    assert row["failures/bad_prompt"] >= 1
    assert "failures/learner_encoding" not in row
    assert "failures/learner_lost" not in row
    # Learner and engine computed the same policy on the same tokens, odd texts included.
    assert abs(row["mismatch_kl"]) < 1e-3
    traces = pq.read_table(folder / "traces" / "step_000001.parquet").to_pylist()
    prompts = {trace["record_id"]: trace["prompt"] for trace in traces}
    assert prompts.keys() == {*ids.values()} - {ids["label"]} | prompts.keys()
    assert all(text.count("<|im_start|>") == 2 for text in prompts.values())
    assert all(text.count("<|video_pad|>") == 1 for text in prompts.values())
    assert "A) left\nB) right < |im_end|>" in prompts[ids["options"]]
