"""The gRPC server: takes groups, hands them to worker processes, answers.

In: calls of reward.proto. Out: scores, or a status that says what to do (docs/reward_service.md has the table). The parent
process never scores: it checks, counts, queues and passes bytes on, so that no completion can hold it up.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
from collections.abc import Awaitable, Callable
from typing import Any
from wsgiref.simple_server import WSGIServer

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from rewards.rubric import Rubric
from rewards.service.calls import Context, RewardService
from rewards.service.messages import SERVICE
from rewards.service.metrics import Metrics
from rewards.service.pool import WorkerPool
from rewards.service.settings import Settings
from rewards.service.tls import server_credentials
from videostr.errors import ConfigError

_OPEN = f"/{health.SERVICE_NAME}/"


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
        metrics, health_servicer = Metrics(), health.aio.HealthServicer()
        reporter = _Reporter(metrics, health_servicer)
        pool = WorkerPool(
            rubric,
            num_workers=settings.num_workers,
            deadline_s=settings.deadline_s,
            memory_mib=settings.memory_mib,
            on_restart=lambda cause: metrics.restarts.labels(cause).inc(),
            on_size=reporter.report,
        )
        service = RewardService(settings, rubric, pool, metrics)
        server = grpc.aio.server(
            maximum_concurrent_rpcs=settings.max_calls,  # gRPC receives the messages of other calls before their handlers run
            interceptors=[_RequireToken(settings.token, metrics)] if settings.token else [],
            options=[
                ("grpc.max_receive_message_length", settings.max_message_bytes),
                ("grpc.max_concurrent_streams", settings.max_calls),
                # Else buffers of each connection grow to megabytes, outside the bound,
                ("grpc.http2.bdp_probe", 0),
                # and a second server on the port would be given half of the calls.
                ("grpc.so_reuseport", 0),
            ],
        )
        server.add_generic_rpc_handlers((service.handlers(),))
        health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
        reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
        running = cls(settings, metrics, pool, service, server, health_servicer)
        try:
            running._bind()
            await pool.start()
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
                port = self._server.add_secure_port(
                    str(settings.listen), server_credentials(settings.tls_cert, settings.tls_key)
                )
            else:
                port = self._server.add_insecure_port(str(settings.listen))
        except RuntimeError:
            raise ConfigError(
                f"--listen {settings.listen}: cannot be listened on",
                remedy="is another process there? Choose another port, or 0 for any",
            ) from None
        self.address = settings.listen._replace(port=port)
        if settings.metrics is not None:
            try:
                self._page = self._metrics.serve(*settings.metrics)
            except OSError as error:
                raise ConfigError(
                    f"--metrics {settings.metrics}: cannot be listened on ({error})",
                    remedy="choose another port, or 0 for any",
                ) from None
            self.metrics_address = settings.metrics._replace(port=self._page.server_port)


class _Reporter:
    """Shows in metrics and health how many workers are up: with none, the service is NOT_SERVING."""

    def __init__(self, metrics: Metrics, health_servicer: health.aio.HealthServicer) -> None:
        self._metrics = metrics
        self._health = health_servicer
        self._tasks: set[asyncio.Task[None]] = set()

    def report(self, workers: int) -> None:
        """Take the number of workers that are up."""
        self._metrics.workers.set(workers)
        states = health_pb2.HealthCheckResponse
        status = states.SERVING if workers else states.NOT_SERVING
        task = asyncio.ensure_future(self._health.set(SERVICE, status))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _RequireToken(grpc.aio.ServerInterceptor):
    """Refuses every call but health checks that does not show the token, before its message is read."""

    def __init__(self, token: str, metrics: Metrics) -> None:
        self._expected = f"Bearer {token}".encode()
        self._metrics = metrics
        # On the wire all calls are streams.
        self._refusal: grpc.RpcMethodHandler[bytes, bytes] = grpc.stream_stream_rpc_method_handler(
            self._refuse
        )

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Return the handler of the call, or one that refuses it."""
        if handler_call_details.method.startswith(_OPEN) or self._shows_token(handler_call_details):
            return await continuation(handler_call_details)
        return self._refusal

    def _shows_token(self, details: grpc.HandlerCallDetails) -> bool:
        shown = [value for key, value in details.invocation_metadata if key == "authorization"]
        return len(shown) == 1 and hmac.compare_digest(str(shown[0]).encode(), self._expected)

    async def _refuse(self, _: object, context: Context) -> None:
        self._metrics.failures.labels("UNAUTHENTICATED").inc()
        await context.abort(
            grpc.StatusCode.UNAUTHENTICATED,
            "the token is missing or wrong; send `authorization: Bearer TOKEN` with the token of the service's --token-file",
        )
