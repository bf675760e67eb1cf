"""Flower's programs as child processes: their environment, all that they start, how it is stopped, their logs.

Each program gets its own home, no telemetry, no update check, no installation of dependencies. All that runs under it,
in whatever session or process group, has a marker in its environment, by which it is found and killed. If this process
is killed, the program stops the rest itself.

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
from importlib.util import find_spec
from pathlib import Path

from fedlab.files import no_follow
from fedlab.plugins import PLUGIN_PATH, plugin_folders, python_path

START_LIMIT = 120.0  # seconds for a process of Flower to come up: imports are slow on a busy machine
LOOPBACK = "127.0.0.1"
MARKER_ENV = "FEDLAB_ENGINE"  # variable in the environment of all processes that are started here
PATHS = ("FEDLAB_DATA",)  # variables of the environment that hold a path, which may be relative
PROC = Path("/proc")  # on systems without it, Flower's parts and Ray's stop when their parent is gone
NOISE = r"uvicorn\.|ControlServicer|^ *[\^~]+ *$|handshaker\.cc|channel_trace|status_helper|Source Location"
NOISE += r"|shutdown=false"  # lines of a log that explain nothing: gRPC's tracing of handshakes is one of them
# Runs one of Flower's commands, and stops all that it started once the parent is gone, even if that was killed. The
# context comes first: it may fork, which is safe as long as there is no thread.
COMMAND = """
import os, signal, sys, threading, time
from fedlab.startup import quick_exit, quick_imports

quick_exit()
with quick_imports():
    from {module} import {command}

parent, shutdown_timeout = int(sys.argv.pop(1)), float(sys.argv.pop(1))

def end():
    from fedlab.engines import processes
    processes.cleanup_orphans()

def watch():
    while os.getppid() == parent:
        time.sleep(0.2)
    if shutdown_timeout:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(shutdown_timeout)
    end()

sys.argv[0] = "{command}"
with {command}() as run:
    threading.Thread(target=watch, daemon=True).start()
    try:
        run()
    finally:
        if os.getppid() != parent:
            end()
"""


@contextmanager
def runtime_environment(extra: Mapping[str, str] | None = None) -> Iterator[tuple[dict[str, str], Path]]:
    """Yield environment variables for Flower's programs and a scratch folder, which is deleted at the end."""
    # Ray's sockets have to fit in 107 characters, about 65 of which are its own: not below a run directory.
    short = "/tmp" if os.access("/tmp", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="fedlab-", dir=short, ignore_cleanup_errors=True) as scratch:
        yield environment(Path(scratch), extra or {}), Path(scratch)


def environment(scratch: Path, extra: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of all processes that are started here."""
    scripts = (sysconfig.get_path("scripts"), str(Path(sys.executable).parent))
    direct = ",".join(filter(None, (os.environ.get("no_proxy") or os.environ.get("NO_PROXY"), "localhost", LOOPBACK)))
    level = "DEBUG" if os.environ.get("FLWR_LOG_LEVEL") == "DEBUG" else "INFO"  # lines at INFO are waited for
    return {
        **{name: value for name, value in os.environ.items() if not is_unusable_proxy(name, value)},
        MARKER_ENV: scratch.name,
        "PATH": os.pathsep.join((*scripts, os.environ.get("PATH", ""))),  # Flower starts its parts by name
        "PYTHONPATH": python_path(),
        **{name: os.path.abspath(os.environ[name]) for name in PATHS if os.environ.get(name)},
        PLUGIN_PATH: os.pathsep.join(plugin_folders()),
        "PYTHONSAFEPATH": "1",  # a user's random.py in the current folder is not the standard library's
        "PYTHONUNBUFFERED": "1",
        "NO_PROXY": direct,
        "no_proxy": direct,
        "grpc_proxy": "",  # set, and so the only one that gRPC looks at: what is started here speaks to the loopback
        "FLWR_HOME": str(scratch / "home"),
        "FLWR_LOG_LEVEL": level,
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",
        "RAY_TMPDIR": str(scratch),
        **extra,
    }


def is_unusable_proxy(name: str, value: str) -> bool:
    """Return True for a variable that names a proxy with which httpx, and so Flower, does not even start."""
    if name.lower() not in ("http_proxy", "https_proxy", "all_proxy") or not value or "://" not in value:
        return False
    scheme = value.partition("://")[0].lower()
    return scheme not in ("http", "https") and not (scheme.startswith("socks5") and find_spec("socksio"))


def start(
    module: str,
    command: str,
    arguments: list[str],
    variables: Mapping[str, str],
    log: Path,
    shutdown_timeout: float = 0.0,
) -> subprocess.Popen[bytes]:
    """Start one of Flower's commands in the scratch folder of its environment; its output is appended to a log.

    ``command`` is a context manager of ``module`` that yields the function to run.
    Ray puts the current folder first on its workers' search path, where a user's own numpy.py would hide NumPy. If this
    process is killed, the command gets SIGTERM and ``shutdown_timeout`` seconds before the rest is killed.
    """
    program = COMMAND.format(module=module, command=command)
    with open(log, "ab", opener=no_follow) as output:
        return subprocess.Popen(
            [sys.executable, "-P", "-c", program, str(os.getpid()), str(shutdown_timeout), *arguments],
            env=variables,
            cwd=Path(variables["FLWR_HOME"]).parent,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C in the terminal reaches this process only, which stops the rest
        )


def usable_cpus() -> int:
    """Return the number of CPUs that this process may use, within the limit of a container if there is one."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return cpus if quota == "max" else max(1, min(cpus, int(quota) // int(period)))
    except (OSError, ValueError):
        return cpus


def free_ports(number: int) -> list[int]:
    """Return ports of the loopback that are free at this moment."""
    sockets = [socket.create_server((LOOPBACK, 0)) for _ in range(number)]
    ports = [int(s.getsockname()[1]) for s in sockets]
    for s in sockets:
        s.close()
    return ports


def marked_processes(marker: str) -> dict[int, str]:
    """Return the living processes with a marker, and their children: id to command line. Empty without /proc."""
    if not PROC.is_dir():
        return {}
    wanted, parents, members = f"{MARKER_ENV}={marker}".encode(), {}, set()
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


def is_alive(pid: int) -> bool:
    """Return True when there is a process of this id."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def stop(marker: str, started: list[subprocess.Popen[bytes]]) -> None:
    """Kill all processes with a marker, and those in ``started``."""
    end = time.monotonic() + 10
    while (left := marked_processes(marker).keys() - {os.getpid()}) and time.monotonic() < end:
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    for process in started:
        process.kill()  # without /proc: the others notice within a second that their parent is gone
        process.wait()


def cleanup_orphans() -> None:
    """Stop all and delete the scratch folder, in a program's process whose parent is gone."""
    stop(os.environ[MARKER_ENV], [])
    shutil.rmtree(Path(os.environ["FLWR_HOME"]).parent, ignore_errors=True)
    os._exit(1)


def read_plain(log: Path) -> str:
    """Return the text of a log without terminal colors."""
    return strip_ansi(log.read_text(errors="replace"))


def strip_ansi(text: str) -> str:
    """Return text without ANSI color sequences."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def log_excerpt(log: Path) -> str:
    """Return the first error in a log and the lines before it, or the last lines, followed by the log's path."""
    lines = [line for line in read_plain(log).splitlines() if line.strip() and not re.search(NOISE, line)]
    error = re.compile(r"(?:\(\w+ pid=\d+\) *)?(?:\w+\.)*\w*(?:Error|Exception)\b")
    first = next((i for i, line in enumerate(lines) if error.match(line)), None)
    shown = lines[-10:] if first is None else lines[max(0, first - 7) : first + 1]
    title = "Last lines:" if first is None else "First error:"
    return "\n".join([title, *(f"  {line}" for line in shown), f"Full log: {log}"])
