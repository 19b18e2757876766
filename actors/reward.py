"""Reward workers: parse and score whole groups on CPU, each in its own process.

In: a record and its completions. Out: scores, in the same order. A worker that hangs or dies costs its process and
one try of one group, nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import resource
import signal
import stat
import threading
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ObjectLostError, RayError, RayTaskError

from actors.calls import get_with_timeout
from actors.names import Named, actor_name
from rewards import Rubric, score_group
from videostr.config.sections import RewardConfig
from videostr.errors import RewardError, SampleLost, error_text, first_line
from videostr.groups import Sampled, SampledGroup
from videostr.timeline import Timeline
from videostr.types import Failure, FailureKind, Record, Score
from videostr.worker_state import pause_before

_Actor = Any  # Ray's handle types do not follow `options`
_TRIES = 3
_STARTS = 5
_PR_SET_PDEATHSIG = 1
_START_TIMEOUT_S = 300.0  # a process that imports SciPy on a busy machine; not part of a group's deadline


class RewardWorker(Named):
    """Scores one group after the other."""

    def __init__(self, rubric: Rubric, memory_gib: float) -> None:
        self.rubric = rubric
        self.memory_gib = memory_gib

    def ready(self) -> None:
        """Return once the process is up; limit the memory that rewards can take, and tie their children to it (Linux only)."""
        os.register_at_fork(after_in_child=_Leave().leave)
        status = Path("/proc/self/status")
        if status.exists():
            held_kib = next(
                int(line.split()[1])
                for line in status.read_text(encoding="utf-8").splitlines()
                if "VmData" in line
            )
            limit = held_kib * 1024 + int(self.memory_gib * 2**30)
            # Not RLIMIT_AS: Ray maps its whole object store into every worker.
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

    def ping(self) -> None:
        """Return, as a sign that the process lives."""

    def score(self, record: Record, sampled: Sampled) -> list[Score]:
        """Return the score of every completion; raises `RewardError` when a custom reward fails."""
        try:
            return score_group(sampled.completions, record, self.rubric)
        except RewardError as error:
            raise RewardError(str(error)) from None  # without its cause, whose text Ray may be unable to send
        except KeyboardInterrupt as error:  # the reward's: Ray would take it for a cancelled task
            raise RewardError(f"record {record.id}: the custom reward raised {error_text(error)}") from None


class _Leave:
    """What a child that a reward forks does first, so that the end of its worker is seen and is its own end too (Linux only).

    A child holds copies of the worker's connections: its node would not see them end.
    """

    def __init__(self) -> None:
        """Note which connections Ray has, before a reward opens its own."""
        self._thread = threading.main_thread().ident
        self._sockets = [fd for fd in _descriptors() if _is_socket(fd)]
        self._libc = ctypes.CDLL(None)

    def leave(self) -> None:
        """Close them, and end when the worker does: its main thread, which runs the rewards."""
        nothing = os.open(os.devnull, os.O_RDWR)
        for fd in self._sockets:
            with contextlib.suppress(OSError):
                os.dup2(nothing, fd)
        if threading.get_ident() == self._thread and hasattr(self._libc, "prctl"):
            self._libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _descriptors() -> list[int]:
    folder = Path("/proc/self/fd")
    return [int(entry.name) for entry in folder.iterdir()] if folder.exists() else []


def _is_socket(fd: int) -> bool:
    try:
        return stat.S_ISSOCK(os.fstat(fd).st_mode)
    except OSError:
        return False


class RayRewardPool:
    """`RewardPool` of Ray actors.

    A worker has one group at a time and idle ones wait in a queue, so that a group goes to a free one and its
    deadline starts when a worker takes it. `score` waits for an idle worker, and is unblocked by one that finishes or
    by the replacement of one that was killed.
    """

    def __init__(
        self,
        config: RewardConfig,
        rubric: Rubric,
        options: Mapping[str, Any] | None = None,
        worker: type[RewardWorker] = RewardWorker,
        timeline: Timeline | None = None,
    ) -> None:
        """Start the workers, without waiting for them.

        Args:
            config: section `reward`: number of workers, CPUs of each, deadline of a group.
            rubric: how completions are scored.
            options: further Ray actor options, such as the scheduling strategy.
            worker: class of the workers.
            timeline: records when a worker has a group.
        """
        self.failures: Counter[str] = Counter()
        """`reward_worker_timeout` and `reward_worker_died`: workers replaced so far, by cause."""
        self._deadline_s = config.deadline_s
        self._rubric = rubric
        self._memory_gib = config.memory_gib
        self._worker = ray.remote(worker)
        self._options = {"num_cpus": config.num_cpus, **(options or {})}
        self._timeline = timeline or Timeline()
        self._idle: asyncio.Queue[_Actor] = asyncio.Queue()
        self._actors: dict[_Actor, int] = {}
        """Index by actor; one that takes another's place takes its index."""
        self._started: set[_Actor] = set()
        for index in range(config.num_workers):
            self._start_worker(index)

    async def score(self, record: Record, sampled: SampledGroup) -> tuple[Score, ...] | Failure:
        """Return scores in the order of the completions, which go from their engine to a worker.

        An exception in a reward comes back as `REWARD_ERROR` at once, since it would come again; a worker that runs
        past the deadline or dies is replaced, and the third one to do so makes it `REWARD_TIMEOUT`.

        Raises:
            RewardError: a worker cannot be started.
            SampleLost: the machine that held the completions was lost.
        """
        problem = ""
        for _ in range(_TRIES):
            actor = await self._take_worker(check_alive=bool(problem))
            try:
                with self._timeline.during(_name(self._actors[actor]), "score"):
                    scoring = actor.score.remote(record, sampled.content)
                    scores: list[Score] = await get_with_timeout(scoring, self._deadline_s)
            except ObjectLostError as error:
                self._idle.put_nowait(actor)
                raise SampleLost(first_line(error)) from error
            except RayTaskError as error:  # first: it is also an instance of what the reward raised
                self._idle.put_nowait(actor)
                return Failure(
                    kind=FailureKind.REWARD_ERROR,
                    record_id=record.id,
                    detail=first_line(error_text(error.cause)),
                )
            except TimeoutError:
                problem = f"no score after reward.deadline_s = {self._deadline_s:g} s"
                self._replace(actor, "reward_worker_timeout")
            except RayError as error:  # ended, or was killed for its memory
                problem = f"the reward worker died: {first_line(error_text(error))}"
                self._replace(actor, "reward_worker_died")
            except asyncio.CancelledError:
                self._idle.put_nowait(actor)
                raise
            else:
                self._idle.put_nowait(actor)
                return tuple(scores)
        return Failure(
            kind=FailureKind.REWARD_TIMEOUT,
            record_id=record.id,
            detail=f"{problem}, the last of {_TRIES} tries",
        )

    def size(self) -> tuple[int, int]:
        """Return the number of workers that are up, and of all."""
        return len(self._started), len(self._actors)

    def close(self) -> None:
        """Kill the workers; `score` must not be called again."""
        for actor in self._actors:
            ray.kill(actor)
        self._actors.clear()

    def _start_worker(self, index: int) -> None:
        actor = self._worker.options(name=actor_name("reward-worker", index), **self._options).remote(
            self._rubric, self._memory_gib
        )
        self._actors[actor] = index
        self._timeline.note(_name(index), None)
        self._idle.put_nowait(actor)

    async def _take_worker(self, check_alive: bool) -> _Actor:
        """Return an idle worker whose process is up.

        One that dies at its start is replaced: for some seconds Ray may place it on a node that was lost.

        Args:
            check_alive: ping those that were up, too: workers that died while they were idle, such as all of a lost node,
                must not count against a group.
        """
        starts, problem = 0, ""
        while starts < _STARTS:
            actor = await self._idle.get()
            was_up = actor in self._started
            if was_up and not check_alive:
                return actor
            if not (problem := await self._death_of(actor)):
                return actor
            self._replace(actor, "reward_worker_died")
            if not was_up:
                starts += 1
                await asyncio.sleep(pause_before(starts))
        raise RewardError(
            f"{_STARTS} reward workers died at their start, one after the other, the last one by {problem}",
            remedy="see the end of worker-*.err in Ray's session folder (/tmp/ray/session_latest/logs)",
        )

    async def _death_of(self, actor: _Actor) -> str:
        """Wait for a worker's process; return "" or what it died of. One that was up counts as dead when it does not answer."""
        was_up = actor in self._started
        method, limit = (actor.ping, self._deadline_s) if was_up else (actor.ready, _START_TIMEOUT_S)
        try:
            await get_with_timeout(method.remote(), limit)
        except (TimeoutError, RayTaskError) as error:
            if was_up:
                return first_line(error_text(error))
            self._idle.put_nowait(actor)
            raise RewardError(
                f"a reward worker did not start within {_START_TIMEOUT_S:g} s: {first_line(error_text(error))}",
                remedy="check reward.num_workers and reward.num_cpus against the cluster",
            ) from error
        except asyncio.CancelledError:
            self._idle.put_nowait(actor)
            raise
        except RayError as error:
            return first_line(error_text(error))
        self._started.add(actor)
        return ""

    def _replace(self, actor: _Actor, cause: str) -> None:
        self.failures[cause] += 1
        index = self._actors.pop(actor)
        self._started.discard(actor)
        ray.kill(actor)
        self._start_worker(index)


def _name(index: int) -> str:
    return f"reward-worker-{index}"
