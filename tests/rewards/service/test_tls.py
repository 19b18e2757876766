"""Certificates that do not fit, on both sides: named at once, and not tried again."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import ipaddress
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from rewards.service import client as clients
from rewards.service.__main__ import main
from rewards.service.client import BlockingRewardClient, RewardClient, TlsError
from videostr.errors import ConfigError
from videostr.types import Record

RIGHT = "<think>x</think><answer>A</answer>"
DAY = dt.timedelta(days=1)


@dataclass(frozen=True)
class Pair:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: Any


def issue(name: str, by: Pair | None = None, host: str = "127.0.0.1", start: int = -1, days: int = 2) -> Pair:
    """A certificate valid from `start` days from now on; signed by itself unless `by` is given."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    first = dt.datetime.now(dt.UTC) + start * DAY
    issuer = by or Pair(None, key)  # type: ignore[arg-type]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(by.certificate.subject if by else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(first)
        .not_valid_after(first + days * DAY)
        .add_extension(x509.BasicConstraints(ca=by is None, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host))]), critical=False
        )
        .sign(issuer.key, hashes.SHA256())
    )
    return Pair(certificate, key)


def key_pem(key: Any, password: bytes = b"") -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption(),
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with certificates and keys: `NAME.pem`, `NAME.key`."""
    folder = tmp_path_factory.mktemp("tls")
    authority, other = issue("authority"), issue("other authority")
    pairs = {
        "ca": authority,
        "other_ca": other,
        "good": issue("good", authority),
        "expired": issue("expired", authority, start=-10, days=5),
        "early": issue("early", authority, start=5),
        "elsewhere": issue("elsewhere", authority, host="192.0.2.7"),
        "stranger": issue("stranger", other),
        "self_signed": issue("self-signed"),
    }
    for name, pair in pairs.items():
        (folder / f"{name}.pem").write_bytes(pair.certificate.public_bytes(serialization.Encoding.PEM))
        (folder / f"{name}.key").write_bytes(key_pem(pair.key))
    good = pairs["good"]
    (folder / "good.der").write_bytes(good.certificate.public_bytes(serialization.Encoding.DER))
    (folder / "encrypted.key").write_bytes(key_pem(good.key, b"secret"))
    (folder / "rsa.key").write_bytes(key_pem(rsa.generate_private_key(public_exponent=65537, key_size=2048)))
    (folder / "empty.pem").touch()
    (folder / "words.pem").write_text("not a certificate, and not ASCII: é\n")
    return folder


@contextlib.contextmanager
def server(files: Path, name: str) -> Iterator[str]:
    """The endpoint of a gRPC server with a certificate that our own would refuse; "" for one without TLS."""
    running = grpc.server(ThreadPoolExecutor(1))
    if name:
        pair = (files / f"{name}.key").read_bytes(), (files / f"{name}.pem").read_bytes()
        port = running.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
    else:
        port = running.add_insecure_port("127.0.0.1:0")
    running.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        running.stop(0).wait()


@pytest.mark.parametrize(
    ("certificate", "authority", "words"),
    [
        ("expired", "ca", "its certificate has expired; give the service a new one"),
        ("early", "ca", "its certificate is not valid yet; check the clocks"),
        ("elsewhere", "ca", r"its certificate is for another host than 127\.0\.0\.1"),
        ("stranger", "ca", r"is not signed by an authority of .*ca\.pem"),
        ("self_signed", "ca", "is not signed by an authority of"),
        ("good", "other_ca", "is not signed by an authority of"),
        ("", "ca", "it does not answer in TLS .*; start it with --tls-cert and --tls-key"),
        ("good", "", "it speaks TLS and this client does not; name the PEM file"),
    ],
)
def test_a_connection_that_cannot_be_made_is_tried_once(
    files: Path, record: Record, monkeypatch: pytest.MonkeyPatch, certificate: str, authority: str, words: str
) -> None:
    def waited(tries: Any, error: Any) -> float:
        raise AssertionError("it was to be tried again")

    async def asynchronous(endpoint: str) -> None:
        async with RewardClient(endpoint, ca_file=ca_file) as client:
            for call in (
                client.score_group([RIGHT], record),
                client.info(timeout_s=60),
                anext(client.score_groups([([RIGHT], record)])),
            ):
                with pytest.raises(TlsError, match=words):
                    await call

    monkeypatch.setattr(clients._Tries, "wait_after", waited)
    ca_file = str(files / f"{authority}.pem") if authority else ""
    with server(files, certificate) as endpoint:
        asyncio.run(asynchronous(endpoint))
        blocking = BlockingRewardClient(endpoint, ca_file=ca_file)
        with pytest.raises(TlsError, match=words):
            blocking.score_group([RIGHT], record)
        blocking.close()


@pytest.mark.parametrize("trusted", ["ca", "good"])  # its authority, or the certificate itself
def test_a_good_certificate_is_taken(files: Path, trusted: str) -> None:
    async def main() -> None:
        async with RewardClient(endpoint, ca_file=str(files / f"{trusted}.pem")) as client:
            with pytest.raises(
                clients.RewardServiceError, match="UNIMPLEMENTED"
            ):  # connected: it has no such method
                await client.info()

    with server(files, "good") as endpoint:
        asyncio.run(main())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("none.pem", "cannot be read"),
        ("", "cannot be read"),  # the folder
        ("empty.pem", "holds no certificate"),
        ("words.pem", "holds no certificate"),
        ("good.der", "holds no certificate"),
        ("good.key", "holds no certificate"),
    ],
)
def test_a_client_refuses_files_without_certificates(files: Path, name: str, words: str) -> None:
    for kind in (RewardClient, BlockingRewardClient):
        with pytest.raises(ConfigError, match=words):
            kind("127.0.0.1:1", ca_file=str(files / name))


@pytest.mark.parametrize(
    ("certificate", "key", "words"),
    [
        ("expired.pem", "expired.key", "the certificate has expired; give the service a new one"),
        ("early.pem", "early.key", "the certificate is not valid yet"),
        ("good.pem", "expired.key", "the key does not belong to the certificate"),
        ("good.pem", "rsa.key", "the key does not belong to the certificate"),
        ("good.pem", "encrypted.key", "the key is encrypted"),
        ("good.pem", "none.key", "cannot be read"),
        ("none.pem", "good.key", "cannot be read"),
        ("good.key", "good.pem", "give PEM files of a certificate and its key"),
        ("good.der", "good.key", "give PEM files of a certificate and its key"),
        ("empty.pem", "good.key", "give PEM files of a certificate and its key"),
        ("words.pem", "good.key", "give PEM files of a certificate and its key"),
    ],
)
def test_a_server_refuses_what_no_client_would_take(
    files: Path, capsys: pytest.CaptureFixture[str], certificate: str, key: str, words: str
) -> None:
    options = [
        "--listen",
        "127.0.0.1:0",
        "--tls-cert",
        str(files / certificate),
        "--tls-key",
        str(files / key),
    ]
    assert main(options) == 2
    assert words in capsys.readouterr().err
