"""Rewards from a service in place of workers of the run (`reward.endpoint`).

In: a record and its completions, which are fetched and sent on. Out: their scores, in the same order.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from typing import Self

from rewards.rubric import Rubric
from rewards.service.client import (
    GroupRejected,
    RewardClient,
    RewardServiceError,
    ServiceTimeout,
    ServiceUnavailable,
)
from rewards.service.messages import describe
from videostr.config.sections import RewardConfig
from videostr.errors import ConfigError, RewardError
from videostr.groups import SampledGroup
from videostr.types import Completion, Failure, FailureKind, Record, Score

_TRIES = 3
_GROUPS_PER_WORKER = 2  # one being scored and one on its way


class RemoteRewardPool:
    """`RewardPool` over a reward service.

    At most two groups per worker of the service are in progress, the others wait here. A group's deadline is therefore twice
    `reward.deadline_s`: it may wait for one other.
    """

    def __init__(self, client: RewardClient, config: RewardConfig, places: int) -> None:
        """Use `connect`, which checks the service.

        Args:
            client: of the service; closed by `close`.
            config: section `reward`.
            places: groups in progress at a time.
        """
        self.failures: Counter[str] = Counter()
        """`reward_service_timeout` and `reward_service_unavailable`: tries lost so far, by cause."""
        self._client = client
        self._endpoint = config.endpoint
        self._timeout_s = 2 * config.deadline_s
        self._places = asyncio.Semaphore(places)

    @classmethod
    async def connect(cls, config: RewardConfig, rubric: Rubric, timeout_s: float = 10.0) -> Self:
        """Return a pool over a service that scores as this run does.

        Args:
            config: section `reward`, with an endpoint.
            rubric: of this run.
            timeout_s: longest wait for a service that is not up yet.

        Raises:
            ConfigError: the service scores differently, or the endpoint, token or certificate cannot be used.
            RewardError: it cannot be reached, or refuses the token.
        """
        client = RewardClient(config.endpoint, token_file=config.token_file, ca_file=config.ca_file)
        try:
            info = await client.info(timeout_s=timeout_s)
            _check_rubric(config.endpoint, json.loads(info.rubric_json), json.loads(describe(rubric)))
        except (RewardError, ConfigError):
            await client.close()
            raise
        return cls(client, config, min(_GROUPS_PER_WORKER * info.workers, info.max_groups))

    async def score(self, record: Record, sampled: SampledGroup) -> tuple[Score, ...] | Failure:
        """Return scores in the order of the completions.

        A group that the service cannot score is `REWARD_ERROR` at once; one that gets no score in time, three times over, is
        `REWARD_TIMEOUT`.

        Raises:
            RewardError: the service cannot be reached in three tries, or refuses this run; no record is to blame.
            SampleLost: the machine that held the completions was lost.
        """
        async with self._places:
            try:
                return tuple(await self._scores(record, (await sampled.whole()).completions))
            except GroupRejected as error:
                return Failure(kind=FailureKind.REWARD_ERROR, record_id=record.id, detail=str(error))
            except ServiceTimeout as error:
                detail = f"{error}, the last of {_TRIES} tries"
                return Failure(kind=FailureKind.REWARD_TIMEOUT, record_id=record.id, detail=detail)

    async def close(self) -> None:
        """End the connection; `score` must not be called again."""
        await self._client.close()

    async def _scores(self, record: Record, completions: Sequence[Completion]) -> list[Score]:
        problem: RewardServiceError | None = None
        for _ in range(_TRIES):
            try:
                return await self._client.score_group(completions, record, timeout_s=self._timeout_s)
            except ServiceTimeout as error:
                self.failures["reward_service_timeout"] += 1
                problem = error
            except ServiceUnavailable as error:
                self.failures["reward_service_unavailable"] += 1
                problem = error
        assert problem is not None
        raise problem


def _check_rubric(endpoint: str, service: dict[str, object], run: dict[str, object]) -> None:
    different = [
        f"{name} = {service.get(name)!r} there, {run.get(name)!r} here"
        for name in sorted(service.keys() | run.keys())
        if service.get(name) != run.get(name)
    ]
    if different:
        raise ConfigError(
            f"reward.endpoint = {endpoint}: the service scores differently from this run: {'; '.join(different)}",
            remedy="start it with `python -m rewards.service --config` and this run's config and overrides",
        )
