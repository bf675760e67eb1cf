"""Clients a second, empty rounds, start-up and memory of simulations of many clients, all in one run.

python -m benchmarks.clients
python -m benchmarks.clients --rows loop inprocess pool --networks mlp --json clients.json
python -m benchmarks.clients --host    # what a client takes where there is next to nothing to compute

A client has 50 images of 3 x 32 x 32 and takes 5 SGD steps on batches of 10. Every row runs in a process of its own;
rounds after the first are measured, and the fastest counts, as the others waited for something else. Memory is the
largest sum over the row's processes of what each has for itself and of its part in what it shares (PSS).

With --host a client has 50 times 8 numbers and a network of 86 weights. Its time is that of the CPU, which other
processes disturb less than seconds: messages, random streams, batches, the server's checks and sums. Data stays where
it is, and no device is waited for.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.client_systems import ROWS, Work
from benchmarks.client_workload import NETWORKS

REGISTERED = 1000
HOST_ROWS, HOST_ROUNDS = ("inprocess", "inprocess_vectorized", "inprocess_at_once"), 6
EMPTY = (Work("empty", 50, 50, 20), Work("empty", 10_000, 100, 20))
# What an engine should reach on two cores: clients a second of 50 of 1,000, milliseconds of empty rounds, seconds, GB.
GOALS = {"mlp": 390.0, "cnn": 210.0}
EMPTY_GOALS = (5.0, 20.0)
START_GOAL, MEMORY_GOAL = 2.0, 1.0
TIMEOUT = 600.0
SPINS = "2000"  # of OpenMP's waiting threads, for all rows as in fedlab: see benchmarks.threads


@dataclass(frozen=True)
class Measured:
    """One row and piece of work; ``error`` says why there is no figure."""

    row: str
    work: Work
    seconds: Sequence[float] = ()
    start: float = 0.0
    memory: float = 0.0
    error: str = ""
    cpu: Sequence[float] = ()

    @property
    def cpu_of_a_client(self) -> float:
        """Milliseconds of the CPU for each client, in the round after the first that took the fewest."""
        return 1000 * min(self.cpu[1:] or self.cpu) / self.work.cohort

    @property
    def best(self) -> float:
        """Seconds of the fastest round after the first."""
        return min(self.seconds[1:] or self.seconds)


def measure(row: str, work: Work) -> Measured:
    """Run one row in a process of its own, and watch its memory."""
    if reason := ROWS[row].missing():
        return Measured(row, work, error=reason)
    numbers = map(str, (work.registered, work.cohort, work.rounds))
    command = [sys.executable, "-m", "benchmarks.client_systems", row, work.network, *numbers]
    started = time.time()
    environment = {"GOMP_SPINCOUNT": SPINS, **os.environ}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as process:
        watch = MemoryWatch(process.pid)
        try:
            output, errors = process.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            return Measured(row, work, error=f"took longer than {TIMEOUT:g} s")
        finally:
            watch.stop()
    if process.returncode:
        return Measured(row, work, error=(errors.strip().splitlines() or ["no output"])[-1])
    found = json.loads(output.strip().splitlines()[-1])
    return Measured(row, work, found["seconds"], found["first"] - started, watch.most / 1e9, cpu=found["cpu"])


class MemoryWatch:
    """Largest memory, in bytes, of a process and all below it, looked at ten times a second; 0 where /proc is none."""

    def __init__(self, process: int) -> None:
        self.process, self.most, self._ended = process, 0.0, threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def stop(self) -> None:
        """End the looking."""
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(0.1):
            self.most = max(self.most, sum(map(proportional_memory, family(self.process))))


def family(process: int) -> list[int]:
    """Return a process and all below it that are there now."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):  # it has just ended
            continue
        children.setdefault(parent, []).append(int(path.parent.name))
    found = [process]
    for one in found:
        found += children.get(one, [])
    return found


def proportional_memory(process: int) -> float:
    """Return the bytes that a process has for itself, and its part in those that it shares."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return float(next((1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0))


def rates(measured: Sequence[Measured], networks: Sequence[str], cohorts: Sequence[int]) -> Table:
    """Return clients a second by row, with memory and start-up."""
    table = Table(title=f"clients a second, {os.cpu_count()} CPUs", title_justify="left")
    table.add_column("")
    for network in networks:
        for cohort in cohorts:
            table.add_column(f"{network}, {cohort:,} of {REGISTERED:,}", justify="right")
    table.add_column("start-up, s", justify="right")
    table.add_column("memory, GB", justify="right")
    found = {(one.row, one.work.network, one.work.cohort): one for one in measured}
    for row in dict.fromkeys(one.row for one in measured):
        own = [found[row, network, cohort] for network in networks for cohort in cohorts]
        known = [one for one in own if not one.error]
        if not known:
            table.add_row(ROWS[row].title, *[own[0].error, *[""] * (len(own) + 1)])
            continue
        cells = [f"{one.work.cohort / one.best:,.0f}" if not one.error else "failed" for one in own]
        start, memory = min(one.start for one in known), max(one.memory for one in known)
        table.add_row(ROWS[row].title, *cells, f"{start:.1f}", f"{memory:.2f}")
    goals = [f"{GOALS[network]:.0f}" if cohort == 50 else "" for network in networks for cohort in cohorts]
    table.add_section()
    table.add_row("goal of an engine", *goals, f"{START_GOAL:g}", "")
    return table


def empty_rounds(measured: Sequence[Measured]) -> Table:
    """Return the milliseconds of rounds in which nothing is computed."""
    table = Table(title="a round without work, in milliseconds", title_justify="left")
    table.add_column("")
    for work in EMPTY:
        table.add_column(f"{work.cohort} of {work.registered:,}", justify="right")
    for head in (f"start-up with {EMPTY[-1].registered:,}, s", "memory, GB"):
        table.add_column(head, justify="right")
    for row in dict.fromkeys(one.row for one in measured):
        small, large = (next(one for one in measured if one.row == row and one.work == work) for work in EMPTY)
        cells = [one.error or f"{1000 * one.best:.1f}" for one in (small, large)]
        table.add_row(ROWS[row].title, *cells, f"{large.start:.1f}", f"{large.memory:.2f}")
    table.add_section()
    table.add_row("goal of an engine", *map("{:g}".format, EMPTY_GOALS), f"{START_GOAL:g}", f"{MEMORY_GOAL:g} and data")
    return table


def host(measured: Sequence[Measured], cohorts: Sequence[int]) -> Table:
    """Return the milliseconds of the CPU that a client takes where there is next to nothing to compute."""
    table = Table(title="milliseconds of the CPU a client, network of 86 weights", title_justify="left")
    table.add_column("")
    for cohort in cohorts:
        table.add_column(f"{cohort:,} clients a round", justify="right")
    found = {(one.row, one.work.cohort): one for one in measured}
    for row in dict.fromkeys(one.row for one in measured):
        own = [found[row, cohort] for cohort in cohorts]
        table.add_row(ROWS[row].title, *(one.error or f"{one.cpu_of_a_client:.3f}" for one in own))
    return table


def as_json(measured: Sequence[Measured]) -> list[dict[str, Any]]:
    """Return all figures as plain values."""

    def plain(one: Measured) -> dict[str, Any]:
        clients = None if one.error else one.work.cohort / one.best
        return {**asdict(one), "clients_per_second": clients}

    return [plain(one) for one in measured]


def main() -> None:
    """Measure what was asked for, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    rows = f"{', '.join(ROWS)}; with --host {', '.join(HOST_ROWS)}"
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), metavar="ROW", help=rows)
    networks = [name for name in NETWORKS if name not in ("empty", "tiny")]
    parser.add_argument("--networks", nargs="+", choices=networks, default=networks)
    parser.add_argument("--cohorts", nargs="+", type=int, default=[50, REGISTERED], help="clients a round")
    parser.add_argument("--rounds", type=int, default=4, help="rounds of 50 clients; of more, half as many")
    parser.add_argument("--host", action="store_true", help="only what the host does for a client, without arithmetic")
    parser.add_argument("--no-empty", action="store_true", help="leave out the rounds without work")
    parser.add_argument("--json", type=Path, help="file for all figures")
    asked = parser.parse_args()
    asked.rows = asked.rows or list(HOST_ROWS if asked.host else ROWS)
    if asked.host and (others := [row for row in asked.rows if row not in HOST_ROWS]):
        parser.error(
            f"--host measures the CPU of one process, which does all the work in {', '.join(HOST_ROWS)} alone, and "
            f"--rows names {', '.join(others)}; leave these out"
        )
    console, measured, empty = Console(width=110), list[Measured](), list[Measured]()
    busy, cpus = os.getloadavg()[0], os.cpu_count() or 1
    if busy > cpus / 2:
        console.print(f"other processes are at work (load {busy:.1f} on {cpus} CPUs): all figures are too low")
    with console.status("measuring") as status:

        def one(row: str, work: Work) -> Measured:
            status.update(f"{ROWS[row].title}: {work.network}, {work.cohort} of {work.registered}")
            return measure(row, work)

        if asked.host:
            works = [Work("tiny", cohort, cohort, HOST_ROUNDS) for cohort in asked.cohorts]
            measured += [one(row, work) for row in asked.rows for work in works]
        for row in () if asked.host else asked.rows:
            for network in asked.networks:
                for cohort in asked.cohorts:
                    rounds = asked.rounds if cohort <= 50 else max(2, asked.rounds // 2)
                    measured.append(one(row, Work(network, REGISTERED, cohort, rounds)))
            if ROWS[row].empty and not asked.no_empty:
                empty += [one(row, work) for work in EMPTY]
    console.print(host(measured, asked.cohorts) if asked.host else rates(measured, asked.networks, asked.cohorts))
    if empty:
        console.print(empty_rounds(empty))
    for failed in (one for one in (*measured, *empty) if one.error and not ROWS[one.row].missing()):
        console.print(f"{ROWS[failed.row].title}, {failed.work}: {failed.error}")
    if not asked.host:
        print_ratios(measured, console)
    if asked.json:
        asked.json.write_text(json.dumps({"cpus": os.cpu_count(), "figures": as_json([*measured, *empty])}, indent=2))


def print_ratios(measured: Sequence[Measured], console: Console) -> None:
    """Print how many times as fast as each other system our fastest engine is at 50 clients a round."""
    for network in dict.fromkeys(one.work.network for one in measured):
        of_network = [
            one for one in measured if one.work.network == network and one.work.cohort == 50 and not one.error
        ]
        speed: Mapping[str, float] = {one.row: one.work.cohort / one.best for one in of_network}
        ours = {row: value for row, value in speed.items() if ROWS[row].ours}
        if ours:
            best = max(ours, key=lambda row: ours[row])
            others = [
                f"{ours[best] / value:.2f} x {ROWS[row].title}" for row, value in speed.items() if row not in ours
            ]
            console.print(f"{network}: {ROWS[best].title} is {', '.join(others) or 'alone'}")


if __name__ == "__main__":
    main()
