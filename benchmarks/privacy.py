"""What local privacy costs: DualAdapt's accuracy by epsilon and by the number of examples that a client has.

    python -m benchmarks.privacy                                        # 12 runs of a minute or two, resumable
    python -m benchmarks.privacy --seeds 0 1 2 --examples 300 --epsilon 8

Set FEDLAB_DATA to a folder of whole sets, or no client has 6,000 examples. Epsilon is that of every example of a client
over all rounds, at delta 1e-5. *off* is DualAdapt as it is; *none* builds head and mixture from class moments without
noise to speak of, so that it shows what the detour costs by itself. The accuracy is that of both heads together
(``average``), mean over the clients' test data after the last round; *global head* is that of F_g alone, in the last
column of examples.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from concurrent.futures import Future
from itertools import product

from pydantic import Field
from pydantic.dataclasses import dataclass
from rich.console import Console

from benchmarks import cells
from fedlab.config.presets import parse_overrides
from fedlab.config.sections import Value
from fedlab.data.dataset import ArrayDataset
from fedlab.runs.result import Result
from fedlab.workload import WorkloadSpec
from fedlab.workloads.digits import SPEC as DIGITS
from fedlab.workloads.digits import Digits

PRESET = "dualadapt-digits"
NOISELESS = 1e-6  # a noise multiplier without effect
EPSILONS = ("off", "8", "3", "1")


@dataclass(frozen=True)
class FewExamples(Digits):
    """Digits whose clients have at most so many training examples."""

    client_examples: int = Field(1000, ge=2, description="training examples of a client, at most")

    def data(self, partition: int | None, split: str) -> ArrayDataset:
        """Return the examples, spaced over a client's whole training set."""
        examples = super().data(partition, split)
        return examples.subsample(self.client_examples) if partition is not None and split == "train" else examples


SPEC = WorkloadSpec(FewExamples, primary_metric=DIGITS.primary_metric, metrics=DIGITS.metrics, name="few_examples")


def options_of(epsilon: str) -> Mapping[str, Value]:
    """Options of one column."""
    if epsilon == "off":
        return {}
    how: Mapping[str, Value] = (
        {"dualadapt.noise_multiplier": NOISELESS} if epsilon == "none" else {"dp.max_epsilon": float(epsilon)}
    )
    return {"dualadapt.local_privacy": "moments", **how}


def accuracy(result: Result, predictor: str) -> float:
    """Percent, mean over clients after the last round."""
    return 100 * float(result.rounds[-1]["mean"][f"accuracy_{predictor}"])


def main() -> None:
    """Run what is asked for and print the table."""
    parser = cells.parser(__doc__)
    parser.set_defaults(seeds=[0])
    parser.add_argument("--examples", type=int, nargs="+", default=[300, 1000, 6000])
    parser.add_argument("--epsilon", nargs="+", default=list(EPSILONS), help="off, none, or numbers")
    options: argparse.Namespace = parser.parse_args()
    shared: dict[str, Value] = {
        "workload": "benchmarks.privacy:SPEC",
        "few_examples.augment": "wide",
        "threads": cells.threads(options.processes),
        "rounds": 3,
        "dualadapt.source_only_twin": False,
        **parse_overrides(options.overrides),
    }
    waiting: dict[tuple[str, int, int], Future[Result]] = {}
    with cells.workers(options.processes) as pool:
        for seed, epsilon, count in product(options.seeds, options.epsilon, options.examples):
            overrides = {**shared, **options_of(epsilon), "few_examples.client_examples": count, "seed": seed}
            waiting[epsilon, count, seed] = pool.submit(cells.one_run, PRESET, overrides, options.runs)
        found = {key: future.result() for key, future in waiting.items()}
    table = cells.table(
        f"accuracy in percent after {shared['rounds']} rounds, seeds {options.seeds}",
        ("epsilon", *(f"{count:,} examples" for count in options.examples), "global head"),
    )
    for epsilon in options.epsilon:
        by_count = [[found[epsilon, count, seed] for seed in options.seeds] for count in options.examples]
        figures = [cells.spread([accuracy(result, "average") for result in results]) for results in by_count]
        last = [accuracy(result, "global") for result in by_count[-1]]
        table.add_row(epsilon, *figures, cells.spread(last))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
