"""Two engines, two learner ranks, ZeRO-3, vision tower trained: after every sync both sides compute the same policy."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
from transformers import AutoProcessor

from videostr.checkpoint import DataCursor, Ledger
from videostr.config.load import load
from videostr.data.prompts import RecordSource
from videostr.launch import cluster
from videostr.loop import collect, group_advantages, learner_batch
from videostr.ports import Ports
from videostr.run_folder import RunFolder

AGREEMENT = 0.02
"""Largest mean absolute difference of log-probabilities, nats."""


def test_engines_follow_the_learner(tabletop: Path, tmp_path: Path) -> None:
    config = load(
        "configs/tabletop_zero3.yaml",
        [f"run.dir={tmp_path}", f"data.train={tabletop / 'train'}", "learner.lr=1e-3"],
    )
    folder = RunFolder(config)
    source = RecordSource(config.data.train, AutoProcessor.from_pretrained(config.model.path), seed=0)
    folder.quarantine.records = len(source.records)

    async def run() -> list[float]:
        async with cluster(config, folder, asyncio.Event()) as ports:
            return await _steps(ports)

    async def _steps(ports: Ports) -> list[float]:
        cursor = DataCursor(Ledger(seed=0, records=len(source.records)))
        differences = []
        for version in range(4):
            found = await collect(config, source, ports, folder, cursor)
            versions = {
                s.version for g in found.groups for c in g.sampled.completions for s in c.weight_versions
            }
            assert versions == {version}
            gains = [np.arange(4, dtype=np.float32) - 1.5 for _ in found.groups]
            batch = learner_batch(config, found.groups, gains)
            sampled = [await group.sampled.whole() for group in batch.groups]
            differences.append(_difference(sampled, await ports.learner.logprobs(batch)))  # type: ignore[attr-defined]
            assert all(group_advantages(config, group).shape == (4,) for group in found.groups)
            update = await ports.learner.update(batch)
            assert update.version == version + 1
            synced = await ports.sync.sync(
                update.version
            )  # sync.verify compares every parameter in every engine
            assert synced["sync/bytes"] > 3e6
        return differences

    differences = asyncio.run(run())
    folder.close()
    assert len(differences) == 4
    assert max(differences) < AGREEMENT


def _difference(groups, learned) -> float:
    sampled = np.concatenate([c.logprobs for group in groups for c in group.completions])
    return float(np.abs(sampled - np.concatenate([values for group in learned for values in group])).mean())
