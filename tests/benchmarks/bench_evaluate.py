"""An evaluation against bare AsyncLLM in the same engine: prompts prepared, every answer on disk. One JSON object a line."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

import pytest
from transformers import AutoProcessor

from rewards import Rubric
from tests.benchmarks.bench_engine import PRETRAINED, Engine, against_bare, engine_of
from tests.benchmarks.measure import report
from videostr.config.schema import BenchmarkConfig, EvaluationConfig, EvaluationModel, EvaluationSampling
from videostr.evaluate.__main__ import IN_FLIGHT
from videostr.evaluate.answers import Answers
from videostr.evaluate.benchmark import Mode
from videostr.evaluate.records import Records
from videostr.evaluate.run import Asker, PreparedQuestion, ask_new

REPEATS = 5


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with engine_of(PRETRAINED, tmp_path_factory.mktemp("evaluate")) as started:
        started.pool.gathers_clips = True
        yield started


def prepared(root: Path) -> tuple[list[PreparedQuestion], float]:
    """Every question of a dataset in the modes that see the video, and the milliseconds that one takes."""
    config = EvaluationConfig(
        model=EvaluationModel(path=str(PRETRAINED), dtype="float32"),
        benchmark=BenchmarkConfig(root=str(root)),
        sampling=EvaluationSampling(max_tokens=280),
    )
    benchmark = Records(Rubric.preset("default"))
    asker = Asker(config, benchmark, AutoProcessor.from_pretrained(PRETRAINED), "digest")
    questions = benchmark.read(root).questions
    started = time.perf_counter()
    items = [asker.prepare(q, mode) for mode in (Mode.DIRECT, Mode.THINK, Mode.GRAPH) for q in questions]
    milliseconds = 1000 * (time.perf_counter() - started) / len(items)
    asked = {item.key: item for item in items if isinstance(item, PreparedQuestion)}
    return list(asked.values()), milliseconds


def evaluate(engine: Engine, items: Sequence[PreparedQuestion], folder: Path) -> tuple[float, int]:
    """Seconds and tokens of the questions, each answer kept."""
    at_once = round(IN_FLIGHT * engine.config.rollout.max_num_seqs)
    with Answers(folder / "answers.sqlite") as answers:
        started = time.perf_counter()
        refused = engine.run(ask_new(items, engine.pool, answers, at_once))
        seconds = time.perf_counter() - started
        assert refused == {}
        kept = [answers.get(item.key) for item in items]
    return seconds, sum(answer.completion_tokens for answer in kept if answer is not None)


def test_evaluate(engine: Engine, tabletop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    items, milliseconds = prepared(tabletop / "train")
    folders = (tmp_path / str(turn) for turn in count())
    sides = against_bare(
        engine,
        lambda: evaluate(engine, items, next(folders)),
        [item.request for item in items],
        REPEATS,
    )
    report(
        capsys,
        name="evaluate/efficiency",
        **sides.figures(),
        against="bare AsyncLLM.generate in the same engine over all questions at once, frames in memory, nothing kept",
        shape=f"{len(items)} questions of {sides.tokens / len(items):.0f} tokens on average, 3 about each record",
        prepare_ms=round(milliseconds, 2),
        cores=2,
        repeats=REPEATS,
    )
