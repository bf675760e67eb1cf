"""How many deployed clients a server holds, and what a round costs by their number; a soak of clients that come and go.

    python -m benchmarks.load --clients 2 8 32
    python -m benchmarks.load --soak                              # 200 rounds, five clients
    python -m benchmarks.load --clients 8 strategy=scaffold

A server of `fedlab serve`, with TLS and registered keys, and SuperNodes as `fedlab join` runs them
(``benchmarks/light_clients.py``), all on this machine. Work is next to nothing, so that what is left is the cost of a
client: messages, keys, processes, aggregation, the run directory. Two messages a round go to each client.

================  ====================================================================================================
``round``         seconds from the end of one round to the end of the next, median; the clients' use of the
                  processors is in it
``server``        CPU seconds a round of the server's processes: `fedlab serve`, SuperLink, ServerApp and their helpers
``messages``      CPU seconds a round of the clients' apps
``memory``        of all processes of the server at the end, pages that they share counted once; of the SuperLink alone
``client``        memory that each client's processes add
================  ====================================================================================================

The soak prints the slope of each process's memory over the rounds after the first fifth, also of the processes of the
client that never leaves, the size of the logs, and what became of phases that too few clients answered.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import mean, median

import numpy as np
from rich.console import Console

from benchmarks import cells
from benchmarks.light_clients import LOG, LightClient, Usage, message_seconds, usage, warm
from fedlab import launch
from fedlab.config.presets import parse_overrides
from fedlab.config.sections import Overrides, Value
from fedlab.deploy import provision
from fedlab.engines.processes import LOOPBACK, free_ports
from fedlab.errors import plural
from fedlab.files import read_lines

PRESET = "fedavg-digits"
OUTPUT = "serve.out"
LIGHT: Mapping[str, Value] = {
    "threads": 1,
    "data.max_examples": 400,
    "data.partition": "balanced_dirichlet",  # which has examples for any number of clients
    "client.steps": 1,
    "client.batch_size": 8,
    "comm.round_timeout": 120,
    "min_clients": 1,
}
EVERY = 20  # rounds between two lines
WARM_UP = 0.2  # share of a soak's rounds before memory is compared
TO_START, TO_ROUND = 900.0, 900.0  # seconds


@dataclass
class Server:
    """A server of `fedlab serve` and what was measured of it after each round."""

    process: subprocess.Popen[bytes]
    run: Path
    samples: list[tuple[float, Usage]] = field(default_factory=list)  # time and usage at the end of each round
    watched: LightClient | None = None
    client: list[float] = field(default_factory=list)  # megabytes of the watched client's processes, by round

    def rounds(self) -> int:
        """Return the number of rounds that are written, the test of the first model included."""
        path = self.run / "metrics.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def follow(self, rounds: int, meanwhile: Callable[[], object] = lambda: None) -> None:
        """Measure after each round until so many are written.

        Raises
        ------
        RuntimeError
            When the server ends before, or a round does not end.
        """
        last = time.monotonic()
        while len(self.samples) < rounds:
            if self.rounds() > len(self.samples):
                last = time.monotonic()
                self.samples.append((last, usage(self.process.pid)))
                if self.watched:
                    self.client.append(sum(usage(self.watched.pid).memory.values()))
                if len(self.samples) % EVERY == 0:
                    total = sum(self.samples[-1][1].memory.values())
                    print(f"round {len(self.samples) - 1}: {total:.0f} MB", flush=True)
            limit = TO_ROUND if self.samples else TO_START
            if (ended := self.process.poll() is not None) or time.monotonic() - last > limit:
                said = (self.run.parent.parent / OUTPUT).read_text(errors="replace")[-3000:]
                raise RuntimeError(f"the server {'ended' if ended else 'hangs'} in round {self.rounds()}:\n{said}")
            meanwhile()
            time.sleep(0.1)

    @property
    def seconds(self) -> float:
        """Median seconds of a round."""
        times = [when for when, _ in self.samples[1:]]
        return median(later - when for when, later in pairwise(times))

    @property
    def cpu(self) -> float:
        """Mean CPU seconds of a round."""
        first, last = self.samples[1][1], self.samples[-1][1]
        return (last.cpu - first.cpu) / (len(self.samples) - 2)

    def roles(self) -> dict[str, list[float]]:
        """Return the megabytes after each round: of `fedlab serve`, of the SuperLink, of the ServerApp, of the rest."""
        serve, superlink = sorted(self.samples[1][1].memory)[:2]
        last = self.samples[-1][1].memory
        app = max((pid for pid in last if pid not in (serve, superlink)), key=lambda pid: last[pid])
        named = {"fedlab serve": serve, "SuperLink": superlink, "ServerApp": app}
        found = {name: [one.memory.get(pid, 0.0) for _, one in self.samples] for name, pid in named.items()}
        rest = [sum(mb for pid, mb in one.memory.items() if pid not in named.values()) for _, one in self.samples]
        return {**found, "the rest": rest, **({"a client that stays": self.client} if self.client else {})}


@contextmanager
def federation(folder: Path, count: int, overrides: Overrides) -> Iterator[tuple[Server, list[LightClient]]]:
    """Yield a server that waits for clients, and those, which have not joined."""
    given = {**LIGHT, "data.num_clients": count, **overrides}
    names = launch.resolve_config(PRESET, given).clients
    certificates = folder / "certs"
    provision.create_credentials(certificates, clients=names)
    address = f"{LOOPBACK}:{free_ports(1)[0]}"
    options = [f"{key}={value}" for key, value in given.items()]
    command = [str(Path(sys.executable).with_name("fedlab")), "serve", PRESET, *options, "--address", address]
    with (folder / OUTPUT).open("wb") as output:
        process = subprocess.Popen([*command, "--wait", str(TO_START)], cwd=folder, stdout=output, stderr=output)
    clients = [LightClient(name, address, certificates, folder / str(number)) for number, name in enumerate(names)]
    for client in clients:
        client.folder.mkdir()
    try:
        yield Server(process, folder / "runs" / f"{PRESET}-0"), clients
    finally:
        for client in clients:
            client.kill()
        process.terminate()
        process.wait()


def own_memory(server: Server) -> float:
    """Return the megabytes of this process and of those below it, without the server's."""
    return sum(usage(os.getpid()).memory.values()) - sum(usage(server.process.pid).memory.values())


def load(console: Console, counts: list[int], rounds: int, overrides: Overrides, scratch: Path) -> None:
    """Measure a run of each number of clients and print the table."""
    columns = ("clients", "round, s", "server, CPU s", "messages, CPU s", "memory, MB", "SuperLink, MB", "client, MB")
    table = cells.table(f"{plural(rounds, 'round')}; medians and means of rounds 2 and later", columns)
    by_count = []
    for count in counts:
        folder = scratch / f"load-{count}"
        folder.mkdir()
        with federation(folder, count, {**overrides, "rounds": rounds}) as (server, clients):
            began, before = time.monotonic(), own_memory(server)
            for client in clients:
                client.join()
            server.follow(2)
            asked, started = len(message_seconds()), time.monotonic() - began
            server.follow(rounds + 1)
            per_message, each = message_seconds()[asked:], (own_memory(server) - before) / count
        roles = {role: values[-1] for role, values in server.roles().items()}
        total = sum(roles.values())
        by_count.append(total)
        table.add_row(
            str(count),
            f"{server.seconds:.2f}",
            f"{server.cpu:.2f}",
            f"{sum(per_message) / (rounds - 1):.2f}",
            f"{total:.0f}",
            f"{roles['SuperLink']:.0f}",
            f"{each:.0f}",
        )
        console.print(
            f"{plural(count, 'client')}: {started:.0f} s until the end of round 1; a round {server.seconds:.1f} s, "
            f"{server.cpu:.2f} CPU s of the server; a message {mean(per_message):.2f} CPU s; "
            + ", ".join(f"{role} {value:.0f} MB" for role, value in roles.items())
        )
    console.print(table)
    if len(counts) > 1:
        console.print(f"a client more: {np.polyfit(counts, by_count, 1)[0]:.2f} MB of the server's memory")


class Traffic:
    """Clients that come and go: one event in a round or so, at any time of it; the first client stays.

    Every client leaves with a word, is killed, or comes back.
    """

    def __init__(self, server: Server, clients: list[LightClient], seed: int) -> None:
        self.server, self.clients, self.random = server, clients, random.Random(seed)
        self.counts = {"left": 0, "killed": 0, "came back": 0}
        self.due = 0.0

    def __call__(self) -> None:
        """Do what is due."""
        if time.monotonic() < self.due:
            return
        self.due = time.monotonic() + self.random.expovariate(1 / self.server.seconds)
        client = self.random.choice(self.clients[1:])
        if client.process is None:
            client.deregister()
            client.join()
            self.counts["came back"] += 1
        else:
            killed = self.random.random() < 0.5
            client.kill() if killed else client.leave()
            self.counts["killed" if killed else "left"] += 1


def soak(console: Console, count: int, rounds: int, overrides: Overrides, scratch: Path) -> None:
    """Run many rounds with clients that come and go; print how the memory of the server changes."""
    folder = scratch / "soak"
    folder.mkdir()
    given = {"comm.round_timeout": 90, "evaluate_every": 5, **overrides, "rounds": rounds}
    with federation(folder, count, given) as (server, clients):
        for client in clients:
            client.join()
        server.watched = clients[0]
        traffic = Traffic(server, clients, seed=0)
        server.follow(4)
        try:
            server.follow(rounds + 1, traffic)
        except RuntimeError as error:
            console.print(str(error), markup=False)
            server.process.terminate()  # it may hang
        rounds, code = len(server.samples) - 1, server.process.wait(120)
        logs = {name: (server.run / name).stat().st_size / 1000 for name in ("flower/flower.log", "events.jsonl")}
        records = read_lines(server.run / "metrics.jsonl")
        theirs = [(client.folder / LOG).stat().st_size / 1000 for client in clients]
    repeated = [note["note"] for record in records for note in record["notes"]]
    failures = [failure["kind"] for record in records for failure in record["failures"]]
    first = int(WARM_UP * rounds)
    table = cells.table(
        f"memory of the processes over rounds {first} to {rounds}, MB",
        ("process", f"round {first}", f"round {rounds}", "least", "most", "slope, MB in 100 rounds"),
    )
    for role, values in server.roles().items():
        later = values[first:]
        slope = 100 * np.polyfit(range(len(later)), later, 1)[0]
        table.add_row(role, *(f"{value:.1f}" for value in (later[0], later[-1], min(later), max(later), slope)))
    console.print(table)
    console.print(
        f"exit code {code}; {server.seconds:.2f} s and {server.cpu:.2f} CPU s of the server a round; clients "
        + ", ".join(f"{what} {times} times" for what, times in traffic.counts.items())
        + f"; replies that failed: {len(failures)} ({', '.join(sorted(set(failures)))})"
    )
    for note in repeated:
        console.print(note, markup=False)
    console.print(
        ", ".join(f"{name} {size:.0f} kB" for name, size in logs.items())
        + f"; flower.log of a client {mean(theirs):.0f} kB"
    )


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="key=value of every run")
    parser.add_argument("--clients", type=int, nargs="+", help="numbers of clients; of a soak the first (5)")
    parser.add_argument("--rounds", type=int, help="of each run (10), of a soak (200)")
    parser.add_argument("--soak", action="store_true", help="one run with clients that come and go")
    options = parser.parse_args()
    if options.rounds is not None and options.rounds < 5:
        parser.error("--rounds is 5 at least: what is measured begins after the first ones")
    console, given = Console(width=120), parse_overrides(options.overrides)
    with warm() as scratch:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the server and the clients end, too
        if options.soak:
            soak(console, (options.clients or [5])[0], options.rounds or 200, given, scratch)
        else:
            load(console, options.clients or [2, 8, 32], options.rounds or 10, given, scratch)


if __name__ == "__main__":
    main()
