"""One client on its own machine: a SuperNode that is started, watched, told about in plain lines, and started again.

Flower's ``flower-supernode`` does the work. What it prints goes to ``KEEP/flower.log``; what matters in it, and in the
log of our ClientApp (``KEEP/events.jsonl``), is said here. It reconnects by itself while its server keeps its state; a
server that was started anew does not know it any more, and then this module starts another. One that was killed, with
or without us, leaves ``KEEP/.connected`` behind: the next says goodbye in its stead, or it would not be let in.

**Source**: Flower 1.39, ``flwr/supernode/cli/flower_supernode.py``, ``flwr/client/grpc_rere_client/connection.py``.
"""

from __future__ import annotations

import fcntl
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import tomli_w

from fedlab.comm import credentials
from fedlab.deploy.client_log import News, Tail
from fedlab.deploy.probe import knock
from fedlab.engines.processes import LOOPBACK, MARK, alive, evidence, free_ports, start, stop, workplace
from fedlab.errors import ConfigError, RunError

POLL_SECONDS = 0.2
LONGEST_PAUSE = 5.0  # seconds between two attempts to reach a server that is not there
GOODBYE = 6.0  # seconds for a SuperNode to tell its server that it leaves, and for a last reply to be sent
UNSURE = 2  # refusals in a row that are believed: a server that has just started may not know its clients yet
DEATHS = 5  # SuperNodes that end in a row without having connected, before we give up
LOCK = ".lock"  # in KEEP: held while a client uses it
HERE = ".connected"  # in KEEP: process and node; touched while connected, removed by a clean goodbye
FRESH = 15.0  # seconds after which a client that does not touch it is not connected, or hangs

Say = Callable[[str], None]


@dataclass(frozen=True)
class Joining:
    """What one client is started with."""

    address: str  # HOST:PORT
    client: str  # name: of its key, and of its domain if it has one
    certificates: Path | None  # folder with ca.crt and clients/NAME.key; None: plain text, no proof
    node: Mapping[str, str]  # what our ClientApp finds as its node config
    keep: Path  # absolute
    once: bool = False  # leave after the last round of a run
    patience: float = float("inf")  # seconds without a server after which we give up


def join(options: Joining, say: Say) -> None:
    """Be one client until we are told to stop, with Ctrl-C or SIGTERM, or with ``once`` until a run has ended.

    Raises
    ------
    ConfigError, RunError
        When this client can never join as it is: wrong files, a server that it does not trust or that does not know it.
    """
    options.keep.mkdir(parents=True, exist_ok=True)
    with _sigterm_as_interrupt(), _alone(options.keep), workplace() as (variables, scratch):
        supervisor = _Supervisor(options, variables, scratch, say)
        try:
            supervisor.run()
        except KeyboardInterrupt:
            pass
        finally:
            supervisor.leave()
        say(f"{options.client} has left; what it keeps is in {options.keep}")


def unconnected(keep: Path) -> str:
    """Why the client that keeps its things in a folder is not connected at this moment; empty when it is.

    Raises
    ------
    ConfigError
        When no client ever used the folder.
    """
    if not (keep / LOCK).exists():
        raise ConfigError(f"{keep} is no folder of a client: `fedlab join` makes it (option --keep)")
    try:
        silent = time.time() - (keep / HERE).stat().st_mtime
    except FileNotFoundError:
        return "it waits for its server, or has left"
    return f"it lost its server, or was killed, {silent:.0f} s ago" if silent > FRESH else ""


class _Supervisor:
    """Starts SuperNodes one after another, each when the one before has ended."""

    def __init__(self, options: Joining, variables: Mapping[str, str], scratch: Path, say: Say) -> None:
        self.options, self.variables, self.say = options, variables, say
        self.log, self.here = options.keep / "flower.log", options.keep / HERE
        self.files = credentials.check_client(options.certificates, options.client) if options.certificates else None
        self.settings = scratch / "node.toml"  # a file, so that no name or path needs quoting
        self.settings.write_text(tomli_w.dumps({**options.node, "keep": str(options.keep)}), encoding="utf-8")
        self.log.write_bytes(b"")
        self.events = Tail(options.keep / "events.jsonl", from_end=True)
        self.process: subprocess.Popen[bytes] | None = None

    def run(self) -> None:
        """Connect, stay, connect again."""
        refusals, deaths, done = 0, 0, False
        while not done:
            self._await_server()
            self._bury()
            news = News(self.options, self.say)
            done = self._stay(news)
            if news.connected:
                refusals, deaths = 0, 0
            if news.restarted:
                self.here.unlink(missing_ok=True)  # that server is gone, and with it its nodes
            if done or news.restarted:
                continue
            if news.turned_away:
                refusals += 1
                if refusals == UNSURE:
                    raise RunError(self._turned_away(news))
                time.sleep(2)
            else:
                deaths += 1
                if deaths == DEATHS:
                    raise RunError(f"the SuperNode ended {DEATHS} times without a connection.\n{evidence(self.log)}")
                self.say("the SuperNode ended unexpectedly; starting another")
                time.sleep(min(2.0**deaths, LONGEST_PAUSE))

    def leave(self) -> None:
        """Let the SuperNode say goodbye, then stop whatever is left of it."""
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(GOODBYE)
                self.here.unlink(missing_ok=True)
            except subprocess.TimeoutExpired:
                pass  # its server does not answer
            stop(self.variables[MARK], [self.process])
            self.process = None

    def _await_server(self) -> None:
        """Return once the server is there and trusted."""
        authority = self.options.certificates / "ca.crt" if self.options.certificates else None
        begin, pause = time.monotonic(), 1.0
        while reason := knock(self.options.address, authority):
            if pause == 1.0:
                self.say(f"no server at {self.options.address} yet ({reason}); trying until it is there")
            if time.monotonic() - begin + pause > self.options.patience:
                raise RunError(f"no server at {self.options.address} within {self.options.patience:g} s ({reason})")
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _stay(self, news: News) -> bool:
        """Run one SuperNode and tell what it does; True when it is time to leave for good, False when it is over."""
        output = Tail(self.log, from_end=True)
        self.process = start(
            "fedlab.engines.supernode", "flower_supernode", self._arguments(), self.variables, self.log, goodbye=GOODBYE
        )
        leaving: float | None = None
        given_up: float | None = None
        while True:
            ended = self.process.poll() is not None or (given_up is not None and time.monotonic() > given_up)
            news.of_supernode(output.lines())
            news.of_client(self.events.lines())
            if (news.restarted or news.turned_away) and given_up is None:
                given_up = time.monotonic() + GOODBYE  # it says that it ends, and may hang all the same
            if news.node and not ended:
                self._note_here(news)
            if (news.refused or (news.finished and self.options.once)) and leaving is None:
                leaving = time.monotonic() + GOODBYE
            if leaving is not None and (ended or not news.busy or time.monotonic() > leaving):
                if news.refused:
                    raise RunError(f"this client was refused: {news.refused}")
                return True
            if ended:
                stop(self.variables[MARK], [self.process])  # its superexec and apps, should they live on
                self.process = None
                return False
            if news.lost and time.monotonic() - news.lost > self.options.patience:
                raise RunError(f"the server at {self.options.address} was away for {self.options.patience:g} s")
            time.sleep(POLL_SECONDS)

    def _note_here(self, news: News) -> None:
        """Leave word of who is connected, and of when it last was."""
        if not self.here.exists():
            assert self.process is not None
            self.here.write_text(f"{self.process.pid} {news.node}", encoding="ascii")
        elif not news.lost:
            self.here.touch()

    def _arguments(self) -> list[str]:
        """Options of ``flower-supernode``; its own port is a free one, so that clients can share a machine."""
        arguments = ["--superlink", self.options.address, "--node-config", str(self.settings)]
        arguments += ["--host", LOOPBACK, "--port", str(free_ports(1)[0])]
        folder = self.options.certificates
        if folder is None:
            return [*arguments, "--insecure"]
        key = folder / "clients" / f"{self.options.client}.key"
        return [*arguments, "--root-certificates", str(folder / "ca.crt"), "--auth-supernode-private-key", str(key)]

    def _bury(self) -> None:
        """If a SuperNode before us was killed, see to it that its server knows."""
        folder = self.options.certificates
        if not self.here.exists():
            return
        with suppress(ValueError):
            pid, node = map(int, self.here.read_text(encoding="ascii").split())
            end = time.monotonic() + GOODBYE
            while alive(pid) and time.monotonic() < end:  # it may be about to say goodbye itself: only we were killed
                time.sleep(POLL_SECONDS)
            if folder:  # without a key the next SuperNode is another to the server, whose roster sorts it out
                from fedlab.engines.flower_internals import farewell

                farewell(self.options.address, folder, self.options.client, node)
        self.here.unlink(missing_ok=True)

    def _turned_away(self, news: News) -> str:
        name = self.options.client
        if news.unproven:
            return (
                f"the server at {self.options.address} does not accept the signature of {name!r}; is this machine's "
                f"clock right?\n{evidence(self.log)}"
            )
        return (
            f"the server at {self.options.address} does not let {name!r} in: its key ({self.files}) is not registered "
            "there, or another client with the same key is connected. The server's owner registers a key by having "
            f"clients/{name}.pub in the folder of `fedlab certs` when the server starts"
        )


@contextmanager
def _alone(keep: Path) -> Iterator[None]:
    """Hold the client's directory against a second one; the kernel lets go when we die."""
    with (keep / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(f"another `fedlab join` uses {keep}; stop it, or choose another --keep") from None
        yield


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """A polite kill ends like Ctrl-C."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
