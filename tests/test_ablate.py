"""An ablation as users run it: killed in its first run, continued to its end by the same command."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.conftest import ROOT, SmallRun
from videostr.ablate.__main__ import main
from videostr.ablate.scores import DECIMALS

LIMIT_S = 600


@pytest.fixture
def config(tabletop: Path, small_run: SmallRun, tmp_path: Path) -> Path:
    """Two arms: two small steps of reinforcement learning, two of supervised fine-tuning."""
    _, base, *small = small_run(tabletop, tmp_path, "any")
    keys = [key for key in small if not key.startswith("run.")]
    data = [key for key in keys if key.startswith("data.")]
    arms = {
        "plain": {},
        "more": {
            "sft": str(ROOT / "configs/tabletop_sft_habit.yaml"),
            "overrides": [
                *data,
                *("model.path=videostr/tabletop/pretrained", "train.steps=2", "train.prompts_per_step=4"),
                *("learner.warmup_steps=1", "evaluate.prompts=8"),
            ],
        },
    }
    overrides = [*keys, "train.steps=2", "train.checkpoint_every=1"]
    path = tmp_path / "ablation.yaml"
    path.write_text(
        json.dumps(
            {
                "name": "a",
                "dir": str(tmp_path),
                "base": base,
                "seeds": [0],
                "overrides": overrides,
                "arms": arms,
            }
        )
    )
    return path


def test_killed_and_continued(config: Path) -> None:
    folder, log = config.parent / "a", config.parent / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "videostr.ablate", "--config", config],
            stdout=output,
            stderr=output,
            cwd=ROOT,
        )
    deadline = time.monotonic() + LIMIT_S
    while not list((folder / "plain-0" / "checkpoints").glob("step_000001/state.json")):
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
    (run,) = psutil.Process(process.pid).children()
    process.kill()
    process.wait()
    run.wait(LIMIT_S)  # asked to stop, as nobody waits for it any more
    assert main(["--config", str(config)]) == 0
    assert "resumed after step" in (folder / "plain-0.log").read_text()
    result = json.loads((folder / "ablation.json").read_text())
    assert (result["runs"], result["done"], result["reference"]) == (2, 2, "plain")
    assert list(result["arms"]) == ["before training", "plain", "more"]
    trained = json.loads((folder / "plain-0" / "summary.json").read_text())["heldout"]
    assert result["arms"]["plain"]["sampled/answer"]["value"]["mean"] == pytest.approx(
        trained["after"]["answer"], abs=10**-DECIMALS
    )
    assert result["arms"]["more"]["tokens"] > 0
    assert result["arms"]["more"]["sampled/graph"]["difference"] is not None
    sizes = {path: path.stat().st_size for path in folder.glob("*.log")}
    assert main(["--config", str(config)]) == 0  # nothing is left to do
    assert sizes == {path: path.stat().st_size for path in folder.glob("*.log")}
