"""The worth of a frozen ImageNet backbone: PACS from one labeled style to the three others, with adapt-photos.

    FEDLAB_DATA=DATA python -m benchmarks.photos             # the full set at 64 pixels, enlarged to 128
    python -m benchmarks.photos --sources photo --seeds 0    # the part in the package, 32 pixels

Features are computed once on a machine, minutes of one core; each run is a matter of seconds then. Needs the extra
``backbones``. Every run stays in ``--runs``; a run that is already there is read, not repeated.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from rich.console import Console

from benchmarks import cells
from fedlab.config.presets import parse_overrides
from fedlab.config.sections import Value
from fedlab.data.images.pacs import PACS

PRESET = "adapt-photos"
ROWS: Mapping[str, tuple[str, str]] = {  # what the table shows: strategy and metric
    "source only": ("source_only", "accuracy"),
    "own statistics": ("adabn", "accuracy"),
    "DualAdapt, global head": ("dualadapt", "accuracy_global"),
    "DualAdapt, both heads": ("dualadapt", "accuracy_average"),
}


def main() -> None:
    """Run every strategy with every source and print one table a source."""
    parser = cells.parser(__doc__)
    parser.set_defaults(seeds=[0, 1, 2])
    parser.add_argument("--sources", nargs="+", choices=PACS.domains, default=["photo", "art_painting"])
    options = parser.parse_args()
    shared = {"threads": cells.threads(options.processes), "device": "cpu", **parse_overrides(options.overrides)}
    console = Console(width=120)
    with cells.workers(options.processes) as pool:
        for source in options.sources:
            submitted = {
                strategy: [
                    pool.submit(cells.one_run, PRESET, overrides_of(shared, strategy, source, seed), options.runs)
                    for seed in options.seeds
                ]
                for strategy in dict.fromkeys(strategy for strategy, _ in ROWS.values())
            }
            finals = {name: [future.result().final() for future in futures] for name, futures in submitted.items()}
            targets = [domain for domain in PACS.domains if domain != source]
            title = f"accuracy in percent from {source}, mean ± standard deviation over seeds {options.seeds}"
            table = cells.table(title, ("", *targets, "mean"))
            for row, (strategy, metric) in ROWS.items():
                values = 100 * np.array([[run[target][metric] for target in targets] for run in finals[strategy]])
                table.add_row(row, *map(cells.spread, np.column_stack([values, values.mean(1)]).T))
            console.print(table)


def overrides_of(shared: Mapping[str, Value], strategy: str, source: str, seed: int) -> dict[str, Value]:
    """Options of one run; those of another strategy have no effect in it, and are left out."""
    own = {key: value for key, value in shared.items() if not key.startswith("dualadapt.") or strategy == "dualadapt"}
    return {**own, "strategy": strategy, "image_folder.source": source, "seed": seed}


if __name__ == "__main__":
    main()
