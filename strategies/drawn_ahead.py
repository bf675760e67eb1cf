"""Draws of clients that train together, a window of steps ahead, each client's from its own stream."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from fedlab.seeds import Stream
from fedlab.strategies.vectorized import ClientError

WINDOW_BYTES = 64 * 2**20  # of what is drawn ahead, all clients together

T = TypeVar("T")


class DrawnAhead(Generic[T]):
    """The draws of several clients, taken in windows, since to change from stream to stream takes as long as a draw.

    Parameters
    ----------
    draw
        Returns what the client of a position draws in its next step, from the current random stream.
    size
        Returns the bytes of that.
    steps
        Number of steps of each client, none larger than the one before.
    streams
        Random stream of each.
    """

    def __init__(
        self, draw: Callable[[int], T], size: Callable[[T], int], steps: Sequence[int], streams: Sequence[Stream]
    ) -> None:
        self.draw, self.size, self.steps, self.streams = draw, size, steps, streams
        self.drawn: list[list[T]] = []
        self.start = self.end = 0
        self.window = 1  # steps; a first one shows how many fit

    def __call__(self, step: int, count: int) -> list[T]:
        """Return what the first ``count`` clients draw in a step, counted from 0; steps are asked for in order.

        Raises
        ------
        ClientError
            When one client's draw fails.
        """
        if step == self.end:
            self.start, self.end = step, step + self.window
            self.drawn = [self._draws(position, step) for position in range(count)]
            self.window = max(1, WINDOW_BYTES // max(sum(self.size(drawn[0]) for drawn in self.drawn), 1))
        return [drawn[step - self.start] for drawn in self.drawn[:count]]

    def _draws(self, position: int, step: int) -> list[T]:
        try:
            with self.streams[position]:
                return [self.draw(position) for _ in range(min(self.window, self.steps[position] - step))]
        except Exception as error:
            raise ClientError(position, error) from error
