"""What `videostr.plan` predicts against what runs take. One JSON object a line; about eight minutes on two cores.

The first run calibrates; of the others only the configs are used to predict. Nothing else may run on the machine.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.measure import report
from videostr.config.load import load_plan
from videostr.launch import main
from videostr.plan.calibrate import STEPS, read_measured, scenario_of

RUNS = {
    "w1": [],
    "w2": ["rollout.num_workers=2", "rollout.num_cpus=0.5", "rollout.threads=1"],
    "w1s1": ["train.max_staleness=1", "loss.correction=ratio"],
}
CONFIG = "configs/tabletop_cpu.yaml"
COMMON = ["train.steps=30", "train.traces_every=1", "evaluate.prompts=0"]


def test_predicted_and_measured_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, overrides in RUNS.items():
        run = [f"run.name={name}", f"run.dir={tmp_path}", *COMMON, *overrides]
        assert main(["--config", CONFIG, *run]) == 0
    scenario = scenario_of(load_plan(CONFIG, [f"plan.calibrate={tmp_path / 'w1'}"]))
    for name in RUNS:
        run = read_measured(tmp_path / name)
        measured, predicted = run.seconds, scenario.run(run.config, steps=STEPS).seconds
        report(
            capsys,
            benchmark="plan",
            run=name,
            engines=run.config.rollout.num_workers,
            staleness=run.config.train.max_staleness,
            predicted_s=round(predicted.step, 3),
            measured_s=round(measured.step, 3),
            error=round(predicted.step / measured.step - 1, 3),
            rollout_s=[round(predicted.rollout, 3), round(measured.rollout, 3)],
            learn_s=[round(predicted.learn, 3), round(measured.learn, 3)],
        )
