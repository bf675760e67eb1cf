"""A network between a client and its server that can be cut: namespaces where the machine has them, else a relay.

In a namespace packets are lost, as when a cable is pulled; a relay that is stopped only keeps them waiting.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fedlab.engines import processes

# Passes bytes on between whoever connects and a server: what else is there between two machines. What a client sends
# goes at the bytes a second that a file says, and what it gets at those of another; at full speed where that is empty,
# and at 0 not at all.
RELAY = """
import asyncio, pathlib, sys

def rate(file):
    text = pathlib.Path(file).read_text() if file else ""
    return float(text) if text else float("inf")

async def pump(reader, writer, file=""):
    try:
        while data := await reader.read(65536):
            while data:
                part = min(len(data), max(0, rate(file) / 10))
                writer.write(data[:int(part)])
                data = data[int(part):]
                await writer.drain()
                await asyncio.sleep(0.1 if rate(file) < 1e6 else 0)
    except OSError:
        pass
    finally:
        writer.close()

async def relay(reader, writer):
    try:
        there_reader, there_writer = await asyncio.open_connection(sys.argv[2], sys.argv[3])
    except OSError:
        return writer.close()
    await asyncio.gather(pump(reader, there_writer, sys.argv[4]), pump(there_reader, writer, sys.argv[5]))

async def main():
    server = await asyncio.start_server(relay, "127.0.0.1", int(sys.argv[1]))
    await server.serve_forever()

asyncio.run(main())
"""


def unused_subnet() -> str:
    """Return the first three numbers of addresses that no network of this machine has, drawn at random."""
    said = subprocess.run(["ip", "-o", "-4", "addr"], check=True, capture_output=True, text=True).stdout
    # A test run that was killed leaves its network behind, and of two with the same addresses one reaches nobody.
    return f"10.77.{secrets.choice([number for number in range(1, 255) if f' 10.77.{number}.' not in said])}"


class Namespace:
    """A network namespace with one cable to this machine."""

    def __init__(self) -> None:
        tag = secrets.token_hex(3)
        self.name, self.link = f"fedlab-{tag}", f"fl{tag}"
        subnet = unused_subnet()
        self.here, there = f"{subnet}.1", f"{subnet}.2"
        self.before = ("ip", "netns", "exec", self.name)
        ip("netns", "add", self.name)
        try:
            ip("link", "add", self.link, "type", "veth", "peer", "name", "uplink", "netns", self.name)
            ip("addr", "add", f"{self.here}/30", "dev", self.link)
            ip("link", "set", self.link, "up")
            for device in ("lo", "uplink"):
                ip("-n", self.name, "link", "set", device, "up")
            ip("-n", self.name, "addr", "add", f"{there}/30", "dev", "uplink")
        except BaseException:
            self.remove()
            raise

    def server(self, address: str) -> str:
        """Where the client finds the server that listens at an address."""
        return address

    def cut(self) -> None:
        """Nothing gets through any more."""
        ip("link", "set", self.link, "down")

    def mend(self) -> None:
        """What is sent gets through again."""
        ip("link", "set", self.link, "up")

    def remove(self) -> None:
        """Take the namespace away, and the cable with it."""
        with suppress(subprocess.CalledProcessError):
            ip("netns", "del", self.name)


class Relay:
    """A process that passes on what a client and its server say to each other.

    ``up`` and ``down`` are files of the bytes a second that pass from the client and to it, see ``RELAY``.
    """

    def __init__(self, up: Path | None = None, down: Path | None = None) -> None:
        self.here, self.before, self.rates = processes.LOOPBACK, (), (str(up or ""), str(down or ""))
        self.process: subprocess.Popen[bytes] | None = None

    def server(self, address: str) -> str:
        """Where the client finds the server that listens at an address."""
        host, _, port = address.rpartition(":")
        (own,) = processes.free_ports(1)
        self.process = subprocess.Popen([sys.executable, "-c", RELAY, str(own), host, port, *self.rates])
        return f"{processes.LOOPBACK}:{own}"

    def cut(self) -> None:
        """Nothing gets through any more."""
        os.kill(self.process.pid, signal.SIGSTOP)

    def mend(self) -> None:
        """What is sent gets through again."""
        os.kill(self.process.pid, signal.SIGCONT)

    def remove(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()


@contextmanager
def cable() -> Iterator[Namespace | Relay]:
    """A cable for a test; it is gone afterwards."""
    try:
        one: Namespace | Relay = Namespace()
    except (OSError, subprocess.CalledProcessError):  # no `ip`, or not allowed to use it
        one = Relay()
    try:
        yield one
    finally:
        one.remove()


def ip(*arguments: str) -> None:
    """The command of this name."""
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=30)
