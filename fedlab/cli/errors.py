"""The one place that turns an exception of a command into a sentence and an exit status.

=======  =====================================================================
status   meaning
=======  =====================================================================
0        done
1        not done as asked; the sentence on the standard error says why
2        the command line itself is wrong (Typer's)
130      interrupted by Ctrl-C or SIGTERM
141      the reader of the output has gone, as with ``fedlab list | head -1``
=======  =====================================================================

Anything else is a defect of fedlab and keeps its traceback.
"""

from __future__ import annotations

import functools
import inspect
import json
import logging
import os
import select
import shlex
import sys
import typing
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, TextIO, TypeVar

import typer

from fedlab.cli.consoles import show_error, stderr, warn, write_line
from fedlab.cli.logs import logging_to
from fedlab.device_errors import device_error_sentence
from fedlab.errors import FedlabError, FedlabWarning, os_error_sentence
from fedlab.exits import exits_as_errors
from fedlab.files import ensure_home

Command = TypeVar("Command", bound=Callable[..., Any])

FAILED, INTERRUPTED, READER_GONE = 1, 130, 141

LOG_OPTIONS = {
    "verbose": Annotated[
        bool, typer.Option("--verbose", help="Log what is done, with times and tracebacks, on the standard error.")
    ],
    "log_file": Annotated[Path | None, typer.Option("--log-file", help="Append the same log to this file.")],
}
DEFAULTS = {"verbose": False, "log_file": None}

logger = logging.getLogger(__name__)


class InterruptedWithAdvice(KeyboardInterrupt):
    """Interrupt of a command that can be continued; its text says how."""


def handle_errors(command: Command) -> Command:
    """Show errors and warnings of a command as sentences, exit with the right status, and give it the log's options.

    Where a script asked for JSON lines, the error is the last of them.
    """

    @functools.wraps(command)
    def wrapped(*args: Any, verbose: bool = False, log_file: Path | None = None, **kwargs: Any) -> Any:
        warnings.showwarning = _show_warning
        _replace_unprintable()
        try:
            ensure_home()
            with logging_to(verbose, log_file), exits_as_errors():
                found = _logged(command, *args, **kwargs)
            sys.stdout.flush()  # here, where what goes wrong still becomes a sentence
            return found
        except BaseException as error:
            status, sentence = outcome(error)
            if status is None:
                raise
            _show(status, sentence, type(error).__name__ if kwargs.get("as_json") else "")
            raise typer.Exit(status) from None

    _add_log_options(wrapped, command)
    return wrapped  # type: ignore[return-value]


def outcome(error: BaseException) -> tuple[int | None, str]:
    """Return the exit status of an exception and its sentence; no status where it has to keep its traceback."""
    broken = _output_error() if isinstance(error, OSError) else None
    if isinstance(broken, BrokenPipeError) or (isinstance(error, BrokenPipeError) and _reader_gone()):
        return READER_GONE, ""
    if broken is not None:
        return FAILED, f"the output cannot be written: {os_error_sentence(broken)}"
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, str(error) if isinstance(error, InterruptedWithAdvice) else "interrupted"
    if isinstance(error, FedlabError):
        return FAILED, str(error)
    if isinstance(error, OSError):
        return FAILED, os_error_sentence(error)
    if isinstance(error, UnicodeError):
        return FAILED, _unicode_sentence(error)
    if sentence := device_error_sentence(error):
        return FAILED, sentence
    if isinstance(error, MemoryError):
        return FAILED, f"the memory of this machine is full ({error}); close other programs, or ask for smaller batches"
    return None, ""


def _unicode_sentence(error: UnicodeError) -> str:
    if isinstance(error, UnicodeDecodeError):
        return (
            f"a file is not {error.encoding} text: {error.reason} at byte {error.start:,}, near "
            f"{error.object[max(0, error.start - 20) : error.start + 20]!r}; save it as UTF-8"
        )
    if isinstance(error, UnicodeEncodeError):
        part = error.object[max(0, error.start - 20) : error.end + 20]
        return f"{part!r} cannot be written as {error.encoding}; set PYTHONUTF8=1, or rename what it names"
    return str(error)


def _output_error() -> OSError | None:
    """Return why the standard output cannot be written; None where it can."""
    try:
        sys.stdout.flush()
    except OSError as error:
        return error
    return None


def _reader_gone() -> bool:
    """Return True where the standard output is a pipe that nobody reads."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))
    except (OSError, ValueError):  # no file
        return False


def _show(status: int, sentence: str, json_kind: str) -> None:
    """Show the end of a command; a terminal that is gone changes nothing about its status."""
    with suppress(OSError):
        if json_kind and status == FAILED:
            write_line(json.dumps({"event": "error", "error": json_kind, "message": sentence}))
    with suppress(OSError):
        if status == FAILED:
            show_error(sentence)
        elif sentence:
            stderr.print(f"\n{sentence}", markup=False, highlight=False, soft_wrap=True)
    if _output_error():  # or Python's own flush at the exit would fail again, with another status
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _logged(command: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    logger.info("fedlab %s, in %s", shlex.join(sys.argv[1:]), _folder())
    try:
        found = command(*args, **kwargs)
    except typer.Exit as end:
        logger.info("exit status %d", end.exit_code)
        raise
    except BaseException as error:
        logger.error("%s: %s", type(error).__name__, error)
        logger.debug("where it was raised", exc_info=True)
        raise
    logger.info("done")
    return found


def _folder() -> str:
    try:
        return os.getcwd()
    except OSError:
        return "a folder that was deleted"


def _add_log_options(wrapped: Any, command: Callable[..., Any]) -> None:
    """Give a wrapped command the signature of the command, with the options of the log behind it."""
    hints = typing.get_type_hints(command, include_extras=True)
    parameters = [
        one.replace(annotation=hints.get(one.name, one.annotation))
        for one in inspect.signature(command).parameters.values()
    ]
    kind = inspect.Parameter.KEYWORD_ONLY
    own = [
        inspect.Parameter(name, kind, default=DEFAULTS[name], annotation=option) for name, option in LOG_OPTIONS.items()
    ]
    wrapped.__signature__ = inspect.Signature([*parameters, *own])
    wrapped.__annotations__ = {**hints, **LOG_OPTIONS}
    del wrapped.__wrapped__  # or the signature would be looked up there


def _replace_unprintable() -> None:
    """Show a character that the terminal's encoding lacks as its number, instead of failing after all is done."""
    for stream in (sys.stdout, sys.stderr):
        if callable(reconfigure := getattr(stream, "reconfigure", None)):
            reconfigure(errors="backslashreplace")


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A warning of ours as a sentence; others as Python has them."""
    logger.warning("%s", message)
    if issubclass(category, FedlabWarning):
        with suppress(OSError):
            warn(str(message))
    else:
        _python_shows(message, category, filename, lineno, file, line)


_python_shows = warnings.showwarning
