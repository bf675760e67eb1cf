"""Seconds of each phase of a round."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class PhaseClock:
    """Measures phases; one within another takes its seconds from it.

    Attributes
    ----------
    seconds
        Seconds by name of the phase, since the last :meth:`reset`.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._measured = 0.0

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Add the time of the body to a phase, and take it from the phases around it."""
        started, before = time.monotonic(), self._measured
        try:
            yield
        finally:
            spent = time.monotonic() - started
            inner, self._measured = self._measured - before, before + spent
            self.seconds[name] = self.seconds.get(name, 0.0) + spent - inner

    def reset(self) -> None:
        """Begin a round: no phase has taken any time."""
        self.seconds = {}
