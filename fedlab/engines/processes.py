"""Flower's programs as processes of ours: their environment, finding all that they started, stopping it, their logs.

Each program gets a home of its own, no telemetry, no update check, no installation of dependencies. Everything that
runs under it, in whatever session or process group, carries a mark in its environment; that is how all of it is found
again and killed. If we are killed ourselves, the program does it.

**Source**: Flower 1.39, `flwr/supercore/superexec/run_superexec.py`.
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
from pathlib import Path

START_LIMIT = 120.0  # seconds for a process of Flower to come up: imports are slow on a busy machine
LOOPBACK = "127.0.0.1"
MARK = "FEDLAB_ENGINE"  # in the environment of everything we start
PROC = Path("/proc")  # where there is none, Flower's parts stop when they miss their parent, and Ray's likewise
CHATTER = r"uvicorn\.|ControlServicer|^ *[\^~]+ *$|handshaker\.cc|channel_trace|status_helper|Source Location"
CHATTER += r"|shutdown=false"  # lines of a log that explain nothing: gRPC's tracing of handshakes is one of them
# One of Flower's commands in a process that ends all it started once we are gone, even if we were killed.
COMMAND = """
import os, signal, sys, threading, time
from {module} import {command}

parent, goodbye = int(sys.argv.pop(1)), float(sys.argv.pop(1))

def end():
    from fedlab.engines import processes
    processes.abandoned()

def watch():
    while os.getppid() == parent:
        time.sleep(0.2)
    if goodbye:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(goodbye)
    end()

threading.Thread(target=watch, daemon=True).start()
sys.argv[0] = "{command}"
try:
    {command}()
finally:
    if os.getppid() != parent:
        end()
"""


@contextmanager
def workplace(extra: Mapping[str, str] | None = None) -> Iterator[tuple[dict[str, str], Path]]:
    """An environment for programs of Flower and its scratch folder; the folder goes in the end, they must be gone."""
    # Ray's sockets have to fit in 107 characters, about 65 of which are its own: not below a run directory.
    short = "/tmp" if os.access("/tmp", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="fedlab-", dir=short, ignore_cleanup_errors=True) as scratch:
        yield environment(Path(scratch), extra or {}), Path(scratch)


def environment(scratch: Path, extra: Mapping[str, str]) -> dict[str, str]:
    """Environment of everything that we start."""
    scripts = (sysconfig.get_path("scripts"), str(Path(sys.executable).parent))
    direct = ",".join(filter(None, (os.environ.get("no_proxy") or os.environ.get("NO_PROXY"), LOOPBACK)))
    chatty = "DEBUG" if os.environ.get("FLWR_LOG_LEVEL") == "DEBUG" else "INFO"  # we wait for lines at INFO
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


def start(
    module: str, command: str, arguments: list[str], variables: Mapping[str, str], log: Path, goodbye: float = 0.0
) -> subprocess.Popen[bytes]:
    """Start one of Flower's commands; its output is appended to a log.

    If we are killed, it has ``goodbye`` seconds to end as SIGTERM asks it to, before all that is left is killed.
    """
    program = COMMAND.format(module=module, command=command)
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-c", program, str(os.getpid()), str(goodbye), *arguments],
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C in the terminal is for us alone: we stop the rest in order
        )


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


def alive(pid: int) -> bool:
    """Whether there is such a process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def stop(mark: str, started: list[subprocess.Popen[bytes]]) -> None:
    """Kill whatever carries a mark: its state is private and in memory."""
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
    """In a program's process, when we who started it are gone: what we would have done in the end."""
    stop(os.environ[MARK], [])
    shutil.rmtree(Path(os.environ["FLWR_HOME"]).parent, ignore_errors=True)
    os._exit(1)


def plain(log: Path) -> str:
    """The log without colours."""
    return uncoloured(log.read_text(errors="replace"))


def uncoloured(text: str) -> str:
    """Text as it reads in a terminal without colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def evidence(log: Path) -> str:
    """What a log says about a failure: the first error and the lines that lead to it, or the last lines; the path."""
    lines = [line for line in plain(log).splitlines() if line.strip() and not re.search(CHATTER, line)]
    error = re.compile(r"(?:\(\w+ pid=\d+\) *)?(?:\w+\.)*\w*(?:Error|Exception)\b")
    first = next((i for i, line in enumerate(lines) if error.match(line)), None)
    shown = lines[-10:] if first is None else lines[max(0, first - 7) : first + 1]
    title = "Last lines:" if first is None else "First error:"
    return "\n".join([title, *(f"  {line}" for line in shown), f"Full log: {log}"])
