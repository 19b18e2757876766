"""What an ablation keeps of a run that is done, `ARM-SEED.json`: its folder, checkpoints and all, may then be deleted."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from videostr.ablate.runs import ArmRun
from videostr.files import write_text
from videostr.heldout import GREEDY, SAMPLED, Evaluation

PARTS = ("answer", "graph", "entailed", "consistency")
CURVES = ("answer", "graph", "consistency")
DECIMALS = 4
Columns = dict[str, dict[str, list[float | None]]]
"""Sampled or greedy -> part of the reward -> score of each prompt, None where it has none."""


class RunScores(msgspec.Struct, frozen=True, kw_only=True):
    """Scores on held-out prompts, curves and costs of a run."""

    prompts: list[str]
    """Record ids."""
    before: Columns
    """Before training; {} of supervised fine-tuning."""
    after: Columns
    tokens: float
    """That the run learned from, prompts counted once a group."""
    seconds: float
    """Of its steps."""
    curves: dict[str, list[tuple[int, float]]]
    """Part -> (step, mean over the completions that were sampled for it)."""


def scores_of(run: ArmRun) -> RunScores:
    """Return the scores of a run that is done; they are kept when they are first asked for."""
    if run.scores.exists():
        return msgspec.json.decode(run.scores.read_bytes(), type=RunScores)
    evaluations = [Evaluation.read(path) for path in sorted((run.folder / "eval").glob("step_*.json"))]
    prompts = sorted({*evaluations[-1].sampled, *evaluations[-1].greedy})
    rows = _metrics(run.sft_folder if run.sft else run.folder)
    found = RunScores(
        prompts=prompts,
        before={} if run.sft else _columns(evaluations[0], prompts),
        after=_columns(evaluations[-1], prompts),
        tokens=_sum(rows, "tokens/prompt", "tokens/completion"),
        seconds=_sum(rows, "time/step"),
        curves={part: list(_curve(rows, f"reward/{part}")) for part in CURVES},
    )
    write_text(run.scores, msgspec.json.encode(_rounded(msgspec.to_builtins(found))).decode())
    return scores_of(run)


def _columns(found: Evaluation, prompts: Sequence[str]) -> Columns:
    return {
        way: {part: [rows.get(prompt, {}).get(part) for prompt in prompts] for part in PARTS}
        for way, rows in ((SAMPLED, found.sampled), (GREEDY, found.greedy))
    }


def _metrics(folder: Path) -> list[dict[str, float]]:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line.strip()]


def _sum(rows: Sequence[Mapping[str, float]], *names: str) -> float:
    return sum(row.get(name, 0.0) for row in rows for name in names)


def _curve(rows: Sequence[Mapping[str, float]], name: str) -> Iterator[tuple[int, float]]:
    return ((int(row["step"]), row[name]) for row in rows if name in row)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(each) for each in value]
    return round(value, DECIMALS) if isinstance(value, float) else value
