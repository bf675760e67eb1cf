"""Random batches in two parts: numbers that are drawn on the CPU, and what is made of them where the examples are.

The second part is a pure function of tensors of fixed shapes that waits for nothing, so that on a GPU it belongs into
the CUDA graph of a training step (:mod:`fedlab.cuda_graphs`): all that is left for the host is to draw, and one copy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedlab.data.dataset import ArrayDataset, Batch, to_device
from fedlab.data.pinned import send_together
from fedlab.seeds import seed_of, seeded

Generator = torch.Generator | None  # None: torch's own
Numbers = Mapping[str, Tensor]
ROWS = "rows"
OF_TRANSFORM = "drawn "  # begins the names of a transform's numbers


@dataclass(frozen=True)
class RandomTransform:
    """A transform of batches in two parts; called with a batch, it takes both.

    Attributes
    ----------
    draw
        Returns numbers for so many examples, tensors on the CPU by name, from a generator; the last argument says that
        their shapes have to be those of any other batch of so many, as a CUDA graph needs them.
    apply
        Returns what becomes of a batch with these numbers, which are where its columns are. It makes a GPU wait for
        nothing: no value is looked at, shapes depend on shapes alone, and no tensor comes from the CPU.
    """

    draw: Callable[[int, Generator, bool], Numbers]
    apply: Callable[[Batch, Numbers], Batch]

    def __call__(self, batch: Batch) -> Batch:
        """Return a transformed batch, with numbers of torch's current random stream."""
        column = next(iter(batch.values()))
        return self.apply(batch, send_together(self.draw(len(column), None, False), column.device))


class RandomBatches:
    """Batches that are drawn from a data set with replacement, on a device.

    ``make(draw_at(*names))`` has the bits of ``data.sample_batch(size)`` on the random stream of these names. Where the
    examples are not on the device, or the set says itself how it is drawn from or transformed, ``draw_at`` makes the
    whole batch, and there is nothing left to make.

    Parameters
    ----------
    data
        The set, with its columns on the device if they can be.
    size
        Examples of a batch.
    """

    def __init__(self, data: ArrayDataset, size: int, device: torch.device) -> None:
        self.data, self.size, self.device = data, size, device
        self.is_split = (
            type(data) is ArrayDataset
            and (data.transform is None or isinstance(data.transform, RandomTransform))
            and all(column.device.type == device.type for column in data.stored.values())
        )

    def draw_at(self, *names: int | str) -> Batch:
        """Return what the batch of a random stream is made of, on the device; see :func:`fedlab.seeds.seeded`."""
        (drawn,) = self.draw_several_at(1, *names)
        return drawn

    def draw_several_at(self, count: int, *names: int | str) -> list[Batch]:
        """Return what several batches, drawn one after another from a random stream, are made of."""
        if not self.is_split:
            with seeded(*names):
                return [self.finished() for _ in range(count)]
        generator = torch.Generator()
        generator.manual_seed(seed_of(*names))  # torch's own numbers in a scope, at a tenth of its cost
        drawn = joined([self._draw(generator) for _ in range(count)])
        return parted(send_together(drawn, self.device), count)

    def finished(self) -> Batch:
        """Return a whole batch from torch's current random stream."""
        return to_device(self.data.sample_batch(self.size), self.device)

    def make(self, drawn: Batch) -> Batch:
        """Return the batch that was drawn, columns (size, ...) on the device."""
        if not self.is_split:
            return drawn
        batch = self.data.stored_at(drawn[ROWS])
        if self.data.transform is None:
            return batch
        assert isinstance(self.data.transform, RandomTransform)
        numbers = {name.removeprefix(OF_TRANSFORM): one for name, one in drawn.items() if name.startswith(OF_TRANSFORM)}
        return self.data.transform.apply(batch, numbers)

    def _draw(self, generator: torch.Generator) -> Batch:
        drawn = {ROWS: torch.randint(len(self.data), (self.size,), generator=generator)}
        if isinstance(self.data.transform, RandomTransform):
            numbers = self.data.transform.draw(self.size, generator, self.device.type == "cuda")
            drawn |= {f"{OF_TRANSFORM}{name}": one for name, one in numbers.items()}
        return drawn


def joined(batches: Sequence[Batch]) -> dict[str, Tensor]:
    """Return the columns of several batches as those of one, for a loss of several."""
    return {f"{number} {name}": column for number, batch in enumerate(batches) for name, column in batch.items()}


def parted(batch: Batch, count: int) -> list[Batch]:
    """Return the batches that were :func:`joined`."""
    starts = [f"{number} " for number in range(count)]
    return [
        {name.removeprefix(start): column for name, column in batch.items() if name.startswith(start)}
        for start in starts
    ]
