"""`python -m videostr.plan --config X [key=value ...]`: which rollout : learner ratio and staleness fits a cluster."""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from videostr.command import command, run_main
from videostr.config.load import load
from videostr.config.schema import Config
from videostr.errors import ConfigError
from videostr.models.base import shapes_of
from videostr.plan.calibrate import Calibration, calibrate, read_measured
from videostr.plan.costs import Costs, Factors, Hardware, Workload, assumed, hardware_of
from videostr.plan.lengths import Lengths, Lognormal
from videostr.plan.memory import estimate
from videostr.plan.search import Cluster, Plan, Scenario, best_of, plan_of, reason, search, with_staleness
from videostr.plan.workers import Machine

TABLE = (8, 16, 32, 64, 128, 256, 512)
"""GPUs of `--table`."""
CPU_WORKERS = (1, 2, 3, 4)
CLUSTER_KEYS = ("gpus", "gpus_per_node", "gpu")
MEDIAN_SHARE, SIGMA, CORRELATION = 0.4, 0.5, 0.5
"""Assumed completions: lognormal, median as a share of sampling.max_tokens; half of the variance between groups."""


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit status."""
    print(_answer(_parser().parse_intermixed_args(arguments)))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m videostr.plan", description=__doc__)
    add = parser.add_argument
    add("--config", type=Path, help="of the run; left out, that of --calibrate")
    add(
        "--cluster",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="gpus=64 gpus_per_node=8 gpu=H100 (or A100)",
    )
    add("--calibrate", type=Path, metavar="RUN_DIR", help="take timings and lengths from a run")
    add("--staleness", default="0,1,2", help="values of train.max_staleness (0,1,2)")
    add("--table", action="store_true", help=f"best split for {', '.join(map(str, TABLE))} GPUs")
    add(
        "--scale-batch",
        action="store_true",
        help="train.prompts_per_step grows with the GPUs (default: fixed)",
    )
    add("--cores", type=float, help="cores that a CPU run shares (default: this machine's)")
    add("--prompt-tokens", type=float, help="mean length of a prompt, video included")
    add("--completion-tokens", type=float, help="median length of a completion")
    add("--mtbf-hours", type=float, help="mean time between failures of one engine")
    add("--restart-s", type=float, default=300.0, help="start of an engine that replaces a dead one (300)")
    add("--json", action="store_true", help="print JSON")
    add("overrides", nargs="*", metavar="key=value", help="of the config")
    return parser


def _answer(options: argparse.Namespace) -> str:
    # argparse gives an option with several values all that follow it, overrides of the config among them
    cluster = {
        key: value
        for key, _, value in (word.partition("=") for word in options.cluster)
        if key in CLUSTER_KEYS
    }
    overrides = [*options.overrides, *(w for w in options.cluster if w.partition("=")[0] not in CLUSTER_KEYS)]
    for name in ("cores", "prompt_tokens", "completion_tokens", "mtbf_hours", "restart_s"):
        if (value := getattr(options, name)) is not None and value <= 0:
            raise ConfigError(
                f"--{name.replace('_', '-')} {value:g}: must be above 0", remedy="give a larger number"
            )
    staleness = _staleness(options.staleness)
    calibration = _calibration(options, cluster)
    if options.config is None and calibration is None:
        raise ConfigError(
            "--config: must name a config where there is no --calibrate",
            remedy="give --config configs/tabletop_cpu.yaml",
        )
    file = options.config or options.calibrate / "config.yaml"
    config = load(file, overrides)
    if config.rollout.num_gpus > 0:
        tables, notes = _plan_gpus(config, options, cluster, calibration, staleness)
    elif cluster or options.table:
        raise ConfigError(
            "--cluster and --table plan GPUs, but rollout.num_gpus = 0 in this config",
            remedy="leave them out, or name a GPU config",
        )
    else:
        tables, notes = _plan_cpu(config, options, calibration, staleness)
    return _plans_json(tables, notes) if options.json else _plans(tables, notes, options.table)


# ---------------------------------------------------------------------------------------------------------- reading


def _calibration(options: argparse.Namespace, cluster: Mapping[str, str]) -> Calibration | None:
    if options.calibrate is None:
        return None
    on_cpu = read_measured(options.calibrate).config.rollout.num_gpus == 0
    hardware = hardware_of("cpu" if on_cpu else cluster.get("gpu", "H100"))
    return calibrate(options.calibrate, hardware, _cores(options) if on_cpu else math.inf)


def _cores(options: argparse.Namespace) -> float:
    return float(options.cores or os.cpu_count() or 1)


def _staleness(text: str) -> list[int]:
    values = sorted({int(word) if word.isdecimal() else -1 for word in text.split(",")})
    if values[0] < 0:
        raise ConfigError(
            f"--staleness {text}: must be whole numbers from 0 on with commas between", remedy="write 0,1,2"
        )
    return values


def _whole(cluster: Mapping[str, str], key: str, default: int) -> int:
    text = cluster.get(key, str(default))
    if not text.isdecimal():
        raise ConfigError(f"--cluster {key}={text}: must be a whole number", remedy=f"write {key}={default}")
    return int(text)


def _scenario(
    config: Config, options: argparse.Namespace, calibration: Calibration | None, hardware: Hardware
) -> tuple[Scenario, list[str]]:
    """Return what to simulate, and what to say of it."""
    shapes = shapes_of(config.model.path)
    lengths, workload, notes = _workload(config, options, calibration)
    factors = Factors()
    if calibration is None:
        notes.append(
            f"assumed, not measured: speeds of {shapes.name} on {hardware.name}, from peaks and shares of them in "
            "videostr/plan/costs.py; give a run by --calibrate RUN_DIR"
        )
    else:
        trained = shapes_of(calibration.measured.config.model.path)
        if replace(trained, name="") != replace(shapes, name=""):
            raise ConfigError(
                f"--calibrate {options.calibrate} is a run of {trained.name}, the config names {shapes.name}: both "
                "must have the same shapes",
                remedy="calibrate from a run of this model, or leave --calibrate out",
            )
        factors = calibration.factors
        notes += calibration.notes

    def costs(split: Config, one_node: bool) -> Costs:
        return factors.of(assumed(split, shapes, hardware, workload, one_node=one_node))

    machine = Machine(
        cores=_cores(options) if config.rollout.num_gpus == 0 else math.inf,
        restart_s=options.restart_s,
        mtbf_s=options.mtbf_hours * 3600 if options.mtbf_hours else math.inf,
    )
    return Scenario(
        shapes=shapes, lengths=lengths, prompt_tokens=workload.prompt_tokens, costs=costs, machine=machine
    ), notes


def _workload(
    config: Config, options: argparse.Namespace, calibration: Calibration | None
) -> tuple[Lengths, Workload, list[str]]:
    known = calibration.measured if calibration is not None else None
    lengths: Lengths
    if known is not None and options.completion_tokens is None:
        lengths, source = known.lengths, "lengths of the run"
    else:
        cap = config.sampling.max_tokens
        median = options.completion_tokens or MEDIAN_SHARE * cap
        lengths = Lognormal(median=median, sigma=SIGMA, cap=cap, correlation=CORRELATION)
        source = f"lengths assumed lognormal, median {median:.0f}, sigma {SIGMA}, cut off at {cap}"
    prompt, origin = options.prompt_tokens, "given"
    if prompt is None and known is not None:
        prompt = known.workload.prompt_tokens
    elif prompt is None:
        prompt = (config.rollout.max_model_len - config.sampling.max_tokens) // 2
        origin = "assumed: half of what rollout.max_model_len leaves; --prompt-tokens"
    workload = Workload(
        prompt_tokens=prompt,
        completion_tokens=lengths.mean,
        zero_variance=known.workload.zero_variance if known else 0.0,
    )
    note = (
        f"completions of {lengths.mean:.0f} tokens on average ({source}); prompts of {prompt:.0f} ({origin})"
    )
    return lengths, workload, [note]


# --------------------------------------------------------------------------------------------------------- planning


def _plan_cpu(
    config: Config, options: argparse.Namespace, calibration: Calibration | None, staleness: Sequence[int]
) -> tuple[list[list[Plan]], list[str]]:
    scenario, notes = _scenario(config, options, calibration, hardware_of("cpu"))
    notes.append(f"{_cores(options):g} cores shared by engines, learner and reward workers")
    memory = estimate(config, scenario.shapes, None)
    variants = [
        with_staleness(replace(config, rollout=replace(config.rollout, num_workers=workers)), s)
        for s in staleness
        for workers in sorted({*CPU_WORKERS, config.rollout.num_workers})
    ]
    return [[plan_of(variant, memory, scenario, 0) for variant in variants]], notes


def _plan_gpus(
    config: Config,
    options: argparse.Namespace,
    cluster: Mapping[str, str],
    calibration: Calibration | None,
    staleness: Sequence[int],
) -> tuple[list[list[Plan]], list[str]]:
    own = config.rollout.num_workers * config.rollout.tensor_parallel_size + config.learner.num_ranks
    hardware = hardware_of(cluster.get("gpu", "H100"))
    if hardware.memory_gib == 0:
        raise ConfigError(
            "--cluster gpu=cpu: rollout.num_gpus > 0 in this config", remedy="name H100 or A100"
        )
    scenario, notes = _scenario(config, options, calibration, hardware)
    per_node = _whole(cluster, "gpus_per_node", 8)
    tables = []
    for gpus in TABLE if options.table else (_whole(cluster, "gpus", own),):
        prompts = config.train.prompts_per_step
        if options.scale_batch:
            prompts = max(1, math.ceil(prompts * gpus / own))
        batch = replace(config, train=replace(config.train, prompts_per_step=prompts))
        machines = Cluster(gpus=gpus, gpus_per_node=per_node, hardware=hardware)
        tables.append(search(batch, scenario, machines, staleness))
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
        f"{3600 / outcome.step_s:.4g}",
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


def _plans(tables: Sequence[Sequence[Plan]], notes: Sequence[str], only_best: bool) -> str:
    best = [best_of(plans) for plans in tables]
    shown = best if only_best else [plan for plans in tables for plan in plans]
    lines = [*notes, "", *_aligned([HEADER, *map(_cells, shown)]), ""]
    for plan, plans in zip(best, tables, strict=True):
        where = f"{plan.gpus} GPUs: " if plan.gpus else ""
        split = (
            f"{plan.engines} engines x {plan.tensor_parallel} : {plan.ranks} learner, S = {plan.staleness}"
        )
        lines.append(f"best: {where}{split}; {reason(plan, plans)}")
    if again := max(plan.outcome.tokens_again for plan in shown):
        lines.append(f"tokens sampled again after failures: up to {again:.0f} a step")
    return "\n".join(lines)


def _plan_json(plan: Plan) -> dict[str, Any]:
    values = asdict(plan)
    values["outcome"]["steps_per_hour"] = 3600 / plan.outcome.step_s
    values["samples_per_s_per_gpu"] = plan.samples_per_s_per_gpu
    values["memory"]["learner"]["total"] = plan.memory.learner.total
    return values


def _plans_json(tables: Sequence[Sequence[Plan]], notes: Sequence[str]) -> str:
    results = [
        {
            "best": _plan_json(best_of(plans)),
            "reason": reason(best_of(plans), plans),
            "plans": [_plan_json(plan) for plan in plans],
        }
        for plans in tables
    ]
    return json.dumps({"notes": notes, "results": results}, indent=2)


if __name__ == "__main__":
    run_main(main)
