"""What crosses the wire: bytes by client and round, and what coarser formats cost in accuracy.

python -m benchmarks.wire                   # bytes: DualAdapt beside FedAvg of the whole model, both networks
python -m benchmarks.wire --accuracy        # and accuracy by format, seeds 0 to 4; half an hour, resumable
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from rich.console import Console

import fedlab
from benchmarks import cells
from fedlab.config.presets import parse_overrides
from fedlab.config.sections import Value
from fedlab.runs.formatting import human_bytes

FORMATS = ("float32", "float16", "int8")
NETWORKS = ("small", "mcd")
# What is sent does not depend on the steps taken, nor on the data where a client has more images than quantiles.
QUICK: Mapping[str, Value] = {
    "rounds": 1,
    "digits.targets": "usps",
    "data.max_examples": 300,
    "server.pretrain_steps": 1,
    "server.steps": 1,
    "server.batch_size": 8,
    "client.steps": 1,
    "client.batch_size": 8,
}
DUALADAPT, WHOLE = "dualadapt-digits-heads", "oracle-digits"  # the same clients; FedAvg moves the whole model
STRATEGIES: Mapping[str, Mapping[str, Value]] = {DUALADAPT: {"dualadapt.source_only_twin": False}, WHOLE: {}}
# Preset, the metric of its clients, and what a table of accuracies differs in from the preset.
LEARNING: Mapping[str, tuple[str, Mapping[str, Value]]] = {
    "dualadapt-digits-heads": ("accuracy_average", {"dualadapt.source_only_twin": False}),
    "fedavg-digits": ("accuracy", {}),
}
KINDS = ("train_down", "train_up", "evaluate_down", "evaluate_up")


def moved(preset: str, network: str, form: str) -> dict[str, int]:
    """Serialized bytes of one client in one round, by kind."""
    with tempfile.TemporaryDirectory() as folder:
        overrides = {**QUICK, **STRATEGIES[preset], "digits.network": network, "comm.compression": form}
        result = fedlab.run(preset, runs=Path(folder), overrides=overrides)
    return dict(result.rounds[-1]["bytes"]["usps"])


def show_bytes(console: Console) -> None:
    """Bytes by network, strategy and format."""
    for network in NETWORKS:
        columns = ("", "train, down", "train, up", "test, down", "test, up", "up, against FedAvg in float32")
        table = cells.table(f"network {network}: bytes by client and round", columns)
        whole = moved(WHOLE, network, "float32")["train_up"]
        for preset, name in ((DUALADAPT, "DualAdapt"), (WHOLE, "FedAvg")):
            for form in FORMATS:
                size = moved(preset, network, form)
                share = f"{size['train_up'] / whole:.4f}"
                table.add_row(f"{name}, {form}", *(human_bytes(size[kind]) for kind in KINDS), share)
            table.add_section()
        console.print(table)


def show_accuracy(console: Console, runs: Path, seeds: list[int], shared: Mapping[str, Value], processes: int) -> None:
    """Accuracy by format over seeds; what comes before round 1 is done once for all formats."""
    with cells.workers(processes) as pool:
        waiting = {
            (preset, form, seed): pool.submit(
                cells.one_run, preset, {**shared, **overrides, "comm.compression": form, "seed": seed}, runs
            )
            for preset, (_, overrides) in LEARNING.items()
            for form in FORMATS
            for seed in seeds
        }
        found = {key: future.result().final() for key, future in waiting.items()}
    for preset, (metric, _) in LEARNING.items():
        clients = list(found[preset, FORMATS[0], seeds[0]])
        table = cells.table(f"{preset}: accuracy in percent, seeds {seeds}", ("", *clients, "mean", "against float32"))
        values = {
            form: 100 * np.array([[found[preset, form, seed][name][metric] for name in clients] for seed in seeds])
            for form in FORMATS
        }  # (seeds, clients)
        for form, scores in values.items():
            lost = "" if form == FORMATS[0] else cells.gain(scores.mean(1) - values[FORMATS[0]].mean(1))
            table.add_row(form, *map(cells.spread, scores.T), cells.spread(scores.mean(1)), lost)
        console.print(table)


def main() -> None:
    """Run what is asked for and print the tables."""
    parser = cells.parser(__doc__)
    parser.add_argument("--accuracy", action="store_true", help="train, too, and compare accuracies")
    options = parser.parse_args()
    console = Console(width=140)
    show_bytes(console)
    if options.accuracy:
        shared = {"threads": cells.threads(options.processes), **parse_overrides(options.overrides)}
        show_accuracy(console, options.runs, options.seeds, shared, options.processes)


if __name__ == "__main__":
    main()
