"""What is it worth that each client trains its own G after the last round? A table of methods on the digits.

    python -m benchmarks.client_adaptation                                        # seeds 0 to 4, each method
    python -m benchmarks.client_adaptation --rows source_free shot                # some rows
    python -m benchmarks.client_adaptation --proxies --seeds 0 1 2                # on proxies, where options are chosen

Rows that begin with source only go on from its round before the last, so each costs its clients' steps alone. The head
ceiling is a head trained with the target's own labels on the G of source only, with the client's batch-norm statistics.
Seconds are those of one client in the last round, and bytes of training those of one client in the whole run.

Every run stays in ``--runs``; a run that is already there is read, not repeated, and one that was killed is resumed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import nn

from benchmarks import cells
from fedlab.comparison.cells import CheckpointRef
from fedlab.config.presets import parse_overrides
from fedlab.config.sections import Value
from fedlab.launch import saved_config
from fedlab.models.batchnorm_stats import adapt_batchnorm, encode
from fedlab.models.feature_classifier import features_of, head_of
from fedlab.runs.directory import RunDirectory
from fedlab.runs.result import Result
from fedlab.seeds import deterministic, seeded
from fedlab.strategies.protocol import load
from fedlab.training import train_steps

PROXIES = "proxy_texture,proxy_lowres,proxy_tight,proxy_color"
BASE = {"checkpoint.keep": 9}
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Row:
    """One method: its strategy, the options that differ, and the metric that it is judged by."""

    title: str
    strategy: str
    options: Mapping[str, Value]
    metric: str = "accuracy_personal"
    preset: str = "source-only-digits"


ADAPTED: Mapping[str, Value] = {"dualadapt.client_adapt": "source_free", "dualadapt.source_only_twin": False}
CHEAP: Mapping[str, Value] = {**ADAPTED, "dualadapt.server_discrepancy": 0.0}
FL2: Mapping[str, Value] = {
    "semi_fl.thresholds": "adaptive",
    "semi_fl.weights": "threshold",
    "semi_fl.consistency": 1.0,
    "semi_fl.mixup": 0.0,
}
ROWS: Mapping[str, Row] = {
    "source_only": Row("source only", "source_only", {}, "accuracy"),
    "dualadapt": Row("DualAdapt", "dualadapt", ADAPTED, "accuracy_average", "dualadapt-digits-heads"),
    "dualadapt_paper": Row(
        "DualAdapt, line by line",
        "dualadapt_paper",
        {"dualadapt.source_only_twin": False},
        "accuracy_average",
        "dualadapt-paper",
    ),
    "source_free": Row("source_free", "source_free", {}),
    "dualadapt_source_free": Row("DualAdapt, then source_free", "dualadapt", ADAPTED, preset="dualadapt-digits-heads"),
    "cheap_source_free": Row("the same, no server discrepancy", "dualadapt", CHEAP, preset="dualadapt-digits-heads"),
    "shot": Row("SHOT, 10 epochs", "shot", {"shot.epochs": 10.0}),
    "shot_published": Row("SHOT, 30 epochs as published", "shot", {}),
    "adacontrast": Row("AdaContrast", "adacontrast", {}),
    "fed_shot": Row("SHOT, averaged every round", "fed_shot", {}, "accuracy", "dualadapt-digits-heads"),
    "fed_adacontrast": Row(
        "AdaContrast, averaged every round", "fed_adacontrast", {}, "accuracy", "dualadapt-digits-heads"
    ),
    "semi_fl": Row("SemiFL", "semi_fl", {}, "accuracy", "self-training-digits"),
    "semi_fl_thresholds": Row(
        "SemiFL, (FL)^2's thresholds and weights",
        "semi_fl",
        {"semi_fl.thresholds": "adaptive", "semi_fl.weights": "threshold"},
        "accuracy",
        "self-training-digits",
    ),
    "fl2": Row("(FL)^2", "semi_fl", FL2, "accuracy", "self-training-digits"),
}


def base_run(overrides: Mapping[str, Value], seed: int, runs: Path) -> Result:
    """Source only, of which all checkpoints are kept."""
    return cells.one_run("source-only-digits", {**overrides, **BASE, "seed": seed}, runs)


def run_row(row: Row, overrides: Mapping[str, Value], seed: int, runs: Path) -> Result:
    """One run of a row."""
    changes = {**overrides, **BASE, "seed": seed, "strategy": row.strategy, **row.options}
    if row.strategy == "source_only":
        return base_run(overrides, seed, runs)
    if row.preset != "source-only-digits":
        return cells.one_run(row.preset, changes, runs)
    base = base_run(overrides, seed, runs)
    return cells.one_run(row.preset, changes, runs, CheckpointRef(base.directory, base.rounds[-1]["round"] - 1))


def head_ceiling(overrides: Mapping[str, Value], seed: int, runs: Path) -> dict[str, float]:
    """Accuracy by client of a head that is fitted to the target's own training labels on the frozen G."""
    directory = RunDirectory.open(base_run(overrides, seed, runs).directory)
    config, rounds = saved_config(directory), directory.checkpoints.rounds()
    arrays = directory.checkpoints.load(rounds[-1])["arrays"]
    workload, found = config.workload, {}
    for partition, client in enumerate(workload.clients):
        with deterministic(config.run.threads), seeded(seed, "head ceiling", partition):
            model = load(workload.model(), arrays, CPU).requires_grad_(False)
            data, test = workload.data(partition, "train"), workload.data(partition, "test")
            adapt_batchnorm(features_of(model), data, 1000, 0.75, CPU)
            z, y = encode(features_of(model), data, CPU), workload.labels(partition)
            head = fit_head(head_of(model), z, y)
            right = head(encode(features_of(model), test, CPU)).argmax(1) == test[:]["y"]
            found[client] = float(right.double().mean())
    return found


def fit_head(head: nn.Module, z: torch.Tensor, y: torch.Tensor, steps: int = 600) -> nn.Module:
    """Train a head on labeled features (examples, width)."""
    head.requires_grad_(True).train()
    optimizer = torch.optim.Adam(head.parameters(), 3e-3, weight_decay=1e-4)
    plan = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)

    def loss() -> torch.Tensor:
        rows = torch.randint(len(z), (256,))
        return nn.functional.cross_entropy(head(z[rows]), y[rows])

    train_steps(loss, optimizer, steps, name="head ceiling", after_step=plan.step)
    return head.requires_grad_(False).eval()


def scores_of(row: Row, results: list[Result], clients: Sequence[str]) -> np.ndarray:
    """Accuracy of a row (seeds, clients + 1) in percent."""
    finals = [{name: one[row.metric] for name, one in result.final().items()} for result in results]
    return cells.by_client(finals, clients)


def seconds(result: Result) -> float:
    """Seconds of one client's training in the last round."""
    return float(result.rounds[-1]["seconds"].get("clients", 0.0)) / len(result.final())


def main() -> None:
    """Run what is asked for and print the table."""
    parser = cells.parser(__doc__)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help="which methods")
    parser.add_argument("--proxies", action="store_true", help="proxy targets, whose labels may choose options")
    parser.add_argument("--no-ceiling", action="store_true", help="without the head ceiling")
    options = parser.parse_args()
    shared = {"threads": cells.threads(options.processes), **parse_overrides(options.overrides)}
    if options.proxies:
        shared["digits.targets"] = PROXIES
    names = ["source_only", *(name for name in options.rows if name != "source_only")]
    with cells.workers(options.processes) as pool:
        bases = [pool.submit(base_run, shared, seed, options.runs) for seed in options.seeds]
        for base in bases:
            base.result()
        waiting = {
            name: [pool.submit(run_row, ROWS[name], shared, seed, options.runs) for seed in options.seeds]
            for name in names
        }
        ceiling = [pool.submit(head_ceiling, shared, s, options.runs) for s in options.seeds if not options.no_ceiling]
        results = {name: [future.result() for future in futures] for name, futures in waiting.items()}
        ceilings = [future.result() for future in ceiling]
    clients = saved_config(RunDirectory.open(results["source_only"][0].directory)).workload.clients
    source = scores_of(ROWS["source_only"], results["source_only"], clients)
    title = f"accuracy in percent, mean ± standard deviation over seeds {options.seeds}"
    table = cells.table(title, ("", *clients, "mean", "over source only", "seconds", "MB"))
    for name in names:
        row, done = ROWS[name], results[name]
        found = scores_of(row, done, clients)
        sent = np.mean([one.bytes("train_down") + one.bytes("train_up") for one in done]) / len(clients) / 1e6
        spent = np.mean([seconds(one) for one in done])
        paired = cells.gain(found[:, -1] - source[:, -1])
        table.add_row(row.title, *map(cells.spread, found.T), paired, f"{spent:.1f}", f"{sent:.2f}")
    if ceilings:
        table.add_row("head ceiling", *map(cells.spread, cells.by_client(ceilings, clients).T), "", "", "")
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
