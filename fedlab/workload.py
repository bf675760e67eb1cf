"""The protocol between what is learned and how it is learned together."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from fedlab.data.examples import Batch, Examples


@runtime_checkable
class Workload(Protocol):
    """One learning problem: four methods and the names of its clients. A workload never knows that it is federated."""

    @property
    def clients(self) -> tuple[str, ...]:
        """Names of the client partitions, in order; partition ``i`` belongs to ``clients[i]``."""
        ...

    def model(self) -> nn.Module:
        """A fresh model, with weights from torch's current random stream."""
        ...

    def data(self, partition: int | None, split: str) -> Examples:
        """Examples of one client, or of the server for ``None``; ``split`` is "train" or "test".

        Raises
        ------
        DataError
            When the data is missing or damaged, or there is no such partition.
        """
        ...

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Scalar training loss of one batch."""
        ...

    def evaluate(self, model: nn.Module, data: Examples) -> dict[str, float]:
        """Metrics of a model on a data set, all plain floats."""
        ...


@runtime_checkable
class KnowsLabels(Protocol):
    """A simulation that knows the classes of its clients' training examples, also where clients do not."""

    def labels(self, partition: int) -> Tensor | None:
        """Integers (examples,) of one client's training part, or None where nobody knows them.

        For the table of the split only: no strategy may train on them.
        """
        ...
