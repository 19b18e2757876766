"""Held-out evaluation: prompts and scores as when a policy is evaluated alone; means, paired bootstrap, the file's shape.

Engines and reward workers are stand-ins; tests/test_launch.py has real ones.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoProcessor

import rewards
from rewards import Rubric
from videostr.config.schema import (
    BenchmarkConfig,
    Config,
    EvaluationConfig,
    EvaluationModel,
    EvaluationSampling,
)
from videostr.config.sections import EvaluateConfig, Run, Sampling
from videostr.data.prompts import PromptItem, RecordSource
from videostr.evaluate.answers import Answers
from videostr.evaluate.benchmark import Mode
from videostr.evaluate.records import Records
from videostr.evaluate.rows import tally
from videostr.evaluate.run import Asker, PreparedQuestion, ask_new
from videostr.groups import Sampled
from videostr.heldout import Evaluation, EvaluationRequest, evaluate, means, paired_gain, summary, table
from videostr.ports import Ports, SampleRequest
from videostr.prompt import reference_trace
from videostr.types import Completion, Failure, FailureKind, FinishReason, Record, Score, VersionSpan

POLICY = "videostr/tabletop/pretrained"
CONFIG = Config(
    run=Run(seed=7), sampling=Sampling(temperature=0.7, max_tokens=160), evaluate=EvaluateConfig(samples=3)
)

BEFORE = {"a": {"total": 1.0, "format": 1.0, "answer": 0.0, "graph": 0.5}, "b": {"total": 0.5, "answer": 0.5}}
AFTER = {"a": {"total": 1.5, "format": 1.0, "answer": 0.5, "graph": 0.5}, "b": {"total": 1.5, "answer": 1.0}}


def test_means_are_over_the_prompts_that_have_the_part():
    # total (1.0 + 0.5) / 2; format and graph stand in one prompt only.
    assert means(BEFORE) == {"total": 0.75, "format": 1.0, "answer": 0.25, "graph": 0.5}
    assert means({"a": {"total": 1.2, "custom": 0.5}}) == {"total": 1.2, "custom": 0.5}


def test_gain_is_paired():
    # Gains 0.5 and 1.0: mean 0.75; every resample of two lies in [0.5, 1].
    gain = paired_gain(BEFORE, AFTER, "total", 500, seed=0)
    assert gain is not None
    assert gain["mean"] == pytest.approx(0.75)
    assert gain["ci95"] == [0.5, 1.0]
    assert paired_gain({}, {}, "total", 10, seed=0) is None
    assert paired_gain({"a": BEFORE["a"]}, AFTER, "total", 10, seed=0) is None  # one prompt


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
    assert list(values["heldout"]["gain"]) == ["answer", "graph", "total"]
    assert values["heldout"]["prompts"] == 2
    assert values["heldout"]["gain"]["answer"]["mean"] == pytest.approx(0.5)
    text = table(values)
    assert "0.750   1.500    +0.750 [+0.500, +1.000]" in text


# ------------------------------------------------------------------------------------------ asked and scored


@dataclass
class Rollouts:
    """Writes what `texts` has for a record: the first alone where greedy, else in turn."""

    texts: dict[str, Sequence[str]]
    refuse: set[str] = field(default_factory=set)
    """Records whose greedy requests are refused."""
    asked: list[SampleRequest] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    version: int = 0
    """Of the weights."""

    async def sample(self, request: SampleRequest) -> Sampled | Failure:
        self.asked.append(request)
        name, ids = request.prompt.record_id, np.arange(4, dtype=np.int32)
        await asyncio.sleep(0)
        if name in self.refuse and request.temperature == 0:
            return Failure(kind=FailureKind.ENGINE, record_id=name, detail="because")
        completions = [
            Completion(
                text=self.texts[name][i % len(self.texts[name])],
                token_ids=ids,
                logprobs=np.zeros(4, dtype=np.float32),
                finish_reason=FinishReason.STOP,
                weight_versions=(VersionSpan(version=self.version, start=0, end=4),),
            )
            for i in range(request.n)
        ]
        return Sampled(prompt_token_ids=ids, completions=tuple(completions))


@dataclass
class Workers:
    """Scores in this process."""

    fail: set[str] = field(default_factory=set)
    failures: Counter[str] = field(default_factory=Counter)

    async def score(self, record: Record, sampled: Sampled) -> tuple[Score, ...] | Failure:
        if record.id in self.fail:
            return Failure(kind=FailureKind.REWARD_TIMEOUT, record_id=record.id, detail="late")
        return tuple(rewards.score_group(sampled.completions, record))


def request(
    heldout: Sequence[PromptItem | Failure], ports: Ports, version: int, *, greedy_only: bool = False
) -> EvaluationRequest:
    return EvaluationRequest(
        config=CONFIG, heldout=heldout, ports=ports, version=version, greedy_only=greedy_only
    )


def ports(rollouts: Rollouts, workers: Workers | None = None) -> Ports:
    return Ports(rollouts=rollouts, rewards=workers or Workers(), learner=None, sync=None)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def items(tabletop: Path) -> list[PromptItem]:
    source = RecordSource(str(tabletop / "heldout"), AutoProcessor.from_pretrained(POLICY), seed=0)
    return [item for item in source.first(8) if isinstance(item, PromptItem)]


def texts(items: Sequence[PromptItem]) -> dict[str, Sequence[str]]:
    """The true trace, one with another answer, and none; another one first for every third record."""
    found: dict[str, Sequence[str]] = {}
    for place, item in enumerate(items):
        true = reference_trace(item.record)
        several = [true, true.split("<answer>")[0] + "<answer>no</answer>", "nothing"]
        found[item.record.id] = several[place % 3 :] + several[: place % 3]
    return found


def test_every_prompt_is_sampled_and_asked_greedily_and_twice_the_same(items: list[PromptItem]) -> None:
    rollouts = Rollouts(texts(items), version=4)
    found = asyncio.run(evaluate(request(items, ports(rollouts), 4)))
    assert found.version == 4
    assert list(found.sampled) == list(found.greedy) == sorted(item.record.id for item in items)
    ways = Counter((r.n, r.temperature, r.max_tokens) for r in rollouts.asked)
    assert ways == {(3, 0.7, 160): 8, (1, 0.0, 160): 8}
    assert len({r.seed for r in rollouts.asked}) == 8  # one a prompt
    # One of three has the true answer, two are well-formed: format 0.2, answer 1, graph 1.
    for item in items:
        assert found.sampled[item.record.id]["answer"] == pytest.approx(1 / 3)
        assert found.sampled[item.record.id]["format"] == pytest.approx(2 / 3)
        assert found.sampled[item.record.id]["total"] == pytest.approx((2 * 0.2 + 1 + 2) / 3)
    assert {found.greedy[item.record.id]["answer"] for item in items[::3]} == {1.0}
    assert {found.greedy[item.record.id]["answer"] for item in items[1::3]} == {0.0}
    again = Rollouts(texts(items), version=4)
    assert asyncio.run(evaluate(request(items, ports(again), 4))) == found
    assert again.asked == rollouts.asked


def test_during_training_only_greedy_requests_are_made(items: list[PromptItem]) -> None:
    rollouts = Rollouts(texts(items), version=4)
    found = asyncio.run(evaluate(request(items, ports(rollouts), 4, greedy_only=True)))
    assert {(r.n, r.temperature) for r in rollouts.asked} == {(1, 0.0)}
    assert found.sampled == {}
    assert len(found.greedy) == 8


def test_a_prompt_that_fails_in_one_way_is_counted_and_left_out_of_both(items: list[PromptItem]) -> None:
    names = [item.record.id for item in items]
    rollouts = Rollouts(texts(items), refuse={names[1]})
    broken = Failure(kind=FailureKind.BAD_VIDEO, record_id="gone", detail="missing")
    found = asyncio.run(
        evaluate(request([broken, *items], ports(rollouts, Workers(fail={names[2], names[3]})), 0))
    )
    assert found.failures == {"bad_video": 1, "engine": 1, "reward_timeout": 2}
    assert list(found.sampled) == list(found.greedy) == sorted({*names} - {*names[1:4]})
    assert asyncio.run(evaluate(request([broken], ports(rollouts), 0))).failures == {"bad_video": 1}


def test_what_an_engine_with_other_weights_sampled_is_left_out(items: list[PromptItem]) -> None:
    rollouts = Rollouts(texts(items), version=5)
    found = asyncio.run(evaluate(request(items, ports(rollouts), 4, greedy_only=True)))
    assert (found.greedy, found.failures) == ({}, {"other_weights": 8})


def test_evaluation_alone_and_during_training_agree(
    items: list[PromptItem], tabletop: Path, tmp_path: Path
) -> None:
    during = Rollouts(texts(items))
    trained = asyncio.run(evaluate(request(items, ports(during), 0, greedy_only=True)))

    root = tabletop / "heldout"
    config = EvaluationConfig(
        benchmark=BenchmarkConfig(root=str(root)),
        model=EvaluationModel(path=POLICY),
        sampling=EvaluationSampling(max_tokens=CONFIG.sampling.max_tokens),
    )
    benchmark = Records(Rubric.preset("default"))
    asker = Asker(config, benchmark, AutoProcessor.from_pretrained(POLICY), "digest")
    prepared = [asker.prepare(question, Mode.GRAPH) for question in benchmark.read(root).questions]
    alone = Rollouts(texts(items))
    with Answers(tmp_path / "answers.sqlite") as answers:
        asked = [item for item in prepared if isinstance(item, PreparedQuestion)]
        refused = asyncio.run(ask_new(asked, alone, answers, at_once=2))
        rows = tally(prepared, answers, refused, asker)

    def what(rollouts: Rollouts) -> list[object]:
        return [(r.prompt, r.n, r.temperature, r.max_tokens) for r in rollouts.asked]

    assert len(alone.asked) == 8
    assert what(alone) == what(during)
    parts = ("format", "answer", "graph")
    assert {row.id: {part: row.scores[part] for part in parts} for row in rows} == {
        name: {part: scores[part] for part in parts} for name, scores in trained.greedy.items()
    }
    assert len({row.scores["answer"] for row in rows}) > 1
