"""THE training step, top to bottom. Synchronous: what a step learns from was sampled from the weights it improves.

Consumes records of a `RecordSource` in seeded order. Produces updates, metrics, traces, checkpoints. Waits for its ports;
is unblocked by their answers, or by `stop`, upon which an unfinished collection is given up (its positions are drawn again on
resume), an update already begun is finished, and a checkpoint is written.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Sequence
from dataclasses import asdict, dataclass
from typing import TypeVar

import numpy as np

from videostr.checkpoint import Ledger, RunState, write_json
from videostr.config import Config
from videostr.data.source import Drawn, RecordSource
from videostr.grpo.advantage import advantages
from videostr.metrics import Progress, completion_tokens, step_metrics
from videostr.ports import Ports, Sampled, SampleRequest
from videostr.report.traces import trace_rows, write_traces
from videostr.runfolder import RunFolder
from videostr.types import Failure, LearnerBatch, Record, RolloutGroup, Update

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """The groups of one step, in order of position."""

    groups: tuple[RolloutGroup, ...]
    records: dict[str, Record]
    """By id."""
    ledger: Ledger
    rollout_s: float
    """Seconds until the last group was sampled."""
    reward_s: float
    """Seconds after that until the last group was scored."""


async def train(
    config: Config,
    source: RecordSource,
    ports: Ports,
    folder: RunFolder,
    state: RunState,
    stop: asyncio.Event,
) -> RunState:
    """Train from `state` to `train.steps`, or until `stop`; returns the state reached, which is checkpointed."""
    progress = Progress(config.train.steps, state.step)
    saved = state.step
    while state.step < config.train.steps:
        started = time.monotonic()
        collected = await unless(stop, collect(config, source, ports, folder, state.ledger))
        if collected is None:
            break
        gains = [group_advantages(config, group) for group in collected.groups]
        batch = learner_batch(config, collected.groups, gains)
        learned = time.monotonic()
        update = await ports.learner.update(batch) if batch.groups else Update(version=state.version)
        published = time.monotonic()
        synced = await ports.sync.publish(update.version) if batch.groups else {}
        ended = time.monotonic()

        state = RunState(step=state.step + 1, version=update.version, ledger=collected.ledger)
        times = {
            "time/rollout": collected.rollout_s,
            "time/reward": collected.reward_s,
            "time/learn": published - learned,
            "time/sync": ended - published,
            "time/step": ended - started,
            "rollout/tokens_per_s": completion_tokens(collected.groups) / max(collected.rollout_s, 1e-9),
        }
        failures = folder.quarantine.counts + ports.rewards.failures
        metrics = step_metrics(state, collected.groups, update, failures) | synced | times
        folder.metrics(metrics)
        progress.step(metrics)
        if _due(state.step, config.train.traces_every, config.train.steps):
            rows = trace_rows(state.step, collected.groups, gains, collected.records)
            write_traces(folder.path / "traces" / f"step_{state.step:06d}.parquet", rows)
        if _due(state.step, config.train.checkpoint_every, config.train.steps):
            await _save(folder, ports, state)
            saved = state.step
    if saved != state.step:
        await _save(folder, ports, state)
    return state


async def collect(
    config: Config, source: RecordSource, ports: Ports, folder: RunFolder, ledger: Ledger
) -> Collected:
    """Sample and score `train.prompts_per_step` groups; each that fails is quarantined and replaced by the next record."""
    started = sampled_at = time.monotonic()

    async def one(drawn: Drawn) -> RolloutGroup | Failure:
        nonlocal sampled_at
        sampled = await ports.rollouts.sample(_request(config, drawn))
        sampled_at = time.monotonic()
        return sampled if isinstance(sampled, Failure) else await score(ports, drawn, sampled)

    kept: list[tuple[Record, RolloutGroup]] = []
    while (missing := config.train.prompts_per_step - len(kept)) > 0:
        drawn = _draw(source, folder, range(ledger.next_position, ledger.next_position + missing))
        results = await asyncio.gather(*(one(d) for d in drawn))
        for d, result in zip(drawn, results, strict=True):
            if isinstance(result, Failure):
                folder.quarantine.add(result)
            else:
                kept.append((d.record, result))
        good = sum(not isinstance(result, Failure) for result in results)
        ledger = ledger.consume(drawn=missing, learned=good)
    return Collected(
        groups=tuple(group for _, group in kept),
        records={record.id: record for record, _ in kept},
        ledger=ledger,
        rollout_s=sampled_at - started,
        reward_s=time.monotonic() - sampled_at,
    )


async def score(ports: Ports, drawn: Drawn, sampled: Sampled) -> RolloutGroup | Failure:
    """A sampled group, scored."""
    rollouts = await ports.rewards.score(drawn.record, sampled.completions)
    if isinstance(rollouts, Failure):
        return rollouts
    return RolloutGroup(prompt=drawn.prompt, prompt_token_ids=sampled.prompt_token_ids, rollouts=rollouts)


def group_advantages(config: Config, group: RolloutGroup) -> np.ndarray:
    """[G] float32; zeros for a group of zero variance."""
    return advantages([rollout.score.total for rollout in group.rollouts], config.loss.advantage)


def learner_batch(
    config: Config, groups: Sequence[RolloutGroup], gains: Sequence[np.ndarray]
) -> LearnerBatch:
    """Groups with their advantages; those of zero variance are left out unless a KL term gives them a gradient."""
    kept = [i for i, gain in enumerate(gains) if config.loss.kl_coef > 0 or gain.any()]
    return LearnerBatch(
        groups=tuple(groups[i] for i in kept),
        advantages=tuple(gains[i] for i in kept),
        temperature=config.sampling.temperature,
    )


def _draw(source: RecordSource, folder: RunFolder, positions: range) -> list[Drawn]:
    found = [source.draw(position) for position in positions]
    for failure in found:
        if isinstance(failure, Failure):
            folder.quarantine.add(failure)
    return [d for d in found if isinstance(d, Drawn) and d.record.id not in folder.quarantine]


def _request(config: Config, drawn: Drawn) -> SampleRequest:
    seed = np.random.SeedSequence([config.run.seed, drawn.position]).generate_state(1)[0]
    return SampleRequest(
        prompt=drawn.prompt,
        n=config.sampling.group_size,
        temperature=config.sampling.temperature,
        max_tokens=config.sampling.max_tokens,
        seed=int(seed),
    )


async def _save(folder: RunFolder, ports: Ports, state: RunState) -> None:
    await folder.checkpoints.save(state, ports.learner.save)
    write_json(folder.path / "ledger.json", {"step": state.step, **asdict(state.ledger)})


def _due(step: int, every: int, last: int) -> bool:
    return step == last or (every > 0 and step % every == 0)


async def unless(stop: asyncio.Event, work: Awaitable[T]) -> T | None:
    """The result of `work`, or None when `stop` is set first; `work` is then cancelled."""
    task = asyncio.ensure_future(work)
    stopped = asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
        return await task if task.done() else None
    finally:
        stopped.cancel()
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
