"""``--verbose`` and ``--log-file``: what a command does, with times, on the terminal or in a file.

Both show the same lines: those of the logger ``fedlab`` and of Flower's own in this process. Processes that an engine
starts write their logs into the run directory (``workers.log``, ``flower/flower.log``).
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from fedlab.cli.consoles import warn
from fedlab.errors import ConfigError, os_error_sentence
from fedlab.files import expand_user

LOGGERS = ("fedlab", "flwr")
FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"

log = logging.getLogger("fedlab")


@contextmanager
def logging_to(verbose: bool, log_file: Path | None) -> Iterator[None]:
    """Log to the standard error, to a file, to both or to neither while the context lasts; a file is appended to.

    Raises
    ------
    ConfigError
        When the file cannot be written.
    """
    handlers = [*([_Terminal(sys.stderr)] if verbose else []), *([_open(log_file)] if log_file else [])]
    with ExitStack() as undo:
        for handler in handlers:
            handler.setFormatter(logging.Formatter(FORMAT))
            for logger in map(logging.getLogger, LOGGERS):
                logger.addHandler(handler)
                undo.callback(logger.removeHandler, handler)
            undo.callback(handler.close)
        if handlers:
            undo.callback(log.setLevel, log.level)
            log.setLevel(logging.DEBUG)
        yield


def is_logging() -> bool:
    """Return True where somebody reads the log."""
    return log.isEnabledFor(logging.INFO)


class _Terminal(logging.StreamHandler):  # type: ignore[type-arg]
    """Handler of the terminal; one that is gone must not stop a run."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Ignore what cannot be shown."""


class _File(logging.FileHandler):
    """Handler of a file; a disk that is full must not stop a run."""

    told = False

    def handleError(self, record: logging.LogRecord) -> None:
        """Write once to the standard error that the log has stopped."""
        error = sys.exc_info()[1]
        if not self.told and isinstance(error, OSError):
            self.told = True
            with suppress(OSError):
                warn(f"the log {self.baseFilename} has stopped: {os_error_sentence(error)}")

    def close(self) -> None:
        """Close the file, whatever becomes of what was not written yet."""
        with suppress(OSError):
            super().close()


def _open(path: Path) -> _File:
    try:
        return _File(expand_user(path), encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise ConfigError(f"the log cannot be written (--log-file): {os_error_sentence(error)}") from None
