"""What `videostr.plan` predicts against what runs take. One JSON object a line; about eight minutes on two cores.

The first run calibrates; of the others only the configs are used to predict. Nothing else may run on the machine.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.benchmarks.measure import report
from videostr.launch import main
from videostr.plan.calibrate import calibrate, read_measured
from videostr.plan.costs import HARDWARE

RUNS = {
    "w1": [],
    "w2": ["rollout.num_workers=2", "rollout.num_cpus=0.5", "rollout.threads=1"],
    "w1s1": ["train.max_staleness=1", "loss.correction=ratio"],
}
COMMON = ["train.steps=30", "train.traces_every=1", "evaluate.prompts=0"]


def test_predicted_and_measured_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, overrides in RUNS.items():
        run = [f"run.name={name}", f"run.dir={tmp_path}", *COMMON, *overrides]
        assert main(["--config", "configs/tabletop_cpu.yaml", *run]) == 0
    calibration = calibrate(tmp_path / "w1", HARDWARE["cpu"], float(os.cpu_count() or 1))
    for name in RUNS:
        measured = read_measured(tmp_path / name)
        predicted = calibration.predict(measured.config)
        report(
            capsys,
            benchmark="plan",
            run=name,
            engines=measured.config.rollout.num_workers,
            staleness=measured.config.train.max_staleness,
            predicted_s=round(predicted.step_s, 3),
            measured_s=round(measured.step_s, 3),
            error=round(predicted.step_s / measured.step_s - 1, 3),
            rollout_s=[round(predicted.rollout_s, 3), round(measured.medians["rollout"], 3)],
            learn_s=[round(predicted.learn_s, 3), round(measured.medians["learn"], 3)],
        )
