"""Held-out evaluation: the same prompts before and after, sampled at the training temperature and greedily.

Sampled and scored by the engines and reward workers of the training run.
In: held-out records, ports. Out: `eval/step_XXXXXX.json` with means per prompt, and the summary of two such evaluations:
means and the paired gain with its confidence interval.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from videostr.asking import ask
from videostr.bootstrap import Interval, bootstrap_weights
from videostr.config.schema import Config
from videostr.data.prompts import PromptItem
from videostr.files import write_json
from videostr.groups import SampledGroup
from videostr.ports import Ports, SampleRequest
from videostr.types import Failure, FailureKind, Score

log = logging.getLogger("videostr.evaluate")
PARTS = (
    *("answer", "graph", "entailed", "consistency", "format", "custom", "total"),
    *("tokens", "digits", "loss"),
)
"""Those that a record or rubric does not have are left out; the last three are of supervised fine-tuning."""
GAINS = ("answer", "graph", "total")
SAMPLED, GREEDY = "sampled", "greedy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Scores of one policy on the held-out prompts."""

    version: int
    """Weight version."""
    sampled: dict[str, dict[str, float]]
    """Record id -> part -> mean over `evaluate.samples` completions."""
    greedy: dict[str, dict[str, float]]
    """Record id -> part -> score of the greedy completion."""
    failures: dict[str, int]
    """Prompts that could not be evaluated, by kind."""
    best_by: str = "total"
    """The part by which the best checkpoint is chosen."""

    @property
    def merit(self) -> float | None:
        """Mean of `best_by` over the greedy completions; None without one."""
        return means(self.greedy).get(self.best_by)

    def write(self, path: Path) -> None:
        """Write it as JSON, means first."""
        write_json(
            path, {"sampled_mean": means(self.sampled), "greedy_mean": means(self.greedy), **asdict(self)}
        )

    @classmethod
    def read(cls, path: Path) -> Evaluation:
        """Read what `write` wrote."""
        values = json.loads(path.read_text(encoding="utf-8"))
        return cls(**{each.name: values[each.name] for each in fields(cls) if each.name in values})


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationRequest:
    """What is to be evaluated."""

    config: Config
    heldout: Sequence[PromptItem | Failure]
    """Held-out prompts; a failure is one that cannot be used."""
    ports: Ports
    version: int
    """Of the weights that must have answered."""
    greedy_only: bool = False
    """Whether the sampled completions are left out."""


Evaluate = Callable[[EvaluationRequest], Coroutine[Any, Any, Evaluation]]
"""Evaluates held-out prompts: sampled and greedily by the run's engines (`evaluate`), or by teacher forcing."""


async def evaluate(request: EvaluationRequest) -> Evaluation:
    """Sample and score every held-out prompt; a prompt that fails in one way is counted and left out of both."""
    config, heldout, ports, version = request.config, request.heldout, request.ports, request.version
    greedy_only = request.greedy_only
    ways = {GREEDY: (1, 0.0)}
    if not greedy_only:
        ways = {SAMPLED: (config.evaluate.samples, config.sampling.temperature), **ways}
    items = {item.record.id: item for item in heldout if isinstance(item, PromptItem)}
    requests = {
        (record_id, way): _request(config, item, *ways[way])
        for record_id, item in items.items()
        for way in ways
    }
    scores: dict[tuple[str, str], dict[str, float]] = {}

    async def score(name: tuple[str, str], sampled: SampledGroup) -> Failure | None:
        versions = {span.version for c in sampled.completions for span in c.weight_versions}
        if versions - {version}:
            return Failure(
                kind=FailureKind.OTHER_WEIGHTS,
                record_id=name[0],
                detail=f"sampled from versions {sorted(versions)}, version {version} is evaluated",
            )
        found = await ports.rewards.score(items[name[0]].record, sampled)
        if isinstance(found, Failure):
            return found
        scores[name] = _mean_of(found)
        return None

    unusable = [d for d in heldout if isinstance(d, Failure)]
    for failure in unusable:
        log.warning("%s: %s (%s)", failure.record_id, failure.detail, failure.kind.value)
    refused = await ask(requests, ports.rollouts, score, at_once=len(requests))
    lost = {record_id: failure for (record_id, _), failure in refused.items()}
    whole = sorted(items.keys() - lost.keys())
    return Evaluation(
        version=version,
        sampled={} if greedy_only else {record_id: scores[record_id, SAMPLED] for record_id in whole},
        greedy={record_id: scores[record_id, GREEDY] for record_id in whole},
        failures=dict(Counter(failure.kind.name.lower() for failure in [*unusable, *lost.values()])),
    )


def means(scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return the mean of every part over the prompts that have it."""
    return {
        part: float(np.mean(values))
        for part in PARTS
        if (values := [row[part] for row in scores.values() if part in row])
    }


def summary(
    config: Config, before: Evaluation, after: Evaluation, seconds: Mapping[str, float]
) -> dict[str, Any]:
    """Return what `summary.json` holds; gains are paired over the prompts that both evaluations have."""
    return {
        "seed": config.run.seed,
        "heldout": {
            "prompts": len(before.greedy.keys() & after.greedy.keys()),
            "before": means(before.sampled),
            "after": means(after.sampled),
            "greedy_before": means(before.greedy),
            "greedy_after": means(after.greedy),
            "gain": {
                part: paired_gain(
                    before.sampled, after.sampled, part, config.evaluate.bootstrap, config.run.seed
                )
                for part in GAINS
            },
        },
        "seconds": dict(seconds),
    }


def paired_gain(
    before: Mapping[str, Mapping[str, float]],
    after: Mapping[str, Mapping[str, float]],
    part: str,
    resamples: int,
    seed: int,
) -> dict[str, Any] | None:
    """Return the mean gain of a part with its 95 % percentile interval, by paired bootstrap over prompts.

    None where fewer than two prompts have the part in both.
    """
    common = [i for i in sorted(before.keys() & after.keys()) if part in before[i] and part in after[i]]
    gains = np.array([after[i][part] - before[i][part] for i in common])
    if gains.size < 2:
        return None
    weights = bootstrap_weights(common, resamples, seed)
    found = Interval.of(float(gains.mean()), weights @ gains / gains.size, weights)
    return {"mean": found.value, "ci95": [found.low, found.high]}


def table(values: Mapping[str, Any]) -> str:
    """Return the summary as a table for the terminal."""
    heldout = values["heldout"]
    lines = [f"{heldout['prompts']} held-out prompts     before   after    gain [95 % CI]"]
    for kind, before, after in (("sampled", "before", "after"), ("greedy", "greedy_before", "greedy_after")):
        for part in PARTS:
            if part not in heldout[before] or part not in heldout[after]:
                continue
            old, new = heldout[before][part], heldout[after][part]
            gain = heldout["gain"].get(part) if kind == "sampled" else None
            interval = f" [{gain['ci95'][0]:+.3f}, {gain['ci95'][1]:+.3f}]" if gain else ""
            lines.append(f"{kind:8s} {part:11s}      {old:8.3f}{new:8.3f}  {new - old:+8.3f}{interval}")
    return "\n".join(lines)


def _request(config: Config, item: PromptItem, n: int, temperature: float) -> SampleRequest:
    return SampleRequest(
        prompt=item.prompt,
        n=n,
        temperature=temperature,
        max_tokens=config.sampling.max_tokens,
        seed=int(np.random.SeedSequence([config.run.seed, 1, item.position]).generate_state(1)[0]),
    )


def _mean_of(scores: Sequence[Score]) -> dict[str, float]:
    """Return by part the mean over the completions of a prompt."""
    rows = [{"total": score.total, **score.parts} for score in scores]
    return {part: float(np.mean([row[part] for row in rows])) for part in PARTS if part in rows[0]}
