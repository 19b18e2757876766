"""Asking engines: how many at once, what fails, what ends it."""

from __future__ import annotations

import asyncio
from collections import Counter

import numpy as np
import pytest

from videostr.asking import ask
from videostr.errors import RolloutError
from videostr.groups import Sampled
from videostr.ports import SampleRequest
from videostr.types import Clip, ClipSpec, Failure, FailureKind, Prompt

CLIP = Clip(digest="d", spec=ClipSpec(video="/v.mp4", num_frames=2))


class Pool:
    """Answers with as many prompt tokens as the seed says; "refused" is refused, at "dead" there is no engine any more."""

    def __init__(self) -> None:
        self.failures: Counter[str] = Counter()
        self.in_flight = self.most = self.ended = 0

    async def sample(self, request: SampleRequest) -> Sampled | Failure:
        name = request.prompt.record_id
        if name == "dead":
            raise RolloutError("no engine is left")
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        await asyncio.sleep(0.01 if name != "slow" else 60)
        self.in_flight -= 1
        self.ended += 1
        if name == "refused":
            return Failure(kind=FailureKind.PROMPT_TOO_LONG, record_id=name, detail="9 tokens")
        return Sampled(prompt_token_ids=np.zeros(request.seed, dtype=np.int32), completions=())


def requests(*names: str) -> dict[str, SampleRequest]:
    return {
        name: SampleRequest(
            prompt=Prompt(record_id=name, text="", clip=CLIP), n=1, temperature=0.0, max_tokens=4, seed=place
        )
        for place, name in enumerate(names)
    }


def test_groups_are_taken_and_failures_told_by_name() -> None:
    taken: dict[str, int] = {}

    async def take(name: str, sampled: Sampled) -> Failure | None:
        taken[name] = sampled.num_prompt_tokens
        return Failure(kind=FailureKind.REWARD_ERROR, record_id=name, detail="") if name == "odd" else None

    pool = Pool()
    failures = asyncio.run(ask(requests("a", "odd", "b", "refused", "c"), pool, take, at_once=2))
    assert taken == {"a": 0, "odd": 1, "b": 2, "c": 4}
    assert [(name, f.kind) for name, f in failures.items()] == [
        ("odd", FailureKind.REWARD_ERROR),
        ("refused", FailureKind.PROMPT_TOO_LONG),
    ]
    assert pool.most == 2


def test_what_is_taken_is_done_before_the_next_is_asked() -> None:
    pool, open_ = Pool(), Counter[str]()

    async def take(name: str, _: Sampled) -> None:
        open_["now"] += 1
        await asyncio.sleep(0.01)
        open_["most"] = max(open_["most"], open_["now"] + pool.in_flight)
        open_["now"] -= 1

    asyncio.run(ask(requests(*"abcdef"), pool, take, at_once=1))
    assert open_["most"] == 1


def test_when_no_engine_is_left_that_error_is_raised_and_the_others_are_cancelled() -> None:
    async def take(_: str, __: Sampled) -> None: ...

    pool = Pool()
    with pytest.raises(RolloutError, match="no engine is left"):
        asyncio.run(asyncio.wait_for(ask(requests("slow", "a", "dead"), pool, take, at_once=3), timeout=10))
    assert pool.ended == 0


def test_nothing_to_ask() -> None:
    async def take(_: str, __: Sampled) -> None: ...

    assert asyncio.run(ask({}, Pool(), take, at_once=0)) == {}
