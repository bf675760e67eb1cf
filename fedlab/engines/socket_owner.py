"""Owner of the other end of a connection over this machine's loopback, from the kernel's table of sockets.

Flower's HTTP servers ask for no credential, and every user of a machine reaches its loopback. After
:func:`take_own_connections_only` the servers of a process take connections of its own user and close all others.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import sys
from pathlib import Path
from typing import Any

TABLES = {4: Path("/proc/net/tcp"), 6: Path("/proc/net/tcp6")}  # by version of the internet protocol; Linux only
ESTABLISHED = "01"  # of a socket in another state the kernel may name root as the owner

Address = tuple[str, int]  # and more, in version 6


def connection_owner(peer: Address, own: Address) -> int | None:
    """Return the user id of the process at the other end of a connection; None if there is no such one on this machine.

    Parameters
    ----------
    peer, own
        Address and port of the other end, and of this one.

    Raises
    ------
    OSError
        Where the kernel has no such table.
    """
    wanted = [_encoded(*peer[:2]), _encoded(*own[:2]), ESTABLISHED]
    for line in TABLES[ipaddress.ip_address(peer[0]).version].read_text(encoding="ascii").splitlines()[1:]:
        entries = line.split()
        if entries[1:4] == wanted:
            return int(entries[7])
    return None


def _encoded(host: str, port: int) -> str:
    """Return an address as in the table: words of 32 bits in the machine's byte order, in hexadecimal."""
    packed = ipaddress.ip_address(host).packed
    words = [packed[start : start + 4] for start in range(0, len(packed), 4)]
    ordered = [word[::-1] if sys.byteorder == "little" else word for word in words]
    return f"{b''.join(ordered).hex().upper()}:{port:04X}"


def is_own(transport: asyncio.BaseTransport) -> bool:
    """Return True for a connection from a process of this user, and where the system does not tell."""
    peer, own = transport.get_extra_info("peername"), transport.get_extra_info("sockname")
    if not (isinstance(peer, tuple) and isinstance(own, tuple)):
        return True  # no connection of the internet protocol
    try:
        return connection_owner(peer, own) == os.getuid()
    except OSError:
        return True


def take_own_connections_only() -> None:
    """Let the uvicorn servers of this process that start from now on close connections of other users."""
    from uvicorn.protocols.http import auto

    auto.AutoHTTPProtocol = own_connections_only(auto.AutoHTTPProtocol)


def own_connections_only(protocol: type[Any]) -> type[Any]:
    """Return a subclass of a uvicorn protocol that closes connections of other users before it reads anything."""

    class OwnConnections(protocol):  # type: ignore[misc]
        def connection_made(self, transport: asyncio.Transport) -> None:
            self.is_own = is_own(transport)
            if self.is_own:
                super().connection_made(transport)
                return
            print("fedlab: closed a connection of another user of this machine", file=sys.stderr, flush=True)
            transport.abort()

        def data_received(self, data: bytes) -> None:
            if self.is_own:
                super().data_received(data)

        def connection_lost(self, exc: Exception | None) -> None:
            if self.is_own:
                super().connection_lost(exc)

    return OwnConnections
