"""Clients a second of local training alone, one by one and so many at once.

50 clients with 50 images of 3 x 32 x 32 each take 5 steps on batches of 10: FedAvg of a small MLP and a small CNN, and
DualAdapt's heads and mixtures on the MLP's features, these also with its 200 steps. Messages are made before, and
replies are records; there is no server, no engine, no evaluation.

python -m benchmarks.vectorized
python -m benchmarks.vectorized --threads 2 --at-once 10,50
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedlab import registry
from fedlab.config.schema import Config
from fedlab.data.dataset import ArrayDataset, Batch
from fedlab.engines.flower_internals import task_identity
from fedlab.models import em
from fedlab.models.feature_classifier import FeatureClassifier, features_of
from fedlab.seeds import deterministic, seeded
from fedlab.strategies.dualadapt.mixtures import upload
from fedlab.strategies.protocol import ClientContext, ClientFunctions, tensor_record

CLIENTS, EXAMPLES, STEPS, BATCH = 50, 50, 5, 10


def mlp() -> nn.Module:
    """Return two linear layers, 197,322 weights."""
    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 64), nn.ReLU(), nn.Linear(64, 10))


def two_parts() -> nn.Module:
    """Return the same layers as features and a head of 650 weights."""
    return FeatureClassifier(nn.Sequential(nn.Flatten(), nn.Linear(3072, 64), nn.ReLU()), nn.Linear(64, 10))


def cnn() -> nn.Module:
    """Return two strided convolutions and a linear layer, 25,578 weights."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(2048, 10)
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {"mlp": mlp, "cnn": cnn, "two parts": two_parts}


@dataclass(frozen=True)
class Case:
    """A row of the table: a strategy, a key of ``NETWORKS`` and a number of local steps."""

    strategy: str
    network: str
    steps: int = STEPS


CASES = {
    "fedavg, MLP": Case("fedavg", "mlp"),
    "fedavg, CNN": Case("fedavg", "cnn"),
    "dualadapt, 5 steps": Case("dualadapt", "two parts"),
    "dualadapt, 200 steps": Case("dualadapt", "two parts", 200),
}


@cache
def images(partition: int) -> ArrayDataset:
    """Return a client's images and labels, noise that is the same in each run."""
    generator = torch.Generator().manual_seed(partition)
    x = torch.randn(EXAMPLES, 3, 32, 32, generator=generator)
    return ArrayDataset({"x": x, "y": torch.randint(10, (EXAMPLES,), generator=generator)})


@dataclass(frozen=True)
class Work:
    """A workload with many small clients."""

    network: str = "mlp"
    num_clients: int = CLIENTS

    @property
    def clients(self) -> tuple[str, ...]:
        """Names of the clients."""
        return tuple(f"client-{number}" for number in range(self.num_clients))

    def model(self) -> nn.Module:
        """Return a fresh network."""
        return NETWORKS[self.network]()

    def data(self, partition: int | None, split: str) -> ArrayDataset:
        """Return a client's examples, the same for training and test."""
        return images(partition or 0)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean cross-entropy, a scalar."""
        return cross_entropy(model(batch["x"]), batch["y"])

    def evaluate(self, model: nn.Module, data: ArrayDataset) -> dict[str, float]:
        """Return nothing: only training is measured."""
        return {}


def cohort(case: Case, clients: int = CLIENTS, **options: object) -> tuple[Config, list[Message], list[ClientContext]]:
    """Return a configuration, and a training message and a context for each client."""
    table = {"workload": "benchmarks.vectorized:Work", "strategy": case.strategy, "device": "cpu"}
    local = {"client.steps": case.steps, "client.batch_size": BATCH, "client.learning_rate": 0.05}
    work = {"work.network": case.network, "work.num_clients": clients}
    config = registry.load_config({**table, **local, **work, **options})
    with seeded("a first model"):
        model = config.workload.model()
        content = RecordDict({"arrays": tensor_record(model.state_dict()), "config": ConfigRecord({"server-round": 1})})
        if case.strategy == "dualadapt":
            content["mixture"] = source_mixture(model)
    with task_identity(1, 1):
        messages = [Message(content, dst_node_id=1, message_type=MessageType.TRAIN) for _ in range(clients)]
    return config, messages, [ClientContext(partition, config) for partition in range(clients)]


def source_mixture(model: nn.Module) -> ArrayRecord:
    """Return a mixture of ten components of a model's features of some images, as the server sends it."""
    z = features_of(model)(torch.cat([images(CLIENTS + number)[:]["x"] for number in range(10)])).detach()
    return upload(em.fit(z, 10, steps=15, variance_floor=1e-2), z)


def clients_a_second(case: Case, at_once: int, clients: int = CLIENTS, repeats: int = 3, **options: object) -> float:
    """Return the best of some repeats; ``at_once`` 0 is the loop over clients.

    Parameters
    ----------
    options
        Options of the run, for instance ``device="cuda"`` or ``threads=2``.
    """
    config, messages, contexts = cohort(case, clients, **options)
    functions: ClientFunctions = config.plugins["strategy"].spec.client

    def train() -> None:
        if at_once and functions.train_many:
            for start in range(0, clients, at_once):
                chosen = slice(start, start + at_once)
                functions.train_many(config.workload, messages[chosen], contexts[chosen])
            return
        for message, context in zip(messages, contexts, strict=True):
            with seeded(config.run.seed, "train", 1, context.partition):
                functions.train(config.workload, message, context)

    with deterministic(config.run.threads):
        return clients / min(_seconds(train) for _ in range(repeats + 1))  # the first one warms up


def _seconds(function: Callable[[], None]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def numbers(text: str) -> Sequence[int]:
    """Return comma-separated integers."""
    return [int(part) for part in text.split(",")]


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=CLIENTS)
    parser.add_argument("--at-once", type=numbers, default=[4, 10, 25, 50])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    table = Table(title=f"clients a second, {given.clients} clients, {given.threads} threads, {given.device}")
    for head in ("training", "one by one", *(f"{count} at once" for count in given.at_once)):
        table.add_column(head, justify="left" if head == "training" else "right")
    for name, case in CASES.items():
        rates = [
            clients_a_second(case, count, given.clients, threads=given.threads, device=given.device)
            for count in (0, *given.at_once)
        ]
        table.add_row(name, *(f"{rate:.0f}" for rate in rates))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
