"""`python -m videostr.evaluate`: a policy on a benchmark, the score of existing predictions, or runs side by side.

    --config configs/eval_sti.yaml [key=value ...]                 ask a policy; continues where it was stopped
    --predictions FILE.jsonl --benchmark NAME --root DIR           score texts that exist; prints JSON
    --compare DIR DIR ... --out DIR                                results side by side, the first one the base

Each takes its own options only. Exit status: 0 done, 1 the engines failed, 2 bad input, 130 stopped (the same command continues).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from actors.engines import engines
from rewards import Rubric
from videostr.bootstrap import Interval
from videostr.command import STOPPED, command, config_parser, run_main, typed
from videostr.config.load import load_evaluation
from videostr.config.schema import Config, EvaluationConfig, Judge
from videostr.config.sections import Count, Model, Run, Seed
from videostr.console import log_to_console
from videostr.digests import folder_digest
from videostr.errors import ConfigError
from videostr.evaluate import tables
from videostr.evaluate.answers import Answers
from videostr.evaluate.benchmark import ASKING, CONTROLS, Benchmark, Mode, QuestionSet
from videostr.evaluate.benchmarks import BENCHMARKS
from videostr.evaluate.comparing import PROMPT, RESULT, ROWS, side_by_side
from videostr.evaluate.judge import EndpointJudge
from videostr.evaluate.predictions import read_predictions
from videostr.evaluate.result import Evaluated
from videostr.evaluate.rows import Row, baselines, counts, scores_of, tally, verdict_of, write_rows
from videostr.evaluate.run import Asker, PreparedQuestion, ask_new, limited, log_skipped
from videostr.evaluate.statistics import intervals
from videostr.evaluate.v_star import JUDGE_SYSTEM, JUDGE_TEMPLATE, VStar
from videostr.files import write_text
from videostr.lock import FolderLock
from videostr.models.checkpoint import open_checkpoint
from videostr.types import Failure

log = logging.getLogger("videostr.evaluate")
PROGRAM = "python -m videostr.evaluate"
IN_FLIGHT = 1.5
"""Questions in flight, in `max_num_seqs` of all engines: enough to keep them full, and less than `videostr.pool.AHEAD`, so that
there is room for the next question on the engine that has its video."""
PAGE = "figures.md"


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit status, as in the module's docstring."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    parsers = {"config": _config_parser(), "predictions": _predictions_parser(), "compare": _compare_parser()}
    chosen = next((n for n in parsers if any(word.partition("=")[0] == f"--{n}" for word in given)), None)
    if chosen is None:
        print(__doc__, *(parser.format_help() for parser in parsers.values()), sep="\n")
        return 0 if {"-h", "--help"} & set(given) else 2
    options = parsers[chosen].parse_args(given)
    log_to_console(sys.stderr if chosen == "predictions" else sys.stdout)
    if chosen == "config":
        return _evaluate(load_evaluation(options.config, options.overrides))
    with contextlib.ExitStack() as stack:
        if options.out:
            _make(options.out, "--out")
            stack.enter_context(FolderLock(options.out, "--out"))
        return _compare(options) if chosen == "compare" else _predictions(options)


def _config_parser() -> argparse.ArgumentParser:
    return config_parser(PROGRAM, "Ask a policy the questions of a benchmark.")


def _predictions_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=PROGRAM, description="Score texts that exist.", allow_abbrev=False)
    parser.add_argument(
        "--predictions", type=Path, required=True, metavar="FILE", help='lines {"id", "prediction"}'
    )
    parser.add_argument("--benchmark", choices=BENCHMARKS, required=True)
    parser.add_argument("--root", type=Path, required=True, help="folder with the benchmark's files")
    parser.add_argument(
        "--mode", choices=[mode.value for mode in ASKING], default="direct", help="default direct"
    )
    _add_result_options(parser)
    return parser


def _compare_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=PROGRAM, description="Compare results.", allow_abbrev=False)
    parser.add_argument(
        "--compare", type=Path, nargs="+", metavar="DIR", help="folders with figures.json, the base first"
    )
    _add_result_options(parser)
    return parser


def _add_result_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, help="folder for the tables")
    parser.add_argument("--seed", type=typed(Seed), default=0, help="of the resamples, default 0")
    parser.add_argument("--bootstrap", type=typed(Count), default=2000, help="resamples, default 2000")


def _make(folder: Path, key: str) -> None:
    """Make a folder for results.

    Raises:
        ConfigError: it can be none, for a file has the name or is above it; starts with `key`.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{key} = {folder}: cannot be made a folder ({error.strerror})", remedy="name another one"
        ) from None


# --------------------------------------------------------------------------------------------------- a policy


def _evaluate(config: EvaluationConfig) -> int:
    processor = open_checkpoint(config.model.path, cpu=config.rollout.num_gpus == 0, dtype=config.model.dtype)
    results = Path(config.run.dir)
    folder = results / (config.run.name or f"{config.benchmark.name}-{_short(config.model.path)}")
    for mode in config.benchmark.modes:
        _make(folder / mode, "run.dir/run.name/mode")
    with FolderLock(folder, "run.name"), Answers(results / "answers.sqlite") as answers:
        try:
            _ask_all(config, folder, answers, processor)
        except KeyboardInterrupt:
            log.info("stopped; the same command continues from here")
            return STOPPED
    log.info("tables: %s", folder)
    return 0


def _ask_all(config: EvaluationConfig, folder: Path, answers: Answers, processor: Any) -> None:
    """Ask the questions that have no answer yet, and write the tables of each mode."""
    name, modes = config.benchmark.name, config.benchmark.modes
    judge = _judge(config.judge, answers) if name == "v_star" else None
    benchmark = BENCHMARKS[name](judge, Rubric.from_config(config.reward, config.sampling.max_tokens))
    questions = limited(benchmark.read(Path(config.benchmark.root)), config.benchmark.limit)
    path = Path(config.model.path)
    asker = Asker(config, benchmark, processor, folder_digest(path) if path.is_dir() else config.model.path)
    log.info("%s: %d questions, modes %s", name, len(questions.questions), ", ".join(modes))
    items = [asker.prepare(q, Mode(mode)) for mode in modes for q in questions.questions]
    log_skipped(items)
    asked = [item for item in items if isinstance(item, PreparedQuestion)]
    refused = asyncio.run(_ask(asked, answers, config))
    for mode in modes:
        if judge is not None:
            judge.unreadable = 0  # of this mode, as the rows are
        rows = tally([item for item in items if item.mode is Mode(mode)], answers, refused, asker)
        _keep(rows, folder / mode, config, asker, questions, judge)
    if len(modes) > 1:
        page = side_by_side([folder / mode for mode in modes], config.evaluate.bootstrap, config.run.seed)
        write_text(folder / PAGE, page)


async def _ask(
    asked: Sequence[PreparedQuestion], answers: Answers, config: EvaluationConfig
) -> dict[str, Failure]:
    if all(answers.get(item.key) is not None for item in asked):
        log.info("all %d answers are there, no engine is started", len(asked))
        return {}
    at_once = math.ceil(IN_FLIGHT * config.rollout.num_workers * config.rollout.max_num_seqs)
    folder = Path(config.run.dir)
    log.info("starting %d engines", config.rollout.num_workers)
    async with engines(_engine_config(config), folder / "frames", folder / "logs") as pool:
        return await ask_new(asked, pool, answers, at_once)


def _engine_config(config: EvaluationConfig) -> Config:
    """Return what rollout workers read, as in training."""
    path = Path(config.model.path)
    place = str(path.resolve()) if path.exists() else config.model.path
    return Config(
        run=Run(seed=config.run.seed),
        model=Model(path=place, dtype=config.model.dtype, freeze_vision=True),
        rollout=config.rollout,
        placement=config.placement,
    )


def _keep(
    rows: Sequence[Row],
    folder: Path,
    config: EvaluationConfig,
    asker: Asker,
    questions: QuestionSet,
    judge: EndpointJudge | None,
) -> None:
    """Write what came out of one mode, and say it."""
    write_rows(rows, folder / ROWS)
    sampling = config.sampling
    mode = Mode(rows[0].mode)
    prompt = asker.prompt_of(mode)
    most = sampling.max_tokens_direct if prompt is Mode.DIRECT else sampling.max_tokens
    settings = {
        "model digest": asker.model_digest,
        "dtype": config.model.dtype,
        "temperature": f"{config.sampling.temperature:g}",
        "max tokens": str(most),
        "seed": str(config.run.seed),
        "questions": str(config.benchmark.limit or "all"),
        **({PROMPT: prompt.value} if mode in CONTROLS else {}),
        **_shown(rows),
        **_judged(asker.benchmark, judge),
    }
    if config.benchmark.name == "records":
        settings["rubric"] = config.reward.rubric
    evaluated = _evaluated(
        asker.benchmark,
        questions,
        [row.scores for row in rows],
        name=f"{_short(config.model.path)} {rows[0].mode}",
        mode=rows[0].mode,
        model=config.model.path,
        settings=settings,
        counts=counts(rows),
        bootstrap=(config.evaluate.bootstrap, config.run.seed),
    )
    evaluated.to_json(folder / RESULT)
    page = tables.one(evaluated)
    write_text(folder / PAGE, page)
    log.info("\n%s", page)


def _evaluated(
    benchmark: Benchmark,
    questions: QuestionSet,
    scores: Sequence[Mapping[str, float]],
    *,
    bootstrap: tuple[int, int],
    **about: Any,
) -> Evaluated:
    columns = scores_of(scores, benchmark.columns)
    everyone = questions.questions
    return Evaluated(
        benchmark=benchmark.name,
        digest=questions.digest,
        intervals={
            name: found
            for name, found in intervals(benchmark, everyone, columns, *bootstrap).items()
            if not np.isnan(found.value)
        },
        baselines=baselines(benchmark, everyone),
        **about,
    )


def _shown(rows: Sequence[Row]) -> dict[str, str]:
    """Return frames and pixels, as they were."""
    shown = [row for row in rows if row.frames]
    frames, sizes = {row.frames for row in shown}, {(row.width, row.height) for row in shown}
    return {
        "frames": _span([str(n) for n in sorted(frames)]),
        "pixels": _span([f"{w}x{h}" for w, h in sorted(sizes)]),
    }


def _span(values: Sequence[str]) -> str:
    return values[0] if len(values) == 1 else f"{values[0]} to {values[-1]}" if values else "none"


def _short(model: str) -> str:
    """Return a policy's name for folders and tables: of a checkpoint, the run's and the step's too."""
    parts = [part for part in Path(model).parts if part not in {"/", "..", ".", "checkpoints", "policy"}]
    return "-".join(parts[-2:]).lower() or "model"


def _judge(config: Judge, answers: Answers) -> EndpointJudge | None:
    return EndpointJudge(config, JUDGE_SYSTEM, JUDGE_TEMPLATE, answers) if config.endpoint else None


def _judged(benchmark: Benchmark, judge: EndpointJudge | None) -> dict[str, str]:
    if not isinstance(benchmark, VStar):
        return {}
    unread = {} if judge is None else {"ratings without a number": str(judge.unreadable)}
    return {"judge": benchmark.judge_name, **unread}


# -------------------------------------------------------------------------------------------- predictions


def _predictions(options: argparse.Namespace) -> int:
    benchmark = BENCHMARKS[options.benchmark](None, Rubric.preset("default"))
    questions = benchmark.read(options.root)
    found = read_predictions(options.predictions, questions.questions)
    for problem in found.problems():
        log.warning("%s", problem)
    mode = Mode(options.mode)
    rows = []
    for question in questions.questions:
        given = found.by_id.get(question.id)
        text, size = (given.text, given.size) if given else (None, None)
        verdict = verdict_of(benchmark, question, mode, text or "", size)
        rows.append(Row.of(question, mode, text, verdict, verdict.note if given else "no prediction"))
    evaluated = _evaluated(
        benchmark,
        questions,
        [row.scores for row in rows],
        name=options.predictions.stem,
        mode=mode.value,
        model="",
        settings={"predictions": str(options.predictions), **_judged(benchmark, None)},
        counts={
            "questions": len(questions.questions),
            "answered": len(found.by_id),
            "missing": len(found.missing),
            "unknown_ids": len(found.unknown),
            "repeated_ids": len(found.repeated),
            "no_answer_read": sum(row.answered and not row.extracted for row in rows),
        },
        bootstrap=(options.bootstrap, options.seed),
    )
    if options.out:
        write_rows(rows, options.out / ROWS)
        evaluated.to_json(options.out / RESULT)
        write_text(options.out / PAGE, tables.one(evaluated))
    print(
        json.dumps(
            {
                "benchmark": evaluated.benchmark,
                "digest": evaluated.digest,
                "counts": dict(evaluated.counts),
                "problems": found.problems(),
                "figures": {
                    name: {"value": found.value, "ci95": _ends(found)}
                    for name, found in evaluated.intervals.items()
                },
                "baselines": evaluated.baselines,
                "settings": dict(evaluated.settings),
            },
            indent=2,
        )
    )
    return 0


def _ends(found: Interval) -> list[float | None]:
    """As JSON, which has no NaN."""
    return [None if np.isnan(end) else end for end in (found.low, found.high)]


# ------------------------------------------------------------------------------------------------ compare


def _compare(options: argparse.Namespace) -> int:
    if len(options.compare) < 2:
        raise ConfigError(
            f"--compare {options.compare[0]}: must name at least two folders with figures.json",
            remedy="give the base first, then what is compared with it",
        )
    page = side_by_side(options.compare, options.bootstrap, options.seed)
    print(page)
    if options.out:
        write_text(options.out / PAGE, page)
    return 0


if __name__ == "__main__":
    run_main(main)
