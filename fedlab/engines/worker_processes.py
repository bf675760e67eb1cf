"""The program that starts the workers of a pool, one for each socket that it is sent, and how it is stopped."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from fedlab.engines.pool_worker import send_descriptors
from fedlab.engines.processes import MARKER_ENV, runtime_environment, stop
from fedlab.errors import RunError
from fedlab.files import no_follow

PROGRAM = """
import sys
from fedlab.references import load_reference

entry, control, *arguments = sys.argv[1:]
load_reference(entry)(int(control), *arguments)
"""
ANSWER_BYTES = 8  # a number, by which a worker is known


def forks_have_ended(log: Path) -> str:
    """Return what the end of the process that forks workers means for the user."""
    return f"the process that starts workers has ended; its output is in {log}; use engine=inprocess"


@dataclass(frozen=True)
class WorkerProgram:
    """A program that starts workers.

    Attributes
    ----------
    entry
        Function ``module:name`` of the descriptor of a socket, and of ``arguments``. For each descriptor that comes
        over the socket, it starts a worker that answers tasks on that descriptor, and returns the worker's number. It
        ends, with all workers, when the other end of the socket is closed.
    arguments
        Texts; every user of this machine can read them.
    variables
        Environment variables beside those of all processes that are started here.
    forks
        True if a worker is a process of this machine, whose id its number is. Else closing its socket ends it, whatever
        it does.
    has_ended
        Returns what it means, given the program's log, that the program has ended by itself.
    """

    entry: str
    arguments: Sequence[str] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    forks: bool = True
    has_ended: Callable[[Path], str] = forks_have_ended


class WorkerStarter:
    """The running program; workers can be started within :meth:`running`."""

    def __init__(self, program: WorkerProgram) -> None:
        self.program = program

    def start(self, theirs: socket.socket, introduce: Callable[[], None]) -> int:
        """Start a worker, and return its number once it is there.

        Parameters
        ----------
        theirs
            The worker's end of a socket, which is closed here.
        introduce
            Called when the worker can be told over the socket what it is to be.

        Raises
        ------
        RunError
            When the program has ended.
        """
        try:
            with theirs:
                send_descriptors(self._control, [theirs.fileno()])
            introduce()
            answer = self._control.recv(ANSWER_BYTES)
        except OSError:
            answer = b""
        if len(answer) < ANSWER_BYTES:
            raise RunError(self.program.has_ended(self._log))
        return int.from_bytes(answer, sys.byteorder)

    def kill(self, worker: int) -> None:
        """Kill a worker whatever it does; its socket is to be closed as well."""
        if self.program.forks:
            with suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)

    @contextmanager
    def running(self, log: Path) -> Iterator[None]:
        """Run the program, and stop it with all that it started at the end, however it comes.

        Parameters
        ----------
        log
            File for what the processes print.
        """
        self._log = log
        self._control, theirs = socket.socketpair()
        with runtime_environment(self.program.variables) as (variables, scratch):
            with theirs, open(log, "ab", opener=no_follow) as output:
                process = subprocess.Popen(
                    [sys.executable, "-c", PROGRAM, self.program.entry, str(theirs.fileno()), *self.program.arguments],
                    env=variables,
                    cwd=None if self.program.forks else scratch,  # which Ray puts first on its processes' search path
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # Ctrl-C reaches this process only, which stops the rest
                )
            try:
                yield
            finally:
                self._control.close()
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                if not self.program.forks:  # it may have started processes in sessions of their own
                    stop(variables[MARKER_ENV], [])
                if not log.stat().st_size:
                    log.unlink()
