"""Answers -> scored rows, `questions.parquet`, and what the tables count of them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from videostr.errors import DataError
from videostr.evaluate.answers import Answer, Answers, writable
from videostr.evaluate.benchmark import Benchmark, Mode, Question, Verdict
from videostr.evaluate.records import Records
from videostr.evaluate.run import Asker, PreparedQuestion, SkippedQuestion
from videostr.evaluate.statistics import Scored, figure_values
from videostr.files import replacing
from videostr.trace import parse, without_thinking
from videostr.types import Failure, Record


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One question, its answer and what determined it: a line of `questions.parquet`.

    What is not known of texts that came in a file, is 0, empty or "".
    """

    id: str
    task: str
    scene: str
    source: str
    video: str
    facts: str
    """What else the benchmark's figures need of the question, JSON."""
    mode: str
    model: str = ""
    """Path or id."""
    model_digest: str = ""
    prompt: str = ""
    """Chat text, the video as one placeholder."""
    frames: int = 0
    times: list[float] = field(default_factory=list)
    """Seconds."""
    width: int = 0
    height: int = 0
    temperature: float = 0.0
    max_tokens: int = 0
    seed: int = 0
    text: str
    """As the model wrote it."""
    finish_reason: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    extracted: str
    truth: str
    scores: dict[str, float]
    problem: str
    """Why there is no text, or why it is not an answer; "" where all is well."""
    answered: bool
    """Whether there is a text at all."""
    key: str = ""

    @classmethod
    def of(
        cls, question: Question, mode: Mode, text: str | None, verdict: Verdict, problem: str, **rest: Any
    ) -> Row:
        """Return a question with its text, None for none, and its score."""
        facts = {name: value for name, value in question.row.items() if not isinstance(value, Record)}
        return cls(
            id=question.id,
            task=question.task,
            scene=question.scene,
            source=question.source,
            video=question.video,
            facts=json.dumps(facts),
            mode=mode.value,
            text=text or "",
            extracted=verdict.extracted,
            truth=str(question.truth),
            scores=dict(verdict.scores),
            problem=problem,
            answered=text is not None,
            **rest,
        )


def tally(
    items: Sequence[PreparedQuestion | SkippedQuestion],
    answers: Answers,
    refused: Mapping[str, Failure],
    asker: Asker,
) -> list[Row]:
    """Score every question; one without an answer scores as an empty one, and says why."""
    rows = []
    for item in items:
        answer = answers.get(item.key) if isinstance(item, PreparedQuestion) else None
        size = item.size if isinstance(item, PreparedQuestion) else None
        text = answer.text if answer else ""
        prompt = asker.prompt_of(item.mode)
        if isinstance(item, PreparedQuestion) and prompt is Mode.DIRECT:
            text = without_thinking(text, item.request.prompt.text)
        verdict = verdict_of(asker.benchmark, item.question, prompt, text, size)
        problem = verdict.note
        if isinstance(item, SkippedQuestion):
            problem = item.problem
        elif answer is None:
            failure = refused.get(item.key)
            problem = f"{failure.kind.value}: {failure.detail}" if failure else "it was not asked"
        rows.append(
            Row.of(
                item.question,
                item.mode,
                answer.text if answer else None,
                verdict,
                problem,
                **_asking(item, answer, asker),
            )
        )
    return rows


def verdict_of(
    benchmark: Benchmark, question: Question, mode: Mode, text: str, size: tuple[int, int] | None
) -> Verdict:
    """Score a text, asked for by the prompt of a mode: the whole of it in `Mode.DIRECT`, else the content of its answer block."""
    if mode is Mode.DIRECT:
        return benchmark.score(question, text, size)
    if isinstance(benchmark, Records):
        return benchmark.score_trace(question, text, mode)
    return benchmark.score(question, parse(text).answer, size)


def scores_of(rows: Sequence[Mapping[str, float]], columns: Sequence[str]) -> dict[str, np.ndarray]:
    """Return [N] scores by column, NaN where a question does not have it; columns that no question has are left out."""
    found = {name: np.array([row.get(name, np.nan) for row in rows], dtype=float) for name in columns}
    return {name: values for name, values in found.items() if not np.isnan(values).all()}


def write_rows(rows: Sequence[Row], path: Path) -> None:
    """Write `questions.parquet`; `scores` becomes one column `score/NAME` each, texts are as `writable` gives them."""
    names = list(dict.fromkeys(name for row in rows for name in row.scores))
    table = []
    for row in rows:
        values = {name: getattr(row, name) for name in Row.__dataclass_fields__ if name != "scores"}
        values |= {name: writable(value) for name, value in values.items() if isinstance(value, str)}
        table.append({**values, **{f"score/{name}": row.scores.get(name) for name in names}})
    with replacing(path) as scratch:
        pq.write_table(pa.Table.from_pylist(table), scratch, compression="zstd")


def read_rows(path: Path, columns: Sequence[str]) -> Scored:
    """Return what `write_rows` wrote, as the statistics take it.

    Raises:
        DataError: the file is missing or no such table.
    """
    try:
        table = pq.read_table(path).to_pylist()
        questions = [
            Question(
                **{name: row[name] for name in ("id", "video", "task", "scene", "source", "truth")},
                text="",
                row=json.loads(row["facts"]),
            )
            for row in table
        ]
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise DataError(
            f"{path}: holds no rows of an evaluation ({error})", remedy="evaluate again"
        ) from None
    scores = [
        {name: value for name in columns if (value := row.get(f"score/{name}")) is not None} for row in table
    ]
    return Scored(questions=questions, scores=scores_of(scores, columns))


def baselines(benchmark: Benchmark, questions: Sequence[Question]) -> dict[str, dict[str, float]]:
    """Return `chance` and `constant` -> figure -> value; figures with questions that a baseline does not answer are left out."""
    constant = benchmark.constant(questions)
    ways: dict[str, Callable[[Question], Mapping[str, float]]] = {
        "chance": benchmark.chance,
        "constant": lambda q: benchmark.score(q, constant[q.id], None).scores if q.id in constant else {},
    }
    empty = [benchmark.score(question, "", None).scores for question in questions]
    found = {}
    for name, way in ways.items():
        known = [way(question) for question in questions]
        # What does not depend on the scores of the questions that are left open, is known.
        low, high = (
            figure_values(
                benchmark,
                questions,
                scores_of(
                    [{**dict.fromkeys(has, guess), **row} for has, row in zip(empty, known, strict=True)],
                    benchmark.columns,
                ),
            )
            for guess in (0.0, 0.5)
        )
        if any(known):
            found[name] = {figure: value for figure, value in low.items() if value == high[figure]}
    return found


def counts(rows: Sequence[Row]) -> dict[str, int]:
    """Return `questions`, `answered`, and what kept others from it, by kind."""
    kinds = Counter(
        "truncated" if row.finish_reason == "LENGTH" else "no_answer_read"
        for row in rows
        if row.answered and not row.extracted
    )
    lost = Counter("video" if not row.key else "engine" for row in rows if not row.answered)
    return {
        "questions": len(rows),
        "answered": sum(row.answered for row in rows),
        **{f"failed_{kind}": count for kind, count in sorted(lost.items())},
        **dict(sorted(kinds.items())),
    }


def _asking(item: PreparedQuestion | SkippedQuestion, answer: Answer | None, asker: Asker) -> dict[str, Any]:
    """Return fields of a `Row` that say how a question was asked."""
    config = asker.config
    found: dict[str, Any] = {
        "model": config.model.path,
        "model_digest": asker.model_digest,
        "temperature": config.sampling.temperature,
        "seed": config.run.seed,
    }
    if isinstance(item, PreparedQuestion):
        found |= {
            "prompt": item.request.prompt.text,
            "frames": len(item.times),
            "times": list(item.times),
            "width": item.size[0],
            "height": item.size[1],
            "max_tokens": item.request.max_tokens,
            "key": item.key,
        }
    if answer:
        found |= {
            "finish_reason": answer.finish_reason,
            "prompt_tokens": answer.prompt_tokens,
            "completion_tokens": answer.completion_tokens,
        }
    return found
