"""The calls of reward.proto, on bytes: only the workers read requests in full.

In: messages, none of which is received before it has a place. Out: answers, or a status that says what to do.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from typing import NoReturn

import grpc
from google.protobuf.message import DecodeError

from rewards.rubric import Rubric
from rewards.service import reward_pb2 as pb
from rewards.service.messages import SERVICE, Code, describe
from rewards.service.metrics import Metrics
from rewards.service.pool import WorkerPool
from rewards.service.process import Answer
from rewards.service.settings import Settings

Context = grpc.aio.ServicerContext[bytes, bytes]

_PASSING = (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE)
_RETRY_AFTER = (("grpc-retry-pushback-ms", "100"),)  # gRFC A6: this refusal will pass
_DRAINING = "the service is shutting down and takes no more groups; send it to another, or again in a while"
_MALFORMED = "the bytes are not a ScoreGroupRequest; send a message of rewards/service/reward.proto"


class RewardService:
    """Handlers of the calls."""

    def __init__(self, settings: Settings, rubric: Rubric, pool: WorkerPool, metrics: Metrics) -> None:
        self._pool = pool
        self._metrics = metrics
        self._places = asyncio.Semaphore(settings.max_groups)
        self._max_groups = settings.max_groups
        self._deadline_s = settings.deadline_s
        self._open_streams = 0
        self._window = 2 * settings.num_workers  # of one stream: one group in each worker and one behind it
        self._draining = asyncio.Event()
        self._open_calls = 0
        self._all_closed = asyncio.Event()
        self._all_closed.set()
        self._info = pb.InfoResponse(
            rubric_json=describe(rubric),
            workers=settings.num_workers,
            max_groups=settings.max_groups,
            deadline_s=settings.deadline_s,
            max_message_bytes=settings.max_message_bytes,
        )

    def handlers(self) -> grpc.GenericRpcHandler:
        """Return the handlers for `add_generic_rpc_handlers`.

        All are of the kind that reads messages itself (on the wire every call is a stream): gRPC receives the message of
        any other kind before its handler runs, however many calls there are.
        """
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "ScoreGroup": grpc.stream_stream_rpc_method_handler(self.score_group),
                "ScoreGroups": grpc.stream_stream_rpc_method_handler(self.score_groups),
                "Info": grpc.stream_stream_rpc_method_handler(self.info),
            },
        )

    async def score_group(self, _: object, context: Context) -> None:
        """Score one group; above `max_groups` it is refused before its message is received."""
        with self._open_call():
            if self._draining.is_set():
                await self._refuse(context, grpc.StatusCode.UNAVAILABLE, _DRAINING)
            if self._places.locked():
                await self._refuse(
                    context,
                    grpc.StatusCode.RESOURCE_EXHAUSTED,
                    f"{self._max_groups} groups are in flight, the service's --max-groups; try again later",
                )
            async with self._places:
                answer = await self._receive_and_score(context)
            if answer.code is not Code.OK:
                # Nothing on the stack may hold the request: what `abort` raises lives until the next garbage collection.
                await context.abort(grpc.StatusCode[answer.code.name], answer.body.decode())
            await context.write(answer.body)

    async def score_groups(self, _: object, context: Context) -> None:
        """Score many groups; where `max_groups` are in flight the stream is not read, which holds the caller up.

        Consumes requests until the caller's end, a malformed one, or draining; then answers what it accepted, and ends the
        stream with a status in the latter two cases.
        """
        if self._open_streams == self._max_groups:
            await self._refuse(
                context,
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"{self._max_groups} streams are open, as many as the service's --max-groups; try again later",
            )
        self._open_streams += 1
        try:
            with self._open_call():
                problem = await self._serve_stream(context)
                if problem is None and self._draining.is_set():
                    problem = grpc.StatusCode.UNAVAILABLE, _DRAINING
                if problem is not None:
                    await self._refuse(context, *problem)
        finally:
            self._open_streams -= 1

    async def info(self, _: object, context: Context) -> None:
        """Tell rubric and limits; the request is empty and is not read."""
        await context.write(self._info.SerializeToString())

    async def drain(self) -> None:
        """Refuse new groups; returns when all accepted ones are answered."""
        self._draining.set()
        await self._all_closed.wait()

    async def _serve_stream(self, context: Context) -> tuple[grpc.StatusCode, str] | None:
        """Answer the groups of a stream; return what ended it, if that was not the caller."""
        window, writing = asyncio.Semaphore(self._window), asyncio.Lock()
        until = _until(context)

        async def write(group_id: int, scoring: asyncio.Task[Answer]) -> None:
            response = _stream_response(group_id, await scoring)
            async with writing:
                await context.write(response)

        async with asyncio.TaskGroup() as tasks, contextlib.aclosing(self._requests(context)) as requests:
            async for request in requests:
                group = _Group.parse(request)
                if group is None:
                    return grpc.StatusCode.INVALID_ARGUMENT, _MALFORMED
                await window.acquire()
                await self._places.acquire()
                scoring = tasks.create_task(self._answer(group, until))
                written = tasks.create_task(write(group.id, scoring))
                # Callbacks, since a task that is cancelled before it began runs no finally. A caller who does not read
                # its answers keeps its own window shut, and no place.
                scoring.add_done_callback(lambda _: self._places.release())
                written.add_done_callback(lambda _: window.release())
        return None

    async def _answer(self, group: _Group, until: float | None) -> Answer:
        """Score a group that has a place, and count it."""
        began = time.monotonic()
        self._metrics.in_flight.inc()
        try:
            answer = await self._pool.score(group.request, until)
        finally:
            self._metrics.in_flight.dec()
        self._metrics.seconds.observe(time.monotonic() - began)
        if answer.code is Code.OK:
            self._metrics.groups.inc()
            self._metrics.traces.inc(group.completions)
        else:
            self._metrics.failures.labels(answer.code.name).inc()
        return answer

    async def _receive_and_score(self, context: Context) -> Answer:
        request = await self._receive(context)
        group = None if request is None else _Group.parse(request)
        if group is None:
            self._metrics.failures.labels(Code.INVALID_ARGUMENT.name).inc()
            return Answer(code=Code.INVALID_ARGUMENT, body=_MALFORMED.encode())
        return await self._answer(group, _until(context))

    async def _receive(self, context: Context) -> bytes | None:
        """Return the one message of a unary call, or None where it has none."""
        try:
            async with asyncio.timeout(self._deadline_s):
                request: object = await context.read()
        except TimeoutError:
            await self._refuse(
                context,
                grpc.StatusCode.DEADLINE_EXCEEDED,
                f"the request did not arrive within {self._deadline_s:g} s, the service's --deadline; send it in one go",
            )
        return request if isinstance(request, bytes) else None

    async def _requests(self, context: Context) -> AsyncGenerator[bytes, None]:
        """Yield what the caller sends, until its end or draining."""
        draining = asyncio.create_task(self._draining.wait())
        reading: asyncio.Future[bytes] | None = None
        try:
            while True:
                reading = asyncio.ensure_future(context.read())
                await asyncio.wait((reading, draining), return_when=asyncio.FIRST_COMPLETED)
                request: object = reading.result() if reading.done() else None
                if not isinstance(request, bytes):  # grpc.aio.EOF, or draining
                    return
                yield request
        finally:
            draining.cancel()
            if reading is not None:
                reading.cancel()

    async def _refuse(self, context: Context, code: grpc.StatusCode, detail: str) -> NoReturn:
        self._metrics.failures.labels(code.name).inc()
        if code in _PASSING:
            context.set_trailing_metadata(_RETRY_AFTER)
        await context.abort(code, detail)

    @contextlib.contextmanager
    def _open_call(self) -> Iterator[None]:
        self._open_calls += 1
        self._all_closed.clear()
        try:
            yield
        finally:
            self._open_calls -= 1
            if not self._open_calls:
                self._all_closed.set()


@dataclass(frozen=True, slots=True)
class _Group:
    """A request, and what the parent must know of it: parsed in full it would be in memory twice."""

    request: bytes
    id: int
    completions: int

    @classmethod
    def parse(cls, request: bytes) -> _Group | None:
        """Return None for bytes that are not a ScoreGroupRequest."""
        try:
            message = pb.ScoreGroupRequest.FromString(request)
        except DecodeError:
            return None
        return cls(request, message.id, len(message.completions))


def _until(context: Context) -> float | None:
    """Return the deadline of the caller on the monotonic clock."""
    remaining: float | None = context.time_remaining()
    return None if remaining is None else time.monotonic() + remaining


def _stream_response(group_id: int, answer: Answer) -> bytes:
    if answer.code is Code.OK:
        return answer.body
    error = pb.Error(code=answer.code, message=answer.body.decode())
    return pb.ScoreGroupResponse(id=group_id, error=error).SerializeToString()
