"""Costs of a run as tables that are at the same time a figure's legend: seconds by phase, bytes by client."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedlab.report.charts import Drawing
from fedlab.report.figures import SLOTS
from fedlab.report.panels import Curve, bars
from fedlab.report.run_tables import TableCell, TableRow, client_names
from fedlab.runs.client_distribution import FEW
from fedlab.runs.formatting import MISSING, elapsed, human_bytes
from fedlab.runs.result import Result

KINDS = {
    "train_down": "training, down",
    "train_up": "training, up",
    "evaluate_down": "testing, down",
    "evaluate_up": "testing, up",
}


def time_table(result: Result) -> tuple[list[TableRow], Drawing]:
    """Return seconds by phase: a row for each, colored as in the figure of all rounds."""
    total, rounds, table = result.seconds(), [record["round"] for record in result.rounds], result.metric_table
    most = max((sum(record["seconds"].values()) for record in result.rounds), default=0.0)
    unit, size = next(
        (pair for pair in (("hours", 3600.0), ("minutes", 60.0)) if most >= 5 * pair[1]), ("seconds", 1.0)
    )
    rows, stacks = [], []
    for (phase, seconds), slot in zip(total.items(), _cycle(len(total)), strict=True):
        name = table.phase_title(phase)
        fraction = f"{100 * seconds / sum(total.values()):.0f} %" if sum(total.values()) else MISSING
        rows.append(TableRow(name, [TableCell(elapsed(seconds), value=seconds), TableCell(fraction)], slot))
        stacks.append(Curve(name, slot, [record["seconds"].get(phase, 0.0) / size for record in result.rounds]))
    rows.append(
        TableRow(
            "all",
            [
                TableCell(elapsed(sum(total.values())), value=sum(total.values())),
                TableCell("100 %" if sum(total.values()) else MISSING),
            ],
        )
    )
    alt = f"Stacked bars, {unit} by phase in each round; in all " + ", ".join(
        f"{row.head} {row.cells[0].text}" for row in rows[:-1]
    )
    return rows, Drawing(f"{unit.capitalize()} in each round", bars("seconds", rounds, stacks, alt=alt, y=unit))


def traffic_table(result: Result) -> tuple[list[TableRow], list[Drawing]]:
    """Return bytes by client over all rounds, colored as in the figures of training traffic by round.

    Of many clients, the median and the largest.
    """
    clients = client_names(result.rounds)
    sums = {
        client: [sum(record["bytes"].get(client, {}).get(kind, 0) for record in result.rounds) for kind in KINDS]
        for client in clients
    }
    if len(clients) > FEW:
        rows = [
            TableRow(row, [TableCell(human_bytes(float(value)), value=float(value)) for value in values])
            for row, values in (
                ("median client", np.median(list(sums.values()), axis=0)),
                ("largest", np.max(list(sums.values()), axis=0)),
            )
        ]
    else:
        colors = _cycle(len(clients)) if len(clients) <= SLOTS else [0] * len(clients)
        rows = [
            TableRow(client, [TableCell(human_bytes(count), value=count) for count in sums[client]], slot)
            for client, slot in zip(clients, colors, strict=True)
        ]
    everybody = f"all {len(clients):,} that took part" if len(clients) > FEW else "all"
    rows.append(
        TableRow(everybody, [TableCell(human_bytes(result.bytes(kind)), value=result.bytes(kind)) for kind in KINDS])
    )
    trained = [record for record in result.rounds if record["round"] > 0]
    if not trained:
        return rows, []
    return rows, [
        _traffic("train_down", "to the clients", trained, clients),
        _traffic("train_up", "from the clients", trained, clients),
    ]


def _traffic(kind: str, where: str, records: Sequence[Mapping[str, Any]], clients: Sequence[str]) -> Drawing:
    """Return bytes of one kind by round, stacked by client while there are colors enough."""
    sums = [float(sum(client[kind] for client in record["bytes"].values())) for record in records]
    most = max(sums, default=0.0)
    unit, size = next((pair for pair in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)) if most >= pair[1]), ("B", 1.0))
    each = clients if len(clients) <= SLOTS else ()
    counts = {name: [float(record["bytes"].get(name, {}).get(kind, 0)) for record in records] for name in each}
    series = counts or {"all": sums}
    stacks = [
        Curve(name, slot, [count / size for count in values])
        for (name, values), slot in zip(series.items(), _cycle(len(series)), strict=True)
    ]
    alt = f"Bars, training traffic {where} by round; between {human_bytes(min(sums))} and {human_bytes(most)} a round"
    rounds = [record["round"] for record in records]
    return Drawing(f"{unit} {where} in each round", bars(kind, rounds, stacks, alt=alt, y=unit))


def _cycle(count: int) -> list[int]:
    """Return colors for things that have none of their own; the gray one comes last."""
    return [(i + 1) % SLOTS + 1 for i in range(count)]
