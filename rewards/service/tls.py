"""TLS of server and clients: files are checked at the start, and a connection that fails says why.

gRPC tries a connection again whatever it fails by, and has no reason but its words. So a client whose call could not be
delivered makes one handshake of its own here and reads the reason from Python's `ssl`.
"""

from __future__ import annotations

import contextlib
import socket
import ssl

import grpc

from rewards.service.address import Address, read_pem
from videostr.errors import ConfigError

_PROBE_S = 5.0
_NOT_YET, _EXPIRED = 9, 10  # OpenSSL's X509_V_ERR_CERT_NOT_YET_VALID and _CERT_HAS_EXPIRED
_HOST_MISMATCH = (62, 63, 64)  # _HOSTNAME_, _EMAIL_, _IP_ADDRESS_MISMATCH
_UNKNOWN_AUTHORITY = (2, 18, 19, 20, 21)  # no issuer, or only ones that nobody trusts


def server_credentials(cert: str, key: str) -> grpc.ServerCredentials:
    """Return the server's side of TLS.

    Args:
        cert: PEM file with the certificate chain.
        key: PEM file with its key.

    Raises:
        ConfigError: a file cannot be read, they do not belong together, or the certificate is out of date.
    """
    chain, private_key = read_pem(cert), read_pem(key)
    if problem := _pair_problem(cert, key, private_key):
        raise ConfigError(f"--tls-cert {cert}, --tls-key {key}: {problem}")
    return grpc.ssl_server_credentials([(private_key, chain)])


def client_credentials(ca_file: str) -> grpc.ChannelCredentials:
    """Return a client's side of TLS.

    Args:
        ca_file: PEM file of the authorities that it trusts.

    Raises:
        ConfigError: the file cannot be read or holds no certificate.
    """
    authorities = read_pem(ca_file)
    try:
        _client_context(ca_file)
    except ssl.SSLError:
        raise ConfigError(
            f"{ca_file}: holds no certificate",
            remedy="name the PEM file of the authority that signed the service's certificate",
        ) from None
    return grpc.ssl_channel_credentials(authorities)


def connection_problem(address: Address, ca_file: str, timeout_s: float) -> str:
    """Return why no connection can be made however often it is tried; "" where TLS is not the reason.

    Args:
        address: of the service.
        ca_file: PEM file of the authorities that the client trusts; "" where it speaks no TLS.
        timeout_s: longest wait.
    """
    context = _client_context(ca_file) if ca_file else _any_server()
    try:
        with socket.create_connection(address, timeout=max(0.01, min(timeout_s, _PROBE_S))) as plain:
            try:
                context.wrap_socket(plain, server_hostname=address.host).close()
            except ssl.SSLError as error:
                return _problem(error, address, ca_file)
    except OSError:
        return ""
    return "" if ca_file else _NEEDS_TLS


_NEEDS_TLS = (
    "it speaks TLS and this client does not; name the PEM file of the authority that signed the service's certificate as "
    "ca_file"
)


def _problem(error: ssl.SSLError, address: Address, ca_file: str) -> str:
    """Return the words for a handshake that failed; "" where it says nothing about the service."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return _certificate_problem(error, address, ca_file)
    if isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)):
        return ""
    reason = error.reason or ""
    if "ALERT" in reason:
        return f"it refused the TLS handshake ({reason}); look at its log" if ca_file else _NEEDS_TLS
    if not ca_file:
        return ""
    return (
        f"it does not answer in TLS ({reason}); start it with --tls-cert and --tls-key, or leave out ca_file for a service "
        "on this machine"
    )


def _certificate_problem(error: ssl.SSLCertVerificationError, address: Address, ca_file: str) -> str:
    code = error.verify_code
    if code in (_NOT_YET, _EXPIRED):
        return f"its certificate {_date_problem(code)}"
    if code in _HOST_MISMATCH:
        return (
            f"its certificate is for another host than {address.host}; use a name that the certificate holds, or one "
            f"that holds {address.host} as subjectAltName"
        )
    if code in _UNKNOWN_AUTHORITY:
        return f"its certificate is not signed by an authority of {ca_file}; name the file of the one that signed it"
    return f"its certificate is refused ({error.verify_message}, OpenSSL's code {code}); give it another one"


def _date_problem(code: int) -> str:
    if code == _EXPIRED:
        return "has expired; give the service a new one"
    return "is not valid yet; check the clocks of both machines, and its dates"


def _pair_problem(cert: str, key: str, private_key: bytes) -> str:
    """Return what is wrong with a certificate and its key, or ""."""
    if b"ENCRYPTED" in private_key:
        return (
            "the key is encrypted, and nobody is there to type its pass phrase; decrypt it by `openssl pkey`"
        )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        server.load_cert_chain(cert, key)
    except (OSError, ValueError) as error:  # gRPC would say no more than that it failed
        reason = getattr(error, "reason", None) or ""
        if "MISMATCH" in reason or reason == "NO_CERTIFICATE_ASSIGNED":  # the latter: keys of two kinds
            return (
                "the key does not belong to the certificate; give the key that the certificate was made with"
            )
        return f"cannot be used ({error}); give PEM files of a certificate and its key"
    client = _any_server()
    client.verify_mode = ssl.CERT_REQUIRED
    client.load_verify_locations(cert)
    try:
        _handshake(client, server)
    except ssl.SSLCertVerificationError as error:
        if error.verify_code in (_NOT_YET, _EXPIRED):
            return f"the certificate {_date_problem(error.verify_code)}"
    except ssl.SSLError as error:
        return f"cannot be used ({error}); give another certificate"
    return ""


def _handshake(client: ssl.SSLContext, server: ssl.SSLContext) -> None:
    """Shake hands in memory; raises what the client finds."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = client.wrap_bio(to_client, to_server), server.wrap_bio(to_server, to_client, server_side=True)
    for side in sides * 2:
        with contextlib.suppress(ssl.SSLWantReadError):
            side.do_handshake()


def _client_context(ca_file: str) -> ssl.SSLContext:
    """Return a context that trusts what gRPC does: each certificate of the file by itself."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | ssl.VERIFY_X509_TRUSTED_FIRST
    context.load_verify_locations(ca_file)
    context.set_alpn_protocols(["h2"])
    return context


def _any_server() -> ssl.SSLContext:
    """Return a client's context that looks at no certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.set_alpn_protocols(["h2"])
    return context
