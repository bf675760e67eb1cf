"""Start and end of processes of ours, without the garbage collector looking through what was imported.

The imports of torch and Flower make some hundred thousand objects, all of which stay until the end. The collector goes
through them several times while they come, and once more as the interpreter ends.
"""

from __future__ import annotations

import atexit
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

GROWTH = 0.25  # of the number of objects, after which what runs left behind is collected
_known_objects = 0  # when a run last looked through all of them, or at the first run; 0: before it


@contextmanager
def quick_imports() -> Iterator[None]:
    """Collect no garbage while the context lasts, and never what there is at its end."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


@contextmanager
def settled() -> Iterator[Callable[[], None]]:
    """Leave all objects that are there now out of garbage collection while the context lasts.

    A round of many clients makes so many objects that the collector would go through all imported modules again and
    again. What is made later is collected as ever, until the function that this yields leaves it out, too: it is for
    what the first clients import. At the end nothing is left out any more.

    What earlier runs of this process left behind would be left out as well, run by run. It is collected before, once
    the objects are a quarter more than after the last time: the collector's own rule for its oldest objects.
    """
    global _known_objects
    gc.freeze()
    if gc.get_freeze_count() > (1 + GROWTH) * _known_objects:
        if _known_objects:
            gc.unfreeze()
            gc.collect()
            gc.freeze()
        _known_objects = gc.get_freeze_count()
    try:
        yield gc.freeze
    finally:
        gc.unfreeze()


def quick_exit() -> None:
    """Let this process end without a last collection, after the exit functions that are registered from now on.

    Objects of modules that are still there then are not finalized: a file that is open has to be closed before.
    """
    atexit.register(gc.freeze)
