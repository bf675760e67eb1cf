"""Real clients over gRPC: a SuperLink at an address that clients reach, with TLS, and only clients that it knows.

The public keys in ``CERTIFICATES/clients`` are registered before the run begins; ``nodes.json`` in the run directory
says which node may speak for which client, and the ServerApp holds each node to it. Who is refused, and why, is told
to whoever watches the run: what the ServerApp refuses by itself, what never gets there by `Doorkeeper`.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import httpx
from flwr.proto.control_pb2 import RegisterNodeRequest

from fedlab.comm import credentials
from fedlab.config.schema import Flat, Grpc
from fedlab.engines import Apps
from fedlab.engines.processes import evidence, uncoloured
from fedlab.engines.ray import check_apps, follow, submit
from fedlab.engines.superlink import Fleet, SuperLink, superlink
from fedlab.errors import ConfigError, RunError
from fedlab.files import write_atomically
from fedlab.runs.directory import RunDirectory

NODES = "nodes.json"
# gRPC says on which connection TLS failed, and why, only when its handshakes are traced: a few lines a connection.
TRACE = {"GRPC_VERBOSITY": "info", "GRPC_TRACE": "handshaker"}
POLL_SECONDS = 0.2
SILENCE = 60.0  # seconds in which the same refusal is told once: clients that are refused keep knocking

Refused = Callable[[str, str], None]  # who, why


def run(apps: Apps, config: Flat, *, options: Grpc, directory: Path) -> None:
    """Serve one run to clients that come over the network; return once it completed.

    Raises
    ------
    ConfigError
        When no client could trust the server, see :func:`check`.
    RunError
        When the run did not complete, with what Flower said.
    """
    check(options)
    check_apps(apps)
    certificates = None if options.insecure else Path(options.certificates).expanduser()
    record = RunDirectory.open(directory)
    (directory / NODES).unlink(missing_ok=True)  # of an earlier attempt: node ids are new each time
    fleet = Fleet(options.address, certificates)
    with superlink(directory / "flower", simulation=False, fleet=fleet, environment=TRACE) as link:
        keys = credentials.public_keys(certificates) if certificates else {}
        if certificates:
            nodes = register(link, keys)
            write_atomically(directory / NODES, json.dumps(nodes, indent=2).encode() + b"\n")
        with watched(link.log, keys, lambda who, why: record.emit("refused", client=who, reason=why)):
            follow(link, submit(link, apps, config), process="flwr-serverapp", timeout=None)


def check(options: Grpc) -> None:
    """Refuse an address that is none, and credentials that no client could trust.

    Raises
    ------
    ConfigError
        With what to do about it.
    """
    host, colon, port = options.address.rpartition(":")
    if not (colon and host and port.isdecimal() and 0 < int(port) < 65536):
        raise ConfigError(f"grpc.address={options.address!r} is no HOST:PORT, for example 0.0.0.0:9092")
    if not options.insecure:
        credentials.check_server(Path(options.certificates).expanduser())


def register(link: SuperLink, keys: Mapping[str, bytes]) -> dict[str, str]:
    """Tell the SuperLink which keys to let in; returns the node id of each, as text, with the name of its client.

    Raises
    ------
    RunError
        When the SuperLink refuses a key.
    """
    nodes: dict[str, str] = {}
    for name, key in keys.items():
        try:
            nodes[str(link.control.RegisterNode(RegisterNodeRequest(public_key=key, name=name)).node_id)] = name
        except httpx.HTTPError as error:
            raise RunError(
                f"The SuperLink did not take the key of client {name!r}: {error}.\n{evidence(link.log)}"
            ) from error
    return nodes


@contextmanager
def watched(log: Path, keys: Mapping[str, bytes], refused: Refused) -> Iterator[None]:
    """While the body runs, tell of everybody that the SuperLink turns away."""
    doorkeeper, ended = Doorkeeper(keys, refused), threading.Event()

    def loop() -> None:
        with log.open("r", encoding="utf-8", errors="replace") as stream:
            while True:
                last_look = ended.is_set()
                doorkeeper.read(stream.read())
                if last_look:
                    return
                ended.wait(POLL_SECONDS)

    thread = threading.Thread(target=loop, name="fedlab-doorkeeper", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=5)


class Doorkeeper:
    """Reads in a SuperLink's log who was turned away, and says it in sentences.

    Parameters
    ----------
    keys
        Public key (PEM) of each client that is let in, by its name.
    refused
        Called with who and why; the same refusal once in a minute.
    """

    DOOR = re.compile(r"Fleet/(ActivateNode|RegisterNode)\]\[ApiError.*?public key: b'(.*?)'(.*)")
    HANDSHAKE = re.compile(r"CallNextHandshakerLocked: error=(?!OK)(.*?)args=.*?endpoint_peer_address=([^,}]*)", re.S)
    ENTRY = re.compile(r"^[EIW]\d{4} ", re.M)  # where gRPC's next entry begins
    ALERTS: Mapping[str, str] = {
        "ALERT_UNKNOWN_CA": "it does not trust this server's certificate: its ca.crt is of another authority; copy "
        "ca.crt to it again",
        "CERTIFICATE_EXPIRED": "it refused this server's certificate, which has expired by its clock: make a new one "
        "with `fedlab certs --force`, or set its clock",
        "BAD_CERTIFICATE": "it refused this server's certificate, which is not valid yet or not for the name by which "
        "the client calls this server; `fedlab certs --host NAME --force` adds a name",
        "WRONG_VERSION_NUMBER": "it spoke plain text: it has to join without --insecure",
        "HTTP_REQUEST": "it spoke plain text: it has to join without --insecure",
        "read failed": "it broke off the TLS handshake: it does not trust this server's certificate, or is no client",
    }

    def __init__(self, keys: Mapping[str, bytes], refused: Refused) -> None:
        self.names = {key: name for name, key in keys.items()}
        self.refused = refused
        self._rest = ""
        self._told: dict[tuple[str, str], float] = {}

    def read(self, text: str) -> None:
        """Take in the next part of the log; a last line, or entry of gRPC, that is not complete waits for the rest."""
        complete, _, self._rest = (self._rest + uncoloured(text)).rpartition("\n")
        starts = [match.start() for match in self.ENTRY.finditer(complete)]
        if starts and "CallNextHandshaker" in (last := complete[starts[-1] :]) and "peer_address" not in last:
            complete, self._rest = complete[: starts.pop()], f"{last}\n{self._rest}"
        for match in self.DOOR.finditer(complete):
            self._door(*match.groups())
        for begin, end in pairwise([*starts, len(complete)]):
            if broken := self.HANDSHAKE.search(complete, begin, end):
                self._handshake(*broken.groups())

    def _door(self, call: str, escaped: str, why: str) -> None:
        key = escaped.replace("\\n", "\n").encode()
        try:
            who = self.names.get(key) or f"key {credentials.fingerprint(key)}"
        except (ValueError, AssertionError):
            who = "a key of another kind"
        if call == "RegisterNode":
            self._tell(who, "it came without a key of this federation; make it one with `fedlab certs --client NAME`")
        elif "No SuperNode found" in why:
            self._tell(who, "its key is not registered here; make it one with `fedlab certs --client NAME`")
        else:
            self._tell(who, "a client with its key is connected already, or was killed less than a minute ago")

    def _handshake(self, error: str, peer: str) -> None:
        if "BAD_PACKET_LENGTH" in error:  # a refusal in TLS 1.3, which cannot be read; our client says it once more
            return
        host = re.sub(r"^ipv[46]:", "", peer.replace("%5B", "[").replace("%5D", "]")).rpartition(":")[0]
        reason = next((why for sign, why in self.ALERTS.items() if sign in error), None)
        self._tell(host, reason or f"no TLS connection came about: {error.splitlines()[0].strip()}")

    def _tell(self, who: str, why: str) -> None:
        now = time.monotonic()
        if now - self._told.get((who, why), -SILENCE) >= SILENCE:
            self._told[who, why] = now
            self.refused(who, why)
