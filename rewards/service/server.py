"""The gRPC server: takes groups, hands them to worker processes, answers.

In: calls of reward.proto. Out: scores, or a status that says what to do (docs/reward_service.md has the table). The parent
process never scores: it checks, counts, queues and passes bytes on, so that no completion can hold it up.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ssl
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn
from wsgiref.simple_server import WSGIServer

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from rewards.rubric import Rubric
from rewards.service import reward_pb2 as pb
from rewards.service.address import Address, read_pem
from rewards.service.messages import SERVICE, Code, describe
from rewards.service.metrics import Metrics
from rewards.service.pool import Answer, WorkerPool
from videostr.errors import ConfigError

_MAX_DETAIL = 500  # characters of a status message; it travels in a header, whose size gRPC limits to 8 KiB
_RETRY_AFTER = (("grpc-retry-pushback-ms", "100"),)  # gRFC A6: this refusal will pass
_DRAINING = "the service is shutting down and takes no more groups; send it to another, or again in a while"
_MALFORMED = "the bytes are not a ScoreGroupRequest; send a message of rewards/service/reward.proto"
_Context = grpc.aio.ServicerContext[bytes, bytes]
_OPEN = f"/{health.SERVICE_NAME}/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How the service runs."""

    listen: Address
    """Port 0 lets the system choose."""
    metrics: Address | None = None
    """Loopback address of the Prometheus page."""
    num_workers: int = 1
    """Scoring processes."""
    max_groups: int = 64
    """Groups accepted at a time, those that wait for a worker included."""
    deadline_s: float = 30.0
    """Longest scoring of one group."""
    max_message_bytes: int = 4 << 20
    """Longest request."""
    memory_mib: int = 4096
    """Most data of one scoring process, MiB."""
    tls_cert: str = ""
    """PEM file with the server's certificate chain; "" for no TLS."""
    tls_key: str = ""
    """PEM file with its key."""
    token: str = ""
    """What callers must show; "" lets everybody in."""

    def check(self) -> None:
        """Refuse what is unsafe or cannot work.

        Raises:
            ConfigError: names the option, the rule and the remedy.
        """
        for name in ("num_workers", "max_groups", "deadline_s", "max_message_bytes", "memory_mib"):
            if getattr(self, name) <= 0:
                raise ConfigError(
                    f"{name} = {getattr(self, name)}: must be above 0; leave it out for the default"
                )
        if bool(self.tls_cert) != bool(self.tls_key):
            raise ConfigError(
                "--tls-cert and --tls-key must be given together; one is the certificate, one its key"
            )
        if not self.listen.is_loopback and not (self.tls_cert and self.token):
            raise ConfigError(
                f"--listen {self.listen}: other machines reach this address, so it needs TLS and a token; give "
                "--tls-cert, --tls-key and --token-file, or listen on 127.0.0.1"
            )
        if self.metrics is not None and not self.metrics.is_loopback:
            raise ConfigError(
                f"--metrics {self.metrics}: the page has no protection, so it must be on a loopback address, "
                "e.g. 127.0.0.1:9464; let a collector on this machine pass it on"
            )


class RewardServer:
    """A running service."""

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        pool: WorkerPool,
        service: RewardService,
        server: grpc.aio.Server,
        health_servicer: health.aio.HealthServicer,
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._pool = pool
        self._service = service
        self._server = server
        self._health = health_servicer
        self._page: WSGIServer | None = None
        self.address = settings.listen
        """Where it listens, with the port that the system chose."""
        self.metrics_address = settings.metrics

    @classmethod
    async def start(cls, settings: Settings, rubric: Rubric) -> RewardServer:
        """Start workers, metrics page and server, in this order; returns when calls are answered.

        Raises:
            ConfigError: the settings are unsafe, an address is taken, or a certificate cannot be used.
            RewardError: a worker does not start.
        """
        settings.check()
        metrics = Metrics()
        pool = WorkerPool(
            rubric,
            num_workers=settings.num_workers,
            deadline_s=settings.deadline_s,
            memory_mib=settings.memory_mib,
            on_restart=lambda cause: metrics.restarts.labels(cause).inc(),
        )
        service = RewardService(settings, rubric, pool, metrics)
        server = grpc.aio.server(
            interceptors=[_RequireToken(settings.token, metrics)] if settings.token else [],
            options=[
                ("grpc.max_receive_message_length", settings.max_message_bytes),
                ("grpc.so_reuseport", 0),  # else a second server on the port would be given half of the calls
            ],
        )
        server.add_generic_rpc_handlers((service.handlers(),))
        health_servicer = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
        reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
        running = cls(settings, metrics, pool, service, server, health_servicer)
        try:
            running._bind()
            await pool.start()
            await health_servicer.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
            await server.start()
        except BaseException:
            await running.stop(0.0)
            raise
        return running

    async def stop(self, grace_s: float) -> None:
        """Finish what was accepted, then end everything.

        Health says NOT_SERVING and new calls are refused from the start.

        Args:
            grace_s: longest wait for accepted groups.
        """
        await self._health.enter_graceful_shutdown()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self._service.drain()
        await self._server.stop(0.5)
        await self._pool.close()
        if self._page is not None:
            await asyncio.to_thread(self._page.shutdown)
            self._page.server_close()

    def _bind(self) -> None:
        settings = self._settings
        try:
            if settings.tls_cert:
                port = self._server.add_secure_port(str(settings.listen), _credentials(settings))
            else:
                port = self._server.add_insecure_port(str(settings.listen))
        except RuntimeError:
            raise ConfigError(
                f"--listen {settings.listen}: cannot be listened on; is another process there? "
                "Choose another port, or 0 for any"
            ) from None
        self.address = settings.listen._replace(port=port)
        if settings.metrics is not None:
            try:
                self._page = self._metrics.serve(*settings.metrics)
            except OSError as error:
                raise ConfigError(
                    f"--metrics {settings.metrics}: cannot be listened on ({error}); choose another port, or 0 for any"
                ) from None
            self.metrics_address = settings.metrics._replace(port=self._page.server_port)


class RewardService:
    """The calls of reward.proto, on bytes: only the workers read requests in full."""

    def __init__(self, settings: Settings, rubric: Rubric, pool: WorkerPool, metrics: Metrics) -> None:
        self._pool = pool
        self._metrics = metrics
        self._places = asyncio.Semaphore(settings.max_groups)
        self._max_groups = settings.max_groups
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
        """For `add_generic_rpc_handlers`."""
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "ScoreGroup": grpc.unary_unary_rpc_method_handler(self.score_group),
                "ScoreGroups": grpc.stream_stream_rpc_method_handler(self.score_groups),
                "Info": grpc.unary_unary_rpc_method_handler(self.info),
            },
        )

    async def score_group(self, request: bytes, context: _Context) -> bytes:
        """One group; above `max_groups` it is refused at once."""
        with self._open_call():
            if self._draining.is_set():
                await self._refuse(context, grpc.StatusCode.UNAVAILABLE, _DRAINING)
            if self._places.locked():
                context.set_trailing_metadata(_RETRY_AFTER)
                await self._refuse(
                    context,
                    grpc.StatusCode.RESOURCE_EXHAUSTED,
                    f"{self._max_groups} groups are in flight, the service's --max-groups; try again later",
                )
            async with self._places:
                message = _parse(request)
                if message is None:
                    await self._refuse(context, grpc.StatusCode.INVALID_ARGUMENT, _MALFORMED)
                answer = await self._answer(request, message, _until(context))
            if answer.code is not Code.OK:
                await context.abort(grpc.StatusCode[answer.code.name], answer.body.decode()[:_MAX_DETAIL])
            return answer.body

    async def score_groups(self, _: object, context: _Context) -> None:
        """Many groups; where `max_groups` are in flight the stream is not read, which holds the caller up.

        Consumes requests until the caller's end, a malformed one, or draining; then answers what it accepted, and ends the
        stream with a status in the latter two cases.
        """
        window, writing = asyncio.Semaphore(self._window), asyncio.Lock()
        until, problem = _until(context), None

        async def write(message: pb.ScoreGroupRequest, scoring: asyncio.Task[Answer]) -> None:
            response = _stream_response(message.id, await scoring)
            async with writing:
                await context.write(response)

        with self._open_call():
            async with asyncio.TaskGroup() as tasks, contextlib.aclosing(self._requests(context)) as requests:
                async for request in requests:
                    message = _parse(request)
                    if message is None:
                        problem = grpc.StatusCode.INVALID_ARGUMENT, _MALFORMED
                        break
                    await window.acquire()
                    await self._places.acquire()
                    scoring = tasks.create_task(self._answer(request, message, until))
                    written = tasks.create_task(write(message, scoring))
                    # Callbacks, since a task that is cancelled before it began runs no finally. A caller who does not read
                    # its answers keeps its own window shut, and no place.
                    scoring.add_done_callback(lambda _: self._places.release())
                    written.add_done_callback(lambda _: window.release())
            if problem is None and self._draining.is_set():
                problem = grpc.StatusCode.UNAVAILABLE, _DRAINING
            if problem is not None:
                await self._refuse(context, *problem)

    async def info(self, _: bytes, __: object) -> bytes:
        """Rubric and limits."""
        return self._info.SerializeToString()

    async def drain(self) -> None:
        """Refuse new groups; returns when all accepted ones are answered."""
        self._draining.set()
        await self._all_closed.wait()

    async def _answer(self, request: bytes, message: pb.ScoreGroupRequest, until: float | None) -> Answer:
        """Score a group that has a place, and count it."""
        began = time.monotonic()
        self._metrics.in_flight.inc()
        try:
            answer = await self._pool.score(request, until)
        finally:
            self._metrics.in_flight.dec()
        self._metrics.seconds.observe(time.monotonic() - began)
        if answer.code is Code.OK:
            self._metrics.groups.inc()
            self._metrics.traces.inc(len(message.completions))
        else:
            self._metrics.failures.labels(answer.code.name).inc()
        return answer

    async def _requests(self, context: _Context) -> AsyncGenerator[bytes, None]:
        """What the caller sends, until its end or draining."""
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

    async def _refuse(self, context: _Context, code: grpc.StatusCode, detail: str) -> NoReturn:
        self._metrics.failures.labels(code.name).inc()
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


class _RequireToken(grpc.aio.ServerInterceptor):
    """Refuses every call but health checks that does not show the token, before its message is read."""

    def __init__(self, token: str, metrics: Metrics) -> None:
        self._expected = f"Bearer {token}".encode()
        self._metrics = metrics
        self._refusal: grpc.RpcMethodHandler[bytes, bytes] = grpc.stream_stream_rpc_method_handler(
            self._refuse
        )  # on the wire all calls are streams

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """The handler of the call, or one that refuses it."""
        if handler_call_details.method.startswith(_OPEN) or self._shows_token(handler_call_details):
            return await continuation(handler_call_details)
        return self._refusal

    def _shows_token(self, details: grpc.HandlerCallDetails) -> bool:
        shown = [value for key, value in details.invocation_metadata if key == "authorization"]
        return len(shown) == 1 and hmac.compare_digest(str(shown[0]).encode(), self._expected)

    async def _refuse(self, _: object, context: _Context) -> None:
        self._metrics.failures.labels("UNAUTHENTICATED").inc()
        await context.abort(
            grpc.StatusCode.UNAUTHENTICATED,
            "the token is missing or wrong; send `authorization: Bearer TOKEN` with the token of the service's --token-file",
        )


def _parse(request: bytes) -> pb.ScoreGroupRequest | None:
    try:
        return pb.ScoreGroupRequest.FromString(request)
    except DecodeError:
        return None


def _until(context: _Context) -> float | None:
    """The caller's deadline on the monotonic clock."""
    remaining: float | None = context.time_remaining()
    return None if remaining is None else time.monotonic() + remaining


def _stream_response(group_id: int, answer: Answer) -> bytes:
    if answer.code is Code.OK:
        return answer.body
    error = pb.Error(code=answer.code, message=answer.body.decode()[:_MAX_DETAIL])
    return pb.ScoreGroupResponse(id=group_id, error=error).SerializeToString()


def _credentials(settings: Settings) -> grpc.ServerCredentials:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(settings.tls_cert, settings.tls_key)
    except (OSError, ssl.SSLError) as error:  # gRPC would say no more than that it failed
        raise ConfigError(
            f"--tls-cert {settings.tls_cert}, --tls-key {settings.tls_key}: cannot be used ({error}); give PEM files "
            "of a certificate and its unencrypted key"
        ) from None
    return grpc.ssl_server_credentials([(read_pem(settings.tls_key), read_pem(settings.tls_cert))])
