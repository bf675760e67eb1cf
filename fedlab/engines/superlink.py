"""A SuperLink that belongs to one run, and stops with all that it started.

Its Control and Runtime APIs are on a free port of the loopback. Its Fleet API, for SuperNodes, is there too, or where
:class:`Fleet` says. Flower gives all three the same certificate; ours covers the loopback as well.

Not `flwr run`, which starts a detached SuperLink on a fixed port or uses whatever answers there.

**Source**: Flower 1.39, `flwr/superlink/cli/flower_superlink.py`.
"""

from __future__ import annotations

import re
import ssl
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from flwr.supercore.control import ControlHttpClient

from fedlab.engines.processes import LOOPBACK, MARKER_ENV, START_LIMIT, log_excerpt, free_ports, read_plain, start, stop, runtime_environment
from fedlab.errors import RunError


@dataclass(frozen=True)
class Fleet:
    """Where SuperNodes reach a SuperLink, and how both sides prove who they are."""

    address: str  # host:port
    certificates: Path | None  # folder of `fedlab certs`; None: plain text, and whoever comes is let in


@dataclass(frozen=True)
class SuperLink:
    """A running SuperLink."""

    control: ControlHttpClient
    address: str  # host:port of its Control and Runtime APIs
    fleet: str  # host:port for SuperNodes; unused in simulation
    environment: Mapping[str, str]  # for whatever else belongs to this run: it is stopped together with the SuperLink
    scratch: Path  # short path, gone at the end
    log: Path  # output of the SuperLink and of all it started
    process: subprocess.Popen[bytes]


@contextmanager
def superlink(
    directory: Path, *, simulation: bool, fleet: Fleet | None = None, environment: Mapping[str, str] | None = None
) -> Iterator[SuperLink]:
    """A SuperLink for one run. On leaving, for whatever reason, everything that was started in it is stopped."""
    directory.mkdir(parents=True, exist_ok=True)
    log = directory / "flower.log"
    with runtime_environment(environment) as (variables, scratch):
        started: list[subprocess.Popen[bytes]] = []
        try:
            address, nodes = _start(log, simulation, fleet, variables, started)
            control = control_client(address, fleet.certificates if fleet else None)
            yield SuperLink(control, address, nodes, variables, scratch, log, started[-1])
        finally:
            stop(variables[MARKER_ENV], started)


def control_client(address: str, certificates: Path | None) -> ControlHttpClient:
    """What speaks to a SuperLink's Control API."""
    control = ControlHttpClient.from_server_address(address, certificates is None, None, [])
    verify = ssl.create_default_context(cafile=certificates / "ca.crt") if certificates else False
    control._client = httpx.Client(verify=verify, trust_env=False, timeout=30.0)  # no proxy on the way to the loopback
    return control


def _start(
    log: Path,
    simulation: bool,
    fleet: Fleet | None,
    environment: Mapping[str, str],
    started: list[subprocess.Popen[bytes]],
) -> tuple[str, str]:
    """Start a SuperLink, wait until it listens, return the addresses of its Control and Fleet APIs."""
    for _ in range(3):  # somebody may be faster on a port that was free a moment ago
        port, other = free_ports(2)
        nodes = fleet.address if fleet else f"{LOOPBACK}:{other}"
        command = ["--host", LOOPBACK, "--port", str(port)]
        command += _identity(fleet.certificates) if fleet and fleet.certificates else ["--insecure"]
        command += ["--simulation"] if simulation else ["--fleet-api-address", nodes]
        log.write_bytes(b"")
        process = start("flwr.superlink.cli", "flower_superlink", command, environment, log)
        started.append(process)
        begin = time.monotonic()
        while process.poll() is None:
            if re.search(rf"running on https?://{LOOPBACK}:{port}", read_plain(log)):  # once the port is really its own
                return f"{LOOPBACK}:{port}", nodes
            if time.monotonic() - begin > START_LIMIT:
                raise RunError(f"The SuperLink was not ready within {START_LIMIT:g} s.\n{log_excerpt(log)}")
            time.sleep(0.05)
        if fleet and re.search(rf"address {re.escape(nodes)}( is already in use|;)", read_plain(log)):
            raise RunError(
                f"No server can listen at {nodes}: the port is in use, or this machine has no such address. Stop the "
                "other server, or choose another address (knob grpc.address)."
            )
        if not re.search("in use|bind", read_plain(log)):
            raise RunError(f"The SuperLink ended with code {process.returncode} at its start.\n{log_excerpt(log)}")
    raise RunError(f"No free port for the SuperLink in three attempts.\n{log_excerpt(log)}")


def _identity(certificates: Path) -> list[str]:
    """Options with which a SuperLink proves who it is, and asks the same of SuperNodes."""
    files = {"--ssl-ca-certfile": "ca.crt", "--ssl-certfile": "server.crt", "--ssl-keyfile": "server.key"}
    options = [part for option, name in files.items() for part in (option, str((certificates / name).resolve()))]
    return [*options, "--enable-supernode-auth"]
