"""Starts of a late joiner: each target in turn arrives late, with the nearest client's head and with others.

    python -m benchmarks.onboarding                       # seeds 0 to 4; an hour and more on two cores, resumable
    python -m benchmarks.onboarding --seeds 0 --late-joiners usps --against global random
    python -m benchmarks.onboarding --when-joining             # every start when joining, three rounds a late joiner
    python -m benchmarks.onboarding --when-joining --preset dualadapt-office

The rounds before it joins are done once for all starts, the pre-training once for all late joiners.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from concurrent.futures import Future
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from scipy.stats import spearmanr
from torch import nn

from benchmarks import cells
from fedlab.comparison.cells import CheckpointRef
from fedlab.config.presets import parse_overrides
from fedlab.config.sections import Value
from fedlab.data.dataset import ArrayDataset
from fedlab.models.batchnorm_stats import adapt_batchnorm, encode
from fedlab.models.feature_classifier import EnsembleHead, features_of, head_of, probabilities
from fedlab.registry import load_config
from fedlab.runs.checkpoints import Checkpoints
from fedlab.runs.result import Result
from fedlab.seeds import deterministic
from fedlab.strategies.dualadapt.initial_head import initial_head, sign_test
from fedlab.strategies.dualadapt.local_head import pseudo_labels
from fedlab.strategies.dualadapt.shared import CHOSEN_BY_CLIENT
from fedlab.strategies.protocol import load
from fedlab.training import resolve_device

PRESET = "dualadapt-digits-heads"
JOIN_ROUND, ROUNDS = 3, 6  # the round in which it joins, two rounds for itself, one with all
REFERENCE = "nearest"
STARTS: Mapping[str, Mapping[str, Value]] = {
    "nearest": {"dualadapt.late_joiner_init": "nearest"},
    "global": {"dualadapt.late_joiner_init": "global"},
    "random": {"dualadapt.late_joiner_init": "random"},
    "fresh": {"dualadapt.late_joiner_init": "fresh"},
    "balanced": {"dualadapt.late_joiner_init": "balanced"},
    "agreement": {"dualadapt.late_joiner_init": "agreement"},
    "no onboarding": {"dualadapt.onboarding": 0},
}
WHEN_JOINING = ("global", "balanced", "agreement", "nearest", "random")  # starts whose worth when joining is computed


def one_late_joiner(preset: str, overrides: Mapping[str, Value], starts: list[str], runs: Path) -> dict[str, Any]:
    """Rounds' records of one late joiner and seed by start, and what every known head is worth."""
    first, found = None, {}
    for start in starts:
        mine = {**overrides, **STARTS[start], "checkpoint.keep": 1000}
        result = cells.one_run(preset, mine, runs, CheckpointRef(first, JOIN_ROUND - 1) if first else None)
        first = first or result.directory
        found[start] = result
    return {"starts": found, "heads": heads(found[REFERENCE])}


@torch.no_grad()
def heads(result: Result) -> dict[str, tuple[float, float]]:
    """Known client to its distance from the late joiner, and its head's accuracy on the late joiner's test data."""
    config, device = load_config(result.config), resolve_device("cpu")
    workload, own_options = config.workload, config.strategy
    (note,) = [note for record in result.rounds if record["round"] == JOIN_ROUND for note in record["notes"]]
    state = Checkpoints(result.directory).load(JOIN_ROUND)
    late_joiner = workload.clients.index(note["client"])
    model = load(workload.model(), state["arrays"], device)
    own = workload.data(late_joiner, "train")
    adapt_batchnorm(features_of(model), own, own_options.bn_images, own_options.bn_adaptation, device)
    test, found = workload.data(late_joiner, "test"), {}
    for name, distance in note["distances"].items():
        other = deepcopy(model)
        load(head_of(other), state["strategy"]["heads"][workload.clients.index(name)], device)
        found[name] = distance, workload.evaluate(other, test)["accuracy"]
    return found


@dataclass(frozen=True)
class Opponent:
    """A known client's head against the global one, on a late joiner.

    Attributes
    ----------
    agreement, own_agreement
        Fraction of the late joiner's training examples to which this head and the global one give their pseudo-labels.
    chance
        Probability of so great an advantage in agreement, were both heads equally good (one-sided sign test).
    gain, error
        Accuracy on its test data over that of the global head, in points, where F_g and the head predict together, and
        the standard error of this paired difference.
    """

    agreement: float
    own_agreement: float
    chance: float
    gain: float
    error: float


@dataclass(frozen=True)
class WhenJoining:
    """Worth of every start of a late joiner, in percent, and what is known of each client's head without a label."""

    worth: Mapping[str, float]
    opponents: Mapping[str, Opponent]


@torch.no_grad()
def when_joining(preset: str, overrides: Mapping[str, Value], runs: Path) -> WhenJoining:
    """Accuracy when joining by start, F_g and initial head averaged; ``random`` is the mean over heads."""
    result = cells.one_run(preset, {**overrides, "rounds": JOIN_ROUND, "checkpoint.keep": 1000}, runs)
    config, device = load_config(result.config), resolve_device("cpu")
    workload, options = config.workload, config.strategy
    (note,) = [note for record in result.rounds if record["round"] == JOIN_ROUND for note in record["notes"]]
    state = Checkpoints(result.directory).load(JOIN_ROUND)
    late_joiner, stored = workload.clients.index(note["client"]), state["strategy"]["heads"]
    with deterministic(config.run.threads):
        model = load(workload.model(), state["arrays"], device)
        own, test = workload.data(late_joiner, "train"), workload.data(late_joiner, "test")
        adapt_batchnorm(features_of(model), own, options.bn_images, options.bn_adaptation, device)
        z, head = encode(features_of(model), own, device), head_of(model)
        known = {name: load(deepcopy(head), stored[workload.clients.index(name)], device) for name in note["distances"]}
        starts = {
            "global": [head],
            **{
                start: [initial_head(head, list(known.values()), z, replace(options, late_joiner_init=start))]
                for start in CHOSEN_BY_CLIENT
            },
            "nearest": [next(iter(known.values()))],
            "random": list(known.values()),
        }
        examples = ArrayDataset({"x": encode(features_of(model), test, device), "y": test[:]["y"]})

        def worth(one: nn.Module) -> float:
            return 100 * float(workload.evaluate(EnsembleHead(head, one), examples)["accuracy"])

        def hits(one: nn.Module) -> torch.Tensor:
            return (EnsembleHead(head, one)(examples[:]["x"]).argmax(1) == examples[:]["y"]).double()

        labels = pseudo_labels(z, probabilities(head, z), options)
        ours, opponents = probabilities(head, z).argmax(1) == labels, dict[str, Opponent]()
        for name, one in known.items():
            theirs = probabilities(one, z).argmax(1) == labels
            chance = sign_test(int((theirs & ~ours).sum()), int((ours & ~theirs).sum()))
            agreements = (float(right.double().mean()) for right in (theirs, ours))
            apart = 100 * (hits(one) - hits(head))
            error = float(apart.std()) / len(apart) ** 0.5
            opponents[name] = Opponent(*agreements, chance, float(apart.mean()), error)
        return WhenJoining(
            {start: float(np.mean([worth(one) for one in heads])) for start, heads in starts.items()}, opponents
        )


def show_when_joining(found: Mapping[tuple[str, int], WhenJoining], names: list[str], seeds: list[int]) -> None:
    """Print the accuracy when joining by start, and the differences to the global head."""
    values = {
        start: np.array([[found[name, seed].worth[start] for name in names] for seed in seeds])
        for start in WHEN_JOINING
    }
    table = cells.table(f"accuracy when joining in percent, seeds {seeds}", ("", *names, "mean"))
    for start, each in values.items():
        table.add_row(start, *map(cells.spread, np.column_stack([each, each.mean(1)]).T))
    table.add_section()
    for start, each in values.items():
        if start != "global":
            apart = each - values["global"]
            table.add_row(f"{start} - global", *map(cells.gain, np.column_stack([apart, apart.mean(1)]).T))
    Console(width=140).print(table)
    show_opponents(found)


def show_opponents(found: Mapping[tuple[str, int], WhenJoining]) -> None:
    """Print heads that agree more with a late joiner's pseudo-labels than the global one, and what they are worth."""
    table = cells.table(
        "heads of clients that agree more than the global head",
        (
            "late joiner",
            "seed",
            "head of",
            "agreement",
            "of the global head",
            "by chance",
            "over global ± standard error",
        ),
    )
    for (late_joiner, seed), one in found.items():
        for name, head in one.opponents.items():
            if head.agreement > head.own_agreement:
                agreements = (f"{100 * value:.1f}" for value in (head.agreement, head.own_agreement))
                table.add_row(
                    late_joiner,
                    str(seed),
                    name,
                    *agreements,
                    f"{head.chance:.1g}",
                    f"{head.gain:+.1f} ± {head.error:.1f}",
                )
    Console(width=140).print(table)


def curve(result: Result, late_joiner: str, metric: str) -> list[float]:
    """A late joiner's accuracy in percent since it joined; before it has a local head, the global one predicts."""
    rounds = [record["clients"][late_joiner] for record in result.rounds if record["round"] >= JOIN_ROUND]
    return [100 * values.get(f"accuracy_{metric}", values["accuracy_global"]) for values in rounds]


def arguments() -> argparse.Namespace:
    """Return what was asked for."""
    parser = cells.parser(__doc__)
    parser.add_argument("--preset", default=PRESET, help="a preset of DualAdapt whose clients have domains")
    parser.add_argument("--late-joiners", nargs="+", help="clients of the preset; default: each of them")
    others = [start for start in STARTS if start != REFERENCE]
    parser.add_argument("--against", nargs="+", default=others, choices=others, help="other starts than the nearest")
    parser.add_argument("--when-joining", action="store_true", help="every start when joining, and nothing after it")
    options = parser.parse_args()
    options.starts = [REFERENCE, *options.against]
    if not options.late_joiners:
        options.late_joiners = list(load_config(options.preset, parse_overrides(options.overrides)).workload.clients)
    return options


def main() -> None:
    """Run what is asked for and print the tables."""
    options = arguments()
    shared: dict[str, Value] = {
        "threads": cells.threads(options.processes),
        "dualadapt.source_only_twin": False,
        **parse_overrides(options.overrides),
    }
    with cells.workers(options.processes) as pool:
        waiting: dict[tuple[str, int], Future[Any]] = {}
        for name in options.late_joiners:
            for seed in options.seeds:
                overrides = {**shared, "rounds": ROUNDS, "join_rounds": f"{name}={JOIN_ROUND}", "seed": seed}
                if options.when_joining:
                    waiting[name, seed] = pool.submit(when_joining, options.preset, overrides, options.runs)
                else:
                    asked = (options.preset, overrides, options.starts, options.runs)
                    waiting[name, seed] = pool.submit(one_late_joiner, *asked)
        found = {key: future.result() for key, future in waiting.items()}
    if options.when_joining:
        show_when_joining(found, options.late_joiners, options.seeds)
        return
    console = Console(width=140)
    for metric in ("average", "local"):
        show(console, options, found, metric)
    show_heads(console, options, found)


def show(console: Console, options: argparse.Namespace, found: Mapping[Any, Any], metric: str) -> None:
    """Accuracy by start and round, and what the nearest head brings over each other start."""
    rounds = ["on joining", *(f"round {number}" for number in range(JOIN_ROUND + 1, ROUNDS + 1))]
    curves = {
        start: np.array(
            [
                [curve(found[name, seed]["starts"][start], name, metric) for seed in options.seeds]
                for name in options.late_joiners
            ]
        )  # (late joiners, seeds, rounds)
        for start in options.starts
    }
    for row, name in [*enumerate(options.late_joiners), (None, "mean of late joiners")]:
        table = cells.table(f"{name}: accuracy in percent, {metric} heads, seeds {options.seeds}", ("", *rounds))
        of = {start: values.mean(0) if row is None else values[row] for start, values in curves.items()}
        for start, values in of.items():
            table.add_row(start, *map(cells.spread, values.T))
        table.add_section()
        for start in options.against:
            table.add_row(f"{REFERENCE} - {start}", *map(cells.gain, (of[REFERENCE] - of[start]).T))
        console.print(table)


def show_heads(console: Console, options: argparse.Namespace, found: Mapping[Any, Any]) -> None:
    """Print how well the distance between mixtures knows which head is worth most on joining."""
    known = dict.fromkeys(other for values in found.values() for other in values["heads"])  # in order, once each
    table = cells.table(
        "on joining: distance (MW2) to each known client / accuracy of its head alone, in percent, mean over seeds",
        ("late joiner", *known, "nearest is best", "rank correlation"),
    )
    for name in options.late_joiners:
        each = [found[name, seed]["heads"] for seed in options.seeds]
        row = []
        for other in known:
            pairs = np.array([run[other] for run in each if other in run])
            row.append(f"{pairs[:, 0].mean():.2f} / {100 * pairs[:, 1].mean():.1f}" if len(pairs) else "")
        best = [min(run.values())[1] == max(worth for _, worth in run.values()) for run in each]
        ranks = [
            spearmanr(*zip(*((-far, worth) for far, worth in run.values()), strict=True)).statistic for run in each
        ]
        table.add_row(name, *row, f"{sum(best)} of {len(best)}", f"{np.mean(ranks):+.2f}")
    console.print(table)


if __name__ == "__main__":
    main()
