"""Figures of a run's page, with the tables that are at the same time a figure's legend."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from fedlab.report.figures import REFERENCE, Plot, dashes, slots
from fedlab.report.panels import Curve, Members, lacking, limits, panel
from fedlab.report.run_tables import TableCell, TableRow, client_names, primary_group
from fedlab.runs.client_distribution import FEW, WORST, distributions
from fedlab.runs.metrics import MetricTable
from fedlab.runs.result import Result


@dataclass(frozen=True)
class Key:
    """One entry of a legend."""

    label: str
    slot: int
    dashes: str = "none"
    note: str = ""


@dataclass(frozen=True)
class Drawing:
    """A figure under its title; a picture that is SVG already cannot be written as a PDF."""

    title: str
    picture: Plot | Markup

    @property
    def svg(self) -> Markup:
        """The figure as an element of a page."""
        return self.picture.under(self.title) if isinstance(self.picture, Plot) else self.picture


def primary_figures(result: Result) -> tuple[list[Key], list[Drawing]]:
    """Return a legend, and the fractions that the run is judged by, by round.

    The global model, where the server tests it; the mean over clients; then client by client. Of many clients, the
    median with a band from the tenth to the ninetieth percentile, and the worst tenth.
    """
    names, table = _primary(result), result.metric_table
    colors = slots(names, table)
    panels = {
        title: [
            Curve(
                table.title(name),
                colors[name],
                part.values(name),
                band=part.band_of(name),
                members=part.members_of(name),
            )
            for name in names
        ]
        for title, part in _series(result, names).items()
    }
    if not names or not panels:
        return [], []
    rounds, ranges = _rounds(result), limits(list(panels.values()), (0.0, 1.0))
    measure, drawings = table.title(primary_group(result)), []
    for i, ((title, curves), within) in enumerate(zip(panels.items(), ranges, strict=True)):
        alt = _words(title, rounds, curves, table)
        plot = panel(f"primary-{i}", rounds, curves, within=within, percent=True, alt=alt, y=measure)
        drawings.append(Drawing(title, plot))
    keys = [Key(table.title(name), colors[name], dashes(colors[name]), table.find(name).note) for name in names]
    return keys, drawings


@dataclass(frozen=True)
class Series:
    """Metrics by round, with a band those at its lower and at its upper edge; and those of the clients of a mean."""

    rounds: Sequence[Mapping[str, float]]
    band: tuple[Sequence[Mapping[str, float]], Sequence[Mapping[str, float]]] | None = None
    clients: Sequence[Mapping[str, Mapping[str, float]]] = ()

    def values(self, name: str) -> list[float]:
        """Return one metric in each round, NaN where there is none."""
        return [at.get(name, math.nan) for at in self.rounds]

    def members_of(self, name: str) -> list[Members]:
        """Return the clients that the mean of one metric is over, in each round."""
        return [frozenset(client for client, metrics in at.items() if name in metrics) for at in self.clients]

    def band_of(self, name: str) -> tuple[list[float], list[float]] | None:
        """Return the band of one metric."""
        if self.band is None:
            return None
        low, high = (Series(edge).values(name) for edge in self.band)
        return low, high


def _series(result: Result, names: Sequence[str]) -> dict[str, Series]:
    """Return the metrics of each panel by its title."""
    clients, rounds = client_names(result.rounds), result.rounds
    scored = any(name in record.get("score", {}) for record in rounds for name in names)
    found = {"global model": Series([record.get("score", {}) for record in rounds])} if scored else {}
    if not any(record["clients"] for record in rounds):
        return found
    if len(clients) != 1:
        title = "mean over clients" if scored or len(clients) > FEW else "mean"
        found[title] = _mean(result)
    if len(clients) <= FEW:
        return found | {client: Series([at["clients"].get(client, {}) for at in rounds]) for client in clients}
    rows = [distributions(at["clients"], {n: result.metric_table.direction(n) for n in names}) for at in rounds]
    median, low, high, worst = ([row.get(name, {}) for row in rows] for name in ("median", "10 %", "90 %", WORST))
    found["median client; 80 % of clients in the band"] = Series(median, (low, high))
    found["worst tenth of clients"] = Series(worst)
    return found


def _mean(result: Result) -> Series:
    """Return the means over clients by round, with their clients where these are few and not drawn anew each time."""
    tells = result.tests_everybody and len(client_names(result.rounds)) <= FEW
    return Series(
        [record["mean"] for record in result.rounds],
        clients=[record["clients"] for record in result.rounds] if tells else (),
    )


def sometimes_missing(result: Result) -> list[str]:
    """Return the clients that some of the drawn means lack, in the order of partitions."""
    mean, found = _mean(result), set[str]()
    for name in result.metric_names:
        found |= lacking(mean.values(name), mean.members_of(name))
    return [client for client in client_names(result.rounds) if client in found]


def other_figures(result: Result) -> tuple[list[Drawing], list[TableRow]]:
    """Return every other number by round: of the clients' tests, each client faint behind the mean; and of the server.

    A reference, as a score of real data, stands in gray behind the metric that it is the reference of.

    Returns
    -------
    tuple of list, list
        Figures, and a row with value and round for each number that one round alone has.
    """
    drawings, rows, rounds = list[Drawing](), list[TableRow](), _rounds(result)
    for title, name, curves in (*_client_curves(result), *_server_curves(result)):
        known = [at for at, value in enumerate(curves[-1].values) if math.isfinite(value)]
        if len(known) > 1:
            drawings.append(_other(len(drawings), title, name, curves, result))
            continue
        for at in known:
            value = curves[-1].values[at]
            cells = [TableCell(result.metric_table.format(name, value), value=value), TableCell(str(rounds[at]))]
            rows.append(TableRow(title, cells))
    return drawings, rows


def _client_curves(result: Result) -> Iterator[tuple[str, str, list[Curve]]]:
    """Yield title, metric and curves of what clients report beside the primary metrics."""
    primary = _primary(result)
    clients, table = client_names(result.rounds), result.metric_table
    for name in (name for name in result.metric_names if name not in primary):
        means = _mean(result)
        mean = Curve("mean", 2, means.values(name), members=means.members_of(name))
        title = f"{table.heading(name)}, on the clients"
        if len(clients) > FEW:
            rows = [distributions(at["clients"], {name: 0}) for at in result.rounds]
            low, high = (Series([row.get(end, {}) for row in rows]).values(name) for end in ("10 %", "90 %"))
            yield f"{title}; 80 % of them in the band", name, [replace(mean, band=(low, high))]
            continue
        faint = [
            Curve(client, REFERENCE, [at["clients"].get(client, {}).get(name, math.nan) for at in result.rounds], True)
            for client in clients
        ]
        yield title, name, [*faint, mean]


def _server_curves(result: Result) -> Iterator[tuple[str, str, list[Curve]]]:
    """Yield title, metric and curves of the workload's scores and of the strategy's own metrics."""
    table, shown = result.metric_table, _primary(result)
    for kind, where in (("score", "of the global model"), ("server", "on the server")):
        reported = dict.fromkeys(name for record in result.rounds for name in record.get(kind, {}))
        names = [name for name in reported if table.role(name) != "hidden" and not (kind == "score" and name in shown)]
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
    y, unit = table.title(name), "" if percent else table.find(name).unit
    plot = panel(f"other-{number}", rounds, curves, within=within, percent=percent, alt=alt, y=y, unit=unit)
    return Drawing(title, plot)


def _primary(result: Result) -> list[str]:
    """Return the names of the metrics that the run is judged by: the clients', or of none the global model's."""
    group, table = primary_group(result), result.metric_table
    names = result.metric_names or table.sorted(result.score())
    return [name for name in names if group and table.group(name) == group]


def _rounds(result: Result) -> list[int]:
    return [int(record["round"]) for record in result.rounds]


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
