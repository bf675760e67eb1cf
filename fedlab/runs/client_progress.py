"""Progress of a client's training, for a server loop of the same process.

A client function reports its steps to ``ClientContext.progress``. Where server and clients share a process
(``inprocess``) the server's loop listens; anywhere else nobody does, and a report costs nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from fedlab.training import Progress, null_progress

Listener = Callable[[int, str, int, int], None]  # partition; phase, steps done, steps in all

_listener: Listener | None = None


def _forget() -> None:
    """Drop the listener in a fork, whose parent alone writes the run's events."""
    global _listener
    _listener = None


os.register_at_fork(after_in_child=_forget)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Call ``listener`` with the progress of this process's clients until the body ends."""
    global _listener
    before, _listener = _listener, listener
    try:
        yield
    finally:
        _listener = before


def progress_of(partition: int) -> Progress:
    """Return where the client of a partition reports its steps."""
    return null_progress if _listener is None else partial(_listener, partition)
