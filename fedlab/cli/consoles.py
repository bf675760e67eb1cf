"""The two consoles of the command line."""

from __future__ import annotations

import sys
from contextlib import suppress

from rich.console import Console


class _Console(Console):
    """Console that leaves it to the command what becomes of a reader that has gone."""

    def on_broken_pipe(self) -> None:
        """Raise the BrokenPipeError again, where rich would end the program."""
        raise


stdout, stderr = _Console(), _Console(stderr=True)


def write_line(line: str) -> None:
    """Write a line of progress to the standard output, as it is.

    Work goes on when it cannot be shown; the command's last flush then gives the exit status.
    """
    with suppress(OSError):
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


def warn(sentence: str) -> None:
    """Show a warning on the standard error; paths stay whole, to be copied."""
    stderr.print("[bold yellow]warning:[/] ", end="")
    stderr.print(sentence, markup=False, highlight=False, soft_wrap=True)


def show_error(sentence: str) -> None:
    """Show an error on the standard error."""
    stderr.print("[bold red]error:[/] ", end="")
    stderr.print(sentence, markup=False, highlight=False, soft_wrap=True)
