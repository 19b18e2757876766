"""Clients of the reward service: `RewardClient` for asyncio, `BlockingRewardClient` for everything else.

In: completions and their record. Out: what `rewards.score_group` gives in this process, or one of

    RewardServiceError       the call cannot succeed: wrong service, message too long
     +- TokenRefused         the service takes another token than the client sends
     +- GroupRejected        the group cannot be scored; the same again would end the same
     +- TlsError             no connection can be made: certificate, authority or TLS itself are not those of the service
     +- ServiceTimeout       no answer within the caller's time
     +- ServiceUnavailable   the service could not be reached, or was too busy, for all of the caller's time

A call that did not reach the service, or that the service was too busy to take, is tried again within the caller's time: after
a random wait whose bound doubles from 0.1 to 5 s (gRPC's own `retryPolicy` gives up after five tries, within 2 s). Scoring
changes nothing, so a group scored twice does no harm. All raise ConfigError for a number that cannot be used, such as a time of
NaN or infinity.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import grpc

from rewards.service import reward_pb2 as pb
from rewards.service.address import Address, parse_address, read_token
from rewards.service.messages import SERVICE, Code, read_scores, request_message
from rewards.service.numbers import MAX_SECONDS, check_number
from rewards.service.tls import client_credentials, connection_problem
from videostr.errors import ConfigError, RewardError
from videostr.types import Completion, Record, Score

Group = tuple[Sequence[Completion | str], Record]
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.1, 5.0
_PROBE_S = 5.0
_CUT = "Internal error from Core"
"""What grpc.aio makes of a stream's status when the stream ends under a write."""
_REFUSED = {"INVALID_ARGUMENT", "FAILED_PRECONDITION", "INTERNAL"}


class RewardServiceError(RewardError):
    """The call cannot succeed."""


class TokenRefused(RewardServiceError):
    """The service takes another token than the client sends."""


class GroupRejected(RewardServiceError):
    """The group cannot be scored."""


class TlsError(RewardServiceError):
    """No connection can be made, however often it is tried."""


class ServiceTimeout(RewardServiceError):
    """No answer within the caller's time."""


class ServiceUnavailable(RewardServiceError):
    """The service could not be reached, or was too busy, for all of the caller's time."""


@dataclass(frozen=True, slots=True)
class _Endpoint:
    """Where the service is and how to speak to it."""

    address: Address
    ca_file: str
    credentials: grpc.ChannelCredentials | None
    metadata: tuple[tuple[str, str], ...]
    options: tuple[tuple[str, int], ...]

    @classmethod
    def of(cls, endpoint: str, token_file: str, ca_file: str) -> _Endpoint:
        address = parse_address(endpoint, "endpoint")
        secure = bool(ca_file) or not address.is_loopback
        if secure and not ca_file:
            raise ConfigError(
                f"endpoint = {endpoint}: other machines see what goes to this address, so it needs TLS",
                remedy="name the PEM file of the authority that signed the service's certificate as ca_file, "
                "or use a service on 127.0.0.1",
            )
        return cls(
            address=address,
            ca_file=ca_file,
            credentials=client_credentials(ca_file) if secure else None,
            metadata=(("authorization", f"Bearer {read_token(token_file)}"),) if token_file else (),
            options=(
                ("grpc.max_receive_message_length", -1),
                ("grpc.max_send_message_length", -1),  # the service says what is too long
                ("grpc.max_reconnect_backoff_ms", 5000),  # the default grows to two minutes
                ("grpc.enable_http_proxy", int(not address.is_loopback)),
            ),
        )

    @property
    def target(self) -> str:
        return str(self.address)

    def check_connection(self, error: Any, timeout_s: float) -> None:
        """Raise TlsError where a call failed by the connection itself, which no further try mends; may block.

        Args:
            error: what the call ended with.
            timeout_s: longest wait for a handshake.
        """
        if error.code() is not grpc.StatusCode.UNAVAILABLE or _is_pushed_back(error):
            return
        if problem := connection_problem(self.address, self.ca_file, timeout_s):
            raise TlsError(f"the reward service at {self.target}: {problem}") from None


class RewardClient:
    """For asyncio; make and use it in one event loop, and close it there."""

    def __init__(self, endpoint: str, *, token_file: str = "", ca_file: str = "") -> None:
        """Nothing is sent yet.

        Args:
            endpoint: `host:port`.
            token_file: file with the bearer token; it is sent over TLS or to this machine only.
            ca_file: PEM file of the authority that signed the service's certificate; "" for no TLS, on this machine only.

        Raises:
            ConfigError: the endpoint is not loopback and has no ca_file, or a file cannot be used.
        """
        self._endpoint = _Endpoint.of(endpoint, token_file, ca_file)
        where, options = self._endpoint.target, self._endpoint.options
        if self._endpoint.credentials is None:
            self._channel = grpc.aio.insecure_channel(where, options)
        else:
            self._channel = grpc.aio.secure_channel(where, self._endpoint.credentials, options)

    async def score_group(
        self, completions: Sequence[Completion | str], record: Record, *, timeout_s: float = 60.0
    ) -> list[Score]:
        """Return scores of the completions of one record, in their order.

        Args:
            completions: [G]; a text alone has no length term.
            record: what was asked.
            timeout_s: for all tries together.

        Raises:
            RewardServiceError: see the module's docstring.
        """
        request = request_message(completions, record).SerializeToString()
        response = await self._call("ScoreGroup", request, timeout_s)
        return read_scores(pb.ScoreGroupResponse.FromString(response))

    async def score_groups(
        self, groups: Iterable[Group], *, timeout_s: float | None = None
    ) -> AsyncIterator[tuple[int, list[Score] | GroupRejected | ServiceTimeout]]:
        """Yield scores of many groups over one stream, as they are ready: (index in `groups`, scores or why there are none).

        The stream is not tried again: what was not answered when it broke is the caller's to send once more.

        Args:
            groups: completions and record of each; drawn as fast as the service takes them.
            timeout_s: for the whole stream; None waits forever.

        Raises:
            RewardServiceError: see the module's docstring.
        """
        if timeout_s is not None:
            _check_timeout(timeout_s)
        method: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = self._channel.stream_stream(
            f"/{SERVICE}/ScoreGroups"
        )
        call = method(_requests(groups), timeout=timeout_s, metadata=self._endpoint.metadata)
        try:
            async for body in call:
                response = pb.ScoreGroupResponse.FromString(body)
                yield response.id, _outcome(response)
        except grpc.aio.AioRpcError as error:
            await asyncio.to_thread(self._endpoint.check_connection, error, _PROBE_S)
            if (error.details() or "").startswith(_CUT):
                await self._check_token()
            raise _translate(error, self._endpoint.target) from None
        finally:
            call.cancel()

    async def info(self, *, timeout_s: float = 10.0) -> pb.InfoResponse:
        """Return the rubric and limits of the service; raises as `score_group` does."""
        return pb.InfoResponse.FromString(await self._call("Info", b"", timeout_s))

    async def _check_token(self) -> None:
        """Raise what a stream that is cut under a write does not say: that the service refuses this client's token."""
        try:
            await self.info(timeout_s=_PROBE_S)
        except TokenRefused:
            raise
        except RewardServiceError:
            return

    async def close(self) -> None:
        """End the connection."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _call(self, method: str, request: bytes, timeout_s: float) -> bytes:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(
            f"/{SERVICE}/{method}"
        )
        tries = _Tries(self._endpoint.target, timeout_s)
        while True:
            try:
                return await call(request, timeout=tries.remaining_s, metadata=self._endpoint.metadata)
            except grpc.aio.AioRpcError as error:
                await asyncio.to_thread(self._endpoint.check_connection, error, tries.remaining_s)
                if _may_be_too_long(error) and len(request) > await self._longest_message():
                    raise _too_long(request, self._endpoint.target) from None
                await asyncio.sleep(tries.wait_after(error))

    async def _longest_message(self) -> float:
        """Return what the service takes, bytes; infinity where it does not say."""
        try:
            info: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(
                f"/{SERVICE}/Info"
            )
            return pb.InfoResponse.FromString(
                await info(b"", timeout=_PROBE_S, metadata=self._endpoint.metadata)
            ).max_message_bytes
        except grpc.aio.AioRpcError:
            return math.inf


class BlockingRewardClient:
    """The same without asyncio; may be shared by threads, but not carried over a fork."""

    def __init__(self, endpoint: str, *, token_file: str = "", ca_file: str = "") -> None:
        """See `RewardClient`."""
        self._endpoint = _Endpoint.of(endpoint, token_file, ca_file)
        where, options = self._endpoint.target, self._endpoint.options
        if self._endpoint.credentials is None:
            self._channel = grpc.insecure_channel(where, options)
        else:
            self._channel = grpc.secure_channel(where, self._endpoint.credentials, options)

    def score_group(
        self, completions: Sequence[Completion | str], record: Record, *, timeout_s: float = 60.0
    ) -> list[Score]:
        """See `RewardClient.score_group`."""
        request = request_message(completions, record).SerializeToString()
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(f"/{SERVICE}/ScoreGroup")
        tries = _Tries(self._endpoint.target, timeout_s)
        while True:
            try:
                body = call(request, timeout=tries.remaining_s, metadata=self._endpoint.metadata)
                return read_scores(pb.ScoreGroupResponse.FromString(body))
            except grpc.RpcError as error:
                self._endpoint.check_connection(error, tries.remaining_s)
                if _may_be_too_long(error) and len(request) > self._longest_message():
                    raise _too_long(request, self._endpoint.target) from None
                time.sleep(tries.wait_after(error))

    def _longest_message(self) -> float:
        """See `RewardClient._longest_message`."""
        try:
            info: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(f"/{SERVICE}/Info")
            body = info(b"", timeout=_PROBE_S, metadata=self._endpoint.metadata)
            return pb.InfoResponse.FromString(body).max_message_bytes
        except grpc.RpcError:
            return math.inf

    def close(self) -> None:
        """End the connection."""
        self._channel.close()


class _Tries:
    """How long and how often one call is tried."""

    def __init__(self, target: str, timeout_s: float) -> None:
        _check_timeout(timeout_s)
        self._target = target
        self._timeout_s = timeout_s
        self._until = time.monotonic() + timeout_s
        self._bound_s = _FIRST_WAIT_S
        self._passing: Any = None
        """What the try before ended with."""
        self._given_s = timeout_s
        """Seconds that were left for the last try."""

    @property
    def remaining_s(self) -> float:
        return max(0.0, self._until - time.monotonic())

    def wait_after(self, error: Any) -> float:
        """Return seconds to wait before the next try; raises what the error means when there must be none."""
        passing = error.code() is grpc.StatusCode.UNAVAILABLE or _is_overload(error)
        wait_s = random.uniform(0.0, self._bound_s)
        remaining_s = self.remaining_s
        if not passing or wait_s >= remaining_s:
            late = error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            if late and self._passing is not None and self._given_s < self._timeout_s / 2:
                error = self._passing  # the time went on other tries: this is the reason, not a slow reward
            raise _translate(error, self._target) from None
        self._bound_s = min(2 * self._bound_s, _LONGEST_WAIT_S)
        self._passing, self._given_s = error, remaining_s - wait_s
        return wait_s


def _check_timeout(timeout_s: float) -> None:
    check_number("timeout_s", timeout_s, 0.001, MAX_SECONDS, "seconds")


def _is_pushed_back(error: Any) -> bool:
    """Return whether the service itself refused the call for now."""
    return any(key == "grpc-retry-pushback-ms" for key, _ in error.trailing_metadata() or ())


def _is_overload(error: Any) -> bool:
    return error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def _may_be_too_long(error: Any) -> bool:
    """Return whether gRPC refused a call in place of the service: too many of them, or too long a message."""
    return _is_overload(error) and not _is_pushed_back(error)


def _too_long(request: bytes, target: str) -> RewardServiceError:
    return RewardServiceError(
        f"the reward service at {target} refused the call (RESOURCE_EXHAUSTED): a group of {len(request)} bytes is larger than "
        "its longest message",
        remedy="send fewer or shorter completions, or start it with a greater --max-message-mib",
    )


def _translate(error: Any, target: str) -> RewardServiceError:
    """Return the exception for a status; `error` is any of gRPC's, which share no base class with `code`."""
    code, detail = error.code().name, error.details()
    if detail.startswith(_CUT):
        return ServiceUnavailable(
            f"the reward service at {target} ended the stream while groups were sent: it is shutting down, or was lost; send "
            "what was not answered once more"
        )
    if code in _REFUSED:
        return GroupRejected(detail)
    if code == "DEADLINE_EXCEEDED":
        return ServiceTimeout(f"the reward service at {target} gave no score in time: {detail}")
    if code == "UNAVAILABLE":
        return ServiceUnavailable(
            f"the reward service at {target} was not reached in time; start it with `python -m rewards.service`, or name "
            f"another ({detail})"
        )
    if _is_overload(error):
        return ServiceUnavailable(
            f"the reward service at {target} was too busy all the time, or a message is longer than its --max-message-mib; give "
            f"it more --workers or a greater --max-groups ({detail})"
        )
    kind = TokenRefused if code == "UNAUTHENTICATED" else RewardServiceError
    return kind(f"the reward service at {target} refused the call ({code}): {detail}")


def _requests(groups: Iterable[Group]) -> Iterator[bytes]:
    for index, (completions, record) in enumerate(groups):
        yield request_message(completions, record, index).SerializeToString()


def _outcome(response: pb.ScoreGroupResponse) -> list[Score] | GroupRejected | ServiceTimeout:
    if not response.HasField("error"):
        return read_scores(response)
    kind = ServiceTimeout if response.error.code == Code.DEADLINE_EXCEEDED else GroupRejected
    return kind(response.error.message)
