"""Held-out evaluation: the same prompts before and after, sampled at the training temperature and greedily.

In: held-out records, ports. Out: `eval/step_XXXXXX.json` with means per prompt, and the summary of two such evaluations:
means and the paired gain with its confidence interval.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from videostr.checkpoint import write_json
from videostr.config import Config
from videostr.data.source import Drawn
from videostr.evaluate.statistics import Interval, bootstrap_weights
from videostr.ports import Ports, SampleRequest
from videostr.types import Failure

log = logging.getLogger(__name__)
PARTS = ("total", "format", "answer", "graph")


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

    def write(self, path: Path) -> None:
        """Write it as JSON, means first."""
        write_json(
            path, {"sampled_mean": means(self.sampled), "greedy_mean": means(self.greedy), **asdict(self)}
        )

    @classmethod
    def read(cls, path: Path) -> Evaluation:
        """Read what `write` wrote."""
        values = json.loads(path.read_text())
        return cls(**{name: values[name] for name in ("version", "sampled", "greedy", "failures")})


async def evaluate(
    config: Config,
    heldout: Sequence[Drawn | Failure],
    ports: Ports,
    version: int,
    *,
    greedy_only: bool = False,
) -> Evaluation:
    """Sample and score every held-out prompt; a prompt that fails is counted and left out."""
    ways = [(1, 0.0)] if greedy_only else [(config.evaluate.samples, config.sampling.temperature), (1, 0.0)]
    failures: dict[str, int] = {}
    sampled: dict[str, dict[str, float]] = {}
    greedy: dict[str, dict[str, float]] = {}

    async def one(drawn: Drawn | Failure) -> None:
        results = [
            drawn if isinstance(drawn, Failure) else await _ask(config, drawn, ports, n, temperature)
            for n, temperature in ways
        ]
        for result in results:
            if isinstance(result, Failure):
                failures[result.kind.name.lower()] = failures.get(result.kind.name.lower(), 0) + 1
                log.warning("held-out %s: %s (%s)", result.record_id, result.detail, result.kind.value)
                return
        record_id = drawn.record.id if isinstance(drawn, Drawn) else ""
        scores = [result for result in results if not isinstance(result, Failure)]
        greedy[record_id] = scores[-1]
        if not greedy_only:
            sampled[record_id] = scores[0]

    await asyncio.gather(*(one(drawn) for drawn in heldout))
    return Evaluation(
        version=version,
        sampled=dict(sorted(sampled.items())),
        greedy=dict(sorted(greedy.items())),
        failures=failures,
    )


def means(scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Mean of every part over the prompts that have it."""
    return {
        part: float(np.mean(values))
        for part in PARTS
        if (values := [row[part] for row in scores.values() if part in row])
    }


def summary(
    config: Config, before: Evaluation, after: Evaluation, seconds: Mapping[str, float]
) -> dict[str, Any]:
    """What `summary.json` holds; gains are paired over the prompts that both evaluations have."""
    return {
        "seed": config.run.seed,
        "heldout": {
            "prompts": len(before.sampled.keys() & after.sampled.keys()),
            "before": means(before.sampled),
            "after": means(after.sampled),
            "greedy_before": means(before.greedy),
            "greedy_after": means(after.greedy),
            "gain": {
                part: paired_gain(
                    before.sampled, after.sampled, part, config.evaluate.bootstrap, config.run.seed
                )
                for part in ("total", "graph", "answer")
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
    """Mean gain of a part with its 95 % percentile interval, by paired bootstrap over prompts; None without the part."""
    common = [i for i in sorted(before.keys() & after.keys()) if part in before[i] and part in after[i]]
    gains = np.array([after[i][part] - before[i][part] for i in common])
    if gains.size == 0:
        return None
    draws = bootstrap_weights(common, resamples, seed) @ gains / gains.size
    found = Interval.of(float(gains.mean()), draws)
    return {"mean": found.value, "ci95": [found.low, found.high]}


def table(values: Mapping[str, Any]) -> str:
    """The summary as a table for the terminal."""
    heldout = values["heldout"]
    lines = [f"{heldout['prompts']} held-out prompts     before   after    gain [95 % CI]"]
    for kind, before, after in (("sampled", "before", "after"), ("greedy", "greedy_before", "greedy_after")):
        for part in PARTS:
            if part not in heldout[before]:
                continue
            old, new = heldout[before][part], heldout[after][part]
            gain = heldout["gain"].get(part) if kind == "sampled" else None
            interval = f" [{gain['ci95'][0]:+.3f}, {gain['ci95'][1]:+.3f}]" if gain else ""
            lines.append(f"{kind:8s} {part:8s}         {old:8.3f}{new:8.3f}  {new - old:+8.3f}{interval}")
    return "\n".join(lines)


async def _ask(
    config: Config, drawn: Drawn, ports: Ports, n: int, temperature: float
) -> dict[str, float] | Failure:
    request = SampleRequest(
        prompt=drawn.prompt,
        n=n,
        temperature=temperature,
        max_tokens=config.sampling.max_tokens,
        seed=int(np.random.SeedSequence([config.run.seed, 1, drawn.position]).generate_state(1)[0]),
    )
    sampled = await ports.rollouts.sample(request)
    if isinstance(sampled, Failure):
        return sampled
    rollouts = await ports.rewards.score(drawn.record, sampled.completions)
    if isinstance(rollouts, Failure):
        return rollouts
    scores = [{"total": rollout.score.total, **rollout.score.parts} for rollout in rollouts]
    return {part: float(np.mean([s[part] for s in scores])) for part in PARTS if part in scores[0]}
