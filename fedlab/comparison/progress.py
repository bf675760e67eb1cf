"""Showing a comparison while it runs and when it has ended; which voice depends on who listens, as for a run."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from fedlab.comparison import files, text_tables
from fedlab.comparison.result import FAILED, Cell, Comparison
from fedlab.runs.progress import PHASES, elapsed
from fedlab.runs.result import Result, family, headline, metric_names, shown

if TYPE_CHECKING:
    from fedlab.comparison.runner import ComparisonPlan

TAIL = 4096  # bytes of a run's events in which its last phase stands
LEGEND_WIDTH = 98
OPTIONAL_COLUMNS = ("rounds", "rank", "bytes", "time", "closed")  # columns that a narrow terminal goes without, in this order


def format_outcome(folder: Path, cell: Cell, metric: str) -> str:
    """How a cell ended, in a few words: by the metric that is compared, where it is of the global model's score."""
    if cell.status == FAILED:
        return f"failed: {cell.reason}"
    result = Result.read(folder / cell.run)
    mean = result.rounds[-1]["mean"]
    names = [name for name in metric_names(result.rounds) if name in mean]
    score = result.score()
    if metric in score and metric not in map(family, names):
        return f"{metric} {shown(metric, score[metric])}"
    name = headline([name for name in names if family(name) == metric] or names)
    return f"{name} {shown(name, mean[name])}" if name else "no metric"


def current_phase(path: Path) -> str:
    """Where a run stands, from the end of what it tells its watchers."""
    try:
        with (path / "events.jsonl").open("rb") as stream:
            stream.seek(max(0, stream.seek(0, 2) - TAIL))
            lines = stream.read().split(b"\n")[1:-1]
    except OSError:
        return "starts"
    for line in reversed(lines):
        event: dict[str, Any] = json.loads(line)
        if event["event"] == "phase":
            phase = PHASES.get(event["phase"], event["phase"])
            return f"round {event['round']} of {event['rounds']}, {phase}" if event["round"] else phase
    return "starts"


class RichProgress:
    """For a terminal: all cells in one bar, and a line for each that runs."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[left]}"),
            console=console,
        )
        self.task = self.bar.add_task("cells", total=None, left="")
        self.since, self.done = time.monotonic(), 0
        self.running: dict[str, Cell] = {}
        self.folder, self.metric = Path(), ""
        self.live = Live(get_renderable=self._render, console=console, refresh_per_second=4, transient=True)

    def __enter__(self) -> RichProgress:
        self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    def begin(self, plan: ComparisonPlan, there: int) -> None:
        """Say what is to be done."""
        self.folder, self.metric = plan.comparison.directory, plan.comparison.metric
        self.bar.update(self.task, total=len(plan.comparison.cells), completed=there)
        self.console.print(header(plan, there), highlight=False, soft_wrap=True)

    def started(self, cells: Sequence[Cell]) -> None:
        """A line for it."""
        self.running[cells[0].run] = cells[0]

    def ended(self, cells: Sequence[Cell]) -> None:
        """Its line becomes a result."""
        self.running.pop(cells[0].run, None)
        for cell in cells:
            self.done += 1
            self.bar.update(self.task, advance=1, left=self._left())
            style = "red" if cell.status == FAILED else "dim"
            self.console.print(
                Text(f"{cell.name}  {format_outcome(self.folder, cell, self.metric)}", style=style), highlight=False
            )

    def _left(self) -> str:
        """What the rest takes if it is like the cells that ended since we began: they end together, several at once."""
        task = self.bar.tasks[self.task]
        rest = (task.total or 0) - task.completed - 1
        return f"about {elapsed((time.monotonic() - self.since) / self.done * rest)} left" if rest > 0 else ""

    def _render(self) -> Group:
        lines = [
            Text(f"  {cell.name}: {current_phase(self.folder / run)}", style="cyan", overflow="ellipsis", no_wrap=True)
            for run, cell in list(self.running.items())
        ]
        return Group(self.bar, *lines)


class PlainProgress:
    """For a pipe or a log file: a line for each cell that ends."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self.write, self.done, self.cells = write, 0, 0
        self.folder, self.metric = Path(), ""

    def begin(self, plan: ComparisonPlan, there: int) -> None:
        """Say what is to be done."""
        self.done, self.cells = there, len(plan.comparison.cells)
        self.folder, self.metric = plan.comparison.directory, plan.comparison.metric
        self.write(header(plan, there))

    def started(self, cells: Sequence[Cell]) -> None:
        """Nothing."""

    def ended(self, cells: Sequence[Cell]) -> None:
        """How it ended."""
        for cell in cells:
            self.done += 1
            self.write(f"{self.done}/{self.cells}  {cell.name}  {format_outcome(self.folder, cell, self.metric)}")


class JsonProgress:
    """For scripts: an object for each cell that begins or ends."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self.write, self.folder = write, Path()

    def begin(self, plan: ComparisonPlan, there: int) -> None:
        """What is to be done."""
        self.folder = plan.comparison.directory
        facts = {"directory": str(self.folder), "cells": len(plan.comparison.cells), "finished": there}
        self._tell("begin", **facts, jobs=plan.jobs, threads=plan.threads)

    def started(self, cells: Sequence[Cell]) -> None:
        """Which one."""
        for cell in cells:
            self._tell("started", **self._about(cell))

    def ended(self, cells: Sequence[Cell]) -> None:
        """Which one, and how."""
        for cell in cells:
            self._tell("ended", **self._about(cell), status=cell.status, error=cell.error)

    def result(self, comparison: Comparison) -> None:
        """The tables."""
        self._tell("result", directory=str(comparison.directory), **files.result(comparison))

    def _about(self, cell: Cell) -> dict[str, Any]:
        knobs = dict(cell.knobs)
        return {"label": cell.label, "seed": cell.seed, "knobs": knobs, "run": str(self.folder / cell.run)}

    def _tell(self, event: str, **fields: Any) -> None:
        self.write(json.dumps({"time": round(time.time(), 3), "event": event, **fields}))


def header(plan: ComparisonPlan, there: int) -> str:
    """How many cells, how they are run, and where they go."""
    found = f", {there} of them finished already" if there else ""
    where = f", on {len(plan.gpus)} GPUs" if len(plan.gpus) > 1 else ""
    return (
        f"{len(plan.comparison.cells)} cells of {plan.comparison.preset}{found}: {plan.jobs} at a time with "
        f"threads={plan.threads} each{where}, into {plan.comparison.directory}"
    )


def drop_columns(text: text_tables.TextTable, width: int) -> tuple[text_tables.TextTable, list[str]]:
    """A table without as many of its ``OPTIONAL_COLUMNS`` columns as it takes to be no wider than ``width``, and their heads."""
    dropped: list[str] = []
    for spare in (head for head in OPTIONAL_COLUMNS if head in text.heads):
        longest = [
            max(*map(len, head.split()), *(len(row[at]) for row in text.rows), 0) for at, head in enumerate(text.heads)
        ]
        if sum(longest) + 2 * len(longest) < width:  # a space on either side, and one before all
            break
        at = list(text.heads).index(spare)
        rows = [[*row[:at], *row[at + 1 :]] for row in text.rows]
        text = text_tables.TextTable(text.title, [*text.heads[:at], *text.heads[at + 1 :]], rows)
        dropped.append(spare)
    return text, dropped


def print_summary(comparison: Comparison, console: Console) -> None:
    """The tables, what they mean, and where they are."""
    width, left_out = min(console.width, 100), list[str]()
    for whole in text_tables.tables(comparison):
        text, dropped = drop_columns(whole, width)
        left_out += dropped
        table = Table(title=text.title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        knobs = len(comparison.grid)
        for number, head in enumerate(text.heads):
            table.add_column(head, justify="right" if number > knobs else "left", overflow="fold", no_wrap=not number)
        for row in text.rows:
            table.add_row(*row)
        console.print(table, width=width)
    if left_out:
        console.print(Text(f"no room here for {', '.join(left_out)}: see table.md", style="dim"), width=width)
    console.print(Text(text_tables.legend(comparison), style="dim"), width=min(width, LEGEND_WIDTH))
    if len(comparison.commits) > 1:
        console.print(
            Text(
                f"These cells come from {len(comparison.commits)} commits of fedlab; delete "
                f"{comparison.directory}/cells to run all with this one.",
                style="yellow",
            ),
            width=width,
        )
    console.print(
        f"comparison {comparison.directory}  (table.csv, table.json, table.md, report.html)",
        highlight=False,
        soft_wrap=True,
    )
