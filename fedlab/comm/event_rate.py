"""Rate of events that one client can cause: a client that comes and goes all the time does not fill a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable

BURST = 20  # events of one client in a row
EVERY = 60.0  # seconds after which it may cause one more


class EventRate:
    """Events by who caused them: ``BURST`` at once, then one in ``EVERY`` seconds.

    Parameters
    ----------
    clock
        Seconds, as ``time.monotonic`` gives them.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._left: dict[Hashable, tuple[float, float]] = {}  # events that are left, and when that was so
        self._omitted: dict[Hashable, int] = {}

    def count(self, who: Hashable) -> int | None:
        """Count an event; return how many of the same cause were omitted before it, or None to omit it, too."""
        now = self.clock()
        left, since = self._left.get(who, (float(BURST), now))
        left = min(float(BURST), left + (now - since) / EVERY)
        if left < 1:
            self._left[who] = left, now
            self._omitted[who] = self._omitted.get(who, 0) + 1
            return None
        self._left[who] = left - 1, now
        return self._omitted.pop(who, 0)
