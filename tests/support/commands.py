"""`fedlab` commands as processes, each on what could be a machine of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from benchmarks.gpu.tiny import SHORT
from fedlab.engines import processes
from waiting import wait_until

FEDLAB = str(Path(sys.executable).with_name("fedlab"))
TINY = {
    **SHORT,
    "digits.targets": "optdigits,usps",
    "data.max_examples": 100,
    "source_free.steps": 2,
    "source_free.min_examples_per_class": 0,
}


class Command:
    """A `fedlab` command that runs, and what it has printed so far; ``before`` is what it is run by."""

    def __init__(self, folder: Path, *arguments: str, before: tuple[str, ...] = (), **variables: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / f"{arguments[0]}-{len(list(folder.glob('*.out')))}.out"
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                [*before, FEDLAB, *arguments],
                cwd=folder,
                env={**os.environ, **variables},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def said(self) -> str:
        return self.log.read_text()

    def until(self, words: str, seconds: float = 180) -> None:
        self.wait_for(lambda: words in self.said, repr(words), seconds)

    def wait_for(self, condition: Callable[[], object], what: str, seconds: float = 180) -> None:
        wait_until(condition, what, seconds, process=self.process, output=lambda: self.said)

    def code(self, seconds: float = 180) -> int:
        return self.process.wait(seconds)

    def parts(self, name: str = "") -> list[int]:
        """Living processes below this one whose command line has a word, the youngest last."""
        parents, commands = {}, {}
        for entry in processes.PROC.iterdir():
            with suppress(OSError, ValueError):
                state, parent = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[:2]
                if state not in "ZX":
                    parents[int(entry.name)] = int(parent)
                    commands[int(entry.name)] = (entry / "cmdline").read_bytes().decode(errors="replace")
        below = {self.process.pid}
        while new := {child for child, parent in parents.items() if parent in below} - below:
            below |= new
        return sorted(pid for pid in below - {self.process.pid} if name in commands[pid])

    def supernode(self) -> int:
        """Its SuperNode, the oldest of the processes with this command line: the others are forks of it."""
        return self.parts("--superlink")[0]

    def freeze(self) -> set[int]:
        """Stop all processes below this one but its SuperNode, which still says that it is there; return them."""
        kept, stopped = self.supernode(), set[int]()
        while new := set(self.parts()) - {kept} - stopped:  # one of them may have forked another meanwhile
            send(signal.SIGSTOP, new)
            stopped |= new
        return stopped

    def thaw(self, stopped: set[int]) -> None:
        """Let processes go on."""
        send(signal.SIGCONT, stopped)

    def cut_down(self) -> None:
        """As if its machine lost power: everything at once, no goodbye."""
        send(signal.SIGKILL, [self.process.pid, *self.parts()])
        self.process.wait()


def send(number: signal.Signals, pids: Iterable[int]) -> None:
    """Send a signal to those of some processes that are there."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def laptop(folder: Path, source: Path, name: str, key: Path | None = None) -> Path:
    """A client's machine: the authority's certificate, and the key of client ``name`` or the one given."""
    (folder / "certs" / "clients").mkdir(parents=True)
    shutil.copy(source / "ca.crt", folder / "certs")
    shutil.copy(key or source / "clients" / f"{name}.key", folder / "certs" / "clients" / f"{name}.key")
    return folder


def left_running(folder: Path) -> list[str]:
    """Command lines of processes that name a folder."""
    commands = []
    for entry in processes.PROC.iterdir():
        with suppress(OSError):
            commands.append((entry / "cmdline").read_bytes().decode(errors="replace"))
    return [command for command in commands if str(folder) in command]


def end(commands: list[Command]) -> None:
    """Ask what still runs to end, and wait for it."""
    for command in commands:
        if command.process.poll() is None:
            command.process.terminate()
    for command in commands:
        command.code(30)
