"""What the service counts, as a Prometheus page on a loopback port."""

from __future__ import annotations

from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """Counters of one server, in a registry of their own so that several servers fit into one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.groups = Counter("videostr_reward_groups", "Groups scored", registry=self.registry)
        self.traces = Counter("videostr_reward_traces", "Completions scored", registry=self.registry)
        self.failures = Counter(
            "videostr_reward_failures",
            "Calls, or groups of a stream, that ended without scores, by gRPC status code",
            ["code"],
            registry=self.registry,
        )
        self.restarts = Counter(
            "videostr_reward_worker_restarts",
            "Worker processes lost and replaced, by cause: died, timeout, stopped or bad_reply",
            ["cause"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "videostr_reward_seconds",
            "Time from accepting a group to its answer",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.in_flight = Gauge(
            "videostr_reward_in_flight", "Groups accepted and not yet answered", registry=self.registry
        )
        self.workers = Gauge(
            "videostr_reward_workers", "Worker processes that are up", registry=self.registry
        )
        # A counter that was never touched reads 0, not nothing.
        for cause in ("died", "timeout", "stopped", "bad_reply"):
            self.restarts.labels(cause)

    def serve(self, host: str, port: int) -> WSGIServer:
        """Serve the page in a thread; raises OSError when the port is taken."""
        server, _ = start_http_server(port, host, self.registry)
        return server
