"""Probe of a server before a client joins: it must answer, and be the one that this client trusts.

It goes by the proxy that Flower's gRPC will go by, if there is one (:mod:`fedlab.deploy.proxies`). A handshake with
Python's own TLS gives an error message where Flower would only log. It also informs the server: a client that rejects a
certificate in TLS 1.3 just hangs up, so it connects again with TLS 1.2, whose alerts can be read.
"""

from __future__ import annotations

import datetime
import ssl
from contextlib import suppress
from pathlib import Path

from fedlab.comm import credentials
from fedlab.comm.addresses import split_address
from fedlab.deploy import proxies
from fedlab.errors import ConfigError, RunError

TIMEOUT = 10.0  # seconds for a connection and for an answer
EXPIRED, NOT_YET, OTHER_HOST, OTHER_ADDRESS = 10, 9, 62, 64  # OpenSSL's X509_V_ERR_*
# HTTP/2 connection preface and an empty SETTINGS frame: a gRPC server without TLS answers with its own.
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
SETTINGS, TLS_ALERT = 4, 0x15


def parse_address(address: str) -> tuple[str, int]:
    """Return host and port of ``HOST:PORT`` or ``[IPV6]:PORT``.

    Raises
    ------
    ConfigError
        When the address has another form.
    """
    if (found := split_address(address)) is None:
        raise ConfigError(
            f"{address!r} is no HOST:PORT of a server, for example lab.example.org:9092 or [2001:db8::7]:9092"
        )
    return found


def probe_server(address: str, authority: Path | None) -> str:
    """Return an empty string when the server answers and is trusted, else the reason why it does not answer.

    Parameters
    ----------
    address
        ``HOST:PORT``.
    authority
        Certificate of the trusted authority; None for a server in plain text.

    Raises
    ------
    RunError
        When something else answers: a server of another authority, with an expired certificate, with or without TLS.
    """
    host, port = parse_address(address)
    try:
        if authority is None:
            return _probe_plain_text(address, host, port)
        return _probe_tls(address, host, port, authority)
    except proxies.ProxyError as error:
        return str(error)
    except (ssl.SSLEOFError, ConnectionResetError, TimeoutError) as error:  # a tunnel without a server behind it
        return str(error) if isinstance(error, TimeoutError) else "it hung up"
    except ssl.SSLError:
        raise RunError(
            f"the server at {address} does not speak TLS; if it is one of `fedlab serve --insecure`, join with "
            "--insecure, and then nothing is secret or proven"
        ) from None
    except OSError as error:
        return error.strerror or str(error)


def _probe_tls(address: str, host: str, port: int, authority: Path) -> str:
    ours = credentials.load_certificate(authority)
    if datetime.datetime.now(datetime.UTC) > ours.not_valid_after_utc:
        raise RunError(f"{authority} expired on {ours.not_valid_after_utc:%Y-%m-%d}; get the server's new one")
    try:
        _tls_handshake(host, port, authority)
    except ssl.SSLCertVerificationError as error:
        with suppress(OSError):
            _tls_handshake(host, port, authority, readable=True)
        raise RunError(_certificate_error(address, host, authority, error)) from None
    return ""


def _certificate_error(address: str, host: str, authority: Path, error: ssl.SSLCertVerificationError) -> str:
    if error.verify_code == EXPIRED:
        return (
            f"the certificate of the server at {address} has expired; its owner makes a new one with "
            "`fedlab certs --force`"
        )
    if error.verify_code == NOT_YET:
        return f"the certificate of the server at {address} is not valid yet; is this machine's clock right?"
    if error.verify_code in (OTHER_HOST, OTHER_ADDRESS):
        return (
            f"the certificate of the server at {address} is not for {host!r}; its owner adds the name with "
            f"`fedlab certs --host {host} --force`"
        )
    return (
        f"the server at {address} is not the one that {authority} vouches for ({error.verify_message}); copy ca.crt "
        "from the server's machine again, over a connection that nobody can tamper with"
    )


def _tls_handshake(host: str, port: int, authority: Path | None, readable: bool = False) -> None:
    context = ssl.create_default_context(cafile=authority)
    context.set_alpn_protocols(["h2"])
    if authority is None:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if readable:
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    with (
        proxies.connect(host, port, TIMEOUT) as connection,
        context.wrap_socket(connection, server_hostname=host),
    ):
        pass


def _probe_plain_text(address: str, host: str, port: int) -> str:
    with proxies.connect(host, port, TIMEOUT) as connection:
        connection.sendall(PREFACE)
        try:
            answer = connection.recv(64)
        except ConnectionResetError:
            answer = b""
    if len(answer) > 3 and answer[3] == SETTINGS:
        return ""
    if not answer or answer[0] == TLS_ALERT:
        try:
            _tls_handshake(host, port, None)
        except (ssl.SSLError, OSError):
            if not answer:
                return "it hung up"
        raise RunError(f"the server at {address} expects TLS; join without --insecure, with its ca.crt and your key")
    raise RunError(f"what answers at {address} is no server of fedlab")
