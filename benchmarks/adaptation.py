"""Does it adapt? DualAdapt alone and the main job on the embedded digits, between source only and targets' own labels.

    python -m benchmarks.adaptation                      # seeds 0 to 4
    python -m benchmarks.adaptation rounds=3 --seeds 0 --no-bound

What an ingredient is worth: `fedlab compare dualadapt-digits-heads --strategies dualadapt,dualadapt_no_mixup,...`.

Every run stays in ``--runs``; a run that is already there is read, not repeated, and one that was killed is resumed.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from concurrent.futures import Future

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import cells
from fedlab.config.presets import parse_overrides
from fedlab.config.sections import Value
from fedlab.runs.formatting import MISSING
from fedlab.runs.result import Result

# The bound of a target: the pre-trained model fine-tuned on that target's own labels, alone, as many steps as a server
# of the main job takes.
BOUND = "oracle-digits"
BOUND_OVERRIDES: Mapping[str, Value] = {"rounds": 5, "client.steps": 48}

Scores = dict[str, dict[str, float]]  # client -> metric -> value


def percent(scores: list[Scores], metric: str) -> np.ndarray:
    """Values (seeds, clients + 1) of a metric; the last column is the mean over clients."""
    found = [{client: metrics[metric] for client, metrics in run.items()} for run in scores]
    return cells.by_client(found, list(max(scores, key=len)))


def row(table: Table, title: str, scores: list[Scores], metric: str) -> None:
    """One line of mean and standard deviation over seeds, in percent."""
    table.add_row(title, *map(cells.spread, percent(scores, metric).T))


def arguments() -> argparse.Namespace:
    """Return what was asked for."""
    parser = cells.parser(__doc__)
    parser.add_argument("--bound", action=argparse.BooleanOptionalAction, default=True, help="the supervised bound")
    return parser.parse_args()


def main() -> None:
    """Run what is asked for and print the tables."""
    options = arguments()
    shared = {"threads": cells.threads(options.processes), **parse_overrides(options.overrides)}
    alone = {key: value for key, value in shared.items() if not key.startswith("source_free.")}
    plain = {key: value for key, value in alone.items() if not key.startswith("dualadapt.")}

    with cells.workers(options.processes) as pool:

        def submit(preset: str, overrides: Mapping[str, Value]) -> list[Future[Result]]:
            """A run for each seed."""
            return [
                pool.submit(cells.one_run, preset, {**overrides, "seed": seed}, options.runs) for seed in options.seeds
            ]

        def scores(futures: list[Future[Result]]) -> list[Scores]:
            return [future.result().final() for future in futures]

        heads, main_job = submit("dualadapt-digits-heads", alone), submit("dualadapt-digits", shared)
        runs = scores(heads)
        alone = [
            submit(BOUND, {**plain, **BOUND_OVERRIDES, "digits.targets": target})
            for target in (runs[0] if options.bound else ())
        ]
        personal = scores(main_job)
        bound = [
            dict(pair for part in parts for pair in part.items()) for parts in zip(*map(scores, alone), strict=True)
        ]

    columns = ("", *runs[0], "mean")
    table = cells.table(f"accuracy in percent, mean ± standard deviation over seeds {options.seeds}", columns)
    for metric in ("source_only", "global", "local", "average", "last"):
        title = "source only" if metric == "source_only" else f"DualAdapt, {metric}"
        row(table, title, runs, f"accuracy_{metric}")
    row(table, "dualadapt-digits, personal", personal, "accuracy_personal")
    if options.bound:
        row(table, "supervised bound", bound, "accuracy")
    source_only = percent(runs, "accuracy_source_only")
    for title, found in (
        ("paired gain of the average", percent(runs, "accuracy_average")),
        ("paired gain, personal", percent(personal, "accuracy_personal")),
    ):
        table.add_row(title, *map(cells.gain, (found - source_only).T))
    if options.bound:
        gap = percent(bound, "accuracy") - source_only
        gains = percent(personal, "accuracy_personal") - source_only
        shares = [cells.share_of_gap(*columns) for columns in zip(gains.T, gap.T, strict=True)]
        table.add_row("share of the gap, personal", *shares)
        if MISSING in shares:
            why = "one seed has no interval" if len(options.seeds) == 1 else "its 95 % interval is not above 0"
            table.caption = f"{MISSING}: the gap from source only to the supervised bound may be none ({why})"
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
