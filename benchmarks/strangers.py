"""Measure what strangers cost a server: calls that are too large or do not end, and connections without end.

    python -m benchmarks.strangers

One SuperLink, started as `fedlab serve` starts it, with TLS and without a run. None of the keys here is registered.

=============  =======================================================================================================
``large``      calls of 200 MB, four at a time
``unfinished`` calls of 30 MB whose last bytes never come, 40 at a time
``handshakes`` connections that begin no TLS, eight at a time for half a minute; beside them honest ones, one every two
               seconds
=============  =======================================================================================================

Memory is the most that the SuperLink had beyond what it had before.
"""

from __future__ import annotations

import argparse
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import grpc
from flwr.common.constant import PUBLIC_KEY_HEADER, SIGNATURE_HEADER, TIMESTAMP_HEADER
from flwr.supercore.date import now
from flwr.supercore.primitives.asymmetric import generate_key_pairs, public_key_to_bytes, sign_message
from rich.console import Console

from benchmarks.light_clients import usage
from fedlab.deploy import provision
from fedlab.engines.grpc import TRACE, monitor_rejections
from fedlab.engines.processes import LOOPBACK, PROC, free_ports
from fedlab.engines.superlink import Fleet, SuperLink, superlink

MEGABYTE = 1_000_000
METHOD = "/flwr.proto.Fleet/PushObject"
LARGE, UNFINISHED = 200 * MEGABYTE, 30 * MEGABYTE
GARBAGE = b"GET / HTTP/1.1\r\n\r\n"
SETTLED = 5.0  # seconds in which calls that do not end have sent what they send


class Link:
    """A SuperLink under attack."""

    def __init__(self, link: SuperLink, authority: Path) -> None:
        self.link, self.authority = link, authority.read_bytes()
        host, _, port = link.fleet.rpartition(":")
        self.address = (host, int(port))

    def call(self, content: bytes, address: str) -> str:
        """Push an object with a key that was made up; return the code of the answer."""
        private, public = generate_key_pairs()
        time_ = now().isoformat()
        head = (
            (PUBLIC_KEY_HEADER, public_key_to_bytes(public)),
            (TIMESTAMP_HEADER, time_),
            (SIGNATURE_HEADER, sign_message(private, time_.encode("ascii"))),
        )
        options = (("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1))
        with grpc.secure_channel(address, grpc.ssl_channel_credentials(self.authority), options) as channel:
            try:
                channel.unary_unary(METHOD)(content, metadata=head, timeout=30)
            except grpc.RpcError as error:
                return str(error.code().name)
        return "OK"

    @contextmanager
    def growth(self) -> Iterator[Callable[[], float]]:
        """Yield a function that returns the most megabytes beyond those of now."""
        process = PROC / str(self.link.process.pid)
        (process / "clear_refs").write_text("5")  # its peak is that of now
        before = _peak(process)
        yield lambda: _peak(process) - before

    def honest(self) -> float:
        """Connect by TLS; return the seconds."""
        context = ssl.create_default_context(cadata=self.authority.decode())
        began = time.monotonic()
        with (
            socket.create_connection(self.address, timeout=60) as plain,
            context.wrap_socket(plain, server_hostname=self.address[0]),
        ):
            return time.monotonic() - began


def _peak(process: Path) -> float:
    line = next(line for line in (process / "status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024 / MEGABYTE


@contextmanager
def stalling(target: tuple[str, int], limit: int) -> Iterator[str]:
    """Yield the address of a relay that passes so many bytes of each connection to the target, and then none."""
    with socket.create_server((LOOPBACK, 0), backlog=100) as listener:

        def pump(source: socket.socket, sink: socket.socket, left: float) -> None:
            with suppress(OSError):
                while left > 0 and (data := source.recv(65536)):
                    sink.sendall(data)
                    left -= len(data)

        def accept() -> None:
            with suppress(OSError):
                while True:
                    one, _ = listener.accept()
                    other = socket.create_connection(target)
                    for pair in ((one, other, limit), (other, one, float("inf"))):
                        threading.Thread(target=pump, args=pair, daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        yield f"{LOOPBACK}:{listener.getsockname()[1]}"


def large(link: Link) -> str:
    """Send calls of 200 MB."""
    content = bytes(LARGE)
    with link.growth() as growth, ThreadPoolExecutor(4) as pool:
        codes = set(pool.map(lambda _: link.call(content, link.link.fleet), range(4)))
        return f"four calls of 200 MB: {growth():.0f} MB more, answered by {', '.join(sorted(codes))}"


def unfinished(link: Link) -> str:
    """Hold calls of 30 MB that do not end."""
    content = bytes(UNFINISHED)
    with (
        link.growth() as growth,
        stalling(link.address, UNFINISHED - MEGABYTE) as relay,
        ThreadPoolExecutor(40) as pool,
    ):
        held = [pool.submit(link.call, content, relay) for _ in range(40)]
        time.sleep(SETTLED)
        open_calls = sum(not one.done() for one in held)
        codes = {one.result() for one in held}
        return (
            f"40 calls of 30 MB that do not end: {growth():.0f} MB more, {open_calls} are held for {SETTLED:.0f} s or "
            f"longer, the others are answered by {', '.join(sorted(codes - {'DEADLINE_EXCEEDED'}))}"
        )


def handshakes(link: Link, seconds: float) -> str:
    """Begin connections and no TLS."""
    end = time.monotonic() + seconds

    def connect(_: int) -> int:
        count = 0
        while time.monotonic() < end:
            with suppress(OSError), socket.create_connection(link.address, timeout=5) as stranger:
                stranger.sendall(GARBAGE)
                stranger.recv(1)
                count += 1
        return count

    before = usage(link.link.process.pid).cpu
    with link.growth() as growth, ThreadPoolExecutor(9) as pool:
        strangers = [pool.submit(connect, number) for number in range(8)]
        waited = []
        while time.monotonic() < end:
            waited.append(link.honest())
            time.sleep(2)
        count = sum(one.result() for one in strangers)
        used = usage(link.link.process.pid).cpu - before
        logs = [path.stat().st_size / MEGABYTE for path in sorted(link.link.log.parent.glob("flower.log*"))]
        return (
            f"{count:,} failed handshakes in {seconds:.0f} s: {growth():.0f} MB more, {used:.1f} CPU s, logs of "
            f"{' and '.join(f'{size:.0f}' for size in logs)} MB; {len(waited)} honest connections, the slowest "
            f"{max(waited):.1f} s"
        )


def main() -> None:
    """Measure all three."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30, help="of failed handshakes")
    options = parser.parse_args()
    console = Console(width=120)
    with TemporaryDirectory() as name:
        certificates = Path(name) / "certs"
        provision.create_credentials(certificates, clients=["usps"])
        fleet = Fleet(f"{LOOPBACK}:{free_ports(1)[0]}", certificates)
        events: list[str] = []
        with (
            superlink(Path(name) / "link", simulation=False, fleet=fleet, environment=TRACE) as running,
            monitor_rejections(running.log, {}, lambda who, why: events.append(why)),
        ):
            link = Link(running, certificates / "ca.crt")
            for line in (large(link), unfinished(link), handshakes(link, options.seconds)):
                console.print(line, soft_wrap=True, highlight=False)
        console.print(f"{len(events)} lines in the log of the run's events", highlight=False)


if __name__ == "__main__":
    main()
