"""Showing a run while it runs: a thread follows ``events.jsonl``, so every engine is watched in the same way.

Three voices: :class:`RichProgress` for a terminal, :class:`PlainProgress` for a pipe or a log file, :class:`JsonProgress` for scripts.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from fedlab.runs.result import foremost, headline, is_share, label, metric_names, shown

Event = dict[str, Any]
POLL_SECONDS = 0.1

PHASES = {
    "start": "the model is made",
    "pretrain": "pre-training on the source",
    "clients": "clients train",
    "server": "server trains",
    "evaluate": "clients test",
    "score": "the server scores samples",
    "source": "training on the source",
    "control": "its source-only twin trains",
}


class ProgressListener(Protocol):
    """Something that is told of each event."""

    def on_event(self, event: Event) -> None:
        """Show one event."""
        ...


@contextmanager
def follow(path: Path, listener: ProgressListener) -> Iterator[None]:
    """Tell ``listener`` of each event of a run directory from now on, until the body ends."""
    log, ended = path / "events.jsonl", threading.Event()
    offset = _end_of_lines(log)

    def loop() -> None:
        at = offset
        while True:
            last_look = ended.is_set()
            if log.exists():
                with log.open("rb") as stream:
                    stream.seek(at)
                    text = stream.read()
                complete = text[: text.rfind(b"\n") + 1]
                at += len(complete)
                for line in complete.splitlines():
                    with suppress(json.JSONDecodeError):
                        listener.on_event(json.loads(line))
            if last_look:
                return
            ended.wait(POLL_SECONDS)

    thread = threading.Thread(target=loop, name="fedlab-watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=5)


def _end_of_lines(log: Path) -> int:
    """Where the complete lines of a log end: what a kill has torn behind them is cut off when the run goes on."""
    return log.read_bytes().rfind(b"\n") + 1 if log.exists() else 0


class PlainProgress:
    """Plain lines: the pre-training, each round with its means and clients, each failure."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self.write = write

    def on_event(self, event: Event) -> None:
        """Write what a reader of a log wants to know."""
        kind = event["event"]
        if kind == "phase" and event["phase"] in ("pretrain",):
            self.write(PHASES[event["phase"]])
        elif kind == "resumed":
            self.write(f"resumed after round {event['round']}")
        elif kind in FORMATTERS:
            self.write(FORMATTERS[kind](event))
        elif kind == "round":
            name = headline(metric_names([event]))
            values = "  ".join(
                f"{client} {shown(name, metrics[name])}"
                for client, metrics in event["clients"].items()
                if name in metrics
            )
            line = f"round {event['round']}/{event['rounds']}  {mean_line(event)}"
            self.write(f"{line}  | {label(name)}: {values}" if values else line)


class JsonProgress:
    """Every event as it is, one JSON object a line."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self.write = write

    def on_event(self, event: Event) -> None:
        """Write the event."""
        self.write(json.dumps(event))


def mean_line(event: Event) -> str:
    """Shares that clients report on average, and the score, in one line; a strategy need not test in every round."""
    score = event.get("score", {})
    names = [name for name in metric_names([event]) if name in event["mean"]]
    shares = [name for name in names if is_share(name)] or ([] if score else names)
    found = [(name, event["mean"][name]) for name in shares] + [(name, score[name]) for name in foremost(score)]
    line = "  ".join(f"{label(name)} {shown(name, value)}" for name, value in found)
    return line if event["clients"] or found else "not tested"


def failure_line(event: Event) -> str:
    """A client's failure in one line: who, when, and the last line of why."""
    reason = str(event["reason"]).strip().splitlines()[-1]
    return (
        f"client {event['client']} (partition {event['partition']}) failed in round {event['round']}, "
        f"{PHASES.get(event['phase'], event['phase'])}: {reason}"
    )


def connected_line(event: Event) -> str:
    """How many clients are there, and who."""
    who = f": {', '.join(event['names'])}" if event["names"] else ""
    return f"{event['connected']} of {event['clients']} connected{who}"


# What both voices say of an event, in a line.
FORMATTERS: Mapping[str, Callable[[Event], str]] = {
    "client_failed": failure_line,
    "connected": connected_line,
    "left": lambda event: f"client {event['client']} is gone",
    "refused": lambda event: f"refused {event['client']}: {event['reason']}",
    "note": lambda event: str(event["note"]),
}


class RichProgress:
    """A live picture: rounds and phase with what is left, and each client's metrics as they come."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.rounds = Progress(
            TextColumn("[bold]{task.description:<28}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
        )
        self.task = self.rounds.add_task("connecting", total=None)
        self.phase = self.rounds.add_task("", total=None, visible=False)
        self.clients: dict[str, dict[str, float]] = {}
        self.live = Live(self._render(), console=console, refresh_per_second=8, transient=True)

    def __enter__(self) -> RichProgress:
        self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    def on_event(self, event: Event) -> None:
        """Take an event into the picture."""
        kind = event["event"]
        if kind == "phase":
            total = event.get("clients")
            self.rounds.update(
                self.task,
                description=f"round {event['round']} of {event['rounds']}",
                total=event["rounds"],
                completed=max(event["round"] - 1, 0),
            )
            self.rounds.reset(
                self.phase,
                description=f"  {PHASES.get(event['phase'], event['phase'])}",
                total=total,
                visible=total != 0,
            )
        elif kind == "progress":
            self.rounds.update(
                self.phase,
                total=event["total"],
                completed=event["done"],
                description=f"  {PHASES.get(event['phase'], event['phase'])}",
            )
        elif kind == "client":
            self.rounds.advance(self.phase)
            self.clients.setdefault(event["client"], {}).update(event["metrics"])
        elif kind in FORMATTERS:
            style = "red" if kind in ("client_failed", "refused") else "dim"
            self.console.print(Text(FORMATTERS[kind](event), style=style), highlight=False)
        elif kind == "resumed":
            self.console.print(f"resumed after round {event['round']}")
        elif kind == "round":
            self.rounds.update(self.task, completed=event["round"])
            self.console.print(Text(f"round {event['round']:>3}  {mean_line(event)}", style="dim"), highlight=False)
        self.live.update(self._render())

    def _render(self) -> Group:
        if not self.clients:
            return Group(self.rounds)
        names = [name for name in metric_names([{"clients": self.clients}]) if is_share(name)]
        table = Table(box=None, padding=(0, 2), header_style="dim")
        table.add_column("client")
        for name in names:
            table.add_column(label(name), justify="right")
        for client, metrics in self.clients.items():
            table.add_row(client, *(shown(name, metrics[name]) if name in metrics else "" for name in names))
        return Group(self.rounds, table if names else "")


@contextmanager
def watch_live(path: Path, console: Console) -> Iterator[None]:
    """Follow a run with a live picture."""
    with RichProgress(console) as live, follow(path, live):
        yield


def elapsed(seconds: float) -> str:
    """Seconds for people.

    >>> elapsed(75.2)
    '1 min 15 s'
    """
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s" if seconds >= 10 else f"{seconds:.1f} s"
