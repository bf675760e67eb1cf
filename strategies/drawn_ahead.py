"""Draws of clients that train together, a window of steps ahead, each client's from its own stream."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Generic, TypeVar

import torch
from torch import Tensor

from fedlab.data.pinned import send
from fedlab.seeds import Stream
from fedlab.strategies.vectorized import ClientError
from fedlab.vectorized.draws import Draw, draw

WINDOW_BYTES = 64 * 2**20  # of what is drawn ahead, all clients together

T = TypeVar("T")


class DrawnAhead(Generic[T]):
    """The draws of several clients, taken in windows, since to change from stream to stream takes as long as a draw.

    Parameters
    ----------
    size
        Bytes that one client draws in one step.
    steps
        Number of steps of each client, none larger than the one before.
    streams
        Random stream of each.

    Attributes
    ----------
    drawn
        What each client draws in the steps of the window.
    start
        First step of the window.
    """

    def __init__(self, size: int, steps: Sequence[int], streams: Sequence[Stream]) -> None:
        self.size, self.steps, self.streams = size, steps, streams
        self.drawn: list[T] = []
        self.start = self.end = 0

    def reach(self, step: int, count: int, draw: Callable[[Stream, int, int], T]) -> bool:
        """Draw the window that begins with a step, counted from 0, and return True; False if the step is in the last.

        Parameters
        ----------
        count
            Number of the first clients, which take this step.
        draw
            Returns what the client of a position draws in its next so many steps from a stream, which it enters. It
            is not kept: a method of this object's owner would tie the two together, and the garbage collector alone
            would free what was drawn.

        Raises
        ------
        ClientError
            When clients' draws fail, with the errors of all of them.
        """
        if step < self.end:
            return False
        window = max(1, WINDOW_BYTES // max(self.size * count, 1))
        self.start, self.end = step, step + window
        steps = [min(window, own - step) for own in self.steps[:count]]
        self.drawn, errors = [], dict[int, Exception]()
        for position, own in enumerate(steps):
            try:
                self.drawn.append(draw(self.streams[position], position, own))
            except Exception as error:
                errors[position] = error
        if errors:
            raise ClientError(errors)
        return True


class RowsAhead:
    """Rows of one table that clients draw with replacement, and the numbers that their losses draw, on a device.

    Parameters
    ----------
    lengths
        Number of rows of each client; those of the first client come first in the table.
    batch_size
        Rows of a batch.
    steps
        Batches of each client, no more than of the one before.
    streams
        Random stream of each.
    plan
        What the loss draws after each batch.
    device
        Where rows and numbers are wanted.
    table
        What to return in the place of a row's number (rows,); None: the number itself.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        steps: Sequence[int],
        streams: Sequence[Stream],
        plan: Sequence[Draw],
        device: torch.device,
        table: Tensor | None = None,
    ) -> None:
        self.lengths, self.batch_size, self.plan, self.device, self.table = lengths, batch_size, plan, device, table
        self.starts = torch.tensor([0, *accumulate(lengths[:-1])])
        size = 8 * batch_size + sum(one.nbytes for one in plan)
        self.ahead = DrawnAhead[tuple[Tensor, list[Tensor]]](size, steps, streams)
        self.rows = self.begins = torch.empty(0)
        self.numbers: list[Tensor] = []

    def __call__(self, step: int, count: int) -> tuple[Tensor, list[Tensor]]:
        """Return the rows (count, batch) of the first clients in a step, and the numbers that their losses draw.

        Raises
        ------
        ClientError
            When clients' draws fail.
        """
        if self.ahead.reach(step, count, self._draw):
            self._join()
        place = self.begins[:count] + (step - self.ahead.start)
        return self.rows[place], [one[place] for one in self.numbers]

    def _join(self) -> None:
        """Put what all clients draw in the window into a few tensors, and send these to the device."""
        rows, numbers = zip(*self.ahead.drawn, strict=True)
        steps = torch.tensor([len(own) for own in rows])
        joined = torch.cat(rows) + self.starts[: len(rows)].repeat_interleave(steps)[:, None]
        self.rows = send(joined if self.table is None else self.table[joined], self.device)
        self.numbers = [send(torch.cat(each), self.device) for each in zip(*numbers, strict=True)]
        self.begins = send(steps.cumsum(0) - steps, self.device)

    def _draw(self, stream: Stream, position: int, steps: int) -> tuple[Tensor, list[Tensor]]:
        """Return rows (steps, batch), and numbers (steps, ...) for each place of the loss that draws."""
        examples = self.lengths[position]
        if not self.plan:  # the numbers of a call for each step
            return torch.randint(examples, (steps, self.batch_size), generator=stream.cpu_generator()), []
        with stream:
            drawn = [(torch.randint(examples, (self.batch_size,)), draw(self.plan)) for _ in range(steps)]
        rows, numbers = zip(*drawn, strict=True)
        return torch.stack(rows), [torch.stack(each) for each in zip(*numbers, strict=True)]
