"""gRPC engine: real clients over the network, with TLS, and only clients whose keys are registered.

The public keys in ``CERTIFICATES/clients`` are registered before the run begins; ``nodes.json`` in the run directory
names the client of each node, and the ServerApp rejects a node that claims another. Rejections are logged as events of
the run: the ServerApp logs its own, `RejectionMonitor` those of the SuperLink.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

from fedlab.comm import credentials
from fedlab.comm.addresses import split_address
from fedlab.comm.event_rate import EventRate
from fedlab.config.engine_options import GrpcConfig
from fedlab.config.schema import Config
from fedlab.engines.flower_calls import CLOCK
from fedlab.engines.flower_control import ControlError
from fedlab.engines.processes import log_excerpt, strip_ansi
from fedlab.engines.spec import Apps, flower_config
from fedlab.engines.superlink import Fleet, SuperLink, check_apps, follow, submit, superlink
from fedlab.errors import ConfigError, RunError
from fedlab.files import expand_user, follow_lines, limit_log, write_atomically
from fedlab.runs.directory import RUN_DIRECTORY, RunDirectory

NODES = "nodes.json"
# gRPC logs the connection on which TLS failed, and why, only when its handshakes are traced: a few lines a connection.
TRACE = {"GRPC_VERBOSITY": "info", "GRPC_TRACE": "handshaker"}
REPEAT_AFTER = 60.0  # seconds after which a rejection is reported again: rejected clients try again and again
STRANGERS = "strangers"  # who share one rate of events: keys and addresses can be made up without end

OnRejection = Callable[[str, str], None]  # client, reason


def run_config(apps: Apps, config: Config, directory: Path) -> None:
    """Serve a configured run to clients that come over the network."""
    run(apps, flower_config(config), options=config.engine, directory=directory)


def run(apps: Apps, config: Mapping[str, str], *, options: GrpcConfig, directory: Path) -> None:
    """Serve one run to clients that connect over the network; return once it completed.

    Raises
    ------
    ConfigError
        When address or credentials are not valid, see :func:`check`.
    RunError
        When the run did not complete, with an excerpt of Flower's log.
    """
    check(options)
    check_apps(apps)
    certificates = None if options.insecure else expand_user(options.certificates)
    record = RunDirectory.open(directory)
    (directory / NODES).unlink(missing_ok=True)  # of an earlier attempt: node ids are new each time
    fleet = Fleet(options.address, certificates)
    environment = {**TRACE, RUN_DIRECTORY: str(directory)}
    with superlink(directory / "flower", fleet=fleet, environment=environment) as link:
        keys = credentials.public_keys(certificates) if certificates else {}
        if certificates:
            nodes = register(link, keys)
            write_atomically(directory / NODES, json.dumps(nodes, indent=2).encode() + b"\n")
        with monitor_rejections(
            link.log, keys, lambda client, reason: record.emit("refused", client=client, reason=reason)
        ):
            follow(link, submit(link, apps, config))


def check(options: GrpcConfig) -> None:
    """Validate the listen address and the server's TLS credentials.

    Raises
    ------
    ConfigError
        When one of them is not valid, with a remedy.
    """
    if split_address(options.address) is None:
        raise ConfigError(f"grpc.address={options.address!r} is no HOST:PORT, for example 0.0.0.0:9092 or [::]:9092")
    if not options.insecure:
        credentials.check_server(expand_user(options.certificates))


def register(link: SuperLink, keys: Mapping[str, bytes]) -> dict[str, str]:
    """Register keys with the SuperLink; return the node id of each, as text, with the name of its client.

    Raises
    ------
    RunError
        When the SuperLink refuses a key.
    """
    nodes: dict[str, str] = {}
    for name, key in keys.items():
        try:
            nodes[str(link.control.register_node(name, key))] = name
        except ControlError as error:
            raise RunError(
                f"The SuperLink did not take the key of client {name!r}: {error}.\n{log_excerpt(link.log)}"
            ) from error
    return nodes


@contextmanager
def monitor_rejections(log: Path, keys: Mapping[str, bytes], on_rejection: OnRejection) -> Iterator[None]:
    """Report each client that the SuperLink rejects while the context lasts; see :class:`RejectionMonitor`.

    Whoever connects writes to that log, so it is limited here.
    """
    monitor = RejectionMonitor(keys, on_rejection)

    def read(lines: list[str]) -> None:
        monitor.read(lines)
        limit_log(log)

    with follow_lines(log, read):
        yield


class RejectionMonitor:
    """Reader of a SuperLink's log that reports rejected clients with a reason and a remedy.

    Parameters
    ----------
    keys
        Public key (PEM) of each registered client, by its name.
    on_rejection
        Called with client and reason; with the same ones once in ``REPEAT_AFTER`` seconds.
    """

    REGISTRATION = re.compile(r"Fleet/(ActivateNode|RegisterNode)\]\[ApiError.*?public key: b'(.*?)'(.*)")
    CLOCK_LINE = re.compile(rf"{CLOCK}b'(.*?)' (-?\d+) s")
    HANDSHAKE = re.compile(r"CallNextHandshakerLocked: error=(?!OK)(.*?)args=.*?endpoint_peer_address=([^,}]*)", re.S)
    MESSAGE = re.compile(r"^[EIW]\d{4} ", re.M)  # begin of an entry of gRPC
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

    def __init__(self, keys: Mapping[str, bytes], on_rejection: OnRejection) -> None:
        self.names = {key: name for name, key in keys.items()}
        self.on_rejection, self.rate = on_rejection, EventRate()
        self._pending: list[str] = []  # lines of a last entry of gRPC that is not complete yet
        self._reported: dict[tuple[str, str], float] = {}

    def read(self, lines: Iterable[str]) -> None:
        """Read the next complete lines of the log."""
        text = "\n".join([*self._pending, *map(strip_ansi, lines)])
        self._pending = []
        starts = [match.start() for match in self.MESSAGE.finditer(text)]
        if starts and "CallNextHandshaker" in (last := text[starts[-1] :]) and "peer_address" not in last:
            text, self._pending = text[: starts.pop()], last.split("\n")
        for match in self.REGISTRATION.finditer(text):
            self._registration(*match.groups())
        for match in self.CLOCK_LINE.finditer(text):
            self._report(self._client(match[1]), _clock_reason(int(match[2])))
        for begin, end in pairwise([*starts, len(text)]):
            if broken := self.HANDSHAKE.search(text, begin, end):
                self._handshake(*broken.groups())

    def _client(self, escaped: str) -> str:
        """Return the name of the client that has a public key, as a log shows it, or the key's fingerprint."""
        key = escaped.replace("\\n", "\n").encode()
        try:
            return self.names.get(key) or f"key {credentials.fingerprint(key)}"
        except (ValueError, AssertionError):
            return "a key of another kind"

    def _registration(self, call: str, escaped: str, exception: str) -> None:
        if call == "RegisterNode":
            reason = "it came without a key of this federation; make it one with `fedlab certs --client NAME`"
        elif "No SuperNode found" in exception:
            reason = "its key is not registered here; make it one with `fedlab certs --client NAME`"
        else:
            reason = "a client with its key is connected already, or was killed less than a minute ago"
        self._report(self._client(escaped), reason)

    def _handshake(self, error: str, peer: str) -> None:
        if "BAD_PACKET_LENGTH" in error:  # a rejection in TLS 1.3, which cannot be read; our client repeats it
            return
        host = re.sub(r"^ipv[46]:", "", peer.replace("%5B", "[").replace("%5D", "]")).rpartition(":")[0]
        reason = next((reason for sign, reason in self.ALERTS.items() if sign in error), None)
        self._report(host, reason or f"no TLS connection came about: {error.splitlines()[0].strip()}")

    def _report(self, client: str, reason: str) -> None:
        now = time.monotonic()
        if now - self._reported.get((client, reason), -REPEAT_AFTER) < REPEAT_AFTER:
            return
        if (omitted := self.rate.count(client if client in self.names.values() else STRANGERS)) is None:
            return
        self._reported = {key: when for key, when in self._reported.items() if now - when < REPEAT_AFTER}
        self._reported[client, reason] = now
        self.on_rejection(client, reason + (f" (not listed: {omitted} more)" if omitted else ""))


def _clock_reason(ahead: int) -> str:
    """Return why a client is refused whose clock is so many seconds ahead of the server's."""
    away = f"{abs(ahead)} s" if abs(ahead) < 120 else f"{abs(ahead) / 60:.0f} min"
    return (
        f"its clock is {away} {'ahead of' if ahead > 0 else 'behind'} this server's, and {credentials.CLOCK_LIMITS}; "
        "set the one that is wrong"
    )
