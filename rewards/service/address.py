"""Addresses, tokens and which of them may meet: used by the server, the client and the metrics page."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import NamedTuple

from videostr.errors import ConfigError

_LEAST_TOKEN = 16


class Address(NamedTuple):
    """Where something listens."""

    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches it."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str, name: str) -> Address:
    """Return `host:port`, an IPv6 host in brackets.

    Args:
        text: the address.
        name: of the option that holds it, for the message.

    Raises:
        ConfigError: it is not of this form.
    """
    host, _, port = text.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    is_port = port.isascii() and port.isdecimal() and len(port) <= 5 and int(port) <= 65535
    if not bare or (":" in host and host == bare) or not is_port:
        raise ConfigError(f"{name} = {text!r}: must be host:port, e.g. 127.0.0.1:50051 or [::1]:50051")
    return Address(bare, int(port))


def read_token(path: str) -> str:
    """Return the bearer token that stands in a file.

    Raises:
        ConfigError: the file cannot be read, or holds no usable token; the message does not repeat it.
    """
    try:
        token = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: the token cannot be read ({error})", remedy="name a text file that this user may read"
        ) from None
    if len(token) < _LEAST_TOKEN or not (token.isascii() and token.isprintable()) or " " in token:
        raise ConfigError(
            f"{path}: must hold one token of at least {_LEAST_TOKEN} printable ASCII characters without spaces",
            remedy="make one with `openssl rand -hex 32`",
        )
    return token


def read_pem(path: str) -> bytes:
    """Return certificates or a key; raises ConfigError when the file cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error})", remedy="name a PEM file that this user may read"
        ) from None
