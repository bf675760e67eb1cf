"""Clients a second of local training alone, one by one and so many at once, for a small MLP and a small CNN.

50 clients with 50 images of 3 x 32 x 32 each take 5 SGD steps on batches of 10. Messages are made before, and replies
are records; there is no server, no engine, no evaluation.

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
from fedlab.seeds import deterministic, seeded
from fedlab.strategies.protocol import ClientContext, ClientFunctions

CLIENTS, EXAMPLES, STEPS, BATCH = 50, 50, 5, 10


def mlp() -> nn.Module:
    """Return two linear layers, 197,322 weights."""
    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 64), nn.ReLU(), nn.Linear(64, 10))


def cnn() -> nn.Module:
    """Return two strided convolutions and a linear layer, 25,578 weights."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(2048, 10)
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {"mlp": mlp, "cnn": cnn}


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


def cohort(
    network: str, clients: int = CLIENTS, **options: object
) -> tuple[Config, list[Message], list[ClientContext]]:
    """Return a configuration of FedAvg, and a training message and a context for each client."""
    table = {"workload": "benchmarks.vectorized:Work", "strategy": "fedavg", "device": "cpu", "work.network": network}
    local = {"client.steps": STEPS, "client.batch_size": BATCH, "client.learning_rate": 0.05}
    config = registry.load_config({**table, **local, "work.num_clients": clients, **options})  # type: ignore[dict-item]
    with seeded("a first model"):
        arrays = ArrayRecord(config.workload.model().state_dict())
    content = RecordDict({"arrays": arrays, "config": ConfigRecord({"server-round": 1})})
    with task_identity(1, 1):
        messages = [Message(content, dst_node_id=1, message_type=MessageType.TRAIN) for _ in range(clients)]
    return config, messages, [ClientContext(partition, config) for partition in range(clients)]


def clients_a_second(network: str, at_once: int, clients: int = CLIENTS, repeats: int = 3, **options: object) -> float:
    """Return the best of some repeats; ``at_once`` 0 is the loop over clients.

    Parameters
    ----------
    network
        A key of ``NETWORKS``.
    options
        Options of the run, for instance ``device="cuda"`` or ``threads=2``.
    """
    config, messages, contexts = cohort(network, clients, **options)
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
    for head in ("network", "one by one", *(f"{count} at once" for count in given.at_once)):
        table.add_column(head, justify="left" if head == "network" else "right")
    for network in NETWORKS:
        rates = [
            clients_a_second(network, count, given.clients, threads=given.threads, device=given.device)
            for count in (0, *given.at_once)
        ]
        table.add_row(network, *(f"{rate:.0f}" for rate in rates))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
