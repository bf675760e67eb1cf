"""Fork server for Flower's commands: a process that has everything loaded, so that one costs a fork, not the imports.

Flower starts its parts, ``flwr-clientapp`` for each message among them, by names that it finds on the ``PATH``.
:func:`fork_server` puts commands of these names before Flower's. Each sends its arguments, environment and output to
the fork server and lives as long as the fork: killing it kills the fork, and its exit code is the fork's. Once the fork
server has ended, it calls the same function in an interpreter of its own, which takes longer: what that function checks
is checked there, too.

This file is also that command, run by an interpreter without site packages: it imports the standard library only.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

PARENT_POLL_SECONDS = 0.5  # between two checks that the process that started the fork server is alive
# Calls the function of a command where no fork server does.
ALONE = """
import sys
from fedlab.references import load_reference

name, entry, *arguments = sys.argv[1:]
sys.argv[:] = [name, *arguments]
load_reference(entry)()
"""
STARTED = b"\xff"  # the fork's first byte; its exit code is the second


@contextmanager
def fork_server(folder: Path, commands: Mapping[str, str], modules: Sequence[str] = ()) -> Iterator[None]:
    """Run a fork server while the context lasts; the ``PATH`` of this process leads the commands to it.

    It is a fork of this process, which must not have started a thread yet.

    Parameters
    ----------
    folder
        Private; its path must be short, as that of a socket has to fit into about 100 characters.
    commands
        Names that are looked up on the ``PATH``, each with the ``module:function`` that its forks call. The modules are
        imported here, since their owner needs most of what they import as well.
    modules
        Modules to import in the fork server only.

    Raises
    ------
    ImportError
        When the module of a command cannot be imported.
    """
    before, address = os.environ.get("PATH", ""), folder / "fork-server"
    address.unlink(missing_ok=True)
    directory = _write_commands(folder / "commands", commands, address)
    _import(entry.partition(":")[0] for entry in commands.values())
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(address))
        listener.listen()  # requests from now on wait until all is loaded
        parent = os.getpid()
        if (server := os.fork()) == 0:
            _serve_and_exit(listener, parent, commands, modules)
    os.environ["PATH"] = os.pathsep.join((str(directory), before))
    try:
        yield
    finally:
        os.environ["PATH"] = before
        os.kill(server, signal.SIGKILL)
        os.waitpid(server, 0)


def _write_commands(directory: Path, commands: Mapping[str, str], address: Path) -> Path:
    """Write the commands, which ask the fork server at ``address``; return their directory."""
    directory.mkdir(exist_ok=True)
    for name, entry in commands.items():
        ours = [sys.executable, "-IS", str(Path(__file__).resolve()), str(address), name, entry]
        quoted = " ".join("'" + part.replace("'", "'\\''") + "'" for part in ours)
        (directory / name).write_text(f'#!/bin/sh\nexec {quoted} "$@"\n')
        (directory / name).chmod(0o755)
    return directory


def _serve_and_exit(
    listener: socket.socket, parent: int, commands: Mapping[str, str], modules: Sequence[str]
) -> NoReturn:
    try:
        serve(listener, parent, commands, modules)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)


def serve(listener: socket.socket, parent: int, commands: Mapping[str, str], modules: Sequence[str]) -> None:
    """Fork for each request until the parent is gone. No thread may be started here: a fork would lose it."""
    _import(modules)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # forks are not waited for
    listener.settimeout(PARENT_POLL_SECONDS)
    while os.getppid() == parent:
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            continue
        with connection:
            connection.settimeout(None)
            request, descriptors = _receive(connection)
            if request is not None and os.fork() == 0:
                listener.close()
                _run_in_child(commands, connection, request, descriptors)
            for descriptor in descriptors:
                os.close(descriptor)


def _import(modules: Iterable[str]) -> None:
    """Import modules for good: no fork's garbage collector looks through them, nor copies their pages by doing so."""
    from fedlab.startup import quick_imports

    with quick_imports():
        for name in modules:
            importlib.import_module(name)


def request_fork(address: str, name: str, entry: str, arguments: Sequence[str]) -> NoReturn:
    """Run a command's entry in a fork, or else in a process of its own, and exit as it exits. The command itself."""
    code = None
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(address)
            request = {"command": name, "arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ)}
            socket.send_fds(connection, [b"?"], [1, 2])
            connection.sendall(json.dumps(request).encode() + b"\n")
            if connection.recv(1) == STARTED:
                code = connection.recv(1) or b"\x01"  # killed before it sent its exit code
        except OSError:
            pass
    if code is None:
        os.execv(sys.executable, [sys.executable, "-P", "-c", ALONE, name, entry, *arguments])
    os._exit(code[0])


def _receive(connection: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """Return a request and the descriptors of its output; None when the command ended before it was complete."""
    try:
        _, descriptors, _, _ = socket.recv_fds(connection, 1, 2)
        with connection.makefile("rb") as stream:
            request = json.loads(stream.readline() or b"null")
    except OSError:
        return None, []
    return (request if len(descriptors) == 2 else None), list(descriptors)


def _run_in_child(
    commands: Mapping[str, str], connection: socket.socket, request: dict[str, Any], descriptors: Sequence[int]
) -> NoReturn:
    """Adopt the command's output, folder, environment and arguments, call the entry, and exit. Called in the fork."""
    code = 1
    try:
        for number, descriptor in enumerate(descriptors, start=1):
            os.dup2(descriptor, number)
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update(request["environment"])
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        sys.argv = [request["command"], *request["arguments"]]
        module, _, function = commands[request["command"]].partition(":")
        connection.sendall(STARTED)
        threading.Thread(target=_exit_on_disconnect, args=(connection,), daemon=True).start()
        getattr(sys.modules[module], function)()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
            connection.sendall(bytes([code & 0xFF]))
        finally:
            os._exit(code)


def _exit_on_disconnect(connection: socket.socket) -> None:
    """Kill this process when the command is gone: it sends nothing more, so that receiving anything is its end."""
    connection.recv(1)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    request_fork(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:])
