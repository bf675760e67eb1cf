"""Seconds a round by phase, and clients a second, in process and under Flower's Ray simulation in the same run.

python -m benchmarks.engines
python -m benchmarks.engines rounds=4 digits.network=mcd
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

import fedlab
from fedlab.config.presets import parse_overrides
from fedlab.config.sections import Overrides
from fedlab.runs.result import Result

PHASES = ("server", "clients", "evaluate")


def timed(engine: str, overrides: Overrides, runs: Path) -> tuple[Result, float]:
    """One run of DualAdapt, and its wall time from call to return."""
    started = time.perf_counter()
    result = fedlab.run("dualadapt-digits-heads", runs=runs, overrides={**overrides, "engine": engine, "name": engine})
    return result, time.perf_counter() - started


def clients_a_second(result: Result) -> float:
    """Client calls (train and evaluate) of rounds 1 and later, by the seconds that the server waited for them."""
    rounds = result.rounds[1:]
    calls = sum(2 * len(record["clients"]) for record in rounds)
    return calls / sum(record["seconds"]["clients"] + record["seconds"]["evaluate"] for record in rounds)


def main() -> None:
    """Run both engines and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("overrides", nargs="*", help="key=value for both runs")
    overrides = {"rounds": "3", "server.pretrain_steps": "20", **parse_overrides(parser.parse_args().overrides)}
    with tempfile.TemporaryDirectory() as folder:
        measured = {engine: timed(engine, overrides, Path(folder)) for engine in ("inprocess", "ray")}
    same = len({result.weights_sha256 for result, _ in measured.values()}) == 1
    table = Table(title=f"DualAdapt on digits, 4 clients, {os.cpu_count()} CPUs, seconds a round (mean of rounds >= 1)")
    for head in ("engine", *PHASES, "clients a second", "whole run, start-up included"):
        table.add_column(head, justify="left" if head == "engine" else "right")
    for engine, (result, seconds) in measured.items():
        rounds = result.rounds[1:]
        means = [sum(record["seconds"][phase] for record in rounds) / len(rounds) for phase in PHASES]
        table.add_row(engine, *(f"{mean:.2f}" for mean in means), f"{clients_a_second(result):.2f}", f"{seconds:.1f}")
    console = Console(width=120)
    console.print(table)
    ours, rays = (clients_a_second(measured[engine][0]) for engine in ("inprocess", "ray"))
    console.print(
        f"in process against Ray: {ours / rays:.2f} x clients a second, "
        f"{measured['ray'][1] / measured['inprocess'][1]:.2f} x faster as a whole; same bits: {same}"
    )


if __name__ == "__main__":
    main()
