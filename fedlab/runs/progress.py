"""Displays of a run while it runs: a thread follows ``events.jsonl``, so every engine is shown in the same way.

Three listeners: :class:`RichProgress` for a terminal, :class:`PlainProgress` for a pipe or a log file,
:class:`JsonProgress` for scripts. Names of metrics and phases are those that the run's manifest declares.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from fedlab.data.sources import DataSource, data_line
from fedlab.errors import name_list
from fedlab.files import follow_lines
from fedlab.runs.client_distribution import FEW, QUANTILES, WORST, distribution, distributions
from fedlab.runs.directory import RunDirectory
from fedlab.runs.metrics import MetricTable
from fedlab.runs.progress_bars import bars
from fedlab.runs.result import client_metric_names

logger = logging.getLogger(__name__)

Event = dict[str, Any]


class ProgressListener(Protocol):
    """An object that is called with each event of a run."""

    def on_event(self, event: Event) -> None:
        """Show one event."""
        ...


@contextmanager
def follow(path: Path, listener: ProgressListener) -> Iterator[None]:
    """Call ``listener`` with each event of a run directory from now on, until the body ends; log each event, too.

    A listener that cannot write, for want of a reader or of space, is not called again: the run goes on.
    """
    writable = True

    def show(lines: list[str]) -> None:
        nonlocal writable
        for line in lines:
            logger.info("%s", line)
            try:
                if writable:
                    listener.on_event(json.loads(line))
            except json.JSONDecodeError:
                continue
            except (OSError, UnicodeError) as error:
                writable = False
                logger.warning("progress is not shown any more: %s", error)

    with follow_lines(path / "events.jsonl", show, from_end=True):
        yield


class NoProgress:
    """Listener that shows nothing, for a log that is written all the same."""

    def on_event(self, event: Event) -> None:
        """Ignore the event."""


class PlainProgress:
    """One line for each phase that is logged, each round with its means and clients, each failure."""

    def __init__(self, write: Callable[[str], None], table: MetricTable) -> None:
        self.write, self.table = write, table

    def on_event(self, event: Event) -> None:
        """Write the line of an event, if it has one."""
        kind, table = event["event"], self.table
        if kind == "phase" and (note := table.phase_note(event["phase"])):
            self.write(note)
        elif kind in FORMATTERS:
            self.write(FORMATTERS[kind](event, table))
        elif kind == "round":
            name = table.primary_metric(table.sorted(client_metric_names([event])))
            values = clients_line(event["clients"], name, table)
            line = round_line(event, table)
            self.write(f"{line}  | {table.full_title(name)}: {values}" if values else line)


class JsonProgress:
    """Every event as it is, one JSON object a line."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self.write = write

    def on_event(self, event: Event) -> None:
        """Write the event."""
        self.write(json.dumps(event))


def round_line(event: Event, table: MetricTable) -> str:
    """Return how a round ended in one line; in all of a run's lines the number takes the same room."""
    rounds = str(event["rounds"])
    without = f"  (without {name_list(event['without'])})" if event.get("without") and event["clients"] else ""
    return f"round {event['round']:>{len(rounds)}}/{rounds}  {mean_line(event, table)}{without}"


def mean_line(event: Event, table: MetricTable) -> str:
    """Return the clients' mean metrics and the primary scores in one line; not every round has a test."""
    score = event.get("score", {})
    names = [name for name in table.sorted(client_metric_names([event])) if name in event["mean"]]
    means = table.shown(names, margins=False)
    if score and all(table.role(name) == "auxiliary" for name in means):
        means = []
    found = [(name, event["mean"][name]) for name in means] + [(n, score[n]) for n in table.primary_scores(score)]
    line = "  ".join(f"{table.heading(name)} {table.format(name, value)}" for name, value in found)
    return line if event["clients"] or found else "not tested"


def clients_line(clients: Mapping[str, Mapping[str, float]], name: str, table: MetricTable) -> str:
    """Return one metric of a few clients, client by client, or of many as the distribution over them."""
    known = {client: metrics[name] for client, metrics in clients.items() if name in metrics}
    if len(known) <= FEW:
        return "  ".join(f"{client} {table.format(name, value)}" for client, value in known.items())
    found = distribution(known.values(), table.direction(name))
    rows = (row for row in (WORST, *QUANTILES) if row in found)
    return f"{len(known)} clients  " + "  ".join(f"{row} {table.format(name, found[row])}" for row in rows)


def failure_line(event: Event, table: MetricTable) -> str:
    """Return a client's failure in one line: who, when, and the last line of the reason."""
    reason = (str(event["reason"]).strip().splitlines() or ["no reason given"])[-1]
    return (
        f"client {event['client']} (partition {event['partition']}) failed in round {event['round']}, "
        f"{table.phase_title(event['phase'])}: {reason}"
    )


def connected_line(event: Event) -> str:
    """Return how many clients are connected, and their names."""
    who = f": {name_list(event['names'])}" if event["names"] else ""
    return f"{event['connected']} of {event['clients']} connected{who}"


def waiting_line(event: Event) -> str:
    """Return who has not answered, and for how long that is waited for."""
    return f"waiting for {name_list(event['clients'])}; the phase ends in {event['seconds_left']:.0f} s at the latest"


# Events that plain and rich displays write in the same line.
FORMATTERS: Mapping[str, Callable[[Event, MetricTable], str]] = {
    "client_failed": failure_line,
    "data": lambda event, _: data_line([DataSource(**source) for source in event["sources"]]),
    "connected": lambda event, _: connected_line(event),
    "left": lambda event, _: f"client {event['client']} is gone",
    "refused": lambda event, _: f"refused {event['client']}: {event['reason']}",
    "waiting": lambda event, _: waiting_line(event),
    "note": lambda event, _: str(event["note"]),
    "resumed": lambda event, _: f"resumed after round {event['round']}",
}
ALARMS = frozenset({"client_failed", "refused"})


GAP, WIDEST = 4, len("100.0 %")  # between columns of the live table; its longest usual figure


class LiveDisplay:
    """A part of the terminal that is drawn again and again while lines scroll by above it; a context manager."""

    def __init__(self, console: Console, refresh_per_second: float) -> None:
        self.console = console
        self.live = Live(
            get_renderable=self._render, console=console, refresh_per_second=refresh_per_second, transient=True
        )

    def __enter__(self) -> Self:
        self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    def write(self, line: str, alarm: bool = False) -> None:
        """Write a line above; it is text from anywhere and never read as markup."""
        self.console.print(Text(line, style="red" if alarm else "dim"), highlight=False)

    def _render(self) -> RenderableType:
        raise NotImplementedError


class RichProgress(LiveDisplay):
    """A live display of a run: rounds and phase with the time that is left, and each client's metrics as they come."""

    def __init__(self, console: Console, table: MetricTable) -> None:
        self.table = table
        self.rounds = bars(console)
        self.task = self.rounds.add_task("connecting", total=None)
        self.phase = self.rounds.add_task("", total=None, visible=False)
        self.client = self.rounds.add_task("", total=None, visible=False)
        self.clients: dict[str, dict[str, float]] = {}
        super().__init__(console, refresh_per_second=8)

    def on_event(self, event: Event) -> None:
        """Update the display by an event."""
        kind = event["event"]
        if kind == "phase":
            total, note = event.get("clients"), self.table.phase_note(event["phase"])
            if note not in ("", self.table.phase_title(event["phase"])):
                self.write(note)
            self.rounds.update(
                self.task,
                description=f"round {event['round']} of {event['rounds']}",
                total=event["rounds"],
                completed=max(event["round"] - 1, 0),
            )
            self.rounds.reset(self.phase, description=self._phase(event), total=total, visible=total != 0)
            self.rounds.update(self.client, visible=False)
        elif kind == "progress" and "client" in event:
            name = f"    {escape(event['client'])}, step"
            if self.rounds.tasks[self.client].description != name or not self.rounds.tasks[self.client].visible:
                self.rounds.reset(self.client, description=name, visible=True)
            self.rounds.update(self.client, total=event["total"], completed=event["done"])
        elif kind == "progress":
            self.rounds.update(
                self.phase, total=event["total"], completed=event["done"], description=self._phase(event)
            )
        elif kind == "client":
            self.rounds.advance(self.phase)
            self.rounds.update(self.client, visible=False)
            known = self.clients.get(event["client"], {})
            self.clients[event["client"]] = {**known, **event["metrics"]}
        elif kind in FORMATTERS:
            self.write(FORMATTERS[kind](event, self.table), alarm=kind in ALARMS)
        elif kind == "round":
            self.rounds.update(self.task, completed=event["round"])
            self.write(round_line(event, self.table))

    def _phase(self, event: Event) -> str:
        return f"  {escape(self.table.phase_title(event['phase']))}"

    def _render(self) -> Group:
        clients = dict(self.clients)  # a copy, since another thread goes on adding to it
        known = self.table.sorted(client_metric_names([{"clients": clients}]))
        names = [name for name in known if self.table.role(name) in ("result", "reference")]
        if not names:
            return Group(self.rounds)
        if len(clients) <= FEW:
            names = self._fitting(names, max(map(len, ["client", *clients])))
            return Group(self.rounds, metrics_table("client", names, clients, self.table))
        rows = distributions(clients, {name: self.table.direction(name) for name in names})
        return Group(self.rounds, metrics_table(f"{len(clients)} clients", names, rows, self.table))

    def _fitting(self, names: list[str], head: int) -> list[str]:
        """Return the names that have room beside a head: all, or the last ones of the primary metric's group."""
        columns = {name: GAP + max(len(self.table.heading(name)), WIDEST) for name in names}
        primary = self.table.primary_metric(names)
        room = self.console.width - head - GAP
        if sum(columns.values()) > room:
            names = [name for name in names if self.table.group(name) == self.table.group(primary)]
        while len(names) > 1 and sum(columns[name] for name in names) > room:
            names = names[1:]
        return names


def metrics_table(
    head: str, names: list[str], rows: Mapping[str, Mapping[str, float]], table: MetricTable, missing: str = ""
) -> Table:
    """Return a table with a row for each of ``rows`` and a column for each metric; nothing in it is read as markup."""
    found = Table(box=None, padding=(0, 2), header_style="dim")
    found.add_column(head)
    for name in names:
        found.add_column(Text(table.heading(name)), justify="right")
    for row, metrics in rows.items():
        cells = (table.format(name, metrics[name]) if name in metrics else missing for name in names)
        found.add_row(Text(row), *map(Text, cells))
    return found


@contextmanager
def watch_live(path: Path, console: Console) -> Iterator[None]:
    """Follow a run directory with a live display."""
    with RichProgress(console, declared(path)) as live, follow(path, live):
        yield


def declared(path: Path) -> MetricTable:
    """Return the metrics and phases that a run directory declares."""
    return MetricTable.from_manifest(RunDirectory(path).manifest())
