"""Held-out summary: means, paired bootstrap, the file's exact shape."""

from __future__ import annotations

import numpy as np
import pytest

from videostr.config import Config, EvaluateConfig, Run
from videostr.evaluate.heldout import Evaluation, means, paired_gain, summary, table

BEFORE = {"a": {"total": 1.0, "format": 1.0, "answer": 0.0, "graph": 0.5}, "b": {"total": 0.5, "answer": 0.5}}
AFTER = {"a": {"total": 1.5, "format": 1.0, "answer": 0.5, "graph": 0.5}, "b": {"total": 1.5, "answer": 1.0}}


def test_means_are_over_the_prompts_that_have_the_part():
    # total (1.0 + 0.5) / 2; format and graph stand in one prompt only.
    assert means(BEFORE) == {"total": 0.75, "format": 1.0, "answer": 0.25, "graph": 0.5}


def test_gain_is_paired():
    # Gains 0.5 and 1.0: mean 0.75; every resample of two lies in [0.5, 1].
    gain = paired_gain(BEFORE, AFTER, "total", 500, seed=0)
    assert gain is not None
    assert gain["mean"] == pytest.approx(0.75)
    assert gain["ci95"] == [0.5, 1.0]
    assert paired_gain({}, {}, "total", 10, seed=0) is None


def test_interval_has_the_width_of_the_standard_error():
    # 400 gains of mean 0.1 and deviation s: the 95 % interval is about 0.1 +- 1.96 s / 20.
    gains = np.random.default_rng(1).normal(0.1, 1.0, 400)
    gains += 0.1 - gains.mean()
    before = {str(i): {"total": 0.0} for i in range(400)}
    after = {str(i): {"total": float(g)} for i, g in enumerate(gains)}
    gain = paired_gain(before, after, "total", 4000, seed=0)
    assert gain is not None
    low, high = gain["ci95"]
    assert low == pytest.approx(0.1 - 1.96 * gains.std() / 20, abs=0.006)
    assert high == pytest.approx(0.1 + 1.96 * gains.std() / 20, abs=0.006)


def test_summary_has_the_documented_shape(tmp_path):
    config = Config(run=Run(seed=7), evaluate=EvaluateConfig(bootstrap=100))
    evaluations = [
        Evaluation(version=version, sampled=scores, greedy=scores, failures={})
        for version, scores in ((0, BEFORE), (9, AFTER))
    ]
    for evaluation in evaluations:
        evaluation.write(tmp_path / "e.json")
        assert Evaluation.read(tmp_path / "e.json") == evaluation
    values = summary(config, *evaluations, {"startup": 1.0, "train": 2.0, "evaluate": 3.0})
    assert list(values) == ["seed", "heldout", "seconds"]
    assert list(values["heldout"]) == ["prompts", "before", "after", "greedy_before", "greedy_after", "gain"]
    assert list(values["heldout"]["gain"]) == ["total", "graph", "answer"]
    assert values["heldout"]["prompts"] == 2
    assert values["heldout"]["gain"]["answer"]["mean"] == pytest.approx(0.5)
    text = table(values)
    assert "0.750   1.500    +0.750 [+0.500, +1.000]" in text
