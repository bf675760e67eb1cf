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
class Scored(Workload, Protocol):
    """A workload whose model is worth something beside anybody's data, as a generative one's samples are."""

    def score(self, model: nn.Module) -> dict[str, float]:
        """Metrics of the global model alone, all plain floats; the server takes them once a round."""
        ...


def loss_columns(workload: Workload) -> tuple[str, ...]:
    """Columns that a workload's loss reads: its ``loss_columns``, or inputs and labels where it does not say."""
    return tuple(getattr(workload, "loss_columns", ("x", "y")))


def lacking(workload: Workload, data: Examples) -> list[str]:
    """Columns of the workload's loss that some data does not have, as "y" where it takes labels and there are none."""
    return [name for name in loss_columns(workload) if name not in data.columns]
