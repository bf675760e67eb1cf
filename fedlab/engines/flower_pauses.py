"""Flower's private parts, continued: time in which a SuperLink or a SuperNode stood still does not count.

An app tells the process that started it that it lives, as a SuperNode tells its SuperLink, and is given up a minute
after its last word. Where a machine slept, a container was paused or the clock was set forward, that minute is over at
once, before anybody can say anything: the run failed with "No heartbeat received from the task". Here Flower's states
judge by a clock that stands still with their process.

**Source**: Flower 1.39, ``flwr/supercore/corestate/in_memory_corestate.py``,
``flwr/server/superlink/linkstate/in_memory_linkstate.py`` and ``utils.py``.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib import import_module

TICK = 1.0  # seconds
PAUSE = 10.0  # seconds without a tick that are a pause
CORE_STATE = "flwr.supercore.corestate.in_memory_corestate"
LINK_STATES = (
    CORE_STATE,
    "flwr.server.superlink.linkstate.in_memory_linkstate",
    "flwr.server.superlink.linkstate.utils",
)


class RunningClock:
    """The time of day, without the pauses of this process since the clock was made.

    Attributes
    ----------
    last
        Time of day at the last tick.
    paused
        Seconds of all pauses.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.last, self.paused = time.time(), 0.0

    def timestamp(self) -> float:
        """Return the time in seconds; each call is a tick."""
        with self._lock:
            now = time.time()
            if now - self.last > PAUSE:
                self.paused += now - self.last
            self.last = now
            return now - self.paused

    def now(self) -> datetime:
        """Return the time, as Flower's function of this name does."""
        return datetime.fromtimestamp(self.timestamp(), tz=UTC)

    def run(self) -> None:
        """Tick once a second until the process ends."""
        while True:
            time.sleep(TICK)
            self.timestamp()


def judge_by(clock: RunningClock, modules: Iterable[str]) -> None:
    """Let modules of Flower take the time from a clock."""
    for name in modules:
        import_module(name).__dict__["now"] = clock.now


def ignore_pauses(modules: Iterable[str]) -> None:
    """Let modules of Flower in this process take the time from a clock that stands still with it."""
    clock = RunningClock()
    judge_by(clock, modules)
    threading.Thread(target=clock.run, name="clock", daemon=True).start()
