"""Displays of a comparison while it runs and when it has ended: for a terminal, a log or a script, as for a run."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from fedlab.comparison import files, text_tables
from fedlab.comparison.cell import FAILED, Cell
from fedlab.comparison.earlier import earlier_comparisons
from fedlab.comparison.plan import ComparisonPlan
from fedlab.comparison.result import Comparison
from fedlab.comparison.terminal_tables import as_rich_table, drop_columns
from fedlab.errors import plural
from fedlab.runs.formatting import elapsed
from fedlab.runs.progress import LiveDisplay, declared
from fedlab.runs.result import Result

TAIL, MOST = 2**12, 2**21  # bytes of a run's events that are looked at first, and at most, for its last phase
PHASE = b'"event": "phase"'
LEGEND_WIDTH = 98


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
    size = TAIL
    try:
        with (path / "events.jsonl").open("rb") as stream:
            end = stream.seek(0, 2)
            while True:
                begin = stream.seek(max(0, end - size))
                lines = stream.read(end - begin).split(b"\n")[begin > 0 : -1]
                if found := next((line for line in reversed(lines) if PHASE in line), b""):
                    return _describe(path, json.loads(found))
                if not begin or size >= MOST:
                    return "starts" if not begin else f"round {json.loads(lines[-1])['round']}"
                size *= 8
    except OSError:
        return "starts"


def _describe(path: Path, event: Mapping[str, Any]) -> str:
    phase = declared(path).phase_title(event["phase"])
    return f"round {event['round']} of {event['rounds']}, {phase}" if event["round"] else phase


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
        self.latest = self.since  # when a cell ended
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
            self.done, self.latest = self.done + 1, time.monotonic()
            self.bar.update(self.task, advance=1)
            self.bar.update(self.task, left=self._left())
            self.write(f"{cell.name}  {format_outcome(self.folder, cell, self.metric)}", alarm=cell.status == FAILED)

    def _left(self) -> str:
        """Return an estimate of the time that is left: the rest is taken to be like the cells that have ended.

        Cells of another strategy may take much longer. Then the estimate rises by what they are late.
        """
        task = self.bar.tasks[self.task]
        rest = (task.total or 0) - task.completed
        if rest <= 0 or not self.done:
            return ""
        one, waited = (self.latest - self.since) / self.done, time.monotonic() - self.latest
        return f"about {elapsed(max(one * rest - waited, waited - one, 1.0))} left"

    def _render(self) -> Group:
        self.bar.update(self.task, left=self._left())
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
        f"{plural(len(plan.comparison.cells), 'cell')} of {plan.comparison.preset}{found}: {at_once} with "
        f"threads={plan.threads} each{where}, into {plan.comparison.directory}"
    )


def print_summary(comparison: Comparison, console: Console) -> None:
    """Print the tables, their legend, and the folder."""
    width, left_out, tables = min(console.width, 100), list[str](), text_tables.tables(comparison)
    for whole in tables:
        text, dropped = drop_columns(whole, width)
        left_out += dropped
        table = as_rich_table(text, width, 1 + len(comparison.grid))
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
