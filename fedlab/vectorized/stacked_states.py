"""States of many models as stacked arrays, from training to the server's sum: a row is made only for who asks for it.

A thousand states one by one are thousands of small tensors, each made, copied and read by operations of its own, and
from a GPU each copy waits for all work before it. Here what every client's reply is asked for (shapes, norms) and
what is done with it (the weighted mean) is one operation for all rows.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor

from fedlab.models.batchnorm_stats import in_units_of_activations

Kinds = dict[str, tuple[torch.dtype, torch.Size]]  # type and shape of one model's array, by name
PIECE_BYTES = 64 * 2**20  # of stacked rows that are computed with at a time, which bounds what it takes beside them


class StackedStates:
    """States of several models of one kind.

    Parameters
    ----------
    arrays
        By name of the state, each (models, ...), on any one device. They are not changed any more.

    Attributes
    ----------
    device
        Device of all arrays.
    """

    def __init__(self, arrays: Mapping[str, Tensor]) -> None:
        self.arrays = {name: array.detach() for name, array in arrays.items()}
        first = next(iter(self.arrays.values()))
        self.device, self._length = first.device, len(first)
        self._hosted: dict[str, Tensor] = {}
        self._rows: dict[str, tuple[Tensor, ...]] = {}
        self._negative: dict[str, list[bool]] = {}

    def __len__(self) -> int:
        return self._length

    @property
    def is_summed_at_once(self) -> bool:
        """True where rows are summed by :meth:`weighted_sums`; a CPU adds one by one, with the bits of any engine."""
        return self.device.type != "cpu"

    def __getitem__(self, row: int) -> StackedState:
        """Return the state of one model."""
        return StackedState(self, range(len(self))[row])

    def __iter__(self) -> Iterator[StackedState]:
        """Yield the state of each model."""
        return (StackedState(self, row) for row in range(len(self)))

    @cached_property
    def kinds(self) -> Kinds:
        """Type and shape of each array of one model."""
        return {name: (array.dtype, array.shape[1:]) for name, array in self.arrays.items()}

    def rows(self, name: str) -> tuple[Tensor, ...]:
        """Return one array of each model, views of the stack."""
        if name not in self._rows:
            self._rows[name] = self.arrays[name].unbind()
        return self._rows[name]

    def on_host(self, name: str, row: int) -> Tensor:
        """Return one array of one model on the CPU, as a tensor of its own; a device is asked for all rows at once."""
        if name not in self._hosted:
            self._hosted[name] = self.arrays[name].cpu()
        return self._hosted[name][row].clone(memory_format=torch.contiguous_format)

    @cached_property
    def norms(self) -> list[float]:
        """Euclidean norm of each model over all its floats, in float64; running variances count as deviations."""
        floats = [in_units_of_activations(name, own) for name, own in self.arrays.items() if own.is_floating_point()]
        if not floats:
            return [0.0] * len(self)
        own = torch.stack([_norms(array) for array in floats])  # (arrays, models)
        norms: list[float] = torch.linalg.vector_norm(own, dim=0).tolist()
        return norms

    def is_negative(self, name: str, row: int) -> bool:
        """Return True if one array of one model is below 0 somewhere."""
        if name not in self._negative:
            self._negative[name] = (self.arrays[name] < 0).reshape(len(self), -1).any(1).tolist()
        return self._negative[name][row]

    def largest(self, rows: Sequence[int], names: Collection[str]) -> dict[str, Tensor]:
        """Return the largest value over some rows of each element of arrays, by name, on the CPU."""
        index = torch.tensor(list(rows), device=self.device)
        return {name: self.arrays[name][index].amax(0).cpu() for name in names}

    def weighted_sums(self, rows: Sequence[int], weights: Sequence[float], names: Sequence[str]) -> dict[str, Tensor]:
        """Return the sum over some rows of weight times array, by name, on the CPU.

        Products are at least float32: bfloat16 would round a weight of 1001 examples to 1000.
        """
        index = torch.tensor(list(rows), device=self.device)
        scale = torch.tensor(list(weights), dtype=torch.float64, device=self.device)
        found: dict[str, Tensor] = {}
        for name in names:
            array, total = self.arrays[name], torch.zeros_like(self.arrays[name][0])
            for piece in _pieces(array, len(rows)):
                factors = scale[piece].to(torch.promote_types(array.dtype, torch.float32))
                factors = factors.view(-1, *(1 for _ in array.shape[1:]))
                total += (array[index[piece]] * factors).sum(0)
            found[name] = total
        return {name: total.cpu() for name, total in found.items()}


class StackedState(Mapping[str, Tensor]):
    """The state of one of several models by name; an array is taken from the stack when it is read.

    Parameters
    ----------
    of
        All models' states.
    row
        Place of this one.
    """

    def __init__(self, of: StackedStates, row: int) -> None:
        self.of, self.row = of, row

    def __getitem__(self, name: str) -> Tensor:
        return self.of.arrays[name][self.row].contiguous()

    def __iter__(self) -> Iterator[str]:
        return iter(self.of.arrays)

    def __len__(self) -> int:
        return len(self.of.arrays)

    def __contains__(self, name: object) -> bool:
        return name in self.of.arrays


def _norms(array: Tensor) -> Tensor:
    """Return the norm of each row (models,) of an array (models, ...), in float64."""
    dimensions = tuple(range(1, array.dim()))
    if not dimensions:
        return array.double().abs()
    pieces = [array[piece] for piece in _pieces(array, len(array))]
    return torch.cat([torch.linalg.vector_norm(piece, dim=dimensions, dtype=torch.float64) for piece in pieces])


def _pieces(array: Tensor, rows: int) -> list[slice]:
    """Return slices of so many rows of an array, of a size that is computed with at a time."""
    size = max(1, PIECE_BYTES // max(array[0].nbytes, 1))
    return [slice(start, start + size) for start in range(0, rows, size)]
