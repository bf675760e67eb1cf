"""Supervisor of one client on its own machine: start its SuperNode, follow its logs, restart it, report in plain lines.

Flower's ``flower-supernode`` does the work. Its output goes to ``STATE_DIR/flower.log``; the important lines of it and
of our ClientApp's log (``STATE_DIR/events.jsonl``) are reported here. A SuperNode reconnects by itself while its server
keeps its state; a server that was restarted does not know it any more, and then another SuperNode is started. A client
that was killed leaves ``STATE_DIR/.connected`` behind: the next start deregisters that node, or the server would reject
the new one.

**Source**: Flower 1.39, ``flwr/supernode/cli/flower_supernode.py``, ``flwr/client/grpc_rere_client/connection.py``.
"""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import FrameType

import tomli_w

from fedlab.comm import credentials
from fedlab.deploy import proxies
from fedlab.deploy.client_log import SuperNodeMonitor
from fedlab.deploy.probe import parse_address, probe_server
from fedlab.deploy.room import RoomWatch, check_room
from fedlab.engines.processes import (
    LOOPBACK,
    MARKER_ENV,
    free_ports,
    is_alive,
    log_excerpt,
    runtime_environment,
    start,
    stop,
)
from fedlab.environment import with_environment
from fedlab.errors import ConfigError, RunError
from fedlab.files import LOCK_FILE, LogTail, directory_lock, empty_file, limit_log, truncate_torn_line
from fedlab.runs.client_store import EVENTS, STATE_DIR_KEY

POLL_SECONDS = 0.2
MAX_BACKOFF = 5.0  # seconds between two attempts to reach a server that does not answer
SHUTDOWN_TIMEOUT = 6.0  # seconds for a SuperNode to send a last reply and deregister
MAX_REJECTIONS = 2  # in a row before giving up: a server that has just started may not have registered its clients yet
MAX_CRASHES = 5  # SuperNodes that end in a row without a connection, before giving up
CONNECTED_FILE = ".connected"  # in the state directory; process and node id; touched while connected
HEARTBEAT_TIMEOUT = 15.0  # seconds after the last touch at which a client counts as disconnected

Write = Callable[[str], None]


@dataclass(frozen=True)
class ClientOptions:
    """Options of one client, as ``fedlab join`` takes them."""

    address: str  # HOST:PORT
    client: str  # name: of its key, and of its domain if it has one
    certificates: Path | None  # folder with ca.crt and clients/NAME.key; None: plain text without authentication
    node: Mapping[str, str]  # node config of our ClientApp
    state_dir: Path  # absolute
    once: bool = False  # leave after the last round of a run
    give_up_after: float = float("inf")  # seconds without a server


def join(options: ClientOptions, write: Write) -> None:
    """Run one client until Ctrl-C or SIGTERM, or with ``once`` until a run has ended.

    Parameters
    ----------
    write
        Called with each line for the client's owner.

    Raises
    ------
    ConfigError, RunError
        When this client cannot join: wrong files, an untrusted server, or a server that rejects the client.
    """
    lock = directory_lock(
        options.state_dir, wait=False, remedy="stop the other `fedlab join`, or choose another --state-dir"
    )
    route = proxies.grpc_variables(parse_address(options.address)[0])
    with _sigterm_as_interrupt(), lock, runtime_environment(route) as (variables, scratch):
        supervisor = _Supervisor(options, variables, scratch, write)
        try:
            supervisor.run()
        except KeyboardInterrupt:
            pass
        finally:
            supervisor.shut_down()
        write(f"{options.client} has left; its state is in {options.state_dir}")


def disconnect_reason(state_dir: Path) -> str:
    """Return why the client of a state directory is not connected at this moment; empty when it is.

    Raises
    ------
    ConfigError
        When no client ever used the folder.
    """
    if not (state_dir / LOCK_FILE).exists():
        raise ConfigError(f"{state_dir} is no folder of a client: `fedlab join` makes it (option --state-dir)")
    try:
        silence = time.time() - (state_dir / CONNECTED_FILE).stat().st_mtime
    except FileNotFoundError:
        return "it waits for its server, or has left"
    return f"it lost its server, or was killed, {silence:.0f} s ago" if silence > HEARTBEAT_TIMEOUT else ""


class _Supervisor:
    """Starts SuperNodes one after another, each when the one before has ended."""

    def __init__(self, options: ClientOptions, variables: Mapping[str, str], scratch: Path, write: Write) -> None:
        self.options, self.variables, self.write = options, variables, write
        self.log, self.connected_file = options.state_dir / "flower.log", options.state_dir / CONNECTED_FILE
        certificates = options.certificates
        self.fingerprint = credentials.check_client(certificates, options.client) if certificates else None
        self.settings = scratch / "node.toml"  # a file, so that no name or path needs quoting
        _make_private(options.state_dir)
        check_room(options.state_dir)
        self.room = RoomWatch(options.state_dir, write)
        node = {**options.node, "server": options.address, STATE_DIR_KEY: str(options.state_dir)}
        self.settings.write_text(tomli_w.dumps(node), encoding="utf-8")
        empty_file(self.log)
        truncate_torn_line(options.state_dir / EVENTS)
        self.events = LogTail(options.state_dir / EVENTS, from_end=True)
        self.process: subprocess.Popen[bytes] | None = None

    def run(self) -> None:
        """Connect, supervise, and connect again until it is time to leave."""
        options = self.options
        rejections, crashes, done = 0, 0, False
        while not done:
            self._await_server()
            self._deregister_previous()
            monitor = SuperNodeMonitor(options.address, options.client, options.state_dir, self.write)
            done = self._supervise(monitor)
            if monitor.connected:
                rejections, crashes = 0, 0
            if monitor.restarted:
                self.connected_file.unlink(missing_ok=True)  # that server is gone, and with it its nodes
            if done or monitor.restarted:
                continue
            if monitor.rejected:
                rejections += 1
                if rejections == MAX_REJECTIONS:
                    raise RunError(self._rejection_message(monitor))
                time.sleep(2)
            else:
                crashes += 1
                if crashes == MAX_CRASHES:
                    excerpt = log_excerpt(self.log)
                    raise RunError(f"the SuperNode ended {MAX_CRASHES} times without a connection.\n{excerpt}")
                self.write("the SuperNode ended unexpectedly; starting another")
                time.sleep(min(2.0**crashes, MAX_BACKOFF))

    def shut_down(self) -> None:
        """Let the SuperNode deregister, then stop all that is left of it."""
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(SHUTDOWN_TIMEOUT)
                self.connected_file.unlink(missing_ok=True)
            except subprocess.TimeoutExpired:
                pass  # its server does not answer
            stop(self.variables[MARKER_ENV], [self.process])
            self.process = None

    def _await_server(self) -> None:
        """Return once the server answers and is trusted."""
        authority = self.options.certificates / "ca.crt" if self.options.certificates else None
        limit = self.options.give_up_after
        started, pause = time.monotonic(), 1.0
        proxy, _ = proxies.find_proxy(parse_address(self.options.address)[0])
        if proxy:
            self.write(f"by way of {proxy}")
        while reason := probe_server(self.options.address, authority):
            if pause == 1.0:
                self.write(f"no server at {self.options.address} yet ({reason}); trying until it is there")
            if time.monotonic() - started + pause > limit:
                raise RunError(f"no server at {self.options.address} within {limit:g} s ({reason})")
            time.sleep(pause)
            pause = min(2 * pause, MAX_BACKOFF)

    def _supervise(self, monitor: SuperNodeMonitor) -> bool:
        """Run one SuperNode and report on it; return True to leave for good, False when only this SuperNode ended."""
        output = LogTail(self.log, from_end=True)
        self.process = start(
            "fedlab.engines.programs",
            "flower_supernode",
            self._arguments(),
            self.variables,
            self.log,
            shutdown_timeout=SHUTDOWN_TIMEOUT,
        )
        leave_by: float | None = None
        abandon_at: float | None = None
        while True:
            ended = self.process.poll() is not None or (abandon_at is not None and time.monotonic() > abandon_at)
            events = self.events.lines()  # first, or the answer to a message could be read and its receipt not yet
            monitor.read_supernode_log(output.lines())
            limit_log(self.log)
            monitor.read_client_events(events)
            self.room.look()
            if (monitor.restarted or monitor.rejected) and abandon_at is None:
                abandon_at = time.monotonic() + SHUTDOWN_TIMEOUT  # it logs that it ends, and may hang all the same
            if monitor.node and not ended:
                self._write_heartbeat(monitor)
            if (monitor.refused or (monitor.finished and self.options.once)) and leave_by is None:
                leave_by = time.monotonic() + SHUTDOWN_TIMEOUT
            if leave_by is not None and (ended or not monitor.busy or time.monotonic() > leave_by):
                if monitor.refused:
                    raise RunError(f"this client was refused: {monitor.refused}")
                return True
            if ended:
                stop(self.variables[MARKER_ENV], [self.process])  # its superexec and apps may still run
                self.process = None
                return False
            limit = self.options.give_up_after
            if monitor.lost and time.monotonic() - monitor.lost > limit:
                raise RunError(f"the server at {self.options.address} was away for {limit:g} s")
            time.sleep(POLL_SECONDS)

    def _write_heartbeat(self, monitor: SuperNodeMonitor) -> None:
        """Record process and node of a connected client, and the time at which it was last connected."""
        if not self.connected_file.exists():
            assert self.process is not None
            try:
                empty_file(self.connected_file, f"{self.process.pid} {monitor.node}".encode("ascii"))
            except OSError:  # a full disk, of which `RoomWatch` tells; without its content it is of no use
                self.connected_file.unlink(missing_ok=True)
        elif not monitor.lost:
            self.connected_file.touch()

    def _arguments(self) -> list[str]:
        """Return the options of ``flower-supernode``; its own port is a free one, so clients can share a machine."""
        arguments = ["--superlink", self.options.address, "--node-config", str(self.settings)]
        arguments += ["--host", LOOPBACK, "--port", str(free_ports(1)[0])]
        folder = self.options.certificates
        if folder is None:
            return [*arguments, "--insecure"]
        key = folder / "clients" / f"{self.options.client}.key"
        return [*arguments, "--root-certificates", str(folder / "ca.crt"), "--auth-supernode-private-key", str(key)]

    def _deregister_previous(self) -> None:
        """Deregister the node of an earlier client of this state directory that was killed."""
        folder = self.options.certificates
        if not self.connected_file.exists():
            return
        with suppress(ValueError):
            pid, node = map(int, self.connected_file.read_text(encoding="ascii").split())
            end = time.monotonic() + SHUTDOWN_TIMEOUT
            while is_alive(pid) and time.monotonic() < end:  # it may still deregister itself: only we were killed
                time.sleep(POLL_SECONDS)
            if folder:  # without a key the next SuperNode is another node to the server, whose roster decides
                from fedlab.engines.flower_programs import deactivate_node

                key = credentials.client_key(folder, self.options.client)
                with with_environment(proxies.grpc_variables(parse_address(self.options.address)[0])):
                    deactivate_node(self.options.address, folder / "ca.crt", key, node)
        self.connected_file.unlink(missing_ok=True)

    def _rejection_message(self, monitor: SuperNodeMonitor) -> str:
        name = self.options.client
        if monitor.bad_signature:
            return (
                f"the server at {self.options.address} does not accept the signature of {name!r}; is this machine's "
                f"clock right, {datetime.now().astimezone():%Y-%m-%d %H:%M:%S %Z}? By the server's clock "
                f"{credentials.CLOCK_LIMITS}. Set the one that is wrong. Full log: {self.log}"
            )
        return (
            f"the server at {self.options.address} does not let {name!r} in: its key ({self.fingerprint}) is not "
            "registered there, or another client with the same key is connected. The server's owner registers a key "
            f"by having clients/{name}.pub in the folder of `fedlab certs` when the server starts"
        )


def _make_private(state_dir: Path) -> None:
    """Close a client's directory, and the files in it, to everyone but its owner, where that is us."""
    for path in (state_dir, *(path for path in state_dir.iterdir() if not path.is_symlink())):
        with suppress(OSError):
            path.chmod(0o700 if path.is_dir() else 0o600)


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Raise KeyboardInterrupt for SIGTERM and SIGINT while the context lasts."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
