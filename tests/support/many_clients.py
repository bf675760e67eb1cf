"""Run directories of runs with many clients, written down without running them."""

from __future__ import annotations

import json

import numpy as np

from fedlab.registry import find, load_config
from fedlab.runs.directory import RunDirectory
from fedlab.runs.metrics import MetricTable
from fedlab.runs.result import Result

NAMES = [f"shard-{number}" for number in range(1000)]
ROUNDS, TRAINED = 10, 50


def write_run(folder, *, seed=0, level=0.8, tested=1000, every=5, global_test=False, failures=0, name="many"):
    """Write a run of 1,000 clients of which 50 train in a round and ``tested`` are tested every ``every`` rounds."""
    options = {"name": name, "seed": seed, "rounds": ROUNDS, "strategy": "fedavg", "digits.setting": "shards"}
    run = RunDirectory.create(folder, load_config({"data.num_clients": len(NAMES), **options}))
    generator = np.random.default_rng(seed)
    for number in range(ROUNDS + 1):
        trained = sorted(generator.choice(len(NAMES), TRAINED, replace=False)) if number else []
        due = tested and number % every == 0
        chosen = sorted(generator.choice(len(NAMES), tested, replace=False)) if due else []
        accuracy = {at: float(np.clip(level * number / ROUNDS + generator.normal(0.1, 0.05), 0, 1)) for at in chosen}
        clients = {
            NAMES[at]: {"accuracy": value, "loss": 2 - value, "num-examples": 10.0} for at, value in accuracy.items()
        }
        metrics = ("accuracy", "loss") if clients else ()
        means = {metric: float(np.mean([of[metric] for of in clients.values()])) for metric in metrics}
        scored = {"accuracy": level * number / ROUNDS + 0.1, "loss": 1.0} if global_test and number % every == 0 else {}
        run.log_round(
            {
                "round": number,
                "clients": clients,
                "mean": means,
                "server": {},
                "score": scored,
                "bytes": {
                    NAMES[at]: {
                        "train_down": 1000 * (at in trained),
                        "train_up": 500 * (at in trained),
                        "evaluate_down": 1000 * (at in accuracy),
                        "evaluate_up": 20 * (at in accuracy),
                    }
                    for at in sorted({*trained, *chosen})
                },
                "failures": [
                    {"client": NAMES[at], "partition": at, "phase": "clients", "kind": "error", "reason": "no luck"}
                    for at in range(failures)
                ],
                "seconds": {"clients": 1.0, "evaluate": 2.0},
            }
        )
    split = [
        {"name": of, "examples": 6, "labels": {str(at % 10): 4, str((at + 3) % 10): 2}} for at, of in enumerate(NAMES)
    ]
    (run.path / "split.json").write_text(json.dumps({"clients": split}))
    table = MetricTable.declared(find("strategy", "fedavg").spec, find("workload", "digits").spec)
    run.update_manifest(status="finished", **table.to_manifest())
    return Result.read(run.path)
