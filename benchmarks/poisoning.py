"""The harm that hostile clients do with updates that look valid, by strategy, attack and number of clients.

    python -m benchmarks.poisoning                               # half an hour on one core
    python -m benchmarks.poisoning rounds=9 --clients 4 --strategies dualadapt --attacks labels scaled
    python -m benchmarks.poisoning --seeds 101 102 --runs runs/fresh     # a run that is there is not repeated
    python -m benchmarks.poisoning --clients 10 --unequal                # clients with very different numbers of images

One client of four, or of ten, is hostile from the first round; the others are honest. Figures are the accuracy in
percent after the last round, the mean over the honest clients' test images: that of both heads together for DualAdapt,
whose clients have no labels, and that of the global model for the others, whose clients have. *honest* is the same run
without an attack. Everything is done twice: with ``server.agreement=off`` and ``limit``. The tables say how many points
an attack changes: mean and standard deviation over seeds, and the worst of them.

================  ====================================================================================================
attack            the hostile client's upload
================  ====================================================================================================
``labels``        trained on labels (DualAdapt: with a head) in which class c is class 9 - c
``examples``      the same, and it reports a billion examples
``doubled``       the same, and its change of the model times 2: both as much as the limits let pass
``scaled``        its change of the model times -20; of DualAdapt, its head times 20 with the classes reversed
``long``          DualAdapt: its head times 8 with the classes reversed, which the limit of norms lets pass
``reversed``      its change of the model times -1.5: the longest that no limit but that of lengths notices
``mixture``       DualAdapt: all weight on one component of the source's mixture with the smallest variances
``batches``       none: the client is honest and draws other batches, so that the figures show their own noise
================  ====================================================================================================
"""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path
from shutil import rmtree

import numpy as np
import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from pydantic.dataclasses import dataclass
from rich.console import Console

import fedlab
from benchmarks import cells
from fedlab import launch, registry
from fedlab.comm.tensors import tensor_record, tensors_of
from fedlab.comparison.cells import finished
from fedlab.comparison.grid import config_hash
from fedlab.config.presets import parse_overrides
from fedlab.config.sections import Value
from fedlab.data.dataset import ArrayDataset
from fedlab.runs.result import Result
from fedlab.strategies.protocol import ARRAYS, EXAMPLES, METRICS, ClientContext, StrategySpec
from fedlab.strategies.wrapped_workload import WrappedWorkload
from fedlab.workload import Workload

ATTACKS = ("honest", "labels", "examples", "doubled", "scaled", "long", "reversed", "mixture", "batches")
FLIPS = ("labels", "examples", "doubled")
OF_HEADS, OF_MODELS = (
    ("mixture", "long"),
    ("examples", "doubled", "reversed"),
)  # attacks on DualAdapt alone, on all others alone
PRESET = "dualadapt-digits-heads"
HOSTILE = 0  # partition
BILLION, FACTOR = 10**9, {"scaled": -20.0, "long": -8.0, "doubled": 2.0, "reversed": -1.5}
HEAD, MIXTURE = "head", "mixture"
PLAIN: Mapping[str, Value] = {
    "rounds": 3,
    "threads": 1,
    "engine": "inprocess",
    "server.pretrain_steps": 200,
    "server.steps": 24,
    "server.batch_size": 64,
    "client.steps": 25,
    "client.batch_size": 64,
    "data.max_examples": 400,
    "evaluate_every": 3,
    "min_clients": 1,
}
FEW: Mapping[str, Value] = {"digits.targets": "usps,mnist_m,optdigits,synthdigits"}
MANY: Mapping[str, Value] = {
    "digits.targets": "mnist_m,synthdigits",
    "data.clients_per_domain": 5,
}

UNEQUAL: Mapping[str, Value] = {"data.partition": "quantity", "data.alpha": 0.3}  # with several clients of a domain


@dataclass(frozen=True, config={"arbitrary_types_allowed": True})
class Flipped(WrappedWorkload):
    """A client's data in which class c is class 9 - c."""

    def data(self, partition: int | None, split: str) -> ArrayDataset:
        """Return the examples with their labels turned round."""
        found = self.inner.data(partition, split)
        return ArrayDataset({**found.columns, "y": 9 - found.columns["y"]}, found.transform)


@dataclass(frozen=True)
class Cell:
    """One run: what is attacked, and how."""

    clients: int
    strategy: str
    agreement: str
    attack: str
    seed: int


class Answers:
    """Answers of clients by what they were asked: cells of one seed ask the same in their first rounds."""

    def __init__(self) -> None:
        self.found: dict[object, RecordDict] = {}

    def get(self, key: object, message: Message, train: Callable[[], RecordDict]) -> RecordDict:
        """Return a copy of the answer to a message, which ``train`` makes if it is new."""
        key = key, digest(message.content)
        if key not in self.found:
            self.found[key] = train()
        return deepcopy(self.found[key])


def digest(content: RecordDict) -> bytes:
    """Return a hash of a message's arrays and entries."""
    found = hashlib.blake2b()
    for name, record in sorted(content.items()):
        found.update(name.encode())
        if isinstance(record, ArrayRecord):
            for key, tensor in tensors_of(record).items():
                found.update(key.encode() + tensor.contiguous().numpy().tobytes())
        else:
            found.update(repr(sorted(record.items())).encode())
    return found.digest()


def hostile(spec: StrategySpec, attack: str, answers: Answers) -> StrategySpec:
    """Return a strategy whose first client attacks."""

    def train(workload: Workload, message: Message, context: ClientContext) -> RecordDict:
        attacks = context.partition == HOSTILE and attack != "honest"
        labeled = "y" in workload.data(context.partition, "train").columns
        flips = attacks and labeled and attack in FLIPS
        seen: Workload = Flipped(workload) if flips else workload
        draws = attacks and attack == "batches"
        key = context.partition, flips, draws

        def answer() -> RecordDict:
            if draws:
                torch.rand(1)  # the stream goes on from one number later
            return spec.client.train(seen, message, context)

        content = answers.get(key, message, answer)
        return forged(content, message, attack) if attacks else content

    return replace(spec, client=replace(spec.client, train=train, train_many=None))


def forged(content: RecordDict, message: Message, attack: str) -> RecordDict:
    """Return an honest client's upload after the attack."""
    if attack in FLIPS and attack != "labels":
        metrics = content[METRICS]
        assert isinstance(metrics, MetricRecord)
        metrics[EXAMPLES] = BILLION
    if HEAD in content and attack in ("labels", "scaled", "long"):
        head = tensors_of(content[HEAD])  # type: ignore[arg-type]
        factor = abs(FACTOR.get(attack, 1.0))
        content[HEAD] = tensor_record({name: factor * tensor.flip(0) for name, tensor in head.items()})
    if MIXTURE in content and attack == "mixture":
        arrays = tensors_of(content[MIXTURE])  # type: ignore[arg-type]
        weights = torch.full_like(arrays["log_weights"], -50.0)
        weights[0] = 0.0
        small = torch.full_like(arrays["variances"], float(arrays["variances"].min()))
        content[MIXTURE] = tensor_record({**arrays, "log_weights": weights.log_softmax(0), "variances": small})
    if ARRAYS in content and attack in FACTOR:
        sent, own = (tensors_of(part[ARRAYS]) for part in (message.content, content))  # type: ignore[arg-type]
        content[ARRAYS] = tensor_record({name: scaled(name, own[name], sent[name], FACTOR[attack]) for name in own})
    return content


def scaled(name: str, own: torch.Tensor, sent: torch.Tensor, factor: float) -> torch.Tensor:
    """Return an array whose change from what was sent is multiplied; statistics and counters as they are."""
    if not own.is_floating_point() or "running" in name:
        return own
    return sent + factor * (own - sent)


def options_of(cell: Cell, options: Mapping[str, Value]) -> dict[str, Value]:
    """Return the options of a run."""
    spec = registry.find("strategy", cell.strategy).spec
    given: dict[str, Value] = {**PLAIN, **(FEW if cell.clients == 4 else MANY), **options, "seed": cell.seed}
    given |= {"server.agreement": cell.agreement, "digits.client_labels": spec.needs_client_labels}
    if cell.strategy == "dualadapt":
        given["dualadapt.source_only_twin"] = False
    return given


def examples(cell: Cell, options: Mapping[str, Value]) -> list[int]:
    """Return the clients' numbers of training images, the hostile client's first."""
    config = launch.resolve_config(PRESET, {**options_of(cell, options), "strategy": cell.strategy})
    return [len(config.workload.data(partition, "train")) for partition in range(cell.clients)]


def accuracy(cell: Cell, options: Mapping[str, Value], runs: Path, answers: Answers) -> float:
    """Return the percent of their test images that the honest clients classify after the last round."""
    spec, given = registry.find("strategy", cell.strategy).spec, options_of(cell, options)
    name = config_hash([asdict(cell), given])
    path = runs / f"{name}-{cell.seed}"
    if not finished(path):
        rmtree(path, ignore_errors=True)
        fedlab.run(
            PRESET,
            strategy=replace(hostile(spec, cell.attack, answers), name=cell.strategy),
            runs=runs,
            overrides={**given, "name": name, "checkpoint.pretrain_cache": str(runs / "pretrained")},
        )
    clients = launch.resolve_config(PRESET, {**given, "strategy": cell.strategy}).workload.clients
    return percent_of_honest(Result.read(path).final(), clients)


def percent_of_honest(final: Mapping[str, Mapping[str, float]], clients: Sequence[str]) -> float:
    """Return the mean accuracy of the honest clients in percent; the hostile one may have been left out before the end.

    Raises
    ------
    KeyError
        When an honest client was not tested: its loss would not be counted.
    """
    honest = [final[client] for number, client in enumerate(clients) if number != HOSTILE]
    metric = "accuracy_average" if "accuracy_average" in honest[0] else "accuracy"
    return 100 * float(np.mean([metrics[metric] for metrics in honest]))


def shown(found: Mapping[tuple[str, str], Sequence[float]], agreement: str, attack: str) -> str:
    """Return accuracies of runs by agreement and attack as a cell: of an attack, what it changes of the honest runs."""
    figures, honest = found.get((agreement, attack)), found.get((agreement, "honest"))
    if not figures:
        return ""
    if attack == "honest" or honest is None:
        return cells.spread(figures)
    return cells.gain(np.subtract(figures, honest))


def main() -> None:
    """Measure what is asked for and print a table for each number of clients."""
    parser = cells.parser(__doc__, runs="runs/poisoning")
    parser.set_defaults(seeds=[0])
    parser.add_argument("--strategies", nargs="+", default=["dualadapt", "fedavg", "scaffold"])
    parser.add_argument("--attacks", nargs="+", default=list(ATTACKS), choices=ATTACKS)
    parser.add_argument("--clients", type=int, nargs="+", default=[4, 10], choices=[4, 10])
    parser.add_argument("--agreement", nargs="+", default=["off", "limit"], choices=["off", "limit"])
    parser.add_argument("--unequal", action="store_true", help="some of ten clients have most of the images")
    options = parser.parse_args()
    if options.unequal and options.clients != [10]:
        parser.error("--unequal divides a domain's images among its clients, so it goes with --clients 10 alone")
    console, given = Console(width=120), {**(UNEQUAL if options.unequal else {}), **parse_overrides(options.overrides)}
    for clients in options.clients:
        table = cells.table(f"one hostile client of {clients}", ("strategy", "agreement", *options.attacks))
        for strategy in options.strategies:
            without = OF_MODELS if strategy == "dualadapt" else OF_HEADS
            attacks = [attack for attack in options.attacks if attack not in without]
            found: dict[tuple[str, str], list[float]] = {}
            for seed in options.seeds:
                answers = Answers()
                honest = Cell(clients, strategy, options.agreement[0], "honest", seed)
                numbers = ", ".join(map(str, examples(honest, given)))
                console.print(strategy, clients, seed, "training images by client, the hostile one first:", numbers)
                for agreement, attack in itertools.product(options.agreement, attacks):
                    begin = time.process_time()
                    cell = Cell(clients, strategy, agreement, attack, seed)
                    figure = accuracy(cell, given, options.runs, answers)
                    found.setdefault((agreement, attack), []).append(figure)
                    spent = time.process_time() - begin
                    console.print(strategy, clients, agreement, attack, seed, f"{figure:.1f}", f"({spent:.0f} CPU s)")
            for agreement in options.agreement:
                table.add_row(strategy, agreement, *(shown(found, agreement, attack) for attack in options.attacks))
        console.print(table)


if __name__ == "__main__":
    main()
