"""What one driver handles: the real loop, pools and reward workers between engines and a learner that answer at once.

One JSON object a line. Engines are puppets that answer with groups of 8 completions of 1,024 tokens whose texts are traces with a
graph; the learner's rank takes the batch and answers. So all that is measured is drawing records, asking engines, scoring,
building the batch, handing it over, and metrics.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from transformers import AutoProcessor

from actors.learner.ray_learner import RayLearner
from actors.names import Named
from actors.placement import start_ray, stop_ray
from actors.pools import RayRolloutPool
from actors.reward import RayRewardPool
from actors.sampling import SamplingWorker, fetched
from rewards import Rubric
from tests.benchmarks.bench_host import UNIQUE, scene, trace
from tests.benchmarks.measure import report, spread
from videostr.checkpoint import Ledger, RunState
from videostr.config.load import load
from videostr.config.schema import Config
from videostr.data.prompts import RecordSource
from videostr.groups import LearnerBatch, Sampled, SampledRef
from videostr.loop import train
from videostr.pool import EnginePool
from videostr.ports import Ports, SampleRequest
from videostr.run_folder import RunFolder
from videostr.sync import EngineSync
from videostr.types import Clip, ClipSpec, Completion, FinishReason, Prompt, Update, VersionSpan

G, PROMPT, COMPLETION = 8, 4096, 1024
GROUPS, STEPS = 256, 6
"""Of a step; the first step warms up."""


def puppet_engine() -> Any:
    """Return the class of an engine that has every group already; made here, so that Ray ships it by value, without imports."""
    text = trace(scene(UNIQUE), "so " * 600)

    class Puppet(SamplingWorker):
        def __init__(self, *_: Any) -> None:
            self.ids = np.arange(COMPLETION, dtype=np.int32)

        async def start(self) -> None:
            pass

        async def sample(self, request: SampleRequest) -> Sampled:
            return Sampled(
                prompt_token_ids=np.arange(PROMPT, dtype=np.int32),
                completions=tuple(
                    Completion(
                        text=text if i % 2 else text.replace("</think>", ""),
                        token_ids=self.ids.copy(),
                        logprobs=-np.ones(COMPLETION, np.float32),
                        finish_reason=FinishReason.STOP,
                        weight_versions=(VersionSpan(version=0, start=0, end=COMPLETION),),
                    )
                    for i in range(request.n)
                ),
            )

        async def pause(self) -> None:
            pass

        async def ping(self) -> None:
            pass

        def close(self) -> None:
            pass

    return Puppet


def puppet_rank() -> Any:
    """Return the class of a rank without a policy, which has learned when it has every token."""

    class PuppetRank(Named):
        def __init__(self, *_: Any) -> None:
            self.version = 0

        def rendezvous(self) -> tuple[str, int]:
            return "", 0

        def connect(self, *_: Any) -> None:
            pass

        def start(self) -> None:
            pass

        def update(self, batch: LearnerBatch) -> Update:
            groups = fetched(batch).groups
            assert all(
                len(each.token_ids) == COMPLETION for group in groups for each in group.tokens.completions
            )
            self.version += 1
            return Update(version=self.version, metrics={"loss": 0.0})

        def snapshot(self) -> None:
            pass

        def write(self, folder: str) -> Any:
            (Path(folder) / "policy").mkdir()
            return SimpleNamespace(files={}, problems=())

    return PuppetRank


class NoSync(EngineSync):
    """Engines that need no weights."""

    async def _send(self, engines: Sequence[Any], version: int) -> dict[str, float]:
        return {"sync/bytes": 1.0}


async def steps(config: Config, folder: RunFolder, source: RecordSource) -> tuple[list[float], float]:
    """Return the seconds of every step but the first, and the driver's processor seconds a group."""
    rollouts = RayRolloutPool(
        config, folder.frame_store, folder.path, worker_class=puppet_engine(), timeline=folder.timeline
    )
    rewards = RayRewardPool(
        config.reward, Rubric.from_config(config.reward, COMPLETION), timeline=folder.timeline
    )
    learner = RayLearner(config, folder.frame_store, worker_class=puppet_rank(), timeline=folder.timeline)
    await asyncio.gather(rollouts.start(), learner.restart())
    ports = Ports(rollouts=rollouts, rewards=rewards, learner=learner, sync=NoSync(learner, rollouts))
    state = RunState(step=0, version=0, ledger=Ledger(seed=0, records=len(source.records)))
    first = state.step + 1
    config.train.steps = first
    state = await train(config, source, ports, folder, state, asyncio.Event())
    config.train.steps = STEPS
    began = time.process_time()
    await train(config, source, ports, folder, state, asyncio.Event())
    spent = time.process_time() - began
    rewards.close()
    rollouts.close()
    learner.close()
    rows = [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines()]
    return [row["time/step"] for row in rows[first:]], spent / (STEPS - first) / GROUPS


def test_driver(tabletop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = load(
        "configs/tabletop_cpu.yaml",
        [
            f"run.dir={tmp_path}",
            f"data.train={tabletop / 'train'}",
            f"train.prompts_per_step={GROUPS}",
            f"sampling.max_tokens={COMPLETION}",
            f"rollout.max_model_len={PROMPT + COMPLETION}",
            f"rollout.max_num_batched_tokens={PROMPT + COMPLETION}",
            f"rollout.max_num_seqs={8 * G}",
            "rollout.num_workers=2",
            "rollout.num_cpus=0.5",
            "reward.num_workers=2",
            "learner.num_cpus=0.5",
            "train.traces_every=0",
            "train.checkpoint_every=0",
            "train.max_staleness=1",
        ],
    )
    source = RecordSource(config.data.train, AutoProcessor.from_pretrained(config.model.path), 0)
    folder = RunFolder(config)
    folder.quarantine.begin(len(source.records), source.failures)
    start_ray(num_cpus=4)
    try:
        seconds, driver = asyncio.run(steps(config, folder, source))
    finally:
        stop_ray()
        folder.close()
    report(
        capsys,
        name="driver/groups_per_s",
        value=round(GROUPS / statistics.median(seconds), 1),
        unit="groups/s",
        ratio=round(1 / driver, 1),
        against="groups a second of the driver's own processor time",
        shape=f"{GROUPS} prompts of {PROMPT} tokens x {G} completions of {COMPLETION} a step, 2 engines, 2 reward workers",
        cores=os.cpu_count(),
        repeats=len(seconds),
        spread=spread(seconds),
    )


class InProcess(EnginePool):
    """Engines that answer at once, in this process."""

    def _launch(self, index: int, log_file: Path) -> int:
        return index

    async def _ask(self, handle: int, method: str, *arguments: Any, limit_s: float) -> Any:
        await asyncio.sleep(0)
        return SampledRef(num_prompt_tokens=PROMPT, completions=(), content=None)

    def _kill(self, handle: int) -> None: ...
    def _close_all(self, handles: Sequence[int]) -> None: ...
    def _release(self, index: int) -> None: ...


@pytest.mark.parametrize(("engines", "groups"), [(2, 512), (2, 4096), (1024, 4096)])
def test_pool(engines: int, groups: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What choosing an engine takes, and how it grows with engines and with groups that wait for one."""
    config = load("configs/tabletop_cpu.yaml", [f"rollout.num_workers={engines}"])
    clip = Clip(digest="", spec=ClipSpec(video="v.mp4", num_frames=1))
    prompt = Prompt(record_id="r", text="", clip=clip)
    request = SampleRequest(prompt=prompt, n=G, temperature=1.0, max_tokens=COMPLETION, seed=0)

    async def seconds() -> list[float]:
        pool, found = InProcess(config, tmp_path), []
        await pool.start()
        for _ in range(STEPS):
            began = time.process_time()
            await asyncio.gather(*(pool.sample(request) for _ in range(groups)))
            found.append((time.process_time() - began) / groups)
        pool.close()
        return found[1:]

    taken = asyncio.run(seconds())
    report(
        capsys, name="driver/pool", value=round(1e6 * statistics.median(taken)), unit="us of processor time a group", ratio=None,
        against=None, shape=f"{engines} engines, {groups} groups at once", cores=1, repeats=len(taken), spread=spread(taken),
    )  # fmt: skip
