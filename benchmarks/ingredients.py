"""Measure what each ingredient of ``source_free`` is worth: one left out at a time, on proxies of the digits.

    python -m benchmarks.ingredients                            # seeds 0 to 2, 120 steps: a quarter of an hour
    python -m benchmarks.ingredients --rows no_views no_balance --seeds 0
    python -m benchmarks.ingredients --steps 480 --targets usps,optdigits

Clients adapt the G of ``source-only-digits`` after its last round, and keep the new one: the guard would hide what
training does. Examples are labeled four times, whatever the number of steps. Differences are paired by seed. Accuracies
stay in ``--runs``; those that are there are read, not computed again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from benchmarks import cells
from benchmarks.adapted_clients import FinishedRun
from benchmarks.client_adaptation import PROXIES, base_run
from fedlab.comparison.grid import config_hash
from fedlab.config.presets import parse_overrides
from fedlab.config.sections import Value
from fedlab.models.batchnorm_stats import batch_norms
from fedlab.registry import load_config
from fedlab.strategies.client_adaptation.source_free import Options, train_copy
from fedlab.strategies.client_adaptation.spec import AdaptationSpec, Adapted, Client


def adapt(client: Client, options: Options) -> Adapted:
    """Adapt as ``source_free`` does without its guard."""
    client = replace(client, data=client.data.subsample(options.max_examples))
    return Adapted(train_copy(client, options)[1])


def adapt_with_running_statistics(client: Client, options: Options) -> Adapted:
    """Adapt with batch norms in evaluation mode in each step."""
    features = client.trainable_features()
    features.register_forward_pre_hook(keep_statistics)
    return adapt(replace(client, features=features), options)


def keep_statistics(features: nn.Module, inputs: object) -> None:
    """Set the batch norms of G to evaluation mode in a step, the only place with gradients."""
    if torch.is_grad_enabled():
        for layer in batch_norms(features):
            layer.eval()


@dataclass(frozen=True)
class Row:
    """One change: its title, the options that differ, and the method where that differs."""

    title: str
    options: Mapping[str, Any] = field(default_factory=dict)
    method: Callable[[Client, Options], Adapted] = adapt


REFERENCE = "all"
LABELINGS = 4
DEFAULTS: Options = load_config({"strategy": "source_free"}).adaptation
ROWS: Mapping[str, Row] = {
    REFERENCE: Row("nothing: all of source_free"),
    "no_views": Row("no views", {"views": False}),
    "no_balance": Row("no class balance", {"balance_iterations": 0}),
    "no_propagation": Row("no propagation", {"num_neighbors": 0}),
    "no_information": Row("no information maximization", {"information": 0.0}),
    "running_statistics": Row("batch norms in evaluation mode", method=adapt_with_running_statistics),
    "one_labeling": Row("labeled once", {"label_every": 100000}),
    "no_teacher": Row("labels of G itself", {"teacher_ema": 0.0}),
    "all_labels": Row("every pseudo-label", {"confident": 1.0}),
}


def accuracies(
    name: str, steps: int, targets: str, overrides: Mapping[str, Value], seed: int, runs: Path
) -> list[float]:
    """Accuracies by client of a row, or of source only where the row is empty, in the order of targets."""
    key = config_hash([name, steps, targets, dict(overrides)])
    known = runs / "ingredients" / f"{name or 'source_only'}-{key}-{seed}.json"
    if known.exists():
        return [float(value) for value in json.loads(known.read_text())]
    run = FinishedRun(base_run(overrides, seed, runs), {"digits.targets": targets})
    found = []
    for partition in range(len(run.workload.clients)):
        arrays = run.arrays
        if name:
            row = ROWS[name]
            options = replace(DEFAULTS, **{"steps": steps, "label_every": max(1, steps // LABELINGS), **row.options})
            arrays, _ = run.adapt(partition, AdaptationSpec(Options, row.method), options)
        found.append(run.accuracy(partition, arrays))
    known.parent.mkdir(parents=True, exist_ok=True)
    known.write_text(json.dumps(found))
    return found


def main() -> None:
    """Run what is asked for and print the table."""
    parser = cells.parser(__doc__)
    parser.set_defaults(seeds=[0, 1, 2])
    others = [name for name in ROWS if name != REFERENCE]
    parser.add_argument("--rows", nargs="+", choices=others, default=others, metavar="ROW", help="what is left out")
    parser.add_argument("--steps", type=int, default=120, help="steps of a client")
    parser.add_argument("--targets", default=PROXIES, help="domains of the clients")
    options = parser.parse_args()
    shared = {"threads": cells.threads(options.processes), **parse_overrides(options.overrides)}
    with cells.workers(options.processes) as pool:
        for base in [pool.submit(base_run, shared, seed, options.runs) for seed in options.seeds]:
            base.result()
        waiting = {
            name: [
                pool.submit(accuracies, name, options.steps, options.targets, shared, seed, options.runs)
                for seed in options.seeds
            ]
            for name in ("", REFERENCE, *options.rows)
        }
        found = {name: [one.result() for one in each] for name, each in waiting.items()}
    clients = options.targets.split(",")
    scores = {
        name: cells.by_client([dict(zip(clients, one, strict=True)) for one in each], clients)
        for name, each in found.items()
    }
    title = f"accuracy in percent after {options.steps} steps, mean ± standard deviation over seeds {options.seeds}"
    table = cells.table(title, ("changed", *clients, "mean", "to all of it"))
    for name, values in scores.items():
        paired = "" if name == REFERENCE else cells.gain(values[:, -1] - scores[REFERENCE][:, -1])
        table.add_row(ROWS[name].title if name else "source only", *map(cells.spread, values.T), paired)
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
