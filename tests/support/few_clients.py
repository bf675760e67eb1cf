"""Run directories of runs with two clients, written down without running them."""

from __future__ import annotations

from fedlab.registry import find, load_config
from fedlab.runs.directory import RunDirectory
from fedlab.runs.metrics import MetricTable

TABLE = MetricTable.declared(find("strategy", "dualadapt").spec, find("workload", "digits").spec)


def write_run(folder, name, seed, rounds, metric):
    """Write a run of the clients near and far, whose metric in each round is given; return its path in the folder."""
    run = RunDirectory.create(folder / "cells", load_config({"name": name, "seed": seed}))
    for number, (near, far) in enumerate(rounds):
        clients = {"near": {metric: near}, "far": {metric: far}}
        if number:  # a control that knows more than anybody, and is nobody's headline
            clients = {client: {**values, "accuracy_source_only": 0.99} for client, values in clients.items()}
        moved = {"train_down": 100 * number, "train_up": 10 * number, "evaluate_down": 10**6, "evaluate_up": 1}
        run.log_round(
            {
                "round": number,
                "clients": clients,
                "mean": {metric: (near + far) / 2},
                "bytes": dict.fromkeys(("near", "far"), moved),
                "seconds": {"pretrain" if number == 0 else "clients": 2.0, "evaluate": 100.0},
            }
        )
    run.update_manifest(status="finished", **TABLE.to_manifest())
    return f"cells/{run.path.name}"
