"""Bars of a live display: what is done, the time that it took, and the time that is left."""

from __future__ import annotations

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text


class TimeLeftColumn(TimeRemainingColumn):
    """The estimate with the word that tells it from the time before it, which has passed; nothing without one."""

    def render(self, task: Task) -> Text:
        """Return the cell of a task."""
        if task.total is None or task.time_remaining is None:
            return Text()
        return super().render(task).append(" left")


def bars(console: Console) -> Progress:
    """Return a display of tasks, one below the other, with a column for each part."""
    return Progress(
        TextColumn("[bold]{task.description:<28}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeLeftColumn(),
        console=console,
    )
