"""Calibration, validation, search and the command, on run folders of known cost and on the shipped configs."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from videostr.config.load import dump, load, load_plan
from videostr.config.schema import Config, Estimate
from videostr.errors import ConfigError, RunFolderError
from videostr.models.base import shapes_of
from videostr.plan.__main__ import main
from videostr.plan.calibrate import STEPS, calibrate, read_measured
from videostr.plan.costs import HARDWARE, gpus_of
from videostr.plan.search import Plan, Scenario, best_of, layouts, search
from videostr.plan.workload import Workload, lognormal
from videostr.traces import TraceRow, write_traces

CPU_CONFIG = "configs/tabletop_cpu.yaml"
GPU_CONFIG = "configs/qwen2_5_vl_7b_8gpu.yaml"
TRUE = {"engine": 1.5, "reward": 1.2, "learn": 0.8, "sync": 2.0}
PROMPT_TOKENS = 120


def cpu_scenario() -> Scenario:
    """Two cores, as assumed."""
    work = Workload(prompt_tokens=1, groups=((1,),))
    shapes = shapes_of(load(CPU_CONFIG).model.path)
    return Scenario(shapes=shapes, hardware=HARDWARE["cpu"], work=work, settings=Estimate(cores=2.0))


def trace_row(step: int, record: int, rollout: int, tokens: int) -> TraceRow:
    empty: dict[str, Any] = dict.fromkeys(TraceRow.__annotations__, "")
    empty |= {"step": step, "record_id": f"r{record}", "rollout": rollout, "tokens": tokens, "total": 0.5}
    return TraceRow(**(empty | {"advantage": 0.0}))


def write_dump(path: Path, step: int, groups: Sequence[Sequence[int]]) -> None:
    rows = [trace_row(step, g, i, n) for g, group in enumerate(groups) for i, n in enumerate(group)]
    write_traces(path / "traces" / f"step_{step:06d}.parquet", rows)


def write_run(folder: Path, *overrides: str, steps: int = 20) -> Path:
    """A run whose costs are `TRUE` times the assumed ones, with lengths between 40 and 100 tokens."""
    config = load(CPU_CONFIG, ["train.prompts_per_step=4", *overrides])
    rng = np.random.default_rng(1)
    groups = tuple(tuple(int(n) for n in rng.integers(40, 101, size=8)) for _ in range(64))
    work = Workload(prompt_tokens=PROMPT_TOKENS, groups=groups)
    truth = dataclasses.replace(
        cpu_scenario(), work=work, hardware=dataclasses.replace(HARDWARE["cpu"], **TRUE)
    )
    seconds = truth.run(config, steps=STEPS).seconds
    folder.mkdir()
    (folder / "config.yaml").write_text(dump(config))
    prompts = config.train.prompts_per_step
    row = {
        "tokens/prompt": PROMPT_TOKENS * prompts, "tokens/completion": work.completion_tokens * prompts * 8,
        "zero_variance_groups": 0, "replaced_groups": 0, "sync/bytes": 3947264.0, "sync/seconds": seconds.sync,
        "time/rollout": seconds.rollout, "time/reward": seconds.reward, "time/learn": seconds.learn,
        "time/sync": seconds.sync, "time/step": seconds.step,
    }  # fmt: skip
    slow_start = [{**row, "time/step": 90.0, "time/rollout": 50.0}] * 2
    rows = [{"step": i, **values} for i, values in enumerate([*slow_start, *[row] * steps], 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    write_dump(folder, 10, groups)
    return folder


# ------------------------------------------------------------------------------------------------------- calibration


def test_what_is_read_of_a_run(tmp_path: Path) -> None:
    measured = read_measured(write_run(tmp_path / "run"))
    assert measured.steps == 20  # two slow ones are left out
    assert measured.seconds.step < 20
    assert measured.work.prompt_tokens == PROMPT_TOKENS
    assert len(measured.work.groups) == 64


def test_calibration_finds_the_costs_of_a_run(tmp_path: Path) -> None:
    found = calibrate(read_measured(write_run(tmp_path / "run")), cpu_scenario()).hardware
    assert found.engine == pytest.approx(TRUE["engine"], rel=0.03)
    assert found.learn == pytest.approx(TRUE["learn"], rel=0.03)
    assert found.reward == pytest.approx(TRUE["reward"], rel=0.05)
    assert found.sync == pytest.approx(TRUE["sync"])


def test_calibration_sees_through_shared_cores(tmp_path: Path) -> None:
    # With S = 1 both sides were slowed by each other: the costs found are those that they have alone
    run = write_run(tmp_path / "run", "train.max_staleness=1")
    found = calibrate(read_measured(run), cpu_scenario()).hardware
    assert found.engine == pytest.approx(TRUE["engine"], rel=0.1)
    assert found.learn == pytest.approx(TRUE["learn"], rel=0.1)


def test_one_run_predicts_others(tmp_path: Path) -> None:
    folders = [
        write_run(tmp_path / "w1"),
        write_run(tmp_path / "w2", "rollout.num_workers=2"),
        write_run(tmp_path / "w1s1", "train.max_staleness=1"),
    ]
    measured = [read_measured(folder) for folder in folders]
    calibrated = calibrate(measured[0], cpu_scenario())
    for run in measured:
        assert calibrated.run(run.config, steps=STEPS).seconds.step == pytest.approx(
            run.seconds.step, rel=0.04
        )
    assert len({round(run.seconds.step, 2) for run in measured}) == 3


def test_failures_of_the_plan_are_no_part_of_the_calibrating_run(tmp_path: Path) -> None:
    measured = read_measured(write_run(tmp_path / "run"))
    settings = Estimate(cores=2.0, mtbf_hours=0.1)
    found = calibrate(measured, dataclasses.replace(cpu_scenario(), settings=settings))
    assert found.hardware == calibrate(measured, cpu_scenario()).hardware
    assert found.settings == settings


def test_steps_without_variance_count_as_no_update(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in rows[::2]:
        row |= {"zero_variance_groups": 4, "time/learn": 1e-6, "time/sync": 1e-6}
        del row["sync/bytes"], row["sync/seconds"]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    measured = read_measured(folder)
    assert measured.work.zero_variance == 0.5
    assert measured.seconds.learn > 0.1


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
        read_measured(folder)


# ------------------------------------------------------------------------------------------------------------ search


def scenario_of(config: Config, tokens: int = 600, **settings: Any) -> Scenario:
    return Scenario(
        shapes=shapes_of(config.model.path),
        hardware=HARDWARE["H100"],
        work=Workload(prompt_tokens=3000, groups=lognormal(tokens, config.sampling.max_tokens, 8)),
        settings=Estimate(**settings),
    )


def test_layouts_use_all_gpus_and_what_divides_the_model() -> None:
    config = load(GPU_CONFIG)
    found = list(layouts(config, scenario_of(config), 8))
    assert all(gpus_of(layout) == 8 for layout in found)
    # 28 heads: divided by 1, 2 and 4, not by 8
    assert {c.rollout.tensor_parallel_size for c in found} == {1, 2, 4}
    assert {c.learner.num_ranks for c in found if c.rollout.tensor_parallel_size == 1} == set(range(1, 8))


def test_a_machine_without_gpus_has_one_to_four_engines_and_its_own() -> None:
    config = load(CPU_CONFIG, ["rollout.num_workers=6"])
    assert [c.rollout.num_workers for c in layouts(config, cpu_scenario(), 0)] == [1, 2, 3, 4, 6]


def test_the_search_finds_what_trying_everything_finds() -> None:
    config = load(GPU_CONFIG, ["train.prompts_per_step=8"])
    scenario = scenario_of(config, staleness=[1])
    (found,) = search(config, scenario, 8)
    rates = [
        scenario.run(layout).samples_per_s
        for layout in layouts(config, scenario, 8)
        if not scenario.memory(layout).problems
    ]
    assert len(rates) > 8
    assert found.outcome.samples_per_s == max(rates)


def test_a_model_that_fits_nowhere_is_refused_with_what_it_lacks() -> None:
    config = load(GPU_CONFIG, ["model.path=Qwen/Qwen2.5-VL-72B-Instruct"])
    with pytest.raises(ConfigError, match=r"no layout on 4 x H100 fits Qwen2.5-VL-72B: .*raise"):
        search(config, scenario_of(config, staleness=[0]), 4)


def test_less_staleness_is_preferred_to_a_small_gain() -> None:
    config = load(GPU_CONFIG, ["train.prompts_per_step=4"])
    scenario = scenario_of(config)
    plan = Plan(config=config, memory=scenario.memory(config), outcome=scenario.run(config, steps=1))

    def with_rate(staleness: int, rate: float) -> Plan:
        train = dataclasses.replace(config.train, max_staleness=staleness)
        return dataclasses.replace(
            plan,
            config=dataclasses.replace(config, train=train),
            outcome=dataclasses.replace(plan.outcome, samples_per_s=rate),
        )

    def best(*plans: Plan) -> int:
        return best_of(plans).config.train.max_staleness

    assert best(with_rate(0, 1.0), with_rate(1, 2.0), with_rate(2, 2.03)) == 1
    assert best(with_rate(0, 1.0), with_rate(1, 2.0), with_rate(2, 2.1)) == 2


# ----------------------------------------------------------------------------------------------------------- command


def rows_of(text: str) -> list[dict[str, str]]:
    """The table of an answer, by its column heads."""
    lines = text.split("\n\n")[1].splitlines()
    columns = [(match.start(), match.end(), match[0]) for match in re.finditer(r"\S+( \S+)*", lines[0])]
    assert columns[0][2] == "GPUs"
    found = []
    for line in lines[1:]:
        *_, last = cells = re.split(r"\s{2,}", line.strip())
        names = [name for *_, name in columns]
        mark = cells.pop(0) if len(cells) > len(names) else ""
        assert last == cells[-1]
        found.append({"mark": mark, **dict(zip(names, cells, strict=True))})
    return found


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["--config", *arguments]) == 0
    return capsys.readouterr().out


def test_the_command_plans_a_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    text = answer(capsys, CPU_CONFIG, "plan.cores=2", "plan.staleness=[0,1]", "train.prompts_per_step=4")
    assert "2 cores shared by all; speeds: assumed, not measured" in text
    rows = rows_of(text)
    assert [(row["mark"], row["GPUs"], row["S"]) for row in rows[:2]] == [
        ("config", "CPU", "0"),
        ("", "CPU", "0"),
    ]
    assert [row["S"] for row in rows[1:]] == ["0", "1"]
    assert rows[2]["mark"] == "best"
    assert re.search(r"^best: rollout.num_workers=\d learner.num_ranks=1 train.max_staleness=1$", text, re.M)


def test_the_command_plans_clusters(capsys: pytest.CaptureFixture[str]) -> None:
    text = answer(
        capsys, GPU_CONFIG, "plan.gpus=[8,16]", "plan.gpu=A100", "plan.staleness=[1]", "train.prompts_per_step=8",
        "sampling.max_tokens=512",
    )  # fmt: skip
    assert "Qwen2.5-VL-7B on A100; speeds: assumed, not measured" in text
    assert "(at most 512)" in text
    assert re.search(r"memory of a learner rank: [\d.]+ GiB \(parameters .*\)", text)
    assert "both fit into 79.3 GiB" in text
    rows = rows_of(text)
    assert [(row["mark"], row["GPUs"], row["S"]) for row in rows] == [
        ("config", "8", "1"), ("best", "8", "1"), ("best", "16", "1"),
    ]  # fmt: skip
    for row in rows:
        engines, parallel, ranks = map(int, re.findall(r"\d+", row["engines x TP : ranks"]))
        assert engines * parallel + ranks == int(row["GPUs"])
        assert float(row["rank GiB"]) < 79.3
    # What the last line says can be given to a run as it is
    keys = text.splitlines()[-1].removeprefix("best of 16 GPUs: ").split()
    assert gpus_of(load(GPU_CONFIG, keys)) == 16


def test_a_config_that_does_not_fit_is_said_and_others_are_found(capsys: pytest.CaptureFixture[str]) -> None:
    keys = ["learner.num_ranks=1", "rollout.num_workers=7", "train.prompts_per_step=4", "plan.staleness=[0]"]
    text = answer(capsys, GPU_CONFIG, *keys)
    assert "does not fit: a learner rank needs about" in text
    assert [row["mark"] for row in rows_of(text)] == ["best"]


def test_engines_that_die_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    keys = ["plan.cores=2", "plan.staleness=[0]", "rollout.max_restarts=100", "train.prompts_per_step=2"]
    dying = answer(capsys, CPU_CONFIG, *keys, "plan.mtbf_hours=0.005", "plan.restart_s=20")
    assert "tokens a step are sampled again after failures of engines" in dying
    living = answer(capsys, CPU_CONFIG, *keys)
    assert "failures" not in living
    assert float(rows_of(dying)[0]["step s"]) > float(rows_of(living)[0]["step s"])


def test_a_calibrated_plan_takes_speeds_and_lengths_of_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "w1")
    keys = [str(run / "config.yaml"), f"plan.calibrate={run}", "plan.cores=2", "plan.staleness=[0]"]
    text = answer(capsys, *keys)
    assert f"speeds: from {run}; its seconds in assumed ones: engine 1.5" in text
    measured = read_measured(run)
    mean = measured.work.completion_tokens
    assert f"prompts of {PROMPT_TOKENS} tokens, completions of {mean:.0f} on average" in text
    assert float(rows_of(text)[0]["step s"]) == pytest.approx(measured.seconds.step, rel=0.04)
    # Longer completions than the run had, at its speeds
    longer = answer(capsys, *keys, "plan.completion_tokens=120")
    assert f"speeds: from {run}" in longer
    assert float(rows_of(longer)[0]["step s"]) > float(rows_of(text)[0]["step s"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--config", "nowhere.yaml"], "no such config file"),
        (["--config", CPU_CONFIG, "plan.staleness=[1,x]"], "plan.staleness = [1, x]: must be a list"),
        (["--config", CPU_CONFIG, "plan.staleness=[-1]"], "must be a list, each a whole number, at least 0"),
        (["--config", CPU_CONFIG, "plan.staleness=[]"], "plan.staleness = []: must be a list"),
        (["--config", CPU_CONFIG, "plan.gpus=[8]"], "plan.gpus = [8]: has no effect with rollout.num_gpus = 0"),
        (["--config", CPU_CONFIG, "plan.restart_s=9"], "has no effect with plan.mtbf_hours = 0"),
        (["--config", GPU_CONFIG, "plan.cores=4"], "plan.cores = 4.0: has no effect with rollout.num_gpus = 1"),
        (["--config", GPU_CONFIG, "plan.gpus=[1]"], "plan.gpus = [1]: must be a list, each a whole number, at least 2"),
        (["--config", GPU_CONFIG, "plan.gpus_per_node=0"], "plan.gpus_per_node = 0: must be"),
        (["--config", GPU_CONFIG, "plan.gpu=B300"], "plan.gpu = B300: must be one of"),
        (["--config", GPU_CONFIG, "plan.nodes=8"], "plan.nodes = 8: is not a key"),
        (["--config", GPU_CONFIG, "plan.calibrate=nowhere"], "name a run folder"),
    ],
)  # fmt: skip
def test_bad_input_is_said_on_standard_error(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.out == ""


def test_a_run_of_another_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "w1")
    assert main(["--config", GPU_CONFIG, f"plan.calibrate={run}"]) == 2
    said = "is a run of pretrained on CPU, must be one of a model with the shapes of Qwen2.5-VL-7B on hardware like H100"
    assert said in capsys.readouterr().err


def test_the_keys_of_a_plan_are_no_keys_of_a_run() -> None:
    assert load_plan(GPU_CONFIG, ["plan.gpus=[16]"]).plan.gpus == [16]
    with pytest.raises(ConfigError, match=r"plan = .*: is not a key"):
        load(GPU_CONFIG, ["plan.gpus=[16]"])
