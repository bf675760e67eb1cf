"""Proxies between a client and its server: one decision for the probe and for Flower's gRPC.

gRPC reads ``grpc_proxy``, ``https_proxy`` and ``http_proxy`` in lower case only, uses one for the loopback too, and
knows no other proxies than those of HTTP. Other programs of a machine go by more: capital letters, ``all_proxy``, ``*``
in ``no_proxy``. The first of ``VARIABLES`` that is set counts here; hosts in ``no_proxy`` and this machine itself are
reached directly. Flower's processes get the decision as ``grpc_proxy``, which is empty where there is no proxy.
"""

from __future__ import annotations

import base64
import ipaddress
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import SplitResult, unquote, urlsplit

VARIABLES = ("grpc_proxy", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "http_proxy")
MAX_ANSWER = 65536  # bytes of a proxy's answer that are read
ADVICE = {
    403: "it does not allow this address; ask its operator, or name the host in no_proxy if it can be reached directly",
    407: "it wants a name and a password: {variable}=http://NAME:PASSWORD@HOST:PORT",
    502: "it does not reach the server",
    503: "it does not reach the server",
    504: "it does not reach the server",
}


class ProxyError(OSError):
    """A proxy that does not do its work; the text names it, its variable and what to do."""


@dataclass(frozen=True)
class Proxy:
    """An HTTP proxy that an environment variable names."""

    variable: str
    url: SplitResult

    def __str__(self) -> str:
        """Name it without its password."""
        return f"the proxy {self.url.hostname}:{self.port} ({self.variable})"

    @property
    def port(self) -> int:
        """Return its port."""
        return self.url.port or 80

    def connect(self, host: str, port: int, timeout: float) -> socket.socket:
        """Return a connection to a server through the proxy.

        Raises
        ------
        ProxyError
            When the proxy does not answer, or does not open a way to the server.
        """
        try:
            connection = socket.create_connection((self.url.hostname or "", self.port), timeout)
            try:
                self._open(connection, f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
            except BaseException:
                connection.close()
                raise
        except ProxyError:
            raise
        except OSError as error:
            raise ProxyError(
                f"{self}: {error.strerror or error}; unset {self.variable}, or name {host} in no_proxy, if the server "
                "can be reached without it"
            ) from None
        return connection

    def _open(self, connection: socket.socket, target: str) -> None:
        request = f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n"
        if self.url.username is not None:
            secret = f"{unquote(self.url.username)}:{unquote(self.url.password or '')}"
            request += f"Proxy-Authorization: Basic {base64.b64encode(secret.encode()).decode()}\r\n"
        connection.sendall(request.encode() + b"\r\n")
        answer = b""
        while b"\r\n\r\n" not in answer and len(answer) < MAX_ANSWER:
            if not (part := connection.recv(1)):  # one by one: what follows is the server's
                break
            answer += part
        status = answer.partition(b"\r\n")[0].decode(errors="replace")
        fields = status.split(None, 2)
        code = int(fields[1]) if len(fields) > 1 and fields[0].startswith("HTTP/") and fields[1].isdecimal() else 0
        if code // 100 != 2:
            said = " ".join(fields[1:]) if code else repr(status) if status else "nothing"
            advice = ADVICE.get(code, "is it an HTTP proxy?").format(variable=self.variable)
            raise ProxyError(f"{self} answered {said} when asked for {target}: {advice}")


def find_proxy(host: str, environment: Mapping[str, str] = os.environ) -> tuple[Proxy | None, str]:
    """Return the proxy by which a host is reached, if any; and a sentence about one that cannot be used, or "".

    The sentence is for where the host cannot be reached directly.
    """
    if is_loopback(host) or _is_excepted(host, environment):
        return None, ""
    for variable in VARIABLES:
        if not (text := environment.get(variable, "").strip()):
            continue
        try:
            url = urlsplit(text if "://" in text else f"http://{text}")
            valid = bool(url.hostname) and (url.port or 80) > 0
        except ValueError:
            return None, f"{variable} is not the URL of a proxy; write http://HOST:PORT"
        if valid and url.scheme == "http":
            return Proxy(variable, url), ""
        if valid:
            return None, (
                f"{variable} names a {url.scheme} proxy, which gRPC cannot use; name an HTTP proxy in https_proxy"
            )
        return None, f"{variable} is not the URL of a proxy; write http://HOST:PORT"
    return None, ""


def connect(host: str, port: int, timeout: float) -> socket.socket:
    """Return a connection to a host, through the proxy of the environment where there is one for it.

    Raises
    ------
    OSError
        When it cannot be reached; :class:`ProxyError` where that is due to a proxy.
    """
    proxy, unusable = find_proxy(host)
    if proxy:
        return proxy.connect(host, port, timeout)
    try:
        return socket.create_connection((host, port), timeout)
    except OSError as error:
        if unusable:
            raise ProxyError(f"{error.strerror or error}; {unusable}") from None
        raise


def grpc_variables(host: str) -> dict[str, str]:
    """Return environment variables that make gRPC reach a host as :func:`connect` does."""
    proxy, _ = find_proxy(host)
    if proxy is None:
        return {"grpc_proxy": ""}  # set, and so the only one that gRPC looks at
    # gRPC reads its own exceptions instead of no_proxy, which was seen to here.
    return {"grpc_proxy": proxy.url.geturl(), "no_grpc_proxy": "localhost,127.0.0.1"}


def is_loopback(host: str) -> bool:
    """Return True for a name or an address of this machine's loopback."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        pass
    if host.rstrip(".").lower() == "localhost" or host.rstrip(".").lower().endswith(".localhost"):
        return True
    try:
        found = {ipaddress.ip_address(str(info[4][0]).partition("%")[0]) for info in socket.getaddrinfo(host, None)}
    except (OSError, UnicodeError):  # a name that only the proxy knows
        return False
    return all(address.is_loopback for address in found)


def _is_excepted(host: str, environment: Mapping[str, str]) -> bool:
    """Return True where a host is named in ``no_proxy``: as a name, the end of one, ``*``, an address or a network."""
    names = next((value for name in ("no_grpc_proxy", "no_proxy", "NO_PROXY") if (value := environment.get(name))), "")
    exceptions = [name.strip().lower() for name in names.split(",")]
    if "*" in exceptions or any(_is_below(host.rstrip(".").lower(), name.lstrip(".")) for name in exceptions):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return any(_contains(network, address) for network in exceptions)


def _is_below(host: str, domain: str) -> bool:
    return bool(domain) and (host == domain or host.endswith(f".{domain}"))


def _contains(network: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    try:
        return address in ipaddress.ip_network(network, strict=False)
    except ValueError:
        return False
