"""Shared parts of commands: tables, and running a federation to its printed result."""

from __future__ import annotations

import json
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from fedlab.cli.consoles import stdout, write_line
from fedlab.cli.errors import InterruptedWithAdvice
from fedlab.cli.logs import is_logging

if TYPE_CHECKING:
    from fedlab.config.schema import Config
    from fedlab.runs.metrics import MetricTable
    from fedlab.runs.result import Result

PIPE_WIDTH, LONGEST_CELL, LEAST_ROOM = 120, 20, 40  # characters of a table that is no terminal's
GAP = "  "  # between its columns
FILES = ("report.html", "metrics.jsonl", "checkpoints", "app.log")  # of a run directory, for people


def show_rows(title: str, rows: list[tuple[str, ...]], *heads: str) -> None:
    """Print a plain table."""
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=None,
        padding=(0, 2, 0, 0),
        header_style="dim",
        show_header=bool(heads),
    )
    for index in range(len(rows[0]) if rows else len(heads)):
        table.add_column(heads[index] if heads else "", style="cyan" if index == 0 else "", no_wrap=index == 0)
    for row in rows:
        table.add_row(*map(escape, row))
    if stdout.is_terminal:
        stdout.print(table)
    else:
        for line in (title, *plain_lines([*([heads] if heads else []), *rows])):
            stdout.print(line, markup=False, highlight=False, soft_wrap=True)
    stdout.print()


def plain_lines(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    r"""Yield the lines of a table for a file or a pipe: a row begins a line, and its last cell may go on below.

    Lines have ``PIPE_WIDTH`` characters at most, unless a cell is a longer word, such as a path, or there is no room
    beside it. Where last cells have to go on below, a middle cell that is longer than ``LONGEST_CELL`` takes its room
    from the last one of its row; else each column is as wide as its longest cell.

    Examples
    --------
    >>> rows = [("seed", "0", "run seed"), ("client.batch_size", "64", "examples a step")]
    >>> print(*plain_lines(rows), sep="\n")
    seed               0   run seed
    client.batch_size  64  examples a step
    """
    *widths, longest = (max(map(len, column)) for column in zip(*rows, strict=True))
    if sum(widths) + len(GAP) * len(widths) + longest > PIPE_WIDTH:
        widths = [width if at == 0 else min(width, LONGEST_CELL) for at, width in enumerate(widths)]
    indent = sum(widths) + len(GAP) * len(widths)
    room = PIPE_WIDTH if indent + LEAST_ROOM <= PIPE_WIDTH else sys.maxsize
    for *cells, last in rows:
        start = "".join(cell.ljust(width) + GAP for cell, width in zip(cells, widths, strict=True))
        first, *more = textwrap.wrap(
            last,
            room,
            initial_indent=" " * len(start),
            subsequent_indent=" " * indent,
            break_long_words=False,
            break_on_hyphens=False,
        ) or [""]
        yield (start + first[len(start) :]).rstrip()
        yield from more


def start_run(config: Config, runs: Path, how: str, quiet: bool, as_json: bool) -> None:
    """Make the run directory, say what begins and how it is carried, and run it to its result."""
    from fedlab import launch
    from fedlab.runs.directory import RunDirectory

    directory = RunDirectory.create(runs, config)
    if not quiet and not as_json:
        run = config.run
        stdout.print(
            f"[bold]{escape(run.name)}[/]: {escape(run.strategy)} on {escape(run.workload)}, seed {run.seed}, {how}, "
            f"into {escape(str(directory.path))}",
            highlight=False,
            soft_wrap=True,
        )
    run_and_print(directory.path, lambda watch: launch.run_engine(directory, watch), quiet, as_json)


def run_and_print(
    path: Path,
    work: Callable[[Callable[[Path], AbstractContextManager[None]]], Result],
    quiet: bool,
    as_json: bool,
    advice: str = "",
) -> None:
    """Do the work under the right voice, then show the result; Ctrl-C says how to go on, by ``advice`` if given."""
    from fedlab import launch
    from fedlab.runs import progress

    def voice(directory: Path) -> AbstractContextManager[None]:
        if quiet:
            return progress.follow(directory, progress.NoProgress()) if is_logging() else launch.no_progress(directory)
        if as_json:
            return progress.follow(directory, progress.JsonProgress(write_line))
        if stdout.is_terminal:
            return progress.watch_live(directory, stdout)
        return progress.follow(directory, progress.PlainProgress(write_line, progress.declared(directory)))

    try:
        result = work(voice)
    except KeyboardInterrupt:
        raise InterruptedWithAdvice(
            advice or f"interrupted; nothing finished is lost. Continue with: fedlab resume {path}"
        ) from None
    if as_json:
        write_line(
            json.dumps(
                {
                    "event": "result",
                    "run_dir": str(result.directory),
                    "weights_sha256": result.weights_sha256,
                    "clients": result.final(),
                    "mean": result.rounds[-1]["mean"],
                    "score": result.score(),
                }
            )
        )
    elif quiet:
        write_line(str(result.directory))
    else:
        show_result(result, stdout)


def show_result(result: Result, console: Console) -> None:
    """Print the closing table of the clients, then score, seconds, bytes and the run directory."""
    from fedlab.runs.formatting import elapsed, human_bytes

    if result.final() or not result.score():
        print_clients(result, console)
    score, metrics = result.score(), result.metric_table
    if score:
        primary = (
            f"{metrics.heading(name)} {metrics.format(name, score[name])}" for name in metrics.primary_scores(score)
        )
        console.print(Text(f"score     {'  '.join(primary)}"))
    seconds = result.seconds()
    phases = ", ".join(f"{phase} {elapsed(value)}" for phase, value in seconds.items() if value >= 0.05)
    _print_fact("time", f"{elapsed(sum(seconds.values()))} ({phases})", console)
    _print_fact(
        "bytes",
        f"{human_bytes(result.bytes('train_down'))} down and {human_bytes(result.bytes('train_up'))} "
        f"up for training; {human_bytes(result.bytes('evaluate_down'))} down for testing",
        console,
    )
    files = [name for name in FILES if (result.directory / name).exists()]
    console.print(f"run       {result.directory}  ({', '.join(files)})", highlight=False, soft_wrap=True)


def _print_fact(name: str, text: str, console: Console) -> None:
    """Print a line with a name before it; what a terminal has no room for goes on below, without a word that is cut."""
    glued = re.sub(r"(?<=\d) (?=\w)", "\N{NO-BREAK SPACE}", text)  # a number and its unit
    lines = textwrap.wrap(glued, max(20, console.width - 10)) if console.is_terminal else [glued]
    for number, line in enumerate(line.replace("\N{NO-BREAK SPACE}", " ") for line in lines):
        console.print(f"{'' if number else name:<10}{line}", highlight=False, markup=False, soft_wrap=True)


def print_clients(result: Result, console: Console) -> None:
    """Print a table of client by metric after the last round; of many clients, the distribution over them."""
    from fedlab.runs.client_distribution import FEW, distributions

    last, metrics = result.rounds[-1], result.metric_table
    names, clients = metrics.shown(result.metric_names), last["clients"]
    primary = metrics.primary_metric(names)
    measure = f"; judged by {metrics.full_title(primary)}" if len(names) > 1 else ""
    title = f"After round {last['round']}, on each client's test data{measure}"
    if len(clients) > FEW:
        title = f"After round {last['round']}, over {len(clients)} clients, each on its own test data{measure}"
        rows = distributions(clients, {name: metrics.direction(name) for name in names})
        mean = rows.pop("mean", {})
    else:
        silent = {failure["client"] for failure in last.get("failures", ())} | set(last.get("absent", ()))
        asked = [client for client in last["bytes"] if client in clients or client in silent]
        rows = {client: clients.get(client, {}) for client in dict.fromkeys([*asked, *clients])}
        mean = last["mean"]
    table = Table()
    table.add_column("client" if len(clients) <= FEW else "")
    for name in names:
        table.add_column(Text(metrics.heading(name)), justify="right")
    for row, values in rows.items():
        table.add_row(Text(row), *_metric_cells(metrics, names, values))
    table.add_section()
    table.add_row("mean", *_metric_cells(metrics, names, mean), style="bold")
    console.print(Text(title, style="bold"))
    console.print(table)
    for line in result.metric_table.zeros(clients):
        console.print(Text(line))


def _metric_cells(metrics: MetricTable, names: Sequence[str], values: Mapping[str, float]) -> list[Text]:
    """Return the cells of a row: text that is never read as markup, "-" for what was not measured."""
    return [Text(metrics.format(name, values[name]) if name in values else "-") for name in names]
