"""Many deployed clients on one machine, for measurements: SuperNodes as `fedlab join` runs them, forked from one.

What a server sees of such a client is what it sees of one of `fedlab join`: the same program of Flower's with the same
limits, TLS, a key of its own, a process for each message, the installed app. What is left out is the process that
supervises a SuperNode; and all share the memory of what was imported, which takes 0.6 GB for each client otherwise.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

import tomli_w

from fedlab.comm import credentials
from fedlab.comm.foreign_text import REFUSED
from fedlab.engines import flower_limits, processes
from fedlab.engines import flower_programs as flower
from fedlab.engines.fork_server import fork_server
from fedlab.engines.programs import CLIENT_MODULES
from fedlab.engines.socket_owner import take_own_connections_only
from fedlab.runs.client_store import STATE_DIR_KEY

SUPERNODE = {"light-supernode": "benchmarks.light_clients:supernode"}
ANSWER = {"flwr-clientapp": "benchmarks.light_clients:answer"}
PID, LOG = "pid", "flower.log"
CPU = "FEDLAB_LIGHT_CPU"  # variable of the file of CPU seconds of each message
LEAVING = 8.0  # seconds for a SuperNode to say that it leaves


def supernode() -> None:
    """Run Flower's SuperNode in a fork; its id is written down, since the command that asked for it is another."""
    Path(PID).write_text(str(os.getpid()), encoding="ascii")
    take_own_connections_only()
    flower.run_supernode()


def answer() -> None:
    """Run Flower's program for one message, and write down what it took."""
    module, _, function = next(iter(flower.CLIENT_APP.values())).partition(":")
    try:
        getattr(import_module(module), function)()
    finally:
        used = resource.getrusage(resource.RUSAGE_SELF)
        with Path(os.environ[CPU]).open("a", encoding="ascii") as file:
            file.write(f"{used.ru_utime + used.ru_stime:.3f}\n")


@contextmanager
def warm() -> Iterator[Path]:
    """Keep a process from which SuperNodes and what they start are forked; no thread may have been started yet.

    Yields a short folder for the clients, which is deleted at the end.
    """
    flower_limits.refuse_foreign_bundles(CLIENT_MODULES, REFUSED)
    with processes.runtime_environment() as (_, scratch):
        os.environ[CPU] = str(scratch / "cpu")
        with fork_server(scratch, flower.SUPEREXEC | ANSWER | SUPERNODE, CLIENT_MODULES):
            yield scratch


def message_seconds() -> list[float]:
    """Return the CPU seconds of each message that clients have answered so far."""
    path = Path(os.environ[CPU])
    return [float(line) for line in path.read_text(encoding="ascii").split()] if path.exists() else []


@dataclass
class LightClient:
    """One client; it may come and go many times.

    Attributes
    ----------
    name
        Of its key and its domain.
    address
        HOST:PORT of the server.
    certificates
        Folder of `fedlab certs`.
    folder
        Short and private: its state, its log, and the scratch folder of its processes.
    """

    name: str
    address: str
    certificates: Path
    folder: Path
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    joined: int = field(default=0, init=False)

    def join(self) -> None:
        """Start a SuperNode; one that was killed is deregistered before, as `fedlab join` does."""
        scratch = self.folder / str(self.joined)
        (scratch / "home").mkdir(parents=True)
        (self.folder / "state").mkdir(exist_ok=True)
        self.joined += 1
        settings = scratch / "node.toml"
        settings.write_text(tomli_w.dumps({"domain": self.name, STATE_DIR_KEY: str(self.folder / "state")}))
        arguments = ["--superlink", self.address, "--node-config", str(settings)]
        arguments += ["--host", processes.LOOPBACK, "--port", str(processes.free_ports(1)[0])]
        arguments += ["--root-certificates", str(self.certificates / "ca.crt")]
        arguments += ["--auth-supernode-private-key", str(self.certificates / "clients" / f"{self.name}.key")]
        variables = processes.environment(scratch, {"PATH": os.environ["PATH"], processes.MARKER_ENV: self.marker})
        with (self.folder / LOG).open("ab") as output:
            self.process = subprocess.Popen(
                [*SUPERNODE, *arguments],
                cwd=scratch,
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )

    @property
    def marker(self) -> str:
        """Mark of all that was started for it this time."""
        return f"{self.folder.parent.name}-{self.name}-{self.joined}"

    @property
    def pid(self) -> int:
        """Process id of its SuperNode."""
        return int((self.folder / str(self.joined - 1) / PID).read_text(encoding="ascii"))

    @property
    def node(self) -> int:
        """Id of its node at the server; 0 before it was let in."""
        text = processes.read_plain(self.folder / LOG)
        return int(text.rpartition("SuperNode ID: ")[2].split()[0]) if "SuperNode ID: " in text else 0

    def leave(self) -> None:
        """End after a goodbye to the server."""
        if self.process is None:
            return
        with suppress(OSError, ValueError):
            os.kill(self.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(LEAVING)
        self.kill()

    def kill(self) -> None:
        """End at once, as a machine that loses power."""
        if self.process is not None:
            processes.stop(self.marker, [self.process])
            self.process = None

    def deregister(self) -> bool:
        """Report to the server that a client which was killed is gone, as `fedlab join` does when it starts again."""
        key = credentials.client_key(self.certificates, self.name)
        return flower.deactivate_node(self.address, self.certificates / "ca.crt", key, self.node)


@dataclass(frozen=True)
class Usage:
    """Processor and memory that a process and those below it have used.

    Attributes
    ----------
    cpu
        Seconds, user and system, of all.
    memory
        Megabytes by process id, pages that several processes share divided among them; the oldest first.
    """

    cpu: float
    memory: Mapping[int, float]


def usage(root: int) -> Usage:
    """Measure the living processes at and below one."""
    parents, cpu = {}, {}
    for entry in processes.PROC.iterdir():
        with suppress(OSError, ValueError):
            fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
            parents[int(entry.name)] = int(fields[1])
            cpu[int(entry.name)] = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")  # with dead children's
    members = {root}
    while new := {child for child, parent in parents.items() if parent in members} - members:
        members |= new
    return Usage(sum(cpu.get(pid, 0.0) for pid in members), {pid: megabytes(pid) for pid in sorted(members)})


def megabytes(pid: int) -> float:
    """Return the proportional set size of a process; 0 once it is gone."""
    with suppress(OSError):
        for line in (processes.PROC / str(pid) / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1000
    return 0.0
