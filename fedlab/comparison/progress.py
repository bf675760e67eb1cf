"""Displays of a comparison while it runs and when it has ended: for a terminal, a log or a script, as for a run."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from fedlab.comparison import columns, files, text_tables
from fedlab.comparison.earlier import earlier_comparisons
from fedlab.comparison.plan import ComparisonPlan
from fedlab.comparison.result import FAILED, Cell, Comparison
from fedlab.runs.formatting import elapsed
from fedlab.runs.progress import LiveDisplay, declared
from fedlab.runs.result import Result

TAIL = 4096  # bytes of a run's events in which its last phase stands
LEGEND_WIDTH = 98
OPTIONAL_COLUMNS = (columns.ROUNDS, columns.RANK, columns.TRAFFIC, columns.TIME, columns.GAP)  # in a narrow terminal


def format_outcome(folder: Path, cell: Cell, metric: str) -> str:
    """Return how a cell ended, in a few words: by the group ``metric``, or else by what its run is judged by."""
    if cell.status == FAILED:
        return f"failed: {cell.reason}"
    result = Result.read(folder / cell.run)
    table, mean, score = result.metric_table, result.rounds[-1]["mean"], result.score()
    names = [name for name in result.metric_names if name in mean]
    compared = [name for name in names if table.group(name) == metric]
    if metric in score and not compared:
        return f"{table.full_title(metric)} {table.format(metric, score[metric])}"
    name = table.primary_metric(compared or names)
    return f"{table.full_title(name)} {table.format(name, mean[name])}" if name else "no metric"


def current_phase(path: Path) -> str:
    """Return where a run stands, from the end of its events."""
    try:
        with (path / "events.jsonl").open("rb") as stream:
            stream.seek(max(0, stream.seek(0, 2) - TAIL))
            lines = stream.read().split(b"\n")[1:-1]
    except OSError:
        return "starts"
    for line in reversed(lines):
        event: dict[str, Any] = json.loads(line)
        if event["event"] == "phase":
            phase = declared(path).phase_title(event["phase"])
            return f"round {event['round']} of {event['rounds']}, {phase}" if event["round"] else phase
    return "starts"


class RichProgress(LiveDisplay):
    """A live display of a comparison: all cells in one bar, and a line for each that runs."""

    def __init__(self, console: Console) -> None:
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
        super().__init__(console, refresh_per_second=4)

    def on_start(self, plan: ComparisonPlan, finished: int) -> None:
        """Show what is to be done."""
        self.folder, self.metric = plan.comparison.directory, plan.comparison.metric
        self.bar.update(self.task, total=len(plan.comparison.cells), completed=finished)
        for line in (header(plan, finished), *plan.notes):
            self.console.print(Text(line), soft_wrap=True)

    def on_cell_start(self, cells: Sequence[Cell]) -> None:
        """Add a line for the run."""
        self.running[cells[0].run] = cells[0]

    def on_cell_end(self, cells: Sequence[Cell]) -> None:
        """Turn the run's line into its result."""
        self.running.pop(cells[0].run, None)
        for cell in cells:
            self.done += 1
            self.bar.update(self.task, advance=1, left=self._left())
            self.write(f"{cell.name}  {format_outcome(self.folder, cell, self.metric)}", alarm=cell.status == FAILED)

    def _left(self) -> str:
        """Return an estimate of the time that is left: the rest is taken to be like the cells that have ended."""
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
    """One line for each cell that ends, for a pipe or a log file."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self.write, self.done, self.cells = write, 0, 0
        self.folder, self.metric = Path(), ""

    def on_start(self, plan: ComparisonPlan, finished: int) -> None:
        """Write what is to be done."""
        self.done, self.cells = finished, len(plan.comparison.cells)
        self.folder, self.metric = plan.comparison.directory, plan.comparison.metric
        for line in (header(plan, finished), *plan.notes):
            self.write(line)

    def on_cell_start(self, cells: Sequence[Cell]) -> None:
        """Write nothing: a line comes at the end of a cell."""

    def on_cell_end(self, cells: Sequence[Cell]) -> None:
        """Write how the cells ended."""
        for cell in cells:
            self.done += 1
            self.write(f"{self.done}/{self.cells}  {cell.name}  {format_outcome(self.folder, cell, self.metric)}")


class JsonProgress:
    """One JSON object for each cell that begins or ends, for scripts."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self.write, self.folder = write, Path()

    def on_start(self, plan: ComparisonPlan, finished: int) -> None:
        """Write what is to be done."""
        self.folder = plan.comparison.directory
        facts = {"directory": str(self.folder), "cells": len(plan.comparison.cells), "finished": finished}
        self._event("begin", **facts, jobs=plan.jobs, threads=plan.threads, notes=list(plan.notes))

    def on_cell_start(self, cells: Sequence[Cell]) -> None:
        """Write which cells began."""
        for cell in cells:
            self._event("started", **self._about(cell))

    def on_cell_end(self, cells: Sequence[Cell]) -> None:
        """Write which cells ended, and how."""
        for cell in cells:
            self._event("ended", **self._about(cell), status=cell.status, error=cell.error, device=cell.device)

    def result(self, comparison: Comparison) -> None:
        """Write the tables."""
        self._event("result", directory=str(comparison.directory), **files.result(comparison))

    def _about(self, cell: Cell) -> dict[str, Any]:
        options = dict(cell.options)
        return {"label": cell.label, "seed": cell.seed, "options": options, "run": str(self.folder / cell.run)}

    def _event(self, event: str, **fields: Any) -> None:
        self.write(json.dumps({"time": round(time.time(), 3), "event": event, **fields}))


def header(plan: ComparisonPlan, finished: int) -> str:
    """Return how many cells there are, how they are run, and where they go."""
    found = f", {finished} of them finished already" if finished else ""
    where = f", on {len(plan.gpus)} GPUs" if len(plan.gpus) > 1 else ""
    at_once = f"up to {plan.jobs} at a time on {plan.backend.title}" if plan.backend else f"{plan.jobs} at a time"
    return (
        f"{len(plan.comparison.cells)} cells of {plan.comparison.preset}{found}: {at_once} with "
        f"threads={plan.threads} each{where}, into {plan.comparison.directory}"
    )


def drop_columns(text: text_tables.TextTable, width: int) -> tuple[text_tables.TextTable, list[str]]:
    """Drop as many ``OPTIONAL_COLUMNS``, in their order, as it takes for a table to be no wider than ``width``.

    Returns
    -------
    The table, and the heads of the dropped columns.
    """
    dropped: list[str] = []
    for spare in (head for head in OPTIONAL_COLUMNS if head in text.heads):
        longest = [
            max([*map(len, head.split()), *(len(row[at]) for row in text.rows), 0])
            for at, head in enumerate(text.heads)
        ]
        if sum(longest) + 2 * len(longest) < width:  # a space on either side, and one before all
            break
        at = list(text.heads).index(spare)
        rows = [[*row[:at], *row[at + 1 :]] for row in text.rows]
        text = replace(text, heads=[*text.heads[:at], *text.heads[at + 1 :]], rows=rows)
        dropped.append(spare)
    return text, dropped


def print_summary(comparison: Comparison, console: Console) -> None:
    """Print the tables, their legend, and the folder."""
    width, left_out, tables = min(console.width, 100), list[str](), text_tables.tables(comparison)
    for whole in tables:
        text, dropped = drop_columns(whole, width)
        left_out += dropped
        table = Table(
            title=Text(text.title), title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
        )
        grid = len(comparison.grid)
        for number, head in enumerate(text.heads):
            table.add_column(
                Text(head), justify="right" if number > grid else "left", overflow="fold", no_wrap=not number
            )
        for row in text.rows:
            table.add_row(*(Text(cell, style="bold" if isinstance(cell, text_tables.Best) else "") for cell in row))
        console.print(table, width=width)
    if left_out:
        console.print(Text(f"no room here for {', '.join(left_out)}: see table.md", style="dim"), width=width)
    console.print(Text(text_tables.legend(tables), style="dim"), width=min(width, LEGEND_WIDTH))
    if len(comparison.commits) > 1:
        console.print(
            Text(
                f"These cells come from {len(comparison.commits)} commits of fedlab; delete "
                f"{comparison.directory}/cells to run all with this one.",
                style="yellow",
            ),
            width=width,
        )
    if differences := comparison.machine_differences:
        sentence = (
            f"These cells were run with different {', '.join(differences)}; the same options may give other bits."
        )
        console.print(Text(sentence, style="yellow"), width=width)
    console.print(
        Text(f"comparison {comparison.directory}  (report.html; table.csv, .json, .md, .tex)"),
        soft_wrap=True,
    )
    if kept := earlier_comparisons(comparison.directory):
        console.print(Text(f"earlier    {kept[-1]}  (tables of the comparison before)"), soft_wrap=True)
