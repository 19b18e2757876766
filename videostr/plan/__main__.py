"""`python -m videostr.plan --config X [key=value ...]`: which rollout : learner ratio and staleness fits a cluster."""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from videostr.config import Config, load
from videostr.console import run_command, run_main
from videostr.errors import ConfigError
from videostr.plan.calibrate import Calibration, Validation, calibrate, validate
from videostr.plan.costs import Hardware, Workload, assumed, default_prompt_tokens, hardware_of
from videostr.plan.lengths import Lengths, Lognormal, read_lengths
from videostr.plan.memory import estimate
from videostr.plan.search import (
    Cluster,
    Plan,
    Scenario,
    best_of,
    plan_of,
    reason,
    search,
    with_staleness,
)
from videostr.plan.shapes import shapes_of
from videostr.plan.simulate import Failures

TABLE = (8, 16, 32, 64, 128, 256, 512)
"""GPUs of `--table`."""
CPU_WORKERS = (1, 2, 3, 4)
CLUSTER_KEYS = ("gpus", "gpus_per_node", "gpu")
MEDIAN_SHARE, SIGMA, CORRELATION = 0.4, 0.5, 0.5
"""Assumed completions: lognormal, median as a share of sampling.max_tokens; half of the variance between groups."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The command line, read."""

    config: Config
    cluster: dict[str, str]
    calibration: Calibration | None
    options: argparse.Namespace


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0, or 2 on bad input."""
    options = _parser().parse_intermixed_args(arguments)

    def work() -> int:
        print(_answer(options))
        return 0

    return run_command(work)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m videostr.plan", description=__doc__)
    parser.add_argument("--config", type=Path, help="the run's; left out, that of --calibrate")
    parser.add_argument(
        "--cluster",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="gpus=64 gpus_per_node=8 gpu=H100 (or A100)",
    )
    parser.add_argument(
        "--calibrate", type=Path, metavar="RUN_DIR", help="take timings and lengths from a run"
    )
    parser.add_argument(
        "--validate",
        type=Path,
        nargs="+",
        default=[],
        metavar="RUN_DIR",
        help="predict the step time of runs",
    )
    parser.add_argument("--staleness", default="0,1,2", help="values of train.max_staleness (0,1,2)")
    parser.add_argument(
        "--table", action="store_true", help=f"best split for {', '.join(map(str, TABLE))} GPUs"
    )
    parser.add_argument(
        "--scale-batch",
        action="store_true",
        help="train.prompts_per_step grows with the GPUs (default: fixed)",
    )
    parser.add_argument("--cores", type=float, help="cores that a CPU run shares (default: this machine's)")
    parser.add_argument("--prompt-tokens", type=float, help="mean length of a prompt, video included")
    parser.add_argument("--completion-tokens", type=float, help="median length of a completion")
    parser.add_argument("--lengths", type=Path, nargs="+", help="trace dumps to take completion lengths from")
    parser.add_argument("--mtbf-hours", type=float, help="mean time between failures of one engine")
    parser.add_argument(
        "--restart-s", type=float, default=300.0, help="from its death until it is up again (300)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the config")
    return parser


def _answer(options: argparse.Namespace) -> str:
    request = _read(options)
    if options.validate:
        if request.calibration is None:
            raise ConfigError("--validate needs --calibrate RUN_DIR: the run to predict the others from")
        rows = validate(request.calibration, options.validate)
        return (
            _validation_json(request.calibration, rows)
            if options.json
            else _validation(request.calibration, rows)
        )
    config = request.config
    staleness = _staleness(options.staleness)
    if config.rollout.num_gpus == 0:
        if request.cluster or options.table:
            raise ConfigError(
                "--cluster and --table plan GPUs, but rollout.num_gpus = 0 in this config: leave them out, or name a "
                "GPU config"
            )
        plans, notes = _plan_cpu(request, staleness)
        tables = [plans]
    else:
        tables, notes = _plan_gpus(request, staleness)
    return _plans_json(tables, notes) if options.json else _plans(tables, notes, options.table)


# ---------------------------------------------------------------------------------------------------------- reading


def _read(options: argparse.Namespace) -> Request:
    # argparse gives an option with several values all that follow it, overrides of the config among them.
    words = [word for word in options.cluster if word.partition("=")[0] in CLUSTER_KEYS]
    overrides = [*options.overrides, *(word for word in options.cluster if word not in words)]
    cluster = {key: value for key, _, value in (word.partition("=") for word in words)}
    calibration = None
    if options.calibrate is not None:
        config = (
            load(options.calibrate / "config.yaml") if (options.calibrate / "config.yaml").exists() else None
        )
        on_cpu = config is None or config.rollout.num_gpus == 0
        hardware = hardware_of("cpu" if on_cpu else cluster.get("gpu", "H100"))
        calibration = calibrate(options.calibrate, hardware, _cores(options) if on_cpu else 0.0)
    if options.config is not None:
        return Request(
            config=load(options.config, overrides), cluster=cluster, calibration=calibration, options=options
        )
    if calibration is None:
        raise ConfigError(
            "--config: must name a config, e.g. configs/tabletop_cpu.yaml, where there is no --calibrate"
        )
    config = load(calibration.measured.folder / "config.yaml", overrides)
    return Request(config=config, cluster=cluster, calibration=calibration, options=options)


def _cores(options: argparse.Namespace) -> float:
    cores: float = options.cores if options.cores is not None else float(os.cpu_count() or 1)
    if cores <= 0:
        raise ConfigError(f"--cores {cores:g}: must be above 0")
    return cores


def _staleness(text: str) -> list[int]:
    try:
        values = sorted({int(word) for word in text.split(",")})
    except ValueError:
        values = [-1]
    if values[0] < 0:
        raise ConfigError(
            f"--staleness {text}: must be whole numbers from 0 on with commas between, e.g. 0,1,2"
        )
    return values


def _whole(cluster: dict[str, str], key: str, default: int) -> int:
    text = cluster.get(key, str(default))
    if not text.isdecimal():
        raise ConfigError(f"--cluster {key}={text}: must be a whole number, e.g. {key}={default}")
    return int(text)


def _scenario(request: Request, hardware: Hardware) -> tuple[Scenario, list[str]]:
    """What to simulate, and what to say of it."""
    options, config, calibration = request.options, request.config, request.calibration
    shapes = shapes_of(config.model.path)
    lengths, workload, notes = _workload(request)
    if calibration is not None:
        trained = shapes_of(calibration.measured.config.model.path)
        if replace(trained, name="") != replace(shapes, name=""):
            raise ConfigError(
                f"--calibrate {options.calibrate} is a run of {trained.name}, the config names {shapes.name}: both "
                "must have the same shapes; calibrate from a run of this model, or leave --calibrate out"
            )
        factors = calibration.factors
        notes += calibration.notes
    else:
        factors = None
        notes.append(
            f"assumed, not measured: speeds of {shapes.name} on {hardware.name}, from peaks and shares of them in "
            "videostr/plan/costs.py; give a run by --calibrate RUN_DIR"
        )

    def costs(split: Config, one_node: bool) -> Any:
        expected = assumed(split, shapes, hardware, workload, one_node=one_node)
        return expected if factors is None else factors.of(expected)

    failures = None
    if options.mtbf_hours is not None:
        if options.mtbf_hours <= 0:
            raise ConfigError(f"--mtbf-hours {options.mtbf_hours:g}: must be above 0")
        failures = Failures(restart_s=options.restart_s, mtbf_s=options.mtbf_hours * 3600)
    scenario = Scenario(
        shapes=shapes, lengths=lengths, prompt_tokens=workload.prompt_tokens, costs=costs, failures=failures
    )
    return scenario, notes


def _workload(request: Request) -> tuple[Lengths, Workload, list[str]]:
    options, config, calibration = request.options, request.config, request.calibration
    known = calibration.measured if calibration is not None else None
    lengths: Lengths
    if options.lengths:
        lengths, source = read_lengths(options.lengths), f"lengths of {len(options.lengths)} trace dumps"
    elif known is not None and options.completion_tokens is None:
        lengths, source = known.lengths, "lengths of the run"
    else:
        cap = config.sampling.max_tokens
        median = options.completion_tokens or MEDIAN_SHARE * cap
        lengths = Lognormal(median=median, sigma=SIGMA, cap=cap, correlation=CORRELATION)
        source = f"lengths assumed lognormal, median {median:.0f}, sigma {SIGMA}, cut off at {cap}"
    prompt = options.prompt_tokens or (
        known.workload.prompt_tokens if known else default_prompt_tokens(config)
    )
    workload = Workload(
        prompt_tokens=prompt,
        completion_tokens=lengths.mean,
        flat_fraction=known.workload.flat_fraction if known else 0.0,
    )
    told = options.prompt_tokens is None and known is None
    origin = "assumed: half of what rollout.max_model_len leaves; --prompt-tokens" if told else "given"
    note = (
        f"completions of {lengths.mean:.0f} tokens on average ({source}); prompts of {prompt:.0f} ({origin})"
    )
    return lengths, workload, [note]


# --------------------------------------------------------------------------------------------------------- planning


def _plan_cpu(request: Request, staleness: Sequence[int]) -> tuple[list[Plan], list[str]]:
    config, cores = request.config, _cores(request.options)
    scenario, notes = _scenario(request, hardware_of("cpu"))
    notes.append(f"{cores:g} cores shared by engines, learner and reward workers")
    memory = estimate(config, scenario.shapes, None)
    plans = []
    for s in staleness:
        for workers in sorted({*CPU_WORKERS, config.rollout.num_workers}):
            rollout = replace(config.rollout, num_workers=workers)
            variant = with_staleness(replace(config, rollout=rollout), s)
            plans.append(plan_of(variant, memory, scenario, 0, cores=cores))
    return plans, notes


def _plan_gpus(request: Request, staleness: Sequence[int]) -> tuple[list[list[Plan]], list[str]]:
    config, options = request.config, request.options
    own = config.rollout.num_workers * config.rollout.tensor_parallel_size + config.learner.num_ranks
    hardware = hardware_of(request.cluster.get("gpu", "H100"))
    if hardware.memory_gib == 0:
        raise ConfigError("--cluster gpu=cpu: rollout.num_gpus > 0 in this config; name H100 or A100")
    scenario, notes = _scenario(request, hardware)
    per_node = _whole(request.cluster, "gpus_per_node", 8)
    sizes = TABLE if options.table else (_whole(request.cluster, "gpus", own),)
    tables = []
    for gpus in sizes:
        prompts = config.train.prompts_per_step
        if options.scale_batch:
            prompts = max(1, math.ceil(prompts * gpus / own))
        scaled = replace(config, train=replace(config.train, prompts_per_step=prompts))
        cluster = Cluster(gpus=gpus, gpus_per_node=per_node, hardware=hardware)
        tables.append(search(scaled, scenario, cluster, staleness))
    return tables, notes


# --------------------------------------------------------------------------------------------------------- answering


HEADER = ("GPUs", "engines x tp : learner", "S", "prompts", "steps/h", "step s", "p90 s",
          "idle engines", "idle learner", "samples/s/GPU", "learner GiB", "KV seqs")  # fmt: skip


def _cells(plan: Plan) -> tuple[str, ...]:
    outcome = plan.outcome
    return (
        str(plan.gpus or "CPU"),
        f"{plan.engines} x {plan.tensor_parallel} : {plan.ranks}",
        str(plan.staleness),
        str(plan.prompts),
        f"{outcome.steps_per_hour:.4g}",
        f"{outcome.step_s:.3g}",
        f"{outcome.step_p90_s:.3g}",
        f"{outcome.idle_rollout:.0%}",
        f"{outcome.idle_learner:.0%}",
        f"{plan.samples_per_s_per_gpu:.3g}",
        f"{plan.memory.learner.total:.1f}",
        str(plan.memory.engine.sequences),
    )


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def _name(plan: Plan) -> str:
    where = f"{plan.gpus} GPUs: " if plan.gpus else ""
    engines = "engine" if plan.engines == 1 else "engines"
    return f"{where}{plan.engines} {engines} x {plan.tensor_parallel} : {plan.ranks} learner, S = {plan.staleness}"


def _plans(tables: Sequence[Sequence[Plan]], notes: Sequence[str], only_best: bool) -> str:
    best = [best_of(plans) for plans in tables]
    shown = best if only_best else [plan for plans in tables for plan in plans]
    lines = [*notes, "", *_aligned([HEADER, *(_cells(plan) for plan in shown)]), ""]
    lines += [f"best: {_name(b)}; {reason(b, plans)}" for b, plans in zip(best, tables, strict=True)]
    if again := max(plan.outcome.tokens_again for plan in shown):
        lines.append(f"tokens sampled again after failures: up to {again:.0f} a step")
    return "\n".join(lines)


def _plan_json(plan: Plan) -> dict[str, Any]:
    values = asdict(plan)
    values["outcome"]["steps_per_hour"] = plan.outcome.steps_per_hour
    values["samples_per_s_per_gpu"] = plan.samples_per_s_per_gpu
    values["memory"]["learner"]["total"] = plan.memory.learner.total
    return values


def _plans_json(tables: Sequence[Sequence[Plan]], notes: Sequence[str]) -> str:
    results = []
    for plans in tables:
        best = best_of(plans)
        results.append(
            {"best": _plan_json(best), "reason": reason(best, plans), "plans": [_plan_json(p) for p in plans]}
        )
    return json.dumps({"notes": list(notes), "results": results}, indent=2)


def _validation(calibration: Calibration, rows: Sequence[Validation]) -> str:
    table = [
        (
            "run",
            "engines : ranks",
            "S",
            "predicted s",
            "measured s",
            "error",
            "rollout s",
            "learn s",
            "idle engines",
        )
    ]
    for row in rows:
        outcome, measured = row.predicted, row.measured
        table.append((
            row.run,
            f"{row.engines} : {row.ranks}",
            str(row.staleness),
            f"{outcome.step_s:.3g}",
            f"{measured.step_s:.3g}",
            f"{row.error:+.1%}",
            f"{outcome.rollout_s:.3g} / {measured.rollout_s:.3g}",
            f"{outcome.learn_s:.3g} / {measured.learn_s:.3g}",
            f"{outcome.idle_rollout:.0%}",
        ))  # fmt: skip
    return "\n".join(
        [*calibration.notes, "", *_aligned(table), "", "rollout and learn: predicted / measured medians"]
    )


def _validation_json(calibration: Calibration, rows: Sequence[Validation]) -> str:
    runs = [
        {
            "run": row.run,
            "engines": row.engines,
            "ranks": row.ranks,
            "staleness": row.staleness,
            "predicted_step_s": row.predicted.step_s,
            "measured_step_s": row.measured.step_s,
            "error": row.error,
            "predicted": asdict(row.predicted),
        }
        for row in rows
    ]
    return json.dumps({"notes": list(calibration.notes), "runs": runs}, indent=2)


if __name__ == "__main__":
    run_main(main)
