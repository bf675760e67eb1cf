"""Sentences and tables of a run's page; titles, units and directions of metrics are those that the run declares.

What was not measured stays a gap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from fedlab.data.sources import DataSource, describe_sources
from fedlab.errors import plural
from fedlab.privacy.accounting import describe
from fedlab.runs.client_distribution import FEW, distributions, in_order, worst_first
from fedlab.runs.formatting import MISSING, elapsed
from fedlab.runs.metrics import MetricTable
from fedlab.runs.result import Result

LISTED = 100  # clients by name in a folded table of a page that shows the distribution over all
EXAMPLES = "num-examples"  # in the reply of a client: how many its metrics are of


@dataclass(frozen=True)
class TableCell:
    """One value of a table.

    ``value`` is what it is sorted by, and what a CSV file has, unless ``as_text`` says that the text is; ``heat`` is
    how far it is colored, in [0, 1].
    """

    text: str
    best: bool = False
    value: float | None = None
    heat: float | None = None
    drawing: Markup | None = None
    as_text: bool = False


@dataclass(frozen=True)
class ColumnHeader:
    """A column that sorts its table; ``first`` is the direction of the first click."""

    text: str
    key: str
    first: str = "ascending"


@dataclass(frozen=True)
class TableRow:
    """One row of a table; ``slot`` is its color where the table is a figure's legend."""

    head: str
    cells: list[TableCell]
    slot: int = 0


def client_names(rounds: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return every client that ever took part, in the order of partitions; sampled ones in the order of their names."""
    names = list(dict.fromkeys(name for record in rounds for kind in ("bytes", "clients") for name in record[kind]))
    return names if len(names) <= FEW else in_order(names)


def summary(result: Result) -> str:
    """Return the run's result in one sentence."""
    table, last = result.metric_table, result.rounds[-1]
    done, planned = last["round"], result.config.get("rounds", last["round"])
    what = system(result)
    rounds = f"{done} of {plural(int(planned), 'round')}" if done != planned else plural(done, "round")
    when = f"After {rounds} of {what}" if done else f"Before the first round of {what}"
    score = result.score()
    tested = _clients_sentence(result)
    if table.primary_scores(score):
        found = ", ".join(
            f"{table.title(name)} {table.format(name, score[name])}" for name in table.primary_scores(score)
        )
        return f"{when}, the global model has {found}{f'; {tested}' if tested else ''}."
    return f"{when}, {tested or 'no client has reported a metric'}."


def system(result: Result) -> str:
    """Return strategy and workload of a run, as its manifest or else its options name them."""
    strategy, workload = (
        result.manifest.get(kind, result.config.get(kind, f"a {kind}")) for kind in ("strategy", "workload")
    )
    return f"{strategy} on {workload}"


def _clients_sentence(result: Result) -> str:
    """Return the mean of what the clients' tests are judged by, and what it is compared with; "" without any."""
    table, first, last = result.metric_table, result.rounds[0], result.rounds[-1]
    names = [name for name in result.metric_names if name in last["mean"]]
    name = table.primary_metric(names)
    if not name or (table.role(name) == "auxiliary" and table.primary_scores(result.score())):
        return ""
    clients = len(last["clients"]) if len(last["clients"]) > FEW else len(client_names(result.rounds))
    whose = f"over {clients:,} clients" if clients != 1 else "of the one client"
    value, measure = last["mean"][name], table.full_title(name)
    mean = "" if clients == 1 or measure.startswith("mean ") else "mean "
    sentence = f"{mean}{measure} {whose} is {table.format(name, value)}"
    reference = table.reference(names, name)
    if reference and table.is_fraction(name):
        control, what = last["mean"][reference], table.find(reference).note or table.title(reference)
        return f"{sentence}, {_points(value - control)} {what} ({table.format(reference, control)})"
    if last["round"] and name in first["mean"] and first["round"] == 0:
        return f"{sentence}; it was {table.format(name, first['mean'][name])} before the first round"
    return sentence


def primary_group(result: Result) -> str:
    """Return the group of fractions that a run is judged by; "" where its clients, or of none the server, have none."""
    table = result.metric_table
    name = table.primary_metric(result.metric_names or table.primary_scores(result.score()))
    return table.group(name) if table.is_fraction(name) else ""


def _points(difference: float) -> str:
    size = f"{abs(100 * difference):.1f}"
    if size == "0.0":
        return "level with"
    return f"{size} point{'s' * (size != '1.0')} {'above' if difference > 0 else 'below'}"


@dataclass(frozen=True)
class ResultsTable:
    """The clients' tests after the last round that had any.

    Attributes
    ----------
    heads
        Column heads.
    rows
        A row for each client and one for the mean; of many clients, rows of their distribution.
    by_client
        Of many clients, a row for each, the worst first; else empty.
    tested
        Number of clients that were tested.
    """

    heads: list[str]
    rows: list[TableRow]
    by_client: list[TableRow]
    tested: int

    @property
    def worst(self) -> list[TableRow]:
        """The rows of ``by_client`` that have room on a page."""
        return self.by_client[:LISTED]


def auxiliary_table(result: Result) -> ResultsTable | None:
    """Return the table of what a method says about itself, and of losses; None where there is nothing of it."""
    shown = result.metric_table.shown(result.metric_names)
    names = [name for name in result.metric_names if name not in shown]
    return results_table(result, names) if names else None


def results_table(result: Result, names: Sequence[str] = ()) -> ResultsTable:
    """Return the table of the clients' tests after the last round; of all results where no names are given."""
    last, table = result.rounds[-1], result.metric_table
    names = names or table.shown(result.metric_names)
    clients = {client: last["clients"].get(client, {}) for client in client_names(result.rounds)}
    tested = len(last["clients"])
    if len(clients) > FEW:
        clients = {client: values for client, values in clients.items() if values}
    counted = any(EXAMPLES in values for values in clients.values())
    heads = [*map(table.heading, names), *([table.title(EXAMPLES)] if counted else [])]

    def row(head: str, values: Mapping[str, float]) -> TableRow:
        count = values.get(EXAMPLES)
        text = "" if count is None else f"{count:,.0f}".replace(",", "\u202f")
        examples = [TableCell(text, value=count)] if counted else []
        return TableRow(head, [*_cells(table, names, values), *examples])

    if len(clients) <= FEW:
        return ResultsTable(heads, [row(*pair) for pair in (*clients.items(), ("mean", last["mean"]))], [], tested)
    primary = table.primary_metric(names)
    order = worst_first(clients, primary, table.direction(primary))
    measured = [*names, *([EXAMPLES] if counted else [])]
    rows = distributions(clients, {name: table.direction(name) for name in measured})
    mean = {**rows.pop("mean", {}), **last["mean"]}
    return ResultsTable(
        heads,
        [row(*pair) for pair in (*rows.items(), ("mean", mean))],
        [row(client, clients[client]) for client in order],
        tested,
    )


def score_table(result: Result) -> tuple[list[str], list[TableRow]] | None:
    """Return column heads and one row: the newest metrics of the global model itself; None where there are none."""
    score, table = result.score(), result.metric_table
    names = table.sorted(score)
    return ([*map(table.heading, names)], [TableRow("global model", _cells(table, names, score))]) if names else None


def _cells(table: MetricTable, names: Sequence[str], values: Mapping[str, float]) -> list[TableCell]:
    """Return a row's values; the best of the primary group is marked where there is something to compare."""
    primary = table.primary_metric(names)
    up = table.direction(primary)
    group = [name for name in names if up and table.group(name) == table.group(primary)]
    best = table.best_as_shown(primary, [values[name] for name in group if name in values])
    texts = {name: table.format(name, values[name]) if name in values else MISSING for name in names}
    return [TableCell(text, name in group and text in best, values.get(name)) for name, text in texts.items()]


def failures(result: Result) -> list[tuple[int, str, int, str]]:
    """Return round, client, partition and reason of each failure of a client."""
    return [
        (record["round"], failure["client"], failure["partition"], str(failure["reason"]))
        for record in result.rounds
        for failure in record.get("failures", ())
    ]


def privacy(result: Result) -> str:
    """Return what differential privacy the run has, and whether its noise protects anybody; "" without any."""
    record = result.rounds[-1].get("privacy")
    return describe(record) if record else ""


def facts(result: Result) -> dict[str, str]:
    """Return the known facts of the run as a whole, by name."""
    manifest = result.manifest
    table = {
        "seed": result.config.get("seed", manifest.get("seed", "")),
        "engine": _engine(manifest),
        "device": manifest.get("device", ""),
        "machine": manifest.get("machine", ""),
        "training data": describe_sources([DataSource(**source) for source in manifest.get("data", ())]),
        "started": _time(manifest.get("started", manifest.get("created", ""))),
        "ended": _time(manifest.get("ended", "")),
        "resumed": _time(manifest.get("resumed", "")),
        "took": elapsed(sum(result.seconds().values())),
        "git commit": str(manifest.get("git_commit", "")).replace("-dirty", ", with uncommitted changes"),
        "weights (SHA-256)": result.weights_sha256,
    }
    return {name: str(value) for name, value in table.items() if value != ""}


def _engine(manifest: Mapping[str, Any]) -> str:
    """Return the engine that was asked for, and in brackets the one that it left the run to."""
    chosen = manifest.get("engine_chosen")
    return f"{manifest.get('engine', '')} ({chosen})" if chosen else str(manifest.get("engine", ""))


def _time(stamp: object) -> str:
    """Return ``2026-11-23T13:02:38+0000`` with spaces, for people."""
    return str(stamp or "").replace("T", " ").replace("+0000", " UTC")
