"""Private SuperLink for one run, which stops with all that it started; the run on it, and its true outcome.

Its Control and Runtime APIs are on a free port of the loopback. Its Fleet API, for SuperNodes, is there too, or at the
address of :class:`Fleet`. Flower gives all three the same certificate; ours covers the loopback as well.

``flwr run`` is not used: it starts a detached SuperLink on a fixed port or uses whatever answers there, and exits with
0 although the run failed.

**Source**: Flower 1.39, `flwr/superlink/cli/flower_superlink.py`.
"""

from __future__ import annotations

import re
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from fedlab.engines.flower_control import Control, ControlError, Outcome
from fedlab.engines.flower_internals import app_error
from fedlab.engines.flower_programs import SERVER_APP
from fedlab.engines.processes import (
    LOOPBACK,
    MARKER_ENV,
    PROC,
    START_LIMIT,
    free_ports,
    log_excerpt,
    marked_processes,
    read_plain,
    runtime_environment,
    start,
    stop,
)
from fedlab.engines.spec import Apps
from fedlab.errors import ConfigError, RunError
from fedlab.files import no_follow

(SERVER_COMMAND,) = SERVER_APP  # by whose name a run is found among the processes
PRINTED = 100  # last parts of a run's output that are kept in memory
FEDLAB_ERROR = re.compile(r"^ *fedlab\.errors\.\w+: ", re.M)  # last line of a traceback of an error of ours


@dataclass(frozen=True)
class Fleet:
    """Address at which SuperNodes reach a SuperLink, and the credentials of both sides."""

    address: str  # host:port
    certificates: Path | None  # folder of `fedlab certs`; None: plain text without authentication


@dataclass(frozen=True)
class SuperLink:
    """A running SuperLink."""

    control: Control
    address: str  # host:port of its Control and Runtime APIs
    fleet: str  # host:port for SuperNodes
    environment: Mapping[str, str]  # of all processes of this run, which stop together with the SuperLink
    scratch: Path  # short path, deleted at the end
    log: Path  # output of the SuperLink and of all that it started
    process: subprocess.Popen[bytes]


@contextmanager
def superlink(
    directory: Path, *, fleet: Fleet | None = None, environment: Mapping[str, str] | None = None
) -> Iterator[SuperLink]:
    """Yield a SuperLink for one run; at the end, for whatever reason, stop all that was started with it."""
    directory.mkdir(parents=True, exist_ok=True)
    log = directory / "flower.log"
    with runtime_environment(environment) as (variables, scratch), ExitStack() as connections:
        started: list[subprocess.Popen[bytes]] = []
        control: Control | None = None
        try:
            address, nodes = _start(log, fleet, variables, started)
            control = Control(address, fleet.certificates / "ca.crt" if fleet and fleet.certificates else None)
            connections.callback(control.close)  # once the SuperLink is gone: a thread may be reading its stream
            yield SuperLink(control, address, nodes, variables, scratch, log, started[-1])
        finally:
            stop(variables[MARKER_ENV], started)
            if control:
                control.close()


def check_apps(apps: Apps) -> None:
    """Check that both apps can be imported.

    Raises
    ------
    ConfigError
        For an app that cannot be imported.
    """
    for reference in (apps.server, apps.client):
        if reason := app_error(reference):
            raise ConfigError(f"No app at {reference!r}: {reason}")


def submit(link: SuperLink, apps: Apps, config: Mapping[str, str]) -> int:
    """Start the run and return its id.

    Raises
    ------
    RunError
        When the SuperLink does not take it.
    """
    try:
        return link.control.start_run(apps.server, apps.client, config)
    except ControlError as error:
        raise RunError(f"The SuperLink refused the run: {error}.\n{log_excerpt(link.log)}") from error


def follow(link: SuperLink, run_id: int) -> None:
    """Wait until the run has completed; the death of its ServerApp, which the SuperLink does not notice, is noticed.

    Raises
    ------
    RunError
        When the run did not complete, with the reason and an excerpt of Flower's log.
    """
    # The stream of the app's output ends with the run: nothing to poll, and no requests in the log.
    printed: deque[str] = deque(maxlen=PRINTED)
    stream = threading.Thread(target=_stream, args=(link, run_id, printed), daemon=True)
    stream.start()
    started, seen, outcome = time.monotonic(), False, None
    while outcome is None:
        stream.join(0.5)
        waited = time.monotonic() - started
        if link.process.poll() is not None:
            raise RunError(f"The SuperLink died during the run.\n{log_excerpt(link.log)}")
        if not stream.is_alive():
            outcome = _outcome(link, run_id)
        elif not PROC.is_dir() or any(
            SERVER_COMMAND in each for each in marked_processes(link.environment[MARKER_ENV]).values()
        ):
            seen = True
        elif seen and (outcome := _outcome(link, run_id, wait=3.0)) is None:
            raise RunError(f"{SERVER_COMMAND} died before the end (killed? out of memory?).\n{log_excerpt(link.log)}")
        elif not seen and waited > START_LIMIT:
            raise RunError(f"{SERVER_COMMAND} did not start within {START_LIMIT:g} s.\n{log_excerpt(link.log)}")
    if not outcome.completed:
        details = re.sub(r"^ServerApp failed with exception: ", "", outcome.details) or "no reason given"
        excerpt = log_excerpt(link.log)
        if any(FEDLAB_ERROR.search(text) for text in (excerpt, "".join(printed))):  # our own app's message is complete
            raise RunError(details)
        raise RunError(f"The run ended as {outcome.status}: {details}\n{excerpt}")


def _outcome(link: SuperLink, run_id: int, wait: float = 1.0) -> Outcome | None:
    """Return the outcome of a run that ends within ``wait`` seconds; None if it goes on."""
    end = time.monotonic() + wait
    while True:
        try:
            outcome = link.control.outcome(run_id)
        except ControlError as error:
            raise RunError(f"The SuperLink no longer answers: {error}.\n{log_excerpt(link.log)}") from error
        if outcome or time.monotonic() > end:
            return outcome
        time.sleep(0.5)


def _stream(link: SuperLink, run_id: int, printed: deque[str]) -> None:
    """Log what the run prints, until its end or the SuperLink's, which `follow` notices itself.

    Parameters
    ----------
    printed
        Gets the same, for the case that the disk is full.
    """
    with suppress(ControlError, ValueError), open(link.log, "ab", buffering=0, opener=no_follow) as log:
        for text in link.control.stream_logs(run_id):
            printed.append(text)
            with suppress(OSError):
                log.write(text.encode())


def _start(
    log: Path,
    fleet: Fleet | None,
    environment: Mapping[str, str],
    started: list[subprocess.Popen[bytes]],
) -> tuple[str, str]:
    """Start a SuperLink, wait until it listens, return the addresses of its Control and Fleet APIs."""
    for _ in range(3):  # another process may take a port that was free a moment ago
        port, other = free_ports(2)
        nodes = fleet.address if fleet else f"{LOOPBACK}:{other}"
        command = ["--host", LOOPBACK, "--port", str(port), "--fleet-api-address", nodes]
        command += _identity(fleet.certificates) if fleet and fleet.certificates else ["--insecure"]
        open(log, "wb", opener=no_follow).close()
        process = start("fedlab.engines.programs", "flower_superlink", command, environment, log)
        started.append(process)
        begin = time.monotonic()
        while process.poll() is None:
            if re.search(rf"running on https?://{LOOPBACK}:{port}", read_plain(log)):  # once the port is its own
                return f"{LOOPBACK}:{port}", nodes
            if time.monotonic() - begin > START_LIMIT:
                raise RunError(f"The SuperLink was not ready within {START_LIMIT:g} s.\n{log_excerpt(log)}")
            time.sleep(0.05)
        if fleet and re.search(rf"address {re.escape(nodes)}( is already in use|;)", read_plain(log)):
            raise RunError(
                f"No server can listen at {nodes}: the port is in use, or this machine has no such address. Stop the "
                "other server, or choose another address (option grpc.address)."
            )
        if not re.search("in use|bind", read_plain(log)):
            raise RunError(f"The SuperLink ended with code {process.returncode} at its start.\n{log_excerpt(log)}")
    raise RunError(f"No free port for the SuperLink in three attempts.\n{log_excerpt(log)}")


def _identity(certificates: Path) -> list[str]:
    """Return the options for the SuperLink's TLS and for the authentication of SuperNodes."""
    files = {"--ssl-ca-certfile": "ca.crt", "--ssl-certfile": "server.crt", "--ssl-keyfile": "server.key"}
    options = [part for option, name in files.items() for part in (option, str((certificates / name).resolve()))]
    return [*options, "--enable-supernode-auth"]
