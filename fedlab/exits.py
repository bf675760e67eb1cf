"""Code of others that calls ``sys.exit``: an error like any other, and not the end of the process.

A process that is told to end raises SystemExit, too: the handlers of signals of ``ENDING`` do. That one is passed on.
"""

from __future__ import annotations

import traceback
from contextlib import ContextDecorator

ENDING = ("flwr", "ray", "submitit")  # packages that end their process from a handler of signals


class SystemExitError(Exception):
    """A call of ``sys.exit`` in a workload, strategy, tracker or app of somebody else."""


class exits_as_errors(ContextDecorator):
    """Raise SystemExitError where the body calls ``sys.exit``; also a decorator.

    Raises
    ------
    SystemExitError
        With what was given to ``sys.exit``; the SystemExit is its cause.
    """

    def __enter__(self) -> None:
        """Do nothing: a class, since it is entered for each client, and a generator takes three times as long."""

    def __exit__(self, kind: type[BaseException] | None, end: BaseException | None, *where: object) -> None:
        """Raise SystemExitError in the place of a SystemExit of others' code."""
        if not isinstance(end, SystemExit):
            return
        *_, (frame, line) = traceback.walk_tb(end.__traceback__)
        if frame.f_globals.get("__name__", "").partition(".")[0] in ENDING:
            return
        code, place = "" if end.code is None else repr(end.code), f"{frame.f_code.co_filename}:{line}"
        raise SystemExitError(f"sys.exit({code}) was called in {place}; raise an exception instead") from end
