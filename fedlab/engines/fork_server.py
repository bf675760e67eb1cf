"""Fork server for client apps: a process that has everything loaded, so that a message costs a fork, not the imports.

Flower starts its command ``flwr-clientapp`` for each message and finds it on the ``PATH``. :func:`fork_server` puts a
command of that name before it, which sends its arguments, environment and output to the fork server and lives as long
as the fork: killing it kills the fork, and its exit code is the fork's. Without a fork server it runs Flower's command.

This file is also that command, run by an interpreter without site packages: it imports the standard library only.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

PARENT_POLL_SECONDS = 0.5  # between two checks that the process that started the fork server is alive
STARTED = b"\xff"  # the fork's first byte; its exit code is the second


@contextmanager
def fork_server(folder: Path, command: str, entry: str, modules: Sequence[str]) -> Iterator[None]:
    """Run a fork server while the context lasts; the ``PATH`` of this process leads ``command`` to it.

    Parameters
    ----------
    folder
        Private; its path must be short, as that of a socket has to fit into about 100 characters.
    command
        Name that is looked up on the ``PATH``.
    entry
        ``module:function`` that a fork calls.
    modules
        Modules to import beforehand, in addition to the entry's.
    """
    real, before = shutil.which(command), os.environ.get("PATH", "")
    address, commands = folder / "fork-server", folder / "commands"
    address.unlink(missing_ok=True)
    commands.mkdir(exist_ok=True)
    ours = [sys.executable, "-IS", str(Path(__file__).resolve()), str(address), real or command]
    quoted = " ".join("'" + part.replace("'", "'\\''") + "'" for part in ours)
    (commands / command).write_text(f'#!/bin/sh\nexec {quoted} "$@"\n')
    (commands / command).chmod(0o755)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(address))
        listener.listen()  # requests from now on wait until all is loaded
        number = listener.fileno()
        program = f"from {__name__} import serve; serve({number}, {os.getpid()}, {entry!r}, {tuple(modules)!r})"
        process = subprocess.Popen([sys.executable, "-P", "-c", program], stdin=subprocess.DEVNULL, pass_fds=[number])
    os.environ["PATH"] = os.pathsep.join((str(commands), before))
    try:
        yield
    finally:
        os.environ["PATH"] = before
        process.kill()
        process.wait()


def serve(listener_fd: int, parent: int, entry: str, modules: Sequence[str]) -> None:
    """Fork for each request until the parent is gone. No thread may be started here: a fork would lose it."""
    module, _, function = entry.partition(":")
    with socket.socket(fileno=listener_fd) as listener:
        for name in (module, *modules):
            importlib.import_module(name)
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
                    _run_in_child(getattr(sys.modules[module], function), connection, request, descriptors)
                for descriptor in descriptors:
                    os.close(descriptor)


def request_fork(address: str, real: str, arguments: Sequence[str]) -> NoReturn:
    """Run the entry in a fork and exit as it exits; without a fork server run ``real``. Called by the command."""
    code = None
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(address)
            request = {"arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ)}
            socket.send_fds(connection, [b"?"], [1, 2])
            connection.sendall(json.dumps(request).encode() + b"\n")
            if connection.recv(1) == STARTED:
                code = connection.recv(1) or b"\x01"  # killed before it sent its exit code
        except OSError:
            pass
    if code is None:
        os.execvp(real, [real, *arguments])
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
    entry: Any, connection: socket.socket, request: dict[str, Any], descriptors: Sequence[int]
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
        sys.argv = [sys.argv[0], *request["arguments"]]
        connection.sendall(STARTED)
        threading.Thread(target=_exit_on_disconnect, args=(connection,), daemon=True).start()
        entry()
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
    request_fork(sys.argv[1], sys.argv[2], sys.argv[3:])
