"""Does it adapt? Seeds and ablations of DualAdapt on the embedded digits, between its two bounds.

    python -m benchmarks.adaptation                      # seeds 0 to 4, source only and the supervised bound
    python -m benchmarks.adaptation --ablate all         # and one ingredient at a time
    python -m benchmarks.adaptation rounds=3 --seeds 0 --ablate "mixup off" "one component"

Every run stays in ``--runs``; a run that is already there is read, not repeated, and one that was killed is resumed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import fedlab
from fedlab import launch
from fedlab.config import Value, parse_overrides
from fedlab.errors import near_match
from fedlab.runs import RunDirectory

# One ingredient at a time; what stands here is what a run differs in from the preset.
ABLATIONS: Mapping[str, Mapping[str, Value]] = {
    "labels of F_g itself": {"dualadapt.pseudo_labels": "global", "dualadapt.balance": 0.0},
    "and the source's statistics": {
        "dualadapt.pseudo_labels": "global",
        "dualadapt.balance": 0.0,
        "dualadapt.own_statistics": 0.0,
    },
    "no own statistics": {"dualadapt.own_statistics": 0.0},
    "no class balance": {"dualadapt.balance": 0.0},
    "no mixture weights": {"dualadapt.client_weights": False, "dualadapt.server_weights": False},
    "one component": {"dualadapt.components": 1},
    "no client discrepancy": {"dualadapt.client_discrepancy": 0.0},
    "no server discrepancy": {"dualadapt.server_discrepancy": 0.0},
    "mixup off": {"dualadapt.mixup": "off"},
    "mixup by difference": {"dualadapt.mixup": "difference"},
    "no average (EMA) of G": {"server.average": 0.0},
}

# The bound of a target: the pre-trained model fine-tuned on that target's own labels, alone, as many steps as a server
# of the main job takes.
BOUND = "oracle-digits"
BOUND_KNOBS: Mapping[str, Value] = {"rounds": 5, "client.steps": 48}

Scores = dict[str, dict[str, float]]  # client -> metric -> value


def one_run(preset: str, knobs: Mapping[str, Value], runs: Path, begun: Path | None = None) -> Scores:
    """Final metrics of one run, read from disk where it is there.

    With ``begun``, the run starts from that run's checkpoint of round 0: the same pre-training, done once.
    """
    path = directory_of(preset, knobs, runs)
    if not (path / "config.toml").exists():
        name = path.name.rpartition("-")[0]
        directory = RunDirectory.create(runs, launch.prepare(preset, {**knobs, "name": name}))
        if begun:
            (directory.path / "checkpoints").mkdir()
            state = torch.load(begun / "checkpoints" / "round-0.pt", weights_only=True)
            if preset == BOUND:
                state["strategy"] = {}  # FedAvg remembers nothing but the arrays
            torch.save(state, directory.path / "checkpoints" / "round-0.pt")
    return fedlab.resume(path).final()


def directory_of(preset: str, knobs: Mapping[str, Value], runs: Path) -> Path:
    """Where :func:`one_run` leaves a run."""
    key = hashlib.sha256(json.dumps([preset, dict(knobs)], sort_keys=True).encode()).hexdigest()[:12]
    return runs / f"{key}-{knobs['seed']}"


def paired(scores: list[Scores], controls: list[Scores]) -> dict[str, tuple[float, float, float]]:
    """Client, and "mean", to mean, spread and minimum over seeds of the gain over source only, in points."""
    clients = list(controls[0])
    gains = 100 * np.array(
        [
            [run[client]["accuracy_average"] - control[client]["accuracy_source_only"] for client in clients]
            for run, control in zip(scores, controls, strict=True)
        ]
    )
    columns = {**dict(zip(clients, gains.T, strict=True)), "mean": gains.mean(1)}
    return {
        name: (float(v.mean()), float(v.std(ddof=1)) if len(v) > 1 else 0.0, float(v.min()))
        for name, v in columns.items()
    }


def row(table: Table, title: str, scores: list[Scores], metric: str) -> None:
    """One line of mean and standard deviation over seeds, in percent."""
    clients = list(scores[0])
    values = 100 * np.array([[run[client][metric] for client in clients] for run in scores])
    columns = [*values.T, values.mean(1)]
    table.add_row(title, *(f"{v.mean():.1f} ± {v.std(ddof=1) if len(v) > 1 else 0:.1f}" for v in columns))


def main() -> None:
    """Run what is asked for and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("knobs", nargs="*", help="key=value for every run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--ablate", nargs="*", default=[], help="names, or all: " + ", ".join(ABLATIONS))
    parser.add_argument("--runs", type=Path, default=Path("runs/adaptation"))
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--bound", action=argparse.BooleanOptionalAction, default=True, help="the supervised bound")
    options = parser.parse_args()
    shared = {"threads": max(1, (os.cpu_count() or 1) // options.processes), **parse_overrides(options.knobs)}
    chosen = list(ABLATIONS) if options.ablate == ["all"] else options.ablate
    for name in chosen:
        if name not in ABLATIONS:
            parser.error(f"no ablation {name!r}; {near_match(name, ABLATIONS)}")
    plain = {key: value for key, value in shared.items() if not key.startswith("dualadapt.")}
    main_knobs = {**shared, "keep_checkpoints": 1000}
    ablations = {name: {**shared, **ABLATIONS[name], "dualadapt.control": False} for name in chosen}

    with ProcessPoolExecutor(options.processes) as pool:

        def submit(preset: str, knobs: Mapping[str, Value], from_main: bool) -> list[Future[Scores]]:
            futures = []
            for seed in options.seeds:
                begun = directory_of("dualadapt-digits", {**main_knobs, "seed": seed}, options.runs)
                one = {**knobs, "seed": seed}
                futures.append(pool.submit(one_run, preset, one, options.runs, begun if from_main else None))
            return futures

        def scores(futures: list[Future[Scores]]) -> list[Scores]:
            return [future.result() for future in futures]

        main_runs = scores(submit("dualadapt-digits", main_knobs, from_main=False))
        alone = (
            [
                submit(BOUND, {**plain, **BOUND_KNOBS, "digits.targets": target}, from_main=True)
                for target in main_runs[0]
            ]
            if options.bound
            else []
        )
        waiting = {name: submit("dualadapt-digits", knobs, from_main=True) for name, knobs in ablations.items()}
        found = {"DualAdapt": main_runs} | {name: scores(futures) for name, futures in waiting.items()}
        bound = [
            dict(pair for part in parts for pair in part.items()) for parts in zip(*map(scores, alone), strict=True)
        ]

    table = Table(title=f"accuracy in percent, mean ± standard deviation over seeds {options.seeds}")
    for head in ("", *main_runs[0], "mean"):
        table.add_column(head, justify="left" if not head else "right")
    for metric in ("source_only", "global", "local", "average", "last"):
        title = "source only" if metric == "source_only" else f"DualAdapt, {metric}"
        row(table, title, main_runs, f"accuracy_{metric}")
    if options.bound:
        row(table, "supervised bound", bound, "accuracy")
    if chosen:
        table.add_section()
    for name in chosen:
        row(table, f"{name}", found[name], "accuracy_average")
    console = Console(width=140)
    console.print(table)
    gains = Table(title="paired gain of the averaged heads over source only, in points")
    for head in ("", *main_runs[0], "mean"):
        gains.add_column(head, justify="left" if not head else "right")
    for name in ["DualAdapt", *chosen]:
        values = paired(found[name], main_runs)
        gains.add_row(
            name, *(f"{mean:+.1f} ± {spread:.1f} (≥ {least:+.1f})" for mean, spread, least in values.values())
        )
    console.print(gains)


if __name__ == "__main__":
    main()
