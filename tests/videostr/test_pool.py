"""Which engine a request goes to; engines are coroutines here. tests/actors/test_pools.py has those that die."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from videostr.config.schema import Config
from videostr.config.sections import RolloutConfig
from videostr.groups import Sampled
from videostr.pool import AHEAD, EnginePool
from videostr.ports import SampleRequest
from videostr.types import Clip, ClipSpec, Prompt

SEATS = 16


class Engines(EnginePool):
    """Each samples `SEATS` requests at once, for a random time, and holds the clips of the last three encoded."""

    def __init__(self, count: int) -> None:
        super().__init__(Config(rollout=RolloutConfig(num_workers=count, max_num_seqs=SEATS)), "none")
        self.random = random.Random(0)
        self.seats = [asyncio.Semaphore(SEATS) for _ in range(count)]
        self.cached: list[list[str]] = [[] for _ in range(count)]
        self.encoded: Counter[str] = Counter()
        self.served: Counter[int] = Counter()
        self.idle = 0
        """Times that an engine had an empty seat while another had a request waiting."""

    def _launch(self, index: int, log_file: Path) -> int:
        return index

    async def _ask(self, handle: int, method: str, *arguments: Any, limit_s: float) -> Any:
        if method != "sample":
            return None
        (request,) = arguments
        loads = [engine.sequences for engine in self._engines]
        self.idle += min(loads) < SEATS < max(loads)
        async with self.seats[handle]:
            clip, cached = request.prompt.clip.digest, self.cached[handle]
            self.encoded[clip] += clip not in cached
            self.cached[handle] = [*(other for other in cached if other != clip), clip][-3:]
            self.served[handle] += 1
            await asyncio.sleep(self.random.uniform(0.001, 0.003))
        return Sampled(prompt_token_ids=np.zeros(1, np.int32), completions=())

    def _kill(self, handle: int) -> None: ...
    def _close_all(self, handles: Sequence[int]) -> None: ...
    def _release(self, index: int) -> None: ...


def request(clip: int) -> SampleRequest:
    name = f"clip {clip}"
    prompt = Prompt(record_id="r", text="", clip=Clip(digest=name, spec=ClipSpec(video=name, num_frames=2)))
    return SampleRequest(prompt=prompt, n=1, temperature=0.0, max_tokens=1, seed=0)


async def ask(pool: Engines, clips: Sequence[int], in_flight: float) -> None:
    await pool.start()
    places = asyncio.Semaphore(int(in_flight * SEATS * len(pool.seats)))

    async def one(clip: int) -> None:
        async with places:
            assert isinstance(await pool.sample(request(clip)), Sampled)

    try:
        await asyncio.gather(*(one(clip) for clip in clips))
    finally:
        pool.close()


@pytest.mark.parametrize("engines", [1, 2, 4])
def test_questions_about_one_clip_go_to_the_engine_that_has_it(engines: int) -> None:
    """60 clips, 10 questions each, one clip after the other: most clips are encoded by one engine alone; all are busy."""
    clips = [clip for clip in range(60) for _ in range(10)]
    encodings = {}
    for gathers in (False, True):
        pool = Engines(engines)
        pool.gathers_clips = gathers
        asyncio.run(ask(pool, clips, 1.5))
        encodings[gathers] = sum(pool.encoded.values())
        assert sum(pool.served.values()) == 600
        assert min(pool.served.values()) > 0.7 * 600 / engines
    assert 60 <= encodings[True] <= 1.5 * 60
    if engines == 1:
        assert encodings[True] == encodings[False] == 60
    else:
        assert encodings[False] > 1.6 * encodings[True]


def test_without_that_the_least_loaded_engine_is_taken() -> None:
    async def use() -> list[int]:
        pool = Engines(3)
        await pool.start()
        asked = [asyncio.create_task(pool.sample(request(0))) for _ in range(AHEAD * SEATS)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        loads = [engine.sequences for engine in pool._engines]
        await asyncio.gather(*asked)
        assert all(engine.sequences == len(engine.clips) == 0 for engine in pool._engines)
        pool.close()
        return loads

    assert asyncio.run(use()) == [11, 11, 10]
