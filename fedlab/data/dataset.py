"""In-memory data sets: named tensors of equal length, indexed by a whole batch at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor
from torch.utils.data import Dataset

Batch = Mapping[str, Tensor]


class ArrayDataset(Dataset[Batch]):
    """A data set of named columns; ``dataset[indices]`` gives one batch without a loop over examples.

    Parameters
    ----------
    columns
        Named tensors, each of shape (examples, ...), all with the same number of rows.
    transform
        Applied to each batch when it is read, for instance to turn stored bytes into floats.

    Raises
    ------
    ValueError
        When a column has another length than the first, or when there is no column.
    """

    def __init__(self, columns: Batch, transform: Callable[[Batch], Batch] | None = None) -> None:
        lengths = {name: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"columns of one dataset need one length, got {lengths}")
        self.columns = dict(columns)
        self.transform = transform
        self._length = next(iter(lengths.values()))

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int | slice | Tensor) -> Batch:
        batch = {name: column[index] for name, column in self.columns.items()}
        return self.transform(batch) if self.transform else batch

    def batches(self, size: int) -> Iterator[Batch]:
        """Yield all examples once, in order, ``size`` at a time; the last batch may be smaller."""
        for start in range(0, len(self), size):
            yield self[start : start + size]

    def subsample(self, count: int) -> ArrayDataset:
        """Return at most ``count`` examples at equal distances, whatever the order of the whole set."""
        if count >= len(self):
            return self
        return self.select(torch.linspace(0, len(self) - 1, count).long())

    def select(self, rows: Tensor | slice) -> ArrayDataset:
        """Return the examples of rows, indices (rows,) or a slice, as a data set with the same transform."""
        return ArrayDataset({name: column[rows] for name, column in self.columns.items()}, self.transform)

    def sample_batch(self, size: int) -> Batch:
        """Return ``size`` examples drawn uniformly with replacement from torch's current random stream."""
        return self[torch.randint(len(self), (size,))]
