"""Figures of a run's page, with the tables that are at the same time a figure's legend."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from fedlab.report.figures import REFERENCE, SLOTS, Curve, bars, dashes, limits, panel, slots
from fedlab.report.run_tables import TableCell, TableRow, client_names, primary_group
from fedlab.runs.formatting import MISSING, elapsed, human_bytes
from fedlab.runs.metrics import MetricTable
from fedlab.runs.result import Result

PANELS = 24  # clients with a panel of their own; a page of hundreds helps nobody
KINDS = {
    "train_down": "training, down",
    "train_up": "training, up",
    "evaluate_down": "testing, down",
    "evaluate_up": "testing, up",
}


@dataclass(frozen=True)
class Key:
    """One entry of a legend."""

    label: str
    slot: int
    dashes: str = "none"
    note: str = ""


@dataclass(frozen=True)
class Drawing:
    """A figure under its title."""

    title: str
    svg: Markup


def primary_figures(result: Result) -> tuple[list[Key], list[Drawing]]:
    """Return a legend, and the fractions that the run is judged by, by round: the mean, then client by client."""
    names, table = _primary(result), result.metric_table
    colors = slots(names, table)
    series = {"mean": [record["mean"] for record in result.rounds]} if len(client_names(result.rounds)) != 1 else {}
    for client in client_names(result.rounds)[:PANELS]:
        series[client] = [record["clients"].get(client, {}) for record in result.rounds]
    panels = {
        title: [Curve(table.title(name), colors[name], [at.get(name, math.nan) for at in values]) for name in names]
        for title, values in series.items()
    }
    if not names or not panels:
        return [], []
    rounds, ranges = _rounds(result), limits(list(panels.values()), (0.0, 1.0))
    drawings = [
        Drawing(
            title,
            panel(
                f"primary-{i}", rounds, curves, within=within, percent=True, alt=_words(title, rounds, curves, table)
            ),
        )
        for i, ((title, curves), within) in enumerate(zip(panels.items(), ranges, strict=True))
    ]
    keys = [Key(table.title(name), colors[name], dashes(colors[name]), table.find(name).note) for name in names]
    return keys, drawings


def other_figures(result: Result) -> list[Drawing]:
    """Return every other number by round: of the clients' tests, each client faint behind the mean; and of the server.

    A reference, as a score of real data, stands in gray behind the metric that it is the reference of.
    """
    figures = [*_client_curves(result), *_server_curves(result)]
    return [_other(i, title, name, curves, result) for i, (title, name, curves) in enumerate(figures)]


def _client_curves(result: Result) -> Iterator[tuple[str, str, list[Curve]]]:
    """Yield title, metric and curves of what clients report beside the primary metrics."""
    primary = _primary(result)
    for name in (name for name in result.metric_names if name not in primary):
        faint = [
            Curve(client, REFERENCE, [at["clients"].get(client, {}).get(name, math.nan) for at in result.rounds], True)
            for client in client_names(result.rounds)
        ]
        mean = Curve("mean", 2, [at["mean"].get(name, math.nan) for at in result.rounds])
        yield f"{result.metric_table.heading(name)}, on the clients", name, [*faint, mean]


def _server_curves(result: Result) -> Iterator[tuple[str, str, list[Curve]]]:
    """Yield title, metric and curves of the workload's scores and of the strategy's own metrics."""
    table = result.metric_table
    for kind, where in (("score", "of the global model"), ("server", "on the server")):
        reported = dict.fromkeys(name for record in result.rounds for name in record.get(kind, {}))
        names = [name for name in reported if table.role(name) != "hidden"]
        values = {name: [record.get(kind, {}).get(name, math.nan) for record in result.rounds] for name in names}
        references = {name: table.reference(names, name) for name in names if table.role(name) != "reference"}
        for name in (name for name in names if name not in references.values()):
            behind = references.get(name, "")
            gray = [Curve(table.reference_title(behind), REFERENCE, values[behind], True)] if behind else []
            legend = f"; gray: {table.reference_title(behind)}" if behind else ""
            yield f"{table.heading(name)}, {where}{legend}", name, [*gray, Curve(table.title(name), 2, values[name])]


def _other(number: int, title: str, name: str, curves: list[Curve], result: Result) -> Drawing:
    """Return a figure with a range of its own, in percent where the metric is a fraction."""
    rounds, table = _rounds(result), result.metric_table
    within, alt = limits([curves], (-math.inf, math.inf))[0], _words(title, rounds, curves, table, name)
    percent = table.is_fraction(name)
    return Drawing(title, panel(f"other-{number}", rounds, curves, within=within, percent=percent, alt=alt))


def time_table(result: Result) -> tuple[list[TableRow], Drawing]:
    """Return seconds by phase: a row for each, colored as in the figure of all rounds."""
    total, rounds, table = result.seconds(), _rounds(result), result.metric_table
    most = max((sum(record["seconds"].values()) for record in result.rounds), default=0.0)
    unit, size = next(
        (pair for pair in (("hours", 3600.0), ("minutes", 60.0)) if most >= 5 * pair[1]), ("seconds", 1.0)
    )
    rows, stacks = [], []
    for (phase, seconds), slot in zip(total.items(), _cycle(len(total)), strict=True):
        name = table.phase_title(phase)
        fraction = f"{100 * seconds / sum(total.values()):.0f} %" if sum(total.values()) else MISSING
        rows.append(TableRow(name, [TableCell(elapsed(seconds)), TableCell(fraction)], slot))
        stacks.append(Curve(name, slot, [record["seconds"].get(phase, 0.0) / size for record in result.rounds]))
    rows.append(
        TableRow(
            "all", [TableCell(elapsed(sum(total.values()))), TableCell("100 %" if sum(total.values()) else MISSING)]
        )
    )
    alt = f"Stacked bars, {unit} by phase in each round; in all " + ", ".join(
        f"{row.head} {row.cells[0].text}" for row in rows[:-1]
    )
    return rows, Drawing(f"{unit.capitalize()} in each round", bars("seconds", rounds, stacks, alt=alt))


def traffic_table(result: Result) -> tuple[list[TableRow], list[Drawing]]:
    """Return bytes by client over all rounds, colored as in the figures of training traffic by round."""
    clients = client_names(result.rounds)
    colors = _cycle(len(clients)) if len(clients) <= SLOTS else [0] * len(clients)
    rows = []
    for client, slot in zip(clients, colors, strict=True):
        sums = (sum(record["bytes"].get(client, {}).get(kind, 0) for record in result.rounds) for kind in KINDS)
        rows.append(TableRow(client, [TableCell(human_bytes(count)) for count in sums], slot))
    rows.append(TableRow("all", [TableCell(human_bytes(result.bytes(kind))) for kind in KINDS]))
    trained = [record for record in result.rounds if record["round"] > 0]
    if not trained:
        return rows, []
    return rows, [
        _traffic("train_down", "to the clients", trained, clients),
        _traffic("train_up", "from the clients", trained, clients),
    ]


def _traffic(kind: str, where: str, records: Sequence[Mapping[str, Any]], clients: Sequence[str]) -> Drawing:
    """Return bytes of one kind by round, stacked by client while there are colors enough."""
    counts = {name: [float(record["bytes"].get(name, {}).get(kind, 0)) for record in records] for name in clients}
    sums = [sum(column) for column in zip(*counts.values(), strict=True)]
    most = max(sums, default=0.0)
    unit, size = next((pair for pair in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)) if most >= pair[1]), ("B", 1.0))
    series = counts if len(clients) <= SLOTS else {"all": sums}
    stacks = [
        Curve(name, slot, [count / size for count in values])
        for (name, values), slot in zip(series.items(), _cycle(len(series)), strict=True)
    ]
    alt = f"Bars, training traffic {where} by round; between {human_bytes(min(sums))} and {human_bytes(most)} a round"
    return Drawing(
        f"{unit} {where} in each round", bars(kind, [record["round"] for record in records], stacks, alt=alt)
    )


def _primary(result: Result) -> list[str]:
    """Return the names of the metrics that the run is judged by."""
    group, table = primary_group(result), result.metric_table
    return [name for name in result.metric_names if group and table.group(name) == group]


def _rounds(result: Result) -> list[int]:
    return [int(record["round"]) for record in result.rounds]


def _cycle(count: int) -> list[int]:
    """Return colors for things that have none of their own; the gray one comes last."""
    return [(i + 1) % SLOTS + 1 for i in range(count)]


def _words(title: str, rounds: Sequence[int], curves: Iterable[Curve], table: MetricTable, name: str = "") -> str:
    """Return a figure in words: where each line begins and ends, in the unit of ``name``, or in percent."""
    parts = []
    for curve in curves:
        known = [(at, value) for at, value in zip(rounds, curve.values, strict=True) if math.isfinite(value)]
        if known:
            ends = dict.fromkeys((known[0], known[-1]))
            values = ((at, table.format(name, value) if name else f"{100 * value:.1f} %") for at, value in ends)
            parts.append(f"{curve.label} {', '.join(f'{value} in round {at}' for at, value in values)}")
    return f"{title} by round: {'; '.join(parts) or 'nothing measured'}"
