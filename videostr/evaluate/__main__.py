"""`python -m videostr.evaluate`: a policy on a benchmark, the score of existing predictions, or runs side by side.

    --config configs/eval_sti.yaml [key=value ...]                 ask a policy; goes on where it was stopped
    --predictions FILE.jsonl --benchmark NAME --root DIR           score texts that exist; prints JSON
    --compare DIR DIR ... --out DIR                                results side by side, the first one the base

Options that do not go with the first one are refused.

Exit status: 0 done, 1 the engines failed, 2 bad input, 130 stopped (the same command goes on).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import rewards
from actors.engines import engines
from rewards import Rubric
from rewards.choice import chosen_letter
from rewards.number import mean_relative_accuracy, stated_number
from videostr import config as configs
from videostr.checkpoint import digest_of
from videostr.config import EvaluationConfig, Judge
from videostr.console import log_to_console, run_command, run_main
from videostr.errors import ConfigError
from videostr.evaluate import tables
from videostr.evaluate.answers import Answers
from videostr.evaluate.benchmark import Benchmark, Mode, Parsers, QuestionSet
from videostr.evaluate.judge import EndpointJudge
from videostr.evaluate.predictions import read_predictions
from videostr.evaluate.records import Records
from videostr.evaluate.run import (
    Asked,
    Asker,
    Row,
    ask_new,
    baselines,
    counts,
    limited,
    read_rows,
    scores_of,
    tally,
    tell_unasked,
    verdict_of,
    write_rows,
)
from videostr.evaluate.statistics import Interval, comparisons, intervals
from videostr.evaluate.sti_bench import StiBench
from videostr.evaluate.tables import Evaluated
from videostr.evaluate.v_star import JUDGE_SYSTEM, JUDGE_TEMPLATE, VStar
from videostr.evaluate.vsi_bench import VsiBench
from videostr.files import write_text
from videostr.lock import FolderLock
from videostr.models.checkpoint import open_checkpoint
from videostr.types import Failure

log = logging.getLogger("videostr.evaluate")
PARSERS = Parsers(letter=chosen_letter, number=stated_number, relative_accuracy=mean_relative_accuracy)
NAMES = ("sti_bench", "vsi_bench", "v_star", "records")
AS_KEY = {
    "benchmark": "benchmark={}",
    "root": "root={}",
    "mode": "modes=[{}]",
    "out": "dir={}",
    "seed": "seed={}",
    "bootstrap": "bootstrap={}",
}
"""Option -> the key of a config that says the same."""
TAKES = {"config": (), "predictions": tuple(AS_KEY), "compare": ("out", "seed", "bootstrap")}
"""What is done -> the other options that go with it."""
DEFAULTS = {"mode": Mode.DIRECT.value, "seed": 0, "bootstrap": 2000}
IN_FLIGHT = 2
"""Questions in flight, in `max_num_seqs` of all engines: enough to keep them full."""
RESULT = "figures.json"
ROWS = "questions.parquet"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status as in the module's docstring."""
    options = _parser().parse_args(arguments)
    log_to_console(sys.stderr if options.predictions else sys.stdout)
    return run_command(lambda: _main(options), log.error)


def _main(options: argparse.Namespace) -> int:
    _check(options)
    with contextlib.ExitStack() as stack:
        if options.out:
            stack.enter_context(FolderLock(options.out, "--out"))
        try:
            if options.compare:
                return _compare(options)
            if options.predictions:
                return _predictions(options)
            return _evaluate(configs.load_evaluation(options.config, options.overrides))
        except KeyboardInterrupt:
            log.info("stopped; the same command goes on from here")
            return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m videostr.evaluate", description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--config", help="a file such as configs/eval_sti.yaml")
    what.add_argument("--predictions", type=Path, help='lines {"id", "prediction"}')
    what.add_argument("--compare", type=Path, nargs="+", metavar="DIR", help="folders with figures.json")
    parser.add_argument("--benchmark", choices=NAMES)
    parser.add_argument("--root", type=Path, help="folder with the benchmark's files")
    parser.add_argument("--mode", choices=[mode.value for mode in Mode], help="default direct")
    parser.add_argument("--out", type=Path, help="folder for the tables")
    parser.add_argument("--seed", type=int, help="default 0")
    parser.add_argument("--bootstrap", type=int, help="resamples, default 2000")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. modes=[direct,think,graph]")
    return parser


def _check(options: argparse.Namespace) -> None:
    """Refuse what would be ignored, fill in `DEFAULTS`, make the folder `--out`.

    Raises:
        ConfigError: an option does not go with what is done, its value is out of range, or `--out` can be no folder.
    """
    done = next(name for name in TAKES if getattr(options, name) is not None)
    given = {name: getattr(options, name) for name in AS_KEY if getattr(options, name) is not None}
    surplus = [name for name in given if name not in TAKES[done]]
    if surplus:
        as_keys = " ".join(AS_KEY[name].format(given[name]) for name in surplus)
        raise ConfigError(
            f"--{done} does not take {', '.join(f'--{name}' for name in surplus)}; "
            + (f"write {as_keys} in place of it" if done == "config" else "leave it out")
        )
    if options.overrides and done != "config":
        raise ConfigError(
            f"--{done} does not take {' '.join(options.overrides)}: key=value goes with --config only; "
            f"it takes {', '.join(f'--{name}' for name in TAKES[done])}"
        )
    vars(options).update(DEFAULTS | given)
    for holds, message in (
        configs.seed_rule("--seed", options.seed),
        (options.bootstrap > 0, f"--bootstrap = {options.bootstrap}: must be above 0"),
    ):
        if not holds:
            raise ConfigError(message)
    if options.out:
        _make(options.out, "--out")


def _make(folder: Path, key: str) -> None:
    """Make a folder for results.

    Raises:
        ConfigError: it can be none, for a file has the name or is above it; starts with `key`.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{key} = {folder}: cannot be made a folder ({error.strerror}); name another one"
        ) from None


def make_benchmark(
    name: str, judge: Callable[[str, str, str], int | None] | None, rubric: Rubric
) -> Benchmark:
    """A benchmark by name."""
    if name == "sti_bench":
        return StiBench(PARSERS)
    if name == "vsi_bench":
        return VsiBench(PARSERS)
    if name == "v_star":
        return VStar(judge)
    return Records(lambda text, record: rewards.score(text, record, rubric))


# --------------------------------------------------------------------------------------------------- a policy


def _evaluate(config: EvaluationConfig) -> int:
    processor = open_checkpoint(config.model, cpu=config.rollout.num_gpus == 0)
    folder = Path(config.dir) / (config.name or f"{config.benchmark}-{_short(config.model)}")
    for mode in config.modes:
        _make(folder / mode, "dir/name/mode")
    with FolderLock(folder, "name"), Answers(Path(config.dir) / "answers.sqlite") as answers:
        judge = _judge(config.judge, answers) if config.benchmark == "v_star" else None
        rubric = Rubric.from_config(config.reward, config.max_tokens)
        benchmark = make_benchmark(config.benchmark, judge, rubric)
        questions = limited(benchmark.read(Path(config.root)), config.limit)
        model_digest = digest_of(Path(config.model)) if Path(config.model).is_dir() else config.model
        asker = Asker(config, benchmark, processor, model_digest)
        log.info(
            "%s: %d questions, modes %s", config.benchmark, len(questions.questions), ", ".join(config.modes)
        )
        items = [asker.prepare(q, Mode(mode)) for mode in config.modes for q in questions.questions]
        tell_unasked(items)
        asked = [item for item in items if isinstance(item, Asked)]
        refused = asyncio.run(_ask(asked, answers, config))
        for mode in config.modes:
            if judge is not None:
                judge.unreadable = 0  # of this mode, as the rows are
            rows = tally([item for item in items if item.mode is Mode(mode)], answers, refused, asker)
            _keep(rows, folder / mode, config, asker, questions, judge)
    if len(config.modes) > 1:
        page = side_by_side([folder / mode for mode in config.modes], config.bootstrap, config.seed)
        _write_page(page, folder)
    log.info("tables: %s", folder)
    return 0


async def _ask(asked: Sequence[Asked], answers: Answers, config: EvaluationConfig) -> dict[str, Failure]:
    if all(answers.get(item.key) is not None for item in asked):
        log.info("all %d answers are there, no engine is started", len(asked))
        return {}
    at_once = IN_FLIGHT * config.rollout.num_workers * config.rollout.max_num_seqs
    folder = Path(config.dir)
    log.info("starting %d engines", config.rollout.num_workers)
    async with engines(_engine_config(config), folder / "frames", folder / "logs") as pool:
        return await ask_new(asked, pool, answers, at_once)


def _engine_config(config: EvaluationConfig) -> configs.Config:
    """What rollout workers read, as in training."""
    path = Path(config.model)
    return configs.Config(
        run=configs.Run(seed=config.seed),
        model=configs.Model(
            path=str(path.resolve()) if path.exists() else config.model,
            dtype=config.dtype,
            freeze_vision=True,
        ),
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
    settings = {
        "model digest": asker.model_digest,
        "dtype": config.dtype,
        "temperature": f"{config.temperature:g}",
        "max tokens": str(config.max_tokens_direct if rows[0].mode == Mode.DIRECT else config.max_tokens),
        "seed": str(config.seed),
        "questions": str(config.limit or "all"),
        **_shown(rows),
        **_judged(asker.benchmark, judge),
    }
    if config.benchmark == "records":
        settings["rubric"] = config.reward.rubric
    evaluated = _evaluated(
        asker.benchmark,
        questions,
        [row.scores for row in rows],
        name=f"{_short(config.model)} {rows[0].mode}",
        mode=rows[0].mode,
        model=config.model,
        settings=settings,
        counts=counts(rows),
        bootstrap=(config.bootstrap, config.seed),
    )
    evaluated.to_json(folder / RESULT)
    page = tables.one(evaluated)
    _write_page(page, folder)
    log.info("\n%s", page.text())


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
    """Frames and pixels, as they were."""
    shown = [row for row in rows if row.frames]
    frames, sizes = {row.frames for row in shown}, {(row.width, row.height) for row in shown}
    return {
        "frames": _span([str(n) for n in sorted(frames)]),
        "pixels": _span([f"{w}x{h}" for w, h in sorted(sizes)]),
    }


def _span(values: Sequence[str]) -> str:
    return values[0] if len(values) == 1 else f"{values[0]} to {values[-1]}" if values else "none"


def _short(model: str) -> str:
    """A policy's name for folders and tables: of a checkpoint, the run's and the step's too."""
    parts = [part for part in Path(model).parts if part not in {"/", "..", ".", "checkpoints", "policy"}]
    return "-".join(parts[-2:]).lower() or "model"


def _judge(config: Judge, answers: Answers) -> EndpointJudge | None:
    return EndpointJudge(config, JUDGE_SYSTEM, JUDGE_TEMPLATE, answers) if config.endpoint else None


def _judged(benchmark: Benchmark, judge: EndpointJudge | None) -> dict[str, str]:
    if not isinstance(benchmark, VStar):
        return {}
    unread = {} if judge is None else {"ratings without a number": str(judge.unreadable)}
    return {"judge": benchmark.judge_name, **unread}


def _write_page(page: tables.Page, folder: Path) -> None:
    write_text(folder / "figures.md", page.markdown())
    write_text(folder / "figures.html", page.html())


# -------------------------------------------------------------------------------------------- predictions


def _predictions(options: argparse.Namespace) -> int:
    if options.benchmark is None or options.root is None:
        raise ConfigError(
            "--predictions needs --benchmark NAME and --root DIR, the folder with the benchmark's files"
        )
    benchmark = make_benchmark(options.benchmark, None, Rubric.preset("default"))
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
        _write_page(tables.one(evaluated), options.out)
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
        raise ConfigError("--compare needs at least two folders with figures.json, the base first")
    page = side_by_side(options.compare, options.bootstrap, options.seed)
    print(page.text())
    if options.out:
        _write_page(page, options.out)
    return 0


def side_by_side(folders: Sequence[Path], resamples: int, seed: int) -> tables.Page:
    """Results side by side, the first one the base.

    Raises:
        DataError: a folder has no result, or they are of different benchmarks or question files.
    """
    runs = [Evaluated.from_json(folder / RESULT) for folder in folders]
    tables.require_same_questions(runs)
    benchmark = make_benchmark(runs[0].benchmark, None, Rubric.preset("default"))
    scored = [read_rows(folder / ROWS, benchmark.columns) for folder in folders]
    binary = "accuracy" if "accuracy" in benchmark.columns else ""
    found = [comparisons(benchmark, scored[0], other, resamples, seed, binary=binary) for other in scored[1:]]
    return tables.compare(runs, found)


if __name__ == "__main__":
    run_main(main)
