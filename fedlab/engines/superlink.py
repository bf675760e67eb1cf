"""A SuperLink that belongs to one run: started on free ports of the loopback, and stopped with all that it started.

It has its own home, no telemetry, no update check, no installation of dependencies. Everything that runs under it, in
whatever session or process group, carries a mark in its environment; that is how all of it is found again and killed.
If we are killed ourselves, the SuperLink's process does it.

Not `flwr run`, which starts a detached SuperLink on a fixed port or uses whatever answers there.

**Source**: Flower 1.39, `flwr/superlink/cli/flower_superlink.py`, `flwr/supercore/superexec/run_superexec.py`.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
from flwr.supercore.control import ControlHttpClient

from fedlab.errors import RunError

START_LIMIT = 120.0  # seconds for a process of Flower to come up: imports are slow on a busy machine
LOOPBACK = "127.0.0.1"
MARK = "FEDLAB_ENGINE"  # in the environment of everything we start
PROC = Path("/proc")  # where there is none, Flower's parts stop when they miss their parent, and Ray's likewise
CHATTER = r"uvicorn\.|ControlServicer|^ *[\^~]+ *$"  # lines of a log that explain nothing
# Flower's command in a process that ends the whole run once we are gone, even if we were killed.
COMMAND = """
import os, sys, threading, time
from flwr.superlink.cli import flower_superlink

def watch(parent=int(sys.argv.pop(1))):
    while os.getppid() == parent:
        time.sleep(0.2)
    from fedlab.engines import superlink
    superlink.abandoned()

threading.Thread(target=watch, daemon=True).start()
flower_superlink()
"""


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
    directory: Path, *, simulation: bool, environment: Mapping[str, str] | None = None
) -> Iterator[SuperLink]:
    """A SuperLink for one run. On leaving, for whatever reason, everything that was started in it is stopped."""
    directory.mkdir(parents=True, exist_ok=True)
    log = directory / "flower.log"
    # Ray's sockets have to fit in 107 characters, about 65 of which are its own: not below a run directory.
    short = "/tmp" if os.access("/tmp", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="fedlab-", dir=short, ignore_cleanup_errors=True) as scratch:
        variables = _environment(Path(scratch), environment or {})
        started: list[subprocess.Popen[bytes]] = []
        try:
            address, fleet = _start(log, simulation, variables, started)
            control = ControlHttpClient.from_server_address(address, True, None, [])
            control._client = httpx.Client(trust_env=False, timeout=30.0)  # no proxy on the way to the loopback
            yield SuperLink(control, address, fleet, variables, Path(scratch), log, started[-1])
        finally:
            _stop(variables[MARK], started)


def _environment(scratch: Path, extra: Mapping[str, str]) -> dict[str, str]:
    """Environment of everything that we start."""
    scripts = (sysconfig.get_path("scripts"), str(Path(sys.executable).parent))
    direct = ",".join(filter(None, (os.environ.get("no_proxy") or os.environ.get("NO_PROXY"), LOOPBACK)))
    chatty = "DEBUG" if os.environ.get("FLWR_LOG_LEVEL") == "DEBUG" else "INFO"  # `_start` waits for a line at INFO
    return {
        **os.environ,
        MARK: scratch.name,
        "PATH": os.pathsep.join((*scripts, os.environ.get("PATH", ""))),  # Flower starts its parts by name
        "PYTHONPATH": os.pathsep.join(os.path.abspath(entry) for entry in sys.path),
        "PYTHONUNBUFFERED": "1",
        "NO_PROXY": direct,
        "no_proxy": direct,
        "FLWR_HOME": str(scratch / "home"),
        "FLWR_LOG_LEVEL": chatty,
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
        "RAY_TMPDIR": str(scratch),
        **extra,
    }


def _start(
    log: Path, simulation: bool, environment: Mapping[str, str], started: list[subprocess.Popen[bytes]]
) -> tuple[str, str]:
    """Start a SuperLink, wait until it listens, return the addresses of its Control and Fleet APIs."""
    for _ in range(3):  # somebody may be faster on a port that was free a moment ago
        port, fleet = free_ports(2)
        command = [sys.executable, "-c", COMMAND, str(os.getpid()), "--insecure", "--host", LOOPBACK]
        command += ["--port", str(port)]
        command += ["--simulation"] if simulation else ["--fleet-api-address", f"{LOOPBACK}:{fleet}"]
        log.write_bytes(b"")
        with log.open("ab") as output:  # appending, as the output of the run will be
            process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C in the terminal is for us alone: we stop the rest in order
            )
        started.append(process)
        begin = time.monotonic()
        while process.poll() is None:
            if f"running on http://{LOOPBACK}:{port}" in _plain(log):  # said once the port is really its own
                return f"{LOOPBACK}:{port}", f"{LOOPBACK}:{fleet}"
            if time.monotonic() - begin > START_LIMIT:
                raise RunError(f"The SuperLink was not ready within {START_LIMIT:g} s.\n{evidence(log)}")
            time.sleep(0.05)
        if not re.search("in use|bind", _plain(log)):
            raise RunError(f"The SuperLink ended with code {process.returncode} at its start.\n{evidence(log)}")
    raise RunError(f"No free port for the SuperLink in three attempts.\n{evidence(log)}")


def free_ports(number: int) -> list[int]:
    """Ports of the loopback that nobody uses at this moment."""
    sockets = [socket.create_server((LOOPBACK, 0)) for _ in range(number)]
    ports = [int(s.getsockname()[1]) for s in sockets]
    for s in sockets:
        s.close()
    return ports


def family(mark: str) -> dict[int, str]:
    """Living processes that carry our mark, and their children: process id -> command line. Empty without /proc."""
    if not PROC.is_dir():
        return {}
    wanted, parents, members = f"{MARK}={mark}".encode(), {}, set()
    for entry in PROC.iterdir():
        if not entry.name.isdigit():
            continue
        try:
            state, parent = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[:2]
            if state in "ZX":  # already dead, not yet collected
                continue
            parents[int(entry.name)] = int(parent)
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                members.add(int(entry.name))
        except OSError:  # gone meanwhile; or not readable, as Flower's superexec makes itself: its parent tells
            continue
    while new := {child for child, parent in parents.items() if parent in members} - members:
        members |= new
    return {pid: _command(pid) for pid in members}


def _command(pid: int) -> str:
    try:
        return (PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def _stop(mark: str, started: list[subprocess.Popen[bytes]]) -> None:
    """Kill whatever is left of the run: its state is private and in memory, so there is nothing to say goodbye to."""
    end = time.monotonic() + 10
    while (left := family(mark).keys() - {os.getpid()}) and time.monotonic() < end:
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    for process in started:
        process.kill()  # without /proc: the others notice within a second that their parent is gone
        process.wait()


def abandoned() -> None:
    """In the SuperLink's process, when the program that started it is gone: what `superlink` would have done."""
    _stop(os.environ[MARK], [])
    shutil.rmtree(Path(os.environ["FLWR_HOME"]).parent, ignore_errors=True)
    os._exit(1)


def _plain(log: Path) -> str:
    """The log without colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", log.read_text(errors="replace"))


def evidence(log: Path) -> str:
    """What a log says about a failure: the first error and the lines that lead to it, or the last lines; the path."""
    lines = [line for line in _plain(log).splitlines() if line.strip() and not re.search(CHATTER, line)]
    error = re.compile(r"(?:\(\w+ pid=\d+\) *)?(?:\w+\.)*\w*(?:Error|Exception)\b")
    first = next((i for i, line in enumerate(lines) if error.match(line)), None)
    shown = lines[-10:] if first is None else lines[max(0, first - 7) : first + 1]
    title = "Last lines:" if first is None else "First error:"
    return "\n".join([title, *(f"  {line}" for line in shown), f"Full log: {log}"])
