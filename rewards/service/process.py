"""One scoring process and the pipes to it.

In: bodies of requests. Out: bodies of replies, or `WorkerLost` as soon as the process is gone: the process is watched and
not its pipe, which a child that a reward forked may hold open.
"""

from __future__ import annotations

import asyncio
import asyncio.subprocess
import os
import signal
import sys
import uuid
from dataclasses import dataclass
from pathlib import Path

from rewards.service.messages import Code
from rewards.service.orphans import MARK, end_group, end_marked
from rewards.service.worker import REPLY_HEADER, REQUEST_HEADER

_MAX_REPLY = 64 << 20  # bytes; anything that says it is longer is not a reply
_BUFFER = 1 << 16
_END_S = 2.0


_FATES = {
    "stopped": "was stopped by a signal",
    "bad_reply": "wrote bytes that are not a reply",
    "timeout": "ran past its deadline",
}


class WorkerLost(Exception):
    """The process ended, or wrote bytes that are not a reply."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """How a group ended."""

    code: Code
    body: bytes
    """A serialised ScoreGroupResponse when the code is OK, else the reason as UTF-8."""


class _Protocol(asyncio.subprocess.SubprocessStreamProtocol):
    """Streams, and the end of the process, which asyncio's `Process.wait` tells only once all pipes are closed."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(limit=_BUFFER, loop=loop)
        self.exited: asyncio.Future[None] = loop.create_future()

    def process_exited(self) -> None:
        """Called by asyncio."""
        if not self.exited.done():
            self.exited.set_result(None)
        super().process_exited()


class WorkerProcess:
    """A scoring process."""

    def __init__(self, transport: asyncio.SubprocessTransport, protocol: _Protocol, mark: str) -> None:
        self._transport = transport
        self._process = asyncio.subprocess.Process(transport, protocol, asyncio.get_running_loop())
        self._exited = protocol.exited
        self._mark = mark
        self._sent = 0
        self.pid = self._process.pid
        self.end_cause = ""
        """`died`, `timeout`, `stopped`, `bad_reply` or `closed`; the first one counts."""

    @classmethod
    async def start(cls, memory_mib: int) -> WorkerProcess:
        """Start a process, without waiting until it is up.

        Args:
            memory_mib: most data that it may hold, MiB.
        """
        loop, mark = asyncio.get_running_loop(), uuid.uuid4().hex
        transport, protocol = await loop.subprocess_exec(
            lambda: _Protocol(loop),
            sys.executable,
            "-m",
            "rewards.service.worker",
            str(memory_mib),
            stderr=None,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                "OMP_NUM_THREADS": "1",
                MARK: mark,
            },
            start_new_session=True,  # so that what a reward starts ends with its worker
        )
        return cls(transport, protocol, mark)

    @property
    def exited(self) -> bool:
        """Whether the process is gone."""
        return self._exited.done()

    @property
    def ended(self) -> bool:
        """Whether the process is gone, or was killed."""
        return bool(self.end_cause) or self.exited

    @property
    def fate(self) -> str:
        """How the process ended, in words."""
        if self.end_cause in _FATES:
            return _FATES[self.end_cause]
        status = self._process.returncode
        if status is None:
            return "closed its pipes"
        if status == -signal.SIGKILL:
            return "was killed by signal 9, as the system does where memory runs out"
        return f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"

    async def ask(self, body: bytes) -> Answer:
        """Send a request and return its reply.

        Raises:
            WorkerLost: the process ended meanwhile, or what it wrote is not a reply; it is then of no more use.
        """
        exchange = asyncio.ensure_future(self._exchange(body))
        try:
            await asyncio.wait((exchange, self._exited), return_when=asyncio.FIRST_COMPLETED)
            if not exchange.done():
                raise WorkerLost
            return exchange.result()
        except (OSError, asyncio.IncompleteReadError):
            # An interpreter closes its pipes before it ends: let it have its own status.
            await self.exited_within(_END_S)
            raise WorkerLost from None
        finally:
            exchange.cancel()

    async def exited_within(self, seconds: float) -> bool:
        """Return whether the process ended in this time."""
        await asyncio.wait((self._exited,), timeout=seconds)
        return self.exited

    def is_stopped(self) -> bool:
        """Return whether a signal stopped the process (Linux only): it would answer nothing and never end."""
        try:
            return Path(f"/proc/{self.pid}/stat").read_bytes().rpartition(b")")[2].split()[0] == b"T"
        except (OSError, IndexError):
            return False

    def end(self, cause: str) -> None:
        """Kill the process and what it started, at once."""
        if self.end_cause:
            return
        self.end_cause = cause
        end_group(self.pid)
        end_marked(self._mark)

    async def close(self) -> None:
        """Collect the process, which was ended, and close its pipes, whoever else holds them."""
        await asyncio.wait((self._exited,))
        assert self._process.stdin is not None
        requests = self._process.stdin.transport
        if not requests.is_closing():
            requests.abort()  # a close would wait for what nobody reads any more
        self._transport.close()

    async def _exchange(self, body: bytes) -> Answer:
        requests, replies = self._process.stdin, self._process.stdout
        assert requests is not None
        assert replies is not None
        self._sent += 1
        requests.write(REQUEST_HEADER.pack(self._sent, len(body)))
        requests.write(body)
        await requests.drain()
        number, length, code = REPLY_HEADER.unpack(await replies.readexactly(REPLY_HEADER.size))
        if number != self._sent or length > _MAX_REPLY or code not in iter(Code):
            self.end("bad_reply")
            raise WorkerLost
        return Answer(code=Code(code), body=await replies.readexactly(length))
