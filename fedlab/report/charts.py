"""What the page draws, with the tables that are at the same time a figure's legend."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from fedlab.report.figures import REFERENCE, SLOTS, Curve, bars, dashes, limits, panel, slots
from fedlab.report.run_page import MISSING, TableCell, TableRow, client_names, judged
from fedlab.runs.progress import PHASES, elapsed
from fedlab.runs.result import Result, family, human_bytes, is_share, label, metric_names, predictor, shown

PANELS = 24  # clients with a panel of their own; a page of hundreds helps nobody
KINDS = {
    "train_down": "training, down",
    "train_up": "training, up",
    "evaluate_down": "testing, down",
    "evaluate_up": "testing, up",
}
COUNTS, REAL = frozenset({"samples"}), "_real"  # scores that say how many; behind the name of one of real data
NOTES = {
    "last": "as the averaged heads, on the extractor of the last step",
    "source_only": "the control, trained on the source alone",
    "local": "the client's own head",
    "average": "both heads together",
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


def share_figures(result: Result) -> tuple[list[Key], list[Drawing]]:
    """A legend, and the shares that the run is judged by, by round: the mean, then client by client."""
    names = _judged(result)
    colors = slots(names)
    series = {"mean": [record["mean"] for record in result.rounds]} if len(client_names(result.rounds)) != 1 else {}
    for client in client_names(result.rounds)[:PANELS]:
        series[client] = [record["clients"].get(client, {}) for record in result.rounds]
    panels = {
        title: [Curve(label(name), colors[name], [at.get(name, math.nan) for at in values]) for name in names]
        for title, values in series.items()
    }
    if not names or not panels:
        return [], []
    rounds, ranges = _rounds(result), limits(list(panels.values()), (0.0, 1.0))
    drawings = [
        Drawing(
            title,
            panel(f"share-{i}", rounds, curves, within=within, share=True, alt=_words(title, rounds, curves, True)),
        )
        for i, ((title, curves), within) in enumerate(zip(panels.items(), ranges, strict=True))
    ]
    keys = [Key(label(name), colors[name], dashes(colors[name]), NOTES.get(predictor(name), "")) for name in names]
    return keys, drawings


def other_figures(result: Result) -> list[Drawing]:
    """Every other number by round: of the clients' tests, each client faint behind the mean; and of the server.

    A score of real data (``NAME_real``) stands in grey behind what it is the floor of.
    """
    figures: dict[str, list[Curve]] = {}
    for name in metric_names(result.rounds):
        if name not in _judged(result):
            faint = [
                Curve(
                    client, REFERENCE, [at["clients"].get(client, {}).get(name, math.nan) for at in result.rounds], True
                )
                for client in client_names(result.rounds)
            ]
            mean = Curve("mean", 2, [at["mean"].get(name, math.nan) for at in result.rounds])
            figures[f"{label(name)}, on the clients"] = [*faint, mean]
    for kind, where in (("score", "of the global model"), ("server", "on the server")):
        names = list(dict.fromkeys(name for record in result.rounds for name in record.get(kind, {})))
        values = {name: [record.get(kind, {}).get(name, math.nan) for record in result.rounds] for name in names}
        for name in names:
            floor = f"{name}{REAL}"
            if name in COUNTS or (name.endswith(REAL) and name.removesuffix(REAL) in names):
                continue
            behind = [Curve("real data", REFERENCE, values[floor], True)] if floor in names else []
            title = f"{label(name)}, {where}{'; grey: real data' if behind else ''}"
            figures[title] = [*behind, Curve(label(name), 2, values[name])]
    rounds, drawings = _rounds(result), []
    for i, (title, curves) in enumerate(figures.items()):
        within, alt = limits([curves], (-math.inf, math.inf))[0], _words(title, rounds, curves, False)
        drawings.append(Drawing(title, panel(f"other-{i}", rounds, curves, within=within, share=False, alt=alt)))
    return drawings


def time_table(result: Result) -> tuple[list[TableRow], Drawing]:
    """Seconds by phase: a row for each, coloured as in the figure of all rounds."""
    total, rounds = result.seconds(), _rounds(result)
    most = max((sum(record["seconds"].values()) for record in result.rounds), default=0.0)
    unit, size = next(
        (pair for pair in (("hours", 3600.0), ("minutes", 60.0)) if most >= 5 * pair[1]), ("seconds", 1.0)
    )
    rows, stacks = [], []
    for (phase, seconds), slot in zip(total.items(), _cycle(len(total)), strict=True):
        name = PHASES.get(phase, phase)
        share = f"{100 * seconds / sum(total.values()):.0f} %" if sum(total.values()) else MISSING
        rows.append(TableRow(name, [TableCell(elapsed(seconds)), TableCell(share)], slot))
        stacks.append(Curve(name, slot, [record["seconds"].get(phase, 0.0) / size for record in result.rounds]))
    rows.append(TableRow("all", [TableCell(elapsed(sum(total.values()))), TableCell("100 %" if sum(total.values()) else MISSING)]))
    alt = f"Stacked bars, {unit} by phase in each round; in all " + ", ".join(
        f"{row.head} {row.cells[0].text}" for row in rows[:-1]
    )
    return rows, Drawing(f"{unit.capitalize()} in each round", bars("seconds", rounds, stacks, alt=alt))


def traffic_table(result: Result) -> tuple[list[TableRow], list[Drawing]]:
    """Bytes by client over all rounds, coloured as in the figures of training traffic, which are by round."""
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
    """Bytes of one kind by round, stacked by client while there are colours enough."""
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


def _judged(result: Result) -> list[str]:
    return [name for name in metric_names(result.rounds) if is_share(name) and family(name) == judged(result.rounds)]


def _rounds(result: Result) -> list[int]:
    return [int(record["round"]) for record in result.rounds]


def _cycle(count: int) -> list[int]:
    """Colours for things that have none of their own; the grey one comes last."""
    return [(i + 1) % SLOTS + 1 for i in range(count)]


def _words(title: str, rounds: Sequence[int], curves: Iterable[Curve], share: bool) -> str:
    """A figure in words: where each line begins and ends."""
    parts = []
    for curve in curves:
        known = [(at, value) for at, value in zip(rounds, curve.values, strict=True) if math.isfinite(value)]
        if known:
            ends = dict.fromkeys((known[0], known[-1]))
            says = (f"{shown('accuracy' if share else curve.label, value)} in round {at}" for at, value in ends)
            parts.append(f"{curve.label} {', '.join(says)}")
    return f"{title} by round: {'; '.join(parts) or 'nothing measured'}"
