"""In-memory data sets: named tensors of equal length, indexed by a whole batch at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from copy import copy

import torch
from torch import Tensor
from torch.utils.data import Dataset

from fedlab.data.device_copies import copy_to
from fedlab.data.pinned import send

Batch = Mapping[str, Tensor]


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Return a batch on a device."""
    return {name: send(column, device) for name, column in batch.items()}


class ArrayDataset(Dataset[Batch]):
    """A data set of named columns; ``dataset[indices]`` gives one batch without a loop over examples.

    Parameters
    ----------
    columns
        Named tensors, each of shape (examples, ...), all with the same number of rows.
    transform
        Applied to each batch when it is read, for instance to turn stored bytes into floats. It computes on the device
        of the columns, and draws random numbers on the CPU.
    host_only
        The transform reads files, so that the columns cannot live on a GPU.

    Attributes
    ----------
    columns
        The named tensors; of selected rows they are gathered when a column is read.

    Raises
    ------
    ValueError
        When a column has another length than the first, or when there is no column.
    """

    def __init__(
        self, columns: Batch, transform: Callable[[Batch], Batch] | None = None, host_only: bool = False
    ) -> None:
        lengths = columns.lengths() if isinstance(columns, SelectedRows) else {n: len(c) for n, c in columns.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"columns of one dataset need one length, got {lengths}")
        self.columns = columns if isinstance(columns, SelectedRows) else dict(columns)
        self.transform, self.host_only = transform, host_only
        self._length = next(iter(lengths.values()))

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int | slice | Tensor) -> Batch:
        batch = self.stored_at(index)
        return self.transform(batch) if self.transform else batch

    def stored_at(self, index: int | slice | Tensor) -> Batch:
        """Return columns (examples, ...) of an example or several as they are stored, without the transform."""
        if isinstance(self.columns, SelectedRows):
            return self.columns.batch(index)
        return {name: column[_moved(index, column.device)] for name, column in self.columns.items()}

    @property
    def stored(self) -> Batch:
        """Columns that the examples are :attr:`rows` of; they may be those of other data sets, too."""
        return self.columns.stored if isinstance(self.columns, SelectedRows) else self.columns

    @property
    def rows(self) -> Tensor:
        """Rows of the examples in :attr:`stored` (examples,)."""
        return self.columns.rows if isinstance(self.columns, SelectedRows) else torch.arange(len(self))

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
        """Return the examples of rows, indices (rows,) or a slice, as a data set with the same transform.

        Nothing is copied: a client among thousands is a view of the whole set until its examples are read.
        """
        if isinstance(rows, slice):
            rows = torch.arange(len(self))[rows]
        elif rows.dtype == torch.bool:
            rows = rows.nonzero()[:, 0]
        if isinstance(self.columns, SelectedRows):
            selected = SelectedRows(self.columns.stored, self.columns.rows[rows])
        else:
            selected = SelectedRows(self.columns, rows)
        return ArrayDataset(selected, self.transform, self.host_only)

    def without(self, *names: str) -> ArrayDataset:
        """Return the same examples without some columns."""
        if isinstance(self.columns, SelectedRows):
            kept = {name: column for name, column in self.columns.stored.items() if name not in names}
            return ArrayDataset(SelectedRows(kept, self.columns.rows), self.transform, self.host_only)
        kept = {name: column for name, column in self.columns.items() if name not in names}
        return ArrayDataset(kept, self.transform, self.host_only)

    def on_device(self, device: torch.device) -> ArrayDataset:
        """Return the examples with their stored columns on a GPU, where they fit and can be; else the set itself.

        A column is copied once a process, whoever selects rows of it.
        """
        if device.type != "cuda" or self.host_only:
            return self
        selected = self.columns if isinstance(self.columns, SelectedRows) else None
        stored = copy_to(selected.stored if selected else self.columns, device)
        if stored is None:
            return self
        found = copy(self)
        found.columns = SelectedRows(stored, selected.rows.to(device)) if selected else stored
        return found

    def sample_batch(self, size: int) -> Batch:
        """Return ``size`` examples drawn uniformly with replacement from torch's current random stream."""
        return self[torch.randint(len(self), (size,))]


def _moved(index: int | slice | Tensor, device: torch.device) -> int | slice | Tensor:
    """Return an index where the columns are; one that stays on the CPU would make a GPU wait."""
    return send(index, device) if isinstance(index, Tensor) else index


class SelectedRows(Mapping[str, Tensor]):
    """Rows of some columns; each column is gathered when it is read for the first time.

    Parameters
    ----------
    stored
        Named tensors (examples, ...).
    rows
        Indices (rows,).
    """

    def __init__(self, stored: Batch, rows: Tensor) -> None:
        self.stored, self.rows = stored, rows
        self._gathered: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._gathered:
            self._gathered[name] = self.stored[name][self.rows]
        return self._gathered[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)

    def __contains__(self, name: object) -> bool:
        return name in self.stored

    def lengths(self) -> dict[str, int]:
        """Return the number of rows by column."""
        return dict.fromkeys(self.stored, len(self.rows))

    def batch(self, index: int | slice | Tensor) -> dict[str, Tensor]:
        """Return columns (examples, width...) of an example or several, without gathering whole columns."""
        rows = self.rows[_moved(index, self.rows.device)]
        return {name: column[rows] for name, column in self.stored.items()}
