"""Worker processes of the service: each scores one group at a time, and costs nothing but itself when it hangs or dies.

In: serialised requests. Out: serialised responses, or a code with the reason. A supervisor per worker starts the next one
when a worker ends, whatever ended it.
"""

from __future__ import annotations

import asyncio
import logging
import pickle
import time
from collections.abc import Callable

from rewards.rubric import Rubric
from rewards.service.messages import Code
from rewards.service.process import Answer, WorkerLost, WorkerProcess
from videostr.errors import RewardError

log = logging.getLogger("rewards.service")

_TRIES = 3
_LEAST_S = 1.0  # a worker is never killed sooner, or callers with tiny deadlines would keep the service busy starting workers
_START_TIMEOUT_S = 120.0  # a process that imports SciPy on a busy machine
_PAUSES_S = (0.1, 0.5, 2.0, 5.0)  # between starts that fail
_CHECK_S = 1.0  # between looks at whether a worker was stopped


class WorkerPool:
    """`num_workers` processes behind a queue of idle ones."""

    def __init__(
        self,
        rubric: Rubric,
        *,
        num_workers: int,
        deadline_s: float,
        memory_mib: int,
        on_restart: Callable[[str], None],
        on_size: Callable[[int], None],
    ) -> None:
        """Nothing is started yet.

        Args:
            rubric: how completions are scored.
            num_workers: processes.
            deadline_s: longest scoring of one group; a worker past it is killed.
            memory_mib: most data of one process, MiB.
            on_restart: called with the cause whenever a worker was lost: `died`, `timeout`, `stopped` or `bad_reply`.
            on_size: called with the number of workers that are up, whenever it changes.
        """
        self._first_frame = pickle.dumps(rubric)
        self._num_workers = num_workers
        self._deadline_s = deadline_s
        self._memory_mib = memory_mib
        self._on_restart = on_restart
        self._on_size = on_size
        self._up = 0
        self._idle: asyncio.Queue[WorkerProcess] = asyncio.Queue()
        self._supervisors: list[asyncio.Task[None]] = []
        self._attempts: set[asyncio.Task[Answer | None]] = set()

    async def start(self) -> None:
        """Start all workers and wait until they are up.

        Raises:
            RewardError: one does not start.
        """
        starts = [asyncio.create_task(self._start_worker()) for _ in range(self._num_workers)]
        await asyncio.wait(starts)
        workers = [start.result() for start in starts if start.exception() is None]
        self._supervisors = [asyncio.create_task(self._supervise(worker)) for worker in workers]
        await asyncio.sleep(0)  # the workers count as up from now on
        for start in starts:
            if error := start.exception():
                await self.close()
                raise error

    async def score(self, request: bytes, until: float | None) -> Answer:
        """Score one group.

        Waits for an idle worker; cancelling the caller gives up the wait, but not a scoring that has begun. A worker that dies
        is replaced and the group goes to another, three times at most.

        Args:
            request: a serialised ScoreGroupRequest.
            until: the caller's deadline on the clock of `time.monotonic`, or None.
        """
        fates = []
        for _ in range(_TRIES):
            worker = await self._take_worker()
            attempt = asyncio.create_task(self._attempt(worker, request, until))
            self._attempts.add(attempt)
            attempt.add_done_callback(self._attempts.discard)
            if answer := await asyncio.shield(attempt):
                return answer
            fates.append(worker.fate)
        detail = (
            f"the group ended {_TRIES} workers one after the other: the last one {fates[-1]}; mend the custom reward, or "
            "give more --worker-memory-mib"
        )
        return Answer(code=Code.INTERNAL, body=detail.encode())

    async def close(self) -> None:
        """End the workers."""
        for supervisor in self._supervisors:
            supervisor.cancel()
        await asyncio.gather(*self._supervisors, *self._attempts, return_exceptions=True)

    async def _take_worker(self) -> WorkerProcess:
        worker = await self._idle.get()
        while worker.ended:
            worker = await self._idle.get()
        return worker

    async def _attempt(self, worker: WorkerProcess, request: bytes, until: float | None) -> Answer | None:
        """Score one group on one worker, which is idle or ended afterwards; return None when it was lost."""
        wanted_s = self._deadline_s if until is None else max(_LEAST_S, until - time.monotonic())
        limit_s = min(self._deadline_s, wanted_s)
        try:
            async with asyncio.timeout(limit_s):
                answer = await worker.ask(request)
        except TimeoutError:
            worker.end("timeout")
            detail = f"no score after {limit_s:.1f} s; raise the caller's deadline or --deadline, or mend what hangs"
            return Answer(code=Code.DEADLINE_EXCEEDED, body=detail.encode())
        except WorkerLost:
            worker.end("died")
            return None
        self._idle.put_nowait(worker)
        return answer

    async def _supervise(self, worker: WorkerProcess) -> None:
        """Keep one place filled, from a worker that is up."""
        while True:
            self._count(1)
            self._idle.put_nowait(worker)
            try:
                while not await worker.exited_within(_CHECK_S):
                    if worker.is_stopped():
                        worker.end("stopped")
            finally:
                self._count(-1)
                cause = "died" if worker.exited else "closed"
                worker.end(cause)
                await worker.close()
            log.warning("worker process %d %s; starting another", worker.pid, worker.fate)
            self._on_restart(worker.end_cause)
            worker = await self._start_again()

    def _count(self, change: int) -> None:
        self._up += change
        self._on_size(self._up)

    async def _start_again(self) -> WorkerProcess:
        failures = 0
        while True:
            try:
                return await self._start_worker()
            except RewardError as error:
                log.error("%s", error)
                self._on_restart("died")
                await asyncio.sleep(_PAUSES_S[min(failures, len(_PAUSES_S) - 1)])
                failures += 1

    async def _start_worker(self) -> WorkerProcess:
        worker = await WorkerProcess.start(self._memory_mib)
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                await worker.ask(self._first_frame)
        except (TimeoutError, WorkerLost) as error:
            fate = (
                f"was not up after {_START_TIMEOUT_S:g} s" if isinstance(error, TimeoutError) else worker.fate
            )
            worker.end("died")
            await worker.close()
            raise RewardError(
                f"a scoring process {fate} at its start",
                remedy="its own message stands above on standard error",
            ) from None
        except asyncio.CancelledError:
            worker.end("closed")
            await worker.close()
            raise
        return worker
