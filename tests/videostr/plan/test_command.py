"""Calibration, validation, search and the command, on run folders of known cost and on the shipped configs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from videostr.config.load import dump, load
from videostr.config.schema import Config
from videostr.errors import ConfigError, RunFolderError
from videostr.models.base import shapes_of
from videostr.plan.__main__ import main
from videostr.plan.calibrate import Calibration, Measured, calibrate, read_measured
from videostr.plan.costs import HARDWARE, Factors, Workload, assumed
from videostr.plan.lengths import Lognormal, Traced, dumped_groups
from videostr.plan.memory import estimate
from videostr.plan.search import (
    Cluster,
    Scenario,
    best_of,
    plan_of,
    search,
    splits,
    with_cache,
    with_staleness,
)
from videostr.plan.simulate import simulate
from videostr.plan.workers import Machine
from videostr.traces import TraceRow, write_traces

CPU_CONFIG = "configs/tabletop_cpu.yaml"
GPU_CONFIG = "configs/qwen2_5_vl_7b_8gpu.yaml"
TRUE = Factors(engine=1.5, reward=1.2, learn=0.8, sync=2.0)
PROMPT_TOKENS = 120


def trace_row(step: int, record: int, rollout: int, tokens: int) -> TraceRow:
    empty: dict[str, Any] = dict.fromkeys(TraceRow.__annotations__, "")
    empty |= {"step": step, "record_id": f"r{record}", "rollout": rollout, "tokens": tokens, "total": 0.5}
    return TraceRow(**(empty | {"advantage": 0.0}))


def write_dump(path: Path, step: int, groups: Sequence[Sequence[int]]) -> None:
    rows = [trace_row(step, g, i, n) for g, group in enumerate(groups) for i, n in enumerate(group)]
    write_traces(path / "traces" / f"step_{step:06d}.parquet", rows)


def write_run(folder: Path, *overrides: str, cores: float = 2.0, steps: int = 20) -> Path:
    """A run whose costs are `TRUE` times the assumed ones, with lengths between 40 and 100 tokens."""
    config = load(CPU_CONFIG, overrides)
    shapes = shapes_of(config.model.path)
    rng = np.random.default_rng(1)
    lengths = Traced(groups=tuple(tuple(int(n) for n in rng.integers(40, 101, size=8)) for _ in range(64)))
    workload = Workload(prompt_tokens=PROMPT_TOKENS, completion_tokens=lengths.mean)
    measured = Measured(
        folder=folder, config=config, steps=0, step_s=0, medians={}, workload=workload, lengths=lengths
    )
    truth = Calibration(measured=measured, hardware=HARDWARE["cpu"], cores=cores, factors=TRUE, notes=())
    outcome, costs = truth.predict(config), truth.costs(config, shapes)
    folder.mkdir()
    (folder / "config.yaml").write_text(dump(config))
    groups = config.train.prompts_per_step
    row = {
        "tokens/prompt": PROMPT_TOKENS * groups,
        "tokens/completion": lengths.mean * groups * 8, "zero_variance_groups": 0,
        "replaced_groups": 0, "sync/bytes": 3947264.0, "sync/seconds": costs.sync_s, "time/rollout": outcome.rollout_s,
        "time/reward": outcome.reward_s, "time/learn": outcome.learn_s, "time/sync": outcome.sync_s,
        "time/step": outcome.step_s,
    }  # fmt: skip
    slow_start = [{**row, "time/step": 90.0, "time/rollout": 50.0}] * 2
    rows = [{"step": i, **values} for i, values in enumerate([*slow_start, *[row] * steps], 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    write_dump(folder, 10, lengths.groups)
    return folder


# ------------------------------------------------------------------------------------------------------- calibration


def test_what_is_read_of_a_run(tmp_path: Path) -> None:
    measured = read_measured(write_run(tmp_path / "run"))
    assert measured.steps == 20  # two slow ones are left out
    assert measured.step_s < 20
    assert measured.workload.prompt_tokens == PROMPT_TOKENS
    assert len(measured.lengths.groups) == 64


def test_calibration_finds_the_costs_of_a_run(tmp_path: Path) -> None:
    factors = calibrate(write_run(tmp_path / "run"), HARDWARE["cpu"], 2.0).factors
    assert factors.engine == pytest.approx(TRUE.engine, rel=0.03)
    assert factors.learn == pytest.approx(TRUE.learn, rel=0.03)
    assert factors.reward == pytest.approx(TRUE.reward, rel=0.05)
    assert factors.sync == pytest.approx(TRUE.sync)


def test_calibration_sees_through_shared_cores(tmp_path: Path) -> None:
    # With S = 1 both sides were slowed by each other: the costs found are those that they have alone
    factors = calibrate(write_run(tmp_path / "run", "train.max_staleness=1"), HARDWARE["cpu"], 2.0).factors
    assert factors.engine == pytest.approx(TRUE.engine, rel=0.1)
    assert factors.learn == pytest.approx(TRUE.learn, rel=0.1)


def test_one_run_predicts_others(tmp_path: Path) -> None:
    folders = [
        write_run(tmp_path / "w1"),
        write_run(tmp_path / "w2", "rollout.num_workers=2"),
        write_run(tmp_path / "w1s1", "train.max_staleness=1"),
    ]
    calibration = calibrate(folders[0], HARDWARE["cpu"], 2.0)
    measured = [read_measured(folder) for folder in folders]
    for run in measured:
        assert calibration.predict(run.config).step_s == pytest.approx(run.step_s, rel=0.04)
    assert len({round(run.step_s, 2) for run in measured}) == 3


def test_steps_without_variance_count_as_no_update(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in rows[::2]:
        row |= {"zero_variance_groups": 16, "time/learn": 1e-6, "time/sync": 1e-6}
        del row["sync/bytes"], row["sync/seconds"]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    measured = read_measured(folder)
    assert measured.workload.zero_variance == 0.5
    assert measured.medians["learn"] > 0.1


def test_a_record_drawn_twice_in_a_step_is_two_groups() -> None:
    rows = [trace_row(1, 7, rollout, 10 + rollout) for _ in range(2) for rollout in range(3)]
    assert dumped_groups(rows) == [(10, 11, 12)] * 2


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "config.yaml").unlink(), "config.yaml cannot be read"),
        (lambda folder: (folder / "config.yaml").write_text("a: 1\n"), "config.yaml cannot be read"),
        (lambda folder: (folder / "metrics.jsonl").write_text(""), "0 whole steps"),
        (lambda folder: (folder / "traces" / "step_000010.parquet").unlink(), "no trace dump"),
    ],
)
def test_a_run_that_cannot_be_used_says_why(tmp_path: Path, damage: Any, said: str) -> None:
    folder = write_run(tmp_path / "run")
    damage(folder)
    with pytest.raises(RunFolderError, match=said):
        calibrate(folder, HARDWARE["cpu"], 2.0)


# ------------------------------------------------------------------------------------------------------------ search


def scenario_of(config: Config, tokens: int = 600) -> Scenario:
    shapes = shapes_of(config.model.path)
    workload = Workload(prompt_tokens=3000, completion_tokens=tokens)
    return Scenario(
        shapes=shapes,
        lengths=Lognormal(median=tokens, sigma=0.4, cap=config.sampling.max_tokens),
        prompt_tokens=3000,
        costs=lambda split, one_node: assumed(split, shapes, HARDWARE["H100"], workload, one_node=one_node),
        machine=Machine(),
    )


def test_splits_use_the_whole_cluster_and_what_divides_the_model() -> None:
    config = load(GPU_CONFIG)
    cluster = Cluster(gpus=8, gpus_per_node=8, hardware=HARDWARE["H100"])
    found = list(splits(config, shapes_of("Qwen2.5-VL-7B"), cluster))
    assert all(
        c.rollout.num_workers * c.rollout.tensor_parallel_size + c.learner.num_ranks == 8 for c in found
    )
    # 28 heads: divided by 1, 2 and 4, not by 8
    assert {c.rollout.tensor_parallel_size for c in found} == {1, 2, 4}
    assert {c.learner.num_ranks for c in found if c.rollout.tensor_parallel_size == 1} == set(range(1, 8))


def test_the_search_finds_what_trying_everything_finds() -> None:
    config, cluster = load(GPU_CONFIG), Cluster(gpus=8, gpus_per_node=8, hardware=HARDWARE["H100"])
    scenario = scenario_of(config)
    (found,) = search(config, scenario, cluster, [1])
    tried = []
    for split in splits(config, scenario.shapes, cluster):
        memory = estimate(split, scenario.shapes, cluster.hardware.memory_gib)
        if not memory.problems:
            tried.append(plan_of(with_staleness(split, 1), memory, scenario, 8))
    assert found.outcome.samples_per_s == max(plan.outcome.samples_per_s for plan in tried)


def test_a_part_of_a_large_cluster_stands_for_the_whole() -> None:
    config = load(
        GPU_CONFIG, ["train.prompts_per_step=256", "rollout.num_workers=16", "learner.num_ranks=16"]
    )
    scenario = scenario_of(config)
    memory = estimate(config, scenario.shapes, 80.0)
    part = plan_of(config, memory, scenario, 32, one_node=False)
    whole = simulate(
        config,
        scenario.costs(config, False),
        scenario.lengths,
        with_cache(Machine(), config, memory, 3000),
        steps=10,
    )
    assert part.outcome.step_s == pytest.approx(whole.step_s, rel=0.05)
    assert part.outcome.samples_per_s == pytest.approx(whole.samples_per_s, rel=0.05)
    assert (part.engines, part.ranks, part.prompts) == (16, 16, 256)


def test_a_model_that_fits_nowhere_is_refused_with_what_it_lacks() -> None:
    config = load(GPU_CONFIG, ["model.path=Qwen/Qwen2.5-VL-72B-Instruct"])
    cluster = Cluster(gpus=4, gpus_per_node=4, hardware=HARDWARE["H100"])
    with pytest.raises(ConfigError, match=r"no split of 4 x H100 fits Qwen2.5-VL-72B: .*raise"):
        search(config, scenario_of(config), cluster, [0])


def test_less_staleness_is_preferred_to_a_small_gain() -> None:
    config, cluster = load(GPU_CONFIG), Cluster(gpus=8, gpus_per_node=8, hardware=HARDWARE["H100"])
    plan = search(config, scenario_of(config), cluster, [0])[0]

    def with_rate(staleness: int, rate: float) -> Any:
        return dataclasses.replace(
            plan, staleness=staleness, outcome=dataclasses.replace(plan.outcome, samples_per_s=rate)
        )

    assert best_of([with_rate(0, 1.0), with_rate(1, 2.0), with_rate(2, 2.03)]).staleness == 1
    assert best_of([with_rate(0, 1.0), with_rate(1, 2.0), with_rate(2, 2.1)]).staleness == 2


# ----------------------------------------------------------------------------------------------------------- command


def test_the_command_plans_a_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--config", CPU_CONFIG, "--cores", "2", "--staleness", "0,1"]) == 0
    text = capsys.readouterr().out
    assert "assumed, not measured" in text
    assert sum(line.lstrip().startswith("CPU") for line in text.splitlines()) == 8
    assert text.splitlines()[-1].startswith("best: ")


def test_the_command_plans_a_cluster(capsys: pytest.CaptureFixture[str]) -> None:
    # Overrides may follow --cluster, which takes what is its own
    arguments = ["--config", GPU_CONFIG, "--json", "--staleness", "1", "--cluster", "gpus=16", "gpu=A100"]
    assert main([*arguments, "sampling.max_tokens=512"]) == 0
    result = json.loads(capsys.readouterr().out)
    (found,) = result["results"]
    best = found["best"]
    assert best["engines"] * best["tensor_parallel"] + best["ranks"] == 16
    assert best["staleness"] == 1
    assert best["outcome"]["staleness_max"] <= 1
    assert best["memory"]["learner"]["total"] < 80
    assert best["outcome"]["steps_per_hour"] == pytest.approx(3600 / best["outcome"]["step_s"])
    assert "cut off at 512" in result["notes"][0]


def test_the_table_has_a_row_for_every_size(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("videostr.plan.search.COMPLETIONS", 0)  # as few steps as may be
    arguments = ["--config", GPU_CONFIG, "--table", "--scale-batch", "--staleness", "0"]
    assert main([*arguments, "sampling.max_tokens=300", "train.prompts_per_step=16"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if ":" in line]
    table = {int(row[0]): row for row in rows if row[0].isdecimal()}
    assert list(table) == [8, 16, 32, 64, 128, 256, 512]
    # prompts of a step: 16 on the config's own 8 GPUs
    assert [int(row[7]) for row in table.values()] == [16, 32, 64, 128, 256, 512, 1024]


def test_engines_that_die_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--config", CPU_CONFIG, "--cores", "2", "--staleness", "0", "--mtbf-hours", "0.02"]
    assert main([*arguments, "--restart-s", "20", "rollout.max_restarts=100"]) == 0
    assert "tokens sampled again after failures: up to" in capsys.readouterr().out


def test_a_calibrated_plan_takes_lengths_of_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "w1")
    assert main(["--calibrate", str(run), "--cores", "2", "--staleness", "0"]) == 0
    text = capsys.readouterr().out
    assert "lengths of the run" in text
    assert "assumed, not measured" not in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--config: must name a config"),
        (["--config", "nowhere.yaml"], "no such config file"),
        (["--config", CPU_CONFIG, "--staleness", "1,x"], "--staleness 1,x: must be whole numbers"),
        (["--config", CPU_CONFIG, "--staleness", "-1"], "must be whole numbers from 0 on"),
        (["--config", CPU_CONFIG, "--cores", "0"], "--cores 0: must be above 0"),
        (["--config", CPU_CONFIG, "--cluster", "gpus=8"], "rollout.num_gpus = 0"),
        (["--config", CPU_CONFIG, "--table"], "rollout.num_gpus = 0"),
        (["--config", CPU_CONFIG, "--mtbf-hours", "0"], "--mtbf-hours 0: must be above 0"),
        (["--config", GPU_CONFIG, "--cluster", "gpus=1"], "gpus = 1: must be at least 2"),
        (["--config", GPU_CONFIG, "--cluster", "gpus=many"], "gpus=many: must be a whole number"),
        (["--config", GPU_CONFIG, "--cluster", "gpus=8", "gpus_per_node=0"], "gpus_per_node = 0"),
        (["--config", GPU_CONFIG, "--cluster", "gpu=B300"], "gpu = B300: must be one of"),
        (["--config", GPU_CONFIG, "--cluster", "gpu=cpu"], "name H100 or A100"),
        (["--config", GPU_CONFIG, "--cluster", "nodes=8"], "nodes"),
        (["--calibrate", "nowhere"], "name a run folder"),
    ],
)
def test_bad_input_is_said_on_standard_error(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.out == ""


def test_a_run_of_another_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "w1")
    assert main(["--config", GPU_CONFIG, "--calibrate", str(run)]) == 2
    assert "both must have the same shapes" in capsys.readouterr().err
