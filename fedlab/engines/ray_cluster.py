"""A Ray cluster that somebody else started: whether it answers, of which version it is, what is there and what free."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fedlab.errors import ConfigError

AUTO = "auto"  # the cluster of which this machine is a node
CONNECT_SECONDS = 5.0
PROBE_SECONDS = 60.0  # the import of Ray included, on a busy machine
BLAS_THREADS = "OMP_NUM_THREADS"  # Ray sets it to the CPUs of an actor, with which NumPy's last bits may differ
SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_gcs_rpc_server_reconnect_timeout_s": "15"}
LOG_PREFIX = re.compile(r"^\[[^]]*\] \S+:\d+: ")  # of Ray's own log: time, process, place in its source
PROBE = Path(__file__).with_name("ray_probe.py")
VERSIONS = re.compile(r"Ray: (\S+)\s+Python: (\S+)")


@dataclass(frozen=True)
class Node:
    """A machine of a cluster, with all that Ray may use there."""

    name: str
    cpus: float
    gpus: float


@dataclass(frozen=True)
class RayCluster:
    """A cluster as it was a moment ago."""

    address: str
    nodes: tuple[Node, ...]
    free_cpus: float
    free_gpus: float

    @property
    def gpus(self) -> float:
        """GPUs of all nodes."""
        return sum(node.gpus for node in self.nodes)

    def slots(self, cpus: float, gpus: float) -> int:
        """Return how many processes of so many CPUs and GPUs fit at the same time, if nobody else has any."""
        return sum(int(min(_times(node.cpus, cpus), _times(node.gpus, gpus))) for node in self.nodes)

    def describe(self) -> str:
        """Return its nodes and resources for people."""
        cpus = sum(node.cpus for node in self.nodes)
        return f"{len(self.nodes)} nodes with {cpus:g} CPUs and {self.gpus:g} GPUs"


def _times(have: float, want: float) -> float:
    return have / want if want else 1e9


def driver_environment() -> dict[str, str]:
    """Return variables of a process that connects to a cluster: it notices soon that the head is gone."""
    return {name: os.environ.get(name, value) for name, value in SETTINGS.items()}


def check_installed() -> None:
    """Refuse an environment without Ray.

    Raises
    ------
    ConfigError
        With the command that installs it.
    """
    if find_spec("ray") is None:
        raise ConfigError("engine=ray and --on ray need the package ray: pip install 'flwr[simulation]'")


def probe(address: str) -> RayCluster:
    """Look at a cluster, within a minute at most.

    Parameters
    ----------
    address
        ``host:port`` of its head, or ``auto`` for the cluster of which this machine is a node.

    Raises
    ------
    ConfigError
        When Ray is not installed, nothing answers, it is another version, or this machine is none of its nodes.
    """
    check_installed()
    if address != AUTO and (reason := unreachable(address)):
        raise ConfigError(f"no Ray cluster answers at {address}: {reason}. {_what_to_check(address)}")
    try:
        found = _ask(address)
    except subprocess.TimeoutExpired:
        raise ConfigError(
            f"something answers at {address}, but no Ray head within {PROBE_SECONDS:g} s. {_what_to_check(address)}"
        ) from None
    error = found.pop("error", None)
    if error is not None:
        raise ConfigError(_explain(address, error))
    nodes = tuple(Node(**node) for node in found.pop("nodes"))
    return RayCluster(address, nodes, **found)


def unreachable(address: str) -> str:
    """Return why nothing listens at ``host:port``; "" if something does.

    Raises
    ------
    ConfigError
        For another kind of address.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 65536 or "/" in host:
        raise ConfigError(
            f"{address!r} is no address of a Ray head; write host:port as `ray start --head` prints it, for example "
            "10.0.0.1:6379"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except TimeoutError:
        return f"no answer within {CONNECT_SECONDS:g} s"
    except OSError as error:
        return (error.strerror or str(error)).lower()
    return ""


def is_gone(address: str) -> bool:
    """Return True if the head of a cluster that was there does not listen any more."""
    return address != AUTO and bool(unreachable(address))


def gone(address: str) -> str:
    """Return what the loss of a cluster's head means for the user, without a full stop."""
    return f"the Ray cluster at {address} is gone: its head does not answer any more"


def _ask(address: str) -> dict[str, Any]:
    command = [sys.executable, "-P", str(PROBE), address]
    variables = {**os.environ, **driver_environment()}
    done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_SECONDS, env=variables)
    last = (done.stdout.strip().splitlines() or [""])[-1]
    try:
        found: dict[str, Any] = json.loads(last)
    except ValueError:  # Ray ended the process
        found = {"error": (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]}
    return found


def _explain(address: str, error: str) -> str:
    """Return what Ray's error means for the user."""
    if "Version mismatch" in error and len(found := VERSIONS.findall(error)) > 1:
        (ray, python), (own_ray, own_python) = found[:2]
        return (
            f"the Ray cluster at {address} runs Ray {ray} on Python {python}, and this environment has Ray {own_ray} "
            f"on Python {own_python}; all machines need the same versions: install them there (`pip install "
            f"ray=={own_ray}`), or run this from the cluster's environment"
        )
    said = LOG_PREFIX.sub("", (error.strip().splitlines() or [""])[0])
    if address == AUTO:
        return (
            "this machine is no node of a Ray cluster that answers; start one (`ray start --head`), join one (`ray "
            "start --address=HEAD:6379`), or name the address of its head"
        ) + (f": {said}" if said else "")
    return (
        f"the Ray cluster at {address} takes no connection from this machine, which must be one of its nodes: run this "
        f"on a node, or make this machine one (`ray start --address={address}`). {_what_to_check(address)}. Ray says: "
        f"{said}"
    )


def _what_to_check(address: str) -> str:
    host, _, port = address.rpartition(":")
    return (
        f"Check that `ray start --head --port={port}` runs on {host}, that `ray status --address={address}` answers "
        "there, and that no firewall closes the port"
    )
