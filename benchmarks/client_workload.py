"""The learning problem of ``benchmarks.clients``: many small clients, whose data are rows of one pool of noise.

Each client has 50 images (3, 32, 32) and takes 5 steps of SGD on batches of 10 a round. The networks are a perceptron
of 197,322 weights, a convolutional network of 25,682, one of two weights for rounds in which nothing is computed, and a
perceptron of 86 weights whose "images" are 8 numbers: what such a client takes is what the host does for any client.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import cache

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from fedlab.config.data_options import DEFAULT_DATA, DataConfig
from fedlab.data.dataset import ArrayDataset, Batch
from fedlab.models.convnet import ConvNet
from fedlab.models.mlp import MLP
from fedlab.workload import WorkloadSpec
from fedlab.workloads.shards import numbered_names

CLASSES, POOL, TINY = 10, 5000, 8
EXAMPLES, BATCH, STEPS, RATE = 50, 10, 5, 0.05

NETWORKS: Mapping[str, Callable[[], nn.Module]] = {
    "mlp": lambda: MLP(CLASSES, 3 * 32 * 32, (64,)),
    "cnn": lambda: ConvNet(CLASSES, "group", 8),
    "empty": lambda: nn.Linear(1, 1),
    "tiny": lambda: MLP(CLASSES, TINY, (4,)),
}
_ROWS = torch.arange(POOL).view(-1, EXAMPLES).unbind()  # made once: three operations a client would be much of its time
TESTED: list[float] = []  # seconds of the CPU that this process had taken at each test of the global model


@cache
def pool(network: str = "mlp") -> ArrayDataset:
    """Return 5,000 images of noise (3, 32, 32) with labels, or what a network has in their place."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(POOL, *([TINY] if network == "tiny" else [3, 32, 32]), generator=generator)
    return ArrayDataset({"x": x, "y": torch.randint(CLASSES, (POOL,), generator=generator)})


def rows_of_client(client: int) -> Tensor:
    """Return the rows of the pool (50,) that a client has."""
    return _ROWS[client % len(_ROWS)]


@dataclass(frozen=True)
class ManyClients:
    """The workload's options and its four methods, see :class:`fedlab.workload.Workload`."""

    network: str = Field("mlp", description="mlp, cnn, empty or tiny")
    data_config: DataConfig = Field(DEFAULT_DATA, exclude=True)

    @property
    def clients(self) -> tuple[str, ...]:
        """Names of the clients."""
        return numbered_names("client", self.data_config.num_shards)

    def model(self) -> nn.Module:
        """Return a fresh network."""
        return NETWORKS[self.network]()

    def data(self, partition: int | None, split: str) -> ArrayDataset:
        """Return a client's 50 images; the server has the first 50."""
        return pool(self.network).select(rows_of_client(partition or 0))

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean cross-entropy, a scalar."""
        return cross_entropy(model(batch["x"]), batch["y"])

    def evaluate(self, model: nn.Module, data: ArrayDataset) -> dict[str, float]:
        """Return a constant, and note the time: tests are not measured here."""
        TESTED.append(time.process_time())
        return {"loss": 0.0}


SPEC = WorkloadSpec(ManyClients, name="many_clients")
