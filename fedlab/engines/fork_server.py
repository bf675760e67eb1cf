"""Client apps as forks of a process that has everything loaded: a message costs a fork, not seconds of imports.

Flower starts its command ``flwr-clientapp`` for each message and finds it on the ``PATH``. :func:`opened` puts one of
ours before it, which hands its arguments, environment and output to the nursery and stays for as long as the fork
does: whoever kills it kills the fork, and its exit code is the fork's. Without a nursery it becomes Flower's own.

This file is also that command, run by an interpreter without site packages: so nothing but the standard library here.
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

ORPHANED = 0.5  # seconds between two looks at whether the process that started the nursery is still there
BEGUN = b"\xff"  # the fork's first byte; its exit code is the second


@contextmanager
def opened(folder: Path, command: str, entry: str, modules: Sequence[str]) -> Iterator[None]:
    """A nursery while the context lasts; the ``PATH`` of this process leads ``command`` to it.

    Parameters
    ----------
    folder
        Private; its path must be short, for a socket's has to fit into about 100 characters.
    command
        The name that is looked up on the ``PATH``.
    entry
        ``module:function`` that a fork calls.
    modules
        What is imported beforehand, beside the entry's module.
    """
    real, before = shutil.which(command), os.environ.get("PATH", "")
    address, commands = folder / "nursery", folder / "commands"
    address.unlink(missing_ok=True)
    commands.mkdir(exist_ok=True)
    ours = [sys.executable, "-IS", str(Path(__file__).resolve()), "ask", str(address), real or command]
    quoted = " ".join("'" + part.replace("'", "'\\''") + "'" for part in ours)
    (commands / command).write_text(f'#!/bin/sh\nexec {quoted} "$@"\n')
    (commands / command).chmod(0o755)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(address))
        listener.listen()  # whoever asks from now on waits until all is loaded
        door = listener.fileno()
        program = f"from {__name__} import serve; serve({door}, {os.getpid()}, {entry!r}, {tuple(modules)!r})"
        process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.DEVNULL, pass_fds=[door])
    os.environ["PATH"] = os.pathsep.join((str(commands), before))
    try:
        yield
    finally:
        os.environ["PATH"] = before
        process.kill()
        process.wait()


def serve(door: int, parent: int, entry: str, modules: Sequence[str]) -> None:
    """Fork for whoever asks, until the parent is gone. No thread is ever started here: a fork would lose it."""
    module, _, function = entry.partition(":")
    with socket.socket(fileno=door) as listener:
        for name in (module, *modules):
            importlib.import_module(name)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for a fork
        listener.settimeout(ORPHANED)
        while os.getppid() == parent:
            try:
                asking, _ = listener.accept()
            except TimeoutError:
                continue
            with asking:
                asking.settimeout(None)
                request, descriptors = _receive(asking)
                if request is not None and os.fork() == 0:
                    listener.close()
                    _become(getattr(sys.modules[module], function), asking, request, descriptors)
                for descriptor in descriptors:
                    os.close(descriptor)


def ask(address: str, real: str, arguments: Sequence[str]) -> NoReturn:
    """In the command's process: run the entry in a fork and end as it ends; without a nursery become ``real``."""
    code = None
    with socket.socket(socket.AF_UNIX) as asking:
        try:
            asking.connect(address)
            request = {"arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ)}
            socket.send_fds(asking, [b"?"], [1, 2])
            asking.sendall(json.dumps(request).encode() + b"\n")
            if asking.recv(1) == BEGUN:
                code = asking.recv(1) or b"\x01"  # killed before it could say
        except OSError:
            pass
    if code is None:
        os.execvp(real, [real, *arguments])
    os._exit(code[0])


def _receive(asking: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """A request and the descriptors of its output; None from one who went away before all was said."""
    try:
        _, descriptors, _, _ = socket.recv_fds(asking, 1, 2)
        with asking.makefile("rb") as stream:
            request = json.loads(stream.readline() or b"null")
    except OSError:
        return None, []
    return (request if len(descriptors) == 2 else None), list(descriptors)


def _become(entry: Any, asking: socket.socket, request: dict[str, Any], descriptors: Sequence[int]) -> NoReturn:
    """In the fork: take on the caller's output, folder, environment and arguments, and call the entry."""
    code = 1
    try:
        for number, descriptor in enumerate(descriptors, start=1):
            os.dup2(descriptor, number)
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update(request["environment"])
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        sys.argv = [sys.argv[0], *request["arguments"]]
        asking.sendall(BEGUN)
        threading.Thread(target=_die_with, args=(asking,), daemon=True).start()
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
            asking.sendall(bytes([code & 0xFF]))
        finally:
            os._exit(code)


def _die_with(asking: socket.socket) -> None:
    """End at once when the command's process is gone: it says nothing more, so whatever comes is its end."""
    asking.recv(1)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    ask(sys.argv[2], sys.argv[3], sys.argv[4:])
