"""Addresses at which a server listens and clients reach it."""

from __future__ import annotations


def split_address(address: str) -> tuple[str, int] | None:
    """Return host and port of ``HOST:PORT`` or ``[IPV6]:PORT``; None for anything else.

    An address of IPv6 needs its brackets: gRPC takes all of ``::1:9092`` for the host, and chooses a port itself.

    >>> split_address("[::1]:9092"), split_address("::1:9092")
    (('::1', 9092), None)
    """
    host, _, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if bracketed else host
    if not host or (":" in host) != bracketed or not host.isprintable() or any(sign in host for sign in " []/@"):
        return None
    return (host, int(port)) if port.isascii() and port.isdecimal() and 0 < int(port) < 65536 else None
