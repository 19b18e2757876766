"""Worker processes of the service: each scores one group at a time, and costs nothing but itself when it hangs or dies.

In: serialised requests. Out: serialised responses, or a code with the reason. A supervisor per worker starts the next one
when a worker ends, whatever ended it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import pickle
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from rewards.rubric import Rubric
from rewards.service.messages import Code
from rewards.service.worker import REPLY_HEADER, REQUEST_HEADER
from videostr.errors import RewardError

log = logging.getLogger("rewards.service")

_TRIES = 3
_LEAST_S = 1.0  # a worker is never killed sooner, or callers with tiny deadlines would keep the service busy starting workers
_START_TIMEOUT_S = 120.0  # a process that imports SciPy on a busy machine
_PAUSES_S = (0.1, 0.5, 2.0, 5.0)  # between starts that fail


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """How a group ended."""

    code: Code
    body: bytes
    """A serialised ScoreGroupResponse when the code is OK, else the reason as UTF-8."""


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
    ) -> None:
        """Nothing is started yet.

        Args:
            rubric: what completions are paid for.
            num_workers: processes.
            deadline_s: longest scoring of one group; a worker past it is killed.
            memory_mib: most data of one process, MiB.
            on_restart: called with `died` or `timeout` whenever a worker was lost.
        """
        self._first_frame = pickle.dumps(rubric)
        self._num_workers = num_workers
        self._deadline_s = deadline_s
        self._memory_mib = memory_mib
        self._on_restart = on_restart
        self._idle: asyncio.Queue[_Worker] = asyncio.Queue()
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
        for _ in range(_TRIES):
            worker = await self._take_worker()
            attempt = asyncio.create_task(self._attempt(worker, request, until))
            self._attempts.add(attempt)
            attempt.add_done_callback(self._attempts.discard)
            if answer := await asyncio.shield(attempt):
                return answer
        return Answer(
            code=Code.INTERNAL,
            body=f"the group ended {_TRIES} workers one after the other; its log has the reason".encode(),
        )

    async def close(self) -> None:
        """End the workers."""
        for supervisor in self._supervisors:
            supervisor.cancel()
        await asyncio.gather(*self._supervisors, *self._attempts, return_exceptions=True)

    async def _take_worker(self) -> _Worker:
        worker = await self._idle.get()
        while worker.ended:
            worker = await self._idle.get()
        return worker

    async def _attempt(self, worker: _Worker, request: bytes, until: float | None) -> Answer | None:
        """One group on one worker, which is idle or ended afterwards; None when it died."""
        wanted_s = self._deadline_s if until is None else max(_LEAST_S, until - time.monotonic())
        limit_s = min(self._deadline_s, wanted_s)
        try:
            async with asyncio.timeout(limit_s):
                answer = await worker.ask(request)
        except TimeoutError:
            worker.end("timeout")
            detail = f"no score after {limit_s:.1f} s; raise the caller's deadline or --deadline, or mend what hangs"
            return Answer(code=Code.DEADLINE_EXCEEDED, body=detail.encode())
        except (OSError, asyncio.IncompleteReadError):
            worker.end("died")
            return None
        self._idle.put_nowait(worker)
        return answer

    async def _supervise(self, worker: _Worker) -> None:
        """Keep one place filled, from a worker that is up."""
        try:
            while True:
                self._idle.put_nowait(worker)
                await worker.process.wait()
                worker.end("died")
                log.warning(
                    "a worker %s (process %d); starting another", worker.end_cause, worker.process.pid
                )
                self._on_restart(worker.end_cause)
                worker = await self._start_again()
        finally:
            worker.end("closed")
            await worker.process.wait()

    async def _start_again(self) -> _Worker:
        failures = 0
        while True:
            try:
                return await self._start_worker()
            except RewardError as error:
                log.error("%s", error)
                self._on_restart("died")
                await asyncio.sleep(_PAUSES_S[min(failures, len(_PAUSES_S) - 1)])
                failures += 1

    async def _start_worker(self) -> _Worker:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "rewards.service.worker",
            str(self._memory_mib),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"},
            start_new_session=True,  # so that what a reward starts ends with its worker
        )
        worker = _Worker(process)
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                await worker.ask(self._first_frame)
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.CancelledError) as error:
            worker.end("died")
            await process.wait()
            if isinstance(error, asyncio.CancelledError):
                raise
            raise RewardError(
                f"a scoring process ended, or was not up after {_START_TIMEOUT_S:g} s; "
                "its own message stands above on standard error"
            ) from None
        return worker


class _Worker:
    """One process and the pipe to it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.end_cause = ""

    @property
    def ended(self) -> bool:
        return bool(self.end_cause) or self.process.returncode is not None

    async def ask(self, body: bytes) -> Answer:
        """Raises OSError or IncompleteReadError when the process ends meanwhile."""
        requests, replies = self.process.stdin, self.process.stdout
        assert requests is not None
        assert replies is not None
        requests.write(REQUEST_HEADER.pack(len(body)) + body)
        await requests.drain()
        length, code = REPLY_HEADER.unpack(await replies.readexactly(REPLY_HEADER.size))
        return Answer(code=Code(code), body=await replies.readexactly(length))

    def end(self, cause: str) -> None:
        """Kill the process and what it started. Only the first cause counts."""
        if self.end_cause:
            return
        self.end_cause = cause
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
