"""A workload around another one, for strategies that train more than the workload's own model."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from fedlab.data.dataset import ArrayDataset, Batch
from fedlab.workload import Workload, loss_columns


@dataclass(frozen=True)
class WrappedWorkload:
    """Delegates every method to ``inner``; a subclass overrides what its extra parts change."""

    inner: Workload

    @property
    def clients(self) -> tuple[str, ...]:
        """Names of the client partitions."""
        return self.inner.clients

    @property
    def loss_columns(self) -> tuple[str, ...]:
        """Columns that the loss reads."""
        return loss_columns(self.inner)

    def model(self) -> nn.Module:
        """Return a fresh model, with weights from torch's current random stream."""
        return self.inner.model()

    def data(self, partition: int | None, split: str) -> ArrayDataset:
        """Return the examples of one client, or of the server for ``None``."""
        return self.inner.data(partition, split)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the scalar training loss of one batch."""
        return self.inner.loss(model, batch)

    def evaluate(self, model: nn.Module, data: ArrayDataset) -> dict[str, float]:
        """Return the metrics of a model on a data set."""
        return self.inner.evaluate(model, data)
