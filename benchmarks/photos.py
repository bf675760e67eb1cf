"""The worth of an ImageNet backbone: PACS from one labeled style to the three others, with adapt-photos.

    FEDLAB_DATA=DATA python -m benchmarks.photos                          # the full set at 64 pixels, enlarged to 128
    FEDLAB_DATA=DATA python -m benchmarks.photos --rows bottleneck --seeds 0 1 2 3 4
    python -m benchmarks.photos --sources photo --seeds 0                 # the part in the package, 32 pixels

``--rows heads`` trains a linear head on frozen features; ``--rows bottleneck`` has a layer between the two, which
clients can train when they adapt. The supervised bound is the model fine-tuned on one target's own labels, for 240
steps. Features are computed once on a machine, minutes of one core; each run is a matter of seconds then. Needs the
extra ``backbones``. Every run stays in ``--runs``; a run that is already there is read, not repeated.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console

from benchmarks import cells
from fedlab.config.presets import parse_overrides
from fedlab.config.sections import Value
from fedlab.data.images.pacs import PACS
from fedlab.runs.result import Result

PRESET = "adapt-photos"


@dataclass(frozen=True)
class Row:
    """A line of a table: its strategy, the metric that it is judged by, and the options that differ."""

    strategy: str
    metric: str = "accuracy"
    options: Mapping[str, Value] = field(default_factory=dict)
    one_target: bool = False  # a run for each target


WIDTH: Mapping[str, Value] = {"image_folder.bottleneck": 256}
LABELS: Mapping[str, Value] = {"image_folder.client_labels": True, "rounds": 5, "client.steps": 48}
ROWS: Mapping[str, Mapping[str, Row]] = {
    "heads": {
        "source only": Row("source_only"),
        "own statistics": Row("adabn"),
        "DualAdapt, global head": Row("dualadapt", "accuracy_global"),
        "DualAdapt, both heads": Row("dualadapt", "accuracy_average"),
    },
    "bottleneck": {
        "source only": Row("source_only", options=WIDTH),
        "own statistics": Row("adabn", options=WIDTH),
        "DualAdapt, both heads": Row("dualadapt", "accuracy_average", WIDTH),
        "SHOT": Row("shot", "accuracy_personal", WIDTH),
        "AdaContrast": Row("adacontrast", "accuracy_personal", WIDTH),
        "source_free": Row("source_free", "accuracy_personal", WIDTH),
        "source_free without its guard": Row("source_free", "accuracy_personal", {**WIDTH, "source_free.guard": False}),
        "supervised bound": Row("fedavg", options={**WIDTH, **LABELS, "client.learning_rate": 0.05}, one_target=True),
    },
}


def main() -> None:
    """Run every strategy with every source and print one table a source."""
    parser = cells.parser(__doc__)
    parser.set_defaults(seeds=[0, 1, 2])
    parser.add_argument("--sources", nargs="+", choices=PACS.domains, default=["photo", "art_painting"])
    parser.add_argument("--rows", choices=ROWS, default="heads", help="what is trained above the backbone")
    options = parser.parse_args()
    shared = {"threads": cells.threads(options.processes), "device": "cpu", **parse_overrides(options.overrides)}
    console, rows = Console(width=120), ROWS[options.rows]
    with cells.workers(options.processes) as pool:
        for source in options.sources:
            targets = [domain for domain in PACS.domains if domain != source]
            common = {**shared, "image_folder.source": source}
            submitted = {
                name: [submit(pool, row, {**common, "seed": seed}, targets, options.runs) for seed in options.seeds]
                for name, row in rows.items()
            }
            title = f"accuracy in percent from {source}, mean ± standard deviation over seeds {options.seeds}"
            table = cells.table(title, ("", *targets, "mean"))
            for name, row in rows.items():
                found = [final(futures) for futures in submitted[name]]
                values = 100 * np.array([[run[target][row.metric] for target in targets] for run in found])
                table.add_row(name, *map(cells.spread, np.column_stack([values, values.mean(1)]).T))
            console.print(table)


def submit(
    pool: ProcessPoolExecutor, row: Row, shared: Mapping[str, Value], targets: list[str], runs: Path
) -> list[Future[Result]]:
    """Start the runs of one row and seed; options of another strategy have no effect in it, and are left out."""
    own = {
        key: value for key, value in shared.items() if not key.startswith("dualadapt.") or row.strategy == "dualadapt"
    }
    overrides = {**own, "strategy": row.strategy, **row.options}
    alone: list[Mapping[str, Value]] = [{"image_folder.targets": target} for target in targets]
    return [
        pool.submit(cells.one_run, PRESET, {**overrides, **one}, runs) for one in (alone if row.one_target else [{}])
    ]


def final(futures: list[Future[Result]]) -> dict[str, dict[str, float]]:
    """Last metrics by client, of all runs of a row and seed."""
    return {client: metrics for future in futures for client, metrics in future.result().final().items()}


if __name__ == "__main__":
    main()
