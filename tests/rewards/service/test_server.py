"""Starting, securing and stopping the service; every server is a process of its own."""

from __future__ import annotations

import asyncio
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from rewards import service as service_package
from rewards.service.__main__ import main
from rewards.service.address import Address, parse_address
from rewards.service.client import (
    BlockingRewardClient,
    RewardClient,
    ServiceUnavailable,
    TlsError,
    TokenRefused,
)
from rewards.service.messages import SERVICE, request_message
from videostr.errors import ConfigError
from videostr.types import Record

RIGHT = "<think>x</think><answer>A</answer>"
TOKEN = "a-token-that-nobody-guesses"


def slow(seconds: float) -> str:
    return f"<think></think><answer>sleep {seconds}</answer>"


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a self-signed certificate for 127.0.0.1, its key, a token and a wrong token."""
    folder = tmp_path_factory.mktemp("secrets")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-keyout", "key.pem", "-out", "cert.pem", "-days", "1", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=IP:127.0.0.1"],
        cwd=folder, check=True, capture_output=True,
    )  # fmt: skip
    (folder / "token").write_text(TOKEN + "\n")
    (folder / "wrong").write_text("another-token-altogether")
    return folder


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--listen", "0.0.0.0:0"], "needs TLS and a token; give --tls-cert, --tls-key and --token-file"),
        (["--listen", "[::]:0"], "needs TLS and a token"),
        (["--listen", "192.0.2.1:0", "--token-file", "{s}/token"], "needs TLS and a token"),
        (
            ["--listen", "192.0.2.1:0", "--tls-cert", "{s}/cert.pem", "--tls-key", "{s}/key.pem"],
            "needs TLS and a token",
        ),
        (["--tls-cert", "{s}/cert.pem"], "--tls-cert and --tls-key must be given together"),
        (["--tls-cert", "{s}/token", "--tls-key", "{s}/key.pem"], "cannot be used"),
        (["--metrics", "0.0.0.0:0"], "must be on a loopback address"),
        (["--listen", "50051"], "--listen = '50051': must be host:port"),
        (["--token-file", "{s}/none"], "the token cannot be read"),
        (["--token-file", "{s}/empty"], "must hold one token of at least 16 printable"),
        (["--rubric", "generous"], "rubric 'generous': must be one of default"),
        (["--deadline", "0"], "--deadline = 0.0: must be a number from 0.1 to 2592000 seconds"),
        (["--rubric", "paper", "--config", "x.yaml"], "unrecognized arguments: --rubric"),
        (["--custom", "json:loads", "--config", "x.yaml"], "unrecognized arguments: --custom"),
        (["--w-custom", "2"], "--w-custom: has no effect without --custom; give both"),
        (["--custom", "json"], "--custom = 'json': must be package.module:function"),
        (["--custom", "json:nothing"], "--custom = 'json:nothing': json has no function nothing"),
        (["--custom", "no_such_module:reward"], "importing no_such_module raised ModuleNotFoundError"),
        (["--custom", "this_module_exits:reward"], "importing this_module_exits raised SystemExit"),
        (["reward.rubric=paper"], "unrecognized arguments: reward.rubric=paper"),
    ],
)
def test_what_is_unsafe_or_wrong_is_refused_at_start(
    secrets: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    words: str,
) -> None:
    (secrets / "empty").touch()
    (secrets / "this_module_exits.py").write_text("raise SystemExit(0)")
    monkeypatch.syspath_prepend(str(secrets))
    arguments = [option.format(s=secrets) for option in options]
    if "--listen" not in arguments:
        arguments += ["--listen", "127.0.0.1:0"]
    assert main(arguments) == 2
    assert words in capsys.readouterr().err


NUMBERS = ("nan", "inf", "-inf", "-1", "1e300")


@pytest.mark.parametrize("option", ["--deadline", "--grace", "--w-custom"])
@pytest.mark.parametrize("value", NUMBERS)
def test_numbers_that_are_none_are_refused(
    capsys: pytest.CaptureFixture[str], option: str, value: str
) -> None:
    assert main(["--listen", "127.0.0.1:0", "--custom", "json:loads", f"{option}={value}"]) == 2
    assert f"{option} = {float(value)!r}: must be a number from" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--workers", "--max-groups", "--max-message-mib", "--worker-memory-mib"])
@pytest.mark.parametrize("value", ["0", "-1", "99999999999", "9" * 400, "nan", "inf", "1.5", "9" * 5000])
def test_counts_and_sizes_that_cannot_be_are_refused(
    capsys: pytest.CaptureFixture[str], option: str, value: str
) -> None:
    assert main(["--listen", "127.0.0.1:0", f"{option}={value}"]) == 2
    assert option in capsys.readouterr().err


@pytest.mark.parametrize("value", ["nan", "inf", "-1", "0"])
def test_numbers_of_a_runs_config_are_checked_too(
    probe_folder: Path, capsys: pytest.CaptureFixture[str], value: str
) -> None:
    assert main(["--config", str(probe_folder / "config.yaml"), f"reward.deadline_s={value}"]) == 2
    assert f"reward.deadline_s = {value}: must be a finite number, above 0" in capsys.readouterr().err


@pytest.mark.parametrize("timeout_s", [*map(float, NUMBERS), 0, "3", True])
def test_clients_refuse_times_that_are_none(record: Record, timeout_s: Any) -> None:
    async def calls() -> None:
        async with RewardClient("127.0.0.1:1") as client:
            for call in (
                client.score_group([RIGHT], record, timeout_s=timeout_s),
                client.info(timeout_s=timeout_s),
                anext(client.score_groups([], timeout_s=timeout_s)),
            ):
                with pytest.raises(ConfigError, match=r"timeout_s = .*: must be a number from 0\.001"):
                    await call

    asyncio.run(calls())
    blocking = BlockingRewardClient("127.0.0.1:1")
    with pytest.raises(ConfigError, match=r"timeout_s = .*: must be a number from 0\.001"):
        blocking.score_group([RIGHT], record, timeout_s=timeout_s)
    blocking.close()


def test_a_taken_port_is_refused(service: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--listen", service.endpoint]) == 2
    assert "is another process there?" in capsys.readouterr().err


def test_a_missing_message_package_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "videostr_reward_api", None)
    with pytest.raises(
        ModuleNotFoundError, match=r"videostr_reward_api is not installed.*run `bash deploy/setup\.sh`"
    ):
        runpy.run_path(service_package.__file__)


@pytest.mark.parametrize(
    ("text", "address", "loopback"),
    [
        ("127.0.0.1:1", Address("127.0.0.1", 1), True),
        ("127.9.9.9:1", Address("127.9.9.9", 1), True),
        ("[::1]:65535", Address("::1", 65535), True),
        ("localhost:0", Address("localhost", 0), True),
        ("0.0.0.0:1", Address("0.0.0.0", 1), False),
        ("[::]:1", Address("::", 1), False),
        ("reward.example:443", Address("reward.example", 443), False),
        ("127.0.0.1.example:1", Address("127.0.0.1.example", 1), False),
    ],
)
def test_addresses(text: str, address: Address, loopback: bool) -> None:
    found = parse_address(text, "--listen")
    assert found == address
    assert found.is_loopback is loopback
    assert str(found) == text


@pytest.mark.parametrize("text", ["", ":1", "host", "host:", "host:-1", "host:65536", "::1:50051", "host:x"])
def test_other_addresses_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="must be host:port"):
        parse_address(text, "--listen")


def test_a_client_sends_nothing_to_other_machines_without_tls(secrets: Path) -> None:
    with pytest.raises(ConfigError, match="it needs TLS; name the PEM file"):
        RewardClient("192.0.2.1:50051", token_file=str(secrets / "token"))


def test_tls_and_token(start_service: Any, secrets: Path, record: Record, capfd: Any) -> None:
    cert = str(secrets / "cert.pem")
    options = [
        "--tls-cert",
        cert,
        "--tls-key",
        str(secrets / "key.pem"),
        "--token-file",
        str(secrets / "token"),
    ]

    async def score(endpoint: str, **credentials: str) -> Any:
        async with RewardClient(endpoint, **credentials) as client:
            scores = await client.score_group([RIGHT], record, timeout_s=20)
            stream = [found async for found in client.score_groups([([RIGHT], record)])]
            return scores, stream

    async def stream_only(endpoint: str) -> Any:
        async with RewardClient(endpoint, ca_file=cert) as client:
            return [found async for found in client.score_groups([([RIGHT], record)])]

    def answers(channel: grpc.Channel, *metadata: tuple[str, str]) -> dict[str, str]:
        """Statuses of raw calls with these credentials."""
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo
        requests = {
            "reflection": lambda: next(
                reflection(
                    iter([reflection_pb2.ServerReflectionRequest(list_services="")]), metadata=metadata
                )
            ),
            "info": lambda: channel.unary_unary(f"/{SERVICE}/Info")(b"", metadata=metadata),
            "score": lambda: channel.unary_unary(f"/{SERVICE}/ScoreGroup")(
                request_message([RIGHT], record).SerializeToString(), metadata=metadata
            ),
            "health": lambda: health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest()),
        }
        found = {}
        for name, request in requests.items():
            try:
                request()
                found[name] = "OK"
            except grpc.RpcError as error:
                found[name] = error.code().name
        return found

    with start_service(*options) as guarded:
        for credentials in ({}, {"token_file": str(secrets / "wrong")}):
            with pytest.raises(TokenRefused, match=r"UNAUTHENTICATED.*token is missing or wrong"):
                asyncio.run(score(guarded.endpoint, ca_file=cert, **credentials))
        with pytest.raises(TokenRefused, match="UNAUTHENTICATED"):
            asyncio.run(stream_only(guarded.endpoint))

        closed = dict.fromkeys(("reflection", "info", "score"), "UNAUTHENTICATED") | {"health": "OK"}
        trust = grpc.ssl_channel_credentials((secrets / "cert.pem").read_bytes())
        with grpc.secure_channel(guarded.endpoint, trust) as channel:
            assert answers(channel) == closed
            assert answers(channel, ("authorization", TOKEN)) == closed
            assert answers(channel, ("authorization", f"Bearer {TOKEN}x")) == closed
            twice = ("authorization", f"Bearer {TOKEN}"), ("authorization", "Bearer other")
            assert answers(channel, *twice) == closed
        # nothing was scored, and nothing but 2 + 1 + 4 * 3 refusals counted
        assert guarded.metric("groups_total") == guarded.metric("seconds_count") == 0
        assert guarded.metric('failures_total{code="UNAUTHENTICATED"}') == 15

        with grpc.secure_channel(guarded.endpoint, trust) as channel:
            assert set(answers(channel, ("authorization", f"Bearer {TOKEN}")).values()) == {"OK"}
        scores, stream = asyncio.run(score(guarded.endpoint, ca_file=cert, token_file=str(secrets / "token")))
        assert scores[0].total == pytest.approx(1.2)
        assert stream == [(0, scores)]
        with pytest.raises(TlsError, match="it speaks TLS and this client does not; name the PEM file"):
            asyncio.run(_info_within(guarded.endpoint, 30.0))
        assert guarded.stop() == 0
    output = capfd.readouterr()
    assert TOKEN not in output.out + output.err


async def _info_within(endpoint: str, timeout_s: float) -> None:
    async with RewardClient(endpoint) as client:
        await client.info(timeout_s=timeout_s)


def test_shutdown_finishes_what_was_accepted(start_service: Any, record: Record) -> None:
    async def use(service: Any) -> Any:
        async def stream() -> tuple[list[Any], Exception | None]:
            found: list[Any] = []

            def groups() -> Any:
                yield [slow(1.0)], record
                while not draining.is_set():  # left open by the caller
                    yield [RIGHT], record

            try:
                async for item in client.score_groups(groups()):
                    found.append(item)
                    await asyncio.sleep(0.05)
            except ServiceUnavailable as error:
                return found, error
            return found, None

        draining = asyncio.Event()
        async with RewardClient(service.endpoint) as client, RewardClient(service.endpoint) as late:
            await late.info()
            unary = [asyncio.create_task(client.score_group([slow(0.8)], record)) for _ in range(3)]
            streaming = asyncio.create_task(stream())
            await asyncio.to_thread(service.wait_for, lambda: service.metric("in_flight") >= 5)
            service.process.send_signal(signal.SIGTERM)
            async with grpc.aio.insecure_channel(service.endpoint) as channel:
                watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
                async for health in watch:
                    if health.status == health_pb2.HealthCheckResponse.NOT_SERVING:
                        break
            with pytest.raises(ServiceUnavailable, match="shutting down"):
                await late.score_group([RIGHT], record, timeout_s=0.3)
            scores = await asyncio.gather(*unary)
            draining.set()
            return scores, await streaming

    with start_service("--workers", "1", "--max-groups", "8") as service:
        workers = service.workers()
        scores, (found, ended) = asyncio.run(use(service))
        assert service.process.wait(timeout=30) == 0
    assert len(scores) == 3
    assert {"custom": 0.5}.items() <= scores[0][0].parts.items()
    assert sorted(index for index, _ in found) == list(range(len(found)))  # no accepted one is missing
    assert found
    assert "shutting down" in str(ended)
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]


def test_workers_end_with_their_parent_even_while_a_reward_hangs(start_service: Any, record: Record) -> None:
    request = request_message([slow(3600)], record).SerializeToString()
    with start_service("--workers", "2") as service:
        workers = service.workers()
        with grpc.insecure_channel(service.endpoint) as channel:
            hanging = channel.unary_unary(f"/{SERVICE}/ScoreGroup").future(request)
            service.wait_for(lambda: service.metric("in_flight") == 1)
            os.kill(service.process.pid, signal.SIGKILL)
            assert hanging.code() is grpc.StatusCode.UNAVAILABLE
        service.wait_for(lambda: not [pid for pid in workers if _runs(pid)])


def _runs(pid: int) -> bool:
    """Not a zombie that its new parent has yet to collect."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_worker_that_cannot_start_ends_the_service(
    probe_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # 1 MiB of data is not enough for an interpreter
    assert main(["--listen", "127.0.0.1:0", "--worker-memory-mib", "1"]) == 1
    assert "a scoring process ended" in capfd.readouterr().err


def test_bytes_in_flight_are_bounded_however_many_send(start_service: Any, record: Record) -> None:
    """4 groups and 4 streams of 8 MiB and 16 other calls: at most 192 MiB of requests; 1,600 MiB are sent."""
    text = slow(3) + "x" * ((8 << 20) - 4096)
    big = request_message([text], record).SerializeToString()

    async def attack(endpoint: str) -> list[grpc.StatusCode]:
        async def call(number: int) -> grpc.StatusCode:
            options = (("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1))
            async with grpc.aio.insecure_channel(endpoint, options) as channel:  # a connection each
                try:
                    if number % 3 == 0:
                        stream = channel.stream_stream(f"/{SERVICE}/ScoreGroups")(iter([big] * 3), timeout=20)
                        await stream.read()
                    else:
                        method = (
                            f"/{SERVICE}/ScoreGroup" if number % 3 == 1 else "/grpc.health.v1.Health/Check"
                        )
                        await channel.unary_unary(method)(big, timeout=20)
                except grpc.aio.AioRpcError as error:
                    return error.code()
                return grpc.StatusCode.OK

        return await asyncio.gather(*(call(number) for number in range(120)))

    options = ("--max-groups", "4", "--max-message-mib", "8", "--workers", "1", "--deadline", "60")
    with start_service(*options) as service:
        before = _peak_mib(service.process.pid)
        found = asyncio.run(attack(service.endpoint))
        assert grpc.StatusCode.RESOURCE_EXHAUSTED in found
        # A message is in memory twice while gRPC hands it over; the allocator gives back late.
        assert _peak_mib(service.process.pid) - before < 4 * 192
        client = BlockingRewardClient(service.endpoint)
        assert client.score_group([RIGHT], record)[0].total == pytest.approx(1.2)
        client.close()


def _peak_mib(pid: int) -> int:
    (line,) = [
        line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM")
    ]
    return int(line.split()[1]) >> 10


def test_a_request_that_never_comes_holds_its_place_no_longer_than_the_deadline(start_service: Any) -> None:
    async def never() -> Any:
        await asyncio.sleep(3600)
        yield b""

    async def silent(endpoint: str) -> str:
        async with grpc.aio.insecure_channel(endpoint) as channel:
            call = channel.stream_unary(f"/{SERVICE}/ScoreGroup")(never())
            try:
                await call
            except grpc.aio.AioRpcError as error:
                return f"{error.code().name}: {error.details()}"
        return ""

    with start_service("--deadline", "0.5") as service:
        assert "DEADLINE_EXCEEDED: the request did not arrive within 0.5 s" in asyncio.run(
            silent(service.endpoint)
        )
