"""Start and end of processes of ours, without the garbage collector looking through what was imported.

The imports of torch and Flower make some hundred thousand objects, all of which stay until the end. The collector goes
through them several times while they come, and once more as the interpreter ends.
"""

from __future__ import annotations

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager


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


def quick_exit() -> None:
    """Let this process end without a last collection, after the exit functions that are registered from now on.

    Objects of modules that are still there then are not finalized: a file that is open has to be closed before.
    """
    atexit.register(gc.freeze)
