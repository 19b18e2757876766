"""How the service runs: its settings, and the bounds of every number in them."""

from __future__ import annotations

from dataclasses import dataclass

from rewards.service.address import Address
from rewards.service.numbers import (
    MAX_GROUPS,
    MAX_MEMORY_MIB,
    MAX_MESSAGE_MIB,
    MAX_SECONDS,
    MAX_WORKERS,
    MIN_SECONDS,
    check_number,
)
from videostr.errors import ConfigError

_OTHER_CALLS = 16  # health checks, Info, reflection, and refusals on their way


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

    @property
    def max_calls(self) -> int:
        """Calls open at a time, of all kinds; each holds at most one message that is not accepted yet."""
        return 2 * self.max_groups + _OTHER_CALLS

    @property
    def max_bytes(self) -> int:
        """Bytes of all requests in flight together; more is refused before it is received."""
        return self.max_calls * self.max_message_bytes

    def check(self) -> None:
        """Refuse what is unsafe or cannot work.

        Raises:
            ConfigError: names the option, the rule and the remedy.
        """
        mib = self.max_message_bytes / 2**20
        check_number("--workers", self.num_workers, 1, MAX_WORKERS)
        check_number("--max-groups", self.max_groups, 1, MAX_GROUPS)
        check_number("--deadline", self.deadline_s, MIN_SECONDS, MAX_SECONDS, "seconds")
        check_number("--max-message-mib", mib, 2**-10, MAX_MESSAGE_MIB, "MiB")
        check_number("--worker-memory-mib", self.memory_mib, 1, MAX_MEMORY_MIB, "MiB")
        if bool(self.tls_cert) != bool(self.tls_key):
            raise ConfigError(
                "--tls-cert and --tls-key must be given together",
                remedy="give the certificate and its key, or neither",
            )
        if not self.listen.is_loopback and not (self.tls_cert and self.token):
            raise ConfigError(
                f"--listen {self.listen}: other machines reach this address, so it needs TLS and a token",
                remedy="give --tls-cert, --tls-key and --token-file, or listen on 127.0.0.1",
            )
        if self.metrics is not None and not self.metrics.is_loopback:
            raise ConfigError(
                f"--metrics {self.metrics}: the page has no protection, so it must be on a loopback address, "
                "e.g. 127.0.0.1:9464",
                remedy="let a collector on this machine pass it on",
            )
