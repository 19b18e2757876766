"""The runs of an ablation, what is refused before the first of them, and what their results say."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from videostr.ablate.page import table, write_results
from videostr.ablate.results import START, results
from videostr.ablate.runs import ArmRun, runs_of
from videostr.config.load import load_ablation
from videostr.errors import ConfigError
from videostr.heldout import Evaluation

ROOT = Path(__file__).parents[3]
TEXT = f"""
name: a
base: {ROOT}/configs/tabletop_cpu.yaml
overrides: [train.steps=12]
reference: plain
arms:
  plain:
  sharp: {{overrides: [learner.lr=1e-3], seeds: [0, 5]}}
  more: {{sft: {ROOT}/configs/tabletop_sft.yaml, overrides: [train.steps=9], seeds: [0]}}
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "ablation.yaml"
        path.write_text(text)
        return path

    return write


def test_runs_of_a_seed_stand_together(write: Callable[[str], Path]) -> None:
    runs = runs_of(load_ablation(write(TEXT)), "f")
    assert [run.name for run in runs] == ["plain-0", "sharp-0", "more-0", "plain-1", "plain-2", "sharp-5"]
    command = runs[1].next_command()
    assert command[:3] == ["videostr.launch", "--config", f"{ROOT}/configs/tabletop_cpu.yaml"]
    assert command[3:] == [
        "train.steps=12",
        "learner.lr=1e-3",
        "run.dir=runs/a",
        "run.name=sharp-0",
        "run.seed=0",
    ]


def test_an_arm_of_supervised_fine_tuning_is_trained_and_then_evaluated(tmp_path: Path) -> None:
    run = ArmRun(
        arm="more",
        seed=3,
        parent=tmp_path,
        base="b.yaml",
        overrides=("train.steps=5",),
        sft="s.yaml",
        sft_overrides=("train.steps=9",),
    )
    assert run.next_command() == [
        *(
            "videostr.sft",
            "--config",
            "s.yaml",
            "train.steps=9",
            f"run.dir={tmp_path}",
            "run.name=more-3-sft",
            "run.seed=3",
        ),
    ]
    checkpoint = tmp_path / "more-3-sft/checkpoints/step_000009"
    checkpoint.mkdir(parents=True)
    (checkpoint / "state.json").write_text("{}")
    (tmp_path / "more-3-sft/summary.json").write_text("{}")
    command = run.next_command()
    assert command == [
        *(
            "videostr.launch",
            "--config",
            "b.yaml",
            "train.steps=5",
            f"model.path={checkpoint}/policy",
            "train.steps=0",
        ),
        *(f"run.dir={tmp_path}", "run.name=more-3", "run.seed=3"),
    ]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("reference: plain", "reference: plan", ["reference = plan: must be one of the arms", "plain, sharp, more"]),
        ("learner.lr=1e-3", "learner.rl=1e-3", ["arms.sharp: ", "learner.rl = 0.001: is not a key"]),
        ("learner.lr=1e-3", "run.seed=3", ["arms.sharp: run.seed=3: the ablation sets it itself", "leave it out"]),
        ("learner.lr=1e-3", "train.steps=many", ["arms.sharp: ", "train.steps = many"]),
        ("  plain:\n", "  a/b:\n", ["arms.a/b", "must not contain /"]),
        ("seeds: [0, 5]", "seeds: [0, 0]", ["arms.sharp.seeds = [0, 0]: must name each seed once"]),
        ("seeds: [0, 5]", "sedes: [0, 5]", ["arms.sharp.sedes", "did you mean arms.sharp.seeds?"]),
        ("  plain:\n", "  plain: 3\n", ["arms.plain = 3: must be a section with keys"]),
        ("name: a", "name: ..", ["name = ..: must not begin with . or -"]),
        (
            "overrides: [train.steps=9]",
            "overrides: [data.train=no/set, data.tabletop.train_scenes=0]",
            ["arms.more: no/set: no records-*.parquet in this folder"],
        ),
        ("learner.lr=1e-3", "model.path=no/policy", ["arms.sharp: ", "model.path = no/policy"]),
        ("overrides: [train.steps=9]", "overrides: [loss.kl=1]", ["arms.more: ", "loss = {kl: 1}: is not a key"]),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_before_the_first_run(
    write: Callable[[str], Path], old: str, new: str, words: list[str]
) -> None:
    assert old in TEXT
    path = write(TEXT.replace(old, new))
    with pytest.raises(ConfigError) as caught:
        runs_of(load_ablation(path), str(path))
    for word in words:
        assert word in str(caught.value)


def test_without_arms_there_is_nothing_to_run(write: Callable[[str], Path]) -> None:
    with pytest.raises(ConfigError, match=r"arms = .*must name at least one way of training"):
        load_ablation(write("base: x"))


@pytest.mark.parametrize("name", ["tabletop", "full"])
def test_the_shipped_ablations_can_run(name: str) -> None:
    path = ROOT / f"configs/ablation_{name}.yaml"
    # The full one starts from a policy of the hub
    there = [f"overrides=[model.path={ROOT}/videostr/tabletop/pretrained]"] if name == "full" else []
    runs = runs_of(load_ablation(path, there), str(path))
    assert sum(run.arm == "default" for run in runs) == sum(run.arm == "answer_only" for run in runs) == 5


# --------------------------------------------------------------------------------------------------- results


def finished(parent: Path, arm: str, seed: int, before: np.ndarray, after: np.ndarray) -> ArmRun:
    """Write the folder of a run that is done; its prompts scored these in `answer`, and every other one in `consistency`."""
    run = ArmRun(arm=arm, seed=seed, parent=parent, base="b", overrides=())
    (run.folder / "eval").mkdir(parents=True)
    for step, values in ((0, before), (7, after)):
        scores = {
            f"p{i}": {"answer": float(v)} | ({"consistency": float(v)} if i % 2 else {})
            for i, v in enumerate(values)
        }
        Evaluation(version=step, sampled=scores, greedy=scores, failures={}).write(
            run.folder / "eval" / f"step_{step:06d}.json"
        )
    rows = [
        {"step": s, "reward/answer": 0.5, "tokens/prompt": 10, "tokens/completion": 30, "time/step": 2.0}
        for s in (1, 2)
    ]
    (run.folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (run.folder / "summary.json").write_text("{}")
    return run


def test_differences_are_paired_by_seed_and_prompt(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    easy = rng.random(60)  # prompts differ more than arms do
    runs = []
    for seed in (0, 1, 2):
        noise = rng.normal(0, 0.01, 60)
        runs.append(finished(tmp_path, "plain", seed, easy, easy + noise))
        if seed < 2:
            runs.append(finished(tmp_path, "sharp", seed, easy, easy + noise + 0.1))
    runs.append(ArmRun(arm="sharp", seed=2, parent=tmp_path, base="b", overrides=()))  # not done
    start, plain, sharp = results(runs, "plain", 500)
    assert (start.name, plain.seeds, sharp.seeds) == (START, (0, 1, 2), (0, 1))
    found = sharp.figures["sampled", "answer"]
    assert found.difference is not None
    assert found.difference.value == pytest.approx(0.1)
    assert found.difference.low == pytest.approx(0.1) == found.difference.high  # the same noise in both arms
    assert found.value.low < found.value.value - 0.03  # prompts were drawn
    assert plain.figures["sampled", "answer"].difference is None
    assert ("sampled", "graph") not in plain.figures
    assert (sharp.tokens, sharp.seconds) == (80, 4.0)
    assert sharp.figures["greedy", "consistency"].value.value == pytest.approx(
        np.mean([np.mean(values) for values in (found_in(tmp_path, "sharp", s)[1::2] for s in (0, 1))]),
        abs=1e-4,  # digits that are kept
    )
    for run in runs:
        shutil.rmtree(run.folder, ignore_errors=True)
    assert results(runs, "plain", 500) == [start, plain, sharp]


def found_in(parent: Path, arm: str, seed: int) -> list[float]:
    """Return what the prompts of a run scored in `answer` after training."""
    scores = Evaluation.read(parent / f"{arm}-{seed}/eval/step_000007.json").sampled
    return [scores[f"p{i}"]["answer"] for i in range(len(scores))]


def test_seeds_are_drawn_too(tmp_path: Path) -> None:
    runs = [finished(tmp_path, "plain", seed, np.zeros(40), np.full(40, 0.2 * seed)) for seed in range(5)]
    value = results(runs, "plain", 500)[1].figures["sampled", "answer"].value
    assert value.value == pytest.approx(0.4)
    assert 0.1 < value.low < 0.3 < 0.5 < value.high < 0.7


def test_the_page_and_the_tables(tmp_path: Path, write: Callable[[str], Path]) -> None:
    config = load_ablation(write(TEXT), [f"dir={tmp_path}"])
    runs = [
        finished(tmp_path, arm, 0, np.zeros(8), np.full(8, v)) for arm, v in (("plain", 0.25), ("sharp", 0.5))
    ]
    arms = results(runs, "plain", 100)
    page = write_results(tmp_path, config, arms, 6, 2).read_text()
    for words in (
        "2 of 6 runs",
        "against plain",
        "+0.250",
        "learner.lr=1e-3",
        "train.steps=12",
        "before training",
    ):
        assert words in page
    assert "| sharp | 1 | 0.500 [0.500, 0.500] |" in (tmp_path / "ablation.md").read_text()
    values = json.loads((tmp_path / "ablation.json").read_text())
    assert values["arms"]["sharp"]["sampled/answer"]["difference"]["mean"] == pytest.approx(0.25)
    assert "No run is done yet" in write_results(tmp_path, config, [], 6, 0).read_text()
    assert table([], "plain").count("\n") == 2
