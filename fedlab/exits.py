"""Code of others that calls ``sys.exit``: an error like any other, and not the end of the process.

A process that is told to end raises SystemExit, too: the handlers of signals of ``ENDING`` do. That one is passed on.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

ENDING = ("flwr", "ray", "submitit")  # packages that end their process from a handler of signals


class SystemExitError(Exception):
    """A call of ``sys.exit`` in a workload, strategy, tracker or app of somebody else."""


@contextmanager
def exits_as_errors() -> Iterator[None]:
    """Raise SystemExitError where the body calls ``sys.exit``; also a decorator.

    Raises
    ------
    SystemExitError
        With what was given to ``sys.exit``; the SystemExit is its cause.
    """
    try:
        yield
    except SystemExit as end:
        *_, (frame, line) = traceback.walk_tb(end.__traceback__)
        if frame.f_globals.get("__name__", "").partition(".")[0] in ENDING:
            raise
        code, place = "" if end.code is None else repr(end.code), f"{frame.f_code.co_filename}:{line}"
        raise SystemExitError(f"sys.exit({code}) was called in {place}; raise an exception instead") from end
